//! From a packet's bytes to what becomes of it, in the order in which it is decided: parse, essentials, classify, act.

use lab01_count_packets_common::{
    headers::{self, Headers},
    packet::{Cursor, Header, Packet},
};
use lab02_xdp_firewall_common::transport::{Malformed, Transport, Upper};

use crate::{
    classify::{Classifier, NO_RULE, Question},
    control::Mode,
    counters::{Outcome, Reason},
    key::{Direction, Essential, Hook, Key, LOOPBACK, NO_MAC, Socket, UpperKey, mac_number},
    limit::Hashes,
    table::{Action, Kind, Rule, RuleMode, Tables, has},
    veil::Veil,
};

/// A packet that knows with which header it begins.
pub trait Parse: Packet {
    /// Reads its link and network headers.
    fn headers(&self) -> Result<Headers, headers::Malformed>;

    /// The MAC address of its sender, the first octet highest; [`NO_MAC`] without an Ethernet header.
    #[inline(always)]
    fn source_mac(&self) -> u64 {
        NO_MAC
    }
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

    #[inline(always)]
    fn source_mac(&self) -> u64 {
        // A number always, and no array that is only sometimes there: of that, the compiler may keep bytes that were never
        // written, which the verifier refuses.
        self.0.read(6).map_or(NO_MAC, mac_number)
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
    /// The index of its interface.
    pub interface: u32,
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
    /// The number of the rule in the order of matching, where one is the reason; else [`NO_RULE`].
    pub number: u32,
    /// The rule.
    pub rule: Rule,
    /// What was asked, for those who want to know which rules only count it.
    pub question: Question,
}

/// Decides about packets by a policy.
impl<T: Tables> Classifier<'_, T> {
    /// Decides about a packet of IP: essentials, classify.
    #[inline(always)]
    pub fn decide(&self, key: &Key, metadata: u64, direction: Direction, is_loopback: bool) -> Decision {
        let (question, otherwise) = self.ask(key, metadata, direction, is_loopback);
        let number = self.tables.first_match(question);
        match self.rule(number) {
            None => Decision { question, ..otherwise },
            Some(rule) => Decision {
                blocks: rule.action & Action::Block as u8,
                reason: Reason::Rule,
                number,
                rule,
                question,
            },
        }
    }

    /// Whether there is anything to be known of a packet beside its class in each field.
    #[inline(always)]
    fn looks_metadata_up(&self) -> bool {
        self.config.metadata.asks != 0 || self.config.has & has::LIMITS != 0
    }

    /// Whether a rule blocks a packet of IP that has passed the interface, by whose socket it is for.
    pub fn decide_at_socket(&self, key: &Key, metadata: u64, is_loopback: bool) -> Option<Decision> {
        let (question, _) = self.ask(key, metadata, Direction::Ingress, is_loopback);
        let question = question.at_socket();
        let number = self.tables.first_match(question);
        let rule = self.rule(number)?;
        Some(Decision {
            blocks: rule.action & Action::Block as u8,
            reason: Reason::Rule,
            number,
            rule,
            question,
        })
    }

    /// What to ask about a packet of IP, and what holds if no rule answers.
    #[inline(always)]
    fn ask(&self, key: &Key, metadata: u64, direction: Direction, is_loopback: bool) -> (Question, Decision) {
        // ANCHOR: ask
        let (kind, otherwise) = match self.essential(key, direction, is_loopback) {
            None => (Kind::Ordinary as u32, self.by_default(direction)),
            Some(essential) => (Kind::Essential as u32 + essential as u32, BY_ESSENTIALS),
        };
        (self.question(key, metadata, direction, kind), otherwise)
        // ANCHOR_END: ask
    }

    /// What to ask about a frame that is not IP, and what holds if no rule answers.
    #[inline(always)]
    fn ask_without_ip(&self, metadata: u64, direction: Direction, is_loopback: bool) -> (Question, Decision) {
        let (kind, otherwise) = if self.config.essentials == 0 {
            (Kind::NotIp, self.by_default(direction))
        } else if is_loopback {
            (Kind::NotIpByLoopback, BY_ESSENTIALS)
        } else {
            (Kind::NotIp, BY_ESSENTIALS)
        };
        (self.question_without_ip(metadata, direction, kind as u32), otherwise)
    }

    #[inline(always)]
    fn essential(&self, key: &Key, direction: Direction, is_loopback: bool) -> Option<Essential> {
        if self.config.essentials == 0 {
            return None;
        }
        key.essential(direction, is_loopback)
    }

    #[inline(always)]
    fn by_default(&self, direction: Direction) -> Decision {
        let blocks = match direction {
            Direction::Ingress => self.config.block_ingress,
            Direction::Egress => self.config.block_egress,
        };
        Decision { blocks, ..BY_DEFAULT }
    }

    /// The rule of this number; none for [`NO_RULE`].
    #[inline(always)]
    fn rule(&self, number: u32) -> Option<Rule> {
        if number == NO_RULE {
            return None;
        }
        self.tables.rule(self.config.first_rule + number)
    }
}

