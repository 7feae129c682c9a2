//! From a packet's bytes to what becomes of it, in the order in which it is decided: parse, essentials, classify, act.

use lab01_count_packets_common::{
    headers::{self, Headers},
    packet::{Cursor, Header, Packet},
};
use lab02_xdp_firewall_common::transport::{Malformed, Transport, Upper};

use crate::{
    classify::Classifier,
    control::Mode,
    counters::{Outcome, Reason},
    key::{Direction, Essential, Hook, Key},
    table::{Action, Rule, RuleMode, Tables},
    veil::Veil,
};

/// A packet that knows with which header it begins.
pub trait Parse: Packet {
    /// Reads its link and network headers.
    fn headers(&self) -> Result<Headers, headers::Malformed>;
}

/// A packet from its Ethernet header on.
pub struct FromEthernet<'a, P: ?Sized>(pub &'a P);

/// A packet from its IP header on, with what it is by its `EtherType` (in host order).
pub struct FromIp<'a, P: ?Sized>(pub &'a P, pub u16);

impl<P: Packet + ?Sized> Packet for FromEthernet<'_, P> {
    #[inline(always)]
    fn holds(&self, bytes: usize) -> bool {
        self.0.holds(bytes)
    }

    #[inline(always)]
    fn read<H: Header>(&self, offset: usize) -> Option<H> {
        self.0.read(offset)
    }
}

impl<P: Packet + ?Sized> Parse for FromEthernet<'_, P> {
    #[inline(always)]
    fn headers(&self) -> Result<Headers, headers::Malformed> {
        Headers::parse(self.0)
    }
}

impl<P: Packet + ?Sized> Packet for FromIp<'_, P> {
    #[inline(always)]
    fn holds(&self, bytes: usize) -> bool {
        self.0.holds(bytes)
    }

    #[inline(always)]
    fn read<H: Header>(&self, offset: usize) -> Option<H> {
        self.0.read(offset)
    }
}

impl<P: Packet + ?Sized> Parse for FromIp<'_, P> {
    #[inline(always)]
    fn headers(&self) -> Result<Headers, headers::Malformed> {
        Headers::parse_network(&mut Cursor::new(self.0), self.1)
    }
}

/// Where a packet is, and what holds there: what a decision depends on beside the packet and the tables.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The hook.
    pub hook: Hook,
    /// Whether its interface is the loopback interface.
    pub is_loopback: bool,
    /// The mode of the control word.
    pub mode: Mode,
}

/// What is made of a packet by its addresses, ports and the like: what `explain` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Not 0 if it is to be blocked.
    pub blocks: u8,
    /// Why.
    pub reason: Reason,
    /// The rule, where one is the reason.
    pub rule: Rule,
    /// The rules that only count and come before, as a mask.
    pub logged: u64,
}

