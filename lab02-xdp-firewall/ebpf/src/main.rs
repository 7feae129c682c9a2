//! lab02's XDP program: a firewall that drops what is blocked, limits what is too much, and counts everything.

#![no_std]
#![no_main]
// The `#[xdp]` macro makes a second function that cannot be documented.
#![allow(missing_docs)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    helpers::bpf_ktime_get_ns,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use aya_log_ebpf::info;
use lab01_count_packets_common::counter::Counter;
use lab01_count_packets_ebpf::{Frame, count_at};
use lab02_xdp_firewall_common::{
    firewall::{Config, FragmentKey, Inspection, Reason, Tables, Verdict},
    prefix_set::{
        Arrays,
        exact::{BucketV4, BucketV6},
        tree::{NodeV4, NodeV6},
    },
    slots::SLOTS,
    transport::Malformed,
};
use lab02_xdp_firewall_ebpf::{SharedBucket, take_tokens};

/// `BPF_F_MMAPABLE`: user space fills these arrays through its own memory, Linux 5.5.
const MMAPABLE: usize = 1 << 10;

// The sizes of these four are set by the loader (`--max-entries`).
#[btf_map]
static NODES_V4: Array<NodeV4, 1024, MMAPABLE> = Array::new();
#[btf_map]
static NODES_V6: Array<NodeV6, 1024, MMAPABLE> = Array::new();
#[btf_map]
static BUCKETS_V4: Array<BucketV4, 1024, MMAPABLE> = Array::new();
#[btf_map]
static BUCKETS_V6: Array<BucketV6, 1024, MMAPABLE> = Array::new();

/// A word of uses for each port, one table behind the other.
#[btf_map]
static PORTS: Array<u64, { SLOTS as usize * 65_536 }, MMAPABLE> = Array::new();

#[btf_map]
static BLOCKED_MACS: HashMap<[u8; 6], u8, 4096> = HashMap::new();

/// The configurations: one in force, one to be filled.
#[btf_map]
static CONFIGS: Array<Config, { SLOTS as usize }> = Array::new();

/// The one word that says which of them is in force.
#[btf_map]
static ACTIVE_SLOT: Array<u32, 1> = Array::new();

/// How many buckets there are: many, so that a flood of forged sources, spread over all of them by a hash that it does
/// not know, is thin in each.
const BUCKETS: usize = 65_536;

#[btf_map]
static BUCKETS_BY_SOURCE: Array<SharedBucket, BUCKETS> = Array::new();

/// What the first fragments met, and when.
#[btf_map]
static FRAGMENTED: LruHashMap<FragmentKey, FirstFragment, 16_384> = LruHashMap::new();

/// The frame in hand.
#[btf_map]
static INSPECTION: PerCpuArray<Inspection, 1> = PerCpuArray::new();

#[btf_map]
static FRAMES_BY_REASON: PerCpuArray<Counter, { Reason::COUNT as usize }> = PerCpuArray::new();

#[btf_map]
static FRAMES_MALFORMED: PerCpuArray<Counter, { Malformed::COUNT as usize }> = PerCpuArray::new();

/// Look-ups in tables.
#[btf_map]
static LOOKUPS: PerCpuArray<u64, 1> = PerCpuArray::new();

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

// ANCHOR: entry
/// Decides about the frame, counts it, and drops it or lets it pass.
#[xdp]
#[inline(always)]
pub fn firewall(ctx: XdpContext) -> u32 {
    let (Some(config), Some(inspection)) = (active_config(), INSPECTION.get_ptr_mut(0)) else {
        return xdp_action::XDP_PASS;
    };
    // SAFETY: the value is this CPU's own, and no other program interrupts this one on the same CPU.
    let inspection = unsafe { &mut *inspection };
    let frame = Frame::of(&ctx);
    inspection.decide(&frame, &Maps, config);
    account(&ctx, inspection, frame.len())
}
// ANCHOR_END: entry

#[inline(always)]
fn active_config() -> Option<&'static Config> {
    let slot = ACTIVE_SLOT.get(0)?;
    CONFIGS.get(*slot)
}

// ANCHOR: account
/// Counts and logs what was decided, and returns it as XDP's verdict.
#[inline(always)]
fn account(ctx: &XdpContext, inspection: &Inspection, bytes: u64) -> u32 {
    let reason = inspection.reason();
    let count = count_at(&FRAMES_BY_REASON, reason.index(), bytes);
    if let Some(lookups) = LOOKUPS.get_ptr_mut(0) {
        // SAFETY: the value is this CPU's own.
        unsafe { *lookups += u64::from(inspection.lookups()) };
    }
    if let Some(malformed) = inspection.malformed() {
        count_at(&FRAMES_MALFORMED, malformed.index(), bytes);
    }
    if reason.verdict() == Verdict::Pass {
        return xdp_action::XDP_PASS;
    }
    if count & (LOG_EVERY - 1) == 1 {
        log_drop(ctx, inspection, bytes, count);
    }
    xdp_action::XDP_DROP
}
// ANCHOR_END: account

/// Not inlined: it is called rarely, and the verifier need not follow every decision through the making of a message.
#[inline(never)]
fn log_drop(ctx: &XdpContext, inspection: &Inspection, bytes: u64, count: u64) {
    if let Some(malformed) = inspection.malformed() {
        info!(
            ctx,
            "dropped (malformed: {}): {} bytes, no. {} on this CPU",
            malformed.name(),
            bytes,
            count
        );
    } else {
        info!(
            ctx,
            "dropped ({}): {} bytes, no. {} on this CPU",
            inspection.reason().name(),
            bytes,
            count
        );
    }
}

/// The maps as the tables that the decision reads.
struct Maps;

impl Arrays for Maps {
    #[inline(always)]
    fn node_v4(&self, index: u32) -> Option<&NodeV4> {
        NODES_V4.get(index)
    }

    #[inline(always)]
    fn node_v6(&self, index: u32) -> Option<&NodeV6> {
        NODES_V6.get(index)
    }

    #[inline(always)]
    fn bucket_v4(&self, index: u32) -> Option<&BucketV4> {
        BUCKETS_V4.get(index)
    }

    #[inline(always)]
    fn bucket_v6(&self, index: u32) -> Option<&BucketV6> {
        BUCKETS_V6.get(index)
    }
}

impl Tables for Maps {
    #[inline(always)]
    fn is_blocked_mac(&self, mac: &[u8; 6]) -> bool {
        BLOCKED_MACS.get_ptr(mac).is_some()
    }

    #[inline(always)]
    fn port_word(&self, index: u32) -> Option<u32> {
        PORTS.get(index).map(|word| *word as u32)
    }

    #[inline(always)]
    fn take_tokens(&self, source_hash: u32, cost_ns: u64, burst_ns: u64) -> bool {
        // SAFETY: a helper without arguments.
        let now_ns = unsafe { bpf_ktime_get_ns() };
        take_tokens(
            &BUCKETS_BY_SOURCE,
            source_hash % BUCKETS as u32,
            now_ns,
            cost_ns,
            burst_ns,
        )
    }

    #[inline(always)]
    fn verdict_of_first_fragment(&self, key: &FragmentKey) -> Option<Verdict> {
        // SAFETY: an entry that is replaced meanwhile holds another packet's verdict, which is a verdict too.
        let first = unsafe { FRAGMENTED.get(key) }?;
        // SAFETY: a helper without arguments.
        let age_ns = unsafe { bpf_ktime_get_ns() }.wrapping_sub(first.seen_at_ns);
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
            // SAFETY: a helper without arguments.
            seen_at_ns: unsafe { bpf_ktime_get_ns() },
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
