//! For the benchmark only: programs that parse a frame and look its IPv4 source up once, each in another kind of table,
//! and programs that do one thing of another kind that costs something.

#![no_std]
#![no_main]
// The `#[xdp]` macro makes a second function that cannot be documented.
#![allow(missing_docs)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, HashMap, LpmTrie, lpm_trie::Key},
    helpers::bpf_ktime_get_ns,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lab01_count_packets_common::headers::Headers;
use lab01_count_packets_ebpf::Frame;
use lab02_xdp_firewall_common::{
    firewall::Config,
    prefix_set::{
        Arrays,
        exact::{BucketV4, BucketV6},
        tree::{NodeV4, NodeV6},
    },
};
use lab02_xdp_firewall_ebpf::{SharedBucket, take_tokens};

/// `BPF_F_MMAPABLE`.
const MMAPABLE: usize = 1 << 10;

// The sizes are set by the benchmark.
#[btf_map]
static PREFIXES: LpmTrie<[u8; 4], u8, 1024> = LpmTrie::new();
#[btf_map]
static ADDRESSES: HashMap<[u8; 4], u8, 1024> = HashMap::new();
#[btf_map]
static NODES: Array<NodeV4, 1024, MMAPABLE> = Array::new();
#[btf_map]
static BUCKETS: Array<BucketV4, 1024, MMAPABLE> = Array::new();

#[btf_map]
static BUCKETS_BY_SOURCE: Array<SharedBucket, 1> = Array::new();

/// Says where the tree and the table lie in these arrays.
#[btf_map]
static CONFIG: Array<Config, 1> = Array::new();

/// Parses, and looks nothing up: what the others cost on top is what they do.
#[xdp]
pub fn parse(ctx: XdpContext) -> u32 {
    drop_if(&ctx, |source| source == [0; 4])
}

/// Calls a function for what `parse` does by itself.
#[xdp]
pub fn call(ctx: XdpContext) -> u32 {
    drop_if(&ctx, |source| is_unspecified(u32::from_ne_bytes(source)))
}

#[inline(never)]
fn is_unspecified(source: u32) -> bool {
    source == 0
}

/// Reads the clock.
#[xdp]
pub fn clock(ctx: XdpContext) -> u32 {
    // SAFETY: a helper without arguments.
    drop_if(&ctx, |_| unsafe { bpf_ktime_get_ns() } == 0)
}

/// Takes a lock and gives it back, and in between takes no token out of a bucket that is full.
#[xdp]
pub fn lock(ctx: XdpContext) -> u32 {
    drop_if(&ctx, |_| !take_tokens(&BUCKETS_BY_SOURCE, 0, 1, 0, 1))
}

// ANCHOR: lpm_trie
/// Looks the source up in the kernel's trie of prefixes.
#[xdp]
pub fn lpm_trie(ctx: XdpContext) -> u32 {
    drop_if(&ctx, |source| PREFIXES.get(&Key::new(32, source)).is_some())
}
// ANCHOR_END: lpm_trie

/// Looks the source up in the tree of intervals.
#[xdp]
pub fn tree(ctx: XdpContext) -> u32 {
    drop_if(&ctx, |source| {
        CONFIG.get(0).is_some_and(|config| {
            let tree = &config.block.tree_v4;
            tree.contains(|index| NODES.get(index), u32::from_be_bytes(source))
        })
    })
}

/// Looks the source up in the kernel's hash table.
#[xdp]
pub fn hash(ctx: XdpContext) -> u32 {
    drop_if(&ctx, |source| ADDRESSES.get_ptr(source).is_some())
}

/// Looks the source up in the table of single addresses.
#[xdp]
pub fn exact(ctx: XdpContext) -> u32 {
    drop_if(&ctx, |source| {
        CONFIG.get(0).is_some_and(|config| {
            let table = &config.block.exact_v4;
            table.contains_v4(&Maps, u32::from_be_bytes(source))
        })
    })
}

#[inline(always)]
fn drop_if(ctx: &XdpContext, is_listed: impl Fn([u8; 4]) -> bool) -> u32 {
    match Headers::parse(&Frame::of(ctx)) {
        Ok(headers) if headers.ip_version == 4 && is_listed(headers.source.ipv4()) => xdp_action::XDP_DROP,
        _ => xdp_action::XDP_PASS,
    }
}

struct Maps;

impl Arrays for Maps {
    #[inline(always)]
    fn node_v4(&self, index: u32) -> Option<&NodeV4> {
        NODES.get(index)
    }

    #[inline(always)]
    fn node_v6(&self, _index: u32) -> Option<&NodeV6> {
        None
    }

    #[inline(always)]
    fn bucket_v4(&self, index: u32) -> Option<&BucketV4> {
        BUCKETS.get(index)
    }

    #[inline(always)]
    fn bucket_v6(&self, _index: u32) -> Option<&BucketV6> {
        None
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
