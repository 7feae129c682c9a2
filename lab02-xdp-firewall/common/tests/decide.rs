//! The decision against the most naive firewall that does the same (F2, F14, M3, P2, P6): every rule in turn, ports as
//! ranges, buckets that count tokens, headers as `oracle` reads them.

#[expect(dead_code, reason = "it is shared with tests of the parser, which compare with it")]
mod oracle;
mod random;
mod slices;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use lab01_count_packets_common::headers::{Address, Headers};
use lab02_xdp_firewall_common::{
    bucket,
    firewall::{Config, Fragments, Inspection, Reason, Verdict, source_hash},
    ports::{self, Class, Use},
    prefix_set::build::{Content, Prefix},
    transport::{Malformed, Part},
};
use random::{
    Dice, frames,
    rules::{Limit, Ports, Rules},
};
use slices::Slices;
use testbed::packets::{self, Mutate as _, Packet};

/// The firewall under test, its tables made of slices.
struct Firewall {
    config: Config,
    slices: Slices,
    inspection: Inspection,
}

impl Firewall {
    fn new(rules: &Rules) -> Self {
        let mut content = Content::default();
        let (block, allow) = (content.add(&rules.block, 1), content.add(&rules.allow, 2));
        let (words, port_bits) = words_of(rules);
        let (limits, limit) = match rules.limit {
            None => (Config::UNLIMITED, bucket::Limit::default()),
            Some(limit) => (
                if limit.of_bytes { Config::BYTES } else { Config::PACKETS },
                bucket::Limit::new(limit.per_second, limit.burst),
            ),
        };
        let config = Config {
            block,
            allow,
            limit,
            bucket_key: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210],
            port_bits,
            first_port: 0,
            limits,
            drop_by_default: rules.drop_by_default.into(),
            drop_malformed: rules.drop_malformed.into(),
            fragments: rules.fragments as u8,
            has_macs: (!rules.block_macs.is_empty()).into(),
            padding: [0; 3],
        };
        let slices = Slices {
            content,
            ports: words,
            macs: rules.block_macs.iter().copied().collect(),
            ..Slices::default()
        };
        Self {
            config,
            slices,
            inspection: Inspection::EMPTY,
        }
    }

    fn decide(&mut self, frame: &[u8], now_ns: u64) -> (Reason, Option<Malformed>) {
        self.slices.now_ns.set(now_ns);
        self.inspection.decide(frame, &self.slices, &self.config);
        (self.inspection.reason(), self.inspection.malformed())
    }
}

fn words_of(rules: &Rules) -> (Vec<u64>, u32) {
    let mut words = vec![0; 1 << 16];
    let mut all = 0;
    for (port_use, ranges) in [
        (Use::BlockDestination, &rules.block_ports),
        (Use::BlockSource, &rules.block_source_ports),
        (Use::AllowDestination, &rules.allow_ports),
    ] {
        for Ports { first, last, classes } in ranges {
            let bits: u32 = classes.iter().map(|class| ports::bit(port_use, *class)).sum();
            all |= bits;
            words[usize::from(*first)..=usize::from(*last)]
                .iter_mut()
                .for_each(|word| *word |= u64::from(bits));
        }
    }
    (words, all)
}

/// The same, as everybody would write it first.
#[derive(Default)]
struct Naive {
    tokens: HashMap<[u8; 9], (u128, u64)>,
    first_fragments: HashMap<(IpAddr, IpAddr, u32, u8), Verdict>,
}

/// What the naive firewall looks at.
struct View {
    source: IpAddr,
    destination: IpAddr,
    ip_len: usize,
    oracle: oracle::Reading,
}

impl View {
    fn of(frame: &[u8], oracle: oracle::Reading) -> Self {
        let tags = frame[12..]
            .chunks(4)
            .take_while(|tag| matches!(tag[..2], [0x81, 0] | [0x88, 0xa8]));
        let packet = &frame[14 + 4 * tags.count()..];
        let bytes = |from: usize, to: usize| packet[from..to].to_vec();
        let length = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
        if packet[0] >> 4 == 4 {
            let address = |from| IpAddr::from(<[u8; 4]>::try_from(bytes(from, from + 4)).unwrap());
            Self {
                source: address(12),
                destination: address(16),
                ip_len: length(2),
                oracle,
            }
        } else {
            let address = |from| IpAddr::from(<[u8; 16]>::try_from(bytes(from, from + 16)).unwrap());
            let jumbogram = length(4) == 0 && packet[6] == 0;
            Self {
                source: address(8),
                destination: address(24),
                ip_len: 40 + if jumbogram { 65_536 } else { length(4) },
                oracle,
            }
        }
    }

