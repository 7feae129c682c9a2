//! What the firewall shall do, in user space's terms, and its translation into what the kernel reads.

use lab02_xdp_firewall_common::{
    bucket::Limit,
    firewall::{Config, Fragments},
    ports::{self, Use},
    prefix_set::build::{Content, Prefix},
};
use thiserror::Error;

use crate::value::{Mac, PortRange, Rate};

/// What the firewall shall do.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Sources that are dropped.
    pub block: Vec<Prefix>,
    /// Sources that pass, unless something blocks them.
    pub allow: Vec<Prefix>,
    /// Destination ports that are dropped.
    pub block_ports: Vec<PortRange>,
    /// Source ports that are dropped.
    pub block_source_ports: Vec<PortRange>,
    /// Destination ports that pass, unless something blocks the packet.
    pub allow_ports: Vec<PortRange>,
    /// Senders that are dropped.
    pub block_macs: Vec<Mac>,
    /// What each source may send, and how much of it at once.
    pub limit: Option<(Rate, u64)>,
    /// Whether what nothing matched is dropped.
    pub drop_by_default: bool,
    /// Whether malformed frames are dropped.
    pub drop_malformed: bool,
    /// What is done with fragments.
    pub fragments: Fragments,
}

/// A policy does not fit into the tables. Nothing was changed.
#[derive(Debug, Error)]
#[error("{entries} prefixes do not fit into tables made for {max_entries}; start it with --max-entries {entries}")]
pub struct TooLarge {
    /// How many prefixes the policy has.
    pub entries: usize,
    /// How many the tables were made for.
    pub max_entries: usize,
}

/// A policy as the kernel reads it.
pub struct Compiled {
    /// All but the tables' content; its sets and its ports start at the tables' beginning.
    pub config: Config,
    /// Of the tables of prefixes.
    pub content: Content,
    /// Of the table of ports, a word a port; empty if no rule names a port.
    pub ports: Vec<u64>,
}

/// How many entries each table has for one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Nodes of IPv4 trees.
    pub nodes_v4: u32,
    /// Nodes of IPv6 trees.
    pub nodes_v6: u32,
    /// Buckets of IPv4 addresses.
    pub buckets_v4: u32,
    /// Buckets of IPv6 addresses.
    pub buckets_v6: u32,
}

impl Capacities {
    /// What `entries` prefixes need at the most, however they are spread over the families, lengths and two sets.
    pub fn for_entries(entries: u32) -> Self {
        // Two bounds a prefix; a level above holds a sixteenth, or an eighth, of the nodes below it; and each level of
        // two sets may have one node that is not full.
        let bounds = entries * 2;
        let nodes = |per_node: u32, children: u32| bounds.div_ceil(per_node) * children / (children - 1) + 32;
        // Half full, rounded up to a power of two twice at the worst, and doubled where addresses crowd together.
        let buckets = |places: u32| (bounds.div_ceil(places)).next_power_of_two() * 4;
        Self {
            nodes_v4: nodes(15, 16),
            nodes_v6: nodes(7, 8),
            buckets_v4: buckets(8),
            buckets_v6: buckets(4),
        }
    }

    fn hold(&self, content: &Content) -> bool {
        content.nodes_v4.len() <= self.nodes_v4 as usize
            && content.nodes_v6.len() <= self.nodes_v6 as usize
            && content.buckets_v4.len() <= self.buckets_v4 as usize
            && content.buckets_v6.len() <= self.buckets_v6 as usize
    }
}

impl Policy {
    /// No rule: everything passes but what is malformed.
    pub const NO_RULES: Self = Self {
        block: Vec::new(),
        allow: Vec::new(),
        block_ports: Vec::new(),
        block_source_ports: Vec::new(),
        allow_ports: Vec::new(),
        block_macs: Vec::new(),
        limit: None,
        drop_by_default: false,
        drop_malformed: true,
        fragments: Fragments::Pass,
    };

