//! Rates: what a rule lets pass of what it matches, and who shares it (P2).

use std::{
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use enforcer_policy::{
    Policy,
    model::{Action, Mode, Per, Rate, RateLimit, Rule},
};
use lab06_full_enforcer_common::key::Hook;
use testbed::{
    bpf::{self, TestRun},
    harness::{needs_two_cpus, unsupported},
    packets::ethernet,
    stay_on_cpu,
};

use crate::{
    lab::{AT_CGROUP, Lab},
    program::{Programs, packets},
    sender::order,
};

testbed::listed_tests![
    a_rule_has_a_burst_and_then_its_rate,
    each_source_has_a_bucket_and_a_64_of_ipv6_has_one,
    both_directions_of_a_flow_share_a_bucket,
    bytes_are_those_of_the_ip_packet,
    what_is_longer_than_the_burst_passes_when_the_bucket_is_full,
    what_exceeds_a_rate_passes_in_observe_mode_and_is_counted,
    a_bucket_is_its_rules_whatever_policy_it_is_in,
    two_cpus_are_held_to_one_rate,
    what_a_process_sends_is_held_to_a_rate,
];

/// Where packets come in.
const COME_IN: [Hook; 1] = [Hook::TcIngress];

/// So slow that no token comes within a test.
const NEVER: u64 = 1;

fn limited(rate: Rate, burst: u64, per: Per) -> Policy {
    let mut policy = Policy::allow_all("rates");
    policy.mode = Mode::Block;
    // The frames of test runs come from lo.
    policy.essentials = false;
    policy.rules = vec![Rule::new("slow", Action::RateLimit(RateLimit { rate, burst, per }))];
    policy
}

/// A datagram of 28 bytes and a payload.
fn datagram(source: &str, destination: &str, ports: (u16, u16), payload: usize) -> Vec<u8> {
    let packet = ethernet().ipv4(source, destination).udp(ports.0, ports.1);
    packet.payload(vec![0; payload]).build()
}

/// How many of these come in.
fn come_in(programs: &Programs, frame: &[u8], count: usize) -> usize {
    (0..count)
        .filter(|_| programs.lets_pass(Hook::TcIngress, frame, 1))
        .count()
}

fn a_rule_has_a_burst_and_then_its_rate() {
    let mut programs = Programs::load(&COME_IN);
    let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|source| datagram(source, "192.0.2.9", (1, 2), 0));
    programs.apply(&limited(Rate::Packets(NEVER), 7, Per::Rule));
    assert_eq!(come_in(&programs, &one, 5), 5);
    assert_eq!(come_in(&programs, &other, 5), 2);
    assert_eq!(packets(&programs.by_rule(1)[0]), [7, 0, 3]);
    // Tokens come back: one a millisecond.
    let mut programs = Programs::load(&COME_IN);
    programs.apply(&limited(Rate::Packets(1000), 1, Per::Rule));
    assert!(programs.lets_pass(Hook::TcIngress, &one, 1));
    thread::sleep(Duration::from_millis(20));
    assert!(programs.lets_pass(Hook::TcIngress, &one, 1));
}

fn each_source_has_a_bucket_and_a_64_of_ipv6_has_one() {
    let mut programs = Programs::load(&COME_IN);
    programs.apply(&limited(Rate::Packets(NEVER), 3, Per::Source));
    for source in ["192.0.2.1", "192.0.2.2", "198.51.100.1"] {
        let frame = datagram(source, "192.0.2.9", (1, 2), 0);
        assert_eq!(come_in(&programs, &frame, 5), 3, "{source}");
    }
    let from = |source: &str| ethernet().ipv6(source, "2001:db8::9").udp(1, 2).build();
    assert_eq!(come_in(&programs, &from("2001:db8:0:1::1"), 2), 2);
    assert_eq!(come_in(&programs, &from("2001:db8:0:1:ffff::2"), 2), 1);
    assert_eq!(come_in(&programs, &from("2001:db8:0:2::1"), 5), 3);
}

fn both_directions_of_a_flow_share_a_bucket() {
    let mut programs = Programs::load(&[Hook::TcIngress, Hook::CgroupEgress]);
    programs.apply(&limited(Rate::Packets(NEVER), 4, Per::Flow));
    let there = datagram("192.0.2.1", "192.0.2.9", (1000, 53), 0);
    let back = datagram("192.0.2.9", "192.0.2.1", (53, 1000), 0);
    let another = datagram("192.0.2.1", "192.0.2.9", (1001, 53), 0);
    assert_eq!(come_in(&programs, &there, 2), 2);
    let go_out = (0..3)
        .filter(|_| programs.lets_pass(Hook::CgroupEgress, &back, 1))
        .count();
    assert_eq!(go_out, 2);
    assert_eq!(come_in(&programs, &there, 1), 0);
    assert_eq!(come_in(&programs, &another, 5), 4);
}

