//! The processes that there are, as a tree: those that were there before are known from procfs, what becomes of them from
//! the kernel's events.

use std::{
    collections::{HashMap, VecDeque},
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use lab05_ringbuf_events_common::process::{Deed, Exec, ProcessEvent};
use procfs::process::Process as ProcFs;

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its parent's; 0 if it has none.
    pub parent: u32,
    /// Its user.
    pub uid: u32,
    /// Its name, as far as the kernel keeps it.
    pub comm: String,
    /// The program's path; empty for a thread of the kernel's.
    pub exe: String,
    /// Its arguments, without the program's own name.
    pub args: Vec<String>,
    /// Whether there were more arguments than were told.
    pub args_cut: bool,
    /// The kernel's id of its cgroup; 0 if that is not known.
    pub cgroup: u64,
    /// When it was made, in nanoseconds since boot.
    pub start_ns: u64,
    /// How many threads it has.
    pub threads: u32,
    /// How it ended, as `wait(2)` tells it, and when.
    pub ended: Option<(u32, u64)>,
}

/// All that are known.
#[derive(Debug, Default)]
pub struct Processes {
    by_pid: HashMap<u32, Process>,
    /// Who made whom, also of those that have ended, and whoever their parent is by now.
    makers: HashMap<u32, u32>,
    /// Those that ended since they were last asked for.
    ended: Vec<Process>,
    /// The numbers of those that ended last, the oldest first.
    gone: VecDeque<u32>,
}

/// How many processes that ended are kept until somebody asks, and of how many it is remembered who made them.
const MAX_ENDED: usize = 10_000;

/// The kernel counts a process's start in these, in procfs.
const NS_PER_SECOND: u64 = 1_000_000_000;

impl Processes {
    /// Those that procfs shows now. To be called when events are told already, so that no process falls in between.
    ///
    /// `cgroup_root` is the folder of cgroup v2's root, if there is one.
    pub fn from_procfs(cgroup_root: Option<&Path>) -> Self {
        let mut processes = Self::default();
        for process in procfs::process::all_processes().into_iter().flatten().flatten() {
            if let Some(process) = from_procfs(&process, cgroup_root) {
                processes.insert(process);
            }
        }
        processes
    }

    /// The process with this number, if it is known and has not ended.
    pub fn get(&self, pid: u32) -> Option<&Process> {
        self.by_pid.get(&pid)
    }

    /// All that have not ended.
    pub fn all(&self) -> impl Iterator<Item = &Process> {
        self.by_pid.values()
    }

    /// Those that ended since this was last called.
    pub fn take_ended(&mut self) -> Vec<Process> {
        std::mem::take(&mut self.ended)
    }

    fn insert(&mut self, process: Process) {
        self.makers.insert(process.pid, process.parent);
        self.by_pid.insert(process.pid, process);
    }

    /// Whether `pid` is `ancestor`, or comes from it: by who made whom, so that ends and new parents change nothing.
    pub fn descends_from(&self, pid: u32, ancestor: u32) -> bool {
        let mut pid = pid;
        // A tree is not deeper; what is out of date may be a circle.
        for _ in 0..64 {
            if pid == ancestor {
                return true;
            }
            match self.makers.get(&pid) {
                Some(maker) if *maker != 0 => pid = *maker,
                _ => return false,
            }
        }
        false
    }

    /// Takes over what a process did; returns the process as it is afterwards.
    pub fn follow(&mut self, event: &ProcessEvent, exec: Option<&Exec>) -> Process {
        match Deed::ALL.get(event.deed as usize) {
            Some(Deed::Exec) => self.follow_exec(event, exec),
            Some(Deed::Fork) => self.follow_fork(event),
            _ => self.follow_exit(event),
        }
    }

    fn follow_exec(&mut self, event: &ProcessEvent, exec: Option<&Exec>) -> Process {
        let mut args = exec.map(arguments).unwrap_or_default();
        let mut exe = exec.map(path).unwrap_or_default();
        if !exe.starts_with('/') {
            // As it was given; where it lay is known for as long as the process has not gone.
            let absolute = ProcFs::new(event.pid.cast_signed()).and_then(|process| process.exe());
            exe = absolute.map_or(exe, |path| path.to_string_lossy().into_owned());
        }
        if !args.is_empty() {
            args.remove(0);
        }
        let process = Process {
            exe,
            args,
            args_cut: event.args_total > event.args_len,
            threads: 1,
            ..from_event(event)
        };
        // Who made it is known, unless its beginning was not seen.
        self.makers.entry(event.pid).or_insert(event.parent);
        self.by_pid.insert(event.pid, process.clone());
        process
    }

