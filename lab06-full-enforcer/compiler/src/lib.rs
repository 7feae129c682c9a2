//! Translates a policy into the tables that the programs walk.
//!
//! It needs no kernel, and is a crate of its own so that the fuzzer can build it without the daemon.
//!
//! - [`names`] is what interfaces and cgroups are to the kernel,
//! - `interval` is what can stand in a field,
//! - `boxes` takes rules apart into boxes of such intervals,
//! - `metadata` numbers what is known of packets beside their headers,
//! - `field` divides the values of a field into classes,
//! - `partition` divides boxes into partitions that can be searched by halving,
//! - `divisions` remembers how that was done,
//! - here it is put together.

mod boxes;
mod divisions;
mod field;
mod interval;
mod metadata;
pub mod names;
mod partition;

use std::sync::Arc;

use enforcer_policy::{
    Refusal, decide,
    model::{self, Policy},
};
use foldhash::{HashMap, HashMapExt as _};
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
        Action, Class, Config, Direct, FIELDS, Field, Group, Kind, Lookup, MAX_BOXES, MAX_LISTS, MAX_PARTITIONS,
        MAX_RULES, Metadata, Partition, Partitions, Record, Rule, RuleMode, Run, Sought, Tables, has,
    },
};
use serde::Serialize;
use thiserror::Error;

pub use self::divisions::Divisions;
use self::{
    boxes::{ALL_VALUES, Box, Boxes},
    field::{Classes, EVERY_RANK},
    metadata::Combinations,
    names::Names,
    partition::{Ranked, Sorted, divide},
};

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
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Of the array of runs.
    pub runs: Vec<Run>,
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

/// How many steps the search for a packet's rule takes at most: a step is a partition taken up, or a run or a record
/// compared.
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
    /// Records, and as many runs.
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
            + bytes(self.records, size_of::<Run>() + size_of::<Record>())
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
    compile_again(policy, places, &mut Divisions::default())
}

/// The same, faster where only sets have changed since `divisions` was last used, or what interfaces and cgroups are.
pub fn compile_again(policy: &Policy, places: Names, divisions: &mut Divisions) -> Result<Compiled, CannotEnforce> {
    let causes: Vec<Refusal> = (0..).zip(&policy.rules).filter_map(not_enforced).collect();
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
    Compiler::new(policy, places)?.compile(divisions)
}

/// The keys of a rule that would have to be ignored, and are not.
fn not_enforced((index, rule): (usize, &model::Rule)) -> Option<Refusal> {
    // The hook that knows whose socket a packet is for sees no Ethernet header.
    let names_both = rule.names_identity() && !rule.mac.is_empty();
    names_both.then(|| Refusal {
        rule: Some(index),
        key: Some("mac"),
        message: format!(
            "rule {}: mac beside cgroup, uid or gid is not enforced by this version",
            rule.name
        ),
        help: "make it two rules, or decide by one of the two".into(),
    })
}

struct Compiler<'a> {
    policy: &'a Policy,
    /// In the order of matching.
    rules: Vec<&'a model::Rule>,
    alike: Alike<'a>,
    /// Those of rules, and behind them those of calls: see [`boxes_of_calls`].
    boxes: Boxes<'a>,
    /// How many boxes are those of rules.
    of_rules: usize,
    /// Whether calls of `connect` and `sendmsg` are refused.
    refuses_calls: bool,
    /// By [`Field`].
    fields: [Classes; FIELDS],
    places: Names,
    content: Content,
    class_numbers: Vec<u32>,
    classes: Vec<Class>,
    partitions: Vec<Partition>,
    groups: Vec<Group>,
    runs: Vec<Run>,
    records: Vec<Record>,
}

/// The class of what is not IP: what no field is looked at of.
const EVERYTHING: Class = Class {
    rank: 0,
    padding: 0,
    member_of: 0,
    partitions: [[u64::MAX; 2]; 2],
};

/// How many partitions there may be for calls of `connect` and `sendmsg`. If it would take more, no call is refused.
const MOST_OF_CALLS: usize = 16;

