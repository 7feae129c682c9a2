//! A compiled policy: records of a fixed size that lie in arrays.
//!
//! A rule becomes boxes: an interval in each of six [fields](Field). What stands in a field of a packet is looked up in a
//! search tree over the bounds of all intervals, which gives its [`Class`]; the classes of a field are ranked, and a box is
//! kept as [intervals of ranks](Record). Boxes are divided into [partitions](Partition), such that those of one partition
//! can be put in an order in which a packet is found by halving; a class says which partitions have something for it, and
//! only what all six classes agree on is searched: in a partition one [group](Group), and of it first the [runs](Run).
//!
//! The idea of the partitions is that of `PartitionSort` (Yingchareonthawornchai, Daly, Liu, Torng: A Sorted Partitioning
//! Approach to High-speed and Fast-update `OpenFlow` Classification, ICNP 2016).

use lab02_xdp_firewall_common::prefix_set::tree::{KeyV6, NodeV4, NodeV6, Tree};

use crate::{
    classify::{self, Probe, Question},
    flow,
    key::Essential,
    limit::RateLimit,
};

/// How many rules a policy can have. In tables, the number of a rule is below it.
pub const MAX_RULES: usize = 1 << NUMBER_BITS;

/// How many bits the number of a rule has, and that of a record within its partition.
pub const NUMBER_BITS: u32 = 20;

/// How many boxes the rules of a policy can be taken apart into. The number of a record in its partition is below it.
pub const MAX_BOXES: usize = 1 << NUMBER_BITS;

/// How many partitions there can be for each direction: a bit each in [`Partitions`].
pub const MAX_PARTITIONS: usize = 128;

/// How many lists can be told apart by membership: a bit each in [`Class::member_of`].
pub const MAX_LISTS: usize = 64;

/// How many fields a packet is sought by.
pub const FIELDS: usize = 6;

/// How many slots there are: the policy in force, and the one that is being written.
pub const SLOTS: u32 = 2;

/// What a rule does with the packets that it matches.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// They pass.
    Allow = 0,
    /// They are blocked.
    Block = 1,
    /// They are counted, and the next rule that matches decides.
    Log = 2,
    /// They pass as long as there are tokens in the bucket.
    RateLimit = 4,
}

/// Which mode holds for a rule.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleMode {
    /// That of the control word.
    AsControl = 0,
    /// Its own: what it would block is counted, and passes.
    Observe = 1,
    /// Its own: what it blocks is blocked.
    Block = 2,
}

/// A rule, as far as it does not say which packets it matches.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Where it is counted: the same for a rule of this name in every policy.
    pub id: u32,
    /// An [`Action`].
    pub action: u8,
    /// A [`RuleMode`].
    pub mode: u8,
    /// The number of its rate among those of the policy, for [`Action::RateLimit`].
    pub limit: u16,
}

const _: () = assert!(size_of::<Rule>() == 8);

impl Rule {
    /// As one number.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.id as u64 | (self.action as u64) << 32 | (self.mode as u64) << 40 | (self.limit as u64) << 48
    }

    /// From that.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self {
            id: word as u32,
            action: (word >> 32) as u8,
            mode: (word >> 40) as u8,
            limit: (word >> 48) as u16,
        }
    }
}

/// What a packet is sought by.
///
/// Types and codes of ICMP share a field with ports, of which a packet has one or the other: see [`UpperKey::first`] and
/// [`UpperKey::second`].
///
/// [`UpperKey::first`]: crate::key::UpperKey::first
/// [`UpperKey::second`]: crate::key::UpperKey::second
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// The source address.
    Source = 0,
    /// The destination address.
    Destination = 1,
    /// The source port, or the type of ICMP.
    First = 2,
    /// The destination port, or the code of ICMP.
    Second = 3,
    /// The protocol.
    Protocol = 4,
    /// What is known of it beside its headers: see [`Metadata`].
    Metadata = 5,
}

impl Field {
    /// All of them, in the order of their indices.
    pub const ALL: [Self; FIELDS] = [
        Self::Source,
        Self::Destination,
        Self::First,
        Self::Second,
        Self::Protocol,
        Self::Metadata,
    ];
}

