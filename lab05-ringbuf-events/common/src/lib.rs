//! What lab05's programs and its loader share.
//!
//! - [`decision`] is the record of a decision, and how records are accounted for,
//! - [`tuple`](mod@tuple) finds out who talks to whom, [`destination`] whether that is wanted,
//! - [`process`] are the records of what processes do,
//! - [`flow`] counts what a socket sends and receives,
//! - [`messages`] tells messages of DNS and DHCP apart,
//! - [`sample`] are the records of the two channels that are compared, and of stacks.
//!
//! All of it is `no_std`, free of maps and of aya, and runs on the host as it does in the kernel.

#![no_std]

pub mod decision;
pub mod destination;
pub mod flow;
pub mod messages;
pub mod process;
pub mod sample;
pub mod tuple;