    /// Translates it. `key` is that of the hash which gives each source its bucket; `seed` is the tables'.
    pub fn compile(&self, max_entries: u32, key: [u64; 2], seed: u64) -> Result<Compiled, TooLarge> {
        let entries = self.block.len() + self.allow.len();
        let max_entries = max_entries as usize;
        let too_large = || TooLarge { entries, max_entries };
        if entries > max_entries {
            return Err(too_large());
        }
        let mut content = Content::default();
        let (block, allow) = (content.add(&self.block, seed), content.add(&self.allow, seed));
        if !Capacities::for_entries(max_entries as u32).hold(&content) {
            return Err(too_large());
        }
        let (ports, port_bits) = self.compile_ports();
        let (limits, limit) = match self.limit {
            None => (Config::UNLIMITED, Limit::default()),
            Some((Rate::Packets(rate), burst)) => (Config::PACKETS, Limit::new(rate, burst)),
            Some((Rate::Bytes(rate), burst)) => (Config::BYTES, Limit::new(rate, burst)),
        };
        let config = Config {
            block,
            allow,
            limit,
            bucket_key: key,
            port_bits,
            first_port: 0,
            limits,
            drop_by_default: u8::from(self.drop_by_default),
            drop_malformed: u8::from(self.drop_malformed),
            fragments: self.fragments as u8,
            has_macs: u8::from(!self.block_macs.is_empty()),
            padding: [0; 3],
        };
        Ok(Compiled { config, content, ports })
    }

    fn compile_ports(&self) -> (Vec<u64>, u32) {
        let uses = [
            (Use::BlockDestination, &self.block_ports),
            (Use::BlockSource, &self.block_source_ports),
            (Use::AllowDestination, &self.allow_ports),
        ];
        if uses.iter().all(|(_, ranges)| ranges.is_empty()) {
            return (Vec::new(), 0);
        }
        let mut words = vec![0; 1 << 16];
        let mut all_bits = 0;
        for (port_use, ranges) in uses {
            for range in ranges {
                let bits = range
                    .classes
                    .iter()
                    .fold(0, |bits, class| bits | ports::bit(port_use, *class));
                all_bits |= bits;
                for port in range.ports.clone() {
                    words[usize::from(port)] |= u64::from(bits);
                }
            }
        }
        (words, all_bits)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;

    fn policy(block: Vec<Prefix>, allow: Vec<Prefix>) -> Policy {
        Policy {
            block,
            allow,
            ..Policy::NO_RULES
        }
    }

    /// Prefixes of which no two can be joined.
    fn apart(count: u32, is_v6: bool, len_from_longest: u8) -> Vec<Prefix> {
        let address = |index: u32| -> IpAddr {
            if is_v6 {
                Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(index) << 8).into()
            } else {
                Ipv4Addr::from_bits(0x0b00_0000 | index << 4).into()
            }
        };
        let len = if is_v6 { 128 } else { 32 } - len_from_longest;
        (0..count)
            .filter_map(|index| Prefix::new(address(index), len))
            .collect()
    }

    #[test]
    fn as_many_prefixes_as_were_asked_for_fit_however_they_are_spread() {
        for max_entries in [1, 2, 7, 8, 100, 4096, 4097, 20_000] {
            for is_v6 in [false, true] {
                for len_from_longest in [0, 1] {
                    for blocked in [max_entries, max_entries / 2, 0] {
                        let mut block = apart(max_entries, is_v6, len_from_longest);
                        let allow = block.split_off(blocked as usize);
                        for seed in 0..3 {
                            let compiled = policy(block.clone(), allow.clone()).compile(max_entries, [1, 2], seed);
                            assert!(
                                compiled.is_ok(),
                                "{blocked} and {} of {max_entries}, IPv6: {is_v6}, seed {seed}",
                                allow.len()
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn one_more_is_refused_with_the_number_to_ask_for() {
        let error = policy(apart(9, false, 0), apart(2, true, 0))
            .compile(10, [1, 2], 3)
            .err();
        assert_eq!(
            error.map(|error| error.to_string()).as_deref(),
            Some("11 prefixes do not fit into tables made for 10; start it with --max-entries 11")
        );
    }
}
