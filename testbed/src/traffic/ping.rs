//! ICMP echo, as ping does it.

use std::{
    io::{self, Read as _},
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::Exchange;
use crate::{Error, Host, Result, packets};

/// Sends `count` echo requests, one after the other, and waits up to `timeout` for the reply to each.
pub fn ping(host: &Host, target: impl Into<IpAddr>, count: u16, timeout: Duration) -> Result<Exchange> {
    let target = target.into();
    host.run(|| Ping::open(target)?.run(count, timeout))
        .map_err(|error| Error::system(format!("pinging {target} from host {}", host.name()), error))
}

struct Ping {
    socket: Socket,
    target: IpAddr,
    id: u16,
}

impl Ping {
    fn open(target: IpAddr) -> io::Result<Self> {
        // A raw socket gets every reply: the id tells which are ours.
        static ID: AtomicU16 = AtomicU16::new(1);
        let (domain, protocol) = match target {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        Ok(Self {
            socket,
            target,
            id: ID.fetch_add(1, Ordering::Relaxed),
        })
    }

    fn run(&self, count: u16, timeout: Duration) -> io::Result<Exchange> {
        let mut exchange = Exchange { sent: 0, received: 0 };
        for sequence in 1..=count {
            match self
                .socket
                .send_to(&self.request(sequence), &SocketAddr::new(self.target, 0).into())
            {
                Ok(_) => exchange.sent += 1,
                // What a blocking program on the way out causes; the request counts as one without reply.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    exchange.sent += 1;
                    continue;
                }
                Err(error) => return Err(error),
            }
            if self.wait_for_reply(sequence, timeout)? {
                exchange.received += 1;
            }
        }
        Ok(exchange)
    }

    /// The ICMP message; the kernel sets the checksum of `ICMPv6`, which needs the source address.
    fn request(&self, sequence: u16) -> Vec<u8> {
        let (headers, frame) = match self.target {
            IpAddr::V4(target) => (14 + 20, packets::ethernet().ipv4(target, target)),
            IpAddr::V6(target) => (14 + 40, packets::ethernet().ipv6(target, target)),
        };
        let frame = frame.icmp_echo_request(self.id, sequence).payload([0x2a; 56]).build();
        frame[headers..].to_vec()
    }

    fn wait_for_reply(&self, sequence: u16, timeout: Duration) -> io::Result<bool> {
        let end = Instant::now() + timeout;
        let mut buffer = [0; 2048];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.socket.set_read_timeout(Some(left))?;
            match (&self.socket).read(&mut buffer) {
                Ok(length) if self.is_reply(&buffer[..length], sequence) => return Ok(true),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn is_reply(&self, received: &[u8], sequence: u16) -> bool {
        // Raw IPv4 sockets deliver the IP header, IPv6 ones do not.
        let (message, reply) = match self.target {
            IpAddr::V4(_) => {
                let header_length = received.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
                (received.get(header_length..).unwrap_or_default(), 0)
            }
            IpAddr::V6(_) => (received, 129),
        };
        let ([i0, i1], [s0, s1]) = (self.id.to_be_bytes(), sequence.to_be_bytes());
        message.first() == Some(&reply) && message.get(4..8) == Some(&[i0, i1, s0, s1])
    }
}
