//! The enforcer as a library.
//!
//! - [`compile`] translates a policy into tables, [`tables`] brings them into the kernel whole, [`names`] looks up what
//!   interfaces and cgroups are to the kernel,
//! - [`enforcer`] loads, attaches, applies, switches and counts; [`object`] is what it loads, [`wire`] says which hook of an
//!   interface decides about what comes in,
//! - [`sets`] is what was added to sets or removed from them, entry by entry,
//! - [`server`] is its control channel, HTTP over a Unix socket behind a [`gate`], [`client`] the other end, [`api`] what
//!   they say,
//! - [`groups`] sees whether groups can be kept with sockets,
//! - [`local`] knows which destinations are the host's own,
//! - [`orphans`] removes what a killed enforcer has left,
//! - [`explain`] decides about a packet that somebody thinks of, by the classifier that the kernel runs,
//! - [`report`] prints it all.

pub mod api;
pub mod client;
pub mod counters;
pub mod enforcer;
pub mod explain;
pub mod gate;
pub mod groups;
pub mod ids;
pub mod local;
pub mod names;
pub mod object;
pub mod orphans;
pub mod report;
pub mod server;
pub mod sets;
pub mod tables;
pub mod wire;

pub use lab06_full_enforcer_compiler as compile;

/// The enforcer's eBPF object, as `build.rs` compiled it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lab06-full-enforcer"));
