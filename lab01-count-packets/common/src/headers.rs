//! The link and network headers of a packet: Ethernet, VLAN tags, IPv4, IPv6.
//!
//! Every field comes from the wire, so nothing is believed before it was checked against the packet's length. What is
//! not as the standards want it has a name, [`Malformed`], and is counted under it: a parser that shrugs is a parser
//! that can be walked around.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    vlan::VlanHdr,
};

use crate::packet::{Cursor, Packet};

/// IPv4, RFC 894.
pub const ETHER_TYPE_IPV4: u16 = 0x0800;
/// ARP, RFC 826.
pub const ETHER_TYPE_ARP: u16 = 0x0806;
/// A VLAN tag (C-VLAN), IEEE 802.1Q.
pub const ETHER_TYPE_VLAN: u16 = 0x8100;
/// IPv6, RFC 2464.
pub const ETHER_TYPE_IPV6: u16 = 0x86dd;
/// The outer of two VLAN tags (S-VLAN), IEEE 802.1ad, known as QinQ.
pub const ETHER_TYPE_QINQ: u16 = 0x88a8;

/// How many VLAN tags are read: one (802.1Q) or two (QinQ). A third is [`Malformed::TooManyTags`].
pub const MAX_VLAN_TAGS: usize = 2;

/// IPv6's Hop-by-Hop Options, RFC 8200 section 4.3.
const NEXT_HEADER_HOP_BY_HOP: u8 = 0;

/// Why a packet was refused by the parser.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Malformed {
    /// Shorter than an Ethernet header.
    EthernetTruncated = 0,
    /// Ends inside a VLAN tag.
    VlanTruncated = 1,
    /// More than [`MAX_VLAN_TAGS`] VLAN tags. Not forbidden by a standard, but nothing here looks behind them, and what
    /// is not looked at must not look harmless.
    TooManyTags = 2,
    /// Ends inside the IPv4 header or its options.
    Ipv4Truncated = 3,
    /// The EtherType says IPv4, the version field does not.
    Ipv4Version = 4,
    /// The header length field says less than 20 bytes, RFC 791 section 3.1.
    Ipv4HeaderLength = 5,
    /// The total length field says less than the header or more than arrived.
    Ipv4TotalLength = 6,
    /// Ends inside the IPv6 header.
    Ipv6Truncated = 7,
    /// The EtherType says IPv6, the version field does not.
    Ipv6Version = 8,
    /// The payload length field says more than arrived.
    Ipv6PayloadLength = 9,
}

impl Malformed {
    /// How many reasons there are: the size of an array that has one element for each.
    pub const COUNT: u32 = 10;

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
    ];

    /// The index of its counter, below [`Malformed::COUNT`].
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// A name for people and for JSON, in kebab case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EthernetTruncated => "ethernet-truncated",
            Self::VlanTruncated => "vlan-truncated",
            Self::TooManyTags => "too-many-vlan-tags",
            Self::Ipv4Truncated => "ipv4-truncated",
            Self::Ipv4Version => "ipv4-version",
            Self::Ipv4HeaderLength => "ipv4-header-length",
            Self::Ipv4TotalLength => "ipv4-total-length",
            Self::Ipv6Truncated => "ipv6-truncated",
            Self::Ipv6Version => "ipv6-version",
            Self::Ipv6PayloadLength => "ipv6-payload-length",
        }
    }
}

