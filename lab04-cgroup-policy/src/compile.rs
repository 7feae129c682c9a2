//! Turns a policy into what the kernel looks up: tuples and their entries.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map},
    fmt,
    hash::Hash,
    net::IpAddr,
};

use enforcer_policy::model::{
    Action, Address, DefaultVerdict, Direction, MalformedVerdict, Policy, Prefix, Range, Rule,
};
use lab04_cgroup_policy_common::{
    classifier::{
        BLOCKS, Config, EGRESS, Entry, INGRESS, MAX_TUPLES, NO_RANK, OBSERVES, RESERVED_RULES, Tuple, Tuples,
    },
    key::{KeyV4, KeyV6},
};

/// A policy as the kernel gets it, but for slots and counter numbers: a rule's number is its index in
/// [`Compiled::rules`], behind those of [`RESERVED_RULES`].
#[derive(Clone, Debug)]
pub struct Compiled {
    /// All but the entries; its masks name no slot yet.
    pub config: Config,
    /// The entries of IPv4.
    pub v4: Vec<(KeyV4, Entry)>,
    /// The entries of IPv6.
    pub v6: Vec<(KeyV6, Entry)>,
    /// The names of the rules, in the order of the policy.
    pub rules: Vec<String>,
}

/// Why a policy cannot be enforced here. Each text names the cause and the mend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// A rule asks for something that this lab does not look at.
    Key {
        /// The rule.
        rule: String,
        /// The key.
        key: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// A rule wants something done that this lab does not do.
    Action {
        /// The rule.
        rule: String,
        /// The action.
        action: &'static str,
    },
    /// A rule alone has more entries than there is room for.
    Rule {
        /// The rule.
        rule: String,
        /// How many entries it takes.
        entries: u128,
        /// How many there is room for.
        room: u32,
    },
    /// All rules together have more entries than there is room for.
    Entries {
        /// 4 or 6.
        ip_version: u8,
        /// How many they take.
        entries: usize,
        /// How many there is room for.
        room: u32,
    },
    /// There are more rules than counters for them.
    Rules {
        /// How many there are.
        rules: usize,
        /// How many there is room for.
        room: u32,
    },
    /// Too many combinations of fields occur.
    Tuples {
        /// 4 or 6.
        ip_version: u8,
        /// Which way the packets go.
        direction: Direction,
        /// How many there are.
        tuples: usize,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key { rule, key, reason } => {
                write!(f, "rule {rule}: `{key}` is not enforced here: {reason}; remove it")
            }
            Self::Action { rule, action } => write!(
                f,
                "rule {rule}: the action `{action}` is not enforced here, only allow and block are; lab 06 does it"
            ),
            Self::Rule { rule, entries, room } => write!(
                f,
                "rule {rule} takes {entries} entries, one for each combination of its prefixes and ports, and there is \
                 room for {room}; write prefixes and no port ranges, or give --max-entries"
            ),
            Self::Entries {
                ip_version,
                entries,
                room,
            } => write!(
                f,
                "the rules take {entries} entries for IPv{ip_version}, and there is room for {room}; give --max-entries \
                 {entries}"
            ),
            Self::Rules { rules, room } => write!(
                f,
                "the policy has {rules} rules, and there is room for {room}; give --max-entries {rules}"
            ),
            Self::Tuples {
                ip_version,
                direction,
                tuples,
            } => write!(
                f,
                "the rules on IPv{ip_version} packets going {} have {tuples} combinations of fields and prefix lengths, and \
                 each costs a look-up; {MAX_TUPLES} are the most: use fewer prefix lengths",
                match direction {
                    Direction::Egress => "out",
                    Direction::Ingress => "in",
                }
            ),
        }
    }
}

