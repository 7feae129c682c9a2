//! lab04 on a real kernel, in cgroups and on hosts that exist for the test only.

mod attach;
mod bpffs;
mod cgroups;
mod client;
mod hooks;

use std::process::ExitCode;

use testbed::harness::{self, KernelTest};

fn main() -> ExitCode {
    // The same program is what tests start inside a cgroup, to open sockets there.
    if client::was_asked_for() {
        return client::obey();
    }
    let files = [attach::tests, cgroups::tests];
    let tests: Vec<KernelTest> = files.into_iter().flat_map(|tests| tests()).collect();
    harness::main(env!("CARGO_PKG_NAME"), tests)
}