fn bytes_are_those_of_the_ip_packet() {
    let mut programs = Programs::load(&COME_IN);
    programs.apply(&limited(Rate::Bytes(NEVER), 1000, Per::Rule));
    // 100 bytes each, whatever the frame is filled up with.
    let mut frame = datagram("192.0.2.1", "192.0.2.9", (1, 2), 72);
    frame.extend([0; 30]);
    assert_eq!(come_in(&programs, &frame, 12), 10);
}

fn what_is_longer_than_the_burst_passes_when_the_bucket_is_full() {
    let mut programs = Programs::load(&COME_IN);
    programs.apply(&limited(Rate::Bytes(NEVER), 500, Per::Rule));
    let long = datagram("192.0.2.1", "192.0.2.9", (1, 2), 1400);
    assert_eq!(come_in(&programs, &long, 3), 1);
}

fn what_exceeds_a_rate_passes_in_observe_mode_and_is_counted() {
    let mut programs = Programs::load(&COME_IN);
    let mut policy = limited(Rate::Packets(NEVER), 2, Per::Rule);
    policy.mode = Mode::Observe;
    programs.apply(&policy);
    let frame = datagram("192.0.2.1", "192.0.2.9", (1, 2), 0);
    assert_eq!(come_in(&programs, &frame, 5), 5);
    assert_eq!(packets(&programs.by_rule(1)[0]), [2, 3, 0]);
}

fn a_bucket_is_its_rules_whatever_policy_it_is_in() {
    let mut programs = Programs::load(&COME_IN);
    let frame = datagram("192.0.2.1", "192.0.2.9", (1, 2), 0);
    let mut policy = limited(Rate::Packets(NEVER), 3, Per::Rule);
    programs.apply(&policy);
    assert_eq!(come_in(&programs, &frame, 5), 3);
    // It does not fill up by being applied again.
    policy.rules.push(Rule::new("never", Action::Block));
    programs.apply(&policy);
    assert_eq!(come_in(&programs, &frame, 5), 0);
    // But for another rule that gets its id.
    programs.forget(0);
    assert_eq!(come_in(&programs, &frame, 5), 3);
}

fn two_cpus_are_held_to_one_rate() {
    // As fast as they can, and the most of what passes at the beginning, when both take at every packet: where they would
    // meet, were there no lock. The bucket is empty long before the end and never full again, so nothing is left over.
    const RUNS: u32 = 1_000_000;
    needs_two_cpus();
    let (rate, burst) = (20_000_u32, 400_000_u32);
    let mut programs = Programs::load(&COME_IN);
    programs.apply(&limited(Rate::Packets(rate.into()), burst.into(), Per::Rule));
    let frame = datagram("192.0.2.1", "192.0.2.9", (1, 2), 0);
    let start = Instant::now();
    thread::scope(|scope| {
        for cpu in 0..2 {
            let (program, frame) = (programs.fd(Hook::TcIngress), &frame);
            scope.spawn(move || {
                stay_on_cpu(cpu).unwrap();
                for _ in 0..100 {
                    bpf::test_run(program.as_fd(), TestRun::repeated(frame, RUNS / 100)).unwrap();
                }
            });
        }
    });
    let expected = f64::from(rate) * start.elapsed().as_secs_f64() + f64::from(burst);
    let [passed, _, dropped] = packets(&programs.by_rule(1)[0]);
    if dropped == 0 {
        unsupported(format!("this machine is too slow to empty the bucket: {passed} passed"));
    }
    assert!(
        passed as f64 <= expected * 1.001,
        "{passed} passed of at most {expected:.0}"
    );
    assert!(passed as f64 >= expected * 0.95, "{passed} passed of {expected:.0}");
}

fn what_a_process_sends_is_held_to_a_rate() {
    let lab = Lab::new();
    let text = "
version: 1
name: rates
mode: block
rules:
  - { name: slow, direction: egress, protocol: udp, action: { rate_limit: { packets: 1/s, burst: 3 } } }
";
    let _enforcer = lab.enforce(&lab.file("policy.yaml", text), &AT_CGROUP);
    let orders = || [(); 5].map(|()| format!("udp {}:514", lab.client.ipv4));
    let told = order(&lab.server.host, &lab.cgroup, orders());
    let denied = told.iter().filter(|told| *told == "denied").count();
    assert!((1..=2).contains(&denied), "{told:?}");
    assert_eq!(lab.counted("slow"), [5 - denied as u64, 0, denied as u64]);
}
