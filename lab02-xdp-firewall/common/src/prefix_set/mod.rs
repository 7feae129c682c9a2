//! Sets of IPv4 and IPv6 prefixes that are asked whether they hold an address.
//!
//! The kernel has a map for this, `LPM_TRIE`. It walks bit by bit along pointers, and with 100,000 prefixes most of its
//! steps miss the cache: about a microsecond a look-up. Here the prefixes become sorted, disjoint intervals, and these a
//! [`tree`] of wide nodes in one plain array: five steps, each of one or two cache lines. Single addresses, of which
//! lists mostly consist, go to an [`exact`] table: one step.
//!
//! Plain arrays have two more merits. The verifier's and the JIT's work with them is the least of all maps, and user
//! space can map them into its memory and fill them by a copy, without a system call an entry.

pub mod exact;
pub mod tree;

#[cfg(not(target_arch = "bpf"))]
pub mod build;

use exact::{BucketV4, BucketV6, Exact};
use tree::{NodeV4, NodeV6, Tree};

/// Where a set's parts lie in the arrays: what the kernel reads before it looks an address up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixSet {
    /// The IPv4 prefixes.
    pub tree_v4: Tree,
    /// The IPv6 prefixes.
    pub tree_v6: Tree,
    /// The single IPv4 addresses.
    pub exact_v4: Exact,
    /// The single IPv6 addresses.
    pub exact_v6: Exact,
}

const _: () = assert!(size_of::<PrefixSet>() == 2 * 64 + 2 * 24);

/// The arrays that hold the nodes and buckets of all sets.
///
/// In an eBPF program they are maps; in tests and in user space they are slices.
pub trait Arrays {
    /// The node at `index`; `None` beyond the array's end.
    fn node_v4(&self, index: u32) -> Option<&NodeV4>;
    /// The node at `index`; `None` beyond the array's end.
    fn node_v6(&self, index: u32) -> Option<&NodeV6>;
    /// The bucket at `index`; `None` beyond the array's end.
    fn bucket_v4(&self, index: u32) -> Option<&BucketV4>;
    /// The bucket at `index`; `None` beyond the array's end.
    fn bucket_v6(&self, index: u32) -> Option<&BucketV6>;
}

/// Where in the arrays the content of a slot begins: indices of its first nodes and buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// In the array of IPv4 nodes.
    pub node_v4: u32,
    /// In the array of IPv6 nodes.
    pub node_v6: u32,
    /// In the array of IPv4 buckets.
    pub bucket_v4: u32,
    /// In the array of IPv6 buckets.
    pub bucket_v6: u32,
}

impl PrefixSet {
    /// The same set, with its content moved from the arrays' beginning to `origin`.
    #[must_use]
    pub fn moved_to(mut self, origin: Origin) -> Self {
        for level in &mut self.tree_v4.levels {
            level.first += origin.node_v4;
        }
        for level in &mut self.tree_v6.levels {
            level.first += origin.node_v6;
        }
        self.exact_v4.first += origin.bucket_v4;
        self.exact_v6.first += origin.bucket_v6;
        self
    }

    /// Whether it holds no IPv4 prefix.
    #[inline(always)]
    pub fn is_empty_v4(&self) -> bool {
        self.tree_v4.is_empty() && self.exact_v4.is_empty()
    }

    /// Whether it holds no IPv6 prefix.
    #[inline(always)]
    pub fn is_empty_v6(&self) -> bool {
        self.tree_v6.is_empty() && self.exact_v6.is_empty()
    }

    /// Whether one of its prefixes holds the IPv4 `address`.
    #[inline(always)]
    pub fn contains_v4<A: Arrays>(&self, arrays: &A, address: [u8; 4]) -> bool {
        let address = u32::from_be_bytes(address);
        self.exact_v4.contains_v4(arrays, address) || self.tree_v4.contains(|index| arrays.node_v4(index), address)
    }

    /// Whether one of its prefixes holds the IPv6 `address`.
    #[inline(always)]
    pub fn contains_v6<A: Arrays>(&self, arrays: &A, address: &[u8; 16]) -> bool {
        let address = tree::KeyV6::from_octets(address);
        self.exact_v6.contains_v6(arrays, address) || self.tree_v6.contains(|index| arrays.node_v6(index), address)
    }
}