/// Decides about packets by a policy.
impl<T: Tables> Classifier<'_, T> {
    /// Decides about a packet of IP: essentials, classify.
    #[inline(always)]
    pub fn decide(&self, key: &Key, direction: Direction, is_loopback: bool) -> Decision {
        // ANCHOR: decide
        let matching = self.matching(key, direction);
        match self.essential(key, direction, is_loopback) {
            None => self.first_of(matching, self.by_default(direction)),
            Some(essential) => self.first_of(matching & self.named(essential), BY_ESSENTIALS),
        }
        // ANCHOR_END: decide
    }

    /// Decides about a frame that is not IP.
    #[inline(always)]
    fn decide_without_ip(&self, direction: Direction) -> Decision {
        if self.config.essentials != 0 {
            return BY_ESSENTIALS;
        }
        let matching = self.of_direction(direction) & self.config.without_ip;
        self.first_of(matching, self.by_default(direction))
    }

    #[inline(always)]
    fn essential(&self, key: &Key, direction: Direction, is_loopback: bool) -> Option<Essential> {
        if self.config.essentials == 0 {
            return None;
        }
        key.essential(direction, is_loopback)
    }

    /// The rules that name an essential.
    #[inline(always)]
    fn named(&self, essential: Essential) -> u64 {
        let [loopback, neighbour_discovery, multicast_listener, dhcp_client] = self.config.named;
        match essential {
            Essential::Loopback => loopback,
            Essential::NeighbourDiscovery => neighbour_discovery,
            Essential::MulticastListener => multicast_listener,
            Essential::DhcpClient => dhcp_client,
        }
    }

    #[inline(always)]
    fn by_default(&self, direction: Direction) -> Decision {
        let blocks = match direction {
            Direction::Ingress => self.config.block_ingress,
            Direction::Egress => self.config.block_egress,
        };
        Decision {
            blocks,
            reason: Reason::Default,
            rule: NO_RULE,
            logged: 0,
        }
    }

    /// What the first rule among the `matching` ones says that does not only count, else what holds `otherwise`.
    #[inline(always)]
    fn first_of(&self, matching: u64, otherwise: Decision) -> Decision {
        // ANCHOR: first
        let deciding = matching & !self.config.log;
        // The lowest bit alone; the bits below it are the rules that come before.
        let first = deciding & deciding.wrapping_neg();
        let logged = matching & self.config.log & first.wrapping_sub(1);
        let rule = if first == 0 {
            None
        } else {
            self.tables.rule(self.config.first_rule + first.trailing_zeros())
        };
        // ANCHOR_END: first
        match rule {
            None => Decision { logged, ..otherwise },
            Some(rule) => Decision {
                blocks: rule.action & Action::Block as u8,
                reason: Reason::Rule,
                rule,
                logged,
            },
        }
    }
}

const BY_ESSENTIALS: Decision = Decision {
    blocks: 0,
    reason: Reason::Essential,
    rule: NO_RULE,
    logged: 0,
};

const NO_RULE: Rule = Rule {
    id: 0,
    action: 0,
    mode: 0,
    padding: [0; 2],
};

/// The packet that is being decided about: its headers, and then the decision.
///
/// The stages are functions of their own that talk through this, and not inlined: see lab02's `Inspection` on why.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Inspection {
    headers: Headers,
    upper: Upper,
    key: Key,
    malformed: Malformed,
    /// A [`Reason`].
    reason: u32,
    /// Not 0 if it is to be blocked.
    blocks: u32,
    rule: Rule,
    logged: u64,
}

impl Inspection {
    /// Of no packet yet.
    pub const EMPTY: Self = Self {
        headers: Headers::EMPTY,
        upper: Upper::EMPTY,
        key: Key::EMPTY,
        malformed: Malformed::EthernetTruncated,
        reason: 0,
        blocks: 0,
        rule: NO_RULE,
        logged: 0,
    };

    /// Decides about `packet`. What was decided about the last one is forgotten.
    #[inline(always)]
    pub fn decide<P: Parse, T: Tables>(&mut self, packet: &P, place: &Place, classifier: &Classifier<'_, T>) {
        let veil = classifier.veil;
        // ANCHOR: stages
        if self.read_headers(packet, veil) && self.find_upper(packet, veil) && self.read_transport(packet, veil) {
            self.blocks = self.judge(place.hook.direction(), place.is_loopback, classifier);
        } else {
            let malformed = Decision {
                blocks: classifier.config.block_malformed,
                reason: Reason::Malformed,
                rule: NO_RULE,
                logged: 0,
            };
            self.blocks = self.keep(malformed, veil);
        }
        // ANCHOR_END: stages
    }

    /// Why it meets its verdict.
    #[inline(always)]
    pub fn reason(&self) -> Reason {
        Reason::from_index(self.reason)
    }

    /// What becomes of it in this mode.
    #[inline(always)]
    pub fn outcome(&self, mode: Mode) -> Outcome {
        if self.blocks == 0 {
            return Outcome::Passed;
        }
        let mode = match self.rule.mode {
            mode if mode == RuleMode::Observe as u8 => Mode::Observe,
            mode if mode == RuleMode::Block as u8 => Mode::Block,
            _ => mode,
        };
        match mode {
            Mode::Observe => Outcome::Observed,
            Mode::Block => Outcome::Dropped,
        }
    }

