//! The guest's file system: programs of this machine with their libraries, each at the path that it has here.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Component, Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::archive::Archive;

enum Entry {
    Folder,
    File { permissions: u32, content: Vec<u8> },
    Link { goal: PathBuf },
}

/// A file system in memory. A folder sorts before what is in it, as an archive wants it.
#[derive(Default)]
pub struct Tree {
    entries: BTreeMap<PathBuf, Entry>,
}

impl Tree {
    /// With the folders in which something is mounted or left.
    pub fn with_folders() -> Self {
        let mut tree = Self::default();
        for folder in ["/dev", "/proc", "/root", "/run", "/sys", "/tmp"] {
            tree.folder(folder);
        }
        tree
    }

    /// Adds a folder, and those that it lies in.
    pub fn folder(&mut self, path: impl AsRef<Path>) {
        for folder in path.as_ref().ancestors().filter(|folder| folder.parent().is_some()) {
            self.entries.entry(folder.to_owned()).or_insert(Entry::Folder);
        }
    }

    /// Adds a file.
    pub fn file(&mut self, path: impl AsRef<Path>, permissions: u32, content: Vec<u8>) {
        let path = path.as_ref();
        self.folder(path.parent().unwrap_or(path));
        self.entries
            .insert(path.to_owned(), Entry::File { permissions, content });
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: impl AsRef<Path>, goal: impl Into<PathBuf>) {
        self.entries
            .insert(path.as_ref().to_owned(), Entry::Link { goal: goal.into() });
    }

    /// Adds those files and links of `folder` that are wanted, as they are, to the folder `path`; not what lies below.
    pub fn files_of(&mut self, folder: &Path, path: &Path, wanted: fn(&Path) -> bool) -> Result<()> {
        self.folder(path);
        let entries = fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("{} cannot be read", folder.display()))?;
            let (file, path, kind) = (entry.path(), path.join(entry.file_name()), entry.file_type()?);
            if kind.is_symlink() && wanted(&file) {
                self.link(path, fs::read_link(&file)?);
            } else if kind.is_file() && wanted(&file) {
                self.file(path, entry.metadata()?.mode(), contents(&file)?);
            }
        }
        Ok(())
    }

    /// Adds a program of this machine with the libraries that it loads, at its own path; `read` gets its bytes.
    pub fn program(&mut self, path: &Path, read: impl FnOnce(&Path) -> Result<Vec<u8>>) -> Result<()> {
        let real = self.resolve(path)?;
        if self.entries.contains_key(&real) {
            return Ok(());
        }
        let permissions = fs::metadata(&real).map_or(0o755, |metadata| metadata.mode());
        self.file(&real, permissions, read(&real)?);
        self.libraries_of(&real)
    }

    /// Adds this very program at `path`, also if its file was replaced by a build since it was started.
    pub fn ourselves(&mut self, path: &str, read: impl FnOnce(&Path) -> Result<Vec<u8>>) -> Result<()> {
        let running = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
        self.file(path, 0o755, read(&running)?);
        self.libraries_of(&running)
    }

    /// Adds a program of Debian's packages that were unpacked into `folder`, with the libraries and the loader that they
    /// bring, as `name` on the search path.
    pub fn unpacked_program(&mut self, name: &str, folder: &Path, program: &str) -> Result<()> {
        let loader = folder.join("usr/lib64/ld-linux-x86-64.so.2");
        let libraries = folder.join("usr/lib/x86_64-linux-gnu");
        let program = folder.join(program);
        let mut command = Command::new(&loader);
        command.arg("--library-path").arg(&libraries);
        let script = format!(
            "#!/bin/sh\nexec \"{}\" --library-path \"{}\" \"{}\" \"$@\"\n",
            loader.display(),
            libraries.display(),
            program.display()
        );
        let needed = ask_for_libraries(command.arg("--list"), &program)?;
        let own = needed.into_iter().filter(|library| library.starts_with(folder));
        for file in own.chain([loader, program]) {
            let real = self.resolve(&file)?;
            self.file(&real, 0o755, contents(&real)?);
        }
        self.file(format!("/usr/bin/{name}"), 0o755, script.into_bytes());
        Ok(())
    }

    fn libraries_of(&mut self, program: &Path) -> Result<()> {
        for library in libraries_of(program)? {
            let real = self.resolve(&library)?;
            if !self.entries.contains_key(&real) {
                self.file(&real, 0o755, contents(&real)?);
            }
        }
        Ok(())
    }

    /// Follows `path` to what it stands for, and adds the links on the way.
    fn resolve(&mut self, path: &Path) -> Result<PathBuf> {
        let mut real = PathBuf::from("/");
        for component in path.components() {
            match component {
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
                Component::ParentDir => {
                    real.pop();
                }
                Component::Normal(name) => {
                    let next = real.join(name);
                    let Ok(goal) = fs::read_link(&next) else {
                        real = next;
                        continue;
                    };
                    self.folder(&real);
                    let whole = real.join(&goal);
                    self.entries.insert(next, Entry::Link { goal });
                    real = self.resolve(&whole)?;
                }
            }
        }
        if !real.exists() {
            bail!("{} is not there", path.display());
        }
        Ok(real)
    }

    /// Writes all of it as an archive.
    pub fn archive(&self) -> Vec<u8> {
        let mut archive = Archive::default();
        for (path, entry) in &self.entries {
            let path = path.to_string_lossy();
            let path = path.trim_start_matches('/');
            match entry {
                Entry::Folder => archive.folder(path),
                Entry::File { permissions, content } => archive.file(path, *permissions, content),
                Entry::Link { goal } => archive.link(path, &goal.to_string_lossy()),
            }
        }
        archive.finish()
    }
}

