//! Messages of DNS and DHCP, told apart by type.
//!
//! They are recognised by their ports: 53 is DNS, 67 and 68 are DHCP, 546 and 547 are `DHCPv6`, in UDP, whole packets only.
//! DNS over TCP, and what is encrypted, is not looked into.

use lab01_count_packets_common::{headers::Headers, packet::Packet};
use lab02_xdp_firewall_common::transport::{Part, Transport, UDP, Upper};

/// What a message is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Message {
    /// A question, RFC 1035 section 4.1.1.
    DnsQuery = 0,
    /// An answer without error.
    DnsAnswer = 1,
    /// An answer that the name does not exist (NXDOMAIN).
    DnsNoSuchName = 2,
    /// An answer that the server failed (SERVFAIL).
    DnsServerFailure = 3,
    /// An answer with another error.
    DnsOtherError = 4,
    /// Neither question nor answer: a notification, an update, RFC 6895 section 2.2.
    DnsOther = 5,
    /// Shorter than the header.
    DnsMalformed = 6,
    /// DHCP message type 1, RFC 2132 section 9.6.
    DhcpDiscover = 7,
    /// DHCP message type 2, RFC 2132 section 9.6.
    DhcpOffer = 8,
    /// DHCP message type 3, RFC 2132 section 9.6.
    DhcpRequest = 9,
    /// DHCP message type 4, RFC 2132 section 9.6.
    DhcpDecline = 10,
    /// DHCP message type 5, RFC 2132 section 9.6.
    DhcpAck = 11,
    /// DHCP message type 6, RFC 2132 section 9.6.
    DhcpNak = 12,
    /// DHCP message type 7, RFC 2132 section 9.6.
    DhcpRelease = 13,
    /// DHCP message type 8, RFC 2132 section 9.6.
    DhcpInform = 14,
    /// Another type, or none: BOOTP, RFC 951.
    DhcpOther = 15,
    /// Shorter than its fixed part, without the magic number, or with an option that ends behind the packet.
    DhcpMalformed = 16,
    /// `DHCPv6` message type 1, RFC 8415 section 7.3.
    Dhcpv6Solicit = 17,
    /// `DHCPv6` message type 2, RFC 8415 section 7.3.
    Dhcpv6Advertise = 18,
    /// `DHCPv6` message type 3, RFC 8415 section 7.3.
    Dhcpv6Request = 19,
    /// `DHCPv6` message type 4, RFC 8415 section 7.3.
    Dhcpv6Confirm = 20,
    /// `DHCPv6` message type 5, RFC 8415 section 7.3.
    Dhcpv6Renew = 21,
    /// `DHCPv6` message type 6, RFC 8415 section 7.3.
    Dhcpv6Rebind = 22,
    /// `DHCPv6` message type 7, RFC 8415 section 7.3.
    Dhcpv6Reply = 23,
    /// `DHCPv6` message type 8, RFC 8415 section 7.3.
    Dhcpv6Release = 24,
    /// `DHCPv6` message type 9, RFC 8415 section 7.3.
    Dhcpv6Decline = 25,
    /// `DHCPv6` message type 10, RFC 8415 section 7.3.
    Dhcpv6Reconfigure = 26,
    /// `DHCPv6` message type 11, RFC 8415 section 7.3.
    Dhcpv6InformationRequest = 27,
    /// `DHCPv6` message type 12, RFC 8415 section 7.3.
    Dhcpv6RelayForward = 28,
    /// `DHCPv6` message type 13, RFC 8415 section 7.3.
    Dhcpv6RelayReply = 29,
    /// Another type of `DHCPv6`.
    Dhcpv6Other = 30,
    /// `DHCPv6` without a type.
    Dhcpv6Malformed = 31,
}

impl Message {
    /// How many there are: the size of an array that has one element for each.
    pub const COUNT: u32 = 32;

