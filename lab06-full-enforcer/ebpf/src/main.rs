//! The enforcer's programs: what comes in is decided at XDP or TC ingress, what sockets send at `cgroup_skb` egress, and what else
//! leaves at TC egress, all by the same tables.

#![no_std]
#![no_main]
// The macros of the entry points make functions that cannot be documented.
#![allow(missing_docs)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, xdp_action},
    btf_maps::{Array, LpmTrie, PerCpuArray, lpm_trie::Key},
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_netns_cookie, bpf_ktime_get_coarse_ns},
    },
    macros::{btf_map, cgroup_skb, cgroup_sock, cgroup_sock_addr, classifier, xdp},
    programs::{SkBuffContext, SockAddrContext, SockContext, TcContext, XdpContext},
};
use lab01_count_packets_common::counter::Counter;
use lab02_xdp_firewall_common::{
    prefix_set::tree::{KeyV6, NodeV4, NodeV6},
    transport::Malformed,
};
use lab02_xdp_firewall_ebpf::{SharedBucket, take_tokens};
use lab03_tc_egress_common::{
    decide::FlowEvent,
    flow::table::{self as flow_table, Bucket, Buckets, claim_in, release_in, slot_in},
};
use lab03_tc_egress_ebpf::flows::{BucketLock, FlowTable};
use lab04_cgroup_policy_common::destination::Destination;
use lab04_cgroup_policy_ebpf::{IpPacket, destination4, destination6};
use lab06_full_enforcer_common::{
    call::{MAX_LOCAL, is_perhaps_dhcp},
    classify::{self, Classifier, Probe, Question},
    control::{Control, Mode},
    counters::{BY_REASON, Outcome},
    decision::{Inspection, Parse, Place},
    flow::Flows,
    key::{Hook, Socket, UnknownSocket},
    limit::{HASHED_BUCKETS, RateLimit},
    table::{Class, Config, Group, Long, MAX_PARTITIONS, Partition, Record, Rule, Run, SLOTS, Tables, asks, has},
};
use lab06_full_enforcer_ebpf::{
    Counters, FromIp, HasBuffers, InBuffers, InPieces, LEAST_BY_RULE, SocketOf, groups::SocketGroups, sender,
};

/// `BPF_F_MMAPABLE`: user space writes these arrays through its own memory, Linux 5.5.
const MMAPABLE: usize = 1 << 10;

// ANCHOR: maps
/// The word that says which slot is in force, and in which mode.
#[btf_map]
static CONTROL: Array<u64, 1, MMAPABLE> = Array::new();

#[btf_map]
static CONFIGS: Array<Config, { SLOTS as usize }> = Array::new();

#[btf_map]
static PARTITIONS: Array<Partition, { SLOTS as usize * 2 * MAX_PARTITIONS }, MMAPABLE> = Array::new();

// The sizes of these are set by the loader.
#[btf_map]
static NODES_V4: Array<NodeV4, 1024, MMAPABLE> = Array::new();
#[btf_map]
static NODES_V6: Array<NodeV6, 1024, MMAPABLE> = Array::new();
/// Two numbers in a word, the first one in its lower half: the kernel gives a value eight bytes at least.
#[btf_map]
static CLASS_NUMBERS: Array<u64, 1024, MMAPABLE> = Array::new();
#[btf_map]
static CLASSES: Array<Class, 1024, MMAPABLE> = Array::new();
#[btf_map]
static GROUPS: Array<Group, 1024, MMAPABLE> = Array::new();
/// As many as there are records.
#[btf_map]
static RUNS: Array<Run, 1024, MMAPABLE> = Array::new();
#[btf_map]
static RECORDS: Array<Record, 1024, MMAPABLE> = Array::new();
#[btf_map]
static RULES: Array<Rule, 1024, MMAPABLE> = Array::new();
#[btf_map]
static LIMITS: Array<RateLimit, 1024, MMAPABLE> = Array::new();
/// Those that sources and flows share, and behind them one for each rule that is counted.
#[btf_map]
static BUCKETS: Array<SharedBucket, { HASHED_BUCKETS as usize }> = Array::new();
#[btf_map]
static PACKETS_BY_RULE: PerCpuArray<Counter, LEAST_BY_RULE> = PerCpuArray::new();

