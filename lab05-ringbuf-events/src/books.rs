//! The books of what was told and what was not.

use aya::{
    Ebpf, Pod,
    maps::{Map, MapData, MapError, PerCpuArray},
};
use lab05_ringbuf_events_common::{
    decision::{Hook, SLOTS, Tally},
    process::Deed,
};
use serde::Serialize;
use thiserror::Error;

/// The books cannot be read.
#[derive(Debug, Error)]
pub enum BooksError {
    /// The object has no map of this name.
    #[error("the eBPF object has no map {0}; build it again")]
    Missing(String),
    /// The kernel refused to read it.
    #[error("the books cannot be read: {0}")]
    Map(#[from] MapError),
}

/// The books, opened for reading.
pub struct Books {
    decisions: PerCpuArray<MapData, Tally>,
    deeds: PerCpuArray<MapData, Tally>,
}

/// The books at one moment. Once everything is quiet, they balance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Balance {
    /// Of decisions, all together.
    pub decisions: Line,
    /// Of what processes did.
    pub processes: Line,
    /// Of decisions, by hook and reason, where there were any.
    pub by_reason: Vec<ReasonLine>,
}

/// A line of the books.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Line {
    /// How much there was to tell.
    pub happened: u64,
    /// How much of it was told.
    pub emitted: u64,
    /// How much was left out on purpose.
    pub suppressed: u64,
    /// How much found no room.
    pub lost: u64,
}

/// A line for one hook and one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReasonLine {
    /// The hook.
    pub hook: &'static str,
    /// The reason.
    pub reason: &'static str,
    /// The numbers.
    #[serde(flatten)]
    pub line: Line,
}

impl From<Tally> for Line {
    fn from(tally: Tally) -> Self {
        Self {
            happened: tally.decisions,
            emitted: tally.emitted,
            suppressed: tally.suppressed,
            lost: tally.lost,
        }
    }
}

impl Books {
    /// Takes the maps out of the loaded object.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, BooksError> {
        Ok(Self {
            decisions: take(ebpf, "TALLIES")?,
            deeds: take(ebpf, "PROCESS_TALLIES")?,
        })
    }

    /// Reads them, summed over the CPUs.
    pub fn balance(&self) -> Result<Balance, BooksError> {
        let mut by_reason = Vec::new();
        let mut decisions = Tally::default();
        for slot in 0..SLOTS {
            let tally = sum(&self.decisions, slot)?;
            decisions = [decisions, tally].into_iter().sum();
            if let Some((hook, reason)) = Hook::of_slot(slot)
                && tally.decisions > 0
            {
                by_reason.push(ReasonLine {
                    hook: hook.name(),
                    reason: reason.name(),
                    line: tally.into(),
                });
            }
        }
        let mut deeds = Tally::default();
        for deed in Deed::ALL {
            deeds = [deeds, sum(&self.deeds, deed as u32)?].into_iter().sum();
        }
        Ok(Balance {
            decisions: decisions.into(),
            processes: deeds.into(),
            by_reason,
        })
    }
}

fn sum(tallies: &PerCpuArray<MapData, Tally>, slot: u32) -> Result<Tally, MapError> {
    Ok(tallies.get(&slot, 0)?.iter().copied().sum())
}

fn take<V: Pod>(ebpf: &mut Ebpf, name: &str) -> Result<PerCpuArray<MapData, V>, BooksError>
where
    PerCpuArray<MapData, V>: TryFrom<Map, Error = MapError>,
{
    let map = ebpf
        .take_map(name)
        .ok_or_else(|| BooksError::Missing(name.to_owned()))?;
    Ok(map.try_into()?)
}
