//! The program on named and on random packets, through `BPF_PROG_TEST_RUN`: no interface, no traffic.

#[path = "../../common/tests/oracle/mod.rs"]
#[expect(dead_code, reason = "it is shared with the fuzzer, which uses the rest of it")]
mod oracle;

use etherparse::EtherType;
use lab01_count_packets::report::protocol_name;
use lab01_count_packets_common::{
    counter::Protocol,
    headers::{Headers, Malformed},
};
use testbed::packets::{self, Mutate as _, ether_type, random_bytes};

use crate::{
    named::{Refused, V4, V6, WellFormed, from_v4, from_v6, malformed, well_formed},
    program::{Counted, Program, source_of},
};

testbed::listed_tests![
    every_kind_of_packet_is_counted_by_source_and_protocol,
    every_protocol_number_has_a_counter_of_its_own,
    options_of_every_length_are_skipped,
    every_way_of_being_malformed_is_counted_under_its_reason,
    a_packet_cut_anywhere_passes_and_is_counted_as_the_host_parses_it,
    frames_shorter_than_an_ethernet_header_are_refused_by_the_kernel_or_counted_as_truncated,
    two_thousand_random_frames_are_counted_as_the_host_counts_them,
    valid_packets_are_counted_as_etherparse_reads_them,
    sources_without_room_are_counted_together_and_none_is_lost,
];

fn every_kind_of_packet_is_counted_by_source_and_protocol() {
    let program = Program::load();
    for WellFormed {
        what,
        frame,
        source,
        protocol,
    } in well_formed()
    {
        let expected = Counted::one(source, protocol, frame.len());
        assert_eq!(program.counted_for(&frame), expected, "{what}");

        let padded = frame.pad_to(60);
        let expected = Counted::one(source, protocol, padded.len());
        assert_eq!(
            program.counted_for(&padded),
            expected,
            "{what}, padded to the least length of a frame"
        );
    }
}

fn every_protocol_number_has_a_counter_of_its_own() {
    let program = Program::load();
    let frames: Vec<_> = (0..=255)
        .flat_map(|number| [from_v4().protocol(number).build(), from_v6().protocol(number).build()])
        .collect();
    for frame in &frames {
        program.run(frame);
    }
    let counted = program.counted();
    assert_eq!(counted, Counted::on_host(&frames));
    assert_eq!(counted.protocols.len(), 512);
    assert!(counted.protocols.values().all(|counter| counter.packets == 1));
}

fn options_of_every_length_are_skipped() {
    let program = Program::load();
    for length in (0..=40).step_by(4) {
        let packet = from_v4().ipv4_options(&vec![1; length]).udp(1000, 53).payload("who?");
        let frame = packet.build();
        assert_eq!(
            program.counted_for(&frame),
            Counted::one(Some(V4), "IPv4 UDP", frame.len()),
            "{length} bytes"
        );

        let cut_in_the_options = frame.truncate_to(14 + 20 + length - 1);
        let expected = Counted::one_malformed(Malformed::Ipv4Truncated, cut_in_the_options.len());
        assert_eq!(
            program.counted_for(&cut_in_the_options),
            expected,
            "{length} bytes, the last one cut off"
        );
    }
}

fn every_way_of_being_malformed_is_counted_under_its_reason() {
    let program = Program::load();
    let cases = malformed();
    for Refused { what, frame, reason } in &cases {
        let expected = Counted::one_malformed(*reason, frame.len());
        assert_eq!(program.counted_for(frame), expected, "{what}");
    }
    let is_tried = |reason| cases.iter().any(|case| case.reason == reason);
    // The one that is left has a test of its own below.
    let left: Vec<_> = Malformed::ALL.into_iter().filter(|reason| !is_tried(*reason)).collect();
    assert_eq!(left, [Malformed::EthernetTruncated]);
}

fn a_packet_cut_anywhere_passes_and_is_counted_as_the_host_parses_it() {
    let program = Program::load();
    let whole = [
        packets::ethernet()
            .service_vlan(2)
            .vlan(1)
            .ipv4(V4, "192.0.2.1")
            .ipv4_options(&[1; 12])
            .tcp(1, 2)
            .syn()
            .build(),
        packets::ethernet()
            .service_vlan(2)
            .vlan(1)
            .ipv6(V6, "2001:db8::1")
            .hop_by_hop()
            .udp(1, 2)
            .payload([7; 9])
            .build(),
        packets::ethernet()
            .vlan(1)
            .arp_request("192.0.2.1", "192.0.2.2")
            .build(),
        from_v4().first_fragment(1).udp(1, 2).payload([7; 24]).build(),
    ];
    for frame in whole {
        for length in SHORTEST_TEST_RUN..=frame.len() {
            let cut = &frame[..length];
            assert_eq!(
                program.counted_for(cut),
                Counted::on_host([cut]),
                "cut to {length} of {} bytes",
                frame.len()
            );
        }
    }
}

