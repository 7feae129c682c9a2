//! What is told about a snapshot of the counters: to people as a table or as plain lines, to programs as JSON.

use std::{net::IpAddr, time::Duration};

use lab01_count_packets_common::counter::{Counter, Protocol};
use serde::Serialize;

use crate::{
    counts::Snapshot,
    output::Tell,
    text::{Table, binary_bytes, grouped, percent},
};

/// One report: the counters of a moment, with the rates since the report before. Field for field the JSON line.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Milliseconds since the program was attached.
    pub elapsed_ms: u64,
    /// The interface.
    pub interface: String,
    /// `native`, `generic` or `offload`.
    pub xdp_mode: String,
    /// All packets seen since the program was attached, and since the report before.
    #[serde(flatten)]
    pub total: Amount,
    /// How many sources have a counter of their own; `sources` may be fewer (`--top`).
    pub sources_counted: usize,
    /// By source address, most packets first.
    pub sources: Vec<SourceLine>,
    /// By protocol, most packets first.
    pub protocols: Vec<ProtocolLine>,
    /// By reason, most packets first.
    pub malformed: Vec<MalformedLine>,
    /// Of sources that found no room.
    pub untracked: Amount,
}

/// What came from one address.
#[derive(Clone, Debug, Serialize)]
pub struct SourceLine {
    /// The source address.
    pub address: IpAddr,
    /// How much.
    #[serde(flatten)]
    pub amount: Amount,
}

/// What came of one protocol.
#[derive(Clone, Debug, Serialize)]
pub struct ProtocolLine {
    /// What people call it: [`protocol_name`].
    pub protocol: String,
    /// How much.
    #[serde(flatten)]
    pub amount: Amount,
}

/// What was refused for one reason.
#[derive(Clone, Debug, Serialize)]
pub struct MalformedLine {
    /// The reason: [`Malformed::name`](lab01_count_packets_common::headers::Malformed::name).
    pub reason: &'static str,
    /// How much.
    #[serde(flatten)]
    pub amount: Amount,
}

/// Packets, bytes, and what follows from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Amount {
    /// Packets since the program was attached.
    pub packets: u64,
    /// Bytes since the program was attached, Ethernet headers included.
    pub bytes: u64,
    /// Packets a second since the report before.
    pub packets_per_second: f64,
    /// The share of all packets since the program was attached, from 0 to 1.
    pub share: f64,
}

/// Makes reports, remembering the last one for the rates.
pub struct Reporter {
    interface: String,
    xdp_mode: String,
    top: usize,
    before: Snapshot,
    before_elapsed: Duration,
}

impl Reporter {
    /// For `interface`; `top` is the number of sources that are told, 0 for all.
    pub fn new(interface: &str, xdp_mode: &str, top: usize) -> Self {
        Self {
            interface: interface.to_owned(),
            xdp_mode: xdp_mode.to_owned(),
            top,
            before: Snapshot::default(),
            before_elapsed: Duration::ZERO,
        }
    }

    /// The report for `now`, read `elapsed` after the program was attached.
    pub fn report(&mut self, now: Snapshot, elapsed: Duration) -> Report {
        let rates = Rates {
            all: now.total().packets,
            seconds: elapsed.saturating_sub(self.before_elapsed).as_secs_f64(),
        };
        let before = &self.before;
        let mut sources = lines(&now.sources, &before.sources, rates, |address, amount| SourceLine {
            address,
            amount,
        });
        let sources_counted = sources.len();
        if self.top > 0 {
            sources.truncate(self.top);
        }
        let report = Report {
            elapsed_ms: elapsed.as_millis() as u64,
            interface: self.interface.clone(),
            xdp_mode: self.xdp_mode.clone(),
            total: rates.amount(now.total(), before.total()),
            sources_counted,
            sources,
            protocols: lines(&now.protocols, &before.protocols, rates, |protocol, amount| {
                ProtocolLine {
                    protocol: protocol_name(protocol),
                    amount,
                }
            }),
            malformed: lines(&now.malformed, &before.malformed, rates, |reason, amount| {
                MalformedLine {
                    reason: reason.name(),
                    amount,
                }
            }),
            untracked: rates.amount(now.untracked, before.untracked),
        };
        self.before = now;
        self.before_elapsed = elapsed;
        report
    }
}

#[derive(Clone, Copy)]
struct Rates {
    all: u64,
    seconds: f64,
}

impl Rates {
    fn amount(self, now: Counter, before: Counter) -> Amount {
        Amount {
            packets: now.packets,
            bytes: now.bytes,
            packets_per_second: packets_per_second(now, before, self.seconds),
            share: if self.all > 0 {
                now.packets as f64 / self.all as f64
            } else {
                0.0
            },
        }
    }
}

