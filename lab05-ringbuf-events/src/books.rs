//! The books of what was told and what was not.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{
    Ebpf, Pod,
    maps::{Map, MapData, MapError, PerCpuArray},
    programs::ProgramFd,
};
use aya_obj::generated::{bpf_cmd, bpf_prog_info};
use lab02_xdp_firewall::syscall::{bpf, no_attributes};
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
    /// The kernel does not say how often it has left a program out.
    #[error("the books cannot be read: {0}")]
    Missed(io::Error),
}

/// The books, opened for reading.
pub struct Books {
    decisions: PerCpuArray<MapData, Tally>,
    deeds: PerCpuArray<MapData, Tally>,
    /// The programs that tell what processes do.
    tellers: Vec<ProgramFd>,
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
    /// How much found no room, or happened where the kernel ran no program: see [`Books::watch`].
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
            tellers: Vec::new(),
        })
    }

    /// Counts among what was lost how often the kernel has left out this program, which tells what processes do.
    ///
    /// While a program of a tracepoint runs on a CPU, the kernel does not begin it there once more. Since tracepoints hold
    /// their task on the CPU no longer (`tracepoint_srcu`, in Linux 7), another task can come in between, and what it does is
    /// told by nobody. The kernel counts that, from Linux 5.12 on.
    pub fn watch(&mut self, program: ProgramFd) {
        self.tellers.push(program);
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
        for program in &self.tellers {
            let missed = missed(program).map_err(BooksError::Missed)?;
            deeds.decisions += missed;
            deeds.lost += missed;
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

/// How often the kernel has left a program out. Older kernels fill in less, and the rest stays 0.
fn missed(program: &ProgramFd) -> io::Result<u64> {
    // SAFETY: all zeroes are a valid `bpf_prog_info`, which asks for nothing but numbers.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut attributes = no_attributes();
    attributes.info.bpf_fd = program.as_fd().as_raw_fd().cast_unsigned();
    attributes.info.info_len = size_of::<bpf_prog_info>() as u32;
    attributes.info.info = (&raw mut info) as u64;
    // SAFETY: the kernel writes at most so much there.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(info.recursion_misses)
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
