//! lab05's other programs: two channels side by side, messages of DNS and DHCP, and the stacks of who connects.

#![no_std]
#![no_main]
// The macros make functions that cannot be documented.
#![allow(missing_docs)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_F_CURRENT_CPU,
    btf_maps::{Array, PerCpuArray, PerfEventArray, RingBuf, StackTrace},
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        generated::{
            bpf_get_smp_processor_id, bpf_ktime_get_boot_ns, bpf_perf_event_output, bpf_probe_read_kernel_str,
        },
    },
    macros::{btf_map, kprobe, socket_filter, tracepoint},
    programs::{ProbeContext, SkBuffContext, TracePointContext, tracing::StackIdContext as _},
};
use lab01_count_packets_common::{counter::Counter, headers::Headers};
use lab01_count_packets_ebpf::count_at;
use lab02_xdp_firewall_common::transport::{Transport, Upper};
use lab04_cgroup_policy_ebpf::IpPacket;
use lab05_ringbuf_events_common::{
    messages::{Message, Scan, message_of},
    sample::{Arrival, ArrivalOffsets, ChannelTally, STACK_DEPTH, StackSample},
};
use lab05_ringbuf_events_ebpf::records::add;

/// How large the ring buffer is unless the loader says otherwise.
const RING_SIZE: usize = 1 << 20;

// ANCHOR: channel_maps
#[btf_map]
static ARRIVALS_PERF: PerfEventArray = PerfEventArray::new();

#[btf_map]
static ARRIVALS_RING: RingBuf<Arrival, RING_SIZE> = RingBuf::new();

/// The perf array first, then the ring buffer.
#[btf_map]
static CHANNEL_TALLIES: PerCpuArray<ChannelTally, 2> = PerCpuArray::new();
// ANCHOR_END: channel_maps

#[btf_map]
static ARRIVAL_OFFSETS: Array<ArrivalOffsets, 1> = Array::new();

#[btf_map]
static MESSAGES: PerCpuArray<Counter, { Message::COUNT as usize }> = PerCpuArray::new();

/// The packet in hand.
#[btf_map]
static READ: PerCpuArray<Read, 1> = PerCpuArray::new();

#[btf_map]
static STACKS: StackTrace<4096, 0, STACK_DEPTH> = StackTrace::new();

#[btf_map]
static STACK_SAMPLES: RingBuf<StackSample, RING_SIZE> = RingBuf::new();

// ANCHOR: channels
/// Tells of a packet that the network stack has received, over the perf event array.
#[tracepoint(category = "net", name = "netif_receive_skb")]
pub fn receive_perf(ctx: TracePointContext) -> u32 {
    let arrival = arrival(&ctx);
    measured(0, arrival.time_ns, || output_perf(&ctx, &arrival));
    0
}

/// The same, over the ring buffer.
#[tracepoint(category = "net", name = "netif_receive_skb")]
pub fn receive_ring(ctx: TracePointContext) -> u32 {
    let arrival = arrival(&ctx);
    measured(1, arrival.time_ns, || ARRIVALS_RING.output(arrival, 0).is_ok());
    0
}
// ANCHOR_END: channels

/// Into the buffer of this CPU; false if it was full, which aya's own method does not tell.
#[inline(always)]
fn output_perf(ctx: &TracePointContext, arrival: &Arrival) -> bool {
    let map = (&raw const ARRIVALS_PERF).cast_mut().cast();
    let record = ptr::from_ref(arrival).cast_mut().cast();
    // SAFETY: the record is as long as is said, and the map is of the type that the helper takes.
    unsafe {
        bpf_perf_event_output(
            ctx.as_ptr(),
            map,
            BPF_F_CURRENT_CPU,
            record,
            size_of::<Arrival>() as u64,
        ) == 0
    }
}

/// Counts messages of DNS and DHCP, and keeps no packet.
#[socket_filter]
pub fn watch_messages(ctx: SkBuffContext) -> i64 {
    // Read by the same helper as on a cgroup, but it starts at the Ethernet header here.
    let packet = IpPacket::of(&ctx);
    if let Some(message) = message(&packet) {
        count_at(&MESSAGES, message.index(), packet.len());
    }
    0
}

/// Tells which way a process came to `connect(2)`.
#[kprobe]
pub fn tcp_connect(ctx: ProbeContext) -> u32 {
    sample_stack(&ctx);
    0
}

