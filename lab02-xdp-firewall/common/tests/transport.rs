//! Transport headers behind options, extension headers and fragments (M3, F14): named packets, and many random ones
//! against an independent reading.

mod oracle;
#[expect(dead_code, reason = "it is shared with tests of decisions, which use rules as well")]
mod random;

use std::collections::BTreeSet;

use etherparse::{IpNumber, ip_number};
use lab01_count_packets_common::headers::Headers;
use lab02_xdp_firewall_common::transport::{MAX_EXTENSION_HEADERS, Malformed, Part, Transport, Upper};
use oracle::{Reading, parsed};
use proptest::prelude::*;
use random::{Dice, frames};
use testbed::packets::{self, Mutate as _, Packet};

const SYN: u8 = 0x02;

fn v4() -> Packet {
    packets::ethernet().ipv4("192.0.2.7", "192.0.2.1")
}

fn v6() -> Packet {
    packets::ethernet().ipv6("2001:db8::7", "2001:db8::1")
}

#[track_caller]
fn accepted(frame: &[u8]) -> Reading {
    parsed(frame)
        .unwrap_or_else(|malformed| panic!("refused as {malformed:?}: {frame:02x?}"))
        .expect("it is IP")
}

#[track_caller]
fn ports(packet: &Packet) -> Option<(u16, u16)> {
    let Reading { transport, .. } = accepted(&packet.build());
    transport
        .has_ports
        .then_some((transport.source_port, transport.destination_port))
}

