//! The transport header of a packet: what stands behind IPv4's options or IPv6's extension headers.
//!
//! This is where a filter is fooled most easily. A later fragment has no transport header, and bytes of its payload
//! that are read as ports are ports of the attacker's choice; a first fragment may end before its ports, which then come
//! in a second one; an extension header that the filter does not know hides everything behind it. So each of these has
//! a name here and none passes as an ordinary packet.

use lab01_count_packets_common::{
    headers::{self, Headers},
    packet::Packet,
};

/// IPv6 Hop-by-Hop Options, RFC 8200 section 4.3.
pub const HOP_BY_HOP: u8 = 0;
/// ICMP, RFC 792.
pub const ICMP: u8 = 1;
/// TCP, RFC 9293.
pub const TCP: u8 = 6;
/// UDP, RFC 768.
pub const UDP: u8 = 17;
/// DCCP, RFC 4340.
pub const DCCP: u8 = 33;
/// IPv6 Routing header, RFC 8200 section 4.4.
pub const ROUTING: u8 = 43;
/// IPv6 Fragment header, RFC 8200 section 4.5.
pub const FRAGMENT: u8 = 44;
/// Authentication Header, RFC 4302; an extension header of IPv6 and a protocol of IPv4.
pub const AUTHENTICATION: u8 = 51;
/// ICMPv6, RFC 4443.
pub const ICMPV6: u8 = 58;
/// IPv6 Destination Options, RFC 8200 section 4.6.
pub const DESTINATION_OPTIONS: u8 = 60;
/// SCTP, RFC 9260.
pub const SCTP: u8 = 132;
/// IPv6 Mobility header, RFC 6275.
pub const MOBILITY: u8 = 135;
/// UDP-Lite, RFC 3828.
pub const UDP_LITE: u8 = 136;
/// Host Identity Protocol, RFC 7401.
pub const HIP: u8 = 139;
/// Shim6, RFC 5533.
pub const SHIM6: u8 = 140;

/// How many extension headers are followed. Linux itself sets no limit below the packet's length, but no honest packet
/// has more than RFC 8200 section 4.1 lists, which is seven.
pub const MAX_EXTENSION_HEADERS: usize = 8;

/// A transport header starts at most here. Eight extension headers can be 16 KiB long; the verifier does not know that a
/// length field of 255 comes with units of 8 at most, and wants to be told.
const MAX_TRANSPORT_OFFSET: usize = 0x7fff;

/// More fragments follow, in the flags and offset of IPv4's header.
const IPV4_MORE_FRAGMENTS: u16 = 0x2000;
/// The offset, in units of 8 bytes, in the same field.
const IPV4_FRAGMENT_OFFSET: u16 = 0x1fff;
/// More fragments follow, in IPv6's fragment header.
const IPV6_MORE_FRAGMENTS: u16 = 0x0001;
/// The offset in that field, which is one in bytes as the three bits below it are others.
const IPV6_FRAGMENT_OFFSET: u16 = 0xfff8;