/// What the link and network headers of a packet say.
///
/// One structure for both versions of IP, every field of it always set, and not an enum with a variant for each:
/// of an enum the compiler may copy bytes that its variant never set, and the verifier refuses to read those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// What the frame carries behind its tags, in host order; below 0x600 it is a length (IEEE 802.3).
    pub ether_type: u16,
    /// 4 or 6; 0 for what is not IP, and then all the fields below are 0.
    pub ip_version: u8,
    /// IPv4's protocol number, or IPv6's next header: an extension header or a transport protocol.
    pub protocol: u8,
    /// IPv4's flags (3 bits) and fragment offset (13 bits, in units of 8 bytes), in host order, RFC 791 section 3.1.
    /// 0 for IPv6, where a fragment has an extension header.
    pub fragment: u16,
    /// The length in bytes of what follows the IP header, as the header has it: Ethernet's padding excluded, IPv6's
    /// extension headers included. 0 for a jumbogram (RFC 2675).
    pub payload_len: u16,
    /// Where that starts: bytes from the start of the packet, IPv4's options skipped.
    pub payload_offset: usize,
    /// Where the IP header starts: bytes from the start of the packet.
    pub network_offset: usize,
    /// The source address.
    pub source: Address,
    /// The destination address.
    pub destination: Address,
}

/// An IPv4 or IPv6 address; which of them it is stands beside it ([`Headers::ip_version`]).
///
/// Kept as two words whose bytes are in the order of the wire, so that a program moves it by words: what is stored by
/// one word and read by another, of another size, makes the processor wait for the store.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Address([u64; 2]);

impl Address {
    /// An IPv4 address: the first four bytes, the others are 0.
    #[inline(always)]
    pub const fn from_ipv4([a, b, c, d]: [u8; 4]) -> Self {
        Self([u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]), 0])
    }

    /// An IPv6 address.
    #[inline(always)]
    pub const fn from_ipv6(octets: [u8; 16]) -> Self {
        // SAFETY: both are sixteen bytes of integers.
        Self(unsafe { core::mem::transmute::<[u8; 16], [u64; 2]>(octets) })
    }

    /// The octets of an IPv4 address, in the order of the wire.
    #[inline(always)]
    pub const fn ipv4(&self) -> [u8; 4] {
        let [first, _] = self.0;
        let [a, b, c, d, ..] = first.to_ne_bytes();
        [a, b, c, d]
    }

    /// From its two words, as [`Address::words`] has them.
    #[inline(always)]
    pub const fn from_words(words: [u64; 2]) -> Self {
        Self(words)
    }

    /// Its words, whose bytes are in the order of the wire.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 2] {
        self.0
    }

    /// The octets of an IPv6 address, in the order of the wire.
    #[inline(always)]
    pub const fn ipv6(&self) -> [u8; 16] {
        // SAFETY: both are sixteen bytes of integers.
        unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>(self.0) }
    }
}

impl Headers {
    /// Those of no packet: nothing is IP.
    pub const EMPTY: Self = Self {
        ether_type: 0,
        ip_version: 0,
        protocol: 0,
        fragment: 0,
        payload_len: 0,
        payload_offset: 0,
        network_offset: 0,
        source: Address::from_ipv4([0; 4]),
        destination: Address::from_ipv4([0; 4]),
    };

    /// Reads a frame: Ethernet, up to two VLAN tags, IPv4 or IPv6.
    #[inline(always)]
    pub fn parse<P: Packet + ?Sized>(frame: &P) -> Result<Self, Malformed> {
        // ANCHOR: parse
        let mut cursor = Cursor::new(frame);
        let ether_type = ether_type_behind_tags(&mut cursor)?;
        Self::parse_network(&mut cursor, ether_type)
        // ANCHOR_END: parse
    }

    /// Reads the network header at the cursor, which is what `ether_type` (in host order) says.
    ///
    /// For hooks that see no Ethernet header, too: `cgroup_skb` starts here.
    #[inline(always)]
    pub fn parse_network<P: Packet + ?Sized>(cursor: &mut Cursor<'_, P>, ether_type: u16) -> Result<Self, Malformed> {
        match ether_type {
            ETHER_TYPE_IPV4 => parse_ipv4(cursor),
            ETHER_TYPE_IPV6 => parse_ipv6(cursor),
            ether_type => Ok(Self {
                ether_type,
                ..Self::EMPTY
            }),
        }
    }

