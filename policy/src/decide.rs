//! What a policy means: the reference that every classifier is compared with.
//!
//! Obviously right rather than fast: rules are walked one by one, sets are searched one prefix after the other. It
//! knows no eBPF and no tables. Where this and a page of the guide disagree, one of them has to be mended.

use std::{cmp::Reverse, net::IpAddr};

use serde::Serialize;

use crate::model::{
    Action, Address, DEFAULT, DefaultVerdict, Direction, ESSENTIAL, MALFORMED, Mac, MalformedVerdict, Mode, Order,
    Policy, Protocol, Range, Rule, RuleMode, State,
};

/// A packet at a hook, as its headers say; numbers are in host order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Packet {
    /// Which way it goes. A forwarded packet is ingress where it enters and egress where it leaves.
    pub direction: Direction,
    /// The name of the interface by which it does.
    pub interface: String,
    /// The sender's MAC address; only of packets that come in, and only at hooks that see it.
    pub source_mac: Option<Mac>,
    /// What it carries.
    pub content: Content,
}

/// What a packet carries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// It is not what the standards want it to be.
    Malformed,
    /// A frame that is neither IPv4 nor IPv6: ARP, EAPOL, LLDP.
    NotIp,
    /// IPv4 or IPv6.
    Ip(Ip),
}

/// An IPv4 or IPv6 packet. Source and destination are of the same version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ip {
    /// The source address in the header.
    pub source: IpAddr,
    /// The destination address in the header.
    pub destination: IpAddr,
    /// IPv4's protocol, or what IPv6's extension headers lead to.
    pub protocol: Protocol,
    /// What the transport header says.
    pub transport: Transport,
}

/// What the transport header says, as far as rules ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Of a protocol with ports ([`Protocol::has_ports`]).
    Ports {
        /// The source port.
        source: u16,
        /// The destination port.
        destination: u16,
    },
    /// Of ICMP or ICMPv6.
    Icmp {
        /// The message's type.
        kind: u8,
        /// Its code.
        code: u8,
    },
    /// Another protocol, or a later fragment, which has no transport header: no port and no ICMP key matches it.
    None,
}

/// What the flow table knows about a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Flow {
    /// Nothing, and it may start a flow: it is no TCP, or TCP with SYN. Also where there is no flow table.
    #[default]
    New,
    /// It belongs to a flow, in either direction.
    Established(Box<Originator>),
    /// It is an ICMP error that quotes a packet of a flow.
    Related(Box<Originator>),
    /// Nothing, and it cannot start one: TCP without SYN.
    Invalid,
}

/// The packet that started a flow, as it was seen then, and who sent or received it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Originator {
    /// That packet.
    pub packet: Packet,
    /// Whose socket.
    pub identity: Identity,
}

impl Flow {
    /// Its state, as rules name it.
    pub fn state(&self) -> State {
        match self {
            Self::New => State::New,
            Self::Established(_) => State::Established,
            Self::Related(_) => State::Related,
            Self::Invalid => State::Invalid,
        }
    }

    fn originator(&self) -> Option<&Originator> {
        match self {
            Self::Established(originator) | Self::Related(originator) => Some(originator),
            Self::New | Self::Invalid => None,
        }
    }
}

/// Whose socket a packet is of, as far as it is known where the decision is made. What is not known matches no rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The path of its cgroup below the root of cgroup v2, without slashes at its ends; empty for the root itself.
    pub cgroup: Option<String>,
    /// The user who created it.
    pub uid: Option<u32>,
    /// The group of the process that created it.
    pub gid: Option<u32>,
}

impl Identity {
    /// Of a packet that has no socket, or before its socket is known.
    pub const UNKNOWN: Self = Self {
        cgroup: None,
        uid: None,
        gid: None,
    };
}

/// What a policy says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It passes.
    Allow,
    /// It is blocked.
    Block,
    /// It passes as long as the rule's rate is not exceeded.
    RateLimit,
}

/// What happens to a packet in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It passes.
    Pass,
    /// It is dropped.
    Drop,
    /// It passes, and is reported as one that would have been dropped.
    ObserveDrop,
}