/// Compiles a policy for tables with room for `max_entries` entries of each version of IP.
pub fn compile(policy: &Policy, max_entries: u32) -> Result<Compiled, Vec<Refusal>> {
    let mut refusals: Vec<Refusal> = policy.rules.iter().flat_map(unsupported).collect();
    if policy.rules.len() > max_entries as usize {
        refusals.push(Refusal::Rules {
            rules: policy.rules.len(),
            room: max_entries,
        });
    }
    let mut v4 = Family::default();
    let mut v6 = Family::default();
    for (rank, index) in policy.order().into_iter().enumerate() {
        let rule = &policy.rules[index];
        let parts = Parts::of(policy, rule);
        if parts.entries() > u128::from(max_entries) {
            refusals.push(Refusal::Rule {
                rule: rule.name.clone(),
                entries: parts.entries(),
                room: max_entries,
            });
        } else if refusals.is_empty() {
            let entry = Entry {
                rank: rank as u32,
                rule: RESERVED_RULES + index as u32,
                flags: flags(rule),
            };
            parts.add_to(&mut v4, &mut v6, Way::of(rule), entry);
        }
    }
    if !refusals.is_empty() {
        return Err(refusals);
    }
    for (ip_version, entries) in [(4, v4.entries()), (6, v6.entries())] {
        if entries > max_entries as usize {
            refusals.push(Refusal::Entries {
                ip_version,
                entries,
                room: max_entries,
            });
        }
    }
    let config = Config {
        v4: v4.lists(4, &mut refusals),
        v6: v6.lists(6, &mut refusals),
        default_flags: [Direction::Egress, Direction::Ingress].map(|direction| match policy.default_for(direction) {
            DefaultVerdict::Allow => 0,
            DefaultVerdict::Deny => BLOCKS,
        }),
        malformed_flags: match policy.defaults.malformed {
            MalformedVerdict::Drop => BLOCKS,
            MalformedVerdict::Allow => 0,
        },
        essentials: u32::from(policy.essentials),
    };
    if !refusals.is_empty() {
        return Err(refusals);
    }
    Ok(Compiled {
        config,
        v4: v4.into_entries(),
        v6: v6.into_entries(),
        rules: policy.rules.iter().map(|rule| rule.name.clone()).collect(),
    })
}

/// What a rule asks for that this lab cannot give.
fn unsupported(rule: &Rule) -> Vec<Refusal> {
    let key = |is_there: bool, key: &'static str, reason: &'static str| {
        is_there.then(|| Refusal::Key {
            rule: rule.name.clone(),
            key,
            reason,
        })
    };
    let later = "lab 06 does it";
    let action = match rule.action {
        Action::Allow | Action::Block => None,
        Action::Log => Some("log"),
        Action::RateLimit(_) => Some("rate_limit"),
    };
    [
        key(!rule.icmp_type.is_empty(), "icmp_type", later),
        key(!rule.icmp_code.is_empty(), "icmp_code", later),
        key(!rule.interface.is_empty(), "interface", later),
        key(
            !rule.mac.is_empty(),
            "mac",
            "a cgroup's packets have no Ethernet header",
        ),
        key(
            !rule.cgroup.is_empty(),
            "cgroup",
            "the whole policy is for the cgroup of --cgroup",
        ),
        key(!rule.uid.is_empty(), "uid", later),
        key(!rule.gid.is_empty(), "gid", later),
        key(
            !rule.state.is_empty(),
            "state",
            "this lab remembers no flows; lab 06 does",
        ),
    ]
    .into_iter()
    .flatten()
    .chain(action.map(|action| Refusal::Action {
        rule: rule.name.clone(),
        action,
    }))
    .collect()
}

fn flags(rule: &Rule) -> u32 {
    let blocks = if rule.action == Action::Block { BLOCKS } else { 0 };
    let observes = if rule.mode.is_some() { OBSERVES } else { 0 };
    blocks | observes
}

/// Which packets a tuple is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Way {
    Both,
    Egress,
    Ingress,
}

impl Way {
    fn of(rule: &Rule) -> Self {
        match rule.direction {
            None => Self::Both,
            Some(Direction::Egress) => Self::Egress,
            Some(Direction::Ingress) => Self::Ingress,
        }
    }

    fn covers(self, direction: Direction) -> bool {
        match self {
            Self::Both => true,
            Self::Egress => direction == Direction::Egress,
            Self::Ingress => direction == Direction::Ingress,
        }
    }
}

