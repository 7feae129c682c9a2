//! Makes the arrays' content from a list of prefixes. For user space.

use alloc::{vec, vec::Vec};
use core::net::IpAddr;

use super::{
    Arrays, PrefixSet,
    exact::{BucketV4, BucketV6, Exact, MAX_PROBES},
    tree::{KeyV6, Level, MAX_LEVELS, Node, NodeV4, NodeV6, Tree},
};

/// A prefix: an address and how many of its leading bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// With the bits behind the length 0.
    address: IpAddr,
    len: u8,
}

impl Prefix {
    /// The prefix of `len` bits that holds `address`; `None` if the address has fewer bits.
    pub fn new(address: IpAddr, len: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) if len <= 32 => IpAddr::V4((v4.to_bits() & !host_mask(32 - len) as u32).into()),
            IpAddr::V6(v6) if len <= 128 => IpAddr::V6((v6.to_bits() & !host_mask(128 - len)).into()),
            _ => return None,
        };
        Some(Self { address, len })
    }

    /// The prefix that holds `address` alone.
    pub fn single(address: IpAddr) -> Self {
        Self {
            address,
            len: if address.is_ipv4() { 32 } else { 128 },
        }
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many leading bits count.
    #[expect(
        clippy::len_without_is_empty,
        reason = "it is the length of a prefix, which is never without addresses"
    )]
    pub fn len(&self) -> u8 {
        self.len
    }

    /// Whether `address` is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new(address, self.len).is_some_and(|prefix| prefix == *self)
    }
}

impl core::fmt::Display for Prefix {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

fn host_mask(bits: u8) -> u128 {
    if bits == 128 { u128::MAX } else { (1 << bits) - 1 }
}

/// The content of all arrays, as far as it is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Of the array of IPv4 nodes.
    pub nodes_v4: Vec<NodeV4>,
    /// Of the array of IPv6 nodes.
    pub nodes_v6: Vec<NodeV6>,
    /// Of the array of IPv4 buckets.
    pub buckets_v4: Vec<BucketV4>,
    /// Of the array of IPv6 buckets.
    pub buckets_v6: Vec<BucketV6>,
}

impl Arrays for Content {
    fn node_v4(&self, index: u32) -> Option<&NodeV4> {
        self.nodes_v4.get(index as usize)
    }

    fn node_v6(&self, index: u32) -> Option<&NodeV6> {
        self.nodes_v6.get(index as usize)
    }

    fn bucket_v4(&self, index: u32) -> Option<&BucketV4> {
        self.buckets_v4.get(index as usize)
    }

    fn bucket_v6(&self, index: u32) -> Option<&BucketV6> {
        self.buckets_v6.get(index as usize)
    }
}

/// Single addresses have a table of their own from this number on, or where there is nothing but single addresses;
/// fewer of them cost less as part of the tree that is walked anyway.
const EXACT_FROM: usize = 4096;

impl Content {
    /// Adds a set of `prefixes`, which may overlap, repeat and stand in any order. `seed` is that of its hashes.
    pub fn add(&mut self, prefixes: &[Prefix], seed: u64) -> PrefixSet {
        let mut v4 = Family::default();
        let mut v6 = Family::default();
        for prefix in prefixes {
            match prefix.address {
                IpAddr::V4(address) => v4.push(u128::from(address.to_bits()), 32 - prefix.len),
                IpAddr::V6(address) => v6.push(address.to_bits(), 128 - prefix.len),
            }
        }
        let (bounds_v4, singles_v4) = v4.into_parts(u128::from(u32::MAX));
        let (bounds_v6, singles_v6) = v6.into_parts(u128::MAX);
        let singles_v4: Vec<u32> = singles_v4.into_iter().map(|address| address as u32).collect();
        let singles_v6: Vec<KeyV6> = singles_v6.into_iter().map(key_v6).collect();
        PrefixSet {
            tree_v4: add_tree(
                &mut self.nodes_v4,
                &bounds_v4,
                |bound| bound.address as u32,
                leaf_v4,
                inner_v4,
            ),
            tree_v6: add_tree(&mut self.nodes_v6, &bounds_v6, |bound| bound.address, leaf_v6, inner_v6),
            exact_v4: add_table(&mut self.buckets_v4, &singles_v4, seed, Exact::home_v4),
            exact_v6: add_table(&mut self.buckets_v6, &singles_v6, seed, Exact::home_v6),
        }
    }