    fn is_in(&self, prefixes: &[Prefix]) -> bool {
        prefixes.iter().any(|prefix| {
            let (one, other, bits) = match (prefix.address(), self.source) {
                (IpAddr::V4(one), IpAddr::V4(other)) => (one.to_bits().into(), other.to_bits().into(), 32),
                (IpAddr::V6(one), IpAddr::V6(other)) => (one.to_bits(), other.to_bits(), 128),
                _ => return false,
            };
            let host_bits = bits - u32::from(prefix.len());
            let without_host = |address: u128| address.checked_shr(host_bits).unwrap_or(0);
            without_host(one) == without_host(other)
        })
    }

    fn class(&self) -> Class {
        match self.oracle.upper.protocol {
            6 => Class::Tcp,
            17 => Class::Udp,
            _ => Class::Other,
        }
    }

    fn matches(&self, ranges: &[Ports], port: u16) -> bool {
        self.oracle.transport.has_ports
            && ranges
                .iter()
                .any(|range| (range.first..=range.last).contains(&port) && range.classes.contains(&self.class()))
    }

    fn to(&self, ranges: &[Ports]) -> bool {
        self.matches(ranges, self.oracle.transport.destination_port)
    }

    fn from(&self, ranges: &[Ports]) -> bool {
        self.matches(ranges, self.oracle.transport.source_port)
    }

    /// Who has a bucket: an IPv4 address, or a /64.
    fn bucket(&self) -> [u8; 9] {
        let mut key = [0; 9];
        match self.source {
            IpAddr::V4(source) => key[1..5].copy_from_slice(&source.octets()),
            IpAddr::V6(source) => {
                key[0] = 6;
                key[1..].copy_from_slice(&source.octets()[..8]);
            }
        }
        key
    }
}

impl Naive {
    fn decide(&mut self, rules: &Rules, frame: &[u8], now_ns: u64) -> (Reason, Option<Malformed>) {
        if frame.len() >= 12 && rules.block_macs.iter().any(|mac| frame[6..12] == *mac) {
            return (Reason::Mac, None);
        }
        match oracle::reading(frame) {
            Err(malformed) if rules.drop_malformed => (Reason::Malformed, Some(malformed)),
            Err(malformed) => (Reason::MalformedPassed, Some(malformed)),
            Ok(None) => (Reason::NotIp, None),
            Ok(Some(reading)) => (self.judge(rules, &View::of(frame, reading), now_ns), None),
        }
    }

    fn judge(&mut self, rules: &Rules, view: &View, now_ns: u64) -> Reason {
        if view.is_in(&rules.block) {
            return Reason::Address;
        }
        let upper = view.oracle.upper;
        let protocol = if view.source.is_ipv4() { upper.protocol } else { 0 };
        let key = (view.source, view.destination, upper.fragment_id, protocol);
        match (upper.part, rules.fragments) {
            (Part::Whole, _) | (_, Fragments::Pass) => self.judge_whole(rules, view, now_ns),
            (_, Fragments::Drop) => Reason::Fragment,
            (Part::First, Fragments::Track) => {
                let reason = self.judge_whole(rules, view, now_ns);
                self.first_fragments.insert(key, reason.verdict());
                reason
            }
            (Part::Later, Fragments::Track) => match self.first_fragments.get(&key) {
                Some(Verdict::Pass) => Reason::FragmentFollows,
                _ => Reason::Fragment,
            },
        }
    }

    fn judge_whole(&mut self, rules: &Rules, view: &View, now_ns: u64) -> Reason {
        let icmp_type = view.oracle.transport.icmp_type;
        let is_neighbour_discovery =
            view.source.is_ipv6() && view.oracle.upper.protocol == 58 && (133..=137).contains(&icmp_type);
        if view.to(&rules.block_ports) {
            Reason::Port
        } else if view.from(&rules.block_source_ports) {
            Reason::SourcePort
        } else if view.to(&rules.allow_ports) || view.is_in(&rules.allow) {
            Reason::Allowed
        } else if rules.limit.is_some_and(|limit| !self.take(limit, view, now_ns)) {
            Reason::RateLimit
        } else if !rules.drop_by_default {
            Reason::PassedByDefault
        } else if is_neighbour_discovery {
            Reason::NeighbourDiscovery
        } else {
            Reason::DroppedByDefault
        }
    }

