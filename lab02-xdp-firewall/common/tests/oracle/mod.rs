//! An independent reading of a frame to compare with: for the tests and for the fuzzer.
//!
//! Ethernet and IP are read by lab01's parser, whose own tests hold it against etherparse. What follows is read here
//! with etherparse's headers and the standards' words, from a slice that ends where the IP payload does.

use etherparse::{
    IpNumber, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, TcpHeaderSlice,
    UdpHeaderSlice, ip_number,
};
use lab01_count_packets_common::headers::Headers;
use lab02_xdp_firewall_common::transport::{Malformed, Part, Transport, Upper};

/// What has to be read from an IP packet.
#[derive(Debug, PartialEq, Eq)]
pub struct Reading {
    pub upper: Upper,
    pub transport: Transport,
}

/// What has to be read from a frame, or why it has to be refused; `None` if it is not IP.
pub fn reading(frame: &[u8]) -> Result<Option<Reading>, Malformed> {
    let headers = Headers::parse(frame)?;
    let packet = &frame[headers.network_offset..headers.payload_end().min(frame.len())];
    match headers.ip_version {
        4 => ipv4(packet, headers.network_offset).map(Some),
        6 => ipv6(packet, headers.network_offset).map(Some),
        _ => Ok(None),
    }
}

/// What lab02's parser reads from a frame.
pub fn parsed(frame: &[u8]) -> Result<Option<Reading>, Malformed> {
    let headers = Headers::parse(frame)?;
    let upper = Upper::find(frame, &headers)?;
    let transport = Transport::read(frame, &headers, &upper)?;
    Ok((headers.ip_version != 0).then_some(Reading { upper, transport }))
}

/// Panics if lab02's parser reads another thing from `frame` than what has to be read.
pub fn assert_agreement(frame: &[u8]) {
    assert_eq!(parsed(frame), reading(frame), "{frame:02x?}");
}

/// Where a piece of a packet lies in it.
struct Fragment {
    offset_bytes: usize,
    more: bool,
    id: u32,
}

fn ipv4(packet: &[u8], network_offset: usize) -> Result<Reading, Malformed> {
    let header = Ipv4HeaderSlice::from_slice(packet).expect("lab01's parser has accepted it");
    let fragment = Fragment {
        offset_bytes: usize::from(header.fragments_offset().value()) * 8,
        more: header.more_fragments(),
        id: header.identification().into(),
    };
    let payload = &packet[header.slice().len()..];
    let offset = network_offset + header.slice().len();
    upper_layer(header.protocol(), Some(fragment), payload, payload.len(), offset)
}

fn ipv6(packet: &[u8], network_offset: usize) -> Result<Reading, Malformed> {
    let header = Ipv6HeaderSlice::from_slice(packet).expect("lab01's parser has accepted it");
    let jumbogram = header.payload_length() == 0 && header.next_header() == ip_number::IPV6_HOP_BY_HOP;
    let mut protocol = header.next_header();
    let mut payload = &packet[40..];
    let mut fragment: Option<Fragment> = None;
    let mut extensions = 0;
    while is_extension(protocol) && fragment.as_ref().is_none_or(|fragment| fragment.offset_bytes == 0) {
        let another_fragment = protocol == ip_number::IPV6_FRAG && fragment.is_some();
        if extensions == 8 || another_fragment {
            return Err(Malformed::TooManyExtensions);
        }
        if protocol == ip_number::IPV6_HOP_BY_HOP && extensions > 0 {
            return Err(Malformed::HopByHopNotFirst);
        }
        let length;
        (protocol, length) = match protocol {
            ip_number::IPV6_FRAG => {
                let header = Ipv6FragmentHeaderSlice::from_slice(payload).map_err(|_| Malformed::ExtensionTruncated)?;
                fragment = Some(Fragment {
                    offset_bytes: usize::from(header.fragment_offset().value()) * 8,
                    more: header.more_fragments(),
                    id: header.identification(),
                });
                (header.next_header(), 8)
            }
            // RFC 4302, section 2.2: in units of four bytes, less two. etherparse refuses what is too short for a check
            // value; nothing is hidden behind that either.
            ip_number::AUTH => match payload {
                [next, length, _, _, _, _, _, _, ..] => (IpNumber(*next), (usize::from(*length) + 2) * 4),
                _ => return Err(Malformed::ExtensionTruncated),
            },
            _ => {
                let header = Ipv6RawExtHeaderSlice::from_slice(payload).map_err(|_| Malformed::ExtensionTruncated)?;
                (header.next_header(), header.slice().len())
            }
        };
        payload = payload.get(length..).ok_or(Malformed::ExtensionTruncated)?;
        extensions += 1;
    }
    let offset = network_offset + packet.len() - payload.len();
    // A jumbogram is longer than any packet that can be put together from fragments.
    let claimed_len = if jumbogram { usize::MAX / 2 } else { payload.len() };
    let mut reading = upper_layer(protocol, fragment, payload, claimed_len, offset);
    if jumbogram && reading == Err(Malformed::UdpLength) {
        // RFC 2675, section 4: UDP's length is 0 then.
        let mut without_length = payload.to_vec();
        without_length[4..6].copy_from_slice(&8u16.to_be_bytes());
        reading = upper_layer(protocol, None, &without_length, claimed_len, offset);
    }
    reading
}