/// Who decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DecidedBy {
    /// The rule with this index in [`Policy::rules`].
    Rule(usize),
    /// It is essential.
    Essential,
    /// No rule matched.
    Default,
    /// It is malformed.
    Malformed,
}

/// Why it was decided so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A rule matched the packet.
    Rule,
    /// A rule matched the packet that started the flow.
    Flow,
    /// A rule matched the packet with source and destination exchanged: TCP without SYN and without a flow is allowed
    /// if either orientation would be.
    ReverseOrientation,
    /// Nothing matched.
    Default,
    /// It is malformed.
    Malformed,
    /// It came or goes by the loopback interface.
    Loopback,
    /// It is neither IPv4 nor IPv6.
    NotIp,
    /// Neighbour and router discovery of IPv6.
    NeighbourDiscovery,
    /// Multicast listener discovery of IPv6.
    MulticastListener,
    /// An ICMP error that quotes a known flow.
    IcmpError,
    /// The host's own DHCP client.
    DhcpClient,
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What the policy says.
    pub verdict: Verdict,
    /// Who says so.
    pub by: DecidedBy,
    /// Why.
    pub reason: Reason,
    /// Whether it is enforced: observe if the policy or the rule observes.
    pub mode: Mode,
    /// The `log` rules that matched on the way, as indices in [`Policy::rules`], in the order in which they were asked.
    pub logged_by: Vec<usize>,
}

impl Decision {
    /// What happens to the packet; `within_rate` says whether the rule's bucket had tokens, and is asked of
    /// [`Verdict::RateLimit`] only.
    pub fn outcome(&self, within_rate: bool) -> Outcome {
        let passes = match self.verdict {
            Verdict::Allow => true,
            Verdict::Block => false,
            Verdict::RateLimit => within_rate,
        };
        match (passes, self.mode) {
            (true, _) => Outcome::Pass,
            (false, Mode::Block) => Outcome::Drop,
            (false, Mode::Observe) => Outcome::ObserveDrop,
        }
    }

    /// The name it is counted under.
    pub fn rule_name<'p>(&self, policy: &'p Policy) -> &'p str {
        match self.by {
            DecidedBy::Rule(index) => policy.rules.get(index).map_or("", |rule| &rule.name),
            DecidedBy::Essential => ESSENTIAL,
            DecidedBy::Default => DEFAULT,
            DecidedBy::Malformed => MALFORMED,
        }
    }

    /// Whether the packet passes for as much as this decision knows: it is not blocked.
    pub fn lets_pass(&self) -> bool {
        self.verdict != Verdict::Block
    }
}

/// Decides about a packet.
///
/// Of a packet that comes in this is what the wire hook and then `cgroup_skb` say together: [`decide_at_hook`], and if
/// that lets it pass, [`decide_at_socket`].
pub fn decide(policy: &Policy, packet: &Packet, flow: &Flow, identity: &Identity) -> Decision {
    let decision = decide_at_hook(policy, packet, flow, identity);
    if !decision.lets_pass() || decision.by == DecidedBy::Essential {
        return decision;
    }
    match decide_at_socket(policy, packet, flow, identity) {
        Some(blocked) => Decision {
            logged_by: decision.logged_by,
            ..blocked
        },
        None => decision,
    }
}

/// What the hook says that decides about the packet: on ingress the wire hook, which does not know whose socket the
/// packet is for and ignores the rules that ask; on egress `cgroup_skb`, or TC with an identity that is unknown.
pub fn decide_at_hook(policy: &Policy, packet: &Packet, flow: &Flow, identity: &Identity) -> Decision {
    if packet.content == Content::Malformed {
        return malformed(policy);
    }
    let identity = known_at_hook(packet.direction, identity);
    let own = walk(policy, packet, flow, identity);
    if flow.state() != State::Invalid || own.lets_pass() {
        return own;
    }
    let reversed = packet.reversed();
    let reversed = walk(policy, &reversed, flow, known_at_hook(reversed.direction, identity));
    if reversed.lets_pass() {
        Decision {
            reason: Reason::ReverseOrientation,
            logged_by: own.logged_by,
            ..reversed
        }
    } else {
        own
    }
}

