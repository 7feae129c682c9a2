//! Attaches programs to a cgroup, by links: what is attached goes with the link, a link can be pinned, and it can be given
//! another program without a moment between.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use aya_obj::generated::{bpf_attach_type, bpf_cmd};
use lab02_xdp_firewall::syscall::{bpf, no_attributes};
pub use lab04_cgroup_policy_common::hook::Hook;
use thiserror::Error;

use crate::cgroup::Cgroup;

fn attach_type(hook: Hook) -> bpf_attach_type {
    match hook {
        Hook::Egress => bpf_attach_type::BPF_CGROUP_INET_EGRESS,
        Hook::Ingress => bpf_attach_type::BPF_CGROUP_INET_INGRESS,
        Hook::Connect4 => bpf_attach_type::BPF_CGROUP_INET4_CONNECT,
        Hook::Connect6 => bpf_attach_type::BPF_CGROUP_INET6_CONNECT,
        Hook::SendMsg4 => bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG,
        Hook::SendMsg6 => bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG,
    }
}

/// Why a program could not be attached, or its link not be kept or changed. Each text names the cause and the mend.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Another program wants to be the only one.
    #[error(
        "the hook {hook} of {} admits no further program: one is attached there, or above, that is to be the only one; \
         `bpftool cgroup tree` shows it", cgroup.display()
    )]
    Exclusive {
        /// The hook.
        hook: Hook,
        /// The cgroup's folder.
        cgroup: PathBuf,
    },
    /// The process may not.
    #[error(
        "not allowed to attach to the hook {hook} of {}: CAP_NET_ADMIN is missing; run it with sudo", cgroup.display()
    )]
    Privileges {
        /// The hook.
        hook: Hook,
        /// The cgroup's folder.
        cgroup: PathBuf,
    },
    /// The kernel has no such hook.
    #[error(
        "this kernel cannot attach to the hook {hook} of a cgroup: {cause}; Linux 5.10 or later with CONFIG_CGROUP_BPF is \
         required: `cargo xtask doctor` says what this one lacks"
    )]
    Unsupported {
        /// The hook.
        hook: Hook,
        /// The kernel's words.
        cause: io::Error,
    },
    /// The cgroup went away.
    #[error("the cgroup {} was removed while a program was being attached to it", cgroup.display())]
    Gone {
        /// The cgroup's folder.
        cgroup: PathBuf,
    },
    /// There are as many programs as there may be.
    #[error("the hook {hook} of {} has 64 programs already, which is the most: `bpftool cgroup tree`", cgroup.display())]
    TooMany {
        /// The hook.
        hook: Hook,
        /// The cgroup's folder.
        cgroup: PathBuf,
    },
    /// Pinning failed.
    #[error("{} cannot be pinned: {cause}; {}", path.display(), pin_mend(cause))]
    Pin {
        /// The pin.
        path: PathBuf,
        /// The kernel's words.
        cause: io::Error,
    },
    /// Anything else.
    #[error("the hook {hook} cannot be {verb}: {cause}")]
    Other {
        /// The hook.
        hook: Hook,
        /// What was tried.
        verb: &'static str,
        /// The kernel's words.
        cause: io::Error,
    },
}

fn pin_mend(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EEXIST) => "something is pinned there already: remove it, or take another folder",
        Some(libc::ENOENT) => "the folder above it has to be there, or the pin has been removed",
        Some(libc::EPERM | libc::EINVAL) => {
            "pins live on bpffs: take a folder below /sys/fs/bpf (`mount -t bpf bpf /sys/fs/bpf` mounts it)"
        }
        _ => "see bpf(2)",
    }
}

/// A program at a hook of a cgroup. Dropping this detaches it, unless the link is pinned.
#[derive(Debug)]
pub struct CgroupLink {
    hook: Hook,
    fd: OwnedFd,
}