    /// All of them, in the order of their indices.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::DnsQuery,
        Self::DnsAnswer,
        Self::DnsNoSuchName,
        Self::DnsServerFailure,
        Self::DnsOtherError,
        Self::DnsOther,
        Self::DnsMalformed,
        Self::DhcpDiscover,
        Self::DhcpOffer,
        Self::DhcpRequest,
        Self::DhcpDecline,
        Self::DhcpAck,
        Self::DhcpNak,
        Self::DhcpRelease,
        Self::DhcpInform,
        Self::DhcpOther,
        Self::DhcpMalformed,
        Self::Dhcpv6Solicit,
        Self::Dhcpv6Advertise,
        Self::Dhcpv6Request,
        Self::Dhcpv6Confirm,
        Self::Dhcpv6Renew,
        Self::Dhcpv6Rebind,
        Self::Dhcpv6Reply,
        Self::Dhcpv6Release,
        Self::Dhcpv6Decline,
        Self::Dhcpv6Reconfigure,
        Self::Dhcpv6InformationRequest,
        Self::Dhcpv6RelayForward,
        Self::Dhcpv6RelayReply,
        Self::Dhcpv6Other,
        Self::Dhcpv6Malformed,
    ];

    /// The index of its counter, below [`Message::COUNT`].
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// A name for people and for JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DnsQuery => "dns-query",
            Self::DnsAnswer => "dns-answer",
            Self::DnsNoSuchName => "dns-no-such-name",
            Self::DnsServerFailure => "dns-server-failure",
            Self::DnsOtherError => "dns-other-error",
            Self::DnsOther => "dns-other",
            Self::DnsMalformed => "dns-malformed",
            Self::DhcpDiscover => "dhcp-discover",
            Self::DhcpOffer => "dhcp-offer",
            Self::DhcpRequest => "dhcp-request",
            Self::DhcpDecline => "dhcp-decline",
            Self::DhcpAck => "dhcp-ack",
            Self::DhcpNak => "dhcp-nak",
            Self::DhcpRelease => "dhcp-release",
            Self::DhcpInform => "dhcp-inform",
            Self::DhcpOther => "dhcp-other",
            Self::DhcpMalformed => "dhcp-malformed",
            Self::Dhcpv6Solicit => "dhcpv6-solicit",
            Self::Dhcpv6Advertise => "dhcpv6-advertise",
            Self::Dhcpv6Request => "dhcpv6-request",
            Self::Dhcpv6Confirm => "dhcpv6-confirm",
            Self::Dhcpv6Renew => "dhcpv6-renew",
            Self::Dhcpv6Rebind => "dhcpv6-rebind",
            Self::Dhcpv6Reply => "dhcpv6-reply",
            Self::Dhcpv6Release => "dhcpv6-release",
            Self::Dhcpv6Decline => "dhcpv6-decline",
            Self::Dhcpv6Reconfigure => "dhcpv6-reconfigure",
            Self::Dhcpv6InformationRequest => "dhcpv6-information-request",
            Self::Dhcpv6RelayForward => "dhcpv6-relay-forward",
            Self::Dhcpv6RelayReply => "dhcpv6-relay-reply",
            Self::Dhcpv6Other => "dhcpv6-other",
            Self::Dhcpv6Malformed => "dhcpv6-malformed",
        }
    }
}

/// A place in a packet that moves forward from option to option.
///
/// In an eBPF program this is a map's value. The verifier follows each way through a loop on its own as long as it knows
/// in what they differ; of what was written to a map it knows nothing, and so one way stands for all of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Scan {
    offset: u64,
}

impl Scan {
    #[inline(always)]
    fn set(&mut self, offset: usize) {
        // SAFETY: a valid reference. Volatile, so that the compiler does not keep the number in a register instead.
        unsafe { (&raw mut self.offset).write_volatile(offset as u64) };
    }

    #[inline(always)]
    fn get(&self) -> usize {
        // SAFETY: as above.
        (unsafe { (&raw const self.offset).read_volatile() }) as usize
    }
}

const DNS_PORT: u16 = 53;
/// Server and client, RFC 2131 section 4.1.
const DHCP_PORTS: [u16; 2] = [67, 68];
/// Client and server, RFC 8415 section 7.2.
const DHCPV6_PORTS: [u16; 2] = [546, 547];

/// The length of the UDP header.
const UDP_HEADER_LEN: usize = 8;

/// What message a packet holds; `None` if it is of neither protocol.
#[inline(always)]
pub fn message_of<P: Packet + ?Sized>(
    packet: &P,
    headers: &Headers,
    upper: &Upper,
    transport: &Transport,
    scan: &mut Scan,
) -> Option<Message> {
    if upper.protocol != UDP || upper.part != Part::Whole {
        return None;
    }
    // ANCHOR: message
    let is_either = |port: u16| transport.source_port == port || transport.destination_port == port;
    let start = upper.offset + UDP_HEADER_LEN;
    let end = headers.payload_end();
    if is_either(DNS_PORT) {
        return Some(dns(read(packet, start, end)));
    }
    let [server, client] = DHCP_PORTS;
    if headers.ip_version == 4 && (is_either(server) || is_either(client)) {
        return Some(dhcp(packet, start, end, scan));
    }
    let [client, server] = DHCPV6_PORTS;
    if headers.ip_version == 6 && (is_either(client) || is_either(server)) {
        return Some(dhcpv6(read(packet, start, end)));
    }
    None
    // ANCHOR_END: message
}