#[btf_map]
static PACKETS_BY_REASON: PerCpuArray<Counter, { BY_REASON as usize }> = PerCpuArray::new();
#[btf_map]
static PACKETS_MALFORMED: PerCpuArray<Counter, { Malformed::COUNT as usize }> = PerCpuArray::new();

/// Flows: see `Settings` on what is where. Its size is set by the loader, too.
#[btf_map]
static FLOWS: Array<Bucket, 64, MMAPABLE> = Array::new();
/// How many locks its buckets share.
const FLOW_LOCKS_LEN: usize = 8192;
#[btf_map]
static FLOW_LOCKS: Array<BucketLock, FLOW_LOCKS_LEN> = Array::new();
#[btf_map]
static FLOW_EVENTS: PerCpuArray<u64, { FlowEvent::COUNT as usize }> = PerCpuArray::new();

/// The prefixes that are the host's own, those of IPv4 as mapped into IPv6.
#[btf_map]
static LOCAL_PREFIXES: LpmTrie<[u8; 16], u32, MAX_LOCAL> = LpmTrie::new();
/// The network namespace whose they are, by its cookie; 0 if they are not known.
#[btf_map]
static NAMESPACE: Array<u64, 1> = Array::new();

#[btf_map]
static SOCKET_GROUPS: SocketGroups = SocketGroups::new();
// ANCHOR_END: maps

/// 1 if `cgroup_skb` egress decides about what sockets send, so that TC egress is left the rest. Set by the loader.
#[unsafe(no_mangle)]
static CGROUP_DECIDES: u8 = 0;

/// 1 if frames come in several buffers: see [`HasBuffers`]. Set by the loader.
#[unsafe(no_mangle)]
static HAS_BUFFERS: u8 = 0;

/// The table of flows.
struct FoundByCall(FlowTable<64, MMAPABLE, FLOW_LOCKS_LEN>);

static FLOW_TABLE: FoundByCall = FoundByCall(FlowTable {
    buckets: &FLOWS,
    locks: &FLOW_LOCKS,
});

/// 1 if the kernel has `bpf_ktime_get_coarse_ns`: see lab03's.
#[unsafe(no_mangle)]
static COARSE_CLOCK: u8 = 0;

/// Of no packet, for those that are kept on the stack: the verifier knows nothing of what was read from a map.
#[btf_map]
static NO_INSPECTION: Array<Inspection, 1> = Array::new();

/// The frame in hand at XDP and TC, where softirqs are disabled or this is one, so that there is one at a time on a CPU.
#[btf_map]
static INSPECTION: PerCpuArray<Inspection, 1> = PerCpuArray::new();

// ANCHOR: entry
/// Decides about a frame that comes in.
#[classifier]
pub fn enforce_ingress(ctx: TcContext) -> i32 {
    at_tc(&ctx, Hook::TcIngress)
}

/// Decides about a frame that a driver hands over.
#[xdp(frags)]
pub fn enforce_xdp(ctx: XdpContext) -> u32 {
    let frame = || InBuffers::<'_, Kernel>::of(&ctx);
    let interface = ctx.ingress_ifindex() as u32;
    match at_interface(Hook::XdpIngress, interface, frame, || frame().bytes()) {
        Outcome::Passed | Outcome::Observed => xdp_action::XDP_PASS,
        Outcome::Dropped => xdp_action::XDP_DROP,
    }
}

/// Decides about a frame that leaves, unless that was done in the cgroup.
#[classifier]
pub fn enforce_leaving(ctx: TcContext) -> i32 {
    if cgroup_decides() && sender(&ctx).is_decided_in_cgroup() {
        return NEXT;
    }
    at_tc(&ctx, Hook::TcEgress)
}

