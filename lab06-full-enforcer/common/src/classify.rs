//! Which rule matches a packet: six look-ups, and a search in what they leave.
//!
//! Bounded whatever the policy: the compiler computes the worst case, and refuses a policy whose search would take more
//! than [`MAX_STEPS`].

use lab02_xdp_firewall_common::prefix_set::tree::KeyV6;

use crate::{
    key::{Direction, Key, NO_GROUP, NO_MAC, Socket},
    table::{
        Class, Config, Direct, FIELDS, Field, Long, Lookup, MAX_LEVELS, MAX_PARTITIONS, NUMBER_BITS, Partition,
        Partitions, Record, Rule, Sought, Tables, WITHOUT_RUNS, asks,
    },
    veil::Veil,
};

/// How many steps a search may take: one for each partition taken up, and one for each run or record compared.
pub const MAX_STEPS: u32 = 1024;

/// No rule, where the number of one is expected.
pub const NO_RULE: u32 = u32::MAX;

/// Looks a key up, field by field.
pub struct Classifier<'a, T> {
    /// The policy.
    pub config: &'a Config,
    /// The content of the arrays.
    pub tables: &'a T,
}

/// What is sought: packed into three numbers, since the verifier of Linux 5.10 lets only numbers into a function that it
/// follows once for all.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// The numbers of the classes of source (in the upper half) and destination.
    pub addresses: u64,
    /// The numbers of the classes of the first field (in the upper half) and the second.
    pub ports: u64,
    /// The number of the class of the metadata (in the upper half), and that of the protocol in the sixteen bits below;
    /// from the lowest bit on: eight bits for the slot, one for the direction, two for what is sought, and from the
    /// thirteenth bit on four for the kind.
    pub rest: u64,
}

impl Question {
    /// The numbers of the classes, by [`Field`].
    #[inline(always)]
    const fn class_numbers(self) -> [u32; FIELDS] {
        [
            (self.addresses >> 32) as u32,
            self.addresses as u32,
            (self.ports >> 32) as u32,
            self.ports as u32,
            (self.rest >> 16 & 0xffff) as u32,
            (self.rest >> 32) as u32,
        ]
    }

    /// The same, asked where whose socket it is for is known.
    #[inline(always)]
    pub(crate) const fn at_socket(self) -> Self {
        Self {
            rest: self.rest | AT_SOCKET,
            ..self
        }
    }

    #[inline(always)]
    const fn sought(self) -> Sought {
        match self.rest & (AT_SOCKET | AT_CALL) {
            AT_SOCKET => Sought::AtSocket,
            AT_CALL => Sought::AtCall,
            _ => Sought::Deciding,
        }
    }

    #[inline(always)]
    const fn slot(self) -> u32 {
        (self.rest & 0xff) as u32
    }

    #[inline(always)]
    const fn direction(self) -> usize {
        (self.rest >> 8 & 1) as usize
    }

    /// Which way the packet goes that is asked about.
    #[inline(always)]
    pub(crate) const fn direction_of(self) -> Direction {
        if self.direction() == 0 {
            Direction::Ingress
        } else {
            Direction::Egress
        }
    }

    /// The index of a [`Kind`](crate::table::Kind).
    #[inline(always)]
    pub(crate) const fn kind(self) -> usize {
        (self.rest >> 12 & 0xf) as usize
    }
}

/// In [`Question::rest`].
const AT_SOCKET: u64 = 1 << 9;
const AT_CALL: u64 = 1 << 10;

// Not derived, which would ask the same of the tables.
impl<T> Clone for Classifier<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Classifier<'_, T> {}

