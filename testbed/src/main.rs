//! `testbed demo LAB -- PROGRAM ARGS…`: runs a lab's program on a disposable host that others talk to.

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};
use testbed::demo::{self, Demo, Traffic};

/// Disposable hosts to try the labs on: no packet leaves this machine.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a lab's program on a host that a few others talk to, until the program ends.
    ///
    /// `--iface eth0` is appended to the program's arguments unless they name an interface, and rules unless they have
    /// any, where it is shown with some. The exit status is the program's.
    Demo {
        /// The lab: its number as in lab01, or its full name.
        #[arg(value_parser = Demo::find, value_name = "LAB")]
        lab: Demo,

        /// Send a fixed number of packets of each kind, once the program has attached, instead of going on until it
        /// ends: what it reports is the same each time.
        #[arg(long)]
        fixed: bool,

        /// The program, and its arguments.
        #[arg(last = true, required = true, value_name = "PROGRAM ARGS")]
        program: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    demo::visit_if_asked();
    demo::call_if_asked();
    let Command::Demo { lab, fixed, program } = Options::parse().command;
    let traffic = if fixed { Traffic::Fixed } else { Traffic::Lively };
    match demo::run(lab, traffic, &program) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
