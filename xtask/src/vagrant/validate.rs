//! Whether Vagrant accepts the Vagrantfile, and refuses it with mistakes: a check that accepts everything is none.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path, process::Output};

use anyhow::{Context as _, Result, bail};

use super::tree::Tree;
use crate::{terminal, workspace::Workspace};

/// A way to call Vagrant with the Vagrantfile, or one with a mistake.
struct Case {
    /// What it is about.
    name: &'static str,
    provider: &'static str,
    /// What is set from outside.
    variables: &'static [(&'static str, &'static str)],
    /// What is written instead of what in the Vagrantfile.
    mistake: Option<(&'static str, &'static str)>,
    /// What Vagrant says; nothing if it accepts it.
    refusal: Option<&'static str>,
}

const fn good(name: &'static str, provider: &'static str, variables: &'static [(&'static str, &'static str)]) -> Case {
    Case {
        name,
        provider,
        variables,
        mistake: None,
        refusal: None,
    }
}

const fn set_wrongly(
    name: &'static str,
    variables: &'static [(&'static str, &'static str)],
    refusal: &'static str,
) -> Case {
    Case {
        name,
        provider: "libvirt",
        variables,
        mistake: None,
        refusal: Some(refusal),
    }
}

const fn written_wrongly(
    name: &'static str,
    provider: &'static str,
    mistake: (&'static str, &'static str),
    refusal: &'static str,
) -> Case {
    Case {
        name,
        provider,
        variables: &[],
        mistake: Some(mistake),
        refusal: Some(refusal),
    }
}

const CASES: [Case; 14] = [
    good("with libvirt", "libvirt", &[]),
    good("with VirtualBox", "virtualbox", &[]),
    good("emulated", "libvirt", &[("EBPF_VM_DRIVER", "qemu")]),
    good(
        "with a box from elsewhere",
        "libvirt",
        &[
            ("EBPF_VM_BOX", "mine"),
            ("EBPF_VM_BOX_URL", "file:///boxes/mine.box"),
            ("EBPF_VM_MEMORY", "2048"),
        ],
    ),
    set_wrongly(
        "no number of CPUs",
        &[("EBPF_VM_CPUS", "two")],
        "EBPF_VM_CPUS is \"two\"; it must be a whole number",
    ),
    set_wrongly(
        "too little memory",
        &[("EBPF_VM_MEMORY", "64")],
        "it must be a whole number, 1024 or more",
    ),
    set_wrongly(
        "an unknown driver",
        &[("EBPF_VM_DRIVER", "xen")],
        "it must be kvm or qemu",
    ),
    set_wrongly(
        "a URL without a name",
        &[("EBPF_VM_BOX_URL", "file:///x.box")],
        "but not EBPF_VM_BOX",
    ),
    set_wrongly(
        "no such file",
        &[("EBPF_VM_CA", "/nowhere/ca.crt")],
        "/nowhere/ca.crt, which is no file",
    ),
    set_wrongly(
        "no such setting",
        &[("EBPF_VM_CPU", "2")],
        "EBPF_VM_CPU: no such setting; there are EBPF_VM_BOX,",
    ),
    written_wrongly(
        "a misspelt setting of libvirt",
        "libvirt",
        ("libvirt.memory =", "libvirt.memroy ="),
        "settings shouldn't exist: memroy",
    ),
    written_wrongly(
        "a misspelt setting of VirtualBox",
        "virtualbox",
        ("virtualbox.cpus =", "virtualbox.cpu ="),
        "settings shouldn't exist: cpu",
    ),
    written_wrongly(
        "a misspelt setting of the machine",
        "libvirt",
        ("config.vm.boot_timeout", "config.vm.boot_time_out"),
        "settings shouldn't exist: boot_time_out",
    ),
    written_wrongly(
        "a shared folder that is not there",
        "libvirt",
        ("synced_folder \"..\",", "synced_folder \"../nowhere\","),
        "The host path of the shared folder is missing",
    ),
];

/// What is not as it should be, a line each.
pub fn all(tree: &Tree, workspace: &Workspace) -> Result<Vec<String>> {
    let text = fs::read_to_string(workspace.root().join("vagrant/Vagrantfile")).context("there is no Vagrantfile")?;
    let mut failures = Vec::new();
    for case in &CASES {
        let failure = judge(case, &validate(tree, workspace, case, &text)?);
        show(case.name, failure.as_deref());
        failures.extend(failure.map(|why| format!("the Vagrantfile, {}: {why}", case.name)));
    }
    Ok(failures)
}

