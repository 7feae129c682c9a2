//! `cargo xtask fuzz`: runs the fuzz targets of the labs, each for a while, on the stable toolchain.

use std::{
    collections::BTreeSet,
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    cargo, labs, machine::find_in_path, setup, terminal, toolchain, tools::CARGO_FUZZ, usage::UsageError,
    workspace::Workspace,
};

/// How many folders below the workspace a fuzz folder may lie: `lab01-count-packets/common/fuzz`.
const DEPTH: usize = 3;

/// What to fuzz and for how long.
#[derive(Args)]
pub struct Options {
    /// Only this lab: its number as in lab01, or the name of its folder.
    lab: Option<String>,

    /// Only this fuzz target.
    #[arg(long, value_name = "NAME")]
    target: Option<String>,

    /// How long to run each target.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
}

/// A fuzz target: a program in a folder `fuzz`, which is a workspace of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The folder of its `Cargo.toml`.
    pub folder: PathBuf,
    /// Its name.
    pub name: String,
}

/// Runs the command.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let below = match &options.lab {
        Some(lab) => labs::find(workspace, lab)?.folder,
        None => workspace.root().to_owned(),
    };
    let mut targets = targets(&below)?;
    if let Some(name) = &options.target {
        let known: Vec<_> = targets.iter().map(|target| target.name.clone()).collect();
        targets.retain(|target| target.name == *name);
        if targets.is_empty() {
            let known = if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            };
            return Err(UsageError(format!("there is no fuzz target {name:?}; there are: {known}")).into());
        }
    }
    if targets.is_empty() {
        bail!("there are no fuzz targets below {}", below.display());
    }
    prepare(workspace)?;
    let folders: BTreeSet<_> = targets.iter().map(|target| &target.folder).collect();
    for folder in folders {
        let status = command(workspace, folder, "build").status();
        if !status.context("cargo-fuzz cannot be started")?.success() {
            bail!("the fuzz targets in {} do not build", folder.display());
        }
    }
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let mut broken = Vec::new();
    // Each runs on one processor, and all for the same time.
    for targets in targets.chunks(processors) {
        broken.extend(run_at_once(workspace, targets, options.seconds)?);
    }
    if broken.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for target in broken {
        eprintln!(
            "{} has found something; the input that breaks it lies in {}",
            target.name,
            target.folder.join("artifacts").join(&target.name).display()
        );
    }
    Ok(ExitCode::FAILURE)
}

/// Runs targets at the same time, each with its output in a file; returns those that have found something.
fn run_at_once<'a>(workspace: &Workspace, targets: &'a [Target], seconds: u64) -> Result<Vec<&'a Target>> {
    let mut running = Vec::new();
    for target in targets {
        let log = workspace.target().join("fuzz").join(format!("{}.log", target.name));
        let file = File::create(&log).with_context(|| format!("{} cannot be written", log.display()))?;
        let mut command = run_command(workspace, target, seconds);
        let child = command.stdout(file.try_clone()?).stderr(file).spawn();
        running.push((target, child.context("cargo-fuzz cannot be started")?, log));
    }
    let style = terminal::stdout();
    let mut found = Vec::new();
    for (target, mut child, log) in running {
        let status = child.wait()?;
        let output = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        if status.success() {
            println!("{} {}: {}", style.green("✓"), target.name, tried(&output, seconds));
        } else {
            println!(
                "{} {}; all of its output is in {}:",
                style.red("✗"),
                target.name,
                log.display()
            );
            for line in told(&output) {
                println!("  {line}");
            }
            found.push(target);
        }
    }
    Ok(found)
}

/// How many inputs were tried, by the fuzzer's final statistics.
fn tried(output: &str, seconds: u64) -> String {
    let count = output
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let count = count.map_or("an unknown number of", str::trim);
    format!("{count} inputs in {seconds} s, and nothing was found")
}

/// The last lines of a fuzzer's output, without the words that it has learned and would try first the next time.
fn told(output: &str) -> Vec<&str> {
    const LINES: usize = 40;
    let mut is_word = false;
    let mut lines: Vec<_> = output
        .lines()
        .filter(|line| {
            let begins = line.starts_with("###### Recommended dictionary");
            let ends = line.starts_with("###### End of recommended dictionary");
            is_word = (is_word || begins) && !ends;
            !is_word && !ends
        })
        .collect();
    lines.drain(..lines.len().saturating_sub(LINES));
    lines
}

