//! What lab03's programs are made of, for later labs to use: the frame that a TC program sees. Defines no maps; it takes
//! them.

#![no_std]
// Nothing in a program may panic: there is nobody to catch it, and the verifier would have to follow the message.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use core::{hint::black_box, mem::MaybeUninit};

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes, programs::TcContext};
use lab01_count_packets_common::packet::{Header, Packet};
use lab01_count_packets_ebpf::load;

/// The frame that a TC program was called for.
///
/// Its beginning lies in one piece of memory, between `data` and `data_end`, and is read there. The rest may lie in
/// other pieces, and mostly only what an application sent does. Headers can lie there too; these are copied out by a
/// helper. `bpf_skb_pull_data` would move them to the beginning instead, for which the kernel first makes a copy of what
/// it shares with others, a segment that TCP may have to send again for one.
pub struct Frame {
    skb: *mut __sk_buff,
    start: usize,
    end: usize,
    len: usize,
}

/// A header starts at most here, and no frame is longer: see [`lab01_count_packets_ebpf::Frame`].
const MAX_HEADER_OFFSET: usize = 0x7fff;

impl Frame {
    /// The frame of this context.
    #[inline(always)]
    pub fn of(ctx: &TcContext) -> Self {
        Self {
            skb: ctx.skb.skb,
            start: ctx.data(),
            end: ctx.data_end(),
            len: ctx.len() as usize,
        }
    }

    /// The frame's length in bytes, of all its pieces, the Ethernet header included. What segmentation offload will
    /// send as many packets is one frame here.
    #[inline(always)]
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether there is no byte in it.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The id of the VLAN tag that the kernel or the card has taken out of the frame, and keeps beside it: the outer one
    /// of a frame that came in, or the one that a VLAN interface leaves to the card to write.
    #[inline(always)]
    pub fn tag_beside(&self) -> Option<u16> {
        // SAFETY: the context is the kernel's, and these fields can be read by any TC program.
        let (present, tci) = unsafe { ((*self.skb).vlan_present, (*self.skb).vlan_tci) };
        (present != 0).then_some(tci as u16 & 0xfff)
    }

    /// How many packets the frame will be on the wire, and how many bytes these will have, Ethernet headers included.
    /// For egress: what comes in is what it is.
    #[inline(always)]
    pub fn on_the_wire(&self) -> (u64, u64) {
        // SAFETY: as above.
        let (segments, bytes) = unsafe { ((*self.skb).gso_segs, (*self.skb).wire_len) };
        (u64::from(segments).max(1), u64::from(bytes))
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn holds(&self, bytes: usize) -> bool {
        black_box(bytes) <= self.len
    }

    // ANCHOR: read
    #[inline(always)]
    fn read<H: Header>(&self, offset: usize) -> Option<H> {
        if offset > MAX_HEADER_OFFSET {
            return None;
        }
        let start = self.start + offset;
        if start + size_of::<H>() <= self.end {
            // SAFETY: the header lies between `data` and `data_end`, as was just compared.
            return Some(unsafe { load(start) });
        }
        let mut header = MaybeUninit::<H>::uninit();
        // SAFETY: the helper writes as many bytes as the header has, or reports that the frame ends before.
        let failed = unsafe {
            bpf_skb_load_bytes(
                self.skb.cast(),
                offset as u32,
                header.as_mut_ptr().cast(),
                size_of::<H>() as u32,
            )
        };
        // SAFETY: all of its bytes were written, and any bits make a `Header`.
        (failed == 0).then(|| unsafe { header.assume_init() })
    }
    // ANCHOR_END: read
}
