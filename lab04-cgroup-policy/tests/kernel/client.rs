//! A process that opens sockets inside a cgroup: this test program, started once more with orders.
//!
//! An order is `HOW ADDRESS`; for each a line is printed that says what came of it.

use std::{
    env,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    process::ExitCode,
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use testbed::{Cgroup, Finished, Host, Running};

/// Set in the process that is the client; its value is the orders, a line each.
const ORDERS: &str = "LAB04_CLIENT";

/// How long anything may take before the test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long a packet may take that is not dropped, and how long is waited for one that is.
const ON_THE_WAY: Duration = Duration::from_millis(1500);

/// Whether this process is to be a client.
pub fn was_asked_for() -> bool {
    env::var_os(ORDERS).is_some()
}

/// Where a client that was told to moves; see [`moved`].
const GOAL: &str = "LAB04_GOAL";

/// Has a client on `host` and in `cgroup` obey `orders`; what came of each.
#[track_caller]
pub fn order<const N: usize>(host: &Host, cgroup: &Cgroup, orders: [&str; N]) -> [String; N] {
    let mut command = cgroup.command(host, env::current_exe().unwrap()).unwrap();
    command.env(ORDERS, orders.join("\n"));
    let finished = Running::start(command).unwrap().wait(PATIENCE).unwrap();
    answers(&finished)
}

/// As [`order`], outside of every cgroup of the test's.
#[track_caller]
pub fn order_outside<const N: usize>(host: &Host, orders: [&str; N]) -> [String; N] {
    let mut command = host.command(env::current_exe().unwrap());
    command.env(ORDERS, orders.join("\n"));
    let finished = Running::start(command).unwrap().wait(PATIENCE).unwrap();
    answers(&finished)
}

/// As [`order_outside`]; a client that is told to moves into `goal`.
#[track_caller]
pub fn order_from_outside<const N: usize>(host: &Host, goal: &Cgroup, orders: [&str; N]) -> [String; N] {
    let mut command = host.command(env::current_exe().unwrap());
    command.env(ORDERS, orders.join("\n")).env(GOAL, goal.path());
    let finished = Running::start(command).unwrap().wait(PATIENCE).unwrap();
    answers(&finished)
}

#[track_caller]
fn answers<const N: usize>(finished: &Finished) -> [String; N] {
    assert!(finished.status.success(), "{finished:#?}");
    let lines: Vec<String> = finished.stdout.lines().map(str::to_owned).collect();
    lines
        .try_into()
        .unwrap_or_else(|lines| panic!("{lines:#?} of {N} orders: {finished:#?}"))
}

/// Obeys the orders of the environment.
pub fn obey() -> ExitCode {
    let orders = env::var(ORDERS).unwrap();
    for order in orders.lines() {
        let (how, address) = order.split_once(' ').unwrap();
        let address: SocketAddr = address.parse().unwrap();
        let outcome = match how {
            "tcp" => tcp(address),
            "much" => much(address),
            "udp" => udp(address, 0),
            "udp-connected" => udp_connected(address),
            "fast-open" => fast_open(address),
            "mptcp" => mptcp(address),
            "raw" => raw(address),
            "moved" => moved(address),
            "packet" => packet(address),
            how => match how.strip_prefix("udp-from-") {
                Some(port) => udp(address, port.parse().unwrap()),
                None => panic!("nobody knows how to {how}"),
            },
        };
        println!("{}", outcome.unwrap_or_else(|error| in_words(&error)));
    }
    ExitCode::SUCCESS
}

fn in_words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => "denied".into(),
        Some(libc::ECONNREFUSED) => "refused".into(),
        Some(libc::EPROTONOSUPPORT | libc::ENOPROTOOPT) => "not in this kernel".into(),
        _ if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => "no answer".into(),
        _ => error.to_string(),
    }
}

