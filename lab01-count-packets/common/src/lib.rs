//! What lab01's XDP program and its loader share, and what every later lab builds on.
//!
//! All of it is `no_std` and free of maps and of aya: the same parser runs in the kernel, in host tests and under the
//! fuzzer.
//!
//! - [`packet`] says where a packet's bytes come from,
//! - [`headers`] reads the link and network headers from it,
//! - [`counter`] is what the maps hold.

#![no_std]

pub mod counter;
pub mod headers;
pub mod packet;
