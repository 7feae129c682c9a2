//! A network namespace without a name: it lives as long as a file descriptor of it, or a process in it.

use std::{
    fs::File,
    io,
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    panic, thread,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::{Error, Result};

/// An anonymous network namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    fd: OwnedFd,
}

impl Namespace {
    pub fn new() -> Result<Self> {
        // Unsharing moves a thread for good, so a thread is spent on it; the descriptor keeps the namespace.
        let fd = thread::scope(|scope| {
            let made = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET)?;
                Ok::<_, io::Error>(OwnedFd::from(current()?))
            });
            made.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        });
        fd.map(|fd| Self { fd })
            .map_err(|error| Error::system("making a network namespace", error))
    }

    /// Runs `action` on a thread of its own inside the namespace; a panic in it is passed on.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = thread::Builder::new().spawn_scoped(scope, || {
                setns(&self.fd, CloneFlags::CLONE_NEWNET)
                    .unwrap_or_else(|errno| panic!("a network namespace cannot be entered: {errno}"));
                action()
            });
            inside
                .unwrap_or_else(|error| panic!("no thread can be started: {error}"))
                .join()
                .unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// Moves the current thread into the namespace until the guard is dropped.
    pub fn enter(&self) -> Result<Inside> {
        let before = current().map_err(|error| Error::system("opening the thread's network namespace", error))?;
        setns(&self.fd, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::system("entering a network namespace", errno))?;
        Ok(Inside {
            before,
            of_this_thread: PhantomData,
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Namespace {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

/// The current thread is inside a host; dropping this takes it back to where it was.
#[must_use = "the thread leaves the host again when this is dropped"]
#[derive(Debug)]
pub struct Inside {
    before: File,
    of_this_thread: PhantomData<*const ()>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Err(errno) = setns(&self.before, CloneFlags::CLONE_NEWNET) {
            // A thread that stays behind would do to the host what was meant for the machine.
            eprintln!("testbed: the thread cannot return to its network namespace: {errno}");
            std::process::abort();
        }
    }
}

fn current() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}
