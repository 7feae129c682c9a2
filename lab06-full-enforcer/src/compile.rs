//! Translates a policy into the tables that the programs walk.

use std::collections::BTreeMap;

use enforcer_policy::{
    Refusal, decide,
    model::{self, Policy, Range},
};
use lab02_xdp_firewall_common::prefix_set::{
    build::{Content, Prefix},
    tree::{Node, NodeV4, NodeV6},
};
use lab06_full_enforcer_common::{
    control::Mode,
    key::Essential,
    table::{Action, Config, Field, MAX_RULES, Rule, RuleMode, Tables},
};
use thiserror::Error;

/// A policy cannot be enforced. A line for each cause.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}", self.lines())]
pub struct CannotEnforce {
    /// What stands in the way, each with its place in the policy and its mend.
    pub causes: Vec<Refusal>,
}

impl CannotEnforce {
    fn lines(&self) -> String {
        let lines: Vec<String> = self.causes.iter().map(Refusal::to_string).collect();
        lines.join("\n")
    }
}

/// A policy as tables, which begin at the arrays' beginning.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// All but the arrays' content.
    pub config: Config,
    /// Of the arrays of nodes.
    pub content: Content,
    /// Of the array of masks.
    pub masks: Vec<u64>,
    /// Of the array of rules, in the order of matching. Each is its own id until ids are given.
    pub rules: Vec<Rule>,
    /// The names of the rules, in the order of matching.
    pub names: Vec<String>,
    /// The mode that the policy asks for.
    pub mode: Mode,
}

/// How much each of the arrays holds for one slot.
#[derive(Clone, Copy, Debug)]
pub struct Capacities {
    /// IPv4 nodes, fifteen bounds each; those of ports among them.
    pub nodes_v4: u32,
    /// IPv6 nodes, seven bounds each.
    pub nodes_v6: u32,
    /// Masks.
    pub masks: u32,
}

impl Capacities {
    /// What the enforcer is started with: some ten thousand prefixes of each family.
    pub const DEFAULT: Self = Self {
        nodes_v4: 4096,
        nodes_v6: 8192,
        masks: 4096 * NodeV4::CHILDREN + 8192 * NodeV6::CHILDREN + 1024,
    };
}

/// Compiles `policy`, whose names and values were checked when it was read.
pub fn compile(policy: &Policy, capacities: &Capacities) -> Result<Compiled, CannotEnforce> {
    let mut causes: Vec<Refusal> = (0..).zip(&policy.rules).flat_map(not_enforced).collect();
    if policy.rules.len() > MAX_RULES {
        causes.push(Refusal {
            rule: Some(MAX_RULES),
            key: None,
            message: format!(
                "the policy has {} rules, and this version enforces {MAX_RULES} at most",
                policy.rules.len()
            ),
            help: "put what several have in common into lists or sets".into(),
        });
    }
    if !causes.is_empty() {
        return Err(CannotEnforce { causes });
    }
    let compiled = Compiler::new(policy).compile();
    let used = [
        (
            compiled.content.nodes_v4.len(),
            capacities.nodes_v4,
            "IPv4 prefixes and ports",
        ),
        (compiled.content.nodes_v6.len(), capacities.nodes_v6, "IPv6 prefixes"),
        (compiled.masks.len(), capacities.masks, "prefixes and ports"),
    ];
    let causes: Vec<Refusal> = used
        .into_iter()
        .filter(|(used, capacity, _)| *used > *capacity as usize)
        .map(|(used, capacity, what)| Refusal {
            rule: None,
            key: None,
            message: format!(
                "the {what} of the policy take {used} places in a table that has {capacity} in this version"
            ),
            help: "use fewer or shorter ones".into(),
        })
        .collect();
    if causes.is_empty() {
        Ok(compiled)
    } else {
        Err(CannotEnforce { causes })
    }
}

