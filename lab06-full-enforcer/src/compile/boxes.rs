//! A rule as boxes: an interval in each field, and lists that the packet has to be on.

use std::{collections::HashMap, rc::Rc};

use enforcer_policy::model::{self, Policy};
use lab06_full_enforcer_common::{
    key::ICMP_BASE,
    table::{FIELDS, Field, MAX_LISTS},
};

use super::{
    interval::{Interval, joined},
    metadata::Combinations,
};

/// What a rule wants of a packet: one of its boxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Box {
    /// By [`Field`]; `None` where every value will do.
    pub intervals: [Option<Interval>; FIELDS],
    /// The lists that the packet has to be on besides.
    pub member_of: u64,
}

impl Box {
    /// That holds every packet.
    pub const EVERYTHING: Self = Self {
        intervals: [None; FIELDS],
        member_of: 0,
    };
}

/// A list with so many intervals or more is not taken apart, but has its membership looked up.
const LONG: usize = 17;

/// How many boxes a rule may become as long as there are lists to be had instead.
const FEW_BOXES: usize = 64;

/// How many boxes a rule may become if there are none.
const MOST_BOXES: usize = 65_536;

/// The values that a rule is content with in a field; `None` for all.
type Wanted = Option<Rc<[Interval]>>;

/// The long lists of a policy.
#[derive(Default)]
pub struct Lists {
    /// Their numbers, by field and content.
    numbers: HashMap<(Field, Rc<[Interval]>), u32>,
}

/// There are too many long lists.
#[derive(Debug)]
pub struct TooManyLists;

impl Lists {
    /// The bit of a list.
    fn bit(&mut self, field: Field, list: &Rc<[Interval]>) -> Result<u64, TooManyLists> {
        let next = self.numbers.len() as u32;
        let number = *self.numbers.entry((field, Rc::clone(list))).or_insert(next);
        if number as usize >= MAX_LISTS {
            self.numbers.remove(&(field, Rc::clone(list)));
            return Err(TooManyLists);
        }
        Ok(1 << number)
    }

    /// The intervals of the lists of a field, each list with its bit.
    pub fn of(&self, field: Field) -> impl Iterator<Item = (u64, &[Interval])> {
        let of_field = self.numbers.iter().filter(move |((of, _), _)| *of == field);
        of_field.map(|((_, list), number)| (1 << number, &**list))
    }
}

/// Takes rules apart.
pub struct Boxes<'a> {
    policy: &'a Policy,
    /// The long lists that were met.
    pub lists: Lists,
    /// What rules ask for beside headers.
    pub combinations: Combinations<'a>,
    /// The intervals of lists of addresses, since many rules have the same.
    addresses: HashMap<&'a [model::Address], Rc<[Interval]>>,
}

impl<'a> Boxes<'a> {
    /// For the rules of `policy`.
    pub fn new(policy: &'a Policy, combinations: Combinations<'a>) -> Self {
        Self {
            policy,
            lists: Lists::default(),
            combinations,
            addresses: HashMap::new(),
        }
    }

    /// The boxes of a rule, which have nothing in common.
    pub fn of(&mut self, rule: &'a model::Rule) -> Result<Vec<Box>, TooManyLists> {
        let mut wanted: [Wanted; FIELDS] = [
            self.addresses(&rule.source),
            self.addresses(&rule.destination),
            ports_or_icmp(&rule.source_ports, &rule.icmp_type),
            ports_or_icmp(&rule.destination_ports, &rule.icmp_code),
            rule.protocol
                .map(|protocol| Rc::from([Interval::of_numbers(protocol.0, protocol.0)])),
            self.combinations.wanted(rule),
        ];
        let member_of = self.put_long_ones_aside(&mut wanted)?;
        let mut boxes = vec![Box {
            member_of,
            ..Box::EVERYTHING
        }];
        for (place, wanted) in wanted.iter().enumerate() {
            let Some(intervals) = wanted else { continue };
            boxes = intervals
                .iter()
                .flat_map(|interval| {
                    boxes.iter().map(move |already| {
                        let mut more = *already;
                        more.intervals[place] = Some(*interval);
                        more
                    })
                })
                .collect();
        }
        Ok(boxes)
    }

    /// Replaces lists by the bits of their memberships, until few boxes are left.
    fn put_long_ones_aside(&mut self, wanted: &mut [Wanted; FIELDS]) -> Result<u64, TooManyLists> {
        let mut member_of = 0;
        loop {
            let lengths = wanted
                .each_ref()
                .map(|wanted| wanted.as_ref().map_or(1, |list| list.len()));
            let boxes: usize = lengths.iter().product();
            let longest = Field::ALL
                .into_iter()
                .max_by_key(|field| lengths[*field as usize])
                .expect("there are fields");
            let length = lengths[longest as usize];
            if length < LONG && boxes <= FEW_BOXES {
                return Ok(member_of);
            }
            let list = wanted[longest as usize].as_ref().expect("it has a length above one");
            match self.lists.bit(longest, list) {
                Ok(bit) => member_of |= bit,
                Err(TooManyLists) if boxes <= MOST_BOXES => return Ok(member_of),
                Err(TooManyLists) => return Err(TooManyLists),
            }
            wanted[longest as usize] = None;
        }
    }

    fn addresses(&mut self, list: &'a [model::Address]) -> Wanted {
        if list.is_empty() {
            return None;
        }
        let intervals = self.addresses.entry(list).or_insert_with(|| {
            let prefixes = list.iter().flat_map(|address| self.policy.prefixes(address));
            joined(prefixes.map(Interval::of_prefix).collect()).into()
        });
        Some(Rc::clone(intervals))
    }
}

/// What a rule wants of a field that ports share with ICMP. What has the one never has the other.
fn ports_or_icmp(ports: &[model::Range<u16>], icmp: &[model::Range<u8>]) -> Wanted {
    if !ports.is_empty() && !icmp.is_empty() {
        return Some(Rc::from([]));
    }
    let icmp = icmp.iter().map(|range| {
        let value = |byte: u8| ICMP_BASE + u32::from(byte);
        Interval::of_numbers(value(range.first), value(range.last))
    });
    let all: Vec<Interval> = ports.iter().copied().map(Interval::of_ports).chain(icmp).collect();
    (!all.is_empty()).then(|| joined(all).into())
}
