//! What becomes of a frame at either hook, in the order in which it is decided.
//!
//! The same function decides in the kernel, where the tables are maps, and in tests, where they are memory.

use lab01_count_packets_common::packet::Packet;
use lab02_xdp_firewall_common::{
    firewall::{FragmentKey, Verdict},
    ports::{self, Class, Use},
    transport::{ICMP, ICMPV6, Malformed, Part, UDP},
};

use crate::{
    flow::{
        key::FlowKey,
        state::{self, Beginning, Signal, State},
        table::{self, Buckets, Flow, Inserted, Place},
        track::{self, Behind, NEXT_ANEW, Subject},
    },
    parsed::Parsed,
    shaper::{HORIZON_NS, Shape},
    target::{Destination, Target},
};

/// Which hook a frame is seen at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// It comes in.
    Ingress = 0,
    /// It goes out.
    Egress = 1,
}

/// Why a frame passes or is dropped.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Passes: neither IPv4 nor IPv6.
    NotIp = 0,
    /// Passes: what a network does not work without: neighbour discovery, multicast listeners, answers to DHCP.
    Essential = 1,
    /// Passes: it belongs to a flow that is known.
    Flow = 2,
    /// Passes: an ICMP error about a flow that is known.
    Related = 3,
    /// Passes: it begins a flow, which nothing forbids.
    New = 4,
    /// Passes: it begins a flow to a port that is listed.
    ListedPort = 5,
    /// Passes: it belongs to a TCP connection that was there before.
    PickedUp = 6,
    /// Passes: it belongs to no flow and begins none.
    Untracked = 7,
    /// Passes: a later fragment of a packet whose first fragment passed.
    FragmentFollows = 8,
    /// Passes: malformed, and configured to pass.
    MalformedPassed = 9,
    /// Dropped: malformed.
    Malformed = 10,
    /// Dropped: neither a reply nor to a listed port.
    Stranger = 11,
    /// Dropped: a later fragment whose first one was dropped or not seen.
    Fragment = 12,
    /// Dropped: a rule denies where it goes.
    Denied = 13,
    /// Dropped: more than the rate.
    RateExceeded = 14,
}

impl Reason {
    /// How many there are: the size of an array that has one element for each.
    pub const COUNT: u32 = 15;

    /// All of them, in the order of their indices.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::NotIp,
        Self::Essential,
        Self::Flow,
        Self::Related,
        Self::New,
        Self::ListedPort,
        Self::PickedUp,
        Self::Untracked,
        Self::FragmentFollows,
        Self::MalformedPassed,
        Self::Malformed,
        Self::Stranger,
        Self::Fragment,
        Self::Denied,
        Self::RateExceeded,
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
            Self::Essential => "essential",
            Self::Flow => "flow",
            Self::Related => "related",
            Self::New => "new",
            Self::ListedPort => "listed-port",
            Self::PickedUp => "picked-up",
            Self::Untracked => "untracked",
            Self::FragmentFollows => "fragment-follows",
            Self::MalformedPassed | Self::Malformed => "malformed",
            Self::Stranger => "stranger",
            Self::Fragment => "fragment",
            Self::Denied => "denied",
            Self::RateExceeded => "rate",
        }
    }
}

/// What happens in the flow table, and is counted.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowEvent {
    /// A flow began; it is half open.
    Created = 0,
    /// A half-open flow was proven, and has moved to the established ones.
    Established = 1,
    /// A half-open flow was forgotten for another one.
    EvictedHalfOpen = 2,
    /// An established flow was forgotten for another one.
    EvictedEstablished = 3,
}

impl FlowEvent {
    /// How many there are.
    pub const COUNT: u32 = 4;
}

/// The most rules that deny.
pub const MAX_DENY_RULES: u32 = 64;
/// The most rates.
pub const MAX_SHAPES: u32 = 16;

