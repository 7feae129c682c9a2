//! The programs' tables in the kernel.

use std::{io, time::Duration};

use aya::{
    Ebpf,
    maps::{Array, MapData, MapError},
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use lab01_count_packets::{
    counts::CountsError,
    load::{LoadError, load_object_with},
};
use lab02_xdp_firewall::{mapped::MappedArray, statistics::take, tables::random};
use lab03_tc_egress_common::{decide::Config, shaper::Shape, target::Target};
use thiserror::Error;

use crate::OBJECT;
use crate::policy::{Compiled, Policy, PolicyError, buckets_for, half_open_flows};

/// Why a policy did not take effect.
#[derive(Debug, Error)]
pub enum TablesError {
    /// It cannot be.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The object has no such map, or it is of another type.
    #[error(transparent)]
    Missing(#[from] CountsError),
    /// The kernel refused to write a map.
    #[error("a table cannot be written: {0}")]
    Map(#[from] MapError),
    /// Memory could not be mapped.
    #[error("a table cannot be mapped: {0}")]
    Io(#[from] io::Error),
}

/// Loads lab03's object, whose maps will remember `max_flows` flows.
pub fn load(max_flows: u32) -> Result<Ebpf, LoadError> {
    let sizes = [
        ("FLOWS", buckets_for(max_flows)),
        ("HALF_OPEN", buckets_for(half_open_flows(max_flows))),
    ];
    load_object_with(OBJECT, &sizes, &[("COARSE_CLOCK", u8::from(has_coarse_clock()))])
}

/// Whether the kernel can tell programs the time without reading the machine's clock, Linux 5.11.
pub fn has_coarse_clock() -> bool {
    // If it cannot be found out, the exact time will do.
    is_helper_supported(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_ktime_get_coarse_ns).unwrap_or(false)
}

/// The tables of one loaded object.
pub struct ProgramTables {
    config: Array<MapData, Config>,
    ports: MappedArray<u64>,
    deny_rules: Array<MapData, Target>,
    shapes: Array<MapData, Shape>,
    in_force: Config,
}

impl ProgramTables {
    /// Takes the tables out of the loaded object, whose programs are in the kernel already, and puts `policy` into force:
    /// before they are attached, so that the first frame meets all of it. Returns what people call its rates, too.
    pub fn put(ebpf: &mut Ebpf, policy: &Policy) -> Result<(Self, Vec<(String, u64)>), TablesError> {
        let Compiled {
            config,
            deny,
            shapes,
            shape_names,
            ports,
        } = policy.compile([random()?, random()?], now_ns())?;
        let mut tables = Self {
            config: take(ebpf, "CONFIG")?,
            ports: MappedArray::new(&take(ebpf, "PORTS")?)?,
            deny_rules: take(ebpf, "DENY_RULES")?,
            shapes: take(ebpf, "SHAPES")?,
            in_force: config,
        };
        tables.ports.write(0, &ports);
        for (index, rule) in (0..).zip(&deny) {
            tables.deny_rules.set(index, rule, 0)?;
        }
        for (index, shape) in (0..).zip(&shapes) {
            tables.shapes.set(index, shape, 0)?;
        }
        tables.config.set(0, config, 0)?;
        Ok((tables, shape_names))
    }

    /// Says whether what exceeds a rate can wait: whether the queueing discipline `fq` is there to hold it.
    pub fn set_can_wait(&mut self, can_wait: bool) -> Result<(), TablesError> {
        self.in_force.can_wait = u8::from(can_wait);
        self.config.set(0, self.in_force, 0)?;
        Ok(())
    }

    /// What is in force.
    pub fn config(&self) -> &Config {
        &self.in_force
    }
}

/// The time since boot in nanoseconds, by the clock that programs read (`bpf_ktime_get_ns`).
pub fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is the kernel's to fill, and this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32).as_nanos() as u64
}