/// A partition has more than one group if it has more records than this.
const SMALL: usize = 16;

/// A group has runs if it has more records than this.
const FEW: usize = 3;

impl<'a> Compiler<'a> {
    fn new(policy: &'a Policy, places: Names) -> Result<Self, CannotEnforce> {
        let rules: Vec<&model::Rule> = policy.order().into_iter().map(|index| &policy.rules[index]).collect();
        let mut boxes = Boxes::new(policy, Combinations::of(policy)?);
        for (number, rule) in (0..).zip(&rules) {
            boxes.add(number, rule).map_err(|_| too_many_lists())?;
            if boxes.all.len() >= MAX_BOXES {
                return Err(too_many_boxes(number + 1));
            }
        }
        let of_rules = boxes.all.len();
        let of_calls = boxes_of_calls(policy, &rules, &boxes);
        boxes.all.extend(of_calls);
        Ok(Self {
            policy,
            alike: Alike::of(&rules),
            rules,
            fields: Field::ALL.map(|field| classes(field, &boxes)),
            of_rules,
            refuses_calls: false,
            boxes,
            places,
            content: Content::default(),
            class_numbers: Vec::new(),
            classes: vec![EVERYTHING],
            partitions: vec![Partition::default(); 2 * MAX_PARTITIONS],
            groups: Vec::new(),
            runs: Vec::new(),
            records: Vec::new(),
        })
    }

