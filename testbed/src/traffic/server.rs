//! Echo servers that serve until they are dropped.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use crate::{Error, Host, Result};

/// A server on a host that returns what it gets, over IPv4 and IPv6, until it is dropped.
#[derive(Debug)]
pub struct Server {
    port: u16,
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Seen {
    stop: AtomicBool,
    connections: AtomicU64,
    packets: AtomicU64,
    bytes: AtomicU64,
}

/// How soon a server notices that it is to stop.
const TICK: Duration = Duration::from_millis(50);

impl Server {
    /// Serves UDP on a port; 0 for any.
    pub fn udp(host: &Host, port: u16) -> Result<Self> {
        let open = || {
            let socket = UdpSocket::from(bind(Type::DGRAM, port)?);
            let port = socket.local_addr()?.port();
            Ok((socket, port))
        };
        let (socket, port) = host.run(open).map_err(|error| explain(host, "UDP", port, error))?;
        Ok(Self::start(port, move |seen| echo_datagrams(&socket, seen)))
    }

    /// Serves TCP on a port; 0 for any.
    pub fn tcp(host: &Host, port: u16) -> Result<Self> {
        let open = || {
            let socket = bind(Type::STREAM, port)?;
            socket.listen(128)?;
            let listener = TcpListener::from(socket);
            let port = listener.local_addr()?.port();
            Ok((listener, port))
        };
        let (listener, port) = host.run(open).map_err(|error| explain(host, "TCP", port, error))?;
        Ok(Self::start(port, move |seen| accept_connections(&listener, seen)))
    }

    fn start(port: u16, serve: impl FnOnce(&Arc<Seen>) + Send + 'static) -> Self {
        let seen = Arc::<Seen>::default();
        let thread = thread::spawn({
            let seen = Arc::clone(&seen);
            move || serve(&seen)
        });
        Self {
            port,
            seen,
            thread: Some(thread),
        }
    }

    /// The port that it serves.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many TCP connections it has accepted.
    pub fn connections(&self) -> u64 {
        self.seen.connections.load(Ordering::Relaxed)
    }

    /// How many datagrams it has got.
    pub fn packets(&self) -> u64 {
        self.seen.packets.load(Ordering::Relaxed)
    }

    /// How many bytes of payload it has got.
    pub fn bytes(&self) -> u64 {
        self.seen.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A socket for both IPv4 and IPv6, whose calls give up after a tick.
fn bind(socket_type: Type, port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, socket_type, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_read_timeout(Some(TICK))?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}

fn echo_datagrams(socket: &UdpSocket, seen: &Arc<Seen>) {
    let mut buffer = vec![0; 64 * 1024];
    while !seen.stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            seen.packets.fetch_add(1, Ordering::Relaxed);
            seen.bytes.fetch_add(length as u64, Ordering::Relaxed);
            // It may not get out, which is what some tests want.
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

fn accept_connections(listener: &TcpListener, seen: &Arc<Seen>) {
    let mut connections = Vec::new();
    while !seen.stop.load(Ordering::Relaxed) {
        if let Ok((stream, _)) = listener.accept() {
            seen.connections.fetch_add(1, Ordering::Relaxed);
            let seen = Arc::clone(seen);
            connections.push(thread::spawn(move || echo_stream(&stream, &seen)));
        }
        connections.retain(|connection| !connection.is_finished());
    }
    for connection in connections {
        let _ = connection.join();
    }
}

fn echo_stream(mut stream: &TcpStream, seen: &Seen) {
    if stream.set_read_timeout(Some(TICK)).is_err() || stream.set_write_timeout(Some(TICK)).is_err() {
        return;
    }
    let mut buffer = vec![0; 64 * 1024];
    while !seen.stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                seen.bytes.fetch_add(length as u64, Ordering::Relaxed);
                if !write_all(stream, &buffer[..length], seen) {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Writes all of it, however long the other side takes, unless the server is to stop.
fn write_all(mut stream: &TcpStream, mut bytes: &[u8], seen: &Seen) -> bool {
    while !bytes.is_empty() && !seen.stop.load(Ordering::Relaxed) {
        match stream.write(bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
    true
}

fn explain(host: &Host, protocol: &str, port: u16, error: io::Error) -> Error {
    Error::system(format!("serving {protocol} port {port} on host {}", host.name()), error)
}