/// Decides about a packet that a socket sends.
#[cgroup_skb(egress)]
pub fn enforce_egress(ctx: SkBuffContext) -> i32 {
    let (Some((control, classifier)), Some(empty)) = (in_force(), NO_INSPECTION.get(0)) else {
        return ALLOW;
    };
    // On the stack, not in a map's value for this CPU: a task sends with softirqs enabled, and one of them may send
    // another packet, of another socket, in the middle of this decision.
    let mut inspection = *empty;
    let place = Place {
        hook: Hook::CgroupEgress,
        interface: IpPacket::of(&ctx).interface(),
        mode: control.mode(),
    };
    match enforce(
        &mut inspection,
        || FromIp(IpPacket::of(&ctx)),
        SocketOf(&ctx, &SOCKET_GROUPS),
        || IpPacket::of(&ctx).len(),
        &place,
        &classifier,
    ) {
        Outcome::Passed | Outcome::Observed => ALLOW,
        Outcome::Dropped => DENY,
    }
}

/// Decides about a packet that is for a socket, and has passed the interface, by whose socket that is.
#[cgroup_skb(ingress)]
pub fn enforce_socket(ctx: SkBuffContext) -> i32 {
    let (Some((control, classifier)), Some(empty)) = (in_force(), NO_INSPECTION.get(0)) else {
        return ALLOW;
    };
    if classifier.config.has & has::AT_SOCKET == 0 {
        return ALLOW;
    }
    // On the stack, as above: what a task sends by `lo` comes in while it runs.
    let mut inspection = *empty;
    let place = Place {
        hook: Hook::CgroupIngress,
        interface: IpPacket::of(&ctx).interface(),
        mode: control.mode(),
    };
    let packet = || FromIp(IpPacket::of(&ctx));
    if !inspection.is_blocked_at_socket(packet, SocketOf(&ctx, &SOCKET_GROUPS), &place, &classifier, &Maps) {
        return ALLOW;
    }
    let outcome = inspection.outcome();
    COUNTERS.count(place.hook, &inspection, outcome, inspection.bytes(u64::from(ctx.len())));
    match outcome {
        Outcome::Passed | Outcome::Observed => ALLOW,
        Outcome::Dropped => DENY,
    }
}

/// Keeps the group of whoever makes a socket.
#[cgroup_sock(sock_create)]
pub fn note_group(ctx: SockContext) -> i32 {
    if in_force().is_some_and(|(_, classifier)| names_groups(classifier.config)) {
        // SAFETY: the context of this program is the socket.
        unsafe { SOCKET_GROUPS.keep(ctx.sock) };
    }
    ALLOW
}

/// Refuses a call whose packets would be blocked whatever they look like.
#[cgroup_sock_addr(connect4)]
pub fn enforce_connect4(ctx: SockAddrContext) -> i32 {
    at_call(&ctx, &destination4(&ctx), Hook::Connect4)
}

/// As above.
#[cgroup_sock_addr(connect6)]
pub fn enforce_connect6(ctx: SockAddrContext) -> i32 {
    at_call(&ctx, &destination6(&ctx), Hook::Connect6)
}

/// As above.
#[cgroup_sock_addr(sendmsg4)]
pub fn enforce_sendmsg4(ctx: SockAddrContext) -> i32 {
    at_call(&ctx, &destination4(&ctx), Hook::SendMsg4)
}

/// As above.
#[cgroup_sock_addr(sendmsg6)]
pub fn enforce_sendmsg6(ctx: SockAddrContext) -> i32 {
    at_call(&ctx, &destination6(&ctx), Hook::SendMsg6)
}
// ANCHOR_END: entry

