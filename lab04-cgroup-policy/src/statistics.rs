//! Reads the counters and reports them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError, PerCpuArray, PerCpuHashMap},
};
use lab01_count_packets::{
    counts::CountsError,
    output::Tell,
    text::{Table, binary_bytes, grouped},
};
use lab01_count_packets_common::counter::Counter;
use lab02_xdp_firewall::statistics::{Amount, MalformedLine};
use lab02_xdp_firewall_common::transport::Malformed;
use lab04_cgroup_policy_common::{
    counting::{Blocked, Outcome},
    hook::Hook,
};
use serde::Serialize;

use crate::tables::PolicyTables;

/// The counters, opened for reading.
pub struct Counters {
    by_hook: PerCpuArray<MapData, Counter>,
    malformed: PerCpuArray<MapData, Counter>,
    blocked: PerCpuHashMap<MapData, Blocked, u64>,
}

/// All counters at one moment, summed over the CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// By rule: what met it, and what it would have dropped.
    pub by_rule: BTreeMap<String, [Counter; 2]>,
    /// In the order of [`Hook::ALL`] and [`Outcome::ALL`].
    pub by_hook: Vec<[Counter; 3]>,
    /// In the order of [`Malformed::ALL`].
    pub malformed: Vec<Counter>,
    /// Whom what was blocked was for, by rule, most packets first.
    pub blocked: Vec<(Blocked, u64)>,
}

impl Counters {
    /// Takes the maps out of the loaded object.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, CountsError> {
        Ok(Self {
            by_hook: take(ebpf, "BY_HOOK")?,
            malformed: take(ebpf, "MALFORMED")?,
            blocked: take(ebpf, "BLOCKED")?,
        })
    }

    /// Reads all of them, those of the rules from the tables of the same programs.
    pub fn read(&self, tables: &PolicyTables) -> Result<Statistics, CountsError> {
        let sum = |array: &PerCpuArray<MapData, Counter>, index| -> Result<Counter, MapError> {
            Ok(array.get(&index, 0)?.iter().copied().sum())
        };
        let by_rule = tables
            .numbers()
            .map(|(name, number)| Ok((name.to_owned(), tables.counted(number)?)))
            .collect::<Result<_, MapError>>()?;
        let by_hook = Hook::ALL
            .iter()
            .map(|hook| {
                let [passed, dropped, would_drop] =
                    Outcome::ALL.map(|outcome| sum(&self.by_hook, hook.index() * Outcome::COUNT + outcome.index()));
                Ok([passed?, dropped?, would_drop?])
            })
            .collect::<Result<_, MapError>>()?;
        let malformed = (0..Malformed::COUNT)
            .map(|index| sum(&self.malformed, index))
            .collect::<Result<_, MapError>>()?;
        // What goes while it is read is left out.
        let mut blocked: Vec<(Blocked, u64)> = self
            .blocked
            .iter()
            .filter_map(Result::ok)
            .map(|(blocked, counts)| (blocked, counts.iter().sum()))
            .collect();
        blocked.sort_by(|(one, few), (other, many)| many.cmp(few).then_with(|| one.cmp(other)));
        Ok(Statistics {
            by_rule,
            by_hook,
            malformed,
            blocked,
        })
    }
}

fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, CountsError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(CountsError::Missing(name))?;
    Ok(map.try_into()?)
}

/// One report. Field for field the JSON line.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Milliseconds since the programs were attached.
    pub elapsed_ms: u64,
    /// The cgroup's path below the root.
    pub cgroup: String,
    /// The policy's name.
    pub policy: String,
    /// `observe` or `block`.
    pub mode: &'static str,
    /// What passed and was to pass.
    pub passed: Amount,
    /// What was dropped, or refused at the system call.
    pub dropped: Amount,
    /// What passed and would have been dropped.
    pub would_drop: Amount,
    /// By rule, `essential`, `default` and `malformed` included; those that nothing has met are left out.
    pub rules: Vec<RuleLine>,
    /// How many rules nothing has met.
    pub rules_unmet: usize,
    /// By hook; those that nothing has reached are left out.
    pub hooks: Vec<HookLine>,
    /// Whom what was dropped, or would have been, was for.
    pub blocked: Vec<BlockedLine>,
    /// By the way in which packets were malformed.
    pub malformed: Vec<MalformedLine>,
}

/// What met one rule.
#[derive(Clone, Debug, Serialize)]
pub struct RuleLine {
    /// Its name.
    pub rule: String,
    /// What it decided: passed it, if it allows, or dropped it.
    #[serde(flatten)]
    pub decided: Amount,
    /// What it would have dropped.
    pub would_drop: Amount,
}

