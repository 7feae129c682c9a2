//! What a rule can see of a packet.

use lab01_count_packets_common::headers::Address;
use lab02_xdp_firewall_common::transport::{ICMP, ICMPV6, Part, Transport, UDP, Upper};

use crate::veil::Veil;

/// Into the host or out of it. Forwarded packets are ingress where they enter and egress where they leave.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// In.
    Ingress = 0,
    /// Out.
    Egress = 1,
}

impl Direction {
    /// The other one.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }

    /// A name for people and for JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Where a packet is decided about.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// TC ingress of an interface: what comes in, from its Ethernet header on.
    TcIngress = 0,
    /// `cgroup_skb` egress: what sockets send, from its IP header on.
    CgroupEgress = 1,
    /// TC egress of an interface: what leaves by it and was not decided about in the cgroup, from its Ethernet header on.
    TcEgress = 2,
    /// XDP of an interface: what comes in, as the driver hands it over, from its Ethernet header on. In the place of TC
    /// ingress.
    XdpIngress = 3,
    /// `cgroup_skb` ingress: what is for sockets and has passed the interface, from its IP header on. It only looks for
    /// rules that block, and name whose socket it is.
    CgroupIngress = 4,
    /// `connect` of a socket of IPv4, before there is a packet. It refuses what would be blocked whatever its packets look
    /// like.
    Connect4 = 5,
    /// The same of a socket of IPv6.
    Connect6 = 6,
    /// `sendmsg` of a socket of UDP and IPv4 that is not connected.
    SendMsg4 = 7,
    /// The same of IPv6.
    SendMsg6 = 8,
}

impl Hook {
    /// How many there are.
    pub const COUNT: u32 = 9;

    /// All of them, in the order of their indices.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::TcIngress,
        Self::CgroupEgress,
        Self::TcEgress,
        Self::XdpIngress,
        Self::CgroupIngress,
        Self::Connect4,
        Self::Connect6,
        Self::SendMsg4,
        Self::SendMsg6,
    ];

    /// Whether it decides about every packet that it sees, and is not only asked whether one is blocked after all.
    pub const fn decides(self) -> bool {
        matches!(
            self,
            Self::TcIngress | Self::CgroupEgress | Self::TcEgress | Self::XdpIngress
        )
    }

    /// Whether it sees system calls, of which there are no packets yet.
    pub const fn is_of_calls(self) -> bool {
        matches!(self, Self::Connect4 | Self::Connect6 | Self::SendMsg4 | Self::SendMsg6)
    }

    /// Which way packets go there.
    #[inline(always)]
    pub const fn direction(self) -> Direction {
        match self {
            Self::TcIngress | Self::XdpIngress | Self::CgroupIngress => Direction::Ingress,
            Self::CgroupEgress | Self::TcEgress | Self::Connect4 | Self::Connect6 | Self::SendMsg4 | Self::SendMsg6 => {
                Direction::Egress
            }
        }
    }

    /// Which hook decides about a socket's packets of this direction.
    pub const fn for_direction(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self::TcIngress,
            Direction::Egress => Self::CgroupEgress,
        }
    }

    /// A name for people and for JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcIngress => "tc-ingress",
            Self::CgroupEgress => "cgroup-egress",
            Self::TcEgress => "tc-egress",
            Self::XdpIngress => "xdp-ingress",
            Self::CgroupIngress => "cgroup-ingress",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::SendMsg4 => "sendmsg4",
            Self::SendMsg6 => "sendmsg6",
        }
    }
}

/// The index of `lo` in every network namespace (`LOOPBACK_IFINDEX` in `include/net/flow.h`).
pub const LOOPBACK: u32 = 1;

/// Where a packet has no Ethernet header. A MAC address is a number of 48 bits.
pub const NO_MAC: u64 = u64::MAX;

/// A MAC address as a number, the first octet highest.
#[inline(always)]
pub const fn mac_number(mac: [u8; 6]) -> u64 {
    u64::from_be_bytes([0, 0, mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]])
}

/// Where a socket's group is not known. A group is a number of 32 bits.
pub const NO_GROUP: u64 = u64::MAX;

/// The socket that a packet is of.
pub trait Socket: Copy {
    /// Whether the hook knows it. If not, nothing else is asked.
    const IS_KNOWN: bool;
    /// The user who made it.
    fn uid(&self) -> u32;
    /// The group of the process that made it, or [`NO_GROUP`] if that is not known.
    fn gid(&self) -> u64;
    /// The id of the cgroup on this level of the hierarchy (the root's is 0) that its own is, or is below of; 0 if there
    /// is none.
    fn ancestor_cgroup(&self, level: u32) -> u64;
}

/// Where nobody knows yet whose socket a packet is for.
#[derive(Clone, Copy, Debug)]
pub struct UnknownSocket;

impl Socket for UnknownSocket {
    const IS_KNOWN: bool = false;

    #[inline(always)]
    fn uid(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn gid(&self) -> u64 {
        NO_GROUP
    }

    #[inline(always)]
    fn ancestor_cgroup(&self, _level: u32) -> u64 {
        0
    }
}

/// Where types and codes of ICMP begin among the values of a field that has ports below.
pub const ICMP_BASE: u32 = 1 << 16;

/// The value of such a field for a packet that has neither.
pub const NO_PORT: u32 = ICMP_BASE + (1 << 8);

/// How many values such a field can have.
pub const PORT_VALUES: u32 = NO_PORT + 1;

/// What a rule can see of a packet of IP. Every field is always set.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The source address.
    pub source: Address,
    /// The destination address.
    pub destination: Address,
    /// 4 or 6.
    pub ip_version: u8,
    /// What is behind the IP header.
    pub upper: UpperKey,
}

