//! A BPF file system that exists for a test only.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

/// Mounted on a folder of its own until it is dropped; what is pinned in it goes with it.
pub struct Bpffs {
    folder: TempDir,
}

impl Bpffs {
    /// Mounts it.
    pub fn mount() -> Self {
        // Without a dot in it, which libbpf would replace.
        let folder = tempfile::Builder::new().prefix("lab04-").tempdir().unwrap();
        mount(Some("bpf"), folder.path(), Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        Self { folder }
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = umount2(self.folder.path(), MntFlags::MNT_DETACH);
    }
}
