//! The programs with a table that is full of established flows, and rows of what their packets cost.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use anyhow::{Result, ensure};
use aya::programs::{ProgramFd, SchedClassifier};
use lab01_count_packets::load;
use lab03_tc_egress::{
    PROGRAMS,
    flows::FlowTables,
    policy::{Policy, half_open_flows},
    statistics::Counters,
    tables::{self, ProgramTables},
};
use lab03_tc_egress_common::decide::FlowEvent;
use testbed::{
    bpf::{TestRun, test_run},
    figures::Row,
    packets::{self, Packet},
    walk::{Differs, Draw, PORTS, Strangers, shake_hands},
};

/// How often a program runs in a round.
const RUNS: u32 = 100_000;

const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The first client with an established flow, and the first of those who only send a SYN.
const CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);
const STRANGERS: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 0);

/// Both programs, with their table full.
pub struct Filled {
    ingress: ProgramFd,
    egress: ProgramFd,
    clients: Draw,
    strangers: Strangers,
    // Kept, as the programs' maps are.
    _tables: ProgramTables,
}

impl Filled {
    /// With so many established flows, which clients have opened.
    pub fn with(flows: u32, policy: &Policy) -> Result<Self> {
        let policy = Policy {
            max_flows: flows,
            ..policy.clone()
        };
        let mut ebpf = tables::load(flows)?;
        let mut fds = Vec::new();
        for (name, _) in PROGRAMS {
            let program: &mut SchedClassifier = load::program(&mut ebpf, name, "SchedClassifier")?;
            program.load().map_err(|error| load::explain_program(name, error))?;
            fds.push(program.fd()?.try_clone()?);
        }
        let (tables, _) = ProgramTables::put(&mut ebpf, &policy)?;
        let (table, counters) = (FlowTables::take(&mut ebpf)?, Counters::take(&mut ebpf)?);
        let (egress, ingress) = (fds.remove(1), fds.remove(0));
        let filled = Self {
            ingress,
            egress,
            clients: Draw::from(CLIENTS, flows, Differs::Source)?,
            strangers: Strangers::from(STRANGERS, SERVER)?,
            _tables: tables,
        };
        let both = [filled.ingress.as_fd(), filled.egress.as_fd()];
        shake_hands(both, &[], CLIENTS, SERVER, flows)?;
        let statistics = counters.read(table.fill())?;
        let evicted = statistics.event(FlowEvent::EvictedEstablished);
        ensure!(
            statistics.fill.established + evicted == u64::from(flows),
            "of {flows} flows {} are in the table, and {evicted} were evicted",
            statistics.fill.established
        );
        // Twice as many as have places, so that each new one takes the place of another one.
        let half_open = 4 * half_open_flows(flows);
        filled.strangers.run(filled.ingress.as_fd(), half_open)?;
        Ok(filled)
    }

    /// What one client sends, again and again.
    pub fn established<'a>(&'a self, name: &str, empty: &'a OwnedFd) -> Row<'a> {
        let frame = inwards_from(CLIENTS).ack().build();
        let frame_again = frame.clone();
        Row::new(
            name,
            move || repeat(empty.as_fd(), &frame),
            move || repeat(self.ingress.as_fd(), &frame_again),
        )
    }

    /// What any of the clients sends.
    pub fn spread<'a>(&'a self, name: &str, empty: &'a OwnedFd) -> Row<'a> {
        let measure = |program: BorrowedFd<'_>| {
            let frame = inwards_from(CLIENTS).ack().build();
            Ok(self.clients.run(program, &frame, RUNS)?.duration_ns)
        };
        Row::new(
            name,
            move || measure(empty.as_fd()),
            move || measure(self.ingress.as_fd()),
        )
    }

    /// What somebody else sends each time, a SYN, which begins a flow.
    pub fn begun<'a>(&'a self, name: &str, empty: &'a OwnedFd) -> Row<'a> {
        let measure = |program: BorrowedFd<'_>| Ok(self.strangers.run(program, RUNS)?.duration_ns);
        Row::new(
            name,
            move || measure(empty.as_fd()),
            move || measure(self.ingress.as_fd()),
        )
    }

    /// What goes out to one client, again and again.
    pub fn answered<'a>(&'a self, name: &str, empty: &'a OwnedFd) -> Row<'a> {
        let frame = answer_to(CLIENTS).ack().build();
        let frame_again = frame.clone();
        Row::new(
            name,
            move || repeat(empty.as_fd(), &frame),
            move || repeat(self.egress.as_fd(), &frame_again),
        )
    }
}

fn repeat(program: BorrowedFd<'_>, frame: &[u8]) -> testbed::Result<u32> {
    Ok(test_run(program, TestRun::repeated(frame, RUNS))?.duration_ns)
}

fn inwards_from(client: Ipv4Addr) -> Packet {
    packets::ethernet().ipv4(client, SERVER).tcp(PORTS.0, PORTS.1)
}

fn answer_to(client: Ipv4Addr) -> Packet {
    packets::ethernet().ipv4(SERVER, client).tcp(PORTS.1, PORTS.0)
}
