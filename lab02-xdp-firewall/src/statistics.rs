//! Reads the firewall's counters and reports them.

use std::time::Duration;

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError, PerCpuArray},
};
use lab01_count_packets::{
    counts::CountsError,
    output::Tell,
    report::packets_per_second,
    text::{Table, binary_bytes, grouped, percent},
};
use lab01_count_packets_common::counter::Counter;
use lab02_xdp_firewall_common::{
    firewall::{Reason, Verdict},
    transport::Malformed,
};
use serde::Serialize;

/// The firewall's counters, opened for reading.
pub struct Counters {
    by_reason: PerCpuArray<MapData, Counter>,
    malformed: PerCpuArray<MapData, Counter>,
    lookups: PerCpuArray<MapData, u64>,
}

/// All counters at one moment, summed over the CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// In the order of [`Reason::ALL`].
    pub by_reason: Vec<Counter>,
    /// In the order of [`Malformed::ALL`].
    pub malformed: Vec<Counter>,
    /// Look-ups in tables.
    pub lookups: u64,
}

impl Counters {
    /// Takes the maps out of the loaded object.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, CountsError> {
        Ok(Self {
            by_reason: take(ebpf, "FRAMES_BY_REASON")?,
            malformed: take(ebpf, "FRAMES_MALFORMED")?,
            lookups: take(ebpf, "LOOKUPS")?,
        })
    }

    /// Reads all of them.
    pub fn read(&self) -> Result<Statistics, CountsError> {
        Ok(Statistics {
            by_reason: sums(&self.by_reason)?,
            malformed: sums(&self.malformed)?,
            lookups: self.lookups.get(&0, 0)?.iter().sum(),
        })
    }
}

/// Takes a map out of the loaded object, as `T`.
pub fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, CountsError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(CountsError::Missing(name))?;
    Ok(map.try_into()?)
}

/// The counters of an array, each summed over the CPUs.
pub fn sums(array: &PerCpuArray<MapData, Counter>) -> Result<Vec<Counter>, MapError> {
    (0..array.len())
        .map(|index| Ok(array.get(&index, 0)?.iter().copied().sum()))
        .collect()
}

impl Statistics {
    /// What was counted for one reason.
    pub fn of(&self, reason: Reason) -> Counter {
        self.by_reason.get(reason.index() as usize).copied().unwrap_or_default()
    }

    /// What met a verdict, for whatever reason.
    pub fn met(&self, verdict: Verdict) -> Counter {
        Reason::ALL
            .into_iter()
            .filter(|reason| reason.verdict() == verdict)
            .map(|reason| self.of(reason))
            .sum()
    }
}

/// One report. Field for field the JSON line.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Milliseconds since the program was attached.
    pub elapsed_ms: u64,
    /// The interface.
    pub interface: String,
    /// `native`, `generic` or `offload`.
    pub xdp_mode: String,
    /// All frames.
    pub total: Amount,
    /// Those that passed.
    pub passed: Amount,
    /// Those that were dropped.
    pub dropped: Amount,
    /// The share of all frames that was dropped, from 0 to 1.
    pub block_rate: f64,
    /// Look-ups in tables since the program was attached.
    pub lookups: u64,
    /// Frames that the parser refused, whether they passed or were dropped.
    pub parse_errors: u64,
    /// By verdict and reason; those that did not occur are left out.
    pub by_reason: Vec<ReasonLine>,
    /// By the way in which they were malformed; those that did not occur are left out.
    pub malformed: Vec<MalformedLine>,
}

/// Packets and bytes since the programs were attached, and the rate since the report before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Amount {
    /// Packets.
    pub packets: u64,
    /// Their bytes: of the frame where the hook sees one, else from the IP header on.
    pub bytes: u64,
    /// Packets a second since the report before.
    pub packets_per_second: f64,
}

impl Amount {
    /// What a counter has come to, and its rate since it was `before`, so many seconds ago.
    pub fn since(now: Counter, before: Counter, seconds: f64) -> Self {
        Self {
            packets: now.packets,
            bytes: now.bytes,
            packets_per_second: packets_per_second(now, before, seconds),
        }
    }
}

/// What was counted for one reason.
#[derive(Clone, Debug, Serialize)]
pub struct ReasonLine {
    /// `pass` or `drop`.
    pub verdict: &'static str,
    /// Its name.
    pub reason: &'static str,
    /// How much.
    #[serde(flatten)]
    pub amount: Amount,
}

/// What was malformed in one way.
#[derive(Clone, Debug, Serialize)]
pub struct MalformedLine {
    /// Its name.
    pub reason: &'static str,
    /// How much.
    #[serde(flatten)]
    pub amount: Amount,
}

/// Makes reports, remembering the last one for the rates.
pub struct Reporter {
    interface: String,
    xdp_mode: String,
    before: Statistics,
    before_elapsed: Duration,
}

impl Reporter {
    /// For `interface`.
    pub fn new(interface: &str, xdp_mode: &str) -> Self {
        Self {
            interface: interface.to_owned(),
            xdp_mode: xdp_mode.to_owned(),
            before: Statistics::default(),
            before_elapsed: Duration::ZERO,
        }
    }

