//! Attaches programs to an interface's TC hooks: by TCX where the kernel has it, else by clsact.
//!
//! TCX (Linux 6.6) holds programs by links: they go when the process does, and other programs keep their places. Before
//! it, programs are filters of the clsact queueing discipline, which somebody has to add, and which outlive the process
//! that added them unless it removes them.
//!
//! Programs that are on a hook already are left alone, and ours comes first: a program before it that ends the
//! classification (`TC_ACT_OK`) would keep packets from it. What ours lets pass it leaves to the others
//! (`TC_ACT_UNSPEC`).

use std::{
    error::Error as StdError,
    fmt,
    future::Future,
    io,
    mem::{size_of, zeroed},
};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError},
};
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd};
use clap::ValueEnum;
use futures_util::TryStreamExt as _;
use lab01_count_packets::{attach::program_name, interface::Interface};
use rtnetlink::{
    Handle,
    packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use thiserror::Error;

/// How programs are to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TcAttach {
    /// By TCX where the kernel has it, else by clsact.
    Auto,
    /// By TCX: Linux 6.6 or later.
    Tcx,
    /// As filters of the clsact queueing discipline: any Linux.
    Clsact,
}

/// How programs were attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By TCX.
    Tcx,
    /// As filters of clsact.
    Clsact,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// Which of the two hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// What comes in.
    Ingress,
    /// What goes out.
    Egress,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    fn tcx_number(self) -> u32 {
        match self {
            Self::Ingress => bpf_attach_type::BPF_TCX_INGRESS as u32,
            Self::Egress => bpf_attach_type::BPF_TCX_EGRESS as u32,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// Why a program could not be attached. Each text names the cause and the mend.
#[derive(Debug, Error)]
pub enum TcAttachError {
    /// TCX was asked for and is not there.
    #[error(
        "the kernel ({release}) has no TCX, which came with Linux 6.6; leave --attach away, or use --attach clsact, \
         which works on any"
    )]
    NoTcx {
        /// What `uname -r` says.
        release: String,
    },
    /// The queueing discipline is not there, and cannot be added.
    #[error(
        "the clsact queueing discipline cannot be added to {interface}: {cause}; the kernel needs CONFIG_NET_SCH_INGRESS, \
         or its module: `modprobe sch_ingress`"
    )]
    NoClsact {
        /// The interface.
        interface: String,
        /// The kernel's words.
        cause: String,
    },
    /// The older queueing discipline of which clsact is the successor is there. It takes filters for egress, too, and
    /// shows them what comes in (`ingress_tcf_block` in `net/sched/sch_ingress.c`).
    #[error(
        "{interface} has an `ingress` queueing discipline, which has no egress and keeps clsact away; remove it: \
         `tc qdisc del dev {interface} ingress`"
    )]
    NoEgress {
        /// The interface.
        interface: String,
    },
    /// The filter was refused.
    #[error(
        "{interface} takes no program as a filter on {direction}: {cause}; the kernel needs CONFIG_NET_CLS_BPF, or its \
         module: `modprobe cls_bpf`"
    )]
    Filter {
        /// The interface.
        interface: String,
        /// The hook.
        direction: Direction,
        /// The kernel's words.
        cause: String,
    },
    /// The link was refused.
    #[error("{interface} takes no program on {direction} by TCX: {cause}; try --attach clsact")]
    Link {
        /// The interface.
        interface: String,
        /// The hook.
        direction: Direction,
        /// The kernel's words.
        cause: String,
    },
    /// The hooks cannot be asked what is on them.
    #[error("{interface} cannot be asked for its programs: {cause}; CAP_NET_ADMIN is needed")]
    Query {
        /// The interface.
        interface: String,
        /// The kernel's words.
        cause: io::Error,
    },
    /// The interface went away.
    #[error(
        "{interface} has gone: it was removed, renamed or moved while programs were being attached; start again with an \
         interface that is there"
    )]
    Gone {
        /// The interface.
        interface: String,
    },
}

