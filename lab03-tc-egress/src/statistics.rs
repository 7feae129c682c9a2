//! Reads the programs' counters and reports them.

use std::time::Duration;

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
};
use lab01_count_packets::{
    counts::CountsError,
    output::Tell,
    text::{Table, binary_bytes, grouped, percent},
};
use lab01_count_packets_common::counter::Counter;
use lab02_xdp_firewall::statistics::{Amount, MalformedLine, ReasonLine, share, sums, take, verdict_name};
use lab02_xdp_firewall_common::{firewall::Verdict, transport::Malformed};
use lab03_tc_egress_common::decide::{FlowEvent, Reason};
use serde::Serialize;

use crate::{attach::Direction, flows::Fill};

/// The programs' counters, opened for reading.
pub struct Counters {
    by_reason: PerCpuArray<MapData, Counter>,
    malformed: PerCpuArray<MapData, Counter>,
    by_rule: PerCpuArray<MapData, Counter>,
    by_shape: PerCpuArray<MapData, Counter>,
    events: PerCpuArray<MapData, u64>,
}

/// All counters at one moment, summed over the CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Those of ingress in the order of [`Reason::ALL`], then those of egress.
    pub by_reason: Vec<Counter>,
    /// In the order of [`Malformed::ALL`].
    pub malformed: Vec<Counter>,
    /// By rule.
    pub by_rule: Vec<Counter>,
    /// By rate: sent at once, sent later, dropped.
    pub by_shape: Vec<Counter>,
    /// In the order of [`FlowEvent`]'s numbers.
    pub events: Vec<u64>,
    /// How many flows there are.
    pub fill: Fill,
}

impl Counters {
    /// Takes the maps out of the loaded object.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, CountsError> {
        Ok(Self {
            by_reason: take(ebpf, "FRAMES_BY_REASON")?,
            malformed: take(ebpf, "FRAMES_MALFORMED")?,
            by_rule: take(ebpf, "DENIED_BY_RULE")?,
            by_shape: take(ebpf, "BY_SHAPE")?,
            events: take(ebpf, "FLOW_EVENTS")?,
        })
    }

    /// Reads all of them; how many flows there are is the table's to say.
    pub fn read(&self, fill: Fill) -> Result<Statistics, CountsError> {
        let events = (0..FlowEvent::COUNT).map(|index| Ok(self.events.get(&index, 0)?.iter().sum()));
        Ok(Statistics {
            by_reason: sums(&self.by_reason)?,
            malformed: sums(&self.malformed)?,
            by_rule: sums(&self.by_rule)?,
            by_shape: sums(&self.by_shape)?,
            events: events.collect::<Result<_, CountsError>>()?,
            fill,
        })
    }
}

impl Statistics {
    /// What was counted on a hook for one reason.
    pub fn of(&self, direction: Direction, reason: Reason) -> Counter {
        let index = direction as usize * Reason::COUNT as usize + reason.index() as usize;
        self.by_reason.get(index).copied().unwrap_or_default()
    }

    /// What met a verdict on a hook, for whatever reason.
    pub fn met(&self, direction: Direction, verdict: Verdict) -> Counter {
        let reasons = Reason::ALL.into_iter().filter(|reason| reason.verdict() == verdict);
        reasons.map(|reason| self.of(direction, reason)).sum()
    }

    /// How often something happened to flows.
    pub fn event(&self, event: FlowEvent) -> u64 {
        self.events.get(event as usize).copied().unwrap_or_default()
    }

    fn at(counters: &[Counter], index: usize) -> Counter {
        counters.get(index).copied().unwrap_or_default()
    }
}

