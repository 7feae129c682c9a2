//! Lets bpf-linker find the LLVM of a Rust that keeps it among the system's libraries, as Debian's does.
//!
//! bpf-linker loads rustc's LLVM, and looks for it in the folder `lib` beside each folder on `PATH`. There it lies in
//! toolchains of rustup; for others, the project's own `.tools/lib`, beside `.tools/bin`, gets a link to it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{toolchain::Toolchain, workspace::Workspace};

/// The LLVM that rustc loads, if bpf-linker would not find it by itself.
pub fn elsewhere(toolchain: &Toolchain) -> Option<PathBuf> {
    let beside = fs::read_dir(toolchain.sysroot.join("lib"));
    if beside.is_ok_and(|mut files| files.any(|file| file.is_ok_and(|file| is_llvm(&file.path())))) {
        return None;
    }
    let output = Command::new("ldd")
        .arg(toolchain.sysroot.join("bin/rustc"))
        .env("LC_ALL", "C")
        .output();
    of_ldd(&String::from_utf8_lossy(&output.ok()?.stdout))
}

/// Whether the project's folder has the link to `library`.
pub fn is_linked(workspace: &Workspace, library: &Path) -> bool {
    fs::read_link(place(workspace, library)).is_ok_and(|goal| goal == library)
}

/// Makes the link, and removes those to other releases.
pub fn link(workspace: &Workspace, library: &Path) -> Result<()> {
    let place = place(workspace, library);
    let folder = place.parent().unwrap_or(&place);
    let make = || {
        fs::create_dir_all(folder)?;
        for file in fs::read_dir(folder)? {
            let path = file?.path();
            if is_llvm(&path) && path.is_symlink() {
                fs::remove_file(path)?;
            }
        }
        symlink(library, &place)
    };
    make().with_context(|| format!("{} cannot be linked to {}", place.display(), library.display()))
}

fn place(workspace: &Workspace, library: &Path) -> PathBuf {
    let folder = workspace.tools().join("lib");
    folder.join(library.file_name().unwrap_or_default())
}

fn is_llvm(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("libLLVM"))
}

fn of_ldd(printed: &str) -> Option<PathBuf> {
    printed.lines().find_map(|line| {
        let (_, path) = line.split_once("=> ")?;
        let path = PathBuf::from(path.split(" (").next()?.trim());
        is_llvm(&path).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toolchain(sysroot: &Path) -> Toolchain {
        Toolchain {
            release: "1.96.0".into(),
            llvm: Some(22),
            sysroot: sysroot.to_owned(),
        }
    }

    #[test]
    fn the_llvm_that_rustc_loads_is_read_from_what_ldd_prints() {
        let printed = "\tlibrustc_driver-1.so => /usr/lib/librustc_driver-1.so (0x00007f)\n\
                       \tlibLLVM.so.22.1 => /usr/lib/x86_64-linux-gnu/libLLVM.so.22.1 (0x00007f)\n";
        let expected = Path::new("/usr/lib/x86_64-linux-gnu/libLLVM.so.22.1");
        assert_eq!(of_ldd(printed).unwrap(), expected);
        assert_eq!(of_ldd("\tstatically linked\n"), None);
    }

    #[test]
    fn a_toolchain_with_its_own_llvm_needs_no_link() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("lib")).unwrap();
        fs::write(folder.path().join("lib/libLLVM.so.22.1-rust-1.95.0-stable"), "").unwrap();
        assert_eq!(elsewhere(&toolchain(folder.path())), None);
    }

    #[test]
    fn a_link_to_an_older_llvm_gives_way_to_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let workspace = Workspace::at(folder.path());
        let [old, new] = ["/usr/lib/libLLVM.so.22.1", "/usr/lib/libLLVM.so.23.1"].map(Path::new);
        link(&workspace, old).unwrap();
        assert!(is_linked(&workspace, old) && !is_linked(&workspace, new));
        link(&workspace, new).unwrap();
        assert!(!is_linked(&workspace, old) && is_linked(&workspace, new));
    }
}
