//! `cargo xtask setup`: installs what building the labs needs and is missing, after saying what and why.

mod debian;
mod install;
mod llvm;
mod rust_src;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;

use crate::{
    machine::Machine,
    terminal,
    toolchain::Toolchain,
    tools::{self, CARGO_FUZZ, MDBOOK, Tool},
    vm,
    workspace::Workspace,
};

/// What to install beyond what the labs need.
#[derive(Args)]
pub struct Options {
    /// Also install mdbook, which builds the guide.
    #[arg(long)]
    book: bool,

    /// Also install cargo-fuzz, which builds and runs the fuzz targets.
    #[arg(long)]
    fuzz: bool,

    /// Also download the kernels that `cargo xtask test --kernel all` tests on, or newer ones, and QEMU.
    #[arg(long)]
    kernels: bool,
}

/// One thing that may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    RustSrc,
    Tool(Tool),
    /// The LLVM of a rustc that keeps it where bpf-linker does not look.
    Llvm(PathBuf),
}

/// Runs the command.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let toolchain = Toolchain::of(&Machine::here())?;
    let extras = [(options.book, MDBOOK), (options.fuzz, CARGO_FUZZ)];
    let extras = extras.into_iter().filter_map(|(wanted, tool)| wanted.then_some(tool));
    let parts = needed(&toolchain, extras)?;

    if options.kernels {
        vm::prepare(workspace)?;
    }
    let missing = missing(&parts, workspace, &toolchain);
    if missing.is_empty() {
        println!("Nothing to do: {}.", in_words(&parts, &toolchain));
        return Ok(ExitCode::SUCCESS);
    }
    install_all(&missing, workspace, &toolchain)?;
    println!("Done. `cargo xtask doctor` checks the rest of the machine.");
    Ok(ExitCode::SUCCESS)
}

/// Installs what building the labs needs, if any of it is missing; silent and quick where nothing is.
pub fn ensure(workspace: &Workspace) -> Result<()> {
    ensure_with(workspace, [])
}

/// As [`ensure`], with further tools.
pub fn ensure_with(workspace: &Workspace, extras: impl IntoIterator<Item = Tool>) -> Result<()> {
    let toolchain = Toolchain::of(&Machine::here())?;
    let parts = needed(&toolchain, extras)?;
    let missing = missing(&parts, workspace, &toolchain);
    if missing.is_empty() {
        return Ok(());
    }
    install_all(&missing, workspace, &toolchain)
}

fn needed(toolchain: &Toolchain, extras: impl IntoIterator<Item = Tool>) -> Result<Vec<Part>> {
    let linker = tools::bpf_linker(toolchain).map_err(|cause| anyhow!(cause))?;
    let tools = [linker].into_iter().chain(extras).map(Part::Tool);
    let llvm = llvm::elsewhere(toolchain).map(Part::Llvm);
    Ok([Part::RustSrc].into_iter().chain(tools).chain(llvm).collect())
}

fn missing(parts: &[Part], workspace: &Workspace, toolchain: &Toolchain) -> Vec<Part> {
    let is_there = |part: &Part| match part {
        Part::RustSrc => toolchain.has_library_sources(),
        Part::Tool(tool) => tool.is_installed(workspace),
        Part::Llvm(library) => llvm::is_linked(workspace, library),
    };
    parts.iter().filter(|part| !is_there(part)).cloned().collect()
}

fn install_all(parts: &[Part], workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    let style = terminal::stderr();
    eprintln!("{}", style.bold("To be installed:"));
    for part in parts {
        eprintln!("  {}", describe(part, workspace, toolchain));
    }
    let _alone = lock(workspace)?;
    // Somebody else may have installed it while we waited for the lock.
    for part in missing(parts, workspace, toolchain) {
        match part {
            Part::RustSrc => rust_src::install(workspace, toolchain)?,
            Part::Tool(tool) => install::install(workspace, &tool)?,
            Part::Llvm(library) => llvm::link(workspace, &library)?,
        }
    }
    Ok(())
}

