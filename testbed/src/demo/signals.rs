//! Ctrl-C and SIGTERM are for the program on the stage: it is to detach, and the demo ends when it has ended.

use std::{os::unix::process::CommandExt as _, process::Command, ptr, thread};

use nix::{
    sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask},
    unistd::Pid,
};

/// Has SIGINT and SIGTERM wait until they are [forwarded](forward_to). To be called before any thread is started.
pub(super) fn block() -> nix::Result<SigSet> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    Ok(signals)
}

/// Lets a command that is to be started get signals again.
pub(super) fn unblock_in(command: &mut Command) {
    // SAFETY: pthread_sigmask may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
            Ok(())
        });
    }
}

/// Passes the signals on to a program, from now on.
pub(super) fn forward_to(signals: SigSet, program: Pid) {
    thread::spawn(move || {
        loop {
            // SAFETY: all-zero bytes are a valid siginfo_t.
            let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
            // SAFETY: the set is initialised, and the result is written to a siginfo_t.
            let number = unsafe { libc::sigwaitinfo(ptr::from_ref(signals.as_ref()), &raw mut info) };
            let Ok(signal) = Signal::try_from(number) else {
                continue;
            };
            // A terminal's Ctrl-C goes to all programs in the foreground: the program has it already.
            if info.si_code != libc::SI_KERNEL {
                let _ = kill(program, signal);
            }
        }
    });
}
