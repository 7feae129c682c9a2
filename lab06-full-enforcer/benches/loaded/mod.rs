//! The programs with a policy in their tables, and rows of what packets cost that meet it.

use std::os::fd::{AsFd as _, BorrowedFd};

use anyhow::{Result, ensure};
use aya::{
    Ebpf,
    programs::{CgroupSkb, ProgramFd, SchedClassifier},
};
use enforcer_policy::Policy;
use lab01_count_packets::load;
use lab06_full_enforcer::{
    compile::{Capacities, compile},
    counters::Counters,
    object,
    tables::KernelTables,
};

/// Both programs, with a policy in force.
pub struct Loaded {
    // Keeps the programs and those maps alive that nothing below holds.
    _ebpf: Ebpf,
    ingress: ProgramFd,
    egress: ProgramFd,
    _tables: KernelTables,
    counters: Counters,
    rules: u32,
}

impl Loaded {
    /// With this policy.
    pub fn with(policy: &Policy) -> Result<Self> {
        let compiled = compile(policy)?;
        let capacities = Capacities::around(&compiled);
        let mut ebpf = object::load(&capacities, true)?;
        let [ingress, egress] = load_programs(&mut ebpf)?;
        let mut tables = KernelTables::take(&mut ebpf, capacities)?;
        let counters = Counters::take(&mut ebpf)?;
        tables.apply(&compiled, compiled.mode)?;
        Ok(Self {
            _ebpf: ebpf,
            ingress,
            egress,
            _tables: tables,
            counters,
            rules: policy.rules.len() as u32,
        })
    }

    /// What decides about packets that come in, at TC.
    pub fn ingress(&self) -> BorrowedFd<'_> {
        self.ingress.as_fd()
    }

    /// What decides about packets that sockets send.
    pub fn egress(&self) -> BorrowedFd<'_> {
        self.egress.as_fd()
    }

    /// How many rules have decided about packets so far; none may have been malformed.
    pub fn met(&self) -> Result<usize> {
        let malformed = self.counters.malformed()?;
        ensure!(malformed.is_empty(), "packets of the benchmark are malformed");
        let mut met = 0;
        for id in 0..self.rules {
            met += usize::from(self.counters.of_rule(id)?.packets() > 0);
        }
        Ok(met)
    }
}

/// Brings both programs of the object into the kernel: at ingress, at egress.
pub fn load_programs(ebpf: &mut Ebpf) -> Result<[ProgramFd; 2]> {
    let ingress: &mut SchedClassifier = load::program(ebpf, "enforce_ingress", "TC")?;
    ingress
        .load()
        .map_err(|error| load::explain_program("enforce_ingress", error))?;
    let ingress = ingress.fd()?.try_clone()?;
    let egress: &mut CgroupSkb = load::program(ebpf, "enforce_egress", "cgroup_skb")?;
    egress
        .load()
        .map_err(|error| load::explain_program("enforce_egress", error))?;
    Ok([ingress, egress.fd()?.try_clone()?])
}
