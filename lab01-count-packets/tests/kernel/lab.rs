//! The command, run as a user runs it.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lab01_count_packets_common::counter::Counter;
use serde_json::Value;
use testbed::{End, Finished, Host, Running};

use crate::program::Counted;

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_lab01-count-packets");

/// How long anything may take before the test gives up.
pub const PATIENCE: Duration = Duration::from_secs(10);

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

/// The command, counting: it has attached, and reports as JSON ten times a second.
pub struct Counting {
    running: Running,
}

impl Counting {
    /// Starts it on an interface, and waits until it counts.
    pub fn on(end: &End, args: &[&str]) -> Self {
        let mut command = on(end, &["--json", "--interval", "100ms"]);
        command.args(args);
        let running = Running::start(command).unwrap();
        running.wait_for("\"elapsed_ms\"", PATIENCE).unwrap();
        Self { running }
    }

    /// Waits until it has reported so many packets, then interrupts it; what its last report says.
    ///
    /// The sender may be faster than the receiver: the last frame sent is not the last frame seen.
    pub fn stop_after(self, packets: u64) -> LastReport {
        let start = Instant::now();
        while self.packets() < packets && start.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(10));
        }
        let finished = self.running.interrupt(PATIENCE).unwrap();
        assert!(finished.status.success(), "{finished:#?}");
        let last = finished.stdout.lines().last().unwrap();
        LastReport {
            json: serde_json::from_str(last).unwrap(),
            stderr: finished.stderr,
        }
    }

    fn packets(&self) -> u64 {
        let printed = self.running.stdout();
        let last: Value = serde_json::from_str(printed.lines().last().unwrap_or("null")).unwrap();
        last["packets"].as_u64().unwrap_or(0)
    }
}

/// The last report.
pub struct LastReport {
    pub json: Value,
    pub stderr: String,
}

impl LastReport {
    /// All packets.
    pub fn total(&self) -> Counter {
        counter(&self.json)
    }

    /// What it tells of sources, protocols and so on.
    pub fn counted(&self) -> Counted {
        let sources = self.lines("sources", "address");
        Counted {
            sources: sources
                .into_iter()
                .map(|(address, counter)| (address.parse::<IpAddr>().unwrap(), counter))
                .collect(),
            protocols: self.lines("protocols", "protocol"),
            malformed: self
                .lines("malformed", "reason")
                .into_iter()
                .map(|(reason, counter)| (known_reason(&reason), counter))
                .collect(),
            untracked: counter(&self.json["untracked"]),
        }
    }

    fn lines(&self, list: &str, key: &str) -> BTreeMap<String, Counter> {
        let lines = self.json[list].as_array().unwrap();
        lines
            .iter()
            .map(|line| (line[key].as_str().unwrap().to_owned(), counter(line)))
            .collect()
    }
}

fn counter(json: &Value) -> Counter {
    Counter {
        packets: json["packets"].as_u64().unwrap(),
        bytes: json["bytes"].as_u64().unwrap(),
    }
}

fn known_reason(name: &str) -> &'static str {
    lab01_count_packets_common::headers::Malformed::ALL
        .iter()
        .map(|reason| reason.name())
        .find(|known| *known == name)
        .unwrap_or_else(|| panic!("{name} is no reason"))
}