    /// Adds a tree over ascending `bounds` (in host order), to be asked by [`Tree::position`].
    pub fn add_bounds_v4(&mut self, bounds: &[u32]) -> Tree {
        add_tree(&mut self.nodes_v4, bounds, |bound| *bound, inner_v4, inner_v4)
    }

    /// As [`Content::add_bounds_v4`], of IPv6 addresses.
    pub fn add_bounds_v6(&mut self, bounds: &[u128]) -> Tree {
        add_tree(&mut self.nodes_v6, bounds, |bound| *bound, inner_v6, inner_v6)
    }
}

/// The prefixes of one family, as intervals.
#[derive(Default)]
struct Family {
    /// First and last address.
    intervals: Vec<(u128, u128)>,
}

impl Family {
    fn push(&mut self, first: u128, host_bits: u8) {
        self.intervals.push((first, first | host_mask(host_bits)));
    }

    /// The bounds for the tree, and the single addresses for the table. `highest` is the family's highest address.
    fn into_parts(mut self, highest: u128) -> (Vec<Bound>, Vec<u128>) {
        self.intervals.sort_unstable();
        let disjoint = disjoint(&self.intervals);
        // The table marks free places by zero, so the address zero stays in the tree.
        let is_single = |(first, last): &(u128, u128)| first == last && *first != 0;
        let singles = disjoint.iter().filter(|interval| is_single(interval)).count();
        if singles == 0 || singles < EXACT_FROM && singles < disjoint.len() {
            return (bounds(&join_adjacent(&disjoint), highest), Vec::new());
        }
        let (singles, others): (Vec<_>, Vec<_>) = disjoint.into_iter().partition(is_single);
        let singles = singles.into_iter().map(|(address, _)| address).collect();
        (bounds(&join_adjacent(&others), highest), singles)
    }
}

/// Sorted intervals without those that lie in another. Two prefixes are nested or apart, so no others overlap.
fn disjoint(sorted: &[(u128, u128)]) -> Vec<(u128, u128)> {
    let mut result: Vec<(u128, u128)> = Vec::with_capacity(sorted.len());
    for &(first, last) in sorted {
        match result.last_mut() {
            // One that starts where the last one does and is longer takes its place.
            Some(previous) if first <= previous.1 => previous.1 = previous.1.max(last),
            _ => result.push((first, last)),
        }
    }
    result
}

fn join_adjacent(disjoint: &[(u128, u128)]) -> Vec<(u128, u128)> {
    let mut result: Vec<(u128, u128)> = Vec::with_capacity(disjoint.len());
    for &(first, last) in disjoint {
        match result.last_mut() {
            Some(previous) if previous.1.checked_add(1) == Some(first) => previous.1 = last,
            _ => result.push((first, last)),
        }
    }
    result
}

/// An address from which on addresses are inside, or are not.
#[derive(Clone, Copy)]
struct Bound {
    address: u128,
    inside: bool,
}

fn bounds(intervals: &[(u128, u128)], highest: u128) -> Vec<Bound> {
    let mut bounds = Vec::with_capacity(intervals.len() * 2);
    for &(first, last) in intervals {
        bounds.push(Bound {
            address: first,
            inside: true,
        });
        if last < highest {
            bounds.push(Bound {
                address: last + 1,
                inside: false,
            });
        }
    }
    bounds
}

/// Lays out a tree over `bounds`, whose places are their `address`, behind what is in `nodes`.
fn add_tree<N: Node + Clone, B, A: Copy>(
    nodes: &mut Vec<N>,
    bounds: &[B],
    address: impl Fn(&B) -> A,
    leaf: impl Fn(&[B]) -> N,
    inner: impl Fn(&[A]) -> N,
) -> Tree {
    let mut tree = Tree::default();
    if bounds.is_empty() {
        return tree;
    }
    let per_node = N::CHILDREN as usize - 1;
    let mut level: Vec<N> = bounds.chunks(per_node).map(&leaf).collect();
    let mut firsts: Vec<A> = bounds.chunks(per_node).map(|chunk| address(&chunk[0])).collect();
    let mut from_leaves = vec![level];
    while firsts.len() > 1 {
        level = firsts
            .chunks(N::CHILDREN as usize)
            .map(|children| inner(&children[1..]))
            .collect();
        firsts = firsts
            .chunks(N::CHILDREN as usize)
            .map(|children| children[0])
            .collect();
        from_leaves.push(level);
    }
    assert!(
        from_leaves.len() <= MAX_LEVELS,
        "{} bounds are more than a tree of {MAX_LEVELS} levels holds",
        bounds.len()
    );
    for (place, level) in tree.levels.iter_mut().zip(from_leaves.into_iter().rev()) {
        *place = Level {
            first: nodes.len() as u32,
            nodes: level.len() as u32,
        };
        nodes.extend(level);
    }
    tree
}

