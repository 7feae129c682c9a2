//! Translates a policy into the tables that the programs walk.
//!
//! - `interval` is what can stand in a field,
//! - `boxes` takes rules apart into boxes of such intervals,
//! - `metadata` numbers what is known of packets beside their headers,
//! - `field` divides the values of a field into classes,
//! - `partition` divides boxes into partitions that can be searched by halving,
//! - here it is put together.

mod boxes;
mod field;
mod interval;
mod metadata;
mod partition;

use std::collections::HashMap;

use enforcer_policy::{
    Refusal, decide,
    model::{self, Policy},
};
use lab02_xdp_firewall_common::{
    bucket::Limit,
    prefix_set::{
        build::Content,
        tree::{Node, NodeV4, NodeV6, Tree},
    },
};
use lab06_full_enforcer_common::{
    classify::{MAX_STEPS, Question},
    control::Mode,
    flow,
    key::{Essential, ICMP_BASE, PORT_VALUES},
    limit::{Per, RateLimit, Unit},
    table::{
        Action, Class, Config, Direct, FIELDS, Field, Group, Kind, Lookup, MAX_PARTITIONS, MAX_RULES, Metadata,
        NO_GROUPS, Partition, Partitions, Record, Rule, RuleMode, Sought, Tables, has,
    },
};
use serde::Serialize;
use thiserror::Error;

use self::{
    boxes::{Box, Boxes, Lists},
    field::{Classes, EVERY_RANK},
    metadata::{Begins, Combinations},
    partition::{Ranked, Sorted, divide},
};
use crate::names::Names;

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

    fn because(message: String, help: &str) -> Self {
        Self {
            causes: vec![Refusal {
                rule: None,
                key: None,
                message,
                help: help.into(),
            }],
        }
    }
}

/// A policy as tables, which begin at the arrays' beginning.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// All but the arrays' content.
    pub config: Config,
    /// Of the arrays of nodes.
    pub content: Content,
    /// Of the array of the numbers of classes.
    pub class_numbers: Vec<u32>,
    /// Of the array of classes.
    pub classes: Vec<Class>,
    /// Of the array of partitions: those for incoming packets, and behind [`MAX_PARTITIONS`] those for outgoing ones.
    pub partitions: Vec<Partition>,
    /// Of the array of groups.
    pub groups: Vec<Group>,
    /// Of the array of records.
    pub records: Vec<Record>,
    /// Of the array of rules, in the order of matching. Each is its own id until ids are given.
    pub rules: Vec<Rule>,
    /// Of the array of rates.
    pub limits: Vec<RateLimit>,
    /// The names of the rules, in the order of matching.
    pub names: Vec<String>,
    /// The mode that the policy asks for.
    pub mode: Mode,
    /// What a packet costs at most.
    pub worst: WorstCase,
    /// By [`Field`], the bits of its long lists.
    pub lists: [u64; FIELDS],
    /// The interfaces and cgroups that the rules name.
    pub places: Names,
}

/// How many steps the search for a packet's rule takes at most: a step is a partition taken up, or a record compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WorstCase {
    /// For the deciding rule.
    pub deciding: u32,
    /// For the rules that only count.
    pub counting: u32,
}

/// How much each of the arrays holds for one slot, or a policy needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// IPv4 nodes, fifteen bounds each; those of ports among them.
    pub nodes_v4: u32,
    /// IPv6 nodes, seven bounds each.
    pub nodes_v6: u32,
    /// Positions of the trees, and a byte's values.
    pub class_numbers: u32,
    /// Classes.
    pub classes: u32,
    /// Groups.
    pub groups: u32,
    /// Records.
    pub records: u32,
    /// Rules.
    pub rules: u32,
    /// Rates.
    pub limits: u32,
    /// Flows that are followed at once, whatever the policy; none if 0.
    pub flows: u32,
}

/// The length of one of the arrays.
type Length = fn(&Capacities) -> u32;

impl Capacities {
    /// What the enforcer has at least: some thousand rules, and some ten thousand prefixes of each family.
    pub const LEAST: Self = Self {
        nodes_v4: 4096,
        nodes_v6: 8192,
        class_numbers: 4096 * NodeV4::CHILDREN + 8192 * NodeV6::CHILDREN + 2 * PORT_VALUES + 256,
        classes: 16_384,
        groups: 65_536,
        records: 16_384,
        rules: 8192,
        limits: 1024,
        flows: 65_536,
    };

    /// Room for twice what a policy needs, so that it can grow, and for [`Capacities::LEAST`].
    pub fn around(compiled: &Compiled) -> Self {
        let needed = compiled.needs();
        let room = |needed: u32, least: u32| least.max(needed.saturating_mul(2));
        Self {
            nodes_v4: room(needed.nodes_v4, Self::LEAST.nodes_v4),
            nodes_v6: room(needed.nodes_v6, Self::LEAST.nodes_v6),
            class_numbers: room(needed.class_numbers, Self::LEAST.class_numbers),
            classes: room(needed.classes, Self::LEAST.classes),
            groups: room(needed.groups, Self::LEAST.groups),
            records: room(needed.records, Self::LEAST.records),
            rules: room(needed.rules, Self::LEAST.rules),
            limits: room(needed.limits, Self::LEAST.limits),
            flows: Self::LEAST.flows,
        }
    }

