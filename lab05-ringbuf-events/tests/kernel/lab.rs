//! The command, run as a user runs it.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use aya::programs::loaded_programs;
use lab05_ringbuf_events_common::process::Deed;
use nix::sys::signal::Signal;
use serde_json::Value;
use testbed::{Cgroup, End, Finished, Host, LinkOptions, Result, Running, harness::unsupported};

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_lab05-ringbuf-events");

/// How long anything may take before the test gives up.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Two hosts and a cable: the near end and the far end, on which the actors live.
pub fn cable() -> Result<(End, End)> {
    let link = Host::new("client")?.join_with(&Host::new("server")?, LinkOptions::default())?;
    Ok((link.left, link.right))
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

/// The command, telling.
pub struct Lab {
    running: Running,
}

impl Lab {
    /// Starts it in a host, watching a cgroup, and waits until it does.
    pub fn on(end: &End, cgroup: &Cgroup, args: &[&str]) -> Self {
        let name = cgroup.name().unwrap();
        let mut command = in_host(&end.host, &["--cgroup", name.to_str().unwrap()]);
        command.args(args);
        Self::start(command)
    }

    /// Starts a command and waits until it watches.
    pub fn start(command: Command) -> Self {
        let running = Running::start(command).unwrap();
        running.wait_for("watching", PATIENCE).unwrap();
        Self { running }
    }

    /// Waits until it has printed a line in which all of `texts` stand.
    #[track_caller]
    pub fn wait_for(&self, texts: &[&str]) {
        if !self.prints(texts) {
            self.has_not_printed(texts);
        }
    }

    /// As [`Lab::wait_for`], for a line about a deed, which the kernel may have told nobody of.
    #[track_caller]
    pub fn wait_for_deed(&self, deed: Deed, texts: &[&str]) {
        if !self.prints(texts) {
            end_if_left_out(1, left_out(deed));
            self.has_not_printed(texts);
        }
    }

    /// Waits until it has told, as JSON, that a process has ended.
    #[track_caller]
    pub fn wait_for_exit(&self, pid: u32) {
        self.wait_for_deed(Deed::Exit, &["\"exit\"", &format!("\"pid\":{pid},")]);
    }

    /// Whether such a line is printed in time.
    fn prints(&self, texts: &[&str]) -> bool {
        let start = Instant::now();
        let has = |line: &str| texts.iter().all(|text| line.contains(text));
        while !self.running.stdout().lines().any(has) {
            if start.elapsed() >= PATIENCE {
                return false;
            }
            thread::sleep(Duration::from_millis(10));
        }
        true
    }

    #[track_caller]
    fn has_not_printed(&self, texts: &[&str]) -> ! {
        panic!(
            "waited in vain for {texts:?}:\n{}{}",
            self.running.stdout(),
            self.running.stderr()
        );
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.running.signal(signal).unwrap();
    }

    /// Interrupts it; what it has told.
    pub fn stop(self) -> Told {
        let finished = self.running.interrupt(PATIENCE).unwrap();
        assert!(finished.status.success(), "{finished:#?}");
        Told(finished.stdout)
    }
}

/// Ends a test that was not told of `untold` deeds if the kernel has left out the program that tells of them at least so
/// often.
pub fn end_if_left_out(untold: u64, left_out: u64) {
    if (1..=left_out).contains(&untold) {
        unsupported("this kernel has run no program for what was waited for: its tracepoints can be interrupted");
    }
}

/// How often the kernel has left out the program that tells of this deed, of those that processes started by this one hold:
/// see `Books::watch`. What tells of other deeds, and of decisions, is no excuse.
pub fn left_out(deed: Deed) -> u64 {
    let tellers = ids_of_programs(&format!("process_{}", deed.name()));
    let processes = procfs::process::all_processes().unwrap().flatten();
    let ours = processes.filter(|process| {
        process
            .stat()
            .is_ok_and(|stat| stat.ppid.cast_unsigned() == std::process::id())
    });
    let descriptors = ours
        .filter_map(|process| fs::read_dir(format!("/proc/{}/fdinfo", process.pid)).ok())
        .flatten();
    let infos = descriptors.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    // A process can have more than one descriptor of it.
    let left_out = infos.filter_map(|info| {
        let number = |name| {
            let line = info.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse::<u64>().ok()
        };
        number("prog_id:").filter(|id| tellers.contains(id))?;
        number("recursion_misses:")
    });
    left_out.max().unwrap_or_default()
}

/// Of all programs in the kernel with this name.
fn ids_of_programs(name: &str) -> Vec<u64> {
    let programs = loaded_programs().filter_map(Result::ok);
    let of_name = programs.filter(|program| program.name_as_str() == Some(name));
    of_name.map(|program| program.id().into()).collect()
}

/// What the command has printed.
pub struct Told(pub String);

impl Told {
    /// All lines, as JSON.
    pub fn lines(&self) -> Vec<Value> {
        self.0.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Those of a type.
    pub fn of_type(&self, kind: &str) -> Vec<Value> {
        self.lines().into_iter().filter(|line| line["type"] == kind).collect()
    }

    /// The only line of a type, of a process.
    #[track_caller]
    pub fn one(&self, kind: &str, pid: u32) -> Value {
        let mut found = self.of_type(kind);
        found.retain(|line| line["pid"] == pid || line["process"]["pid"] == pid);
        assert_eq!(found.len(), 1, "{kind} of {pid}: {}", self.0);
        found.remove(0)
    }

    /// The decisions about a process's calls and packets.
    pub fn decisions(&self, pid: u32) -> Vec<Value> {
        let mut all = self.of_type("enforce_decision");
        all.retain(|line| line["process"]["pid"] == pid);
        all
    }

    /// The last frame.
    pub fn frame(&self) -> Value {
        self.of_type("frame").pop().unwrap()
    }

    /// The books.
    pub fn balance(&self) -> Value {
        self.of_type("balance").pop().unwrap()
    }
}

/// Whether the books of decisions balance, and the records told are those emitted.
#[track_caller]
pub fn assert_balanced(told: &Told) -> Value {
    let balance = told.balance();
    for kind in ["decisions", "processes"] {
        let number = |name: &str| balance[kind][name].as_u64().unwrap();
        assert_eq!(
            number("emitted") + number("suppressed") + number("lost"),
            number("happened"),
            "{balance}"
        );
    }
    balance
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
