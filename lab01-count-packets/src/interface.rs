//! Network interfaces of the namespace that the process is in, and the XDP program that an interface carries.

use std::{ffi::CString, io, time::Duration};

use futures_util::TryStreamExt as _;
use nix::{errno::Errno, net::if_::InterfaceFlags};
use rtnetlink::packet_route::link::{LinkAttribute, LinkXdp, XdpAttached};
use thiserror::Error;

/// A network interface, by name and index.
///
/// The index is its identity: an interface that was deleted and made again has the old name and a new index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// What `ip link` calls it.
    pub name: String,
    /// The kernel's index in this network namespace.
    pub index: u32,
}

/// There is no such interface.
#[derive(Debug, Error)]
#[error("there is no network interface {name:?} here; {advice}")]
pub struct UnknownInterface {
    name: String,
    advice: String,
}

impl Interface {
    /// The interface called `name`; if there is none, the error names those that there are.
    pub fn find(name: &str) -> Result<Self, UnknownInterface> {
        if let Some(index) = index_of(name) {
            return Ok(Self {
                name: name.to_owned(),
                index,
            });
        }
        let existing = names();
        let similar = existing
            .iter()
            .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
            .filter(|(similarity, _)| *similarity > 0.7)
            .max_by(|(a, _), (b, _)| a.total_cmp(b));
        let advice = match similar {
            Some((_, candidate)) => format!("did you mean {candidate}? (there are: {})", existing.join(", ")),
            None => format!("there are: {}", existing.join(", ")),
        };
        Err(UnknownInterface {
            name: name.to_owned(),
            advice,
        })
    }

    /// The interface called `name`, if there is one; an error if the kernel cannot say.
    pub fn look_up(name: &str) -> io::Result<Option<Self>> {
        let Ok(c_name) = CString::new(name) else {
            return Ok(None);
        };
        match nix::net::if_::if_nametoindex(c_name.as_c_str()) {
            Ok(index) => Ok(Some(Self {
                name: name.to_owned(),
                index,
            })),
            Err(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it is still there, under its name and with the same index.
    pub fn is_present(&self) -> bool {
        index_of(&self.name) == Some(self.index)
    }

    /// Waits until it is no longer [present](Self::is_present), which is noticed within half a second.
    pub async fn gone(&self) {
        while self.is_present() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Whether it is set up (`ip link set up`); an interface that has gone is not.
    pub fn is_up(&self) -> bool {
        let Ok(addresses) = nix::ifaddrs::getifaddrs() else {
            return false;
        };
        // Every interface is listed at least once, with its link-layer address.
        let mut addresses = addresses.filter(|address| address.interface_name == self.name);
        addresses.any(|address| address.flags.contains(InterfaceFlags::IFF_UP))
    }

    /// Says so in the log if it is down, and a newcomer would wait for packets in vain.
    pub fn warn_if_down(&self) {
        if !self.is_up() {
            log::warn!(
                "{0} is down: no packet arrives before it is set up: `ip link set dev {0} up`",
                self.name
            );
        }
    }

    /// The XDP program that it carries, if any.
    pub async fn xdp(&self) -> io::Result<Option<XdpOnInterface>> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        let link = handle.link().get().match_index(self.index).execute().try_next().await;
        connection.abort();
        let link = link.map_err(io::Error::other)?;
        Ok(link.and_then(|link| xdp_of(&link.attributes)))
    }
}

/// An XDP program on an interface, as netlink tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpOnInterface {
    /// The kernel's id of the program.
    pub program_id: u32,
    /// `native`, `generic`, `offload` or `several`.
    pub mode: &'static str,
}

fn xdp_of(attributes: &[LinkAttribute]) -> Option<XdpOnInterface> {
    let nested = attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(nested) => Some(nested),
        _ => None,
    })?;
    let mode = nested.iter().find_map(|attribute| match attribute {
        LinkXdp::Attached(XdpAttached::Driver) => Some("native"),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some("generic"),
        LinkXdp::Attached(XdpAttached::Hardware) => Some("offload"),
        LinkXdp::Attached(XdpAttached::Multiple) => Some("several"),
        _ => None,
    })?;
    let program_id = nested.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    })?;
    Some(XdpOnInterface { program_id, mode })
}

/// The names of all interfaces, in the kernel's order.
pub fn names() -> Vec<String> {
    let Ok(interfaces) = nix::net::if_::if_nameindex() else {
        return Vec::new();
    };
    interfaces
        .iter()
        .map(|interface| interface.name().to_string_lossy().into_owned())
        .collect()
}

fn index_of(name: &str) -> Option<u32> {
    let found = Interface::look_up(name).ok().flatten();
    found.map(|interface| interface.index)
}