/// How the class of a value is found: by a tree.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lookup {
    /// The tree, over the first values of all intervals but the lowest; empty if all values are of one class.
    pub tree: Tree,
    /// The index of what [`Tables::class_number`] says for the tree's first position; those of the others follow.
    pub first: u32,
    /// Fills up to a multiple of eight bytes.
    pub padding: u32,
}

/// How the class of a small number is found: by a table that has something for each.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Direct {
    /// The index of what [`Tables::class_number`] says for the number 0; those of the others follow.
    pub first: u32,
    /// Which bits of the number count: all of them, or none if all numbers are of one class.
    pub mask: u32,
}

/// What is looked up by a tree of IPv6 nodes: an index into [`Config::long`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Long {
    /// The source address of IPv6.
    Source = 0,
    /// The destination address of IPv6.
    Destination = 1,
    /// The sender's MAC address, the first octet highest.
    Mac = 2,
    /// Ids of cgroups, of which 0 stands for those that no rule names.
    Cgroup = 3,
    /// Indices of interfaces.
    Interface = 4,
    /// Users.
    User = 5,
    /// Groups.
    Group = 6,
}

impl Long {
    /// How many there are.
    pub const COUNT: usize = 7;
}

/// A set of partitions of one direction: bit `n` of word `n / 64` for partition `n`.
pub type Partitions = [u64; MAX_PARTITIONS / 64];

/// What the values of a field have in common that no rule tells apart.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Class {
    /// Its place among the intervals of the field: a box holds it if this is within the box's ranks.
    pub rank: u32,
    /// Fills up to a multiple of eight bytes.
    pub padding: u32,
    /// The long lists that its values are on, a bit each.
    pub member_of: u64,
    /// By direction, the partitions that have a box for it.
    pub partitions: [Partitions; 2],
}

const _: () = assert!(size_of::<Class>() == 48);

/// A box: what a rule wants of each field.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// By [`Field`], the lowest and the highest rank in it.
    pub ranks: [[u32; 2]; FIELDS],
    /// The number of its rule in the order of matching.
    pub rule: u32,
    /// Fills up to a multiple of eight bytes.
    pub padding: u32,
    /// The lists on which the packet has to be besides.
    pub member_of: u64,
}

const _: () = assert!(size_of::<Record>() == 64);

/// Boxes in an order in which they can be sought: two of them differ in the first field, in the partition's order of
/// fields, in which their intervals are not the same; there they have nothing in common.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Partition {
    /// The lowest number of a rule in it.
    pub best: u32,
    /// By field, four bits each: its place in the order in which fields are compared.
    pub places: u32,
    /// The index of its first record.
    pub first: u32,
    /// How many records it has.
    pub count: u32,
    /// The index of its [`Group`] for rank 0 of its first field.
    pub groups: u32,
    /// By [`Field`], how far the group of a rank is from that of the rank before. 0 for all but the first field, or for all of
    /// them if there is one group only. (Groups of one rank lie side by side, whatever their partition: a packet that is
    /// sought in some partitions finds them in one place.)
    pub strides: [u32; FIELDS],
    /// 0, of which the compiler of the programs knows nothing: see [`Probe`].
    pub zero: u32,
}

const _: () = assert!(size_of::<Partition>() == 48);

/// The records of a partition with the same interval in the first field: how far they are from the partition's first,
/// how many, and the lowest number of a rule among them, in [`NUMBER_BITS`] each; above them the field of their [`Run`]s.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group(u64);

impl Group {
    /// Without any.
    pub const EMPTY: Self = Self::new(0, 0, 0, None);

    /// From its parts, each but the field below 2 to the power of [`NUMBER_BITS`].
    pub const fn new(offset: u32, count: u32, best: u32, runs_by: Option<Field>) -> Self {
        let field = match runs_by {
            Some(field) => field as u64,
            None => WITHOUT_RUNS,
        };
        Self(
            offset as u64
                | (count as u64) << NUMBER_BITS
                | (best as u64) << (2 * NUMBER_BITS)
                | field << (3 * NUMBER_BITS),
        )
    }

    /// How far the first of them is from the partition's first record.
    #[inline(always)]
    pub const fn offset(self) -> u32 {
        self.0 as u32 & NUMBER_MASK
    }

    /// How many there are.
    #[inline(always)]
    pub const fn count(self) -> u32 {
        (self.0 >> NUMBER_BITS) as u32 & NUMBER_MASK
    }

