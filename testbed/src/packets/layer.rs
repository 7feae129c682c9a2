//! The headers of a packet, put together from the inside out, since the outer ones hold the lengths of the inner.

use std::net::Ipv4Addr;

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, IpAuthHeader, IpFragOffset, IpNumber,
    Ipv4Header, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, SingleVlanHeader, TcpHeader, UdpHeader,
    checksum::Sum16BitWords, ether_type, ip_number,
};

use super::Packet;

#[derive(Clone, Debug)]
pub(super) struct Stacked {
    pub layer: Layer,
    /// What this header says that follows, where that is not what does.
    pub next: Option<u16>,
}

#[derive(Clone, Debug)]
pub(super) enum Layer {
    Vlan { tag_type: u16, header: SingleVlanHeader },
    Arp(Arp),
    Ipv4(Ipv4Header),
    Ipv6(Ipv6Header),
    Extension(Extension),
    Udp(UdpHeader),
    Tcp(Box<TcpHeader>),
    Icmp(Icmp),
}

#[derive(Clone, Debug)]
pub(super) struct Arp {
    pub reply: bool,
    pub sender: ([u8; 6], Ipv4Addr),
    pub target: ([u8; 6], Ipv4Addr),
}

#[derive(Clone, Debug)]
pub(super) enum Extension {
    Options {
        number: IpNumber,
        content: Vec<u8>,
    },
    Fragment {
        id: u32,
        fragment_offset: IpFragOffset,
        more_fragments: bool,
    },
    Authentication,
}

#[derive(Clone, Debug)]
pub(super) struct Icmp {
    pub v6: bool,
    pub kind: u8,
    pub code: u8,
    pub rest: [u8; 4],
}

pub(super) fn assemble(packet: &Packet) -> Vec<u8> {
    let mut bytes = packet.payload.clone();
    for position in (0..packet.layers.len()).rev() {
        let (outer, inner) = packet.layers.split_at(position);
        let mut framed = header(&inner[0], inner.get(1), innermost_ip(outer), &bytes);
        framed.append(&mut bytes);
        bytes = framed;
    }
    let ethernet = Ethernet2Header {
        source: packet.source_mac,
        destination: packet.destination_mac,
        ether_type: EtherType(
            packet
                .ether_type
                .unwrap_or_else(|| ether_type_of(packet.layers.first())),
        ),
    };
    let mut frame = ethernet.to_bytes().to_vec();
    frame.append(&mut bytes);
    frame
}

/// The bytes of one header, in front of `content`.
fn header(this: &Stacked, next: Option<&Stacked>, ip: Option<&Layer>, content: &[u8]) -> Vec<u8> {
    let ether_type = || EtherType(this.next.unwrap_or_else(|| ether_type_of(next)));
    let protocol = || {
        IpNumber(
            this.next
                .map_or_else(|| protocol_of(next, &this.layer), |number| number as u8),
        )
    };
    match &this.layer {
        Layer::Vlan { header, .. } => {
            let mut header = header.clone();
            header.ether_type = ether_type();
            header.to_bytes().to_vec()
        }
        Layer::Arp(arp) => arp.to_bytes(),
        Layer::Ipv4(header) => {
            let mut header = header.clone();
            header.protocol = protocol();
            header
                .set_payload_len(content.len())
                .unwrap_or_else(|error| panic!("an IPv4 packet cannot hold that much: {error}"));
            header.header_checksum = header.calc_header_checksum();
            header.to_bytes().to_vec()
        }
        Layer::Ipv6(header) => {
            let mut header = header.clone();
            header.next_header = protocol();
            header
                .set_payload_length(content.len())
                .unwrap_or_else(|error| panic!("an IPv6 packet cannot hold that much: {error}"));
            header.to_bytes().to_vec()
        }
        Layer::Extension(extension) => extension.to_bytes(protocol()),
        Layer::Udp(header) => {
            let mut header = header.clone();
            header.length = u16::try_from(UdpHeader::LEN + content.len())
                .unwrap_or_else(|_| panic!("a UDP datagram cannot hold {} bytes", content.len()));
            let checksum = match ip {
                Some(Layer::Ipv4(ip)) => header.calc_checksum_ipv4(ip, content),
                Some(Layer::Ipv6(ip)) => header.calc_checksum_ipv6(ip, content),
                _ => Ok(0),
            };
            header.checksum = checksum.unwrap_or_else(|error| panic!("no UDP checksum: {error}"));
            header.to_bytes().to_vec()
        }
        Layer::Tcp(header) => {
            let mut header = header.clone();
            let checksum = match ip {
                Some(Layer::Ipv4(ip)) => header.calc_checksum_ipv4(ip, content),
                Some(Layer::Ipv6(ip)) => header.calc_checksum_ipv6(ip, content),
                _ => Ok(0),
            };
            header.checksum = checksum.unwrap_or_else(|error| panic!("no TCP checksum: {error}"));
            header.to_bytes().to_vec()
        }
        Layer::Icmp(icmp) => icmp.to_bytes(ip, content),
    }
}

