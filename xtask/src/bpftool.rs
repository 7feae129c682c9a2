//! bpftool for the tests that show what can be done by hand: the machine's own, else Debian's, unpacked into the project.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    apt::{self, Suite},
    machine::find_in_path,
    setup,
    workspace::Workspace,
};

/// What it is called.
pub const BPFTOOL: &str = "bpftool";
const SUITE: Suite = Suite::main("trixie");

/// Runs it with the libraries that were unpacked beside it, by their own loader.
const WRAPPER: &str = r#"#!/bin/sh
root=$(dirname "$0")/../bpftool
for loader in "$root"/usr/lib*/ld-linux-*.so.[0-9]; do
    for libraries in "$root"/usr/lib/*-linux-gnu; do
        exec "$loader" --library-path "$libraries" "$root/usr/sbin/bpftool" "$@"
    done
done
"#;

/// Where it is in the folder that it was unpacked into.
pub const PROGRAM: &str = "usr/sbin/bpftool";

/// The search path for programs, root's included, with bpftool in it: it is downloaded where this machine has none.
///
/// Where that fails, a line says so, and the tests that use bpftool say that they could not.
pub fn search_path(workspace: &Workspace) -> OsString {
    let own = bin(workspace);
    let path = env::var_os("PATH").unwrap_or_default();
    let roots = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let folders = env::split_paths(&path).chain(roots).chain([own.clone()]);
    let Ok(path) = env::join_paths(folders) else {
        return path;
    };
    if find_in_path(BPFTOOL, &path).is_none() {
        unpacked(workspace);
    }
    path
}

/// The folder that bpftool is unpacked into with its libraries, downloaded where it is not there yet; none, after a line
/// that says so, where it cannot be had.
pub fn unpacked(workspace: &Workspace) -> Option<PathBuf> {
    match download(workspace, &bin(workspace)) {
        Ok(folder) => Some(folder),
        Err(error) => {
            eprintln!(
                "bpftool is not installed and cannot be downloaded ({error:#}); on Debian: apt-get install bpftool"
            );
            None
        }
    }
}

fn bin(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("bin")
}

fn download(workspace: &Workspace, bin: &Path) -> Result<PathBuf> {
    let _alone = setup::lock(workspace)?;
    let folder = workspace.tools().join(BPFTOOL);
    if !folder.is_dir() {
        apt::unpack_with_dependencies(workspace, SUITE, BPFTOOL, &folder)?;
    }
    let wrapper = bin.join(BPFTOOL);
    let failed = || format!("{} cannot be written", wrapper.display());
    fs::create_dir_all(bin).with_context(failed)?;
    fs::write(&wrapper, WRAPPER).with_context(failed)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).with_context(failed)?;
    Ok(folder)
}
