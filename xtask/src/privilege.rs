//! Starting what needs root: directly when we are root, else by sudo with an environment that is named.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{IsTerminal as _, stdin},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, anyhow, bail};

use crate::machine::find_in_path;

/// What a program started by sudo gets of our environment, where it is set: how to log and how to write to a terminal.
const PASSED_ON: [&str; 10] = [
    "RUST_LOG",
    "RUST_BACKTRACE",
    "TERM",
    "COLORTERM",
    "NO_COLOR",
    "CLICOLOR_FORCE",
    "COLUMNS",
    "LANG",
    "LC_ALL",
    "TZ",
];

/// How to become root on this machine.
#[derive(Debug, PartialEq, Eq)]
pub enum Privilege {
    /// We are.
    Root,
    /// By this sudo.
    Sudo(PathBuf),
}

impl Privilege {
    /// Finds the way; `purpose` says what for, should there be none.
    pub fn obtain(purpose: &str) -> Result<Self> {
        if is_root() {
            return Ok(Self::Root);
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let sudo = find_in_path("sudo", &path).ok_or_else(|| {
            anyhow!("{purpose} needs root, and sudo is not installed; run the same command as root, or install sudo")
        })?;
        if !stdin().is_terminal() && !passwordless(&sudo) {
            bail!(
                "{purpose} needs root, and sudo would ask for a password where nobody can type one; \
                 run the same command as root, or on a terminal"
            );
        }
        Ok(Self::Sudo(sudo))
    }

    /// The command that runs `program` as root, with `variables` set on top of what is passed on anyway.
    pub fn command<A: AsRef<OsStr>>(&self, program: &Path, args: &[A], variables: &[(&str, &OsStr)]) -> Command {
        match self {
            Self::Root => {
                let mut command = Command::new(program);
                command.args(args).envs(variables.iter().copied());
                command
            }
            Self::Sudo(sudo) => {
                let inherited = PASSED_ON
                    .iter()
                    .filter_map(|name| env::var_os(name).map(|value| assignment(name, &value)));
                let mut command = Command::new(sudo);
                command
                    .args(["--", "env"])
                    .args(inherited)
                    .args(variables.iter().map(|(name, value)| assignment(name, value)))
                    .arg(program)
                    .args(args);
                command
            }
        }
    }
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Becomes `command`, so that its exit status, its signals and its terminal are ours. Returns only the error.
pub fn become_command(command: &mut Command) -> anyhow::Error {
    let error = command.exec();
    anyhow!("{} cannot be started: {error}", command.get_program().display())
}

fn passwordless(sudo: &Path) -> bool {
    Command::new(sudo)
        .args(["-n", "true"])
        .output()
        .is_ok_and(|output| output.status.success())
}

fn assignment(name: &str, value: &OsStr) -> OsString {
    let mut text = OsString::from(name);
    text.push("=");
    text.push(value);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(command: &Command) -> Vec<&str> {
        command.get_args().map(|arg| arg.to_str().unwrap()).collect()
    }

    #[test]
    fn root_starts_the_program_itself() {
        let command = Privilege::Root.command(Path::new("/bin/lab"), &["-i", "eth0"], &[]);
        assert_eq!(command.get_program(), "/bin/lab");
        assert_eq!(arguments(&command), ["-i", "eth0"]);
    }

    #[test]
    fn sudo_is_given_the_variables_by_name_and_the_program_with_its_arguments() {
        let sudo = Privilege::Sudo(PathBuf::from("/usr/bin/sudo"));
        let variables = [("EBPF_KERNEL_TESTS", OsStr::new("1"))];
        let command = sudo.command(Path::new("/bin/kernel"), &["--list"], &variables);
        assert_eq!(command.get_program(), "/usr/bin/sudo");
        let arguments = arguments(&command);
        assert_eq!(arguments[..2], ["--", "env"]);
        assert_eq!(
            arguments[arguments.len() - 3..],
            ["EBPF_KERNEL_TESTS=1", "/bin/kernel", "--list"]
        );
    }
}
