//! For the benchmark only: programs at TC ingress that are no enforcer, to compare it with. One parses a packet, and
//! decides nothing; one asks rule after rule; one looks into two tries and a hash, once each.

#![no_std]
#![no_main]
// The macros of the entry points make functions that cannot be documented.
#![allow(missing_docs)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use aya_ebpf::{
    bindings::TC_ACT_SHOT,
    btf_maps::{Array, HashMap, LpmTrie, lpm_trie::Key},
    macros::{btf_map, classifier},
    programs::TcContext,
};
use lab01_count_packets_common::headers::Headers;
use lab02_xdp_firewall_common::transport::{Transport, Upper};
use lab06_full_enforcer_common::compared::{Exact, Listed, Seen};
use lab06_full_enforcer_ebpf::InPieces;

/// `BPF_F_MMAPABLE`.
const MMAPABLE: usize = 1 << 10;

// The sizes are set by the benchmark.
/// Rule after rule.
#[btf_map]
static LISTED: Array<Listed, 1024, MMAPABLE> = Array::new();
/// How many rules there are.
#[btf_map]
static COUNT: Array<u64, 1, MMAPABLE> = Array::new();

/// The number of the longest prefix of each address.
#[btf_map]
static SOURCES: LpmTrie<[u8; 4], u32, 1024> = LpmTrie::new();
#[btf_map]
static DESTINATIONS: LpmTrie<[u8; 4], u32, 1024> = LpmTrie::new();
/// What is done with two such numbers, a port and a protocol.
#[btf_map]
static ACTIONS: HashMap<Exact, u64, 1024> = HashMap::new();

/// Parses, as the enforcer does, and decides nothing: what it costs to look at a packet at all.
#[classifier]
pub fn parse(ctx: TcContext) -> i32 {
    match seen(&ctx) {
        Some(seen) if seen.protocol == NEVER => TC_ACT_SHOT,
        _ => NEXT,
    }
}

/// No packet of the benchmark has this protocol (RFC 3692 reserves it for experiments).
const NEVER: u8 = 253;

/// `TC_ACT_UNSPEC`.
const NEXT: i32 = -1;

// ANCHOR: linear
/// Asks rule after rule until one matches.
#[classifier]
pub fn linear(ctx: TcContext) -> i32 {
    let (Some(seen), Some(count)) = (seen(&ctx), COUNT.get(0)) else {
        return NEXT;
    };
    let [addresses, ports, protocol] = seen.packed();
    for first in (0..MAX_RULES).step_by(AT_ONCE) {
        if first as u64 >= *count {
            break;
        }
        match of_some(first as u64, addresses, ports, protocol) {
            NO_RULE => {}
            BLOCK => return TC_ACT_SHOT,
            _ => return NEXT,
        }
    }
    TC_ACT_SHOT
}
// ANCHOR_END: linear

/// How many rules there can be, and how many are asked by one call of the function that the verifier follows once.
const MAX_RULES: usize = 100_096;
const AT_ONCE: usize = 256;

const NO_RULE: u32 = u32::MAX;
/// The number of `Action::Block`.
const BLOCK: u32 = 1;

/// The action of the first rule that matches, of those from `first` on.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn of_some(first: u64, addresses: u64, ports: u64, protocol: u64) -> u32 {
    for number in 0..AT_ONCE as u64 {
        let Some(rule) = LISTED.get((first + number) as u32) else {
            break;
        };
        if rule.matches(addresses, ports, protocol) {
            return u32::from(rule.action);
        }
    }
    NO_RULE
}

// ANCHOR: tries
/// Looks each address up in the kernel's trie, and what these say, with port and protocol, in the kernel's hash table.
#[classifier]
pub fn tries(ctx: TcContext) -> i32 {
    let Some(seen) = seen(&ctx) else {
        return NEXT;
    };
    let source = SOURCES.get(&Key::new(32, seen.source.to_be_bytes()));
    let destination = DESTINATIONS.get(&Key::new(32, seen.destination.to_be_bytes()));
    let exact = Exact {
        source: source.map_or(0, |number| *number),
        destination: destination.map_or(0, |number| *number),
        port: seen.destination_port,
        protocol: u16::from(seen.protocol),
    };
    match ACTIONS.get_ptr(exact) {
        // SAFETY: the pointer is to a value of the map, whose values do not change while the benchmark runs.
        Some(action) if unsafe { *action } == 0 => NEXT,
        _ => TC_ACT_SHOT,
    }
}
// ANCHOR_END: tries

/// What a packet of IPv4 is sought by.
#[inline(always)]
fn seen(ctx: &TcContext) -> Option<Seen> {
    let frame = InPieces::of(ctx);
    let headers = Headers::parse(&frame).ok()?;
    let upper = Upper::find(&frame, &headers).ok()?;
    let transport = Transport::read(&frame, &headers, &upper).ok()?;
    (headers.ip_version == 4).then(|| Seen {
        source: u32::from_be_bytes(headers.source.ipv4()),
        destination: u32::from_be_bytes(headers.destination.ipv4()),
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        protocol: upper.protocol,
    })
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
