//! Cgroups (cgroup v2), found through the mount table.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{ffi::OsStringExt as _, fs::MetadataExt as _, process::CommandExt as _},
    },
    path::{Component, Path, PathBuf},
    process::Command,
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use thiserror::Error;

/// Why there is no such cgroup, or none at all. Each text names the cause and the mend.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// The mount table names no cgroup v2.
    #[error(
        "no cgroup v2 is mounted; mount it (`mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none \
         /sys/fs/cgroup/unified`), or boot with systemd.unified_cgroup_hierarchy=1"
    )]
    NoCgroup2,
    /// The mount table cannot be read.
    #[error("the mount table (/proc/self/mountinfo) cannot be read: {0}; is /proc mounted?")]
    MountTable(io::Error),
    /// There is no cgroup of this path.
    #[error("there is no cgroup {}; {}", path.display(), neighbours(parent, siblings))]
    Missing {
        /// Its folder.
        path: PathBuf,
        /// The nearest folder above that is there.
        parent: PathBuf,
        /// The cgroups that are there instead.
        siblings: Vec<String>,
    },
    /// The path leads elsewhere.
    #[error("{} is no cgroup of version 2; those are the folders below {}", path.display(), root.display())]
    Elsewhere {
        /// Where it leads.
        path: PathBuf,
        /// Where cgroup v2 is mounted.
        root: PathBuf,
    },
    /// The kernel refused.
    #[error("the cgroup {} cannot be {verb}: {cause}; {}", path.display(), mend(cause))]
    Refused {
        /// Its folder.
        path: PathBuf,
        /// What was tried.
        verb: &'static str,
        /// The kernel's words.
        cause: io::Error,
    },
}

fn neighbours(parent: &Path, siblings: &[String]) -> String {
    if siblings.is_empty() {
        format!("{} has no cgroups in it", parent.display())
    } else {
        format!("in {} there are {}", parent.display(), siblings.join(", "))
    }
}

fn mend(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => "run it as root, or as a user to whom the cgroup is delegated",
        Some(libc::EROFS) => "cgroup v2 is mounted read-only, as in a container: run it outside of that",
        Some(libc::EBUSY) => "a process is still in it",
        Some(libc::EAGAIN) => "pids.max or cgroup.max.descendants above it is too low",
        Some(libc::EOPNOTSUPP) => "it is a threaded cgroup, or one above it is: take another",
        _ => "see cgroups(7)",
    }
}

/// Where cgroup v2 is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    root: PathBuf,
}

impl Hierarchy {
    /// Looks into the mount table: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside version 1, or anywhere.
    pub fn find() -> Result<Self, CgroupError> {
        let mounts = fs::read("/proc/self/mountinfo").map_err(CgroupError::MountTable)?;
        let root = mounts.split(|byte| *byte == b'\n').find_map(cgroup2_mount);
        root.map(|root| Self { root }).ok_or(CgroupError::NoCgroup2)
    }

    /// The folder of its root cgroup.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a cgroup that a user calls `name`: a folder's path, or the path below the root, as policies and
    /// `/proc/PID/cgroup` have it (`/batch.slice`, `batch.slice/night`).
    pub fn path_of(&self, name: &Path) -> PathBuf {
        if name.starts_with(&self.root) {
            return name.to_owned();
        }
        let below: PathBuf = name
            .components()
            .filter(|part| !matches!(part, Component::RootDir))
            .collect();
        let path = self.root.join(below);
        // A path to somewhere else altogether is taken for what it is, to be refused by its name.
        if name.is_absolute() && name != Path::new("/") && !path.exists() && name.exists() {
            return name.to_owned();
        }
        path
    }

    /// Opens a cgroup that is there; see [`Hierarchy::path_of`] on names.
    pub fn open(&self, name: &Path) -> Result<Cgroup, CgroupError> {
        Cgroup::open(self, self.path_of(name))
    }

    /// Opens a cgroup, after making it if it is not there; one that was made here is removed when it is dropped.
    pub fn open_or_make(&self, name: &Path) -> Result<Cgroup, CgroupError> {
        let path = self.path_of(name);
        let inside = path.starts_with(&self.root) && !path.components().any(|part| part == Component::ParentDir);
        if !inside {
            return Err(self.elsewhere(path));
        }
        match fs::create_dir(&path) {
            Ok(()) => {
                let mut cgroup = Cgroup::open(self, path)?;
                cgroup.is_ours = true;
                Ok(cgroup)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Cgroup::open(self, path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing(path)),
            Err(cause) => Err(CgroupError::Refused {
                path,
                verb: "made",
                cause,
            }),
        }
    }

    fn elsewhere(&self, path: PathBuf) -> CgroupError {
        CgroupError::Elsewhere {
            path,
            root: self.root.clone(),
        }
    }
}

/// A cgroup, open.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    /// Its path below the root, with a slash in front, as `/proc/PID/cgroup` has it.
    name: PathBuf,
    folder: File,
    id: u64,
    /// Whether it is to be removed when this is dropped.
    is_ours: bool,
}

