//! Policies of many rules in the three shapes that `ClassBench` (Taylor, Turner: `ClassBench`: A Packet Classification
//! Benchmark, INFOCOM 2005) found in real filter sets: access lists, firewalls, and chains of `ipchains`; and packets that
//! meet them.
//!
//! Made here, not taken from there: prefixes are nested and crowd in few networks, ports are mostly well-known ones or the
//! ranges that administrators write. Access lists know their destinations, firewalls leave much open, chains are between.

use std::net::Ipv4Addr;

use enforcer_policy::{
    Policy,
    model::{Action, Address, DefaultVerdict, Mode, Prefix, Protocol, Range, Rule},
};

use crate::random::Dice;

/// A shape of filter sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Access lists.
    Acl,
    /// Firewalls.
    Fw,
    /// `ipchains`.
    Ipc,
}

impl Shape {
    pub const ALL: [Self; 3] = [Self::Acl, Self::Fw, Self::Ipc];
}

/// So much of a hundred is of each kind.
type Shares<T> = &'static [(T, usize)];

/// What a shape is made of.
struct Recipe {
    /// Lengths of source prefixes; 0 leaves the source open.
    sources: Shares<u8>,
    destinations: Shares<u8>,
    source_ports: Shares<PortKind>,
    destination_ports: Shares<PortKind>,
    /// The protocol; 255 leaves it open.
    protocols: Shares<u8>,
}

#[derive(Clone, Copy)]
enum PortKind {
    Any,
    WellKnown,
    /// From 1,024 on.
    High,
    Some,
}

const ANY_PROTOCOL: u8 = 255;

use PortKind::{Any, High, Some as Few, WellKnown};

const ACL: Recipe = Recipe {
    sources: &[(0, 20), (8, 2), (16, 10), (20, 5), (24, 25), (28, 8), (32, 30)],
    destinations: &[(0, 4), (16, 6), (24, 30), (27, 5), (30, 5), (32, 50)],
    source_ports: &[(Any, 98), (WellKnown, 2)],
    destination_ports: &[(Any, 15), (WellKnown, 60), (High, 10), (Few, 15)],
    protocols: &[(6, 75), (17, 20), (ANY_PROTOCOL, 5)],
};

const FW: Recipe = Recipe {
    sources: &[(0, 45), (8, 5), (12, 3), (16, 12), (24, 15), (32, 20)],
    destinations: &[(0, 35), (8, 4), (16, 12), (22, 4), (24, 20), (32, 25)],
    source_ports: &[(Any, 70), (WellKnown, 10), (High, 12), (Few, 8)],
    destination_ports: &[(Any, 30), (WellKnown, 45), (High, 10), (Few, 15)],
    protocols: &[(6, 50), (17, 25), (1, 8), (47, 2), (50, 2), (ANY_PROTOCOL, 13)],
};

const IPC: Recipe = Recipe {
    sources: &[(0, 15), (8, 4), (16, 15), (24, 25), (30, 6), (32, 35)],
    destinations: &[(0, 12), (8, 4), (16, 15), (24, 25), (28, 6), (32, 38)],
    source_ports: &[(Any, 70), (WellKnown, 15), (High, 10), (Few, 5)],
    destination_ports: &[(Any, 40), (WellKnown, 35), (High, 10), (Few, 15)],
    protocols: &[(6, 50), (17, 30), (1, 8), (ANY_PROTOCOL, 12)],
};

const WELL_KNOWN: [u16; 24] = [
    20, 21, 22, 23, 25, 53, 69, 80, 110, 123, 143, 161, 389, 443, 445, 514, 993, 1433, 1521, 3306, 3389, 5432, 8080,
    8443,
];

