//! System calls that are refused before there is a packet (A2), against a naive reading of the rules, and against what becomes
//! of the packets.

use std::net::{IpAddr, Ipv4Addr};

use enforcer_policy::{
    Content, Flow, Identity, Ip, Outcome, Packet, Policy, Transport, decide_at_hook,
    model::{Action, DefaultVerdict, Direction, Mode, Prefix, Protocol, Rule, State},
};
use lab04_cgroup_policy_common::destination::Destination;
use lab06_full_enforcer::compile::compile;
use lab06_full_enforcer_common::{call::is_perhaps_dhcp, classify::Classifier, counters::Reason, table::has};

use crate::{
    random::Dice,
    reference::{self, CGROUPS, UIDS},
};

/// A destination, as rules have it and as the programs do.
#[derive(Clone, Copy, Debug)]
struct Goal {
    address: IpAddr,
    port: u16,
    protocol: Protocol,
}

impl Goal {
    fn random(dice: &mut Dice) -> Self {
        let last = dice.below(8) as u8;
        let address = match dice.below(4) {
            0 => [198, 51, dice.below(256) as u8, dice.below(3) as u8].into(),
            1 => [192, 0, 2, last].into(),
            2 => [0x2001, 0xdb8, 0, last.into(), 0, 0, 0, dice.below(8) as u16].into(),
            _ => [u16::MAX; 8].into(),
        };
        let port = dice.one_of(&[1, 22, 53, 67, 80, 443, 547, 1022, 5000, 5500, 5999, 40_000, 65_535]);
        Self {
            address,
            port,
            protocol: dice.one_of(&[Protocol::TCP, Protocol::UDP]),
        }
    }

    fn destination(self) -> Destination {
        match self.address {
            IpAddr::V4(address) => Destination::ipv4(address.octets(), self.port, self.protocol.0),
            IpAddr::V6(address) => Destination::ipv6(address.octets(), self.port, self.protocol.0),
        }
    }

    /// One of the packets that may follow.
    fn packet(self, dice: &mut Dice) -> Packet {
        let source = match self.address {
            IpAddr::V4(_) => [192, 0, 2, dice.below(8) as u8].into(),
            IpAddr::V6(_) => [0x2001, 0xdb8, 0, dice.below(8) as u16, 0, 0, 0, dice.below(8) as u16].into(),
        };
        Packet {
            direction: Direction::Egress,
            interface: dice.one_of(&["eth0", "eth1", "eth2"]).into(),
            source_mac: None,
            content: Content::Ip(Ip {
                source,
                destination: self.address,
                protocol: self.protocol,
                transport: Transport::Ports {
                    source: dice.one_of(&[1, 22, 53, 67, 68, 443, 546, 5001, 40_000, 65_535]),
                    destination: self.port,
                },
            }),
        }
    }
}

/// Who refuses a call, by asking one rule after the other: the rule's name or `default`; `None` if nobody does.
fn naive(policy: &Policy, goal: Goal) -> Option<String> {
    for index in policy.order() {
        let rule = &policy.rules[index];
        if !may_match(policy, rule, goal) {
            continue;
        }
        let always_matches = rule.source.is_empty()
            && rule.source_ports.is_empty()
            && rule.interface.is_empty()
            && !rule.names_identity();
        match (rule.action == Action::Block && rule.mode.is_none(), always_matches) {
            (false, _) => return None,
            (true, true) => return Some(rule.name.clone()),
            (true, false) => {}
        }
    }
    (policy.defaults.egress == DefaultVerdict::Deny).then(|| "default".to_owned())
}

fn may_match(policy: &Policy, rule: &Rule, goal: Goal) -> bool {
    let is_in = |prefix: &Prefix| prefix.contains(goal.address);
    rule.direction != Some(Direction::Ingress)
        && rule.mac.is_empty()
        && (rule.state.is_empty() || rule.state.contains(&State::New))
        && rule.icmp_type.is_empty()
        && rule.icmp_code.is_empty()
        && rule.protocol.is_none_or(|protocol| protocol == goal.protocol)
        && (rule.destination_ports.is_empty()
            || rule
                .destination_ports
                .iter()
                .any(|range| (range.first..=range.last).contains(&goal.port)))
        && (rule.destination.is_empty()
            || rule
                .destination
                .iter()
                .flat_map(|address| policy.prefixes(address))
                .any(is_in))
}

