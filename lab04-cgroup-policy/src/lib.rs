//! lab04's loader as a library: what later labs reuse.
//!
//! - [`cgroup`] finds cgroup v2, and opens and makes cgroups,
//! - [`attach`] attaches programs to them by links, which can be pinned and given another program,
//! - [`compile`] turns a policy into tuples and entries, [`tables`] brings it into the kernel whole,
//! - [`enforcement`] is all of it together: loaded, filled, attached,
//! - [`control`] has a second process read and set the mode,
//! - [`statistics`] reads the counters and reports them.

pub mod attach;
pub mod cgroup;
pub mod compile;
pub mod control;
pub mod enforcement;
pub mod statistics;
pub mod tables;

/// lab04's eBPF object, as `build.rs` compiled it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lab04-cgroup-policy"));
