//! Finds the rule that decides about a packet.
//!
//! Rules that fix the same fields, prefixes of the same length included, form a *tuple*: among them, the rule for a packet
//! is found by one look-up of what the packet has in those fields. So it takes as many look-ups as tuples occur, however
//! many rules there are. Each rule has a *rank*, its place in the order in which the policy asks its rules; the lowest rank
//! that matches decides. Tuples are looked up in the order of their best rank, and as soon as what was found is better than
//! the best that the next tuple could offer, the search is over.
//!
//! This is tuple space search: V. Srinivasan, S. Suri, G. Varghese, "Packet Classification using Tuple Space Search", 1999.

use lab01_count_packets_common::headers::{Address, Headers};

use crate::{
    destination::Destination,
    key::{Key, KeyV4, KeyV6},
};

/// How many tuples there are at most for each version of IP and direction.
pub const MAX_TUPLES: usize = 32;

/// The counter number of what is essential.
pub const ESSENTIAL_RULE: u32 = 0;
/// The counter number of what no rule matched.
pub const DEFAULT_RULE: u32 = 1;
/// The counter number of what is malformed.
pub const MALFORMED_RULE: u32 = 2;
/// Counter numbers of a policy's own rules start here.
pub const RESERVED_RULES: u32 = 3;

/// No rank, and worse than all.
pub const NO_RANK: u32 = u32::MAX;

/// The way out, as an index.
pub const EGRESS: usize = 0;
/// The way in.
pub const INGRESS: usize = 1;

/// What stands in the tables: the rule that a look-up finds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the order of the policy; lower is asked first.
    pub rank: u32,
    /// Its counter number.
    pub rule: u32,
    /// [`BLOCKS`], [`OBSERVES`].
    pub flags: u32,
}

/// The rule blocks what it matches.
pub const BLOCKS: u32 = 1;
/// The rule only reports what it blocks.
pub const OBSERVES: u32 = 2;

const _: () = assert!(size_of::<Entry>() == 12);

/// The fields that the rules of a tuple fix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple<K> {
    /// The fixed bits, and which tuple of which slot it is.
    pub mask: K,
    /// The best rank among its rules.
    pub best_rank: u32,
}

/// The tuples of one version of IP and one direction, in the order of their best rank.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuples<K> {
    /// The tuples; what lies behind the last is not looked at.
    pub tuples: [Tuple<K>; MAX_TUPLES],
    /// A bit for each that there is.
    pub occupied: u32,
    /// A bit for each that fixes a port: what has no ports is not looked up there.
    pub with_ports: u32,
    /// A bit for each that fixes bits of the source address or port, which a hook on a system call does not know yet.
    pub with_source: u32,
    /// The best rank among the rules of those.
    pub best_source_rank: u32,
}

/// A policy, but for its entries.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// IPv4, by direction.
    pub v4: [Tuples<KeyV4>; 2],
    /// IPv6, by direction.
    pub v6: [Tuples<KeyV6>; 2],
    /// By direction, [`BLOCKS`] if what no rule matches is blocked.
    pub default_flags: [u32; 2],
    /// [`BLOCKS`] if what is malformed is blocked.
    pub malformed_flags: u32,
    /// 1 if what is essential is allowed.
    pub essentials: u32,
}

// SAFETY: `#[repr(C)]`, integers at multiples of their size, no padding, any bits are valid.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Entry {}
// SAFETY: as above.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Config {}

const _: () = {
    assert!(size_of::<Tuples<KeyV4>>() == MAX_TUPLES * 20 + 16);
    assert!(size_of::<Tuples<KeyV6>>() == MAX_TUPLES * 44 + 16);
    assert!(size_of::<Config>() == 2 * (MAX_TUPLES * 64 + 32) + 16);
};

impl<K: Default + Copy> Tuples<K> {
    /// None.
    pub fn none() -> Self {
        let tuple = Tuple {
            mask: K::default(),
            best_rank: 0,
        };
        Self {
            tuples: [tuple; MAX_TUPLES],
            occupied: 0,
            with_ports: 0,
            with_source: 0,
            best_source_rank: NO_RANK,
        }
    }
}

/// Where entries come from: maps in the kernel, hash tables on the host.
pub trait Tables {
    /// The entry under this key.
    fn entry_v4(&self, key: &KeyV4) -> Option<Entry>;

    /// As [`Tables::entry_v4`], for IPv6.
    fn entry_v6(&self, key: &KeyV6) -> Option<Entry>;
}

