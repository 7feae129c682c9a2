//! Many UDP packets, from as many sources as wanted.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    thread,
    time::{Duration, Instant},
};

use crate::{End, Result};

/// UDP packets in numbers, with forged sources, as raw frames.
///
/// ```no_run
/// # use testbed::{Host, traffic::Flood};
/// # let link = Host::new("client")?.join(&Host::new("server")?)?;
/// let sent = Flood::new(&link.left, &link.right).sources(4).count(10_000).per_second(5_000).send()?;
/// # Ok::<(), testbed::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Flood<'a> {
    from: &'a End,
    to: &'a End,
    ipv6: bool,
    sources: u16,
    port: u16,
    payload: usize,
    count: u64,
    per_second: Option<u32>,
}

impl<'a> Flood<'a> {
    /// 1000 packets over IPv4 to port 9 (discard) from one forged source, as fast as the other side takes them.
    pub fn new(from: &'a End, to: &'a End) -> Self {
        Self {
            from,
            to,
            ipv6: false,
            sources: 1,
            port: 9,
            payload: 18,
            count: 1000,
            per_second: None,
        }
    }

    /// Over IPv6.
    pub fn ipv6(mut self) -> Self {
        self.ipv6 = true;
        self
    }

    /// How many sources take turns: 10.99.0.1, 10.99.0.2, …, or `2001:db8:99::1`, ….
    pub fn sources(mut self, sources: u16) -> Self {
        self.sources = sources.max(1);
        self
    }

    /// The port that they are sent to.
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// The bytes of payload of each.
    pub fn payload(mut self, bytes: usize) -> Self {
        self.payload = bytes;
        self
    }

    /// How many packets, of all sources together.
    pub fn count(mut self, packets: u64) -> Self {
        self.count = packets;
        self
    }

    /// How many a second, of all sources together.
    pub fn per_second(mut self, packets: u32) -> Self {
        self.per_second = Some(packets.max(1));
        self
    }

    /// Sends them; returns how many.
    pub fn send(&self) -> Result<u64> {
        let injector = self.from.host.injector(&self.from.interface)?;
        let frames: Vec<_> = (1..=self.sources).map(|source| self.frame(source)).collect();
        let mut frames = frames.iter().cycle();
        let Some(per_second) = self.per_second else {
            let count = usize::try_from(self.count).unwrap_or(usize::MAX);
            return injector.send_all(frames.take(count));
        };
        let start = Instant::now();
        let mut sent = 0;
        while sent < self.count {
            let due = due_after(start.elapsed(), per_second).min(self.count);
            sent += injector.send_all(frames.by_ref().take((due - sent) as usize))?;
            thread::sleep(Duration::from_millis(2));
        }
        Ok(sent)
    }

    fn frame(&self, source: u16) -> Vec<u8> {
        let [high, low] = source.to_be_bytes();
        let packet = self.from.frame_to(self.to);
        let packet = if self.ipv6 {
            packet.ipv6(Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, source), self.to.ipv6)
        } else {
            packet.ipv4(Ipv4Addr::new(10, 99, high, low), self.to.ipv4)
        };
        packet.udp(40_000, self.port).payload(vec![0; self.payload]).build()
    }
}

/// How many packets are due after this time at this rate; the first at once.
fn due_after(elapsed: Duration, per_second: u32) -> u64 {
    1 + u64::try_from(elapsed.as_micros() * u128::from(per_second) / 1_000_000).unwrap_or(u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paced_flood_is_due_at_its_rate() {
        assert_eq!(due_after(Duration::ZERO, 500), 1);
        assert_eq!(due_after(Duration::from_millis(10), 500), 6);
        assert_eq!(due_after(Duration::from_secs(70), 4_000_000), 280_000_001);
    }
}