    fn compile(mut self, divisions: &mut Divisions) -> Result<Compiled, CannotEnforce> {
        // ANCHOR: compile
        let ranked = self.ranked();
        divisions.begin(&self.boxes);
        let mut worst = WorstCase::default();
        let mut views = [[[[0; 2]; Sought::COUNT]; Kind::COUNT]; 2];
        for (direction, views) in [model::Direction::Ingress, model::Direction::Egress]
            .into_iter()
            .zip(&mut views)
        {
            let sorted = self.divide(direction, &ranked, divisions, views)?;
            let costs = self.add_partitions(direction, &ranked, &sorted);
            worst = worst.or(self.worst_case(direction, views, &costs));
        }
        divisions.end();
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
            source_v4: self.lookup_v4(source, class_of[source]),
            destination_v4: self.lookup_v4(destination, class_of[destination]),
            long: [
                self.lookup_v6(source, class_of[source]),
                self.lookup_v6(destination, class_of[destination]),
                self.lookup_number_v6(&self.boxes.combinations.of_macs()),
                self.lookup_number_v6(&self.boxes.combinations.of_cgroups(&self.places)),
                self.lookup_number_v6(&self.boxes.combinations.of_interfaces(&self.places)),
                self.lookup_number_v6(&self.boxes.combinations.of_uids()),
                self.lookup_number_v6(&self.boxes.combinations.of_gids()),
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
            runs: self.runs,
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

    /// The boxes in terms of ranks.
    fn ranked(&self) -> Ranked {
        let mut ranked = Ranked {
            rules: self.boxes.all.iter().map(|one| one.rule).collect(),
            ..Ranked::default()
        };
        for (field, classes) in self.fields.iter().enumerate() {
            let intervals = self.boxes.intervals[field].all();
            let ranks: Vec<[u32; 2]> = intervals.iter().map(|interval| classes.ranks_of(*interval)).collect();
            let mut numbers: Vec<u32> = (0..ranks.len() as u32).collect();
            numbers.sort_unstable_by_key(|number| {
                let [lowest, highest] = ranks[*number as usize];
                (highest, lowest)
            });
            let mut places = vec![0; ranks.len()];
            for (place, number) in (0..).zip(&numbers) {
                places[*number as usize] = place;
            }
            let place = |one: &Box| match one.intervals[field] {
                ALL_VALUES => ranks.len() as u32,
                number => places[number as usize],
            };
            ranked.places[field] = self.boxes.all.iter().map(place).collect();
            let in_order = numbers.iter().map(|number| ranks[*number as usize]);
            ranked.intervals[field] = in_order.chain([EVERY_RANK]).collect();
        }
        ranked
    }

    /// The partitions of one direction, view behind view, each of which is told its own.
    fn divide(
        &mut self,
        direction: model::Direction,
        ranked: &Ranked,
        divisions: &mut Divisions,
        views: &mut [[Partitions; Sought::COUNT]; Kind::COUNT],
    ) -> Result<Vec<Arc<Sorted>>, CannotEnforce> {
        let mut all: Vec<Arc<Sorted>> = Vec::new();
        for kind in 0..Kind::COUNT {
            for sought in Sought::OF_PACKETS {
                // New ones and invalid ones are asked about together, since most rules are content with both.
                if kind == Kind::Invalid as usize {
                    continue;
                }
                let mut of_kind = Vec::new();
                for with in self.states_together(kind) {
                    let boxes = self.in_view(direction, kind, sought, with);
                    let hides = sought != Sought::Counting;
                    let sorted = divisions.find(boxes, hides, |boxes| {
                        let boxes = if hides {
                            self.without_hidden(boxes)
                        } else {
                            boxes.to_vec()
                        };
                        divide(ranked, boxes, MAX_PARTITIONS).ok_or_else(too_entangled)
                    })?;
                    of_kind.extend(sorted.into_iter().map(|sorted| (sorted, with)));
                }
                if all.len() + of_kind.len() > MAX_PARTITIONS {
                    return Err(too_entangled());
                }
                // The search goes from the best rule to the worst.
                of_kind.sort_by_key(|(sorted, _)| sorted.best);
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
        if direction == model::Direction::Egress {
            let view = &mut views[Kind::Ordinary as usize][Sought::AtCall as usize];
            self.divide_calls(ranked, divisions, view, &mut all);
        }
        Ok(all)
    }

    /// The partitions of what is asked about calls, which are left out if there would be too many.
    fn divide_calls(
        &mut self,
        ranked: &Ranked,
        divisions: &mut Divisions,
        view: &mut Partitions,
        all: &mut Vec<Arc<Sorted>>,
    ) {
        let boxes: Vec<u32> = (self.of_rules as u32..self.boxes.all.len() as u32).collect();
        let are_denied = self.policy.defaults.egress == model::DefaultVerdict::Deny;
        self.refuses_calls = are_denied || !boxes.is_empty();
        let divided = divisions.find(boxes, true, |boxes| {
            divide(ranked, self.without_hidden(boxes), MOST_OF_CALLS).ok_or_else(too_entangled)
        });
        let Some(divided) = divided
            .ok()
            .filter(|divided| all.len() + divided.len() <= MAX_PARTITIONS)
        else {
            self.refuses_calls = false;
            return;
        };
        for sorted in divided {
            view[all.len() / 64] |= 1 << (all.len() % 64);
            all.push(sorted);
        }
    }

    /// The states whose rules share partitions: each with the others for which a rule is to be content with as well.
    fn states_together(&self, kind: usize) -> &'static [&'static [model::State]] {
        use model::State::{Established, Invalid, New, Related};
        let names_a_state = self.alike.examples.iter().any(|rule| !rule.state.is_empty());
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
    fn in_view(&self, direction: model::Direction, kind: usize, sought: Sought, with: &[model::State]) -> Vec<u32> {
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
            Sought::AtSocket => blocks_at_socket(rule),
            _ => is_in_view(rule),
        };
        // What is asked of rules here is what [`Alike`] tells them apart by.
        let is_in_view: Vec<bool> = self.alike.examples.iter().map(|rule| is_in_view(rule)).collect();
        if !is_in_view.contains(&true) {
            return Vec::new();
        }
        let boxes = (0..).zip(&self.boxes.all[..self.of_rules]);
        let boxes = boxes.filter(|(_, one)| {
            is_in_view[self.alike.of_rule[one.rule as usize] as usize]
                && essential.is_none_or(|essential| self.may_hold(one, *essential, direction))
        });
        boxes.map(|(number, _)| number).collect()
    }

    /// Whether a box has room for packets of an essential, by protocol and by ports or the type of ICMP; that keeps the rules
    /// small that are asked about it.
    fn may_hold(&self, one: &Box, essential: Essential, direction: model::Direction) -> bool {
        let holds = |field: Field, value: u32| match one.intervals[field as usize] {
            ALL_VALUES => true,
            number => self.boxes.intervals[field as usize].all()[number as usize].holds(value),
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

    /// Without the boxes that no packet gets to, since a rule before asks the same of some fields, nothing of the others, and
    /// for no other list. (There are further ones, within larger boxes or behind several together, which are only not
    /// found.)
    fn without_hidden(&self, boxes: &[u32]) -> Vec<u32> {
        let mut before: HashMap<[u32; FIELDS], Vec<u64>> = HashMap::with_capacity(boxes.len());
        // By the fields that a box asks for, a bit each: whether there was one that asks for these.
        let mut were_asked = 0u64;
        let mut left = Vec::with_capacity(boxes.len());
        for number in boxes {
            let one = &self.boxes.all[*number as usize];
            let asked = (0..FIELDS).filter(|field| one.intervals[*field] != ALL_VALUES);
            let asked: u32 = asked.map(|field| 1 << field).sum();
            let is_hidden = (0..1u32 << FIELDS)
                .filter(|fields| were_asked >> fields & 1 != 0 && fields & !asked == 0)
                .any(|fields| {
                    let asked_before = before.get(&only(one.intervals, fields));
                    asked_before.is_some_and(|asked| asked.iter().any(|asked| asked & !one.member_of == 0))
                });
            if !is_hidden {
                were_asked |= 1 << asked;
                before.entry(one.intervals).or_default().push(one.member_of);
                left.push(*number);
            }
        }
        left
    }

    /// Adds the partitions of a direction to the tables; for each how many steps it takes at most.
    fn add_partitions(&mut self, direction: model::Direction, ranked: &Ranked, all: &[Arc<Sorted>]) -> Vec<u32> {
        let direction = direction as usize;
        let layout = self.lay_groups_out(ranked, all);
        let mut costs = Vec::new();
        for ((number, sorted), (groups, strides)) in all.iter().enumerate().zip(layout) {
            for (field, classes) in Field::ALL.into_iter().zip(&mut self.fields) {
                let boxes = sorted.boxes.iter();
                let wanted = boxes.map(|one| (self.boxes.all[*one as usize].member_of, ranked.ranks(*one, field)));
                classes.tell(direction, number, wanted);
            }
            costs.push(1 + self.fill_groups(ranked, sorted, groups, strides.iter().sum()));
            let mut places = 0;
            for (field, place) in sorted.order.into_iter().zip(0..) {
                places |= place << (4 * field as u32);
            }
            self.partitions[direction * MAX_PARTITIONS + number] = Partition {
                best: sorted.best,
                places,
                first: self.records.len() as u32,
                count: sorted.boxes.len() as u32,
                groups,
                strides,
                zero: 0,
            };
            self.records.extend(sorted.boxes.iter().map(|one| Record {
                ranks: Field::ALL.map(|field| ranked.ranks(*one, field)),
                rule: ranked.rules[*one as usize],
                padding: 0,
                member_of: self.boxes.all[*one as usize].member_of,
            }));
        }
        costs
    }

    /// Makes room for the groups of all partitions of a direction, those of a field side by side; for each partition the index
    /// of its first group, and its strides.
    fn lay_groups_out(&mut self, ranked: &Ranked, all: &[Arc<Sorted>]) -> Vec<(u32, [u32; FIELDS])> {
        let is_grouped = |sorted: &&Arc<Sorted>| sorted.boxes.len() > SMALL && sorted.groups(ranked).nth(1).is_some();
        let mut strides = [0; FIELDS];
        for sorted in all.iter().filter(is_grouped) {
            strides[sorted.order[0] as usize] += 1;
        }
        let mut next = strides;
        for ((stride, next), classes) in strides.iter().zip(&mut next).zip(&self.fields) {
            *next = self.groups.len();
            self.groups
                .resize(*next + stride * classes.ranks() as usize, Group::EMPTY);
        }
        let place = |sorted: &Arc<Sorted>| {
            let mut own = [0; FIELDS];
            if !is_grouped(&sorted) {
                self.groups.push(Group::EMPTY);
                return (self.groups.len() as u32 - 1, own);
            }
            let field = sorted.order[0] as usize;
            own[field] = strides[field] as u32;
            next[field] += 1;
            (next[field] as u32 - 1, own)
        };
        all.iter().map(place).collect()
    }

    /// Fills the groups of a partition, from the index of the first one on, each so far from the one before; and adds their
    /// runs. How many runs and records have to be compared at most.
    fn fill_groups(&mut self, ranked: &Ranked, sorted: &Sorted, first: u32, stride: u32) -> u32 {
        if stride == 0 {
            let (group, comparisons) = self.add_runs(ranked, sorted, 0, &sorted.boxes);
            self.groups[first as usize] = group;
            return comparisons;
        }
        let field = sorted.order[0];
        let (mut offset, mut most) = (0, 0);
        for boxes in sorted.groups(ranked) {
            let (group, comparisons) = self.add_runs(ranked, sorted, offset, boxes);
            let [lowest, highest] = ranked.ranks(boxes[0], field);
            for rank in lowest..=highest.min(self.fields[field as usize].ranks() - 1) {
                self.groups[(first + rank * stride) as usize] = group;
            }
            offset += boxes.len() as u32;
            most = most.max(comparisons);
        }
        most
    }

    /// Adds the runs of a group that is so far from its partition's first record. The group, and how many runs and records
    /// have to be compared at most.
    fn add_runs(&mut self, ranked: &Ranked, sorted: &Sorted, offset: u32, boxes: &[u32]) -> (Group, u32) {
        let best = boxes.iter().map(|one| ranked.rules[*one as usize]).min().unwrap_or(0);
        let differ = |field: &Field| {
            let place = ranked.place(boxes[0], *field);
            boxes.iter().any(|one| ranked.place(*one, *field) != place)
        };
        let mut fields = sorted.order.into_iter().filter(|_| boxes.len() > FEW);
        let field = fields.find(differ);
        let group = Group::new(offset, boxes.len() as u32, best, field);
        let Some(field) = field else {
            self.runs.extend(boxes.iter().map(|_| Run::default()));
            return (group, halvings(boxes.len()));
        };
        let (mut offset, mut longest) = (offset, 0);
        for run in boxes.chunk_by(|one, other| ranked.place(*one, field) == ranked.place(*other, field)) {
            let ranks = ranked.ranks(run[0], field);
            self.runs.extend(run.iter().map(|_| Run::new(ranks, offset)));
            offset += run.len() as u32;
            longest = longest.max(run.len());
        }
        (group, halvings(boxes.len() - 1) + halvings(longest))
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
        let of_fields = self
            .fields
            .each_ref()
            .map(|classes| classes.partitions(direction as usize));
        let worst = |view: &Partitions| {
            let of_field =
                |different: &Vec<Partitions>| different.iter().map(|partitions| cost(partitions, view)).max();
            of_fields.iter().filter_map(of_field).min().unwrap_or(0)
        };
        let views = views.iter().map(|[deciding, counting, at_socket, _]| WorstCase {
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

    fn lookup_v4(&mut self, field: usize, first_class: u32) -> Lookup {
        let begins = &self.fields[field].short;
        let tree = self.content.add_bounds_v4(&tree_bounds(begins));
        lookup(&mut self.class_numbers, tree, begins, first_class, NodeV4::CHILDREN)
    }

    fn lookup_v6(&mut self, field: usize, first_class: u32) -> Lookup {
        let begins = &self.fields[field].long;
        let tree = self.content.add_bounds_v6(&tree_bounds(begins));
        lookup(&mut self.class_numbers, tree, begins, first_class, NodeV6::CHILDREN)
    }

    fn lookup_number_v6(&mut self, begins: &metadata::Begins) -> Lookup {
        let tree = self.content.add_bounds_v6(&tree_bounds(begins));
        lookup(&mut self.class_numbers, tree, begins, 0, NodeV6::CHILDREN)
    }

    /// The number of the class of each of so many values, from 0 on; the index of the first one.
    fn numbers(&mut self, field: usize, first_class: u32, values: u32) -> u32 {
        let first = self.class_numbers.len();
        let begins = &self.fields[field].short;
        let ends = begins.iter().skip(1).map(|(begin, _)| *begin).chain([values]);
        for ((_, class), end) in begins.iter().zip(ends) {
            self.class_numbers
                .resize(first + end.min(values) as usize, first_class + class);
        }
        first as u32
    }

    /// The same for the values of a field that has ports.
    fn direct(&mut self, field: usize, first_class: u32) -> Direct {
        let is_one = self.fields[field].short.len() == 1;
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
        let at_call = if self.refuses_calls { has::AT_CALL } else { 0 };
        let of_rules = self.rules.iter().map(bits_of);
        of_rules.fold(at_call, |bits, of_rule| bits | of_rule)
    }

    fn metadata(&mut self, first_class: u32) -> Result<Metadata, CannotEnforce> {
        Ok(Metadata {
            levels: metadata::levels(&self.places)?,
            first: self.numbers(Field::Metadata as usize, first_class, self.boxes.combinations.count()),
            asks: self.boxes.combinations.asks(),
            unknown_socket: u64::from(self.boxes.combinations.unknown_socket()),
            unknown_group: u64::from(self.boxes.combinations.unknown_group()),
        })
    }
}

/// The boxes that are asked where a socket is to connect or send, in which all is open that is not known there: those of rules
/// that let pass or count what may go to a destination, and of rules that block all that goes there. None where no call is to
/// be refused at all.
fn boxes_of_calls(policy: &Policy, rules: &[&model::Rule], boxes: &Boxes<'_>) -> Vec<Box> {
    const UNKNOWN: [Field; 3] = [Field::Source, Field::First, Field::Metadata];
    let lists = UNKNOWN.iter().flat_map(|field| boxes.lists.of(*field));
    let lists = lists.fold(0, |bits, (bit, _)| bits | 1 << bit);
    let blocks = |one: &Box| {
        let rule = rules[one.rule as usize];
        rule.action == model::Action::Block && rule.mode.is_none()
    };
    let may_match: Vec<bool> = rules.iter().map(|rule| may_match_call(rule)).collect();
    let opened = boxes.all.iter().filter_map(|one| {
        let mut opened = *one;
        for field in UNKNOWN {
            opened.intervals[field as usize] = ALL_VALUES;
        }
        opened.member_of &= !lists;
        let counts = !blocks(one) || opened == *one;
        (may_match[one.rule as usize] && counts).then_some(opened)
    });
    let opened: Vec<Box> = opened.collect();
    let are_refused = policy.defaults.egress == model::DefaultVerdict::Deny || opened.iter().any(blocks);
    if are_refused { opened } else { Vec::new() }
}

/// Whether a packet can match a rule that follows a call of `connect` or `sendmsg`: one of TCP or UDP that begins a flow.
fn may_match_call(rule: &model::Rule) -> bool {
    rule.covers(model::Direction::Egress)
        && is_known(rule, model::Direction::Egress)
        && (rule.state.is_empty() || rule.state.contains(&model::State::New))
        && (rule.icmp_type.is_empty() && rule.icmp_code.is_empty())
        && rule
            .protocol
            .is_none_or(|protocol| matches!(protocol, model::Protocol::TCP | model::Protocol::UDP))
}

/// Whether what a rule asks for is known of packets of this direction where they are decided about.
fn is_known(rule: &model::Rule, direction: model::Direction) -> bool {
    match direction {
        model::Direction::Ingress => !rule.names_identity(),
        model::Direction::Egress => rule.mac.is_empty(),
    }
}

/// The classes of a field.
fn classes(field: Field, boxes: &Boxes<'_>) -> Classes {
    let has_long = matches!(field, Field::Source | Field::Destination);
    let intervals = boxes.intervals[field as usize].all().iter().copied();
    Classes::of(has_long, intervals, boxes.lists.of(field))
}

/// What is asked for of these fields, a bit each, and nothing of the others.
fn only(intervals: [u32; FIELDS], fields: u32) -> [u32; FIELDS] {
    let mut only = intervals;
    for (field, interval) in only.iter_mut().enumerate() {
        if fields >> field & 1 == 0 {
            *interval = ALL_VALUES;
        }
    }
    only
}

/// The bounds of the tree: none if all values are of one class.
fn tree_bounds<T: Copy>(begins: &[(T, u32)]) -> Vec<T> {
    match begins {
        [] | [_] => Vec::new(),
        begins => begins.iter().map(|(value, _)| *value).collect(),
    }
}

/// Lays out the numbers of classes by the positions of a tree whose nodes have so many children.
fn lookup<T>(numbers: &mut Vec<u32>, tree: Tree, begins: &[(T, u32)], first_class: u32, children: u32) -> Lookup {
    let first = numbers.len() as u32;
    let bounds_in_leaf = children as usize - 1;
    // Before the first bound of a leaf lies what the leaf before ends with; free places continue the last bound.
    let mut before = begins.first().map_or(0, |(_, number)| first_class + number);
    numbers.reserve(begins.len().div_ceil(bounds_in_leaf) * children as usize);
    for leaf in begins.chunks(bounds_in_leaf) {
        numbers.push(before);
        numbers.extend(leaf.iter().map(|(_, number)| first_class + number));
        before = first_class + leaf[leaf.len() - 1].1;
        numbers.extend((leaf.len()..bounds_in_leaf).map(|_| before));
    }
    Lookup {
        tree,
        first,
        padding: 0,
    }
}

/// Rules by what [`Compiler::in_view`] asks of them.
struct Alike<'a> {
    /// One of each kind.
    examples: Vec<&'a model::Rule>,
    /// By rule, its kind.
    of_rule: Vec<u32>,
}

impl<'a> Alike<'a> {
    fn of(rules: &[&'a model::Rule]) -> Self {
        let mut kinds = HashMap::new();
        let mut examples = Vec::new();
        let mut of_rule = Vec::with_capacity(rules.len());
        for rule in rules {
            let directions = [model::Direction::Ingress, model::Direction::Egress];
            let of_direction = directions.map(|direction| (rule.covers(direction), is_known(rule, direction)));
            let names_essential = Essential::ALL.map(|essential| decide::names(rule, reason(essential)));
            let is_asked = (
                of_direction,
                names_essential,
                decide::names(rule, decide::Reason::NotIp),
                asks_for_ip(rule),
                rule.names_identity(),
                record(rule, 0).action,
                &rule.state,
            );
            let kind = *kinds.entry(is_asked).or_insert_with(|| {
                examples.push(*rule);
                examples.len() as u32 - 1
            });
            of_rule.push(kind);
        }
        Self { examples, of_rule }
    }
}

/// How often so many can be halved, until none is left.
const fn halvings(records: usize) -> u32 {
    usize::BITS - records.leading_zeros()
}

fn too_many_lists() -> CannotEnforce {
    CannotEnforce::because(
        format!("the policy has more than {MAX_LISTS} different long lists in its rules"),
        "write fewer or shorter ones, or the same ones again",
    )
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

fn too_many_boxes(rules: u32) -> CannotEnforce {
    CannotEnforce::because(
        format!(
            "the first {rules} rules alone make {MAX_BOXES} boxes or more: one for each combination of a prefix, a range of ports \
             and what else they list"
        ),
        "list less in one rule, or list ports by ranges and prefixes in sets",
    )
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

    fn run(&self, index: u32) -> Option<Run> {
        self.runs.get(index as usize).copied()
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
