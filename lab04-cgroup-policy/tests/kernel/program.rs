//! The lab's programs, loaded and attached to nothing: packets come through test runs.

use std::{collections::BTreeMap, os::fd::AsFd as _};

use aya::programs::ProgramFd;
use enforcer_policy::{Format, NoFiles, Policy, model::Mode, read};
use lab01_count_packets_common::counter::Counter;
use lab04_cgroup_policy::{OBJECT, attach::Hook, compile::compile, enforcement::Loaded};
use testbed::bpf::{self, TestRun};

/// How many entries there is room for.
pub const MAX_ENTRIES: u32 = 2000;

/// The programs, with a policy in force.
pub struct Program {
    pub loaded: Loaded,
}

/// What a program has made of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Whether it let the packet pass.
    pub passed: bool,
    /// The number of the rule that counted it.
    pub rule: u32,
    /// Whether it was counted as one that would have been dropped.
    pub would_drop: bool,
}

impl Program {
    /// Loads them, without a policy.
    pub fn load() -> Self {
        Self {
            loaded: Loaded::load(OBJECT, MAX_ENTRIES, None).unwrap(),
        }
    }

    /// Loads them with this policy in force.
    pub fn with(text: &str) -> Self {
        let mut program = Self::load();
        program.apply(&policy(text));
        program
    }

    /// Puts a policy into force, with its mode.
    pub fn apply(&mut self, policy: &Policy) {
        let compiled = compile(policy, MAX_ENTRIES).unwrap();
        self.loaded.tables.apply(&compiled).unwrap();
        self.loaded.tables.set_blocking(policy.mode == Mode::Block).unwrap();
    }

    /// For running it elsewhere than here.
    pub fn fd(&self, hook: Hook) -> ProgramFd {
        self.loaded.program(hook).unwrap()
    }

    /// What each rule has counted, by its number.
    pub fn counted(&self) -> BTreeMap<u32, [Counter; 2]> {
        let tables = &self.loaded.tables;
        let numbers: Vec<u32> = tables.numbers().map(|(_, number)| number).collect();
        numbers
            .into_iter()
            .map(|number| (number, tables.counted(number).unwrap()))
            .collect()
    }

    /// The name of a rule.
    pub fn name(&self, rule: u32) -> String {
        let mut numbers = self.loaded.tables.numbers();
        numbers.find(|(_, number)| *number == rule).unwrap().0.to_owned()
    }

    /// Runs a hook's program once on a frame, whose Ethernet header it does not see.
    pub fn decide(&self, hook: Hook, frame: &[u8]) -> Decided {
        let before = self.counted();
        self.decide_from(hook, frame, &before).0
    }

    /// As [`Program::decide`], when it is known what was counted before; also what was counted after.
    pub fn decide_from(
        &self,
        hook: Hook,
        frame: &[u8],
        before: &BTreeMap<u32, [Counter; 2]>,
    ) -> (Decided, BTreeMap<u32, [Counter; 2]>) {
        let outcome = bpf::test_run(self.fd(hook).as_fd(), TestRun::once(frame)).unwrap();
        let after = self.counted();
        let mut changed = Vec::new();
        for (rule, counters) in &after {
            for place in [0, 1] {
                if counters[place] != before[rule][place] {
                    let bytes = counters[place].bytes - before[rule][place].bytes;
                    let packets = counters[place].packets - before[rule][place].packets;
                    assert_eq!((packets, bytes), (1, frame.len() as u64 - 14), "{frame:02x?}");
                    changed.push((*rule, place == 1));
                }
            }
        }
        let [(rule, would_drop)] = changed[..] else {
            panic!("counted under {changed:?}: {frame:02x?}");
        };
        let decided = Decided {
            passed: outcome.retval & 1 == 1,
            rule,
            would_drop,
        };
        (decided, after)
    }
}

/// Reads a policy, which has no errors.
pub fn policy(text: &str) -> Policy {
    let reading = read("policy.yaml", text.as_bytes(), Format::Yaml, &NoFiles);
    let told = reading.render(false);
    reading.policy.unwrap_or_else(|| panic!("{told}"))
}
