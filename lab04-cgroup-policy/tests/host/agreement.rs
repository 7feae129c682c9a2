//! Random policies and packets.

use std::{collections::BTreeMap, env};

use enforcer_policy::{Content, DecidedBy, Flow, Identity, Packet, Transport, Verdict, decide};
use lab04_cgroup_policy::compile::{Refusal, compile};
use lab04_cgroup_policy_common::{classifier::Decision, destination::Destination};

use crate::{
    random::{self, Dice},
    reference::{expected, rule_number},
    tables::{Host, direction, facts},
};

/// How many packets meet each policy.
const PACKETS: usize = 20;

fn pairs() -> usize {
    env::var("LAB04_PAIRS").map_or(20_000, |pairs| pairs.parse().expect("LAB04_PAIRS is a number"))
}

#[test]
fn every_packet_is_decided_as_by_the_reference() {
    let mut dice = Dice::new(4);
    let mut by: BTreeMap<DecidedBy, usize> = BTreeMap::new();
    let (mut compared, mut refused) = (0, 0);
    while compared < pairs() {
        let policy = random::policy(&mut dice);
        let host = match compile(&policy, 10_000) {
            Ok(compiled) => Host::new(compiled),
            Err(refusals) => {
                let too_many = |refusal: &Refusal| matches!(refusal, Refusal::Tuples { .. });
                assert!(refusals.iter().all(too_many), "{refusals:?}");
                refused += 1;
                continue;
            }
        };
        for _ in 0..PACKETS {
            let packet = random::packet(&mut dice);
            let reference = decide(&policy, &packet, &Flow::New, &Identity::UNKNOWN);
            let decision = facts(&packet).decide(&host, &host.compiled.config, direction(&packet));
            assert_eq!(
                (
                    decision.rule,
                    decision.blocks(),
                    decision.blocks() && decision.observes()
                ),
                expected(&policy, &reference),
                "{packet:?}\n{policy:#?}"
            );
            *by.entry(reference.by).or_default() += 1;
            compared += 1;
        }
    }
    let rules: usize = by
        .iter()
        .filter(|(by, _)| matches!(by, DecidedBy::Rule(_)))
        .map(|(_, count)| count)
        .sum();
    for (what, count) in [
        ("a rule", rules),
        ("the default", by[&DecidedBy::Default]),
        ("essentials", by[&DecidedBy::Essential]),
    ] {
        assert!(count > compared / 50, "{what} decided only {count} of {compared} times");
    }
    assert!(refused < compared / PACKETS, "{refused} policies were refused");
}

#[test]
fn what_is_refused_at_the_system_call_would_be_blocked_by_the_same_rule_from_every_source() {
    let mut dice = Dice::new(5);
    let (mut refused, mut left) = (0, 0);
    for _ in 0..pairs() / PACKETS {
        let policy = random::policy(&mut dice);
        let Ok(compiled) = compile(&policy, 10_000) else {
            continue;
        };
        let host = Host::new(compiled);
        for _ in 0..PACKETS {
            let packet = random::packet(&mut dice);
            let Some((destination, alike)) = sent(&packet, &mut dice) else {
                continue;
            };
            let Some(Decision { rule, .. }) = destination.decide(&host, &host.compiled.config) else {
                left += 1;
                continue;
            };
            refused += 1;
            for packet in alike {
                let reference = decide(&policy, &packet, &Flow::New, &Identity::UNKNOWN);
                assert_eq!(reference.verdict, Verdict::Block, "{packet:?}\n{policy:#?}");
                assert_eq!(rule_number(reference.by), rule, "{packet:?}\n{policy:#?}");
                assert!(!expected(&policy, &reference).2, "{packet:?}\n{policy:#?}");
            }
        }
    }
    assert!(
        refused > 100 && left > 100,
        "{refused} refused, {left} left to the packet"
    );
}

/// What a system call that leads to this packet was asked for, and other packets that it may have led to.
fn sent(packet: &Packet, dice: &mut Dice) -> Option<(Destination, Vec<Packet>)> {
    let Content::Ip(ip) = &packet.content else { return None };
    let Transport::Ports { destination: port, .. } = ip.transport else {
        return None;
    };
    let protocol = ip.protocol.0;
    let destination = match ip.destination {
        std::net::IpAddr::V4(address) => Destination::ipv4(address.octets(), port, protocol),
        std::net::IpAddr::V6(address) => Destination::ipv6(address.octets(), port, protocol),
    };
    let mut alike = Vec::new();
    while alike.len() < 8 {
        let mut other = random::packet(dice);
        let Content::Ip(other_ip) = &mut other.content else {
            continue;
        };
        if other_ip.source.is_ipv4() != ip.source.is_ipv4() {
            continue;
        }
        let source_port = match other_ip.transport {
            Transport::Ports { source, .. } => source,
            _ => 1,
        };
        other_ip.destination = ip.destination;
        other_ip.protocol = ip.protocol;
        other_ip.transport = Transport::Ports {
            source: source_port,
            destination: port,
        };
        other.direction = enforcer_policy::model::Direction::Egress;
        other.interface.clone_from(&packet.interface);
        alike.push(other);
    }
    Some((destination, alike))
}
