//! Packets as the reference of policies sees them, and random policies that they meet.

use std::net::{IpAddr, Ipv4Addr};

use enforcer_policy::{
    Content, Decision, Flow, Identity, Ip, Packet, Policy, Transport, decide_at_hook, decide_at_socket,
    model::{
        Action, Address, DefaultVerdict, Direction, Mac, MalformedVerdict, Mode, Order, Per, Prefix, Protocol, Range,
        Rate, RateLimit, Rule, RuleMode, Set, State,
    },
};
use lab01_count_packets_common::headers::Headers;
use lab02_xdp_firewall_common::transport::Part;
use lab06_full_enforcer_common::key::Hook;

use crate::{
    oracle,
    random::{Dice, frames},
};

/// A frame as the reference sees it, the packet of this interface. Read by lab02's oracle, not by the parsers under test.
pub fn packet(frame: &[u8], hook: Hook, interface: &str) -> Packet {
    let ether_type = u16::from_be_bytes([frame[12], frame[13]]);
    let content = match hook {
        // A `cgroup_skb` program sees no Ethernet header, and so none of its tags: what is not IP by its first EtherType
        // is not IP.
        Hook::CgroupEgress | Hook::CgroupIngress if !matches!(ether_type, 0x0800 | 0x86dd) => Content::NotIp,
        _ => content(frame),
    };
    Packet {
        direction: match hook {
            Hook::TcIngress | Hook::XdpIngress | Hook::CgroupIngress => Direction::Ingress,
            _ => Direction::Egress,
        },
        interface: interface.into(),
        source_mac: match hook {
            Hook::TcIngress | Hook::XdpIngress => frame[6..].first_chunk().copied().map(Mac),
            _ => None,
        },
        content,
    }
}

fn content(frame: &[u8]) -> Content {
    let reading = match oracle::reading(frame) {
        Err(_) => return Content::Malformed,
        Ok(None) => return Content::NotIp,
        Ok(Some(reading)) => reading,
    };
    let headers = Headers::parse(frame).expect("the oracle has accepted it");
    let (source, destination): (IpAddr, IpAddr) = if headers.ip_version == 4 {
        (headers.source.ipv4().into(), headers.destination.ipv4().into())
    } else {
        (headers.source.ipv6().into(), headers.destination.ipv6().into())
    };
    let protocol = Protocol(reading.upper.protocol);
    let transport = match reading.upper.part {
        Part::Later => Transport::None,
        _ if protocol.has_ports() => Transport::Ports {
            source: reading.transport.source_port,
            destination: reading.transport.destination_port,
        },
        _ if protocol.is_icmp() => Transport::Icmp {
            kind: reading.transport.icmp_type,
            code: reading.transport.icmp_code,
        },
        _ => Transport::None,
    };
    Content::Ip(Ip {
        source,
        destination,
        protocol,
        transport,
    })
}

/// A frame of 14 bytes at least, with what the enforcer looks at more often than chance would have it.
pub fn frame(dice: &mut Dice) -> Vec<u8> {
    let mut frame = if dice.percent(12) {
        essential(dice)
    } else {
        frames::random(dice)
    };
    frame[6..12].copy_from_slice(&mac(dice).0);
    frame
}

/// One of four.
pub fn mac(dice: &mut Dice) -> Mac {
    Mac([2, 0, 0, 0, 0, dice.below(4) as u8])
}

/// What a hook says about a packet, of a socket of this identity; `None` if it does not decide.
pub fn decide(policy: &Policy, packet: &Packet, hook: Hook, identity: &Identity) -> Option<Decision> {
    match hook {
        Hook::CgroupIngress => decide_at_socket(policy, packet, &Flow::New, identity),
        Hook::TcEgress => Some(decide_at_hook(policy, packet, &Flow::New, &Identity::UNKNOWN)),
        Hook::TcIngress | Hook::XdpIngress | Hook::CgroupEgress => {
            Some(decide_at_hook(policy, packet, &Flow::New, identity))
        }
        hook => panic!("{hook:?} sees no packets"),
    }
}

/// Whether a hook is ever asked about a frame: sockets of IP get no others.
pub fn is_asked(hook: Hook, frame: &[u8]) -> bool {
    hook != Hook::CgroupIngress || matches!([frame[12], frame[13]], [0x08, 0x00] | [0x86, 0xdd])
}

