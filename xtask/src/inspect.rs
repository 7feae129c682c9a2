//! `cargo xtask inspect LAB`: builds a lab and has the program `inspect` look at the lab's eBPF object; with `--kernel`,
//! at the objects of all labs in virtual machines.

mod verified;

use std::{
    ffi::OsString,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use self::verified::{Judgements, Record};
use crate::{
    cargo, interrupt,
    labs::{self, Lab},
    privilege::{Privilege, become_command},
    setup, terminal, vm,
    workspace::Workspace,
};

/// Which lab, and what to show of it.
#[derive(Args)]
pub struct Options {
    /// The lab: its number as in lab01, or the name of its folder. With --kernel, all of them if none is named.
    #[arg(required_unless_present = "kernel")]
    lab: Option<String>,

    /// How many instructions the verifiers of other kernels walk through, compared with what is recorded: a series such
    /// as 5.10, several with commas between them, `newest`, `all`, or an image such as ./bzImage.
    #[arg(long, value_name = "VERSION|all|FILE", conflicts_with_all = ["json", "graph", "object", "program"])]
    kernel: Option<String>,

    /// Record what was seen, instead of comparing.
    #[arg(long, requires = "kernel")]
    bless: bool,

    /// Why programs may have grown by more than a tenth.
    #[arg(long, value_name = "TEXT", requires = "bless")]
    reason: Option<String>,

    /// Print JSON.
    #[arg(long, conflicts_with = "graph")]
    json: bool,

    /// Write the programs' control-flow graphs to this file instead, for Graphviz: `dot -Tsvg FILE`.
    #[arg(long, value_name = "FILE")]
    graph: Option<PathBuf>,

    /// Which object, for a lab that has several; else the one that is called like the lab.
    #[arg(long, value_name = "NAME")]
    object: Option<String>,

    /// Only this program of the object.
    #[arg(long, value_name = "NAME")]
    program: Option<String>,
}

/// Builds the lab, finds its object and becomes `inspect`.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let labs = match &options.lab {
        Some(lab) => vec![labs::find(workspace, lab)?],
        None => labs::all(workspace)?,
    };
    setup::ensure(workspace)?;
    if let Some(kernel) = &options.kernel {
        return on_kernels(workspace, options, kernel, &labs);
    }
    let lab = labs.first().context("there are no labs")?;
    let built = cargo::build_programs(workspace, &lab.name, &[&lab.name, "inspect"], &[])?;
    let object = object_in(built.out_dir(&lab.name)?, &lab.name, options.object.as_deref())?;
    let inspect = built.program("inspect")?;
    let args = options.args(&object);
    Err(become_command(&mut options.command(inspect, &args)))
}

/// Has the verifiers of other kernels judge the labs' objects, and compares that with the record or writes it there.
fn on_kernels(workspace: &Workspace, options: &Options, kernel: &str, labs: &[Lab]) -> Result<ExitCode> {
    let machines = vm::Lab::obtain(workspace, kernel, None, vm::Processor::default())?;
    let mut programs = vec!["inspect"];
    programs.extend(labs.iter().map(|lab| lab.name.as_str()));
    let built = cargo::build_programs(workspace, "what is to be inspected", &programs, &[])?;
    let mut objects = Vec::new();
    for lab in labs {
        objects.extend(objects_in(built.out_dir(&lab.name)?)?);
    }
    let answers = machines.ask(workspace, built.program("inspect")?, &objects, &["--json"])?;
    if interrupt::happened() {
        return Ok(interrupt::status());
    }

    let mut record = Record::read(workspace.root())?;
    let (mut kernels, mut failures) = (Vec::new(), Vec::new());
    for answers in &answers {
        failures.extend(
            answers
                .failures
                .iter()
                .map(|failure| format!("Linux {}: {failure}", answers.kernel)),
        );
        let mut seen = Judgements::new();
        for output in &answers.outputs {
            match verified::judgements(output) {
                Ok(judgements) => seen.extend(judgements),
                Err(error) => failures.push(format!("Linux {}: {error:#}", answers.kernel)),
            }
        }
        if answers.is_of_debian() && options.bless {
            record.take_over(&answers.kernel, &seen, options.reason.as_deref())?;
        } else if answers.is_of_debian() {
            failures.extend(record.differences(&answers.kernel, &seen));
        }
        kernels.push((answers.kernel.clone(), seen));
    }
    println!("{}", verified::table(&kernels));
    let style = terminal::stdout();
    for failure in &failures {
        println!("{} {failure}", style.red("✗"));
    }
    if !failures.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    if options.bless {
        record.write(workspace.root())?;
        println!("{} was written.", verified::FILE);
    } else {
        println!(
            "No program has grown by more than a tenth of what {} says.",
            verified::FILE
        );
    }
    Ok(ExitCode::SUCCESS)
}