/// What is decided by, but for the content of the tables.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// How long a flow may be silent, by the number of its [`State`].
    pub idle_ns: [u64; State::COUNT],
    /// The key of the hash of flows: random.
    pub hash_key: [u64; 2],
    /// Until then, in nanoseconds since boot, TCP connections that come in and are not known are taken up.
    pub pick_up_until_ns: u64,
    /// How many buckets the table of established flows has.
    pub established_buckets: u32,
    /// How many the table of half-open flows has.
    pub half_open_buckets: u32,
    /// How many rules deny.
    pub deny_rules: u32,
    /// How many rates there are.
    pub shapes: u32,
    /// 1 if only replies and what goes to listed ports come in.
    pub stateful: u8,
    /// 1 to drop malformed frames, 0 to let them pass.
    pub drop_malformed: u8,
    /// 1 if packets can be sent later, because `fq` is there; 0 if what exceeds a rate is dropped.
    pub can_wait: u8,
    /// Fills up to a multiple of eight bytes.
    pub padding: [u8; 5],
}

const _: () = assert!(size_of::<Config>() == 12 * 8 + 16 + 8 + 16 + 8);

/// The tables that a decision reads and writes.
pub trait Tables {
    /// A table of flows.
    type Buckets: Buckets;

    /// Flows whose both ends are proven.
    fn established(&self) -> &Self::Buckets;
    /// All others.
    fn half_open(&self) -> &Self::Buckets;
    /// Counts what happens to flows.
    fn tally(&self, event: FlowEvent);
    /// Nanoseconds since boot, to a few milliseconds.
    fn now_ns(&self) -> u64;
    /// Nanoseconds since boot.
    fn exact_now_ns(&self) -> u64;
    /// What is listed of a port: [`ports::bit`]s.
    fn port_word(&self, port: u16) -> u32;
    /// The rule at `index`; `None` beyond the end.
    fn deny_rule(&self, index: u32) -> Option<&Target>;
    /// The rate at `index`; `None` beyond the end. The ones with the longest prefix come first.
    fn shape(&self, index: u32) -> Option<&Shape>;
    /// [`crate::shaper::departure_ns`] of the bucket of the rate at `index`.
    fn departure_ns(&self, index: u32, now_ns: u64, cost_ns: u64, burst_ns: u64, horizon_ns: u64) -> Option<u64>;
    /// What the first fragment of this packet met; `None` if it was not seen, or too long ago.
    fn verdict_of_first_fragment(&self, key: &FragmentKey) -> Option<Verdict>;
    /// Keeps what the first fragment of a packet met.
    fn keep_verdict_of_first_fragment(&self, key: &FragmentKey, verdict: Verdict);
}

/// What a frame is to the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A packet of a flow.
    Packet,
    /// An ICMP error about one.
    Error,
    /// Essential, and never tracked.
    Essential,
    /// Nothing that is tracked.
    Other,
}

/// The frame that is being decided about: its headers, its flow, and then the decision.
///
/// In an eBPF program this is a map's value; see [`lab02_xdp_firewall_common::firewall::Inspection`] on why.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Inspection {
    parsed: Parsed,
    key: FlowKey,
    from_low: bool,
    kind: Kind,
    signal: Signal,
    reason: Reason,
    /// The length of the frame, and what it will be on the wire.
    frame_len: u64,
    wire_len: u64,
    segments: u64,
    now_ns: u64,
    hash: u64,
    /// The rule that denied it, or the rate that it was counted for.
    rule: u32,
    /// When it may leave; 0 for at once.
    departure_ns: u64,
    /// The flow that it begins.
    flow: Flow,
}

/// A frame's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Its own length in bytes.
    pub frame: u64,
    /// How many packets it will be on the wire.
    pub segments: u64,
    /// How many bytes these will have.
    pub wire: u64,
}

impl Inspection {
    /// No rule, no rate.
    pub const NO_RULE: u32 = u32::MAX;

