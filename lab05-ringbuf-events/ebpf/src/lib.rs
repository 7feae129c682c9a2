//! What lab05's programs are made of, for later labs to use: writing records into a ring buffer and keeping the books,
//! counting flows, what is known of the current process. Defines no maps; it takes them.

#![no_std]
// One instruction that Rust has no stable name for on BPF: see `records::add`.
#![cfg_attr(target_arch = "bpf", allow(internal_features), feature(core_intrinsics))]
// Nothing in a program may panic: there is nobody to catch it, and the verifier would have to follow the message.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod flows;
pub mod processes;
pub mod records;
