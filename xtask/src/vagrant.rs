//! `cargo xtask vagrant-test`: tries the virtual machine in `vagrant/` (Z14), with programs of Debian that are unpacked into
//! the project, and in namespaces of its own: nothing is installed on this machine, and nothing is left running.

mod provision;
mod tree;
mod validate;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use self::tree::Tree;
use crate::{apt::Mirrors, terminal, workspace::Workspace};

/// What to try.
#[derive(Args)]
pub struct Options {
    /// Only what takes a minute or two: the Vagrantfile with and without mistakes, the scripts, provisioning twice.
    #[arg(long)]
    quick: bool,

    /// With the box that the last run has built.
    #[arg(long, conflicts_with = "quick")]
    keep_box: bool,
}

/// The box that the test builds.
const BOX: &str = "vagrant/boxes/ebpf-labs-libvirt-amd64.box";

/// Runs the command.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let tree = Tree::obtain(workspace)?;
    if options.quick {
        return quick(workspace, &tree);
    }
    whole(workspace, &tree, options.keep_box)
}

/// The checks that continuous integration makes.
fn quick(workspace: &Workspace, tree: &Tree) -> Result<ExitCode> {
    heading("the Vagrantfile, as it is and with mistakes");
    let mut failures = validate::all(tree, workspace)?;
    heading("shellcheck");
    failures.extend(validate::scripts(tree, workspace)?);
    heading("provisioning a fresh Debian twice");
    failures.extend(provision::twice(tree, workspace)?);
    if failures.is_empty() {
        println!("\nThe virtual machine's files are as they should be.");
        return Ok(ExitCode::SUCCESS);
    }
    println!();
    for failure in &failures {
        println!("{} {failure}", terminal::stdout().red("✗"));
    }
    Ok(ExitCode::FAILURE)
}

/// Builds the box and leads a machine made of it through its life.
fn whole(workspace: &Workspace, tree: &Tree, keep_box: bool) -> Result<ExitCode> {
    let work = workspace.target().join("vagrant");
    fs::create_dir_all(&work).with_context(|| format!("{} cannot be created", work.display()))?;
    let certificates = certificates_of_this_machine(&work)?;
    let mirrors = Mirrors::of_this_machine()?;
    if !(keep_box && workspace.root().join(BOX).is_file()) {
        heading("building the box");
        let mut args = vec!["bash", "/project/vagrant/build-box.sh", "--mirror", &mirrors.main];
        if let Some(security) = &mirrors.security {
            args.extend(["--security-mirror", security]);
        }
        if certificates {
            args.extend(["--ca", "/scratch/ca.crt"]);
        }
        succeed(tree, workspace, "building a box", &args)?;
    }
    heading("vagrant up, lab01, vagrant destroy");
    let mut args = vec!["bash", "/project/vagrant/tests/up.sh"];
    if certificates {
        args.push("/scratch/ca.crt");
    }
    succeed(tree, workspace, "running a machine", &args)?;
    println!("\nA machine was made of nothing but this project and Debian's packages, and has run lab01.");
    Ok(ExitCode::SUCCESS)
}

fn succeed(tree: &Tree, workspace: &Workspace, what: &str, args: &[&str]) -> Result<()> {
    let status = tree
        .command(workspace, args)?
        .status()
        .context("unshare cannot be started")?;
    if !status.success() {
        bail!("{what} failed; the reasons stand above");
    }
    Ok(())
}

/// Collects the certificates that this machine's administrator has added, which stand for a proxy that opens encrypted
/// connections; a machine behind it must trust them too. False if there are none.
fn certificates_of_this_machine(work: &Path) -> Result<bool> {
    let file = work.join("ca.crt");
    let folder = fs::read_dir("/usr/local/share/ca-certificates");
    let mut found: Vec<PathBuf> = folder
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "crt"));
    found.sort();
    let mut all = String::new();
    for path in &found {
        all += &fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        all.push('\n');
    }
    fs::write(&file, &all).with_context(|| format!("{} cannot be written", file.display()))?;
    Ok(!all.is_empty())
}

fn heading(what: &str) {
    println!("\n{}", terminal::stdout().bold(&format!("── {what}")));
}