#[test]
fn ports_flags_and_types_are_read() {
    let tcp = accepted(&v4().tcp(1000, 80).syn().build());
    assert_eq!(
        tcp.transport,
        Transport {
            has_ports: true,
            tcp_flags: SYN,
            source_port: 1000,
            destination_port: 80,
            ..Transport::EMPTY
        }
    );
    let icmp = accepted(&v6().icmp(1, 4, [0; 4]).build());
    assert_eq!(
        icmp.transport,
        Transport {
            icmp_type: 1,
            icmp_code: 4,
            ..Transport::EMPTY
        }
    );
    assert_eq!(ports(&v6().udp(53, 65_535)), Some((53, 65_535)));
    for protocol in [33, 132, 136] {
        let packet = v4()
            .protocol(protocol)
            .payload([3, 0xe8, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(ports(&packet), Some((1000, 80)), "protocol {protocol}");
    }
    for protocol in [4, 47, 50, 51, 89, 253] {
        let packet = v4().protocol(protocol).payload([0; 40]);
        assert_eq!(ports(&packet), None, "protocol {protocol}");
    }
}

#[test]
fn ports_are_read_behind_options_of_every_length() {
    for length in (0..=40).step_by(4) {
        let packet = v4().ipv4_options(&[1; 40][..length]);
        assert_eq!(ports(&packet.clone().udp(1000, 53)), Some((1000, 53)), "{length} bytes");
        assert_eq!(ports(&packet.tcp(1000, 80)), Some((1000, 80)), "{length} bytes");
    }
}

#[test]
fn ports_are_read_behind_every_extension_header_of_every_length() {
    for number in [
        ip_number::IPV6_HOP_BY_HOP,
        ip_number::IPV6_ROUTE,
        ip_number::IPV6_DEST_OPTIONS,
        ip_number::MOBILITY,
        ip_number::HIP,
        ip_number::SHIM6,
    ] {
        for units in [0, 1, 2, 17, 255] {
            let content = vec![0; 6 + 8 * units];
            let packet = v6().extension(number, &content).udp(1000, 53);
            assert_eq!(ports(&packet), Some((1000, 53)), "{number:?} with {units} units");
        }
    }
    assert_eq!(ports(&v6().authentication().tcp(1000, 80)), Some((1000, 80)));
    assert_eq!(ports(&v6().atomic_fragment(7).tcp(1000, 80)), Some((1000, 80)));
}

#[test]
fn an_authentication_header_counts_in_units_of_four_less_two() {
    for length in [0_u8, 1, 4, 13, 255] {
        let mut header = vec![ip_number::UDP.0, length];
        header.resize((usize::from(length) + 2) * 4, 0);
        let udp = [3, 0xe8, 0, 53, 0, 8, 0, 0];
        let packet = v6()
            .protocol(ip_number::AUTH.0)
            .payload([&header[..], &udp[..]].concat());
        assert_eq!(ports(&packet), Some((1000, 53)), "a length field of {length}");
    }
}

#[test]
fn chains_of_up_to_eight_are_followed_and_longer_ones_refused() {
    for length in 0..=12 {
        let chain = (0..length).fold(v6(), |packet, _| packet.destination_options());
        let frame = chain.udp(1000, 53).build();
        if length <= MAX_EXTENSION_HEADERS {
            let reading = accepted(&frame);
            assert_eq!(reading.upper.offset, 14 + 40 + 8 * length);
            assert_eq!(reading.transport.destination_port, 53);
        } else {
            assert_eq!(parsed(&frame), Err(Malformed::TooManyExtensions), "{length} headers");
        }
    }
}

#[test]
fn a_later_fragment_has_no_ports_whatever_its_bytes_look_like() {
    let looks_like_udp = [3, 0xe8, 0, 53, 0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    for packet in [
        v4().later_fragment(9, 64),
        v4().last_fragment(9, 64),
        v6().later_fragment(9, 64),
    ] {
        let reading = accepted(&packet.protocol(17).payload(looks_like_udp).build());
        assert_eq!(reading.transport, Transport::EMPTY);
        assert_eq!((reading.upper.part, reading.upper.fragment_id), (Part::Later, 9));
    }
}

#[test]
fn what_follows_a_later_fragment_is_not_taken_for_extension_headers() {
    let packet = v6()
        .later_fragment(9, 64)
        .protocol(60)
        .payload([17, 0, 0, 0, 0, 0, 0, 0]);
    let reading = accepted(&packet.build());
    assert_eq!((reading.upper.protocol, reading.upper.part), (60, Part::Later));
}

#[test]
fn a_first_fragment_has_ports_if_its_least_header_is_whole() {
    let with_options = v4().first_fragment(7).tcp(1000, 80).syn().tcp_options(&[1; 12]).build();
    // The options end in the next fragment.
    let cut = with_options
        .truncate_to(14 + 20 + 24)
        .with_bytes(14 + 2, &44u16.to_be_bytes());
    let reading = accepted(&cut);
    assert_eq!(reading.transport.destination_port, 80);
    assert_eq!((reading.upper.part, reading.upper.fragment_id), (Part::First, 7));
    // A length of UDP that is that of all fragments together.
    let udp = v6().first_fragment(7).udp(1000, 53).payload([0; 8]).build();
    assert_eq!(
        accepted(&udp.with_bytes(14 + 48 + 4, &1000u16.to_be_bytes()))
            .transport
            .destination_port,
        53
    );
}

#[test]
fn an_atomic_fragment_is_a_whole_packet_and_shares_no_identification() {
    for (frame, offset) in [
        (v4().atomic_fragment(7).udp(1, 2).build(), 34),
        (v6().atomic_fragment(7).udp(1, 2).build(), 62),
    ] {
        let reading = accepted(&frame);
        assert_eq!(
            reading.upper,
            Upper {
                protocol: 17,
                part: Part::Whole,
                fragment_id: 0,
                offset
            }
        );
    }
}

#[test]
fn fragments_may_reach_the_largest_packet_and_not_beyond() {
    let ending_at = |end: usize| {
        let offset_bytes = (end - 7) / 8 * 8;
        v4().last_fragment(1, offset_bytes as u16)
            .protocol(17)
            .payload(vec![0; end - offset_bytes])
            .build()
    };
    assert_eq!(accepted(&ending_at(65_535)).upper.part, Part::Later);
    assert_eq!(parsed(&ending_at(65_536)), Err(Malformed::FragmentBeyondEnd));
}

#[test]
fn padding_behind_the_packet_is_never_read() {
    // The payload ends, and ports, an extension header or the rest of one stand where the card pads.
    let ends_early = |protocol: u8, payload: &[u8], padding: &[u8]| {
        let frame = v6().protocol(protocol).payload(payload).build();
        parsed(&[frame, padding.to_vec()].concat())
    };
    let udp = [3, 0xe8, 0, 53, 0, 8, 0, 0];
    let destination_options = [17, 0, 1, 4, 0, 0, 0, 0];
    assert_eq!(ends_early(17, &[], &udp), Err(Malformed::UdpTruncated));
    assert_eq!(ends_early(17, &udp[..7], &udp[7..]), Err(Malformed::UdpTruncated));
    assert_eq!(ends_early(6, &[0; 19], &[0x50; 20]), Err(Malformed::TcpTruncated));
    assert_eq!(
        ends_early(60, &[], &destination_options),
        Err(Malformed::ExtensionTruncated)
    );
    assert_eq!(
        ends_early(60, &[59, 0, 0, 0, 0], &[0; 20]),
        Err(Malformed::ExtensionTruncated)
    );
    // Says that it is 16 bytes long, of which eight are padding.
    assert_eq!(
        ends_early(60, &[59, 1, 0, 0, 0, 0, 0, 0], &[0; 20]),
        Err(Malformed::ExtensionTruncated)
    );
    assert_eq!(
        ends_early(44, &[59, 0, 0, 0], &[0; 20]),
        Err(Malformed::ExtensionTruncated)
    );
}

#[test]
fn a_jumbogram_ends_where_the_frame_does() {
    // RFC 2675: both lengths say 0, the real one stands in a hop-by-hop option.
    let jumbo_option = [0xc2, 4, 0, 1, 0, 0];
    let frame = v6()
        .extension(ip_number::IPV6_HOP_BY_HOP, &jumbo_option)
        .udp(1000, 53)
        .payload([7; 100])
        .build();
    let frame = frame.with_bytes(14 + 4, &[0, 0]).with_bytes(14 + 48 + 4, &[0, 0]);
    assert_eq!(accepted(&frame).transport.destination_port, 53);
    assert_eq!(parsed(&frame[..14 + 48 + 7]), Err(Malformed::UdpTruncated));
    // Such a packet cannot be put together from fragments.
    let fragment = v6()
        .hop_by_hop()
        .first_fragment(1)
        .udp(1000, 53)
        .build()
        .with_bytes(14 + 4, &[0, 0]);
    assert_eq!(parsed(&fragment), Err(Malformed::FragmentBeyondEnd));
}

/// Frames that are refused: what they are, and why.
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn malformed() -> Vec<(&'static str, Vec<u8>, Malformed)> {
    use Malformed as M;
    let tagged = packets::ethernet().vlan(1).ipv4("192.0.2.7", "192.0.2.1").build();
    let three_tags = packets::ethernet().vlan(1).vlan(2).vlan(3).build();
    let (ip, behind_v4) = (14, 14 + 20);
    let (plain_v4, plain_v6) = (v4().build(), v6().build());
    let tcp = v4().tcp(1, 2).build();
    let udp = v4().udp(1, 2).payload([0; 4]).build();
    let udp_length = behind_v4 + 4;
    // IPv4's total length goes with what is cut.
    let v4_of = |protocol: u8, length: usize| v4().protocol(protocol).payload(vec![0x50; length]).build();
    let first = |protocol: u8, length: usize| {
        v4().first_fragment(1)
            .protocol(protocol)
            .payload(vec![0x50; length])
            .build()
    };
    let v6_ending_in = |number: IpNumber, length: usize| v6().protocol(number.0).payload(vec![0; length]).build();
    vec![
        ("a frame of no bytes", vec![], M::EthernetTruncated),
        ("thirteen bytes", plain_v4[..13].to_vec(), M::EthernetTruncated),
        ("half a tag", tagged.truncate_to(16), M::VlanTruncated),
        ("three tags", three_tags, M::TooManyTags),
        (
            "half an IPv4 header",
            plain_v4.clone().truncate_to(30),
            M::Ipv4Truncated,
        ),
        (
            "IPv6 where IPv4 is announced",
            plain_v4.clone().with_byte(ip, 0x65),
            M::Ipv4Version,
        ),
        (
            "an IPv4 header of 16 bytes",
            plain_v4.clone().with_byte(ip, 0x44),
            M::Ipv4HeaderLength,
        ),
        (
            "more than has arrived",
            plain_v4.with_byte(ip + 3, 21),
            M::Ipv4TotalLength,
        ),
        (
            "half an IPv6 header",
            plain_v6.clone().truncate_to(40),
            M::Ipv6Truncated,
        ),
        (
            "IPv4 where IPv6 is announced",
            plain_v6.clone().with_byte(ip, 0x45),
            M::Ipv6Version,
        ),
        (
            "a payload that has not arrived",
            plain_v6.with_byte(ip + 5, 1),
            M::Ipv6PayloadLength,
        ),
        (
            "an extension header cut off",
            v6_ending_in(ip_number::IPV6_ROUTE, 7),
            M::ExtensionTruncated,
        ),
        (
            "no fragment header",
            v6_ending_in(ip_number::IPV6_FRAG, 0),
            M::ExtensionTruncated,
        ),
        (
            "half an authentication header",
            v6_ending_in(ip_number::AUTH, 4),
            M::ExtensionTruncated,
        ),
        (
            "options longer than the packet",
            v6().protocol(60).payload([17, 1, 0, 0, 0, 0, 0, 0]).build(),
            M::ExtensionTruncated,
        ),
        (
            "nine extension headers",
            (0..9).fold(v6(), |packet, _| packet.routing()).udp(1, 2).build(),
            M::TooManyExtensions,
        ),
        (
            "a fragment of a fragment",
            v6().first_fragment(1).first_fragment(2).udp(1, 2).build(),
            M::TooManyExtensions,
        ),
        (
            "hop-by-hop options behind others",
            v6().destination_options().hop_by_hop().udp(1, 2).build(),
            M::HopByHopNotFirst,
        ),
        (
            "hop-by-hop options twice",
            v6().hop_by_hop().hop_by_hop().build(),
            M::HopByHopNotFirst,
        ),
        ("a first fragment with half of TCP", first(6, 16), M::TinyFragment),
        ("a first fragment with half of UDP", first(17, 4), M::TinyFragment),
        ("a first fragment of nothing", first(6, 0), M::TinyFragment),
        ("a first fragment with half of ICMP", first(1, 4), M::TinyFragment),
        ("a first fragment with half of SCTP", first(132, 8), M::TinyFragment),
        (
            "a first fragment over IPv6 with half of TCP",
            v6().first_fragment(1).protocol(6).payload([0x50; 16]).build(),
            M::TinyFragment,
        ),
        (
            "flags of TCP in a second fragment",
            v4().later_fragment(1, 8).protocol(6).payload([0; 16]).build(),
            M::OverlappingFragment,
        ),
        (
            "flags of TCP in a second fragment over IPv6",
            v6().last_fragment(1, 8).protocol(6).payload([0; 16]).build(),
            M::OverlappingFragment,
        ),
        (
            "the ping of death",
            v4().last_fragment(1, 65_528).protocol(1).payload([0; 8]).build(),
            M::FragmentBeyondEnd,
        ),
        (
            "the ping of death over IPv6",
            v6().last_fragment(1, 65_528).protocol(58).payload([0; 8]).build(),
            M::FragmentBeyondEnd,
        ),
        ("half a TCP header", v4_of(6, 19), M::TcpTruncated),
        (
            "TCP options that are not there",
            tcp.clone().with_byte(behind_v4 + 12, 0x60),
            M::TcpTruncated,
        ),
        (
            "a TCP header of 16 bytes",
            tcp.with_byte(behind_v4 + 12, 0x40),
            M::TcpDataOffset,
        ),
        (
            "a TCP header of 16 bytes in a first fragment",
            v4().first_fragment(1).tcp(1, 2).build().with_byte(behind_v4 + 12, 0x40),
            M::TcpDataOffset,
        ),
        ("half a UDP header", v4_of(17, 7), M::UdpTruncated),
        ("half a UDP-Lite header", v4_of(136, 7), M::UdpTruncated),
        (
            "a UDP length below its header's",
            udp.clone().with_byte(udp_length + 1, 7),
            M::UdpLength,
        ),
        (
            "a UDP length of 0",
            udp.clone().with_byte(udp_length + 1, 0),
            M::UdpLength,
        ),
        (
            "a UDP length beyond the packet",
            udp.with_byte(udp_length + 1, 13),
            M::UdpLength,
        ),
        ("half an ICMP header", v4_of(1, 7), M::IcmpTruncated),
        (
            "half an ICMPv6 header",
            v6_ending_in(ip_number::IPV6_ICMP, 7),
            M::IcmpTruncated,
        ),
        ("half an SCTP header", v4_of(132, 11), M::PortsTruncated),
        ("half a DCCP header", v4_of(33, 11), M::PortsTruncated),
    ]
}

#[test]
fn every_way_to_be_malformed_has_its_own_name() {
    let mut seen = BTreeSet::new();
    for (what, frame, reason) in malformed() {
        assert_eq!(parsed(&frame), Err(reason), "{what}: {frame:02x?}");
        seen.insert(reason);
    }
    assert!(seen.into_iter().eq(Malformed::ALL), "a reason does not occur");
}

#[test]
fn names_and_indices_of_the_reasons_are_unique() {
    let names: BTreeSet<&str> = Malformed::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), Malformed::COUNT as usize);
    for (index, reason) in Malformed::ALL.iter().enumerate() {
        assert_eq!(reason.index(), index as u32);
    }
}

#[test]
fn a_hundred_thousand_random_frames_are_read_as_the_standards_say() {
    let mut dice = Dice::new(2);
    let mut malformed = BTreeSet::new();
    let mut parts = BTreeSet::new();
    let mut with_ports = 0;
    for _ in 0..100_000 {
        let frame = frames::random(&mut dice);
        oracle::assert_agreement(&frame);
        match parsed(&frame) {
            Err(reason) => drop(malformed.insert(reason)),
            Ok(Some(reading)) => {
                parts.insert(reading.upper.part);
                with_ports += u32::from(reading.transport.has_ports);
            }
            Ok(None) => {}
        }
    }
    // Frames that are all refused, or all plain, would test little. Shorter than Ethernet they are never.
    assert!(malformed.into_iter().eq(Malformed::ALL.into_iter().skip(1)));
    assert!(parts.into_iter().eq([Part::Whole, Part::First, Part::Later]));
    assert!((20_000..80_000).contains(&with_ports), "{with_ports} with ports");
}

#[test]
fn a_packet_cut_anywhere_is_malformed_or_was_whole() {
    let mut dice = Dice::new(3);
    for _ in 0..2000 {
        let frame = frames::random(&mut dice);
        (0..frame.len()).for_each(|length| oracle::assert_agreement(&frame[..length]));
    }
}

#[test]
fn ports_lie_inside_the_payload_and_padding_changes_nothing() {
    let mut dice = Dice::new(4);
    for _ in 0..20_000 {
        let frame = frames::random(&mut dice);
        let Ok(Some(reading)) = parsed(&frame) else { continue };
        let end = Headers::parse(frame.as_slice()).unwrap().payload_end();
        if reading.transport.has_ports {
            assert!(reading.upper.offset + 4 <= end.min(frame.len()), "{frame:02x?}");
        }
        if end <= frame.len() {
            // Other padding, or none: the same packet.
            let mut repadded = frame[..end].to_vec();
            assert_eq!(parsed(&repadded), Ok(Some(Reading { ..reading })), "{frame:02x?}");
            repadded.extend([dice.number() as u8; 40]);
            assert_eq!(parsed(&repadded), parsed(&frame), "{frame:02x?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80 * ProptestConfig::default().cases))]

    #[test]
    fn any_bytes_behind_an_ip_header_are_read_as_the_standards_say(
        payload in proptest::collection::vec(any::<u8>(), 0..120),
        protocol in prop_oneof![
            Just(0u8), Just(6), Just(17), Just(33), Just(43), Just(44), Just(51), Just(58), Just(60), Just(132), any::<u8>()
        ],
        is_v6 in any::<bool>(),
        fragment in prop_oneof![3 => Just(0u16), 1 => any::<u16>()],
    ) {
        let packet = if is_v6 { v6() } else { v4() };
        let mut frame = packet.protocol(protocol).payload(payload).build();
        if !is_v6 {
            frame = frame.with_bytes(14 + 6, &fragment.to_be_bytes());
        }
        oracle::assert_agreement(&frame);
    }
}