    fn follow_fork(&mut self, event: &ProcessEvent) -> Process {
        if event.tid != event.pid {
            let process = self.by_pid.entry(event.pid).or_insert_with(|| from_event(event));
            process.threads += 1;
            return process.clone();
        }
        // Until it becomes another program it is what its parent is.
        let parent = self.by_pid.get(&event.parent).cloned().unwrap_or_default();
        let process = Process {
            exe: parent.exe,
            args: parent.args,
            args_cut: parent.args_cut,
            threads: 1,
            ..from_event(event)
        };
        self.insert(process.clone());
        process
    }

    fn follow_exit(&mut self, event: &ProcessEvent) -> Process {
        let known = self.by_pid.get_mut(&event.pid);
        if event.is_last == 0 {
            let Some(process) = known else {
                return from_event(event);
            };
            process.threads = process.threads.saturating_sub(1);
            return process.clone();
        }
        let known = self.by_pid.remove(&event.pid);
        let process = Process {
            threads: 0,
            ended: Some((event.exit_code, event.time_ns)),
            ..known.unwrap_or_else(|| from_event(event))
        };
        // Its children have another parent now, which procfs knows.
        for child in self.by_pid.values_mut().filter(|child| child.parent == event.pid) {
            let stat = ProcFs::new(child.pid.cast_signed()).and_then(|process| process.stat());
            child.parent = stat.map_or(1, |stat| stat.ppid.cast_unsigned());
        }
        if self.ended.len() < MAX_ENDED {
            self.ended.push(process.clone());
        }
        self.makers.entry(event.pid).or_insert(event.parent);
        self.gone.push_back(event.pid);
        if self.gone.len() > MAX_ENDED {
            self.forget_oldest();
        }
        process
    }

    fn forget_oldest(&mut self) {
        // A number may have been given to another process since.
        if let Some(pid) = self.gone.pop_front()
            && !self.by_pid.contains_key(&pid)
            && !self.gone.contains(&pid)
        {
            self.makers.remove(&pid);
        }
    }
}

fn from_event(event: &ProcessEvent) -> Process {
    Process {
        pid: event.pid,
        parent: event.parent,
        uid: event.uid,
        comm: text(&event.comm),
        cgroup: event.cgroup,
        start_ns: event.start_ns,
        threads: 1,
        ..Process::default()
    }
}

fn from_procfs(process: &ProcFs, cgroup_root: Option<&Path>) -> Option<Process> {
    let stat = process.stat().ok()?;
    let exe = process.exe().map(|path| path.to_string_lossy().into_owned());
    let mut args = process.cmdline().unwrap_or_default();
    if !args.is_empty() {
        args.remove(0);
    }
    Some(Process {
        pid: process.pid().cast_unsigned(),
        parent: stat.ppid.cast_unsigned(),
        uid: process.uid().unwrap_or_default(),
        comm: stat.comm,
        exe: exe.unwrap_or_default(),
        args,
        args_cut: false,
        cgroup: cgroup_root.map_or(0, |root| cgroup_of(process, root)),
        start_ns: stat.starttime * (NS_PER_SECOND / procfs::ticks_per_second()),
        threads: u32::try_from(stat.num_threads).unwrap_or(1),
        ended: None,
    })
}

/// The kernel's id of a process's cgroup, which is its folder's inode; 0 if it has none, or has gone.
fn cgroup_of(process: &ProcFs, root: &Path) -> u64 {
    // In version 2 there is one hierarchy, and its number is 0.
    let cgroups = process.cgroups().into_iter().flatten();
    let path = cgroups
        .filter(|cgroup| cgroup.hierarchy == 0)
        .map(|cgroup| cgroup.pathname)
        .next();
    let folder = path.map(|path| root.join(path.trim_start_matches('/')));
    folder
        .and_then(|folder| fs::metadata(folder).ok())
        .map_or(0, |metadata| metadata.ino())
}

/// The state of a process as procfs shows it now, in one letter: `R` running, `S` sleeping, `D` waiting for a device, `T`
/// stopped, `Z` ended and not looked after; `None` if it has gone.
pub fn state_of(pid: u32) -> Option<char> {
    let stat = ProcFs::new(pid.cast_signed()).and_then(|process| process.stat());
    stat.ok().map(|stat| stat.state)
}

fn path(exec: &Exec) -> String {
    let len = (exec.event.path_len as usize).min(exec.path.len());
    text(&exec.path[..len])
}

