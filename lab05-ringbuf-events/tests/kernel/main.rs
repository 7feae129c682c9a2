//! lab05 on a real kernel, with hosts, cgroups and processes that exist for the test only.

mod accounting;
mod actor;
mod bad_input;
mod beside;
mod lab;
mod output;
mod story;

use std::{fs, process::ExitCode};

use testbed::harness::{self, KernelTest};

fn main() -> ExitCode {
    // This program is also the one that is watched.
    if let Some(exit_code) = actor::act() {
        return exit_code;
    }
    let files = [
        accounting::tests,
        story::tests,
        output::tests,
        beside::tests,
        bad_input::tests,
    ];
    let tests: Vec<KernelTest> = files.into_iter().flat_map(|tests| tests()).collect();
    let main = if tracepoints_may_be_left_out() {
        harness::main_one_by_one
    } else {
        harness::main
    };
    main(env!("CARGO_PKG_NAME"), tests)
}

/// Whether a process that ends beside another one can go untold: see [`lab05_ringbuf_events::books::Books::watch`].
fn tracepoints_may_be_left_out() -> bool {
    let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    symbols.lines().any(|line| line.ends_with(" tracepoint_srcu"))
}
