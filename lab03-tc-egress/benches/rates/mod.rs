//! How well a rate is held: what of it comes over a veth pair, by UDP that sends twice as much, and by TCP.
//!
//! What exceeds a rate waits where the kernel has `fq`, and is dropped in any case.

use std::{
    fmt::Write as _,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use serde::Serialize;
use testbed::{
    End, Host, Running,
    figures::{self, Shown},
};

/// A rate, and how much may go at once.
struct Rate {
    text: &'static str,
    bytes_per_second: u64,
    /// A tenth of a second's worth without.
    burst: Option<&'static str>,
}

const RATES: [Rate; 6] = [
    rate("1mbit", 125_000, None),
    rate("10mbit", 1_250_000, None),
    rate("100mbit", 12_500_000, None),
    rate("1gbit", 125_000_000, None),
    // Half a second's worth: more than TCP's shortest wait for an acknowledgement, a fifth of a second.
    rate("10mbit", 1_250_000, Some("5mbit")),
    rate("1gbit", 125_000_000, Some("500mbit")),
];

const fn rate(text: &'static str, bytes_per_second: u64, burst: Option<&'static str>) -> Rate {
    Rate {
        text,
        bytes_per_second,
        burst,
    }
}

/// What is sent first, until the burst is used up, does not count.
const BEGINS_AFTER: Duration = Duration::from_secs(1);
const UDP_ENDS_AFTER: Duration = Duration::from_secs(4);
const TCP_ENDS_AFTER: Duration = Duration::from_secs(6);

/// UDP datagrams of as many bytes as fit into a packet; with the headers of IPv4 and UDP.
const PAYLOAD: usize = 1472;
const IP_BYTES: u64 = 1500;

/// How many rounds the medians are of; each takes ten seconds a row.
const ROUNDS: usize = 3;

const BINARY: &str = env!("CARGO_BIN_EXE_lab03-tc-egress");
const PATIENCE: Duration = Duration::from_secs(30);

/// What was measured, by rate and pacing.
#[derive(Serialize)]
pub struct Rates {
    machine: String,
    rows: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    /// IP bytes that came, of what the rate allows.
    udp: f64,
    /// How long half of the datagrams took at most, and 99 of 100, in milliseconds.
    udp_p50_ms: f64,
    udp_p99_ms: f64,
    /// Bytes that an application got, of what the rate allows to IP.
    tcp: f64,
}

/// Measures all.
pub fn measure() -> Result<Rates> {
    let mut rows = Vec::new();
    for pacing in ["drop", "wait"] {
        for rate in &RATES {
            let mut rounds = Vec::new();
            for _ in 0..ROUNDS {
                let Some(line) = round(rate, pacing)? else {
                    break;
                };
                rounds.push(line);
            }
            rows.extend(medians(&rounds));
        }
    }
    Ok(Rates {
        machine: figures::machine(),
        rows,
    })
}

/// `None` if the kernel lacks what it needs.
fn round(rate: &Rate, pacing: &str) -> Result<Option<Line>> {
    let link = Host::new("client")?.join(&Host::new("server")?)?;
    let (client, server) = (link.left, link.right);
    if pacing == "wait" && client.queue_by("fq").is_err() {
        return Ok(None);
    }
    let mut command = client.host.command(BINARY);
    command.args([
        "--iface",
        &client.interface,
        "--shape",
        rate.text,
        "--pacing",
        pacing,
        "--json",
    ]);
    if let Some(burst) = rate.burst {
        command.args(["--burst", burst]);
    }
    let lab = Running::start(command)?;
    lab.wait_for("\"elapsed_ms\"", PATIENCE)?;
    let udp = udp(&client, &server, rate.bytes_per_second)?;
    // The bucket is full again.
    thread::sleep(Duration::from_secs(1));
    let tcp = tcp(&client, &server)?;
    let allowed = rate.bytes_per_second as f64;
    Ok(Some(Line {
        name: rate.name(pacing),
        udp: udp.bytes_per_second / allowed,
        udp_p50_ms: udp.latency_ms(50),
        udp_p99_ms: udp.latency_ms(99),
        tcp: tcp / allowed,
    }))
}

impl Rate {
    fn name(&self, pacing: &str) -> String {
        let what = if pacing == "drop" { "dropping" } else { "waiting" };
        match self.burst {
            None => format!("{}, {what}", self.text),
            Some(burst) => format!("{}, burst {burst}, {what}", self.text),
        }
    }
}

fn medians(rounds: &[Line]) -> Option<Line> {
    let median = |value: fn(&Line) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    Some(Line {
        name: rounds.first()?.name.clone(),
        udp: median(|line| line.udp),
        udp_p50_ms: median(|line| line.udp_p50_ms),
        udp_p99_ms: median(|line| line.udp_p99_ms),
        tcp: median(|line| line.tcp),
    })
}

/// What came of the datagrams.
struct Came {
    bytes_per_second: f64,
    /// In nanoseconds, sorted.
    latencies_ns: Vec<u64>,
}

impl Came {
    fn latency_ms(&self, percent: usize) -> f64 {
        let index = (self.latencies_ns.len() * percent / 100).min(self.latencies_ns.len().saturating_sub(1));
        self.latencies_ns.get(index).copied().unwrap_or_default() as f64 / 1e6
    }
}

/// Sends twice the rate.
fn udp(client: &End, server: &End, bytes_per_second: u64) -> Result<Came> {
    let receiver = server.host.run(|| UdpSocket::bind((server.ipv4, 0)))?;
    // A receiver that is not fast enough shall lose nothing.
    setsockopt(&receiver, RcvBufForce, &(16 << 20))?;
    receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
    let sender = client.host.run(|| UdpSocket::bind((client.ipv4, 0)))?;
    sender.connect(receiver.local_addr()?)?;
    let start = Instant::now();
    thread::scope(|scope| {
        let sending = scope.spawn(|| send_twice(&sender, bytes_per_second, start));
        let came = receive(&receiver, start);
        sending
            .join()
            .expect("sending does not panic")
            .context("datagrams cannot be sent")?;
        came.context("datagrams cannot be received")
    })
}

fn send_twice(sender: &UdpSocket, bytes_per_second: u64, start: Instant) -> io::Result<()> {
    let mut datagram = [0; PAYLOAD];
    let mut sent = 0;
    while start.elapsed() < UDP_ENDS_AFTER {
        let due = start.elapsed().as_micros() as u64 * 2 * bytes_per_second / IP_BYTES / 1_000_000;
        if sent >= due {
            thread::sleep(Duration::from_micros(500));
            continue;
        }
        sent += 1;
        datagram[..8].copy_from_slice(&(start.elapsed().as_nanos() as u64).to_ne_bytes());
        match sender.send(&datagram) {
            // Dropped on the way out, or the socket's buffer is full of those that wait.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            result => {
                result?;
            }
        }
    }
    Ok(())
}

