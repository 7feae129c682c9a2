//! Netlink requests, made from within a namespace and waited for.

use std::{fs, future::Future, io, net::IpAddr, os::fd::RawFd, pin::pin};

use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth,
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{InfoBridge, InfoData, InfoVeth, LinkAttribute, LinkMessage, LinkXdp, State, XdpAttached},
        neighbour::{NeighbourFlags, NeighbourState},
        tc::{TcAttribute, TcHandle, TcMessage},
    },
};
use tokio::runtime::Builder;

use crate::{Error, Result, namespace::Namespace, wait::wait_for};

/// One end of a veth pair that is to be made.
pub(crate) struct VethEnd<'a> {
    pub name: &'a str,
    pub index: u32,
    pub mac: [u8; 6],
    pub namespace: RawFd,
    pub mtu: u32,
    pub queues: u32,
}

impl VethEnd<'_> {
    fn message(&self) -> LinkMessage {
        self.describe(LinkMessageBuilder::<LinkUnspec>::new())
            .setns_by_fd(self.namespace)
            .build()
    }

    fn describe<T>(&self, builder: LinkMessageBuilder<T>) -> LinkMessageBuilder<T> {
        builder
            .name(self.name)
            .index(self.index)
            .address(self.mac.to_vec())
            .mtu(self.mtu)
            .append_extra_attribute(LinkAttribute::NumTxQueues(self.queues))
            .append_extra_attribute(LinkAttribute::NumRxQueues(self.queues))
    }
}

/// Makes a veth pair, `near` in `namespace` and `far` in the namespace that it names.
pub(crate) fn add_veth(namespace: &Namespace, near: &VethEnd, far: &VethEnd) -> Result<()> {
    let message = near
        .describe(LinkVeth::new(near.name, far.name))
        .set_info_data(InfoData::Veth(InfoVeth::Peer(far.message())))
        .build();
    request(
        namespace,
        format!("making the link {} – {}", near.name, far.name),
        |handle| async move { handle.link().add(message).execute().await },
    )
}

/// Makes a bridge that neither learns multicast groups nor speaks the spanning tree protocol.
pub(crate) fn add_bridge(namespace: &Namespace, name: &str) -> Result<()> {
    let message = LinkBridge::new(name)
        .append_info_data(InfoBridge::MulticastSnooping(false))
        .build();
    request(namespace, format!("making the bridge {name}"), |handle| async move {
        handle.link().add(message).execute().await
    })
}

/// Makes the interface `port` a port of the bridge, behind which `mac` is known to be.
pub(crate) fn add_bridge_port(namespace: &Namespace, bridge: u32, port: u32, mac: [u8; 6]) -> Result<()> {
    request(namespace, "connecting a switch's port", |handle| async move {
        let message = LinkUnspec::new_with_index(port).controller(bridge).up().build();
        handle.link().set(message).execute().await?;
        // NOARP is what `bridge fdb add … static` sends: not aged, not moved. `Controller` sends it to the bridge, not
        // to the port's own driver.
        handle
            .neighbours()
            .add_bridge(port, &mac)
            .state(NeighbourState::Noarp)
            .flags(NeighbourFlags::Controller)
            .execute()
            .await
    })
}

/// What is to be changed at an interface.
pub(crate) type LinkChange = LinkMessageBuilder<LinkUnspec>;

/// Changes an interface, as `change` tells.
pub(crate) fn set_link(
    namespace: &Namespace,
    index: u32,
    what: &str,
    change: impl FnOnce(LinkChange) -> LinkChange + Send,
) -> Result<()> {
    let message = change(LinkUnspec::new_with_index(index)).build();
    request(namespace, what, |handle| async move {
        handle.link().set(message).execute().await
    })
}

pub(crate) fn delete_link(namespace: &Namespace, index: u32) -> Result<()> {
    request(namespace, "deleting an interface", |handle| async move {
        handle.link().del(index).execute().await
    })
}

pub(crate) fn add_address(namespace: &Namespace, index: u32, address: IpAddr, prefix_length: u8) -> Result<()> {
    let what = format!("adding the address {address}/{prefix_length}");
    request(namespace, what, |handle| async move {
        handle.address().add(index, address, prefix_length).execute().await
    })
}

