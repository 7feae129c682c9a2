//! Reads the programs' counters.

use aya::{
    Ebpf,
    maps::{MapData, MapError, PerCpuArray, PerCpuValues},
};
use lab01_count_packets_common::counter::Counter;
use lab02_xdp_firewall_common::transport::Malformed;
use lab03_tc_egress_common::decide::FlowEvent;
use lab06_full_enforcer_common::{
    counters::{Outcome, Reason, by_reason, by_rule},
    key::Hook,
};

use crate::{
    api::{Amount, Amounts, FlowEvents, MalformedStats, ReasonStats},
    tables::{TablesError, take},
};

/// The counters of the loaded programs.
pub struct Counters {
    by_rule: PerCpuArray<MapData, Counter>,
    by_reason: PerCpuArray<MapData, Counter>,
    malformed: PerCpuArray<MapData, Counter>,
    flow_events: PerCpuArray<MapData, u64>,
}

impl Counters {
    /// Takes the maps out of the loaded object.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, TablesError> {
        Ok(Self {
            by_rule: take(ebpf, "PACKETS_BY_RULE")?,
            by_reason: take(ebpf, "PACKETS_BY_REASON")?,
            malformed: take(ebpf, "PACKETS_MALFORMED")?,
            flow_events: take(ebpf, "FLOW_EVENTS")?,
        })
    }

    /// What was counted for the rule of this id.
    pub fn of_rule(&self, id: u32) -> Result<Amounts, MapError> {
        amounts(&self.by_rule, |outcome| by_rule(id, outcome))
    }

    /// Sets the counters of an id to zero. To be called while no policy that a program reads has it.
    pub fn forget(&mut self, id: u32) -> Result<(), MapError> {
        for outcome in Outcome::ALL {
            let zeroes = vec![Counter::ZERO; cpus()?];
            let zeroes = PerCpuValues::try_from(zeroes).map_err(MapError::IoError)?;
            self.by_rule.set(by_rule(id, outcome), zeroes, 0)?;
        }
        Ok(())
    }

    /// What has happened in the table of flows.
    pub fn flow_events(&self) -> Result<FlowEvents, MapError> {
        let of = |event: FlowEvent| -> Result<u64, MapError> {
            let by_cpu = self.flow_events.get(&(event as u32), 0)?;
            Ok(by_cpu.iter().sum())
        };
        Ok(FlowEvents {
            created: of(FlowEvent::Created)?,
            established: of(FlowEvent::Established)?,
            evicted_half_open: of(FlowEvent::EvictedHalfOpen)?,
            evicted_established: of(FlowEvent::EvictedEstablished)?,
        })
    }

    /// What was counted at each hook for each reason.
    pub fn by_reason(&self) -> Result<Vec<ReasonStats>, MapError> {
        let mut all = Vec::new();
        for hook in Hook::ALL {
            for reason in Reason::ALL {
                all.push(ReasonStats {
                    hook: hook.name().into(),
                    reason: reason.name().into(),
                    amounts: amounts(&self.by_reason, |outcome| by_reason(hook, reason, outcome))?,
                });
            }
        }
        Ok(all)
    }

    /// What was counted for each way of being malformed that has occurred.
    pub fn malformed(&self) -> Result<Vec<MalformedStats>, MapError> {
        let mut all = Vec::new();
        for malformed in Malformed::ALL {
            let amount = amount(&self.malformed, malformed.index())?;
            if amount.packets > 0 {
                all.push(MalformedStats {
                    malformed: malformed.name().into(),
                    amount,
                });
            }
        }
        Ok(all)
    }
}

fn cpus() -> Result<usize, MapError> {
    aya::util::nr_cpus().map_err(|(_, error)| MapError::IoError(error))
}

fn amounts(counters: &PerCpuArray<MapData, Counter>, index: impl Fn(Outcome) -> u32) -> Result<Amounts, MapError> {
    Ok(Amounts {
        passed: amount(counters, index(Outcome::Passed))?,
        observed: amount(counters, index(Outcome::Observed))?,
        dropped: amount(counters, index(Outcome::Dropped))?,
    })
}

fn amount(counters: &PerCpuArray<MapData, Counter>, index: u32) -> Result<Amount, MapError> {
    let sum: Counter = counters.get(&index, 0)?.iter().copied().sum();
    Ok(Amount {
        packets: sum.packets,
        bytes: sum.bytes,
    })
}

impl Amounts {
    /// All of them, whatever became of them.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let plus = |one: Amount, other: Amount| Amount {
            packets: one.packets + other.packets,
            bytes: one.bytes + other.bytes,
        };
        Self {
            passed: plus(self.passed, other.passed),
            observed: plus(self.observed, other.observed),
            dropped: plus(self.dropped, other.dropped),
        }
    }

    /// What was counted since `before`.
    #[must_use]
    pub fn minus(self, before: Self) -> Self {
        let minus = |one: Amount, other: Amount| Amount {
            packets: one.packets.saturating_sub(other.packets),
            bytes: one.bytes.saturating_sub(other.bytes),
        };
        Self {
            passed: minus(self.passed, before.passed),
            observed: minus(self.observed, before.observed),
            dropped: minus(self.dropped, before.dropped),
        }
    }

    /// How many packets there were, whatever became of them.
    pub fn packets(&self) -> u64 {
        self.passed.packets + self.observed.packets + self.dropped.packets
    }
}