    /// The memory of one slot.
    pub fn bytes(&self) -> u64 {
        let bytes = |count: u32, size: usize| u64::from(count) * size as u64;
        bytes(self.nodes_v4, size_of::<NodeV4>())
            + bytes(self.nodes_v6, size_of::<NodeV6>())
            + bytes(self.class_numbers, size_of::<u32>())
            + bytes(self.classes, size_of::<Class>())
            + bytes(2 * MAX_PARTITIONS as u32, size_of::<Partition>())
            + bytes(self.groups, size_of::<Group>())
            + bytes(self.records, size_of::<Record>())
            + bytes(self.rules, size_of::<Rule>())
            + bytes(self.limits, size_of::<RateLimit>())
            + size_of::<Config>() as u64
    }

    /// Whether there is room for a policy.
    pub fn hold(&self, compiled: &Compiled) -> Result<(), CannotEnforce> {
        let needed = compiled.needs();
        let arrays: [(&str, Length); 8] = [
            ("IPv4 prefixes and ports", |of| of.nodes_v4),
            ("IPv6 prefixes", |of| of.nodes_v6),
            ("prefixes and ports", |of| of.class_numbers),
            ("different prefixes and ports", |of| of.classes),
            ("groups of rules", |of| of.groups),
            ("rules, taken apart,", |of| of.records),
            ("rules", |of| of.rules),
            ("different rates", |of| of.limits),
        ];
        let causes: Vec<Refusal> = arrays
            .into_iter()
            .filter(|(_, of)| of(&needed) > of(self))
            .map(|(what, of)| Refusal {
                rule: None,
                key: None,
                message: format!(
                    "the {what} of the policy take {} places in a table that has {}",
                    of(&needed),
                    of(self)
                ),
                help: "the tables are made for twice what the first policy needs: start the enforcer with this one"
                    .into(),
            })
            .collect();
        if causes.is_empty() {
            Ok(())
        } else {
            Err(CannotEnforce { causes })
        }
    }
}

impl Compiled {
    /// Whether a box holds what is of this class in a field.
    pub fn holds(&self, record: &Record, field: Field, class: &Class) -> bool {
        let [lowest, highest] = record.ranks[field as usize];
        let lists = record.member_of & self.lists[field as usize];
        (lowest..=highest).contains(&class.rank) && lists & !class.member_of == 0
    }

    /// How much of each array it takes.
    pub fn needs(&self) -> Capacities {
        Capacities {
            nodes_v4: self.content.nodes_v4.len() as u32,
            nodes_v6: self.content.nodes_v6.len() as u32,
            class_numbers: self.class_numbers.len() as u32,
            classes: self.classes.len() as u32,
            groups: self.groups.len() as u32,
            records: self.records.len() as u32,
            rules: self.rules.len() as u32,
            limits: self.limits.len() as u32,
            flows: 0,
        }
    }
}

/// What a policy costs: what `check` says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// The memory that its tables fill, in bytes.
    pub bytes: u64,
    /// How many tables of rules there are for incoming and for outgoing packets, of [`MAX_PARTITIONS`].
    pub tables: [usize; 2],
    /// How many records its rules were taken apart into.
    pub records: usize,
    /// How many steps a packet takes at most.
    pub steps: WorstCase,
    /// How many it may take.
    pub steps_limit: u32,
}

impl Cost {
    /// Of a compiled policy.
    pub fn of(compiled: &Compiled) -> Self {
        let tables = |direction: usize| {
            let of_direction = &compiled.partitions[direction * MAX_PARTITIONS..][..MAX_PARTITIONS];
            of_direction.iter().filter(|partition| partition.count > 0).count()
        };
        Self {
            bytes: compiled.needs().bytes(),
            tables: [tables(0), tables(1)],
            records: compiled.records.len(),
            steps: compiled.worst,
            steps_limit: MAX_STEPS,
        }
    }
}

/// Compiles `policy` as for a host that has all interfaces and cgroups that it names.
pub fn compile(policy: &Policy) -> Result<Compiled, CannotEnforce> {
    compile_for(policy, Names::imagined(policy))
}

/// Compiles `policy`, whose names and values were checked when it was read, for a host that has these interfaces and
/// cgroups. A rule that names others only matches nothing.
pub fn compile_for(policy: &Policy, places: Names) -> Result<Compiled, CannotEnforce> {
    let causes: Vec<Refusal> = (0..).zip(&policy.rules).flat_map(not_enforced).collect();
    if !causes.is_empty() {
        return Err(CannotEnforce { causes });
    }
    if policy.rules.len() >= MAX_RULES {
        return Err(CannotEnforce::because(
            format!(
                "the policy has {} rules, and the enforcer takes {} at most",
                policy.rules.len(),
                MAX_RULES - 1
            ),
            "put what several have in common into lists or sets",
        ));
    }
    Compiler::new(policy, places)?.compile()
}

