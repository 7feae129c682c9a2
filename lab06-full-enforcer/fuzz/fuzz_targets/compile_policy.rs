//! Any policy is refused, or its tables decide as the reference does about packets at the bounds of its rules, in no more
//! steps than the compiler promises (N2, N4, F14).

#![no_main]

#[path = "../../../lab02-xdp-firewall/common/tests/oracle/mod.rs"]
#[allow(dead_code, reason = "it is shared with tests of lab02's parser")]
mod oracle;
#[path = "../../../lab02-xdp-firewall/common/tests/random/mod.rs"]
#[allow(dead_code, reason = "it is shared with tests that draw more")]
mod random;
#[path = "../../tests/reference/mod.rs"]
#[allow(dead_code, reason = "it is shared with tests that draw their policies from it")]
mod reference;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use enforcer_policy::{
    Identity, Policy,
    model::{
        Action, Address, DefaultVerdict, Direction, Mode, Order, Prefix, Protocol, Range, Rule, RuleMode, Set, State,
    },
};
use lab06_full_enforcer_common::{
    classify::{Classifier, steps},
    counters::Outcome,
    decision::{FromEthernet, FromIp, Inspection, Place},
    flow::NoFlows,
    key::{Hook, LOOPBACK, UnknownSocket},
};
use lab06_full_enforcer_compiler::{Compiled, compile};
use libfuzzer_sys::arbitrary::{Arbitrary, Result, Unstructured};
use random::Dice;
use testbed::packets;

/// How many packets each policy meets.
const PACKETS: usize = 64;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(policy) = policy(&mut Unstructured::new(bytes)) else {
        return;
    };
    let Ok(compiled) = compile(&policy) else { return };
    let bounds = Bounds::of(&policy);
    // FNV-1a, so that the same policy meets the same packets.
    let seed = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |seed: u64, byte| {
        (seed ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    let mut dice = Dice::new(seed);
    let mut inspection = Inspection::EMPTY;
    for _ in 0..PACKETS {
        let met = bounds.draw(&mut dice);
        let decided = by_tables(&compiled, &mut inspection, &met);
        assert_eq!(decided, by_reference(&policy, &met), "{met:?}\n{policy:#?}");
        let taken = steps(&compiled, inspection.asked());
        assert!(
            taken <= compiled.worst.deciding,
            "{taken} steps, and {:?} are the most: {met:?}\n{policy:#?}",
            compiled.worst
        );
    }
});

/// A packet, and where it is met.
#[derive(Debug)]
struct Met {
    hook: Hook,
    interface: &'static str,
    source: IpAddr,
    destination: IpAddr,
    protocol: Protocol,
    /// Of protocols with ports the ports, of ICMP type and code.
    upper: [u16; 2],
}

/// The name that it is counted under, and what becomes of it.
type Decided = (String, Outcome);

fn by_tables(compiled: &Compiled, inspection: &mut Inspection, met: &Met) -> Decided {
    let classifier = Classifier {
        config: &compiled.config,
        tables: compiled,
    };
    let place = Place {
        hook: met.hook,
        interface: match met.interface {
            "lo" => LOOPBACK,
            name => compiled.places.interface(name),
        },
        mode: compiled.mode,
    };
    let frame = met.frame();
    match met.hook {
        Hook::TcIngress | Hook::TcEgress | Hook::XdpIngress => {
            let packet = || FromEthernet(&frame[..]);
            inspection.decide(packet, UnknownSocket, || 0, &place, &classifier, &NoFlows);
        }
        _ => {
            let packet = || FromIp(&frame[14..], u16::from_be_bytes([frame[12], frame[13]]));
            inspection.decide(packet, UnknownSocket, || 0, &place, &classifier, &NoFlows);
        }
    }
    let name = match inspection.rule() {
        Some(rule) => compiled.names[rule.id as usize].clone(),
        None => inspection.reason().name().to_owned(),
    };
    (name, inspection.outcome())
}

fn by_reference(policy: &Policy, met: &Met) -> Decided {
    let packet = reference::packet(&met.frame(), met.hook, met.interface);
    let decision = reference::decide(policy, &packet, met.hook, &Identity::UNKNOWN).expect("this hook decides");
    let outcome = match decision.outcome(true) {
        enforcer_policy::Outcome::Pass => Outcome::Passed,
        enforcer_policy::Outcome::ObserveDrop => Outcome::Observed,
        enforcer_policy::Outcome::Drop => Outcome::Dropped,
    };
    (decision.rule_name(policy).to_owned(), outcome)
}

