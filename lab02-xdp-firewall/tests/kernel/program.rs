//! The XDP program, loaded and attached to nothing: packets come through test runs.

use std::os::fd::AsFd as _;

use aya::{
    Ebpf, Pod,
    maps::{Array, Map, MapData},
    programs::{ProgramFd, Xdp},
};
use lab01_count_packets::load;
use lab01_count_packets_common::counter::Counter;
use lab02_xdp_firewall::{
    OBJECT,
    policy::Policy,
    statistics::{Counters, Statistics},
    tables::{FirewallTables, map_sizes},
};
use lab02_xdp_firewall_common::{
    firewall::{Config, Reason, Verdict},
    transport::Malformed,
};
use testbed::bpf::{self, TestRun};

/// `enum xdp_action` of linux/bpf.h.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// How many prefixes there is room for.
pub const MAX_ENTRIES: u32 = 8192;

/// The program, loaded.
pub struct Program {
    // Keeps the program and those maps alive that nothing below holds.
    _ebpf: Ebpf,
    fd: ProgramFd,
    tables: FirewallTables,
    counters: Counters,
    configs: Array<MapData, Config>,
    active_slot: Array<MapData, u32>,
}

/// What the program has decided about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub reason: Reason,
    pub malformed: Option<Malformed>,
    pub lookups: u64,
}

impl Program {
    /// Loads it, without rules.
    pub fn load() -> Self {
        let mut ebpf = load::load_object(OBJECT, &map_sizes(MAX_ENTRIES)).unwrap();
        let program: &mut Xdp = load::program(&mut ebpf, "firewall", "XDP").unwrap();
        program
            .load()
            .map_err(|error| load::explain_program("firewall", error))
            .unwrap();
        let fd = program.fd().unwrap().try_clone().unwrap();
        let (configs, active_slot) = (second_handle(&ebpf, "CONFIGS"), second_handle(&ebpf, "ACTIVE_SLOT"));
        Self {
            fd,
            configs,
            active_slot,
            tables: FirewallTables::take(&mut ebpf, MAX_ENTRIES).unwrap(),
            counters: Counters::take(&mut ebpf).unwrap(),
            _ebpf: ebpf,
        }
    }

    /// Loads it with this policy in force.
    pub fn with(policy: &Policy) -> Self {
        let mut program = Self::load();
        program.apply(policy);
        program
    }

    /// Puts a policy into force.
    pub fn apply(&mut self, policy: &Policy) {
        self.tables.apply(policy).unwrap();
    }

    /// For running it elsewhere than here.
    pub fn fd(&self) -> ProgramFd {
        self.fd.try_clone().unwrap()
    }

    /// What is in force, read back from the kernel.
    pub fn config(&self) -> Config {
        let slot = self.active_slot.get(&0, 0).unwrap();
        self.configs.get(&slot, 0).unwrap()
    }

    /// What it has counted since it was loaded.
    pub fn statistics(&self) -> Statistics {
        self.counters.read().unwrap()
    }

    /// Runs it once on a frame. The verdict has to be that of the reason under which it is counted, with all its bytes,
    /// and the frame stays as it is.
    pub fn decide(&self, frame: &[u8]) -> Decision {
        let before = self.statistics();
        let outcome = bpf::test_run(self.fd.as_fd(), TestRun::once(frame))
            .unwrap_or_else(|error| panic!("{error}: {} bytes {frame:02x?}", frame.len()));
        let after = self.statistics();
        let one = Counter {
            packets: 1,
            bytes: frame.len() as u64,
        };
        let reason = Reason::ALL[the_one(&before.by_reason, &after.by_reason, one).expect("a frame is counted")];
        let malformed = the_one(&before.malformed, &after.malformed, one).map(|index| Malformed::ALL[index]);
        let retval = match reason.verdict() {
            Verdict::Pass => XDP_PASS,
            Verdict::Drop => XDP_DROP,
        };
        assert_eq!(outcome.retval, retval, "{reason:?}: {frame:02x?}");
        assert_eq!(outcome.data_out, frame);
        Decision {
            reason,
            malformed,
            lookups: after.lookups - before.lookups,
        }
    }
}

/// The index of the only counter that has changed, which it did by `one`.
fn the_one(before: &[Counter], after: &[Counter], one: Counter) -> Option<usize> {
    let changed: Vec<usize> = (0..after.len())
        .filter(|index| after[*index] != before[*index])
        .collect();
    assert!(changed.len() <= 1, "counted more than once: {changed:?}");
    let index = *changed.first()?;
    let difference = Counter {
        packets: after[index].packets - before[index].packets,
        bytes: after[index].bytes - before[index].bytes,
    };
    assert_eq!(difference, one);
    Some(index)
}

/// A map that somebody else will take, opened a second time.
fn second_handle<T: Pod>(ebpf: &Ebpf, name: &str) -> Array<MapData, T> {
    let Some(Map::Array(map)) = ebpf.map(name) else {
        panic!("there is no array {name}")
    };
    let id = map.info().unwrap().id();
    Map::Array(MapData::from_id(id).unwrap()).try_into().unwrap()
}