/// What `cgroup_skb` ingress says: it looks only for `block` in rules that name a cgroup, a user or a group. `None` if
/// there is no such rule for the packet, and for what goes out, which it does not see.
pub fn decide_at_socket(policy: &Policy, packet: &Packet, flow: &Flow, identity: &Identity) -> Option<Decision> {
    if packet.direction == Direction::Egress {
        return None;
    }
    let essential = essential(policy, packet, flow);
    policy
        .order()
        .into_iter()
        .map(|index| (index, &policy.rules[index]))
        .filter(|(_, rule)| rule.names_identity() && rule.action == Action::Block)
        .filter(|(_, rule)| essential.is_none_or(|essential| names(rule, essential)))
        .find_map(|(index, rule)| {
            let reason = matches(policy, rule, packet, flow, identity, known_at_socket)?;
            Some(Decision {
                verdict: Verdict::Block,
                by: DecidedBy::Rule(index),
                reason,
                mode: mode(policy, rule),
                logged_by: Vec::new(),
            })
        })
}

/// `cgroup_skb` ingress knows whose socket a packet is for; what goes out is not its business.
fn known_at_socket(direction: Direction, identity: &Identity) -> &Identity {
    match direction {
        Direction::Ingress => identity,
        Direction::Egress => &Identity::UNKNOWN,
    }
}

/// On ingress no hook that decides knows whose socket a packet is for.
fn known_at_hook(direction: Direction, identity: &Identity) -> &Identity {
    match direction {
        Direction::Ingress => &Identity::UNKNOWN,
        Direction::Egress => identity,
    }
}

fn malformed(policy: &Policy) -> Decision {
    Decision {
        verdict: match policy.defaults.malformed {
            MalformedVerdict::Drop => Verdict::Block,
            MalformedVerdict::Allow => Verdict::Allow,
        },
        by: DecidedBy::Malformed,
        reason: Reason::Malformed,
        mode: policy.mode,
        logged_by: Vec::new(),
    }
}

/// Asks one rule after the other.
fn walk(policy: &Policy, packet: &Packet, flow: &Flow, identity: &Identity) -> Decision {
    let essential = essential(policy, packet, flow);
    let mut logged_by = Vec::new();
    for index in policy.order() {
        let rule = &policy.rules[index];
        if essential.is_some_and(|essential| !names(rule, essential)) {
            continue;
        }
        let Some(reason) = matches(policy, rule, packet, flow, identity, known_at_hook) else {
            continue;
        };
        let verdict = match rule.action {
            Action::Log => {
                logged_by.push(index);
                continue;
            }
            Action::Allow => Verdict::Allow,
            Action::Block => Verdict::Block,
            Action::RateLimit(_) => Verdict::RateLimit,
        };
        return Decision {
            verdict,
            by: DecidedBy::Rule(index),
            reason,
            mode: mode(policy, rule),
            logged_by,
        };
    }
    match essential {
        Some(reason) => Decision {
            verdict: Verdict::Allow,
            by: DecidedBy::Essential,
            reason,
            mode: policy.mode,
            logged_by,
        },
        None => Decision {
            verdict: match policy.default_for(flow_direction(packet, flow)) {
                DefaultVerdict::Allow => Verdict::Allow,
                DefaultVerdict::Deny => Verdict::Block,
            },
            by: DecidedBy::Default,
            reason: Reason::Default,
            mode: policy.mode,
            logged_by,
        },
    }
}

/// The direction of the packet, or of the one that started its flow: a reply of a flow that was allowed by default is
/// allowed by the same default.
fn flow_direction(packet: &Packet, flow: &Flow) -> Direction {
    flow.originator()
        .map_or(packet.direction, |originator| originator.packet.direction)
}

fn mode(policy: &Policy, rule: &Rule) -> Mode {
    match rule.mode {
        Some(RuleMode::Observe) => Mode::Observe,
        None => policy.mode,
    }
}