/// The keys of a rule that would have to be ignored, and are not: a cause each.
fn not_enforced((index, rule): (usize, &model::Rule)) -> Vec<Refusal> {
    let keys = [("gid", !rule.gid.is_empty())];
    let keys = keys.into_iter().filter(|(_, is_there)| *is_there);
    let keys = keys.map(|(key, _)| Refusal {
        rule: Some(index),
        key: Some(key),
        message: format!("rule {}: {key} is not enforced by this version", rule.name),
        help: format!("take the rule out, or decide without {key}"),
    });
    // The hook that knows whose socket a packet is for sees no Ethernet header.
    let names_both = rule.names_identity() && !rule.mac.is_empty();
    let both = names_both.then(|| Refusal {
        rule: Some(index),
        key: Some("mac"),
        message: format!(
            "rule {}: mac beside cgroup or uid is not enforced by this version",
            rule.name
        ),
        help: "make it two rules, or decide by one of the two".into(),
    });
    keys.chain(both).collect()
}

struct Compiler<'a> {
    policy: &'a Policy,
    /// In the order of matching.
    rules: Vec<&'a model::Rule>,
    /// The boxes of the rule of each number.
    boxes: Vec<(u32, Box)>,
    /// By [`Field`].
    fields: [Classes; FIELDS],
    combinations: Combinations<'a>,
    places: Names,
    content: Content,
    class_numbers: Vec<u32>,
    classes: Vec<Class>,
    partitions: Vec<Partition>,
    groups: Vec<Group>,
    records: Vec<Record>,
}

/// The class of what is not IP: what no field is looked at of.
const EVERYTHING: Class = Class {
    rank: 0,
    padding: 0,
    member_of: 0,
    partitions: [[u64::MAX; 2]; 2],
};

/// A partition has groups if it has more records than this.
const SMALL: usize = 16;

impl<'a> Compiler<'a> {
    fn new(policy: &'a Policy, places: Names) -> Result<Self, CannotEnforce> {
        let rules: Vec<&model::Rule> = policy.order().into_iter().map(|index| &policy.rules[index]).collect();
        let mut taken_apart = Boxes::new(policy, Combinations::of(policy)?);
        let mut boxes = Vec::with_capacity(rules.len());
        for (rule, number) in rules.iter().zip(0..) {
            let of_rule = taken_apart.of(rule).map_err(|_| {
                CannotEnforce::because(
                    format!(
                        "the policy has more than {} different long lists in its rules",
                        lab06_full_enforcer_common::table::MAX_LISTS
                    ),
                    "write fewer or shorter ones, or the same ones again",
                )
            })?;
            boxes.extend(of_rule.into_iter().map(|one| (number, one)));
        }
        let fields = Field::ALL.map(|field| classes(field, &boxes, &taken_apart.lists));
        Ok(Self {
            policy,
            rules,
            boxes,
            fields,
            combinations: taken_apart.combinations,
            places,
            content: Content::default(),
            class_numbers: Vec::new(),
            classes: vec![EVERYTHING],
            partitions: vec![Partition::default(); 2 * MAX_PARTITIONS],
            groups: Vec::new(),
            records: Vec::new(),
        })
    }

    fn compile(mut self) -> Result<Compiled, CannotEnforce> {
        // ANCHOR: compile
        let ranked = self.ranked();
        let mut worst = WorstCase::default();
        let mut views = [[[[0; 2]; Sought::COUNT]; Kind::COUNT]; 2];
        for (direction, views) in [model::Direction::Ingress, model::Direction::Egress]
            .into_iter()
            .zip(&mut views)
        {
            let sorted = self.divide(direction, &ranked, views)?;
            let costs = self.add_partitions(direction, &sorted);
            worst = worst.or(self.worst_case(direction, views, &costs));
        }
        worst.is_bearable()?;
        // ANCHOR_END: compile
        let allows = |verdict| verdict == model::DefaultVerdict::Allow;
        let [source, destination, first, second, protocol] = [0, 1, 2, 3, 4];
        // First, so that their numbers are small: a question has sixteen bits for them.
        let first_protocol = self.add_classes(Field::Protocol);
        let first_combination = self.add_classes(Field::Metadata);
        let class_of =
            [Field::Source, Field::Destination, Field::First, Field::Second].map(|field| self.add_classes(field));
        let (rules, limits) = self.rules_and_limits()?;
        let config = Config {
            source_v4: self.lookup_v4(source, class_of[source], 4),
            destination_v4: self.lookup_v4(destination, class_of[destination], 4),
            long: [
                self.lookup_v6(source, class_of[source]),
                self.lookup_v6(destination, class_of[destination]),
                self.lookup_number_v6(&self.combinations.of_macs(), 0),
                self.lookup_number_v6(&self.combinations.of_cgroups(&self.places), 0),
            ],
            first: self.direct(first, class_of[first]),
            second: self.direct(second, class_of[second]),
            metadata: self.metadata(first_combination)?,
            views,
            veil: 0x5eed_5eed_5eed_5eed,
            first_protocol: self.numbers(protocol, first_protocol, 256),
            first_class: 0,
            first_partition: 0,
            first_rule: 0,
            first_limit: 0,
            has: self.has(),
            bucket_key: [0; 2],
            flows: flow::Settings::default(),
            generation: 0,
            block_ingress: u8::from(!allows(self.policy.defaults.ingress)),
            block_egress: u8::from(!allows(self.policy.defaults.egress)),
            block_malformed: u8::from(self.policy.defaults.malformed == model::MalformedVerdict::Drop),
            essentials: u8::from(self.policy.essentials),
            slot: 0,
        };
        Ok(Compiled {
            config,
            rules,
            limits,
            names: self.rules.iter().map(|rule| rule.name.clone()).collect(),
            mode: mode(self.policy.mode),
            content: self.content,
            class_numbers: self.class_numbers,
            classes: self.classes,
            partitions: self.partitions,
            groups: self.groups,
            records: self.records,
            worst,
            lists: self.fields.each_ref().map(Classes::lists),
            places: self.places,
        })
    }