/// A file's bytes.
pub fn contents(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}

/// A program's bytes without debug information, which makes up most of a test program and is of no use in the guest;
/// `folder` is where they may lie meanwhile.
pub fn stripped(program: &Path, folder: &Path) -> Result<Vec<u8>> {
    let partial = folder.join(format!("stripped-{}", std::process::id()));
    let strip = Command::new("strip").arg("-o").arg(&partial).arg(program).output();
    let content = match strip {
        Ok(output) if output.status.success() => contents(&partial),
        // Then it is bigger, and works as well.
        _ => contents(program),
    };
    fs::remove_file(&partial).ok();
    content
}

/// The libraries that a program loads, by asking its own loader.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let executable = fs::metadata(program).is_ok_and(|metadata| metadata.permissions().mode() & 0o111 != 0);
    if !executable {
        bail!("{} is no program", program.display());
    }
    ask_for_libraries(&mut Command::new("ldd"), program)
}

fn ask_for_libraries(command: &mut Command, program: &Path) -> Result<Vec<PathBuf>> {
    let output = command
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .with_context(|| format!("{} cannot be run", command.get_program().display()))?;
    // It fails for a program that loads none.
    parse_ldd(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("{} cannot be taken into the guest", program.display()))
}

fn parse_ldd(text: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.ends_with("=> not found") {
            bail!("this machine lacks a library of it: {line}");
        }
        let path = line.split_once("=> ").map_or(line, |(_, path)| path);
        let path = path.split(" (").next().unwrap_or(path);
        if path.starts_with('/') {
            libraries.push(PathBuf::from(path));
        }
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_of_a_folder_are_taken_with_links_and_permissions_and_only_those_wanted() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("below")).unwrap();
        for (name, mode) in [("dash", 0o755), ("libc.a", 0o644)] {
            let file = folder.path().join(name);
            fs::write(&file, name).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        }
        symlink("dash", folder.path().join("sh")).unwrap();
        let mut tree = Tree::default();
        let wanted = |path: &Path| path.extension().is_none();
        tree.files_of(folder.path(), Path::new("/usr/bin"), wanted).unwrap();
        let paths: Vec<_> = tree.entries.keys().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/usr", "/usr/bin", "/usr/bin/dash", "/usr/bin/sh"]);
        let entries = &tree.entries;
        assert!(matches!(&entries[Path::new("/usr/bin/sh")], Entry::Link { goal } if goal == Path::new("dash")));
        assert!(matches!(
            &entries[Path::new("/usr/bin/dash")],
            Entry::File { permissions, .. } if permissions & 0o777 == 0o755
        ));
    }

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libgcc_s.so.1", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse_ldd(text).unwrap(), expected.map(PathBuf::from));
        assert!(parse_ldd("\tstatically linked\n").unwrap().is_empty());
        assert!(parse_ldd("\tlibz.so.1 => not found\n").is_err());
    }

    #[test]
    fn links_on_the_way_to_a_program_are_kept_and_it_lies_where_they_lead() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        symlink("usr/bin", root.join("bin")).unwrap();
        fs::copy("/bin/sh", root.join("usr/bin/dash")).unwrap();
        symlink("dash", root.join("usr/bin/sh")).unwrap();
        let mut tree = Tree::default();
        tree.program(&root.join("bin/sh"), contents).unwrap();
        let is_link = |path: &str, expected: &str| match &tree.entries[&root.join(path)] {
            Entry::Link { goal } => goal == Path::new(expected),
            _ => false,
        };
        assert!(is_link("bin", "usr/bin") && is_link("usr/bin/sh", "dash"));
        assert!(matches!(
            tree.entries[&root.join("usr/bin/dash")],
            Entry::File { permissions, .. } if permissions & 0o111 != 0
        ));
        assert!(tree.entries.keys().any(|path| path.to_string_lossy().contains("libc")));
    }

    #[test]
    fn this_very_program_is_added_with_its_libraries() {
        let mut tree = Tree::default();
        tree.ourselves("/init", contents).unwrap();
        let Entry::File { content, .. } = &tree.entries[Path::new("/init")] else {
            panic!("it is no file");
        };
        assert_eq!(*content, fs::read("/proc/self/exe").unwrap());
        assert!(tree.entries.keys().any(|path| path.to_string_lossy().contains("libc")));
    }

    #[test]
    fn a_stripped_program_is_smaller_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let content = stripped(Path::new("/proc/self/exe"), folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(content.starts_with(b"\x7fELF"));
        assert!(content.len() as u64 <= fs::metadata("/proc/self/exe").unwrap().len());
    }

    #[test]
    fn every_folder_comes_before_what_is_in_it() {
        let mut tree = Tree::default();
        tree.file("/a/b/c", 0o644, Vec::new());
        tree.folder("/a/b-");
        let paths: Vec<_> = tree.entries.keys().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/a", "/a/b", "/a/b/c", "/a/b-"]);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = Tree::default()
            .program(Path::new("/nowhere/program"), contents)
            .unwrap_err();
        assert_eq!(error.to_string(), "/nowhere/program is not there");
    }
}
