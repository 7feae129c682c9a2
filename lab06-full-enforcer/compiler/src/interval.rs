//! Intervals of what can stand in a field.

use std::{
    hash::{Hash, Hasher},
    net::IpAddr,
};

use enforcer_policy::model::{Prefix, Range};

/// What can stand in a field: an address of IPv4 or another number, or an address of IPv6; addresses in host order.
pub trait Value: Copy + Ord {
    /// The lowest one.
    const LOWEST: Self;

    /// The one behind it, if there is one.
    fn next(self) -> Option<Self>;
}

impl Value for u32 {
    const LOWEST: Self = 0;

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Value for u128 {
    const LOWEST: Self = 0;

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// All values from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Interval {
    /// Of addresses of IPv4, or of other numbers.
    Short([u32; 2]),
    /// Of addresses of IPv6.
    Long([u128; 2]),
}

impl Interval {
    /// Of numbers.
    pub fn of_numbers(first: impl Into<u32>, last: impl Into<u32>) -> Self {
        Self::Short([first.into(), last.into()])
    }

    /// Of ports.
    pub fn of_ports(range: Range<u16>) -> Self {
        Self::of_numbers(range.first, range.last)
    }

    /// Of the addresses of a prefix.
    pub fn of_prefix(prefix: &Prefix) -> Self {
        match prefix.address() {
            IpAddr::V4(address) => {
                let host_mask = u32::MAX.checked_shr(prefix.len().into()).unwrap_or(0);
                Self::Short([address.to_bits(), address.to_bits() | host_mask])
            }
            IpAddr::V6(address) => {
                let host_mask = u128::MAX.checked_shr(prefix.len().into()).unwrap_or(0);
                Self::Long([address.to_bits(), address.to_bits() | host_mask])
            }
        }
    }

    /// Whether a number is in it.
    pub fn holds(&self, number: u32) -> bool {
        matches!(self, Self::Short([first, last]) if (*first..=*last).contains(&number))
    }
}

/// Ascending intervals that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// Those of IPv4 addresses, or of other numbers: the first and the last value of each.
    pub short: Vec<[u32; 2]>,
    /// Those of IPv6 addresses.
    pub long: Vec<[u128; 2]>,
}

impl List {
    /// How many intervals it has.
    pub fn len(&self) -> usize {
        self.short.len() + self.long.len()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Interval> + Clone {
        let short = self.short.iter().copied().map(Interval::Short);
        short.chain(self.long.iter().copied().map(Interval::Long))
    }
}

/// By length and ends only: there may be a million, and few lists are alike in these.
impl Hash for List {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.short.len(), self.short.first(), self.short.last()).hash(state);
        (self.long.len(), self.long.first(), self.long.last()).hash(state);
    }
}

impl FromIterator<Interval> for List {
    fn from_iter<I: IntoIterator<Item = Interval>>(intervals: I) -> Self {
        let intervals = intervals.into_iter();
        let mut list = Self::default();
        list.short.reserve(intervals.size_hint().0);
        for interval in intervals {
            match interval {
                Interval::Short(short) => list.short.push(short),
                Interval::Long(long) => list.long.push(long),
            }
        }
        join(&mut list.short);
        join(&mut list.long);
        list
    }
}

/// Leaves ascending intervals with the same values, which neither overlap nor touch.
fn join<T: Value>(intervals: &mut Vec<[T; 2]>) {
    // Stable, which takes what is in order already as it is: sets are.
    intervals.sort();
    intervals.dedup_by(|next, previous| {
        let touches = previous[1].next().is_none_or(|behind| next[0] <= behind);
        if touches {
            previous[1] = previous[1].max(next[1]);
        }
        touches
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_or_touches_becomes_one_up_to_the_highest_value() {
        let list: List = [
            [30, 40],
            [u32::MAX - 1, u32::MAX],
            [1, 9],
            [10, 20],
            [35, 36],
            [22, 22],
            [50, u32::MAX],
        ]
        .into_iter()
        .map(Interval::Short)
        .chain([
            Interval::Long([0, 7]),
            Interval::Long([5, u128::MAX]),
            Interval::Long([9, 9]),
        ])
        .collect();
        assert_eq!(list.short, [[1, 20], [22, 22], [30, 40], [50, u32::MAX]]);
        assert_eq!(list.long, [[0, u128::MAX]]);
    }
}
