//! Rates: what a rule lets pass of what it matches, and who shares it (P2).

use std::{
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use enforcer_policy::{
    Policy,
    model::{Action, Mode, Per, Range, Rate, RateLimit, Rule},
};
use lab06_full_enforcer::api::Amounts;
use lab06_full_enforcer_common::key::Hook;
use testbed::{
    bpf::{self, TestRun},
    harness::{needs_two_cpus, unsupported},
    packets::{Packet, ethernet},
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
    what_follows_in_a_flow_is_charged_as_what_began_it,
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
    // And then tokens come at the rate. A full bucket is half a second's, so that a pause of the machine costs none.
    let mut programs = Programs::load(&COME_IN);
    programs.apply(&limited(Rate::Packets(1000), 500, Per::Rule));
    let came_in = without_a_pause(&programs, &one, 1, Duration::from_secs(1));
    assert_is_held(1000, 500, came_in, &programs.by_rule(1)[0], "a rule");
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
    // As fast as they can, so that both ask for nearly every token: where they would meet, were there no lock. Of what
    // passes in two seconds, the rate is four fifths and the burst one.
    const RATE: u64 = 5000;
    const BURST: u64 = 2500;
    const BYTES: u64 = 100;
    needs_two_cpus();
    let mut policy = limited(Rate::Packets(NEVER), 1, Per::Rule);
    policy.rules.clear();
    for per in [Per::Rule, Per::Source, Per::Flow] {
        for (unit, rate, burst) in [
            ("packets", Rate::Packets(RATE), BURST),
            ("bytes", Rate::Bytes(RATE * BYTES), BURST * BYTES),
        ] {
            let limit = RateLimit { rate, burst, per };
            let mut rule = Rule::new(&format!("{unit}-{per:?}").to_lowercase(), Action::RateLimit(limit));
            rule.destination_ports = vec![Range::single(policy.rules.len() as u16)];
            policy.rules.push(rule);
        }
    }
    let mut programs = Programs::load(&COME_IN);
    let names = programs.apply(&policy);
    for (place, name) in names.iter().enumerate() {
        let frame = datagram("192.0.2.1", "192.0.2.9", (1000, place as u16), BYTES as usize - 28);
        let came_in = without_a_pause(&programs, &frame, 2, Duration::from_secs(2));
        assert_is_held(RATE, BURST, came_in, &programs.by_rule(names.len())[place], name);
    }
}

/// How long frames came in without a pause: until the last of them came for certain, and until nothing came any more.
type CameIn = [Duration; 2];

/// Has frames come in for so long, on so many CPUs at once.
fn without_a_pause(programs: &Programs, frame: &[u8], cpus: usize, time: Duration) -> CameIn {
    let start = Instant::now();
    let until_last = thread::scope(|scope| {
        let come_in_on = |cpu| {
            let program = programs.fd(Hook::TcIngress);
            move || {
                stay_on_cpu(cpu).unwrap();
                loop {
                    let elapsed = start.elapsed();
                    bpf::test_run(program.as_fd(), TestRun::repeated(frame, 1000)).unwrap();
                    if elapsed >= time {
                        return elapsed;
                    }
                }
            }
        };
        let threads: Vec<_> = (0..cpus).map(|cpu| scope.spawn(come_in_on(cpu))).collect();
        let until_last = threads.into_iter().map(|thread| thread.join().unwrap());
        until_last.max().unwrap()
    });
    [until_last, start.elapsed()]
}

/// What passed is the burst and the rate's packets, within 5 %.
#[track_caller]
fn assert_is_held(per_second: u64, burst: u64, came_in: CameIn, met: &Amounts, what: &str) {
    let [passed, _, dropped] = packets(met);
    if dropped == 0 {
        unsupported(format!("this machine is too slow to empty the bucket: {passed} passed"));
    }
    let [least, most] = came_in.map(|time| per_second as f64 * time.as_secs_f64() + burst as f64);
    assert!(
        passed as f64 >= least * 0.95,
        "{what}: {passed} passed of {least:.0} at least"
    );
    assert!(
        passed as f64 <= most * 1.001 + 1.0,
        "{what}: {passed} passed of {most:.0} at most"
    );
}

fn what_follows_in_a_flow_is_charged_as_what_began_it() {
    let mut programs = Programs::following(4096, &[Hook::TcIngress, Hook::CgroupEgress]);
    let cases = [
        (Per::Rule, [5, 0, 6]),
        (Per::Flow, [5, 0, 6]),
        // Either end has five.
        (Per::Source, [10, 0, 1]),
    ];
    for ((per, expected), port) in cases.into_iter().zip(1000..) {
        let mut policy = limited(Rate::Packets(NEVER), 5, per);
        policy.rules[0].name = format!("{per:?}").to_lowercase();
        policy.rules[0].destination_ports = vec![Range::single(80)];
        programs.apply(&policy);
        programs.forget(0);
        let before = packets(&programs.by_rule(1)[0]);
        let comes_in = |packet: Packet| programs.lets_pass(Hook::TcIngress, &packet.build(), 1);
        let goes_out = |packet: Packet| programs.lets_pass(Hook::CgroupEgress, &packet.build(), 1);
        let question = || ethernet().ipv4("192.0.2.1", "192.0.2.9").tcp(port, 80);
        let answer = || ethernet().ipv4("192.0.2.9", "192.0.2.1").tcp(80, port);
        assert!(comes_in(question().syn()) && goes_out(answer().syn().ack()) && comes_in(question().ack()));
        assert_eq!(programs.flow_events().established, u64::from(port) - 999);
        for _ in 0..4 {
            comes_in(question().ack());
            goes_out(answer().ack());
        }
        let met = packets(&programs.by_rule(1)[0]);
        let met = [0, 1, 2].map(|outcome| met[outcome] - before[outcome]);
        assert_eq!(met, expected, "{per:?}");
    }
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
