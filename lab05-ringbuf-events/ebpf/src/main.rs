//! lab05's programs: they decide as lab02 does, about frames, packets and connections, and tell user space of it; and
//! they tell what processes do and what sockets send.

#![no_std]
#![no_main]
// The macros make functions that cannot be documented.
#![allow(missing_docs)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
    helpers::generated::bpf_get_socket_cookie,
    macros::{btf_map, cgroup_skb, cgroup_sock, cgroup_sock_addr, raw_tracepoint, xdp},
    programs::{RawTracePointContext, SkBuffContext, SockAddrContext, SockContext, XdpContext},
};
use lab01_count_packets_ebpf::Frame;
use lab02_xdp_firewall_common::{
    firewall::{Config, FragmentKey, Inspection, Reason, Tables, Verdict},
    prefix_set::{
        Arrays,
        exact::{BucketV4, BucketV6},
        tree::{NodeV4, NodeV6},
    },
    slots::SLOTS as POLICY_SLOTS,
    transport::TCP,
};
use lab02_xdp_firewall_ebpf::SharedBucket;
use lab04_cgroup_policy_ebpf::{IpPacket, destination4, destination6};
use lab05_ringbuf_events_common::{
    decision::{Decision, Hook, Outcome, SLOTS, Settings, Tally},
    destination,
    flow::{FlowCounters, FlowKey, Owner},
    process::{Deed, Offsets, ProcessEvent},
    tuple::FiveTuple,
};
use lab05_ringbuf_events_ebpf::{
    flows::{Way, count_flow, current_process, leaves_through_raw_socket},
    processes::{KernelObject, Told},
    records::{Events, Runs},
};

/// `BPF_F_MMAPABLE`: user space fills these arrays through its own memory, Linux 5.5.
const MMAPABLE: usize = 1 << 10;

// What is blocked and allowed, as in lab02. The sizes of the first four are set by the loader.
#[btf_map]
static NODES_V4: Array<NodeV4, 1024, MMAPABLE> = Array::new();
#[btf_map]
static NODES_V6: Array<NodeV6, 1024, MMAPABLE> = Array::new();
#[btf_map]
static BUCKETS_V4: Array<BucketV4, 1024, MMAPABLE> = Array::new();
#[btf_map]
static BUCKETS_V6: Array<BucketV6, 1024, MMAPABLE> = Array::new();
#[btf_map]
static PORTS: Array<u64, { POLICY_SLOTS as usize * 65_536 }, MMAPABLE> = Array::new();
#[btf_map]
static BLOCKED_MACS: HashMap<[u8; 6], u8, 64> = HashMap::new();
#[btf_map]
static CONFIGS: Array<Config, { POLICY_SLOTS as usize }> = Array::new();
#[btf_map]
static ACTIVE_SLOT: Array<u32, 1> = Array::new();

/// The frame in hand.
#[btf_map]
static INSPECTION: PerCpuArray<Inspection, 1> = PerCpuArray::new();

// ANCHOR: maps
/// How large the ring buffers are unless the loader says otherwise (`--ring-size`).
const RING_SIZE: usize = 1 << 20;

#[btf_map]
static DECISIONS: RingBuf<Decision, RING_SIZE> = RingBuf::new();

/// The books of the decisions, for each hook and reason.
#[btf_map]
static TALLIES: PerCpuArray<Tally, { SLOTS as usize }> = PerCpuArray::new();

/// How many records a second there may be, for each hook and reason.
#[btf_map]
static RECORD_BUCKETS: Array<SharedBucket, { SLOTS as usize }> = Array::new();

#[btf_map]
static SETTINGS: Array<Settings, 1> = Array::new();

/// A buffer of their own, so that a flood of packets does not push out who started what.
#[btf_map]
static PROCESSES: RingBuf<ProcessEvent, RING_SIZE> = RingBuf::new();

