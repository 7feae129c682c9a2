//! Writing records into a ring buffer, and keeping the books.

use aya_ebpf::{
    btf_maps::{Array, PerCpuArray, RingBuf},
    helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_boot_ns},
};
use lab02_xdp_firewall_common::firewall::Reason;
use lab02_xdp_firewall_ebpf::{SharedBucket, take_tokens};
use lab05_ringbuf_events_common::decision::{Decision, Hook, Outcome, Settings, Tally};

/// Whether a program can be interrupted by itself on the same CPU.
///
/// XDP cannot: it runs with softirqs off. What runs for a process can: a softirq, or another process, may run the same
/// program in the middle of an addition, and that addition would be forgotten.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// To its end, on its CPU.
    Undisturbed,
    /// Perhaps with another run of itself in between.
    Interruptible,
}

/// The maps by which decisions are told.
pub struct Events<'a, const SLOTS: usize, const RING: usize> {
    /// Where records go.
    pub ring: &'a RingBuf<Decision, RING>,
    /// The books.
    pub tallies: &'a PerCpuArray<Tally, SLOTS>,
    /// A bucket for each slot.
    pub buckets: &'a Array<SharedBucket, SLOTS>,
}

impl<const SLOTS: usize, const RING: usize> Events<'_, SLOTS, RING> {
    // ANCHOR: tell
    /// Tells of a decision, or not, and keeps the books; whatever comes of it, the verdict stands. `fill` sets what the
    /// hook knows besides, in a record that says nothing.
    #[inline(always)]
    pub fn tell(
        &self,
        (hook, reason): (Hook, Reason),
        settings: &Settings,
        runs: Runs,
        fill: impl FnOnce(&mut Decision),
    ) -> Outcome {
        let outcome = Outcome::of(reason, settings.observe != 0);
        let slot = hook.slot(reason);
        let Some(tally) = self.tallies.get_ptr_mut(slot) else {
            return outcome;
        };
        // SAFETY: the value lies in the map for as long as the map does, and all additions to it are made here.
        let (decisions, emitted, suppressed, lost) = unsafe {
            (
                &raw mut (*tally).decisions,
                &raw mut (*tally).emitted,
                &raw mut (*tally).suppressed,
                &raw mut (*tally).lost,
            )
        };
        // SAFETY: into the map's value, as are the others below.
        unsafe { add_one(decisions, runs) };
        // SAFETY: helpers without arguments.
        let (now_ns, random) = (unsafe { bpf_ktime_get_boot_ns() }, || unsafe { bpf_get_prandom_u32() });
        let is_wanted = settings.wants(hook, outcome, random, |limit| {
            take_tokens(self.buckets, slot, now_ns, limit.cost_ns(1), limit.burst_ns)
        });
        if !is_wanted {
            // SAFETY: as above.
            unsafe { add_one(suppressed, runs) };
        } else if let Some(mut entry) = self.ring.reserve(0) {
            let record = entry.write(Decision {
                time_ns: now_ns,
                hook: hook as u8,
                outcome: outcome as u8,
                reason: reason.index() as u8,
                ..Decision::NOTHING
            });
            fill(record);
            entry.submit(0);
            // SAFETY: as above.
            unsafe { add_one(emitted, runs) };
        } else {
            // SAFETY: as above.
            unsafe { add_one(lost, runs) };
        }
        outcome
    }
    // ANCHOR_END: tell
}

// ANCHOR: add_one
/// Adds 1 to a number of this CPU's own.
///
/// # Safety
///
/// It lies in a map's value, aligned, and only such additions are made to it.
#[inline(always)]
pub unsafe fn add_one(number: *mut u64, runs: Runs) {
    match runs {
        // SAFETY: as the caller promises; and nobody adds in between.
        Runs::Undisturbed => unsafe { *number = (*number).wrapping_add(1) },
        // SAFETY: as the caller promises.
        Runs::Interruptible => unsafe { add(number, 1) },
    }
}
// ANCHOR_END: add_one

/// Adds to a number in a map, whoever else does.
///
/// What was there before is not asked for: an instruction that returns it came with Linux 5.12.
///
/// # Safety
///
/// It lies in a map's value, aligned, and is changed by such additions only.
#[inline(always)]
pub unsafe fn add(number: *mut u64, amount: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: as the caller promises. Rust's own atomics are not there for BPF, as they want a compare-and-swap besides.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(number, amount);
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as the caller promises.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(number) }.fetch_add(amount, core::sync::atomic::Ordering::Relaxed);
}
