//! Packets that read like what they are.
//!
//! ```
//! use testbed::packets::{self, Mutate as _};
//!
//! let query = packets::ethernet()
//!     .vlan(10)
//!     .ipv4("192.0.2.7", "192.0.2.1")
//!     .udp(1000, 53)
//!     .payload(b"who is it?")
//!     .build();
//! assert_eq!(query.len(), 14 + 4 + 20 + 8 + 10);
//!
//! // Lengths and checksums are right by default; what is to be wrong is made wrong afterwards.
//! let cut_off_in_the_udp_header = query.truncate_to(14 + 4 + 20 + 3);
//! ```
//!
//! Addresses are given as text or as [`Ipv4Addr`] and [`Ipv6Addr`]. A builder that is used in an order which makes no
//! sense (`.syn()` on something that is not TCP) panics and says so: it is a mistake in the test.

mod fragments;
mod layer;
mod mutate;

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use etherparse::{
    IpFragOffset, IpNumber, Ipv4Header, Ipv6Header, SingleVlanHeader, TcpHeader, UdpHeader, VlanId, VlanPcp,
};

pub use fragments::split;
pub use mutate::{Mutate, random_bytes};

use layer::{Arp, Extension, Icmp, Layer, Stacked};

/// `EtherType`s and protocol numbers that have no layer of their own here come from `etherparse`.
pub use etherparse::{ether_type, ip_number};

/// Starts a packet: Ethernet, by default from the left to the right end of the first link of two hosts
/// (02:00:00:00:00:01 to …:02).
pub fn ethernet() -> Packet {
    Packet {
        source_mac: crate::Subnet(0).mac(1),
        destination_mac: crate::Subnet(0).mac(2),
        ether_type: None,
        layers: Vec::new(),
        payload: Vec::new(),
    }
}

/// A packet under construction, from the outside in; [`Packet::build`] gives its bytes.
#[derive(Clone, Debug)]
#[must_use]
pub struct Packet {
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
    ether_type: Option<u16>,
    layers: Vec<Stacked>,
    payload: Vec<u8>,
}

/// An address, or the text of one.
pub trait IntoAddress<T> {
    /// The address; panics if the text is none.
    fn into_address(self) -> T;
}

impl<T: FromStr> IntoAddress<T> for &str {
    fn into_address(self) -> T {
        self.parse()
            .unwrap_or_else(|_| panic!("{self:?} is not an address of this kind"))
    }
}

impl IntoAddress<Ipv4Addr> for Ipv4Addr {
    fn into_address(self) -> Ipv4Addr {
        self
    }
}

impl IntoAddress<Ipv6Addr> for Ipv6Addr {
    fn into_address(self) -> Ipv6Addr {
        self
    }
}

/// Ethernet and VLAN tags.
impl Packet {
    /// From another MAC address.
    pub fn from_mac(mut self, mac: [u8; 6]) -> Self {
        self.source_mac = mac;
        self
    }

    /// To another MAC address.
    pub fn to_mac(mut self, mac: [u8; 6]) -> Self {
        self.destination_mac = mac;
        self
    }

    /// To everybody.
    pub fn to_broadcast(self) -> Self {
        self.to_mac([0xff; 6])
    }

    /// A VLAN tag (IEEE 802.1Q, `EtherType` 0x8100). Tags may be stacked.
    pub fn vlan(self, id: u16) -> Self {
        self.vlan_tag(0x8100, id)
    }

    /// A service tag (IEEE 802.1ad, `EtherType` 0x88a8), the outer one of `QinQ`.
    pub fn service_vlan(self, id: u16) -> Self {
        self.vlan_tag(0x88a8, id)
    }

    fn vlan_tag(self, tag_type: u16, id: u16) -> Self {
        let vlan_id = VlanId::try_new(id).unwrap_or_else(|_| panic!("{id} is not a VLAN id: it has 12 bits"));
        let header = SingleVlanHeader {
            vlan_id,
            ..SingleVlanHeader::default()
        };
        self.push(Layer::Vlan { tag_type, header })
    }

    /// The priority of the VLAN tag just added, 0 to 7.
    pub fn priority(mut self, priority: u8) -> Self {
        match self.last("priority") {
            Layer::Vlan { header, .. } => {
                header.pcp = VlanPcp::try_new(priority)
                    .unwrap_or_else(|_| panic!("{priority} is not a VLAN priority: it has 3 bits"));
            }
            _ => misplaced("priority", "vlan"),
        }
        self
    }

