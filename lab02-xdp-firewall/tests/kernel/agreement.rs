//! The program in the kernel against the same decision on the host, on random policies and frames (F14, M3, P3).

#[path = "../../common/tests/random/mod.rs"]
mod random;
#[path = "../../common/tests/slices/mod.rs"]
mod slices;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
};

use lab02_xdp_firewall::{
    policy::Policy,
    value::{Mac, PortRange, Rate},
};
use lab02_xdp_firewall_common::{
    firewall::{Config, FragmentKey, Inspection, Reason, Tables, Verdict},
    prefix_set::{
        Arrays,
        exact::{BucketV4, BucketV6},
        tree::{NodeV4, NodeV6},
    },
};
use nix::time::{ClockId, clock_gettime};
use random::{
    Dice, frames,
    rules::{Ports, Rules},
};
use slices::Slices;

use crate::program::{Decision, MAX_ENTRIES, Program};

testbed::listed_tests![twenty_thousand_random_frames_are_decided_as_on_the_host,];

/// The decision on the host.
pub struct OnHost {
    config: Config,
    tables: HostTables,
    inspection: Inspection,
}

/// Slices, but for the buckets: at which moment the kernel looks at its clock is not known, only between which two.
struct HostTables {
    slices: Slices,
    /// The earliest and the latest moment at which each bucket, by its index, is full again.
    full_at_ns: RefCell<HashMap<u32, (u64, u64)>>,
    /// Between which moments each first fragment was seen.
    seen_ns: RefCell<HashMap<FragmentKey, (u64, u64)>>,
    /// Before and after the frame was decided about in the kernel.
    between_ns: Cell<(u64, u64)>,
    /// Whether it took tokens there, which is believed where the clock leaves both possible.
    taken_in_kernel: Cell<bool>,
    uncertain: Cell<u32>,
}

/// How long the program knows a first fragment.
const REASSEMBLY_NS: u64 = 30_000_000_000;

/// How many buckets the program has.
const BUCKETS: u32 = 65_536;

impl OnHost {
    /// Under `policy`, which is in force as `in_kernel` there.
    pub fn new(policy: &Policy, in_kernel: &Config) -> Self {
        let mut on_host = Self {
            config: *in_kernel,
            tables: HostTables {
                slices: Slices::default(),
                full_at_ns: RefCell::default(),
                seen_ns: RefCell::default(),
                between_ns: Cell::default(),
                taken_in_kernel: Cell::new(false),
                uncertain: Cell::new(0),
            },
            inspection: Inspection::EMPTY,
        };
        on_host.apply(policy, in_kernel);
        on_host
    }

    /// Puts a policy into force: buckets and fragments stay as they are, and blocked MAC addresses are only ever added.
    fn apply(&mut self, policy: &Policy, in_kernel: &Config) {
        let compiled = policy.compile(MAX_ENTRIES, in_kernel.bucket_key, 1).unwrap();
        self.config = compiled.config;
        self.tables.slices.content = compiled.content;
        self.tables.slices.ports = compiled.ports;
        let macs = policy.block_macs.iter().map(|Mac(mac)| *mac);
        self.tables.slices.macs.extend(macs);
    }

    /// Decides about a frame.
    pub fn decide(&mut self, frame: &[u8]) -> Decision {
        self.inspection.decide(frame, &self.tables, &self.config);
        Decision {
            reason: self.inspection.reason(),
            malformed: self.inspection.malformed(),
            lookups: self.inspection.lookups().into(),
        }
    }
}

impl Arrays for HostTables {
    fn node_v4(&self, index: u32) -> Option<&NodeV4> {
        self.slices.node_v4(index)
    }

    fn node_v6(&self, index: u32) -> Option<&NodeV6> {
        self.slices.node_v6(index)
    }

    fn bucket_v4(&self, index: u32) -> Option<&BucketV4> {
        self.slices.bucket_v4(index)
    }

    fn bucket_v6(&self, index: u32) -> Option<&BucketV6> {
        self.slices.bucket_v6(index)
    }
}

impl Tables for HostTables {
    fn is_blocked_mac(&self, mac: &[u8; 6]) -> bool {
        self.slices.is_blocked_mac(mac)
    }