/// One report. Field for field the JSON line.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Milliseconds since the programs were attached.
    pub elapsed_ms: u64,
    /// The interface.
    pub interface: String,
    /// `tcx` or `clsact`.
    pub attached: String,
    /// What becomes of what exceeds a rate: `wait` or `drop`; absent without rates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pacing: Option<&'static str>,
    /// What came in.
    pub ingress: HookReport,
    /// What went out.
    pub egress: HookReport,
    /// The flow table.
    pub flows: FlowsReport,
    /// What each rule has denied, in their order.
    pub rules: Vec<RuleLine>,
    /// What became of what falls under each rate.
    pub shapes: Vec<ShapeLine>,
    /// By the way in which frames were malformed; those that did not occur are left out.
    pub malformed: Vec<MalformedLine>,
}

/// The frames of one hook.
#[derive(Clone, Debug, Serialize)]
pub struct HookReport {
    /// Those that passed.
    pub passed: Amount,
    /// Those that were dropped.
    pub dropped: Amount,
    /// By verdict and reason; those that did not occur are left out.
    pub by_reason: Vec<ReasonLine>,
}

/// The flow table.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct FlowsReport {
    /// Flows that are proven.
    pub established: u64,
    /// Flows that are not.
    pub half_open: u64,
    /// How many proven ones there is room for.
    pub max: u64,
    /// How many began.
    pub created: u64,
    /// How many of them were proven.
    pub proven: u64,
    /// How many proven ones were forgotten for others.
    pub evicted: u64,
    /// How many others were.
    pub evicted_half_open: u64,
}

/// What a rule has denied.
#[derive(Clone, Debug, Serialize)]
pub struct RuleLine {
    /// The rule, as it was written.
    pub rule: String,
    /// How much.
    #[serde(flatten)]
    pub amount: Amount,
}

/// What became of what falls under a rate.
#[derive(Clone, Debug, Serialize)]
pub struct ShapeLine {
    /// The destinations.
    pub destinations: String,
    /// The rate in bits a second.
    pub bits_per_second: u64,
    /// What went out since the report before, in bits a second, Ethernet headers included.
    pub sent_bits_per_second: f64,
    /// Sent at once or later.
    pub sent: Amount,
    /// Of these, sent later.
    pub delayed: Amount,
    /// Not sent.
    pub dropped: Amount,
}

/// What reports name that counters do not.
#[derive(Clone, Debug)]
pub struct Names {
    /// The interface.
    pub interface: String,
    /// How programs are attached.
    pub attached: String,
    /// The rules, as they were written.
    pub rules: Vec<String>,
    /// The rates' destinations, and bytes a second.
    pub shapes: Vec<(String, u64)>,
    /// How many flows there is room for.
    pub max_flows: u32,
}

/// Makes reports, remembering the last one for the rates.
pub struct Reporter {
    names: Names,
    before: Statistics,
    before_elapsed: Duration,
}

impl Reporter {
    /// With these names.
    pub fn new(names: Names) -> Self {
        Self {
            names,
            before: Statistics::default(),
            before_elapsed: Duration::ZERO,
        }
    }

