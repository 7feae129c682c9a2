//! The values of a field, divided into classes.

use foldhash::{HashMap, HashMapExt as _};
use lab06_full_enforcer_common::table::{Class, Partitions};

use super::interval::{Interval, List, Value};

/// A field: which class begins at which value.
#[derive(Debug)]
pub struct Classes {
    /// Of IPv4 addresses, or of other numbers.
    pub short: Begins<u32>,
    /// Of IPv6 addresses.
    pub long: Begins<u128>,
    /// By their numbers and by rank, without the partitions.
    pub all: Vec<Class>,
    ranks: Ranks,
    /// By rank, the number of its first class; and how many there are.
    first_of_rank: Vec<u32>,
    /// The lists of this field.
    lists: u64,
}

/// Ascending: the first value of an interval, and the number of its class.
pub type Begins<T> = Vec<(T, u32)>;

/// The first values of the ranks, ascending. The ranks of IPv6 addresses come behind those of IPv4, which are of other ranks
/// and classes in any case.
#[derive(Debug)]
struct Ranks {
    short: Vec<u32>,
    long: Vec<u128>,
}

impl Classes {
    /// Of a field, which may have IPv6 addresses, by the intervals of boxes and by lists, each with its bit.
    pub fn of<'a>(
        has_long: bool,
        boxes: impl Iterator<Item = Interval>,
        lists: impl Iterator<Item = (u32, &'a List)>,
    ) -> Self {
        let lists: Vec<(u32, &List)> = lists.collect();
        let ranks = Ranks::of(has_long, boxes);
        let mut all = Vec::new();
        let of_short = changes(lists.iter().map(|(bit, list)| (*bit, &*list.short)));
        let of_long = changes(lists.iter().map(|(bit, list)| (*bit, &*list.long)));
        let short = sweep(&ranks.short, 0, &of_short, &mut all);
        let long = sweep(&ranks.long, ranks.short.len() as u32, &of_long, &mut all);
        let mut first_of_rank = Vec::with_capacity(ranks.count() as usize + 1);
        for (class, number) in all.iter().zip(0..) {
            if first_of_rank.len() == class.rank as usize {
                first_of_rank.push(number);
            }
        }
        first_of_rank.push(all.len() as u32);
        Self {
            short,
            long,
            all,
            ranks,
            first_of_rank,
            lists: lists.iter().map(|(bit, _)| 1 << bit).sum(),
        }
    }

    /// How many ranks there are.
    pub fn ranks(&self) -> u32 {
        self.ranks.count()
    }

    /// The bits of its lists.
    pub fn lists(&self) -> u64 {
        self.lists
    }

    /// The ranks of an interval of a box.
    pub fn ranks_of(&self, interval: Interval) -> [u32; 2] {
        fn rank<T: Value>(ranks: &[T], value: T) -> u32 {
            ranks.partition_point(|rank| *rank <= value) as u32 - 1
        }
        match interval {
            Interval::Short(short) => short.map(|value| rank(&self.ranks.short, value)),
            Interval::Long(long) => long.map(|value| self.ranks.short.len() as u32 + rank(&self.ranks.long, value)),
        }
    }

    /// Tells each class which partition has boxes for it, of which these are the lists and the ranks in this field.
    pub fn tell(&mut self, direction: usize, partition: usize, boxes: impl Iterator<Item = (u64, [u32; 2])>) {
        let highest = self.ranks() - 1;
        let asked = boxes.map(|(lists, ranks)| (lists & self.lists, ranks.map(|rank| rank.min(highest))));
        let mut asked: Vec<(u64, [u32; 2])> = asked.collect();
        asked.dedup();
        if !asked.is_sorted_by_key(|(lists, _)| *lists) {
            asked.sort_unstable_by_key(|(lists, _)| *lists);
        }
        for same in asked.chunk_by_mut(|one, other| one.0 == other.0) {
            let member_of = same[0].0;
            for [lowest, highest] in joined(same, self.ranks()) {
                let [first, behind] = [lowest, highest + 1].map(|rank| self.first_of_rank[rank as usize] as usize);
                for class in &mut self.all[first..behind] {
                    if member_of & !class.member_of == 0 {
                        class.partitions[direction][partition / 64] |= 1 << (partition % 64);
                    }
                }
            }
        }
    }

