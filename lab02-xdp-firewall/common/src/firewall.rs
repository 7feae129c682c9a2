//! The firewall's decision about one frame, in the order in which it is made.
//!
//! The same function decides in the kernel, where the tables are maps, and in tests, where they are slices.

use core::hint::black_box;

use lab01_count_packets_common::{
    headers::{Address, Headers},
    packet::Packet,
};

use crate::{
    bucket::Limit,
    ports::{self, Class, Use},
    prefix_set::{Arrays, PrefixSet},
    transport::{ICMPV6, Malformed, Part, Transport, Upper},
};

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on to the network stack.
    Pass,
    /// It ends here.
    Drop,
}

/// Why a frame passed or was dropped.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Passed: neither IPv4 nor IPv6, ARP among them.
    NotIp = 0,
    /// Passed: its source or its port is on an allow list.
    Allowed = 1,
    /// Passed: nothing matched, and that is the default.
    PassedByDefault = 2,
    /// Passed: malformed, and configured to pass.
    MalformedPassed = 3,
    /// Passed: a later fragment of a packet whose first fragment passed.
    FragmentFollows = 4,
    /// Passed although the default is to drop: neighbour discovery, without which IPv6 has no neighbours (RFC 4861).
    NeighbourDiscovery = 5,
    /// Dropped: malformed.
    Malformed = 6,
    /// Dropped: the MAC address of its sender is blocked.
    Mac = 7,
    /// Dropped: its source address is blocked.
    Address = 8,
    /// Dropped: its destination port is blocked.
    Port = 9,
    /// Dropped: its source port is blocked.
    SourcePort = 10,
    /// Dropped: a fragment, and these are dropped, or one whose first fragment was dropped or never seen.
    Fragment = 11,
    /// Dropped: its source sends more than it may.
    RateLimit = 12,
    /// Dropped: nothing matched, and that is the default.
    DroppedByDefault = 13,
}

impl Reason {
    /// How many reasons there are: the size of an array that has one element for each.
    pub const COUNT: u32 = 14;

    /// All reasons, in the order of their indices.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::NotIp,
        Self::Allowed,
        Self::PassedByDefault,
        Self::MalformedPassed,
        Self::FragmentFollows,
        Self::NeighbourDiscovery,
        Self::Malformed,
        Self::Mac,
        Self::Address,
        Self::Port,
        Self::SourcePort,
        Self::Fragment,
        Self::RateLimit,
        Self::DroppedByDefault,
    ];

    /// The index of its counter, below [`Reason::COUNT`].
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// What becomes of a frame for this reason.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        if (self as u32) < Self::Malformed as u32 {
            Verdict::Pass
        } else {
            Verdict::Drop
        }
    }

    /// A name for people and for JSON, in kebab case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotIp => "not-ip",
            Self::Allowed => "allowed",
            Self::PassedByDefault | Self::DroppedByDefault => "default",
            Self::MalformedPassed | Self::Malformed => "malformed",
            Self::FragmentFollows => "fragment-follows",
            Self::NeighbourDiscovery => "neighbour-discovery",
            Self::Mac => "mac",
            Self::Address => "address",
            Self::Port => "port",
            Self::SourcePort => "source-port",
            Self::Fragment => "fragment",
            Self::RateLimit => "rate-limit",
        }
    }
}

/// What is done with fragments.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragments {
    /// Later fragments are decided by address alone; no rule on ports matches them.
    #[default]
    Pass = 0,
    /// All fragments are dropped, first ones too.
    Drop = 1,
    /// Later fragments share the verdict of their first one; those that come before it are dropped.
    Track = 2,
}

impl Fragments {
    /// From its number in a [`Config`]; unknown numbers are the strictest.
    #[inline(always)]
    pub const fn from_config(number: u8) -> Self {
        match number {
            0 => Self::Pass,
            2 => Self::Track,
            _ => Self::Drop,
        }
    }
}

/// What is decided by, but for the content of the tables. Read once a frame, so a new one takes effect whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Sources that are dropped.
    pub block: PrefixSet,
    /// Sources that pass, unless something blocks them.
    pub allow: PrefixSet,
    /// What each source may send; used if `limits` says so.
    pub limit: Limit,
    /// The key of the hash that gives a source its bucket: random, so that nobody can aim at another's bucket.
    pub bucket_key: [u64; 2],
    /// Which [`ports::bit`]s occur in the table of ports.
    pub port_bits: u32,
    /// The index of the word of port 0 in the table of ports.
    pub first_port: u32,
    /// Whether there is a limit, and what its tokens are: 0 none, 1 packets, 2 bytes of the IP layer.
    pub limits: u8,
    /// 1 to drop what nothing matched, 0 to let it pass.
    pub drop_by_default: u8,
    /// 1 to drop malformed frames, 0 to let them pass.
    pub drop_malformed: u8,
    /// A [`Fragments`].
    pub fragments: u8,
    /// 1 if there are blocked MAC addresses.
    pub has_macs: u8,
    /// Fills up to a multiple of eight bytes.
    pub padding: [u8; 3],
}