/// `BPF_PROG_TEST_RUN` refuses what is shorter (`ETH_HLEN`, `net/bpf/test_run.c`), and so do drivers, before XDP.
/// What the parser does with it is tested on the host: common/tests/parser.rs.
const SHORTEST_TEST_RUN: usize = 14;

fn frames_shorter_than_an_ethernet_header_are_refused_by_the_kernel_or_counted_as_truncated() {
    let program = Program::load();
    let mut run = Vec::new();
    for length in 0..SHORTEST_TEST_RUN {
        let frame = vec![0; length];
        match program.try_run(&frame) {
            Err(error) => assert!(
                error.to_string().contains("Invalid argument"),
                "{length} bytes: {error}"
            ),
            // As Linux 5.10 does.
            Ok(_) => run.push(frame),
        }
    }
    assert_eq!(program.counted(), Counted::on_host(&run));
}

fn two_thousand_random_frames_are_counted_as_the_host_counts_them() {
    let program = Program::load();
    let frames: Vec<_> = (0..2000).map(random_frame).collect();
    for frame in &frames {
        program.run(frame);
    }
    let expected = Counted::on_host(&frames);
    assert_eq!(program.counted(), expected);
    // Frames that are all refused, or all accepted, would test little.
    let malformed: u64 = expected.malformed.values().map(|counter| counter.packets).sum();
    assert!((200..1800).contains(&malformed), "{malformed} of 2000 are malformed");
    assert_eq!(
        expected.malformed.len(),
        9,
        "every reason but a cut Ethernet header: {:?}",
        expected.malformed.keys()
    );
}

/// Frame number `seed`: noise, noise behind a plausible `EtherType`, or a well-formed packet that is left alone, changed in
/// some bytes, or cut off.
fn random_frame(seed: u64) -> Vec<u8> {
    let dice = random_bytes(seed, 16);
    let pick = |die: usize, choices: usize| usize::from(dice[die]) % choices;
    let noise = || random_bytes(!seed, SHORTEST_TEST_RUN + pick(0, 120));
    let frame = well_formed().swap_remove(pick(2, well_formed().len())).frame;
    match pick(1, 10) {
        0 => noise(),
        1 => noise().with_bytes(12, &TYPES[pick(2, TYPES.len())].0.to_be_bytes()),
        // One more tag than there was.
        2 => [&frame[..12], &[0x81, 0, 0, dice[3]], &frame[12..]].concat(),
        // Any length of an IPv4 header.
        3 if frame.len() > 14 => frame.with_byte(14, 0x40 | dice[3] & 0x0f),
        changes => {
            let changed = (4..changes).fold(frame, |frame, change| {
                // Among the headers, where it matters.
                let offset = 12 + pick(change, frame.len().min(60) - 12);
                frame.with_byte(offset, dice[6 + change])
            });
            let length = SHORTEST_TEST_RUN + pick(14, changed.len() - SHORTEST_TEST_RUN + 1);
            if dice[15] < 64 {
                changed.truncate_to(length)
            } else {
                changed
            }
        }
    }
}

const TYPES: [EtherType; 4] = [
    ether_type::IPV4,
    ether_type::IPV6,
    ether_type::VLAN_TAGGED_FRAME,
    ether_type::PROVIDER_BRIDGING,
];

fn valid_packets_are_counted_as_etherparse_reads_them() {
    let program = Program::load();
    let frames = well_formed().into_iter().map(|packet| packet.frame);
    let mutated = (0..2000)
        .map(random_frame)
        .filter(|frame| Headers::parse(frame.as_slice()).is_ok());
    for frame in frames.chain(mutated.take(300)) {
        let Some(headers) = oracle::by_etherparse(&frame) else {
            continue; // it has no opinion on what is not IP
        };
        let counted = program.counted_for(&frame);
        let source = source_of(&headers).unwrap();
        assert!(
            counted.sources.keys().eq([&source]),
            "{source} sent {frame:02x?}, counted is {counted:?}"
        );
        let protocol = protocol_name(match headers.ip_version {
            4 => Protocol::ipv4(headers.protocol),
            _ => Protocol::ipv6(headers.protocol),
        });
        assert!(
            counted.protocols.keys().eq([&protocol]),
            "{protocol} in {frame:02x?}, counted is {counted:?}"
        );
    }
}

fn sources_without_room_are_counted_together_and_none_is_lost() {
    let program = Program::load_with_room_for(2);
    for round in 0..3 {
        for source in 1..=5_u8 {
            let (v4, v6) = (format!("192.0.2.{source}"), format!("2001:db8::{source}"));
            program.run(&packets::ethernet().ipv4(v4.as_str(), "192.0.2.99").udp(1, 2).build());
            program.run(&packets::ethernet().ipv6(v6.as_str(), "2001:db8::99").udp(1, 2).build());
        }
        let counted = program.counted();
        let packets_each = round + 1;
        assert_eq!(counted.sources.len(), 4, "two of each version");
        assert!(counted.sources.values().all(|counter| counter.packets == packets_each));
        assert_eq!(counted.untracked.packets, 6 * packets_each);
        assert_eq!(counted.untracked.bytes, 3 * packets_each * (42 + 62));
    }
}
