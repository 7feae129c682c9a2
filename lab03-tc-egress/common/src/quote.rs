//! The packet that an ICMP error is about, of which it quotes the beginning.

use lab01_count_packets_common::{
    headers::{Address, Headers},
    packet::Packet,
};
use lab02_xdp_firewall_common::transport::{ICMP, ICMPV6, TCP, UDP};

use crate::flow::key::Endpoint;

/// The ends and the protocol of a quoted packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Who had sent it.
    pub source: Endpoint,
    /// Who was to get it.
    pub destination: Endpoint,
    /// Its protocol.
    pub protocol: u8,
}

/// An ICMP header starts at most here: behind more headers than any honest error has.
const MAX_OFFSET: usize = 0x1000;

/// Whether an ICMP message of this type is an error, which quotes a packet: RFC 792 and RFC 4443 section 2.1.
#[inline(always)]
pub const fn is_error(protocol: u8, icmp_type: u8) -> bool {
    match protocol {
        ICMP => matches!(icmp_type, 3 | 4 | 5 | 11 | 12),
        ICMPV6 => icmp_type < 128,
        _ => false,
    }
}

impl Quote {
    /// Reads the quote of an error whose ICMP header starts at `offset` behind `headers`; `None` if it is no whole
    /// beginning of a packet, or a later fragment's.
    ///
    /// Only as much is read as every error has to quote: the IP header and eight bytes behind it. A quoted IPv6 packet
    /// with extension headers is nobody's.
    #[inline(always)]
    pub fn read<P: Packet + ?Sized>(packet: &P, headers: &Headers, offset: usize) -> Option<Self> {
        // The verifier knows nothing of an offset that comes from a map, and would have to believe that a sum wraps.
        if offset > MAX_OFFSET {
            return None;
        }
        let start = offset + 8;
        let (source, destination, protocol, behind) = if headers.ip_version == 4 {
            let header: [u8; 20] = packet.read(start)?;
            let header_len = usize::from(header[0] & 15) * 4;
            let later_fragment = header[6] & 0x1f != 0 || header[7] != 0;
            if header[0] >> 4 != 4 || header_len < 20 || later_fragment {
                return None;
            }
            let source = Address::from_ipv4([header[12], header[13], header[14], header[15]]);
            let destination = Address::from_ipv4([header[16], header[17], header[18], header[19]]);
            (source, destination, header[9], start + header_len)
        } else {
            let header: [u8; 40] = packet.read(start)?;
            let [version, _, _, _, _, _, protocol, _, addresses @ ..] = header;
            if version >> 4 != 6 {
                return None;
            }
            let (source, destination) = addresses.split_first_chunk::<16>()?;
            let destination = destination.first_chunk::<16>()?;
            let (source, destination) = (Address::from_ipv6(*source), Address::from_ipv6(*destination));
            (source, destination, protocol, start + 40)
        };
        let transport: [u8; 8] = packet.read(behind)?;
        let (source_port, destination_port) = match protocol {
            TCP | UDP => (
                u16::from_be_bytes([transport[0], transport[1]]),
                u16::from_be_bytes([transport[2], transport[3]]),
            ),
            ICMP | ICMPV6 => {
                let id = u16::from_be_bytes([transport[4], transport[5]]);
                echo_ports(protocol, transport[0], id)?
            }
            _ => (0, 0),
        };
        Some(Self {
            source: Endpoint {
                address: source,
                port: source_port,
            },
            destination: Endpoint {
                address: destination,
                port: destination_port,
            },
            protocol,
        })
    }
}

/// What stands for the ports of an echo message, of the sender and of the receiver: the identifier is at the side that
/// asks. `None` for other messages.
#[inline(always)]
pub const fn echo_ports(protocol: u8, icmp_type: u8, id: u16) -> Option<(u16, u16)> {
    match (protocol, icmp_type) {
        (ICMP, 8) | (ICMPV6, 128) => Some((id, 0)),
        (ICMP, 0) | (ICMPV6, 129) => Some((0, id)),
        _ => None,
    }
}