/// What follows would be dropped, whatever it looks like and whoever sends it, and no rule would have counted it.
fn assert_packets_are_dropped(policy: &Policy, goal: Goal, dice: &mut Dice) {
    for _ in 0..10 {
        let identity = Identity {
            cgroup: Some(dice.one_of(&CGROUPS).trim_start_matches('/').to_owned()),
            uid: Some(dice.one_of(&UIDS)),
            gid: Some(dice.one_of(&UIDS)),
        };
        let packet = goal.packet(dice);
        let decision = decide_at_hook(policy, &packet, &Flow::New, &identity);
        assert_eq!(
            decision.outcome(true),
            Outcome::Drop,
            "{packet:?} {identity:?}\n{policy:#?}"
        );
        assert!(decision.logged_by.is_empty(), "{packet:?}\n{policy:#?}");
    }
}

/// Where no flows are followed.
#[test]
fn calls_are_refused_as_by_the_rules_one_after_the_other() {
    let (mut by_rule, mut by_default, mut left, mut too_entangled) = (0, 0, 0, 0);
    for seed in 0..1000 {
        let mut dice = Dice::new(seed);
        let mut policy = reference::policy(&mut dice);
        policy.mode = Mode::Block;
        reference::ask_for_sockets(&mut policy, &mut dice, true);
        let compiled = compile(&policy).unwrap();
        let classifier = Classifier {
            config: &compiled.config,
            tables: &compiled,
        };
        for _ in 0..50 {
            let goal = Goal::random(&mut dice);
            let refused = classifier.refuses(&goal.destination());
            let by = refused.map(|refused| match refused.reason {
                Reason::Rule => compiled.names[refused.rule.id as usize].clone(),
                reason => reason.name().to_owned(),
            });
            let expected = naive(&policy, goal);
            if expected.is_some() && compiled.config.has & has::AT_CALL == 0 {
                too_entangled += 1;
                continue;
            }
            assert_eq!(by, expected, "seed {seed}: {goal:?}\n{policy:#?}");
            match by.as_deref() {
                Some("default") => by_default += 1,
                Some(_) => by_rule += 1,
                None => left += 1,
            }
            let is_left_by_the_program = policy.essentials && is_perhaps_dhcp(&goal.destination());
            if by.is_some() && !is_left_by_the_program {
                assert_packets_are_dropped(&policy, goal, &mut dice);
            }
        }
    }
    let seen = [by_rule, by_default, left];
    assert!(seen.iter().all(|count| *count > 1000), "{seen:?}");
    assert!(too_entangled * 20 < by_rule + by_default, "{too_entangled} of {seen:?}");
}

/// A datagram may belong to a flow that has begun otherwise, and no rule would be asked.
#[test]
fn where_flows_are_followed_no_datagram_is_refused_as_a_call() {
    let mut policy = Policy::allow_all("closed");
    policy.mode = Mode::Block;
    policy.defaults.egress = DefaultVerdict::Deny;
    let mut compiled = compile(&policy).unwrap();
    for (buckets, refused) in [(0, [true, true]), (64, [true, false])] {
        compiled.config.flows.established_buckets = buckets;
        let classifier = Classifier {
            config: &compiled.config,
            tables: &compiled,
        };
        let is_refused = |protocol| {
            let goal = Goal {
                address: [192, 0, 2, 1].into(),
                port: 514,
                protocol,
            };
            classifier.refuses(&goal.destination()).is_some()
        };
        assert_eq!(
            [Protocol::TCP, Protocol::UDP].map(is_refused),
            refused,
            "{buckets} buckets"
        );
    }
}

/// Rules that differ in what they leave open in so many ways that calls are left alone.
#[test]
fn where_it_would_take_too_many_tables_no_call_is_refused() {
    let prefix = |length| Prefix::new(Ipv4Addr::new(10, 0, 0, 0).into(), length).unwrap();
    let mut policy = Policy::allow_all("nested");
    policy.mode = Mode::Block;
    policy.defaults.egress = DefaultVerdict::Deny;
    let goal = Goal {
        address: [192, 0, 2, 1].into(),
        port: 443,
        protocol: Protocol::TCP,
    };
    for (rules, is_refused) in [(10, true), (30, false)] {
        policy.rules = (1..=rules)
            .map(|number| {
                let mut rule = Rule::new(&format!("rule-{number}"), Action::Allow);
                rule.destination = vec![enforcer_policy::model::Address::Prefix(prefix(number))];
                rule.destination_ports = vec![enforcer_policy::model::Range {
                    first: 100 - u16::from(number),
                    last: 100,
                }];
                rule
            })
            .collect();
        let compiled = compile(&policy).unwrap();
        let classifier = Classifier {
            config: &compiled.config,
            tables: &compiled,
        };
        assert_eq!(
            classifier.refuses(&goal.destination()).is_some(),
            is_refused,
            "{rules} rules"
        );
    }
}