/// Reads at `offset`, but not beyond `end`: what comes there is padding, which anyone can fill.
#[inline(always)]
fn read<const N: usize, P: Packet + ?Sized>(packet: &P, offset: usize, end: usize) -> Option<[u8; N]> {
    if offset + N > end {
        return None;
    }
    packet.read(offset)
}

/// By the header of twelve bytes, RFC 1035 section 4.1.1.
#[inline(always)]
fn dns(header: Option<[u8; 12]>) -> Message {
    let Some([_, _, high, low, ..]) = header else {
        return Message::DnsMalformed;
    };
    let is_response = high & 0x80 != 0;
    let operation = high >> 3 & 0x0f;
    if operation != 0 {
        return Message::DnsOther;
    }
    if !is_response {
        return Message::DnsQuery;
    }
    match low & 0x0f {
        0 => Message::DnsAnswer,
        2 => Message::DnsServerFailure,
        3 => Message::DnsNoSuchName,
        _ => Message::DnsOtherError,
    }
}

/// Where options start, and the number in front of them, RFC 2131 section 3.
const MAGIC_OFFSET: usize = 236;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
const PAD: u8 = 0;
const MESSAGE_TYPE: u8 = 53;
const END: u8 = 255;

/// How many options are looked at for the message type, which honest messages have among the first.
pub const MAX_OPTIONS: usize = 32;

/// A packet that is read so far is refused: the verifier wants a bound.
const MAX_OFFSET: usize = 0x7fff;

#[inline(always)]
fn dhcp<P: Packet + ?Sized>(packet: &P, start: usize, end: usize, scan: &mut Scan) -> Message {
    if read(packet, start + MAGIC_OFFSET, end) != Some(MAGIC) {
        return Message::DhcpMalformed;
    }
    // ANCHOR: options
    scan.set(start + MAGIC_OFFSET + MAGIC.len());
    for _ in 0..MAX_OPTIONS {
        let offset = scan.get();
        if offset > MAX_OFFSET || offset >= end {
            return Message::DhcpMalformed;
        }
        let Some([code]) = packet.read::<[u8; 1]>(offset) else {
            return Message::DhcpMalformed;
        };
        if code == PAD {
            scan.set(offset + 1);
            continue;
        }
        if code == END {
            return Message::DhcpOther;
        }
        let Some([len, first]) = read::<2, P>(packet, offset + 1, end) else {
            return Message::DhcpMalformed;
        };
        if code == MESSAGE_TYPE {
            return dhcp_type(len, first);
        }
        scan.set(offset + 2 + usize::from(len));
    }
    Message::DhcpOther
    // ANCHOR_END: options
}

#[inline(always)]
fn dhcp_type(len: u8, number: u8) -> Message {
    match (len, number) {
        (1, 1) => Message::DhcpDiscover,
        (1, 2) => Message::DhcpOffer,
        (1, 3) => Message::DhcpRequest,
        (1, 4) => Message::DhcpDecline,
        (1, 5) => Message::DhcpAck,
        (1, 6) => Message::DhcpNak,
        (1, 7) => Message::DhcpRelease,
        (1, 8) => Message::DhcpInform,
        (1, _) => Message::DhcpOther,
        _ => Message::DhcpMalformed,
    }
}

#[inline(always)]
fn dhcpv6(first: Option<[u8; 1]>) -> Message {
    let Some([number]) = first else {
        return Message::Dhcpv6Malformed;
    };
    match number {
        1 => Message::Dhcpv6Solicit,
        2 => Message::Dhcpv6Advertise,
        3 => Message::Dhcpv6Request,
        4 => Message::Dhcpv6Confirm,
        5 => Message::Dhcpv6Renew,
        6 => Message::Dhcpv6Rebind,
        7 => Message::Dhcpv6Reply,
        8 => Message::Dhcpv6Release,
        9 => Message::Dhcpv6Decline,
        10 => Message::Dhcpv6Reconfigure,
        11 => Message::Dhcpv6InformationRequest,
        12 => Message::Dhcpv6RelayForward,
        13 => Message::Dhcpv6RelayReply,
        _ => Message::Dhcpv6Other,
    }
}