    /// The lowest number of a rule among them.
    #[inline(always)]
    pub const fn best(self) -> u32 {
        (self.0 >> (2 * NUMBER_BITS)) as u32 & NUMBER_MASK
    }

    /// The index of the first field in which they differ, or [`WITHOUT_RUNS`].
    #[inline(always)]
    pub const fn runs_by(self) -> u64 {
        self.0 >> (3 * NUMBER_BITS)
    }
}

/// What [`Group::runs_by`] says where there are so few records that they are compared at once.
pub const WITHOUT_RUNS: u64 = 0xf;

const NUMBER_MASK: u32 = (1 << NUMBER_BITS) - 1;

/// How many bits a rank has: of each of so many records as there can be, both ends can begin one.
pub const RANK_BITS: u32 = NUMBER_BITS + 2;

/// Those records of a group with the same interval in the first field in which any of the group differ: the lowest and the
/// highest rank, and how far the first of them is from the partition's first record. There is one for each record, in a
/// place of the same index; an eighth as long, it is sought first.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run(u64);

impl Run {
    /// From ranks below 2 to the power of [`RANK_BITS`], and an offset below that of [`NUMBER_BITS`].
    pub const fn new([lowest, highest]: [u32; 2], offset: u32) -> Self {
        Self(lowest as u64 | (highest as u64) << RANK_BITS | (offset as u64) << (2 * RANK_BITS))
    }

    /// The lowest rank.
    #[inline(always)]
    pub const fn lowest(self) -> u32 {
        self.0 as u32 & RANK_MASK
    }

    /// The highest rank.
    #[inline(always)]
    pub const fn highest(self) -> u32 {
        (self.0 >> RANK_BITS) as u32 & RANK_MASK
    }

    /// How far the first of them is from the partition's first record.
    #[inline(always)]
    pub const fn offset(self) -> u32 {
        (self.0 >> (2 * RANK_BITS)) as u32
    }
}

const RANK_MASK: u32 = (1 << RANK_BITS) - 1;

const _: () = assert!(2 * RANK_BITS + NUMBER_BITS == u64::BITS && 3 * NUMBER_BITS + 4 == u64::BITS);

/// What a packet is to the rules, before any of its fields is looked at: which of them come into question at all.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The rules that name the state new, or none.
    Ordinary = 0,
    /// The rules that name [`Essential::Loopback`]; the others of [`Essential`] follow.
    Essential = 1,
    /// The rules that are content with a frame that is not IP, and name that where it is essential.
    NotIp = 1 + Essential::COUNT,
    /// Those of them that name [`Essential::Loopback`].
    NotIpByLoopback = 2 + Essential::COUNT,
    /// The rules that name the state established.
    Established = 3 + Essential::COUNT,
    /// The rules that name the state related.
    Related = 4 + Essential::COUNT,
    /// The rules that name the state invalid, or none.
    Invalid = 5 + Essential::COUNT,
}

impl Kind {
    /// How many kinds there are.
    pub const COUNT: usize = 6 + Essential::COUNT as usize;
}

/// What is sought among the rules.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sought {
    /// The first that decides.
    Deciding = 0,
    /// All that only count.
    Counting = 1,
    /// The first that blocks what comes in and names whose socket it is for: what `cgroup_skb` ingress looks for. There, what
    /// is not IP is what is malformed.
    AtSocket = 2,
    /// The first of those that name a destination, or a port of it, or a protocol, or nothing, and block; or that may match
    /// what goes there, and let pass or count. In each of them all other fields are open. What is asked where a socket is to
    /// connect or send.
    AtCall = 3,
}

impl Sought {
    /// How many there are.
    pub const COUNT: usize = 4;

    /// Those that are asked about packets.
    pub const OF_PACKETS: [Self; 3] = [Self::Deciding, Self::Counting, Self::AtSocket];
}

/// How what is known of a packet beside its IP headers is looked up: interface, MAC address, cgroup, user, group.
///
/// Each of them is looked up by itself, and gives a number; the sum of the numbers, which are multiples of a stride of
/// each, is the place of their combination in a table of classes. (Looking fields up one by one and then their
/// combination is the idea of Recursive Flow Classification: Gupta, `McKeown`: Packet Classification on Multiple Fields,
/// SIGCOMM 1999.)
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The levels of the cgroups that rules name, the deepest one first, in a byte each and one more than the level; 0
    /// ends them.
    pub levels: u64,
    /// The index of what [`Tables::class_number`] says for the first combination; those of the others follow.
    pub first: u32,
    /// What rules ask for at all: bits of [`asks`].
    pub asks: u32,
    /// The number of a cgroup, a user and a group together where no socket is known: no rule that names one is content with
    /// it.
    pub unknown_socket: u64,
    /// The number of a group where the socket is known and its group is not.
    pub unknown_group: u64,
}

