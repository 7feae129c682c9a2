//! Messages are told apart as a parser written for slices, without regard for any verifier, tells them.

mod oracle;

use lab05_ringbuf_events_common::messages::Message;
use oracle::{assert_agreement, message_in};
use proptest::prelude::*;
use testbed::packets;

fn v4(from: u16, to: u16, payload: Vec<u8>) -> Vec<u8> {
    packets::ethernet()
        .ipv4("192.0.2.1", "192.0.2.2")
        .udp(from, to)
        .payload(payload)
        .build()
}

fn dhcp(options: Vec<u8>) -> Vec<u8> {
    [vec![1; 236], vec![99, 130, 83, 99], options].concat()
}

#[test]
fn names_and_indices_are_distinct_and_in_order() {
    let names: std::collections::BTreeSet<&str> = Message::ALL.iter().map(|message| message.name()).collect();
    assert_eq!(names.len(), Message::COUNT as usize);
    assert!(
        Message::ALL
            .iter()
            .enumerate()
            .all(|(index, message)| message.index() as usize == index)
    );
}

#[test]
fn the_message_type_is_found_among_pads_and_other_options_and_not_behind_the_end() {
    let cases = [
        (vec![53, 1, 3], Some(Message::DhcpRequest)),
        (vec![0, 0, 0, 53, 1, 8, 255], Some(Message::DhcpInform)),
        (vec![255, 53, 1, 1], Some(Message::DhcpOther)),
        (vec![53, 1, 99, 255], Some(Message::DhcpOther)),
        (vec![53, 2, 1, 1, 255], Some(Message::DhcpMalformed)),
        (vec![12, 255, 1, 2, 3], Some(Message::DhcpMalformed)),
        (vec![], Some(Message::DhcpMalformed)),
        // More options than are looked at.
        ([vec![0; 40], vec![53, 1, 1]].concat(), Some(Message::DhcpOther)),
    ];
    for (options, expected) in cases {
        let frame = v4(68, 67, dhcp(options.clone()));
        assert_eq!(message_in(&frame), expected, "{options:?}");
        assert_agreement(&frame);
    }
}

#[test]
fn only_udp_to_or_from_the_ports_is_looked_into() {
    let query = [vec![0, 1, 1, 0], vec![0; 8]].concat();
    assert_eq!(message_in(&v4(4000, 5353, query.clone())), None);
    assert_eq!(message_in(&v4(4000, 53, query.clone())), Some(Message::DnsQuery));
    // DHCP's ports mean nothing in IPv6, nor DHCPv6's in IPv4.
    assert_eq!(message_in(&v4(546, 547, vec![1])), None);
    let tcp = packets::ethernet()
        .ipv4("192.0.2.1", "192.0.2.2")
        .tcp(4000, 53)
        .payload(query)
        .build();
    assert_eq!(message_in(&tcp), None);
}

proptest! {
    #[test]
    fn any_payload_is_told_as_the_naive_reader_tells_it(
        port in prop::sample::select(vec![53_u16, 67, 68, 546, 547, 4000]),
        other in any::<u16>(),
        is_v6 in any::<bool>(),
        with_magic in any::<bool>(),
        payload in prop::collection::vec(any::<u8>(), 0..300),
        options in prop::collection::vec((prop::sample::select(vec![0_u8, 12, 53, 255, 1]), 0_u8..6), 0..50),
    ) {
        let options: Vec<u8> = options.into_iter().flat_map(|(code, len)| match code {
            0 | 255 => vec![code],
            code => [vec![code, len], vec![len; usize::from(len)]].concat(),
        }).collect();
        let payload = if with_magic { dhcp(options) } else { payload };
        let frame = if is_v6 {
            packets::ethernet().ipv6("2001:db8::1", "2001:db8::2").udp(other, port).payload(payload).build()
        } else {
            v4(other, port, payload)
        };
        assert_agreement(&frame);
    }

    #[test]
    fn any_bytes_are_told_as_the_naive_reader_tells_them(frame in prop::collection::vec(any::<u8>(), 0..400)) {
        assert_agreement(&frame);
    }
}