const _: () = assert!(size_of::<Config>() == 2 * size_of::<PrefixSet>() + 16 + 16 + 16);

impl Config {
    /// [`Config::limits`]: no limit.
    pub const UNLIMITED: u8 = 0;
    /// [`Config::limits`]: a token is a packet.
    pub const PACKETS: u8 = 1;
    /// [`Config::limits`]: a token is a byte of the IP layer.
    pub const BYTES: u8 = 2;
}

/// The fragments of one packet have this in common: RFC 791 section 3.2, RFC 8200 section 4.5.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// The source address.
    pub source: Address,
    /// The destination address.
    pub destination: Address,
    /// The identification, in host order.
    pub id: u32,
    /// 4 or 6.
    pub ip_version: u8,
    /// The protocol; for IPv6, where later fragments may say another, 0.
    pub protocol: u8,
    /// Fills up to a multiple of four bytes.
    pub padding: [u8; 2],
}

const _: () = assert!(size_of::<FragmentKey>() == 40);

impl FragmentKey {
    /// That of the fragment with these headers.
    #[inline(always)]
    pub fn of(headers: &Headers, upper: &Upper) -> Self {
        Self {
            source: headers.source,
            destination: headers.destination,
            id: upper.fragment_id,
            ip_version: headers.ip_version,
            protocol: if headers.ip_version == 4 { upper.protocol } else { 0 },
            padding: [0; 2],
        }
    }
}

/// The tables that a decision reads, and the few that it writes.
pub trait Tables: Arrays {
    /// Whether frames of this sender are dropped.
    fn is_blocked_mac(&self, mac: &[u8; 6]) -> bool;

    /// The word at `index` of the table of ports.
    fn port_word(&self, index: u32) -> Option<u32>;

    /// Takes tokens that take `cost_ns` to come from the bucket that belongs to the hash of a source; false if there are
    /// not enough.
    fn take_tokens(&self, source_hash: u32, cost_ns: u64, burst_ns: u64) -> bool;

    /// What the first fragment of this packet met; `None` if it was not seen, or too long ago.
    fn verdict_of_first_fragment(&self, key: &FragmentKey) -> Option<Verdict>;

    /// Keeps what the first fragment of a packet met.
    fn keep_verdict_of_first_fragment(&self, key: &FragmentKey, verdict: Verdict);
}

/// The frame that is being decided about: its headers, and then the decision.
///
/// In an eBPF program this is a map's value, which makes the program verifiable: the verifier follows each way through
/// one stage on through all the stages behind it as long as it knows in what they differ, and of what was written to a
/// map it knows nothing. So the stages talk through this, and each ends by letting the compiler forget what it wrote, or
/// the next one would find it in a register, where the verifier sees it too.
///
/// Functions of their own would forget as well. But where the kernel guards returns against speculation each call costs
/// as much as a look-up: five of them took more than half of this program's time.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Inspection {
    headers: Headers,
    upper: Upper,
    transport: Transport,
    malformed: Malformed,
    reason: Reason,
    lookups: u32,
}

impl Inspection {
    /// Of no frame yet.
    pub const EMPTY: Self = Self {
        headers: Headers::EMPTY,
        upper: Upper::EMPTY,
        transport: Transport::EMPTY,
        malformed: Malformed::EthernetTruncated,
        reason: Reason::NotIp,
        lookups: 0,
    };

    /// Decides about `frame`, which starts with its Ethernet header. What was decided about the last one is forgotten.
    #[inline(always)]
    pub fn decide<P: Packet + ?Sized, T: Tables>(&mut self, frame: &P, tables: &T, config: &Config) {
        // ANCHOR: decide
        self.lookups = 0;
        self.reason = if config.has_macs != 0 && self.is_from_blocked_mac(frame, tables) {
            Reason::Mac
        } else if self.read_headers(frame) && self.find_upper(frame) && self.read_transport(frame) {
            self.judge(tables, config)
        } else if config.drop_malformed != 0 {
            Reason::Malformed
        } else {
            Reason::MalformedPassed
        };
        self.forget();
        // ANCHOR_END: decide
    }