fn leaf_v4(bounds: &[Bound]) -> NodeV4 {
    let addresses: Vec<u32> = bounds.iter().map(|bound| bound.address as u32).collect();
    NodeV4 {
        inside: inside_bits(bounds) as u32,
        ..inner_v4(&addresses)
    }
}

fn inner_v4(bounds: &[u32]) -> NodeV4 {
    let mut node = NodeV4 {
        bounds: [u32::MAX; 15],
        inside: 0,
    };
    node.bounds[..bounds.len()].copy_from_slice(bounds);
    node
}

fn leaf_v6(bounds: &[Bound]) -> NodeV6 {
    let addresses: Vec<u128> = bounds.iter().map(|bound| bound.address).collect();
    NodeV6 {
        inside: inside_bits(bounds),
        ..inner_v6(&addresses)
    }
}

fn inner_v6(bounds: &[u128]) -> NodeV6 {
    let mut node = NodeV6 {
        bounds: [key_v6(u128::MAX); 7],
        inside: 0,
        padding: 0,
    };
    for (place, bound) in node.bounds.iter_mut().zip(bounds) {
        *place = key_v6(*bound);
    }
    node
}

/// A bit for each bound; the free places behind them continue the last one, so that the highest address, which counts
/// them, has the right answer.
fn inside_bits(bounds: &[Bound]) -> u64 {
    let bit = |place: usize| bounds.get(place).or(bounds.last()).is_some_and(|bound| bound.inside);
    (0..64).map(|place| u64::from(bit(place)) << place).sum()
}

fn key_v6(address: u128) -> KeyV6 {
    KeyV6 {
        high: (address >> 64) as u64,
        low: address as u64,
    }
}

/// A bucket to be filled.
trait Bucket: Clone + Default {
    type Address: Copy;
    /// How many addresses it holds.
    const PLACES: usize;
    /// Puts an address into a free place; false if there is none.
    fn put(&mut self, address: Self::Address) -> bool;
}

impl Bucket for BucketV4 {
    type Address = u32;
    const PLACES: usize = 8;

    fn put(&mut self, address: u32) -> bool {
        put(&mut self.addresses, address)
    }
}

impl Bucket for BucketV6 {
    type Address = KeyV6;
    const PLACES: usize = 4;

    fn put(&mut self, address: KeyV6) -> bool {
        put(&mut self.addresses, address)
    }
}

fn put<T: Default + PartialEq>(places: &mut [T], address: T) -> bool {
    let free = places.iter_mut().find(|place| **place == T::default());
    free.map(|place| *place = address).is_some()
}

/// Lays out a table of `addresses` behind what is in `buckets`.
fn add_table<B: Bucket>(
    buckets: &mut Vec<B>,
    addresses: &[B::Address],
    seed: u64,
    home: impl Fn(&Exact, B::Address) -> u32,
) -> Exact {
    if addresses.is_empty() {
        return Exact::default();
    }
    // Half full at most: then nearly every address is in its first bucket.
    let mut wanted = (addresses.len() * 2).div_ceil(B::PLACES).next_power_of_two();
    loop {
        let mut exact = Exact {
            seed,
            first: buckets.len() as u32,
            mask: wanted as u32 - 1,
            probes: 0,
            padding: 0,
        };
        if let Some(filled) = fill::<B>(&mut exact, addresses, &home) {
            buckets.extend(filled);
            return exact;
        }
        wanted *= 2;
    }
}

/// The buckets of a table, with `exact.probes` set; `None` if an address would be more than [`MAX_PROBES`] away.
fn fill<B: Bucket>(
    exact: &mut Exact,
    addresses: &[B::Address],
    home: impl Fn(&Exact, B::Address) -> u32,
) -> Option<Vec<B>> {
    let mut filled = vec![B::default(); exact.mask as usize + 1];
    for &address in addresses {
        let home = home(exact, address);
        let probe = (0..MAX_PROBES).find(|&probe| {
            let bucket = exact.index(home, probe) - exact.first;
            filled[bucket as usize].put(address)
        })?;
        exact.probes = exact.probes.max(probe + 1);
    }
    Some(filled)
}
