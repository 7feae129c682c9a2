//! What no key alone shows: names that are not defined, rules that cannot match, decisions that no hook can make.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Range as Span,
};

use crate::{
    decide::{Reason, names},
    diagnostic::{Diagnostic, Severity},
    model::{Action, Address, Direction, Order, Policy, Prefix, Protocol, Range, Rate, Rule, State},
    text,
    tree::{Node, Value},
};

/// Up to how many rules each is compared with all before it: the comparisons grow with the square.
pub const MAX_COMPARED: usize = 3000;

/// The bytes of an ordinary full packet from its IP header on; more than a burst lets through never passes.
const FULL_PACKET: u64 = 1500;

/// Adds what is found.
pub(crate) fn check(policy: &Policy, tree: &Node, diagnostics: &mut Vec<Diagnostic>) {
    // Where something could not be read, what is there says little about what is meant.
    let all_was_read = !diagnostics
        .iter()
        .any(|diagnostic| diagnostic.severity == Severity::Error);
    let mut checker = Checker {
        policy,
        tree,
        diagnostics,
    };
    checker.names();
    checker.sets();
    for (index, rule) in policy.rules.iter().enumerate() {
        checker.protocol_keys(index, rule);
        checker.directions(index, rule);
        checker.rate_limit(index, rule);
        checker.repeats(index, rule);
        if all_was_read {
            checker.families(index, rule);
        }
    }
    checker.priorities();
    if all_was_read {
        checker.shadows();
    }
}

