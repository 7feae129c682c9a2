//! lab05 on a real kernel, with hosts, cgroups and processes that exist for the test only.

mod accounting;
mod actor;
mod bad_input;
mod beside;
mod lab;
mod output;
mod story;

use std::process::ExitCode;

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
    harness::main(env!("CARGO_PKG_NAME"), tests)
}