fn receive(receiver: &UdpSocket, start: Instant) -> io::Result<Came> {
    let (mut bytes, mut latencies_ns) = (0, Vec::new());
    let mut datagram = [0; PAYLOAD];
    while start.elapsed() < UDP_ENDS_AFTER {
        match receiver.recv(&mut datagram) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            result => {
                result?;
            }
        }
        let now = start.elapsed();
        if (BEGINS_AFTER..UDP_ENDS_AFTER).contains(&now) {
            bytes += IP_BYTES;
            let sent_ns = datagram.first_chunk().map_or(0, |sent_ns| u64::from_ne_bytes(*sent_ns));
            latencies_ns.push((now.as_nanos() as u64).saturating_sub(sent_ns));
        }
    }
    latencies_ns.sort_unstable();
    Ok(Came {
        bytes_per_second: bytes as f64 / (UDP_ENDS_AFTER.as_secs_f64() - BEGINS_AFTER.as_secs_f64()),
        latencies_ns,
    })
}

/// Sends as much as TCP does; bytes a second.
fn tcp(client: &End, server: &End) -> Result<f64> {
    let listener = server.host.run(|| TcpListener::bind((server.ipv4, 0)))?;
    let target = listener.local_addr()?;
    thread::scope(|scope| {
        let sending = scope.spawn(move || client.host.run(|| send_stream(target)));
        let came = receive_stream(&listener).context("a TCP connection cannot be read")?;
        sending
            .join()
            .expect("sending does not panic")
            .context("a TCP connection cannot be written")?;
        Ok(came)
    })
}

fn send_stream(target: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    let chunk = vec![0; 64 * 1024];
    let start = Instant::now();
    while start.elapsed() < TCP_ENDS_AFTER {
        match stream.write(&chunk) {
            // The receiver has seen enough.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => break,
            result => {
                result?;
            }
        }
    }
    Ok(())
}

fn receive_stream(listener: &TcpListener) -> io::Result<f64> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    let start = Instant::now();
    let mut chunk = vec![0; 256 * 1024];
    let mut bytes = 0;
    while start.elapsed() < TCP_ENDS_AFTER {
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) if start.elapsed() > BEGINS_AFTER => bytes += count,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes as f64 / (TCP_ENDS_AFTER.as_secs_f64() - BEGINS_AFTER.as_secs_f64()))
}

const HEADS: [&str; 5] = ["rate", "UDP, of it", "UDP p50 ms", "UDP p99 ms", "TCP, of it"];

impl Rates {
    fn cells(&self) -> Vec<[String; 5]> {
        let rows = self.rows.iter().map(|line| {
            [
                line.name.clone(),
                format!("{:.1} %", line.udp * 100.0),
                format!("{:.2}", line.udp_p50_ms),
                format!("{:.2}", line.udp_p99_ms),
                format!("{:.1} %", line.tcp * 100.0),
            ]
        });
        rows.collect()
    }

    fn measured_on(&self) -> String {
        format!("Medians of {ROUNDS} rounds on {}.\n\n", self.machine)
    }
}

impl Shown for Rates {
    fn table(&self) -> String {
        let mut text = self.measured_on();
        for [name, numbers @ ..] in std::iter::once(HEADS.map(str::to_owned)).chain(self.cells()) {
            let _ = write!(text, "{name:<32}");
            for number in numbers {
                let _ = write!(text, "  {number:>10}");
            }
            text.push('\n');
        }
        text
    }

    fn markdown(&self) -> String {
        let mut text = self.measured_on();
        let _ = writeln!(text, "| {} |\n|---|---:|---:|---:|---:|", HEADS.join(" | "));
        for row in self.cells() {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        text
    }

    fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("rates have no map with keys that JSON lacks")
    }
}