const BY_DEFAULT: Decision = Decision {
    blocks: 0,
    reason: Reason::Default,
    number: NO_RULE,
    rule: WITHOUT_RULE,
    question: NOTHING_ASKED,
};

const BY_ESSENTIALS: Decision = Decision {
    reason: Reason::Essential,
    ..BY_DEFAULT
};

const WITHOUT_RULE: Rule = Rule {
    id: 0,
    action: 0,
    mode: 0,
    limit: 0,
};

/// About a packet that no rule was asked about: there is no such kind, so none counts it either.
const NOTHING_ASKED: Question = Question {
    addresses: 0,
    ports: 0,
    rest: 0xf << 12,
};

/// The packet that is being decided about: its headers, and then the decision.
///
/// The stages are functions of their own that talk through this, and not inlined: see lab02's `Inspection` on why. Of the
/// stack's 512 bytes a program at `cgroup_skb` has this and all that it calls, so the fields are as few as can be.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Inspection {
    headers: Headers,
    upper: Upper,
    behind: UpperKey,
    malformed: Malformed,
    /// A [`Reason`].
    reason: u8,
    /// Not 0 if it is to be blocked.
    blocks: u8,
    /// The [`Mode`] of the control word.
    mode: u8,
    padding: u8,
    /// The number of the rule in the order of matching.
    number: u32,
    /// Its hashes, if there are rates. Taken early: once the fields are looked up, the verifier need not tell apart any
    /// more what stood in the headers.
    hashes: Hashes,
    rule: Rule,
    question: Question,
}

impl Inspection {
    /// Of no packet yet.
    pub const EMPTY: Self = Self {
        headers: Headers::EMPTY,
        upper: Upper::EMPTY,
        behind: UpperKey::EMPTY,
        malformed: Malformed::EthernetTruncated,
        reason: 0,
        blocks: 0,
        mode: 0,
        padding: 0,
        number: NO_RULE,
        hashes: Hashes { source: 0, flow: 0 },
        rule: WITHOUT_RULE,
        question: NOTHING_ASKED,
    };

    /// Decides about `packet`, of this socket. What was decided about the last one is forgotten.
    #[inline(always)]
    pub fn decide<P: Parse, S: Socket, T: Tables>(
        &mut self,
        packet: &P,
        socket: &S,
        place: &Place,
        classifier: &Classifier<'_, T>,
    ) {
        self.mode = classifier.veil().over(place.mode as u64) as u8;
        // ANCHOR: stages
        if self.parse(packet, classifier.veil()) {
            self.question.rest = 0;
            if classifier.looks_metadata_up() {
                self.look_metadata_up(packet, socket, place.interface, classifier);
            }
            self.ask(place.hook.direction(), place.interface == LOOPBACK, *classifier);
            self.judge(classifier);
        } else {
            self.question = NOTHING_ASKED;
            self.number = NO_RULE;
            self.rule = WITHOUT_RULE;
            self.reason = Reason::Malformed as u8;
            self.blocks = classifier.config.block_malformed;
        }
        // ANCHOR_END: stages
    }

    /// Whether a rule blocks a packet that has passed the interface, by whose socket it is for. What was decided about the
    /// last packet is forgotten.
    #[inline(always)]
    pub fn is_blocked_at_socket<P: Parse, S: Socket, T: Tables>(
        &mut self,
        packet: &P,
        socket: &S,
        place: &Place,
        classifier: &Classifier<'_, T>,
    ) -> bool {
        self.mode = classifier.veil().over(place.mode as u64) as u8;
        if !self.parse(packet, classifier.veil()) {
            self.headers.ip_version = 0;
        }
        self.look_metadata_up(packet, socket, place.interface, classifier);
        self.ask(Direction::Ingress, place.interface == LOOPBACK, *classifier);
        self.question = self.question.at_socket();
        self.judge(classifier);
        self.number != NO_RULE
    }

    /// Whether the rule that decided lets only so much pass: then [`Inspection::charge`] says whether this packet does.
    #[inline(always)]
    pub fn is_limited(&self) -> bool {
        self.rule.action == Action::RateLimit as u8
    }

    /// Takes the tokens of a packet that meets a rule with a rate; `otherwise` as for [`Inspection::bytes`]. (Returns
    /// something: see below.)
    #[inline(never)]
    pub fn charge<T: Tables>(&mut self, otherwise: u64, classifier: Classifier<'_, T>) -> u32 {
        // ANCHOR: charge
        let Classifier { config, tables } = classifier;
        let Some(limit) = tables.limit(config.first_limit + u32::from(self.rule.limit)) else {
            return 0;
        };
        let bucket = limit.bucket(self.rule.id, self.hashes);
        let cost_ns = limit.cost_ns(self.bytes(otherwise));
        let is_within = tables.take_tokens(bucket, cost_ns, limit.burst_ns(cost_ns));
        // ANCHOR_END: charge
        self.blocks = classifier.veil().over(u64::from(!is_within)) as u8;
        0
    }

    /// Why it meets its verdict.
    #[inline(always)]
    pub fn reason(&self) -> Reason {
        Reason::from_index(u32::from(self.reason))
    }