    /// What the Ethernet header or the VLAN tag just added says that follows, instead of what does.
    pub fn ether_type(mut self, ether_type: u16) -> Self {
        match self.layers.last_mut() {
            None => self.ether_type = Some(ether_type),
            Some(stacked) => match stacked.layer {
                Layer::Vlan { .. } => stacked.next = Some(ether_type),
                _ => misplaced("ether_type", "ethernet or vlan"),
            },
        }
        self
    }

    /// An ARP request (RFC 826): who has `target`? Tell `sender`.
    pub fn arp_request(self, sender: impl IntoAddress<Ipv4Addr>, target: impl IntoAddress<Ipv4Addr>) -> Self {
        let arp = Arp {
            reply: false,
            sender: (self.source_mac, sender.into_address()),
            target: ([0; 6], target.into_address()),
        };
        self.push(Layer::Arp(arp))
    }

    /// An ARP reply: `sender` is at the frame's source MAC address.
    pub fn arp_reply(self, sender: impl IntoAddress<Ipv4Addr>, target: impl IntoAddress<Ipv4Addr>) -> Self {
        let arp = Arp {
            reply: true,
            sender: (self.source_mac, sender.into_address()),
            target: (self.destination_mac, target.into_address()),
        };
        self.push(Layer::Arp(arp))
    }
}

/// IPv4 and IPv6.
impl Packet {
    /// An IPv4 header; TTL 64.
    pub fn ipv4(self, source: impl IntoAddress<Ipv4Addr>, destination: impl IntoAddress<Ipv4Addr>) -> Self {
        let header = Ipv4Header {
            time_to_live: 64,
            source: source.into_address().octets(),
            destination: destination.into_address().octets(),
            ..Ipv4Header::default()
        };
        self.push(Layer::Ipv4(header))
    }

    /// Options of the IPv4 header just added; their length is a multiple of 4, up to 40.
    pub fn ipv4_options(mut self, options: &[u8]) -> Self {
        match self.last("ipv4_options") {
            Layer::Ipv4(header) => {
                header.options = options
                    .try_into()
                    .unwrap_or_else(|error| panic!("these are no IPv4 options: {error}"));
            }
            _ => misplaced("ipv4_options", "ipv4"),
        }
        self
    }

    /// An IPv6 header; hop limit 64.
    pub fn ipv6(self, source: impl IntoAddress<Ipv6Addr>, destination: impl IntoAddress<Ipv6Addr>) -> Self {
        let header = Ipv6Header {
            hop_limit: 64,
            source: source.into_address().octets(),
            destination: destination.into_address().octets(),
            ..Ipv6Header::default()
        };
        self.push(Layer::Ipv6(header))
    }

    /// The TTL or hop limit of the IP header just added.
    pub fn ttl(mut self, ttl: u8) -> Self {
        match self.last("ttl") {
            Layer::Ipv4(header) => header.time_to_live = ttl,
            Layer::Ipv6(header) => header.hop_limit = ttl,
            _ => misplaced("ttl", "ipv4 or ipv6"),
        }
        self
    }

    /// A hop-by-hop options header (RFC 8200, section 4.3) of 8 bytes of padding.
    pub fn hop_by_hop(self) -> Self {
        self.extension(ip_number::IPV6_HOP_BY_HOP, &PADDING)
    }

    /// A destination options header (RFC 8200, section 4.6) of 8 bytes of padding.
    pub fn destination_options(self) -> Self {
        self.extension(ip_number::IPV6_DEST_OPTIONS, &PADDING)
    }

    /// A routing header (RFC 8200, section 4.4) of 8 bytes, with no segments left.
    pub fn routing(self) -> Self {
        self.extension(ip_number::IPV6_ROUTE, &[0; 6])
    }

    /// Any extension header that begins with next header and length (hop-by-hop, routing, destination options,
    /// mobility, …) with what follows these two bytes: 6, 14, 22, … bytes.
    pub fn extension(self, number: IpNumber, content: &[u8]) -> Self {
        self.push(Layer::Extension(Extension::Options {
            number,
            content: content.to_vec(),
        }))
    }

    /// An authentication header (RFC 4302) with a check value of 12 zero bytes, after IPv4 or IPv6.
    pub fn authentication(self) -> Self {
        self.push(Layer::Extension(Extension::Authentication))
    }

    /// Makes the packet the first fragment of datagram `id`: more follow.
    ///
    /// Sets the fields of an IPv4 header just added; otherwise adds an IPv6 fragment header.
    pub fn first_fragment(self, id: u32) -> Self {
        self.fragment(id, 0, true)
    }

