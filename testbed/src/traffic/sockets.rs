//! UDP and TCP clients.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use super::Exchange;
use crate::{Error, Host, Result};

/// Sends `count` datagrams, without waiting for anything; returns how many the host let out.
pub fn udp_send(host: &Host, target: SocketAddr, count: u64, payload: &[u8]) -> Result<u64> {
    let send = || {
        let socket = udp_socket(target)?;
        let mut sent = 0;
        for _ in 0..count {
            match socket.send_to(payload, target) {
                Ok(_) => sent += 1,
                // Blocked on the way out by a program (EPERM).
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                // Not connected, so errors of earlier datagrams are not told.
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    };
    host.run(send)
        .map_err(|error| explain("sending UDP", host, target, error))
}

/// Sends `count` datagrams to an [echo server](super::Server), one after the other, and waits up to `timeout` for each
/// to come back.
pub fn udp_exchange(host: &Host, target: SocketAddr, count: u64, timeout: Duration) -> Result<Exchange> {
    let exchange = || {
        let socket = udp_socket(target)?;
        let mut exchange = Exchange { sent: 0, received: 0 };
        for number in 0..count {
            match socket.send_to(&number.to_be_bytes(), target) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    exchange.sent += 1;
                    continue;
                }
                Err(error) => return Err(error),
            }
            exchange.sent += 1;
            exchange.received += u64::from(comes_back(&socket, number, timeout)?);
        }
        Ok(exchange)
    };
    host.run(exchange)
        .map_err(|error| explain("exchanging UDP", host, target, error))
}

fn comes_back(socket: &UdpSocket, number: u64, timeout: Duration) -> io::Result<bool> {
    let end = Instant::now() + timeout;
    let mut buffer = [0; 64];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut buffer) {
            // A late reply to an earlier one is none to this one.
            Ok(length) if buffer[..length] == number.to_be_bytes() => return Ok(true),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

fn udp_socket(target: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if target.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    UdpSocket::bind((any, 0))
}

/// How an attempt to connect ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// The other side accepted.
    Connected,
    /// The other side refused (RST).
    Refused,
    /// Nothing came back in time: packets are dropped on the way.
    TimedOut,
    /// The host itself does not let it out (EPERM): a program blocks `connect` or the packets.
    Denied,
    /// The other side, or a router, says that there is no way.
    Unreachable,
}

/// Tries to open a TCP connection, and closes it at once.
pub fn try_connect(host: &Host, target: SocketAddr, timeout: Duration) -> Result<Connection> {
    match host.run(|| TcpStream::connect_timeout(&target, timeout)) {
        Ok(_) => Ok(Connection::Connected),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Ok(Connection::Refused),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Ok(Connection::TimedOut),
            io::ErrorKind::PermissionDenied => Ok(Connection::Denied),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Ok(Connection::Unreachable),
            _ => Err(explain("connecting", host, target, error)),
        },
    }
}

/// Sends `bytes` bytes to an [echo server](super::Server) over TCP and counts those that come back within `timeout`.
pub fn tcp_exchange(host: &Host, target: SocketAddr, bytes: u64, timeout: Duration) -> Result<Exchange> {
    let exchange = || {
        let stream = TcpStream::connect_timeout(&target, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        // At the same time: else both sides could wait for each other with full buffers.
        thread::scope(|scope| {
            let writing = scope.spawn(|| write(&stream, bytes));
            let received = read(&stream)?;
            let sent = writing.join().unwrap_or(0);
            Ok(Exchange { sent, received })
        })
    };
    host.run(exchange)
        .map_err(|error| explain("exchanging TCP", host, target, error))
}

/// Sends a few bytes to an [echo server](super::Server) over TCP, waits until they are back, and closes. Unlike
/// [`tcp_exchange`] it always takes the same packets, six of them: what came back is acknowledged before the end is sent,
/// and not sometimes along with it.
pub fn tcp_question(host: &Host, target: SocketAddr, bytes: u64, timeout: Duration) -> Result<()> {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&target, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        let mut buffer = vec![0x2a; usize::try_from(bytes).unwrap_or(usize::MAX)];
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
        thread::sleep(ACKNOWLEDGED_AFTER);
        stream.shutdown(Shutdown::Write)?;
        read(&stream).map(drop)
    };
    host.run(ask)
        .map_err(|error| explain("asking by TCP", host, target, error))
}

/// Longer than an acknowledgement is held back in the hope that there will be something to send along with it: 40 ms
/// (`TCP_ATO_MIN` in `include/net/tcp.h`).
const ACKNOWLEDGED_AFTER: Duration = Duration::from_millis(80);

/// Writes until all is written or nothing more is taken; returns how much.
fn write(mut stream: &TcpStream, bytes: u64) -> u64 {
    let chunk = [0x2a; 16 * 1024];
    let mut written = 0;
    while written < bytes {
        let length = usize::try_from(bytes - written).unwrap_or(usize::MAX).min(chunk.len());
        match stream.write(&chunk[..length]) {
            Ok(length) => written += length as u64,
            Err(_) => break,
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    written
}

/// Reads until the other side closes or nothing has come for the stream's timeout.
fn read(mut stream: &TcpStream) -> io::Result<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let mut received = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(received),
            Ok(length) => received += length as u64,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(received),
            Err(error) => return Err(error),
        }
    }
}

fn explain(what: &str, host: &Host, target: SocketAddr, error: io::Error) -> Error {
    Error::system(format!("{what} from host {} to {target}", host.name()), error)
}
