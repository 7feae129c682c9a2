//! The command, run as a user runs it, on a network that exists for the test only.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;
use testbed::{Cgroup, End, Finished, Host, Link, Result, Running, traffic::Server};

use crate::client::PATIENCE;

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_lab04-cgroup-policy");

/// The port of the echo servers.
pub const PORT: u16 = 7;

/// Two hosts, with echo servers for UDP and TCP on one of them.
pub struct Network {
    pub cable: Link,
    pub udp: Server,
    pub tcp: Server,
}

impl Network {
    pub fn new() -> Result<Self> {
        let cable = Host::new("client")?.join(&Host::new("server")?)?;
        Ok(Self {
            udp: Server::udp(&cable.right.host, PORT)?,
            tcp: Server::tcp(&cable.right.host, PORT)?,
            cable,
        })
    }

    pub fn client(&self) -> &Host {
        &self.cable.left.host
    }

    pub fn server(&self) -> &End {
        &self.cable.right
    }

    pub fn v4(&self) -> SocketAddr {
        (self.server().ipv4, PORT).into()
    }

    pub fn v6(&self) -> SocketAddr {
        (self.server().ipv6, PORT).into()
    }

    /// The server's IPv4 address as one of IPv6.
    pub fn mapped(&self) -> SocketAddr {
        (self.server().ipv4.to_ipv6_mapped(), PORT).into()
    }
}

/// A policy in a file of its own.
pub struct PolicyFile {
    folder: TempDir,
}

impl PolicyFile {
    pub fn new(text: &str) -> Self {
        let file = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        file.write(text);
        file
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("policy.yaml")
    }

    /// Renamed over the old one, as editors do.
    pub fn write(&self, text: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path()).unwrap();
    }
}

/// The command in a host, which is of no importance to it.
pub fn command(host: &Host, args: &[&str]) -> Command {
    let mut command = host.command(BINARY);
    command.args(args).env_remove("RUST_LOG").env("NO_COLOR", "1");
    command
}

/// Runs a command to its end.
#[track_caller]
pub fn finish(command: Command) -> Finished {
    Running::start(command).unwrap().wait(PATIENCE).unwrap()
}

/// The command, enforcing: it has attached, and reports as JSON ten times a second.
pub struct Enforcing {
    pub running: Running,
}

impl Enforcing {
    #[track_caller]
    pub fn on(host: &Host, cgroup: &Cgroup, policy: &Path, args: &[&str]) -> Self {
        let (cgroup, policy) = (cgroup.path().to_str().unwrap(), policy.to_str().unwrap());
        let mut command = command(
            host,
            &["--cgroup", cgroup, "--policy", policy, "--json", "--interval", "100ms"],
        );
        command.args(args);
        let running = Running::start(command).unwrap();
        running.wait_for("\"elapsed_ms\"", PATIENCE).unwrap();
        Self { running }
    }

    /// Its last whole report so far.
    pub fn report(&self) -> Value {
        let printed = self.running.stdout();
        serde_json::from_str(printed.lines().last().unwrap()).unwrap()
    }

    /// Waits until a report says so.
    #[track_caller]
    pub fn wait_until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let report = self.report();
            if is_so(&report) {
                return report;
            }
            assert!(start.elapsed() < PATIENCE, "waited in vain until {what}: {report:#}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Interrupts it; its last report.
    #[track_caller]
    pub fn stop(self) -> Value {
        let finished = self.running.interrupt(PATIENCE).unwrap();
        assert!(finished.status.success(), "{finished:#?}");
        serde_json::from_str(finished.stdout.lines().last().unwrap()).unwrap()
    }
}

/// What a report has of a rule: packets it decided, and packets it would have dropped.
pub fn rule(report: &Value, name: &str) -> (u64, u64) {
    let lines = report["rules"].as_array().unwrap();
    lines.iter().find(|line| line["rule"] == name).map_or((0, 0), |line| {
        (
            line["packets"].as_u64().unwrap(),
            line["would_drop"]["packets"].as_u64().unwrap(),
        )
    })
}
