//! `cargo xtask run LAB`: builds a lab and becomes it, inside the testbed unless an interface is named.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::Result;
use clap::Args;

use crate::{
    cargo,
    labs::{self, Lab},
    privilege::{Privilege, become_command},
    setup,
    workspace::Workspace,
};

/// Which lab, and what it is told.
#[derive(Args)]
pub struct Options {
    /// The lab: its number as in lab01, or the name of its folder.
    lab: String,

    /// Only build what would be run, for a first run that begins at once.
    #[arg(long)]
    no_run: bool,

    /// What the lab's program is given. With --iface it runs on that interface of yours; without, in throw-away
    /// network namespaces with traffic of their own. `-- --help` shows what the program takes.
    #[arg(last = true)]
    args: Vec<OsString>,
}

/// How a lab is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// In throw-away network namespaces, with traffic.
    InTestbed,
    /// On an interface of the user's.
    OnInterface,
    /// Only to print something about itself, for which nobody need be root.
    AsIs,
}

/// Builds the lab and becomes it: its exit status, its signals and its terminal are then the command's.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let lab = labs::find(workspace, &options.lab)?;
    setup::ensure(workspace)?;
    let way = Way::of(&options.args);
    if options.no_run {
        build(workspace, &lab, way)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut command = match way {
        Way::AsIs => {
            let program = build(workspace, &lab, way)?.program(&lab.name)?.to_owned();
            let mut command = Command::new(program);
            command.args(&options.args);
            command
        }
        Way::OnInterface => {
            let privilege = Privilege::obtain(&format!("running {}", lab.name))?;
            let built = build(workspace, &lab, way)?;
            privilege.command(built.program(&lab.name)?, &options.args, &[])
        }
        Way::InTestbed => {
            let privilege = Privilege::obtain(&format!("running {}", lab.name))?;
            let built = build(workspace, &lab, way)?;
            let args = testbed_args(&lab, built.program(&lab.name)?, &options.args);
            privilege.command(built.program("testbed")?, &args, &[])
        }
    };
    Err(become_command(&mut command))
}

impl Way {
    fn of(args: &[OsString]) -> Self {
        let any = |accepts: fn(&str) -> bool| args.iter().any(|arg| arg.to_str().is_some_and(accepts));
        if any(|arg| matches!(arg, "--help" | "-h" | "--version" | "-V")) || is(args, "policy") {
            Self::AsIs
        } else if any(|arg| arg == "--iface" || arg.starts_with("--iface=") || is_short_iface(arg))
            || any(|arg| arg == "--cgroup" || arg.starts_with("--cgroup="))
            || ["mode", "status", "stats"].iter().any(|command| is(args, command))
        {
            Self::OnInterface
        } else {
            Self::InTestbed
        }
    }
}

/// Whether a lab that has commands is given this one.
fn is(args: &[OsString], command: &str) -> bool {
    args.first().is_some_and(|arg| arg == command)
}

/// `-i eth0`, or `-ieth0`.
fn is_short_iface(arg: &str) -> bool {
    arg.starts_with("-i") && !arg.starts_with("--")
}

fn build(workspace: &Workspace, lab: &Lab, way: Way) -> Result<cargo::Built> {
    let programs = [lab.name.as_str(), "testbed"];
    let programs = match way {
        Way::InTestbed => &programs[..],
        Way::AsIs | Way::OnInterface => &programs[..1],
    };
    cargo::build_programs(workspace, &lab.name, programs, &[])
}

fn testbed_args(lab: &Lab, program: &Path, args: &[OsString]) -> Vec<OsString> {
    [
        OsStr::new("demo"),
        OsStr::new(&lab.name),
        OsStr::new("--"),
        program.as_os_str(),
    ]
    .into_iter()
    .map(OsStr::to_owned)
    .chain(args.iter().cloned())
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(args: &[&str]) -> Way {
        Way::of(&args.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn without_an_interface_a_lab_runs_in_the_testbed() {
        assert_eq!(way(&[]), Way::InTestbed);
        assert_eq!(way(&["--duration", "3s", "--interval=1s"]), Way::InTestbed);
    }

    #[test]
    fn an_interface_in_any_spelling_takes_it_there() {
        for args in [
            &["--iface", "eth0"][..],
            &["--iface=eth0"],
            &["-i", "eth0"],
            &["-ieth0"],
        ] {
            assert_eq!(way(args), Way::OnInterface, "{args:?}");
        }
    }

    #[test]
    fn help_and_version_are_printed_by_the_program_itself() {
        assert_eq!(way(&["--help"]), Way::AsIs);
        assert_eq!(way(&["-V"]), Way::AsIs);
        assert_eq!(way(&["--iface", "eth0", "-h"]), Way::AsIs);
    }

    #[test]
    fn of_a_lab_with_commands_only_run_is_run_in_the_testbed() {
        assert_eq!(way(&["run", "--verbose"]), Way::InTestbed);
        assert_eq!(way(&["run", "--iface", "eth0"]), Way::OnInterface);
        assert_eq!(way(&["policy", "check", "web.yaml"]), Way::AsIs);
        assert_eq!(way(&["status"]), Way::OnInterface);
    }

    #[test]
    fn the_testbed_is_told_the_lab_and_the_program_with_its_arguments() {
        let lab = Lab {
            name: "lab01-count-packets".into(),
            folder: "/w/lab01-count-packets".into(),
        };
        let args = testbed_args(&lab, Path::new("/w/target/debug/lab01"), &["--top".into(), "3".into()]);
        assert_eq!(
            args,
            [
                "demo",
                "lab01-count-packets",
                "--",
                "/w/target/debug/lab01",
                "--top",
                "3"
            ]
        );
    }
}