impl Options {
    fn args(&self, object: &Path) -> Vec<OsString> {
        let mut args = vec![object.as_os_str().to_owned()];
        if self.json {
            args.push("--json".into());
        }
        if let Some(file) = &self.graph {
            args.extend(["--graph".into(), file.as_os_str().to_owned()]);
        }
        if let Some(program) = &self.program {
            args.extend(["--program".into(), program.into()]);
        }
        args
    }

    /// Only root gets the verifier's judgement; a graph needs none, and its file shall belong to the user.
    fn command(&self, inspect: &Path, args: &[OsString]) -> Command {
        if self.graph.is_none()
            && let Ok(privilege) = Privilege::obtain("the verifier's judgement")
        {
            return privilege.command(inspect, args, &[]);
        }
        let mut command = Command::new(inspect);
        command.args(args);
        command
    }
}

/// The eBPF object among what a lab's build script has left: the only one, or the lab's main one, or the one named.
fn object_in(out_dir: &Path, lab: &str, name: Option<&str>) -> Result<PathBuf> {
    let mut objects = objects_in(out_dir)?;
    objects.retain(|path| name.is_none_or(|name| path.file_name().is_some_and(|file| file == name)));
    let main = objects.iter().find(|path| path.ends_with(lab));
    match (objects.as_slice(), main) {
        ([object], _) | (_, Some(object)) => Ok(object.clone()),
        ([], _) => bail!(
            "the build left no eBPF object{} in {}",
            name.map(|name| format!(" {name:?}")).unwrap_or_default(),
            out_dir.display()
        ),
        (several, None) => {
            let names = several.iter().filter_map(|path| path.file_name()?.to_str());
            bail!(
                "this lab has several objects: {}; name one by --object",
                names.collect::<Vec<_>>().join(", ")
            )
        }
    }
}

/// All eBPF objects that a lab's build script has left, in the order of their names.
fn objects_in(out_dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(out_dir).with_context(|| format!("{} cannot be read", out_dir.display()))?;
    let mut objects: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file() && is_ebpf_object(path))
        .collect();
    objects.sort();
    Ok(objects)
}

/// Whether a file is ELF for the machine eBPF: the machine's number stands at offset 18 of the header.
fn is_ebpf_object(path: &Path) -> bool {
    const MACHINE: u16 = 247;
    let mut header = [0; 20];
    fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut header))
        .is_ok()
        && header.starts_with(b"\x7fELF")
        && u16::from_le_bytes([header[18], header[19]]) == MACHINE
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head of an ELF file for this machine.
    fn elf(machine: u16) -> Vec<u8> {
        let mut header = b"\x7fELF\x02\x01\x01".to_vec();
        header.resize(18, 0);
        header.extend(machine.to_le_bytes());
        header.resize(64, 0);
        header
    }

    #[test]
    fn the_object_is_found_among_what_else_the_build_left() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("aya-build")).unwrap();
        fs::write(folder.path().join("bindings.rs"), "// ELF").unwrap();
        fs::write(folder.path().join("host"), elf(62)).unwrap();
        fs::write(folder.path().join("lab01"), elf(247)).unwrap();
        assert_eq!(
            object_in(folder.path(), "lab01", None).unwrap(),
            folder.path().join("lab01")
        );
    }

    #[test]
    fn a_build_without_object_is_told_by_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let error = object_in(folder.path(), "lab01", None).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("the build left no eBPF object in {}", folder.path().display())
        );
    }

    #[test]
    fn of_several_objects_the_one_called_like_the_lab_is_the_labs() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["lab01", "lab01-lookups"] {
            fs::write(folder.path().join(name), elf(247)).unwrap();
        }
        let path = |name| object_in(folder.path(), "lab01", name).unwrap();
        assert_eq!(path(None), folder.path().join("lab01"));
        assert_eq!(path(Some("lab01-lookups")), folder.path().join("lab01-lookups"));
    }

    #[test]
    fn of_several_objects_one_must_be_named() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["dns", "trace"] {
            fs::write(folder.path().join(name), elf(247)).unwrap();
        }
        let error = object_in(folder.path(), "lab01", None).unwrap_err().to_string();
        assert_eq!(error, "this lab has several objects: dns, trace; name one by --object");
        assert_eq!(
            object_in(folder.path(), "lab01", Some("trace")).unwrap(),
            folder.path().join("trace")
        );
    }
}
