//! The programs in the kernel against the reference of policies (N2, A3, Z2, P1, P6, F14).

use std::collections::BTreeMap;

use enforcer_policy::{Identity, Outcome, Policy};
use lab06_full_enforcer::names::Names;
use lab06_full_enforcer_common::key::Hook;
use testbed::Host;

use crate::{
    program::{Programs, hooks, packets},
    random::Dice,
    reference,
    shapes::{self, Shape},
};

testbed::listed_tests![
    twenty_thousand_frames_that_come_in_are_decided_as_by_the_reference,
    twenty_thousand_packets_for_sockets_are_decided_as_by_the_reference,
    twenty_thousand_frames_at_xdp_are_decided_as_by_the_reference,
    twenty_thousand_packets_that_go_out_are_decided_as_by_the_reference,
    twenty_thousand_frames_that_leave_are_decided_as_by_the_reference,
    two_thousand_rules_of_each_shape_decide_as_by_the_reference,
    every_packet_is_counted_with_the_length_of_its_ip_packet,
];

fn twenty_thousand_frames_that_come_in_are_decided_as_by_the_reference() {
    compare(Hook::TcIngress, 1);
}

fn twenty_thousand_packets_for_sockets_are_decided_as_by_the_reference() {
    compare(Hook::CgroupIngress, 6);
}

fn twenty_thousand_frames_at_xdp_are_decided_as_by_the_reference() {
    compare(Hook::XdpIngress, 5);
}

fn twenty_thousand_packets_that_go_out_are_decided_as_by_the_reference() {
    compare(Hook::CgroupEgress, 2);
}

fn twenty_thousand_frames_that_leave_are_decided_as_by_the_reference() {
    compare(Hook::TcEgress, 4);
}

/// By name, what has passed, was observed, was dropped.
type Counts = BTreeMap<String, [u64; 3]>;

fn compare(hook: Hook, seed: u64) {
    const POLICIES: u32 = 200;
    const FRAMES_EACH: u32 = 100;
    let here = Host::new("here").unwrap();
    let link = here.join(&Host::new("there").unwrap()).unwrap();
    let interface = link.left.index;
    assert!(interface > 1, "lo is another one");
    let interfaces = [("lo", 1), ("eth0", interface)].map(|(name, index)| (name.to_owned(), index));
    let places = Names {
        interfaces: interfaces.into(),
        ..Names::default()
    };
    here.run(|| {
        let mut dice = Dice::new(seed);
        let mut programs = Programs::load(&[hook]);
        let on_lo = hook.decides() && !hooks().contains(&hook);
        let mut seen = Counts::new();
        for _ in 0..POLICIES {
            let mut policy = reference::policy(&mut dice);
            // A test run's socket is of root, and whose cgroup it is differs by kernel: see the live tests.
            reference::ask_for_sockets(&mut policy, &mut dice, false);
            policy.essentials &= !on_lo;
            let names = programs.apply_for(&policy, places.clone());
            let before = counts(&programs, hook, &names);
            let mut expected = before.clone();
            for _ in 0..FRAMES_EACH {
                let frame = frame(hook, &mut dice);
                let name = if on_lo || matches!(hook, Hook::CgroupEgress | Hook::CgroupIngress) && dice.percent(3) {
                    "lo"
                } else {
                    "eth0"
                };
                let outcome = expect(&policy, &frame, hook, name, &mut expected);
                let interface = places.interface(name);
                assert_eq!(
                    programs.lets_pass(hook, &frame, interface),
                    outcome != Outcome::Drop,
                    "{hook:?} {frame:02x?}\n{policy:#?}"
                );
            }
            let counted = counts(&programs, hook, &names);
            assert_eq!(counted, expected, "{hook:?}\n{policy:#?}");
            for (name, counts) in counted {
                let kind = if name.starts_with("rule-") { "rule" } else { &name };
                let sum = seen.entry(kind.to_owned()).or_default();
                for (sum, (after, before)) in sum.iter_mut().zip(counts.iter().zip(before[&name])) {
                    *sum += after - before;
                }
            }
        }
        if !hook.decides() {
            assert!(seen["rule"][1..].iter().all(|count| *count >= 50), "{seen:?}");
            return;
        }
        for kind in ["rule", "default", "malformed"] {
            assert!(
                seen[kind].iter().all(|count| *count >= 50),
                "{kind} is too rare: {seen:?}"
            );
        }
        assert!(on_lo || seen["essential"][0] >= 100, "{seen:?}");
    });
}