/// A rule's fields, multiplied out: an entry for each combination.
struct Parts {
    sources_v4: Vec<([u8; 4], u8)>,
    destinations_v4: Vec<([u8; 4], u8)>,
    sources_v6: Vec<([u8; 16], u8)>,
    destinations_v6: Vec<([u8; 16], u8)>,
    /// Port and mask.
    source_ports: Vec<(u16, u16)>,
    destination_ports: Vec<(u16, u16)>,
    /// Number and mask.
    protocol: (u8, u8),
}

impl Parts {
    fn of(policy: &Policy, rule: &Rule) -> Self {
        let (sources_v4, sources_v6) = prefixes(policy, &rule.source);
        let (destinations_v4, destinations_v6) = prefixes(policy, &rule.destination);
        Self {
            sources_v4,
            destinations_v4,
            sources_v6,
            destinations_v6,
            source_ports: ports(&rule.source_ports),
            destination_ports: ports(&rule.destination_ports),
            protocol: rule.protocol.map_or((0, 0), |protocol| (protocol.0, u8::MAX)),
        }
    }

    fn entries(&self) -> u128 {
        let addresses = self.sources_v4.len() as u128 * self.destinations_v4.len() as u128
            + self.sources_v6.len() as u128 * self.destinations_v6.len() as u128;
        addresses * self.source_ports.len() as u128 * self.destination_ports.len() as u128
    }

    fn add_to(&self, v4: &mut Family<KeyV4>, v6: &mut Family<KeyV6>, way: Way, entry: Entry) {
        let (protocol, protocol_mask) = self.protocol;
        for (source_port, source_port_mask) in self.source_ports.iter().copied() {
            for (destination_port, destination_port_mask) in self.destination_ports.iter().copied() {
                for (source, source_len) in self.sources_v4.iter().copied() {
                    for (destination, destination_len) in self.destinations_v4.iter().copied() {
                        let mask = KeyV4 {
                            source: mask_v4(source_len),
                            destination: mask_v4(destination_len),
                            source_port: source_port_mask,
                            destination_port: destination_port_mask,
                            protocol: protocol_mask,
                            ..KeyV4::default()
                        };
                        let key = KeyV4 {
                            source,
                            destination,
                            source_port,
                            destination_port,
                            protocol,
                            ..KeyV4::default()
                        };
                        v4.add(mask, way, key, entry);
                    }
                }
                for (source, source_len) in self.sources_v6.iter().copied() {
                    for (destination, destination_len) in self.destinations_v6.iter().copied() {
                        let mask = KeyV6 {
                            source: mask_v6(source_len),
                            destination: mask_v6(destination_len),
                            source_port: source_port_mask,
                            destination_port: destination_port_mask,
                            protocol: protocol_mask,
                            ..KeyV6::default()
                        };
                        let key = KeyV6 {
                            source,
                            destination,
                            source_port,
                            destination_port,
                            protocol,
                            ..KeyV6::default()
                        };
                        v6.add(mask, way, key, entry);
                    }
                }
            }
        }
    }
}

/// The prefixes that addresses of a rule stand for, each once; any address for none.
#[expect(clippy::type_complexity, reason = "two lists of addresses with lengths")]
fn prefixes(policy: &Policy, addresses: &[Address]) -> (Vec<([u8; 4], u8)>, Vec<([u8; 16], u8)>) {
    if addresses.is_empty() {
        return (vec![([0; 4], 0)], vec![([0; 16], 0)]);
    }
    let all: BTreeSet<&Prefix> = addresses.iter().flat_map(|address| policy.prefixes(address)).collect();
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for prefix in all {
        match prefix.address() {
            IpAddr::V4(address) => v4.push((address.octets(), prefix.len())),
            IpAddr::V6(address) => v6.push((address.octets(), prefix.len())),
        }
    }
    (v4, v6)
}

/// Every single port of some ranges, with the mask of a fixed port; any port for none.
fn ports(ranges: &[Range<u16>]) -> Vec<(u16, u16)> {
    if ranges.is_empty() {
        return vec![(0, 0)];
    }
    let all: BTreeSet<u16> = ranges.iter().flat_map(|range| range.first..=range.last).collect();
    all.into_iter().map(|port| (port, u16::MAX)).collect()
}

