//! The program `enforcer`, run as a user runs it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;
use testbed::{Cgroup, End, Finished, Host, LinkOptions, Running};

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_enforcer");

/// Has an enforcer decide about packets at the cgroup alone, where a test is not about the others: it starts in half of the
/// time, most of which goes to the verifier.
pub const AT_CGROUP: [&str; 3] = ["--no-xdp", "--no-tc", "--no-connect"];

/// The same, about calls as well.
pub const AT_CALLS: [&str; 2] = ["--no-xdp", "--no-tc"];

/// The same, at the interface alone.
pub const AT_INTERFACE: [&str; 1] = ["--no-cgroup"];

/// The same, about what comes in by the interface alone.
pub const AT_XDP: [&str; 2] = ["--no-tc", "--no-cgroup"];

/// How long anything may take before the test gives up.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A host with an enforcer, one that talks to it, a cgroup, and a folder for policies and the socket.
pub struct Lab {
    pub client: End,
    pub server: End,
    pub cgroup: Cgroup,
    folder: TempDir,
}

impl Lab {
    pub fn new() -> Self {
        Self::with(LinkOptions::default())
    }

    /// The same, with another cable.
    pub fn with(options: LinkOptions) -> Self {
        let link = Host::new("client")
            .unwrap()
            .join_with(&Host::new("server").unwrap(), options)
            .unwrap();
        Self {
            client: link.left,
            server: link.right,
            cgroup: Cgroup::new("lab06").unwrap(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// A file in the folder.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Where the enforcer listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("enforcer.sock")
    }

    /// The command on the server, with its socket.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.server.host.command(BINARY);
        command
            .args(args)
            .env_remove("RUST_LOG")
            .env("NO_COLOR", "1")
            .env("ENFORCER_SOCKET", self.socket());
        command
    }

    /// Runs a command to its end.
    #[track_caller]
    pub fn finish(&self, args: &[&str]) -> Finished {
        Running::start(self.command(args)).unwrap().wait(PATIENCE).unwrap()
    }

    /// Runs a command that is to succeed; what it printed.
    #[track_caller]
    pub fn done(&self, args: &[&str]) -> String {
        let finished = self.finish(args);
        assert!(finished.status.success(), "{args:?}: {finished:#?}");
        finished.stdout
    }

    /// Runs a command that is to succeed and prints JSON.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.done(args)).unwrap()
    }

    /// Runs a command that is to be refused with this status; its error lines.
    #[track_caller]
    pub fn refused(&self, args: &[&str], status: i32) -> String {
        let finished = self.finish(args);
        assert_eq!(finished.status.code(), Some(status), "{args:?}: {finished:#?}");
        finished.stderr
    }

    /// Starts an enforcer on the server's interface and the cgroup, and waits until it enforces.
    #[track_caller]
    pub fn enforce(&self, policy: &Path, args: &[&str]) -> Running {
        let mut command = self.command(&["run", "--policy"]);
        command.arg(policy).args(args);
        if !AT_CALLS.iter().all(|arg| args.contains(arg)) {
            command.args(["--iface", &self.server.interface]);
        }
        if !AT_INTERFACE.iter().all(|arg| args.contains(arg)) {
            command.arg("--cgroup").arg(self.cgroup.path());
        }
        let running = Running::start(command).unwrap();
        running.wait_for("listening on", PATIENCE).unwrap();
        running
    }

    /// Packets that were counted for a rule, by outcome: passed, observed, dropped.
    #[track_caller]
    pub fn counted(&self, rule: &str) -> [u64; 3] {
        let stats = self.json(&["stats", "--json"]);
        let rules = stats["rules"].as_array().unwrap();
        let of_rule = rules.iter().find(|line| line["rule"] == rule);
        let of_rule = of_rule.unwrap_or_else(|| panic!("no rule {rule}: {stats:#}"));
        outcomes(of_rule)
    }

    /// The same for a hook and a reason.
    #[track_caller]
    pub fn counted_at(&self, hook: &str, reason: &str) -> [u64; 3] {
        let stats = self.json(&["stats", "--json"]);
        let reasons = stats["reasons"].as_array().unwrap();
        let it = reasons
            .iter()
            .find(|line| line["hook"] == hook && line["reason"] == reason);
        outcomes(it.unwrap_or_else(|| panic!("no {reason} at {hook}: {stats:#}")))
    }
}

fn outcomes(of: &Value) -> [u64; 3] {
    ["passed", "observed", "dropped"].map(|outcome| of[outcome]["packets"].as_u64().unwrap())
}

/// Asks until it is so.
#[track_caller]
pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
