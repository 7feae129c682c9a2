//! The command, run as a user runs it.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{End, Finished, Host, LinkOptions, Result, Running};

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_lab02-xdp-firewall");

/// How long anything may take before the test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Both ways to attach a program that a veth has.
pub const MODES: [&str; 2] = ["native", "generic"];

/// Two hosts and a cable: the near end and the far end, which has the firewall.
pub fn cable() -> Result<(End, End)> {
    cable_with(LinkOptions::default())
}

/// As `cable`, with other than the default options.
pub fn cable_with(options: LinkOptions) -> Result<(End, End)> {
    let link = Host::new("client")?.join_with(&Host::new("server")?, options)?;
    Ok((link.left, link.right))
}

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
        assert!(
            start.elapsed() < testbed::patience(PATIENCE),
            "waited in vain until {what}"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// The command, filtering: it has attached, and reports as JSON ten times a second.
pub struct Firewall {
    running: Running,
}

impl Firewall {
    /// Starts it on an interface, and waits until it filters.
    pub fn on(end: &End, args: &[&str]) -> Self {
        let mut command = on(end, &["--json", "--stats-interval", "100ms"]);
        command.args(args);
        Self::start(command)
    }

    /// Starts a command that reports as JSON, and waits until it filters.
    pub fn start(command: Command) -> Self {
        let running = Running::start(command).unwrap();
        running.wait_for("\"elapsed_ms\"", PATIENCE).unwrap();
        Self { running }
    }

    /// Its last report so far.
    pub fn report(&self) -> Report {
        let printed = self.running.stdout();
        Report(serde_json::from_str(printed.lines().last().unwrap()).unwrap())
    }

    /// What it has said besides.
    pub fn stderr(&self) -> String {
        self.running.stderr()
    }

    /// Waits until it has said `text` so many times.
    #[track_caller]
    pub fn wait_for_word(&self, text: &str, times: usize) {
        let start = Instant::now();
        while self.stderr().matches(text).count() < times {
            assert!(
                start.elapsed() < testbed::patience(PATIENCE),
                "waited in vain for {text:?}: {}",
                self.stderr()
            );
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until it has seen so many frames, which the sender may have sent long before, then interrupts it; its last
    /// report.
    pub fn stop_after(self, frames: u64) -> (Report, String) {
        let start = Instant::now();
        while self.report().total() < frames && start.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(10));
        }
        self.stop()
    }

    /// Interrupts it; its last report, and what it has said besides.
    pub fn stop(self) -> (Report, String) {
        let finished = self.running.interrupt(PATIENCE).unwrap();
        assert!(finished.status.success(), "{finished:#?}");
        let last = finished.stdout.lines().last().unwrap();
        (Report(serde_json::from_str(last).unwrap()), finished.stderr)
    }

    /// Ends it by a signal, and waits until it is gone.
    pub fn end_by(self, signal: Signal) -> Finished {
        self.running.signal(signal).unwrap();
        self.running.wait(PATIENCE).unwrap()
    }
}

/// A report.
#[derive(Debug)]
pub struct Report(pub Value);

impl Report {
    /// All frames.
    pub fn total(&self) -> u64 {
        self.packets("total")
    }

    /// Those that passed.
    pub fn passed(&self) -> u64 {
        self.packets("passed")
    }

    /// Those that were dropped.
    pub fn dropped(&self) -> u64 {
        self.packets("dropped")
    }

    /// Those of a verdict and reason.
    pub fn of(&self, verdict: &str, reason: &str) -> u64 {
        self.amount_of(verdict, reason, "packets")
    }

    /// Packets or bytes of a verdict and reason.
    pub fn amount_of(&self, verdict: &str, reason: &str, unit: &str) -> u64 {
        let lines = self.0["by_reason"].as_array().unwrap().iter();
        let matching = lines.filter(|line| line["verdict"] == verdict && line["reason"] == reason);
        matching.map(|line| line[unit].as_u64().unwrap()).sum()
    }

    fn packets(&self, kind: &str) -> u64 {
        self.0[kind]["packets"].as_u64().unwrap()
    }
}