// ANCHOR: at_call
#[inline(always)]
fn at_call(ctx: &SockAddrContext, destination: &Destination, hook: Hook) -> i32 {
    let Some((control, classifier)) = in_force() else {
        return ALLOW;
    };
    if names_groups(classifier.config) {
        // The socket may be older than the policy.
        // SAFETY: the context is valid for as long as the program runs, and so is its socket.
        unsafe { SOCKET_GROUPS.keep((*ctx.sock_addr).__bindgen_anon_1.sk) };
    }
    if control.mode() != Mode::Block {
        return ALLOW;
    }
    let Some(refused) = classifier.refuses(destination) else {
        return ALLOW;
    };
    let is_perhaps_essential = classifier.config.essentials != 0 && is_perhaps_dhcp(destination);
    if is_perhaps_essential || is_perhaps_local(ctx, destination) {
        return ALLOW;
    }
    COUNTERS.count_call(hook, &refused);
    DENY
}
// ANCHOR_END: at_call

#[inline(always)]
fn names_groups(config: &Config) -> bool {
    config.metadata.asks & asks::GID != 0
}

/// Whether the packets may go by the loopback interface: those to the host itself do, and nothing is known of other network
/// namespaces.
#[inline(always)]
fn is_perhaps_local(ctx: &SockAddrContext, destination: &Destination) -> bool {
    // SAFETY: the context is valid for as long as the program runs.
    let namespace = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    if NAMESPACE.get(0).is_none_or(|known| *known != namespace) {
        return true;
    }
    let octets = match destination.ip_version {
        4 => {
            let [a, b, c, d] = destination.address.ipv4();
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
        }
        _ => destination.address.ipv6(),
    };
    LOCAL_PREFIXES.get(&Key::new(128, octets)).is_some()
}

#[inline(always)]
fn at_tc(ctx: &TcContext, hook: Hook) -> i32 {
    let frame = || InPieces::of(ctx);
    // SAFETY: the context is valid for as long as the program runs, and this field may be read.
    let interface = unsafe { (*ctx.skb.skb).ifindex };
    match at_interface(hook, interface, frame, || frame().bytes()) {
        Outcome::Passed | Outcome::Observed => NEXT,
        Outcome::Dropped => TC_ACT_SHOT,
    }
}

/// Decides about a frame at an interface, where nobody knows yet, or any more, whose socket it is of.
#[inline(always)]
fn at_interface<P: Parse>(hook: Hook, interface: u32, frame: impl Fn() -> P, len: impl Fn() -> u64) -> Outcome {
    let (Some((control, classifier)), Some(inspection)) = (in_force(), INSPECTION.get_ptr_mut(0)) else {
        return Outcome::Passed;
    };
    // SAFETY: the value is this CPU's own, and no other program of an interface interrupts this one on the same CPU.
    let inspection = unsafe { &mut *inspection };
    let place = Place {
        hook,
        interface,
        mode: control.mode(),
    };
    enforce(inspection, frame, UnknownSocket, len, &place, &classifier)
}

/// The kernel that the program runs in.
struct Kernel;

impl HasBuffers for Kernel {
    #[inline(always)]
    fn has_buffers() -> bool {
        // SAFETY: the static is there; volatile, as the loader changes it.
        unsafe { core::ptr::read_volatile(&raw const HAS_BUFFERS) != 0 }
    }
}

#[inline(always)]
fn cgroup_decides() -> bool {
    // SAFETY: the static is there; volatile, as the loader changes it.
    unsafe { core::ptr::read_volatile(&raw const CGROUP_DECIDES) != 0 }
}

/// `TC_ACT_UNSPEC`, which is `TCX_NEXT`: the programs behind decide, and if there is none, the frame passes.
const NEXT: i32 = -1;

/// What a `cgroup_skb` program returns.
const ALLOW: i32 = 1;
const DENY: i32 = 0;

/// The policy and the mode in force, by one reading of the control word.
#[inline(always)]
fn in_force() -> Option<(Control, Classifier<'static, Maps>)> {
    let control = Control::from_word(*CONTROL.get(0)?);
    let config = CONFIGS.get(control.slot())?;
    let classifier = Classifier { config, tables: &Maps };
    Some((control, classifier))
}

