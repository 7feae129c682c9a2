//! What can go wrong, as cause and mend.

use std::{io, path::PathBuf};

use thiserror::Error;

/// Why the testbed could not do what was asked.
#[derive(Debug, Error)]
pub enum Error {
    /// Namespaces, raw sockets and cgroups need root.
    #[error("{what} needs root: run it with sudo, or through `cargo xtask`")]
    NeedsRoot {
        /// What was attempted.
        what: String,
    },
    /// A system call failed.
    #[error("{what}: {cause}")]
    System {
        /// What was attempted.
        what: String,
        /// The kernel's answer.
        #[source]
        cause: io::Error,
    },
    /// The kernel refused a netlink request.
    #[error("{what}: {cause}")]
    Netlink {
        /// What was attempted.
        what: String,
        /// The kernel's answer.
        cause: String,
    },
    /// A host has no interface of this name.
    #[error("host {host} has no interface {interface}")]
    NoInterface {
        /// The host's name.
        host: String,
        /// The interface's name.
        interface: String,
    },
    /// A host cannot be connected in this way.
    #[error("{0}")]
    Topology(String),
    /// Something that the kernel does by itself has not happened.
    #[error("waited {waited_s} s for {what}, in vain")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long, in seconds.
        waited_s: u64,
    },
    /// There is no cgroup v2 hierarchy.
    #[error("no cgroup v2 hierarchy is mounted: `mount -t cgroup2 none /sys/fs/cgroup/unified` adds one")]
    NoCgroup2,
    /// A capture file cannot be read or written.
    #[error("{path}: {cause}", path = .path.display())]
    Pcap {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
}

/// The testbed's result; a [kernel test](crate::kernel_tests) may return it.
pub type Result<T = (), E = Error> = std::result::Result<T, E>;

impl Error {
    /// The system call that just failed, told as what it was for.
    pub(crate) fn last_os(what: impl Into<String>) -> Self {
        Self::system(what, io::Error::last_os_error())
    }

    /// What was tried, and the system's answer; told as missing privileges where that is what it means.
    pub fn system(what: impl Into<String>, cause: impl Into<io::Error>) -> Self {
        let cause = cause.into();
        match cause.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) if !nix::unistd::geteuid().is_root() => {
                Self::NeedsRoot { what: what.into() }
            }
            _ => Self::System {
                what: what.into(),
                cause,
            },
        }
    }
}
