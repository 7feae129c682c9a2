//! All headers of a frame.

use lab01_count_packets_common::{
    headers::{Headers, MAX_VLAN_TAGS},
    packet::Packet,
};
use lab02_xdp_firewall_common::transport::{Malformed, Transport, Upper};

/// The headers of the frame in hand. In an eBPF program it is part of a map's value, for the reasons that
/// [`lab02_xdp_firewall_common::firewall::Inspection`] has.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// Ethernet, IPv4, IPv6.
    pub headers: Headers,
    /// What they lead to.
    pub upper: Upper,
    /// The transport header.
    pub transport: Transport,
    /// The ids of the VLAN tags, the outer one in the low 12 bits, the inner one above it; 0 without tags. A tag with
    /// the id 0 has a priority and no VLAN (IEEE 802.1Q), and is none.
    pub vlans: u32,
    /// Why it was refused, if it was.
    pub malformed: Malformed,
}

impl Parsed {
    /// Of no frame.
    pub const EMPTY: Self = Self {
        headers: Headers::EMPTY,
        upper: Upper::EMPTY,
        transport: Transport::EMPTY,
        vlans: 0,
        malformed: Malformed::EthernetTruncated,
    };

    /// Reads `frame`, which starts with its Ethernet header; the kernel may keep an outer VLAN tag beside it. False if
    /// it is malformed.
    #[inline(never)]
    pub fn read<P: Packet + ?Sized>(&mut self, frame: &P, tag_beside: Option<u16>) -> bool {
        self.read_headers(frame)
            && self.read_vlans(frame, tag_beside)
            && self.find_upper(frame)
            && self.read_transport(frame)
    }

    #[inline(always)]
    fn read_headers<P: Packet + ?Sized>(&mut self, frame: &P) -> bool {
        match Headers::parse(frame) {
            Ok(headers) => self.headers = headers,
            Err(malformed) => return self.refuse(malformed.into()),
        }
        true
    }

    // ANCHOR: vlans
    /// Collects the ids of the tags in the frame, which the parser has skipped, and of the one beside it.
    #[inline(always)]
    fn read_vlans<P: Packet + ?Sized>(&mut self, frame: &P, tag_beside: Option<u16>) -> bool {
        self.vlans = 0;
        // The bytes between the Ethernet header and the IP header: four for each tag.
        let in_frame = self.headers.network_offset.saturating_sub(14) / 4;
        if in_frame == 0 && tag_beside.is_none() {
            return true;
        }
        if in_frame >= MAX_VLAN_TAGS && tag_beside.is_some() {
            return self.refuse(Malformed::TooManyTags);
        }
        let mut vlans = 0;
        if in_frame > 1 {
            vlans = vlan_id(frame, 18);
        }
        if in_frame > 0 {
            vlans = vlans << 12 | vlan_id(frame, 14);
        }
        if let Some(id) = tag_beside {
            vlans = vlans << 12 | u32::from(id);
        }
        self.vlans = vlans;
        true
    }
    // ANCHOR_END: vlans

    #[inline(always)]
    fn find_upper<P: Packet + ?Sized>(&mut self, frame: &P) -> bool {
        match Upper::find(frame, &self.headers) {
            Ok(upper) => self.upper = upper,
            Err(malformed) => return self.refuse(malformed),
        }
        true
    }

    #[inline(always)]
    fn read_transport<P: Packet + ?Sized>(&mut self, frame: &P) -> bool {
        match Transport::read(frame, &self.headers, &self.upper) {
            Ok(transport) => self.transport = transport,
            Err(malformed) => return self.refuse(malformed),
        }
        true
    }

    #[inline(always)]
    fn refuse(&mut self, malformed: Malformed) -> bool {
        self.malformed = malformed;
        false
    }
}

/// The VLAN id in the tag control information at `offset`, IEEE 802.1Q.
#[inline(always)]
fn vlan_id<P: Packet + ?Sized>(frame: &P, offset: usize) -> u32 {
    frame
        .read::<[u8; 2]>(offset)
        .map_or(0, |tci| u32::from(u16::from_be_bytes(tci) & 0xfff))
}
