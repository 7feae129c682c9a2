//! The policy as a program sees it.
//!
//! Plain data: every number is in host order, every list that is empty stands for a key that is not there and restricts
//! nothing. How it is written by people is the business of [`mod@crate::read`]; what it means, of [`crate::decide()`].

use std::{collections::BTreeMap, fmt, ops::RangeInclusive};

pub use lab02_xdp_firewall_common::{
    prefix_set::build::Prefix,
    value::{Mac, Rate},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::text;

/// The name that packets which are allowed as essential are counted under. No rule may have it.
pub const ESSENTIAL: &str = "essential";
/// The name that packets which no rule matched are counted under. No rule may have it.
pub const DEFAULT: &str = "default";
/// The name that malformed packets are counted under. No rule may have it.
pub const MALFORMED: &str = "malformed";

/// The priority of a rule that names none.
pub const DEFAULT_PRIORITY: u32 = 100;

/// A policy: what may enter and leave a host, and what its processes may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Policy of the enforcer")]
pub struct Policy {
    /// The version of the language: 1.
    #[serde(deserialize_with = "text::version")]
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// What the policy is called in logs and statistics: letters, digits, `.`, `_` and `-`.
    #[serde(deserialize_with = "text::name")]
    #[schemars(with = "text::NameSchema")]
    pub name: String,
    /// Whether packets are dropped, or only what would have been is reported.
    #[serde(default)]
    pub mode: Mode,
    /// Which of several rules that match decides.
    #[serde(default, rename = "match")]
    pub order: Order,
    /// What happens where no rule decides.
    #[serde(default)]
    pub defaults: Defaults,
    /// Whether what a host needs to be reached at all is allowed ahead of the rules.
    #[serde(default = "text::yes")]
    pub essentials: bool,
    /// Named sets of prefixes, for rules to refer to as `"@name"`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<text::NameSchema, Set>")]
    pub sets: BTreeMap<String, Set>,
    /// The rules, in the order of the file. See [`Policy::order()`] for the order in which they are asked.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// Whether packets are dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing is dropped; what would have been is counted and reported as `observe_drop`.
    #[default]
    Observe,
    /// What is blocked is dropped.
    Block,
}

/// A rule's own mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RuleMode {
    /// What this rule blocks is reported and passes, also while the policy blocks.
    Observe,
}

/// Which of several rules that match decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// The one with the lowest `priority`, and of equal ones the first in the file.
    #[default]
    Priority,
    /// The one with the most keys that restrict the packet.
    Specific,
}

/// What happens where no rule decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// To packets that come in and match no rule.
    #[serde(default)]
    pub ingress: DefaultVerdict,
    /// To packets that go out and match no rule.
    #[serde(default)]
    pub egress: DefaultVerdict,
    /// To packets that are no whole, well-formed packets.
    #[serde(default)]
    pub malformed: MalformedVerdict,
}

/// The verdict where no rule decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DefaultVerdict {
    /// A permissive policy.
    #[default]
    Allow,
    /// A strict policy.
    Deny,
}

/// The verdict on malformed packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MalformedVerdict {
    /// They are blocked (in observe mode: reported).
    #[default]
    Drop,
    /// They pass; no rule is asked.
    Allow,
}

/// A set of prefixes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("anyOf" = [{"required": ["prefixes"]}, {"required": ["file"]}]))]
pub struct Set {
    /// Those that stand in the policy itself.
    #[serde(default, deserialize_with = "text::prefixes")]
    #[schemars(with = "Vec<text::PrefixSchema>")]
    pub prefixes: Vec<Prefix>,
    /// A file of more, one a line; `#` starts a comment. Relative to the folder of the policy.
    #[serde(default)]
    #[schemars(length(min = 1))]
    pub file: Option<String>,
    /// What stood in `file` when the policy was read. Never written: see [`Policy::self_contained()`].
    #[serde(skip)]
    pub from_file: Vec<Prefix>,
}

impl Set {
    /// All prefixes: those in the policy, then those of the file.
    pub fn all(&self) -> impl Iterator<Item = &Prefix> + Clone {
        self.prefixes.iter().chain(&self.from_file)
    }

