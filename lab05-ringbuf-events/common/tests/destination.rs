//! What is wanted of destinations is judged as a list of rules, gone through one by one, judges it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lab01_count_packets_common::headers::Address;
use lab02_xdp_firewall_common::{
    firewall::{Config, FragmentKey, Reason, Tables, Verdict},
    ports::{self, Class, Use},
    prefix_set::{
        Arrays,
        build::{Content, Prefix},
        exact::{BucketV4, BucketV6},
        tree::{NodeV4, NodeV6},
    },
};
use lab05_ringbuf_events_common::{destination::judge, tuple::FiveTuple};
use proptest::prelude::*;

struct Slices {
    content: Content,
    ports: Vec<u64>,
}

impl Arrays for Slices {
    fn node_v4(&self, index: u32) -> Option<&NodeV4> {
        self.content.nodes_v4.get(index as usize)
    }

    fn node_v6(&self, index: u32) -> Option<&NodeV6> {
        self.content.nodes_v6.get(index as usize)
    }

    fn bucket_v4(&self, index: u32) -> Option<&BucketV4> {
        self.content.buckets_v4.get(index as usize)
    }

    fn bucket_v6(&self, index: u32) -> Option<&BucketV6> {
        self.content.buckets_v6.get(index as usize)
    }
}

impl Tables for Slices {
    fn is_blocked_mac(&self, _: &[u8; 6]) -> bool {
        false
    }

    fn port_word(&self, index: u32) -> Option<u32> {
        self.ports.get(index as usize).map(|word| *word as u32)
    }

    fn take_tokens(&self, _: u32, _: u64, _: u64) -> bool {
        true
    }

    fn verdict_of_first_fragment(&self, _: &FragmentKey) -> Option<Verdict> {
        None
    }

    fn keep_verdict_of_first_fragment(&self, _: &FragmentKey, _: Verdict) {}
}

/// Few addresses and few ports, so that rules are hit.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0_u8..4).prop_map(|last| Ipv4Addr::new(192, 0, 2, last).into()),
        (0_u16..4).prop_map(|last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into()),
    ]
}

fn prefix() -> impl Strategy<Value = Prefix> {
    (address(), 0_u8..3).prop_map(|(address, shorter)| {
        let full = if address.is_ipv4() { 32 } else { 128 };
        Prefix::new(address, full - shorter).unwrap()
    })
}

proptest! {
    #[test]
    fn the_tables_judge_as_the_rules_do(
        block in prop::collection::vec(prefix(), 0..4),
        allow in prop::collection::vec(prefix(), 0..4),
        block_ports in prop::collection::vec((0_u16..4, prop::sample::select(Class::ALL.to_vec())), 0..4),
        allow_ports in prop::collection::vec((0_u16..4, prop::sample::select(Class::ALL.to_vec())), 0..4),
        drop_by_default in any::<bool>(),
        to in address(),
        port in 0_u16..4,
        protocol in prop::sample::select(vec![6_u8, 17, 1]),
    ) {
        let mut slices = Slices { content: Content::default(), ports: vec![0; 1 << 16] };
        let mut bits = 0;
        for (use_, rules) in [(Use::BlockDestination, &block_ports), (Use::AllowDestination, &allow_ports)] {
            for (port, class) in rules {
                slices.ports[usize::from(*port)] |= u64::from(ports::bit(use_, *class));
                bits |= ports::bit(use_, *class);
            }
        }
        let config = Config {
            block: slices.content.add(&block, 7),
            allow: slices.content.add(&allow, 7),
            port_bits: bits,
            drop_by_default: u8::from(drop_by_default),
            ..Config::default()
        };
        let (destination, ip_version) = match to {
            IpAddr::V4(to) => (Address::from_ipv4(to.octets()), 4),
            IpAddr::V6(to) => (Address::from_ipv6(to.octets()), 6),
        };
        let tuple = FiveTuple { destination, destination_port: port, protocol, ip_version, ..FiveTuple::EMPTY };
        let is_in = |prefixes: &[Prefix]| prefixes.iter().any(|prefix| prefix.contains(to));
        let names_port = |rules: &[(u16, Class)]| {
            matches!(protocol, 6 | 17) && rules.iter().any(|(number, class)| (*number, *class) == (port, Class::of(protocol)))
        };
        let expected = if is_in(&block) {
            Reason::Address
        } else if names_port(&block_ports) {
            Reason::Port
        } else if names_port(&allow_ports) || is_in(&allow) {
            Reason::Allowed
        } else if drop_by_default {
            Reason::DroppedByDefault
        } else {
            Reason::PassedByDefault
        };
        prop_assert_eq!(judge(&tuple, &slices, &config), expected);
    }
}
