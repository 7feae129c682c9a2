//! Intervals of what can stand in a field.

use enforcer_policy::model::{Prefix, Range};

/// A value of a field; of addresses, those of IPv4 come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// 4 or 6 for an address; else 0.
    pub family: u8,
    /// The value, or the address in host order.
    pub value: u128,
}

/// All values from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval {
    /// The lowest.
    pub first: Point,
    /// The highest, of the same family.
    pub last: Point,
}

impl Interval {
    /// Of numbers.
    pub fn of_numbers(first: impl Into<u128>, last: impl Into<u128>) -> Self {
        let point = |value| Point { family: 0, value };
        Self {
            first: point(first.into()),
            last: point(last.into()),
        }
    }

    /// Of ports.
    pub fn of_ports(range: Range<u16>) -> Self {
        Self::of_numbers(range.first, range.last)
    }

    /// Of the addresses of a prefix.
    pub fn of_prefix(prefix: &Prefix) -> Self {
        let (family, first, bits) = match prefix.address() {
            std::net::IpAddr::V4(address) => (4, u128::from(address.to_bits()), 32),
            std::net::IpAddr::V6(address) => (6, address.to_bits(), 128),
        };
        let host_bits = bits - u32::from(prefix.len());
        let host_mask = u128::MAX.checked_shr(128 - host_bits).unwrap_or(0);
        let point = |value| Point { family, value };
        Self {
            first: point(first),
            last: point(first | host_mask),
        }
    }
}

/// The same values in ascending intervals that neither overlap nor touch.
pub fn joined(mut intervals: Vec<Interval>) -> Vec<Interval> {
    // Stable, which takes what is in order already as it is: a long list with an entry added at its end nearly is.
    intervals.sort();
    let mut result: Vec<Interval> = Vec::with_capacity(intervals.len());
    for interval in intervals {
        match result.last_mut() {
            Some(previous) if touches(previous, &interval) => previous.last = previous.last.max(interval.last),
            _ => result.push(interval),
        }
    }
    result
}

/// Whether there is nothing between one and another that begins no earlier.
fn touches(previous: &Interval, next: &Interval) -> bool {
    previous.last.family == next.first.family && next.first.value <= previous.last.value.saturating_add(1)
}