/// The keys of a rule that would have to be ignored, and are not: a cause each.
fn not_enforced((index, rule): (usize, &model::Rule)) -> Vec<Refusal> {
    let keys = [
        ("interface", !rule.interface.is_empty()),
        ("mac", !rule.mac.is_empty()),
        ("cgroup", !rule.cgroup.is_empty()),
        ("uid", !rule.uid.is_empty()),
        ("gid", !rule.gid.is_empty()),
        ("state", !rule.state.is_empty()),
        ("rate_limit", matches!(rule.action, model::Action::RateLimit(_))),
    ];
    keys.into_iter()
        .filter(|(_, is_there)| *is_there)
        .map(|(key, _)| Refusal {
            rule: Some(index),
            key: Some(if key == "rate_limit" { "action" } else { key }),
            message: format!("rule {}: {key} is not enforced by this version", rule.name),
            help: format!("take the rule out, or decide without {key}"),
        })
        .collect()
}

struct Compiler<'a> {
    policy: &'a Policy,
    /// In the order of matching.
    rules: Vec<&'a model::Rule>,
    content: Content,
    masks: Vec<u64>,
}

/// The values that a rule is content with, from the first to the last of each interval; `None` for all.
type Wanted = Option<Vec<(u128, u128)>>;

impl<'a> Compiler<'a> {
    fn new(policy: &'a Policy) -> Self {
        let rules = policy.order().into_iter().map(|index| &policy.rules[index]).collect();
        Self {
            policy,
            rules,
            content: Content::default(),
            masks: Vec::new(),
        }
    }

    fn compile(mut self) -> Compiled {
        let allows = |verdict| verdict == model::DefaultVerdict::Allow;
        let config = Config {
            source_v4: self.numbers(|compiler, rule| compiler.addresses(&rule.source, true), u32::MAX),
            destination_v4: self.numbers(|compiler, rule| compiler.addresses(&rule.destination, true), u32::MAX),
            source_v6: self.addresses_v6(|compiler, rule| compiler.addresses(&rule.source, false)),
            destination_v6: self.addresses_v6(|compiler, rule| compiler.addresses(&rule.destination, false)),
            source_port: self.numbers(|_, rule| ranges(&rule.source_ports), u32::from(u16::MAX)),
            destination_port: self.numbers(|_, rule| ranges(&rule.destination_ports), u32::from(u16::MAX)),
            ingress: self.bits(|rule| rule.covers(model::Direction::Ingress)),
            egress: self.bits(|rule| rule.covers(model::Direction::Egress)),
            without_ports: self.bits(|rule| rule.source_ports.is_empty() && rule.destination_ports.is_empty()),
            without_icmp: self.bits(|rule| rule.icmp_type.is_empty() && rule.icmp_code.is_empty()),
            without_ip: self.bits(|rule| !asks_for_ip(rule)),
            log: self.bits(|rule| rule.action == model::Action::Log),
            named: Essential::ALL.map(|essential| self.bits(|rule| decide::names(rule, reason(essential)))),
            first_protocol: self.bytes(|rule, byte| rule.protocol.is_none_or(|protocol| protocol.0 == byte)),
            first_icmp_type: self.bytes(|rule, byte| is_in(&rule.icmp_type, byte)),
            first_icmp_code: self.bytes(|rule, byte| is_in(&rule.icmp_code, byte)),
            first_rule: 0,
            veil: 0,
            block_ingress: u8::from(!allows(self.policy.defaults.ingress)),
            block_egress: u8::from(!allows(self.policy.defaults.egress)),
            block_malformed: u8::from(self.policy.defaults.malformed == model::MalformedVerdict::Drop),
            essentials: u8::from(self.policy.essentials),
            padding: [0; 4],
        };
        let rules = self.rules.iter().zip(0..).map(|(rule, id)| record(rule, id)).collect();
        Compiled {
            config,
            rules,
            names: self.rules.iter().map(|rule| rule.name.clone()).collect(),
            mode: mode(self.policy.mode),
            content: self.content,
            masks: self.masks,
        }
    }

