//! `cargo xtask ci`: the checks beyond the tests. All of them run, also after one has failed, and a table sums up.

use std::{
    env,
    ffi::OsString,
    iter,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    cargo::{self, Package},
    fuzz, interrupt, setup, terminal,
    workspace::Workspace,
};

/// How thorough to be.
#[derive(Args)]
pub struct Options {
    /// How long to run each fuzz target, in seconds; 0 for not at all.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    fuzz_seconds: u64,
}

/// A check: what it is called, and the command that makes it.
struct Check {
    name: String,
    command: Command,
}

/// How a check went.
struct Outcome {
    name: String,
    passed: bool,
    took: Duration,
}

/// Runs the checks.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let fuzz_targets = match options.fuzz_seconds {
        0 => Vec::new(),
        _ => fuzz::targets(workspace.root())?,
    };
    setup::ensure(workspace)?;
    if !fuzz_targets.is_empty() {
        fuzz::prepare(workspace)?;
    }

    let packages = cargo::packages(workspace)?;
    let mut checks = vec![formatting(workspace), lints(workspace)];
    checks.extend(
        packages
            .iter()
            .filter(|package| is_ebpf(package))
            .map(|package| ebpf_lints(workspace, package)),
    );
    checks.push(web_assembly(workspace));
    checks.push(documentation(workspace));
    checks.push(guide(workspace)?);
    checks.extend(fuzz_targets.iter().map(|target| Check {
        name: format!("fuzzing {}", target.name),
        command: fuzz::command(workspace, target, options.fuzz_seconds),
    }));

    interrupt::note_only();
    let mut outcomes = Vec::new();
    for check in checks {
        if !interrupt::happened() {
            outcomes.push(make(check)?);
        }
    }
    Ok(conclude(&outcomes))
}

fn formatting(workspace: &Workspace) -> Check {
    check(workspace, "formatting", &["fmt", "--all", "--check"])
}

fn lints(workspace: &Workspace) -> Check {
    check(workspace, "lints", &["clippy", "--all-targets", "--", "-D", "warnings"])
}

/// The crates for the BPF target, which a check of the host's crates leaves out. The folder is the one in which the
/// labs' build scripts build them, so that `core` is there already.
fn ebpf_lints(workspace: &Workspace, package: &Package) -> Check {
    let folder = workspace.target().join("ebpf");
    let folder = folder.to_string_lossy();
    let mut check = check(
        workspace,
        &format!("lints of {}", package.name),
        &[
            "clippy",
            "--package",
            &package.name,
            "--target",
            "bpfel-unknown-none",
            "-Z",
            "build-std=core",
            "--release",
            "--target-dir",
            &folder,
            "--",
            "-D",
            "warnings",
        ],
    );
    check
        .command
        .env("RUSTC_BOOTSTRAP", "1")
        .env("PATH", path_with_tools(workspace));
    check
}

/// `cargo xtask book`: its listings, its links, and its console output against what the commands print now.
fn guide(workspace: &Workspace) -> Result<Check> {
    let mut command = Command::new(env::current_exe().context("this program cannot be found")?);
    command.arg("book").current_dir(workspace.root());
    Ok(Check {
        name: "the guide".into(),
        command,
    })
}

/// The policy's crate runs in a browser, too: nothing that it depends on may want a system. Checked with the library's
/// sources, so that no target has to be installed.
fn web_assembly(workspace: &Workspace) -> Check {
    let mut check = check(
        workspace,
        "the policy in WebAssembly",
        &[
            "check",
            "--package",
            "enforcer-policy",
            "--target",
            "wasm32-unknown-unknown",
            "-Z",
            "build-std=std,panic_abort",
        ],
    );
    check.command.env("RUSTC_BOOTSTRAP", "1");
    check
}

fn documentation(workspace: &Workspace) -> Check {
    let mut check = check(workspace, "documentation", &["doc", "--no-deps"]);
    check.command.env("RUSTDOCFLAGS", "-D warnings");
    check
}

fn check(workspace: &Workspace, name: &str, args: &[&str]) -> Check {
    let mut command = cargo::command(workspace);
    command.args(args);
    Check {
        name: name.to_owned(),
        command,
    }
}

fn is_ebpf(package: &Package) -> bool {
    !package.is_default && package.name.ends_with("-ebpf")
}

fn path_with_tools(workspace: &Workspace) -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = iter::once(workspace.tools().join("bin")).chain(env::split_paths(&path));
    env::join_paths(folders).unwrap_or(path)
}

fn make(mut check: Check) -> Result<Outcome> {
    println!("\n{}", terminal::stdout().bold(&format!("── {}", check.name)));
    let started = Instant::now();
    let status = check
        .command
        .status()
        .with_context(|| format!("{} cannot be started", check.command.get_program().display()))?;
    Ok(Outcome {
        name: check.name,
        passed: status.success(),
        took: started.elapsed(),
    })
}

fn conclude(outcomes: &[Outcome]) -> ExitCode {
    let style = terminal::stdout();
    let width = outcomes.iter().map(|outcome| outcome.name.len()).max().unwrap_or(0);
    println!();
    for Outcome { name, passed, took } in outcomes {
        let mark = if *passed { style.green("✓") } else { style.red("✗") };
        println!("{mark} {name:width$}  {:>4} s", took.as_secs());
    }
    let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
    if interrupt::happened() {
        return interrupt::status();
    }
    if failed == 0 {
        println!("\nAll checks passed.");
        ExitCode::SUCCESS
    } else {
        println!("\n{failed} of {} checks failed.", outcomes.len());
        ExitCode::FAILURE
    }
}