const _: () = assert!(size_of::<Metadata>() == 32);

/// Bits of [`Metadata::asks`].
pub mod asks {
    /// A rule names an interface.
    pub const INTERFACE: u32 = 1;
    /// A rule names a MAC address.
    pub const MAC: u32 = 2;
    /// A rule names a cgroup.
    pub const CGROUP: u32 = 4;
    /// A rule names a user.
    pub const UID: u32 = 8;
    /// A rule names a group.
    pub const GID: u32 = 16;
}

/// On how many levels of the hierarchy the cgroups can be that rules name.
pub const MAX_LEVELS: usize = 8;

/// A policy, but for the content of the arrays. Read once a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Source addresses of IPv4.
    pub source_v4: Lookup,
    /// Destination addresses of IPv4.
    pub destination_v4: Lookup,
    /// By [`Long`].
    pub long: [Lookup; Long::COUNT],
    /// [`Field::First`].
    pub first: Direct,
    /// [`Field::Second`].
    pub second: Direct,
    /// [`Field::Metadata`].
    pub metadata: Metadata,
    /// By direction, by the index of a [`Kind`] and by [`Sought`], the partitions to be searched.
    pub views: [[[Partitions; Sought::COUNT]; Kind::COUNT]; 2],
    /// Any number: see [`Veil`](crate::veil::Veil).
    pub veil: u64,
    /// The index of what [`Tables::class_number`] says for protocol 0; those of the others follow.
    pub first_protocol: u32,
    /// The index of the class of number 0.
    pub first_class: u32,
    /// The index of the partition of number 0 for incoming packets; those for outgoing ones follow behind
    /// [`MAX_PARTITIONS`].
    pub first_partition: u32,
    /// The index of the first rule.
    pub first_rule: u32,
    /// The index of the first rate.
    pub first_limit: u32,
    /// What it has at all: bits of [`has`].
    pub has: u32,
    /// The key of the hash that gives sources and flows their buckets: random, so that nobody can aim at another's.
    pub bucket_key: [u64; 2],
    /// How flows are followed.
    pub flows: flow::Settings,
    /// A number of 32 bits that the policies before did not have, so that a flow knows whose verdict it has.
    pub generation: u64,
    /// 1 if incoming packets that no rule matches are blocked.
    pub block_ingress: u8,
    /// 1 if outgoing packets that no rule matches are blocked.
    pub block_egress: u8,
    /// 1 if malformed packets are blocked.
    pub block_malformed: u8,
    /// 1 if the essentials pass where no rule names them.
    pub essentials: u8,
    /// The slot that it is in.
    pub slot: u32,
}

const _: () = assert!(
    size_of::<Config>()
        == (2 + Long::COUNT) * 72
            + 16
            + size_of::<Metadata>()
            + 2 * Kind::COUNT * Sought::COUNT * 16
            + 8
            + 6 * 4
            + 16
            + size_of::<flow::Settings>()
            + 8
            + 8
);

/// Bits of [`Config::has`].
pub mod has {
    /// Rules hold what they match to a rate.
    pub const LIMITS: u32 = 1;
    /// Rules only count what they match.
    pub const COUNTING: u32 = 2;
    /// Rules block what comes in by whose socket it is for.
    pub const AT_SOCKET: u32 = 16;
    /// Rules name the state established.
    pub const ESTABLISHED: u32 = 4;
    /// Rules name the state related.
    pub const RELATED: u32 = 8;
    /// Calls of `connect` and `sendmsg` may be refused.
    pub const AT_CALL: u32 = 32;
}

