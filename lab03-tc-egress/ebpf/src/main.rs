//! lab03's TC programs: what comes in and what goes out of an interface is counted.

#![no_std]
#![no_main]
// The `#[classifier]` macro makes a second function that cannot be documented.
#![allow(missing_docs)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use aya_ebpf::{
    btf_maps::PerCpuArray,
    macros::{btf_map, classifier},
    programs::TcContext,
};
use lab01_count_packets_common::{counter::Counter, headers::Headers};
use lab01_count_packets_ebpf::count_at;
use lab03_tc_egress_ebpf::Frame;

/// `TC_ACT_UNSPEC`, which is `TCX_NEXT`: the programs behind decide, and if there is none, the frame passes.
const NEXT: i32 = -1;

/// By hook (ingress, egress): frames that are well-formed, and those that are not.
#[btf_map]
static FRAMES: PerCpuArray<Counter, 4> = PerCpuArray::new();

/// What comes in.
#[classifier]
pub fn lab03_ingress(ctx: TcContext) -> i32 {
    count(&ctx, 0)
}

/// What goes out.
#[classifier]
pub fn lab03_egress(ctx: TcContext) -> i32 {
    count(&ctx, 2)
}

#[inline(always)]
fn count(ctx: &TcContext, first: u32) -> i32 {
    let frame = Frame::of(ctx);
    let malformed = Headers::parse(&frame).is_err();
    count_at(&FRAMES, first + u32::from(malformed), frame.len());
    NEXT
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// The kernel asks for a licence that is compatible with the GPL before it lets a program call most helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