fn two_thousand_rules_of_each_shape_decide_as_by_the_reference() {
    const RULES: usize = 2000;
    const FRAMES: usize = 500;
    let here = Host::new("here").unwrap();
    let link = here.join(&Host::new("there").unwrap()).unwrap();
    let interface = link.left.index;
    here.run(|| {
        let hooks = hooks();
        let mut programs = Programs::load(&hooks);
        for shape in Shape::ALL {
            let mut dice = Dice::new(3);
            let policy = shapes::policy(shape, RULES, &mut dice);
            let names = programs.apply(&policy);
            for &hook in &hooks {
                let before = counts(&programs, hook, &names);
                let mut expected = before.clone();
                for _ in 0..FRAMES {
                    let frame = shapes::frame(&policy, &mut dice);
                    let outcome = expect(&policy, &frame, hook, "eth0", &mut expected);
                    let passes = programs.lets_pass(hook, &frame, interface);
                    assert_eq!(passes, outcome != Outcome::Drop, "{shape:?} {hook:?} {frame:02x?}");
                }
                let counted = counts(&programs, hook, &names);
                assert_eq!(counted, expected, "{shape:?} {hook:?}");
                let by_rule = counted.iter().filter(|(name, _)| name.starts_with("rule-"));
                let met = by_rule.filter(|(name, counts)| **counts != before[*name]).count();
                assert!(met > 50, "{shape:?} {hook:?}: only {met} rules were met");
            }
        }
    });
}

/// A frame that a test run takes. Newer kernels want an IP header to be there where the `EtherType` says so; shorter ones
/// are decided about in the tests on the host.
fn frame(hook: Hook, dice: &mut Dice) -> Vec<u8> {
    loop {
        let frame = reference::frame(dice);
        let shortest = match [frame[12], frame[13]] {
            [0x08, 0x00] => 14 + 20,
            [0x86, 0xdd] => 14 + 40,
            _ => 14,
        };
        if frame.len() >= shortest && reference::is_asked(hook, &frame) {
            return frame;
        }
    }
}

/// Adds a decision of the reference to the counts.
fn expect(policy: &Policy, frame: &[u8], hook: Hook, interface: &str, counts: &mut Counts) -> Outcome {
    let packet = reference::packet(frame, hook, interface);
    let root = Identity {
        uid: Some(0),
        ..Identity::UNKNOWN
    };
    let Some(decision) = reference::decide(policy, &packet, hook, &root) else {
        return Outcome::Pass;
    };
    let outcome = decision.outcome(true);
    let place = match outcome {
        Outcome::Pass => 0,
        Outcome::ObserveDrop => 1,
        Outcome::Drop => 2,
    };
    counts.get_mut(decision.rule_name(policy)).unwrap()[place] += 1;
    for index in decision.logged_by {
        counts.get_mut(&policy.rules[index].name).unwrap()[0] += 1;
    }
    outcome
}

/// What was counted, by rule and by reason.
fn counts(programs: &Programs, hook: Hook, names: &[String]) -> Counts {
    let rules = names.iter().cloned().zip(programs.by_rule(names.len()));
    let mut counts: Counts = rules.map(|(name, amounts)| (name, packets(&amounts))).collect();
    for reason in programs.by_reason() {
        if reason.hook == hook.name() && reason.reason != "rule" {
            counts.insert(reason.reason, packets(&reason.amounts));
        }
    }
    counts
}

fn every_packet_is_counted_with_the_length_of_its_ip_packet() {
    use testbed::packets::{Mutate as _, ethernet};
    let mut programs = Programs::load(&[Hook::TcIngress, Hook::XdpIngress, Hook::CgroupEgress]);
    programs.apply(&Policy::allow_all("all"));
    let datagram = ethernet().ipv4("192.0.2.1", "192.0.2.2").udp(1, 2).payload([0; 10]);
    for (frame, hook, bytes) in [
        (datagram.build(), Hook::TcIngress, 20 + 8 + 10),
        (datagram.build().pad_to(60), Hook::TcIngress, 20 + 8 + 10),
        (datagram.build().pad_to(60), Hook::XdpIngress, 20 + 8 + 10),
        (datagram.build().pad_to(60), Hook::CgroupEgress, 20 + 8 + 10),
        (
            ethernet().vlan(7).ipv6("2001:db8::1", "2001:db8::2").udp(1, 2).build(),
            Hook::TcIngress,
            40 + 8,
        ),
        // What has no length to believe is counted with what there is.
        (datagram.build().truncate_to(36), Hook::TcIngress, 36),
        (datagram.build().truncate_to(36), Hook::XdpIngress, 36),
        (datagram.build().truncate_to(36), Hook::CgroupEgress, 22),
        (
            ethernet().arp_request("192.0.2.1", "192.0.2.2").build(),
            Hook::TcIngress,
            14 + 28,
        ),
    ] {
        let total = |programs: &Programs| -> u64 {
            let reasons = programs.by_reason().into_iter();
            let bytes = reasons.map(|reason| reason.amounts.passed.bytes + reason.amounts.observed.bytes);
            bytes.sum()
        };
        let before = total(&programs);
        assert!(programs.lets_pass(hook, &frame, 1));
        assert_eq!(total(&programs) - before, bytes, "{hook:?} {frame:02x?}");
    }
}
