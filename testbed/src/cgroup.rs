//! Disposable cgroups (cgroup v2).

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    net::UdpSocket,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{fs::MetadataExt as _, net::UnixStream, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Error, Host, Result, descriptor};

/// A disposable cgroup below the root of the cgroup v2 hierarchy.
///
/// Dropping it kills the processes in it and removes it with its children. What a killed process has left behind is
/// removed by the next one that uses the testbed: a cgroup's name tells who made it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A new cgroup; `name` becomes part of its path.
    pub fn new(name: &str) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        sweep_once();
        let root = root()?;
        let owner = Owner::this_process()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self::make(root.join(format!("{PREFIX}{name}.{number}{}", owner.suffix())))
    }

    /// A new cgroup inside this one.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::make(self.path.join(name))
    }

    fn make(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).map_err(|error| Error::system(format!("making the cgroup {}", path.display()), error))?;
        Ok(Self { path })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path below the root of the hierarchy, without a slash in front: as policies name cgroups.
    pub fn name(&self) -> Result<PathBuf> {
        let root = root()?;
        Ok(self.path.strip_prefix(root).unwrap_or(&self.path).to_owned())
    }

    /// The kernel's id of it, which is its folder's inode: what `bpf_get_current_cgroup_id` returns.
    pub fn id(&self) -> Result<u64> {
        fs::metadata(&self.path)
            .map(|metadata| metadata.ino())
            .map_err(|error| Error::system(format!("looking at the cgroup {}", self.path.display()), error))
    }

    /// Its folder, opened, for attaching programs to it.
    pub fn open(&self) -> Result<File> {
        File::open(&self.path)
            .map_err(|error| Error::system(format!("opening the cgroup {}", self.path.display()), error))
    }

    /// A command that will run in this cgroup and inside `host`. As to how long it lives: [`Host::command`].
    pub fn command(&self, host: &Host, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = host.command(program);
        self.enrol(&mut command)?;
        Ok(command)
    }

    /// Has a command run in this cgroup: its process is in it before the program starts.
    pub fn enrol(&self, command: &mut Command) -> Result<()> {
        let processes = self.processes()?;
        // SAFETY: between fork and exec a single write to an open file is made; "0" is the writing process itself.
        unsafe {
            command.pre_exec(move || (&processes).write_all(b"0"));
        }
        Ok(())
    }

    /// A UDP socket of IPv4 in `host`, bound to no port yet and born in this cgroup: to which a socket belongs is decided by
    /// who made it, and neither by who sends nor by where that one goes later.
    pub fn udp_socket(&self, host: &Host) -> Result<UdpSocket> {
        self.socket(host, libc::SOCK_DGRAM).map(UdpSocket::from)
    }

    /// A TCP socket of IPv4 in `host`, neither bound nor connected yet, and born in this cgroup as a
    /// [UDP socket](Cgroup::udp_socket) is. If it becomes a listener, the connections that it accepts belong to this cgroup,
    /// too.
    pub fn tcp_socket(&self, host: &Host) -> Result<OwnedFd> {
        self.socket(host, libc::SOCK_STREAM)
    }

    /// A socket of this type that is made by a process in this cgroup, and handed over.
    fn socket(&self, host: &Host, kind: libc::c_int) -> Result<OwnedFd> {
        let explain = |error| Error::system(format!("making a socket in the cgroup {}", self.path.display()), error);
        let (ours, theirs) = UnixStream::pair().map_err(explain)?;
        // What the program is does not matter: it is over before it begins.
        let mut command = self.command(host, "true")?;
        // SAFETY: between fork and exec three system calls are made, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                let fd = libc::socket(libc::AF_INET, kind | libc::SOCK_CLOEXEC, 0);
                if fd < 0 {
                    return Err(io::Error::last_os_error());
                }
                descriptor::send(theirs.as_raw_fd(), fd)
            });
        }
        let status = command.status().map_err(explain)?;
        // The command holds the other end, and nothing would come from it any more.
        drop(command);
        descriptor::receive(ours.as_raw_fd()).map_err(|error| explain(io::Error::other(format!("{error} ({status})"))))
    }

    fn processes(&self) -> Result<File> {
        let path = self.path.join("cgroup.procs");
        OpenOptions::new()
            .write(true)
            .open(&path)
            .map_err(|error| Error::system(format!("opening {}", path.display()), error))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Whatever remains is removed by the next start.
        let _ = remove(&self.path);
    }
}

