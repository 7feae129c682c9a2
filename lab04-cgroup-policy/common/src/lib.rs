//! What lab04's cgroup programs and their loader share.
//!
//! - [`hook`] names the places where programs run,
//! - [`destination`] is where a socket is to send to, as the hooks on system calls see it,
//! - [`key`] is what a packet or a rule looks like in the tables,
//! - [`classifier`] finds the rule that decides, by one look-up for each combination of fields that rules name,
//! - [`counting`] says what is counted where.
//!
//! All of it is `no_std`, free of maps and of aya, and runs on the host as it does in the kernel.

#![no_std]

pub mod classifier;
pub mod counting;
pub mod destination;
pub mod hook;
pub mod key;
