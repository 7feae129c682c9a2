//! lab01 on a real kernel, on hosts that exist for the test only.

mod bad_input;
mod command_line;
mod lab;
mod live;
mod named;
mod packets;
mod program;
mod terminal;

use std::process::ExitCode;

use testbed::harness::{self, KernelTest};

fn main() -> ExitCode {
    let files = [
        packets::tests,
        live::tests,
        command_line::tests,
        terminal::tests,
        bad_input::tests,
    ];
    let tests: Vec<KernelTest> = files.into_iter().flat_map(|tests| tests()).collect();
    harness::main(env!("CARGO_PKG_NAME"), tests)
}