/// What a counter has grown by in a second since it was `before`, so many seconds ago, to one decimal; 0 if no time passed.
pub fn packets_per_second(now: Counter, before: Counter, seconds: f64) -> f64 {
    if seconds <= 0.0 {
        return 0.0;
    }
    let new = now.packets.saturating_sub(before.packets) as f64;
    (new / seconds * 10.0).round() / 10.0
}

/// The lines of one table, most packets first, equal ones in the order of their keys.
fn lines<K: Ord + Copy, L>(
    now: &[(K, Counter)],
    before: &[(K, Counter)],
    rates: Rates,
    line: impl Fn(K, Amount) -> L,
) -> Vec<L> {
    let before: std::collections::BTreeMap<&K, Counter> = before.iter().map(|(key, counter)| (key, *counter)).collect();
    let mut now: Vec<&(K, Counter)> = now.iter().collect();
    now.sort_by(|(key_a, a), (key_b, b)| b.packets.cmp(&a.packets).then_with(|| key_a.cmp(key_b)));
    now.into_iter()
        .map(|(key, counter)| {
            let before = before.get(key).copied().unwrap_or_default();
            line(*key, rates.amount(*counter, before))
        })
        .collect()
}

/// What people call a protocol: `IPv4 UDP`, `IPv6 hop-by-hop`, `ARP`.
pub fn protocol_name(protocol: Protocol) -> String {
    let Some((version, number)) = protocol.ip_number() else {
        return if protocol == Protocol::ARP {
            "ARP".into()
        } else {
            "neither IP nor ARP".into()
        };
    };
    // https://www.iana.org/assignments/protocol-numbers/
    let name = match number {
        0 if version == 6 => "hop-by-hop options",
        1 => "ICMP",
        2 => "IGMP",
        4 => "IPv4 tunnel",
        6 => "TCP",
        17 => "UDP",
        41 => "IPv6 tunnel",
        43 if version == 6 => "routing header",
        44 if version == 6 => "fragment",
        47 => "GRE",
        50 => "ESP",
        51 => "AH",
        58 => "ICMPv6",
        59 if version == 6 => "no next header",
        60 if version == 6 => "destination options",
        89 => "OSPF",
        132 => "SCTP",
        number => return format!("IPv{version} protocol {number}"),
    };
    format!("IPv{version} {name}")
}

impl Tell for Report {
    fn table(&self) -> Vec<String> {
        let mut all = vec![self.summary()];
        for (head, lines) in self.sections() {
            if lines.is_empty() {
                continue;
            }
            all.push(String::new());
            let mut table = Table::new(&[head, "packets", "bytes", "packets/s", "share"]);
            for (name, amount) in lines {
                table.row(cells(name, amount));
            }
            all.extend(table.lines());
            if head == "source" {
                all.extend(self.omissions());
            }
        }
        if self.total.packets == 0 {
            all.push(String::new());
            all.push("No packet has arrived yet.".into());
        }
        all
    }

    // Time, kind, name, and the numbers with their names.
    fn plain(&self) -> Vec<String> {
        let time = format!("{:>8.1}s", self.elapsed_ms as f64 / 1000.0);
        let mut lines = vec![plain_line(&time, "total", &self.interface, self.total)];
        for (kind, section) in self.sections() {
            lines.extend(
                section
                    .iter()
                    .map(|(name, amount)| plain_line(&time, kind, name, *amount)),
            );
        }
        if self.untracked.packets > 0 {
            lines.push(plain_line(&time, "untracked", "sources without room", self.untracked));
        }
        lines
    }

    fn json(&self) -> String {
        serde_json::to_string(self).expect("a report has no map with keys that JSON lacks")
    }
}