    /// Where the payload ends: bytes from the start of the packet. What comes behind is padding. [`usize::MAX`] for a
    /// jumbogram, which ends where the packet does.
    #[inline(always)]
    pub fn payload_end(&self) -> usize {
        let jumbogram = self.ip_version == 6 && self.payload_len == 0 && self.protocol == NEXT_HEADER_HOP_BY_HOP;
        if jumbogram {
            usize::MAX
        } else {
            self.payload_offset + usize::from(self.payload_len)
        }
    }
}

/// Takes the Ethernet header and the VLAN tags; returns the EtherType behind them, in host order.
#[inline(always)]
fn ether_type_behind_tags<P: Packet + ?Sized>(cursor: &mut Cursor<'_, P>) -> Result<u16, Malformed> {
    let ethernet: EthHdr = cursor.take().ok_or(Malformed::EthernetTruncated)?;
    let mut ether_type = u16::from_be(ethernet.ether_type);
    // ANCHOR: vlan
    for _ in 0..MAX_VLAN_TAGS {
        if !is_vlan(ether_type) {
            return Ok(ether_type);
        }
        let tag: VlanHdr = cursor.take().ok_or(Malformed::VlanTruncated)?;
        ether_type = u16::from_be(tag.ether_type);
    }
    // ANCHOR_END: vlan
    if is_vlan(ether_type) {
        return Err(Malformed::TooManyTags);
    }
    Ok(ether_type)
}

#[inline(always)]
fn is_vlan(ether_type: u16) -> bool {
    matches!(ether_type, ETHER_TYPE_VLAN | ETHER_TYPE_QINQ)
}

#[inline(always)]
fn parse_ipv4<P: Packet + ?Sized>(cursor: &mut Cursor<'_, P>) -> Result<Headers, Malformed> {
    // ANCHOR: ipv4
    let network_offset = cursor.offset();
    let header: Ipv4Hdr = cursor.take().ok_or(Malformed::Ipv4Truncated)?;
    if header.version() != 4 {
        return Err(Malformed::Ipv4Version);
    }
    let header_len = usize::from(header.ihl());
    if header_len < Ipv4Hdr::LEN {
        return Err(Malformed::Ipv4HeaderLength);
    }
    cursor.skip(header_len - Ipv4Hdr::LEN).ok_or(Malformed::Ipv4Truncated)?;
    let total_len = header.tot_len();
    if usize::from(total_len) < header_len || !cursor.packet().holds(network_offset + usize::from(total_len)) {
        return Err(Malformed::Ipv4TotalLength);
    }
    // ANCHOR_END: ipv4
    Ok(Headers {
        ether_type: ETHER_TYPE_IPV4,
        ip_version: 4,
        protocol: header.proto,
        fragment: u16::from_be_bytes(header.frags),
        payload_len: total_len - header_len as u16,
        payload_offset: cursor.offset(),
        network_offset,
        source: Address::from_ipv4(header.src_addr),
        destination: Address::from_ipv4(header.dst_addr),
    })
}

#[inline(always)]
fn parse_ipv6<P: Packet + ?Sized>(cursor: &mut Cursor<'_, P>) -> Result<Headers, Malformed> {
    let network_offset = cursor.offset();
    let header: Ipv6Hdr = cursor.take().ok_or(Malformed::Ipv6Truncated)?;
    if header.version() != 6 {
        return Err(Malformed::Ipv6Version);
    }
    let payload_len = header.payload_len();
    // A jumbogram says 0 and has its length in a hop-by-hop option (RFC 2675): the packet's own length bounds it.
    let jumbogram = payload_len == 0 && header.next_hdr == NEXT_HEADER_HOP_BY_HOP;
    if !jumbogram && !cursor.holds(usize::from(payload_len)) {
        return Err(Malformed::Ipv6PayloadLength);
    }
    Ok(Headers {
        ether_type: ETHER_TYPE_IPV6,
        ip_version: 6,
        protocol: header.next_hdr,
        fragment: 0,
        payload_len,
        payload_offset: cursor.offset(),
        network_offset,
        source: Address::from_ipv6(header.src_addr),
        destination: Address::from_ipv6(header.dst_addr),
    })
}
