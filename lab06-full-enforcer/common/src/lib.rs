//! What the enforcer's programs and its daemon share.
//!
//! - [`key`] is what a rule can see of a packet,
//! - [`table`] is a compiled policy: records of a fixed size that lie in arrays,
//! - [`control`] is the one word that says which of the tables is in force, and in which mode,
//! - [`classify`] finds the rule for a key,
//! - [`decision`] puts it all in order, from the packet's bytes to what becomes of it,
//! - [`flow`] is what is known of the flow that a packet belongs to,
//! - [`limit`] says how much of what a rule matches passes,
//! - [`sender`] tells at TC egress what was decided about before,
//! - [`veil`] keeps the program short for the verifier,
//! - [`counters`] says where each outcome is counted,
//! - [`compared`] is for the benchmark.
//!
//! All of it is `no_std`, free of maps and of aya: the kernel, `enforcer policy explain` and the tests run the same code.

#![no_std]

pub mod call;
pub mod classify;
pub mod compared;
pub mod control;
pub mod counters;
pub mod decision;
pub mod flow;
pub mod key;
pub mod limit;
pub mod sender;
pub mod table;
pub mod veil;
