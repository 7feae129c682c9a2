//! A disposable host: an anonymous network namespace with a name for error messages.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    io,
    net::IpAddr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::process::CommandExt as _,
    },
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::sched::{CloneFlags, setns};

use crate::{
    Capture, Error, Injector, Inside, Link, LinkOptions, Result,
    addresses::Subnet,
    bpf::XdpLink,
    cgroup, link,
    namespace::Namespace,
    netlink::{self, LinkChange},
};

/// A disposable host.
///
/// It has a network stack of its own, with `lo` up and, once it is [joined](Host::join) to another host or
/// [connected](crate::Switch::connect) to a switch, the interfaces `eth0`, `eth1`, …. File system, users and processes
/// are the machine's own.
///
/// Clones are the same host. It is gone when the last of them, of its [`End`](crate::End)s and of the processes in it is; a process
/// killed by `kill -9` leaves nothing behind, since nothing but its file descriptors held the host.
#[derive(Clone, Debug)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    namespace: Namespace,
    wiring: Mutex<Wiring>,
}

#[derive(Debug, Default)]
pub(crate) struct Wiring {
    pub interfaces: u32,
    pub subnets: BTreeSet<Subnet>,
    /// XDP programs of the testbed's own on this host's interfaces; they go with the host.
    pub xdp_links: Vec<XdpLink>,
    settings: BTreeMap<u32, Settings>,
}

/// What an interface was given, by its index: the kernel forgets some of it when it goes down.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    pub addresses: Vec<(IpAddr, u8)>,
    pub neighbours: Vec<(IpAddr, [u8; 6])>,
}

impl Host {
    /// A new host with nothing but `lo`. The name appears in messages only: two hosts may have the same.
    pub fn new(name: &str) -> Result<Self> {
        cgroup::sweep_once();
        let namespace = Namespace::new()?;
        netlink::set_link(&namespace, LOOPBACK, "setting lo up", LinkChange::up)?;
        Ok(Self {
            inner: Arc::new(Inner {
                name: name.to_owned(),
                namespace,
                wiring: Mutex::default(),
            }),
        })
    }

    /// The name that it was given.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Links two hosts by a virtual cable (a veth pair); the left end is this host's.
    pub fn join(&self, other: &Host) -> Result<Link> {
        self.join_with(other, LinkOptions::default())
    }

    /// As [`Host::join`], with other than the default options.
    pub fn join_with(&self, other: &Host, options: LinkOptions) -> Result<Link> {
        link::join(self, other, options)
    }

    /// Runs `action` inside the host, on a thread of its own; returns what it returns, and panics as it panics.
    ///
    /// Sockets made there stay in the host, wherever they are used later.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        self.inner.namespace.run(action)
    }

    /// Moves the *current thread* into the host, until the returned guard is dropped.
    ///
    /// For code that has to run on this thread; [`Host::run`] is simpler otherwise. Threads that are started meanwhile
    /// start inside the host and stay there.
    pub fn enter(&self) -> Result<Inside> {
        self.inner.namespace.enter()
    }

    /// A command that will run inside the host, and dies when this process does.
    ///
    /// The kernel ties a child to the *thread* that started it: it is killed when that thread ends. So don't start one
    /// inside [`Host::run`] that shall live longer; [`spawn`](crate::spawn) starts it from a thread that never ends.
    ///
    /// The program sees the machine's `/sys`, in which `/sys/class/net` lists the machine's interfaces.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let host = self.clone();
        let parent = nix::unistd::getpid();
        // SAFETY: between fork and exec only async-signal-safe system calls are made, and nothing is allocated: the
        // clone of the host keeps its descriptor open for as long as the command exists.
        unsafe {
            command.pre_exec(move || {
                setns(host.as_fd(), CloneFlags::CLONE_NEWNET)?;
                die_with_parent(parent)
            });
        }
        command
    }

    /// What to type in another terminal to get a shell inside the host, while this process runs.
    pub fn enter_hint(&self) -> String {
        format!(
            "nsenter --net=/proc/{}/fd/{}",
            std::process::id(),
            self.inner.namespace.as_raw_fd()
        )
    }

    /// Sends one Ethernet frame out of an interface, as it is.
    pub fn inject(&self, interface: &str, frame: &[u8]) -> Result<()> {
        self.injector(interface)?.send(frame)
    }

    /// For sending many Ethernet frames out of an interface.
    pub fn injector(&self, interface: &str) -> Result<Injector> {
        Injector::open(self, interface)
    }

    /// Starts to capture what arrives at an interface. What the host itself sends is left out.
    pub fn capture(&self, interface: &str) -> Result<Capture> {
        Capture::open(self, interface)
    }

    /// The kernel's index of an interface.
    pub fn index_of(&self, interface: &str) -> Result<u32> {
        self.run(|| nix::net::if_::if_nametoindex(interface))
            .map_err(|_| Error::NoInterface {
                host: self.name().to_owned(),
                interface: interface.to_owned(),
            })
    }

    /// Sets a kernel parameter of this host only, by its path below `/proc/sys/net`: `ipv4/ip_forward`.
    pub fn set_parameter(&self, path: &str, value: &str) -> Result<()> {
        netlink::set_parameter(self.namespace(), path, value)
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.inner.namespace
    }

    pub(crate) fn wiring(&self) -> MutexGuard<'_, Wiring> {
        self.inner.wiring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is(&self, other: &Host) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl Wiring {
    pub fn settings_of(&mut self, index: u32) -> &mut Settings {
        self.settings.entry(index).or_default()
    }

    /// The number of the next interface: 0 for `eth0`.
    pub fn next_interface(&mut self) -> u32 {
        self.interfaces += 1;
        self.interfaces - 1
    }
}

impl AsFd for Host {
    /// The host's network namespace, for `setns`.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.namespace.as_fd()
    }
}

/// `lo` is the first interface of every namespace.
const LOOPBACK: u32 = 1;

/// To be called in a child: has it killed as soon as the thread of `parent` that started it ends.
pub(crate) fn die_with_parent(parent: nix::unistd::Pid) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    // The parent may have died before the signal was asked for; then nobody will send it.
    if nix::unistd::getppid() == parent {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }
}