    /// The report for `now`, read `elapsed` after the program was attached.
    pub fn report(&mut self, now: Statistics, elapsed: Duration) -> Report {
        let seconds = elapsed.saturating_sub(self.before_elapsed).as_secs_f64();
        let amount = |now, before| Amount::since(now, before, seconds);
        let before = &self.before;
        let passed = amount(now.met(Verdict::Pass), before.met(Verdict::Pass));
        let dropped = amount(now.met(Verdict::Drop), before.met(Verdict::Drop));
        let total = Amount {
            packets: passed.packets + dropped.packets,
            bytes: passed.bytes + dropped.bytes,
            packets_per_second: passed.packets_per_second + dropped.packets_per_second,
        };
        let by_reason = Reason::ALL.into_iter().map(|reason| ReasonLine {
            verdict: verdict_name(reason.verdict()),
            reason: reason.name(),
            amount: amount(now.of(reason), before.of(reason)),
        });
        let malformed = Malformed::ALL
            .into_iter()
            .zip(&now.malformed)
            .map(|(reason, counter)| MalformedLine {
                reason: reason.name(),
                amount: amount(
                    *counter,
                    before
                        .malformed
                        .get(reason.index() as usize)
                        .copied()
                        .unwrap_or_default(),
                ),
            });
        let report = Report {
            elapsed_ms: elapsed.as_millis() as u64,
            interface: self.interface.clone(),
            xdp_mode: self.xdp_mode.clone(),
            total,
            passed,
            dropped,
            block_rate: share(dropped.packets, total.packets),
            lookups: now.lookups,
            parse_errors: now.malformed.iter().map(|counter| counter.packets).sum(),
            by_reason: by_reason.filter(|line| line.amount.packets > 0).collect(),
            malformed: malformed.filter(|line| line.amount.packets > 0).collect(),
        };
        self.before = now;
        self.before_elapsed = elapsed;
        report
    }
}

/// What people call a verdict.
pub fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Drop => "drop",
    }
}

/// A part of a whole, from 0 to 1; 0 of nothing.
pub fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl Tell for Report {
    fn table(&self) -> Vec<String> {
        let mut all = Vec::from(self.summary());
        all.push(String::new());
        if self.total.packets == 0 {
            all.push("No packet has arrived yet.".into());
            return all;
        }
        let mut table = Table::new(&["verdict and reason", "packets", "bytes", "packets/s", "share"]);
        for ReasonLine {
            verdict,
            reason,
            amount,
        } in &self.by_reason
        {
            table.row(self.cells(&format!("{verdict}  {reason}"), *amount));
        }
        all.extend(table.lines());
        if !self.malformed.is_empty() {
            let mut table = Table::new(&["malformed", "packets", "bytes", "packets/s", "share"]);
            for MalformedLine { reason, amount } in &self.malformed {
                table.row(self.cells(reason, *amount));
            }
            all.push(String::new());
            all.extend(table.lines());
        }
        all
    }

    // Time, kind, name, and the numbers with their names.
    fn plain(&self) -> Vec<String> {
        let time = format!("{:>8.1}s", self.elapsed_ms as f64 / 1000.0);
        let mut lines = vec![format!(
            "{time}  total      {interface:<20}  passed={passed} dropped={dropped} bytes={bytes} block_rate={block_rate:.3} \
             lookups={lookups} parse_errors={errors}",
            interface = self.interface,
            passed = self.passed.packets,
            dropped = self.dropped.packets,
            bytes = self.total.bytes,
            block_rate = self.block_rate,
            lookups = self.lookups,
            errors = self.parse_errors,
        )];
        let reasons = self
            .by_reason
            .iter()
            .map(|line| (line.verdict, line.reason, line.amount));
        let malformed = self
            .malformed
            .iter()
            .map(|line| ("malformed", line.reason, line.amount));
        for (
            kind,
            name,
            Amount {
                packets,
                bytes,
                packets_per_second,
            },
        ) in reasons.chain(malformed)
        {
            lines.push(format!(
                "{time}  {kind:<9}  {name:<20}  packets={packets} bytes={bytes} packets_per_second={packets_per_second:.1}"
            ));
        }
        lines
    }

    fn json(&self) -> String {
        serde_json::to_string(self).expect("a report has no map with keys that JSON lacks")
    }
}

impl Report {
    /// Two lines, as one would be cut off at 100 columns.
    fn summary(&self) -> [String; 2] {
        [
            format!(
                "{}, {} XDP, {} s: {} packets, {}; {} dropped ({})",
                self.interface,
                self.xdp_mode,
                self.elapsed_ms / 1000,
                grouped(self.total.packets),
                binary_bytes(self.total.bytes),
                grouped(self.dropped.packets),
                percent(self.block_rate),
            ),
            format!(
                "{} look-ups in tables, {} parse errors",
                grouped(self.lookups),
                grouped(self.parse_errors),
            ),
        ]
    }

    fn cells(&self, name: &str, amount: Amount) -> Vec<String> {
        vec![
            name.to_owned(),
            grouped(amount.packets),
            binary_bytes(amount.bytes),
            format!("{:.0}", amount.packets_per_second),
            percent(share(amount.packets, self.total.packets)),
        ]
    }
}