    /// Makes the packet a fragment that begins `offset_bytes` (a multiple of 8) into datagram `id`, with more to
    /// follow. What is in it is payload: name its [`protocol`](Self::protocol).
    pub fn later_fragment(self, id: u32, offset_bytes: u16) -> Self {
        self.fragment(id, offset_bytes, true)
    }

    /// As [`Packet::later_fragment`]; none follows.
    pub fn last_fragment(self, id: u32, offset_bytes: u16) -> Self {
        self.fragment(id, offset_bytes, false)
    }

    /// A fragment that is the whole datagram (RFC 6946, an "atomic fragment", for IPv6).
    pub fn atomic_fragment(self, id: u32) -> Self {
        self.fragment(id, 0, false)
    }

    fn fragment(mut self, id: u32, offset_bytes: u16, more_fragments: bool) -> Self {
        assert!(
            offset_bytes.is_multiple_of(8),
            "a fragment's offset is a multiple of 8, and {offset_bytes} is none"
        );
        let fragment_offset = IpFragOffset::try_new(offset_bytes / 8)
            .unwrap_or_else(|error| panic!("this is no fragment offset: {error}"));
        match self.last("a fragment") {
            Layer::Ipv4(header) => {
                header.identification = id as u16;
                header.fragment_offset = fragment_offset;
                header.more_fragments = more_fragments;
                header.dont_fragment = false;
                self
            }
            Layer::Ipv6(_) | Layer::Extension(_) => self.push(Layer::Extension(Extension::Fragment {
                id,
                fragment_offset,
                more_fragments,
            })),
            _ => misplaced("a fragment", "ipv4, ipv6 or an extension header"),
        }
    }

    /// Which protocol the IP or extension header just added says that follows, instead of the one that does.
    pub fn protocol(mut self, number: u8) -> Self {
        match self.layers.last_mut() {
            Some(Stacked {
                layer: Layer::Ipv4(_) | Layer::Ipv6(_) | Layer::Extension(_),
                next,
            }) => *next = Some(number.into()),
            _ => misplaced("protocol", "ipv4, ipv6 or an extension header"),
        }
        self
    }
}

/// UDP, TCP and ICMP.
impl Packet {
    /// A UDP header.
    pub fn udp(self, source_port: u16, destination_port: u16) -> Self {
        self.push(Layer::Udp(UdpHeader {
            source_port,
            destination_port,
            ..UdpHeader::default()
        }))
    }

    /// A TCP header without flags; sequence number 1, window 64 KiB - 1.
    pub fn tcp(self, source_port: u16, destination_port: u16) -> Self {
        let header = TcpHeader::new(source_port, destination_port, 1, u16::MAX);
        self.push(Layer::Tcp(Box::new(header)))
    }

    /// Sets SYN in the TCP header just added.
    pub fn syn(self) -> Self {
        self.with_tcp("syn", |tcp| tcp.syn = true)
    }

    /// Sets ACK.
    pub fn ack(self) -> Self {
        self.with_tcp("ack", |tcp| tcp.ack = true)
    }

    /// Sets FIN.
    pub fn fin(self) -> Self {
        self.with_tcp("fin", |tcp| tcp.fin = true)
    }

    /// Sets RST.
    pub fn rst(self) -> Self {
        self.with_tcp("rst", |tcp| tcp.rst = true)
    }

    /// Sets PSH.
    pub fn psh(self) -> Self {
        self.with_tcp("psh", |tcp| tcp.psh = true)
    }

    /// Sets all eight flags as in byte 13 of the header: CWR, ECE, URG, ACK, PSH, RST, SYN, FIN from high to low.
    pub fn tcp_flags(self, flags: u8) -> Self {
        self.with_tcp("tcp_flags", |tcp| {
            let is_set = |bit: u8| flags & (1 << bit) != 0;
            (tcp.fin, tcp.syn, tcp.rst, tcp.psh) = (is_set(0), is_set(1), is_set(2), is_set(3));
            (tcp.ack, tcp.urg, tcp.ece, tcp.cwr) = (is_set(4), is_set(5), is_set(6), is_set(7));
        })
    }

    /// Sets the sequence number.
    pub fn sequence(self, number: u32) -> Self {
        self.with_tcp("sequence", |tcp| tcp.sequence_number = number)
    }

    /// Sets the acknowledgment number and ACK.
    pub fn acknowledgment(self, number: u32) -> Self {
        self.with_tcp("acknowledgment", |tcp| {
            tcp.acknowledgment_number = number;
            tcp.ack = true;
        })
    }

    /// TCP options, raw; padded to a multiple of 4 bytes, 40 at most.
    pub fn tcp_options(self, options: &[u8]) -> Self {
        self.with_tcp("tcp_options", |tcp| {
            tcp.set_options_raw(options)
                .unwrap_or_else(|error| panic!("these are no TCP options: {error}"));
        })
    }

