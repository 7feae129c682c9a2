//! Random policies and packets that meet: few addresses, ports and protocols, so that most packets match several rules.
//! The same seed gives the same ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use enforcer_policy::{
    Content, Ip, Packet, Transport,
    decide::LOOPBACK,
    model::{
        Action, Address, DefaultVerdict, Direction, MalformedVerdict, Mode, Order, Policy, Prefix, Protocol, Range,
        Rule, RuleMode, Set,
    },
};

/// A reproducible stream of choices.
pub struct Dice(Box<dyn Iterator<Item = u64>>);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(Box::new(testbed::spread::numbers(seed)))
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.0.next().unwrap() >> 16) as usize % bound
    }

    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn one_of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }
}

const PORTS: [u16; 8] = [53, 67, 68, 80, 443, 546, 547, 4444];

const PROTOCOLS: [Protocol; 7] = [
    Protocol::TCP,
    Protocol::TCP,
    Protocol::UDP,
    Protocol::UDP,
    Protocol::ICMP,
    Protocol::ICMPV6,
    Protocol(47),
];

/// A policy of rules that this lab enforces.
pub fn policy(dice: &mut Dice) -> Policy {
    let default = |dice: &mut Dice| dice.one_of(&[DefaultVerdict::Allow, DefaultVerdict::Deny]);
    let mut policy = Policy::allow_all("random");
    policy.mode = dice.one_of(&[Mode::Block, Mode::Observe]);
    policy.order = dice.one_of(&[Order::Specific, Order::Specific, Order::Priority]);
    policy.defaults.egress = default(dice);
    policy.defaults.ingress = default(dice);
    policy.defaults.malformed = dice.one_of(&[MalformedVerdict::Drop, MalformedVerdict::Allow]);
    policy.essentials = dice.percent(60);
    let several = Set {
        prefixes: (0..3).map(|_| prefix(dice)).collect(),
        ..Set::default()
    };
    policy.sets.insert("several".to_owned(), several);
    // Few kinds of rules, as people write them: otherwise there are more tuples than a policy may have.
    let kinds: Vec<usize> = (0..=dice.below(5)).map(|_| dice.below(32)).collect();
    policy.rules = (0..dice.below(14))
        .map(|number| {
            let kind = dice.one_of(&kinds);
            rule(dice, kind, number)
        })
        .collect();
    policy
}

/// A rule that names the fields whose bits are set in `kind`.
fn rule(dice: &mut Dice, kind: usize, number: usize) -> Rule {
    let action = dice.one_of(&[Action::Allow, Action::Block]);
    let mut rule = Rule::new(&format!("rule-{number}"), action);
    rule.priority = 98 + dice.below(4) as u32;
    rule.mode = dice.percent(15).then_some(RuleMode::Observe);
    rule.direction = dice.one_of(&[
        None,
        Some(Direction::Egress),
        Some(Direction::Egress),
        Some(Direction::Ingress),
    ]);
    if kind & 1 != 0 {
        rule.source = addresses(dice);
    }
    if kind & 2 != 0 {
        rule.destination = addresses(dice);
    }
    if kind & 4 != 0 {
        rule.source_ports = port_ranges(dice);
    }
    if kind & 8 != 0 {
        rule.destination_ports = port_ranges(dice);
    }
    if kind & 16 != 0 {
        rule.protocol = Some(dice.one_of(&PROTOCOLS));
    }
    rule
}

fn addresses(dice: &mut Dice) -> Vec<Address> {
    if dice.percent(15) {
        return vec![Address::Set("several".to_owned())];
    }
    (0..=dice.below(3)).map(|_| Address::Prefix(prefix(dice))).collect()
}

fn prefix(dice: &mut Dice) -> Prefix {
    let address = address(dice);
    let len = match address {
        IpAddr::V4(_) => dice.one_of(&[32, 32, 31, 24, 8, 0]),
        IpAddr::V6(_) => dice.one_of(&[128, 128, 126, 64, 32, 0]),
    };
    Prefix::new(address, len).unwrap()
}

fn address(dice: &mut Dice) -> IpAddr {
    if dice.percent(60) {
        ipv4(dice).into()
    } else {
        ipv6(dice).into()
    }
}

fn ipv4(dice: &mut Dice) -> Ipv4Addr {
    match dice.below(20) {
        0 => Ipv4Addr::LOCALHOST,
        1 => Ipv4Addr::BROADCAST,
        2..5 => Ipv4Addr::new(198, 51, 100, dice.below(3) as u8),
        _ => Ipv4Addr::new(192, 0, 2, dice.below(6) as u8),
    }
}

fn ipv6(dice: &mut Dice) -> Ipv6Addr {
    match dice.below(20) {
        0 => Ipv6Addr::LOCALHOST,
        1 => Ipv6Addr::UNSPECIFIED,
        2..5 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, dice.below(3) as u16),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, dice.below(6) as u16),
    }
}

fn port_ranges(dice: &mut Dice) -> Vec<Range<u16>> {
    (0..=dice.below(2))
        .map(|_| {
            let port = dice.one_of(&PORTS);
            if dice.percent(20) {
                Range::from(port..=port + dice.below(20) as u16)
            } else {
                Range::single(port)
            }
        })
        .collect()
}

/// A packet, well-formed.
pub fn packet(dice: &mut Dice) -> Packet {
    let (source, destination): (IpAddr, IpAddr) = if dice.percent(60) {
        (ipv4(dice).into(), ipv4(dice).into())
    } else {
        (ipv6(dice).into(), ipv6(dice).into())
    };
    let protocol = dice.one_of(&PROTOCOLS);
    let direction = dice.one_of(&[Direction::Egress, Direction::Egress, Direction::Ingress]);
    let transport = if protocol.has_ports() && !dice.percent(10) {
        let mut port = || {
            let near = dice.one_of(&PORTS);
            near + if dice.percent(20) { dice.below(20) as u16 } else { 0 }
        };
        Transport::Ports {
            source: port(),
            destination: port(),
        }
    } else if protocol.is_icmp() {
        Transport::Icmp {
            kind: dice.one_of(&[8, 128, 130, 133, 135, 137, 138, 143]),
            code: 0,
        }
    } else {
        Transport::None
    };
    Packet {
        direction,
        // This lab tells loopback by the destination.
        interface: if destination.is_loopback() { LOOPBACK } else { "eth0" }.to_owned(),
        source_mac: None,
        content: Content::Ip(Ip {
            source,
            destination,
            protocol,
            transport,
        }),
    }
}
