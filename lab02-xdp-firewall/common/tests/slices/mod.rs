//! The firewall's tables as slices and hash maps, for deciding on the host what the program decides in the kernel.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
};

use lab02_xdp_firewall_common::{
    bucket::Bucket,
    firewall::{FragmentKey, Tables, Verdict},
    prefix_set::{
        Arrays,
        build::Content,
        exact::{BucketV4, BucketV6},
        tree::{NodeV4, NodeV6},
    },
};

/// The tables of one policy, and what frames leave in them.
#[derive(Default)]
pub struct Slices {
    pub content: Content,
    pub ports: Vec<u64>,
    pub macs: HashSet<[u8; 6]>,
    pub buckets: RefCell<HashMap<u32, Bucket>>,
    pub fragments: RefCell<HashMap<FragmentKey, Verdict>>,
    /// The moment that the frame arrives.
    pub now_ns: Cell<u64>,
}

impl Arrays for Slices {
    fn node_v4(&self, index: u32) -> Option<&NodeV4> {
        self.content.node_v4(index)
    }

    fn node_v6(&self, index: u32) -> Option<&NodeV6> {
        self.content.node_v6(index)
    }

    fn bucket_v4(&self, index: u32) -> Option<&BucketV4> {
        self.content.bucket_v4(index)
    }

    fn bucket_v6(&self, index: u32) -> Option<&BucketV6> {
        self.content.bucket_v6(index)
    }
}

impl Tables for Slices {
    fn is_blocked_mac(&self, mac: &[u8; 6]) -> bool {
        self.macs.contains(mac)
    }

    fn port_word(&self, index: u32) -> Option<u32> {
        self.ports.get(index as usize).map(|word| *word as u32)
    }

    fn take_tokens(&self, source_hash: u32, cost_ns: u64, burst_ns: u64) -> bool {
        let mut buckets = self.buckets.borrow_mut();
        let bucket = buckets.entry(source_hash).or_default();
        bucket.take(self.now_ns.get(), cost_ns, burst_ns)
    }

    fn verdict_of_first_fragment(&self, key: &FragmentKey) -> Option<Verdict> {
        self.fragments.borrow().get(key).copied()
    }

    fn keep_verdict_of_first_fragment(&self, key: &FragmentKey, verdict: Verdict) {
        self.fragments.borrow_mut().insert(*key, verdict);
    }
}
