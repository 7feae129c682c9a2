//! lab03 on a real kernel, on hosts that exist for the test only.

mod attach;
mod bad_input;
mod flows;
mod lab;
#[path = "../../common/tests/memory/mod.rs"]
mod memory;
mod program;
mod shapes;

use std::process::ExitCode;

use testbed::harness::{self, KernelTest};

fn main() -> ExitCode {
    let files = [flows::tests, shapes::tests, attach::tests, bad_input::tests];
    let tests: Vec<KernelTest> = files.into_iter().flat_map(|tests| tests()).collect();
    harness::main(env!("CARGO_PKG_NAME"), tests)
}
