//! The programs, loaded and attached to nothing: frames come through test runs.

use std::os::fd::AsFd as _;

use aya::{
    Ebpf,
    programs::{ProgramFd, SchedClassifier},
};
use lab01_count_packets::load;
use lab03_tc_egress::{
    PROGRAMS,
    attach::Direction,
    flows::{Fill, FlowLine, FlowTables},
    policy::Policy,
    statistics::{Counters, Statistics},
    tables::{self, ProgramTables},
};
use lab03_tc_egress_common::decide::Reason;
use testbed::bpf::{self, TestRun};

/// `TC_ACT_UNSPEC` and `TC_ACT_SHOT` of `linux/pkt_cls.h`.
const NEXT: u32 = u32::MAX;
const DROP: u32 = 2;

/// The programs, loaded with a policy.
pub struct Program {
    pub ebpf: Ebpf,
    fds: [ProgramFd; 2],
    pub tables: ProgramTables,
    flows: FlowTables,
    counters: Counters,
}

/// Loads both programs.
pub fn load(policy: &Policy) -> Ebpf {
    let mut ebpf = tables::load(policy.max_flows).unwrap();
    for (name, _) in PROGRAMS {
        classifier(&mut ebpf, name)
            .load()
            .map_err(|error| load::explain_program(name, error))
            .unwrap_or_else(|error| panic!("{error}"));
    }
    ebpf
}

pub fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut SchedClassifier {
    load::program(ebpf, name, "SchedClassifier").unwrap()
}

impl Program {
    /// Loads them with `policy` in force.
    pub fn with(policy: &Policy) -> Self {
        let mut ebpf = load(policy);
        let fds = PROGRAMS.map(|(name, _)| classifier(&mut ebpf, name).fd().unwrap().try_clone().unwrap());
        let (tables, _) = ProgramTables::put(&mut ebpf, policy).unwrap();
        Self {
            fds,
            tables,
            flows: FlowTables::take(&mut ebpf).unwrap(),
            counters: Counters::take(&mut ebpf).unwrap(),
            ebpf,
        }
    }

    /// For running it elsewhere than here.
    pub fn fd(&self, direction: Direction) -> &ProgramFd {
        &self.fds[direction as usize]
    }

    /// What was counted, without the flow table, which takes long to read under emulation.
    pub fn counted(&self) -> Statistics {
        self.counters.read(Fill::default()).unwrap()
    }

    /// What was counted since they were loaded.
    pub fn statistics(&self) -> Statistics {
        self.counters.read(self.flows.fill()).unwrap()
    }

    /// The flows that are known.
    pub fn flows(&self) -> Vec<FlowLine> {
        self.flows.flows()
    }

    /// Runs a program once on a frame. The verdict has to be that of the reason under which it is counted.
    pub fn see(&self, direction: Direction, frame: &[u8]) -> Reason {
        self.see_with(direction, frame, &[])
    }

    /// As [`Program::see`], with a `struct __sk_buff`.
    pub fn see_with(&self, direction: Direction, frame: &[u8], context: &[u8]) -> Reason {
        let before = self.counted();
        let run = TestRun {
            context,
            ..TestRun::once(frame)
        };
        let outcome = bpf::test_run(self.fds[direction as usize].as_fd(), run)
            .unwrap_or_else(|error| panic!("{error}: {} bytes {frame:02x?}", frame.len()));
        let after = self.counted();
        let changed: Vec<usize> = (0..after.by_reason.len())
            .filter(|index| after.by_reason[*index] != before.by_reason[*index])
            .collect();
        let [index] = changed[..] else {
            panic!("counted under {changed:?}")
        };
        assert_eq!(index / Reason::COUNT as usize, direction as usize);
        assert_eq!(after.by_reason[index].packets, before.by_reason[index].packets + 1);
        assert_eq!(
            after.by_reason[index].bytes,
            before.by_reason[index].bytes + frame.len() as u64
        );
        let reason = Reason::ALL[index % Reason::COUNT as usize];
        let expected = match reason.verdict() {
            lab02_xdp_firewall_common::firewall::Verdict::Pass => NEXT,
            lab02_xdp_firewall_common::firewall::Verdict::Drop => DROP,
        };
        assert_eq!(outcome.retval, expected, "{reason:?}");
        reason
    }
}
