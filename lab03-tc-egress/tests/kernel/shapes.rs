//! What exceeds a rate (F4, P2): dropped where packets cannot wait, and told when to leave where they can. Rates are so
//! low and bursts so large that what a slow machine's clock adds meanwhile changes no answer.

use lab02_xdp_firewall_common::firewall::Verdict;
use lab03_tc_egress::{
    attach::Direction::{Egress, Ingress},
    policy::Policy,
};
use lab03_tc_egress_common::decide::Reason;
use testbed::packets;

use crate::{flows::sk_buff, program::Program};

testbed::listed_tests![
    what_exceeds_a_rate_is_dropped_and_counted,
    the_longest_prefix_has_the_rate_and_others_have_none,
    what_can_wait_is_sent_later_up_to_the_horizon,
    each_segment_of_a_super_packet_pays_for_its_headers,
];

const PAYLOAD: usize = 972;
/// With IPv4 and UDP headers.
const IP_BYTES: u64 = 1000;
const BURST: u64 = 65_536;

fn shaped(shapes: &[&str]) -> Program {
    Program::with(&Policy {
        shapes: shapes.iter().map(|text| text.parse().unwrap()).collect(),
        bursts: vec![BURST.to_string().parse().unwrap()],
        ..Policy::default()
    })
}

fn to(address: &str) -> Vec<u8> {
    packets::ethernet()
        .ipv4("192.0.2.1", address)
        .udp(1, 53)
        .payload([0; PAYLOAD])
        .build()
}

/// Packets sent at once, sent later and dropped.
fn outcomes(program: &Program, shape: usize) -> [u64; 3] {
    let counters = program.statistics().by_shape;
    [0, 1, 2].map(|outcome| counters[shape * 3 + outcome].packets)
}

/// Sends until the rate is exceeded; how many have passed.
fn passed_at_once(program: &Program, frame: &[u8], context: &[u8]) -> u64 {
    let mut passed = 0;
    while program.see_with(Egress, frame, context).verdict() == Verdict::Pass {
        passed += 1;
        assert!(passed < 10_000, "no rate holds");
    }
    passed
}

fn what_exceeds_a_rate_is_dropped_and_counted() {
    let program = shaped(&["8kbit"]);
    let frame = to("192.0.2.2");
    let passed = passed_at_once(&program, &frame, &sk_buff(frame.len() as u32, 1, 0));
    // A packet a second comes on top; a minute is more than this takes anywhere.
    assert!((BURST / IP_BYTES..=BURST / IP_BYTES + 60).contains(&passed), "{passed}");
    assert_eq!(outcomes(&program, 0), [passed, 0, 1]);
    assert_ne!(
        program.see(Ingress, &frame),
        Reason::RateExceeded,
        "what comes in has no rate"
    );
    let dropped = program.statistics().met(Egress, Verdict::Drop);
    assert_eq!(dropped.packets, 1);
}

fn the_longest_prefix_has_the_rate_and_others_have_none() {
    let program = shaped(&["198.51.100.0/24=800mbit", "198.51.100.7=8kbit"]);
    let context = sk_buff(to("198.51.100.7").len() as u32, 1, 0);
    let passed = passed_at_once(&program, &to("198.51.100.7"), &context);
    assert!(passed >= BURST / IP_BYTES);
    assert_eq!(outcomes(&program, 0), [passed, 0, 1], "the longest comes first");
    assert_eq!(program.see_with(Egress, &to("198.51.100.8"), &context), Reason::New);
    assert_eq!(outcomes(&program, 1), [1, 0, 0]);
    for _ in 0..2 * BURST / IP_BYTES {
        let reason = program.see_with(Egress, &to("203.0.113.1"), &context);
        assert_eq!(reason.verdict(), Verdict::Pass);
    }
    assert_eq!(outcomes(&program, 1), [1, 0, 0]);
}

fn what_can_wait_is_sent_later_up_to_the_horizon() {
    // 10 packets a second: about 20 of them lie ahead of the horizon of two seconds.
    let mut program = shaped(&["80kbit"]);
    program.tables.set_can_wait(true).unwrap();
    let frame = to("192.0.2.2");
    let passed = passed_at_once(&program, &frame, &sk_buff(frame.len() as u32, 1, 0));
    let [at_once, later, dropped] = outcomes(&program, 0);
    assert_eq!((at_once + later, dropped), (passed, 1));
    assert!(at_once >= BURST / IP_BYTES, "{at_once}");
    assert!(later >= 19, "{later} of {passed}");
}

fn each_segment_of_a_super_packet_pays_for_its_headers() {
    let program = shaped(&["8kbit"]);
    let frame = packets::ethernet()
        .ipv4("192.0.2.1", "192.0.2.2")
        .tcp(1, 80)
        .ack()
        .payload([0; 1400])
        .build();
    // On the wire: ten packets of 1000 bytes and their Ethernet headers.
    let context = sk_buff(10 * (14 + IP_BYTES as u32), 10, IP_BYTES as u32 - 40);
    let passed = passed_at_once(&program, &frame, &context);
    assert!(
        (BURST / (10 * IP_BYTES)..=BURST / (10 * IP_BYTES) + 6).contains(&passed),
        "{passed}"
    );
}
