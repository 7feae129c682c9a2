//! What lab03's TC programs and their loader share.
//!
//! - [`parsed`] reads all headers of a frame, VLAN tags that the kernel keeps beside it included,
//! - [`flow`] follows connections: the key of a flow, its states, and the table that holds them,
//! - [`quote`] reads the packet that an ICMP error is about,
//! - [`target`] says where packets go: for rules and for rates,
//! - [`shaper`] says when a packet may leave,
//! - [`decide`] puts them in order.
//!
//! All of it is `no_std`, free of maps and of aya, and runs on the host as it does in the kernel.

#![no_std]

pub mod decide;
pub mod flow;
pub mod parsed;
pub mod quote;
pub mod shaper;
pub mod target;
