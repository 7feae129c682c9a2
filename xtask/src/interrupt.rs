//! Ctrl-C while a child runs: the child gets the signal too, may finish what it has begun, and is waited for.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on an interrupt is only noted here; children are interrupted as ever.
///
/// A handler, not `SIG_IGN`: what is ignored would be ignored by children too, for dispositions survive `exec`.
pub fn note_only() {
    extern "C" fn note(_signal: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    let handler = note as extern "C" fn(libc::c_int);
    // SAFETY: the handler does nothing but store to an atomic, which is allowed in a signal handler.
    unsafe {
        libc::signal(libc::SIGINT, handler as libc::sighandler_t);
    }
}

/// Whether there was one.
pub fn happened() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// The exit status that a shell gives a command ended by Ctrl-C.
pub fn status() -> ExitCode {
    ExitCode::from(128 + 2)
}
