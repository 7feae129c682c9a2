//! Rules, as a user would list them.

use std::net::IpAddr;

use lab02_xdp_firewall_common::{firewall::Fragments, ports::Class, prefix_set::build::Prefix};

use super::{Dice, PORTS, ipv4, ipv6, mac};

/// What the firewall shall do.
#[derive(Clone, Debug)]
pub struct Rules {
    pub block: Vec<Prefix>,
    pub allow: Vec<Prefix>,
    pub block_ports: Vec<Ports>,
    pub block_source_ports: Vec<Ports>,
    pub allow_ports: Vec<Ports>,
    pub block_macs: Vec<[u8; 6]>,
    pub limit: Option<Limit>,
    pub drop_by_default: bool,
    pub drop_malformed: bool,
    pub fragments: Fragments,
}

/// A range of ports.
#[derive(Clone, Debug)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
    pub classes: Vec<Class>,
}

/// A rate limit.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// Whether bytes are counted, not packets.
    pub of_bytes: bool,
    /// A divisor of 10^9, so that a token takes whole nanoseconds to come.
    pub per_second: u64,
    pub burst: u64,
}

impl Rules {
    /// Most of them have little of each; one in forty has more single addresses than fit into the tree's way.
    pub fn random(dice: &mut Dice) -> Self {
        let mut block = dice.some_of(4, prefix);
        if dice.below(40) == 0 {
            block.extend((0..5000).map(|_| Prefix::single(address(dice))));
        }
        Self {
            block,
            allow: dice.some_of(2, prefix),
            block_ports: dice.some_of(2, ports),
            block_source_ports: dice.some_of(1, ports),
            allow_ports: dice.some_of(2, ports),
            block_macs: dice.some_of(1, mac),
            limit: dice.percent(40).then(|| Limit::random(dice)),
            drop_by_default: dice.percent(50),
            drop_malformed: dice.percent(50),
            fragments: dice.one_of(&[Fragments::Pass, Fragments::Drop, Fragments::Track]),
        }
    }
}

impl Limit {
    fn random(dice: &mut Dice) -> Self {
        let of_bytes = dice.percent(50);
        Self {
            of_bytes,
            per_second: dice.one_of(&[1, 10, 1000, 1_000_000]),
            burst: dice.one_of(if of_bytes {
                &[40, 100, 200, 1000]
            } else {
                &[1, 2, 3, 10]
            }),
        }
    }
}

fn prefix(dice: &mut Dice) -> Prefix {
    let address = address(dice);
    let len = match (address, dice.below(6)) {
        // Everything is in it, or half of everything.
        (_, 0) if dice.percent(20) => dice.below(2),
        (IpAddr::V4(_), 0..3) => 32,
        (IpAddr::V4(_), _) => 8 + dice.below(25),
        (IpAddr::V6(_), 0..3) => 128,
        (IpAddr::V6(_), _) => 32 + dice.below(97),
    };
    Prefix::new(address, len as u8).expect("it is no longer than the address")
}

fn address(dice: &mut Dice) -> IpAddr {
    if dice.percent(50) {
        ipv4(dice).into()
    } else {
        ipv6(dice).into()
    }
}

fn ports(dice: &mut Dice) -> Ports {
    let (one, other) = (dice.one_of(&PORTS), dice.one_of(&PORTS));
    let (first, last) = if dice.percent(60) {
        (one, one)
    } else {
        (one.min(other), one.max(other))
    };
    let classes = match dice.below(3) {
        0 => Class::ALL.to_vec(),
        1 => vec![Class::Tcp],
        _ => vec![Class::Udp],
    };
    Ports { first, last, classes }
}
