//! lab02's loader as a library: what later labs reuse.
//!
//! - [`value`] (of the common crate) reads prefixes, ports, rates and MAC addresses as people write them,
//! - [`list`] reads files of prefixes, [`watch`] says when one has changed,
//! - [`policy`] is what the firewall shall do, [`tables`] brings it into the kernel whole,
//! - [`mapped`] maps an array into memory, [`barrier`] waits for running programs, [`syscall`] is bpf(2) itself,
//! - [`statistics`] reads the counters and reports them.

pub mod barrier;
pub mod list;
pub mod mapped;
pub mod policy;
pub mod statistics;
pub mod syscall;
pub mod tables;
pub mod watch;

pub use lab02_xdp_firewall_common::value;

/// lab02's eBPF object, as `build.rs` compiled it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lab02-xdp-firewall"));
