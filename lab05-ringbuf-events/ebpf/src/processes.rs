//! What processes do, read from the kernel's own structures.

use aya_ebpf::{
    btf_maps::{PerCpuArray, RingBuf},
    helpers::{
        bpf_get_current_comm, bpf_get_current_uid_gid, bpf_probe_read_kernel,
        generated::{bpf_get_current_cgroup_id, bpf_ktime_get_boot_ns, bpf_probe_read_kernel_str, bpf_probe_read_user},
    },
};
use core::hint::black_box;

use lab05_ringbuf_events_common::{
    decision::Tally,
    process::{ARGS_LEN, Deed, Exec, Offsets, PATH_LEN, ProcessEvent},
};

use crate::records::{Runs, add_one};

/// A structure of the kernel's, of which only some fields are known, by where they lie.
#[derive(Clone, Copy)]
pub struct KernelObject(pub *const u8);

impl KernelObject {
    /// The field at `offset`; zero if it cannot be read.
    #[inline(always)]
    fn read<T: Copy + Default>(self, offset: u32) -> T {
        // SAFETY: the helper checks the address, and says so if it is none.
        unsafe { bpf_probe_read_kernel(self.0.wrapping_add(offset as usize).cast::<T>()) }.unwrap_or_default()
    }

    /// What the field at `offset` points to.
    #[inline(always)]
    fn follow(self, offset: u32) -> Self {
        Self(self.read::<u64>(offset) as *const u8)
    }
}

/// The maps by which is told what processes do.
pub struct Told<'a, const RING: usize> {
    /// Where records go.
    pub ring: &'a RingBuf<ProcessEvent, RING>,
    /// The books, a tally for each [`Deed`].
    pub tallies: &'a PerCpuArray<Tally, { Deed::COUNT as usize }>,
}

impl<const RING: usize> Told<'_, RING> {
    /// Tells that `task`, the current one, has become the program that `binprm` describes.
    #[inline(always)]
    pub fn exec(&self, task: KernelObject, binprm: KernelObject, offsets: &Offsets) {
        // Asked once whether there is an entry, here as in `send`: Linux 5.10 and 6.1 forget the answer, and hold that a
        // second time it may be another.
        let Some(mut entry) = self.ring.reserve_untyped::<Exec>(0) else {
            return self.keep_books(Deed::Exec, Was::Lost);
        };
        self.keep_books(Deed::Exec, Was::Told);
        let exec = entry.as_mut_ptr();
        let mut event = event(Deed::Exec, task, offsets);
        event.parent = task.follow(offsets.task_real_parent).read(offsets.task_tgid);
        // ANCHOR: args
        let mm = task.follow(offsets.task_mm);
        let start: u64 = mm.read(offsets.mm_arg_start);
        let total = mm.read::<u64>(offsets.mm_arg_end).wrapping_sub(start) as u32;
        event.args_total = total;
        // A number that the compiler knows nothing of, so that it leaves the comparison where the verifier sees it.
        let len = black_box(total);
        event.args_len = if len < ARGS_LEN as u32 { len } else { ARGS_LEN as u32 };
        // SAFETY: the entry has room for so many bytes; what cannot be read is zeros.
        let result = unsafe {
            if len < ARGS_LEN as u32 {
                bpf_probe_read_user((&raw mut (*exec).args).cast(), len, start as *const _)
            } else {
                bpf_probe_read_user((&raw mut (*exec).args).cast(), ARGS_LEN as u32, start as *const _)
            }
        };
        if result != 0 {
            event.args_len = 0;
        }
        // ANCHOR_END: args
        let path = binprm.follow(offsets.binprm_filename);
        // SAFETY: as above, for the path.
        let written =
            unsafe { bpf_probe_read_kernel_str((&raw mut (*exec).path).cast(), PATH_LEN as u32, path.0.cast()) };
        event.path_len = u32::try_from(written).unwrap_or(0);
        // SAFETY: the entry is ours until it is submitted.
        unsafe { (*exec).event = event };
        entry.submit(0);
    }

    /// Tells that `parent`, the current task, has made `child`: a process, or a thread.
    #[inline(always)]
    pub fn fork(&self, parent: KernelObject, child: KernelObject, offsets: &Offsets) {
        let mut event = event(Deed::Fork, child, offsets);
        event.parent = parent.read(offsets.task_tgid);
        self.send(Deed::Fork, event);
    }

    /// Tells that `task`, the current one, ends.
    #[inline(always)]
    pub fn exit(&self, task: KernelObject, offsets: &Offsets) {
        let mut event = event(Deed::Exit, task, offsets);
        event.exit_code = task.read(offsets.task_exit_code);
        // A process ends with its last thread, which need not be its first one.
        let live: u32 = task.follow(offsets.task_signal).read(offsets.signal_live);
        event.is_last = u32::from(live == 0);
        event.parent = task.follow(offsets.task_real_parent).read(offsets.task_tgid);
        self.send(Deed::Exit, event);
    }

    #[inline(always)]
    fn send(&self, deed: Deed, event: ProcessEvent) {
        let Some(mut entry) = self.ring.reserve(0) else {
            return self.keep_books(deed, Was::Lost);
        };
        self.keep_books(deed, Was::Told);
        entry.write(event);
        entry.submit(0);
    }

    #[inline(always)]
    fn keep_books(&self, deed: Deed, was: Was) {
        let Some(tally) = self.tallies.get_ptr_mut(deed as u32) else {
            return;
        };
        // SAFETY: the value lies in the map for as long as the map does.
        unsafe {
            let line = match was {
                Was::Told => &raw mut (*tally).emitted,
                Was::Lost => &raw mut (*tally).lost,
            };
            add_one(&raw mut (*tally).decisions, Runs::Interruptible);
            add_one(line, Runs::Interruptible);
        }
    }
}

/// What became of a record.
#[derive(Clone, Copy)]
enum Was {
    /// There was room for it.
    Told,
    /// There was none.
    Lost,
}

/// What is the same for all deeds.
#[inline(always)]
fn event(deed: Deed, task: KernelObject, offsets: &Offsets) -> ProcessEvent {
    ProcessEvent {
        // SAFETY: helpers without arguments.
        time_ns: unsafe { bpf_ktime_get_boot_ns() },
        start_ns: task.read(offsets.task_start_boottime),
        // SAFETY: as above.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        pid: task.read(offsets.task_tgid),
        tid: task.read(offsets.task_pid),
        parent: 0,
        uid: bpf_get_current_uid_gid() as u32,
        deed: deed as u32,
        exit_code: 0,
        is_last: 0,
        path_len: 0,
        args_len: 0,
        args_total: 0,
        comm: bpf_get_current_comm().unwrap_or_default(),
    }
}
