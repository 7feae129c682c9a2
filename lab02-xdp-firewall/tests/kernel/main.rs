//! lab02 on a real kernel, on hosts that exist for the test only.

mod agreement;
mod bad_input;
mod lab;
mod limit;
mod lists;
mod live;
mod malformed;
mod options;
mod output;
mod packets;
mod program;
mod swap;

use std::process::ExitCode;

use testbed::harness::{self, KernelTest};

fn main() -> ExitCode {
    let files = [
        // The long ones first, so that the others run beside them.
        limit::tests,
        lists::tests,
        swap::tests,
        packets::tests,
        malformed::tests,
        agreement::tests,
        live::tests,
        output::tests,
        bad_input::tests,
    ];
    let tests: Vec<KernelTest> = files.into_iter().flat_map(|tests| tests()).collect();
    harness::main(env!("CARGO_PKG_NAME"), tests)
}
