//! An independent parser to compare with: for the property tests and for the fuzzer.

use etherparse::{EtherType, LaxPacketHeaders, LinkExtHeader, NetHeaders};
use lab01_count_packets_common::headers::{Address, Headers};

/// What etherparse makes of a frame, in the terms of the parser under test; `None` where it has no opinion.
pub fn by_etherparse(frame: &[u8]) -> Option<Headers> {
    let packet = LaxPacketHeaders::from_ethernet(frame).ok()?;
    let tags = packet
        .link_exts
        .iter()
        .filter(|header| matches!(header, LinkExtHeader::Vlan(_)))
        .count();
    let behind_link = 14 + 4 * tags;
    let headers = match packet.net? {
        NetHeaders::Ipv4(header, _) => {
            let payload_len = header.payload_len().ok()?;
            Headers {
                ether_type: EtherType::IPV4.0,
                ip_version: 4,
                protocol: header.protocol.0,
                fragment: u16::from(header.dont_fragment) << 14
                    | u16::from(header.more_fragments) << 13
                    | header.fragment_offset.value(),
                payload_len,
                payload_offset: behind_link + header.header_len(),
                network_offset: behind_link,
                source: Address::from_ipv4(header.source),
                destination: Address::from_ipv4(header.destination),
            }
        }
        NetHeaders::Ipv6(header, _) => Headers {
            ether_type: EtherType::IPV6.0,
            ip_version: 6,
            protocol: header.next_header.0,
            fragment: 0,
            payload_len: header.payload_length,
            payload_offset: behind_link + 40,
            network_offset: behind_link,
            source: Address::from_ipv6(header.source),
            destination: Address::from_ipv6(header.destination),
        },
        NetHeaders::Arp(_) => return None,
    };
    Some(headers)
}

/// Panics if the parser accepts `frame` as IP and reads another thing from it than etherparse does.
pub fn assert_agreement(frame: &[u8]) {
    let Ok(headers) = Headers::parse(frame) else { return };
    if headers.ip_version == 0 {
        return;
    }
    assert!(
        headers.payload_offset + usize::from(headers.payload_len) <= frame.len(),
        "{headers:?}"
    );
    let mut expected = by_etherparse(frame).expect("what is accepted here is read there");
    if headers.ip_version == 4 {
        expected.fragment |= headers.fragment & 0x8000; // the reserved bit, which etherparse does not keep
    }
    assert_eq!(headers, expected, "{frame:02x?}");
}
