//! The programs in the kernel against the reference, on random policies and packets (P1, P6, Z2).

use std::collections::BTreeMap;

use enforcer_policy::{
    Content, DecidedBy, Flow, Identity, Packet, Transport, decide,
    model::{Direction, Mode, Protocol},
};
use lab04_cgroup_policy::{attach::Hook, compile::compile};
use testbed::packets;

use crate::{
    program::{MAX_ENTRIES, Program},
    random::{self, Dice},
    reference::{expected, rule_number},
};

testbed::listed_tests![
    twenty_thousand_random_packets_are_decided_as_by_the_reference,
    malformed_packets_meet_their_default_and_are_counted_under_it,
];

fn twenty_thousand_random_packets_are_decided_as_by_the_reference() {
    const POLICIES: u32 = 200;
    const PACKETS_EACH: u32 = 100;
    let mut dice = Dice::new(6);
    let mut program = Program::load();
    let (mut policies, mut packets) = (0, 0);
    let mut by: BTreeMap<DecidedBy, u32> = BTreeMap::new();
    while policies < POLICIES {
        let policy = random::policy(&mut dice);
        if compile(&policy, MAX_ENTRIES).is_err() {
            continue;
        }
        program.apply(&policy);
        policies += 1;
        let mut before = program.counted();
        for _ in 0..PACKETS_EACH {
            let packet = random::packet(&mut dice);
            let reference = decide(&policy, &packet, &Flow::New, &Identity::UNKNOWN);
            let (_, blocks, observes) = expected(&policy, &reference);
            let (decided, after) = program.decide_from(hook(&packet), &frame(&packet), &before);
            let rule = match reference.by {
                DecidedBy::Rule(index) => policy.rules[index].name.clone(),
                by => program.name(rule_number(by)),
            };
            assert_eq!(program.name(decided.rule), rule, "{packet:?}\n{policy:#?}");
            let dropped = blocks && !observes && policy.mode == Mode::Block;
            assert_eq!(decided.passed, !dropped, "{packet:?}\n{policy:#?}");
            assert_eq!(decided.would_drop, blocks && !dropped, "{packet:?}\n{policy:#?}");
            *by.entry(reference.by).or_default() += 1;
            packets += 1;
            before = after;
        }
    }
    assert_eq!(packets, POLICIES * PACKETS_EACH);
    let rules: u32 = by
        .iter()
        .filter(|(by, _)| matches!(by, DecidedBy::Rule(_)))
        .map(|(_, count)| count)
        .sum();
    assert!(
        rules > 3000 && by[&DecidedBy::Default] > 1000 && by[&DecidedBy::Essential] > 200,
        "{by:?}"
    );
}

fn hook(packet: &Packet) -> Hook {
    match packet.direction {
        Direction::Egress => Hook::Egress,
        Direction::Ingress => Hook::Ingress,
    }
}

/// The packet as a frame.
fn frame(packet: &Packet) -> Vec<u8> {
    let Content::Ip(ip) = &packet.content else {
        panic!("only IP packets come here")
    };
    let headers = match (ip.source, ip.destination) {
        (std::net::IpAddr::V4(source), std::net::IpAddr::V4(destination)) => {
            packets::ethernet().ipv4(source, destination)
        }
        (std::net::IpAddr::V6(source), std::net::IpAddr::V6(destination)) => {
            packets::ethernet().ipv6(source, destination)
        }
        both => panic!("{both:?} are of two versions"),
    };
    let protocol = ip.protocol.0;
    match ip.transport {
        Transport::Ports { source, destination } if ip.protocol == Protocol::TCP => {
            headers.tcp(source, destination).syn().build()
        }
        Transport::Ports { source, destination } => headers.udp(source, destination).payload([7; 4]).build(),
        Transport::Icmp { kind, code } => headers
            .protocol(protocol)
            .payload([kind, code, 0, 0, 0, 0, 0, 0])
            .build(),
        // A later fragment, if it is of a protocol that has ports.
        Transport::None if ip.protocol.has_ports() => {
            // What stands where ports would.
            headers
                .later_fragment(7, 1480)
                .protocol(protocol)
                .payload([0, 53, 0, 53, 0, 0, 0, 0])
                .build()
        }
        Transport::None => headers.protocol(protocol).payload([0, 53, 0, 53]).build(),
    }
}

fn malformed_packets_meet_their_default_and_are_counted_under_it() {
    let truncated = {
        let mut frame = packets::ethernet()
            .ipv4("192.0.2.1", "192.0.2.2")
            .udp(1, 53)
            .payload([0; 20])
            .build();
        frame.truncate(14 + 20 + 4);
        frame
    };
    let frames = [
        truncated,
        packets::ethernet()
            .ipv4("192.0.2.1", "192.0.2.2")
            .first_fragment(3)
            .protocol(6)
            .payload([0; 8])
            .build(),
        packets::ethernet()
            .ipv6("2001:db8::1", "2001:db8::2")
            .protocol(58)
            .payload([128, 0])
            .build(),
    ];
    for (verdict, passes) in [("drop", false), ("allow", true)] {
        let program = Program::with(&format!(
            "version: 1\nname: test\nmode: block\ndefaults: {{ malformed: {verdict} }}\nrules: [{{ name: all, action: allow }}]\n"
        ));
        for frame in &frames {
            for hook in [Hook::Egress, Hook::Ingress] {
                let decided = program.decide(hook, frame);
                assert_eq!(
                    (decided.passed, program.name(decided.rule).as_str()),
                    (passes, "malformed"),
                    "{frame:02x?}"
                );
            }
        }
    }
}