/// The interfaces that rules and packets have.
pub const INTERFACES: [&str; 3] = ["lo", "eth0", "eth1"];

/// What is essential, or nearly.
fn essential(dice: &mut Dice) -> Vec<u8> {
    use testbed::packets::ethernet;
    let v4 = || ethernet().ipv4("192.0.2.1", "192.0.2.2");
    let v6 = || ethernet().ipv6("2001:db8::1", "2001:db8::2");
    let ports = dice.one_of(&[(68, 67), (67, 68), (546, 547), (547, 546), (67, 67), (68, 68)]);
    match dice.below(4) {
        0 => v4().udp(ports.0, ports.1).build(),
        1 => v6().udp(ports.0, ports.1).build(),
        2 => v4().tcp(ports.0, ports.1).build(),
        _ => v6()
            .icmp(
                dice.one_of(&[129, 130, 131, 132, 133, 135, 137, 138, 143, 144]),
                0,
                [0; 4],
            )
            .build(),
    }
}

/// A policy of what this version enforces.
pub fn policy(dice: &mut Dice) -> Policy {
    let mut policy = Policy::allow_all("random");
    policy.mode = if dice.percent(80) { Mode::Block } else { Mode::Observe };
    policy.order = if dice.percent(70) {
        Order::Priority
    } else {
        Order::Specific
    };
    policy.essentials = dice.percent(70);
    policy.defaults.ingress = default(dice);
    policy.defaults.egress = default(dice);
    policy.defaults.malformed = if dice.percent(70) {
        MalformedVerdict::Drop
    } else {
        MalformedVerdict::Allow
    };
    for name in ["near", "far"] {
        let set = Set {
            prefixes: dice.some_of(12, prefix),
            ..Set::default()
        };
        policy.sets.insert(name.into(), set);
    }
    let most = dice.one_of(&[1, 3, 8, 20, 63]);
    let mut number = 0;
    policy.rules = dice.some_of(most, |dice| {
        number += 1;
        rule(&format!("rule-{number}"), dice)
    });
    policy
}

fn default(dice: &mut Dice) -> DefaultVerdict {
    if dice.percent(50) {
        DefaultVerdict::Allow
    } else {
        DefaultVerdict::Deny
    }
}

fn rule(name: &str, dice: &mut Dice) -> Rule {
    let action = match dice.below(10) {
        0..3 => Action::Allow,
        // So high that nothing exceeds it, which the reference takes for granted.
        3 => Action::RateLimit(RateLimit {
            rate: Rate::Packets(1_000_000_000),
            burst: 1_000_000,
            per: dice.one_of(&[Per::Rule, Per::Source, Per::Flow]),
        }),
        4..8 => Action::Block,
        _ => Action::Log,
    };
    let mut rule = Rule::new(name, action);
    rule.priority = dice.below(4) as u32;
    rule.mode = (dice.percent(15)).then_some(RuleMode::Observe);
    rule.direction = match dice.below(3) {
        0 => Some(Direction::Ingress),
        1 => Some(Direction::Egress),
        _ => None,
    };
    // Some lists are long enough to be looked up by membership.
    let most = if dice.percent(10) { 60 } else { 3 };
    if dice.percent(35) {
        rule.source = dice.some_of(most, address);
    }
    if dice.percent(35) {
        rule.destination = dice.some_of(most, address);
    }
    if dice.percent(20) {
        rule.interface = dice.some_of(2, |dice| dice.one_of(&INTERFACES).to_owned());
    }
    if dice.percent(10) {
        rule.direction = Some(Direction::Ingress);
        rule.mac = dice.some_of(2, mac);
    }
    if dice.percent(15) {
        rule.state = dice.some_of(2, |dice| {
            dice.one_of(&[
                State::New,
                State::New,
                State::Established,
                State::Related,
                State::Invalid,
            ])
        });
    }
    match dice.below(10) {
        0..5 => {
            rule.protocol = Some(dice.one_of(&[Protocol::TCP, Protocol::UDP, Protocol::UDP, Protocol::SCTP]));
            if dice.percent(60) {
                rule.destination_ports = dice.some_of(3, ports);
            }
            if dice.percent(25) {
                rule.source_ports = dice.some_of(2, ports);
            }
        }
        5 => {
            rule.protocol = Some(dice.one_of(&[Protocol::ICMP, Protocol::ICMPV6, Protocol::ICMPV6]));
            if dice.percent(60) {
                rule.icmp_type = dice.some_of(2, bytes);
            }
            if dice.percent(20) {
                rule.icmp_code = dice.some_of(2, bytes);
            }
        }
        6 => rule.protocol = Some(Protocol(dice.number() as u8)),
        7 => rule.destination_ports = dice.some_of(2, ports),
        _ => {}
    }
    rule
}