/// Why a packet was refused, by its network headers or by what follows them.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Malformed {
    /// See [`headers::Malformed::EthernetTruncated`].
    EthernetTruncated = 0,
    /// See [`headers::Malformed::VlanTruncated`].
    VlanTruncated = 1,
    /// See [`headers::Malformed::TooManyTags`].
    TooManyTags = 2,
    /// See [`headers::Malformed::Ipv4Truncated`].
    Ipv4Truncated = 3,
    /// See [`headers::Malformed::Ipv4Version`].
    Ipv4Version = 4,
    /// See [`headers::Malformed::Ipv4HeaderLength`].
    Ipv4HeaderLength = 5,
    /// See [`headers::Malformed::Ipv4TotalLength`].
    Ipv4TotalLength = 6,
    /// See [`headers::Malformed::Ipv6Truncated`].
    Ipv6Truncated = 7,
    /// See [`headers::Malformed::Ipv6Version`].
    Ipv6Version = 8,
    /// See [`headers::Malformed::Ipv6PayloadLength`].
    Ipv6PayloadLength = 9,
    /// An IPv6 extension header does not lie wholly inside the packet.
    ExtensionTruncated = 10,
    /// More than [`MAX_EXTENSION_HEADERS`] extension headers.
    TooManyExtensions = 11,
    /// A hop-by-hop header that is not the first extension header, RFC 8200 section 4.1.
    HopByHopNotFirst = 12,
    /// A first fragment that ends before its transport header does, RFC 1858 section 3 and RFC 7112.
    TinyFragment = 13,
    /// A fragment at offset 8 of TCP, which would overwrite flags that were looked at before, RFC 1858 section 4 and
    /// RFC 3128.
    OverlappingFragment = 14,
    /// A fragment whose end is beyond the largest packet there is, known as the ping of death.
    FragmentBeyondEnd = 15,
    /// Ends inside the TCP header or its options.
    TcpTruncated = 16,
    /// The TCP data offset says less than 20 bytes.
    TcpDataOffset = 17,
    /// Ends inside the UDP or UDP-Lite header.
    UdpTruncated = 18,
    /// The UDP length field says less than its header or more than arrived.
    UdpLength = 19,
    /// Ends inside the header of ICMP or ICMPv6.
    IcmpTruncated = 20,
    /// Ends before the ports of SCTP or DCCP.
    PortsTruncated = 21,
}

impl Malformed {
    /// How many reasons there are: the size of an array that has one element for each.
    pub const COUNT: u32 = 22;

    /// All reasons, in the order of their indices.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::EthernetTruncated,
        Self::VlanTruncated,
        Self::TooManyTags,
        Self::Ipv4Truncated,
        Self::Ipv4Version,
        Self::Ipv4HeaderLength,
        Self::Ipv4TotalLength,
        Self::Ipv6Truncated,
        Self::Ipv6Version,
        Self::Ipv6PayloadLength,
        Self::ExtensionTruncated,
        Self::TooManyExtensions,
        Self::HopByHopNotFirst,
        Self::TinyFragment,
        Self::OverlappingFragment,
        Self::FragmentBeyondEnd,
        Self::TcpTruncated,
        Self::TcpDataOffset,
        Self::UdpTruncated,
        Self::UdpLength,
        Self::IcmpTruncated,
        Self::PortsTruncated,
    ];

    /// The index of its counter, below [`Malformed::COUNT`].
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// A name for people and for JSON, in kebab case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EthernetTruncated => headers::Malformed::EthernetTruncated.name(),
            Self::VlanTruncated => headers::Malformed::VlanTruncated.name(),
            Self::TooManyTags => headers::Malformed::TooManyTags.name(),
            Self::Ipv4Truncated => headers::Malformed::Ipv4Truncated.name(),
            Self::Ipv4Version => headers::Malformed::Ipv4Version.name(),
            Self::Ipv4HeaderLength => headers::Malformed::Ipv4HeaderLength.name(),
            Self::Ipv4TotalLength => headers::Malformed::Ipv4TotalLength.name(),
            Self::Ipv6Truncated => headers::Malformed::Ipv6Truncated.name(),
            Self::Ipv6Version => headers::Malformed::Ipv6Version.name(),
            Self::Ipv6PayloadLength => headers::Malformed::Ipv6PayloadLength.name(),
            Self::ExtensionTruncated => "extension-truncated",
            Self::TooManyExtensions => "too-many-extensions",
            Self::HopByHopNotFirst => "hop-by-hop-not-first",
            Self::TinyFragment => "tiny-fragment",
            Self::OverlappingFragment => "overlapping-fragment",
            Self::FragmentBeyondEnd => "fragment-beyond-end",
            Self::TcpTruncated => "tcp-truncated",
            Self::TcpDataOffset => "tcp-data-offset",
            Self::UdpTruncated => "udp-truncated",
            Self::UdpLength => "udp-length",
            Self::IcmpTruncated => "icmp-truncated",
            Self::PortsTruncated => "ports-truncated",
        }
    }
}

