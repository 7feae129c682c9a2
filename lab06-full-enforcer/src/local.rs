//! Which destinations are the host's own, so that packets go there by the loopback interface: what the hooks on system calls
//! leave to those on packets.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
};

use aya::{
    Ebpf,
    maps::{Array, LpmTrie, MapData, MapError, lpm_trie::Key},
};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use lab06_full_enforcer_common::call::MAX_LOCAL;
use netlink_packet_core::NetlinkPayload;
use rtnetlink::{
    MulticastGroup, RouteMessageBuilder,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    },
};

/// The length and the octets of a prefix; those of IPv4 are mapped into IPv6 (RFC 4291 section 2.5.5.2).
pub type Prefix = (u8, [u8; 16]);

/// Prefixes of this host.
pub type Prefixes = BTreeSet<Prefix>;

/// The prefixes in the kernel.
pub struct LocalPrefixes {
    trie: LpmTrie<MapData, [u8; 16], u32>,
    namespace: Array<MapData, u64>,
    /// This network namespace's cookie, or 0: see [`namespace_cookie`].
    cookie: u64,
    /// What is in the trie.
    filled: Prefixes,
}

impl LocalPrefixes {
    /// Takes the maps of the programs, which refuse no call yet.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, MapError> {
        let mut take = |name: &str| {
            let map = ebpf.take_map(name);
            map.ok_or_else(|| MapError::InvalidName { name: name.into() })
        };
        Ok(Self {
            trie: LpmTrie::try_from(take("LOCAL_PREFIXES")?)?,
            namespace: Array::try_from(take("NAMESPACE")?)?,
            cookie: namespace_cookie().unwrap_or(0),
            filled: Prefixes::new(),
        })
    }

    /// Has calls of this network namespace refused, but for those that go to one of these prefixes. (None at all on Linux
    /// before 5.14, which does not tell namespaces apart, nor if there are too many prefixes.)
    pub fn set(&mut self, prefixes: &Prefixes) -> io::Result<()> {
        if *prefixes != self.filled {
            // Refused are none meanwhile.
            self.leave_calls_alone()?;
            if prefixes.len() > MAX_LOCAL {
                return Ok(());
            }
            self.fill(prefixes)?;
        }
        self.set_namespace(self.cookie)
    }

    /// Takes out first what is not to be in it, so that there is room for the others.
    fn fill(&mut self, prefixes: &Prefixes) -> io::Result<()> {
        let gone: Vec<Prefix> = self.filled.difference(prefixes).copied().collect();
        for prefix in gone {
            self.trie.remove(&key(prefix)).map_err(io::Error::other)?;
            self.filled.remove(&prefix);
        }
        let new: Vec<Prefix> = prefixes.difference(&self.filled).copied().collect();
        for prefix in new {
            self.trie.insert(&key(prefix), 1, 0).map_err(io::Error::other)?;
            self.filled.insert(prefix);
        }
        Ok(())
    }

    /// Has no call refused: what is blocked is blocked as a packet.
    pub fn leave_calls_alone(&mut self) -> io::Result<()> {
        self.set_namespace(0)
    }

    fn set_namespace(&mut self, cookie: u64) -> io::Result<()> {
        self.namespace.set(0, cookie, 0).map_err(io::Error::other)
    }
}

fn key((length, octets): Prefix) -> Key<[u8; 16]> {
    Key::new(u32::from(length), octets)
}

/// The number that the kernel knows this network namespace by: `SO_NETNS_COOKIE`, Linux 5.14.
pub fn namespace_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0_u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: cookie and length live until the call returns, and the one is as long as the other says.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

/// The prefixes that may be this network namespace's own: those of its routes of type `local` in all tables; the unspecified
/// addresses, by which a socket reaches its own host; and those of multicast and of broadcast, where the socket says by which
/// interface it sends, which may be `lo`.
pub async fn prefixes() -> io::Result<Prefixes> {
    let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
    let connection = tokio::spawn(connection);
    let mut found = Prefixes::from([
        mapped(Ipv4Addr::UNSPECIFIED.into(), 32),
        mapped(Ipv6Addr::UNSPECIFIED.into(), 128),
        mapped(Ipv4Addr::new(224, 0, 0, 0).into(), 4),
        mapped(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
        mapped(Ipv4Addr::BROADCAST.into(), 32),
    ]);
    let mut result = Ok(());
    for request in [
        of_type_local(RouteMessageBuilder::<Ipv4Addr>::new()),
        of_type_local(RouteMessageBuilder::<Ipv6Addr>::new()),
    ] {
        let routes: Result<Vec<RouteMessage>, _> = handle.route().get(request).execute().try_collect().await;
        match routes {
            Ok(routes) => found.extend(routes.iter().filter_map(prefix_of)),
            Err(error) => result = Err(io::Error::other(error)),
        }
    }
    connection.abort();
    result.map(|()| found)
}

/// Asks for these in all tables. The kernel then sends nothing else: a router's million routes are no business of ours.
fn of_type_local<T>(request: RouteMessageBuilder<T>) -> RouteMessage {
    let request = request.table_id(0).kind(RouteType::Local);
    request
        .protocol(RouteProtocol::Unspec)
        .scope(RouteScope::Universe)
        .build()
}

/// Says so each time when such a route has come or gone; ends if the kernel has more to say than can be read.
pub fn changes() -> io::Result<impl Stream<Item = ()> + Unpin> {
    let groups = [MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
    let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
    tokio::spawn(connection);
    let is_of_local = |payload: &NetlinkPayload<RouteNetlinkMessage>| match payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)) => {
            route.header.kind == RouteType::Local
        }
        _ => false,
    };
    let changes =
        messages.filter_map(move |(message, _)| std::future::ready(is_of_local(&message.payload).then_some(())));
    Ok(changes)
}

fn prefix_of(route: &RouteMessage) -> Option<Prefix> {
    if route.header.kind != RouteType::Local {
        return None;
    }
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    let length = route.header.destination_prefix_length;
    Some(match (address, route.header.address_family) {
        (Some(address), _) => mapped(address, length),
        (None, AddressFamily::Inet) => mapped(Ipv4Addr::UNSPECIFIED.into(), length),
        (None, _) => mapped(Ipv6Addr::UNSPECIFIED.into(), length),
    })
}

fn mapped(address: IpAddr, length: u8) -> Prefix {
    match address {
        IpAddr::V4(address) => (96 + length, address.to_ipv6_mapped().octets()),
        IpAddr::V6(address) => (length, address.octets()),
    }
}
