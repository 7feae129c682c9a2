//! The header parser against etherparse, an independent one, and against packets made to mislead it.

mod oracle;

use etherparse::{IpNumber, PacketBuilder, PacketBuilderStep};
use lab01_count_packets_common::headers::{Headers, MAX_VLAN_TAGS, Malformed};
use proptest::prelude::*;

fn parse(frame: &[u8]) -> Result<Headers, Malformed> {
    Headers::parse(frame)
}

const MAC_A: [u8; 6] = [2, 0, 0, 0, 0, 1];
const MAC_B: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Ethernet and as many VLAN tags as `tags` has TPIDs, around `payload`.
fn framed(tags: &[u16], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [MAC_A, MAC_B].concat();
    for (number, tpid) in tags.iter().enumerate() {
        frame.extend(tpid.to_be_bytes());
        frame.extend((number as u16 + 10).to_be_bytes());
    }
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload);
    frame
}

fn ipv4(options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    let mut packet = vec![0u8; 20];
    packet[0] = 0x40 | (header_len / 4) as u8;
    packet[2..4].copy_from_slice(&((header_len + payload.len()) as u16).to_be_bytes());
    packet[8] = 64;
    packet[9] = 17;
    packet[12..16].copy_from_slice(&[192, 0, 2, 7]);
    packet[16..20].copy_from_slice(&[198, 51, 100, 9]);
    packet.extend(options);
    packet.extend(payload);
    packet
}

fn ipv6(next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0u8; 40];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    packet[6] = next_header;
    packet[8..24].copy_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet[24..40].copy_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    packet.extend(payload);
    packet
}

#[test]
fn addresses_protocol_and_payload_of_ipv4_are_read() {
    let headers = parse(&framed(&[], 0x0800, &ipv4(&[], b"payload"))).unwrap();
    assert_eq!((headers.ip_version, headers.protocol, headers.payload_len), (4, 17, 7));
    assert_eq!(headers.source.ipv4(), [192, 0, 2, 7]);
    assert_eq!(headers.destination.ipv4(), [198, 51, 100, 9]);
    assert_eq!(headers.payload_offset, 14 + 20);
}

#[test]
fn the_payload_starts_behind_the_options_of_any_length() {
    for options_len in (0..=40).step_by(4) {
        let headers = parse(&framed(&[], 0x0800, &ipv4(&vec![1; options_len], b"xy"))).unwrap();
        assert_eq!(
            (headers.payload_offset, headers.payload_len),
            (34 + options_len, 2),
            "{options_len} bytes"
        );
    }
}

#[test]
fn one_and_two_tags_are_read_and_a_third_is_refused() {
    let packet = ipv4(&[], &[]);
    for tags in [&[][..], &[0x8100], &[0x88a8], &[0x88a8, 0x8100], &[0x8100, 0x8100]] {
        assert!(tags.len() <= MAX_VLAN_TAGS);
        let headers = parse(&framed(tags, 0x0800, &packet)).unwrap();
        assert_eq!(headers.payload_offset, 34 + 4 * tags.len());
    }
    assert_eq!(
        parse(&framed(&[0x88a8, 0x8100, 0x8100], 0x0800, &packet)),
        Err(Malformed::TooManyTags)
    );
}

#[test]
fn what_is_not_ip_is_told_by_its_ether_type() {
    for ether_type in [0x0806, 0x88cc, 0x0026, 0xffff] {
        let headers = parse(&framed(&[0x8100], ether_type, &[0; 46])).unwrap();
        assert_eq!((headers.ether_type, headers.ip_version), (ether_type, 0));
    }
}

#[test]
fn every_way_to_be_malformed_has_its_own_name() {
    let with = |mut packet: Vec<u8>, offset: usize, value: u8| {
        packet[offset] = value;
        packet
    };
    let v4 = |packet: Vec<u8>| framed(&[], 0x0800, &packet);
    let v6 = |packet: Vec<u8>| framed(&[], 0x86dd, &packet);
    let cases: [(Vec<u8>, Malformed); 13] = [
        (vec![], Malformed::EthernetTruncated),
        (framed(&[], 0x0800, &[])[..13].to_vec(), Malformed::EthernetTruncated),
        (framed(&[0x8100], 0x0800, &[])[..17].to_vec(), Malformed::VlanTruncated),
        (v4(ipv4(&[], &[])[..19].to_vec()), Malformed::Ipv4Truncated),
        (v4(with(ipv4(&[], &[]), 0, 0x4f)), Malformed::Ipv4Truncated),
        (v4(with(ipv4(&[], &[]), 0, 0x65)), Malformed::Ipv4Version),
        (v4(with(ipv4(&[], &[]), 0, 0x44)), Malformed::Ipv4HeaderLength),
        (v4(with(ipv4(&[], &[]), 3, 19)), Malformed::Ipv4TotalLength),
        (v4(with(ipv4(&[], b"abc"), 3, 24)), Malformed::Ipv4TotalLength),
        (v6(ipv6(17, &[])[..39].to_vec()), Malformed::Ipv6Truncated),
        (v6(with(ipv6(17, &[]), 0, 0x45)), Malformed::Ipv6Version),
        (v6(with(ipv6(17, b"abc"), 5, 4)), Malformed::Ipv6PayloadLength),
        (v6(with(ipv6(0, &[]), 5, 1)), Malformed::Ipv6PayloadLength),
    ];
    for (frame, malformed) in cases {
        assert_eq!(parse(&frame), Err(malformed), "{frame:02x?}");
    }
}