    fn take(&mut self, limit: Limit, view: &View, now_ns: u64) -> bool {
        const SECOND_NS: u128 = 1_000_000_000;
        let full = u128::from(limit.burst) * SECOND_NS;
        let (tokens, at_ns) = self.tokens.entry(view.bucket()).or_insert((full, now_ns));
        *tokens = (*tokens + u128::from(now_ns - *at_ns) * u128::from(limit.per_second)).min(full);
        *at_ns = now_ns;
        let cost = SECOND_NS * if limit.of_bytes { view.ip_len as u128 } else { 1 };
        let enough = *tokens >= cost;
        if enough {
            *tokens -= cost;
        }
        enough
    }
}

#[test]
fn a_hundred_and_twenty_thousand_decisions_are_those_of_a_naive_firewall() {
    let mut dice = Dice::new(1);
    let mut seen: BTreeMap<Reason, u32> = BTreeMap::new();
    let mut now_ns = 1_000_000_000;
    for _ in 0..1200 {
        let rules = Rules::random(&mut dice);
        let (mut firewall, mut naive) = (Firewall::new(&rules), Naive::default());
        for _ in 0..100 {
            now_ns += dice.below(2_000_000) as u64;
            let frame = frames::random(&mut dice);
            let decided = firewall.decide(&frame, now_ns);
            assert_eq!(
                decided,
                naive.decide(&rules, &frame, now_ns),
                "{frame:02x?}\n{rules:#?}"
            );
            *seen.entry(decided.0).or_default() += 1;
        }
    }
    for reason in Reason::ALL {
        assert!(
            seen.get(&reason).is_some_and(|count| *count >= 100),
            "{reason:?} is too rare: {seen:?}"
        );
    }
}