fn describe(part: &Part, workspace: &Workspace, toolchain: &Toolchain) -> String {
    match part {
        Part::RustSrc => format!(
            "rust-src of Rust {}, because `core` is compiled for eBPF from its sources",
            toolchain.release
        ),
        Part::Tool(tool) => {
            let place = workspace.tools();
            let replaced = tool
                .llvm
                .zip(tools::recorded_llvm(workspace))
                .filter(|(wanted, found)| wanted != found)
                .map(|(wanted, found)| format!(" (the one there is for LLVM {found}, rustc now has {wanted})"));
            format!(
                "{} {} into {}, because {}{}",
                tool.name,
                tool.version,
                place.display(),
                tool.purpose,
                replaced.unwrap_or_default()
            )
        }
        Part::Llvm(library) => format!(
            "a link to {} into {}, because bpf-linker loads it and looks for it there",
            library.display(),
            workspace.tools().join("lib").display()
        ),
    }
}

fn in_words(parts: &[Part], toolchain: &Toolchain) -> String {
    let names = parts.iter().filter_map(|part| {
        Some(match part {
            Part::Llvm(_) => return None,
            Part::RustSrc => format!("rust-src of Rust {}", toolchain.release),
            Part::Tool(Tool {
                name,
                version,
                llvm: Some(llvm),
                ..
            }) => format!("{name} {version} for LLVM {llvm}"),
            Part::Tool(Tool { name, version, .. }) => format!("{name} {version}"),
        })
    });
    format!("{} are installed", names.collect::<Vec<_>>().join(", "))
}

/// Keeps two runs from installing at the same time; held until dropped.
pub fn lock(workspace: &Workspace) -> Result<fs::File> {
    let folder = workspace.tools();
    fs::create_dir_all(&folder).with_context(|| {
        format!(
            "{} cannot be created; run this as the owner of the project's folder",
            folder.display()
        )
    })?;
    let file = fs::File::create(folder.join(".lock")).with_context(|| {
        format!(
            "{} cannot be written; run this as the owner of the project's folder",
            folder.display()
        )
    })?;
    if file.try_lock().is_err() {
        eprintln!("  waiting for another setup to finish …");
        file.lock().context("the setup's lock cannot be taken")?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn toolchain(sysroot: &Path) -> Toolchain {
        Toolchain {
            release: "1.95.0".into(),
            llvm: Some(22),
            sysroot: sysroot.to_owned(),
        }
    }

    #[test]
    fn on_a_bare_machine_both_rust_src_and_bpf_linker_are_missing() {
        let folder = tempfile::tempdir().unwrap();
        let toolchain = toolchain(folder.path());
        let parts = needed(&toolchain, []).unwrap();
        assert_eq!(missing(&parts, &Workspace::at(folder.path()), &toolchain), parts);
        assert_eq!(parts.len(), 2);
    }

    #[test]
    fn sources_without_their_lock_file_do_not_count_as_rust_src() {
        let folder = tempfile::tempdir().unwrap();
        let toolchain = toolchain(folder.path());
        let library = toolchain.library_sources();
        fs::create_dir_all(library.join("core/src")).unwrap();
        fs::write(library.join("core/src/lib.rs"), "").unwrap();
        assert!(!toolchain.has_library_sources());
        fs::write(library.join("Cargo.lock"), "").unwrap();
        assert!(toolchain.has_library_sources());
    }

    #[test]
    fn what_is_installed_is_told_with_its_reason() {
        let workspace = Workspace::at("/project");
        let toolchain = toolchain(&PathBuf::from("/opt/rust"));
        let parts = needed(&toolchain, [MDBOOK]).unwrap();
        let told: Vec<_> = parts
            .iter()
            .map(|part| describe(part, &workspace, &toolchain))
            .collect();
        assert_eq!(
            told,
            [
                "rust-src of Rust 1.95.0, because `core` is compiled for eBPF from its sources",
                "bpf-linker 0.10.4 into /project/.tools, because it links eBPF programs; rustc brings no linker for them",
                "mdbook 0.5.4 into /project/.tools, because it builds the guide",
            ]
        );
    }
}
