//! `cargo xtask book`: builds the guide, and finds what it says that is not so.
//!
//! Code comes into the guide by anchors, console output from files in `book/console` that commands wrote. Both can go
//! stale in silence: mdBook includes nothing for an anchor that is gone, and nobody runs a command again. So the pages
//! are checked before, the links after the build, and the commands are run and compared.

mod console;
mod diff;
mod links;
mod pages;

use std::{
    fmt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};

use crate::{
    cargo,
    kernels::{self, Record},
    setup, terminal,
    tools::MDBOOK,
    workspace::Workspace,
};

/// What to do with the guide.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    action: Option<Action>,

    /// Write what the commands print now into the guide, instead of comparing.
    #[arg(long)]
    bless: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Show the guide in a browser, built anew whenever a page changes.
    Serve,
}

/// Something in the guide that is not so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The file, relative to the workspace.
    pub file: PathBuf,
    /// The line, counted from 1; 0 where it is the whole file.
    pub line: usize,
    /// Cause and mend.
    pub text: String,
}

impl Fault {
    fn new(file: impl Into<PathBuf>, line: usize, text: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            line,
            text: text.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(formatter, "{}: {}", self.file.display(), self.text),
            line => write!(formatter, "{}:{line}: {}", self.file.display(), self.text),
        }
    }
}

/// Runs the command; `xtask` is this program's own command line, which the guide talks about.
pub fn run(workspace: &Workspace, options: &Options, xtask: &clap::Command) -> Result<ExitCode> {
    setup::ensure_with(workspace, [MDBOOK])?;
    match options.action {
        Some(Action::Serve) => serve(workspace),
        None => build_and_check(workspace, options.bless, xtask),
    }
}

fn serve(workspace: &Workspace) -> Result<ExitCode> {
    let status = mdbook(workspace)
        .args(["serve", "--open"])
        .arg(book(workspace))
        .status();
    let status = status.context("mdbook cannot be started")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn build_and_check(workspace: &Workspace, bless: bool, xtask: &clap::Command) -> Result<ExitCode> {
    let mut tally = Tally::default();
    // First, so that the pages are built with what the commands print now.
    console::check(workspace, bless, &mut tally)?;
    tally.add("kernels", &table_of_kernels(workspace, bless)?);
    tally.add("pages", &pages::check(workspace.root(), xtask)?);
    let complaints = build(workspace)?;
    // What the pages include and is not there was told already, and better.
    if tally.faults == 0 && !complaints.is_empty() {
        bail!("mdbook builds the guide only in part: {}", complaints.join("; "));
    }
    tally.add("links", &links::check(workspace.root(), &book(workspace).join("book"))?);
    if tally.faults > 0 {
        bail!("the guide says {} not so; see above", things(tally.faults));
    }
    println!("The guide is in {}.", book(workspace).join("book/index.html").display());
    Ok(ExitCode::SUCCESS)
}

/// The tables of kernels are what is recorded, and every feature was seen on every kernel.
fn table_of_kernels(workspace: &Workspace, bless: bool) -> Result<Checked> {
    let declared = kernels::read_all(&cargo::packages(workspace)?)?;
    let record = Record::read(workspace.root())?;
    if bless {
        kernels::write(workspace.root(), &record, &declared)?;
    }
    let features: usize = declared.iter().map(|package| package.features.len()).sum();
    let faults = kernels::faults(workspace.root(), &record, &declared).into_iter();
    Ok(Checked {
        summary: format!("{features} features that depend on the kernel"),
        faults: faults.map(|(file, text)| Fault::new(file, 0, text)).collect(),
    })
}

/// What was looked at, printed as it comes in.
#[derive(Default)]
struct Tally {
    faults: usize,
}

impl Tally {
    fn add(&mut self, what: &str, checked: &Checked) {
        let style = terminal::stdout();
        let mark = if checked.faults.is_empty() {
            style.green("✓")
        } else {
            style.red("✗")
        };
        println!("{mark} {what}: {}", checked.summary);
        for fault in &checked.faults {
            println!("  {fault}");
        }
        self.faults += checked.faults.len();
    }

    /// What could not be looked at here, which is no fault.
    fn left_out(what: &str, why: &str) {
        println!("{} {what}: {why}", terminal::stdout().dim("–"));
    }
}

/// The outcome of one kind of check.
struct Checked {
    /// What was looked at.
    summary: String,
    /// What was found.
    faults: Vec<Fault>,
}

fn things(count: usize) -> String {
    match count {
        1 => "one thing that is".into(),
        several => format!("{several} things that are"),
    }
}

/// Builds the pages; returns what mdBook complained about and went on.
fn build(workspace: &Workspace) -> Result<Vec<String>> {
    let output = mdbook(workspace).arg("build").arg(book(workspace)).output();
    let output = output.context("mdbook cannot be started")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("mdbook cannot build the guide: {}", said.trim());
    }
    // An include that it cannot read, for instance, does not keep mdBook from exiting with 0.
    let complaints = said
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("ERROR") || line.starts_with("WARN"))
        .map(str::to_owned)
        .collect();
    Ok(complaints)
}

fn mdbook(workspace: &Workspace) -> Command {
    Command::new(workspace.tool(MDBOOK.name))
}

fn book(workspace: &Workspace) -> PathBuf {
    workspace.root().join("book")
}

/// `path` as it is told to people: from the workspace's folder on.
fn relative(root: &Path, path: &Path) -> PathBuf {
    path.strip_prefix(root).unwrap_or(path).to_owned()
}