    /// The sets of partitions of a direction that classes have, each once.
    pub fn partitions(&self, direction: usize) -> Vec<Partitions> {
        let mut all: Vec<Partitions> = self.all.iter().map(|class| class.partitions[direction]).collect();
        all.dedup();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// The ranks of a box that leaves the field open.
pub const EVERY_RANK: [u32; 2] = [0, u32::MAX];

impl Ranks {
    fn of(has_long: bool, boxes: impl Iterator<Item = Interval>) -> Self {
        let mut short = vec![u32::LOWEST];
        let mut long = if has_long { vec![u128::LOWEST] } else { Vec::new() };
        for interval in boxes {
            match interval {
                Interval::Short([first, last]) => short.extend([Some(first), last.next()].into_iter().flatten()),
                Interval::Long([first, last]) => long.extend([Some(first), last.next()].into_iter().flatten()),
            }
        }
        short.sort_unstable();
        short.dedup();
        long.sort_unstable();
        long.dedup();
        Self { short, long }
    }

    fn count(&self) -> u32 {
        (self.short.len() + self.long.len()) as u32
    }
}

/// Ascending: where a list begins or ends, and its bit. Behind the highest value of all, every list ends by itself.
fn changes<'a, T: Value + 'a>(lists: impl Iterator<Item = (u32, &'a [[T; 2]])>) -> Vec<(T, u32)> {
    let mut changes: Vec<(T, u32)> = Vec::new();
    for (bit, list) in lists {
        changes.reserve(2 * list.len());
        for [first, last] in list {
            changes.push((*first, bit));
            changes.extend(last.next().map(|behind| (behind, bit)));
        }
    }
    // Stable, which takes what is in order already as it is: each list is.
    changes.sort_by_key(|(value, _)| *value);
    changes
}

/// Goes through the values, from change to change: adds the classes that there are to all, and says where each begins.
fn sweep<T: Value>(ranks: &[T], first_rank: u32, changes: &[(T, u32)], all: &mut Vec<Class>) -> Begins<T> {
    let mut begins: Begins<T> = Vec::with_capacity(ranks.len().max(changes.len()));
    let mut changes = changes.iter().peekable();
    let mut member_of = 0;
    for (place, rank) in ranks.iter().enumerate() {
        let behind = ranks.get(place + 1);
        let mut at = *rank;
        let mut class_of = HashMap::new();
        loop {
            while let Some((_, bit)) = changes.next_if(|(value, _)| *value == at) {
                member_of ^= 1 << bit;
            }
            let class = *class_of.entry(member_of).or_insert_with(|| {
                all.push(Class {
                    rank: first_rank + place as u32,
                    member_of,
                    ..Class::default()
                });
                all.len() as u32 - 1
            });
            if begins.last().is_none_or(|(_, last)| *last != class) {
                begins.push((at, class));
            }
            match changes.peek() {
                Some((value, _)) if behind.is_none_or(|behind| value < behind) => at = *value,
                _ => break,
            }
        }
    }
    begins
}

/// The same ranks, of which there are so many, in ascending intervals that do not overlap.
fn joined(intervals: &mut [(u64, [u32; 2])], ranks: u32) -> Vec<[u32; 2]> {
    let mut joined: Vec<[u32; 2]> = Vec::new();
    let mut add = |lowest: u32, highest: u32| match joined.last_mut() {
        Some(last) if lowest <= last[1] + 1 => last[1] = last[1].max(highest),
        _ => joined.push([lowest, highest]),
    };
    if intervals.len() * FEW < ranks as usize {
        intervals.sort_unstable();
        for (_, [lowest, highest]) in intervals {
            add(*lowest, *highest);
        }
        return joined;
    }
    let mut highest_from = vec![None; ranks as usize];
    for (_, [lowest, highest]) in intervals {
        let known = &mut highest_from[*lowest as usize];
        *known = (*known).max(Some(*highest));
    }
    for (lowest, highest) in (0..).zip(highest_from) {
        if let Some(highest) = highest {
            add(lowest, highest);
        }
    }
    joined
}

/// Intervals are sorted where there are so many times more ranks; else all ranks are gone through.
const FEW: usize = 16;
