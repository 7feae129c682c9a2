//! A rule as boxes: an interval in each field, and lists that the packet has to be on.

use std::sync::Arc;

use enforcer_policy::model::{self, Policy};
use foldhash::{HashMap, HashMapExt as _};
use lab06_full_enforcer_common::{
    key::ICMP_BASE,
    table::{FIELDS, Field, MAX_LISTS},
};

use super::{
    interval::{Interval, List},
    metadata::Combinations,
};

/// What a rule wants of a packet: one of its boxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Box {
    /// By [`Field`], the number of its interval in [`Boxes::intervals`]; [`ALL_VALUES`] where every value will do.
    pub intervals: [u32; FIELDS],
    /// The number of the rule in the order of matching.
    pub rule: u32,
    /// The lists that the packet has to be on besides.
    pub member_of: u64,
}

/// In [`Box::intervals`].
pub const ALL_VALUES: u32 = u32::MAX;

/// A list with so many intervals or more is not taken apart, but has its membership looked up.
const LONG: usize = 17;

/// How many boxes a rule may become as long as there are lists to be had instead.
const FEW_BOXES: usize = 64;

/// How many boxes a rule may become if there are none.
const MOST_BOXES: usize = 65_536;

/// The values that a rule is content with in a field.
enum Wanted {
    All,
    One(Interval),
    Of(Arc<List>),
}

impl Wanted {
    /// How many boxes come of it.
    fn count(&self) -> usize {
        match self {
            Self::All | Self::One(_) => 1,
            Self::Of(list) => list.len(),
        }
    }
}

/// The long lists of a policy.
#[derive(Default)]
pub struct Lists {
    /// By their bits.
    all: Vec<(Field, Arc<List>)>,
    /// Their bits.
    bits: HashMap<(Field, Arc<List>), u32>,
}

/// There are too many long lists.
#[derive(Debug)]
pub struct TooManyLists;

impl Lists {
    /// The bit of a list.
    fn bit(&mut self, field: Field, list: &Arc<List>) -> Result<u64, TooManyLists> {
        let key = (field, Arc::clone(list));
        if let Some(bit) = self.bits.get(&key) {
            return Ok(1 << bit);
        }
        let bit = self.all.len() as u32;
        if bit as usize == MAX_LISTS {
            return Err(TooManyLists);
        }
        self.all.push(key.clone());
        self.bits.insert(key, bit);
        Ok(1 << bit)
    }

    /// The lists of a field, each with its bit.
    pub fn of(&self, field: Field) -> impl Iterator<Item = (u32, &List)> {
        let of_field = (0..).zip(&self.all).filter(move |(_, (of, _))| *of == field);
        of_field.map(|(bit, (_, list))| (bit, &**list))
    }
}

/// The intervals of a field that boxes have, each once.
#[derive(Clone, Debug, Default)]
pub struct Intervals {
    /// By their numbers.
    all: Vec<Interval>,
    numbers: HashMap<Interval, u32>,
}

impl Intervals {
    fn number(&mut self, interval: Interval) -> u32 {
        *self.numbers.entry(interval).or_insert_with(|| {
            self.all.push(interval);
            self.all.len() as u32 - 1
        })
    }

    /// By their numbers.
    pub fn all(&self) -> &[Interval] {
        &self.all
    }
}

/// Rules, taken apart.
pub struct Boxes<'a> {
    policy: &'a Policy,
    /// Their boxes, those of a rule beside each other.
    pub all: Vec<Box>,
    /// By [`Field`], the intervals that they have.
    pub intervals: [Intervals; FIELDS],
    /// The long lists that were met.
    pub lists: Lists,
    /// What rules ask for beside headers.
    pub combinations: Combinations<'a>,
    /// The intervals of lists of addresses, since many rules have the same.
    addresses: HashMap<&'a [model::Address], Arc<List>>,
}

impl<'a> Boxes<'a> {
    /// For the rules of `policy`.
    pub fn new(policy: &'a Policy, combinations: Combinations<'a>) -> Self {
        Self {
            policy,
            all: Vec::with_capacity(policy.rules.len()),
            intervals: Default::default(),
            lists: Lists::default(),
            combinations,
            addresses: HashMap::new(),
        }
    }

