//! `cargo xtask ci`: the checks beyond the tests. All of them run, also after one has failed, and a table sums up.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, BufRead as _, BufReader, IsTerminal as _, stdout},
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
    vm,
    workspace::Workspace,
};

/// How thorough to be.
#[derive(Args)]
pub struct Options {
    /// How long to run each fuzz target, in seconds; 0 for not at all.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    fuzz_seconds: u64,

    /// The kernels on which to run, in virtual machines, the tests that the table of kernels names. Without it, the oldest
    /// one, and the newest long-term one of another series than this machine's.
    #[arg(long, value_name = "VERSION|all")]
    kernels: Option<String>,
}

/// A check: what it is called, and the command that makes it.
struct Check {
    name: String,
    command: Command,
}

/// How a check went.
struct Outcome {
    name: String,
    took: Duration,
    /// If it failed, the lines that tell why.
    failure: Option<Vec<String>>,
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
        took: started.elapsed(),
        failure: None,
    }];

    let kernels = options.kernels.clone().unwrap_or_else(|| {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        vm::beside(&release).join(",")
    });
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
            &format!("features on Linux {kernels}"),
            &["test", "--features", "--kernel", &kernels],
        )?,
        xtask(
            workspace,
            &format!("verified instructions on Linux {kernels}"),
            &["inspect", "--kernel", &kernels],
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

/// Makes a check, and shows what its command says as it comes.
fn make(mut check: Check) -> Result<Outcome> {
    println!("\n{}", terminal::stdout().bold(&format!("── {}", check.name)));
    let started = Instant::now();
    let mut said = Vec::new();
    let (reader, writer) = io::pipe()?;
    // One pipe for both, so that the order is kept.
    check.command.stdout(writer.try_clone()?).stderr(writer);
    if stdout().is_terminal() {
        check.command.env("CARGO_TERM_COLOR", "always");
    }
    let mut child = check
        .command
        .spawn()
        .with_context(|| format!("{} cannot be started", check.command.get_program().display()))?;
    // It holds the pipe's other end, which would never be closed.
    drop(check.command);
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        said.push(line);
    }
    let status = child.wait()?;
    Ok(Outcome {
        name: check.name,
        took: started.elapsed(),
        failure: (!status.success()).then(|| cause(&said)),
    })
}

/// Of what a failed check has said, the lines that tell why: the first error with what follows it, and the end.
fn cause(said: &[String]) -> Vec<String> {
    const OF_ERROR: usize = 12;
    const OF_END: usize = 12;
    let end = said.len().saturating_sub(OF_END);
    let error = said
        .iter()
        .position(|line| line.starts_with("error") || line.starts_with("\u{1b}[1m\u{1b}[91merror"));
    match error {
        Some(error) if error < end => {
            let of_error = &said[error..(error + OF_ERROR).min(end)];
            let gap = (error + OF_ERROR < end).then(|| "…".to_owned());
            of_error
                .iter()
                .cloned()
                .chain(gap)
                .chain(said[end..].iter().cloned())
                .collect()
        }
        _ => said[end..].to_vec(),
    }
}

fn conclude(outcomes: &[Outcome]) -> ExitCode {
    let style = terminal::stdout();
    for outcome in outcomes {
        if let Some(cause) = &outcome.failure {
            println!(
                "\n{}",
                style.bold(&format!("── once more, why “{}” failed", outcome.name))
            );
            for line in cause {
                println!("{line}");
            }
        }
    }
    let width = outcomes.iter().map(|outcome| outcome.name.len()).max().unwrap_or(0);
    println!();
    for Outcome { name, failure, took } in outcomes {
        let mark = if failure.is_none() {
            style.green("✓")
        } else {
            style.red("✗")
        };
        println!("{mark} {name:width$}  {:>4} s", took.as_secs());
    }
    let whole: Duration = outcomes.iter().map(|outcome| outcome.took).sum();
    println!("  {:width$}  {:>4} s", "", whole.as_secs());
    let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.failure.is_some()).collect();
    if interrupt::happened() {
        return interrupt::status();
    }
    if failed.is_empty() {
        println!("\nAll checks passed.");
        ExitCode::SUCCESS
    } else {
        let names: Vec<_> = failed.iter().map(|outcome| outcome.name.as_str()).collect();
        println!(
            "\n{} of {} checks failed: {}.",
            failed.len(),
            outcomes.len(),
            names.join(", ")
        );
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(count: usize, what: &str) -> Vec<String> {
        (0..count).map(|number| format!("{what} {number}")).collect()
    }

    #[test]
    fn of_a_failed_check_the_first_error_and_the_end_are_told_again() {
        let mut said = lines(50, "checking");
        said.push("error: unused variable".into());
        said.extend(lines(50, "then"));
        let cause = cause(&said);
        assert_eq!(cause.len(), 12 + 1 + 12);
        assert_eq!(cause[0], "error: unused variable");
        assert_eq!(cause[12], "…");
        assert_eq!(cause[24], "then 49");
    }

    #[test]
    fn nothing_is_told_twice_and_without_an_error_the_end_is_told() {
        let mut said = lines(3, "checking");
        said.push("error: unused variable".into());
        assert_eq!(cause(&said), said);
        said.extend(lines(14, "then"));
        assert_eq!(cause(&said), said[3..]);
        assert_eq!(cause(&lines(50, "a"))[0], "a 38");
        assert_eq!(cause(&[]), Vec::<String>::new());
    }

    #[test]
    fn what_a_check_says_on_either_stream_is_kept_if_it_fails() {
        let of = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            make(Check {
                name: "a check".into(),
                command,
            })
            .unwrap()
            .failure
        };
        let said = of("echo one; echo two >&2; exit 1").unwrap();
        assert_eq!(said, ["one", "two"]);
        assert_eq!(of("echo one"), None);
    }
}
