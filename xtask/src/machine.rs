//! What commands read from the machine, behind one type, so that tests can show them another machine.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{privilege, probe};

/// Something that the kernel may be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// The system call `bpf`.
    BpfSyscall,
    /// Programs at cgroups.
    CgroupBpf,
    /// The qdiscs `ingress` and `clsact`.
    SchIngress,
    /// The filter `bpf`.
    ClsBpf,
    /// Sockets of the family `AF_XDP`.
    XdpSockets,
}

/// Runs a program and returns what it wrote to standard output; `None` if it is not there or failed.
pub type Runner = dyn Fn(&OsStr, &[&str]) -> Option<String> + Sync;

/// A machine: its files below `root`, its `PATH`, and a way to run its programs.
pub struct Machine {
    root: PathBuf,
    path: OsString,
    is_root: bool,
    run: Box<Runner>,
    probe: fn(Probe) -> Option<bool>,
}

impl Machine {
    /// The machine that we run on.
    pub fn here() -> Self {
        Self {
            root: PathBuf::from("/"),
            path: env::var_os("PATH").unwrap_or_default(),
            is_root: privilege::is_root(),
            run: Box::new(run),
            probe: probe::probe,
        }
    }

    /// A machine whose files lie in `root`, with the programs that `run` knows, used by nobody special.
    #[cfg(test)]
    pub fn pretended(
        root: impl Into<PathBuf>,
        path: impl Into<OsString>,
        run: impl Fn(&OsStr, &[&str]) -> Option<String> + Sync + 'static,
    ) -> Self {
        Self {
            root: root.into(),
            path: path.into(),
            is_root: false,
            run: Box::new(run),
            probe: |_| None,
        }
    }

    /// The text of a file, by its absolute path; `None` if it is not there or may not be read.
    pub fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.at(path)).ok()
    }

    /// Whether something lies at this absolute path.
    pub fn has(&self, path: &str) -> bool {
        self.at(path).exists()
    }

    /// Runs a program and returns what it wrote to standard output; `None` if it is not there or failed.
    pub fn run(&self, program: impl AsRef<OsStr>, args: &[&str]) -> Option<String> {
        (self.run)(program.as_ref(), args)
    }

    /// Where `program` lies on this machine's `PATH`.
    pub fn find(&self, program: &str) -> Option<PathBuf> {
        find_in_path(program, &self.path)
    }

    /// Whether we are root there.
    pub fn is_root(&self) -> bool {
        self.is_root
    }

    /// Finds out by trying whether the kernel can do something; `None` if that cannot be told.
    pub fn probe(&self, what: Probe) -> Option<bool> {
        (self.probe)(what)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

/// Where `program` lies on `path`, a value of `PATH`: the first executable file of that name.
pub fn find_in_path(program: &str, path: &OsStr) -> Option<PathBuf> {
    env::split_paths(path)
        .map(|folder| folder.join(program))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn run(program: &OsStr, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
