//! For the tests only: programs that note what a hook is called for, and return the verdict that they were told.

#![no_std]
#![no_main]
// The macros of the entry points make functions that cannot be documented.
#![allow(missing_docs)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use aya_ebpf::{
    btf_maps::Array,
    macros::{btf_map, cgroup_skb, cgroup_sock_addr},
    programs::{SkBuffContext, SockAddrContext},
};
use lab01_count_packets_common::packet::Packet as _;
use lab04_cgroup_policy_common::destination::Destination;
use lab04_cgroup_policy_ebpf::{IpPacket, destination4, destination6};

/// How many hooks there are, in the order of the loader's `Hook::ALL`.
const HOOKS: usize = 6;

/// By hook: 0 to deny, else to allow.
#[btf_map]
static VERDICTS: Array<u32, HOOKS> = Array::new();

/// How often each hook was called.
#[btf_map]
static CALLS: Array<u64, HOOKS> = Array::new();

/// What each hook on a system call was last called for.
#[btf_map]
static LAST_DESTINATION: Array<Destination, HOOKS> = Array::new();

/// Of the longest packet yet at each hook on packets: its length, the length that its IP header leads to, its interface, and its
/// last byte.
#[btf_map]
static LONGEST_PACKET: Array<[u32; 4], HOOKS> = Array::new();

#[cgroup_skb(egress)]
pub fn egress(ctx: SkBuffContext) -> i32 {
    packet(&ctx, 0)
}

#[cgroup_skb(ingress)]
pub fn ingress(ctx: SkBuffContext) -> i32 {
    packet(&ctx, 1)
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    call(destination4(&ctx), 2)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    call(destination6(&ctx), 3)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    call(destination4(&ctx), 4)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    call(destination6(&ctx), 5)
}

#[inline(always)]
fn packet(ctx: &SkBuffContext, hook: u32) -> i32 {
    let packet = IpPacket::of(ctx);
    if let (Ok(headers), Some(longest)) = (packet.headers(), LONGEST_PACKET.get_ptr_mut(hook)) {
        let end = headers.payload_end();
        let last_byte = packet
            .read::<[u8; 1]>(end.wrapping_sub(1))
            .map_or(u32::MAX, |[byte]| byte.into());
        // SAFETY: the value lies in the map; tests send one packet at a time.
        let longest = unsafe { &mut *longest };
        if packet.len() as u32 >= longest[0] {
            *longest = [packet.len() as u32, end as u32, packet.interface(), last_byte];
        }
    }
    verdict(hook)
}

#[inline(always)]
fn call(destination: Destination, hook: u32) -> i32 {
    if let Some(last) = LAST_DESTINATION.get_ptr_mut(hook) {
        // SAFETY: as above.
        unsafe { *last = destination };
    }
    verdict(hook)
}

#[inline(always)]
fn verdict(hook: u32) -> i32 {
    if let Some(calls) = CALLS.get_ptr_mut(hook) {
        // SAFETY: as above.
        unsafe { *calls += 1 };
    }
    match VERDICTS.get(hook) {
        Some(0) | None => 0,
        Some(_) => 1,
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
