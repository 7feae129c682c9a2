//! A copy of the project's sources, which may be changed.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::workspace::Workspace;

/// What is not copied: what was built, installed or written by git.
const LEFT_OUT: [&str; 3] = ["target", ".tools", ".git"];

/// The copy.
pub struct Copy {
    workspace: Workspace,
}

impl Copy {
    /// Brings the copy up to date, or makes it. What has not changed keeps its time, so that cargo builds it once only.
    pub fn of(workspace: &Workspace) -> Result<Self> {
        let root = workspace.target().join("prove");
        let bring = || {
            bring_up_to_date(workspace.root(), &root)?;
            let tools = root.join(".tools");
            if !tools.is_symlink() {
                symlink(workspace.tools(), tools)?;
            }
            Ok::<_, io::Error>(())
        };
        bring().with_context(|| format!("the project cannot be copied to {}", root.display()))?;
        Ok(Self {
            workspace: Workspace::at(root),
        })
    }

    /// The workspace in it.
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// Where it is built, whatever `CARGO_TARGET_DIR` says.
    pub fn target(&self) -> PathBuf {
        self.workspace.root().join("target")
    }
}

fn bring_up_to_date(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let wanted = names(from)?;
    for name in names(to)?.difference(&wanted) {
        let gone = to.join(name);
        if gone.is_dir() && !gone.is_symlink() {
            fs::remove_dir_all(gone)?;
        } else {
            fs::remove_file(gone)?;
        }
    }
    for name in wanted {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            bring_up_to_date(&from, &to)?;
        } else {
            let content = fs::read(&from)?;
            if fs::read(&to).ok().as_ref() != Some(&content) {
                fs::write(&to, content)?;
            }
        }
    }
    Ok(())
}

/// What is in a folder, but for what is left out and for links that lead nowhere.
fn names(folder: &Path) -> io::Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if !LEFT_OUT.iter().any(|left_out| name == *left_out) && folder.join(&name).exists() {
            names.insert(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_brought_up_to_date_and_what_is_built_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let write = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(from.join("a/one.rs"), "1");
        write(from.join("a/target/built"), "much");
        bring_up_to_date(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("a/one.rs")).unwrap(), "1");
        assert!(!to.join("a/target").exists());
        write(to.join("a/target/built"), "of the copy");
        let copied = fs::metadata(to.join("a/one.rs")).unwrap().modified().unwrap();
        write(from.join("b.rs"), "2");
        bring_up_to_date(&from, &to).unwrap();
        assert_eq!(fs::metadata(to.join("a/one.rs")).unwrap().modified().unwrap(), copied);
        assert!(to.join("a/target/built").exists() && to.join("b.rs").exists());
        fs::remove_file(from.join("b.rs")).unwrap();
        write(from.join("a/one.rs"), "3");
        bring_up_to_date(&from, &to).unwrap();
        assert!(!to.join("b.rs").exists());
        assert_eq!(fs::read_to_string(to.join("a/one.rs")).unwrap(), "3");
    }
}