impl<T: Tables> Classifier<'_, T> {
    /// Read each time it is needed: a number less to be kept on the stack meanwhile.
    #[inline(always)]
    pub(crate) fn veil(&self) -> Veil {
        Veil::new(self.config.veil)
    }

    /// The numbers of the classes of a packet's fields, and what it is, as a question.
    #[inline(always)]
    pub fn question(&self, key: &Key, metadata: u64, direction: Direction, kind: u32) -> Question {
        // ANCHOR: question
        Question {
            addresses: self.source(key) << 32 | self.destination(key),
            ports: self.number_of(self.config.first, key.upper.first()) << 32
                | self.number_of(self.config.second, key.upper.second()),
            rest: metadata << 32 | self.protocol(key) << 16 | self.about(direction, kind),
        }
        // ANCHOR_END: question
    }

    /// A question about a frame that is not IP, of which no other field is looked at.
    #[inline(always)]
    pub fn question_without_ip(&self, metadata: u64, direction: Direction, kind: u32) -> Question {
        Question {
            addresses: 0,
            ports: 0,
            rest: metadata << 32 | self.about(direction, kind),
        }
    }

    /// A question about a system call, of which only the destination and the protocol are known. Of the other fields stands
    /// the class for what is not looked at.
    #[inline(always)]
    pub(crate) fn question_of_destination(&self, key: &Key, direction: Direction, kind: u32) -> Question {
        Question {
            addresses: self.destination(key),
            ports: self.number_of(self.config.second, key.upper.second()),
            rest: self.protocol(key) << 16 | self.about(direction, kind) | AT_CALL,
        }
    }

    #[inline(always)]
    fn about(&self, direction: Direction, kind: u32) -> u64 {
        u64::from(kind << 12 | (direction as u32) << 8 | self.config.slot & 0xff)
    }

    /// The number of the class of what is known beside the headers: the interface's index, the sender's MAC address
    /// or [`NO_MAC`], and the socket.
    #[inline(always)]
    pub fn metadata<S: Socket>(&self, interface: u32, mac: u64, socket: S) -> u64 {
        // ANCHOR: metadata
        let about = &self.config.metadata;
        if about.asks == 0 {
            return 0;
        }
        // Behind a veil from the start, so that the verifier does not tell apart what was looked up and what was not.
        let mut place = self.veil().over(0);
        if about.asks & asks::INTERFACE != 0 {
            place += self.long_number(Long::Interface, of_number(u64::from(interface)));
        }
        if mac != NO_MAC && about.asks & asks::MAC != 0 {
            place += self.long_number(Long::Mac, of_number(mac));
        }
        if !S::IS_KNOWN {
            place += about.unknown_socket;
        }
        if S::IS_KNOWN && about.asks & asks::UID != 0 {
            place += self.long_number(Long::User, of_number(u64::from(socket.uid())));
        }
        if S::IS_KNOWN && about.asks & asks::GID != 0 {
            place += self.group(socket.gid());
        }
        if S::IS_KNOWN && about.asks & asks::CGROUP != 0 {
            place += self.cgroup(socket);
        }
        self.number(about.first + place as u32)
        // ANCHOR_END: metadata
    }

    #[inline(always)]
    fn group(&self, gid: u64) -> u64 {
        if gid == NO_GROUP {
            return self.config.metadata.unknown_group;
        }
        self.long_number(Long::Group, of_number(gid))
    }

    /// The number of the deepest cgroup that rules name and the socket is in or below of; 0 if it is in none.
    #[inline(always)]
    fn cgroup<S: Socket>(&self, socket: S) -> u64 {
        let about = &self.config.metadata;
        for place in 0..MAX_LEVELS {
            let level = (about.levels >> (8 * place) & 0xff) as u32;
            if level == 0 {
                break;
            }
            let id = socket.ancestor_cgroup(level - 1);
            let number = self.long_number(Long::Cgroup, of_number(id));
            if number != 0 {
                return number;
            }
        }
        0
    }

    #[inline(always)]
    fn source(&self, key: &Key) -> u64 {
        if key.ip_version == 4 {
            self.number_at(&self.config.source_v4, u32::from_be_bytes(key.source.ipv4()))
        } else {
            self.long_number(Long::Source, KeyV6::from_octets(&key.source.ipv6()))
        }
    }

    #[inline(always)]
    fn destination(&self, key: &Key) -> u64 {
        if key.ip_version == 4 {
            self.number_at(&self.config.destination_v4, u32::from_be_bytes(key.destination.ipv4()))
        } else {
            self.long_number(Long::Destination, KeyV6::from_octets(&key.destination.ipv6()))
        }
    }

    #[inline(always)]
    fn protocol(&self, key: &Key) -> u64 {
        self.number(self.config.first_protocol + u32::from(key.upper.protocol))
    }

    #[inline(always)]
    fn number_of(&self, direct: Direct, value: u32) -> u64 {
        self.number(direct.first + (value & direct.mask))
    }

    #[inline(always)]
    fn number_at(&self, lookup: &Lookup, value: u32) -> u64 {
        let position = lookup.tree.position(|index| self.tables.node_v4(index), value);
        self.number(lookup.at(position))
    }

    #[inline(always)]
    fn long_number(&self, what: Long, key: KeyV6) -> u64 {
        u64::from(self.tables.long_number(self.config.slot, what, key))
    }

    /// Where there is nothing, which a compiler rules out, the first class stands in.
    #[inline(always)]
    fn number(&self, index: u32) -> u64 {
        self.veil()
            .over(u64::from(self.tables.class_number(index).unwrap_or(0)))
    }
}

