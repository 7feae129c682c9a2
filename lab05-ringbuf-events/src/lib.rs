//! lab05's loader as a library: what later labs reuse.
//!
//! - [`reader`] reads a ring buffer, [`books`] tells how much of what happened was read,
//! - [`watch`] loads and attaches the programs, [`btf`] knows where fields lie in the kernel's structures,
//! - [`processes`] is the tree of processes, [`sockets`] and [`flows`] who talks to whom, [`cgroups`] knows names,
//! - [`event`] is what happened, [`filter`] what of it is shown, [`frame`] all of it at one moment,
//! - [`tell`] makes lines of all that, [`clock`] their times,
//! - [`channels`] compares a perf event array with a ring buffer, [`messages`] counts DNS and DHCP, [`stacks`] tells how
//!   a process came to connect.

pub mod books;
pub mod btf;
pub mod cgroups;
pub mod channels;
pub mod clock;
pub mod event;
pub mod filter;
pub mod flows;
pub mod frame;
pub mod messages;
pub mod processes;
pub mod reader;
pub mod sockets;
pub mod stacks;
pub mod tell;
pub mod watch;

/// lab05's eBPF object, as `build.rs` compiled it.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lab05-ringbuf-events"));

/// The object with the other programs: channels, messages, stacks.
pub static PROBES: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lab05-probes"));
