//! lab03's loader as a library: what later labs reuse.
//!
//! - [`attach`] attaches programs to an interface's TC hooks, by TCX or by clsact.

pub mod attach;

/// lab03's eBPF object, as `build.rs` compiled it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lab03-tc-egress"));