/// Whether a rule matches, and why.
///
/// A packet of a known flow is judged as the packet that started it: what was allowed then is allowed on, in both
/// directions, and what has been blocked since ends. Only rules that name `established` or `related` look at the packet
/// itself.
fn matches(
    policy: &Policy,
    rule: &Rule,
    packet: &Packet,
    flow: &Flow,
    identity: &Identity,
    known: fn(Direction, &Identity) -> &Identity,
) -> Option<Reason> {
    let names_state = |state| rule.state.contains(&state);
    let state = flow.state();
    let itself = match state {
        State::New | State::Invalid => rule.state.is_empty() || names_state(state),
        State::Established | State::Related => names_state(state),
    };
    if itself && matches_packet(policy, rule, packet, identity) {
        return Some(Reason::Rule);
    }
    let originator = flow.originator()?;
    let as_new = rule.state.is_empty() || names_state(State::New);
    let sender = known(originator.packet.direction, &originator.identity);
    (as_new && matches_packet(policy, rule, &originator.packet, sender)).then_some(Reason::Flow)
}

/// Whether every key of a rule but `state` matches the packet.
fn matches_packet(policy: &Policy, rule: &Rule, packet: &Packet, identity: &Identity) -> bool {
    rule.covers(packet.direction)
        && any_or_absent(&rule.interface, |interface| *interface == packet.interface)
        && any_or_absent(&rule.mac, |mac| {
            packet.direction == Direction::Ingress && packet.source_mac == Some(*mac)
        })
        && any_or_absent(&rule.cgroup, |path| {
            identity.cgroup.as_deref().is_some_and(|cgroup| is_within(cgroup, path))
        })
        && any_or_absent(&rule.uid, |range| identity.uid.is_some_and(|uid| range.contains(uid)))
        && any_or_absent(&rule.gid, |range| identity.gid.is_some_and(|gid| range.contains(gid)))
        && matches_content(policy, rule, &packet.content)
}

fn matches_content(policy: &Policy, rule: &Rule, content: &Content) -> bool {
    let Content::Ip(ip) = content else {
        // Whatever is asked of an IP packet, this is none.
        return !asks_for_ip(rule);
    };
    let in_any = |addresses: &[Address], address: IpAddr| {
        any_or_absent(addresses, |prefixes| {
            policy.prefixes(prefixes).any(|prefix| prefix.contains(address))
        })
    };
    let (source_port, destination_port) = match ip.transport {
        Transport::Ports { source, destination } => (Some(source), Some(destination)),
        _ => (None, None),
    };
    let (kind, code) = match ip.transport {
        Transport::Icmp { kind, code } => (Some(kind), Some(code)),
        _ => (None, None),
    };
    rule.protocol.is_none_or(|protocol| protocol == ip.protocol)
        && in_any(&rule.source, ip.source)
        && in_any(&rule.destination, ip.destination)
        && in_ranges(&rule.source_ports, source_port)
        && in_ranges(&rule.destination_ports, destination_port)
        && in_ranges(&rule.icmp_type, kind)
        && in_ranges(&rule.icmp_code, code)
}

fn asks_for_ip(rule: &Rule) -> bool {
    rule.protocol.is_some()
        || !rule.source.is_empty()
        || !rule.destination.is_empty()
        || !rule.source_ports.is_empty()
        || !rule.destination_ports.is_empty()
        || !rule.icmp_type.is_empty()
        || !rule.icmp_code.is_empty()
}

fn any_or_absent<T>(values: &[T], matches: impl Fn(&T) -> bool) -> bool {
    values.is_empty() || values.iter().any(matches)
}

fn in_ranges<T: Copy + PartialOrd>(ranges: &[Range<T>], number: Option<T>) -> bool {
    any_or_absent(ranges, |range| number.is_some_and(|number| range.contains(number)))
}