    /// Why the frame passes or is dropped, which includes whether.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// In which way the frame is malformed.
    pub fn malformed(&self) -> Option<Malformed> {
        matches!(self.reason, Reason::Malformed | Reason::MalformedPassed).then_some(self.malformed)
    }

    /// What the frame's headers say, for whoever tells of the decision; `None` where they were not read to their end:
    /// of what is malformed, and of a blocked sender.
    pub fn parts(&self) -> Option<(&Headers, &Upper, &Transport)> {
        let unread = matches!(self.reason, Reason::Malformed | Reason::MalformedPassed | Reason::Mac);
        (!unread).then_some((&self.headers, &self.upper, &self.transport))
    }

    /// How many tables were looked into.
    pub fn lookups(&self) -> u32 {
        self.lookups
    }

    #[inline(always)]
    fn read_headers<P: Packet + ?Sized>(&mut self, frame: &P) -> bool {
        match Headers::parse(frame) {
            Ok(headers) => self.headers = headers,
            Err(malformed) => return self.refuse(malformed.into()),
        }
        self.forget();
        true
    }

    #[inline(always)]
    fn find_upper<P: Packet + ?Sized>(&mut self, frame: &P) -> bool {
        match Upper::find(frame, &self.headers) {
            Ok(upper) => self.upper = upper,
            Err(malformed) => return self.refuse(malformed),
        }
        self.forget();
        true
    }

    #[inline(always)]
    fn read_transport<P: Packet + ?Sized>(&mut self, frame: &P) -> bool {
        match Transport::read(frame, &self.headers, &self.upper) {
            Ok(transport) => self.transport = transport,
            Err(malformed) => return self.refuse(malformed),
        }
        self.forget();
        true
    }

    // ANCHOR: forget
    /// Ends a stage: the compiler has to take it that anything was written here meanwhile, and to read it again.
    #[inline(always)]
    fn forget(&mut self) {
        black_box(self);
    }
    // ANCHOR_END: forget

    #[inline(always)]
    fn refuse(&mut self, malformed: Malformed) -> bool {
        self.malformed = malformed;
        false
    }

    #[inline(always)]
    fn is_from_blocked_mac<P: Packet + ?Sized, T: Tables>(&mut self, frame: &P, tables: &T) -> bool {
        // A frame too short for an Ethernet header is nobody's; the parser refuses it next.
        let Some([_, _, _, _, _, _, mac @ ..]) = frame.read::<[u8; 12]>(0) else {
            return false;
        };
        self.lookups += 1;
        tables.is_blocked_mac(&mac)
    }

    // ANCHOR: judge
    #[inline(always)]
    fn judge<T: Tables>(&mut self, tables: &T, config: &Config) -> Reason {
        if self.headers.ip_version == 0 {
            return Reason::NotIp;
        }
        if self.has_source_in(&config.block, tables) {
            return Reason::Address;
        }
        let (part, fragments) = (self.upper.part, Fragments::from_config(config.fragments));
        match (part, fragments) {
            (Part::First | Part::Later, Fragments::Drop) => return Reason::Fragment,
            (Part::Later, Fragments::Track) => return self.judge_like_first_fragment(tables),
            _ => {}
        }
        let reason = self.judge_by_rules(tables, config);
        if (part, fragments) == (Part::First, Fragments::Track) {
            tables.keep_verdict_of_first_fragment(&self.fragment_key(), reason.verdict());
        }
        reason
    }

    #[inline(always)]
    fn judge_by_rules<T: Tables>(&mut self, tables: &T, config: &Config) -> Reason {
        let port_verdict = self.judge_ports(tables, config);
        if port_verdict == PortVerdict::Block {
            return Reason::Port;
        }
        if port_verdict == PortVerdict::BlockSource {
            return Reason::SourcePort;
        }
        if port_verdict == PortVerdict::Allow || self.has_source_in(&config.allow, tables) {
            return Reason::Allowed;
        }
        if config.limits != Config::UNLIMITED && self.exceeds_limit(tables, config) {
            return Reason::RateLimit;
        }
        if config.drop_by_default == 0 {
            return Reason::PassedByDefault;
        }
        if self.is_neighbour_discovery() {
            Reason::NeighbourDiscovery
        } else {
            Reason::DroppedByDefault
        }
    }
    // ANCHOR_END: judge

