//! Programs for arm64, and a guest's file system for them, made on another machine out of Debian's packages.
//!
//! One folder serves for both: programs are linked against the libraries in it, by the linker that comes with Rust, and
//! the guest finds the same libraries, and the tools, where they lie in it. The standard library, which is installed for
//! this machine's processor only, is built from the sources that `cargo xtask setup` installs.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{initramfs::Tree, processor::Processor};
use crate::{
    apt::{self, Apt, Suite},
    cargo::{self, Built},
    machine::Machine,
    setup,
    toolchain::Toolchain,
    workspace::Workspace,
};

const TARGET: &str = "aarch64-unknown-linux-gnu";
const SUITE: Suite = Suite::main("trixie");

/// The tools that tests run, and what programs are linked against.
const PACKAGES: [&str; 8] = [
    "dash",
    "coreutils",
    "util-linux",
    "procps",
    "iproute2",
    "bpftool",
    "libc6-dev",
    "libgcc-14-dev",
];

/// Debian's packages for arm64, unpacked.
pub struct Root {
    folder: PathBuf,
}

/// What was built for arm64.
pub struct Programs {
    /// The test programs, and the labs' own.
    pub tests: Built,
    /// This program, which starts first in the guest.
    pub init: PathBuf,
}

impl Root {
    /// Downloads what is missing.
    pub fn obtain(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.tools().join("arm64");
        let _alone = setup::lock(workspace)?;
        if !folder.is_dir() {
            let what = "tools and libraries for arm64";
            let apt = Apt::create_for(workspace, "apt-arm64", Processor::Arm64.name())?;
            apt.read(SUITE)?;
            let packages = apt.download_with_dependencies(what, &PACKAGES)?;
            let partial = folder.with_extension("partial");
            fs::remove_dir_all(&partial).ok();
            apt::unpack(what, &packages, &partial, workspace)?;
            fs::rename(&partial, &folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        }
        Ok(Self { folder })
    }

    /// Builds what `args` for `cargo test` name, and this program.
    pub fn build(&self, workspace: &Workspace, args: &[&str]) -> Result<Programs> {
        let linker = self.linker()?;
        let build = |what: &str, args: &[&str]| {
            let mut command = cargo::command(workspace);
            command
                .args(args)
                .args(["--target", TARGET, "-Z", "build-std=std,panic_unwind"]);
            command.env("RUSTC_BOOTSTRAP", "1");
            command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", &linker);
            cargo::build_by(command, what)
        };
        let tests = build("what is to be tested on arm64", args)?;
        let init = build("what starts first on arm64", &["build", "--package", "xtask"])?;
        Ok(Programs {
            init: init.program("xtask")?.to_owned(),
            tests,
        })
    }

    /// The linker that comes with Rust, told what a C compiler for arm64 would tell it. rustc takes it by its name for a
    /// linker and not for a compiler.
    fn linker(&self) -> Result<PathBuf> {
        let script = self.folder.join("ld.lld");
        let lld = Toolchain::of(&Machine::here())?
            .sysroot
            .join("lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld");
        let root = self.folder.display();
        let (c, gcc) = (
            format!("{root}/usr/lib/aarch64-linux-gnu"),
            format!("{root}/usr/lib/gcc/aarch64-linux-gnu/14"),
        );
        let text = format!(
            "#!/bin/sh\nexec '{}' -flavor gnu --sysroot='{root}' --strip-debug -dynamic-linker /lib/ld-linux-aarch64.so.1 \
             '{c}/Scrt1.o' '{c}/crti.o' '{gcc}/crtbeginS.o' \"$@\" -L'{c}' -L'{gcc}' -lc '{gcc}/crtendS.o' '{c}/crtn.o'\n",
            lld.display()
        );
        let failed = || format!("{} cannot be written", script.display());
        fs::write(&script, text).with_context(failed)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).with_context(failed)?;
        self.link_merged_folders()?;
        Ok(script)
    }

    /// The links at the root that Debian's installer makes: libraries name each other by them.
    fn link_merged_folders(&self) -> Result<()> {
        for name in ["bin", "lib", "sbin"] {
            let link = self.folder.join(name);
            if !link.exists() {
                std::os::unix::fs::symlink(format!("usr/{name}"), &link)
                    .with_context(|| format!("{} cannot be made", link.display()))?;
            }
        }
        Ok(())
    }

    /// Adds the tools and libraries to a guest's file system, without what only a linker wants.
    pub fn fill(&self, tree: &mut Tree) -> Result<()> {
        for link in ["bin", "lib", "sbin"] {
            tree.link(Path::new("/").join(link), Path::new("usr").join(link));
        }
        for (name, wanted) in [
            ("usr/bin", everything as fn(&Path) -> bool),
            ("usr/sbin", everything),
            ("usr/lib", is_shared_library),
            ("usr/lib/aarch64-linux-gnu", is_shared_library),
        ] {
            tree.files_of(&self.folder.join(name), &Path::new("/").join(name), wanted)?;
        }
        Ok(())
    }
}

fn everything(_: &Path) -> bool {
    true
}

fn is_shared_library(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".so") || name.contains(".so.")
}
