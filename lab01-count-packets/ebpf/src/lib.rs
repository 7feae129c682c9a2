//! What lab01's programs are made of, for later labs to use: the frame that an XDP program sees, and counting into
//! per-CPU maps. Defines no maps of its own; it takes them.

#![no_std]
// Nothing in a program may panic: there is nobody to catch it, and the verifier would have to follow the message.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use core::{hint::black_box, mem::MaybeUninit};

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::{PerCpuArray, PerCpuHashMap},
    programs::XdpContext,
};
use lab01_count_packets_common::{
    counter::Counter,
    packet::{Header, Packet},
};

/// The frame that an XDP program was called for: everything between `data` and `data_end`.
pub struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    /// The frame of this context.
    #[inline(always)]
    pub fn of(ctx: &XdpContext) -> Self {
        Self {
            start: ctx.data(),
            end: ctx.data_end(),
        }
    }

    /// The frame's length in bytes. Needs `CAP_PERFMON` at load time: it is the difference of two pointers.
    #[inline(always)]
    pub fn len(&self) -> u64 {
        (self.end - self.start) as u64
    }

    /// Whether there is no byte in it.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

/// A header starts at most here: the verifier follows offsets up to 64 KiB (`MAX_PACKET_OFF` in
/// `kernel/bpf/verifier.c`), and wants the header's own size below that as well.
const MAX_HEADER_OFFSET: usize = 0x7fff;

/// No frame is longer: what segmentation offload makes of 64 KiB, with its headers.
const MAX_FRAME_LEN: usize = 0x1_ffff;

impl Packet for Frame {
    #[inline(always)]
    fn holds(&self, bytes: usize) -> bool {
        // What the compiler knows to be small, a `u16` say, it would not compare. Old kernels (5.10 is one) do not know
        // it of a number whose bytes were swapped (`BPF_END`), and would refuse to add that to a pointer.
        let bytes = black_box(bytes);
        bytes <= MAX_FRAME_LEN && self.start + bytes <= self.end
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
        // SAFETY: the header lies inside the packet, as was just compared, and any bits make a `Header`.
        Some(unsafe { load(start) })
    }
    // ANCHOR_END: read
}

/// Copies a header out of the packet, word by word.
///
/// Headers are made of bytes and lie at any offset, so `read_unaligned` would load each byte by itself: the compiler
/// does not know that an eBPF load of a word from a packet needs no alignment. The kernel does, where the processor has
/// no need of it either (`check_pkt_ptr_alignment` in `kernel/bpf/verifier.c`); C programs rely on it with every `ip->saddr`.
///
/// # Safety
///
/// The whole header lies inside the packet.
#[inline(always)]
pub unsafe fn load<H: Header>(start: usize) -> H {
    let mut header = MaybeUninit::<H>::uninit();
    let to = header.as_mut_ptr().cast::<u8>();
    let mut copied = 0;
    while copied + 8 <= size_of::<H>() {
        // SAFETY: the word lies inside the header, and see above on the alignment.
        let word = unsafe { *((start + copied) as *const u64) };
        // SAFETY: as many bytes as were read, at the same place.
        unsafe { to.add(copied).cast::<u64>().write_unaligned(word) };
        copied += 8;
    }
    if copied + 4 <= size_of::<H>() {
        // SAFETY: the word lies inside the header, and see above on the alignment.
        let word = unsafe { *((start + copied) as *const u32) };
        // SAFETY: as many bytes as were read, at the same place.
        unsafe { to.add(copied).cast::<u32>().write_unaligned(word) };
        copied += 4;
    }
    if copied + 2 <= size_of::<H>() {
        // SAFETY: as above.
        let half = unsafe { *((start + copied) as *const u16) };
        // SAFETY: as above.
        unsafe { to.add(copied).cast::<u16>().write_unaligned(half) };
        copied += 2;
    }
    if copied < size_of::<H>() {
        // SAFETY: the last byte of the header.
        unsafe { *to.add(copied) = *((start + copied) as *const u8) };
    }
    // SAFETY: all of its bytes were written, and any bits make a `Header`.
    unsafe { header.assume_init() }
}

/// Counts a packet of `bytes` bytes under `index`; returns how many were counted there on this CPU, this one included.
///
/// Returns 0, having counted nothing, if there is no such index, which a caller rules out by the type of its index.
#[inline(always)]
pub fn count_at<const N: usize>(counters: &PerCpuArray<Counter, N>, index: u32, bytes: u64) -> u64 {
    let Some(counter) = counters.get_ptr_mut(index) else {
        return 0;
    };
    // SAFETY: the value is this CPU's own, and no other program interrupts this one on the same CPU.
    let counter = unsafe { &mut *counter };
    counter.add(bytes);
    counter.packets
}

/// The map has no room for another key.
pub struct Full;

/// Counts a packet of `bytes` bytes under `key`, which is added at its first packet.
#[inline(always)]
pub fn count_by<K, const N: usize>(counters: &PerCpuHashMap<K, Counter, N>, key: &K, bytes: u64) -> Result<(), Full> {
    // ANCHOR: count_by
    if let Some(counter) = counters.get_ptr_mut(key) {
        // SAFETY: the value is this CPU's own, and entries are never removed.
        unsafe { (*counter).add(bytes) };
        return Ok(());
    }
    // Another CPU may add the key at the same moment: BPF_NOEXIST leaves its entry as it is, and the second look-up
    // finds this CPU's part of it. Only if there is none the map was full.
    let _ = counters.insert(key, Counter::ZERO, u64::from(BPF_NOEXIST));
    let counter = counters.get_ptr_mut(key).ok_or(Full)?;
    // SAFETY: as above.
    unsafe { (*counter).add(bytes) };
    Ok(())
    // ANCHOR_END: count_by
}