    #[inline(always)]
    fn judge_like_first_fragment<T: Tables>(&mut self, tables: &T) -> Reason {
        self.lookups += 1;
        match tables.verdict_of_first_fragment(&self.fragment_key()) {
            Some(Verdict::Pass) => Reason::FragmentFollows,
            Some(Verdict::Drop) | None => Reason::Fragment,
        }
    }

    #[inline(always)]
    fn fragment_key(&self) -> FragmentKey {
        FragmentKey::of(&self.headers, &self.upper)
    }

    // ANCHOR: source
    #[inline(always)]
    fn has_source_in<T: Tables>(&mut self, set: &PrefixSet, tables: &T) -> bool {
        if self.headers.ip_version == 4 {
            if set.is_empty_v4() {
                return false;
            }
            self.lookups += 1;
            set.contains_v4(tables, self.headers.source.ipv4())
        } else {
            if set.is_empty_v6() {
                return false;
            }
            self.lookups += 1;
            set.contains_v6(tables, &self.headers.source.ipv6())
        }
    }
    // ANCHOR_END: source

    // ANCHOR: ports
    #[inline(always)]
    fn judge_ports<T: Tables>(&mut self, tables: &T, config: &Config) -> PortVerdict {
        if !self.transport.has_ports || config.port_bits == 0 {
            return PortVerdict::None;
        }
        let class = Class::of(self.upper.protocol);
        let to = self.port_bits(tables, config, self.transport.destination_port);
        if to & ports::bit(Use::BlockDestination, class) != 0 {
            return PortVerdict::Block;
        }
        let block_source = ports::bit(Use::BlockSource, class);
        if config.port_bits & block_source != 0
            && self.port_bits(tables, config, self.transport.source_port) & block_source != 0
        {
            return PortVerdict::BlockSource;
        }
        if to & ports::bit(Use::AllowDestination, class) == 0 {
            PortVerdict::None
        } else {
            PortVerdict::Allow
        }
    }
    // ANCHOR_END: ports

    #[inline(always)]
    fn port_bits<T: Tables>(&mut self, tables: &T, config: &Config, port: u16) -> u32 {
        self.lookups += 1;
        tables.port_word(config.first_port + u32::from(port)).unwrap_or(0)
    }

    #[inline(always)]
    fn exceeds_limit<T: Tables>(&mut self, tables: &T, config: &Config) -> bool {
        let tokens = match config.limits {
            Config::BYTES => self.ip_len(),
            _ => 1,
        };
        self.lookups += 1;
        let cost_ns = config.limit.cost_ns(tokens);
        !tables.take_tokens(
            source_hash(&self.headers, config.bucket_key),
            cost_ns,
            config.limit.burst_ns,
        )
    }

    /// The length of the IP packet in bytes.
    #[inline(always)]
    fn ip_len(&self) -> u64 {
        // A jumbogram says 0, which must not make it cheap; it is longer than 65,535 bytes, or it would not be one.
        let payload_len = if self.headers.payload_end() == usize::MAX {
            1 << 16
        } else {
            u64::from(self.headers.payload_len)
        };
        (self.headers.payload_offset - self.headers.network_offset) as u64 + payload_len
    }

    #[inline(always)]
    fn is_neighbour_discovery(&self) -> bool {
        // Router and neighbour solicitation and advertisement, and redirect.
        self.headers.ip_version == 6 && self.upper.protocol == ICMPV6 && matches!(self.transport.icmp_type, 133..=137)
    }
}

/// What the ports of a packet say about it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PortVerdict {
    None,
    Allow,
    Block,
    BlockSource,
}

// ANCHOR: source_hash
/// A hash of who sends: the address of IPv4, the first 64 bits of IPv6, as a host there commands a whole /64.
#[inline(always)]
pub fn source_hash(headers: &Headers, key: [u64; 2]) -> u32 {
    let network = (u128::from_be_bytes(headers.source.ipv6()) >> 64) as u64;
    let [first, second] = key;
    let mut hash = (network ^ first).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The version only here: in the 64 bits before, each IPv4 address would be one /64, whatever the key.
    hash = (hash ^ hash >> 32)
        .wrapping_add(second ^ u64::from(headers.ip_version))
        .wrapping_mul(0xd6e8_feb8_6659_fd93);
    (hash >> 32) as u32
}
// ANCHOR_END: source_hash

#[cfg(target_os = "linux")]
mod pod {
    // SAFETY: `#[repr(C)]`, integers with the padding spelt out, any bits are valid.
    unsafe impl aya::Pod for super::Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FragmentKey {}
}
