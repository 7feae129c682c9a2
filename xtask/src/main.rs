//! The project's commands, as `cargo xtask COMMAND`.
//!
//! One module is one command; what they share stands in modules named after it. Nothing here depends on a lab, so
//! that `cargo xtask setup` builds where nothing is installed yet.

mod apt;
mod bench;
mod book;
mod bpftool;
mod cargo;
mod ci;
mod doctor;
mod exercises;
mod facts;
mod fuzz;
mod inspect;
mod interrupt;
mod kernels;
mod labs;
mod machine;
mod privilege;
mod probe;
mod progress;
mod prove;
mod run;
mod setup;
mod terminal;
mod test;
mod toolchain;
mod tools;
mod usage;
mod vagrant;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::{usage::UsageError, workspace::Workspace};

/// Sets up, runs, tests, measures and inspects the labs. Builds as you, and uses sudo only to start what needs root.
#[derive(Parser)]
#[command(
    name = "xtask",
    bin_name = "cargo xtask",
    max_term_width = 100,
    disable_help_subcommand = true
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building the labs needs and is missing, into this project.
    Setup(setup::Options),
    /// Check what this machine has against what the labs need, with the mend for each thing missing.
    Doctor,
    /// Build a lab and run it: in throw-away network namespaces with traffic, or on an interface of yours.
    Run(run::Options),
    /// Run the tests: those of the host as you, those on the kernel as root.
    Test(test::Options),
    /// Measure a lab.
    Bench(bench::Options),
    /// Show a lab's eBPF object: sections, maps, programs, and what the verifier says of them.
    Inspect(inspect::Options),
    /// Build the guide and check what it says: listings, links, console output.
    Book(book::Options),
    /// Prove of each exercise that its tests fail with the starter and pass with the solution.
    Prove(prove::Options),
    /// Fuzz what parses input from outside.
    Fuzz(fuzz::Options),
    /// Try the virtual machine in vagrant/: build its box, `vagrant up` it, run lab01 in it, destroy it.
    VagrantTest(vagrant::Options),
    /// Run the checks beyond the tests: formatting, lints, documentation, fuzzing.
    Ci(ci::Options),
    /// Run the tests inside a virtual machine, as its first process.
    #[command(hide = true)]
    Guest,
}

fn main() -> ExitCode {
    end_with_the_reader();
    let command_line = CommandLine::parse();
    match dispatch(command_line.command) {
        Ok(status) => status,
        Err(error) => {
            // One line: the cause and its mend. A debug print would add a backtrace that helps no user.
            eprintln!("{} {error:#}", terminal::stderr().red("error:"));
            ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
        }
    }
}

/// A reader that has seen enough, as `head` does, ends this program quietly; Rust would have it fail with a panic.
fn end_with_the_reader() {
    // SAFETY: the disposition is set to its default before there are other threads.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

fn dispatch(command: Command) -> Result<ExitCode> {
    let workspace = Workspace::here();
    match command {
        Command::Setup(options) => setup::run(&workspace, &options),
        Command::Doctor => Ok(doctor::run(&workspace)),
        Command::Run(options) => run::run(&workspace, &options),
        Command::Test(options) => test::run(&workspace, &options),
        Command::Bench(options) => bench::run(&workspace, &options),
        Command::Inspect(options) => inspect::run(&workspace, &options),
        Command::Book(options) => book::run(&workspace, &options, &CommandLine::command()),
        Command::Prove(options) => prove::run(&workspace, &options),
        Command::Fuzz(options) => fuzz::run(&workspace, &options),
        Command::VagrantTest(options) => vagrant::run(&workspace, &options),
        Command::Ci(options) => ci::run(&workspace, &options),
        Command::Guest => vm::guest::run().map(|()| ExitCode::SUCCESS),
    }
}
