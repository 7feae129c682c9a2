//! Tracefs, where the machine has it not mounted.

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Where tracefs belongs.
pub const TRACEFS: &str = "/sys/kernel/tracing";

/// Has the current thread, and what it starts, see tracefs, in a mount namespace of its own.
///
/// To be called before there are other threads, or in a child before it becomes another program: system calls are all that
/// it does. Needs root.
pub fn see_tracefs() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let (none, tracefs) = (None::<&str>, Some("tracefs"));
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    match mount(tracefs, TRACEFS, tracefs, MsFlags::empty(), none) {
        // Linux 5.10 says so where it is there already.
        Err(Errno::EBUSY) => Ok(()),
        mounted => mounted,
    }
}
