//! A project with stand-ins for cargo, rustc, sudo and a lab, in which `xtask` is run as a user would run it.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

/// The user `nobody`, who stands for one without privileges where the tests run as root.
const NOBODY: u32 = 65534;

/// A project on a machine of its own.
pub struct Project {
    folder: TempDir,
}

/// What `cargo metadata` prints of a workspace in which nothing is, as an argument for the shell.
pub const NO_PACKAGES: &str = r#"'{"packages":[],"workspace_default_members":[]}'"#;

impl Project {
    /// With the labs 01 and 02, and with all installed that building them needs.
    pub fn new() -> Self {
        let project = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        // For the user without privileges to read it.
        fs::set_permissions(project.root(), fs::Permissions::from_mode(0o755)).unwrap();
        project.write("Cargo.lock", "");
        project.write("xtask/Cargo.toml", "");
        project.write("lab01-count-packets/Cargo.toml", "");
        project.write("lab02-xdp-firewall/Cargo.toml", "");
        project.script(
            "bin/rustc",
            &format!(
                "case \"$*\" in -vV) echo 'release: 1.95.0'; echo 'LLVM version: 22.1.2' ;; *) echo {} ;; esac",
                project.path("sysroot").display()
            ),
        );
        project.script("bin/cargo", "echo \"unexpected: cargo $*\" >&2; exit 1");
        project.script("bin/cc", "exit 1");
        project.write("sysroot/lib/rustlib/src/rust/library/core/src/lib.rs", "");
        project.write("sysroot/lib/rustlib/src/rust/library/Cargo.lock", "");
        project.write(".tools/bin/bpf-linker", "");
        project.write(".tools/bpf-linker.llvm", "22\n");
        project.write(
            ".tools/.crates.toml",
            "[v1]\n\"bpf-linker 0.10.4 (somewhere)\" = [\"bpf-linker\"]\n",
        );
        project
    }

    /// The project's folder.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    /// A path in the project's folder.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    /// Writes a file.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Writes a shell script.
    pub fn script(&self, path: &str, text: &str) {
        self.write(path, &format!("#!/bin/sh\n{text}\n"));
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A cargo whose `build` and `test --no-run` make these programs, given as package, kind, target and path.
    pub fn cargo_that_builds(&self, programs: &[(&str, &str, &str, &str)], otherwise: &str) {
        let messages: Vec<_> = programs
            .iter()
            .map(|(package, kind, target, path)| {
                let path = self.path(path);
                let root = self.root().display();
                format!(
                    r#"{{"reason":"compiler-artifact","package_id":"path+file://{root}/{package}#0.1.0","manifest_path":"{root}/{package}/Cargo.toml","target":{{"kind":["{kind}"],"name":"{target}"}},"executable":"{}"}}"#,
                    path.display()
                )
            })
            .collect();
        self.write("messages", &(messages.join("\n") + "\n"));
        let messages = self.path("messages");
        self.script(
            "bin/cargo",
            &format!(
                "case \"$1 $2\" in 'build '*|'test --no-run') cat {} ;; {otherwise} 'metadata '*) echo {NO_PACKAGES} ;; esac",
                messages.display()
            ),
        );
    }

    /// A command of xtask, run as whoever runs the tests.
    pub fn xtask(&self, args: &[&str]) -> Command {
        self.with_environment(Command::new(env!("CARGO_BIN_EXE_xtask")), args)
    }

    /// The same, run as a user without privileges.
    pub fn xtask_as_user(&self, args: &[&str]) -> Command {
        let xtask = env!("CARGO_BIN_EXE_xtask");
        // SAFETY: geteuid has no preconditions.
        if unsafe { libc::geteuid() } != 0 {
            return self.xtask(args);
        }
        // The build's folder may lie where others may not look.
        let copy = self.path("xtask-of-user");
        // By another process: a child that a test beside this one starts would hold a file open that we write.
        let copied = Command::new("cp").arg(xtask).arg(&copy).status().unwrap();
        assert!(copied.success());
        let mut command = Command::new("/usr/bin/setpriv");
        let user = format!("--reuid={NOBODY}");
        let group = format!("--regid={NOBODY}");
        command.args([&user, &group, "--clear-groups", "--"]).arg(copy);
        self.with_environment(command, args)
    }

    fn with_environment(&self, mut command: Command, args: &[&str]) -> Command {
        // Only the stand-ins and the shell's own tools, so that nothing of this machine's is run by chance.
        let path = env::join_paths([self.path("bin"), PathBuf::from("/usr/bin"), PathBuf::from("/bin")]).unwrap();
        command
            .args(args)
            .env("PATH", path)
            .env("CARGO", self.path("bin/cargo"))
            .env("RUSTC", self.path("bin/rustc"))
            .env("CARGO_MANIFEST_DIR", self.path("xtask"))
            // Set by some users; no error may become a backtrace by it.
            .env("RUST_BACKTRACE", "1")
            .current_dir(self.root())
            .stdin(Stdio::null());
        command
    }
}

/// What a command ended with.
pub struct Ended {
    /// Its exit status.
    pub status: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// Runs a command to its end.
pub fn run(mut command: Command) -> Ended {
    command.output().unwrap().into()
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}