    /// The report for `now`, read `elapsed` after the programs were attached; `can_wait` says whether packets wait.
    pub fn report(&mut self, now: Statistics, elapsed: Duration, can_wait: bool) -> Report {
        let seconds = elapsed.saturating_sub(self.before_elapsed).as_secs_f64();
        let (before, names) = (&self.before, &self.names);
        let since = |now: &[Counter], before: &[Counter], index: usize| {
            Amount::since(Statistics::at(now, index), Statistics::at(before, index), seconds)
        };
        let hook = |direction: Direction| {
            let met = |verdict| Amount::since(now.met(direction, verdict), before.met(direction, verdict), seconds);
            let by_reason = Reason::ALL.into_iter().map(|reason| ReasonLine {
                verdict: verdict_name(reason.verdict()),
                reason: reason.name(),
                amount: Amount::since(now.of(direction, reason), before.of(direction, reason), seconds),
            });
            HookReport {
                passed: met(Verdict::Pass),
                dropped: met(Verdict::Drop),
                by_reason: by_reason.filter(|line| line.amount.packets > 0).collect(),
            }
        };
        let shapes = names.shapes.iter().enumerate().map(|(index, (destinations, rate))| {
            let sum = |counters: &[Counter]| {
                [0, 1]
                    .map(|outcome| Statistics::at(counters, index * 3 + outcome))
                    .into_iter()
                    .sum::<Counter>()
            };
            let (sent, sent_before) = (sum(&now.by_shape), sum(&before.by_shape));
            let new_bits = sent.bytes.saturating_sub(sent_before.bytes) as f64 * 8.0;
            ShapeLine {
                destinations: destinations.clone(),
                bits_per_second: rate * 8,
                sent_bits_per_second: if seconds > 0.0 {
                    (new_bits / seconds).round()
                } else {
                    0.0
                },
                sent: Amount::since(sent, sent_before, seconds),
                delayed: since(&now.by_shape, &before.by_shape, index * 3 + 1),
                dropped: since(&now.by_shape, &before.by_shape, index * 3 + 2),
            }
        });
        let malformed = Malformed::ALL.into_iter().map(|reason| MalformedLine {
            reason: reason.name(),
            amount: since(&now.malformed, &before.malformed, reason.index() as usize),
        });
        let rules = names.rules.iter().enumerate().map(|(index, rule)| RuleLine {
            rule: rule.clone(),
            amount: since(&now.by_rule, &before.by_rule, index),
        });
        let report = Report {
            elapsed_ms: elapsed.as_millis() as u64,
            interface: names.interface.clone(),
            attached: names.attached.clone(),
            pacing: (!names.shapes.is_empty()).then_some(if can_wait { "wait" } else { "drop" }),
            ingress: hook(Direction::Ingress),
            egress: hook(Direction::Egress),
            flows: FlowsReport {
                established: now.fill.established,
                half_open: now.fill.half_open,
                max: u64::from(names.max_flows),
                created: now.event(FlowEvent::Created),
                proven: now.event(FlowEvent::Established),
                evicted: now.event(FlowEvent::EvictedEstablished),
                evicted_half_open: now.event(FlowEvent::EvictedHalfOpen),
            },
            rules: rules.collect(),
            shapes: shapes.collect(),
            malformed: malformed.filter(|line| line.amount.packets > 0).collect(),
        };
        self.before = now;
        self.before_elapsed = elapsed;
        report
    }
}

impl Report {
    fn hooks(&self) -> [(&'static str, &HookReport); 2] {
        [("ingress", &self.ingress), ("egress", &self.egress)]
    }

    fn summary(&self) -> [String; 2] {
        let FlowsReport {
            established,
            half_open,
            max,
            evicted,
            evicted_half_open,
            ..
        } = self.flows;
        [
            format!(
                "{}, {}, {} s: {} packets in, {} of them dropped; {} out, {} of them dropped",
                self.interface,
                self.attached,
                self.elapsed_ms / 1000,
                grouped(self.ingress.passed.packets + self.ingress.dropped.packets),
                grouped(self.ingress.dropped.packets),
                grouped(self.egress.passed.packets + self.egress.dropped.packets),
                grouped(self.egress.dropped.packets),
            ),
            format!(
                "flows: {} established of {} ({}), {} half open; evicted: {} and {}",
                grouped(established),
                grouped(max),
                percent(share(established, max)),
                grouped(half_open),
                grouped(evicted),
                grouped(evicted_half_open),
            ),
        ]
    }
}

impl Tell for Report {
    fn table(&self) -> Vec<String> {
        let mut all = Vec::from(self.summary());
        for (hook, report) in self.hooks() {
            if report.by_reason.is_empty() {
                continue;
            }
            let mut table = Table::new(&[hook, "packets", "bytes", "packets/s"]);
            for line in &report.by_reason {
                table.row(cells(&format!("{}  {}", line.verdict, line.reason), line.amount));
            }
            all.push(String::new());
            all.extend(table.lines());
        }
        if !self.rules.is_empty() {
            let mut table = Table::new(&["denied by", "packets", "bytes", "packets/s"]);
            for line in &self.rules {
                table.row(cells(&line.rule, line.amount));
            }
            all.push(String::new());
            all.extend(table.lines());
        }
        if let Some(pacing) = self.pacing {
            let beyond = if pacing == "wait" { "sent later" } else { "dropped" };
            let mut table = Table::new(&["rate", "limit", "now", beyond]);
            for line in &self.shapes {
                let over = if pacing == "wait" { line.delayed } else { line.dropped };
                table.row(vec![
                    line.destinations.clone(),
                    bits(line.bits_per_second as f64),
                    bits(line.sent_bits_per_second),
                    grouped(over.packets),
                ]);
            }
            all.push(String::new());
            all.extend(table.lines());
        }
        if !self.malformed.is_empty() {
            let mut table = Table::new(&["malformed", "packets", "bytes", "packets/s"]);
            for line in &self.malformed {
                table.row(cells(line.reason, line.amount));
            }
            all.push(String::new());
            all.extend(table.lines());
        }
        all
    }