    /// The rules of which it is true, as a mask.
    fn bits(&self, is_true: impl Fn(&model::Rule) -> bool) -> u64 {
        self.rules
            .iter()
            .zip(0..)
            .map(|(rule, number)| u64::from(is_true(rule)) << number)
            .sum()
    }

    /// A mask for each value of a byte; the index of the first one.
    fn bytes(&mut self, is_content: impl Fn(&model::Rule, u8) -> bool) -> u32 {
        let first = self.masks.len() as u32;
        for byte in 0..=u8::MAX {
            let mask = self.bits(|rule| is_content(rule, byte));
            self.masks.push(mask);
        }
        first
    }

    /// A field of up to 32 bits.
    fn numbers(&mut self, wanted: impl Fn(&Self, &model::Rule) -> Wanted, highest: u32) -> Field {
        let classes = self.classes(wanted, u128::from(highest));
        let bounds: Vec<u32> = classes.tree_bounds().map(|bound| bound as u32).collect();
        Field {
            tree: self.content.add_bounds_v4(&bounds),
            first_mask: self.add_masks(&classes, NodeV4::CHILDREN as usize),
            padding: 0,
        }
    }

    /// A field of 128 bits.
    fn addresses_v6(&mut self, wanted: impl Fn(&Self, &model::Rule) -> Wanted) -> Field {
        let classes = self.classes(wanted, u128::MAX);
        let bounds: Vec<u128> = classes.tree_bounds().collect();
        Field {
            tree: self.content.add_bounds_v6(&bounds),
            first_mask: self.add_masks(&classes, NodeV6::CHILDREN as usize),
            padding: 0,
        }
    }

    fn classes(&self, wanted: impl Fn(&Self, &model::Rule) -> Wanted, highest: u128) -> Classes {
        let wanted: Vec<Wanted> = self.rules.iter().map(|rule| wanted(self, rule)).collect();
        Classes::of(&wanted, highest)
    }

    /// Lays the masks out by the positions of a tree whose nodes have so many children; the index of the first one.
    fn add_masks(&mut self, classes: &Classes, children: usize) -> u32 {
        let first = self.masks.len() as u32;
        let masks: Vec<u64> = classes.masks().collect();
        let last = masks.len() - 1;
        let bounds_in_leaf = children - 1;
        for leaf in 0..masks.len().div_ceil(bounds_in_leaf) {
            // Before the first bound of a leaf lies what the leaf before ends with; free places continue the last bound.
            let positions = (0..children).map(|rank| (leaf * bounds_in_leaf + rank).saturating_sub(1));
            self.masks.extend(positions.map(|place| masks[place.min(last)]));
        }
        first
    }

    /// The addresses of one family that a list stands for.
    fn addresses(&self, list: &[model::Address], of_v4: bool) -> Wanted {
        if list.is_empty() {
            return None;
        }
        let prefixes = list.iter().flat_map(|address| self.policy.prefixes(address));
        Some(
            prefixes
                .filter(|prefix| prefix.address().is_ipv4() == of_v4)
                .map(interval)
                .collect(),
        )
    }
}