    /// Of no frame yet.
    pub const EMPTY: Self = Self {
        parsed: Parsed::EMPTY,
        key: FlowKey {
            low: Parsed::EMPTY.headers.source,
            high: Parsed::EMPTY.headers.source,
            ports: 0,
            protocol: 0,
            zone: 0,
            padding: 0,
        },
        from_low: false,
        kind: Kind::Other,
        signal: Signal::Nonsense,
        reason: Reason::NotIp,
        frame_len: 0,
        wire_len: 0,
        segments: 0,
        now_ns: 0,
        hash: 0,
        rule: Self::NO_RULE,
        departure_ns: 0,
        flow: table::Bucket::EMPTY.flows[0],
    };

    /// Reads the headers of `frame`, which starts with its Ethernet header; the kernel may keep an outer VLAN tag beside
    /// it. False if it is malformed.
    #[inline(always)]
    pub fn read<P: Packet + ?Sized>(&mut self, frame: &P, tag_beside: Option<u16>) -> bool {
        self.parsed.read(frame, tag_beside)
    }

    /// Whether more of the frame is read than its headers: what an ICMP error quotes.
    #[inline(always)]
    pub fn reads_on(&self) -> bool {
        matches!(self.parsed.upper.protocol, ICMP | ICMPV6)
    }

    /// Decides about `frame`, whose headers were read just before, and are well-formed or not.
    #[inline(always)]
    pub fn decide<P: Packet + ?Sized, T: Tables>(
        &mut self,
        frame: &P,
        is_well_formed: bool,
        size: Size,
        hook: Hook,
        tables: &T,
        config: &Config,
    ) {
        // ANCHOR: decide
        self.rule = Self::NO_RULE;
        self.departure_ns = 0;
        self.frame_len = size.frame;
        self.reason = if !is_well_formed {
            if config.drop_malformed != 0 {
                Reason::Malformed
            } else {
                Reason::MalformedPassed
            }
        } else if self.parsed.headers.ip_version == 0 {
            Reason::NotIp
        } else {
            self.now_ns = tables.now_ns();
            self.find_flow_key(frame);
            match hook {
                Hook::Ingress => self.judge_ingress(tables, config),
                Hook::Egress => {
                    self.wire_len = size.wire;
                    self.segments = size.segments;
                    self.judge_egress(tables, config)
                }
            }
        };
        // ANCHOR_END: decide
    }

    /// Why the frame passes or is dropped, which includes whether.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// In which way the frame is malformed.
    pub fn malformed(&self) -> Option<Malformed> {
        matches!(self.reason, Reason::Malformed | Reason::MalformedPassed).then_some(self.parsed.malformed)
    }

    /// The rule that denied it, or the rate that it falls under; [`Self::NO_RULE`] if there is none.
    pub fn rule(&self) -> u32 {
        self.rule
    }

    /// When it may leave, in nanoseconds since boot; 0 for at once.
    pub fn departure_ns(&self) -> u64 {
        self.departure_ns
    }

    #[inline(always)]
    fn judge_ingress<T: Tables>(&mut self, tables: &T, config: &Config) -> Reason {
        match self.parsed.upper.part {
            Part::Whole => self.judge_flow_in(tables, config),
            Part::First => {
                let reason = self.judge_flow_in(tables, config);
                if config.stateful != 0 {
                    tables.keep_verdict_of_first_fragment(&self.fragment_key(), reason.verdict());
                }
                reason
            }
            Part::Later if config.stateful == 0 => Reason::FragmentFollows,
            Part::Later => match tables.verdict_of_first_fragment(&self.fragment_key()) {
                Some(Verdict::Pass) => Reason::FragmentFollows,
                Some(Verdict::Drop) | None => Reason::Fragment,
            },
        }
    }

    #[inline(always)]
    fn judge_egress<T: Tables>(&mut self, tables: &T, config: &Config) -> Reason {
        // ANCHOR: egress
        if config.deny_rules != 0 && self.is_denied(tables, config) {
            return Reason::Denied;
        }
        let reason = if self.parsed.upper.part == Part::Later {
            Reason::FragmentFollows
        } else {
            self.judge_flow_out(tables, config)
        };
        if config.shapes != 0 && !self.may_leave(tables, config) {
            return Reason::RateExceeded;
        }
        reason
        // ANCHOR_END: egress
    }