impl Cgroup {
    fn open(hierarchy: &Hierarchy, path: PathBuf) -> Result<Self, CgroupError> {
        let folder = match File::open(&path) {
            Ok(folder) => folder,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing(path)),
            Err(cause) => {
                return Err(CgroupError::Refused {
                    path,
                    verb: "opened",
                    cause,
                });
            }
        };
        let looked_at = folder.metadata().and_then(|metadata| {
            let file_system = fstatfs(&folder)?.filesystem_type();
            Ok((metadata, file_system))
        });
        let (metadata, file_system) = looked_at.map_err(|cause| CgroupError::Refused {
            path: path.clone(),
            verb: "looked at",
            cause,
        })?;
        if file_system != CGROUP2_SUPER_MAGIC || !metadata.is_dir() {
            return Err(hierarchy.elsewhere(path));
        }
        let below = path.strip_prefix(&hierarchy.root).unwrap_or(&path);
        Ok(Self {
            name: Path::new("/").join(below),
            folder,
            id: metadata.ino(),
            is_ours: false,
            path,
        })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path below the root of the hierarchy, with a slash in front, as `/proc/PID/cgroup` has it.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// The kernel's id of it, which is its folder's inode: what `bpf_skb_cgroup_id` and `bpf_get_current_cgroup_id`
    /// return. A cgroup that is removed and made again has another.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether it is still there: not removed, nor removed and made again.
    pub fn is_present(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.id)
    }

    /// Has a command run in this cgroup: its process is in it before the program starts, and so are all its sockets.
    pub fn enrol(&self, command: &mut Command) -> Result<(), CgroupError> {
        let path = self.path.join("cgroup.procs");
        let processes = OpenOptions::new()
            .write(true)
            .open(path)
            .map_err(|cause| self.refused("entered", cause))?;
        // SAFETY: between fork and exec a single write to an open file is made; "0" is the writing process itself.
        unsafe {
            command.pre_exec(move || (&processes).write_all(b"0"));
        }
        Ok(())
    }

    /// Does not remove it when it is dropped, even if it was made here.
    pub fn keep(&mut self) {
        self.is_ours = false;
    }

    fn refused(&self, verb: &'static str, cause: io::Error) -> CgroupError {
        CgroupError::Refused {
            path: self.path.clone(),
            verb,
            cause,
        }
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // One with processes or cgroups in it stays, which is right.
        if self.is_ours && self.is_present() {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

fn missing(path: PathBuf) -> CgroupError {
    let parent = path
        .ancestors()
        .skip(1)
        .find(|folder| folder.is_dir())
        .unwrap_or(Path::new("/"))
        .to_owned();
    let mut siblings: Vec<String> = fs::read_dir(&parent)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    siblings.sort_unstable();
    if siblings.len() > 12 {
        let more = siblings.len() - 12;
        siblings.truncate(12);
        siblings.push(format!("and {more} more"));
    }
    CgroupError::Missing { path, parent, siblings }
}

/// The mount point in a line of `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`), if the file system is cgroup v2 and its
/// root is what is mounted.
fn cgroup2_mount(line: &[u8]) -> Option<PathBuf> {
    let separator = line.windows(3).position(|window| window == b" - ")?;
    let (mount, file_system) = (&line[..separator], &line[separator + 3..]);
    if file_system.split(|byte| *byte == b' ').next()? != b"cgroup2" {
        return None;
    }
    let mut fields = mount.split(|byte| *byte == b' ').skip(3);
    let (root, mount_point) = (fields.next()?, fields.next()?);
    (root == b"/").then(|| PathBuf::from(std::ffi::OsString::from_vec(unescaped(mount_point))))
}

/// Spaces and the like stand in the mount table as three octal digits behind a backslash.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, behind)) = rest.split_first() {
        let digits = behind.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) if *byte == b'\\' => {
                plain.push(code);
                rest = &behind[3..];
            }
            _ => {
                plain.push(*byte);
                rest = behind;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(line: &str) -> Option<PathBuf> {
        cgroup2_mount(line.as_bytes())
    }

    #[test]
    fn cgroup2_is_found_alone_beside_version_1_and_anywhere_else() {
        for (line, found) in [
            (
                "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate",
                "/sys/fs/cgroup",
            ),
            (
                "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw",
                "/sys/fs/cgroup/unified",
            ),
            (
                "50 23 0:40 / /mnt/my\\040cgroups rw shared:1 master:2 - cgroup2 none rw",
                "/mnt/my cgroups",
            ),
        ] {
            assert_eq!(mount(line).unwrap(), Path::new(found));
        }
    }

    #[test]
    fn version_1_parts_of_version_2_and_other_file_systems_are_not_it() {
        for line in [
            "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755",
            "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd",
            "42 31 0:38 /a.slice /mnt rw - cgroup2 cgroup2 rw",
            "43 31 0:39 / /cgroup2 rw - ext4 cgroup2 rw",
            "",
        ] {
            assert_eq!(mount(line), None, "{line}");
        }
    }

    #[test]
    fn a_name_is_a_path_below_the_root_or_a_folder() {
        let hierarchy = Hierarchy {
            root: "/no/such/root".into(),
        };
        for name in [
            "batch.slice/night",
            "/batch.slice/night",
            "/no/such/root/batch.slice/night",
        ] {
            assert_eq!(
                hierarchy.path_of(Path::new(name)),
                Path::new("/no/such/root/batch.slice/night"),
                "{name}"
            );
        }
        assert_eq!(hierarchy.path_of(Path::new("/")), Path::new("/no/such/root"));
        assert_eq!(hierarchy.path_of(Path::new("/usr/bin")), Path::new("/usr/bin"));
    }
}