fn interval(prefix: &Prefix) -> (u128, u128) {
    let (first, bits) = match prefix.address() {
        std::net::IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        std::net::IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let host_bits = bits - u32::from(prefix.len());
    let host_mask = u128::MAX.checked_shr(128 - host_bits).unwrap_or(0);
    (first, first | host_mask)
}

fn ranges(ranges: &[Range<u16>]) -> Wanted {
    let intervals = |range: &Range<u16>| (u128::from(range.first), u128::from(range.last));
    (!ranges.is_empty()).then(|| ranges.iter().map(intervals).collect())
}

fn is_in(ranges: &[Range<u8>], byte: u8) -> bool {
    ranges.is_empty() || ranges.iter().any(|range| range.contains(byte))
}

/// Whether a rule has a key that only packets of IP can meet.
fn asks_for_ip(rule: &model::Rule) -> bool {
    rule.protocol.is_some()
        || !(rule.source.is_empty() && rule.destination.is_empty())
        || !(rule.source_ports.is_empty() && rule.destination_ports.is_empty())
        || !(rule.icmp_type.is_empty() && rule.icmp_code.is_empty())
}

/// What the reference calls it.
pub fn reason(essential: Essential) -> decide::Reason {
    match essential {
        Essential::Loopback => decide::Reason::Loopback,
        Essential::NeighbourDiscovery => decide::Reason::NeighbourDiscovery,
        Essential::MulticastListener => decide::Reason::MulticastListener,
        Essential::DhcpClient => decide::Reason::DhcpClient,
    }
}

/// The mode, as the programs have it.
pub fn mode(mode: model::Mode) -> Mode {
    match mode {
        model::Mode::Observe => Mode::Observe,
        model::Mode::Block => Mode::Block,
    }
}

fn record(rule: &model::Rule, id: u32) -> Rule {
    let action = match rule.action {
        model::Action::Allow => Action::Allow,
        // What has a rate is refused before.
        model::Action::Block | model::Action::RateLimit(_) => Action::Block,
        model::Action::Log => Action::Log,
    };
    let mode = match rule.mode {
        None => RuleMode::AsControl,
        Some(model::RuleMode::Observe) => RuleMode::Observe,
    };
    Rule {
        id,
        action: action as u8,
        mode: mode as u8,
        padding: [0; 2],
    }
}

/// The values of a field, cut where rules begin or cease to be content: from each value here on, up to the next, the
/// same rules are.
struct Classes(BTreeMap<u128, u64>);

impl Classes {
    fn of(wanted: &[Wanted], highest: u128) -> Self {
        // Where the rules of a mask change their minds.
        let mut changes: BTreeMap<u128, u64> = BTreeMap::from([(0, 0)]);
        for (wanted, number) in wanted.iter().zip(0..) {
            let bit = 1u64 << number;
            let all = vec![(0, highest)];
            for (first, last) in joined(wanted.as_ref().unwrap_or(&all)) {
                *changes.entry(first).or_default() ^= bit;
                if last < highest {
                    *changes.entry(last + 1).or_default() ^= bit;
                }
            }
        }
        let mut mask = 0;
        for change in changes.values_mut() {
            mask ^= *change;
            *change = mask;
        }
        Self(changes)
    }

    /// The bounds of the tree: none if all values are alike.
    fn tree_bounds(&self) -> impl Iterator<Item = u128> {
        let is_needed = self.0.len() > 1;
        self.0.keys().copied().filter(move |_| is_needed)
    }

    fn masks(&self) -> impl Iterator<Item = u64> {
        self.0.values().copied()
    }
}

/// The same values in ascending intervals that neither overlap nor touch.
fn joined(intervals: &[(u128, u128)]) -> Vec<(u128, u128)> {
    let mut sorted = intervals.to_vec();
    sorted.sort_unstable();
    let mut result: Vec<(u128, u128)> = Vec::with_capacity(sorted.len());
    for (first, last) in sorted {
        match result.last_mut() {
            Some(previous) if first <= previous.1.saturating_add(1) => previous.1 = previous.1.max(last),
            _ => result.push((first, last)),
        }
    }
    result
}

impl Tables for Compiled {
    fn node_v4(&self, index: u32) -> Option<&NodeV4> {
        self.content.nodes_v4.get(index as usize)
    }

    fn node_v6(&self, index: u32) -> Option<&NodeV6> {
        self.content.nodes_v6.get(index as usize)
    }

    fn mask(&self, index: u32) -> Option<u64> {
        self.masks.get(index as usize).copied()
    }

    fn rule(&self, index: u32) -> Option<Rule> {
        self.rules.get(index as usize).copied()
    }
}
