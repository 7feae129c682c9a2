//! Shows an eBPF object: its sections, maps and programs, and, where it may load them, what the kernel's verifier says
//! of them. `cargo xtask inspect LAB` builds a lab and calls this on the lab's object.

mod bpf;
mod debug_info;
mod disassembly;
mod graph;
mod helpers;
mod kernel;
mod maps;
mod object_file;
mod program_kind;
mod report;
mod verifier_log;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;

use crate::{
    kernel::Kernel,
    object_file::{Linked, ObjectFile},
    report::Report,
};

/// Shows an eBPF object: sections, maps, programs, and what the kernel's verifier says of them.
///
/// The latter needs root; without it the rest is shown. What is loaded for it is attached to nothing and gone at
/// the end.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Options {
    /// The object: an ELF file for the eBPF machine.
    object: PathBuf,

    /// Print JSON.
    #[arg(long, conflicts_with = "graph")]
    json: bool,

    /// Write the programs' control-flow graphs to this file instead, for Graphviz: `dot -Tsvg FILE`.
    #[arg(long, value_name = "FILE")]
    graph: Option<PathBuf>,

    /// Only this program.
    #[arg(long, value_name = "NAME")]
    program: Option<String>,
}

fn main() -> ExitCode {
    end_with_the_reader();
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A reader that has seen enough, as `head` does, ends this program quietly; Rust would have it fail with a panic.
fn end_with_the_reader() {
    // SAFETY: the disposition is set to its default before there are other threads.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

fn run(options: &Options) -> Result<()> {
    let object = ObjectFile::read(&options.object)?;
    let mut programs = object.link()?;
    if let Some(name) = &options.program {
        only(&mut programs, name)?;
    }
    if let Some(file) = &options.graph {
        return write_graph(&object, &programs, file);
    }
    let kernel = Kernel::load(&object, &programs);
    let report = Report::new(&object, &programs, &kernel);
    if options.json {
        println!("{:#}", report.json());
    } else {
        print!("{}", report.text());
    }
    Ok(())
}

fn only(programs: &mut Vec<Linked>, name: &str) -> Result<()> {
    let known: Vec<_> = programs.iter().map(|program| program.name.clone()).collect();
    programs.retain(|program| program.name == name);
    if programs.is_empty() {
        bail!("the object has no program {name:?}; it has {}", known.join(", "));
    }
    Ok(())
}

fn write_graph(object: &ObjectFile, programs: &[Linked], file: &Path) -> Result<()> {
    let text = graph::dot(object, programs);
    fs::write(file, text).with_context(|| format!("{} cannot be written", file.display()))?;
    println!(
        "The control flow of {} is in {}; draw it with `dot -Tsvg {} -o graph.svg`.",
        programs
            .iter()
            .map(|program| program.name.as_str())
            .collect::<Vec<_>>()
            .join(", "),
        file.display(),
        file.display()
    );
    Ok(())
}
