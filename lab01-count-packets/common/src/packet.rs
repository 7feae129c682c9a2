//! Where a packet's bytes come from.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    vlan::VlanHdr,
};

/// A header as it stands in a packet.
///
/// # Safety
///
/// An implementor is `#[repr(C)]` without padding and valid for every pattern of bits: a reader copies it from bytes
/// that come from anywhere, at any offset.
pub unsafe trait Header: Copy {}

// SAFETY: integers and arrays of bytes, laid out as in the standard.
unsafe impl Header for EthHdr {}
// SAFETY: as above.
unsafe impl Header for VlanHdr {}
// SAFETY: as above.
unsafe impl Header for Ipv4Hdr {}
// SAFETY: as above.
unsafe impl Header for Ipv6Hdr {}
// SAFETY: any bits are valid bytes.
unsafe impl<const N: usize> Header for [u8; N] {}

const _: () = {
    assert!(size_of::<EthHdr>() == 14);
    assert!(size_of::<VlanHdr>() == 4);
    assert!(size_of::<Ipv4Hdr>() == 20);
    assert!(size_of::<Ipv6Hdr>() == 40);
};

/// The bytes of one packet, whose end is known and never trusted to be where a header says.
///
/// An eBPF context implements it by comparing with `data_end`, which is what the verifier wants to see; a slice
/// implements it for tests, fuzzers and user space.
///
/// There is no `len()`: subtracting `data` from `data_end` makes a number of two pointers, which the verifier allows
/// only to programs loaded with `CAP_PERFMON`. Asking whether the packet holds so many bytes needs no such right.
pub trait Packet {
    /// Whether the packet is at least `bytes` long, counted from its first header.
    ///
    /// In an eBPF program `bytes` has to be bounded by what was done to it before (a mask, a `u16`), or the verifier
    /// refuses the comparison.
    fn holds(&self, bytes: usize) -> bool;

    /// The header at `offset` bytes from the start, or `None` if it does not lie wholly inside the packet.
    fn read<H: Header>(&self, offset: usize) -> Option<H>;
}

impl Packet for [u8] {
    fn holds(&self, bytes: usize) -> bool {
        bytes <= self.len()
    }

    fn read<H: Header>(&self, offset: usize) -> Option<H> {
        let bytes = self.get(offset..)?.get(..size_of::<H>())?;
        // SAFETY: `bytes` is as long as `H`, and `Header` promises that any bits will do.
        Some(unsafe { bytes.as_ptr().cast::<H>().read_unaligned() })
    }
}

/// A place in a packet that moves forward, header by header.
///
/// ```
/// use lab01_count_packets_common::packet::Cursor;
/// use network_types::eth::EthHdr;
///
/// let frame = [0u8; 20];
/// let mut cursor = Cursor::new(&frame[..]);
/// assert!(cursor.take::<EthHdr>().is_some());
/// assert!(cursor.holds(6) && !cursor.holds(7));
/// assert!(cursor.take::<EthHdr>().is_none(), "six bytes are no Ethernet header");
/// ```
pub struct Cursor<'a, P: ?Sized> {
    packet: &'a P,
    offset: usize,
}

impl<'a, P: Packet + ?Sized> Cursor<'a, P> {
    /// A cursor at the packet's first byte.
    #[inline(always)]
    pub fn new(packet: &'a P) -> Self {
        Self { packet, offset: 0 }
    }

    /// The packet that the cursor moves through.
    #[inline(always)]
    pub fn packet(&self) -> &'a P {
        self.packet
    }

    /// The header here, leaving the cursor behind it; `None`, without moving, if the packet ends before.
    #[inline(always)]
    pub fn take<H: Header>(&mut self) -> Option<H> {
        let header = self.peek()?;
        self.offset += size_of::<H>();
        Some(header)
    }

    /// The header here, without moving.
    #[inline(always)]
    pub fn peek<H: Header>(&self) -> Option<H> {
        self.packet.read(self.offset)
    }

    /// Moves on by `bytes`; `None`, without moving, if the packet ends before.
    #[inline(always)]
    pub fn skip(&mut self, bytes: usize) -> Option<()> {
        if !self.holds(bytes) {
            return None;
        }
        self.offset += bytes;
        Some(())
    }

    /// Whether `bytes` bytes of the packet lie ahead of the cursor. See [`Packet::holds`] on bounds.
    #[inline(always)]
    pub fn holds(&self, bytes: usize) -> bool {
        self.packet.holds(self.offset + bytes)
    }

    /// How many bytes of the packet lie behind the cursor.
    #[inline(always)]
    pub fn offset(&self) -> usize {
        self.offset
    }
}