/// Installs what fuzzing needs, or says what the user must install.
pub fn prepare(workspace: &Workspace) -> Result<()> {
    if find_in_path("c++", &env::var_os("PATH").unwrap_or_default()).is_none() {
        bail!("no C++ compiler `c++` on PATH, by which the fuzzer is built; on Debian: sudo apt-get install g++");
    }
    setup::ensure_with(workspace, [CARGO_FUZZ])
}

/// The command that runs a target for so many seconds.
fn run_command(workspace: &Workspace, target: &Target, seconds: u64) -> Command {
    let mut command = command(workspace, &target.folder, "run");
    command
        .arg(&target.name)
        .args(["--", &format!("-max_total_time={seconds}")])
        // Without a line for every input that reached something new.
        .args(["-verbosity=0", "-print_final_stats=1"]);
    command
}

/// `cargo fuzz ACTION`. All fuzz folders are built in one place, so that what they share is built once.
fn command(workspace: &Workspace, folder: &Path, action: &str) -> Command {
    let mut command = Command::new(workspace.tool(CARGO_FUZZ.name));
    command
        .args([action, "--fuzz-dir"])
        .arg(folder)
        .arg("--target-dir")
        .arg(workspace.target().join("fuzz"))
        .current_dir(folder)
        // The sanitizers are behind `-Z` flags, which a stable compiler takes only so.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO", toolchain::cargo());
    command
}

/// The fuzz targets below a folder, in order.
pub fn targets(below: &Path) -> Result<Vec<Target>> {
    let mut found = Vec::new();
    let mut folders = vec![(below.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        if folder.file_name().is_some_and(|name| name == "fuzz") && folder.join("Cargo.toml").is_file() {
            found.extend(targets_in(&folder)?);
            continue;
        }
        if depth == DEPTH {
            continue;
        }
        let entries = fs::read_dir(&folder).with_context(|| format!("{} cannot be read", folder.display()))?;
        for entry in entries.filter_map(Result::ok) {
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            let built = entry.file_name() == "target";
            if !hidden && !built && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push((entry.path(), depth + 1));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Every program of a fuzz folder is a target.
fn targets_in(folder: &Path) -> Result<Vec<Target>> {
    let packages = cargo::packages(&Workspace::at(folder))?;
    let names = packages
        .iter()
        .flat_map(|package| &package.targets)
        .filter(|(kind, _)| kind == "bin");
    Ok(names
        .map(|(_, name)| Target {
            folder: folder.to_owned(),
            name: name.clone(),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    fn package(folder: &Path, name: &str, bins: &[&str]) {
        fs::create_dir_all(folder.join("targets")).unwrap();
        let mut manifest =
            format!("[package]\nname = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n");
        for bin in bins {
            writeln!(manifest, "[[bin]]\nname = \"{bin}\"\npath = \"targets/{bin}.rs\"").unwrap();
            fs::write(folder.join(format!("targets/{bin}.rs")), "fn main() {}\n").unwrap();
        }
        fs::write(folder.join("Cargo.toml"), manifest).unwrap();
    }

    #[test]
    fn targets_are_found_in_the_folders_of_labs_and_of_their_crates_and_nowhere_else() {
        let root = tempfile::tempdir().unwrap();
        package(&root.path().join("lab01/common/fuzz"), "one", &["parse_headers"]);
        package(&root.path().join("lab06/fuzz"), "six", &["policy", "compile"]);
        package(&root.path().join("target/lab01/fuzz"), "built", &["not_this"]);
        package(&root.path().join(".tools/fuzz"), "hidden", &["not_this_either"]);
        let names: Vec<_> = targets(root.path())
            .unwrap()
            .into_iter()
            .map(|target| target.name)
            .collect();
        assert_eq!(names, ["parse_headers", "compile", "policy"]);
    }

    #[test]
    fn a_fuzzers_output_is_told_without_its_dictionary_and_its_inputs_are_counted() {
        let output = "panicked at parser.rs:7\n###### Recommended dictionary. ######\n\"\\001\" # Uses: 9\n\
                      ###### End of recommended dictionary. ######\nDone 70 runs\nstat::number_of_executed_units: 70\n";
        assert_eq!(
            told(output),
            [
                "panicked at parser.rs:7",
                "Done 70 runs",
                "stat::number_of_executed_units: 70"
            ]
        );
        assert_eq!(tried(output, 10), "70 inputs in 10 s, and nothing was found");
        assert_eq!(told(&"line\n".repeat(1000)).len(), 40);
    }
}