/// A policy of so many rules, for either direction, which allow and block in turns.
pub fn policy(shape: Shape, rules: usize, dice: &mut Dice) -> Policy {
    let recipe = match shape {
        Shape::Acl => &ACL,
        Shape::Fw => &FW,
        Shape::Ipc => &IPC,
    };
    let networks: Vec<u32> = (0..20).map(|_| (dice.number() as u32) & 0xff00_0000).collect();
    let some_ports: Vec<Range<u16>> = (0..60).map(|_| some_ports(dice)).collect();
    let mut policy = Policy::allow_all("shape");
    policy.mode = Mode::Block;
    policy.defaults.ingress = DefaultVerdict::Deny;
    policy.rules = (0..rules)
        .map(|number| {
            let action = if number % 2 == 0 { Action::Allow } else { Action::Block };
            let mut rule = Rule::new(&format!("rule-{number}"), action);
            rule.source = prefix(drawn(recipe.sources, dice), &networks[..8], dice);
            rule.destination = prefix(drawn(recipe.destinations, dice), &networks[8..], dice);
            let protocol = drawn(recipe.protocols, dice);
            if protocol != ANY_PROTOCOL {
                rule.protocol = Some(Protocol(protocol));
            }
            if matches!(protocol, 6 | 17) {
                rule.source_ports = ports(drawn(recipe.source_ports, dice), &some_ports, dice);
                rule.destination_ports = ports(drawn(recipe.destination_ports, dice), &some_ports, dice);
            }
            rule
        })
        .collect();
    // As people order them: what is about little comes first, or it would never match.
    policy.rules.sort_by_key(openness);
    policy
}

/// How much a rule leaves open: bits of addresses, and 16 for each field without a value.
fn openness(rule: &Rule) -> u32 {
    let open_bits = |list: &[Address]| match list.first() {
        Some(Address::Prefix(prefix)) => 32 - u32::from(prefix.len()),
        _ => 32,
    };
    let open_ports = |ports: &[Range<u16>]| ports.first().map_or(16, |range| (range.last - range.first + 1).ilog2());
    open_bits(&rule.source)
        + open_bits(&rule.destination)
        + open_ports(&rule.source_ports)
        + open_ports(&rule.destination_ports)
        + if rule.protocol.is_none() { 16 } else { 0 }
}

/// An Ethernet frame that meets a rule of the policy, or nearly.
pub fn frame(policy: &Policy, dice: &mut Dice) -> Vec<u8> {
    let rule = &policy.rules[dice.below(policy.rules.len())];
    let source = address_in(&rule.source, dice);
    let destination = address_in(&rule.destination, dice);
    let datagram = testbed::packets::ethernet().ipv4(source, destination);
    let ports = [&rule.source_ports, &rule.destination_ports].map(|ports| match ports.first() {
        Some(range) if !dice.percent(5) => range.first + dice.below(usize::from(range.last - range.first) + 1) as u16,
        _ => dice.number() as u16,
    });
    match rule.protocol.map(|protocol| protocol.0) {
        Some(17) => datagram.udp(ports[0], ports[1]).build(),
        Some(1) => datagram.icmp(8, 0, [0; 4]).build(),
        _ => datagram.tcp(ports[0], ports[1]).build(),
    }
}

fn drawn<T: Copy>(shares: Shares<T>, dice: &mut Dice) -> T {
    let mut left = dice.below(shares.iter().map(|(_, share)| share).sum());
    for (kind, share) in shares {
        if left < *share {
            return *kind;
        }
        left -= share;
    }
    unreachable!("it is below the sum of the shares")
}

fn prefix(length: u8, networks: &[u32], dice: &mut Dice) -> Vec<Address> {
    if length == 0 {
        return Vec::new();
    }
    let (second, third, last) = (dice.below(16) as u8, dice.below(64) as u8, dice.below(256) as u8);
    let bits = dice.one_of(networks) | u32::from_be_bytes([0, second.wrapping_mul(37), third * 3, last]);
    let prefix = Prefix::new(Ipv4Addr::from_bits(bits).into(), length);
    vec![Address::Prefix(prefix.expect("no length is above 32"))]
}

fn ports(kind: PortKind, some: &[Range<u16>], dice: &mut Dice) -> Vec<Range<u16>> {
    match kind {
        Any => Vec::new(),
        WellKnown => vec![Range::single(dice.one_of(&WELL_KNOWN))],
        High => vec![Range {
            first: 1024,
            last: u16::MAX,
        }],
        Few => vec![dice.one_of(some)],
    }
}

fn some_ports(dice: &mut Dice) -> Range<u16> {
    let first = dice.below(60_000) as u16;
    let last = first.saturating_add(1 + dice.below(5000) as u16);
    Range { first, last }
}

fn address_in(list: &[Address], dice: &mut Dice) -> Ipv4Addr {
    let any = dice.number() as u32;
    let Some(Address::Prefix(prefix)) = list.first() else {
        return Ipv4Addr::from_bits(any);
    };
    let std::net::IpAddr::V4(first) = prefix.address() else {
        unreachable!("they are all of IPv4")
    };
    let host_mask = u32::MAX.checked_shr(u32::from(prefix.len())).unwrap_or(0);
    Ipv4Addr::from_bits(first.to_bits() | any & host_mask)
}
