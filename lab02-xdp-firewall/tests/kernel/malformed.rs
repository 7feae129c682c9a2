//! Malformed frames (F14): each is counted under its reason, and dropped or passed as asked for.

use lab02_xdp_firewall_common::{firewall::Reason, transport::Malformed};
use testbed::packets::{self, Mutate as _, Packet, ip_number};

use crate::{
    options::policy,
    program::{Decision, Program},
};

testbed::listed_tests![
    malformed_frames_are_counted_under_their_reason_and_dropped_or_passed,
    padding_is_never_read_as_a_header,
    a_packet_cut_anywhere_is_decided_as_on_the_host,
];

fn v4() -> Packet {
    packets::ethernet().ipv4("192.0.2.7", "192.0.2.1")
}

fn v6() -> Packet {
    packets::ethernet().ipv6("2001:db8::7", "2001:db8::1")
}

/// Where IPv4's header begins, and what follows it.
const IP: usize = 14;
const BEHIND_V4: usize = IP + 20;

/// Frames that the parser refuses. Those of less than 14 bytes, the kernel refuses to test (`ETH_HLEN`).
fn frames() -> Vec<(&'static str, Vec<u8>, Malformed)> {
    use Malformed as M;
    let tags = |count| {
        (0..count)
            .fold(packets::ethernet(), |packet, _| packet.vlan(1))
            .ipv4("192.0.2.7", "192.0.2.1")
    };
    let (ipv4, ipv6) = (v4().build(), v6().build());
    let tcp = v4().tcp(1, 2).build();
    let udp = v4().udp(1, 2).build();
    let ending_in = |protocol: u8, length: usize| v4().protocol(protocol).payload(vec![0x50; length]).build();
    let first = |protocol: u8, length: usize| {
        v6().first_fragment(1)
            .protocol(protocol)
            .payload(vec![0x50; length])
            .build()
    };
    vec![
        ("half a tag", tags(1).build().truncate_to(16), M::VlanTruncated),
        ("three tags", tags(3).build(), M::TooManyTags),
        ("half an IPv4 header", ipv4.clone().truncate_to(24), M::Ipv4Truncated),
        (
            "IPv6 where IPv4 is announced",
            ipv4.clone().with_byte(IP, 0x65),
            M::Ipv4Version,
        ),
        (
            "an IPv4 header of 0 bytes",
            ipv4.clone().with_byte(IP, 0x40),
            M::Ipv4HeaderLength,
        ),
        ("more than has arrived", ipv4.with_byte(IP + 2, 1), M::Ipv4TotalLength),
        ("half an IPv6 header", ipv6.clone().truncate_to(53), M::Ipv6Truncated),
        (
            "IPv4 where IPv6 is announced",
            ipv6.clone().with_byte(IP, 0x45),
            M::Ipv6Version,
        ),
        (
            "a payload that has not arrived",
            ipv6.with_byte(IP + 4, 1),
            M::Ipv6PayloadLength,
        ),
        (
            "a routing header cut off",
            v6().protocol(ip_number::IPV6_ROUTE.0).payload([6; 7]).build(),
            M::ExtensionTruncated,
        ),
        (
            "a fragment header cut off",
            v6().protocol(ip_number::IPV6_FRAG.0).payload([6; 7]).build(),
            M::ExtensionTruncated,
        ),
        (
            "nine extension headers",
            (0..9)
                .fold(v6(), |packet, _| packet.destination_options())
                .udp(1, 2)
                .build(),
            M::TooManyExtensions,
        ),
        (
            "a fragment in a fragment",
            v6().first_fragment(1).atomic_fragment(1).udp(1, 2).build(),
            M::TooManyExtensions,
        ),
        (
            "hop-by-hop options twice",
            v6().hop_by_hop().hop_by_hop().udp(1, 2).build(),
            M::HopByHopNotFirst,
        ),
        ("a first fragment with half of TCP", first(6, 16), M::TinyFragment),
        ("a first fragment with half of UDP", first(17, 7), M::TinyFragment),
        (
            "flags of TCP in a second fragment",
            v4().later_fragment(1, 8).protocol(6).payload([0; 24]).build(),
            M::OverlappingFragment,
        ),
        (
            "flags of TCP in a second fragment of IPv6",
            v6().later_fragment(1, 8).protocol(6).payload([0; 24]).build(),
            M::OverlappingFragment,
        ),
        (
            "the ping of death",
            v4().last_fragment(1, 65_528).protocol(1).payload([0; 100]).build(),
            M::FragmentBeyondEnd,
        ),
        ("half a TCP header", ending_in(6, 19), M::TcpTruncated),
        (
            "TCP options that are not there",
            tcp.clone().with_byte(BEHIND_V4 + 12, 0xf0),
            M::TcpTruncated,
        ),
        (
            "a TCP header of 0 bytes",
            tcp.with_byte(BEHIND_V4 + 12, 0),
            M::TcpDataOffset,
        ),
        ("half a UDP header", ending_in(17, 7), M::UdpTruncated),
        (
            "a UDP length of 0",
            udp.clone().with_byte(BEHIND_V4 + 5, 0),
            M::UdpLength,
        ),
        (
            "a UDP length beyond the packet",
            udp.with_byte(BEHIND_V4 + 5, 9),
            M::UdpLength,
        ),
        ("half an ICMP header", ending_in(1, 7), M::IcmpTruncated),
        ("half an SCTP header", ending_in(132, 11), M::PortsTruncated),
        ("no DCCP header", ending_in(33, 0), M::PortsTruncated),
    ]
}