/// What became of what reached one hook.
#[derive(Clone, Debug, Serialize)]
pub struct HookLine {
    /// Its name.
    pub hook: &'static str,
    /// What passed.
    pub passed: Amount,
    /// What was dropped or refused.
    pub dropped: Amount,
    /// What passed and would have been dropped.
    pub would_drop: Amount,
}

/// Whom something blocked was for.
#[derive(Clone, Debug, Serialize)]
pub struct BlockedLine {
    /// The rule.
    pub rule: String,
    /// `egress` or `ingress`.
    pub direction: &'static str,
    /// The other side; `None` for what is malformed.
    pub peer: Option<IpAddr>,
    /// The protocol's name or number.
    pub protocol: String,
    /// The destination port; 0 without ports.
    pub port: u16,
    /// How often.
    pub packets: u64,
}

/// Makes reports, remembering the last one for the rates.
pub struct Reporter {
    cgroup: String,
    before: Statistics,
    before_elapsed: Duration,
}

/// How many lines of what was blocked are told.
const BLOCKED_LINES: usize = 20;

impl Reporter {
    /// For the cgroup of this name.
    pub fn new(cgroup: &str) -> Self {
        Self {
            cgroup: cgroup.to_owned(),
            before: Statistics::default(),
            before_elapsed: Duration::ZERO,
        }
    }

    /// The report for `now`, read `elapsed` after the programs were attached; `policy` is in force, in `tables`.
    pub fn report(
        &mut self,
        policy: &str,
        blocking: bool,
        tables: &PolicyTables,
        now: Statistics,
        elapsed: Duration,
    ) -> Report {
        let seconds = elapsed.saturating_sub(self.before_elapsed).as_secs_f64();
        let amount = |now: Counter, before: Counter| Amount::since(now, before, seconds);
        let names: BTreeMap<u32, &str> = tables.numbers().map(|(name, number)| (number, name)).collect();
        let before = &self.before;
        let of_outcome = |outcome: Outcome| {
            let all = |statistics: &Statistics| -> Counter {
                let counters = statistics.by_hook.iter();
                counters.map(|counters| counters[outcome as usize]).sum()
            };
            amount(all(&now), all(before))
        };
        let mut rules: Vec<RuleLine> = now
            .by_rule
            .iter()
            .map(|(rule, [met, would_drop])| {
                let [met_before, would_before] = before.by_rule.get(rule).copied().unwrap_or_default();
                RuleLine {
                    rule: rule.clone(),
                    decided: amount(*met, met_before),
                    would_drop: amount(*would_drop, would_before),
                }
            })
            .collect();
        let all_rules = rules.len();
        rules.retain(|line| line.decided.packets + line.would_drop.packets > 0);
        rules.sort_by_key(|line| std::cmp::Reverse(line.decided.packets + line.would_drop.packets));
        let hooks = Hook::ALL.iter().zip(&now.by_hook).filter_map(|(hook, counters)| {
            let place = hook.index() as usize;
            let counters_before = before.by_hook.get(place).copied().unwrap_or_default();
            let [passed, dropped, would_drop] =
                std::array::from_fn(|outcome| amount(counters[outcome], counters_before[outcome]));
            let line = HookLine {
                hook: hook.name(),
                passed,
                dropped,
                would_drop,
            };
            (passed.packets + dropped.packets + would_drop.packets > 0).then_some(line)
        });
        let report = Report {
            elapsed_ms: elapsed.as_millis() as u64,
            cgroup: self.cgroup.clone(),
            policy: policy.to_owned(),
            mode: if blocking { "block" } else { "observe" },
            passed: of_outcome(Outcome::Passed),
            dropped: of_outcome(Outcome::Dropped),
            would_drop: of_outcome(Outcome::WouldDrop),
            rules_unmet: all_rules - rules.len(),
            rules,
            hooks: hooks.collect(),
            blocked: blocked_lines(&now.blocked, &names),
            malformed: Malformed::ALL
                .iter()
                .zip(&now.malformed)
                .filter(|(_, counter)| counter.packets > 0)
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
                })
                .collect(),
        };
        self.before = now;
        self.before_elapsed = elapsed;
        report
    }
}

fn blocked_lines(blocked: &[(Blocked, u64)], names: &BTreeMap<u32, &str>) -> Vec<BlockedLine> {
    let lines = blocked.iter().filter_map(|(blocked, packets)| {
        // Of a rule that is no more in the policy nothing is told.
        let rule = (*names.get(&blocked.rule)?).to_owned();
        let [a, b, c, d, ..] = blocked.peer;
        Some(BlockedLine {
            rule,
            direction: if blocked.ingress == 0 { "egress" } else { "ingress" },
            peer: match blocked.ip_version {
                4 => Some(Ipv4Addr::new(a, b, c, d).into()),
                6 => Some(Ipv6Addr::from(blocked.peer).into()),
                _ => None,
            },
            protocol: enforcer_policy::model::Protocol(blocked.protocol).to_string(),
            port: blocked.port,
            packets: *packets,
        })
    });
    lines.take(BLOCKED_LINES).collect()
}

