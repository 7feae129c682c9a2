//! A process that sends from inside a cgroup: this test program, started once more with orders.

use std::{
    env, io, mem,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::ExitCode,
    time::Duration,
};

use nix::sys::socket::{
    setsockopt,
    sockopt::{BindToDevice, UdpGsoSegment},
};
use testbed::{Cgroup, Host, Running, packets};

use crate::{lab::PATIENCE, senders};

/// Set in the process that sends; its value is the orders, a line each: `udp ADDRESS`, `tcp ADDRESS`, `by-lo ADDRESS`, or
/// `user NUMBER` or `group NUMBER`, who obeys those that follow.
const ORDERS: &str = "LAB06_SENDER";

/// How long is waited for a connection that does not come about.
const ON_THE_WAY: Duration = Duration::from_millis(1500);

/// Has a process on `host` and in `cgroup` obey `orders`; what came of each.
#[track_caller]
pub fn order<const N: usize>(host: &Host, cgroup: &Cgroup, orders: [String; N]) -> [String; N] {
    let mut command = cgroup.command(host, env::current_exe().unwrap()).unwrap();
    command.env(ORDERS, orders.join("\n"));
    let finished = Running::start(command).unwrap().wait(PATIENCE).unwrap();
    let lines: Vec<String> = finished.stdout.lines().map(str::to_owned).collect();
    lines.try_into().unwrap_or_else(|_| panic!("{N} orders: {finished:#?}"))
}

/// Whether this process is to send.
pub fn is_wanted() -> bool {
    env::var_os(ORDERS).is_some()
}

/// Obeys the orders of the environment.
pub fn send() -> ExitCode {
    for order in env::var(ORDERS).unwrap().lines() {
        let (how, address) = order.split_once(' ').unwrap();
        if how == "group" {
            nix::unistd::setgid(address.parse::<u32>().unwrap().into()).unwrap();
            println!("group");
            continue;
        }
        if how == "user" {
            nix::unistd::setuid(address.parse::<u32>().unwrap().into()).unwrap();
            println!("user");
            continue;
        }
        let address: SocketAddr = address.parse().unwrap();
        let outcome = match how {
            "udp" => udp(address),
            "by-lo" => by_lo(address),
            "segments" => segments(address),
            "raw" => raw(address),
            "frame" => frame(address),
            _ => TcpStream::connect_timeout(&address, ON_THE_WAY).map(|_| "connected"),
        };
        match outcome {
            Ok(outcome) => println!("{outcome}"),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => println!("denied"),
            Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
                println!("no answer");
            }
            Err(error) => println!("{error}"),
        }
    }
    ExitCode::SUCCESS
}

fn udp(address: SocketAddr) -> io::Result<&'static str> {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    UdpSocket::bind(any)?.send_to(b"hello", address)?;
    Ok("sent")
}

/// Sends to a group or a broadcast address by the interface `lo`, where it is heard.
fn by_lo(address: SocketAddr) -> io::Result<&'static str> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, address.port()))?;
    setsockopt(&socket, BindToDevice, &"lo".into())?;
    let group = ipv4(address);
    if group.is_multicast() {
        socket.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST)?;
    } else {
        socket.set_broadcast(true)?;
    }
    socket.set_read_timeout(Some(ON_THE_WAY))?;
    socket.send_to(b"hello", address)?;
    socket.recv(&mut [0; 5])?;
    Ok("heard")
}

/// The kernel cuts what is sent into datagrams, behind `cgroup_skb` (`UDP_SEGMENT`, Linux 4.18).
fn segments(address: SocketAddr) -> io::Result<&'static str> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    setsockopt(&socket, UdpGsoSegment, &1000)?;
    socket.send_to(&[0; 10_000], address)?;
    Ok("sent")
}

fn raw(address: SocketAddr) -> io::Result<&'static str> {
    senders::raw(libc::IPPROTO_RAW, ipv4(address), &datagram(address)[14..])?;
    Ok("sent")
}

fn frame(address: SocketAddr) -> io::Result<&'static str> {
    let frame = datagram(address);
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all zeroes are a valid address.
    let mut target: libc::sockaddr_ll = unsafe { mem::zeroed() };
    target.sll_family = libc::AF_PACKET as u16;
    target.sll_protocol = 0x0800_u16.to_be();
    target.sll_ifindex = nix::net::if_::if_nametoindex("eth0")?.cast_signed();
    // SAFETY: frame and address live until the call returns, with these lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const target).cast(),
            size_of_val(&target) as u32,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok("sent")
}

/// A datagram from nobody in particular, which a raw socket fills in.
fn datagram(address: SocketAddr) -> Vec<u8> {
    let ip = packets::ethernet().ipv4(Ipv4Addr::UNSPECIFIED, ipv4(address));
    ip.udp(1000, address.port()).payload(b"hello").build()
}

fn ipv4(address: SocketAddr) -> Ipv4Addr {
    match address.ip() {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address} is none of IPv4"),
    }
}