const NO_RULES: Rules = Rules {
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

fn port(port: u16) -> Vec<Ports> {
    vec![Ports {
        first: port,
        last: port,
        classes: Class::ALL.to_vec(),
    }]
}

#[test]
fn reasons_come_in_their_order() {
    let everybody = vec![Prefix::new("0.0.0.0".parse().unwrap(), 0).unwrap()];
    let nothing = Limit {
        of_bytes: false,
        per_second: 1,
        burst: 0,
    };
    // Every rule matches the packet; each step takes away the one that decided.
    let all = Rules {
        block: everybody.clone(),
        allow: everybody,
        block_ports: port(80),
        block_source_ports: port(1000),
        allow_ports: port(80),
        block_macs: vec![[2, 0, 0, 0, 0, 1]],
        limit: Some(nothing),
        drop_by_default: true,
        drop_malformed: true,
        fragments: Fragments::Drop,
    };
    let packet = packets::ethernet().ipv4("192.0.2.7", "192.0.2.1").tcp(1000, 80).build();
    let malformed = packet.clone().truncate_to(40);
    let fragment = packets::ethernet()
        .ipv4("192.0.2.7", "192.0.2.1")
        .first_fragment(1)
        .tcp(1000, 80)
        .build();
    let mut rules = all;
    let reason = |rules: &Rules, frame: &[u8]| Firewall::new(rules).decide(frame, 1).0;
    assert_eq!(reason(&rules, &packet), Reason::Mac);
    assert_eq!(reason(&rules, &malformed), Reason::Mac);
    rules.block_macs.clear();
    assert_eq!(reason(&rules, &malformed), Reason::Malformed);
    assert_eq!(reason(&rules, &fragment), Reason::Address);
    rules.block.clear();
    assert_eq!(reason(&rules, &fragment), Reason::Fragment);
    assert_eq!(reason(&rules, &packet), Reason::Port);
    rules.block_ports.clear();
    assert_eq!(reason(&rules, &packet), Reason::SourcePort);
    rules.block_source_ports.clear();
    assert_eq!(reason(&rules, &packet), Reason::Allowed);
    rules.allow_ports.clear();
    assert_eq!(reason(&rules, &packet), Reason::Allowed);
    rules.allow.clear();
    assert_eq!(reason(&rules, &packet), Reason::RateLimit);
    rules.limit = None;
    assert_eq!(reason(&rules, &packet), Reason::DroppedByDefault);
    rules.drop_by_default = false;
    assert_eq!(reason(&rules, &packet), Reason::PassedByDefault);
}

fn passing(rules: &Rules, packets: &[Packet]) -> Vec<bool> {
    let mut firewall = Firewall::new(rules);
    let verdicts = packets
        .iter()
        .map(|packet| firewall.decide(&packet.build(), 1).0.verdict());
    verdicts.map(|verdict| verdict == Verdict::Pass).collect()
}

#[test]
fn tracked_fragments_share_the_verdict_of_their_first_one() {
    let rules = Rules {
        block_ports: port(53),
        fragments: Fragments::Track,
        ..NO_RULES
    };
    let v4 = || packets::ethernet().ipv4("192.0.2.7", "192.0.2.1");
    let v6 = || packets::ethernet().ipv6("2001:db8::7", "2001:db8::1");
    let first = |id, port| v4().first_fragment(id).udp(1000, port);
    let later = |id| v4().later_fragment(id, 64).protocol(17).payload([0; 8]);
    assert_eq!(
        passing(&rules, &[first(1, 80), later(1), later(2)]),
        [true, true, false]
    );
    assert_eq!(passing(&rules, &[first(1, 53), later(1)]), [false, false]);
    assert_eq!(
        passing(&rules, &[later(1), first(1, 80), later(1)]),
        [false, true, true]
    );
    // The last first fragment counts.
    assert_eq!(
        passing(&rules, &[first(1, 80), first(1, 53), later(1)]),
        [true, false, false]
    );
    // RFC 791: of another protocol it is another packet. RFC 8200: what a later fragment says follows means nothing.
    assert_eq!(
        passing(&rules, &[first(1, 80), v4().later_fragment(1, 64).protocol(253)]),
        [true, false]
    );
    let others = [
        v6().first_fragment(1).udp(1000, 80),
        v6().later_fragment(1, 64).protocol(253),
    ];
    assert_eq!(passing(&rules, &others), [true, true]);
    // Another sender's packet with the same identification is another packet.
    let other = packets::ethernet()
        .ipv4("192.0.2.8", "192.0.2.1")
        .later_fragment(1, 64)
        .protocol(17);
    assert_eq!(passing(&rules, &[first(1, 80), other]), [true, false]);
}

#[test]
fn a_jumbogram_is_not_cheap() {
    let rules = Rules {
        limit: Some(Limit {
            of_bytes: true,
            per_second: 1000,
            burst: 65_576,
        }),
        ..NO_RULES
    };
    // It says that it has no bytes, and Linux delivers what is in it (`ip6_rcv_core` in net/ipv6/ip6_input.c).
    let frame = packets::ethernet()
        .ipv6("2001:db8::7", "2001:db8::1")
        .hop_by_hop()
        .udp(1000, 53)
        .payload([0; 1000])
        .build()
        .with_bytes(14 + 4, &[0, 0]);
    let mut firewall = Firewall::new(&rules);
    let reasons = [1, 2, 3].map(|now_ns| firewall.decide(&frame, now_ns).0);
    assert_eq!(reasons, [Reason::PassedByDefault, Reason::RateLimit, Reason::RateLimit]);
}

#[test]
fn a_source_of_either_version_has_a_bucket_of_its_own_whatever_the_key() {
    let v4 = |address: [u8; 4]| Headers {
        ip_version: 4,
        source: Address::from_ipv4(address),
        ..Headers::EMPTY
    };
    let v6 = |address: [u8; 16]| Headers {
        ip_version: 6,
        source: Address::from_ipv6(address),
        ..Headers::EMPTY
    };
    let mut dice = Dice::new(5);
    // Every network that differs from the address in one bit, and the one that does not.
    for difference in (0..64).map(|bit| 1 << bit).chain([0]) {
        let mut shared = 0;
        for _ in 0..1000 {
            let key = [dice.number(), dice.number()];
            let address = u128::from(dice.number() as u32) << 96;
            let network = address ^ difference << 64;
            let octets = (address >> 96) as u32;
            let bucket = |headers| source_hash(&headers, key) % 65_536;
            shared += u32::from(bucket(v4(octets.to_be_bytes())) == bucket(v6(network.to_be_bytes())));
            // A host commands a whole /64.
            let neighbour = network | u128::from(dice.number());
            assert_eq!(bucket(v6(neighbour.to_be_bytes())), bucket(v6(network.to_be_bytes())));
        }
        assert!(
            shared <= 5,
            "{shared} of 1000 keys give both the same bucket: {difference:#x}"
        );
    }
}