impl Lookup {
    /// The index of the number of the class at a position.
    #[inline(always)]
    fn at(&self, position: Option<u32>) -> u32 {
        match position {
            Some(position) => self.first + position,
            // Where there is nothing.
            None => u32::MAX,
        }
    }
}

/// A number as it is looked up where addresses of IPv6 are.
#[inline(always)]
const fn of_number(number: u64) -> KeyV6 {
    KeyV6 { high: 0, low: number }
}

/// The number of the class of what is looked up by the tree of index `what`, a [`Long`], in the policy of a slot.
#[inline(always)]
pub fn long_number<T: Tables>(tables: &T, slot: u32, what: u32, key: KeyV6) -> u32 {
    let Some(config) = tables.config(slot) else { return 0 };
    let Some(lookup) = config.long.get(what as usize) else {
        return 0;
    };
    let position = lookup.tree.position(|index| tables.node_v6(index), key);
    tables.class_number(lookup.at(position)).unwrap_or(0)
}

/// The number of the first rule that decides, or [`NO_RULE`].
#[inline(always)]
pub fn first_match<T: Tables>(tables: &T, question: Question) -> u32 {
    let Some(mut search) = Search::new(tables, question, question.sought()) else {
        return NO_RULE;
    };
    // ANCHOR: search
    let mut found = NO_RULE;
    for _ in 0..MAX_PARTITIONS {
        let Some(partition) = search.next() else { break };
        match tables.probe(search.probe(partition, found)) {
            // The partitions come in the order of their best rules, and this one's is behind what was found.
            NOTHING_BETTER => break,
            NO_RULE => {}
            rule => found = rule,
        }
        // The verifier is not to tell one turn from the other by what was found.
        found = search.veil().over(u64::from(found)) as u32;
    }
    // ANCHOR_END: search
    found
}

/// Tells `each` of the rules that only count and come before the rule of this number. (In no order.)
#[inline(always)]
pub fn counting_matches<T: Tables>(tables: &T, question: Question, before: u32, mut each: impl FnMut(Rule)) {
    let Some(mut search) = Search::new(tables, question, Sought::Counting) else {
        return;
    };
    for _ in 0..MAX_PARTITIONS {
        let Some(partition) = search.next() else { break };
        match tables.probe(search.probe(partition, before)) {
            NOTHING_BETTER => break,
            NO_RULE => {}
            number => {
                if let Some(rule) = tables.rule(search.config.first_rule + number) {
                    each(rule);
                }
            }
        }
    }
}