impl From<headers::Malformed> for Malformed {
    #[inline(always)]
    fn from(reason: headers::Malformed) -> Self {
        match reason {
            headers::Malformed::EthernetTruncated => Self::EthernetTruncated,
            headers::Malformed::VlanTruncated => Self::VlanTruncated,
            headers::Malformed::TooManyTags => Self::TooManyTags,
            headers::Malformed::Ipv4Truncated => Self::Ipv4Truncated,
            headers::Malformed::Ipv4Version => Self::Ipv4Version,
            headers::Malformed::Ipv4HeaderLength => Self::Ipv4HeaderLength,
            headers::Malformed::Ipv4TotalLength => Self::Ipv4TotalLength,
            headers::Malformed::Ipv6Truncated => Self::Ipv6Truncated,
            headers::Malformed::Ipv6Version => Self::Ipv6Version,
            headers::Malformed::Ipv6PayloadLength => Self::Ipv6PayloadLength,
        }
    }
}

/// Which part of its original packet a packet is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// All of it.
    Whole = 0,
    /// The first fragment, with the transport header.
    First = 1,
    /// A later fragment: it has no transport header, and no rule on ports or ICMP types matches it.
    Later = 2,
}

/// What the transport header of a packet says; every field is always set (see [`Headers`] on why).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Whether `source_port` and `destination_port` were read: they were for TCP, UDP, UDP-Lite, SCTP and DCCP, except
    /// in later fragments.
    pub has_ports: bool,
    /// TCP's flags (CWR, ECE, URG, ACK, PSH, RST, SYN, FIN from the highest bit); else 0.
    pub tcp_flags: u8,
    /// The type of ICMP or ICMPv6; else, and in later fragments, 0.
    pub icmp_type: u8,
    /// The code of ICMP or ICMPv6; else, and in later fragments, 0.
    pub icmp_code: u8,
    /// In host order; 0 without ports.
    pub source_port: u16,
    /// In host order; 0 without ports.
    pub destination_port: u16,
}

/// What IPv4's options or IPv6's extension headers lead to; every field is always set (see [`Headers`] on why).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upper {
    /// The protocol behind all extension headers; 0 for what is not IP.
    pub protocol: u8,
    /// Which part of its original packet this is.
    pub part: Part,
    /// The identification that the fragments of one packet share, in host order; 0 for a whole packet.
    pub fragment_id: u32,
    /// Where the transport header starts, or a later fragment's bytes: bytes from the start of the packet.
    pub offset: usize,
}

impl Upper {
    /// Behind nothing.
    pub const EMPTY: Self = Self {
        protocol: 0,
        part: Part::Whole,
        fragment_id: 0,
        offset: 0,
    };

    /// Looks behind `headers`, which were read from the same `packet`.
    #[inline(always)]
    pub fn find<P: Packet + ?Sized>(packet: &P, headers: &Headers) -> Result<Self, Malformed> {
        match headers.ip_version {
            4 => behind_ipv4(packet, headers),
            6 => behind_extensions(packet, headers),
            _ => Ok(Self::EMPTY),
        }
    }
}

impl Transport {
    /// Of a packet that has none, or a later fragment's, which has none either.
    pub const EMPTY: Self = Self {
        has_ports: false,
        tcp_flags: 0,
        icmp_type: 0,
        icmp_code: 0,
        source_port: 0,
        destination_port: 0,
    };

    /// Reads the header that `upper` leads to, which was found behind `headers` in the same `packet`.
    #[inline(always)]
    pub fn read<P: Packet + ?Sized>(packet: &P, headers: &Headers, upper: &Upper) -> Result<Self, Malformed> {
        // ANCHOR: parse
        if headers.ip_version == 0 || upper.part == Part::Later {
            return Ok(Self::EMPTY);
        }
        read_header(packet, headers, upper).map_err(|malformed| match (upper.part, malformed) {
            (Part::Whole, _) | (_, Malformed::TcpDataOffset) => malformed,
            _ => Malformed::TinyFragment,
        })
        // ANCHOR_END: parse
    }
}

