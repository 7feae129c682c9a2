//! lab01's XDP program: counts every packet of an interface by source address and by protocol, and lets it pass.

#![no_std]
#![no_main]
// The `#[xdp]` macro makes a second function that cannot be documented.
#![allow(missing_docs)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{PerCpuArray, PerCpuHashMap},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use aya_log_ebpf::warn;
use lab01_count_packets_common::{
    counter::{Counter, Protocol},
    headers::{Headers, Malformed},
};
use lab01_count_packets_ebpf::{Frame, count_at, count_by};

/// How many sources each of the two tables holds unless the loader says otherwise (`--max-sources`).
const MAX_SOURCES: usize = 10_240;

// ANCHOR: maps
#[btf_map]
static PACKETS_BY_IPV4_SOURCE: PerCpuHashMap<[u8; 4], Counter, MAX_SOURCES> = PerCpuHashMap::new();

#[btf_map]
static PACKETS_BY_IPV6_SOURCE: PerCpuHashMap<[u8; 16], Counter, MAX_SOURCES> = PerCpuHashMap::new();

#[btf_map]
static PACKETS_BY_PROTOCOL: PerCpuArray<Counter, { Protocol::COUNT as usize }> = PerCpuArray::new();

#[btf_map]
static PACKETS_MALFORMED: PerCpuArray<Counter, { Malformed::COUNT as usize }> = PerCpuArray::new();

/// Packets of sources that found no room in their table.
#[btf_map]
static PACKETS_OF_UNTRACKED_SOURCES: PerCpuArray<Counter, 1> = PerCpuArray::new();
// ANCHOR_END: maps

// ANCHOR: entry
/// Counts the frame and lets it pass.
#[xdp]
pub fn count_packets(ctx: XdpContext) -> u32 {
    let frame = Frame::of(&ctx);
    match Headers::parse(&frame) {
        Ok(headers) => count(&ctx, &headers, frame.len()),
        Err(malformed) => count_malformed(&ctx, malformed, frame.len()),
    }
    xdp_action::XDP_PASS
}
// ANCHOR_END: entry

// ANCHOR: count
#[inline(always)]
fn count(ctx: &XdpContext, headers: &Headers, bytes: u64) {
    count_at(&PACKETS_BY_PROTOCOL, Protocol::of(headers).index(), bytes);
    let counted = match headers.ip_version {
        4 => count_by(&PACKETS_BY_IPV4_SOURCE, &headers.source.ipv4(), bytes),
        6 => count_by(&PACKETS_BY_IPV6_SOURCE, &headers.source.ipv6(), bytes),
        _ => Ok(()),
    };
    if counted.is_err() && count_at(&PACKETS_OF_UNTRACKED_SOURCES, 0, bytes) == 1 {
        warn!(
            ctx,
            "no room for another source: from here on, packets of new ones are counted together"
        );
    }
}
// ANCHOR_END: count

#[inline(always)]
fn count_malformed(ctx: &XdpContext, malformed: Malformed, bytes: u64) {
    if count_at(&PACKETS_MALFORMED, malformed.index(), bytes) == 1 {
        warn!(
            ctx,
            "first malformed packet of its kind on this CPU: {}, {} bytes",
            malformed.name(),
            bytes
        );
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