impl Report {
    /// The three lists, each line with what people call it.
    fn sections(&self) -> [(&'static str, Vec<(String, Amount)>); 3] {
        let sources = self.sources.iter().map(|line| (line.address.to_string(), line.amount));
        let protocols = self.protocols.iter().map(|line| (line.protocol.clone(), line.amount));
        let malformed = self.malformed.iter().map(|line| (line.reason.to_owned(), line.amount));
        [
            ("source", sources.collect()),
            ("protocol", protocols.collect()),
            ("malformed", malformed.collect()),
        ]
    }

    fn summary(&self) -> String {
        let seconds = self.elapsed_ms / 1000;
        format!(
            "{}, {} XDP, {} s: {} packets, {}, {:.0} packets/s",
            self.interface,
            self.xdp_mode,
            seconds,
            grouped(self.total.packets),
            binary_bytes(self.total.bytes),
            self.total.packets_per_second,
        )
    }

    /// What the table of sources leaves out, said below it.
    fn omissions(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let hidden = self.sources_counted - self.sources.len();
        if hidden > 0 {
            lines.push(format!(
                "… and {} more sources (--top 0 shows all)",
                grouped(hidden as u64)
            ));
        }
        if self.untracked.packets > 0 {
            lines.push(format!(
                "! {} packets came from sources that found no room (--max-sources makes more)",
                grouped(self.untracked.packets)
            ));
        }
        lines
    }
}

fn cells(name: String, amount: Amount) -> Vec<String> {
    vec![
        name,
        grouped(amount.packets),
        binary_bytes(amount.bytes),
        format!("{:.0}", amount.packets_per_second),
        percent(amount.share),
    ]
}

fn plain_line(time: &str, kind: &str, name: &str, amount: Amount) -> String {
    let Amount {
        packets,
        bytes,
        packets_per_second,
        ..
    } = amount;
    format!("{time}  {kind:<9}  {name:<26}  packets={packets} bytes={bytes} packets_per_second={packets_per_second:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(packets: u64) -> Counter {
        Counter {
            packets,
            bytes: packets * 100,
        }
    }

    fn snapshot(sources: &[(&str, u64)]) -> Snapshot {
        let all = sources.iter().map(|(_, packets)| packets).sum();
        Snapshot {
            sources: sources
                .iter()
                .map(|(address, packets)| (address.parse().unwrap(), counter(*packets)))
                .collect(),
            protocols: vec![(Protocol::ipv4(17), counter(all))],
            ..Default::default()
        }
    }

    #[test]
    fn sources_are_sorted_by_packets_and_cut_at_top() {
        let mut reporter = Reporter::new("eth0", "native", 2);
        let report = reporter.report(
            snapshot(&[("192.0.2.1", 5), ("192.0.2.2", 9), ("192.0.2.3", 7)]),
            Duration::from_secs(1),
        );
        let addresses: Vec<String> = report.sources.iter().map(|line| line.address.to_string()).collect();
        assert_eq!(addresses, ["192.0.2.2", "192.0.2.3"]);
        assert_eq!(report.sources_counted, 3);
        assert!(
            report.table().iter().any(|line| line.contains("1 more source")),
            "{:#?}",
            report.table()
        );
    }

    #[test]
    fn rates_are_those_since_the_report_before() {
        let mut reporter = Reporter::new("eth0", "native", 0);
        let first = reporter.report(snapshot(&[("192.0.2.1", 10)]), Duration::from_secs(2));
        let second = reporter.report(snapshot(&[("192.0.2.1", 40)]), Duration::from_secs(4));
        let rates = [first, second].map(|report| report.sources[0].amount.packets_per_second.to_string());
        assert_eq!(rates, ["5", "15"]);
    }

    #[test]
    fn json_has_every_number_and_is_one_line() {
        let mut reporter = Reporter::new("eth0", "generic", 0);
        let json = reporter
            .report(snapshot(&[("2001:db8::1", 3)]), Duration::from_millis(1500))
            .json();
        assert!(!json.contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["elapsed_ms"], 1500);
        assert_eq!(value["packets"], 3);
        assert_eq!(value["sources"][0]["address"], "2001:db8::1");
        assert_eq!(value["sources"][0]["bytes"], 300);
        assert_eq!(value["protocols"][0]["protocol"], "IPv4 UDP");
        assert_eq!(value["untracked"]["packets"], 0);
    }

    #[test]
    fn untracked_sources_are_never_silent() {
        let mut reporter = Reporter::new("eth0", "native", 0);
        let full = Snapshot {
            untracked: counter(12),
            ..snapshot(&[("192.0.2.1", 1)])
        };
        let report = reporter.report(full, Duration::from_secs(1));
        assert!(
            report
                .table()
                .iter()
                .any(|line| line.contains("12 packets") && line.contains("--max-sources"))
        );
        assert!(
            report
                .plain()
                .iter()
                .any(|line| line.contains("untracked") && line.contains("packets=12"))
        );
    }

    #[test]
    fn every_protocol_has_a_name() {
        let names: std::collections::BTreeSet<String> = (0..Protocol::COUNT)
            .filter_map(Protocol::from_index)
            .map(protocol_name)
            .collect();
        assert_eq!(names.len(), Protocol::COUNT as usize, "two protocols share a name");
    }
}
