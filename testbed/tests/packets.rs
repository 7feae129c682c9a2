//! The packet builder, checked by a parser that knows nothing of it.

use etherparse::{
    Icmpv4Type, Icmpv6Type, LinkExtSlice, NetSlice, SlicedPacket, TransportSlice, checksum::Sum16BitWords, ip_number,
};
use testbed::packets::{Mutate as _, Packet, ethernet, random_bytes, split};

const A4: &str = "192.0.2.1";
const B4: &str = "192.0.2.2";
const A6: &str = "2001:db8::1";
const B6: &str = "2001:db8::2";

fn parse(frame: &[u8]) -> SlicedPacket<'_> {
    SlicedPacket::from_ethernet(frame).unwrap()
}

/// The sum over the transport header, its payload and the pseudo-header is all ones where the checksum is right.
fn has_right_transport_checksum(frame: &[u8]) -> bool {
    let packet = parse(frame);
    let (sum, protocol, payload) = match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let sum = Sum16BitWords::new()
                .add_4bytes(header.source())
                .add_4bytes(header.destination());
            (sum, ip.payload().ip_number, ip.payload().payload)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let sum = Sum16BitWords::new()
                .add_16bytes(header.source())
                .add_16bytes(header.destination());
            (sum, ip.payload().ip_number, ip.payload().payload)
        }
        NetSlice::Arp(_) => panic!("no IP packet"),
    };
    let sum = if protocol == ip_number::ICMP {
        Sum16BitWords::new()
    } else {
        let mut sum = sum.add_2bytes([0, protocol.0]);
        sum.add_4bytes((payload.len() as u32).to_be_bytes())
    };
    sum.add_slice(payload).ones_complement() == 0
}

#[test]
fn lengths_and_checksums_are_right_over_either_ip_version() {
    for payload in [0, 1, 10, 1001] {
        for ip in [ethernet().ipv4(A4, B4), ethernet().ipv6(A6, B6)] {
            let payload = random_bytes(7, payload);
            let packets = [
                ip.clone().udp(1000, 53),
                ip.clone().tcp(1000, 80).syn(),
                ip.clone()
                    .tcp(1000, 80)
                    .acknowledgment(9)
                    .psh()
                    .tcp_options(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]),
                ip.clone().icmp_echo_request(1, 2),
            ];
            for packet in packets {
                let frame = packet.clone().payload(&payload).build();
                assert!(has_right_transport_checksum(&frame), "{packet:?}");
                let damaged = frame.clone().with_byte(frame.len() - 1, frame[frame.len() - 1] ^ 1);
                assert!(!has_right_transport_checksum(&damaged));
            }
        }
    }
}

#[test]
fn an_ipv4_header_has_its_options_and_its_checksum() {
    let frame = ethernet().ipv4(A4, B4).ipv4_options(&[1; 8]).ttl(3).udp(1, 2).build();
    let Some(NetSlice::Ipv4(ip)) = parse(&frame).net else {
        panic!("no IPv4");
    };
    let header = ip.header().to_header();
    assert_eq!(header.options.as_ref(), [1; 8]);
    assert_eq!(header.time_to_live, 3);
    assert_eq!(header.total_len, 28 + 8);
    assert_eq!(header.header_checksum, header.calc_header_checksum());
}

#[test]
fn vlan_tags_stand_in_the_order_in_which_they_were_added() {
    let frame = ethernet()
        .service_vlan(20)
        .vlan(10)
        .priority(5)
        .vlan(30)
        .ipv4(A4, B4)
        .udp(1, 2)
        .build();
    assert_eq!(
        frame[12..26],
        [0x88, 0xa8, 0, 20, 0x81, 0, 0xa0, 10, 0x81, 0, 0, 30, 8, 0]
    );
    let tags: Vec<_> = parse(&frame)
        .link_exts
        .iter()
        .filter_map(|tag| match tag {
            LinkExtSlice::Vlan(tag) => Some(tag.vlan_identifier().value()),
            LinkExtSlice::Macsec(_) => None,
        })
        .collect();
    assert_eq!(tags, [20, 10, 30]);
}

#[test]
fn every_extension_header_is_chained_to_the_next() {
    let frame = ethernet()
        .ipv6(A6, B6)
        .hop_by_hop()
        .destination_options()
        .routing()
        .atomic_fragment(7)
        .authentication()
        .destination_options()
        .udp(1, 2)
        .payload(b"end")
        .build();
    assert_eq!(
        next_headers(&frame),
        [
            ip_number::IPV6_HOP_BY_HOP.0,
            ip_number::IPV6_DEST_OPTIONS.0,
            ip_number::IPV6_ROUTE.0,
            ip_number::IPV6_FRAG.0,
            ip_number::AUTH.0,
            ip_number::IPV6_DEST_OPTIONS.0,
            ip_number::UDP.0
        ]
    );
    assert!(has_right_transport_checksum(&frame));
}

/// Walks the chain as RFC 8200, section 4, and RFC 4302 tell, by the bytes.
fn next_headers(frame: &[u8]) -> Vec<u8> {
    let mut number = frame[14 + 6];
    let mut at = 14 + 40;
    let mut numbers = vec![number];
    while matches!(number, 0 | 43 | 44 | 51 | 60) {
        let length = match number {
            44 => 8,
            51 => (usize::from(frame[at + 1]) + 2) * 4,
            _ => (usize::from(frame[at + 1]) + 1) * 8,
        };
        number = frame[at];
        numbers.push(number);
        at += length;
    }
    numbers
}