impl BlockedLine {
    /// `tcp 192.0.2.1:443`, `icmpv6 2001:db8::1`, or `malformed`.
    fn what(&self) -> String {
        match (self.peer, self.port) {
            (None, _) => "malformed".to_owned(),
            (Some(peer), 0) => format!("{} {peer}", self.protocol),
            // On the way in, the port is the cgroup's own.
            (Some(peer), port) if self.direction == "ingress" => format!("{} port {port} from {peer}", self.protocol),
            (Some(IpAddr::V4(peer)), port) => format!("{} {peer}:{port}", self.protocol),
            (Some(IpAddr::V6(peer)), port) => format!("{} [{peer}]:{port}", self.protocol),
        }
    }
}

impl Tell for Report {
    fn table(&self) -> Vec<String> {
        let mut all = vec![
            format!(
                "{}, policy {}, mode {}, {} s: {} packets passed, {}",
                self.cgroup,
                self.policy,
                self.mode,
                self.elapsed_ms / 1000,
                grouped(self.passed.packets + self.would_drop.packets),
                binary_bytes(self.passed.bytes + self.would_drop.bytes),
            ),
            format!(
                "{} dropped, {} would be dropped",
                grouped(self.dropped.packets),
                grouped(self.would_drop.packets)
            ),
            String::new(),
        ];
        if self.hooks.is_empty() {
            all.push("Nothing was sent or received yet.".into());
            return all;
        }
        let mut rules = Table::new(&["rule", "packets", "bytes", "packets/s", "would drop"]);
        for RuleLine {
            rule,
            decided,
            would_drop,
        } in &self.rules
        {
            rules.row(vec![
                rule.clone(),
                grouped(decided.packets),
                binary_bytes(decided.bytes),
                format!("{:.0}", decided.packets_per_second),
                grouped(would_drop.packets),
            ]);
        }
        all.extend(rules.lines());
        let mut hooks = Table::new(&["hook", "passed", "dropped", "would drop"]);
        for HookLine {
            hook,
            passed,
            dropped,
            would_drop,
        } in &self.hooks
        {
            let packets = [passed, dropped, would_drop].map(|amount| grouped(amount.packets));
            hooks.row(std::iter::once((*hook).to_owned()).chain(packets).collect());
        }
        all.push(String::new());
        all.extend(hooks.lines());
        if !self.blocked.is_empty() {
            let head = if self.mode == "block" {
                "blocked"
            } else {
                "would be blocked"
            };
            let mut blocked = Table::new(&[head, "packets", "rule"]);
            for line in &self.blocked {
                blocked.row(vec![line.what(), grouped(line.packets), line.rule.clone()]);
            }
            all.push(String::new());
            all.extend(blocked.lines());
        }
        all
    }

    // Time, kind, name, and the numbers with their names.
    fn plain(&self) -> Vec<String> {
        let time = format!("{:>8.1}s", self.elapsed_ms as f64 / 1000.0);
        let mut lines = vec![format!(
            "{time}  total    {:<24}  mode={} passed={} dropped={} would_drop={}",
            self.policy, self.mode, self.passed.packets, self.dropped.packets, self.would_drop.packets,
        )];
        for line in &self.rules {
            lines.push(format!(
                "{time}  rule     {:<24}  packets={} bytes={} would_drop={}",
                line.rule, line.decided.packets, line.decided.bytes, line.would_drop.packets,
            ));
        }
        for line in &self.hooks {
            lines.push(format!(
                "{time}  hook     {:<24}  passed={} dropped={} would_drop={}",
                line.hook, line.passed.packets, line.dropped.packets, line.would_drop.packets,
            ));
        }
        for line in &self.blocked {
            let kind = if self.mode == "block" { "blocked" } else { "would" };
            lines.push(format!(
                "{time}  {kind:<7}  {:<24}  rule={} packets={}",
                line.what(),
                line.rule,
                line.packets
            ));
        }
        for line in &self.malformed {
            lines.push(format!(
                "{time}  malformed {:<24}  packets={} bytes={}",
                line.reason, line.amount.packets, line.amount.bytes
            ));
        }
        lines
    }

    fn json(&self) -> String {
        serde_json::to_string(self).expect("a report has no map with keys that JSON lacks")
    }
}
