//! Counting what sockets send and receive, and remembering whose they are.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    btf_maps::LruHashMap,
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        generated::{bpf_get_current_cgroup_id, bpf_ktime_get_boot_ns, bpf_sk_fullsock},
    },
    programs::SkBuffContext,
};
use lab05_ringbuf_events_common::flow::{FlowCounters, FlowKey, Opened, Owner};

use crate::records::add;

/// Which way a packet goes, as its socket sees it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It is received.
    In,
    /// It is sent.
    Out,
}

/// `SOCK_RAW`: `include/linux/net.h`.
const SOCK_RAW: u32 = 3;

// ANCHOR: raw
/// Whether a packet that is sent leaves through a raw socket.
///
/// One of TCP then is no packet of the connection's own socket. Where nobody made that raw socket, it is the kernel's:
/// by it are answered what comes for a port where nobody listens, and for a connection in TIME-WAIT
/// (`net/ipv4/tcp_ipv4.c`, `tcp_v4_send_reset` and `tcp_v4_send_ack`).
#[inline(always)]
pub fn leaves_through_raw_socket(ctx: &SkBuffContext) -> bool {
    // SAFETY: the context lives as long as the program runs.
    let socket = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the helper takes what is not null, and returns null for a socket without a type.
    let socket = unsafe { bpf_sk_fullsock(socket) };
    // SAFETY: a socket lives as long as its packet.
    !socket.is_null() && unsafe { (*socket).type_ } == SOCK_RAW
}
// ANCHOR_END: raw

/// Counts a packet of `bytes` bytes for its flow, which is added at its first packet; false if there was no room.
#[inline(always)]
pub fn count_flow<const N: usize>(
    flows: &LruHashMap<FlowKey, FlowCounters, N>,
    key: &FlowKey,
    tcp_flags: u8,
    way: Way,
    bytes: u64,
) -> bool {
    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_boot_ns() };
    let counters = if let Some(counters) = flows.get_ptr_mut(key) {
        counters
    } else {
        let opened = Opened::of_first_packet(key.tuple.protocol, tcp_flags, way == Way::Out);
        let new = FlowCounters {
            first_ns: now_ns,
            opened: opened as u64,
            ..FlowCounters::default()
        };
        // Another CPU may add it at the same moment: its entry stays, and this packet is counted there.
        let _ = flows.insert(key, new, u64::from(BPF_NOEXIST));
        let Some(counters) = flows.get_ptr_mut(key) else {
            return false;
        };
        counters
    };
    // SAFETY: the value lies in the map for as long as the program runs; an entry that is replaced meanwhile counts a
    // packet too many, of another flow. Numbers that several CPUs add to are added to atomically.
    unsafe {
        let (packets_of, bytes_of) = match way {
            Way::In => (&raw mut (*counters).packets_in, &raw mut (*counters).bytes_in),
            Way::Out => (&raw mut (*counters).packets_out, &raw mut (*counters).bytes_out),
        };
        add(packets_of, 1);
        add(bytes_of, bytes);
        (*counters).last_ns = now_ns;
    }
    true
}

/// The process that runs now.
#[inline(always)]
pub fn current_process() -> Owner {
    Owner {
        // SAFETY: helpers without arguments.
        since_ns: unsafe { bpf_ktime_get_boot_ns() },
        // SAFETY: as above.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        uid: bpf_get_current_uid_gid() as u32,
        comm: bpf_get_current_comm().unwrap_or_default(),
    }
}