/// A program on a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnHook {
    /// The hook.
    pub direction: Direction,
    /// How it is attached there.
    pub way: Way,
    /// The kernel's id of it; none for a filter that is no program.
    pub program_id: Option<u32>,
    /// Its name, or what kind of filter it is, as far as the process may know.
    pub name: Option<String>,
}

impl fmt::Display for OnHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_deref().unwrap_or("a program");
        match self.program_id {
            Some(id) => write!(f, "{name} (id {id}, {}) on {}", self.way, self.direction),
            None => write!(f, "a filter of kind {name} ({}) on {}", self.way, self.direction),
        }
    }
}

/// The TC hooks of an interface, with the programs that were attached through this; dropping it removes them, and the
/// clsact queueing discipline if it was added here and nobody else uses it by then.
///
/// To be dropped in the network namespace in which it was made.
pub struct TcHooks {
    interface: Interface,
    way: Way,
    // Dropped in this order: the filters before the discipline that holds them.
    links: Vec<SchedClassifierLink>,
    program_ids: Vec<u32>,
    clsact: Option<AddedClsact>,
}

impl TcHooks {
    /// Finds out how programs can be attached to `interface`.
    pub fn open(interface: &Interface, how: TcAttach) -> Result<Self, TcAttachError> {
        let way = match how {
            TcAttach::Clsact => Way::Clsact,
            TcAttach::Auto | TcAttach::Tcx => {
                let has_tcx = has_tcx(interface)?;
                match (has_tcx, how) {
                    (true, _) => Way::Tcx,
                    (false, TcAttach::Auto) => Way::Clsact,
                    (false, _) => return Err(TcAttachError::NoTcx { release: release() }),
                }
            }
        };
        let clsact = match way {
            Way::Tcx => None,
            Way::Clsact => AddedClsact::add(interface)?,
        };
        Ok(Self {
            interface: interface.clone(),
            way,
            links: Vec::new(),
            program_ids: Vec::new(),
            clsact,
        })
    }

    /// How programs are attached.
    pub fn way(&self) -> Way {
        self.way
    }

    /// Attaches `program`, which is loaded, ahead of those that are there.
    pub fn attach(&mut self, program: &mut SchedClassifier, direction: Direction) -> Result<(), TcAttachError> {
        if (self.way, direction) == (Way::Clsact, Direction::Egress) && has_ingress_only(&self.interface) {
            return Err(TcAttachError::NoEgress {
                interface: self.interface.name.clone(),
            });
        }
        // ANCHOR: attach
        let options = match self.way {
            Way::Tcx => TcAttachOptions::TcxOrder(LinkOrder::first()),
            // Without a priority the kernel gives the filter one before all others.
            Way::Clsact => TcAttachOptions::Netlink(NlOptions::default()),
        };
        let link = program
            .attach_with_options(&self.interface.name, direction.attach_type(), options)
            .and_then(|id| program.take_link(id))
            .map_err(|error| self.explain(direction, &error))?;
        self.links.push(link);
        // ANCHOR_END: attach
        self.program_ids.extend(program.info().ok().map(|info| info.id()));
        Ok(())
    }

    /// What else is on the two hooks, in no particular order.
    pub fn others(&self) -> Result<Vec<OnHook>, TcAttachError> {
        let mut all = programs_on(&self.interface)?;
        all.retain(|on_hook| on_hook.program_id.is_none_or(|id| !self.program_ids.contains(&id)));
        Ok(all)
    }

    /// Gives up the links, for pinning (TCX), or for being found again by priority and handle (clsact). What they hold
    /// stays attached for as long as they do.
    pub fn into_links(self) -> Vec<SchedClassifierLink> {
        let Self { links, clsact, .. } = self;
        if let Some(clsact) = clsact {
            clsact.keep();
        }
        links
    }