    /// The rules, each with its place as its id, and the rates that they have.
    fn rules_and_limits(&self) -> Result<(Vec<Rule>, Vec<RateLimit>), CannotEnforce> {
        let mut numbers: HashMap<model::RateLimit, u16> = HashMap::new();
        let mut limits = Vec::new();
        let mut rules = Vec::with_capacity(self.rules.len());
        for (rule, id) in self.rules.iter().zip(0..) {
            let mut record = record(rule, id);
            if let model::Action::RateLimit(limit) = rule.action {
                let next = u16::try_from(limits.len()).map_err(|_| too_many_rates())?;
                record.limit = *numbers.entry(limit).or_insert_with(|| {
                    limits.push(rate_limit(&limit));
                    next
                });
            }
            rules.push(record);
        }
        Ok((rules, limits))
    }

    fn ranked(&self) -> Vec<Ranked> {
        let rank = |(rule, one): &(u32, Box)| Ranked {
            ranks: Field::ALL.map(|field| self.fields[field as usize].ranks_of(one.intervals[field as usize])),
            member_of: one.member_of,
            rule: *rule,
        };
        self.boxes.iter().map(rank).collect()
    }

    /// The partitions of one direction, view behind view, each of which is told its own.
    fn divide(
        &self,
        direction: model::Direction,
        ranked: &[Ranked],
        views: &mut [[Partitions; Sought::COUNT]; Kind::COUNT],
    ) -> Result<Vec<Sorted>, CannotEnforce> {
        let mut all: Vec<Sorted> = Vec::new();
        for kind in 0..Kind::COUNT {
            for sought in Sought::ALL {
                // New ones and invalid ones are asked about together, since most rules are content with both.
                if kind == Kind::Invalid as usize {
                    continue;
                }
                let mut of_kind = Vec::new();
                for with in self.states_together(kind) {
                    let boxes = self.in_view(direction, kind, sought, with, ranked);
                    let room = MAX_PARTITIONS - all.len() - of_kind.len();
                    let sorted = divide(boxes, room).ok_or_else(too_entangled)?;
                    of_kind.extend(sorted.into_iter().map(|sorted| (sorted, with)));
                }
                // The search goes from the best rule to the worst.
                of_kind.sort_by_key(|(sorted, _)| sorted.best());
                for (sorted, with) in of_kind {
                    let number = all.len();
                    for (state, kind) in [(model::State::Invalid, Kind::Invalid as usize), (state(kind), kind)] {
                        if with.contains(&state) {
                            views[kind][sought as usize][number / 64] |= 1 << (number % 64);
                        }
                    }
                    all.push(sorted);
                }
            }
        }
        Ok(all)
    }