#[inline(always)]
fn behind_ipv4<P: Packet + ?Sized>(packet: &P, headers: &Headers) -> Result<Upper, Malformed> {
    let offset_in_bytes = u32::from(headers.fragment & IPV4_FRAGMENT_OFFSET) * 8;
    let more = headers.fragment & IPV4_MORE_FRAGMENTS != 0;
    let part = part_of(headers.protocol, offset_in_bytes, more, u32::from(headers.payload_len))?;
    let fragment_id = if part == Part::Whole {
        0
    } else {
        ipv4_identification(packet, headers)
    };
    Ok(Upper {
        protocol: headers.protocol,
        offset: headers.payload_offset,
        part,
        fragment_id,
    })
}

#[inline(always)]
fn ipv4_identification<P: Packet + ?Sized>(packet: &P, headers: &Headers) -> u32 {
    packet
        .read::<[u8; 2]>(headers.network_offset + 4)
        .map_or(0, |id| u32::from(u16::from_be_bytes(id)))
}

/// By protocol number: how many bytes an extension header grows by with each unit of its length field, beyond the eight
/// that it has at least; [`NO_EXTENSION`] for what is none.
///
/// A table and no `match`: the verifier follows each branch of each turn of the loop to the program's end, and a table
/// has none.
static EXTENSION_UNIT: [u8; 256] = {
    let mut unit = [NO_EXTENSION; 256];
    unit[HOP_BY_HOP as usize] = 8;
    unit[ROUTING as usize] = 8;
    unit[DESTINATION_OPTIONS as usize] = 8;
    unit[MOBILITY as usize] = 8;
    unit[HIP as usize] = 8;
    unit[SHIM6 as usize] = 8;
    // It counts in units of 4 bytes, less 2 (RFC 4302 section 2.2); the others in units of 8, less 1.
    unit[AUTHENTICATION as usize] = 4;
    // Its second byte is reserved: always eight bytes.
    unit[FRAGMENT as usize] = 0;
    unit
};
const NO_EXTENSION: u8 = 0xff;

/// Follows the extension headers of IPv6 to what they lead to.
#[inline(always)]
fn behind_extensions<P: Packet + ?Sized>(packet: &P, headers: &Headers) -> Result<Upper, Malformed> {
    // ANCHOR: extensions
    let mut protocol = headers.protocol;
    let mut offset = headers.payload_offset;
    let end = headers.payload_end();
    // All zeroes, a fragment header says what its absence says: here is all of it. Of an `Option` the compiler may copy
    // bytes that were never set, see `Headers`.
    let mut fragment = [0; 8];
    let mut is_fragmented = false;
    for position in 0..=MAX_EXTENSION_HEADERS {
        let unit = EXTENSION_UNIT[usize::from(protocol)];
        if unit == NO_EXTENSION {
            break;
        }
        if position == MAX_EXTENSION_HEADERS || protocol == FRAGMENT && is_fragmented {
            return Err(Malformed::TooManyExtensions);
        }
        if protocol == HOP_BY_HOP && position > 0 {
            return Err(Malformed::HopByHopNotFirst);
        }
        let header: [u8; 8] = packet.read(offset).ok_or(Malformed::ExtensionTruncated)?;
        let [next, len, ..] = header;
        let is_fragment = protocol == FRAGMENT;
        protocol = next;
        offset += 8 + usize::from(len) * usize::from(unit);
        // What lies behind the payload's end is padding, which anyone can fill with a header.
        if offset > MAX_TRANSPORT_OFFSET || offset > end || !packet.holds(offset) {
            return Err(Malformed::ExtensionTruncated);
        }
        if is_fragment {
            is_fragmented = true;
            fragment = header;
            if fragment_offset(header) != 0 {
                // What follows is the middle of something.
                break;
            }
        }
    }
    // ANCHOR_END: extensions
    let [_, _, _, flags, id @ ..] = fragment;
    let more = u16::from(flags) & IPV6_MORE_FRAGMENTS != 0;
    let len = end.saturating_sub(offset) as u32;
    let part = part_of(protocol, fragment_offset(fragment), more, len)?;
    let fragment_id = if part == Part::Whole { 0 } else { u32::from_be_bytes(id) };
    Ok(Upper {
        protocol,
        part,
        fragment_id,
        offset,
    })
}

