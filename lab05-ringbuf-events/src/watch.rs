//! Brings lab05's programs into the kernel and attaches those that are wanted.

use std::{io, os::fd::AsFd as _};

use aya::{
    Ebpf, Pod,
    maps::{Array, MapData, MapError},
    programs::{CgroupAttachMode, CgroupSkb, CgroupSock, CgroupSockAddr, Program, ProgramError, RawTracePoint, Xdp},
};
use lab01_count_packets::{
    attach::{AttachError as XdpAttachError, XdpMode, attach_xdp},
    interface::Interface,
    load::{self, LoadError},
};
use lab02_xdp_firewall::{
    policy::Policy,
    tables::{FirewallTables, TablesError, map_sizes},
};
use lab04_cgroup_policy::{
    attach::{AttachError as CgroupAttachError, CgroupLink, Hook as CgroupHook},
    cgroup::Cgroup,
};
use lab05_ringbuf_events_common::{
    decision::Settings,
    process::{Deed, Offsets},
};
use thiserror::Error;

use crate::{
    OBJECT,
    books::{Books, BooksError},
    btf::{Btf, BtfError},
    flows::{Flows, FlowsError},
    reader::{ReaderError, RecordReader},
};

/// Why the programs do not run. Each text names the cause and the mend.
#[derive(Debug, Error)]
pub enum WatchError {
    /// A program or a map was refused.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The policy did not fit, or could not be written.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// A ring buffer cannot be read.
    #[error(transparent)]
    Reader(#[from] ReaderError),
    /// The books cannot be read.
    #[error(transparent)]
    Books(#[from] BooksError),
    /// The flows cannot be read.
    #[error(transparent)]
    Flows(#[from] FlowsError),
    /// XDP cannot be attached.
    #[error(transparent)]
    Xdp(#[from] XdpAttachError),
    /// The kernel's types are not known.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// A map cannot be written.
    #[error("the map {map} cannot be written: {cause}")]
    Map {
        /// Which.
        map: &'static str,
        /// The kernel's words.
        cause: MapError,
    },
    /// The object has no map of this name.
    #[error("the eBPF object has no map {0}; build it again")]
    Missing(&'static str),
    /// A program of the cgroup cannot be attached.
    #[error(transparent)]
    Cgroup(#[from] CgroupAttachError),
    /// Who makes sockets cannot be seen.
    #[error(
        "the hook sock_create of {cgroup} cannot be attached to: {cause}; `bpftool cgroup tree` shows what is there"
    )]
    Sockets {
        /// Where.
        cgroup: String,
        /// The kernel's words.
        cause: String,
    },
    /// A tracepoint cannot be attached to.
    #[error("the tracepoint {tracepoint} cannot be attached to: {cause}; leave processes out: --no-processes")]
    Tracepoint {
        /// Which.
        tracepoint: String,
        /// The kernel's words.
        cause: String,
    },
}

/// What the maps are made for.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Prefixes of the policy.
    pub max_entries: u32,
    /// Bytes of each ring buffer: a power of two, and whole pages.
    pub ring_bytes: u32,
    /// Flows, and owners of sockets.
    pub max_flows: u32,
}

/// The program for a hook of a cgroup, which is called as the hook is.
fn program_of(hook: CgroupHook) -> &'static str {
    hook.name()
}

/// The programs, in the kernel; dropping this detaches them.
pub struct Watch {
    ebpf: Ebpf,
    links: Vec<CgroupLink>,
    /// Keeps the policy's tables.
    _tables: FirewallTables,
    /// Records of decisions.
    pub decisions: RecordReader,
    /// Records of what processes do.
    pub processes: RecordReader,
    /// The books.
    pub books: Books,
    /// The flows.
    pub flows: Flows,
}

impl Watch {
    // ANCHOR: load
    /// Loads all programs but those for processes, with a policy in force, and attaches none. To be called inside a runtime.
    pub fn load(sizes: Sizes, policy: &Policy, settings: Settings) -> Result<Self, WatchError> {
        let mut capacities = map_sizes(sizes.max_entries).to_vec();
        capacities.extend([
            ("DECISIONS", sizes.ring_bytes),
            ("PROCESSES", sizes.ring_bytes),
            ("FLOWS", sizes.max_flows),
            ("OWNERS", sizes.max_flows),
        ]);
        let mut ebpf = load::load_object(OBJECT, &capacities)?;
        load_programs(&mut ebpf)?;
        let mut tables = FirewallTables::take(&mut ebpf, sizes.max_entries)?;
        tables.apply(policy)?;
        set(&mut ebpf, "SETTINGS", settings)?;
        Ok(Self {
            decisions: RecordReader::take(&mut ebpf, "DECISIONS")?,
            processes: RecordReader::take(&mut ebpf, "PROCESSES")?,
            books: Books::take(&mut ebpf)?,
            flows: Flows::take(&mut ebpf)?,
            _tables: tables,
            links: Vec::new(),
            ebpf,
        })
    }
    // ANCHOR_END: load

    /// The loaded object, for what else is done with its programs.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Decides about frames that arrive at an interface; the mode that was reached.
    pub async fn attach_xdp(&mut self, interface: &Interface, mode: XdpMode) -> Result<XdpMode, WatchError> {
        let program: &mut Xdp = load::program(&mut self.ebpf, "firewall", "XDP")?;
        Ok(attach_xdp(program, interface, mode).await?.mode)
    }

    /// Decides about what the processes of a cgroup send, and counts their flows.
    pub fn attach_cgroup(&mut self, cgroup: &Cgroup) -> Result<(), WatchError> {
        // Owners first: a socket that is made from here on is somebody's.
        let program: &mut CgroupSock = load::program(&mut self.ebpf, "sock_create", "cgroup_sock")?;
        program
            .attach(cgroup, CgroupAttachMode::Single)
            .map_err(|error| WatchError::Sockets {
                cgroup: cgroup.path().display().to_string(),
                cause: cause(error),
            })?;
        for hook in CgroupHook::ALL {
            let program = self.ebpf.program(program_of(hook)).and_then(|program| match program {
                Program::CgroupSkb(program) => program.fd().ok(),
                Program::CgroupSockAddr(program) => program.fd().ok(),
                _ => None,
            });
            let program = program.ok_or(WatchError::Missing(program_of(hook)))?;
            self.links.push(CgroupLink::attach(program.as_fd(), cgroup, hook)?);
        }
        Ok(())
    }

    /// Follows what processes do.
    pub fn attach_processes(&mut self) -> Result<(), WatchError> {
        let offsets: Offsets = Btf::of_kernel()?.process_offsets()?;
        set(&mut self.ebpf, "OFFSETS", offsets)?;
        for deed in Deed::ALL {
            let tracepoint = format!("sched_process_{}", deed.name());
            let name = format!("process_{}", deed.name());
            let program: &mut RawTracePoint = load::program(&mut self.ebpf, &name, "raw tracepoint")?;
            // Only here, so that a kernel that refuses these can do all the rest.
            program.load().map_err(|error| WatchError::Tracepoint {
                tracepoint: tracepoint.clone(),
                cause: load::explain_program(&name, error).to_string(),
            })?;
            let failed = |error| WatchError::Tracepoint {
                tracepoint: tracepoint.clone(),
                cause: cause(error),
            };
            program.attach(&tracepoint).map_err(failed)?;
            let fd = program.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(failed)?;
            self.books.watch(fd);
        }
        Ok(())
    }
}

fn load_programs(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let program: &mut Xdp = load::program(ebpf, "firewall", "XDP")?;
    program
        .load()
        .map_err(|error| load::explain_program("firewall", error))?;
    for hook in CgroupHook::ALL {
        let name = program_of(hook);
        let loaded = match hook {
            CgroupHook::Ingress | CgroupHook::Egress => load::program::<CgroupSkb>(ebpf, name, "cgroup_skb")?.load(),
            _ => load::program::<CgroupSockAddr>(ebpf, name, "cgroup_sock_addr")?.load(),
        };
        loaded.map_err(|error| load::explain_program(name, error))?;
    }
    let program: &mut CgroupSock = load::program(ebpf, "sock_create", "cgroup_sock")?;
    program
        .load()
        .map_err(|error| load::explain_program("sock_create", error))?;
    Ok(())
}

/// Sets the one value of an array.
pub fn set<T: Pod>(ebpf: &mut Ebpf, map: &'static str, value: T) -> Result<(), WatchError> {
    let failed = |cause| WatchError::Map { map, cause };
    let array = ebpf.map_mut(map).ok_or(WatchError::Missing(map))?;
    let mut array: Array<&mut MapData, T> = array.try_into().map_err(failed)?;
    array.set(0, value, 0).map_err(failed)
}

/// The kernel's words.
pub fn cause(error: ProgramError) -> String {
    let words = |error: &io::Error| error.to_string();
    match &error {
        ProgramError::SyscallError(error) => words(&error.io_error),
        ProgramError::IOError(error) => words(error),
        error => error.to_string(),
    }
}
