//! What lab04's cgroup programs and their loader share.
//!
//! - [`destination`] is where a socket is to send to, as the hooks on system calls see it.
//!
//! All of it is `no_std`, free of maps and of aya, and runs on the host as it does in the kernel.

#![no_std]

pub mod destination;
