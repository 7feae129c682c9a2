//! lab03's loader as a library: what later labs reuse.
//!
//! - [`attach`] attaches programs to an interface's TC hooks, by TCX or by clsact,
//! - [`options`] reads rules, rates and bursts as people write them,
//! - [`policy`] is what the programs shall do, [`tables`] brings it into the kernel,
//! - [`flows`] reads the flow table and shows it,
//! - [`statistics`] reads the counters and reports them.

pub mod attach;
pub mod flows;
pub mod options;
pub mod policy;
pub mod statistics;
pub mod tables;

/// lab03's eBPF object, as `build.rs` compiled it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lab03-tc-egress"));
/// The names of its two programs.
pub const PROGRAMS: [(&str, attach::Direction); 2] = [
    ("lab03_ingress", attach::Direction::Ingress),
    ("lab03_egress", attach::Direction::Egress),
];