    fn explain(&self, direction: Direction, error: &ProgramError) -> TcAttachError {
        let interface = self.interface.name.clone();
        if !self.interface.is_present() {
            return TcAttachError::Gone { interface };
        }
        let cause = cause_of(error);
        match self.way {
            Way::Tcx => TcAttachError::Link {
                interface,
                direction,
                cause,
            },
            Way::Clsact => TcAttachError::Filter {
                interface,
                direction,
                cause,
            },
        }
    }
}

/// Every program and filter on the two hooks of `interface`.
pub fn programs_on(interface: &Interface) -> Result<Vec<OnHook>, TcAttachError> {
    let mut all = Vec::new();
    for direction in Direction::ALL {
        let by_tcx = query_tcx(interface, direction).map_err(|cause| not_asked(interface, cause))?;
        all.extend(by_tcx.unwrap_or_default().into_iter().map(|id| OnHook {
            direction,
            way: Way::Tcx,
            program_id: Some(id),
            name: program_name(id),
        }));
        // Where there is no clsact, the answer is an error, or no filter.
        all.extend(filters(interface, direction).unwrap_or_default());
    }
    Ok(all)
}

// ANCHOR: probe
/// Whether the kernel has TCX: by asking it what is on a hook, which an older one does not understand.
fn has_tcx(interface: &Interface) -> Result<bool, TcAttachError> {
    query_tcx(interface, Direction::Egress)
        .map(|programs| programs.is_some())
        .map_err(|cause| not_asked(interface, cause))
}
// ANCHOR_END: probe

fn not_asked(interface: &Interface, cause: io::Error) -> TcAttachError {
    let is_present = interface.is_present();
    let interface = interface.name.clone();
    if is_present {
        TcAttachError::Query { interface, cause }
    } else {
        TcAttachError::Gone { interface }
    }
}

/// The ids of the programs on a hook by TCX, in their order; `None` if the kernel has no TCX.
///
/// By the system call and not by aya, which asks for each program's description as well, and that is `CAP_SYS_ADMIN`'s.
fn query_tcx(interface: &Interface, direction: Direction) -> io::Result<Option<Vec<u32>>> {
    let mut ids = [0_u32; 64];
    // SAFETY: all zeroes are a valid `bpf_attr`.
    let mut attributes: bpf_attr = unsafe { zeroed() };
    // SAFETY: for this command the kernel reads and writes this member of the union.
    let query = unsafe { &mut attributes.query };
    query.__bindgen_anon_1.target_ifindex = interface.index;
    query.attach_type = direction.tcx_number();
    query.prog_ids = ids.as_mut_ptr() as u64;
    query.__bindgen_anon_2.prog_cnt = ids.len() as u32;
    // SAFETY: the attributes and the array that they point to live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_PROG_QUERY as u32,
            &raw mut attributes,
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::EINVAL | libc::EOPNOTSUPP) => Ok(None),
            // No hook of this interface was ever used.
            Some(libc::ENOENT) => Ok(Some(Vec::new())),
            _ => Err(error),
        };
    }
    // SAFETY: the kernel has just written it.
    let count = unsafe { attributes.query.__bindgen_anon_2.prog_cnt } as usize;
    Ok(Some(ids[..count.min(ids.len())].to_vec()))
}

/// The filters on a hook of clsact.
fn filters(interface: &Interface, direction: Direction) -> io::Result<Vec<OnHook>> {
    let index = interface.index.cast_signed();
    let messages: Vec<TcMessage> = ask_netlink(|handle| async move {
        let request = handle.traffic_filter(index).get();
        match direction {
            Direction::Ingress => request.ingress(),
            Direction::Egress => request.egress(),
        }
        .execute()
        .try_collect()
        .await
    })?;
    Ok(messages
        .iter()
        .filter_map(|message| filter(message, direction))
        .collect())
}

