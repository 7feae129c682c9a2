//! Gets the sources of the standard library, of which `core` is compiled for eBPF: by rustup, else from Debian's
//! source package of the very same version.

use std::{env, fs, os::unix::fs::symlink, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use super::debian;
use crate::{machine::find_in_path, progress, terminal, toolchain::Toolchain, workspace::Workspace};

/// Tries each way in turn; a way that fails says why before the next is tried.
pub fn install(workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    type Way = fn(&Workspace, &Toolchain) -> Result<()>;
    let ways: [(&str, Way); 2] = [("rustup", by_rustup), ("Debian's source package", from_debian)];
    let style = terminal::stderr();
    for (name, way) in ways {
        match way(workspace, toolchain) {
            Ok(()) if toolchain.has_library_sources() => {
                eprintln!(
                    "  {} rust-src of Rust {} by {name}",
                    style.green("✓"),
                    toolchain.release
                );
                return Ok(());
            }
            Ok(()) => eprintln!(
                "  – not by {name}: it left nothing in {}",
                toolchain.library_sources().display()
            ),
            Err(error) => eprintln!("  – not by {name}: {error:#}"),
        }
    }
    bail!(
        "rust-src of Rust {} could not be installed, for the reasons above; with a connection try `rustup component \
         add rust-src`, or on Debian take its own compiler with its sources (setup does not exchange compilers): \
         `apt-get install rustc-web cargo-web rust-web-src`, `rustup toolchain link debian /usr`, \
         `cargo +debian xtask setup`",
        toolchain.release
    )
}

fn by_rustup(workspace: &Workspace, _toolchain: &Toolchain) -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_default();
    let Some(rustup) = find_in_path("rustup", &path) else {
        bail!("rustup is not installed");
    };
    // Which toolchain: the one that cargo runs, which rustup hands down in RUSTUP_TOOLCHAIN.
    let mut command = Command::new(rustup);
    command
        .args(["component", "add", "rust-src"])
        .env("RUST_BACKTRACE", "0");
    let log = workspace.tools().join("log/rustup");
    progress::run("rustup component add rust-src", &mut command, &log)
}

fn from_debian(workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    let place = toolchain.library_sources();
    let library = debian::library_sources(workspace, &toolchain.release)?;
    link(&library, &place)
}

/// Makes `place` a link to `library`.
fn link(library: &Path, place: &Path) -> Result<()> {
    if place.is_symlink() {
        // A link of ours whose goal is gone, or it would have counted as installed.
        fs::remove_file(place).with_context(|| format!("the old link {} cannot be removed", place.display()))?;
    }
    let make = || {
        fs::create_dir_all(place.parent().unwrap_or(place))?;
        symlink(library, place)
    };
    make().with_context(|| {
        format!(
            "{} cannot be linked into the toolchain; as its owner run: mkdir -p {} && ln -s {} {}",
            library.display(),
            place.parent().unwrap_or(place).display(),
            library.display(),
            place.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_whose_goal_is_gone_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("sysroot/src/rust/library");
        let library = folder.path().join("library");
        fs::create_dir(&library).unwrap();
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        symlink(folder.path().join("gone"), &place).unwrap();
        link(&library, &place).unwrap();
        assert_eq!(fs::read_link(&place).unwrap(), library);
    }

    #[test]
    fn a_toolchain_that_cannot_be_written_is_answered_with_the_command() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = link(Path::new("/library"), &file.join("library")).unwrap_err();
        assert!(error.to_string().contains("ln -s /library"), "{error}");
    }
}