#[btf_map]
static PROCESS_TALLIES: PerCpuArray<Tally, { Deed::COUNT as usize }> = PerCpuArray::new();

#[btf_map]
static OFFSETS: Array<Offsets, 1> = Array::new();

#[btf_map]
static FLOWS: LruHashMap<FlowKey, FlowCounters, 65_536> = LruHashMap::new();

/// Whose a socket is, by its cookie.
#[btf_map]
static OWNERS: LruHashMap<u64, Owner, 65_536> = LruHashMap::new();
// ANCHOR_END: maps

// ANCHOR: entry
/// Decides about a frame that arrived.
#[xdp]
pub fn firewall(ctx: XdpContext) -> u32 {
    let (Some(config), Some(inspection), Some(settings)) =
        (active_config(), INSPECTION.get_ptr_mut(0), SETTINGS.get(0))
    else {
        return xdp_action::XDP_PASS;
    };
    // SAFETY: the value is this CPU's own, and no other program interrupts this one on the same CPU.
    let inspection = unsafe { &mut *inspection };
    let frame = Frame::of(&ctx);
    inspection.decide(&frame, &Maps, config);
    match tell_of_frame(&ctx, inspection, settings, frame.len()) {
        Outcome::Block => xdp_action::XDP_DROP,
        Outcome::Allow | Outcome::ObserveDrop => xdp_action::XDP_PASS,
    }
}

/// Counts what a socket receives. About what arrives XDP decides.
#[cgroup_skb(ingress)]
pub fn ingress(ctx: SkBuffContext) -> i32 {
    let mut key = FlowKey {
        cookie: socket_cookie(&ctx),
        tuple: FiveTuple::EMPTY,
    };
    if let Read::Packet(tcp_flags) = read_tuple(&ctx, &mut key) {
        key.tuple.reverse();
        count(&ctx, &key, tcp_flags, Way::In);
    }
    PASS
}

/// Counts what a socket sends, and decides about it.
#[cgroup_skb(egress)]
pub fn egress(ctx: SkBuffContext) -> i32 {
    let mut key = FlowKey {
        cookie: socket_cookie(&ctx),
        tuple: FiveTuple::EMPTY,
    };
    match read_tuple(&ctx, &mut key) {
        Read::Packet(tcp_flags) => {
            if !is_sent_by_kernel(&ctx, &key) {
                count(&ctx, &key, tcp_flags, Way::Out);
            }
            decide_about_packet(&ctx, &key)
        }
        Read::Malformed(index) => decide_about_malformed(&ctx, index),
        Read::NoIp => PASS,
    }
}

/// Decides about a connection before there is a packet of it.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    decide_about_call(Hook::Connect4, &ctx, &FiveTuple::to(&destination4(&ctx)))
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    decide_about_call(Hook::Connect6, &ctx, &FiveTuple::to(&destination6(&ctx)))
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    decide_about_call(Hook::Sendmsg4, &ctx, &FiveTuple::to(&destination4(&ctx)))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    decide_about_call(Hook::Sendmsg6, &ctx, &FiveTuple::to(&destination6(&ctx)))
}

/// Remembers who made a socket.
#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    // SAFETY: the helper takes the context of this type of program.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.sock.cast()) };
    let _ = OWNERS.insert(cookie, current_process(), 0);
    PASS
}

/// Tells that a process has become another program: `TP_PROTO(task, old_pid, binprm)`.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    if let Some(offsets) = OFFSETS.get(0) {
        told().exec(KernelObject(ctx.arg(0)), KernelObject(ctx.arg(2)), offsets);
    }
    0
}

/// Tells that a process has made another: `TP_PROTO(parent, child)`.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn process_fork(ctx: RawTracePointContext) -> i32 {
    if let Some(offsets) = OFFSETS.get(0) {
        told().fork(KernelObject(ctx.arg(0)), KernelObject(ctx.arg(1)), offsets);
    }
    0
}