/// How many steps the search for the deciding rule takes: a step is a partition taken up, or a run or a record compared.
pub fn steps<T: Tables>(tables: &T, question: Question) -> u32 {
    let mut steps = 0;
    if let Some(mut search) = Search::new(tables, question, question.sought()) {
        let mut found = NO_RULE;
        while let Some(partition) = search.next() {
            match probe(tables, search.probe(partition, found), || steps += 1) {
                NOTHING_BETTER => break,
                NO_RULE => {}
                rule => found = rule,
            }
        }
    }
    steps
}

/// The class of a packet in a field.
///
/// # Panics
///
/// If the tables are not what the question was made of.
pub fn class_of<T: Tables>(tables: &T, question: Question, field: Field) -> &Class {
    let number = question.class_numbers()[field as usize];
    let config = tables.config(question.slot()).expect("the slot is there");
    tables.class(config.first_class + number).expect("the class is there")
}

/// The boxes among which the deciding rule is sought, before any field is looked at.
///
/// # Panics
///
/// As above.
pub fn in_question<T: Tables>(tables: &T, question: Question) -> impl Iterator<Item = &Record> {
    let config = tables.config(question.slot()).expect("the slot is there");
    let pending = view(config, question, question.sought()).copied().unwrap_or_default();
    let first = first_partition(config, question);
    let is_pending = move |number: &u32| pending[*number as usize / 64] >> (number % 64) & 1 != 0;
    let partitions = (0..MAX_PARTITIONS as u32).filter(is_pending);
    let partitions = partitions.filter_map(move |number| tables.partition(first + number));
    partitions.flat_map(move |partition| {
        let records = (0..partition.count).map(move |number| partition.first + number);
        records.filter_map(|index| tables.record(index))
    })
}

#[inline(always)]
fn first_partition(config: &Config, question: Question) -> u32 {
    config.first_partition + question.direction() as u32 * MAX_PARTITIONS as u32
}

/// The partitions in which the packet's rule may be, as far as one knows before any field is looked at.
#[inline(always)]
fn view(config: &Config, question: Question, sought: Sought) -> Option<&Partitions> {
    let kinds = config.views.get(question.direction())?;
    kinds.get(question.kind())?.get(sought as usize)
}

/// What is asked of a partition, packed into five numbers: see [`Question`] on why.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// The index of the partition (in the upper half), and the number before which a rule has to be to count.
    pub partition: u64,
    /// The ranks of source (in the upper half) and destination.
    pub addresses: u64,
    /// The ranks of the first field (in the upper half) and the second.
    pub ports: u64,
    /// The ranks of the metadata (in the upper half) and the protocol.
    pub rest: u64,
    /// The lists that the packet is on.
    pub member_of: u64,
}

impl Probe {
    /// [`Probe::ranks`], unpacked anew: the compiler would keep all of them beside each other on the stack of 512 bytes
    /// from one turn of the search to the next, if it did not have to believe that they change.
    #[inline(always)]
    fn ranks_again(mut self, partition: &Partition) -> [u32; FIELDS] {
        let zero = u64::from(volatile(&partition.zero));
        self.addresses ^= zero;
        self.ports ^= zero;
        self.rest ^= zero;
        self.ranks()
    }

    /// The rank in the field of this index. (Without a branch: see [`Sides::of`].)
    #[inline(always)]
    fn rank_in(self, field: u64) -> u32 {
        let mut rank = 0;
        for (of_field, number) in self.ranks().into_iter().zip(0..) {
            // All bits if they are the same.
            let mask = ((field ^ number).wrapping_sub(1).cast_signed() >> 63).cast_unsigned() as u32;
            rank |= of_field & mask;
        }
        rank
    }

    /// By [`Field`].
    #[inline(always)]
    const fn ranks(self) -> [u32; FIELDS] {
        [
            (self.addresses >> 32) as u32,
            self.addresses as u32,
            (self.ports >> 32) as u32,
            self.ports as u32,
            self.rest as u32,
            (self.rest >> 32) as u32,
        ]
    }
}