/// The offset in a fragment header, in bytes.
#[inline(always)]
fn fragment_offset([_, _, high, low, ..]: [u8; 8]) -> u32 {
    u32::from(u16::from_be_bytes([high, low]) & IPV6_FRAGMENT_OFFSET)
}

// ANCHOR: fragments
/// Which part of its packet a fragment is that starts at `offset` bytes and has `len` bytes.
#[inline(always)]
fn part_of(protocol: u8, offset: u32, more: bool, len: u32) -> Result<Part, Malformed> {
    if offset.saturating_add(len) > 0xffff && (offset, more) != (0, false) {
        return Err(Malformed::FragmentBeyondEnd);
    }
    match (offset, more) {
        // A fragment header that says "all of it" (an atomic fragment, RFC 6946) is a whole packet.
        (0, false) => Ok(Part::Whole),
        (0, true) => Ok(Part::First),
        // Sixteen bytes of TCP are no whole header: this one would bring or replace its flags.
        (8, _) if protocol == TCP => Err(Malformed::OverlappingFragment),
        _ => Ok(Part::Later),
    }
}
// ANCHOR_END: fragments

/// Reads the header that `upper` leads to.
#[inline(always)]
fn read_header<P: Packet + ?Sized>(packet: &P, headers: &Headers, upper: &Upper) -> Result<Transport, Malformed> {
    let mut transport = Transport::EMPTY;
    let end = headers.payload_end();
    match upper.protocol {
        TCP => {
            let header: [u8; 20] = read(packet, upper.offset, end).ok_or(Malformed::TcpTruncated)?;
            let data_offset = usize::from(header[12] >> 4) * 4;
            if data_offset < 20 {
                return Err(Malformed::TcpDataOffset);
            }
            // Options may end behind a first fragment: only what is whole can be held against its data offset.
            if upper.part == Part::Whole
                && (upper.offset + data_offset > end || !packet.holds(upper.offset + data_offset))
            {
                return Err(Malformed::TcpTruncated);
            }
            transport.tcp_flags = header[13];
            set_ports(&mut transport, [header[0], header[1], header[2], header[3]]);
        }
        UDP | UDP_LITE => {
            let header: [u8; 8] = read(packet, upper.offset, end).ok_or(Malformed::UdpTruncated)?;
            let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
            // UDP-Lite has the coverage of its checksum there (RFC 3828); a jumbogram's UDP says 0 (RFC 2675).
            let has_len = upper.protocol == UDP && upper.part == Part::Whole && end != usize::MAX;
            if has_len && (len < 8 || upper.offset + len > end) {
                return Err(Malformed::UdpLength);
            }
            set_ports(&mut transport, [header[0], header[1], header[2], header[3]]);
        }
        SCTP | DCCP => {
            // Twelve bytes are the least that either header has.
            let header: [u8; 12] = read(packet, upper.offset, end).ok_or(Malformed::PortsTruncated)?;
            set_ports(&mut transport, [header[0], header[1], header[2], header[3]]);
        }
        ICMP | ICMPV6 => {
            // Eight bytes in all of ICMP; of ICMPv6 some messages have four, and none that is in use.
            let header: [u8; 8] = read(packet, upper.offset, end).ok_or(Malformed::IcmpTruncated)?;
            transport.icmp_type = header[0];
            transport.icmp_code = header[1];
        }
        _ => {}
    }
    Ok(transport)
}

/// Reads at `offset`, but not beyond `end`: what comes there is padding, which anyone can fill with a header.
#[inline(always)]
fn read<const N: usize, P: Packet + ?Sized>(packet: &P, offset: usize, end: usize) -> Option<[u8; N]> {
    if offset + N > end {
        return None;
    }
    packet.read(offset)
}

#[inline(always)]
fn set_ports(transport: &mut Transport, [source_high, source_low, destination_high, destination_low]: [u8; 4]) {
    transport.has_ports = true;
    transport.source_port = u16::from_be_bytes([source_high, source_low]);
    transport.destination_port = u16::from_be_bytes([destination_high, destination_low]);
}
