//! A search tree over the bounds of disjoint intervals, laid out level by level in an array.
//!
//! A sorted list of bounds says where membership changes: at bound 0 the set begins, at bound 1 it ends, and so on. The
//! leaves hold the bounds in order, each with a bit that says whether the addresses from it on are inside. A node above
//! holds the first bound of each of its children but the first. A look-up goes down from the root and at each level
//! counts the bounds that are not above the address, without a branch.

/// The most levels a tree can have: enough for 15 × 16^7 IPv4 bounds, and for 7 × 8^7, which is 14 million, of IPv6.
pub const MAX_LEVELS: usize = 8;

/// Where the levels of one tree lie, root first. Levels without nodes are not there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// From the root, which has one node, to the leaves.
    pub levels: [Level; MAX_LEVELS],
}

/// One level of a tree: nodes that lie behind one another in the array.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// The index of its first node in the array.
    pub first: u32,
    /// How many nodes it has; 0 behind the leaves.
    pub nodes: u32,
}

/// A node: some bounds in order, the free places at its end filled with the highest possible ones.
pub trait Node {
    /// What is compared.
    type Key: Copy;
    /// How many children a node has, which is one more than it has bounds.
    const CHILDREN: u32;

    /// How many of its bounds are not above `key`.
    fn rank(&self, key: Self::Key) -> u32;

    /// Whether the addresses from its bound number `bound` on, up to the next bound, are inside. For leaves.
    fn inside_from(&self, bound: u32) -> bool;
}

impl Tree {
    /// Whether there is nothing in it.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        let [root, ..] = self.levels;
        root.nodes == 0
    }

    /// Whether `key` lies in one of the intervals. `node` fetches a node by its index in the array.
    #[inline(always)]
    pub fn contains<'a, N: Node + 'a>(&self, node: impl Fn(u32) -> Option<&'a N>, key: N::Key) -> bool {
        self.descend(node, key).is_some_and(|place| place.inside)
    }

    /// The place of the interval that holds `key`, for a table that has something for each interval: the number of its
    /// leaf times [`Node::CHILDREN`], plus how many of that leaf's bounds are not above `key`. `None` if the array is
    /// not what the tree says.
    #[inline(always)]
    pub fn position<'a, N: Node + 'a>(&self, node: impl Fn(u32) -> Option<&'a N>, key: N::Key) -> Option<u32> {
        self.descend(node, key).map(|place| place.position)
    }

    #[inline(always)]
    fn descend<'a, N: Node + 'a>(&self, node: impl Fn(u32) -> Option<&'a N>, key: N::Key) -> Option<Place> {
        // ANCHOR: descend
        let mut position = 0;
        let mut inside = false;
        for level in &self.levels {
            if level.nodes == 0 {
                break;
            }
            // Only the highest address of all can count free places, and would then fall off the level's end.
            let in_level = position.min(level.nodes - 1);
            let node = node(level.first + in_level)?;
            let rank = node.rank(key);
            inside = rank > 0 && node.inside_from(rank - 1);
            position = in_level * N::CHILDREN + rank;
        }
        Some(Place { position, inside })
        // ANCHOR_END: descend
    }
}

/// Where a look-up ends.
struct Place {
    position: u32,
    inside: bool,
}

/// Fifteen IPv4 bounds, in one cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeV4 {
    /// In host order, ascending.
    pub bounds: [u32; 15],
    /// Bit `n` says whether the addresses from bound `n` on are inside. Unused above the leaves.
    pub inside: u32,
}

const _: () = assert!(size_of::<NodeV4>() == 64);

impl Node for NodeV4 {
    type Key = u32;
    const CHILDREN: u32 = 16;

    #[inline(always)]
    fn rank(&self, key: u32) -> u32 {
        // ANCHOR: rank
        let mut rank = 0;
        for bound in &self.bounds {
            // The sign of a difference that cannot overflow, instead of a comparison: eBPF has no instruction that sets
            // a register by a comparison, only jumps, and these would be mispredicted half of the time.
            rank += (i64::from(*bound) - i64::from(key) - 1).cast_unsigned() >> 63;
        }
        rank as u32
        // ANCHOR_END: rank
    }

    #[inline(always)]
    fn inside_from(&self, bound: u32) -> bool {
        self.inside >> (bound & 15) & 1 != 0
    }
}

/// An IPv6 address as two numbers, which is how it is compared.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyV6 {
    /// The first eight octets, in host order.
    pub high: u64,
    /// The last eight octets, in host order.
    pub low: u64,
}

impl KeyV6 {
    /// From the octets in the order of the wire.
    #[inline(always)]
    pub const fn from_octets(octets: &[u8; 16]) -> Self {
        let bits = u128::from_be_bytes(*octets);
        Self {
            high: (bits >> 64) as u64,
            low: bits as u64,
        }
    }

    /// 1 if it is below `other`, else 0; without a branch.
    #[inline(always)]
    fn is_below(self, other: Self) -> u64 {
        let borrow = borrow_out(self.low, other.low, self.low.wrapping_sub(other.low));
        borrow_out(
            self.high,
            other.high,
            self.high.wrapping_sub(other.high).wrapping_sub(borrow),
        )
    }
}

/// The borrow of a subtraction, from its operands and its difference: Hacker's Delight, section 2-13.
#[inline(always)]
fn borrow_out(a: u64, b: u64, difference: u64) -> u64 {
    (!a & b | !(a ^ b) & difference) >> 63
}

/// Seven IPv6 bounds, in two cache lines.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeV6 {
    /// Ascending.
    pub bounds: [KeyV6; 7],
    /// Bit `n` says whether the addresses from bound `n` on are inside. Unused above the leaves.
    pub inside: u64,
    /// Fills the second cache line.
    pub padding: u64,
}

const _: () = assert!(size_of::<NodeV6>() == 128);

impl Node for NodeV6 {
    type Key = KeyV6;
    const CHILDREN: u32 = 8;

    #[inline(always)]
    fn rank(&self, key: KeyV6) -> u32 {
        let mut above = 0;
        for bound in &self.bounds {
            above += key.is_below(*bound);
        }
        7 - above as u32
    }

    #[inline(always)]
    fn inside_from(&self, bound: u32) -> bool {
        self.inside >> (bound & 7) & 1 != 0
    }
}

#[cfg(target_os = "linux")]
mod pod {
    use super::{NodeV4, NodeV6};

    // SAFETY: `#[repr(C)]`, integers without padding, any bits are valid.
    unsafe impl aya::Pod for NodeV4 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for NodeV6 {}
}