    /// What becomes of it.
    #[inline(always)]
    pub fn outcome(&self) -> Outcome {
        // ANCHOR: outcome
        if self.blocks == 0 {
            return Outcome::Passed;
        }
        let blocks = match self.rule.mode {
            mode if mode == RuleMode::Observe as u8 => false,
            mode if mode == RuleMode::Block as u8 => true,
            _ => self.mode == Mode::Block as u8,
        };
        if blocks { Outcome::Dropped } else { Outcome::Observed }
        // ANCHOR_END: outcome
    }

    /// The rule that is the reason, if one is.
    #[inline(always)]
    pub fn rule(&self) -> Option<Rule> {
        (self.reason == Reason::Rule as u8).then_some(self.rule)
    }

    /// What was asked about it, and the number of the rule that decided, before which those come that only count; or
    /// [`NO_RULE`].
    #[inline(always)]
    pub fn asked(&self) -> (Question, u32) {
        (self.question, self.number)
    }

    /// In which way it is malformed.
    #[inline(always)]
    pub fn malformed(&self) -> Option<Malformed> {
        (self.reason == Reason::Malformed as u8).then_some(self.malformed)
    }

    /// Its length as rules and counters have it: that of the IP packet, the same at every hook; for what is not IP or
    /// malformed the length `otherwise`, in which there is nothing better to believe.
    #[inline(always)]
    pub fn bytes(&self, otherwise: u64) -> u64 {
        let is_ip = self.reason != Reason::Malformed as u8 && self.headers.ip_version != 0;
        let end = self.headers.payload_end();
        // A jumbogram says 0; it ends where the packet does.
        if !is_ip || end == usize::MAX {
            return otherwise;
        }
        (end - self.headers.network_offset) as u64
    }

    /// Reads the headers; false if they are malformed.
    #[inline(never)]
    fn parse<P: Parse>(&mut self, packet: &P, veil: Veil) -> bool {
        self.read_headers(packet, veil) && self.find_upper(packet, veil) && self.read_transport(packet, veil)
    }

    #[inline(always)]
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

    #[inline(always)]
    fn find_upper<P: Parse>(&mut self, packet: &P, veil: Veil) -> bool {
        match Upper::find(packet, &self.headers) {
            Ok(upper) => self.upper = upper,
            Err(malformed) => return self.refuse(malformed),
        }
        self.upper.offset = veil.over(self.upper.offset as u64) as usize;
        self.upper.fragment_id = veil.over(u64::from(self.upper.fragment_id)) as u32;
        true
    }

    #[inline(always)]
    fn read_transport<P: Parse>(&mut self, packet: &P, veil: Veil) -> bool {
        match Transport::read(packet, &self.headers, &self.upper) {
            Ok(transport) => self.behind = UpperKey::of(&self.upper, &transport, veil),
            Err(malformed) => return self.refuse(malformed),
        }
        true
    }

    #[inline(always)]
    fn refuse(&mut self, malformed: Malformed) -> bool {
        self.malformed = malformed;
        false
    }

    /// Takes the packet's hashes, looks up what is known beside the headers, and keeps the number of its class where the
    /// question will have it. (Returns something: see below.)
    #[inline(never)]
    fn look_metadata_up<P: Parse, S: Socket, T: Tables>(
        &mut self,
        packet: &P,
        socket: &S,
        interface: u32,
        classifier: &Classifier<'_, T>,
    ) -> u32 {
        if classifier.config.has & has::LIMITS != 0 {
            self.hashes = Hashes::of(&self.headers, &self.behind, classifier.config.bucket_key);
        }
        self.question.rest = classifier.metadata(interface, packet.source_mac(), socket);
        0
    }

    /// Looks the fields up, and keeps what holds if no rule answers. (Returns something, since a function that returns
    /// nothing may leave a pointer to the stack in the register for results, which the verifier refuses.)
    #[inline(never)]
    fn ask<T: Tables>(&mut self, direction: Direction, is_loopback: bool, classifier: Classifier<'_, T>) -> u32 {
        let metadata = self.question.rest;
        let (question, otherwise) = if self.headers.ip_version == 0 {
            classifier.ask_without_ip(metadata, direction, is_loopback)
        } else {
            let key = Key {
                source: self.headers.source,
                destination: self.headers.destination,
                ip_version: self.headers.ip_version,
                upper: self.behind,
            };
            classifier.ask(&key, metadata, direction, is_loopback)
        };
        self.question = question;
        self.reason = classifier.veil().over(u64::from(otherwise.reason as u32)) as u8;
        self.blocks = classifier.veil().over(u64::from(otherwise.blocks)) as u8;
        0
    }

    /// Has the first rule that matches decide.
    #[inline(always)]
    fn judge<T: Tables>(&mut self, classifier: &Classifier<'_, T>) {
        // ANCHOR: judge
        self.number = classifier.tables.first_match(self.question);
        self.rule = WITHOUT_RULE;
        if let Some(rule) = classifier.rule(self.number) {
            self.rule = rule;
            self.reason = Reason::Rule as u8;
            self.blocks = rule.action & Action::Block as u8;
        }
        // ANCHOR_END: judge
    }
}
