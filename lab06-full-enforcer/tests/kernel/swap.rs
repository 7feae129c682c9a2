//! A new policy, and a new mode, take effect between two packets (A11, P7, A3): decisions without a pause, while policies
//! are exchanged.

use std::{
    net::Ipv4Addr,
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use enforcer_policy::{
    Policy,
    model::{Action, Address, DefaultVerdict, Mode, Prefix, Range, Rule},
};
use lab06_full_enforcer_common::{control, key::Hook};
use testbed::{
    bpf::{TestRun, test_run},
    harness::{is_long, needs_two_cpus},
    packets, patience,
};

use crate::program::Programs;

testbed::listed_tests![
    no_packet_is_decided_by_half_of_a_policy,
    a_mode_holds_from_the_next_packet_on,
];

/// The /31 of every `step`th pair of addresses: two of these lie quite differently in the tables.
fn every(step: u32, count: u32) -> Vec<Address> {
    let address = |index: u32| Ipv4Addr::from_bits(0x0a00_0000 + index * step * 2);
    (0..count)
        .filter_map(|index| Prefix::new(address(index).into(), 31))
        .map(Address::Prefix)
        .collect()
}

/// A rule on one destination port, by a long list of sources.
fn rule(name: &str, action: Action, source: Vec<Address>, port: u16) -> Rule {
    let mut rule = Rule::new(name, action);
    rule.source = source;
    rule.destination_ports = vec![Range::single(port)];
    rule
}

fn no_packet_is_decided_by_half_of_a_policy() {
    needs_two_cpus();
    // The frame's source, 10.0.65.160, is in both lists, far inside. In one policy its rule is the first and allows, and
    // the default blocks; in the other one it is the third and blocks, and the default allows. Half of one and half of
    // the other would find the default, or another rule.
    let mut one = Policy::allow_all("one");
    one.mode = Mode::Block;
    (one.defaults.ingress, one.defaults.egress) = (DefaultVerdict::Deny, DefaultVerdict::Deny);
    one.rules = vec![
        rule("first", Action::Allow, every(3, 3000), 53),
        rule("second", Action::Block, every(3, 3000), 54),
    ];
    let mut other = Policy::allow_all("other");
    other.mode = Mode::Block;
    other.rules = vec![
        rule("first", Action::Allow, every(4, 2200), 99),
        rule("second", Action::Allow, every(8, 100), 53),
        rule("third", Action::Block, every(4, 2200), 53),
    ];
    let frame = packets::ethernet().ipv4("10.0.65.160", "192.0.2.1").udp(1, 53).build();
    let hooks = [Hook::TcIngress, Hook::XdpIngress, Hook::CgroupEgress];
    let mut programs = Programs::load(&hooks);
    for hook in hooks {
        // Test runs are on `lo`, whose packets are essential.
        (one.essentials, other.essentials) = (false, false);
        programs.apply(&one);
        let (fd, stop) = (programs.fd(hook), AtomicBool::new(false));
        let before = programs.by_rule(3);
        let runs = thread::scope(|scope| {
            let deciding = scope.spawn(|| {
                let mut runs = 0;
                while !stop.load(Ordering::Relaxed) {
                    test_run(fd.as_fd(), TestRun::repeated(&frame, RUNS)).unwrap();
                    runs += u64::from(RUNS);
                }
                runs
            });
            for policy in [&other, &one].into_iter().cycle().take(swaps()) {
                programs.apply(policy);
            }
            stop.store(true, Ordering::Relaxed);
            deciding.join().unwrap()
        });
        let after = programs.by_rule(3);
        let [first, second, third] = [0, 1, 2].map(|place: usize| after[place].minus(before[place]));
        let (allowed, blocked) = (first.passed.packets, third.dropped.packets);
        assert_eq!(
            allowed + blocked,
            runs,
            "{hook:?}: some packets met neither of the two rules"
        );
        assert!(
            allowed > 0 && blocked > 0,
            "{hook:?}: {allowed} and {blocked} tell little"
        );
        let of_others = second.packets() + first.dropped.packets + third.passed.packets;
        assert_eq!(of_others, 0, "{hook:?}");
    }
}

/// How many policies are exchanged at each of the three hooks: a thousand in all, ten thousand with `--long`, and fewer on a
/// machine that is emulated.
fn swaps() -> usize {
    let usual = Duration::from_secs(1);
    match (is_long(), patience(usual) > usual) {
        (true, _) => 3334,
        (false, true) => 34,
        (false, false) => 334,
    }
}

/// Decisions in a row.
const RUNS: u32 = 20_000;

fn a_mode_holds_from_the_next_packet_on() {
    let mut policy = Policy::allow_all("block-all");
    // The frame of a test run comes from lo.
    policy.essentials = false;
    policy.rules = vec![Rule::new("all", Action::Block), Rule::new("never", Action::Block)];
    let mut observed = policy.clone();
    observed.rules[0].mode = Some(enforcer_policy::model::RuleMode::Observe);
    let frame = packets::ethernet().ipv4("192.0.2.1", "192.0.2.2").udp(1, 2).build();
    let mut programs = Programs::load(&[Hook::TcIngress]);
    programs.apply(&policy);
    for _ in 0..100 {
        for (mode, passes) in [(control::Mode::Block, false), (control::Mode::Observe, true)] {
            programs.set_mode(mode);
            assert_eq!(programs.lets_pass(Hook::TcIngress, &frame, 1), passes);
        }
    }
    programs.apply(&observed);
    programs.set_mode(control::Mode::Block);
    assert!(
        programs.lets_pass(Hook::TcIngress, &frame, 1),
        "the rule has a mode of its own"
    );
}
