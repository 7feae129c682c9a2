//! lab04's programs: what the processes of a cgroup may send and get, decided at the packet and, where that can be done
//! before there is one, at the system call.

#![no_std]
#![no_main]
// The macros of the entry points make functions that cannot be documented.
#![allow(missing_docs)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::{Array, HashMap, LruPerCpuHashMap, PerCpuArray},
    macros::{btf_map, cgroup_skb, cgroup_sock_addr},
    programs::{SkBuffContext, SockAddrContext},
};
use lab01_count_packets_common::counter::Counter;
use lab01_count_packets_ebpf::count_at;
use lab02_xdp_firewall_common::transport::Malformed;
use lab04_cgroup_policy_common::{
    classifier::{Config, Decision, EGRESS, Entry, INGRESS, Tables},
    counting::{Blocked, COUNTERS_OF_A_RULE, Outcome, rule_counter},
    destination::Destination,
    hook::{HOOKS, Hook},
    key::{KeyV4, KeyV6},
};
use lab04_cgroup_policy_ebpf::{IpPacket, destination4, destination6, read};

// The sizes of these three are set by the loader (`--max-entries`).
// ANCHOR: maps
#[btf_map]
static RULES_V4: HashMap<KeyV4, Entry, 1024> = HashMap::new();

#[btf_map]
static RULES_V6: HashMap<KeyV6, Entry, 1024> = HashMap::new();

#[btf_map]
static BY_RULE: PerCpuArray<Counter, { 1024 * COUNTERS_OF_A_RULE as usize }> = PerCpuArray::new();

/// The policies but for their entries: one in force, one to be filled.
#[btf_map]
static CONFIGS: Array<Config, 2> = Array::new();

/// The one word that says which of them is in force.
#[btf_map]
static ACTIVE_SLOT: Array<u32, 1> = Array::new();

/// 0 to observe, 1 to block.
#[btf_map]
static MODE: Array<u32, 1> = Array::new();
// ANCHOR_END: maps

#[btf_map]
static BY_HOOK: PerCpuArray<Counter, { HOOKS * Outcome::COUNT as usize }> = PerCpuArray::new();

#[btf_map]
static MALFORMED: PerCpuArray<Counter, { Malformed::COUNT as usize }> = PerCpuArray::new();

/// How often what was blocked, or would have been; the least recently seen make room.
#[btf_map]
static BLOCKED: LruPerCpuHashMap<Blocked, u64, 1024> = LruPerCpuHashMap::new();

/// What these programs answer the kernel.
const DENY: i32 = 0;
const ALLOW: i32 = 1;

// ANCHOR: entry
#[cgroup_skb(egress)]
pub fn egress(ctx: SkBuffContext) -> i32 {
    packet(&ctx, Hook::Egress, EGRESS)
}

#[cgroup_skb(ingress)]
pub fn ingress(ctx: SkBuffContext) -> i32 {
    packet(&ctx, Hook::Ingress, INGRESS)
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    system_call(&destination4(&ctx), Hook::Connect4)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    system_call(&destination6(&ctx), Hook::Connect6)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    system_call(&destination4(&ctx), Hook::SendMsg4)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    system_call(&destination6(&ctx), Hook::SendMsg6)
}
// ANCHOR_END: entry

// ANCHOR: packet
/// Decides about a packet; every packet is decided here, or was refused by a hook on a system call.
#[inline(always)]
fn packet(ctx: &SkBuffContext, hook: Hook, direction: usize) -> i32 {
    let Some(config) = active_config() else {
        return ALLOW;
    };
    let ip_packet = IpPacket::of(ctx);
    let (decision, blocked) = match read(&ip_packet) {
        Ok(packet) => {
            let decision = packet.decide(&Maps, config, direction);
            (decision, Blocked::packet(&packet, decision.rule, direction))
        }
        Err(malformed) => {
            count_at(&MALFORMED, malformed.index(), ip_packet.len());
            let decision = Decision::malformed(config);
            (decision, Blocked::nobody(decision.rule, direction))
        }
    };
    let outcome = outcome(decision, is_blocking());
    account(hook, outcome, &blocked, ip_packet.len())
}
// ANCHOR_END: packet

// ANCHOR: system_call
/// Refuses what is going to be blocked whatever its packets look like; all else is decided when there are packets.
#[inline(always)]
fn system_call(destination: &Destination, hook: Hook) -> i32 {
    let Some(config) = active_config() else {
        return ALLOW;
    };
    if !is_blocking() {
        return ALLOW;
    }
    match destination.decide(&Maps, config) {
        Some(decision) => account(hook, Outcome::Dropped, &Blocked::call(destination, decision.rule), 0),
        None => ALLOW,
    }
}
// ANCHOR_END: system_call

#[inline(always)]
fn active_config() -> Option<&'static Config> {
    let slot = ACTIVE_SLOT.get(0)?;
    CONFIGS.get(*slot)
}

#[inline(always)]
fn is_blocking() -> bool {
    MODE.get(0).is_some_and(|mode| *mode != 0)
}

// ANCHOR: outcome
/// What becomes of what was decided so.
#[inline(always)]
fn outcome(decision: Decision, blocking: bool) -> Outcome {
    if !decision.blocks() {
        Outcome::Passed
    } else if blocking && !decision.observes() {
        Outcome::Dropped
    } else {
        Outcome::WouldDrop
    }
}
// ANCHOR_END: outcome

// ANCHOR: account
/// Counts an outcome by rule and by hook, remembers what was blocked, and answers the kernel.
#[inline(always)]
fn account(hook: Hook, outcome: Outcome, blocked: &Blocked, bytes: u64) -> i32 {
    count_at(&BY_RULE, rule_counter(blocked.rule, outcome), bytes);
    count_at(&BY_HOOK, hook.index() * Outcome::COUNT + outcome.index(), bytes);
    if outcome == Outcome::Passed {
        return ALLOW;
    }
    remember(blocked);
    if outcome == Outcome::Dropped { DENY } else { ALLOW }
}
// ANCHOR_END: account

#[inline(always)]
fn remember(blocked: &Blocked) {
    if let Some(count) = BLOCKED.get_ptr_mut(blocked) {
        // SAFETY: the value is this CPU's own.
        unsafe { *count += 1 };
        return;
    }
    // Where another CPU was faster, one of the two is not remembered; the counters have both.
    let _ = BLOCKED.insert(blocked, 1, u64::from(BPF_NOEXIST));
}

/// The maps as the tables that are looked up.
struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn entry_v4(&self, key: &KeyV4) -> Option<Entry> {
        // SAFETY: entries of the policy in force are neither changed nor removed.
        unsafe { RULES_V4.get(key) }.copied()
    }

    #[inline(always)]
    fn entry_v6(&self, key: &KeyV6) -> Option<Entry> {
        // SAFETY: as above.
        unsafe { RULES_V6.get(key) }.copied()
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
