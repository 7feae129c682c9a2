//! lab01's loader as a library: what later labs reuse.
//!
//! - [`interface`] finds network interfaces, and what XDP program they carry,
//! - [`load`] loads an eBPF object into the kernel and says why it was refused,
//! - [`attach`] attaches an XDP program, native first,
//! - [`counts`] reads lab01's maps,
//! - [`report`] makes reports of them; [`output`], [`text`] and [`screen`] show reports, [`logging`] shows log lines,
//! - [`schedule`] says when reports are due, [`signals`] that a program shall end, and [`outcome`] how it ended.

pub mod attach;
pub mod counts;
pub mod interface;
pub mod load;
pub mod logging;
pub mod outcome;
pub mod output;
pub mod report;
pub mod schedule;
pub mod screen;
pub mod signals;
pub mod text;

// ANCHOR: object
/// lab01's eBPF object, as `build.rs` compiled it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lab01-count-packets"));
// ANCHOR_END: object