fn arguments(exec: &Exec) -> Vec<String> {
    let len = (exec.event.args_len as usize).min(exec.args.len());
    let bytes = exec.args[..len].strip_suffix(&[0]).unwrap_or(&exec.args[..len]);
    if bytes.is_empty() {
        return Vec::new();
    }
    let words = bytes.split(|byte| *byte == 0);
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// The text up to the first zero.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use lab05_ringbuf_events_common::process::{ARGS_LEN, PATH_LEN};

    use super::*;

    fn event(deed: Deed, pid: u32, tid: u32, parent: u32) -> ProcessEvent {
        let mut comm = [0; 16];
        comm[..4].copy_from_slice(b"test");
        ProcessEvent {
            time_ns: 1000,
            start_ns: 900,
            cgroup: 7,
            pid,
            tid,
            parent,
            uid: 1000,
            deed: deed as u32,
            exit_code: 3 << 8,
            is_last: 1,
            path_len: 0,
            args_len: 0,
            args_total: 0,
            comm,
        }
    }

    fn exec(pid: u32, args: &[u8], total: u32) -> Exec {
        let mut exec = Exec {
            event: event(Deed::Exec, pid, pid, 1),
            path: [0; PATH_LEN],
            args: [0; ARGS_LEN],
        };
        exec.path[..9].copy_from_slice(b"/bin/true");
        exec.event.path_len = 10;
        exec.args[..args.len()].copy_from_slice(args);
        exec.event.args_len = args.len() as u32;
        exec.event.args_total = total;
        exec
    }

    #[test]
    fn arguments_come_without_the_name_and_tell_when_they_were_cut() {
        let mut processes = Processes::default();
        let whole = exec(5_000_000, b"true\0-x\0\0last\0", 14);
        let process = processes.follow(&whole.event, Some(&whole));
        assert_eq!(process.exe, "/bin/true");
        assert_eq!(process.args, ["-x", "", "last"]);
        assert!(!process.args_cut);
        let cut = exec(5_000_001, b"true\0aaaa", 2000);
        assert!(processes.follow(&cut.event, Some(&cut)).args_cut);
    }

    #[test]
    fn a_process_ends_with_its_last_thread_and_is_told_once() {
        let mut processes = Processes::default();
        processes.follow(&event(Deed::Fork, 5_000_000, 5_000_000, 1), None);
        let two = processes.follow(&event(Deed::Fork, 5_000_000, 5_000_001, 5_000_000), None);
        assert_eq!(two.threads, 2);
        let mut one_ends = event(Deed::Exit, 5_000_000, 5_000_000, 1);
        one_ends.is_last = 0;
        assert_eq!(processes.follow(&one_ends, None).threads, 1);
        assert!(processes.get(5_000_000).is_some());
        processes.follow(&event(Deed::Exit, 5_000_000, 5_000_001, 1), None);
        assert!(processes.get(5_000_000).is_none());
        let ended = processes.take_ended();
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].ended, Some((3 << 8, 1000)));
        assert!(processes.take_ended().is_empty());
    }

    #[test]
    fn who_comes_from_whom_is_known_beyond_the_end() {
        let mut processes = Processes::default();
        let (first, second, third) = (5_000_000, 5_000_001, 5_000_002);
        processes.follow(&event(Deed::Fork, first, first, 1), None);
        processes.follow(&event(Deed::Fork, second, second, first), None);
        processes.follow(&event(Deed::Fork, third, third, second), None);
        processes.follow(&event(Deed::Exit, second, second, first), None);
        assert!(processes.descends_from(second, first) && processes.descends_from(third, first));
        assert!(!processes.descends_from(first, second));
        // The number of one that has ended is another's by now.
        processes.follow(&event(Deed::Exit, third, third, 1), None);
        processes.follow(&event(Deed::Fork, third, third, 1), None);
        assert!(!processes.descends_from(third, first));
    }

    #[test]
    fn not_all_that_have_ended_are_remembered() {
        let mut processes = Processes::default();
        for pid in (5_000_000..).take(MAX_ENDED + 10) {
            processes.follow(&event(Deed::Fork, pid, pid, 1), None);
            processes.follow(&event(Deed::Exit, pid, pid, 1), None);
        }
        assert_eq!((processes.makers.len(), processes.by_pid.len()), (MAX_ENDED, 0));
        assert!(processes.descends_from(5_000_010, 1) && !processes.descends_from(5_000_009, 1));
    }

    #[test]
    fn older_processes_are_known_from_procfs_and_are_a_tree() {
        let processes = Processes::from_procfs(None);
        let this = std::process::id();
        let me = processes.get(this).unwrap();
        assert!(me.threads >= 1 && me.start_ns > 0 && !me.exe.is_empty());
        assert!(processes.descends_from(this, this));
        assert!(processes.descends_from(this, me.parent));
        assert!(!processes.descends_from(me.parent, this));
    }
}
