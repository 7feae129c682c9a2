//! Builds by cargo, with its progress visible, and what came of it, read from cargo's JSON messages.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{toolchain, workspace::Workspace};

/// A program that a build made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// The package's name.
    pub package: String,
    /// The package's folder.
    pub folder: PathBuf,
    /// The name of the target, such as `kernel`.
    pub target: String,
    /// The kind of the target: `bin`, `test`, `bench`, `lib`, …
    pub kind: String,
    /// The program.
    pub path: PathBuf,
}

/// What a build made.
#[derive(Debug, Default)]
pub struct Built {
    /// The programs.
    pub executables: Vec<Executable>,
    /// The folders into which build scripts wrote, by package.
    pub out_dirs: Vec<(String, PathBuf)>,
}

/// cargo, to be run in the workspace's folder.
pub fn command(workspace: &Workspace) -> Command {
    let mut command = Command::new(toolchain::cargo());
    command.current_dir(workspace.root());
    command
}

/// Runs `cargo ARGS`, which must be a build of some kind; `what` is what an error says cannot be built.
///
/// The compiler's messages and cargo's progress go to standard error, as they would without us.
pub fn build<A: AsRef<OsStr>>(workspace: &Workspace, what: &str, args: &[A]) -> Result<Built> {
    let mut command = command(workspace);
    command.args(args);
    build_by(command, what)
}

/// As [`build`], by a cargo that has its arguments already.
pub fn build_by(mut cargo: Command, what: &str) -> Result<Built> {
    let output = cargo
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cargo cannot be run; install Rust, for example from https://rustup.rs")?;
    if !output.status.success() {
        bail!("{what} cannot be built; the reasons stand above");
    }
    Ok(Built::parse(&String::from_utf8_lossy(&output.stdout)))
}

/// Builds the programs of these packages of the workspace; `args` are further ones for `cargo build`.
///
/// All packages are named to cargo, and only the programs chosen: libraries are then built with the features that any of
/// the packages wants, as they are for the tests, and not once more for each program.
pub fn build_programs(workspace: &Workspace, what: &str, names: &[&str], args: &[&str]) -> Result<Built> {
    let packages = packages(workspace)?;
    let mut all = vec!["build"];
    all.extend(args);
    for package in packages.iter().filter(|package| package.is_default) {
        all.extend(["--package", &package.name]);
        if names.contains(&package.name.as_str()) {
            all.extend(package.programs().flat_map(|program| ["--bin", program]));
        }
    }
    build(workspace, what, &all)
}

impl Built {
    fn parse(messages: &str) -> Self {
        let mut built = Self::default();
        // Lines that are no JSON come from build scripts; they are none of our business.
        for message in messages
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        {
            match message["reason"].as_str() {
                Some("compiler-artifact") => built.executables.extend(executable(&message)),
                Some("build-script-executed") => built.out_dirs.extend(out_dir(&message)),
                _ => {}
            }
        }
        built
    }

    /// The program that the package `name` is there for: the one of its own name, else its only one.
    pub fn program(&self, name: &str) -> Result<&Path> {
        let of_package = || {
            self.executables
                .iter()
                .filter(|program| program.package == name && program.kind == "bin")
        };
        of_package()
            .find(|program| program.target == name)
            .or_else(|| of_package().next())
            .map(|program| program.path.as_path())
            .with_context(|| format!("the package {name} has no program to run"))
    }

    /// The folder into which the build script of the package `name` wrote.
    pub fn out_dir(&self, name: &str) -> Result<&Path> {
        self.out_dirs
            .iter()
            .find(|(package, _)| package == name)
            .map(|(_, folder)| folder.as_path())
            .with_context(|| format!("the package {name} has no build script, so it builds no eBPF object"))
    }
}

fn executable(message: &Value) -> Option<Executable> {
    let target = &message["target"];
    Some(Executable {
        package: package_name(message["package_id"].as_str()?).to_owned(),
        folder: Path::new(message["manifest_path"].as_str()?).parent()?.to_owned(),
        target: target["name"].as_str()?.to_owned(),
        kind: target["kind"][0].as_str()?.to_owned(),
        path: PathBuf::from(message["executable"].as_str()?),
    })
}

fn out_dir(message: &Value) -> Option<(String, PathBuf)> {
    let package = package_name(message["package_id"].as_str()?).to_owned();
    Some((package, PathBuf::from(message["out_dir"].as_str()?)))
}

/// A package id is `path+file:///folder/name#1.0.0`, or `path+file:///folder#name@1.0.0` where the two differ.
fn package_name(id: &str) -> &str {
    let (url, fragment) = id.split_once('#').unwrap_or((id, ""));
    match fragment.split_once('@') {
        Some((name, _version)) => name,
        None => url.rsplit('/').next().unwrap_or(url),
    }
}

