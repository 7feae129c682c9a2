//! The enforcer on a real kernel, on hosts and in cgroups that exist for the test only.

#[path = "../../../lab02-xdp-firewall/common/tests/oracle/mod.rs"]
#[expect(dead_code, reason = "it is shared with tests of lab02's parser")]
mod oracle;
#[path = "../../../lab02-xdp-firewall/common/tests/random/mod.rs"]
#[expect(
    dead_code,
    reason = "it is shared with tests of lab02, which have rules of their own"
)]
mod random;
#[path = "../reference/mod.rs"]
mod reference;
#[path = "../shapes/mod.rs"]
mod shapes;

mod agreement;
mod bypass;
mod calls;
mod commands;
mod faults;
mod files;
mod flows;
mod hostile;
mod lab;
mod large;
mod live;
mod metadata;
mod program;
mod rates;
mod sender;
mod senders;
mod sets;
mod swap;
mod unseen;
mod wire;

use std::process::ExitCode;

use testbed::harness::{self, KernelTest};

fn main() -> ExitCode {
    if sender::is_wanted() {
        return sender::send();
    }
    let files = [
        // The long ones first, so that the others run beside them.
        agreement::tests,
        flows::tests,
        large::tests,
        swap::tests,
        senders::tests,
        bypass::tests,
        hostile::tests,
        live::tests,
        calls::tests,
        unseen::tests,
        wire::tests,
        metadata::tests,
        rates::tests,
        commands::tests,
        faults::tests,
        sets::tests,
        files::tests,
    ];
    let tests: Vec<KernelTest> = files.into_iter().flat_map(|tests| tests()).collect();
    harness::main(env!("CARGO_PKG_NAME"), tests)
}