    #[inline(always)]
    fn judge_flow_out<T: Tables>(&mut self, tables: &T, config: &Config) -> Reason {
        let kind = self.kind;
        match kind {
            Kind::Essential => Reason::Essential,
            Kind::Error if self.is_known(tables, config) => Reason::Related,
            Kind::Packet if self.is_of_flow(tables, config) => Reason::Flow,
            Kind::Packet if self.begin_flow(tables, config) => Reason::New,
            Kind::Error | Kind::Packet | Kind::Other => Reason::Untracked,
        }
    }

    // ANCHOR: ingress
    #[inline(always)]
    fn judge_flow_in<T: Tables>(&mut self, tables: &T, config: &Config) -> Reason {
        let kind = self.kind;
        let reason = match kind {
            Kind::Essential => return Reason::Essential,
            Kind::Error if self.is_known(tables, config) => return Reason::Related,
            Kind::Packet if self.is_of_flow(tables, config) => return Reason::Flow,
            Kind::Error | Kind::Other if config.stateful != 0 => return Reason::Stranger,
            Kind::Error | Kind::Other => return Reason::Untracked,
            Kind::Packet if config.stateful == 0 => Reason::New,
            Kind::Packet if self.goes_to_listed_port(tables) => Reason::ListedPort,
            Kind::Packet if self.was_there_before(config) => Reason::PickedUp,
            Kind::Packet => return Reason::Stranger,
        };
        match (self.begin_flow(tables, config), config.stateful) {
            (true, _) => reason,
            (false, 0) => Reason::Untracked,
            (false, _) => Reason::Stranger,
        }
    }
    // ANCHOR_END: ingress

    #[inline(always)]
    fn goes_to_listed_port<T: Tables>(&self, tables: &T) -> bool {
        let transport = &self.parsed.transport;
        let class = Class::of(self.parsed.upper.protocol);
        transport.has_ports
            && tables.port_word(transport.destination_port) & ports::bit(Use::AllowDestination, class) != 0
    }

    #[inline(always)]
    fn was_there_before(&self, config: &Config) -> bool {
        self.now_ns < config.pick_up_until_ns && matches!(self.signal, Signal::Ack | Signal::Fin | Signal::SynAck)
    }

    // ANCHOR: find_flow_key
    /// Finds the key of the flow that the packet belongs to, or that it is about, and what it says to it.
    #[inline(always)]
    fn find_flow_key<P: Packet + ?Sized>(&mut self, frame: &P) {
        let Parsed {
            headers,
            upper,
            transport,
            vlans,
            ..
        } = &self.parsed;
        let behind = Behind {
            offset: upper.offset,
            protocol: upper.protocol,
            tcp_flags: transport.tcp_flags,
            icmp_type: transport.icmp_type,
            source_port: transport.source_port,
            destination_port: transport.destination_port,
        };
        let Subject {
            kind,
            signal,
            protocol,
            source,
            destination,
        } = Subject::of(frame, headers, &behind);
        let (key, from_low) = FlowKey::new(headers.ip_version, protocol, source, destination, *vlans);
        self.kind = match kind {
            // Answers to a host that has no address yet, and so no flow: RFC 2131 and RFC 8415.
            track::Kind::Packet
                if protocol == UDP && matches!((source.port, destination.port), (67, 68) | (547, 546)) =>
            {
                Kind::Essential
            }
            track::Kind::Packet => Kind::Packet,
            track::Kind::Error => Kind::Error,
            track::Kind::Other if is_essential(upper.protocol, transport.icmp_type) => Kind::Essential,
            track::Kind::Other => Kind::Other,
        };
        self.key = key;
        self.from_low = from_low;
        self.signal = signal;
    }
    // ANCHOR_END: find_flow_key