/// A package of the workspace.
#[derive(Clone, Debug)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Its targets, as kind and name.
    pub targets: Vec<(String, String)>,
    /// Whether a plain `cargo build` builds it; those for the BPF target are none of these.
    pub is_default: bool,
}

impl Package {
    /// The names of its programs.
    fn programs(&self) -> impl Iterator<Item = &str> {
        let is_program = |target: &&(String, String)| target.0 == "bin";
        self.targets.iter().filter(is_program).map(|(_, name)| name.as_str())
    }

    /// Whether it has a target of this kind and name.
    pub fn has_target(&self, kind: &str, name: &str) -> bool {
        self.targets.iter().any(|target| target.0 == kind && target.1 == name)
    }
}

/// The packages of the workspace.
pub fn packages(workspace: &Workspace) -> Result<Vec<Package>> {
    let output = command(workspace)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo cannot be run; install Rust, for example from https://rustup.rs")?;
    if !output.status.success() {
        bail!("cargo cannot read the workspace; the reasons stand above");
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
    Ok(parse_packages(&metadata))
}

fn parse_packages(metadata: &Value) -> Vec<Package> {
    let no_entries = Vec::new();
    let list = |value: &Value| value.as_array().unwrap_or(&no_entries).clone();
    let defaults = list(&metadata["workspace_default_members"]);
    list(&metadata["packages"])
        .iter()
        .filter_map(|package| {
            let targets = list(&package["targets"]);
            let targets = targets.iter().filter_map(|target| {
                let kind = target["kind"][0].as_str()?.to_owned();
                Some((kind, target["name"].as_str()?.to_owned()))
            });
            Some(Package {
                name: package["name"].as_str()?.to_owned(),
                folder: Path::new(package["manifest_path"].as_str()?).parent()?.to_owned(),
                targets: targets.collect(),
                is_default: defaults.contains(&package["id"]),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: &str = concat!(
        "a line of a build script\n",
        r#"{"reason":"build-script-executed","package_id":"path+file:///w/lab01-count-packets#0.1.0","out_dir":"/w/target/build/lab01/out"}"#,
        "\n",
        r#"{"reason":"compiler-artifact","package_id":"path+file:///w/lab01-count-packets#0.1.0","manifest_path":"/w/lab01-count-packets/Cargo.toml","target":{"kind":["lib"],"name":"lab01_count_packets"},"executable":null}"#,
        "\n",
        r#"{"reason":"compiler-artifact","package_id":"path+file:///w/lab01-count-packets#0.1.0","manifest_path":"/w/lab01-count-packets/Cargo.toml","target":{"kind":["test"],"name":"kernel"},"executable":"/w/target/debug/deps/kernel-1"}"#,
        "\n",
        r#"{"reason":"compiler-artifact","package_id":"path+file:///w/lab01-count-packets#0.1.0","manifest_path":"/w/lab01-count-packets/Cargo.toml","target":{"kind":["bin"],"name":"lab01-count-packets"},"executable":"/w/target/release/lab01-count-packets"}"#,
        "\n",
    );

    #[test]
    fn programs_and_out_dirs_are_read_from_cargos_messages() {
        let built = Built::parse(MESSAGES);
        assert_eq!(built.executables.len(), 2);
        let program = built.program("lab01-count-packets").unwrap();
        assert_eq!(program, Path::new("/w/target/release/lab01-count-packets"));
        let out_dir = built.out_dir("lab01-count-packets").unwrap();
        assert_eq!(out_dir, Path::new("/w/target/build/lab01/out"));
        assert_eq!(built.executables[0].folder, Path::new("/w/lab01-count-packets"));
    }

    #[test]
    fn a_package_without_program_is_an_error_that_names_it() {
        let error = Built::parse(MESSAGES).program("testbed").unwrap_err();
        assert_eq!(error.to_string(), "the package testbed has no program to run");
    }

    #[test]
    fn a_package_is_named_by_its_id_in_either_form() {
        assert_eq!(package_name("path+file:///w/testbed#0.1.0"), "testbed");
        assert_eq!(
            package_name("path+file:///w/lab01/common#lab01-common@0.1.0"),
            "lab01-common"
        );
    }

    #[test]
    fn packages_know_their_targets_and_whether_they_are_default() {
        let metadata = serde_json::json!({
            "workspace_default_members": ["a"],
            "packages": [
                {"id": "a", "name": "lab01", "manifest_path": "/w/lab01/Cargo.toml",
                 "targets": [{"kind": ["test"], "name": "kernel"}]},
                {"id": "b", "name": "lab01-ebpf", "manifest_path": "/w/lab01/ebpf/Cargo.toml", "targets": []},
            ],
        });
        let packages = parse_packages(&metadata);
        assert!(packages[0].is_default && packages[0].has_target("test", "kernel"));
        assert!(!packages[1].is_default && !packages[1].has_target("test", "kernel"));
    }
}