impl Met {
    fn frame(&self) -> Vec<u8> {
        let ethernet = packets::ethernet();
        let packet = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => ethernet.ipv4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => ethernet.ipv6(source, destination),
            _ => unreachable!("both are drawn of one version"),
        };
        let [first, second] = self.upper;
        match self.protocol {
            Protocol::TCP => packet.tcp(first, second).build(),
            Protocol::UDP => packet.udp(first, second).build(),
            _ => packet.icmp(first as u8, second as u8, [0; 4]).build(),
        }
    }
}

/// Values at which some rule begins or ends, and those beside them.
struct Bounds {
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
    ports: Vec<u16>,
    bytes: Vec<u8>,
}

impl Bounds {
    fn of(policy: &Policy) -> Self {
        let mut bounds = Self {
            v4: vec![Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST],
            v6: vec![Ipv6Addr::UNSPECIFIED, Ipv6Addr::from_bits(u128::MAX)],
            ports: vec![0, 67, 68, 546, 547, u16::MAX],
            bytes: vec![0, 8, 128, 133, 143, u8::MAX],
        };
        let prefixes = policy
            .rules
            .iter()
            .flat_map(|rule| rule.source.iter().chain(&rule.destination));
        let prefixes = prefixes.filter_map(|address| match address {
            Address::Prefix(prefix) => Some(prefix),
            Address::Set(_) => None,
        });
        for prefix in prefixes.chain(policy.sets.values().flat_map(|set| &set.prefixes)) {
            bounds.add_prefix(prefix);
        }
        for rule in &policy.rules {
            for range in rule.source_ports.iter().chain(&rule.destination_ports) {
                bounds.ports.extend(around(range.first, range.last, u16::wrapping_add));
            }
            for range in rule.icmp_type.iter().chain(&rule.icmp_code) {
                bounds.bytes.extend(around(range.first, range.last, u8::wrapping_add));
            }
        }
        bounds
    }

    fn add_prefix(&mut self, prefix: &Prefix) {
        match prefix.address() {
            IpAddr::V4(address) => {
                let first = address.to_bits();
                let last = first | u32::MAX.checked_shr(prefix.len().into()).unwrap_or(0);
                let bounds = around(first, last, u32::wrapping_add);
                self.v4.extend(bounds.map(Ipv4Addr::from_bits));
            }
            IpAddr::V6(address) => {
                let first = address.to_bits();
                let last = first | u128::MAX.checked_shr(prefix.len().into()).unwrap_or(0);
                let bounds = around(first, last, u128::wrapping_add);
                self.v6.extend(bounds.map(Ipv6Addr::from_bits));
            }
        }
    }

    fn draw(&self, dice: &mut Dice) -> Met {
        let is_v4 = dice.percent(50);
        let icmp = if is_v4 { Protocol::ICMP } else { Protocol::ICMPV6 };
        let protocol = dice.one_of(&[Protocol::TCP, Protocol::UDP, icmp]);
        let hook = dice.one_of(&HOOKS);
        Met {
            hook,
            // Programs are attached to interfaces other than `lo`.
            interface: match hook {
                Hook::TcIngress | Hook::TcEgress | Hook::XdpIngress => dice.one_of(&["eth0", "eth1"]),
                _ => dice.one_of(&INTERFACES),
            },
            source: self.address(is_v4, dice),
            destination: self.address(is_v4, dice),
            protocol,
            upper: [self.upper(protocol, dice), self.upper(protocol, dice)],
        }
    }

    fn address(&self, is_v4: bool, dice: &mut Dice) -> IpAddr {
        if is_v4 {
            dice.one_of(&self.v4).into()
        } else {
            dice.one_of(&self.v6).into()
        }
    }

    fn upper(&self, protocol: Protocol, dice: &mut Dice) -> u16 {
        if protocol.is_icmp() {
            dice.one_of(&self.bytes).into()
        } else {
            dice.one_of(&self.ports)
        }
    }
}

/// The first and the last value, and those beside them.
fn around<T: Copy>(first: T, last: T, wrapping_add: fn(T, T) -> T) -> [T; 4]
where
    T: From<u8> + std::ops::Not<Output = T>,
{
    let minus_one = !T::from(0);
    [
        wrapping_add(first, minus_one),
        first,
        last,
        wrapping_add(last, T::from(1)),
    ]
}

