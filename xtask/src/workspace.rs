//! Where the project lies on this machine.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The project's folder and what has a fixed place in it.
pub struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The workspace that this command was started from.
    ///
    /// `cargo run` says at run time where the package lies; that stays right when the checkout has been moved after
    /// the build. Started without cargo, the place of the build is taken.
    pub fn here() -> Self {
        let package =
            env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = package
            .ancestors()
            .find(|folder| folder.join("Cargo.lock").exists())
            .or(package.parent())
            .unwrap_or(&package);
        Self::at(root)
    }

    /// The workspace whose `Cargo.toml` lies in `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder of the workspace's `Cargo.toml`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder into which `setup` installs; never anything of the user's.
    pub fn tools(&self) -> PathBuf {
        self.root.join(".tools")
    }

    /// The program `name` as `setup` installs it.
    pub fn tool(&self, name: &str) -> PathBuf {
        self.tools().join("bin").join(name)
    }

    /// Where cargo builds, for what is built beside the ordinary targets.
    pub fn target(&self) -> PathBuf {
        match env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => self.root.join(folder),
            None => self.root.join("target"),
        }
    }
}
