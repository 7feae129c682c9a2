//! The command, run as a user runs it.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use testbed::{End, Finished, Host, Running};

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_lab03-tc-egress");

/// How long anything may take before the test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The command on an interface.
pub fn on(end: &End, args: &[&str]) -> Command {
    let mut command = in_host(&end.host, &["--iface", &end.interface]);
    command.args(args);
    command
}

/// The command in a host.
pub fn in_host(host: &Host, args: &[&str]) -> Command {
    let mut command = host.command(BINARY);
    command.args(args).env_remove("RUST_LOG").env("NO_COLOR", "1");
    command
}

/// Runs a command to its end.
pub fn finish(command: Command) -> Finished {
    Running::start(command).unwrap().wait(PATIENCE).unwrap()
}

/// Asks until it is so.
#[track_caller]
pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What `flows --json` prints about an interface.
pub fn flows(end: &End) -> Vec<Value> {
    let finished = finish(in_host(&end.host, &["flows", "--iface", &end.interface, "--json"]));
    assert!(finished.status.success(), "{finished:#?}");
    finished
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The command, running: it has attached, and reports as JSON ten times a second.
pub struct Lab {
    running: Running,
}

impl Lab {
    /// Starts it on an interface, and waits until it has attached.
    pub fn on(end: &End, args: &[&str]) -> Self {
        let mut command = on(end, &["--json", "--stats-interval", "100ms"]);
        command.args(args);
        let running = Running::start(command).unwrap();
        running.wait_for("\"elapsed_ms\"", PATIENCE).unwrap();
        Self { running }
    }

    /// Its last report so far.
    pub fn report(&self) -> Report {
        let printed = self.running.stdout();
        let complete = printed.rfind('\n').unwrap_or(0);
        Report(serde_json::from_str(printed[..complete].lines().last().unwrap()).unwrap())
    }

    /// Waits for a report of which it is so.
    #[track_caller]
    pub fn wait_for(&self, what: &str, is_so: impl Fn(&Report) -> bool) -> Report {
        let start = Instant::now();
        loop {
            let report = self.report();
            if is_so(&report) {
                return report;
            }
            assert!(start.elapsed() < PATIENCE, "waited in vain until {what}: {report:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A report.
#[derive(Debug)]
pub struct Report(pub Value);

impl Report {
    /// Packets of a hook, a verdict and a reason.
    pub fn of(&self, hook: &str, verdict: &str, reason: &str) -> u64 {
        let lines = self.0[hook]["by_reason"].as_array().unwrap().iter();
        let matching = lines.filter(|line| line["verdict"] == verdict && line["reason"] == reason);
        matching.map(|line| line["packets"].as_u64().unwrap()).sum()
    }
}