    /// Adds the boxes of a rule, which have nothing in common. `number` is its number in the order of matching.
    pub fn add(&mut self, number: u32, rule: &'a model::Rule) -> Result<(), TooManyLists> {
        let mut wanted: [Wanted; FIELDS] = [
            self.addresses(&rule.source),
            self.addresses(&rule.destination),
            ports_or_icmp(&rule.source_ports, &rule.icmp_type),
            ports_or_icmp(&rule.destination_ports, &rule.icmp_code),
            match rule.protocol {
                None => Wanted::All,
                Some(protocol) => Wanted::One(Interval::of_numbers(protocol.0, protocol.0)),
            },
            self.combinations.wanted(rule).map_or(Wanted::All, Wanted::Of),
        ];
        let member_of = self.put_long_ones_aside(&mut wanted)?;
        let first = self.all.len();
        self.all.push(Box {
            intervals: [ALL_VALUES; FIELDS],
            rule: number,
            member_of,
        });
        for (place, wanted) in wanted.iter().enumerate() {
            match wanted {
                Wanted::All => {}
                Wanted::One(interval) => self.narrow(first, place, [*interval].into_iter()),
                Wanted::Of(list) => self.narrow(first, place, list.iter()),
            }
        }
        Ok(())
    }

    /// Replaces the boxes from `first` on by those that hold the same and have one of these intervals in a field.
    fn narrow(&mut self, first: usize, field: usize, intervals: impl Iterator<Item = Interval>) {
        let open = self.all.len() - first;
        let mut added = first;
        for interval in intervals {
            let number = self.intervals[field].number(interval);
            if added > first {
                self.all.extend_from_within(first..first + open);
            }
            for one in &mut self.all[added..] {
                one.intervals[field] = number;
            }
            added += open;
        }
        self.all.truncate(added);
    }

    /// Replaces lists by the bits of their memberships, until few boxes are left.
    fn put_long_ones_aside(&mut self, wanted: &mut [Wanted; FIELDS]) -> Result<u64, TooManyLists> {
        let mut member_of = 0;
        loop {
            let counts = wanted.each_ref().map(Wanted::count);
            let boxes: usize = counts.iter().product();
            let longest = Field::ALL
                .into_iter()
                .max_by_key(|field| counts[*field as usize])
                .expect("there are fields");
            if counts[longest as usize] < LONG && boxes <= FEW_BOXES {
                return Ok(member_of);
            }
            let Wanted::Of(list) = &wanted[longest as usize] else {
                unreachable!("what is content with one interval, or with all values, counts as one");
            };
            match self.lists.bit(longest, list) {
                Ok(bit) => member_of |= bit,
                Err(TooManyLists) if boxes <= MOST_BOXES => return Ok(member_of),
                Err(TooManyLists) => return Err(TooManyLists),
            }
            wanted[longest as usize] = Wanted::All;
        }
    }

    fn addresses(&mut self, list: &'a [model::Address]) -> Wanted {
        match list {
            [] => Wanted::All,
            [model::Address::Prefix(prefix)] => Wanted::One(Interval::of_prefix(prefix)),
            list => {
                let intervals = self.addresses.entry(list).or_insert_with(|| {
                    let prefixes = list.iter().flat_map(|address| self.policy.prefixes(address));
                    Arc::new(prefixes.map(Interval::of_prefix).collect())
                });
                Wanted::Of(Arc::clone(intervals))
            }
        }
    }
}

/// What a rule wants of a field that ports share with ICMP. What has the one never has the other.
fn ports_or_icmp(ports: &[model::Range<u16>], icmp: &[model::Range<u8>]) -> Wanted {
    let of_icmp = |range: &model::Range<u8>| {
        let value = |byte: u8| ICMP_BASE + u32::from(byte);
        Interval::of_numbers(value(range.first), value(range.last))
    };
    match (ports, icmp) {
        ([], []) => Wanted::All,
        ([port], []) => Wanted::One(Interval::of_ports(*port)),
        ([], [icmp]) => Wanted::One(of_icmp(icmp)),
        (ports, []) => Wanted::Of(Arc::new(ports.iter().copied().map(Interval::of_ports).collect())),
        ([], icmp) => Wanted::Of(Arc::new(icmp.iter().map(of_icmp).collect())),
        _ => Wanted::Of(Arc::default()),
    }
}