/// Says something over a connection to an echo server, and waits for it to come back.
fn echo(mut stream: &TcpStream) -> io::Result<String> {
    stream.set_read_timeout(Some(ON_THE_WAY))?;
    stream.write_all(b"hello")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    Ok("answered".into())
}

fn tcp(address: SocketAddr) -> io::Result<String> {
    echo(&TcpStream::connect_timeout(&address, ON_THE_WAY)?)
}

/// Sends more in one call than fits behind a packet's headers: `!`, over and over.
fn much(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ON_THE_WAY)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let bytes = vec![b'!'; 60_000];
    stream.write_all(&bytes)?;
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer)?;
    Ok("answered".into())
}

fn udp_socket(address: SocketAddr, from_port: u16) -> io::Result<UdpSocket> {
    let any: IpAddr = if address.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, from_port))?;
    socket.set_read_timeout(Some(ON_THE_WAY))?;
    Ok(socket)
}

fn udp(address: SocketAddr, from_port: u16) -> io::Result<String> {
    let socket = udp_socket(address, from_port)?;
    socket.send_to(b"hello", address)?;
    socket.recv(&mut [0; 16])?;
    Ok("answered".into())
}

fn udp_connected(address: SocketAddr) -> io::Result<String> {
    let socket = udp_socket(address, 0)?;
    socket.connect(address)?;
    socket.send(b"hello")?;
    socket.recv(&mut [0; 16])?;
    Ok("answered".into())
}

/// A `sendto` that connects.
fn fast_open(address: SocketAddr) -> io::Result<String> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_read_timeout(Some(ON_THE_WAY))?;
    socket.set_write_timeout(Some(ON_THE_WAY))?;
    socket.send_to_with_flags(b"hello", &SockAddr::from(address), libc::MSG_FASTOPEN)?;
    let mut answer = [0; 5];
    TcpStream::from(socket).read_exact(&mut answer)?;
    Ok("answered".into())
}

fn mptcp(address: SocketAddr) -> io::Result<String> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::MPTCP))?;
    socket.connect_timeout(&SockAddr::from(address), ON_THE_WAY)?;
    echo(&TcpStream::from(socket))
}

/// A UDP datagram, header and all, out of a raw socket: nobody has asked for a destination before.
fn raw(address: SocketAddr) -> io::Result<String> {
    let [high, low] = address.port().to_be_bytes();
    // Source port 4444, no checksum, which is for the receiver to accept over IPv4.
    let datagram = [0x11, 0x5c, high, low, 0, 13, 0, 0, b'h', b'e', b'l', b'l', b'o'];
    let socket = Socket::new(Domain::for_address(address), Type::RAW, Some(Protocol::UDP))?;
    let mut target = address;
    target.set_port(0);
    socket.send_to(&datagram, &SockAddr::from(target))?;
    Ok("sent".into())
}

/// A datagram out of a socket that was opened before its process came into the cgroup.
fn moved(address: SocketAddr) -> io::Result<String> {
    let socket = udp_socket(address, 0)?;
    let goal = env::var(GOAL).unwrap();
    std::fs::write(format!("{goal}/cgroup.procs"), "0")?;
    socket.send_to(b"hello", address)?;
    socket.recv(&mut [0; 16])?;
    Ok("answered".into())
}

/// A datagram out of a packet socket, to everybody on the cable.
fn packet(address: SocketAddr) -> io::Result<String> {
    let IpAddr::V4(destination) = address.ip() else {
        panic!("only IPv4 is sent like this")
    };
    let frame = testbed::packets::ethernet()
        .to_broadcast()
        .ipv4("10.99.0.77", destination)
        .udp(4444, address.port())
        .payload(b"hello")
        .build();
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    let interface = nix::net::if_::if_nametoindex("eth0")?;
    // SAFETY: all zeroes are a valid address.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = interface.cast_signed();
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&[0xff; 6]);
    // SAFETY: the buffer and the address live through the call and are as long as is said.
    let sent = unsafe {
        libc::sendto(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of_val(&to) as u32,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok("sent".into())
}