    /// The states whose rules share partitions: each with the others for which a rule is to be content with as well.
    fn states_together(&self, kind: usize) -> &'static [&'static [model::State]] {
        use model::State::{Established, Invalid, New, Related};
        let names_a_state = self.rules.iter().any(|rule| !rule.state.is_empty());
        match state(kind) {
            New if kind != Kind::Ordinary as usize => &[&[New]],
            New if names_a_state => &[&[New, Invalid], &[New], &[Invalid]],
            New => &[&[New, Invalid]],
            Established => &[&[Established]],
            Related => &[&[Related]],
            Invalid => &[],
        }
    }

    /// The boxes that come into question for packets of a kind, of the rules that are content with these states and, of
    /// those that are told apart, with no other.
    fn in_view(
        &self,
        direction: model::Direction,
        kind: usize,
        sought: Sought,
        with: &[model::State],
        ranked: &[Ranked],
    ) -> Vec<Ranked> {
        use model::State::{Established, Invalid, New};
        let not_ip = [
            (Kind::NotIp, decide::Reason::NotIp),
            (Kind::NotIpByLoopback, decide::Reason::Loopback),
        ];
        let not_ip = not_ip.into_iter().find(|(not_ip, _)| *not_ip as usize == kind);
        let essential = Essential::ALL.get(kind.wrapping_sub(Kind::Essential as usize));
        let is_content = |rule: &model::Rule, state| match state {
            New | Invalid => rule.state.is_empty() || rule.state.contains(&state),
            state => rule.state.contains(&state),
        };
        let has_state = |rule: &model::Rule| {
            let is_told_apart = kind == Kind::Ordinary as usize;
            let fits = |state: &model::State| is_content(rule, *state) == with.contains(state);
            // What counts is counted by the packet that began the flow, if it can be, and not twice.
            let is_twice = sought == Sought::Counting && with == [Established] && rule.state.contains(&New);
            if is_told_apart {
                [New, Invalid].iter().all(fits)
            } else {
                with.iter().all(fits) && !is_twice
            }
        };
        let is_in_view = |rule: &model::Rule| {
            rule.covers(direction)
                && has_state(rule)
                && (rule.action == model::Action::Log) == (sought == Sought::Counting)
                && essential.is_none_or(|essential| decide::names(rule, reason(*essential)))
                && not_ip.is_none_or(|(_, essential)| {
                    !asks_for_ip(rule) && (!self.policy.essentials || decide::names(rule, essential))
                })
                && is_known(rule, direction)
        };
        let blocks_at_socket = |rule: &model::Rule| {
            direction == model::Direction::Ingress
                && rule.covers(direction)
                && has_state(rule)
                && rule.names_identity()
                && rule.action == model::Action::Block
                && essential.is_none_or(|essential| decide::names(rule, reason(*essential)))
                && not_ip.is_none_or(|(_, essential)| {
                    let is_essential = self.policy.essentials && essential == decide::Reason::Loopback;
                    !asks_for_ip(rule) && (!is_essential || decide::names(rule, essential))
                })
        };
        let is_in_view = |rule: &model::Rule| match sought {
            Sought::Deciding | Sought::Counting => is_in_view(rule),
            Sought::AtSocket => blocks_at_socket(rule),
        };
        let is_in_view: Vec<bool> = self.rules.iter().map(|rule| is_in_view(rule)).collect();
        let boxes = ranked.iter().zip(&self.boxes);
        let boxes = boxes.filter(|(ranked, (_, one))| {
            is_in_view[ranked.rule as usize] && essential.is_none_or(|essential| may_hold(one, *essential, direction))
        });
        let boxes = boxes.map(|(ranked, _)| *ranked);
        match sought {
            Sought::Deciding | Sought::AtSocket => without_hidden(boxes),
            Sought::Counting => boxes.collect(),
        }
    }

    /// Adds the partitions of a direction to the tables; for each how many steps it takes at most.
    fn add_partitions(&mut self, direction: model::Direction, sorted: &[Sorted]) -> Vec<u32> {
        let direction = direction as usize;
        let mut costs = Vec::new();
        for (number, sorted) in sorted.iter().enumerate() {
            for (field, classes) in self.fields.iter_mut().enumerate() {
                classes.tell(field, direction, number, &sorted.boxes);
            }
            let (groups, most) = self.add_groups(sorted);
            costs.push(1 + halvings(most));
            let mut places = 0;
            for (field, place) in sorted.order.into_iter().zip(0..) {
                places |= place << (4 * field as u32);
            }
            self.partitions[direction * MAX_PARTITIONS + number] = Partition {
                best: sorted.best(),
                places,
                first: self.records.len() as u32,
                count: sorted.boxes.len() as u32,
                groups,
                grouped_by: Field::ALL.map(|field| if field == sorted.order[0] { u32::MAX } else { 0 }),
                zero: 0,
            };
            self.records.extend(sorted.boxes.iter().map(|one| Record {
                ranks: one.ranks,
                rule: one.rule,
                padding: 0,
                member_of: one.member_of,
            }));
        }
        costs
    }

    /// Adds the groups of a partition; the number of the first, and how many records have to be searched at most.
    fn add_groups(&mut self, sorted: &Sorted) -> (u32, usize) {
        if sorted.boxes.len() <= SMALL || sorted.groups().nth(1).is_none() {
            return (NO_GROUPS, sorted.boxes.len());
        }
        let field = sorted.order[0] as usize;
        let first = self.groups.len();
        self.groups
            .resize(first + self.fields[field].ranks() as usize, Group::default());
        let (mut offset, mut most) = (0, 0);
        for boxes in sorted.groups() {
            let [lowest, highest] = boxes[0].ranks[field].map(|rank| first + rank as usize);
            let best = boxes.iter().map(|one| one.rule).min().unwrap_or(0);
            let group = Group::new(offset, boxes.len() as u32, best);
            let highest = highest.min(self.groups.len() - 1);
            self.groups[lowest..=highest].fill(group);
            offset += boxes.len() as u32;
            most = most.max(boxes.len());
        }
        (first as u32, most)
    }

    /// What a packet of a direction costs at most: of no field is there a class that wants more.
    fn worst_case(
        &self,
        direction: model::Direction,
        views: &[[Partitions; Sought::COUNT]; Kind::COUNT],
        costs: &[u32],
    ) -> WorstCase {
        let cost = |partitions: &Partitions, view: &Partitions| -> u32 {
            let is_in = |number: usize| partitions[number / 64] & view[number / 64] & 1 << (number % 64) != 0;
            costs
                .iter()
                .zip(0..)
                .filter(|(_, number)| is_in(*number))
                .map(|(cost, _)| cost)
                .sum()
        };
        let worst_of_field = |classes: &Classes, view: &Partitions| {
            let mut different: Vec<Partitions> = classes
                .all
                .iter()
                .map(|class| class.partitions[direction as usize])
                .collect();
            different.sort_unstable();
            different.dedup();
            different
                .iter()
                .map(|partitions| cost(partitions, view))
                .max()
                .unwrap_or(0)
        };
        let worst = |view: &Partitions| {
            let by_field = self.fields.iter().map(|classes| worst_of_field(classes, view));
            by_field.min().unwrap_or(0)
        };
        let views = views.iter().map(|[deciding, counting, at_socket]| WorstCase {
            deciding: worst(deciding).max(worst(at_socket)),
            counting: worst(counting),
        });
        views.fold(WorstCase::default(), WorstCase::or)
    }

    /// Adds the classes of a field to those of all; the number of the first.
    fn add_classes(&mut self, field: Field) -> u32 {
        let first = self.classes.len() as u32;
        self.classes.extend(&self.fields[field as usize].all);
        first
    }

    fn lookup_v4(&mut self, field: usize, first_class: u32, family: u8) -> Lookup {
        let begins = of_family(&self.fields[field], family);
        self.lookup_number_v4(&begins, first_class)
    }

    fn lookup_v6(&mut self, field: usize, first_class: u32) -> Lookup {
        let begins = of_family(&self.fields[field], 6);
        self.lookup_number_v6(&begins, first_class)
    }

    fn lookup_number_v4(&mut self, begins: &Begins, first_class: u32) -> Lookup {
        let bounds: Vec<u32> = tree_bounds(begins).map(|value| value as u32).collect();
        let tree = self.content.add_bounds_v4(&bounds);
        self.lookup(tree, begins, first_class, NodeV4::CHILDREN as usize)
    }

    fn lookup_number_v6(&mut self, begins: &Begins, first_class: u32) -> Lookup {
        let bounds: Vec<u128> = tree_bounds(begins).collect();
        let tree = self.content.add_bounds_v6(&bounds);
        self.lookup(tree, begins, first_class, NodeV6::CHILDREN as usize)
    }

    /// Lays out the numbers of the classes by the positions of a tree whose nodes have so many children.
    fn lookup(&mut self, tree: Tree, begins: &[(u128, u32)], first_class: u32, children: usize) -> Lookup {
        let first = self.class_numbers.len() as u32;
        let last = begins.len() - 1;
        let bounds_in_leaf = children - 1;
        for leaf in 0..begins.len().div_ceil(bounds_in_leaf) {
            // Before the first bound of a leaf lies what the leaf before ends with; free places continue the last bound.
            let positions = (0..children).map(|rank| (leaf * bounds_in_leaf + rank).saturating_sub(1));
            self.class_numbers
                .extend(positions.map(|place| first_class + begins[place.min(last)].1));
        }
        Lookup {
            tree,
            first,
            padding: 0,
        }
    }

    /// The number of the class of each of so many values, from 0 on; the index of the first one.
    fn numbers(&mut self, field: usize, first_class: u32, values: u32) -> u32 {
        let first = self.class_numbers.len();
        let begins = of_family(&self.fields[field], 0);
        let ends = begins.iter().skip(1).map(|(begin, _)| *begin as u32).chain([values]);
        for ((_, class), end) in begins.iter().zip(ends) {
            self.class_numbers
                .resize(first + end.min(values) as usize, first_class + class);
        }
        first as u32
    }

    /// The same for the values of a field that has ports.
    fn direct(&mut self, field: usize, first_class: u32) -> Direct {
        let is_one = of_family(&self.fields[field], 0).len() == 1;
        let (values, mask) = if is_one { (1, 0) } else { (PORT_VALUES, u32::MAX) };
        Direct {
            first: self.numbers(field, first_class, values),
            mask,
        }
    }

    /// See [`Config::has`].
    fn has(&self) -> u32 {
        let bits_of = |rule: &&model::Rule| {
            let of_action = match rule.action {
                model::Action::RateLimit(_) => has::LIMITS,
                model::Action::Log => has::COUNTING,
                model::Action::Allow | model::Action::Block => 0,
            };
            let of_state = |state: &model::State| match state {
                model::State::Established => has::ESTABLISHED,
                model::State::Related => has::RELATED,
                model::State::New | model::State::Invalid => 0,
            };
            let blocks_at_socket =
                rule.covers(model::Direction::Ingress) && rule.names_identity() && rule.action == model::Action::Block;
            let at_socket = if blocks_at_socket { has::AT_SOCKET } else { 0 };
            let of_states = rule.state.iter().map(of_state);
            of_states.fold(of_action | at_socket, |bits, bit| bits | bit)
        };
        self.rules.iter().map(bits_of).fold(0, |bits, of_rule| bits | of_rule)
    }

    fn metadata(&mut self, first_class: u32) -> Result<Metadata, CannotEnforce> {
        Ok(Metadata {
            interface: self.lookup_number_v4(&self.combinations.of_interfaces(&self.places), 0),
            uid: self.lookup_number_v4(&self.combinations.of_uids(), 0),
            levels: metadata::levels(&self.places)?,
            first: self.numbers(Field::Metadata as usize, first_class, self.combinations.count()),
            asks: self.combinations.asks(),
            unknown_socket: u64::from(self.combinations.unknown_socket()),
        })
    }
}

