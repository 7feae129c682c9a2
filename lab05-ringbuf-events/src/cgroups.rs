//! Names of cgroups, by the kernel's ids of them.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::DirEntryExt as _,
    path::{Path, PathBuf},
};

/// Names of cgroups, looked up when they are first asked for.
#[derive(Debug)]
pub struct CgroupNames {
    root: PathBuf,
    names: HashMap<u64, Option<String>>,
}

impl CgroupNames {
    /// Those below `root`, the folder of cgroup v2's root.
    pub fn below(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            names: HashMap::new(),
        }
    }

    /// The path below the root, with a slash in front, as `/proc/PID/cgroup` has it; `None` for one that is not there.
    pub fn name(&mut self, id: u64) -> Option<String> {
        if id == 0 {
            return None;
        }
        if let Some(known) = self.names.get(&id) {
            return known.clone();
        }
        let mut found = HashMap::new();
        collect(&self.root, "", &mut found);
        for (id, name) in found {
            self.names.insert(id, Some(name));
        }
        // One that has gone already is not looked for again.
        self.names.entry(id).or_insert(None).clone()
    }
}

/// The id of a cgroup is the inode of its folder.
fn collect(folder: &Path, name: &str, found: &mut HashMap<u64, String>) {
    use std::os::unix::fs::MetadataExt as _;
    if name.is_empty()
        && let Ok(metadata) = fs::metadata(folder)
    {
        found.insert(metadata.ino(), "/".to_owned());
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let child = format!("{name}/{}", entry.file_name().to_string_lossy());
            found.insert(entry.ino(), child.clone());
            collect(&entry.path(), &child, found);
        }
    }
}