fn mask_v4(len: u8) -> [u8; 4] {
    u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0).to_be_bytes()
}

fn mask_v6(len: u8) -> [u8; 16] {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0).to_be_bytes()
}

/// What is asked of both kinds of key here.
trait TableKey: Copy + Default + Ord + Hash {
    fn set_tuple(&mut self, tuple: u8);
    fn fixes_port(&self) -> bool;
    fn fixes_source(&self) -> bool;
}

impl TableKey for KeyV4 {
    fn set_tuple(&mut self, tuple: u8) {
        self.tuple = tuple;
    }

    fn fixes_port(&self) -> bool {
        self.source_port != 0 || self.destination_port != 0
    }

    fn fixes_source(&self) -> bool {
        self.source_port != 0 || self.source != [0; 4]
    }
}

impl TableKey for KeyV6 {
    fn set_tuple(&mut self, tuple: u8) {
        self.tuple = tuple;
    }

    fn fixes_port(&self) -> bool {
        self.source_port != 0 || self.destination_port != 0
    }

    fn fixes_source(&self) -> bool {
        self.source_port != 0 || self.source != [0; 16]
    }
}

/// The tuples of one version of IP, by their masks.
struct Family<K> {
    tuples: BTreeMap<(K, Way), Build<K>>,
}

impl<K> Default for Family<K> {
    fn default() -> Self {
        Self {
            tuples: BTreeMap::new(),
        }
    }
}

struct Build<K> {
    /// The best rank among its entries.
    best_rank: u32,
    entries: HashMap<K, Entry>,
}

impl<K: TableKey> Family<K> {
    /// Adds an entry; of rules that look alike, the one that is asked first stays.
    fn add(&mut self, mask: K, way: Way, key: K, entry: Entry) {
        let tuple = self.tuples.entry((mask, way)).or_insert_with(|| Build {
            best_rank: NO_RANK,
            entries: HashMap::new(),
        });
        tuple.best_rank = tuple.best_rank.min(entry.rank);
        match tuple.entries.entry(key) {
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(entry);
            }
            hash_map::Entry::Occupied(mut occupied) => {
                if entry.rank < occupied.get().rank {
                    occupied.insert(entry);
                }
            }
        }
    }

    fn entries(&self) -> usize {
        self.tuples.values().map(|tuple| tuple.entries.len()).sum()
    }

    /// By direction, the tuples to look up, the best first.
    fn lists(&self, ip_version: u8, refusals: &mut Vec<Refusal>) -> [Tuples<K>; 2] {
        let mut lists = [Tuples::none(), Tuples::none()];
        for (index, direction) in [(EGRESS, Direction::Egress), (INGRESS, Direction::Ingress)] {
            let mut tuples: Vec<Tuple<K>> = Vec::new();
            for (number, ((mask, way), build)) in self.tuples.iter().enumerate() {
                if way.covers(direction) {
                    let mut mask = *mask;
                    mask.set_tuple(number as u8);
                    tuples.push(Tuple {
                        mask,
                        best_rank: build.best_rank,
                    });
                }
            }
            if tuples.len() > MAX_TUPLES {
                refusals.push(Refusal::Tuples {
                    ip_version,
                    direction,
                    tuples: tuples.len(),
                });
                continue;
            }
            tuples.sort_by_key(|tuple| tuple.best_rank);
            let list = &mut lists[index];
            for (place, tuple) in tuples.into_iter().enumerate() {
                let bit = 1 << place;
                list.tuples[place] = tuple;
                list.occupied |= bit;
                if tuple.mask.fixes_port() {
                    list.with_ports |= bit;
                }
                if tuple.mask.fixes_source() {
                    list.with_source |= bit;
                    list.best_source_rank = list.best_source_rank.min(tuple.best_rank);
                }
            }
        }
        lists
    }

    fn into_entries(self) -> Vec<(K, Entry)> {
        let tuples = self.tuples.into_values().enumerate();
        let entries = tuples.flat_map(|(number, tuple)| {
            tuple.entries.into_iter().map(move |(mut key, entry)| {
                key.set_tuple(number as u8);
                (key, entry)
            })
        });
        entries.collect()
    }
}