    // Time, kind, name, and the numbers with their names.
    fn plain(&self) -> Vec<String> {
        let time = format!("{:>8.1}s", self.elapsed_ms as f64 / 1000.0);
        let mut lines = Vec::new();
        let mut line =
            |kind: &str, name: &str, numbers: String| lines.push(format!("{time}  {kind:<9}  {name:<24}  {numbers}"));
        for (hook, report) in self.hooks() {
            let (passed, dropped) = (report.passed.packets, report.dropped.packets);
            line(hook, &self.interface, format!("passed={passed} dropped={dropped}"));
            for reason in &report.by_reason {
                line(
                    hook,
                    &format!("{} {}", reason.verdict, reason.reason),
                    numbers(reason.amount),
                );
            }
        }
        let flows = self.flows;
        line(
            "flows",
            &self.interface,
            format!(
                "established={} half_open={} max={} created={} proven={} evicted={} evicted_half_open={}",
                flows.established,
                flows.half_open,
                flows.max,
                flows.created,
                flows.proven,
                flows.evicted,
                flows.evicted_half_open
            ),
        );
        for rule in &self.rules {
            line("rule", &rule.rule, numbers(rule.amount));
        }
        for shape in &self.shapes {
            line(
                "rate",
                &shape.destinations,
                format!(
                    "limit={} now={:.0} sent={} delayed={} dropped={}",
                    shape.bits_per_second,
                    shape.sent_bits_per_second,
                    shape.sent.packets,
                    shape.delayed.packets,
                    shape.dropped.packets
                ),
            );
        }
        for malformed in &self.malformed {
            line("malformed", malformed.reason, numbers(malformed.amount));
        }
        lines
    }

    fn json(&self) -> String {
        serde_json::to_string(self).expect("a report has no map with keys that JSON lacks")
    }
}

fn cells(name: &str, amount: Amount) -> Vec<String> {
    vec![
        name.to_owned(),
        grouped(amount.packets),
        binary_bytes(amount.bytes),
        format!("{:.0}", amount.packets_per_second),
    ]
}

fn numbers(amount: Amount) -> String {
    let Amount {
        packets,
        bytes,
        packets_per_second,
    } = amount;
    format!("packets={packets} bytes={bytes} packets_per_second={packets_per_second:.1}")
}

/// Bits a second with a decimal unit: `9_850_000` as `9.85 Mbit/s`.
fn bits(per_second: f64) -> String {
    for (unit, size) in [("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)] {
        if per_second >= size {
            return format!("{:.2} {unit}", per_second / size);
        }
    }
    format!("{per_second:.0} bit/s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_take_the_unit_that_keeps_them_short() {
        for (number, text) in [
            (0.0, "0 bit/s"),
            (999.0, "999 bit/s"),
            (1000.0, "1.00 kbit/s"),
            (9_850_000.0, "9.85 Mbit/s"),
            (100_000_000_000.0, "100.00 Gbit/s"),
        ] {
            assert_eq!(bits(number), text);
        }
    }
}