struct Checker<'a> {
    policy: &'a Policy,
    tree: &'a Node,
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl Checker<'_> {
    fn say(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    fn rule_node(&self, index: usize) -> Option<&Node> {
        self.tree.rule(index)
    }

    /// Where a key of a rule stands, with its value.
    fn key(&self, index: usize, key: &str) -> Span<usize> {
        self.tree.key_of_rule(index, key)
    }

    /// Where the value of a key stands.
    fn value(&self, index: usize, key: &str) -> Span<usize> {
        let entry = self.rule_node(index).and_then(|rule| rule.get(key));
        entry.map_or_else(|| self.name(index), |entry| entry.node.span.clone())
    }

    /// Where one element of the list of a key stands, of which so many were read.
    fn element(&self, index: usize, key: &str, element: usize, read: usize) -> Span<usize> {
        let entry = self.rule_node(index).and_then(|rule| rule.get(key));
        match entry.map(|entry| &entry.node.value) {
            Some(Value::List(elements)) if elements.len() == read => elements[element].span.clone(),
            _ => self.value(index, key),
        }
    }

    /// Where a rule's name stands.
    fn name(&self, index: usize) -> Span<usize> {
        self.tree.name_of_rule(index)
    }

    fn names(&mut self) {
        let mut first: BTreeMap<&str, usize> = BTreeMap::new();
        for (index, rule) in self.policy.rules.iter().enumerate() {
            // A rule without a name was told so.
            if rule.name.is_empty() {
                continue;
            }
            if let Some(first) = first.get(rule.name.as_str()) {
                let diagnostic = Diagnostic::error(
                    "duplicate-name",
                    self.name(index),
                    format!("two rules have the name {}", rule.name),
                )
                .related(self.name(*first), "first here")
                .help("statistics are kept by name; give each rule its own".to_owned());
                self.say(diagnostic);
            } else {
                first.insert(&rule.name, index);
            }
        }
    }

    fn sets(&mut self) {
        let mut used: BTreeSet<&str> = BTreeSet::new();
        for (index, rule) in self.policy.rules.iter().enumerate() {
            for (key, addresses) in [("source", &rule.source), ("destination", &rule.destination)] {
                for (element, address) in addresses.iter().enumerate() {
                    let Address::Set(name) = address else { continue };
                    used.insert(name);
                    if self.policy.sets.contains_key(name) {
                        continue;
                    }
                    let near = text::nearest(name, self.policy.sets.keys().map(String::as_str));
                    let help = match near {
                        Some(near) => format!("did you mean @{near}?"),
                        None if self.policy.sets.is_empty() => "define it under `sets`".to_owned(),
                        None => {
                            let known: Vec<&str> = self.policy.sets.keys().map(String::as_str).take(10).collect();
                            format!("the sets are {}", known.join(", "))
                        }
                    };
                    self.say(
                        Diagnostic::error(
                            "undefined-set",
                            self.element(index, key, element, addresses.len()),
                            format!("the set {name} is not defined"),
                        )
                        .help(help),
                    );
                }
                let all_empty = !addresses.is_empty()
                    && addresses.iter().all(|address| {
                        matches!(address, Address::Set(name) if self.policy.sets.get(name).is_some_and(crate::model::Set::is_empty))
                    });
                if all_empty {
                    self.say(
                        Diagnostic::warning(
                            "empty-set",
                            self.value(index, key),
                            format!("the rule {} matches nothing as long as this set is empty", rule.name),
                        )
                        .help("add prefixes to it, also while the policy is in force".to_owned()),
                    );
                }
            }
        }
        for name in self.policy.sets.keys().filter(|name| !used.contains(name.as_str())) {
            let entry = self.tree.get("sets").and_then(|sets| sets.node.get(name));
            let span = entry.map(|entry| entry.key_span.clone()).unwrap_or_default();
            self.diagnostics.push(
                Diagnostic::warning("unused-set", span, format!("no rule names the set {name}"))
                    .help(format!("name it as \"@{name}\", or remove it")),
            );
        }
    }

    /// Ports need a protocol that has some, ICMP's keys need ICMP.
    fn protocol_keys(&mut self, index: usize, rule: &Rule) {
        if let Some(protocol) = rule.protocol
            && !protocol.has_ports()
        {
            let with_ports = [
                ("source_ports", &rule.source_ports),
                ("destination_ports", &rule.destination_ports),
            ];
            for (key, _) in with_ports.into_iter().filter(|(_, ports)| !ports.is_empty()) {
                let help = if protocol.is_icmp() {
                    "use `icmp_type`, or `protocol: tcp` or `udp`".to_owned()
                } else {
                    "use `protocol: tcp` or `udp`, or remove the ports".to_owned()
                };
                let diagnostic = Diagnostic::error(
                    "ports-without-protocol",
                    self.key(index, key),
                    format!("the protocol {protocol} has no ports"),
                )
                .related(self.key(index, "protocol"), "")
                .help(help);
                self.say(diagnostic);
            }
        }
        let asks_icmp = [("icmp_type", &rule.icmp_type), ("icmp_code", &rule.icmp_code)];
        for (key, _) in asks_icmp.into_iter().filter(|(_, ranges)| !ranges.is_empty()) {
            match rule.protocol {
                Some(protocol) if protocol.is_icmp() => {}
                Some(protocol) => {
                    let diagnostic = Diagnostic::error(
                        "icmp-without-protocol",
                        self.key(index, key),
                        format!("the protocol {protocol} has no `{key}`"),
                    )
                    .related(self.key(index, "protocol"), "")
                    .help("use `protocol: icmp` or `icmpv6`".to_owned());
                    self.say(diagnostic);
                }
                // It was told that this one is none.
                None if self.rule_node(index).is_some_and(|rule| rule.get("protocol").is_some()) => {}
                None => {
                    let diagnostic = Diagnostic::error(
                        "icmp-without-protocol",
                        self.key(index, key),
                        format!(
                            "`{key}` needs a protocol: ICMP and ICMPv6 have the same numbers for different messages"
                        ),
                    )
                    .help("add `protocol: icmp` or `protocol: icmpv6`".to_owned());
                    self.say(diagnostic);
                }
            }
        }
    }

    /// Both addresses of a packet, and ICMP, are of one version of IP.
    fn families(&mut self, index: usize, rule: &Rule) {
        let source = self.family(&rule.source);
        let destination = self.family(&rule.destination);
        if let (Family::Only(one), Family::Only(other)) = (source, destination)
            && one != other
        {
            let diagnostic = Diagnostic::error(
                "never-matches",
                self.value(index, "destination"),
                format!("the rule {} can match no packet: {one} to {other}", rule.name),
            )
            .label(other.to_string())
            .related(self.value(index, "source"), one.to_string())
            .help("make two rules of it".to_owned());
            self.say(diagnostic);
        }
        let wanted = match rule.protocol {
            Some(Protocol::ICMP) => Version::V4,
            Some(Protocol::ICMPV6) => Version::V6,
            _ => return,
        };
        for (key, family) in [("source", source), ("destination", destination)] {
            let Family::Only(found) = family else { continue };
            if found == wanted {
                continue;
            }
            let right = if wanted == Version::V4 { "icmpv6" } else { "icmp" };
            let diagnostic = Diagnostic::warning(
                "never-matches",
                self.value(index, "protocol"),
                format!(
                    "the rule {} matches nothing that is in use: {found} has {right}",
                    rule.name
                ),
            )
            .related(self.value(index, key), found.to_string())
            .help(format!("write `protocol: {right}`"));
            self.say(diagnostic);
        }
    }

    fn family(&self, addresses: &[Address]) -> Family {
        let mut prefixes = addresses.iter().flat_map(|address| self.policy.prefixes(address));
        let version = |prefix: &Prefix| match prefix.address() {
            IpAddr::V4(_) => Version::V4,
            IpAddr::V6(_) => Version::V6,
        };
        match prefixes.next().map(version) {
            Some(first) if prefixes.all(|prefix| version(prefix) == first) => Family::Only(first),
            _ => Family::Any,
        }
    }

    /// What a hook does not see, it cannot decide by.
    fn directions(&mut self, index: usize, rule: &Rule) {
        if !rule.mac.is_empty() && rule.direction != Some(Direction::Ingress) {
            let (span, message) = match rule.direction {
                Some(_) => (
                    self.key(index, "direction"),
                    "the sender of what goes out is this host".to_owned(),
                ),
                None => (
                    self.key(index, "mac"),
                    "`mac` is the sender's, of packets that come in".to_owned(),
                ),
            };
            let diagnostic =
                Diagnostic::error("mac-egress", span, message).help("write `direction: ingress`".to_owned());
            self.say(diagnostic);
        }
        let is_block = rule.action == Action::Block;
        if rule.names_identity() && rule.direction != Some(Direction::Egress) && !is_block {
            let action = match rule.action {
                Action::Allow => "allow",
                Action::Log => "log",
                _ => "rate_limit",
            };
            let key = [
                ("cgroup", rule.cgroup.is_empty()),
                ("uid", rule.uid.is_empty()),
                ("gid", rule.gid.is_empty()),
            ]
            .into_iter()
            .find_map(|(key, is_empty)| (!is_empty).then_some(key))
            .unwrap_or("cgroup");
            let message = format!(
                "`{action}` by {key} cannot be decided about what comes in: the hook that decides does not know yet whose it is"
            );
            let span = self.key(index, "action");
            let mut diagnostic = Diagnostic::error("identity-ingress", span, message)
                .related(
                    self.key(index, key),
                    "known on ingress only where it is too late for all but `block`",
                )
                .help("write `direction: egress`; replies to what is allowed are allowed with it".to_owned());
            if rule.direction == Some(Direction::Ingress) {
                diagnostic = diagnostic.help(format!("remove {key}, or `block` what must not come in"));
            }
            self.say(diagnostic);
        }
    }

    fn rate_limit(&mut self, index: usize, rule: &Rule) {
        let Action::RateLimit(limit) = rule.action else { return };
        if let Rate::Bytes(_) = limit.rate
            && limit.burst < FULL_PACKET
        {
            let entry = self.rule_node(index).and_then(|rule| rule.get("action"));
            let burst = entry.and_then(|entry| entry.node.get("rate_limit")?.node.get("burst"));
            let span = burst.map_or_else(|| self.key(index, "action"), |entry| entry.node.span.clone());
            let burst = limit.burst;
            self.say(
                Diagnostic::warning(
                    "small-burst",
                    span,
                    format!("packets of more than {burst} bytes never pass a burst of {burst}"),
                )
                .help(format!(
                    "ordinary packets have up to {FULL_PACKET} bytes; leave the key out for 65536 or more"
                )),
            );
        }
    }

    /// What a list says twice.
    fn repeats(&mut self, index: usize, rule: &Rule) {
        self.repeated(index, "source", &rule.source, |a, b| a == b);
        self.repeated(index, "destination", &rule.destination, |a, b| a == b);
        self.repeated(index, "source_ports", &rule.source_ports, covers_range);
        self.repeated(index, "destination_ports", &rule.destination_ports, covers_range);
        self.repeated(index, "uid", &rule.uid, covers_range);
        self.repeated(index, "gid", &rule.gid, covers_range);
        self.repeated(index, "state", &rule.state, |a, b| a == b);
    }

    fn repeated<T>(&mut self, index: usize, key: &str, values: &[T], covers: impl Fn(&T, &T) -> bool) {
        // A list that people write; a set is for more.
        if values.len() > 256 {
            return;
        }
        for (at, value) in values.iter().enumerate() {
            if let Some(first) = values[..at].iter().position(|other| covers(other, value)) {
                let diagnostic = Diagnostic::warning(
                    "repeated",
                    self.element(index, key, at, values.len()),
                    "an earlier element of the list has this already",
                )
                .related(self.element(index, key, first, values.len()), "here");
                self.say(diagnostic);
            }
        }
    }

    fn priorities(&mut self) {
        if self.policy.order != Order::Specific {
            return;
        }
        let with_priority = (0..self.policy.rules.len()).find(|index| {
            self.rule_node(*index)
                .is_some_and(|rule| rule.get("priority").is_some())
        });
        if let Some(index) = with_priority {
            let span = self
                .tree
                .get("match")
                .map(|entry| entry.node.span.clone())
                .unwrap_or_default();
            let diagnostic = Diagnostic::warning(
                "priority-unused",
                self.key(index, "priority"),
                "priorities have no effect where the most specific rule wins",
            )
            .related(span, "")
            .help("remove them, or write `match: priority`".to_owned());
            self.say(diagnostic);
        }
    }

    /// Rules of which every packet is decided by one that is asked before.
    fn shadows(&mut self) {
        let order = self.policy.order();
        if order.len() > MAX_COMPARED {
            let message = format!(
                "rules that can never match are not looked for among {}: up to {MAX_COMPARED} are compared",
                order.len()
            );
            let span = self
                .tree
                .get("rules")
                .map(|entry| entry.key_span.clone())
                .unwrap_or_default();
            self.say(Diagnostic::warning("not-compared", span, message));
            return;
        }
        let policy = self.policy;
        for (place, later) in order.iter().enumerate() {
            let later_rule = &policy.rules[*later];
            let shadow = order[..place].iter().find(|earlier| {
                let earlier = &policy.rules[**earlier];
                earlier.action != Action::Log && covers(policy, earlier, later_rule)
            });
            let Some(earlier) = shadow else { continue };
            let earlier_rule = &policy.rules[*earlier];
            let why = match policy.order {
                Order::Priority if earlier_rule.priority != later_rule.priority => format!(
                    "its priority {} is asked before {}",
                    earlier_rule.priority, later_rule.priority
                ),
                Order::Priority => "it stands before it".to_owned(),
                Order::Specific => "it is as specific, or more".to_owned(),
            };
            let diagnostic = Diagnostic::warning(
                "shadowed",
                self.name(*later),
                format!(
                    "the rule {} never matches: {} decides about all its packets",
                    later_rule.name, earlier_rule.name
                ),
            )
            .related(self.name(*earlier), why)
            .help("exchange them, or remove one".to_owned());
            self.say(diagnostic);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    /// All prefixes are of one version.
    Only(Version),
    /// Both versions, or no prefix at all.
    Any,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    V4,
    V6,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Whether every packet that `later` can decide about is one that `earlier` decides about, if it is asked before.
///
/// It may say no where the answer is yes; never the other way.
pub(crate) fn covers(policy: &Policy, earlier: &Rule, later: &Rule) -> bool {
    covers_direction(earlier, later)
        && covers_hooks(earlier, later)
        && covers_state(earlier, later)
        && covers_essentials(policy, earlier, later)
        && earlier.protocol.is_none_or(|protocol| later.protocol == Some(protocol))
        && covers_ranges(&earlier.source_ports, &later.source_ports)
        && covers_ranges(&earlier.destination_ports, &later.destination_ports)
        && covers_ranges(&earlier.icmp_type, &later.icmp_type)
        && covers_ranges(&earlier.icmp_code, &later.icmp_code)
        && covers_list(&earlier.interface, &later.interface, |wide, narrow| wide == narrow)
        && covers_list(&earlier.mac, &later.mac, |wide, narrow| wide == narrow)
        && covers_list(&earlier.cgroup, &later.cgroup, |wide, narrow| {
            wide == "/"
                || wide == narrow
                || narrow
                    .strip_prefix(wide.as_str())
                    .is_some_and(|rest| rest.starts_with('/'))
        })
        && covers_ranges(&earlier.uid, &later.uid)
        && covers_ranges(&earlier.gid, &later.gid)
        && covers_addresses(&earlier.source, &later.source)
        && covers_addresses(&earlier.destination, &later.destination)
}

fn covers_direction(earlier: &Rule, later: &Rule) -> bool {
    earlier.direction.is_none() || earlier.direction == later.direction
}

/// On ingress the rules that name an identity are asked by another hook than the others.
fn covers_hooks(earlier: &Rule, later: &Rule) -> bool {
    later.direction == Some(Direction::Egress) || earlier.names_identity() == later.names_identity()
}

/// A rule that names no state is asked about flows as about their first packet, which is new or invalid.
fn covers_state(earlier: &Rule, later: &Rule) -> bool {
    let states = |rule: &Rule| {
        if rule.state.is_empty() {
            vec![State::New, State::Invalid]
        } else {
            rule.state.clone()
        }
    };
    let earlier = states(earlier);
    states(later).iter().all(|state| earlier.contains(state))
}

/// Of what is essential only those rules are asked that name it.
fn covers_essentials(policy: &Policy, earlier: &Rule, later: &Rule) -> bool {
    const ESSENTIALS: [Reason; 6] = [
        Reason::Loopback,
        Reason::NotIp,
        Reason::NeighbourDiscovery,
        Reason::MulticastListener,
        Reason::IcmpError,
        Reason::DhcpClient,
    ];
    !policy.essentials
        || ESSENTIALS
            .into_iter()
            .all(|essential| names(earlier, essential) || !names(later, essential))
}

fn covers_range<T: Copy + PartialOrd>(wide: &Range<T>, narrow: &Range<T>) -> bool {
    wide.first <= narrow.first && narrow.last <= wide.last
}

fn covers_ranges<T: Copy + PartialOrd>(wide: &[Range<T>], narrow: &[Range<T>]) -> bool {
    covers_list(wide, narrow, covers_range)
}

/// An empty list is any value.
fn covers_list<T>(wide: &[T], narrow: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
    wide.is_empty() || (!narrow.is_empty() && narrow.iter().all(|narrow| wide.iter().any(|wide| covers(wide, narrow))))
}

/// Only what stands in the rules: sets change while the policy is in force, but the same set changes for both.
fn covers_addresses(wide: &[Address], narrow: &[Address]) -> bool {
    covers_list(wide, narrow, |wide, narrow| match (wide, narrow) {
        (Address::Prefix(wide), Address::Prefix(narrow)) => {
            wide.len() <= narrow.len() && wide.contains(narrow.address())
        }
        (wide, narrow) => wide == narrow,
    })
}