#[test]
fn a_jumbogram_may_say_zero() {
    // RFC 2675: the length stands in a hop-by-hop option, and the payload length is 0.
    let mut packet = ipv6(0, &[0; 64]);
    packet[4..6].fill(0);
    assert_eq!(parse(&framed(&[], 0x86dd, &packet)).unwrap().payload_len, 0);
}

#[test]
fn names_and_indices_of_the_reasons_are_unique() {
    let names: std::collections::BTreeSet<&str> = Malformed::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), Malformed::COUNT as usize);
    for (index, reason) in Malformed::ALL.iter().enumerate() {
        assert_eq!(reason.index(), index as u32);
    }
}

fn any_packet() -> impl Strategy<Value = Vec<u8>> {
    let tags = 0..=2usize;
    let payload = proptest::collection::vec(any::<u8>(), 0..200);
    let ports = (any::<u16>(), any::<u16>());
    (
        tags,
        any::<bool>(),
        any::<[u8; 16]>(),
        any::<[u8; 16]>(),
        any::<u8>(),
        payload,
        ports,
        0..3u8,
    )
        .prop_map(
            |(tags, v6, source, destination, ttl, payload, (sport, dport), transport)| {
                let mut frame = Vec::new();
                let link = PacketBuilder::ethernet2(MAC_A, MAC_B);
                let four = |address: [u8; 16]| [address[0], address[1], address[2], address[3]];
                macro_rules! network {
                    ($link:expr) => {
                        if v6 {
                            $link.ipv6(source, destination, ttl)
                        } else {
                            $link.ipv4(four(source), four(destination), ttl)
                        }
                    };
                }
                let step: PacketBuilderStep<etherparse::IpHeaders> = match tags {
                    0 => network!(link),
                    1 => network!(link.single_vlan(7.try_into().unwrap())),
                    _ => network!(link.double_vlan(8.try_into().unwrap(), 9.try_into().unwrap())),
                };
                match transport {
                    0 => step.udp(sport, dport).write(&mut frame, &payload),
                    1 => step.tcp(sport, dport, 1, 1024).write(&mut frame, &payload),
                    // Not one of the protocols that etherparse reads on from, so that what follows may be anything.
                    _ => step.write(&mut frame, IpNumber(253), &payload),
                }
                .unwrap();
                frame
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16 * ProptestConfig::default().cases))]

    #[test]
    fn valid_packets_read_as_etherparse_reads_them(frame in any_packet()) {
        let expected = oracle::by_etherparse(&frame).expect("etherparse reads what it has built");
        prop_assert_eq!(parse(&frame), Ok(expected));
    }

    #[test]
    fn padding_behind_the_packet_changes_nothing(frame in any_packet(), padding in 0..60usize) {
        let mut padded = frame.clone();
        padded.extend(vec![0xff; padding]);
        prop_assert_eq!(parse(&padded), parse(&frame));
    }

    #[test]
    fn a_packet_cut_anywhere_is_malformed_or_was_whole(frame in any_packet()) {
        let whole = parse(&frame).unwrap();
        let end = whole.payload_offset + usize::from(whole.payload_len);
        for length in 0..frame.len() {
            let cut = parse(&frame[..length]);
            if length < end {
                prop_assert!(cut.is_err(), "cut to {} of {} bytes: {:?}", length, end, cut);
            } else {
                prop_assert_eq!(cut, Ok(whole));
            }
        }
    }

    #[test]
    fn any_bytes_are_refused_or_read_as_etherparse_reads_them(
        mut frame in proptest::collection::vec(any::<u8>(), 14..160),
        ether_type in prop_oneof![Just([8, 0]), Just([0x86, 0xdd]), Just([0x81, 0]), any::<[u8; 2]>()],
        version in prop_oneof![Just(0x40), Just(0x60), Just(0x50)],
        high_byte_of_length in prop_oneof![9 => Just(0), 1 => any::<u8>()],
    ) {
        // Random bytes alone are hardly ever IP: these are nearly so.
        frame[12..14].copy_from_slice(&ether_type);
        if let Some(first) = frame.get_mut(14) { *first = version | *first & 0x0f; }
        let length_field = if version == 0x40 { 16 } else { 18 };
        if let Some(byte) = frame.get_mut(length_field) { *byte = high_byte_of_length; }
        oracle::assert_agreement(&frame);
    }
}