impl CgroupLink {
    /// Attaches a loaded program of the hook's type to `cgroup`.
    ///
    /// Links stack: programs that others attached in the same way run as well, and a packet passes if all let it pass.
    pub fn attach(program: BorrowedFd<'_>, cgroup: &Cgroup, hook: Hook) -> Result<Self, AttachError> {
        let mut attributes = no_attributes();
        // SAFETY: for this command the kernel reads this member of the union.
        let create = unsafe { &mut attributes.link_create };
        create.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
        create.__bindgen_anon_2.target_fd = cgroup.as_fd().as_raw_fd().cast_unsigned();
        create.attach_type = attach_type(hook) as u32;
        // SAFETY: there is no pointer among them.
        let fd =
            unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attributes) }.map_err(|cause| explain(cause, cgroup, hook))?;
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { hook, fd })
    }

    /// Takes up a link that was pinned, by whomever. `hook` is where it is attached.
    pub fn from_pin(path: &Path, hook: Hook) -> Result<Self, AttachError> {
        let pinned = pinned_path(path)?;
        let mut attributes = no_attributes();
        // SAFETY: for this command the kernel reads this member of the union.
        let object = unsafe { &mut attributes.__bindgen_anon_4 };
        object.pathname = pinned.as_ptr() as u64;
        // SAFETY: the path is a C string that lives through the call.
        let fd = unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attributes) }.map_err(|cause| AttachError::Pin {
            path: path.to_owned(),
            cause,
        })?;
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { hook, fd })
    }

    /// The hook that it is at.
    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// Pins the link at `path` on bpffs: from then on the program stays attached until the pin is removed, too.
    pub fn pin(&self, path: &Path) -> Result<(), AttachError> {
        let pinned = pinned_path(path)?;
        let mut attributes = no_attributes();
        // SAFETY: for this command the kernel reads this member of the union.
        let object = unsafe { &mut attributes.__bindgen_anon_4 };
        object.pathname = pinned.as_ptr() as u64;
        object.bpf_fd = self.fd.as_raw_fd().cast_unsigned();
        // SAFETY: the path is a C string that lives through the call.
        let done = unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes) };
        done.map(drop).map_err(|cause| AttachError::Pin {
            path: path.to_owned(),
            cause,
        })
    }

    /// Puts another program in the place of the one that is attached: every packet meets one of the two (`BPF_LINK_UPDATE`,
    /// Linux 5.7).
    pub fn replace(&self, program: BorrowedFd<'_>) -> Result<(), AttachError> {
        let mut attributes = no_attributes();
        // SAFETY: for this command the kernel reads this member of the union.
        let update = unsafe { &mut attributes.link_update };
        update.link_fd = self.fd.as_raw_fd().cast_unsigned();
        update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd().cast_unsigned();
        // SAFETY: there is no pointer among them.
        let done = unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attributes) };
        done.map(drop).map_err(|cause| AttachError::Other {
            hook: self.hook,
            verb: "given another program",
            cause,
        })
    }
}

impl AsFd for CgroupLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn pinned_path(path: &Path) -> Result<CString, AttachError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|error| AttachError::Pin {
        path: path.to_owned(),
        cause: error.into(),
    })
}

fn explain(cause: io::Error, cgroup: &Cgroup, hook: Hook) -> AttachError {
    let folder = cgroup.path().to_owned();
    match cause.raw_os_error() {
        _ if !cgroup.is_present() => AttachError::Gone { cgroup: folder },
        // `cgroup_bpf_attach` and the check of capabilities ahead of it answer alike.
        Some(libc::EPERM) if lab01_count_packets::load::require_privileges().is_ok() => {
            AttachError::Exclusive { hook, cgroup: folder }
        }
        Some(libc::EPERM) => AttachError::Privileges { hook, cgroup: folder },
        Some(libc::E2BIG) => AttachError::TooMany { hook, cgroup: folder },
        Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => AttachError::Unsupported { hook, cause },
        _ => AttachError::Other {
            hook,
            verb: "attached",
            cause,
        },
    }
}
