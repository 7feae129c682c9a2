//! The enforcer's programs: what comes in is decided at TC ingress, what sockets send at `cgroup_skb` egress, by the same
//! tables.

#![no_std]
#![no_main]
// The macros of the entry points make functions that cannot be documented.
#![allow(missing_docs)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use aya_ebpf::{
    bindings::TC_ACT_SHOT,
    btf_maps::{Array, PerCpuArray},
    macros::{btf_map, cgroup_skb, classifier},
    programs::{SkBuffContext, TcContext},
};
use lab01_count_packets_common::counter::Counter;
use lab02_xdp_firewall_common::{
    prefix_set::tree::{NodeV4, NodeV6},
    transport::Malformed,
};
use lab03_tc_egress_ebpf::Frame;
use lab04_cgroup_policy_ebpf::IpPacket;
use lab06_full_enforcer_common::{
    classify::Classifier,
    control::Control,
    counters::{BY_REASON, BY_RULE, Outcome},
    decision::{FromEthernet, Inspection, Parse, Place},
    key::Hook,
    table::{Config, MAX_RULES, Rule, SLOTS, Tables},
    veil::Veil,
};
use lab06_full_enforcer_ebpf::{Counters, FromIp};

/// `BPF_F_MMAPABLE`: user space writes these arrays through its own memory, Linux 5.5.
const MMAPABLE: usize = 1 << 10;

// ANCHOR: maps
/// The word that says which slot is in force, and in which mode.
#[btf_map]
static CONTROL: Array<u64, 1, MMAPABLE> = Array::new();

#[btf_map]
static CONFIGS: Array<Config, { SLOTS as usize }> = Array::new();

#[btf_map]
static RULES: Array<Rule, { SLOTS as usize * MAX_RULES }, MMAPABLE> = Array::new();

// The sizes of these three are set by the loader.
#[btf_map]
static NODES_V4: Array<NodeV4, 1024, MMAPABLE> = Array::new();
#[btf_map]
static NODES_V6: Array<NodeV6, 1024, MMAPABLE> = Array::new();
#[btf_map]
static MASKS: Array<u64, 1024, MMAPABLE> = Array::new();

#[btf_map]
static PACKETS_BY_RULE: PerCpuArray<Counter, { BY_RULE as usize }> = PerCpuArray::new();
#[btf_map]
static PACKETS_BY_REASON: PerCpuArray<Counter, { BY_REASON as usize }> = PerCpuArray::new();
#[btf_map]
static PACKETS_MALFORMED: PerCpuArray<Counter, { Malformed::COUNT as usize }> = PerCpuArray::new();
// ANCHOR_END: maps

/// The frame in hand at TC ingress, which runs in a softirq, so one at a time on a CPU.
#[btf_map]
static INSPECTION: PerCpuArray<Inspection, 1> = PerCpuArray::new();

// ANCHOR: entry
/// Decides about a frame that comes in.
#[classifier]
pub fn enforce_ingress(ctx: TcContext) -> i32 {
    let (Some((control, config)), Some(inspection)) = (in_force(), INSPECTION.get_ptr_mut(0)) else {
        return NEXT;
    };
    // SAFETY: the value is this CPU's own, and no other ingress program interrupts this one on the same CPU.
    let inspection = unsafe { &mut *inspection };
    let frame = Frame::of(&ctx);
    let place = Place {
        hook: Hook::TcIngress,
        is_loopback: false,
        mode: control.mode(),
    };
    match enforce(inspection, &FromEthernet(&frame), frame.len(), &place, config) {
        Outcome::Passed | Outcome::Observed => NEXT,
        Outcome::Dropped => TC_ACT_SHOT,
    }
}

/// Decides about a packet that a socket sends.
#[cgroup_skb(egress)]
pub fn enforce_egress(ctx: SkBuffContext) -> i32 {
    let Some((control, config)) = in_force() else {
        return ALLOW;
    };
    // On the stack, not in a map's value for this CPU: a task sends with softirqs enabled, and one of them may send
    // another packet, of another socket, in the middle of this decision.
    let mut inspection = Inspection::EMPTY;
    let packet = IpPacket::of(&ctx);
    let place = Place {
        hook: Hook::CgroupEgress,
        is_loopback: packet.interface() == LOOPBACK,
        mode: control.mode(),
    };
    let len = packet.len();
    match enforce(&mut inspection, &FromIp(packet), len, &place, config) {
        Outcome::Passed | Outcome::Observed => ALLOW,
        Outcome::Dropped => DENY,
    }
}
// ANCHOR_END: entry

/// `TC_ACT_UNSPEC`, which is `TCX_NEXT`: the programs behind decide, and if there is none, the frame passes.
const NEXT: i32 = -1;

/// What a `cgroup_skb` program returns.
const ALLOW: i32 = 1;
const DENY: i32 = 0;

/// The index of `lo` in every network namespace (`LOOPBACK_IFINDEX` in `include/net/flow.h`).
const LOOPBACK: u32 = 1;

/// The policy and the mode in force, by one reading of the control word.
#[inline(always)]
fn in_force() -> Option<(Control, &'static Config)> {
    let control = Control::from_word(*CONTROL.get(0)?);
    let config = CONFIGS.get(control.slot())?;
    Some((control, config))
}

/// Decides about a packet, counts it, and says what becomes of it.
#[inline(always)]
fn enforce<P: Parse>(inspection: &mut Inspection, packet: &P, len: u64, place: &Place, config: &Config) -> Outcome {
    let classifier = Classifier {
        config,
        tables: &Maps,
        veil: Veil::new(config.veil),
    };
    inspection.decide(packet, place, &classifier);
    let bytes = inspection.bytes(len);
    if inspection.logged() != 0 {
        count_logged(inspection.logged(), bytes, config.first_rule);
    }
    let outcome = inspection.outcome(place.mode);
    COUNTERS.count(place.hook, inspection, outcome, bytes);
    outcome
}

/// Counts a packet under each of the rules that only count.
///
/// The verifier follows a function that a program shows to the outside once, for any arguments, and not again for each
/// way on which it is called (`do_check_subprogs` in `kernel/bpf/verifier.c`, Linux 5.6): of the million instructions
/// that it is willing to follow, this loop took all.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn count_logged(logged: u64, bytes: u64, first_rule: u32) -> u32 {
    COUNTERS.count_logged(logged, bytes, first_rule, &Maps);
    0
}

const COUNTERS: Counters<'static> = Counters {
    by_rule: &PACKETS_BY_RULE,
    by_reason: &PACKETS_BY_REASON,
    malformed: &PACKETS_MALFORMED,
};

/// The maps as the tables that the decision reads.
struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn node_v4(&self, index: u32) -> Option<&NodeV4> {
        NODES_V4.get(index)
    }

    #[inline(always)]
    fn node_v6(&self, index: u32) -> Option<&NodeV6> {
        NODES_V6.get(index)
    }

    #[inline(always)]
    fn mask(&self, index: u32) -> Option<u64> {
        MASKS.get(index).copied()
    }

    #[inline(always)]
    fn rule(&self, index: u32) -> Option<Rule> {
        RULES.get(index).copied()
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