    fn port_word(&self, index: u32) -> Option<u32> {
        self.slices.port_word(index)
    }

    fn take_tokens(&self, source_hash: u32, cost_ns: u64, burst_ns: u64) -> bool {
        let mut buckets = self.full_at_ns.borrow_mut();
        let (earliest, latest) = buckets.entry(source_hash % BUCKETS).or_default();
        let (before, after) = self.between_ns.get();
        let (full_early, full_late) = ((*earliest).max(before), (*latest).max(after));
        let surely = full_late + cost_ns - before <= burst_ns;
        let never = full_early + cost_ns > after + burst_ns;
        if !surely && !never {
            self.uncertain.set(self.uncertain.get() + 1);
        }
        let taken = surely || !never && self.taken_in_kernel.get();
        if taken {
            (*earliest, *latest) = (full_early + cost_ns, full_late + cost_ns);
        }
        taken
    }

    fn verdict_of_first_fragment(&self, key: &FragmentKey) -> Option<Verdict> {
        let (_, seen_by) = *self.seen_ns.borrow().get(key)?;
        // An emulated processor is slow enough for this.
        let is_surely_old = self.between_ns.get().0.saturating_sub(seen_by) > REASSEMBLY_NS;
        (!is_surely_old).then(|| self.slices.verdict_of_first_fragment(key))?
    }

    fn keep_verdict_of_first_fragment(&self, key: &FragmentKey, verdict: Verdict) {
        self.seen_ns.borrow_mut().insert(*key, self.between_ns.get());
        self.slices.keep_verdict_of_first_fragment(key, verdict);
    }
}

fn twenty_thousand_random_frames_are_decided_as_on_the_host() {
    const POLICIES: u32 = 200;
    const FRAMES_EACH: u32 = 100;
    let mut dice = Dice::new(6);
    let mut program = Program::load();
    let mut host = OnHost::new(&crate::options::no_rules(), &program.config());
    let mut seen: BTreeMap<Reason, u32> = BTreeMap::new();
    for _ in 0..POLICIES {
        let rules = Rules::random(&mut dice);
        let policy = policy_of(&rules);
        program.apply(&policy);
        host.apply(&policy, &program.config());
        for _ in 0..FRAMES_EACH {
            let frame = frames::random(&mut dice);
            let before = monotonic_ns();
            let in_kernel = program.decide(&frame);
            host.tables.between_ns.set((before, monotonic_ns()));
            host.tables.taken_in_kernel.set(in_kernel.reason != Reason::RateLimit);
            assert_eq!(in_kernel, host.decide(&frame), "{frame:02x?}\n{rules:#?}");
            *seen.entry(in_kernel.reason).or_default() += 1;
        }
    }
    assert_eq!(seen.values().sum::<u32>(), POLICIES * FRAMES_EACH);
    for reason in Reason::ALL {
        let count = seen.get(&reason).copied().unwrap_or(0);
        assert!(count >= 20, "{reason:?} is too rare: {seen:?}");
    }
    // Where the kernel is believed, nothing is tested.
    let uncertain = host.tables.uncertain.get();
    assert!(uncertain < 1000, "{uncertain} decisions were a matter of microseconds");
}

/// The clock of `bpf_ktime_get_ns`.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned()
}

fn policy_of(rules: &Rules) -> Policy {
    Policy {
        block: rules.block.clone(),
        allow: rules.allow.clone(),
        block_ports: ranges(&rules.block_ports),
        block_source_ports: ranges(&rules.block_source_ports),
        allow_ports: ranges(&rules.allow_ports),
        block_macs: rules.block_macs.iter().copied().map(Mac).collect(),
        limit: rules.limit.map(|limit| {
            let rate = if limit.of_bytes { Rate::Bytes } else { Rate::Packets };
            (rate(limit.per_second), limit.burst)
        }),
        drop_by_default: rules.drop_by_default,
        drop_malformed: rules.drop_malformed,
        fragments: rules.fragments,
    }
}

fn ranges(ports: &[Ports]) -> Vec<PortRange> {
    let range = |Ports { first, last, classes }: &Ports| PortRange {
        ports: *first..=*last,
        classes: classes.clone(),
    };
    ports.iter().map(range).collect()
}