/// Decides about a packet, counts it, and says what becomes of it.
#[inline(always)]
fn enforce<P: Parse, S: Socket>(
    inspection: &mut Inspection,
    packet: impl Fn() -> P,
    socket: S,
    len: impl Fn() -> u64,
    place: &Place,
    classifier: &Classifier<'_, Maps>,
) -> Outcome {
    inspection.decide(packet, socket, &len, place, classifier, &Maps);
    if inspection.is_limited() {
        inspection.charge(len(), *classifier);
    }
    if inspection.is_remembered() {
        inspection.remember(place.hook, classifier.config, &Maps);
    }
    let bytes = inspection.bytes(len());
    let outcome = inspection.outcome();
    COUNTERS.count(place.hook, inspection, outcome, bytes);
    outcome
}

// ANCHOR: global
// The verifier follows a function that a program shows to the outside once, for any arguments, and not again for each way
// on which it is called (`do_check_subprogs` in `kernel/bpf/verifier.c`, Linux 5.6). Its arguments have to be numbers for
// Linux before 5.13.

/// The number of the first rule that decides about a packet, by a [`Question`]'s parts.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn first_match(addresses: u64, ports: u64, rest: u64) -> u32 {
    let question = Question { addresses, ports, rest };
    classify::first_match(&Maps, question)
}
// ANCHOR_END: global

/// The number of the class of what is looked up by the tree of this index, a [`Long`], in the policy of a slot.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn long_number(slot: u64, what: u64, high: u64, low: u64) -> u32 {
    classify::long_number(&Maps, slot as u32, what as u32, KeyV6 { high, low })
}

/// The place of a flow with this tag in a bucket: see [`Buckets::slot`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_slot(bucket: u64, home: u64, tag: u64) -> u32 {
    slot_in(&FLOW_TABLE.0, bucket as u32, home as usize, tag as u32) as u32
}

/// A place for a flow: see [`Buckets::claim`]. Of the bucket's number, the upper half is where in it to begin.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_claim(bucket: u64, tag: u64, expires_ns: u64, now_ns: u64) -> u32 {
    claim_in(&FLOW_TABLE.0, flow_place(bucket, tag), expires_ns, now_ns)
}

/// Takes a flow out of the table: see [`Buckets::release`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn flow_release(bucket: u64, tag: u64) -> u32 {
    release_in(&FLOW_TABLE.0, flow_place(bucket, tag));
    0
}

#[inline(always)]
fn flow_place(bucket: u64, tag: u64) -> flow_table::Place {
    flow_table::Place {
        bucket: bucket as u32,
        home: (bucket >> 32) as usize,
        tag: tag as u32,
    }
}

/// What a partition says to a [`Probe`], by its parts.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn probe(partition: u64, addresses: u64, ports: u64, rest: u64, member_of: u64) -> u32 {
    let probe = Probe {
        partition,
        addresses,
        ports,
        rest,
        member_of,
    };
    classify::probe(&Maps, probe, || {})
}

