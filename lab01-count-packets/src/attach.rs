//! Attaches an XDP program to an interface: native if the driver can, else generic.

use std::{fmt, io};

use aya::programs::{
    ProgramError, Xdp, XdpError, loaded_links, loaded_programs,
    xdp::{XdpLinkId, XdpMode as Mode},
};
use clap::ValueEnum;
use thiserror::Error;

use crate::interface::{Interface, XdpOnInterface};

/// How an XDP program is to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum XdpMode {
    /// Native; where the driver cannot, generic, with a notice.
    Auto,
    /// In the driver, before the kernel has allocated anything for the packet.
    Native,
    /// In the network stack, behind the driver: works everywhere and is slower.
    Generic,
    /// On the network card itself; few can.
    Offload,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offload => "offload",
        })
    }
}

/// Why a program could not be attached. Each text names the cause and the mend.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Another program is there, and only one can be.
    #[error(
        "{interface} already carries {program} (id {id}, {mode}), which is left alone; stop what attached it, or remove \
         it: `{removal}`"
    )]
    Occupied {
        /// The interface.
        interface: String,
        /// The program that is there, by name if that is known.
        program: String,
        /// Its id.
        id: u32,
        /// Its mode.
        mode: &'static str,
        /// The command that removes it.
        removal: String,
    },
    /// The driver, the card or the kernel refused.
    #[error("{interface} cannot run XDP programs in {mode} mode: {cause}; {mend}")]
    Refused {
        /// The interface.
        interface: String,
        /// The mode that was tried last.
        mode: XdpMode,
        /// The kernel's words.
        cause: String,
        /// What to do.
        mend: &'static str,
    },
    /// The interface went away.
    #[error("{interface} has gone: it was removed or renamed while the program was being attached")]
    Gone {
        /// The interface.
        interface: String,
    },
}

/// An attached program: where, how, and the link that holds it there.
#[derive(Debug)]
pub struct Attached {
    /// The mode that was reached: never [`XdpMode::Auto`].
    pub mode: XdpMode,
    /// For [`Xdp::take_link`] and [`Xdp::detach`]; the program is detached when it is dropped with its link inside.
    pub link: XdpLinkId,
}

/// Attaches `program`, which is loaded, to `interface`.
pub async fn attach_xdp(program: &mut Xdp, interface: &Interface, mode: XdpMode) -> Result<Attached, AttachError> {
    // ANCHOR: fallback
    match mode {
        XdpMode::Auto => match try_attach(program, interface, XdpMode::Native).await {
            Err(AttachError::Refused { cause, .. }) => {
                log::warn!(
                    "{} has no native XDP ({cause}); using generic, which is slower",
                    interface.name
                );
                try_attach(program, interface, XdpMode::Generic).await
            }
            attached_or_final => attached_or_final,
        },
        mode => try_attach(program, interface, mode).await,
    }
    // ANCHOR_END: fallback
}

async fn try_attach(program: &mut Xdp, interface: &Interface, mode: XdpMode) -> Result<Attached, AttachError> {
    let flag = match mode {
        XdpMode::Auto => Mode::Default,
        XdpMode::Native => Mode::Driver,
        XdpMode::Generic => Mode::Skb,
        XdpMode::Offload => Mode::Hardware,
    };
    match program.attach_to_if_index(interface.index, flag) {
        Ok(link) => Ok(Attached { mode, link }),
        Err(error) => Err(explain(interface, mode, error).await),
    }
}

async fn explain(interface: &Interface, mode: XdpMode, error: ProgramError) -> AttachError {
    let name = interface.name.clone();
    if !interface.is_present() {
        return AttachError::Gone { interface: name };
    }
    // EBUSY says so for any program, EEXIST for one in the other mode; asking is simpler than telling them apart.
    if let Ok(Some(other)) = interface.xdp().await {
        return AttachError::Occupied {
            interface: name,
            program: match program_name(other.program_id) {
                Some(program) => format!("the XDP program {program}"),
                None => "another XDP program".into(),
            },
            id: other.program_id,
            mode: other.mode,
            removal: removal(interface, &other),
        };
    }
    let (cause, mend) = match errno(&error) {
        // Drivers that know nothing of offload refuse it in different ways.
        Some(libc::EOPNOTSUPP | libc::EINVAL) if mode == XdpMode::Offload => {
            ("it has no card that runs programs".to_owned(), mend_for(mode))
        }
        Some(libc::EOPNOTSUPP) => ("its driver does not support it".to_owned(), mend_for(mode)),
        // drivers/net/veth.c and others: a packet has to fit into one page for native XDP.
        Some(libc::ERANGE) => (
            "the MTU, here or at the other end of a veth, is too large for a packet in one page".to_owned(),
            "lower the MTU, or use --xdp-mode generic",
        ),
        _ => (cause_of(&error), mend_for(mode)),
    };
    AttachError::Refused {
        interface: name,
        mode,
        cause,
        mend,
    }
}

/// The command that removes `other` from the interface.
fn removal(interface: &Interface, other: &XdpOnInterface) -> String {
    // `ip link` cannot remove what a link holds. To see links is CAP_SYS_ADMIN's; without it, no link is found.
    let link = loaded_links()
        .filter_map(Result::ok)
        .find(|link| link.program_id() == other.program_id);
    if let Some(link) = link {
        return format!("bpftool link detach id {}", link.id());
    }
    let keyword = match other.mode {
        "native" => "xdpdrv",
        "generic" => "xdpgeneric",
        "offload" => "xdpoffload",
        _ => "xdp",
    };
    format!("ip link set dev {} {keyword} off", interface.name)
}

fn mend_for(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Native | XdpMode::Offload => "try --xdp-mode generic",
        XdpMode::Auto | XdpMode::Generic => "see the kernel's log (dmesg) for its reason",
    }
}

fn errno(error: &ProgramError) -> Option<i32> {
    io_error(error)?.raw_os_error()
}

fn cause_of(error: &ProgramError) -> String {
    io_error(error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn io_error(error: &ProgramError) -> Option<&io::Error> {
    match error {
        ProgramError::SyscallError(error) => Some(&error.io_error),
        ProgramError::XdpError(XdpError::NetlinkError(error)) => {
            std::error::Error::source(error).and_then(|source| source.downcast_ref())
        }
        ProgramError::IOError(error) => Some(error),
        _ => None,
    }
}

/// The name of the loaded program with this id, as far as the kernel keeps it (15 characters). `None` if it has none,
/// or if the process may not know: to see others' programs is `CAP_SYS_ADMIN`'s.
pub fn program_name(id: u32) -> Option<String> {
    loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .filter(|name| !name.is_empty())
}