/// Removes the cgroups of processes that are gone. The first [`Host`], [`Switch`](crate::Switch) or [`Cgroup`] of a
/// process does it by itself.
pub fn sweep() -> Result<()> {
    let root = match root() {
        Ok(root) => root,
        // Nothing can have been left behind then.
        Err(Error::NoCgroup2) => return Ok(()),
        Err(error) => return Err(error),
    };
    let entries = fs::read_dir(&root).map_err(|error| Error::system("listing cgroups", error))?;
    for entry in entries.filter_map(io::Result::ok) {
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(Owner::of_cgroup) else {
            continue;
        };
        if !owner.is_alive() {
            remove(&entry.path())
                .map_err(|error| Error::system(format!("removing the cgroup {}", entry.path().display()), error))?;
        }
    }
    Ok(())
}

/// [`sweep`], at most once a process; a failure is no reason not to go on.
pub(crate) fn sweep_once() {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(|| {
        let _ = sweep();
    });
}

const PREFIX: &str = "testbed-";

/// Who made a cgroup. A process id alone would not do: it is used again.
struct Owner {
    process: u32,
    /// In clock ticks since boot, as `/proc/PID/stat` tells it.
    started: u64,
}

impl Owner {
    fn this_process() -> Result<Self> {
        let process = std::process::id();
        let started = start_time(process)
            .ok_or_else(|| Error::system("reading /proc/self/stat", io::Error::from_raw_os_error(libc::ENOENT)))?;
        Ok(Self { process, started })
    }

    fn suffix(&self) -> String {
        format!("-{}-{}", self.process, self.started)
    }

    fn of_cgroup(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(PREFIX)?.rsplit('-');
        let started = parts.next()?.parse().ok()?;
        let process = parts.next()?.parse().ok()?;
        Some(Self { process, started })
    }

    fn is_alive(&self) -> bool {
        start_time(self.process) == Some(self.started)
    }
}

fn start_time(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Field 22 (proc_pid_stat(5)), counted from behind the program's name, which may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    // A zombie's time is over, and its parent may never look.
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

/// Where cgroup v2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside cgroup v1.
pub(crate) fn root() -> Result<PathBuf> {
    let mounts =
        fs::read_to_string("/proc/self/mountinfo").map_err(|error| Error::system("reading the mount table", error))?;
    mounts.lines().find_map(cgroup2_mount).ok_or(Error::NoCgroup2)
}

/// The mount point in a line of `/proc/self/mountinfo`, if the file system is cgroup v2 (and its root is what is
/// mounted).
fn cgroup2_mount(line: &str) -> Option<PathBuf> {
    let (mount, file_system) = line.split_once(" - ")?;
    if file_system.split(' ').next()? != "cgroup2" {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    let (root, mount_point) = (fields.next()?, fields.next()?);
    (root == "/").then(|| PathBuf::from(mount_point))
}

/// Kills what runs in a cgroup and its children, and removes them, innermost first.
fn remove(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)?.filter_map(io::Result::ok) {
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    let start = Instant::now();
    loop {
        // Not cgroup.kill, which is there from Linux 5.14 on only.
        for process in fs::read_to_string(path.join("cgroup.procs"))?.lines() {
            if let Ok(process) = process.parse() {
                let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
            }
        }
        match fs::remove_dir(path) {
            // Killed processes leave a moment later.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && start.elapsed() < Duration::from_secs(5) => {
                thread::sleep(Duration::from_millis(2));
            }
            removed => return removed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_mount_is_found_in_hybrid_and_unified_set_ups() {
        let mounts = [
            "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755",
            "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd",
            "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw",
        ];
        let found: Vec<_> = mounts.iter().filter_map(|line| cgroup2_mount(line)).collect();
        assert_eq!(found, [Path::new("/sys/fs/cgroup/unified")]);
        let bind_mount_of_a_part = "42 31 0:38 /a.slice /mnt rw - cgroup2 cgroup2 rw";
        assert_eq!(cgroup2_mount(bind_mount_of_a_part), None);
    }

    #[test]
    fn a_cgroup_belongs_to_the_process_in_its_name_as_long_as_that_lives() {
        let this = Owner::this_process().unwrap();
        let name = format!("{PREFIX}with-dashes.3{}", this.suffix());
        assert!(Owner::of_cgroup(&name).unwrap().is_alive());

        let same_id_later = format!("{PREFIX}x.0-{}-{}", this.process, this.started + 1);
        assert!(!Owner::of_cgroup(&same_id_later).unwrap().is_alive());
        assert!(Owner::of_cgroup("system.slice").is_none());
    }
}
