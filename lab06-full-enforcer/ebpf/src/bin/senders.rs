//! For the tests only: programs that note what can be learned on the way out of who sends a packet, and let it pass.

#![no_std]
#![no_main]
// The macros of the entry points make functions that cannot be documented.
#![allow(missing_docs)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use aya_ebpf::{
    bindings::__sk_buff,
    btf_maps::{Array, RingBuf},
    helpers::generated::{
        bpf_get_socket_cookie, bpf_get_socket_uid, bpf_sk_fullsock, bpf_skb_cgroup_id, bpf_skb_load_bytes,
    },
    macros::{btf_map, cgroup_skb, classifier},
    programs::{SkBuffContext, TcContext},
};
use lab06_full_enforcer_common::sender::{Sender, Sighting};

/// Of whom packets of IPv4 are noted at the root of all cgroups, where the whole machine's come by.
#[btf_map]
static SOURCE: Array<[u8; 4], 1> = Array::new();

/// Every packet, at both hooks.
#[btf_map]
static SIGHTINGS: RingBuf<Sighting, { 1 << 20 }> = RingBuf::new();

/// How many found no place there.
#[btf_map]
static LOST: Array<u64, 1> = Array::new();

#[cgroup_skb(egress)]
pub fn note_at_cgroup(ctx: SkBuffContext) -> i32 {
    if is_wanted(&ctx) {
        note(ctx.skb.skb, 0, 0);
    }
    1
}

#[classifier]
pub fn note_at_tc(ctx: TcContext) -> i32 {
    note(ctx.skb.skb, 1, ETHERNET_HEADER);
    // `TC_ACT_UNSPEC`
    -1
}

/// Whether a packet is of IPv6, or of the IPv4 host that the test is about.
#[inline(always)]
fn is_wanted(ctx: &SkBuffContext) -> bool {
    let is_ipv6 = ctx.load::<u8>(0).is_ok_and(|byte| byte >> 4 == 6);
    is_ipv6 || ctx.load::<[u8; 4]>(12).ok().as_ref() == SOURCE.get(0)
}

const ETHERNET_HEADER: u32 = 14;

#[inline(always)]
fn note(skb: *mut __sk_buff, hook: u32, start: u32) {
    // SAFETY: the context is the kernel's, and programs of both kinds may read these fields and call these helpers.
    let mut sighting = unsafe {
        Sighting {
            cookie: bpf_get_socket_cookie(skb.cast()),
            cgroup: bpf_skb_cgroup_id(skb),
            hook,
            interface: (*skb).ifindex,
            came_in_by: (*skb).ingress_ifindex,
            mark: (*skb).mark,
            packet_type: (*skb).pkt_type,
            uid: bpf_get_socket_uid(skb),
            ethertype_be: (*skb).protocol,
            sender: Sender::Nobody as u32,
            family: 0,
            state: 0,
            head_len: 0,
            padding: 0,
            head: [0; 64],
        }
    };
    // SAFETY: as above.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if !socket.is_null() {
        // SAFETY: it is there; of any socket these two fields can be read, of a full one the others, too.
        let (family, state, full) = unsafe { ((*socket).family, (*socket).state, bpf_sk_fullsock(socket)) };
        sighting.sender = Sender::of_socket(family, state, !full.is_null()) as u32;
        sighting.family = family;
        sighting.state = state;
    }
    // As much as there is of it; the helper takes all or nothing.
    for len in [60, 48, 40, 28, 24, 20] {
        // SAFETY: the place is as long as the longest of these.
        let result = unsafe { bpf_skb_load_bytes(skb.cast(), start, sighting.head.as_mut_ptr().cast(), len) };
        if result == 0 {
            sighting.head_len = len;
            break;
        }
    }
    if SIGHTINGS.output(sighting, 0).is_err()
        && let Some(lost) = LOST.get_ptr_mut(0)
    {
        // SAFETY: the value lies in the map; a test fails if it is not 0, whatever else it is.
        unsafe { *lost += 1 };
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