    fn with_tcp(mut self, method: &str, change: impl FnOnce(&mut TcpHeader)) -> Self {
        match self.last(method) {
            Layer::Tcp(tcp) => change(tcp),
            _ => misplaced(method, "tcp"),
        }
        self
    }

    /// An echo request of ICMP or `ICMPv6`, as the IP header is.
    pub fn icmp_echo_request(self, id: u16, sequence: u16) -> Self {
        let kind = if self.is_ipv6() { 128 } else { 8 };
        self.icmp_echo(kind, id, sequence)
    }

    /// An echo reply of ICMP or `ICMPv6`, as the IP header is.
    pub fn icmp_echo_reply(self, id: u16, sequence: u16) -> Self {
        let kind = if self.is_ipv6() { 129 } else { 0 };
        self.icmp_echo(kind, id, sequence)
    }

    fn icmp_echo(self, kind: u8, id: u16, sequence: u16) -> Self {
        let ([i0, i1], [s0, s1]) = (id.to_be_bytes(), sequence.to_be_bytes());
        self.icmp(kind, 0, [i0, i1, s0, s1])
    }

    /// The error "destination unreachable, port unreachable" about `offending`, a frame built here.
    pub fn icmp_port_unreachable(self, offending: &[u8]) -> Self {
        let (kind, code) = if self.is_ipv6() { (1, 4) } else { (3, 3) };
        self.icmp_error(kind, code, [0; 4], offending)
    }

    /// The error "time exceeded in transit" about `offending`, a frame built here.
    pub fn icmp_time_exceeded(self, offending: &[u8]) -> Self {
        let kind = if self.is_ipv6() { 3 } else { 11 };
        self.icmp_error(kind, 0, [0; 4], offending)
    }

    /// The error "packet too big" (`ICMPv6`) or "fragmentation needed" (ICMP) about `offending`, a frame built here.
    pub fn icmp_too_big(self, mtu: u16, offending: &[u8]) -> Self {
        let (kind, code) = if self.is_ipv6() { (2, 0) } else { (3, 4) };
        let [m0, m1] = mtu.to_be_bytes();
        self.icmp_error(kind, code, [0, 0, m0, m1], offending)
    }

    /// Any ICMP or `ICMPv6` error: it quotes what lies behind the Ethernet header and tags of `offending`, as much of it
    /// as a router would (RFC 1812, section 4.3.2.3: 576 bytes in all; RFC 4443, section 2.4: 1280).
    pub fn icmp_error(mut self, kind: u8, code: u8, rest: [u8; 4], offending: &[u8]) -> Self {
        let room = if self.is_ipv6() { 1280 - 40 - 8 } else { 576 - 20 - 8 };
        let quoted = layer::behind_ethernet(offending);
        self.payload = quoted[..quoted.len().min(room)].to_vec();
        self.icmp(kind, code, rest)
    }

    /// Any ICMP or `ICMPv6` header: type, code and the four bytes behind the checksum.
    pub fn icmp(self, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        let v6 = self.is_ipv6();
        self.push(Layer::Icmp(Icmp { v6, kind, code, rest }))
    }
}

impl Packet {
    /// What the innermost header carries.
    pub fn payload(mut self, payload: impl AsRef<[u8]>) -> Self {
        self.payload = payload.as_ref().to_vec();
        self
    }

    /// The packet's bytes, from the Ethernet header on, without frame check sequence.
    pub fn build(&self) -> Vec<u8> {
        layer::assemble(self)
    }

    fn push(mut self, layer: Layer) -> Self {
        self.layers.push(Stacked { layer, next: None });
        self
    }

    fn last(&mut self, method: &str) -> &mut Layer {
        match self.layers.last_mut() {
            Some(stacked) => &mut stacked.layer,
            None => misplaced(method, "another header than ethernet"),
        }
    }

    fn is_ipv6(&self) -> bool {
        let innermost_ip = self.layers.iter().rev().find_map(|stacked| match stacked.layer {
            Layer::Ipv6(_) => Some(true),
            Layer::Ipv4(_) => Some(false),
            _ => None,
        });
        innermost_ip.unwrap_or_else(|| misplaced("ICMP", "ipv4 or ipv6"))
    }
}

/// A `PadN` option of 6 bytes (RFC 8200, section 4.2).
const PADDING: [u8; 6] = [1, 4, 0, 0, 0, 0];

fn misplaced(method: &str, wanted: &str) -> ! {
    panic!("{method} comes right after {wanted}")
}
