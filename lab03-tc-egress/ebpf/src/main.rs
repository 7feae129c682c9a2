//! lab03's TC programs: they follow connections in both directions, deny what goes where it shall not, and hold what goes
//! out to a rate.

#![no_std]
#![no_main]
// The `#[classifier]` macro makes a second function that cannot be documented.
#![allow(missing_docs)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use aya_ebpf::{
    bindings::__sk_buff,
    btf_maps::{Array, LruHashMap, PerCpuArray},
    helpers::{bpf_ktime_get_ns, generated::bpf_ktime_get_coarse_ns},
    macros::{btf_map, classifier},
    programs::TcContext,
};
use aya_log_ebpf::info;
use lab01_count_packets_common::counter::Counter;
use lab01_count_packets_ebpf::count_at;
use lab02_xdp_firewall_common::{
    firewall::{FragmentKey, Verdict},
    transport::Malformed,
};
use lab02_xdp_firewall_ebpf::SharedBucket;
use lab03_tc_egress_common::{
    decide::{Config, FlowEvent, Hook, Inspection, MAX_DENY_RULES, MAX_SHAPES, Reason, Tables},
    flow::table::Bucket,
    shaper::Shape,
    target::Target,
};
use lab03_tc_egress_ebpf::{
    Frame, departure_ns,
    flows::{BucketLock, FlowTable},
};

/// `BPF_F_MMAPABLE`: user space reads and fills these arrays through its own memory, Linux 5.5.
const MMAPABLE: usize = 1 << 10;

// ANCHOR: flow_maps
/// Flows whose both ends are proven. Its size is set by the loader (`--max-flows`), and that of the next one.
#[btf_map]
static FLOWS: Array<Bucket, 64, MMAPABLE> = Array::new();

/// All others: a flood of these leaves the ones above alone.
#[btf_map]
static HALF_OPEN: Array<Bucket, 64, MMAPABLE> = Array::new();

/// How many locks a table's buckets share.
const LOCKS: usize = 4096;

#[btf_map]
static FLOWS_LOCKS: Array<BucketLock, LOCKS> = Array::new();

#[btf_map]
static HALF_OPEN_LOCKS: Array<BucketLock, LOCKS> = Array::new();

static ESTABLISHED_TABLE: FlowTable<64, MMAPABLE, LOCKS> = FlowTable {
    buckets: &FLOWS,
    locks: &FLOWS_LOCKS,
};

static HALF_OPEN_TABLE: FlowTable<64, MMAPABLE, LOCKS> = FlowTable {
    buckets: &HALF_OPEN,
    locks: &HALF_OPEN_LOCKS,
};
// ANCHOR_END: flow_maps

#[btf_map]
static CONFIG: Array<Config, 1> = Array::new();

/// A word of uses for each port.
#[btf_map]
static PORTS: Array<u64, 65_536, MMAPABLE> = Array::new();

#[btf_map]
static DENY_RULES: Array<Target, { MAX_DENY_RULES as usize }> = Array::new();

/// What each rule has denied.
#[btf_map]
static DENIED_BY_RULE: PerCpuArray<Counter, { MAX_DENY_RULES as usize }> = PerCpuArray::new();

#[btf_map]
static SHAPES: Array<Shape, { MAX_SHAPES as usize }> = Array::new();

#[btf_map]
static SHAPE_BUCKETS: Array<SharedBucket, { MAX_SHAPES as usize }> = Array::new();

/// For each rate: what was sent at once, what was sent later, what was dropped.
#[btf_map]
static BY_SHAPE: PerCpuArray<Counter, { MAX_SHAPES as usize * 3 }> = PerCpuArray::new();

/// What the first fragments met, and when.
#[btf_map]
static FRAGMENTED: LruHashMap<FragmentKey, FirstFragment, 16_384> = LruHashMap::new();

/// The frame in hand, of each hook: what is answered while a frame is looked at goes out before that is over.
#[btf_map]
static INSPECTIONS: PerCpuArray<Inspection, 2> = PerCpuArray::new();

/// By hook, and in it by reason.
#[btf_map]
static FRAMES_BY_REASON: PerCpuArray<Counter, { Reason::COUNT as usize * 2 }> = PerCpuArray::new();

