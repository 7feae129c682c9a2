//! What lab03's programs are made of, for later labs to use: the frame that a TC program sees, tables of flows in maps,
//! and buckets that say when a packet may leave. Defines no maps; it takes them.

#![no_std]
// Nothing in a program may panic: there is nobody to catch it, and the verifier would have to follow the message.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use core::hint::black_box;

pub mod flows;

use aya_ebpf::{bindings::__sk_buff, btf_maps::Array, programs::TcContext};
use lab01_count_packets_common::packet::{Header, Packet};
use lab01_count_packets_ebpf::load;
use lab02_xdp_firewall_ebpf::SharedBucket;
use lab03_tc_egress_common::{decide::Size, shaper};

/// The frame that a TC program was called for.
///
/// Its beginning lies in one piece of memory, between `data` and `data_end`, and is read there. The rest may lie in other
/// pieces, and mostly only what an application sent does. Headers seldom lie there; where they do, [`Frame::pull`] moves
/// them to the beginning.
pub struct Frame {
    skb: *mut __sk_buff,
    start: usize,
    end: usize,
    len: usize,
}

/// A header starts at most here, and no frame is longer: see [`lab01_count_packets_ebpf::Frame`].
const MAX_HEADER_OFFSET: usize = 0x7fff;
const MAX_FRAME_LEN: usize = 0x1_ffff;

/// How much of a frame in pieces is made readable: more headers than any honest packet has.
pub const MAX_PULLED: usize = 1024;

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

    // ANCHOR: pull
    /// Whether a part of it lies elsewhere than between `data` and `data_end`.
    #[inline(always)]
    pub fn is_in_pieces(&self) -> bool {
        self.len > MAX_FRAME_LEN || self.start + self.len > self.end
    }

    /// Moves its beginning, up to [`MAX_PULLED`] bytes of it, to where it can be read. The kernel first makes a copy of
    /// what it shares with others, so this is for frames that cannot be read otherwise.
    #[inline(always)]
    pub fn pull(&mut self, ctx: &TcContext) {
        let wanted = if self.len < MAX_PULLED { self.len } else { MAX_PULLED };
        // If there is no memory for it, the frame stays as it is, and unreadable.
        let _ = ctx.pull_data(wanted as u32);
        *self = Self::of(ctx);
    }
    // ANCHOR_END: pull

    /// Its length, and what it will be on the wire, for egress: what comes in is what it is.
    #[inline(always)]
    pub fn size(&self) -> Size {
        // SAFETY: as above.
        let (segments, wire) = unsafe { ((*self.skb).gso_segs, (*self.skb).wire_len) };
        Size {
            frame: self.len(),
            segments: u64::from(segments).max(1),
            wire: u64::from(wire),
        }
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
        if start + size_of::<H>() > self.end {
            return None;
        }
        // SAFETY: the header lies between `data` and `data_end`, as was just compared.
        Some(unsafe { load(start) })
    }
    // ANCHOR_END: read
}

/// [`shaper::departure_ns`] of the bucket at `index`, which several CPUs share.
///
/// `now_ns` is taken before the lock is: no helper may be called while it is held.
#[inline(always)]
pub fn departure_ns<const N: usize>(
    buckets: &Array<SharedBucket, N>,
    index: u32,
    now_ns: u64,
    cost_ns: u64,
    burst_ns: u64,
    horizon_ns: u64,
) -> Option<u64> {
    let Some(shared) = buckets.get_ptr_mut(index) else {
        return Some(now_ns);
    };
    // SAFETY: the value lies in the map for as long as the map does.
    unsafe {
        SharedBucket::locked(shared, |bucket| {
            shaper::departure_ns(bucket, now_ns, cost_ns, burst_ns, horizon_ns)
        })
    }
}
