//! lab03 on a real kernel, on hosts that exist for the test only.

mod attach;

use std::process::ExitCode;

use testbed::harness::{self, KernelTest};

fn main() -> ExitCode {
    let files = [attach::tests];
    let tests: Vec<KernelTest> = files.into_iter().flat_map(|tests| tests()).collect();
    harness::main(env!("CARGO_PKG_NAME"), tests)
}
