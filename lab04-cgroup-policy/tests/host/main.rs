//! The classifier that the kernel runs, run on the host, against the reference that walks the rules one by one (P1, P6, Z2).
//!
//! `LAB04_PAIRS=1000000 cargo test --release -p lab04-cgroup-policy --test host` compares as many pairs of a random policy
//! and a random packet.

#[path = "../random/mod.rs"]
mod random;
#[path = "../reference/mod.rs"]
mod reference;

mod agreement;
mod limits;
mod tables;
