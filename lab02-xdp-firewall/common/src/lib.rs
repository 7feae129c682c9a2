//! What lab02's XDP program and its loader share.
//!
//! - [`transport`] reads on where lab01's headers end: extension headers, fragments, ports,
//! - [`prefix_set`] answers whether an address is in a list of 100,000 prefixes, in plain arrays,
//! - [`ports`] does so for ports,
//! - [`bucket`] is a token bucket,
//! - [`firewall`] puts them in order and decides.
//!
//! All of it is `no_std`, free of maps and of aya, and runs on the host as it does in the kernel. For user space alone are
//! `value`, which reads what people write, and `list`, which reads lists of prefixes.

#![no_std]

#[cfg(not(target_arch = "bpf"))]
extern crate alloc;

pub mod bucket;
pub mod firewall;
#[cfg(not(target_arch = "bpf"))]
pub mod list;
pub mod ports;
pub mod prefix_set;
pub mod slots;
pub mod transport;
#[cfg(not(target_arch = "bpf"))]
pub mod value;
