//! Whether a fresh Debian can be provisioned, and whether doing it again changes nothing.

use std::{
    env,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::tree::Tree;
use crate::{apt::Mirrors, cargo, machine::Machine, toolchain::Toolchain, workspace::Workspace};

/// What is not as it should be, a line each.
pub fn twice(tree: &Tree, workspace: &Workspace) -> Result<Vec<String>> {
    let mirrors = Mirrors::of_this_machine()?;
    // Where it is out of date, the fresh Debian would build it anew in the same folder, against a C library that is newer
    // than this machine's, which could not run it any more.
    cargo::build(workspace, "xtask", &["build", "--package", "xtask"])?;
    let toolchain = Toolchain::of(&Machine::here())?;
    let cargo_home = cargo_home()?;
    let root = workspace.root();
    let owner = root.metadata().context("the project's folder cannot be read")?.uid();
    // At the paths that they have here, or cargo would build all of it again.
    let mut mounts = vec![toolchain.sysroot.clone(), cargo_home.clone(), root.to_owned()];
    if !workspace.target().starts_with(root) {
        mounts.push(workspace.target());
    }
    let text = |path: &Path| path.display().to_string();
    let mut args = vec![
        "env".to_owned(),
        format!("PROJECT={}", text(root)),
        format!("OWNER={owner}"),
        format!("CARGO_HOME={}", text(&cargo_home)),
        format!("CARGO_TARGET_DIR={}", text(&workspace.target())),
        format!("RUST={}", text(&toolchain.sysroot.join("bin"))),
        format!("MIRROR={}", mirrors.main),
        "bash".to_owned(),
        "/project/vagrant/tests/provision.sh".to_owned(),
    ];
    args.extend(mounts.iter().map(|folder| text(folder)));
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let status = tree
        .command_with(workspace, &mounts, &args)?
        .status()
        .context("unshare cannot be started")?;
    let failure = (!status.success()).then(|| "provisioning: the reason stands above".to_owned());
    Ok(failure.into_iter().collect())
}

/// Where cargo keeps the sources of dependencies.
fn cargo_home() -> Result<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set, so cargo's folder cannot be found")
}
