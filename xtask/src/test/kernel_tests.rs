//! Programs of kernel tests: how they are started on this kernel, and how one learns what came of their tests.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::PathBuf,
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{Line, Outcome, RESULTS};
use crate::{bpftool, cargo::Executable, privilege::Privilege, workspace::Workspace};

/// Starts programs of kernel tests.
pub struct KernelTests {
    privilege: Privilege,
    /// The search path, with the tools that tests want.
    path: OsString,
    /// The file for what comes of the tests.
    results: PathBuf,
}

impl KernelTests {
    /// With the tools of `workspace`; `results` is a file to be written.
    pub fn new(workspace: &Workspace, privilege: Privilege, results: PathBuf) -> Self {
        Self {
            privilege,
            path: bpftool::search_path(workspace),
            results,
        }
    }

    /// The command that runs a program; what came of tests before is forgotten.
    pub fn command<S: AsRef<OsStr>>(
        &self,
        program: &Executable,
        args: &[S],
        more_variables: &[(&'static str, &OsStr)],
    ) -> Result<Command> {
        // Made by us, so that it is ours whoever adds to it.
        fs::write(&self.results, "").with_context(|| format!("{} cannot be written", self.results.display()))?;
        let mut variables = vec![
            ("EBPF_KERNEL_TESTS", OsStr::new("1")),
            (RESULTS, self.results.as_os_str()),
            ("PATH", self.path.as_os_str()),
            ("CARGO_MANIFEST_DIR", program.folder.as_os_str()),
        ];
        variables.extend(more_variables);
        let mut command = self.privilege.command(&program.path, args, &variables);
        command.current_dir(&program.folder);
        Ok(command)
    }

    /// What came of each test of the program that has run last, by its name.
    pub fn outcomes(&self) -> Result<Vec<(String, Outcome)>> {
        let lines = fs::read_to_string(&self.results);
        let lines = lines.with_context(|| format!("{} cannot be read", self.results.display()))?;
        let ended = lines.lines().filter_map(Line::of).filter_map(|line| match line {
            Line::Test { name, outcome, .. } => Some((name, outcome)),
            Line::Ended => None,
        });
        Ok(ended.collect())
    }
}