/// Whether what a rule asks for is known of packets of this direction where they are decided about.
fn is_known(rule: &model::Rule, direction: model::Direction) -> bool {
    match direction {
        model::Direction::Ingress => !rule.names_identity(),
        model::Direction::Egress => rule.mac.is_empty(),
    }
}

/// Whether a box has room for packets of an essential, by protocol and by ports or the type of ICMP; that keeps the rules
/// small that are asked about it.
fn may_hold(one: &Box, essential: Essential, direction: model::Direction) -> bool {
    let holds = |field: Field, value: u32| {
        let value = u128::from(value);
        let interval = one.intervals[field as usize];
        interval.is_none_or(|interval| (interval.first.value..=interval.last.value).contains(&value))
    };
    let is_icmp_v6 = holds(Field::Protocol, u32::from(model::Protocol::ICMPV6.0));
    let holds_type = |icmp_type: u32| is_icmp_v6 && holds(Field::First, ICMP_BASE + icmp_type);
    match essential {
        Essential::Loopback => true,
        Essential::NeighbourDiscovery => (133..=137).any(holds_type),
        Essential::MulticastListener => [130, 131, 132, 143].into_iter().any(holds_type),
        Essential::IcmpError => {
            let is_icmp = holds(Field::Protocol, u32::from(model::Protocol::ICMP.0));
            is_icmp_v6 || is_icmp
        }
        Essential::DhcpClient => {
            let is_udp = holds(Field::Protocol, u32::from(model::Protocol::UDP.0));
            let holds_ports = |(client, server)| match direction {
                model::Direction::Ingress => holds(Field::First, server) && holds(Field::Second, client),
                model::Direction::Egress => holds(Field::First, client) && holds(Field::Second, server),
            };
            is_udp && [(68, 67), (546, 547)].into_iter().any(holds_ports)
        }
    }
}

