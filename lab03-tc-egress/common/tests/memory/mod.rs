//! The tables in memory, and frames as both hooks see them.

#![allow(dead_code, reason = "each test uses its part")]

use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::HashMap;

use lab02_xdp_firewall_common::{
    bucket::Bucket as TokenBucket,
    firewall::{FragmentKey, Verdict},
};
use lab03_tc_egress_common::{
    decide::{Config, FlowEvent, Hook, Inspection, Reason, Size, Tables},
    flow::{
        state::IDLE_NS,
        table::{Bucket, Buckets, Flow},
    },
    shaper::{self, Shape},
    target::Target,
};

/// A table of flows in memory.
pub struct Memory(Vec<UnsafeCell<Bucket>>);

impl Memory {
    /// Of so many buckets.
    pub fn new(buckets: u32) -> Self {
        Self((0..buckets).map(|_| UnsafeCell::new(Bucket::EMPTY)).collect())
    }

    /// The flows in it, whether their time is over or not.
    pub fn flows(&self) -> Vec<Flow> {
        let all = self.0.iter().flat_map(|bucket| {
            // SAFETY: one thread, and no reference is kept.
            let Bucket { tags, flows } = unsafe { *bucket.get() };
            tags.into_iter().zip(flows)
        });
        all.filter(|(tag, _)| *tag != 0).map(|(_, flow)| flow).collect()
    }
}

impl Buckets for Memory {
    fn bucket(&self, index: u32) -> *mut Bucket {
        self.0.get(index as usize).map_or(std::ptr::null_mut(), UnsafeCell::get)
    }

    // One thread changes it.
    type Lock = ();

    fn lock(&self, _index: u32) -> *mut () {
        std::ptr::NonNull::dangling().as_ptr()
    }

    unsafe fn unlock(&self, _lock: *mut ()) {}
}

/// All tables, the time, and the frame in hand.
pub struct World {
    pub established: Memory,
    pub half_open: Memory,
    pub config: Config,
    pub now_ns: Cell<u64>,
    pub listed: Vec<u16>,
    pub deny: Vec<Target>,
    pub shapes: Vec<Shape>,
    pub events: RefCell<[u64; FlowEvent::COUNT as usize]>,
    tokens: RefCell<Vec<TokenBucket>>,
    fragments: RefCell<HashMap<FragmentKey, Verdict>>,
    inspection: RefCell<Inspection>,
}

impl World {
    /// With tables of so many buckets, in which everything passes.
    pub fn new(established: u32, half_open: u32) -> Self {
        Self {
            established: Memory::new(established),
            half_open: Memory::new(half_open),
            config: Config {
                idle_ns: IDLE_NS,
                hash_key: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210],
                established_buckets: established,
                half_open_buckets: half_open,
                drop_malformed: 1,
                ..Config::default()
            },
            now_ns: Cell::new(1_000_000_000),
            listed: Vec::new(),
            deny: Vec::new(),
            shapes: Vec::new(),
            events: RefCell::default(),
            tokens: RefCell::new(vec![TokenBucket::default(); 16]),
            fragments: RefCell::default(),
            inspection: RefCell::new(Inspection::EMPTY),
        }
    }

    /// Decides about a frame, a millisecond after the one before.
    pub fn see(&self, hook: Hook, frame: &[u8]) -> Reason {
        self.see_tagged(hook, frame, None)
    }

    /// As [`World::see`], with a VLAN tag beside the frame.
    pub fn see_tagged(&self, hook: Hook, frame: &[u8], tag: Option<u16>) -> Reason {
        self.now_ns.set(self.now_ns.get() + 1_000_000);
        let len = frame.len() as u64;
        let size = Size {
            frame: len,
            segments: 1,
            wire: len,
        };
        let mut inspection = self.inspection.borrow_mut();
        let is_well_formed = inspection.read(frame, tag);
        inspection.decide(frame, is_well_formed, size, hook, self, &self.config);
        inspection.reason()
    }

    /// How often something happened to flows.
    pub fn event(&self, event: FlowEvent) -> u64 {
        self.events.borrow()[event as usize]
    }
}

impl Tables for World {
    type Buckets = Memory;

    fn established(&self) -> &Memory {
        &self.established
    }

    fn half_open(&self) -> &Memory {
        &self.half_open
    }

    fn tally(&self, event: FlowEvent) {
        self.events.borrow_mut()[event as usize] += 1;
    }

    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn exact_now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn port_word(&self, port: u16) -> u32 {
        if self.listed.contains(&port) { u32::MAX } else { 0 }
    }

    fn deny_rule(&self, index: u32) -> Option<&Target> {
        self.deny.get(index as usize)
    }

    fn shape(&self, index: u32) -> Option<&Shape> {
        self.shapes.get(index as usize)
    }

    fn departure_ns(&self, index: u32, now_ns: u64, cost_ns: u64, burst_ns: u64, horizon_ns: u64) -> Option<u64> {
        let mut tokens = self.tokens.borrow_mut();
        shaper::departure_ns(&mut tokens[index as usize], now_ns, cost_ns, burst_ns, horizon_ns)
    }

    fn verdict_of_first_fragment(&self, key: &FragmentKey) -> Option<Verdict> {
        self.fragments.borrow().get(key).copied()
    }

    fn keep_verdict_of_first_fragment(&self, key: &FragmentKey, verdict: Verdict) {
        self.fragments.borrow_mut().insert(*key, verdict);
    }
}