#[test]
fn fragments_say_where_they_belong() {
    let first = ethernet()
        .ipv4(A4, B4)
        .first_fragment(7)
        .udp(1, 2)
        .payload([0; 8])
        .build();
    let later = ethernet()
        .ipv4(A4, B4)
        .later_fragment(7, 16)
        .protocol(17)
        .payload([0; 8])
        .build();
    let last = ethernet()
        .ipv4(A4, B4)
        .last_fragment(7, 24)
        .protocol(17)
        .payload([0; 8])
        .build();
    // Identification, then flags and offset in units of 8 bytes.
    assert_eq!(first[18..22], [0, 7, 0x20, 0]);
    assert_eq!(later[18..22], [0, 7, 0x20, 2]);
    assert_eq!(last[18..22], [0, 7, 0, 3]);
    assert_eq!([first[23], later[23], last[23]], [17; 3]);

    let later = ethernet()
        .ipv6(A6, B6)
        .later_fragment(9, 1448)
        .protocol(6)
        .payload([0; 8])
        .build();
    assert_eq!(later[54..62], [6, 0, 0x05, 0xa9, 0, 0, 0, 9]);
}

#[test]
fn the_fragments_of_a_split_datagram_make_up_the_datagram() {
    for (ip, header) in [
        (ethernet().vlan(5).ipv4(A4, B4), 20),
        (ethernet().vlan(5).ipv6(A6, B6), 48),
    ] {
        let whole = ip.udp(1000, 2000).payload(random_bytes(1, 3000)).build();
        let fragments = split(&whole, 1280, 77);
        assert_eq!(fragments.len(), 3);
        assert!(fragments.iter().all(|fragment| fragment.len() <= 18 + 1280));
        let content: Vec<u8> = fragments
            .iter()
            .flat_map(|fragment| fragment[18 + header..].to_vec())
            .collect();
        assert_eq!(content, whole[whole.len() - 3008..]);
        assert_eq!(split(&whole, 9000, 1), [whole]);
    }
}

#[test]
fn an_icmp_error_quotes_the_offending_packet() {
    let offending = ethernet().vlan(3).ipv4(A4, B4).udp(1000, 53).payload([1; 1000]).build();
    let error = ethernet().ipv4(B4, A4).icmp_port_unreachable(&offending).build();
    assert!(has_right_transport_checksum(&error));
    let Some(TransportSlice::Icmpv4(icmp)) = parse(&error).transport else {
        panic!("no ICMP");
    };
    assert!(matches!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(_)));
    assert_eq!(icmp.payload(), &offending[18..18 + 548]);

    let offending = ethernet().ipv6(A6, B6).udp(1000, 53).build();
    let error = ethernet().ipv6(B6, A6).icmp_too_big(1280, &offending).build();
    assert!(has_right_transport_checksum(&error));
    let Some(TransportSlice::Icmpv6(icmp)) = parse(&error).transport else {
        panic!("no ICMPv6");
    };
    assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 1280 });
    assert_eq!(icmp.payload(), &offending[14..]);
}

#[test]
fn tunnels_are_ip_in_ip() {
    let frame = ethernet()
        .ipv4(A4, B4)
        .ipv6(A6, B6)
        .udp(1, 2)
        .payload(b"inside")
        .build();
    assert_eq!(frame[23], ip_number::IPV6.0);
    let inside = [&frame[..12], &[0x86, 0xdd], &frame[34..]].concat();
    assert!(has_right_transport_checksum(&inside));
}

#[test]
fn all_tcp_flags_can_be_set() {
    for flags in 0..=0xff {
        let frame = ethernet().ipv4(A4, B4).tcp(1, 2).tcp_flags(flags).build();
        assert_eq!(frame[14 + 20 + 13], flags);
    }
}

#[test]
fn random_bytes_are_the_same_for_the_same_seed_only() {
    assert_eq!(random_bytes(1, 100), random_bytes(1, 100));
    assert_ne!(random_bytes(1, 100), random_bytes(2, 100));
    assert_eq!(random_bytes(1, 13).len(), 13);
}

#[test]
fn mutators_touch_what_they_name_and_nothing_else() {
    let frame = ethernet().ipv4(A4, B4).udp(1, 2).build();
    assert_eq!(frame.clone().truncate_to(20), frame[..20]);
    let lying = frame.clone().with_byte(14, 0x4f);
    assert_eq!((lying[14], &lying[15..]), (0x4f, &frame[15..]));
    let padded = frame.clone().pad_to(60);
    assert_eq!((padded.len(), &padded[..frame.len()]), (60, &frame[..]));
    assert_eq!(padded.clone().pad_to(10), padded);
}

#[test]
fn a_builder_used_in_a_senseless_order_says_so() {
    type Misuse = fn() -> Packet;
    let misuse: [(&str, Misuse); 4] = [
        ("syn comes right after tcp", || ethernet().ipv4(A4, B4).udp(1, 2).syn()),
        ("priority comes right after vlan", || {
            ethernet().ipv4(A4, B4).priority(1)
        }),
        ("ICMP comes right after ipv4 or ipv6", || {
            ethernet().icmp_echo_request(1, 1)
        }),
        ("\"192.0.2.300\" is not an address of this kind", || {
            ethernet().ipv4("192.0.2.300", B4)
        }),
    ];
    for (message, build) in misuse {
        let panic = std::panic::catch_unwind(build).unwrap_err();
        assert_eq!(panic.downcast_ref::<String>().map(String::as_str), Some(message));
    }
}

#[test]
fn arp_asks_and_answers() {
    let request = ethernet().to_broadcast().arp_request(A4, B4).build();
    assert_eq!(request[..6], [0xff; 6]);
    assert_eq!(request[20..22], [0, 1]);
    let reply = ethernet().arp_reply(B4, A4).build();
    assert_eq!(reply[20..22], [0, 2]);
    assert_eq!(reply[28..32], [192, 0, 2, 2]);
}
