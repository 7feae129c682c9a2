//! The values of a field, divided into classes.

use std::collections::{BTreeSet, HashMap};

use lab06_full_enforcer_common::table::{Class, Partitions};

use super::{
    interval::{Interval, Point},
    partition::Ranked,
};

/// A field: which class begins at which value.
#[derive(Debug)]
pub struct Classes {
    /// Ascending: the first value of an interval and its class, by its place in `all`.
    pub begins: Vec<(Point, u32)>,
    /// Without the partitions.
    pub all: Vec<Class>,
    /// The first values of the ranks, ascending.
    ranks: Vec<Point>,
    /// The lists of this field.
    lists: u64,
}

impl Classes {
    /// Of a field with these families, by the intervals of boxes and by lists, each with its bit.
    pub fn of<'a>(
        families: &[u8],
        boxes: impl Iterator<Item = Interval>,
        lists: impl Iterator<Item = (u64, &'a [Interval])>,
    ) -> Self {
        let beginnings = families.iter().map(|family| Point {
            family: *family,
            value: 0,
        });
        // IPv4 and IPv6 are of different ranks and classes in any case.
        let mut ranks: Vec<Point> = beginnings.collect();
        for interval in boxes {
            ranks.push(interval.first);
            ranks.extend(behind(interval.last));
        }
        ranks.sort_unstable();
        ranks.dedup();
        let mut changes: Vec<(Point, u64)> = ranks.iter().map(|point| (*point, 0)).collect();
        let mut all_lists = 0;
        for (bit, list) in lists {
            all_lists |= bit;
            for interval in list {
                changes.push((interval.first, bit));
                // Behind the last value of a family every list ends: see below.
                changes.extend(behind(interval.last).map(|point| (point, bit)));
            }
        }
        // Stable, which takes what is in order already as it is: long lists are.
        changes.sort_by_key(|(point, _)| *point);
        let mut result = Self {
            begins: Vec::with_capacity(changes.len()),
            all: Vec::new(),
            ranks,
            lists: all_lists,
        };
        result.sweep(&changes);
        result
    }

    fn sweep(&mut self, changes: &[(Point, u64)]) {
        let mut numbers: HashMap<(u32, u64), u32> = HashMap::new();
        let (mut rank, mut member_of) = (0u32, 0);
        let mut family = None;
        for same in changes.chunk_by(|one, other| one.0 == other.0) {
            let point = same[0].0;
            if family != Some(point.family) {
                member_of = 0;
            }
            let is_new_family = family.replace(point.family) != Some(point.family);
            for (_, bit) in same {
                member_of ^= bit;
            }
            if self.ranks.get(rank as usize + 1) == Some(&point) {
                rank += 1;
            }
            let classes = &mut self.all;
            let class = *numbers.entry((rank, member_of)).or_insert_with(|| {
                classes.push(Class {
                    rank,
                    member_of,
                    ..Class::default()
                });
                classes.len() as u32 - 1
            });
            if is_new_family || self.begins.last().map(|(_, last)| *last) != Some(class) {
                self.begins.push((point, class));
            }
        }
    }

    /// How many ranks there are.
    pub fn ranks(&self) -> u32 {
        self.ranks.len() as u32
    }

    /// The bits of its lists.
    pub fn lists(&self) -> u64 {
        self.lists
    }

    /// The ranks of an interval of a box, or of everything.
    pub fn ranks_of(&self, interval: Option<Interval>) -> [u32; 2] {
        let Some(interval) = interval else {
            return EVERY_RANK;
        };
        let below = |point: Point| self.ranks.partition_point(|rank| *rank <= point) as u32 - 1;
        [below(interval.first), below(interval.last)]
    }

    /// Tells each class which partition has boxes for it.
    pub fn tell(&mut self, field: usize, direction: usize, partition: usize, boxes: &[Ranked]) {
        let wanted: BTreeSet<(u64, [u32; 2])> = boxes
            .iter()
            .map(|one| (one.member_of & self.lists, one.ranks[field]))
            .collect();
        let wanted: Vec<_> = wanted.into_iter().collect();
        for same in wanted.chunk_by(|one, other| one.0 == other.0) {
            let member_of = same[0].0;
            let is_wanted = self.wanted(same.iter().map(|(_, ranks)| *ranks));
            for class in &mut self.all {
                if is_wanted[class.rank as usize] && member_of & !class.member_of == 0 {
                    set(&mut class.partitions[direction], partition);
                }
            }
        }
    }

    /// Of each rank, whether it is within one of the intervals.
    fn wanted(&self, intervals: impl Iterator<Item = [u32; 2]>) -> Vec<bool> {
        let ranks = self.ranks.len();
        let mut changes = vec![0i32; ranks + 1];
        for [lowest, highest] in intervals {
            changes[lowest as usize] += 1;
            changes[(highest as usize + 1).min(ranks)] -= 1;
        }
        let mut depth = 0;
        changes[..ranks]
            .iter()
            .map(|change| {
                depth += change;
                depth > 0
            })
            .collect()
    }
}

/// The ranks of a box that leaves the field open.
pub const EVERY_RANK: [u32; 2] = [0, u32::MAX];

/// The value behind this one, if the family has more.
fn behind(last: Point) -> Option<Point> {
    let highest = match last.family {
        4 => u128::from(u32::MAX),
        _ => u128::MAX,
    };
    (last.value < highest).then_some(Point {
        value: last.value.wrapping_add(1),
        ..last
    })
}

fn set(partitions: &mut Partitions, number: usize) {
    partitions[number / 64] |= 1 << (number % 64);
}