    /// The rule that is the reason, if one is.
    #[inline(always)]
    pub fn rule(&self) -> Option<Rule> {
        (self.reason == Reason::Rule as u32).then_some(self.rule)
    }

    /// The rules that only count and come before, as a mask.
    #[inline(always)]
    pub fn logged(&self) -> u64 {
        self.logged
    }

    /// In which way it is malformed.
    #[inline(always)]
    pub fn malformed(&self) -> Option<Malformed> {
        (self.reason == Reason::Malformed as u32).then_some(self.malformed)
    }

    /// Its length as rules and counters have it: that of the IP packet, the same at every hook; for what is not IP or
    /// malformed the length `otherwise`, in which there is nothing better to believe.
    #[inline(always)]
    pub fn bytes(&self, otherwise: u64) -> u64 {
        let is_ip = self.reason != Reason::Malformed as u32 && self.headers.ip_version != 0;
        let end = self.headers.payload_end();
        // A jumbogram says 0; it ends where the packet does.
        if !is_ip || end == usize::MAX {
            return otherwise;
        }
        (end - self.headers.network_offset) as u64
    }

    #[inline(never)]
    fn read_headers<P: Parse>(&mut self, packet: &P, veil: Veil) -> bool {
        match packet.headers() {
            Ok(headers) => self.headers = headers,
            Err(malformed) => return self.refuse(malformed.into()),
        }
        self.headers.ip_version = veil.over(u64::from(self.headers.ip_version)) as u8;
        self.headers.payload_offset = veil.over(self.headers.payload_offset as u64) as usize;
        self.headers.network_offset = veil.over(self.headers.network_offset as u64) as usize;
        true
    }

    #[inline(never)]
    fn find_upper<P: Parse>(&mut self, packet: &P, veil: Veil) -> bool {
        match Upper::find(packet, &self.headers) {
            Ok(upper) => self.upper = upper,
            Err(malformed) => return self.refuse(malformed),
        }
        self.upper.offset = veil.over(self.upper.offset as u64) as usize;
        self.upper.fragment_id = veil.over(u64::from(self.upper.fragment_id)) as u32;
        true
    }

    #[inline(never)]
    fn read_transport<P: Parse>(&mut self, packet: &P, veil: Veil) -> bool {
        match Transport::read(packet, &self.headers, &self.upper) {
            Ok(transport) => self.key = Key::of(&self.headers, &self.upper, &transport).behind(veil),
            Err(malformed) => return self.refuse(malformed),
        }
        true
    }

    #[inline(always)]
    fn refuse(&mut self, malformed: Malformed) -> bool {
        self.malformed = malformed;
        false
    }

    /// Returns not 0 if the packet is to be blocked. (A function that returns nothing may leave a pointer to the stack in
    /// the register for results, which the verifier refuses.)
    #[inline(never)]
    fn judge<T: Tables>(&mut self, direction: Direction, is_loopback: bool, classifier: &Classifier<'_, T>) -> u32 {
        let decision = if self.headers.ip_version == 0 {
            classifier.decide_without_ip(direction)
        } else {
            classifier.decide(&self.key, direction, is_loopback)
        };
        self.keep(decision, classifier.veil)
    }

    #[inline(always)]
    fn keep(&mut self, decision: Decision, veil: Veil) -> u32 {
        self.reason = veil.over(u64::from(decision.reason as u32)) as u32;
        self.rule = decision.rule;
        self.rule.id = veil.over(u64::from(decision.rule.id)) as u32;
        self.rule.mode = veil.over(u64::from(decision.rule.mode)) as u8;
        self.logged = veil.over(decision.logged);
        veil.over(u64::from(decision.blocks)) as u32
    }
}
