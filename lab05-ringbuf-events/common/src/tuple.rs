//! Who talks to whom.

use lab01_count_packets_common::{
    headers::{Address, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, Headers},
    packet::{Cursor, Packet},
};
use lab02_xdp_firewall_common::transport::{Malformed, Transport, Upper};
use lab04_cgroup_policy_common::destination::Destination;

/// The 5-tuple of a packet or a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FiveTuple {
    /// From where.
    pub source: Address,
    /// To where.
    pub destination: Address,
    /// In host order; 0 where there is none.
    pub source_port: u16,
    /// In host order; 0 where there is none.
    pub destination_port: u16,
    /// IPv4's protocol number, or that of the header behind IPv6's extension headers.
    pub protocol: u8,
    /// 4 or 6; 0 where there is no IP, and then all else is 0.
    pub ip_version: u8,
    /// Fills up to a multiple of four bytes.
    pub padding: [u8; 2],
}

const _: () = assert!(size_of::<FiveTuple>() == 40);

impl FiveTuple {
    /// Of nobody.
    pub const EMPTY: Self = Self {
        source: Address::from_ipv4([0; 4]),
        destination: Address::from_ipv4([0; 4]),
        source_port: 0,
        destination_port: 0,
        protocol: 0,
        ip_version: 0,
        padding: [0; 2],
    };

    /// Of what was read already.
    #[inline(always)]
    pub fn of(headers: &Headers, upper: &Upper, transport: &Transport) -> Self {
        Self {
            source: headers.source,
            destination: headers.destination,
            source_port: transport.source_port,
            destination_port: transport.destination_port,
            protocol: upper.protocol,
            ip_version: headers.ip_version,
            padding: [0; 2],
        }
    }

    /// Of a packet that starts with its IP header, and its TCP flags (0 for anything else).
    #[inline(always)]
    pub fn read<P: Packet + ?Sized>(packet: &P, ip_version: u8) -> Result<(Self, u8), Malformed> {
        let ether_type = if ip_version == 4 {
            ETHER_TYPE_IPV4
        } else {
            ETHER_TYPE_IPV6
        };
        let headers = Headers::parse_network(&mut Cursor::new(packet), ether_type)?;
        let upper = Upper::find(packet, &headers)?;
        let transport = Transport::read(packet, &headers, &upper)?;
        Ok((Self::of(&headers, &upper, &transport), transport.tcp_flags))
    }

    /// Makes it what the other side sees.
    #[inline(always)]
    pub fn reverse(&mut self) {
        core::mem::swap(&mut self.source, &mut self.destination);
        core::mem::swap(&mut self.source_port, &mut self.destination_port);
    }

    /// Of what a process calls, which has no source yet.
    #[inline(always)]
    pub fn to(destination: &Destination) -> Self {
        Self {
            destination: destination.address,
            destination_port: destination.port,
            protocol: destination.protocol,
            ip_version: destination.ip_version,
            ..Self::EMPTY
        }
    }
}
