//! The programs that `setup` installs into the project by `cargo install`, and whether they are there.

use std::{fs, path::PathBuf};

use crate::{toolchain::Toolchain, workspace::Workspace};

/// A program to be installed into `.tools`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// The crate, which is also the program's name.
    pub name: &'static str,
    /// The exact version.
    pub version: &'static str,
    /// What it is needed for, as it goes on after "because".
    pub purpose: &'static str,
    /// The LLVM that it must be built against; a tool that is not bound to one has none.
    pub llvm: Option<u32>,
    /// Whether it works so often that it is worth being optimized, which takes twice as long.
    pub optimized: bool,
}

/// Builds the guide.
pub const MDBOOK: Tool = Tool {
    name: "mdbook",
    version: "0.5.4",
    purpose: "it builds the guide",
    llvm: None,
    optimized: false,
};

/// Builds and runs the fuzz targets.
pub const CARGO_FUZZ: Tool = Tool {
    name: "cargo-fuzz",
    version: "0.13.2",
    purpose: "it builds and runs the fuzz targets",
    llvm: None,
    optimized: false,
};

/// The bpf-linker that reads the bitcode of this toolchain.
///
/// It loads the LLVM of the toolchain itself, so no LLVM need be installed, but each of its releases reads the bitcode
/// of one major version only.
pub fn bpf_linker(toolchain: &Toolchain) -> Result<Tool, String> {
    let version = match toolchain.llvm {
        Some(22) => "0.10.4",
        // By its release notes; tested with LLVM 22 only.
        Some(23) => "0.13.0",
        Some(other) => {
            return Err(format!(
                "no bpf-linker is known for LLVM {other}, which rustc {} uses; Rust 1.95 (LLVM 22) is known to work: \
                 `rustup toolchain install 1.95` and `cargo +1.95 xtask setup`",
                toolchain.release
            ));
        }
        None => {
            return Err(format!(
                "rustc {} does not say which LLVM it uses; Rust 1.95 is known to work: \
                 `rustup toolchain install 1.95` and `cargo +1.95 xtask setup`",
                toolchain.release
            ));
        }
    };
    Ok(Tool {
        name: "bpf-linker",
        version,
        purpose: "it links eBPF programs; rustc brings no linker for them",
        llvm: toolchain.llvm,
        optimized: true,
    })
}

impl Tool {
    /// Whether exactly this tool is installed in the project.
    pub fn is_installed(&self, workspace: &Workspace) -> bool {
        workspace.tool(self.name).is_file()
            && self.is_version_recorded(workspace)
            && (self.llvm.is_none() || self.llvm == recorded_llvm(workspace))
    }

    /// Cargo keeps the list of what it installed into a folder; its lines read `"bpf-linker 0.10.4 (…)" = […]`.
    fn is_version_recorded(&self, workspace: &Workspace) -> bool {
        let entry = format!("\"{} {} (", self.name, self.version);
        fs::read_to_string(workspace.tools().join(".crates.toml"))
            .is_ok_and(|installed| installed.lines().any(|line| line.starts_with(&entry)))
    }
}

/// The LLVM that the project's bpf-linker was built for; `None` if none is recorded.
pub fn recorded_llvm(workspace: &Workspace) -> Option<u32> {
    fs::read_to_string(llvm_record(workspace)).ok()?.trim().parse().ok()
}

/// The file beside the project's bpf-linker that says which LLVM it was built for.
pub fn llvm_record(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("bpf-linker.llvm")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toolchain(llvm: Option<u32>) -> Toolchain {
        Toolchain {
            release: "1.95.0".into(),
            llvm,
            sysroot: PathBuf::from("/opt/rust"),
        }
    }

    /// A project with a bpf-linker, which cargo recorded as `version`, built for `llvm`.
    fn installed(version: &str, llvm: Option<u32>) -> (tempfile::TempDir, Workspace) {
        let folder = tempfile::tempdir().unwrap();
        let workspace = Workspace::at(folder.path());
        fs::create_dir_all(workspace.tools().join("bin")).unwrap();
        fs::write(workspace.tool("bpf-linker"), "").unwrap();
        let list = format!("[v1]\n\"bpf-linker {version} (registry+https://example.com)\" = [\"bpf-linker\"]\n");
        fs::write(workspace.tools().join(".crates.toml"), list).unwrap();
        if let Some(llvm) = llvm {
            fs::write(workspace.tools().join("bpf-linker.llvm"), format!("{llvm}\n")).unwrap();
        }
        (folder, workspace)
    }

    #[test]
    fn bpf_linker_is_chosen_by_the_llvm_of_rustc() {
        assert_eq!(bpf_linker(&toolchain(Some(22))).unwrap().version, "0.10.4");
        assert_eq!(bpf_linker(&toolchain(Some(23))).unwrap().version, "0.13.0");
    }

    #[test]
    fn an_unknown_llvm_is_refused_with_a_release_that_works() {
        let error = bpf_linker(&toolchain(Some(31))).unwrap_err();
        assert!(
            error.contains("LLVM 31") && error.contains("cargo +1.95 xtask setup"),
            "{error}"
        );
        assert!(bpf_linker(&toolchain(None)).unwrap_err().contains("does not say"));
    }

    #[test]
    fn the_right_version_for_the_right_llvm_is_installed() {
        let (_folder, workspace) = installed("0.10.4", Some(22));
        assert!(bpf_linker(&toolchain(Some(22))).unwrap().is_installed(&workspace));
    }

    #[test]
    fn a_linker_for_another_llvm_or_of_another_version_or_without_record_is_not_it() {
        let wanted = bpf_linker(&toolchain(Some(22))).unwrap();
        for (version, llvm) in [
            ("0.10.4", Some(21)),
            ("0.10.40", Some(22)),
            ("0.9.0", Some(22)),
            ("0.10.4", None),
        ] {
            let (_folder, workspace) = installed(version, llvm);
            assert!(!wanted.is_installed(&workspace), "{version} for LLVM {llvm:?}");
        }
    }

    #[test]
    fn a_record_without_the_program_is_no_installation() {
        let (_folder, workspace) = installed("0.10.4", Some(22));
        fs::remove_file(workspace.tool("bpf-linker")).unwrap();
        assert!(!bpf_linker(&toolchain(Some(22))).unwrap().is_installed(&workspace));
    }
}