/// Those that decide about every packet that they see.
const HOOKS: [Hook; 4] = [Hook::TcIngress, Hook::CgroupEgress, Hook::TcEgress, Hook::XdpIngress];
const INTERFACES: [&str; 3] = ["eth0", "eth1", "lo"];

/// A policy of what can be enforced: a few rules, which overlap.
fn policy(bytes: &mut Unstructured<'_>) -> Result<Policy> {
    let mut policy = Policy::allow_all("fuzzed");
    policy.mode = *bytes.choose(&[Mode::Block, Mode::Observe])?;
    policy.order = *bytes.choose(&[Order::Priority, Order::Specific])?;
    policy.essentials = bytes.arbitrary()?;
    policy.defaults.ingress = *bytes.choose(&[DefaultVerdict::Allow, DefaultVerdict::Deny])?;
    policy.defaults.egress = *bytes.choose(&[DefaultVerdict::Allow, DefaultVerdict::Deny])?;
    let set = Set {
        prefixes: some(bytes, 40, prefix)?,
        ..Set::default()
    };
    policy.sets.insert("some".into(), set);
    let mut number = 0;
    policy.rules = some(bytes, 24, |bytes| {
        number += 1;
        rule(number, bytes)
    })?;
    Ok(policy)
}

fn some<T>(
    bytes: &mut Unstructured<'_>,
    most: usize,
    mut make: impl FnMut(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let count = bytes.int_in_range(0..=most)?;
    (0..count).map(|_| make(bytes)).collect()
}

fn rule(number: u32, bytes: &mut Unstructured<'_>) -> Result<Rule> {
    let action = *bytes.choose(&[Action::Allow, Action::Block, Action::Block, Action::Log])?;
    let mut rule = Rule::new(&format!("rule-{number}"), action);
    rule.priority = bytes.int_in_range(0..=3)?;
    rule.mode = *bytes.choose(&[None, None, Some(RuleMode::Observe)])?;
    rule.direction = *bytes.choose(&[None, Some(Direction::Ingress), Some(Direction::Egress)])?;
    rule.source = some(bytes, 3, address)?;
    rule.destination = some(bytes, 3, address)?;
    rule.interface = some(bytes, 1, |bytes| Ok((*bytes.choose(&INTERFACES)?).to_owned()))?;
    rule.state = some(bytes, 1, |bytes| Ok(*bytes.choose(&[State::New, State::Established])?))?;
    match bytes.int_in_range(0..=4)? {
        0 => {
            rule.protocol = Some(*bytes.choose(&[Protocol::TCP, Protocol::UDP])?);
            rule.source_ports = some(bytes, 2, |bytes| range(bytes))?;
            rule.destination_ports = some(bytes, 3, |bytes| range(bytes))?;
        }
        1 => rule.destination_ports = some(bytes, 2, |bytes| range(bytes))?,
        2 => {
            rule.protocol = Some(*bytes.choose(&[Protocol::ICMP, Protocol::ICMPV6])?);
            rule.icmp_type = some(bytes, 2, |bytes| range(bytes))?;
            rule.icmp_code = some(bytes, 2, |bytes| range(bytes))?;
        }
        3 => rule.protocol = Some(Protocol(bytes.arbitrary()?)),
        _ => {}
    }
    Ok(rule)
}

fn address(bytes: &mut Unstructured<'_>) -> Result<Address> {
    if bytes.ratio(1, 4)? {
        return Ok(Address::Set("some".into()));
    }
    Ok(Address::Prefix(prefix(bytes)?))
}

fn prefix(bytes: &mut Unstructured<'_>) -> Result<Prefix> {
    let (address, longest): (IpAddr, u8) = match bytes.int_in_range(0..=3)? {
        0 => (Ipv4Addr::from_bits(bytes.arbitrary()?).into(), 32),
        1 => (Ipv4Addr::from([192, 0, 2, bytes.arbitrary()?]).into(), 32),
        2 => (Ipv6Addr::from_bits(bytes.arbitrary()?).into(), 128),
        _ => (
            Ipv6Addr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, bytes.arbitrary()?]).into(),
            128,
        ),
    };
    let len = bytes.int_in_range(0..=longest)?;
    Ok(Prefix::new(address, len).expect("it is not too long"))
}

fn range<T: Copy + Ord + for<'a> Arbitrary<'a>>(bytes: &mut Unstructured<'_>) -> Result<Range<T>> {
    let (one, other): (T, T) = (bytes.arbitrary()?, bytes.arbitrary()?);
    Ok(Range {
        first: one.min(other),
        last: one.max(other),
    })
}