#[btf_map]
static FRAMES_MALFORMED: PerCpuArray<Counter, { Malformed::COUNT as usize }> = PerCpuArray::new();

#[btf_map]
static FLOW_EVENTS: PerCpuArray<u64, { FlowEvent::COUNT as usize }> = PerCpuArray::new();

/// The verdict on a first fragment.
#[repr(C)]
struct FirstFragment {
    seen_at_ns: u64,
    /// 1 if it was dropped.
    dropped: u64,
}

/// How long later fragments may take, as long as the kernel waits for them: `net.ipv4.ipfrag_time`.
const REASSEMBLY_NS: u64 = 30_000_000_000;

/// After the first frame of a reason, every so many of it are logged: a power of two.
const LOG_EVERY: u64 = 1 << 16;

/// `TC_ACT_UNSPEC`, which is `TCX_NEXT`: the programs behind decide, and if there is none, the frame passes.
const NEXT: i32 = -1;
/// `TC_ACT_SHOT`, which is `TCX_DROP`.
const DROP: i32 = 2;

// ANCHOR: clock
/// 1 if the kernel has `bpf_ktime_get_coarse_ns`, Linux 5.11. The loader sets it before the verifier looks, which then
/// follows only one of the two ways, so that nobody minds a function that is not there.
#[unsafe(no_mangle)]
static COARSE_CLOCK: u8 = 0;

/// The time since boot in nanoseconds, as it was when the kernel's timer last ticked, a few milliseconds ago, where that
/// can be had: reading the exact time costs a third of all that a packet of a flow does.
#[inline(always)]
fn coarse_now_ns() -> u64 {
    // SAFETY: the static is there; volatile, as the loader changes it. The helpers have no arguments.
    unsafe {
        if core::ptr::read_volatile(&raw const COARSE_CLOCK) != 0 {
            bpf_ktime_get_coarse_ns()
        } else {
            bpf_ktime_get_ns()
        }
    }
}
// ANCHOR_END: clock

// ANCHOR: entry
/// What comes in.
#[classifier]
pub fn lab03_ingress(ctx: TcContext) -> i32 {
    decide(&ctx, Hook::Ingress)
}

/// What goes out.
#[classifier]
pub fn lab03_egress(ctx: TcContext) -> i32 {
    decide(&ctx, Hook::Egress)
}

/// Decides about the frame, counts it, and drops it, lets it pass, or writes on it when it may leave.
#[inline(always)]
fn decide(ctx: &TcContext, hook: Hook) -> i32 {
    let (Some(config), Some(inspection)) = (CONFIG.get(0), INSPECTIONS.get_ptr_mut(hook as u32)) else {
        return NEXT;
    };
    // SAFETY: the value is this CPU's own, and no other program of this hook interrupts this one on the same CPU.
    let inspection = unsafe { &mut *inspection };
    let mut frame = Frame::of(ctx);
    let mut is_well_formed = inspection.read(&frame, frame.tag_beside());
    if frame.is_in_pieces() && (!is_well_formed || inspection.reads_on()) {
        frame.pull(ctx);
        is_well_formed = inspection.read(&frame, frame.tag_beside());
    }
    let size = frame.size();
    inspection.decide(&frame, is_well_formed, size, hook, &Maps, config);
    if hook == Hook::Egress {
        account_shape(inspection, size.frame);
        leave_at(ctx.skb.skb, inspection.departure_ns());
    }
    account(ctx, inspection, hook as u32 * Reason::COUNT, size.frame)
}
// ANCHOR_END: entry

// ANCHOR: leave_at
/// Writes on the frame when it may leave, for `fq`; TCP may have written a later time already.
#[inline(always)]
fn leave_at(skb: *mut __sk_buff, departure_ns: u64) {
    // SAFETY: the context is the kernel's, and a TC program may read and write this field.
    unsafe {
        if departure_ns > (*skb).tstamp {
            (*skb).tstamp = departure_ns;
        }
    }
}
// ANCHOR_END: leave_at

