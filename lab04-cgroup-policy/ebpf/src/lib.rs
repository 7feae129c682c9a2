//! What lab04's programs are made of, for later labs to use: the packet of a `cgroup_skb` program, and the destination
//! that `connect` and `sendmsg` were given. Defines no maps.

#![no_std]
// Nothing in a program may panic: there is nobody to catch it, and the verifier would have to follow the message.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use aya_ebpf::programs::{SkBuffContext, SockAddrContext};
use lab01_count_packets_common::{
    headers::{Headers, Malformed},
    packet::{Cursor, Header, Packet},
};
use lab02_xdp_firewall_common::transport::{self, Transport, Upper};
use lab04_cgroup_policy_common::{classifier, destination::Destination};

/// The packet that a `cgroup_skb` program was called for. It starts at the IP header: there is no Ethernet header yet
/// on the way out, and none any more on the way in.
pub struct IpPacket<'a> {
    ctx: &'a SkBuffContext,
}

impl<'a> IpPacket<'a> {
    /// The packet of this context.
    #[inline(always)]
    pub fn of(ctx: &'a SkBuffContext) -> Self {
        Self { ctx }
    }

    /// Its length in bytes from the IP header on. Of what the stack hands down in one piece and the card cuts later
    /// (segmentation offload), the length of the whole piece.
    #[inline(always)]
    pub fn len(&self) -> u64 {
        u64::from(self.ctx.len())
    }

    /// Whether there is no byte in it.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The index of the interface that it leaves by or came in by; `lo` is 1 in every network namespace.
    #[inline(always)]
    pub fn interface(&self) -> u32 {
        // SAFETY: the context is valid for as long as the program runs, and this field may be read (`cg_skb_is_valid_access`
        // in `net/core/filter.c`).
        unsafe { (*self.ctx.skb.skb).ifindex }
    }

    /// Reads the IP header.
    #[inline(always)]
    pub fn headers(&self) -> Result<Headers, Malformed> {
        // SAFETY: as above. In network order in a field of 32 bits.
        let ether_type = unsafe { (*self.ctx.skb.skb).protocol } as u16;
        Headers::parse_network(&mut Cursor::new(self), u16::from_be(ether_type))
    }
}

impl Packet for IpPacket<'_> {
    #[inline(always)]
    fn holds(&self, bytes: usize) -> bool {
        bytes <= self.ctx.len() as usize
    }

    /// By a helper, and not from between `data` and `data_end` as in XDP: only the first part of such a packet lies there,
    /// the rest in pages elsewhere, and a `cgroup_skb` program may not have it pulled together (`bpf_skb_pull_data`).
    #[inline(always)]
    fn read<H: Header>(&self, offset: usize) -> Option<H> {
        self.ctx.skb.load(offset).ok()
    }
}

/// Reads what rules ask of a packet.
#[inline(always)]
pub fn read(packet: &IpPacket<'_>) -> Result<classifier::Packet, transport::Malformed> {
    let headers = packet.headers()?;
    let upper = Upper::find(packet, &headers)?;
    let transport = Transport::read(packet, &headers, &upper)?;
    Ok(classifier::Packet::new(
        &headers,
        upper.protocol,
        transport.icmp_type,
        transport.has_ports,
        [transport.source_port, transport.destination_port],
    ))
}

/// What a `connect4` or `sendmsg4` program was called for.
#[inline(always)]
pub fn destination4(ctx: &SockAddrContext) -> Destination {
    // SAFETY: the context is valid for as long as the program runs, and programs of these types may read the fields.
    let (address, port, protocol) = unsafe {
        let address = &*ctx.sock_addr;
        (address.user_ip4, address.user_port, address.protocol)
    };
    Destination::ipv4(address.to_ne_bytes(), u16::from_be(port as u16), protocol as u8)
}

/// What a `connect6` or `sendmsg6` program was called for.
#[inline(always)]
pub fn destination6(ctx: &SockAddrContext) -> Destination {
    // SAFETY: as above. Word by word: a read of two words at once is one of eight bytes, which older verifiers refuse.
    let ([a, b, c, d], port, protocol) = unsafe {
        let address = &*ctx.sock_addr;
        let [a, b, c, d] = &address.user_ip6;
        let words = [
            core::ptr::read_volatile(a),
            core::ptr::read_volatile(b),
            core::ptr::read_volatile(c),
            core::ptr::read_volatile(d),
        ];
        (words, address.user_port, address.protocol)
    };
    Destination::ipv6(octets([a, b, c, d]), u16::from_be(port as u16), protocol as u8)
}

/// The bytes of an address as they stand in memory.
#[inline(always)]
fn octets(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: both are sixteen bytes of integers.
    unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) }
}
