//! The sockets that there are, asked from the kernel itself: `sock_diag(7)` tells addresses, state, inode and cookie, and
//! procfs tells which process has a descriptor of that inode.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use netlink_sys::{Socket as NetlinkSocket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};
use procfs::process::FDTarget;

/// A TCP or UDP socket of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// The kernel's cookie, unique for as long as the machine runs.
    pub cookie: u64,
    /// TCP or UDP, by number.
    pub protocol: u8,
    /// This side.
    pub local: SocketAddr,
    /// The other side; unspecified where there is none.
    pub remote: SocketAddr,
    /// As `ss` calls it.
    pub state: &'static str,
    /// Its user.
    pub uid: u32,
    /// Its inode; 0 once no process has it any more.
    pub inode: u32,
}

/// Asks for all TCP and UDP sockets, by cookie.
pub fn all() -> io::Result<HashMap<u64, Socket>> {
    let mut socket = NetlinkSocket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    let mut sockets = HashMap::new();
    for protocol in [IPPROTO_TCP, IPPROTO_UDP] {
        for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            let request = InetRequest {
                family,
                protocol,
                extensions: ExtensionFlags::empty(),
                states: StateFlags::all(),
                socket_id,
            };
            ask(&socket, request, protocol, &mut sockets)?;
        }
    }
    Ok(sockets)
}

fn ask(
    socket: &NetlinkSocket,
    request: InetRequest,
    protocol: u8,
    sockets: &mut HashMap<u64, Socket>,
) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = &answer[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            let len = message.header.length as usize;
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    let header = response.header;
                    let id = &header.socket_id;
                    let cookie = u64::from_ne_bytes(id.cookie);
                    sockets.insert(
                        cookie,
                        Socket {
                            cookie,
                            protocol,
                            local: SocketAddr::new(unmapped(id.source_address), id.source_port),
                            remote: SocketAddr::new(unmapped(id.destination_address), id.destination_port),
                            state: state_name(protocol, header.state),
                            uid: header.uid,
                            inode: header.inode,
                        },
                    );
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            // Messages stand at multiples of four bytes (`NLMSG_ALIGN`).
            let behind = len.next_multiple_of(4).clamp(4, rest.len().max(4));
            rest = rest.get(behind..).unwrap_or_default();
        }
    }
}

/// An IPv4 address that a socket of IPv6 has, as an IPv4 address.
fn unmapped(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// `include/net/tcp_states.h`; UDP has two of them.
fn state_name(protocol: u8, state: u8) -> &'static str {
    if protocol == IPPROTO_UDP {
        return if state == 1 { "connected" } else { "unconnected" };
    }
    match state {
        1 => "established",
        2 => "syn-sent",
        3 => "syn-recv",
        4 => "fin-wait-1",
        5 => "fin-wait-2",
        6 => "time-wait",
        7 => "close",
        8 => "close-wait",
        9 => "last-ack",
        10 => "listen",
        11 => "closing",
        12 => "new-syn-recv",
        _ => "unknown",
    }
}

/// Which process has a descriptor of which socket, by the socket's inode. Of several the one with the lowest number,
/// which is likely the oldest.
pub fn holders() -> HashMap<u64, u32> {
    let mut holders = HashMap::new();
    for process in procfs::process::all_processes().into_iter().flatten().flatten() {
        let pid = process.pid().cast_unsigned();
        for descriptor in process.fd().into_iter().flatten().flatten() {
            if let FDTarget::Socket(inode) = descriptor.target {
                holders
                    .entry(inode)
                    .and_modify(|known: &mut u32| *known = pid.min(*known))
                    .or_insert(pid);
            }
        }
    }
    holders
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn the_sockets_of_this_process_are_known_with_their_state_and_their_holder() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let datagrams = UdpSocket::bind("[::1]:0");
        let all = all().unwrap();
        let holders = holders();
        let find = |local: SocketAddr| {
            let found = all.values().find(|socket| socket.local == local && socket.inode != 0);
            found.unwrap_or_else(|| panic!("{local} is not among {all:#?}"))
        };
        let connected = find(client.local_addr().unwrap());
        assert_eq!(
            (connected.state, connected.remote),
            ("established", client.peer_addr().unwrap())
        );
        assert_eq!(find(listener.local_addr().unwrap()).state, "listen");
        assert_eq!(holders.get(&u64::from(connected.inode)), Some(&std::process::id()));
        if let Ok(datagrams) = datagrams {
            assert_eq!(find(datagrams.local_addr().unwrap()).state, "unconnected");
        }
    }
}