    /// Whether the packet belongs to a flow that is known, which then learns of it.
    ///
    /// One look-up behind the other and not one inside the other: all that is called from here to there has to share a
    /// stack of 512 bytes.
    #[inline(always)]
    fn is_of_flow<T: Tables>(&mut self, tables: &T, config: &Config) -> bool {
        self.is_of_established_flow(tables, config) || self.is_of_half_open_flow(tables, config)
    }

    #[inline(always)]
    fn is_of_established_flow<T: Tables>(&mut self, tables: &T, config: &Config) -> bool {
        self.hash = self.key.hash(config.hash_key);
        let place = Place::of(self.hash, config.established_buckets);
        // ANCHOR: is_of_flow
        let flow = table::find(tables.established(), place, &self.key);
        if flow.is_null() {
            return false;
        }
        // SAFETY: a flow in a table is valid for as long as the table is.
        let next = unsafe { track::next(flow, self.from_low, self.signal, self.now_ns) };
        if next.state == NEXT_ANEW {
            tables.established().release(place);
            return false;
        }
        // SAFETY: as above.
        unsafe { track::advance(flow, next, &config.idle_ns, self.now_ns, self.frame_len) };
        true
        // ANCHOR_END: is_of_flow
    }

    #[inline(never)]
    fn is_of_half_open_flow<T: Tables>(&mut self, tables: &T, config: &Config) -> bool {
        // ANCHOR: half_open
        let place = Place::of(self.hash, config.half_open_buckets);
        let flow = table::find(tables.half_open(), place, &self.key);
        if flow.is_null() {
            return false;
        }
        // SAFETY: a flow in a table is valid for as long as the table is.
        let next = unsafe { track::next(flow, self.from_low, self.signal, self.now_ns) };
        if next.state == NEXT_ANEW {
            return false;
        }
        // SAFETY: as above.
        unsafe { track::advance(flow, next, &config.idle_ns, self.now_ns, self.frame_len) };
        if State::from_number(next.state).is_some_and(State::is_proven) {
            self.promote(tables, config, flow);
        }
        true
        // ANCHOR_END: half_open
    }

    /// Moves a flow from the half-open ones to the established ones.
    #[inline(always)]
    fn promote<T: Tables>(&self, tables: &T, config: &Config, flow: *const Flow) {
        // From map to map: two copies of a flow are half of a program's stack.
        let place = Place::of(self.hash, config.established_buckets);
        // SAFETY: a flow in a table is valid for as long as the table is.
        let inserted = unsafe { table::insert(tables.established(), place, &self.key, flow, self.now_ns) };
        if inserted == Inserted::Nowhere {
            return;
        }
        tables.tally(FlowEvent::Established);
        if inserted == Inserted::Evicted {
            tables.tally(FlowEvent::EvictedEstablished);
        }
        let place = Place::of(self.hash, config.half_open_buckets);
        tables.half_open().release(place);
    }

    /// Enters the flow that the packet begins; false if it begins none.
    #[inline(never)]
    fn begin_flow<T: Tables>(&mut self, tables: &T, config: &Config) -> bool {
        // ANCHOR: begin_flow
        let Some(Beginning {
            state,
            sender_is_originator,
        }) = state::begin(self.signal)
        else {
            return false;
        };
        let sender = usize::from(!sender_is_originator);
        self.flow = Flow {
            key: FlowKey::default(),
            state: state as u8,
            originator_is_low: u8::from(self.from_low == sender_is_originator),
            generation: 0,
            was_taken: 0,
            expires_ns: self.now_ns + config.idle_ns.get(state as usize).copied().unwrap_or(0),
            packets: [0; 2],
            bytes: [0; 2],
            rule: 0,
        };
        if sender == 0 {
            (self.flow.packets[0], self.flow.bytes[0]) = (1, self.frame_len);
        } else {
            (self.flow.packets[1], self.flow.bytes[1]) = (1, self.frame_len);
        }
        let place = Place::of(self.hash, config.half_open_buckets);
        // SAFETY: it is a part of this.
        let inserted =
            unsafe { table::insert(tables.half_open(), place, &self.key, &raw const self.flow, self.now_ns) };
        tables.tally(FlowEvent::Created);
        if inserted == Inserted::Evicted {
            tables.tally(FlowEvent::EvictedHalfOpen);
        }
        true
        // ANCHOR_END: begin_flow
    }

