//! The programs with a policy in their tables.

use std::os::fd::{AsFd as _, BorrowedFd};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf,
    programs::{CgroupSkb, CgroupSockAddr, Program, ProgramError, ProgramFd, SchedClassifier, Xdp},
};
use enforcer_policy::Policy;
use lab01_count_packets::load::explain_program;
use lab06_full_enforcer::{
    api::FlowEvents,
    compile::{Capacities, compile},
    counters::Counters,
    object,
    tables::KernelTables,
};
use lab06_full_enforcer_common::table::has;

/// The programs, with a policy in force.
pub struct Loaded {
    // Keeps the programs and those maps alive that nothing below holds.
    _ebpf: Ebpf,
    programs: Programs,
    _tables: KernelTables,
    counters: Counters,
    rules: u32,
    refuses_calls: bool,
}

impl Loaded {
    /// With this policy, and without a table of flows: each packet is decided about for itself.
    pub fn with(policy: &Policy) -> Result<Self> {
        Self::following(0, policy)
    }

    /// With this policy, and so many flows followed at once.
    pub fn following(flows: u32, policy: &Policy) -> Result<Self> {
        let compiled = compile(policy)?;
        let capacities = Capacities {
            flows,
            ..Capacities::around(&compiled)
        };
        // A test run's packet has a socket, so TC egress would leave it to the cgroup.
        let mut ebpf = object::load(&capacities, false)?;
        let programs = Programs::load(&mut ebpf)?;
        let mut tables = KernelTables::take(&mut ebpf, capacities)?;
        let counters = Counters::take(&mut ebpf)?;
        tables.apply(&compiled, compiled.mode)?;
        Ok(Self {
            _ebpf: ebpf,
            programs,
            _tables: tables,
            counters,
            rules: policy.rules.len() as u32,
            refuses_calls: compiled.config.has & has::AT_CALL != 0,
        })
    }

    /// What decides about packets that come in, at XDP.
    pub fn xdp(&self) -> BorrowedFd<'_> {
        self.programs.xdp.as_fd()
    }

    /// What decides about packets that come in, at TC.
    pub fn ingress(&self) -> BorrowedFd<'_> {
        self.programs.ingress.as_fd()
    }

    /// What decides about packets that leave and are no socket's, at TC.
    pub fn leaving(&self) -> BorrowedFd<'_> {
        self.programs.leaving.as_fd()
    }

    /// What decides about packets that sockets send.
    pub fn egress(&self) -> BorrowedFd<'_> {
        self.programs.egress.as_fd()
    }

    /// What looks for rules that block a packet by the socket that it is for.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.programs.socket.as_fd()
    }

    /// Whether the policy asks its rules about calls, too.
    pub fn refuses_calls(&self) -> bool {
        self.refuses_calls
    }

    /// What refuses calls of `connect` whose packets would be blocked whatever they look like.
    pub fn connect4(&self) -> BorrowedFd<'_> {
        self.programs.connect4.as_fd()
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

    /// What has happened in the table of flows.
    pub fn flow_events(&self) -> Result<FlowEvents> {
        Ok(self.counters.flow_events()?)
    }
}

/// The object's programs in the kernel.
pub struct Programs {
    xdp: ProgramFd,
    ingress: ProgramFd,
    leaving: ProgramFd,
    egress: ProgramFd,
    socket: ProgramFd,
    connect4: ProgramFd,
}

impl Programs {
    /// Brings them there.
    pub fn load(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            xdp: bring(ebpf, "enforce_xdp", Xdp::load)?,
            ingress: bring(ebpf, "enforce_ingress", SchedClassifier::load)?,
            leaving: bring(ebpf, "enforce_leaving", SchedClassifier::load)?,
            egress: bring(ebpf, "enforce_egress", CgroupSkb::load)?,
            socket: bring(ebpf, "enforce_socket", CgroupSkb::load)?,
            connect4: bring(ebpf, "enforce_connect4", CgroupSockAddr::load)?,
        })
    }
}

/// Brings a program into the kernel by its type's own `load`; its descriptor.
pub fn bring<P>(ebpf: &mut Ebpf, name: &str, load: impl FnOnce(&mut P) -> Result<(), ProgramError>) -> Result<ProgramFd>
where
    for<'a> &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name);
    let program = program.with_context(|| format!("the eBPF object has no program {name}"))?;
    load((&mut *program).try_into()?).map_err(|error| explain_program(name, error))?;
    Ok(program.fd()?.try_clone()?)
}