/// What rules ask of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// 4 or 6; 0 for what is neither.
    pub ip_version: u8,
    /// The protocol above IP.
    pub protocol: u8,
    /// The type of an ICMP or ICMPv6 message; else 0.
    pub icmp_type: u8,
    /// Whether it has ports: later fragments have none.
    pub has_ports: bool,
    /// Source and destination port, in host order; 0 without ports.
    pub ports: [u16; 2],
    /// The source address.
    pub source: Address,
    /// The destination address.
    pub destination: Address,
}

/// Who decided, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The counter number of the rule.
    pub rule: u32,
    /// [`BLOCKS`], [`OBSERVES`].
    pub flags: u32,
}

impl Decision {
    /// It is essential, and passes.
    pub const ESSENTIAL: Self = Self {
        rule: ESSENTIAL_RULE,
        flags: 0,
    };

    /// It is malformed.
    #[inline(always)]
    pub fn malformed(config: &Config) -> Self {
        Self {
            rule: MALFORMED_RULE,
            flags: config.malformed_flags,
        }
    }

    /// Whether it is blocked, or would be if the mode were to block.
    #[inline(always)]
    pub fn blocks(self) -> bool {
        self.flags & BLOCKS != 0
    }

    /// Whether what it blocks is only reported, whatever the mode.
    #[inline(always)]
    pub fn observes(self) -> bool {
        self.flags & OBSERVES != 0
    }
}

/// ICMPv6, RFC 4443.
const ICMPV6: u8 = 58;
/// UDP, RFC 768.
const UDP: u8 = 17;

/// What of a packet is essential.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Essential {
    /// Nothing.
    Not,
    /// It passes, as no rule of this lab can name it.
    Passes,
    /// It is the DHCP client's, and passes unless a rule that names a port decides.
    UnlessByPort,
}

impl Packet {
    /// What headers say of it.
    #[inline(always)]
    pub fn new(headers: &Headers, protocol: u8, icmp_type: u8, has_ports: bool, ports: [u16; 2]) -> Self {
        Self {
            ip_version: headers.ip_version,
            protocol,
            icmp_type,
            has_ports,
            ports,
            source: headers.source,
            destination: headers.destination,
        }
    }

    /// Decides about it.
    #[inline(always)]
    pub fn decide<T: Tables>(&self, tables: &T, config: &Config, direction: usize) -> Decision {
        // ANCHOR: decide
        let essential = self.essential(config, direction);
        if essential == Essential::Passes {
            return Decision::ESSENTIAL;
        }
        let by_port_only = essential == Essential::UnlessByPort;
        let found = if self.ip_version == 4 {
            let key = KeyV4::new(self.source, self.destination, self.ports, self.protocol);
            let tuples = of(&config.v4, direction);
            tuples.find(&key, tuples.asked(self.has_ports, by_port_only), |key| {
                tables.entry_v4(key)
            })
        } else {
            let key = KeyV6::new(self.source, self.destination, self.ports, self.protocol);
            let tuples = of(&config.v6, direction);
            tuples.find(&key, tuples.asked(self.has_ports, by_port_only), |key| {
                tables.entry_v6(key)
            })
        };
        if found.rank != NO_RANK {
            return Decision {
                rule: found.rule,
                flags: found.flags,
            };
        }
        if by_port_only {
            return Decision::ESSENTIAL;
        }
        Decision {
            rule: DEFAULT_RULE,
            flags: if direction == EGRESS {
                config.default_flags[EGRESS]
            } else {
                config.default_flags[INGRESS]
            },
        }
        // ANCHOR_END: decide
    }

    #[inline(always)]
    fn essential(&self, config: &Config, direction: usize) -> Essential {
        // ANCHOR: essential
        if config.essentials == 0 {
            return Essential::Not;
        }
        if is_loopback(self.ip_version, &self.destination) {
            return Essential::Passes;
        }
        if self.ip_version == 6 && self.protocol == ICMPV6 {
            return match self.icmp_type {
                // Neighbour discovery (RFC 4861), multicast listener discovery (RFC 2710, RFC 3810).
                133..=137 | 130..=132 | 143 => Essential::Passes,
                _ => Essential::Not,
            };
        }
        if self.protocol == UDP && self.has_ports {
            // RFC 2131 section 4.1, RFC 8415 section 7.2.
            let [client, server] = if self.ip_version == 4 { [68, 67] } else { [546, 547] };
            let expected = if direction == EGRESS {
                [client, server]
            } else {
                [server, client]
            };
            if self.ports == expected {
                return Essential::UnlessByPort;
            }
        }
        Essential::Not
        // ANCHOR_END: essential
    }
}