    /// Whether the flow that an ICMP error is about is known, and not over.
    #[inline(never)]
    fn is_known<T: Tables>(&mut self, tables: &T, config: &Config) -> bool {
        self.hash = self.key.hash(config.hash_key);
        let place = Place::of(self.hash, config.established_buckets);
        let mut flow = table::find(tables.established(), place, &self.key);
        if flow.is_null() {
            let place = Place::of(self.hash, config.half_open_buckets);
            flow = table::find(tables.half_open(), place, &self.key);
        }
        // SAFETY: a flow in a table is valid for as long as the table is.
        !flow.is_null() && unsafe { (*flow).expires_ns } > self.now_ns
    }

    #[inline(always)]
    fn destination(&self) -> Destination {
        let transport = &self.parsed.transport;
        Destination {
            ip_version: self.parsed.headers.ip_version,
            address: self.parsed.headers.destination,
            port: transport
                .has_ports
                .then_some((Class::of(self.parsed.upper.protocol), transport.destination_port)),
        }
    }

    // ANCHOR: is_denied
    /// Whether a rule denies where the packet goes: the first that matches is remembered.
    #[inline(never)]
    fn is_denied<T: Tables>(&mut self, tables: &T, config: &Config) -> bool {
        let destination = self.destination();
        for index in 0..MAX_DENY_RULES {
            if index >= config.deny_rules {
                break;
            }
            let Some(rule) = tables.deny_rule(index) else { break };
            if rule.matches(&destination) {
                self.rule = index;
                return true;
            }
        }
        false
    }
    // ANCHOR_END: is_denied

    // ANCHOR: may_leave
    /// Whether the packet may leave, and when: by the rate with the longest prefix that it goes to.
    #[inline(never)]
    fn may_leave<T: Tables>(&mut self, tables: &T, config: &Config) -> bool {
        let destination = self.destination();
        for index in 0..MAX_SHAPES {
            if index >= config.shapes {
                break;
            }
            let Some(shape) = tables.shape(index) else { break };
            if shape.target.matches(&destination) {
                self.rule = index;
                return self.may_leave_at(tables, config, index);
            }
        }
        true
    }

    #[inline(never)]
    fn may_leave_at<T: Tables>(&mut self, tables: &T, config: &Config, index: u32) -> bool {
        let Some(Shape { limit, .. }) = tables.shape(index) else {
            return true;
        };
        // A super-packet of segmentation offload has its Ethernet and IP headers once here, and often on the wire.
        let ethernet_len = self.segments.wrapping_mul(self.parsed.headers.network_offset as u64);
        let cost_ns = limit.cost_ns(self.wire_len.saturating_sub(ethernet_len));
        let horizon_ns = if config.can_wait != 0 { HORIZON_NS } else { 0 };
        let now_ns = tables.exact_now_ns();
        match tables.departure_ns(index, now_ns, cost_ns, limit.burst_ns, horizon_ns) {
            Some(departure_ns) => {
                if departure_ns > now_ns {
                    self.departure_ns = departure_ns;
                }
                true
            }
            None => false,
        }
    }
    // ANCHOR_END: may_leave

    #[inline(always)]
    fn fragment_key(&self) -> FragmentKey {
        FragmentKey::of(&self.parsed.headers, &self.parsed.upper)
    }
}

/// Neighbour discovery (RFC 4861) and multicast listeners (RFC 2710, RFC 3810): without them IPv6 finds nobody.
#[inline(always)]
const fn is_essential(protocol: u8, icmp_type: u8) -> bool {
    protocol == ICMPV6 && matches!(icmp_type, 130..=137 | 143)
}

#[cfg(not(target_arch = "bpf"))]
mod pod {
    // SAFETY: `#[repr(C)]`, integers with the padding spelt out, any bits are valid.
    unsafe impl aya::Pod for super::Config {}
}