/// Counts a packet of so many bytes under each of the rules that only count and come before the rule of this number.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn count_matches(addresses: u64, ports: u64, rest: u64, before: u64, bytes: u64) -> u32 {
    let question = Question { addresses, ports, rest };
    COUNTERS.count_matches(question, before as u32, bytes, &Maps);
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
    fn config(&self, slot: u32) -> Option<&Config> {
        CONFIGS.get(slot)
    }

    #[inline(always)]
    fn node_v4(&self, index: u32) -> Option<&NodeV4> {
        NODES_V4.get(index)
    }

    #[inline(always)]
    fn node_v6(&self, index: u32) -> Option<&NodeV6> {
        NODES_V6.get(index)
    }

    #[inline(always)]
    fn class_number(&self, index: u32) -> Option<u32> {
        let pair = CLASS_NUMBERS.get(index / 2)?;
        Some((pair >> (32 * (index & 1))) as u32)
    }

    #[inline(always)]
    fn class(&self, index: u32) -> Option<&Class> {
        CLASSES.get(index)
    }

    #[inline(always)]
    fn partition(&self, index: u32) -> Option<&Partition> {
        PARTITIONS.get(index)
    }

    #[inline(always)]
    fn group(&self, index: u32) -> Option<Group> {
        GROUPS.get(index).copied()
    }

    #[inline(always)]
    fn run(&self, index: u32) -> Option<Run> {
        RUNS.get(index).copied()
    }

    #[inline(always)]
    fn record(&self, index: u32) -> Option<&Record> {
        RECORDS.get(index)
    }

    #[inline(always)]
    fn rule(&self, index: u32) -> Option<Rule> {
        RULES.get(index).copied()
    }

    #[inline(always)]
    fn limit(&self, index: u32) -> Option<&RateLimit> {
        LIMITS.get(index)
    }

    #[inline(always)]
    fn take_tokens(&self, index: u32, cost_ns: u64, burst_ns: u64) -> bool {
        // SAFETY: a helper without arguments.
        let now_ns = unsafe { bpf_ktime_get_ns() };
        take_tokens(&BUCKETS, index, now_ns, cost_ns, burst_ns)
    }

    #[inline(always)]
    fn count_matches(&self, question: Question, before: u32, bytes: u64) {
        count_matches(
            question.addresses,
            question.ports,
            question.rest,
            u64::from(before),
            bytes,
        );
    }

    #[inline(always)]
    fn first_match(&self, question: Question) -> u32 {
        first_match(question.addresses, question.ports, question.rest)
    }

    #[inline(always)]
    fn long_number(&self, slot: u32, what: Long, key: KeyV6) -> u32 {
        long_number(u64::from(slot), what as u64, key.high, key.low)
    }

    #[inline(always)]
    fn probe(&self, asked: Probe) -> u32 {
        probe(
            asked.partition,
            asked.addresses,
            asked.ports,
            asked.rest,
            asked.member_of,
        )
    }
}

impl Buckets for FoundByCall {
    type Lock = BucketLock;

    #[inline(always)]
    fn bucket(&self, index: u32) -> *mut Bucket {
        self.0.bucket(index)
    }

    #[inline(always)]
    fn slot(&self, index: u32, home: usize, tag: u32) -> usize {
        flow_slot(u64::from(index), home as u64, u64::from(tag)) as usize
    }

    #[inline(always)]
    fn claim(&self, place: flow_table::Place, expires_ns: u64, now_ns: u64) -> u32 {
        let bucket = u64::from(place.bucket) | (place.home as u64) << 32;
        flow_claim(bucket, u64::from(place.tag), expires_ns, now_ns)
    }

    #[inline(always)]
    fn release(&self, place: flow_table::Place) {
        let bucket = u64::from(place.bucket) | (place.home as u64) << 32;
        flow_release(bucket, u64::from(place.tag));
    }

    #[inline(always)]
    fn lock(&self, index: u32) -> *mut BucketLock {
        self.0.lock(index)
    }

    #[inline(always)]
    unsafe fn unlock(&self, lock: *mut BucketLock) {
        // SAFETY: the caller has taken it.
        unsafe { self.0.unlock(lock) };
    }
}

impl Flows for Maps {
    type Buckets = FoundByCall;

    #[inline(always)]
    fn buckets(&self) -> &Self::Buckets {
        &FLOW_TABLE
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: the static is there; volatile, as the loader changes it. The helpers have no arguments.
        unsafe {
            if core::ptr::read_volatile(&raw const COARSE_CLOCK) != 0 {
                bpf_ktime_get_coarse_ns()
            } else {
                bpf_ktime_get_ns()
            }
        }
    }

    #[inline(always)]
    fn tally(&self, event: FlowEvent) {
        if let Some(count) = FLOW_EVENTS.get_ptr_mut(event as u32) {
            // SAFETY: the value is this CPU's own.
            unsafe { *count += 1 };
        }
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