/// The arrays that hold the content of all slots.
///
/// In an eBPF program they are maps; in `explain` and in tests they are slices.
pub trait Tables {
    /// The policy in this slot.
    fn config(&self, slot: u32) -> Option<&Config>;
    /// The node at `index`; `None` beyond the array's end.
    fn node_v4(&self, index: u32) -> Option<&NodeV4>;
    /// The node at `index`; `None` beyond the array's end.
    fn node_v6(&self, index: u32) -> Option<&NodeV6>;
    /// The number of the class at `index`, which is that of a tree's position; `None` beyond the array's end.
    fn class_number(&self, index: u32) -> Option<u32>;
    /// The class at `index`; `None` beyond the array's end.
    fn class(&self, index: u32) -> Option<&Class>;
    /// The partition at `index`; `None` beyond the array's end.
    fn partition(&self, index: u32) -> Option<&Partition>;
    /// The group at `index`; `None` beyond the array's end.
    fn group(&self, index: u32) -> Option<Group>;
    /// The run of the record at `index`; `None` beyond the array's end.
    fn run(&self, index: u32) -> Option<Run>;
    /// The record at `index`; `None` beyond the array's end.
    fn record(&self, index: u32) -> Option<&Record>;
    /// The rule at `index`; `None` beyond the array's end.
    fn rule(&self, index: u32) -> Option<Rule>;
    /// The rate at `index`; `None` beyond the array's end.
    fn limit(&self, index: u32) -> Option<&RateLimit>;
    /// Takes tokens that take `cost_ns` to come from the bucket at `index`, which takes `burst_ns` to fill; false if there
    /// are not enough.
    fn take_tokens(&self, index: u32, cost_ns: u64, burst_ns: u64) -> bool;

    /// Counts a packet of so many bytes under each of the rules that only count and come before the rule of this number.
    fn count_matches(&self, question: Question, before: u32, bytes: u64);

    /// Answers a question. A program has it answered by a function that the verifier follows only once.
    #[inline(always)]
    fn first_match(&self, question: Question) -> u32
    where
        Self: Sized,
    {
        classify::first_match(self, question)
    }

    /// Looks something up in the tree of a slot. Likewise.
    #[inline(always)]
    fn long_number(&self, slot: u32, what: Long, key: KeyV6) -> u32
    where
        Self: Sized,
    {
        classify::long_number(self, slot, what as u32, key)
    }

    /// Asks a partition. Likewise.
    #[inline(always)]
    fn probe(&self, probe: Probe) -> u32
    where
        Self: Sized,
    {
        classify::probe(self, probe, || {})
    }
}

/// Where in the arrays the content of a slot begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The slot.
    pub slot: u32,
    /// In the array of IPv4 nodes.
    pub node_v4: u32,
    /// In the array of IPv6 nodes.
    pub node_v6: u32,
    /// In the array of the numbers of classes.
    pub class_number: u32,
    /// In the array of classes.
    pub class: u32,
    /// In the array of partitions.
    pub partition: u32,
    /// In the array of groups.
    pub group: u32,
    /// In the arrays of runs and of records.
    pub record: u32,
    /// In the array of rules.
    pub rule: u32,
    /// In the array of rates.
    pub limit: u32,
}

impl Config {
    /// The same policy, with its content moved from the arrays' beginning to `origin`.
    #[must_use]
    pub fn moved_to(mut self, origin: Origin) -> Self {
        for lookup in [&mut self.source_v4, &mut self.destination_v4] {
            lookup.move_by(origin.node_v4, origin.class_number);
        }
        for lookup in &mut self.long {
            lookup.move_by(origin.node_v6, origin.class_number);
        }
        self.first.first += origin.class_number;
        self.second.first += origin.class_number;
        self.slot = origin.slot;
        self.metadata.first += origin.class_number;
        self.first_protocol += origin.class_number;
        self.first_class += origin.class;
        self.first_partition += origin.partition;
        self.first_rule += origin.rule;
        self.first_limit += origin.limit;
        self
    }
}

impl Partition {
    /// The same partition, as above.
    #[must_use]
    pub fn moved_to(mut self, origin: Origin) -> Self {
        self.first += origin.record;
        self.groups += origin.group;
        self
    }
}

impl Lookup {
    fn move_by(&mut self, nodes: u32, numbers: u32) {
        for level in &mut self.tree.levels {
            level.first += nodes;
        }
        self.first += numbers;
    }
}

#[cfg(not(target_arch = "bpf"))]
mod pod {
    // SAFETY: `#[repr(C)]`, integers with the padding spelt out, any bits are valid.
    unsafe impl aya::Pod for super::Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Rule {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Class {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Partition {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Record {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Group {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Run {}
}