#[inline(always)]
fn arrival(ctx: &TracePointContext) -> Arrival {
    let mut arrival = Arrival {
        // SAFETY: helpers without arguments.
        time_ns: unsafe { bpf_ktime_get_boot_ns() },
        // SAFETY: as above.
        cpu: unsafe { bpf_get_smp_processor_id() },
        ..Arrival::default()
    };
    let Some(offsets) = ARRIVAL_OFFSETS.get(0) else {
        return arrival;
    };
    // SAFETY: the kernel told the offsets, and the helper checks what it reads.
    unsafe {
        arrival.len = ctx.read_at(offsets.len as usize).unwrap_or_default();
        // The low half says where in the record the name lies, the high half how long it is.
        let place: u32 = ctx.read_at(offsets.name as usize).unwrap_or_default();
        let name = ctx.as_ptr().wrapping_add((place & 0xffff) as usize);
        bpf_probe_read_kernel_str((&raw mut arrival.interface).cast(), 16, name.cast_const());
    }
    arrival
}

/// Sends, and keeps the books of a channel.
#[inline(always)]
fn measured(channel: u32, start_ns: u64, send: impl FnOnce() -> bool) {
    let is_sent = send();
    // SAFETY: a helper without arguments.
    let spent_ns = unsafe { bpf_ktime_get_boot_ns() }.wrapping_sub(start_ns);
    let Some(tally) = CHANNEL_TALLIES.get_ptr_mut(channel) else {
        return;
    };
    // SAFETY: the value lies in the map for as long as the map does.
    unsafe {
        add(&raw mut (*tally).records, 1);
        add(&raw mut (*tally).spent_ns, spent_ns);
        if !is_sent {
            add(&raw mut (*tally).lost, 1);
        }
    }
}

/// What is read of a packet, in a map's value and by functions of their own, as in lab02: together it is too much for the
/// stack.
struct Read {
    headers: Headers,
    upper: Upper,
    transport: Transport,
    scan: Scan,
}

impl Read {
    #[inline(never)]
    fn headers(&mut self, packet: &IpPacket<'_>) -> bool {
        Headers::parse(packet).is_ok_and(|headers| {
            self.headers = headers;
            true
        })
    }

    #[inline(never)]
    fn upper(&mut self, packet: &IpPacket<'_>) -> bool {
        Upper::find(packet, &self.headers).is_ok_and(|upper| {
            self.upper = upper;
            true
        })
    }

    #[inline(never)]
    fn transport(&mut self, packet: &IpPacket<'_>) -> bool {
        Transport::read(packet, &self.headers, &self.upper).is_ok_and(|transport| {
            self.transport = transport;
            true
        })
    }

    #[inline(never)]
    fn message(&mut self, packet: &IpPacket<'_>) -> Option<Message> {
        message_of(packet, &self.headers, &self.upper, &self.transport, &mut self.scan)
    }
}

#[inline(always)]
fn message(packet: &IpPacket<'_>) -> Option<Message> {
    // SAFETY: the value is this CPU's own, and a socket filter runs with softirqs off.
    let read = unsafe { &mut *READ.get_ptr_mut(0)? };
    if read.headers(packet) && read.upper(packet) && read.transport(packet) {
        read.message(packet)
    } else {
        None
    }
}

/// `BPF_F_USER_STACK`.
const USER_STACK: u64 = 1 << 8;

#[inline(always)]
fn sample_stack(ctx: &ProbeContext) {
    let Some(mut entry) = STACK_SAMPLES.reserve(0) else {
        return;
    };
    entry.write(StackSample {
        // SAFETY: a helper without arguments.
        time_ns: unsafe { bpf_ktime_get_boot_ns() },
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        uid: bpf_get_current_uid_gid() as u32,
        kernel_stack: stack(ctx, 0),
        user_stack: stack(ctx, USER_STACK),
        comm: bpf_get_current_comm().unwrap_or_default(),
    });
    entry.submit(0);
}

#[inline(always)]
fn stack(ctx: &ProbeContext, flags: u64) -> i32 {
    ctx.get_stackid(&STACKS, flags)
        .map_or_else(|error| error, |id| id as i32)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// The kernel asks for a licence that is compatible with the GPL before it lets a program call most helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