/// Has some of the rules ask for the user; and for the group and the cgroup if they may.
pub fn ask_for_sockets(policy: &mut Policy, dice: &mut Dice, with_more: bool) {
    for rule in policy.rules.iter_mut().filter(|rule| rule.mac.is_empty()) {
        // What comes in is only blocked by them.
        let direction = if rule.action == Action::Block {
            rule.direction
        } else {
            Some(Direction::Egress)
        };
        if dice.percent(20) {
            rule.direction = direction;
            rule.uid = dice.some_of(2, ids);
        }
        if with_more && dice.percent(10) {
            rule.direction = direction;
            rule.gid = dice.some_of(2, ids);
        }
        if with_more && dice.percent(20) {
            rule.direction = direction;
            rule.cgroup = dice.some_of(2, |dice| dice.one_of(&CGROUPS).to_owned());
        }
    }
}

fn ids(dice: &mut Dice) -> Range<u32> {
    let first = dice.one_of(&UIDS);
    Range {
        first,
        last: dice.one_of(&[first, first.saturating_add(1), u32::MAX]),
    }
}

/// The cgroups that rules name and sockets are in.
pub const CGROUPS: [&str; 6] = ["/", "a", "a/b", "a/b/c/d", "a-b", "e/b"];

/// The users and groups that rules name and sockets are of.
pub const UIDS: [u32; 5] = [0, 1000, 1001, 65_534, u32::MAX];

fn address(dice: &mut Dice) -> Address {
    match dice.below(6) {
        0 => Address::Set("near".into()),
        1 => Address::Set("far".into()),
        _ => Address::Prefix(prefix(dice)),
    }
}

/// Around what random frames have.
pub fn prefix(dice: &mut Dice) -> Prefix {
    let last = dice.below(8) as u8;
    let (address, longest): (IpAddr, u8) = match dice.below(6) {
        0 => ([198, 51, dice.below(256) as u8, dice.below(3) as u8].into(), 32),
        1 => ([255, 255, 255, 255].into(), 32),
        2 => ([0, 0, 0, 0].into(), 32),
        3 => ([192, 0, 2, last].into(), 32),
        4 => (
            [0x2001, 0xdb8, 0, last.into(), 0, 0, 0, dice.below(8) as u16].into(),
            128,
        ),
        _ => ([u16::MAX; 8].into(), 128),
    };
    let any = dice.below(usize::from(longest) + 1) as u8;
    let length = dice.one_of(&[
        longest,
        longest,
        longest - 1,
        longest - 3,
        longest / 2,
        longest / 4,
        any,
    ]);
    Prefix::new(address, length).expect("the length is one")
}

fn ports(dice: &mut Dice) -> Range<u16> {
    let port: u16 = dice.one_of(&[1, 22, 53, 67, 68, 80, 443, 546, 5000, 5001, 5999, 40_000, 65_535]);
    let last = dice.one_of(&[port, port, port.saturating_add(999), u16::MAX]);
    Range { first: port, last }
}

fn bytes(dice: &mut Dice) -> Range<u8> {
    let first: u8 = dice.one_of(&[0, 3, 8, 128, 130, 133, 135, 143]);
    let last = dice.one_of(&[first, first, first.saturating_add(4), u8::MAX]);
    Range { first, last }
}

/// A policy that blocks so many prefixes of eight addresses, sixteen apart, from [`source`] 0 on.
pub fn without_eight_of_every_sixteen(prefixes: u32) -> Policy {
    let prefix = |number| Prefix::new(source(number * 16).into(), 29).expect("the length is one");
    let set = Set {
        prefixes: (0..prefixes).map(prefix).collect(),
        ..Set::default()
    };
    let mut rule = Rule::new("no-many", Action::Block);
    rule.source = vec![Address::Set("many".into())];
    let mut policy = Policy::allow_all("large");
    policy.sets.insert("many".into(), set);
    policy.rules = vec![rule];
    policy.mode = Mode::Block;
    policy
}

/// An address, by its number.
pub fn source(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 + number)
}