/// Whether a cgroup is the one at `path` or below it.
fn is_within(cgroup: &str, path: &str) -> bool {
    path == "/"
        || cgroup
            .strip_prefix(path)
            .is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

/// Why a packet is essential; `None` if it is not, or the policy switches essentials off.
pub fn essential(policy: &Policy, packet: &Packet, flow: &Flow) -> Option<Reason> {
    if !policy.essentials {
        return None;
    }
    if packet.interface == LOOPBACK {
        return Some(Reason::Loopback);
    }
    let ip = match &packet.content {
        Content::Malformed => return None,
        Content::NotIp => return Some(Reason::NotIp),
        Content::Ip(ip) => ip,
    };
    match ip.transport {
        Transport::Icmp { kind, .. } if ip.protocol == Protocol::ICMPV6 && ip.source.is_ipv6() => match kind {
            // Router and neighbour solicitation and advertisement, redirect: RFC 4861 section 4.
            133..=137 => Some(Reason::NeighbourDiscovery),
            // Query, report, done: RFC 2710 section 3. Report of version 2: RFC 3810 section 5.2.
            130..=132 | 143 => Some(Reason::MulticastListener),
            // Unreachable, too big, time exceeded, parameter problem: RFC 4443 section 3.
            1..=4 if flow.state() == State::Related => Some(Reason::IcmpError),
            _ => None,
        },
        // Unreachable, source quench, redirect, time exceeded, parameter problem: RFC 792.
        Transport::Icmp {
            kind: 3 | 4 | 5 | 11 | 12,
            ..
        } if ip.protocol == Protocol::ICMP && ip.source.is_ipv4() && flow.state() == State::Related => {
            Some(Reason::IcmpError)
        }
        Transport::Ports { source, destination } if ip.protocol == Protocol::UDP => {
            // RFC 2131 section 4.1, RFC 8415 section 7.2.
            let (client, server) = if ip.source.is_ipv4() { (68, 67) } else { (546, 547) };
            let is_dhcp = match packet.direction {
                Direction::Egress => (source, destination) == (client, server),
                Direction::Ingress => (source, destination) == (server, client),
            };
            is_dhcp.then_some(Reason::DhcpClient)
        }
        _ => None,
    }
}

/// The loopback interface.
pub const LOOPBACK: &str = "lo";

/// Whether a rule names what is essential: it has the key by which one would single it out. Such a rule is asked about
/// it, in its place; all others are not.
pub fn names(rule: &Rule, essential: Reason) -> bool {
    match essential {
        Reason::Loopback => rule.interface.iter().any(|interface| interface == LOOPBACK),
        Reason::NotIp => !rule.mac.is_empty(),
        Reason::NeighbourDiscovery | Reason::MulticastListener => !rule.icmp_type.is_empty(),
        Reason::IcmpError => !rule.icmp_type.is_empty() || rule.state.contains(&State::Related),
        Reason::DhcpClient => !rule.source_ports.is_empty() || !rule.destination_ports.is_empty(),
        _ => false,
    }
}

impl Packet {
    /// With source and destination, ingress and egress exchanged: as its reply would look.
    #[must_use]
    pub fn reversed(&self) -> Self {
        let content = match &self.content {
            Content::Ip(ip) => Content::Ip(Ip {
                source: ip.destination,
                destination: ip.source,
                protocol: ip.protocol,
                transport: match ip.transport {
                    Transport::Ports { source, destination } => Transport::Ports {
                        source: destination,
                        destination: source,
                    },
                    other => other,
                },
            }),
            other => other.clone(),
        };
        Self {
            direction: self.direction.reversed(),
            interface: self.interface.clone(),
            source_mac: None,
            content,
        }
    }
}

impl Policy {
    /// The rules in the order in which they are asked, as indices in [`Policy::rules`].
    pub fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.rules.len()).collect();
        // Stable sorts: what is equal stays in the order of the file.
        match self.order {
            Order::Priority => order.sort_by_key(|index| self.rules[*index].priority),
            Order::Specific => order.sort_by_cached_key(|index| Reverse(self.specificity(&self.rules[*index]))),
        }
        order
    }

    /// How specific a rule is, the more specific one above. First the number of keys that restrict a packet; then how
    /// narrow source, destination, destination ports, source ports and protocol are, each compared only where the ones
    /// before are alike.
    pub fn specificity(&self, rule: &Rule) -> [u32; 6] {
        let fixed = [
            !rule.source.is_empty(),
            !rule.destination.is_empty(),
            !rule.source_ports.is_empty(),
            !rule.destination_ports.is_empty(),
            rule.protocol.is_some(),
            !rule.icmp_type.is_empty(),
            !rule.icmp_code.is_empty(),
            !rule.interface.is_empty(),
            !rule.mac.is_empty(),
            !rule.cgroup.is_empty(),
            !rule.uid.is_empty(),
            !rule.gid.is_empty(),
            !rule.state.is_empty(),
        ];
        [
            fixed.into_iter().map(u32::from).sum(),
            self.narrowness(&rule.source),
            self.narrowness(&rule.destination),
            port_narrowness(&rule.destination_ports),
            port_narrowness(&rule.source_ports),
            u32::from(rule.protocol.is_some()),
        ]
    }

    /// The length of the shortest prefix, counted from the end so that both versions of IP compare, plus one; 0 for any
    /// address.
    fn narrowness(&self, addresses: &[Address]) -> u32 {
        let lengths = addresses.iter().flat_map(|address| self.prefixes(address));
        lengths
            .map(|prefix| u32::from(prefix.len()) + if prefix.address().is_ipv4() { 97 } else { 1 })
            .min()
            .unwrap_or(0)
    }
}