/// What shellcheck has to say about the scripts.
pub fn scripts(tree: &Tree, workspace: &Workspace) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    for script in ["build-box.sh", "provision.sh", "tests/provision.sh", "tests/up.sh"] {
        let path = format!("/project/vagrant/{script}");
        let output = tree
            .command(workspace, &["shellcheck", &path])?
            .output()
            .context("unshare cannot be started")?;
        let failure = (!output.status.success()).then(|| said(&output));
        show(script, failure.as_deref());
        failures.extend(failure.map(|_| format!("vagrant/{script} does not satisfy shellcheck")));
    }
    Ok(failures)
}

/// Lets Vagrant read the text in the place of the Vagrantfile, in a copy of its folder.
fn validate(tree: &Tree, workspace: &Workspace, case: &Case, text: &str) -> Result<Output> {
    let text = match case.mistake {
        Some((right, _)) if !text.contains(right) => bail!("the Vagrantfile has no {right:?} for the test to break"),
        Some((right, wrong)) => text.replacen(right, wrong, 1),
        None => text.to_owned(),
    };
    let folder = workspace.target().join("vagrant/validate");
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(folder.join("Vagrantfile"), text))
        .and_then(|()| stand_in(&folder.join("VBoxManage")))
        .with_context(|| format!("{} cannot be written", folder.display()))?;
    let mut args = vec!["env".to_owned(), "--chdir=/scratch/validate".into()];
    args.push("PATH=/scratch/validate:/usr/sbin:/usr/bin".into());
    args.push(format!("VAGRANT_DEFAULT_PROVIDER={}", case.provider));
    args.extend(case.variables.iter().map(|(name, value)| format!("{name}={value}")));
    args.extend(["vagrant", "validate"].map(str::to_owned));
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    tree.command(workspace, &args)?
        .output()
        .context("unshare cannot be started")
}

/// Vagrant reads a provider's settings only where it finds the provider; a program that says its version will do.
fn stand_in(program: &Path) -> io::Result<()> {
    fs::write(program, "#!/bin/sh\necho 7.0.10r158379\n")?;
    fs::set_permissions(program, fs::Permissions::from_mode(0o755))
}

fn judge(case: &Case, output: &Output) -> Option<String> {
    let said = said(output);
    // Vagrant breaks long lines where it likes.
    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    match (case.refusal, output.status.success()) {
        (None, true) => None,
        (None, false) => Some(format!("it is refused: {said}")),
        (Some(_), true) => Some("it is accepted".into()),
        (Some(refusal), false) if words.contains(refusal) => None,
        (Some(refusal), false) => Some(format!("it is refused without saying {refusal:?}, but: {said}")),
    }
}

fn said(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    format!("{out}{err}").trim().to_owned()
}

fn show(what: &str, failure: Option<&str>) {
    let style = terminal::stdout();
    match failure {
        None => println!("{} {what}", style.green("✓")),
        Some(failure) => println!("{} {what}\n{failure}", style.red("✗")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn output(status: i32, said: &str) -> Output {
        Output {
            status: std::process::ExitStatus::from_raw(status << 8),
            stdout: Vec::new(),
            stderr: said.into(),
        }
    }

    #[test]
    fn a_mistake_that_is_accepted_or_refused_for_another_reason_is_a_failure() {
        let case = set_wrongly("x", &[], "settings shouldn't exist: y");
        assert_eq!(
            judge(&case, &output(1, "* The following settings\n  shouldn't exist: y\n")),
            None
        );
        assert_eq!(judge(&case, &output(0, "")), Some("it is accepted".into()));
        assert!(
            judge(&case, &output(1, "vagrant: not found"))
                .unwrap()
                .contains("vagrant: not found")
        );
    }

    #[test]
    fn what_should_be_accepted_and_is_refused_is_a_failure() {
        let case = good("x", "libvirt", &[]);
        assert_eq!(judge(&case, &output(0, "validated")), None);
        assert!(judge(&case, &output(1, "no")).unwrap().ends_with("no"));
    }

    #[test]
    fn every_mistake_can_be_made_in_the_vagrantfile() {
        let text = include_str!("../../../vagrant/Vagrantfile");
        for case in CASES {
            assert!(
                case.mistake
                    .is_none_or(|(right, wrong)| text.contains(right) && !text.contains(wrong)),
                "{}",
                case.name
            );
        }
    }
}
