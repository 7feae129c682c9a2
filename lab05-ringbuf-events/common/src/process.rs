//! Records of what processes do.

/// What a process did.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It became another program.
    Exec = 0,
    /// It made another process, or a thread.
    Fork = 1,
    /// It, or one of its threads, ended.
    Exit = 2,
}

impl Deed {
    /// How many there are.
    pub const COUNT: u32 = 3;

    /// All of them, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT as usize] = [Self::Exec, Self::Fork, Self::Exit];

    /// A name for people and for JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Fork => "fork",
            Self::Exit => "exit",
        }
    }
}

/// How much of a path a record holds.
pub const PATH_LEN: usize = 256;
/// How much of the arguments a record holds.
pub const ARGS_LEN: usize = 512;

/// What happened to a process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessEvent {
    /// Nanoseconds since boot (`CLOCK_BOOTTIME`).
    pub time_ns: u64,
    /// When the process, or the thread, was made, on the same clock.
    pub start_ns: u64,
    /// The kernel's id of its cgroup.
    pub cgroup: u64,
    /// The process, as user space counts (`tgid`); of a fork, the new one.
    pub pid: u32,
    /// The thread; the same as `pid` for a process's first.
    pub tid: u32,
    /// The parent process; of a fork, the one that forked.
    pub parent: u32,
    /// The user.
    pub uid: u32,
    /// A [`Deed`].
    pub deed: u32,
    /// Of an exit: as `wait(2)` tells it, the signal in the low byte and the status in the next.
    pub exit_code: u32,
    /// Of an exit: 1 if it was the last thread, and the process has ended with it.
    pub is_last: u32,
    /// How many bytes of [`Exec::path`] are set, the closing zero included.
    pub path_len: u32,
    /// How many bytes of [`Exec::args`] are set.
    pub args_len: u32,
    /// How many bytes the arguments have in all; more than `args_len` if they were cut.
    pub args_total: u32,
    /// The name, as far as the kernel keeps it.
    pub comm: [u8; 16],
}

const _: () = assert!(size_of::<ProcessEvent>() == 80);

/// A process became another program.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Exec {
    /// The rest of what is known.
    pub event: ProcessEvent,
    /// The program's path as it was given to `execve(2)`, which may be relative.
    pub path: [u8; PATH_LEN],
    /// The arguments, each closed by a zero.
    pub args: [u8; ARGS_LEN],
}

const _: () = assert!(size_of::<Exec>() == 80 + PATH_LEN + ARGS_LEN);

/// Where the fields lie that are read of the kernel's own structures, in bytes: they differ from kernel to kernel, and
/// its type information (BTF) tells them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `task_struct.pid`: the thread.
    pub task_pid: u32,
    /// `task_struct.tgid`: the process.
    pub task_tgid: u32,
    /// `task_struct.real_parent`.
    pub task_real_parent: u32,
    /// `task_struct.start_boottime`.
    pub task_start_boottime: u32,
    /// `task_struct.exit_code`.
    pub task_exit_code: u32,
    /// `task_struct.signal`.
    pub task_signal: u32,
    /// `task_struct.mm`.
    pub task_mm: u32,
    /// `signal_struct.live`: how many threads there are that have not ended.
    pub signal_live: u32,
    /// `mm_struct.arg_start`.
    pub mm_arg_start: u32,
    /// `mm_struct.arg_end`.
    pub mm_arg_end: u32,
    /// `linux_binprm.filename`.
    pub binprm_filename: u32,
    /// Fills up to a multiple of eight bytes.
    pub padding: u32,
}

const _: () = assert!(size_of::<Offsets>() == 48);

#[cfg(target_os = "linux")]
mod pod {
    // SAFETY: `#[repr(C)]`, integers without padding, any bits are valid.
    unsafe impl aya::Pod for super::ProcessEvent {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Exec {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Offsets {}
}