/// Reads a number again, whatever the compiler has read of it before.
#[inline(always)]
fn volatile(number: &u32) -> u32 {
    // SAFETY: it is a reference.
    unsafe { core::ptr::read_volatile(number) }
}

/// What a probe says of a partition in which there is no rule before the limit, nor is one in those behind it.
pub const NOTHING_BETTER: u32 = u32::MAX - 1;

/// The number of the rule in a partition that holds the packet, if it is before the limit; [`NO_RULE`] if none does, or
/// [`NOTHING_BETTER`]. Says `on_step` whenever a partition, a run or a record is looked at.
#[inline(always)]
pub fn probe<T: Tables>(tables: &T, probe: Probe, mut on_step: impl FnMut()) -> u32 {
    let limit = probe.partition as u32;
    let Some(partition) = tables.partition((probe.partition >> 32) as u32) else {
        return NOTHING_BETTER;
    };
    on_step();
    if partition.best >= limit {
        return NOTHING_BETTER;
    }
    // ANCHOR: group
    let mut index = partition.groups;
    for (rank, stride) in probe.ranks().into_iter().zip(partition.strides) {
        index = index.wrapping_add(rank.wrapping_mul(stride));
    }
    let Some(group) = tables.group(index) else {
        return NO_RULE;
    };
    if group.best() >= limit {
        return NO_RULE;
    }
    let mut first = u64::from(partition.first + group.offset());
    let mut count = u64::from(group.count());
    // ANCHOR_END: group
    // Any number from a map.
    let veil = Veil::new(u64::from(partition.places));
    // ANCHOR: run
    if group.runs_by() != WITHOUT_RUNS {
        let rank = i64::from(probe.rank_in(group.runs_by()));
        for _ in 0..NUMBER_BITS {
            if count <= 1 {
                break;
            }
            on_step();
            let half = count >> 1;
            let Some(run) = tables.run((first + half) as u32) else {
                return NO_RULE;
            };
            // All bits if it does not begin above the rank.
            let begins = ((i64::from(run.lowest()) - rank - 1) >> 63).cast_unsigned();
            first = veil.over(first + (half & begins));
            count = veil.over(count - half);
        }
        // Of the runs that do not begin above the rank, this record is the last one of the last.
        let Some(run) = tables.run(first as u32) else {
            return NO_RULE;
        };
        if rank < i64::from(run.lowest()) || i64::from(run.highest()) < rank {
            return NO_RULE;
        }
        let last = first;
        first = u64::from(partition.first + run.offset());
        count = last - first + 1;
    }
    // ANCHOR_END: run
    // ANCHOR: halve
    for _ in 0..=NUMBER_BITS {
        if count == 0 {
            break;
        }
        on_step();
        let half = count >> 1;
        let Some(record) = tables.record((first + half) as u32) else {
            break;
        };
        let Sides { below, above } = Sides::of(probe.ranks_again(partition), record, partition);
        let outside = below | above;
        if outside == 0 {
            // No other record of this partition can hold the packet.
            let is_member = record.member_of & !probe.member_of == 0;
            return if is_member && record.rule < limit {
                record.rule
            } else {
                NO_RULE
            };
        }
        // The first field in the partition's order that is outside decides on which side to go on.
        if outside & outside.wrapping_neg() & below != 0 {
            count = half;
        } else {
            first += half + 1;
            count -= half + 1;
        }
        // The verifier is not to tell one turn from the other by these.
        first = veil.over(first);
        count = veil.over(count);
    }
    // ANCHOR_END: halve
    NO_RULE
}

/// A search in the partitions, those with the best rules first.
struct Search<'a> {
    config: &'a Config,
    /// The index of partition 0 of the direction.
    first_partition: u32,
    /// What is still to be searched.
    pending: Partitions,
    /// What is asked of each.
    probe: Probe,
}