fn malformed_frames_are_counted_under_their_reason_and_dropped_or_passed() {
    let mut program = Program::load();
    for (options, reason) in [
        ("", Reason::Malformed),
        (
            "--malformed drop --allow-ip 0.0.0.0/0 --allow-ip ::/0",
            Reason::Malformed,
        ),
        ("--malformed pass", Reason::MalformedPassed),
        // What they are is not known, so no rule matches them.
        (
            "--malformed pass --block-ip 0.0.0.0/0 --default drop --fragments drop",
            Reason::MalformedPassed,
        ),
    ] {
        program.apply(&policy(options));
        for (what, frame, malformed) in frames() {
            let Decision {
                reason: met,
                malformed: how,
                ..
            } = program.decide(&frame);
            assert_eq!(
                (met, how),
                (reason, Some(malformed)),
                "{what} with {options:?}: {frame:02x?}"
            );
        }
    }
    // All but the one that a test run cannot show.
    let seen: Vec<Malformed> = frames().into_iter().map(|(.., malformed)| malformed).collect();
    let missing: Vec<_> = Malformed::ALL.iter().filter(|reason| !seen.contains(reason)).collect();
    assert_eq!(missing, [&Malformed::EthernetTruncated]);
}

fn padding_is_never_read_as_a_header() {
    let udp = [3, 0xe8, 0, 53, 0, 8, 0, 0];
    let program = Program::with(&policy("--block-port 53 --malformed pass"));
    for (what, packet, padding, malformed) in [
        ("UDP", v4().protocol(17), &udp[..], Malformed::UdpTruncated),
        ("UDP over IPv6", v6().protocol(17), &udp, Malformed::UdpTruncated),
        (
            "the rest of UDP",
            v6().protocol(17).payload(&udp[..4]),
            &udp[4..],
            Malformed::UdpTruncated,
        ),
        (
            "options",
            v6().protocol(60),
            &[17, 0, 1, 4, 0, 0, 0, 0],
            Malformed::ExtensionTruncated,
        ),
        (
            "options' second half",
            v6().protocol(60).payload([59, 1, 0, 0, 0, 0, 0, 0]),
            &[0; 8],
            Malformed::ExtensionTruncated,
        ),
    ] {
        let frame = [packet.build(), padding.to_vec(), vec![0; 40]].concat();
        let decision = program.decide(&frame);
        assert_eq!(decision.reason, Reason::MalformedPassed, "{what}");
        assert_eq!(decision.malformed, Some(malformed), "{what}");
    }
    // Nor does padding make a packet malformed.
    let padded = v4().udp(1000, 54).build().pad_to(1500);
    assert_eq!(program.decide(&padded).reason, Reason::PassedByDefault);
}

fn a_packet_cut_anywhere_is_decided_as_on_the_host() {
    let policy = policy("--block-port 53 --block-ip 2001:db8::7");
    let program = Program::with(&policy);
    let mut host = crate::agreement::OnHost::new(&policy, &program.config());
    for packet in [
        packets::ethernet()
            .service_vlan(2)
            .vlan(1)
            .ipv4("192.0.2.7", "192.0.2.1")
            .ipv4_options(&[1; 12])
            .tcp(1, 2),
        packets::ethernet()
            .ipv6("2001:db8::8", "2001:db8::1")
            .hop_by_hop()
            .routing()
            .atomic_fragment(1)
            .udp(1, 53),
        v6().authentication().icmp_echo_request(1, 2),
        packets::ethernet().vlan(1).arp_request("192.0.2.1", "192.0.2.2"),
    ] {
        let frame = packet.build();
        for length in 14..=frame.len() {
            let cut = &frame[..length];
            assert_eq!(
                program.decide(cut),
                host.decide(cut),
                "cut to {length} of {} bytes",
                frame.len()
            );
        }
    }
}