/// The classes of a field.
fn classes(field: Field, boxes: &[(u32, Box)], lists: &Lists) -> Classes {
    let families: &[u8] = match field {
        Field::Source | Field::Destination => &[4, 6],
        _ => &[0],
    };
    let intervals = boxes.iter().filter_map(|(_, one)| one.intervals[field as usize]);
    Classes::of(families, intervals, lists.of(field))
}

fn of_family(classes: &Classes, family: u8) -> Vec<(u128, u32)> {
    let of_family = classes.begins.iter().filter(|(point, _)| point.family == family);
    of_family.map(|(point, class)| (point.value, *class)).collect()
}

/// The bounds of the tree: none if all values are of one class.
fn tree_bounds(begins: &[(u128, u32)]) -> impl Iterator<Item = u128> {
    let is_needed = begins.len() > 1;
    begins.iter().map(|(value, _)| *value).filter(move |_| is_needed)
}

/// Without the boxes that no packet gets to, since a rule before asks the same of some fields, nothing of the others, and
/// for no other list. (There are further ones, within larger boxes or behind several together, which are only not found.)
fn without_hidden(boxes: impl Iterator<Item = Ranked>) -> Vec<Ranked> {
    let mut before: HashMap<[[u32; 2]; FIELDS], Vec<u64>> = HashMap::new();
    boxes
        .filter(|one| {
            let is_hidden = wider(one.ranks).any(|ranks| {
                let asked_before = before.get(&ranks);
                asked_before.is_some_and(|asked| asked.iter().any(|asked| asked & !one.member_of == 0))
            });
            if !is_hidden {
                before.entry(one.ranks).or_default().push(one.member_of);
            }
            !is_hidden
        })
        .collect()
}

