//! lab04 on a real kernel, in cgroups and on hosts that exist for the test only.

#[path = "../random/mod.rs"]
mod random;
#[path = "../reference/mod.rs"]
mod reference;

mod agreement;
mod attach;
mod bpffs;
mod by_hand;
mod cgroups;
mod client;
mod failures;
mod hooks;
mod lab;
mod live;
mod policy;
mod program;

use std::process::ExitCode;

use testbed::harness::{self, KernelTest};

fn main() -> ExitCode {
    // The same program is what tests start inside a cgroup, to open sockets there.
    if client::was_asked_for() {
        return client::obey();
    }
    let files = [
        // The long ones first, so that the others run beside them.
        agreement::tests,
        live::tests,
        policy::tests,
        attach::tests,
        cgroups::tests,
        failures::tests,
        by_hand::tests,
    ];
    let tests: Vec<KernelTest> = files.into_iter().flat_map(|tests| tests()).collect();
    harness::main(env!("CARGO_PKG_NAME"), tests)
}