impl Arp {
    fn to_bytes(&self) -> Vec<u8> {
        let packet = ArpPacket::new(
            ArpHardwareId::ETHERNET,
            ether_type::IPV4,
            if self.reply {
                ArpOperation::REPLY
            } else {
                ArpOperation::REQUEST
            },
            &self.sender.0,
            &self.sender.1.octets(),
            &self.target.0,
            &self.target.1.octets(),
        );
        packet
            .unwrap_or_else(|error| panic!("no ARP packet: {error}"))
            .to_bytes()
            .to_vec()
    }
}

impl Extension {
    fn number(&self) -> u8 {
        match self {
            Self::Options { number, .. } => number.0,
            Self::Fragment { .. } => ip_number::IPV6_FRAG.0,
            Self::Authentication => ip_number::AUTH.0,
        }
    }

    fn to_bytes(&self, next: IpNumber) -> Vec<u8> {
        match self {
            Self::Options { content, .. } => Ipv6RawExtHeader::new_raw(next, content)
                .unwrap_or_else(|error| panic!("no extension header: {error}"))
                .to_bytes()
                .to_vec(),
            Self::Fragment {
                id,
                fragment_offset,
                more_fragments,
            } => Ipv6FragmentHeader::new(next, *fragment_offset, *more_fragments, *id)
                .to_bytes()
                .to_vec(),
            Self::Authentication => IpAuthHeader::new(next, 1, 1, &[0; 12])
                .unwrap_or_else(|error| panic!("no authentication header: {error}"))
                .to_bytes()
                .to_vec(),
        }
    }
}

impl Icmp {
    fn to_bytes(&self, ip: Option<&Layer>, content: &[u8]) -> Vec<u8> {
        let mut sum = Sum16BitWords::new()
            .add_2bytes([self.kind, self.code])
            .add_4bytes(self.rest);
        if let (true, Some(Layer::Ipv6(ip))) = (self.v6, ip) {
            // The pseudo-header of RFC 8200, section 8.1.
            sum = sum
                .add_16bytes(ip.source)
                .add_16bytes(ip.destination)
                .add_4bytes((8 + content.len() as u32).to_be_bytes())
                .add_2bytes([0, ip_number::IPV6_ICMP.0]);
        }
        // etherparse keeps the sum in the machine's order, as it adds the words.
        let checksum = sum.add_slice(content).ones_complement().to_be();
        let [c0, c1] = checksum.to_be_bytes();
        let [r0, r1, r2, r3] = self.rest;
        vec![self.kind, self.code, c0, c1, r0, r1, r2, r3]
    }
}

fn ether_type_of(next: Option<&Stacked>) -> u16 {
    match next.map(|next| &next.layer) {
        Some(Layer::Vlan { tag_type, .. }) => *tag_type,
        Some(Layer::Arp(_)) => ether_type::ARP.0,
        Some(Layer::Ipv4(_)) => ether_type::IPV4.0,
        Some(Layer::Ipv6(_)) => ether_type::IPV6.0,
        Some(other) => panic!("{other:?} needs an IP header in front of it"),
        // Reserved for local experiments (IEEE 802): nobody takes the payload for something else.
        None => 0x88b5,
    }
}

fn protocol_of(next: Option<&Stacked>, this: &Layer) -> u8 {
    match next.map(|next| &next.layer) {
        Some(Layer::Ipv4(_)) => ip_number::IPV4.0,
        Some(Layer::Ipv6(_)) => ip_number::IPV6.0,
        Some(Layer::Extension(extension)) => extension.number(),
        Some(Layer::Udp(_)) => ip_number::UDP.0,
        Some(Layer::Tcp(_)) => ip_number::TCP.0,
        Some(Layer::Icmp(icmp)) if icmp.v6 => ip_number::IPV6_ICMP.0,
        Some(Layer::Icmp(_)) => ip_number::ICMP.0,
        Some(other) => panic!("{other:?} cannot follow an IP header"),
        None => match this {
            // Reserved for experiments (RFC 3692).
            Layer::Ipv4(_) => 253,
            _ => ip_number::IPV6_NO_NEXT_HEADER.0,
        },
    }
}

fn innermost_ip(outer: &[Stacked]) -> Option<&Layer> {
    outer
        .iter()
        .rev()
        .map(|stacked| &stacked.layer)
        .find(|layer| matches!(layer, Layer::Ipv4(_) | Layer::Ipv6(_)))
}

/// What lies behind the Ethernet header of a frame and its VLAN tags.
pub(super) fn behind_ethernet(frame: &[u8]) -> &[u8] {
    let mut ether_type_at = 12;
    while let Some([0x81, 0x00] | [0x88, 0xa8]) = frame.get(ether_type_at..ether_type_at + 2) {
        ether_type_at += 4;
    }
    frame.get(ether_type_at + 2..).unwrap_or_default()
}