impl<'a> Search<'a> {
    #[inline(always)]
    fn new<T: Tables>(tables: &'a T, question: Question, sought: Sought) -> Option<Self> {
        let config = tables.config(question.slot())?;
        let [low, high] = *view(config, question, sought)?;
        if low | high == 0 {
            // As of what is essential in most policies: no class needs to be looked up.
            return None;
        }
        let mut search = Self {
            config,
            first_partition: first_partition(config, question),
            pending: [low, high],
            // To be replaced. Zeros would be written by a call of `memset`, which costs more than all of this.
            probe: Probe {
                partition: 0,
                addresses: question.addresses,
                ports: question.ports,
                rest: question.rest,
                member_of: question.rest,
            },
        };
        search.look_classes_up(tables, &question)?;
        Some(search)
    }

    /// Leaves those partitions that all classes of the packet agree on, and packs the ranks of the classes; `None` if there
    /// is no such class. Not inlined: its look-ups would share the stack with all that is called afterwards.
    #[inline(never)]
    fn look_classes_up<T: Tables>(&mut self, tables: &'a T, question: &Question) -> Option<()> {
        // ANCHOR: classes
        let [source, destination, first, second, protocol, metadata] = question.class_numbers();
        let direction = question.direction();
        let mut member_of = 0;
        let mut rank = |number: u32| {
            let class = tables.class(self.config.first_class + number)?;
            let [low, high] = class.partitions.get(direction)?;
            self.pending[0] &= low;
            self.pending[1] &= high;
            member_of |= class.member_of;
            Some(u64::from(class.rank))
        };
        let addresses = rank(source)? << 32 | rank(destination)?;
        let ports = rank(first)? << 32 | rank(second)?;
        let rest = rank(metadata)? << 32 | rank(protocol)?;
        // ANCHOR_END: classes
        self.probe.addresses = addresses;
        self.probe.ports = ports;
        self.probe.rest = rest;
        self.probe.member_of = member_of;
        Some(())
    }

    /// Read each time, as above.
    #[inline(always)]
    fn veil(&self) -> Veil {
        Veil::new(self.config.veil)
    }

    /// The index of the next partition.
    #[inline(always)]
    fn next(&mut self) -> Option<u32> {
        // The verifier is not to tell one turn from the other by what is left.
        let [low, high] = self.pending.map(|word| self.veil().over(word));
        if low != 0 {
            self.pending = [low & (low - 1), high];
            Some(self.first_partition + low.trailing_zeros())
        } else if high != 0 {
            self.pending = [low, high & (high - 1)];
            Some(self.first_partition + 64 + high.trailing_zeros())
        } else {
            None
        }
    }

    /// What is asked of this one.
    #[inline(always)]
    fn probe(&self, partition: u32, limit: u32) -> Probe {
        Probe {
            partition: u64::from(partition) << 32 | u64::from(limit),
            ..self.probe
        }
    }
}

/// The fields in which a packet is outside a box, a bit each at its place in the partition's order.
struct Sides {
    below: u64,
    above: u64,
}

impl Sides {
    /// Compares every field, without a branch: the verifier would have to follow each of its ways in each of the turns.
    #[inline(always)]
    fn of(ranks: [u32; FIELDS], record: &Record, partition: &Partition) -> Self {
        // Not kept shifted for each field from turn to turn: see `Probe::ranks_again`.
        let places = volatile(&partition.places);
        // ANCHOR: sides
        let mut sides = Self {
            below: ALL_FIELDS,
            above: ALL_FIELDS,
        };
        for ((rank, [lowest, highest]), field) in ranks.into_iter().zip(record.ranks).zip(Field::ALL) {
            // The sign of a difference that cannot overflow: 1 if the first is not above the second.
            let not_above = |one: u32, other: u32| (i64::from(one) - i64::from(other) - 1).cast_unsigned() >> 63;
            let place = places >> (4 * field as u32) & 0xf;
            sides.below ^= not_above(lowest, rank) << place;
            sides.above ^= not_above(rank, highest) << place;
        }
        sides
        // ANCHOR_END: sides
    }
}

/// A bit for each field.
const ALL_FIELDS: u64 = (1 << FIELDS) - 1;
