//! Disposable hosts for tests, demos and benchmarks.
//!
//! Two hosts and a cable take three lines, and nothing of it is left when they go out of scope, when the test panics,
//! or when the process is killed:
//!
//! ```no_run
//! use std::time::Duration;
//! use testbed::{Host, traffic};
//!
//! let (client, server) = (Host::new("client")?, Host::new("server")?);
//! let link = client.join(&server)?;
//! let pings = traffic::ping(&client, link.right.ipv4, 3, Duration::from_secs(1))?;
//! assert_eq!(pings.received, 3);
//! # Ok::<(), testbed::Error>(())
//! ```
//!
//! | what | where |
//! |---|---|
//! | hosts, cables, switches | [`Host`], [`Link`] with its two [`End`]s, [`LinkOptions`], [`Switch`] |
//! | programs inside a host, and inside a cgroup | [`Host::command`], [`Cgroup`], [`Running`] |
//! | crafted packets | [`packets`] |
//! | raw frames, out and in | [`Injector`], [`Capture`], [`pcap`] |
//! | real traffic | [`traffic`] |
//! | test runs and empty programs | [`bpf`] |
//! | nftables, to compare with | [`nftables`] |
//! | tests that need root and a kernel | [`kernel_tests!`], [`listed_tests!`], [`harness`] |
//! | a program on a terminal, a thread on one CPU | [`Terminal`], [`stay_on_cpu`] |
//! | what `cargo xtask run` shows a lab with | [`demo`] |
//!
//! Hosts are network namespaces without a name, held by file descriptors. Addresses are deterministic (see [`Subnet`]),
//! and links are silent unless somebody sends, so that packets can be counted exactly. No tool has to be installed. All
//! of it needs root (or `CAP_SYS_ADMIN`, `CAP_NET_ADMIN`, `CAP_NET_RAW` and `CAP_BPF`).

mod addresses;
mod before;
pub mod bpf;
mod cgroup;
mod cpu;
pub mod demo;
mod descriptor;
mod dispatcher;
mod drawn;
mod error;
mod ethtool;
pub mod figures;
mod frames;
pub mod harness;
mod host;
mod link;
mod listed;
mod namespace;
mod netlink;
pub mod nftables;
pub mod packets;
pub mod pcap;
mod process;
pub mod spread;
mod switch;
mod terminal;
mod tracefs;
pub mod traffic;
mod wait;
pub mod walk;

pub use addresses::Subnet;
pub use cgroup::{Cgroup, sweep};
pub use cpu::stay_on_cpu;
pub use drawn::Drawn;
pub use error::{Error, Result};
pub use frames::{Capture, Injector};
pub use host::Host;
pub use link::{End, Link, LinkOptions};
pub use namespace::Inside;
pub use process::{Finished, Running, copy_program, spawn};
pub use spread::Spread;
pub use switch::Switch;
pub use terminal::Terminal;
pub use tracefs::{TRACEFS, see_tracefs};
pub use wait::{SLOWNESS, patience};