// ANCHOR: account
/// Counts what was decided, and returns it as TC's verdict.
#[inline(always)]
fn account(ctx: &TcContext, inspection: &Inspection, first: u32, bytes: u64) -> i32 {
    let reason = inspection.reason();
    let count = count_at(&FRAMES_BY_REASON, first + reason.index(), bytes);
    if let Some(malformed) = inspection.malformed() {
        count_at(&FRAMES_MALFORMED, malformed.index(), bytes);
    }
    if reason.verdict() == Verdict::Pass {
        return NEXT;
    }
    if reason == Reason::Denied {
        count_at(&DENIED_BY_RULE, inspection.rule(), bytes);
    }
    if count & (LOG_EVERY - 1) == 1 {
        log_drop(ctx, first, reason, bytes, count);
    }
    DROP
}
// ANCHOR_END: account

/// Out of the way of the frames that are not logged.
#[inline(never)]
fn log_drop(ctx: &TcContext, first: u32, reason: Reason, bytes: u64, count: u64) {
    let hook = if first == 0 { "ingress" } else { "egress" };
    info!(
        ctx,
        "dropped on {} ({}): {} bytes, no. {} on this CPU",
        hook,
        reason.name(),
        bytes,
        count
    );
}

/// Counts the frame for the rate that it falls under.
#[inline(always)]
fn account_shape(inspection: &Inspection, bytes: u64) {
    let (shape, reason) = (inspection.rule(), inspection.reason());
    if shape >= MAX_SHAPES || reason == Reason::Denied {
        return;
    }
    let outcome = if reason == Reason::RateExceeded {
        2
    } else {
        u32::from(inspection.departure_ns() != 0)
    };
    count_at(&BY_SHAPE, shape * 3 + outcome, bytes);
}

/// The maps as the tables that the decision reads and writes.
struct Maps;

impl Tables for Maps {
    type Buckets = FlowTable<64, MMAPABLE, LOCKS>;

    #[inline(always)]
    fn established(&self) -> &Self::Buckets {
        &ESTABLISHED_TABLE
    }

    #[inline(always)]
    fn half_open(&self) -> &Self::Buckets {
        &HALF_OPEN_TABLE
    }

    #[inline(always)]
    fn tally(&self, event: FlowEvent) {
        if let Some(count) = FLOW_EVENTS.get_ptr_mut(event as u32) {
            // SAFETY: the value is this CPU's own.
            unsafe { *count += 1 };
        }
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        coarse_now_ns()
    }

    #[inline(always)]
    fn exact_now_ns(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn port_word(&self, port: u16) -> u32 {
        PORTS.get(u32::from(port)).map_or(0, |word| *word as u32)
    }

    #[inline(always)]
    fn deny_rule(&self, index: u32) -> Option<&Target> {
        DENY_RULES.get(index)
    }

    #[inline(always)]
    fn shape(&self, index: u32) -> Option<&Shape> {
        SHAPES.get(index)
    }

    #[inline(always)]
    fn departure_ns(&self, index: u32, now_ns: u64, cost_ns: u64, burst_ns: u64, horizon_ns: u64) -> Option<u64> {
        departure_ns(&SHAPE_BUCKETS, index, now_ns, cost_ns, burst_ns, horizon_ns)
    }

    #[inline(always)]
    fn verdict_of_first_fragment(&self, key: &FragmentKey) -> Option<Verdict> {
        // SAFETY: an entry that is replaced meanwhile holds another packet's verdict, which is a verdict too.
        let first = unsafe { FRAGMENTED.get(key) }?;
        let age_ns = self.now_ns().wrapping_sub(first.seen_at_ns);
        if age_ns > REASSEMBLY_NS {
            return None;
        }
        Some(if first.dropped == 0 {
            Verdict::Pass
        } else {
            Verdict::Drop
        })
    }

    #[inline(always)]
    fn keep_verdict_of_first_fragment(&self, key: &FragmentKey, verdict: Verdict) {
        let first = FirstFragment {
            seen_at_ns: self.now_ns(),
            dropped: u64::from(verdict == Verdict::Drop),
        };
        // An LRU map makes room; if it cannot, later fragments are dropped, which is the safe side.
        let _ = FRAGMENTED.insert(key, &first, 0);
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// The kernel asks for a licence that is compatible with the GPL before it lets a program call most helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