    /// How many prefixes it has, repeated ones included.
    pub fn len(&self) -> usize {
        self.prefixes.len() + self.from_file.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A rule: what a packet has to be like (every key that is there must match), and what happens to it then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What it is called in statistics, which survive a change of the policy under this name.
    #[serde(deserialize_with = "text::name")]
    #[schemars(with = "text::NameSchema")]
    pub name: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Lower is asked first; ties in the order of the file. Without effect under `match: specific`.
    #[serde(
        default = "text::default_priority",
        skip_serializing_if = "text::is_default_priority"
    )]
    pub priority: u32,
    /// `observe` reports what the rule blocks and lets it pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<RuleMode>,
    /// Packets that come in, or that go out; both if it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// The protocol above IP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// The packet's source address is in one of these.
    #[serde(default, with = "text::one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "text::OneOrMany<Address>")]
    pub source: Vec<Address>,
    /// The packet's destination address is in one of these.
    #[serde(default, with = "text::one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "text::OneOrMany<Address>")]
    pub destination: Vec<Address>,
    /// The packet's source port is in one of these. Later fragments have no ports.
    #[serde(default, with = "text::one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "text::OneOrMany<text::PortSchema>")]
    pub source_ports: Vec<Range<u16>>,
    /// The packet's destination port is in one of these. Later fragments have no ports.
    #[serde(default, with = "text::one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "text::OneOrMany<text::PortSchema>")]
    pub destination_ports: Vec<Range<u16>>,
    /// The type of an ICMP or ICMPv6 message; which of them, `protocol` says.
    #[serde(default, with = "text::one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "text::OneOrMany<text::ByteSchema>")]
    pub icmp_type: Vec<Range<u8>>,
    /// The code of an ICMP or ICMPv6 message.
    #[serde(default, with = "text::one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "text::OneOrMany<text::ByteSchema>")]
    pub icmp_code: Vec<Range<u8>>,
    /// The interface by which the packet comes in or goes out.
    #[serde(default, with = "text::one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "text::OneOrMany<text::InterfaceSchema>")]
    pub interface: Vec<String>,
    /// The sender's MAC address, of packets that come in.
    #[serde(default, with = "text::macs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "text::OneOrMany<text::MacSchema>")]
    pub mac: Vec<Mac>,
    /// The cgroup of the socket, or one above it: paths below the root of cgroup v2, without a slash at either end; the
    /// root itself is `/`.
    #[serde(default, with = "text::one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "text::OneOrMany<text::CgroupSchema>")]
    pub cgroup: Vec<String>,
    /// The user who created the socket.
    #[serde(default, with = "text::one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "text::OneOrMany<text::IdSchema>")]
    pub uid: Vec<Range<u32>>,
    /// The group of the process that used the socket. Known only for sockets that were seen at connect or send.
    #[serde(default, with = "text::one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "text::OneOrMany<text::IdSchema>")]
    pub gid: Vec<Range<u32>>,
    /// How the packet stands to the flows that are known.
    #[serde(default, with = "text::one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "text::OneOrMany<State>")]
    pub state: Vec<State>,
    /// What happens to the packet.
    pub action: Action,
}

/// Which way a packet goes, as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// It comes in.
    Ingress,
    /// It goes out.
    Egress,
}

impl Direction {
    /// The other one.
    #[must_use]
    pub fn reversed(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }
}

/// A protocol above IP: IPv4's protocol number, or what IPv6's extension headers lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP, for IPv4.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// DCCP.
    pub const DCCP: Self = Self(33);
    /// ICMPv6.
    pub const ICMPV6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);
    /// UDP-Lite.
    pub const UDP_LITE: Self = Self(136);

    /// Those that have names in a policy.
    pub const NAMED: [(&'static str, Self); 4] = [
        ("tcp", Self::TCP),
        ("udp", Self::UDP),
        ("icmp", Self::ICMP),
        ("icmpv6", Self::ICMPV6),
    ];

    /// Its name in a policy, if it has one.
    pub fn name(self) -> Option<&'static str> {
        Self::NAMED
            .into_iter()
            .find_map(|(name, protocol)| (protocol == self).then_some(name))
    }

    /// Whether its header starts with two ports that are read here: TCP, UDP, UDP-Lite, SCTP, DCCP.
    pub fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::UDP_LITE | Self::SCTP | Self::DCCP)
    }

    /// Whether its messages have a type and a code.
    pub fn is_icmp(self) -> bool {
        matches!(self, Self::ICMP | Self::ICMPV6)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

/// What `source` and `destination` name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// A prefix, or a single address.
    Prefix(Prefix),
    /// A set, by its name, without the `@`.
    Set(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(prefix) => f.write_str(&text::prefix(prefix)),
            Self::Set(name) => write!(f, "@{name}"),
        }
    }
}