/// Tells that a thread ends: `TP_PROTO(task)`.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(ctx: RawTracePointContext) -> i32 {
    if let Some(offsets) = OFFSETS.get(0) {
        told().exit(KernelObject(ctx.arg(0)), offsets);
    }
    0
}
// ANCHOR_END: entry

/// What programs on cgroups return to let pass, and to refuse.
const PASS: i32 = 1;
const REFUSE: i32 = 0;

#[inline(always)]
fn active_config() -> Option<&'static Config> {
    let slot = ACTIVE_SLOT.get(0)?;
    CONFIGS.get(*slot)
}

#[inline(always)]
fn events() -> Events<'static, { SLOTS as usize }, RING_SIZE> {
    Events {
        ring: &DECISIONS,
        tallies: &TALLIES,
        buckets: &RECORD_BUCKETS,
    }
}

#[inline(always)]
fn told() -> Told<'static, RING_SIZE> {
    Told {
        ring: &PROCESSES,
        tallies: &PROCESS_TALLIES,
    }
}

#[inline(never)]
fn tell_of_frame(ctx: &XdpContext, inspection: &Inspection, settings: &Settings, bytes: u64) -> Outcome {
    let reason = inspection.reason();
    // SAFETY: the context lives as long as the program runs.
    let interface = unsafe { (*ctx.ctx).ingress_ifindex };
    events().tell((Hook::Xdp, reason), settings, Runs::Undisturbed, |record| {
        if let Some((headers, upper, transport)) = inspection.parts() {
            record.tuple = FiveTuple::of(headers, upper, transport);
        }
        record.bytes = bytes as u32;
        record.interface = interface;
        record.malformed = inspection.malformed().map_or(0, |malformed| malformed.index() as u8);
    })
}

#[inline(always)]
fn socket_cookie(ctx: &SkBuffContext) -> u64 {
    // SAFETY: the helper takes the context of this type of program.
    unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) }
}

/// `ETH_P_IP` and `ETH_P_IPV6`, in the order of the wire.
const PROTOCOL_IPV4: u32 = 0x0800_u16.to_be() as u32;
const PROTOCOL_IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// What became of reading a packet's headers.
enum Read {
    /// They were read; its TCP flags, 0 for anything else.
    Packet(u8),
    /// They are malformed; in which way, by its index.
    Malformed(u8),
    /// It is no IP.
    NoIp,
}

/// Reads who talks to whom into the key.
#[inline(always)]
fn read_tuple(ctx: &SkBuffContext, key: &mut FlowKey) -> Read {
    let read = match ctx.skb.protocol() {
        PROTOCOL_IPV4 => read_ip(ctx, &mut key.tuple, 4),
        PROTOCOL_IPV6 => read_ip(ctx, &mut key.tuple, 6),
        _ => return Read::NoIp,
    };
    if read & MALFORMED == 0 {
        Read::Packet(read as u8)
    } else {
        Read::Malformed(read as u8)
    }
}

// Each of the functions below is one of its own, so that what they keep on the stack is not there at the same time: all
// that call one another have 512 bytes together.

/// Beside the index of a [`Malformed`](lab02_xdp_firewall_common::transport::Malformed), in what `read_ip` returns: one
/// number, as that takes no stack.
const MALFORMED: u32 = 1 << 8;

#[inline(never)]
fn read_ip(ctx: &SkBuffContext, tuple: &mut FiveTuple, ip_version: u8) -> u32 {
    match FiveTuple::read(&IpPacket::of(ctx), ip_version) {
        Ok((read, tcp_flags)) => {
            *tuple = read;
            u32::from(tcp_flags)
        }
        Err(malformed) => MALFORMED | malformed.index(),
    }
}

/// Whether the kernel sends a packet in nobody's name, which is no flow: else whoever knocks at ports where nobody listens
/// would push out the flows of others.
#[inline(always)]
fn is_sent_by_kernel(ctx: &SkBuffContext, key: &FlowKey) -> bool {
    key.tuple.protocol == TCP && leaves_through_raw_socket(ctx) && OWNERS.get_ptr(key.cookie).is_none()
}