fn is_extension(protocol: IpNumber) -> bool {
    [
        ip_number::IPV6_HOP_BY_HOP,
        ip_number::IPV6_ROUTE,
        ip_number::IPV6_FRAG,
        ip_number::AUTH,
        ip_number::IPV6_DEST_OPTIONS,
        ip_number::MOBILITY,
        ip_number::HIP,
        ip_number::SHIM6,
    ]
    .contains(&protocol)
}

/// `payload` is what there is of the `claimed_len` bytes that the headers tell.
fn upper_layer(
    protocol: IpNumber,
    fragment: Option<Fragment>,
    payload: &[u8],
    claimed_len: usize,
    offset: usize,
) -> Result<Reading, Malformed> {
    let fragment = fragment.filter(|fragment| fragment.offset_bytes > 0 || fragment.more);
    let part = match &fragment {
        None => Part::Whole,
        Some(Fragment { offset_bytes: 0, .. }) => Part::First,
        Some(_) => Part::Later,
    };
    if let Some(Fragment { offset_bytes, .. }) = fragment {
        if offset_bytes + claimed_len > 65_535 {
            return Err(Malformed::FragmentBeyondEnd);
        }
        if protocol == ip_number::TCP && offset_bytes == 8 {
            return Err(Malformed::OverlappingFragment);
        }
    }
    Ok(Reading {
        upper: Upper {
            protocol: protocol.0,
            part,
            fragment_id: fragment.map_or(0, |fragment| fragment.id),
            offset,
        },
        transport: match part {
            Part::Later => Transport::EMPTY,
            Part::First => first_fragment(protocol, payload)?,
            Part::Whole => whole(protocol, payload)?,
        },
    })
}

fn whole(protocol: IpNumber, payload: &[u8]) -> Result<Transport, Malformed> {
    match protocol {
        ip_number::TCP => match TcpHeaderSlice::from_slice(payload) {
            Ok(header) => Ok(tcp(header.slice())),
            Err(etherparse::err::tcp::HeaderSliceError::Len(_)) => Err(Malformed::TcpTruncated),
            Err(etherparse::err::tcp::HeaderSliceError::Content(_)) => Err(Malformed::TcpDataOffset),
        },
        ip_number::UDP => {
            let header = UdpHeaderSlice::from_slice(payload).map_err(|_| Malformed::UdpTruncated)?;
            if (8..=payload.len()).contains(&header.length().into()) {
                Ok(ports(payload))
            } else {
                Err(Malformed::UdpLength)
            }
        }
        _ => others(protocol, payload),
    }
}

/// A first fragment may end anywhere behind the least header that its protocol has, and lengths tell of all fragments.
fn first_fragment(protocol: IpNumber, payload: &[u8]) -> Result<Transport, Malformed> {
    match protocol {
        ip_number::TCP => match payload.get(12) {
            Some(data_offset) if payload.len() >= 20 && data_offset >> 4 < 5 => Err(Malformed::TcpDataOffset),
            Some(_) if payload.len() >= 20 => Ok(tcp(payload)),
            _ => Err(Malformed::TinyFragment),
        },
        ip_number::UDP if payload.len() >= 8 => Ok(ports(payload)),
        ip_number::UDP => Err(Malformed::TinyFragment),
        _ => others(protocol, payload).map_err(|_| Malformed::TinyFragment),
    }
}

fn others(protocol: IpNumber, payload: &[u8]) -> Result<Transport, Malformed> {
    const DCCP: IpNumber = IpNumber(33);
    const UDP_LITE: IpNumber = IpNumber(136);
    match protocol {
        UDP_LITE if payload.len() < 8 => Err(Malformed::UdpTruncated),
        ip_number::SCTP | DCCP if payload.len() < 12 => Err(Malformed::PortsTruncated),
        ip_number::ICMP | ip_number::IPV6_ICMP if payload.len() < 8 => Err(Malformed::IcmpTruncated),
        UDP_LITE | ip_number::SCTP | DCCP => Ok(ports(payload)),
        ip_number::ICMP | ip_number::IPV6_ICMP => Ok(Transport {
            icmp_type: payload[0],
            icmp_code: payload[1],
            ..Transport::EMPTY
        }),
        _ => Ok(Transport::EMPTY),
    }
}

fn tcp(header: &[u8]) -> Transport {
    Transport {
        tcp_flags: header[13],
        ..ports(header)
    }
}

fn ports(header: &[u8]) -> Transport {
    Transport {
        has_ports: true,
        source_port: u16::from_be_bytes([header[0], header[1]]),
        destination_port: u16::from_be_bytes([header[2], header[3]]),
        ..Transport::EMPTY
    }
}
