//! Counters of packets and bytes, and where each stands in the maps.

use crate::headers::{ETHER_TYPE_ARP, Headers};

/// Packets and bytes, counted by one CPU: no other writes to it, so a plain addition is right and an atomic one would
/// only cost.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// How many packets.
    pub packets: u64,
    /// Their lengths in bytes, Ethernet header included and frame check sequence not, as XDP sees them.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Counter>() == 16);

impl Counter {
    /// Nothing counted.
    pub const ZERO: Self = Self { packets: 0, bytes: 0 };

    /// Counts one packet of `bytes` bytes. Wraps after 2^64, which is 46 years of bytes at 100 Gbit/s.
    #[inline(always)]
    pub fn add(&mut self, bytes: u64) {
        self.packets = self.packets.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(bytes);
    }
}

impl core::iter::Sum for Counter {
    fn sum<I: Iterator<Item = Self>>(counters: I) -> Self {
        counters.fold(Self::ZERO, |sum, counter| Self {
            packets: sum.packets.wrapping_add(counter.packets),
            bytes: sum.bytes.wrapping_add(counter.bytes),
        })
    }
}

// SAFETY: `#[repr(C)]`, two u64, no padding, any bits are valid.
#[cfg(target_os = "linux")]
unsafe impl aya::Pod for Counter {}

/// What a packet carries, as an index of the counters by protocol.
///
/// 0 to 255 are the protocol numbers of IPv4, the next 256 the next-header numbers of IPv6, then come ARP and the rest.
/// <https://www.iana.org/assignments/protocol-numbers/>
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(u32);

impl Protocol {
    /// How many there are: the size of an array that has one element for each.
    pub const COUNT: u32 = 514;
    /// The Address Resolution Protocol.
    pub const ARP: Self = Self(512);
    /// Whatever is neither IPv4, IPv6 nor ARP.
    pub const OTHER: Self = Self(513);

    /// IPv4's protocol `number`.
    #[inline(always)]
    pub const fn ipv4(number: u8) -> Self {
        Self(number as u32)
    }

    /// IPv6's next header `number`.
    #[inline(always)]
    pub const fn ipv6(number: u8) -> Self {
        Self(256 + number as u32)
    }

    /// The protocol of a packet with these headers.
    #[inline(always)]
    pub fn of(headers: &Headers) -> Self {
        match (headers.ip_version, headers.ether_type) {
            (4, _) => Self::ipv4(headers.protocol),
            (6, _) => Self::ipv6(headers.protocol),
            (_, ETHER_TYPE_ARP) => Self::ARP,
            _ => Self::OTHER,
        }
    }

    /// The index of its counter, below [`Protocol::COUNT`].
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self.0
    }

    /// The protocol whose counter has this index; `None` from [`Protocol::COUNT`] on.
    pub const fn from_index(index: u32) -> Option<Self> {
        if index < Self::COUNT { Some(Self(index)) } else { None }
    }

    /// The IP version and the protocol or next-header number; `None` for what is not IP.
    pub const fn ip_number(self) -> Option<(u8, u8)> {
        match self.0 {
            0..256 => Some((4, self.0 as u8)),
            256..512 => Some((6, (self.0 - 256) as u8)),
            _ => None,
        }
    }
}
