//! The Rust toolchain in use: its version, the LLVM inside it, and where it lies.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result};

use crate::machine::Machine;

/// The oldest compiler that the labs build with, as `rust-version` in the workspace's `Cargo.toml`.
pub const OLDEST_RUST: (u32, u32) = (1, 95);

/// What `rustc` says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// As in `1.95.0`, or `1.97.0-nightly`.
    pub release: String,
    /// The major version of the LLVM that the compiler writes bitcode with; bpf-linker must read it.
    pub llvm: Option<u32>,
    /// Where the toolchain lies.
    pub sysroot: PathBuf,
}

impl Toolchain {
    /// Asks the `rustc` that cargo would use.
    pub fn of(machine: &Machine) -> Result<Self> {
        // Both questions at once: behind rustup each takes some 30 ms, and every run of a lab asks them.
        let (version, sysroot) = thread::scope(|scope| {
            let version = scope.spawn(|| machine.run(rustc(), &["-vV"]));
            let sysroot = machine.run(rustc(), &["--print", "sysroot"]);
            (version.join().ok().flatten(), sysroot)
        });
        version
            .zip(sysroot)
            .and_then(|(version, sysroot)| Self::parse(&version, sysroot.trim()))
            .context("rustc cannot be run; install Rust 1.95 or later, for example from https://rustup.rs")
    }

    fn parse(version: &str, sysroot: &str) -> Option<Self> {
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        Some(Self {
            release: field("release")?.to_owned(),
            llvm: field("LLVM version").and_then(|llvm| llvm.split('.').next()?.parse().ok()),
            sysroot: PathBuf::from(sysroot),
        })
    }

    /// Major and minor version; `None` if the release is not written like one.
    pub fn version(&self) -> Option<(u32, u32)> {
        let mut numbers = self.release.split('.');
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }

    /// Where the sources of the standard library belong, of which `core` is built for BPF.
    pub fn library_sources(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust/library")
    }

    /// Whether the sources of the standard library are there.
    pub fn has_library_sources(&self) -> bool {
        let library = self.library_sources();
        library.join("core/src/lib.rs").is_file() && library.join("Cargo.lock").is_file()
    }
}

/// The `cargo` that started us, else the one on `PATH`.
pub fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn rustc() -> OsString {
    // Beside the cargo that started us lies the same toolchain's rustc, unless cargo is rustup's stand-in; both are
    // right, and the former spares the stand-in's start.
    env::var_os("RUSTC")
        .or_else(|| {
            let beside = Path::new(&env::var_os("CARGO")?).parent()?.join("rustc");
            beside.is_file().then(|| beside.into_os_string())
        })
        .unwrap_or_else(|| "rustc".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: &str = "rustc 1.95.0 (59807616e 2026-04-14)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\n\
                           release: 1.95.0\nLLVM version: 22.1.2\n";

    #[test]
    fn version_and_llvm_are_read_from_what_rustc_prints() {
        let toolchain = Toolchain::parse(VERSION, "/opt/rust").unwrap();
        assert_eq!(toolchain.release, "1.95.0");
        assert_eq!(toolchain.version(), Some((1, 95)));
        assert_eq!(toolchain.llvm, Some(22));
        assert_eq!(
            toolchain.library_sources(),
            Path::new("/opt/rust/lib/rustlib/src/rust/library")
        );
    }

    #[test]
    fn a_compiler_without_llvm_has_no_llvm_version() {
        let toolchain = Toolchain::parse("release: 1.95.0\n", "/opt/rust").unwrap();
        assert_eq!(toolchain.llvm, None);
    }

    #[test]
    fn the_oldest_rust_is_the_one_in_the_manifest() {
        let manifest = include_str!("../../Cargo.toml");
        let (major, minor) = OLDEST_RUST;
        assert!(manifest.contains(&format!("rust-version = \"{major}.{minor}\"")));
    }
}
