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
    tools::MDBOOK,
    workspace::Workspace,
};

/// How thorough to be.
#[derive(Args)]
pub struct Options {
    /// How long to run each fuzz target, in seconds; 0 for not at all.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    fuzz_seconds: u64,

    /// The kernels on which to run, in virtual machines, the tests that the table of kernels names.
    #[arg(long, default_value = "5.10,6.12", value_name = "VERSION|all")]
    kernels: String,
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
    let started = Instant::now();
    setup::ensure_with(workspace, [MDBOOK])?;
    if options.fuzz_seconds > 0 {
        fuzz::prepare(workspace)?;
    }
    let mut outcomes = vec![Outcome {
        name: "setting up".into(),
        passed: true,
        took: started.elapsed(),
    }];

    let mut checks = vec![
        formatting(workspace),
        lints(workspace),
        ebpf_lints(workspace, &cargo::packages(workspace)?),
        web_assembly(workspace),
        other_processor(workspace),
        documentation(workspace),
        xtask(workspace, "the guide", &["book"])?,
        xtask(workspace, "the virtual machine", &["vagrant-test", "--quick"])?,
        xtask(
            workspace,
            &format!("features on Linux {}", options.kernels),
            &["test", "--features", "--kernel", &options.kernels],
        )?,
    ];
    if options.fuzz_seconds > 0 && !fuzz::targets(workspace.root())?.is_empty() {
        let seconds = options.fuzz_seconds.to_string();
        checks.push(xtask(workspace, "fuzzing", &["fuzz", "--seconds", &seconds])?);
    }

    interrupt::note_only();
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
fn ebpf_lints(workspace: &Workspace, packages: &[Package]) -> Check {
    let folder = workspace.target().join("ebpf");
    let folder = folder.to_string_lossy();
    let mut args = vec![
        "clippy",
        "--target",
        "bpfel-unknown-none",
        "-Z",
        "build-std=core",
        "--release",
    ];
    args.extend(["--target-dir", &folder]);
    for package in packages.iter().filter(|package| is_ebpf(package)) {
        args.extend(["--package", &package.name]);
    }
    args.extend(["--", "-D", "warnings"]);
    let mut check = check(workspace, "lints of the eBPF crates", &args);
    check
        .command
        .env("RUSTC_BOOTSTRAP", "1")
        .env("PATH", path_with_tools(workspace));
    check
}

/// The loaders for arm64, and the programs as they are built for it. Checked, not linked, so that neither a linker nor a
/// standard library for it need be installed: that is checked from its sources, which setup has installed.
fn other_processor(workspace: &Workspace) -> Check {
    let target = "aarch64-unknown-linux-gnu";
    let args = ["check", "--target", target, "-Z", "build-std=std,panic_unwind"];
    let mut check = check(workspace, "building for arm64", &args);
    check.command.env("RUSTC_BOOTSTRAP", "1");
    check
}

/// Another of these commands, as a check.
fn xtask(workspace: &Workspace, name: &str, args: &[&str]) -> Result<Check> {
    let mut command = Command::new(env::current_exe().context("this program cannot be found")?);
    command.args(args).current_dir(workspace.root());
    Ok(Check {
        name: name.to_owned(),
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
    let whole: Duration = outcomes.iter().map(|outcome| outcome.took).sum();
    println!("  {:width$}  {:>4} s", "", whole.as_secs());
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