/// Numbers from the first to the last, both included; the first is not above the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range<T> {
    /// The lowest.
    pub first: T,
    /// The highest.
    pub last: T,
}

impl<T: Copy + PartialOrd> Range<T> {
    /// One number.
    pub fn single(number: T) -> Self {
        Self {
            first: number,
            last: number,
        }
    }

    /// Whether `number` is one of them.
    pub fn contains(&self, number: T) -> bool {
        self.first <= number && number <= self.last
    }
}

impl<T> From<RangeInclusive<T>> for Range<T> {
    fn from(range: RangeInclusive<T>) -> Self {
        let (first, last) = range.into_inner();
        Self { first, last }
    }
}

impl<T: fmt::Display + PartialEq> fmt::Display for Range<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// How a packet stands to the flows that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It belongs to none, and may start one.
    New,
    /// It belongs to a flow that was allowed, in either direction.
    Established,
    /// It is an ICMP error that quotes a packet of a known flow.
    Related,
    /// It is TCP, belongs to no flow, and starts none: it has no SYN.
    Invalid,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::New, Self::Established, Self::Related, Self::Invalid];
}

/// What happens to a packet that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It passes.
    Allow,
    /// It is blocked.
    Block,
    /// It is recorded, and the next rules are asked.
    Log,
    /// Below the rate it passes, above it, it is blocked. Either is final.
    RateLimit(RateLimit),
}

/// A rate, the burst above it, and who shares them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "text::RateLimitText", into = "text::RateLimitText")]
#[schemars(with = "text::RateLimitText")]
pub struct RateLimit {
    /// Packets or bytes a second. Bytes are counted from the IP header on.
    pub rate: Rate,
    /// How many packets or bytes may come at once. At least one.
    pub burst: u64,
    /// Who shares a bucket.
    pub per: Per,
}

/// Who shares a bucket of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// All packets that the rule matches.
    #[default]
    Rule,
    /// Those of one source address (IPv6: of one /64).
    Source,
    /// Those of one flow, both directions.
    Flow,
}

impl Policy {
    /// A policy that observes, has no rules and allows everything: what is in force where there is none.
    pub fn allow_all(name: &str) -> Self {
        Self {
            version: 1,
            name: name.to_owned(),
            mode: Mode::Observe,
            order: Order::Priority,
            defaults: Defaults::default(),
            essentials: true,
            sets: BTreeMap::new(),
            rules: Vec::new(),
        }
    }

    /// The same policy without files: what stood in them stands in the policy, as it is sent to a daemon.
    #[must_use]
    pub fn self_contained(mut self) -> Self {
        for set in self.sets.values_mut() {
            set.prefixes.append(&mut set.from_file);
            set.file = None;
        }
        self
    }

    /// The verdict where no rule decides.
    pub fn default_for(&self, direction: Direction) -> DefaultVerdict {
        match direction {
            Direction::Ingress => self.defaults.ingress,
            Direction::Egress => self.defaults.egress,
        }
    }

    /// The prefixes that an address of a rule stands for; none for a set that does not exist, which no policy that was
    /// checked names.
    pub fn prefixes<'a>(&'a self, address: &'a Address) -> impl Iterator<Item = &'a Prefix> + Clone {
        let (single, set) = match address {
            Address::Prefix(prefix) => (Some(prefix), None),
            Address::Set(name) => (None, self.sets.get(name)),
        };
        single.into_iter().chain(set.into_iter().flat_map(Set::all))
    }
}

impl Rule {
    /// A rule that matches everything.
    pub fn new(name: &str, action: Action) -> Self {
        Self {
            name: name.to_owned(),
            description: None,
            priority: DEFAULT_PRIORITY,
            mode: None,
            direction: None,
            protocol: None,
            source: Vec::new(),
            destination: Vec::new(),
            source_ports: Vec::new(),
            destination_ports: Vec::new(),
            icmp_type: Vec::new(),
            icmp_code: Vec::new(),
            interface: Vec::new(),
            mac: Vec::new(),
            cgroup: Vec::new(),
            uid: Vec::new(),
            gid: Vec::new(),
            state: Vec::new(),
            action,
        }
    }

    /// Whether it asks who sends: its keys name a cgroup, a user or a group.
    pub fn names_identity(&self) -> bool {
        !(self.cgroup.is_empty() && self.uid.is_empty() && self.gid.is_empty())
    }

    /// Whether it is asked about packets that go this way.
    pub fn covers(&self, direction: Direction) -> bool {
        self.direction.is_none_or(|own| own == direction)
    }
}
