//! A naive reader of DNS and DHCP, on slices; the headers below are read by lab02's parser, which has an oracle of its own.

use lab01_count_packets_common::headers::Headers;
use lab02_xdp_firewall_common::transport::{Part, Transport, UDP, Upper};
use lab05_ringbuf_events_common::messages::{MAX_OPTIONS, Message, Scan, message_of};

/// What the parser says of a frame.
pub fn message_in(frame: &[u8]) -> Option<Message> {
    let headers = Headers::parse(frame).ok()?;
    let upper = Upper::find(frame, &headers).ok()?;
    let transport = Transport::read(frame, &headers, &upper).ok()?;
    message_of(frame, &headers, &upper, &transport, &mut Scan::default())
}

/// Both say the same.
pub fn assert_agreement(frame: &[u8]) {
    assert_eq!(message_in(frame), naive(frame), "{frame:02x?}");
}

fn naive(frame: &[u8]) -> Option<Message> {
    let headers = Headers::parse(frame).ok()?;
    let upper = Upper::find(frame, &headers).ok()?;
    let transport = Transport::read(frame, &headers, &upper).ok()?;
    if upper.protocol != UDP || upper.part != Part::Whole {
        return None;
    }
    let payload = &frame[upper.offset + 8..headers.payload_end().min(frame.len())];
    let ports = [transport.source_port, transport.destination_port];
    if ports.contains(&53) {
        return Some(dns(payload));
    }
    match headers.ip_version {
        4 if ports.contains(&67) || ports.contains(&68) => Some(dhcp(payload).unwrap_or(Message::DhcpMalformed)),
        6 if ports.contains(&546) || ports.contains(&547) => Some(match payload.first() {
            None => Message::Dhcpv6Malformed,
            Some(number @ 1..=13) => Message::ALL[Message::Dhcpv6Solicit as usize + usize::from(*number) - 1],
            Some(_) => Message::Dhcpv6Other,
        }),
        _ => None,
    }
}

fn dns(payload: &[u8]) -> Message {
    if payload.len() < 12 {
        return Message::DnsMalformed;
    }
    let flags = u16::from_be_bytes([payload[2], payload[3]]);
    match (flags >> 11 & 15, flags >> 15, flags & 15) {
        (1.., _, _) => Message::DnsOther,
        (_, 0, _) => Message::DnsQuery,
        (_, _, 0) => Message::DnsAnswer,
        (_, _, 2) => Message::DnsServerFailure,
        (_, _, 3) => Message::DnsNoSuchName,
        _ => Message::DnsOtherError,
    }
}

/// `None` is malformed.
fn dhcp(payload: &[u8]) -> Option<Message> {
    let mut options = payload.get(236..)?.strip_prefix(&[99, 130, 83, 99])?;
    for _ in 0..MAX_OPTIONS {
        match options {
            [0, rest @ ..] => options = rest,
            [255, ..] => return Some(Message::DhcpOther),
            // An option without room for one byte of content is not looked for beyond.
            [53, len, value, ..] => {
                return match (len, value) {
                    (1, 1..=8) => Some(Message::ALL[Message::DhcpDiscover as usize + usize::from(*value) - 1]),
                    (1, _) => Some(Message::DhcpOther),
                    _ => None,
                };
            }
            [_, len, _, ..] => options = options.get(2 + usize::from(*len)..).unwrap_or_default(),
            _ => return None,
        }
    }
    Some(Message::DhcpOther)
}