/// The box itself, and those that leave some of its fields open.
fn wider(ranks: [[u32; 2]; FIELDS]) -> impl Iterator<Item = [[u32; 2]; FIELDS]> {
    let is_asked = (0..FIELDS).filter(move |field| ranks[*field] != EVERY_RANK);
    let asked: u32 = is_asked.map(|field| 1 << field).sum();
    let of_asked = (0..1u32 << FIELDS).filter(move |open| open & !asked == 0);
    of_asked.map(move |open| {
        let mut wider = ranks;
        for (field, ranks) in wider.iter_mut().enumerate() {
            if open >> field & 1 != 0 {
                *ranks = EVERY_RANK;
            }
        }
        wider
    })
}

/// How many records are compared at most to find one of so many.
const fn halvings(records: usize) -> u32 {
    usize::BITS - records.leading_zeros()
}

fn too_entangled() -> CannotEnforce {
    CannotEnforce::because(
        format!("the rules overlap in so many ways that they do not fit into {MAX_PARTITIONS} tables"),
        "have fewer rules that differ in what they leave open, or put prefixes and ports into lists",
    )
}

impl WorstCase {
    fn or(self, other: Self) -> Self {
        Self {
            deciding: self.deciding.max(other.deciding),
            counting: self.counting.max(other.counting),
        }
    }

    fn is_bearable(self) -> Result<(), CannotEnforce> {
        for (steps, rules) in [(self.deciding, "the rules"), (self.counting, "the rules that only log")] {
            if steps > MAX_STEPS {
                return Err(CannotEnforce::because(
                    format!("a packet may take {steps} steps through {rules}, and {MAX_STEPS} are the most"),
                    "have fewer rules that differ in what they leave open, or put prefixes and ports into lists",
                ));
            }
        }
        Ok(())
    }
}

/// What the flow of a packet is that is asked about as one of the kind with this index.
fn state(kind: usize) -> model::State {
    match kind {
        kind if kind == Kind::Established as usize => model::State::Established,
        kind if kind == Kind::Related as usize => model::State::Related,
        kind if kind == Kind::Essential as usize + Essential::IcmpError as usize => model::State::Related,
        kind if kind == Kind::Invalid as usize => model::State::Invalid,
        _ => model::State::New,
    }
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
        Essential::IcmpError => decide::Reason::IcmpError,
    }
}

/// The mode, as the programs have it.
pub fn mode(mode: model::Mode) -> Mode {
    match mode {
        model::Mode::Observe => Mode::Observe,
        model::Mode::Block => Mode::Block,
    }
}

fn too_many_rates() -> CannotEnforce {
    CannotEnforce::because(
        format!("the policy has more than {} different rates", u16::MAX),
        "give rules the same ones",
    )
}

fn rate_limit(limit: &model::RateLimit) -> RateLimit {
    let (unit, rate) = match limit.rate {
        model::Rate::Packets(rate) => (Unit::Packets, rate),
        model::Rate::Bytes(rate) => (Unit::Bytes, rate),
    };
    let per = match limit.per {
        model::Per::Rule => Per::Rule,
        model::Per::Source => Per::Source,
        model::Per::Flow => Per::Flow,
    };
    RateLimit {
        limit: Limit::new(rate, limit.burst),
        unit: unit as u8,
        per: per as u8,
        padding: [0; 6],
    }
}

fn record(rule: &model::Rule, id: u32) -> Rule {
    let action = match rule.action {
        model::Action::Allow => Action::Allow,
        model::Action::Block => Action::Block,
        model::Action::RateLimit(_) => Action::RateLimit,
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
        limit: 0,
    }
}

impl Tables for Compiled {
    fn config(&self, _slot: u32) -> Option<&Config> {
        Some(&self.config)
    }

    fn node_v4(&self, index: u32) -> Option<&NodeV4> {
        self.content.nodes_v4.get(index as usize)
    }

    fn node_v6(&self, index: u32) -> Option<&NodeV6> {
        self.content.nodes_v6.get(index as usize)
    }

    fn class_number(&self, index: u32) -> Option<u32> {
        self.class_numbers.get(index as usize).copied()
    }

    fn class(&self, index: u32) -> Option<&Class> {
        self.classes.get(index as usize)
    }

    fn partition(&self, index: u32) -> Option<&Partition> {
        self.partitions.get(index as usize)
    }

    fn group(&self, index: u32) -> Option<Group> {
        self.groups.get(index as usize).copied()
    }

    fn record(&self, index: u32) -> Option<&Record> {
        self.records.get(index as usize)
    }

    fn rule(&self, index: u32) -> Option<Rule> {
        self.rules.get(index as usize).copied()
    }

    fn limit(&self, index: u32) -> Option<&RateLimit> {
        self.limits.get(index as usize)
    }

    /// Nobody sends, so nothing is counted.
    fn count_matches(&self, _question: Question, _before: u32, _bytes: u64) {}

    /// Nobody sends, so there is always enough.
    fn take_tokens(&self, _index: u32, _cost_ns: u64, _burst_ns: u64) -> bool {
        true
    }
}
