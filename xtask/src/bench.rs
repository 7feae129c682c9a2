//! `cargo xtask bench LAB`: builds a lab's benchmark `figures` and becomes it, as root.

use std::{ffi::OsString, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    cargo, labs,
    privilege::{Privilege, become_command},
    setup,
    workspace::Workspace,
};

/// The name of the bench target.
const FIGURES: &str = "figures";

/// Which lab, and what its benchmark is told.
#[derive(Args)]
pub struct Options {
    /// The lab: its number as in lab01, or the name of its folder.
    lab: String,

    /// What the benchmark is given.
    #[arg(last = true)]
    args: Vec<OsString>,
}

/// Builds the benchmark and becomes it.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let lab = labs::find(workspace, &options.lab)?;
    let packages = cargo::packages(workspace)?;
    let package = packages.iter().find(|package| package.name == lab.name);
    if !package.is_some_and(|package| package.has_target("bench", FIGURES)) {
        bail!("{} has no figures to measure", lab.name);
    }
    setup::ensure(workspace)?;
    let privilege = Privilege::obtain(&format!("measuring {}", lab.name))?;
    let args = ["bench", "--package", &lab.name, "--bench", FIGURES, "--no-run"];
    let built = cargo::build(workspace, "the benchmark", &args)?;
    let program = built
        .executables
        .iter()
        .find(|program| program.kind == "bench" && program.target == FIGURES)
        .context("cargo built no benchmark")?;
    // As cargo itself would give it: harnesses tell a measurement from a test run by it.
    let args = [OsString::from("--bench")]
        .into_iter()
        .chain(options.args.iter().cloned());
    Err(become_command(&mut privilege.command(
        &program.path,
        &args.collect::<Vec<_>>(),
        &[],
    )))
}