/// Whether an address is one of the loopback interface: 127.0.0.0/8, `::1`.
#[inline(always)]
pub fn is_loopback(ip_version: u8, address: &Address) -> bool {
    if ip_version == 4 {
        let [first, ..] = address.ipv4();
        first == 127
    } else {
        *address == LOOPBACK_V6
    }
}

const LOOPBACK_V6: Address = Address::from_ipv6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
/// `0.0.0.0` and `::`, which a socket connects to when it means this host.
const UNSPECIFIED: Address = Address::from_ipv6([0; 16]);

impl Destination {
    /// Decides about it, if that can be done before there is a packet: whatever its source turns out to be, it would be
    /// blocked, and by this rule. `None` leaves it to the hook on packets.
    #[inline(always)]
    pub fn decide<T: Tables>(&self, tables: &T, config: &Config) -> Option<Decision> {
        // ANCHOR: before_the_packet
        if config.essentials != 0 && self.may_be_essential() {
            return None;
        }
        let ports = [0, self.port];
        let has_ports = matches!(self.protocol, 6 | 17 | 33 | 132 | 136);
        let (found, best_source_rank) = if self.ip_version == 4 {
            let key = KeyV4::new(UNSPECIFIED, self.address, ports, self.protocol);
            let tuples = of(&config.v4, EGRESS);
            let asked = tuples.asked(has_ports, false) & !tuples.with_source;
            (
                tuples.find(&key, asked, |key| tables.entry_v4(key)),
                tuples.best_source_rank,
            )
        } else {
            let key = KeyV6::new(UNSPECIFIED, self.address, ports, self.protocol);
            let tuples = of(&config.v6, EGRESS);
            let asked = tuples.asked(has_ports, false) & !tuples.with_source;
            (
                tuples.find(&key, asked, |key| tables.entry_v6(key)),
                tuples.best_source_rank,
            )
        };
        if best_source_rank < found.rank {
            return None;
        }
        let decision = if found.rank == NO_RANK {
            Decision {
                rule: DEFAULT_RULE,
                flags: config.default_flags[EGRESS],
            }
        } else {
            Decision {
                rule: found.rule,
                flags: found.flags,
            }
        };
        (decision.flags == BLOCKS).then_some(decision)
        // ANCHOR_END: before_the_packet
    }

    /// Whether what is sent there may be essential: it goes to this host, or it is the DHCP client's, which its source port
    /// tells.
    #[inline(always)]
    fn may_be_essential(&self) -> bool {
        if self.address == UNSPECIFIED || is_loopback(self.ip_version, &self.address) {
            return true;
        }
        let dhcp_server = if self.ip_version == 4 { 67 } else { 547 };
        self.protocol == UDP && self.port == dhcp_server
    }
}

/// One of two, without a bounds check that could fail.
#[inline(always)]
fn of<T>([egress, ingress]: &[T; 2], direction: usize) -> &T {
    if direction == EGRESS { egress } else { ingress }
}

impl<K: Key> Tuples<K> {
    /// Those that can match: a bit for each.
    #[inline(always)]
    fn asked(&self, has_ports: bool, by_port_only: bool) -> u32 {
        if by_port_only {
            self.occupied & self.with_ports
        } else if has_ports {
            self.occupied
        } else {
            self.occupied & !self.with_ports
        }
    }

    /// The best entry for `key` in the tuples of `asked`; its rank is [`NO_RANK`] if there is none.
    #[inline(always)]
    fn find(&self, key: &K, asked: u32, entry: impl Fn(&K) -> Option<Entry>) -> Entry {
        // ANCHOR: find
        let mut best = Entry {
            rank: NO_RANK,
            rule: 0,
            flags: 0,
        };
        let mut left = asked;
        for tuple in &self.tuples {
            if left == 0 {
                break;
            }
            if left & 1 != 0 {
                if best.rank < tuple.best_rank {
                    break;
                }
                if let Some(found) = entry(&key.under(&tuple.mask))
                    && found.rank < best.rank
                {
                    best = found;
                }
            }
            left >>= 1;
        }
        best
        // ANCHOR_END: find
    }
}