/// What a rule can see of what is behind the IP header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UpperKey {
    /// In host order; 0 without ports.
    pub source_port: u16,
    /// In host order; 0 without ports.
    pub destination_port: u16,
    /// The protocol behind IPv4's options or IPv6's extension headers.
    pub protocol: u8,
    /// The type of ICMP or ICMPv6; else 0.
    pub icmp_type: u8,
    /// Its code; else 0.
    pub icmp_code: u8,
    /// 1 if it has ports, which later fragments never do.
    pub has_ports: u8,
    /// 1 if it has an ICMP type and code, which later fragments never do.
    pub has_icmp: u8,
    /// The flags of TCP; else 0. No rule asks for them.
    pub tcp_flags: u8,
    /// Fills up to a multiple of four bytes.
    pub padding: u16,
}

const _: () = assert!(size_of::<UpperKey>() == 12);

impl UpperKey {
    /// Of no packet.
    pub const EMPTY: Self = Self {
        source_port: 0,
        destination_port: 0,
        protocol: 0,
        icmp_type: 0,
        icmp_code: 0,
        has_ports: 0,
        has_icmp: 0,
        tcp_flags: 0,
        padding: 0,
    };

    /// What the parsers have read, put together, and behind a [`Veil`], that the verifier does not tell two ways apart by it.
    #[inline(always)]
    pub fn of(upper: &Upper, transport: &Transport, veil: Veil) -> Self {
        let has_icmp = matches!(upper.protocol, ICMP | ICMPV6) && upper.part as u8 != Part::Later as u8;
        let ports = u64::from(transport.source_port) | u64::from(transport.destination_port) << 16;
        let icmp = u64::from(transport.icmp_type) | u64::from(transport.icmp_code) << 8;
        let has = u64::from(transport.has_ports) | u64::from(has_icmp) << 8 | u64::from(transport.tcp_flags) << 16;
        let word = veil.over(ports | u64::from(upper.protocol) << 32 | icmp << 40);
        let has = veil.over(has);
        Self {
            source_port: word as u16,
            destination_port: (word >> 16) as u16,
            protocol: (word >> 32) as u8,
            icmp_type: (word >> 40) as u8,
            icmp_code: (word >> 48) as u8,
            has_ports: has as u8,
            has_icmp: (has >> 8) as u8,
            tcp_flags: (has >> 16) as u8,
            padding: 0,
        }
    }

    /// The source port or the type of ICMP, as the field is looked up: see [`NO_PORT`] and [`ICMP_BASE`].
    #[inline(always)]
    pub fn first(&self) -> u32 {
        self.port_or(self.source_port, self.icmp_type)
    }

    /// The destination port or the code of ICMP, as the field is looked up: see [`NO_PORT`] and [`ICMP_BASE`].
    #[inline(always)]
    pub fn second(&self) -> u32 {
        self.port_or(self.destination_port, self.icmp_code)
    }

    #[inline(always)]
    fn port_or(&self, port: u16, icmp: u8) -> u32 {
        if self.has_ports != 0 {
            u32::from(port)
        } else if self.has_icmp != 0 {
            ICMP_BASE + u32::from(icmp)
        } else {
            NO_PORT
        }
    }
}

impl UpperKey {
    /// Which of the essentials a packet of this version of IP is, if any, by itself, on its way in `direction` over the
    /// loopback interface or another one.
    #[inline(always)]
    pub fn essential(&self, ip_version: u8, direction: Direction, is_loopback: bool) -> Option<Essential> {
        if is_loopback {
            return Some(Essential::Loopback);
        }
        if ip_version == 6 && self.protocol == ICMPV6 && self.has_icmp != 0 {
            return match self.icmp_type {
                // Router and neighbour solicitation and advertisement, redirect: RFC 4861.
                133..=137 => Some(Essential::NeighbourDiscovery),
                // Multicast listener queries and reports: RFC 2710, RFC 3810.
                130..=132 | 143 => Some(Essential::MulticastListener),
                _ => None,
            };
        }
        if self.protocol != UDP || self.has_ports == 0 {
            return None;
        }
        let (client, server) = match direction {
            Direction::Ingress => (self.destination_port, self.source_port),
            Direction::Egress => (self.source_port, self.destination_port),
        };
        // RFC 2131 section 4.1, RFC 8415 section 7.2.
        let is_dhcp = matches!((ip_version, client, server), (4, 68, 67) | (6, 546, 547));
        is_dhcp.then_some(Essential::DhcpClient)
    }

    /// As the answer has them.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self {
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..self
        }
    }
}

/// What a host cannot do without, and a policy easily forgets.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Essential {
    /// What the host says to itself.
    Loopback = 0,
    /// IPv6's neighbour discovery.
    NeighbourDiscovery = 1,
    /// IPv6's multicast listener discovery.
    MulticastListener = 2,
    /// A DHCP client's own messages and the answers to them.
    DhcpClient = 3,
    /// An error of ICMP about a known flow.
    IcmpError = 4,
}

impl Essential {
    /// How many there are.
    pub const COUNT: u32 = 5;

    /// All of them, in the order of their indices.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::Loopback,
        Self::NeighbourDiscovery,
        Self::MulticastListener,
        Self::DhcpClient,
        Self::IcmpError,
    ];
}