fn filter(message: &TcMessage, direction: Direction) -> Option<OnHook> {
    let kind = kind(message)?;
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let Some(options) = options else {
        // A dump names each priority once more, for the chain of filters that it is, without options.
        return None;
    };
    let program_id = options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    });
    let name = options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
        _ => None,
    });
    Some(OnHook {
        direction,
        way: Way::Clsact,
        program_id,
        name: name.or_else(|| Some(kind.to_owned())),
    })
}

fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

/// The queueing disciplines of `interface`, by kind; those of its queues included.
pub fn qdiscs(interface: &Interface) -> io::Result<Vec<String>> {
    let index = interface.index.cast_signed();
    let messages: Vec<TcMessage> =
        ask_netlink(|handle| async move { handle.qdisc().get().index(index).execute().try_collect().await })?;
    Ok(messages
        .iter()
        // The kernel tells those of all interfaces, whatever was asked for.
        .filter(|message| message.header.index == index)
        .filter_map(kind)
        .map(str::to_owned)
        .collect())
}

/// Whether there is the queueing discipline that has ingress only. (clsact calls itself by its name.)
fn has_ingress_only(interface: &Interface) -> bool {
    qdiscs(interface).is_ok_and(|kinds| kinds.iter().any(|kind| kind == "ingress"))
}

/// A clsact queueing discipline that was added here, and is removed with this unless somebody else uses it by then.
struct AddedClsact {
    interface: Option<Interface>,
}

impl AddedClsact {
    /// Adds it; `None` if it is there already.
    fn add(interface: &Interface) -> Result<Option<Self>, TcAttachError> {
        match tc::qdisc_add_clsact(&interface.name) {
            Ok(()) => Ok(Some(Self {
                interface: Some(interface.clone()),
            })),
            Err(TcError::AlreadyAttached) => Ok(None),
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => Ok(None),
            Err(_) if !interface.is_present() => Err(TcAttachError::Gone {
                interface: interface.name.clone(),
            }),
            Err(error) => Err(TcAttachError::NoClsact {
                interface: interface.name.clone(),
                cause: cause_of(&error),
            }),
        }
    }

    fn keep(mut self) {
        self.interface = None;
    }
}

impl Drop for AddedClsact {
    fn drop(&mut self) {
        let Some(interface) = self.interface.take() else { return };
        let in_use = Direction::ALL
            .into_iter()
            .any(|direction| filters(&interface, direction).map_or(true, |filters| !filters.is_empty()));
        if in_use || !interface.is_present() {
            return;
        }
        let index = interface.index.cast_signed();
        // If it fails, an empty discipline stays, which does nothing.
        let _ = ask_netlink(|handle| async move {
            let mut request = handle.qdisc().del(index);
            request.message_mut().header.parent = TcHandle::CLSACT;
            request.message_mut().header.handle = TcHandle {
                major: TcHandle::CLSACT.major,
                minor: 0,
            };
            request.execute().await
        });
    }
}

/// Asks the kernel by netlink, and waits for the answer, on a thread of its own: the caller may be inside a runtime, or
/// in the middle of being dropped.
fn ask_netlink<T, F>(ask: impl FnOnce(Handle) -> F + Send) -> io::Result<T>
where
    T: Send,
    F: Future<Output = Result<T, rtnetlink::Error>>,
{
    let ask = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            ask(handle).await.map_err(|error| match error {
                rtnetlink::Error::NetlinkError(message) => message.to_io(),
                error => io::Error::other(error),
            })
        })
    };
    std::thread::scope(|scope| scope.spawn(ask).join())
        .unwrap_or_else(|_| Err(io::Error::other("the thread that asked the kernel has failed")))
}

/// The kernel's words, from an error that wraps them.
fn cause_of(error: &(dyn StdError + 'static)) -> String {
    let mut current = Some(error);
    while let Some(error) = current {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.to_string();
        }
        current = error.source();
    }
    error.to_string()
}

fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}