#[inline(never)]
fn count(ctx: &SkBuffContext, key: &FlowKey, tcp_flags: u8, way: Way) {
    count_flow(&FLOWS, key, tcp_flags, way, u64::from(ctx.len()));
}

#[inline(never)]
fn decide_about_packet(ctx: &SkBuffContext, key: &FlowKey) -> i32 {
    let (Some(config), Some(settings)) = (active_config(), SETTINGS.get(0)) else {
        return PASS;
    };
    let reason = destination::judge(&key.tuple, &Maps, config);
    // SAFETY: an entry that is replaced meanwhile tells of another socket, which is as old as this one.
    let owner = unsafe { OWNERS.get(key.cookie) };
    tell_of_packet(ctx, reason, settings, |record| {
        record.tuple = key.tuple;
        record.cookie = key.cookie;
        if let Some(owner) = owner {
            record.cgroup = owner.cgroup;
            record.pid = owner.pid;
            record.uid = owner.uid;
            record.comm = owner.comm;
        }
    })
}

#[inline(never)]
fn decide_about_malformed(ctx: &SkBuffContext, malformed: u8) -> i32 {
    let (Some(config), Some(settings)) = (active_config(), SETTINGS.get(0)) else {
        return PASS;
    };
    let reason = if config.drop_malformed == 0 {
        Reason::MalformedPassed
    } else {
        Reason::Malformed
    };
    tell_of_packet(ctx, reason, settings, |record| record.malformed = malformed)
}

#[inline(always)]
fn tell_of_packet(ctx: &SkBuffContext, reason: Reason, settings: &Settings, fill: impl FnOnce(&mut Decision)) -> i32 {
    let outcome = events().tell((Hook::Egress, reason), settings, Runs::Interruptible, |record| {
        record.bytes = ctx.len();
        record.interface = IpPacket::of(ctx).interface();
        fill(record);
    });
    as_verdict(outcome)
}

#[inline(always)]
fn as_verdict(outcome: Outcome) -> i32 {
    if outcome as u8 == Outcome::Block as u8 {
        REFUSE
    } else {
        PASS
    }
}

/// Decides about a call of the current process to a destination, and remembers whose the socket is.
#[inline(always)]
fn decide_about_call(hook: Hook, ctx: &SockAddrContext, tuple: &FiveTuple) -> i32 {
    let (Some(config), Some(settings)) = (active_config(), SETTINGS.get(0)) else {
        return PASS;
    };
    let reason = judge_call(tuple, config);
    // SAFETY: the helper takes the context of this type of program.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) };
    let process = current_process();
    let _ = OWNERS.insert(cookie, process, 0);
    let outcome = events().tell((hook, reason), settings, Runs::Interruptible, |record| {
        record.tuple = *tuple;
        record.cookie = cookie;
        record.cgroup = process.cgroup;
        record.pid = process.pid;
        record.uid = process.uid;
        record.comm = process.comm;
    });
    as_verdict(outcome)
}

#[inline(never)]
fn judge_call(tuple: &FiveTuple, config: &Config) -> Reason {
    destination::judge(tuple, &Maps, config)
}

/// The maps as the tables that the decisions read. What this lab does not offer, limits and fragments that are followed, has no
/// table here.
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
    fn take_tokens(&self, _source_hash: u32, _cost_ns: u64, _burst_ns: u64) -> bool {
        true
    }

    #[inline(always)]
    fn verdict_of_first_fragment(&self, _key: &FragmentKey) -> Option<Verdict> {
        None
    }

    #[inline(always)]
    fn keep_verdict_of_first_fragment(&self, _key: &FragmentKey, _verdict: Verdict) {}
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// The kernel asks for a licence that is compatible with the GPL before it lets a program call most helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
