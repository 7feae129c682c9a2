//! Rates: what a rule lets pass of the packets that it matches, and who shares it.

use lab01_count_packets_common::headers::Headers;
use lab02_xdp_firewall_common::{bucket::Limit, firewall::source_hash};
use lab03_tc_egress_common::flow::key::mix;

use crate::key::UpperKey;

/// A rate, the burst above it, and who shares them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Tokens a second, and how many there can be at once.
    pub limit: Limit,
    /// A [`Unit`].
    pub unit: u8,
    /// A [`Per`].
    pub per: u8,
    /// Fills up to a multiple of eight bytes.
    pub padding: [u8; 6],
}

const _: () = assert!(size_of::<RateLimit>() == 24);

/// What a token is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A packet, as the hook sees it: what is cut into several later is one.
    Packets = 0,
    /// A byte of the IP packet.
    Bytes = 1,
}

/// Who shares a bucket of tokens.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// All that the rule matches.
    Rule = 0,
    /// What has one source address, or one /64 of IPv6.
    Source = 1,
    /// What goes to and fro between two ends; without ports, between two hosts.
    Flow = 2,
}

/// How many buckets sources and flows share, by a keyed hash. Two that have the same one share it.
pub const HASHED_BUCKETS: u32 = 65_536;

/// The index of a rule's own bucket: they come behind those that are shared.
#[inline(always)]
pub const fn of_rule(id: u32) -> u32 {
    HASHED_BUCKETS + id
}

impl RateLimit {
    /// How long the tokens of a packet of so many bytes take to come, in nanoseconds.
    #[inline(always)]
    pub fn cost_ns(&self, bytes: u64) -> u64 {
        let tokens = if self.unit == Unit::Bytes as u8 { bytes } else { 1 };
        let most = Limit::MAX_TOKENS;
        self.limit.cost_ns(if tokens < most { tokens } else { most })
    }

    /// How far ahead a bucket may be, in nanoseconds: for a packet that costs more than a full bucket, until it is full.
    /// What segmentation offload cuts later can be longer than a burst that suits its pieces, and would never pass.
    #[inline(always)]
    pub fn burst_ns(&self, cost_ns: u64) -> u64 {
        if cost_ns > self.limit.burst_ns {
            cost_ns
        } else {
            self.limit.burst_ns
        }
    }

    /// The index of the bucket of a packet with these hashes that meets the rule of this id.
    #[inline(always)]
    pub fn bucket(&self, id: u32, hashes: Hashes) -> u32 {
        let hash = match self.per {
            per if per == Per::Source as u8 => hashes.source,
            per if per == Per::Flow as u8 => hashes.flow,
            _ => return of_rule(id),
        };
        // Each rule has its own for the same source.
        hash.wrapping_add(id.wrapping_mul(0x9e37_79b1)) % HASHED_BUCKETS
    }
}

/// Keyed hashes of a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hashes {
    /// Of its source.
    pub source: u32,
    /// Of who speaks with whom, the same in both directions.
    pub flow: u32,
}

impl Hashes {
    /// Of a packet with these headers.
    #[inline(always)]
    pub fn of(headers: &Headers, upper: &UpperKey, key: [u64; 2]) -> Self {
        Self {
            source: source_hash(headers, key),
            flow: flow_hash(headers, upper, key),
        }
    }
}

#[inline(always)]
fn flow_hash(headers: &Headers, upper: &UpperKey, [first, second]: [u64; 2]) -> u32 {
    let end = |[high, low]: [u64; 2], port: u16| mix(mix(mix(first, high), low), u64::from(port));
    let source = end(headers.source.words(), upper.source_port);
    let destination = end(headers.destination.words(), upper.destination_port);
    let protocol = u64::from(upper.protocol) | u64::from(headers.ip_version) << 8;
    (mix(second ^ protocol, source.wrapping_add(destination)) >> 32) as u32
}

// SAFETY: `#[repr(C)]`, integers with the padding spelt out, any bits are valid.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for RateLimit {}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::HashSet;

    use lab01_count_packets_common::headers::Address;

    use super::*;

    const KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

    fn packet(source: [u8; 4], destination: [u8; 4], ports: (u16, u16)) -> (Headers, UpperKey) {
        let headers = Headers {
            ip_version: 4,
            source: Address::from_ipv4(source),
            destination: Address::from_ipv4(destination),
            ..Headers::EMPTY
        };
        let upper = UpperKey {
            source_port: ports.0,
            destination_port: ports.1,
            protocol: 6,
            has_ports: 1,
            ..UpperKey::EMPTY
        };
        (headers, upper)
    }

    #[test]
    fn both_directions_of_a_flow_have_one_bucket_and_flows_have_many() {
        let limit = RateLimit {
            per: Per::Flow as u8,
            ..RateLimit::default()
        };
        let bucket = |(headers, upper): (Headers, UpperKey)| limit.bucket(7, Hashes::of(&headers, &upper, KEY));
        let mut seen = HashSet::new();
        for host in 0..=255 {
            for port in 0..4 {
                let there = packet([10, 0, 0, host], [192, 0, 2, 1], (40_000 + port, 80));
                let back = packet([192, 0, 2, 1], [10, 0, 0, host], (80, 40_000 + port));
                assert_eq!(bucket(there), bucket(back));
                seen.insert(bucket(there));
            }
        }
        // Of 1024 thrown into 65,536 by chance, eight meet another one.
        assert!(seen.len() > 1000, "{}", seen.len());
    }

    #[test]
    fn rules_have_buckets_of_their_own_for_the_same_source() {
        let limit = RateLimit {
            per: Per::Source as u8,
            ..RateLimit::default()
        };
        let (headers, upper) = packet([10, 0, 0, 1], [10, 0, 0, 2], (1, 2));
        let hashes = Hashes::of(&headers, &upper, KEY);
        let buckets: HashSet<u32> = (0..1000).map(|id| limit.bucket(id, hashes)).collect();
        assert_eq!(buckets.len(), 1000);
        assert!(buckets.iter().all(|bucket| *bucket < HASHED_BUCKETS));
        assert_eq!(RateLimit::default().bucket(5, hashes), HASHED_BUCKETS + 5);
    }

    #[test]
    fn what_costs_more_than_a_full_bucket_passes_when_it_is_full() {
        let limit = RateLimit {
            limit: Limit::new(1_000_000, 1500),
            unit: Unit::Bytes as u8,
            ..RateLimit::default()
        };
        assert_eq!(limit.cost_ns(1000), 1_000_000);
        assert_eq!(limit.burst_ns(limit.cost_ns(1000)), 1_500_000);
        assert_eq!(limit.burst_ns(limit.cost_ns(64_000)), 64_000_000);
        assert_eq!(limit.cost_ns(u64::MAX), 70_000_000);
    }
}