/// Enters `address` as reachable at `mac`, for good.
pub(crate) fn add_neighbour(namespace: &Namespace, index: u32, address: IpAddr, mac: [u8; 6]) -> Result<()> {
    request(
        namespace,
        format!("adding the neighbour {address}"),
        |handle| async move {
            handle
                .neighbours()
                .add(index, address)
                .state(NeighbourState::Permanent)
                .link_layer_address(&mac)
                .replace()
                .execute()
                .await
        },
    )
}

/// What is to be known of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkState {
    /// Both ends of the cable are up, and the kernel has taken note of it.
    pub operational: bool,
    /// It carries an XDP program.
    pub xdp: bool,
}

pub(crate) fn link_state(namespace: &Namespace, index: u32) -> Result<LinkState> {
    request(namespace, "asking for an interface", |handle| async move {
        let links = handle.link().get().match_index(index).execute();
        let link = pin!(links).try_next().await?.ok_or(rtnetlink::Error::RequestFailed)?;
        Ok(LinkState {
            operational: link.attributes.contains(&LinkAttribute::OperState(State::Up)),
            xdp: carries_xdp(&link),
        })
    })
}

/// Waits until the kernel has taken note that both ends of a cable are up, which it does a moment after they are. Only
/// then it does with addresses what it does with those of a new link, and only then a switch forwards.
pub(crate) fn wait_until_operational(namespace: &Namespace, index: u32, interface: &str) -> Result<()> {
    wait_for(&format!("{interface} to come up"), || {
        Ok(link_state(namespace, index)?.operational)
    })
}

fn carries_xdp(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::Xdp(nested) => nested
            .iter()
            .any(|xdp| matches!(xdp, LinkXdp::Attached(attached) if *attached != XdpAttached::None)),
        _ => false,
    })
}

/// Makes `kind` the queueing discipline at the root of an interface, or beside it for `ingress`.
pub(crate) fn set_queueing_discipline(namespace: &Namespace, index: u32, kind: &str) -> Result<()> {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = if kind == "ingress" {
        TcHandle::INGRESS
    } else {
        TcHandle::ROOT
    };
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    let mut ask = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
    ask.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    request(
        namespace,
        format!("making {kind} the queueing discipline of interface {index}"),
        |mut handle| async move {
            let mut answers = handle.request(ask)?;
            while let Some(answer) = answers.next().await {
                if let NetlinkPayload::Error(error) = answer.payload
                    && error.code.is_some()
                {
                    return Err(rtnetlink::Error::NetlinkError(error));
                }
            }
            Ok(())
        },
    )
}

fn request<T, R>(namespace: &Namespace, what: impl Into<String>, ask: impl FnOnce(Handle) -> R + Send) -> Result<T>
where
    T: Send,
    R: Future<Output = Result<T, rtnetlink::Error>>,
{
    let what = what.into();
    // Made outside: the first runtime of a process makes a pair of sockets for signals, which are never closed, and
    // which would keep the namespace for as long as the process lives.
    let runtime = match Builder::new_current_thread().enable_io().build() {
        Ok(runtime) => runtime,
        Err(error) => return Err(Error::system(what, error)),
    };
    let answer = namespace.run(|| -> io::Result<_> {
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            Ok(ask(handle).await)
        })
    });
    match answer {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(rtnetlink::Error::NetlinkError(message))) => Err(Error::system(what, message.to_io())),
        Ok(Err(error)) => Err(Error::Netlink {
            what,
            cause: error.to_string(),
        }),
        Err(error) => Err(Error::system(what, error)),
    }
}

/// Sets a kernel parameter of the namespace, by its path below `/proc/sys/net`.
pub(crate) fn set_parameter(namespace: &Namespace, path: &str, value: &str) -> Result<()> {
    // /proc/sys/net shows the namespace of the thread that opens it.
    namespace
        .run(|| fs::write(format!("/proc/sys/net/{path}"), value))
        .map_err(|error| Error::system(format!("setting net/{path} to {value}"), error))
}