/// The fewer ports, the narrower; 0 for any port.
fn port_narrowness(ranges: &[Range<u16>]) -> u32 {
    if ranges.is_empty() {
        return 0;
    }
    let ports: u32 = ranges
        .iter()
        .map(|range| u32::from(range.last) - u32::from(range.first) + 1)
        .fold(0, u32::saturating_add);
    u32::MAX - ports
}

/// Starts a packet, for tests and examples: `packet(Direction::Ingress, "eth0").tcp("192.0.2.1:40000", "203.0.113.1:443")`.
pub fn packet(direction: Direction, interface: &str) -> PacketBuilder {
    PacketBuilder {
        direction,
        interface: interface.to_owned(),
        source_mac: None,
    }
}

/// A packet of which the content is not known yet.
#[derive(Clone, Debug)]
pub struct PacketBuilder {
    direction: Direction,
    interface: String,
    source_mac: Option<Mac>,
}

impl PacketBuilder {
    /// Sent by this MAC address.
    #[must_use]
    pub fn from_mac(mut self, mac: Mac) -> Self {
        self.source_mac = Some(mac);
        self
    }

    /// With this content.
    pub fn content(self, content: Content) -> Packet {
        Packet {
            direction: self.direction,
            interface: self.interface,
            source_mac: self.source_mac,
            content,
        }
    }

    /// TCP between two sockets such as `192.0.2.1:80` or `[2001:db8::1]:80`. Panics where a text is none.
    pub fn tcp(self, source: &str, destination: &str) -> Packet {
        self.ports(Protocol::TCP, source, destination)
    }

    /// UDP, likewise.
    pub fn udp(self, source: &str, destination: &str) -> Packet {
        self.ports(Protocol::UDP, source, destination)
    }

    fn ports(self, protocol: Protocol, source: &str, destination: &str) -> Packet {
        let socket = |text: &str| -> std::net::SocketAddr {
            text.parse()
                .unwrap_or_else(|_| panic!("{text:?} is no address with a port"))
        };
        let (source, destination) = (socket(source), socket(destination));
        self.content(Content::Ip(Ip {
            source: source.ip(),
            destination: destination.ip(),
            protocol,
            transport: Transport::Ports {
                source: source.port(),
                destination: destination.port(),
            },
        }))
    }

    /// A message of ICMP or, between IPv6 addresses, of ICMPv6. Panics where a text is no address.
    pub fn icmp(self, source: &str, destination: &str, kind: u8, code: u8) -> Packet {
        let packet = self.ip(Protocol::ICMP, source, destination);
        let Content::Ip(ip) = packet.content else {
            return packet;
        };
        Packet {
            content: Content::Ip(Ip {
                protocol: if ip.source.is_ipv4() {
                    Protocol::ICMP
                } else {
                    Protocol::ICMPV6
                },
                transport: Transport::Icmp { kind, code },
                ..ip
            }),
            ..packet
        }
    }

    /// A packet without a transport header that is read: of another protocol, or a later fragment.
    pub fn ip(self, protocol: Protocol, source: &str, destination: &str) -> Packet {
        let address = |text: &str| -> IpAddr { text.parse().unwrap_or_else(|_| panic!("{text:?} is no address")) };
        let (source, destination) = (address(source), address(destination));
        self.content(Content::Ip(Ip {
            source,
            destination,
            protocol,
            transport: Transport::None,
        }))
    }
}
