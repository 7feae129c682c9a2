//! From a packet's bytes to what becomes of it, in the order in which it is decided: parse, essentials, classify, act.

use core::hint::black_box;

use lab01_count_packets_common::{
    headers::{self, Address, Headers},
    packet::{Cursor, Header, Packet},
};
use lab02_xdp_firewall_common::transport::{Malformed, Part, TCP, Transport, Upper};
use lab03_tc_egress_common::{
    decide::FlowEvent,
    flow::{
        key::{Endpoint, FlowKey},
        state::{Signal, State},
        table::{self, Buckets as _, Flow, Inserted},
        track::{self, Behind, NEXT_ANEW, Subject},
    },
};

use crate::{
    classify::{Classifier, NO_RULE, Question},
    control::Mode,
    counters::{Outcome, Reason},
    flow::{self, Flows, NOTHING, Note, Plan, REVERSED, Verdict, how, todo},
    key::{Direction, Essential, Hook, Key, LOOPBACK, NO_MAC, Socket, UnknownSocket, UpperKey, mac_number},
    limit::Hashes,
    table::{Action, Config, Kind, Rule, RuleMode, Tables, has},
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
    /// What is made of a packet of IP that is asked about as one of this kind.
    #[inline(always)]
    pub fn decide(&self, key: &Key, metadata: u64, direction: Direction, kind: u32) -> Decision {
        let question = self.question(key, metadata, direction, kind);
        let number = self.tables.first_match(question);
        match self.rule(number) {
            None => {
                let (reason, blocks) = self.otherwise(kind, direction);
                Decision {
                    blocks,
                    reason: Reason::from_index(u32::from(reason)),
                    number,
                    rule: WITHOUT_RULE,
                    question,
                }
            }
            Some(rule) => Decision {
                blocks: rule.action & Action::Block as u8,
                reason: Reason::Rule,
                number,
                rule,
                question,
            },
        }
    }

    /// Whether a rule blocks a packet of IP of this kind that has passed the interface, by whose socket it is for.
    pub fn decide_at_socket(&self, key: &Key, metadata: u64, kind: u32) -> Option<Decision> {
        let question = self.question(key, metadata, Direction::Ingress, kind).at_socket();
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

    /// What holds about a packet of a kind if no rule answers: why, and not 0 if it is blocked.
    #[inline(always)]
    fn otherwise(&self, kind: u32, direction: Direction) -> (u8, u8) {
        // The essentials, and what is not IP, which is among them.
        let is_essential =
            kind.wrapping_sub(Kind::Essential as u32) <= Kind::NotIpByLoopback as u32 - Kind::Essential as u32;
        if is_essential && self.config.essentials != 0 {
            return (Reason::Essential as u8, 0);
        }
        let blocks = match direction {
            Direction::Ingress => self.config.block_ingress,
            Direction::Egress => self.config.block_egress,
        };
        (Reason::Default as u8, blocks)
    }

    /// As what a packet is asked about that begins a flow, or of which nothing is known.
    #[inline(always)]
    pub fn kind(&self, upper: &UpperKey, ip_version: u8, direction: Direction, is_loopback: bool) -> u32 {
        let essential = if self.config.essentials == 0 {
            None
        } else if ip_version == 0 {
            return if is_loopback {
                Kind::NotIpByLoopback
            } else {
                Kind::NotIp
            } as u32;
        } else {
            upper.essential(ip_version, direction, is_loopback)
        };
        match essential {
            Some(essential) => Kind::Essential as u32 + essential as u32,
            None if ip_version == 0 => Kind::NotIp as u32,
            None => Kind::Ordinary as u32,
        }
    }

    /// The rule of this number; none for [`NO_RULE`].
    #[inline(always)]
    pub(crate) fn rule(&self, number: u32) -> Option<Rule> {
        if number == NO_RULE {
            return None;
        }
        self.tables.rule(self.config.first_rule + number)
    }
}

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
    behind: UpperKey,
    note: Note,
    /// A [`Reason`].
    reason: u8,
    /// Not 0 if it is to be blocked.
    blocks: u8,
    /// The [`Mode`] of the control word.
    mode: u8,
    /// A [`Malformed`].
    malformed: u8,
    /// The number of the rule in the order of matching.
    number: u32,
    /// Its hashes, if there are rates. Taken early: once the fields are looked up, the verifier need not tell apart any
    /// more what stood in the headers.
    hashes: Hashes,
    rule: Rule,
    /// The index of its interface.
    interface: u32,
    /// What the packet meets that begins its flow: a [`Verdict`].
    verdict: u32,
    question: Question,
}

const _: () = assert!(size_of::<Inspection>() == 136);

impl Inspection {
    /// Of no packet yet.
    pub const EMPTY: Self = Self {
        headers: Headers::EMPTY,
        behind: UpperKey::EMPTY,
        note: Note::EMPTY,
        reason: 0,
        blocks: 0,
        mode: 0,
        malformed: 0,
        number: NO_RULE,
        hashes: Hashes { source: 0, flow: 0 },
        rule: WITHOUT_RULE,
        interface: 0,
        verdict: 0,
        question: NOTHING_ASKED,
    };

    /// Decides about `packet`, of this socket, whose length is `otherwise` where its headers do not say. What was decided
    /// about the last one is forgotten. (The packet is taken anew for each stage: how far it was read, of which the verifier
    /// keeps account, would tell the ways through the next one apart.)
    #[inline(always)]
    pub fn decide<P: Parse, S: Socket, T: Tables, F: Flows>(
        &mut self,
        packet: impl Fn() -> P,
        socket: S,
        otherwise: impl Fn() -> u64,
        place: &Place,
        classifier: &Classifier<'_, T>,
        flows: &F,
    ) {
        self.mode = classifier.veil().over(place.mode as u64) as u8;
        self.interface = place.interface;
        let hook = place.hook;
        // ANCHOR: stages
        if self.parse(&packet(), classifier.veil()) {
            if classifier.config.has & has::LIMITS != 0 {
                self.hashes = self.hashes_of(classifier.config.bucket_key);
            }
            let plan = self.follow(&packet(), hook, classifier, flows);
            let plan = Plan(classifier.veil().over(plan.0));
            self.take(plan, classifier.veil());
            if plan.first() != NOTHING {
                self.ask(plan.first(), &packet, socket, hook, classifier);
                self.answer(&otherwise, classifier);
            }
            if self.note.second != NOTHING && self.asks_again() {
                self.ask(self.note.second & !REVERSED, &packet, socket, hook, classifier);
                self.answer(&otherwise, classifier);
            }
            let rule = classifier.rule(self.number).unwrap_or(WITHOUT_RULE);
            self.rule = Rule::from_word(classifier.veil().over(rule.word()));
        } else {
            self.be_malformed(classifier.config);
        }
        // ANCHOR_END: stages
    }

    /// Whether a rule blocks a packet that has passed the interface, by whose socket it is for. What was decided about the
    /// last packet is forgotten. An answer to what was asked from here is none of its business: it belongs to the flow of the
    /// question.
    #[inline(always)]
    pub fn is_blocked_at_socket<P: Parse, S: Socket, T: Tables, F: Flows>(
        &mut self,
        packet: impl Fn() -> P,
        socket: S,
        place: &Place,
        classifier: &Classifier<'_, T>,
        flows: &F,
    ) -> bool {
        let veil = classifier.veil();
        self.mode = veil.over(place.mode as u64) as u8;
        self.interface = place.interface;
        self.note.how = veil.over(0) as u8;
        if !self.parse(&packet(), veil) {
            self.headers.ip_version = veil.over(0) as u8;
        }
        let kind = veil.over(u64::from(self.kind_at_socket(&packet(), classifier, flows))) as u8;
        if kind == NOTHING {
            return false;
        }
        self.ask(kind, &packet, socket, place.hook, classifier);
        let question = self.question.at_socket();
        let number = classifier.tables.first_match(question);
        let Some(rule) = classifier.rule(number) else {
            return false;
        };
        self.question = question;
        self.number = number;
        self.rule = rule;
        self.reason = Reason::Rule as u8;
        self.blocks = 1;
        true
    }

    /// As what a packet is asked about at its socket, or [`NOTHING`].
    #[inline(never)]
    fn kind_at_socket<P: Parse, T: Tables, F: Flows>(
        &mut self,
        packet: &P,
        classifier: &Classifier<'_, T>,
        flows: &F,
    ) -> u8 {
        let (config, direction) = (classifier.config, Direction::Ingress);
        let is_loopback = self.interface == LOOPBACK;
        let kind = classifier.kind(&self.behind, self.headers.ip_version, direction, is_loopback);
        if !self.is_followed(config, kind) {
            return kind as u8;
        }
        let Some(found) = self.find_flow(packet, direction, classifier, flows) else {
            return kind as u8;
        };
        // SAFETY: a flow in a table is valid for as long as the table is, and it is not read if there is none.
        let is_known = !found.flow.is_null() && unsafe { (*found.flow).expires_ns } > flows.now_ns();
        if !is_known {
            return if !found.is_error && begins_nothing(found.protocol(), found.signal()) {
                Kind::Invalid as u8
            } else {
                kind as u8
            };
        }
        // SAFETY: as above.
        let from_originator = unsafe { (*found.flow).originator_is_low != 0 } == found.from_low;
        if found.is_error {
            if config.has & has::RELATED != 0 {
                Kind::Related as u8
            } else {
                NOTHING
            }
        } else if from_originator {
            kind as u8
        } else if config.has & has::ESTABLISHED != 0 {
            Kind::Established as u8
        } else {
            NOTHING
        }
    }

    /// Whether the rule that decided lets only so much pass: then [`Inspection::charge`] says whether this packet does.
    #[inline(always)]
    pub fn is_limited(&self) -> bool {
        self.rule.action == Action::RateLimit as u8
    }

    /// Takes the tokens of a packet that meets a rule with a rate; `otherwise` as for [`Inspection::bytes`].
    #[inline(always)]
    pub fn charge<T: Tables>(&mut self, otherwise: u64, classifier: Classifier<'_, T>) {
        let is_within = self.takes_tokens(otherwise, classifier);
        self.blocks = classifier.veil().over(u64::from(!is_within)) as u8;
    }

    #[inline(never)]
    fn takes_tokens<T: Tables>(&self, otherwise: u64, classifier: Classifier<'_, T>) -> bool {
        // ANCHOR: charge
        let Classifier { config, tables } = classifier;
        let Some(limit) = tables.limit(config.first_limit + u32::from(self.rule.limit)) else {
            return true;
        };
        let bucket = limit.bucket(self.rule.id, self.hashes);
        let cost_ns = limit.cost_ns(self.bytes(otherwise));
        tables.take_tokens(bucket, cost_ns, limit.burst_ns(cost_ns))
        // ANCHOR_END: charge
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

    /// The number of the rule that decided, or [`NO_RULE`].
    #[inline(always)]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// What was asked about it last.
    #[inline(always)]
    pub fn asked(&self) -> Question {
        self.question
    }

    /// In which way it is malformed: [`Malformed::index`].
    #[inline(always)]
    pub fn malformed(&self) -> Option<u32> {
        (self.reason == Reason::Malformed as u8).then_some(u32::from(self.malformed))
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
        match packet.headers() {
            Ok(headers) => self.headers = headers,
            Err(malformed) => return self.refuse(malformed.into()),
        }
        self.headers.ip_version = veil.over(u64::from(self.headers.ip_version)) as u8;
        self.headers.payload_offset = veil.over(self.headers.payload_offset as u64) as usize;
        self.headers.network_offset = veil.over(self.headers.network_offset as u64) as usize;
        let upper = match Upper::find(packet, &self.headers) {
            Ok(upper) => upper,
            Err(malformed) => return self.refuse(malformed),
        };
        self.note.upper_offset = veil.over(upper.offset as u64) as u16;
        self.note.is_later = veil.over(u64::from(upper.part as u8 == Part::Later as u8)) as u8;
        match Transport::read(packet, &self.headers, &upper) {
            Ok(transport) => self.behind = UpperKey::of(&upper, &transport, veil),
            Err(malformed) => return self.refuse(malformed),
        }
        self.headers.source = veiled(self.headers.source, veil);
        self.headers.destination = veiled(self.headers.destination, veil);
        true
    }

    #[inline(always)]
    fn refuse(&mut self, malformed: Malformed) -> bool {
        self.malformed = malformed as u8;
        false
    }

    #[inline(always)]
    fn be_malformed(&mut self, config: &Config) {
        // ANCHOR: malformed
        self.note.todo = 0;
        self.question = NOTHING_ASKED;
        self.number = NO_RULE;
        self.rule = WITHOUT_RULE;
        self.reason = Reason::Malformed as u8;
        self.blocks = config.block_malformed;
        // ANCHOR_END: malformed
    }

    #[inline(never)]
    fn hashes_of(&self, key: [u64; 2]) -> Hashes {
        Hashes::of(&self.headers, &self.behind, key)
    }

    /// Finds out what is to be asked about the packet, by the flow that it belongs to; and has the flow learn of it. Keeps
    /// the verdict that the flow has.
    #[inline(never)]
    fn follow<P: Parse, T: Tables, F: Flows>(
        &mut self,
        packet: &P,
        hook: Hook,
        classifier: &Classifier<'_, T>,
        flows: &F,
    ) -> Plan {
        let config = classifier.config;
        let direction = hook.direction();
        let ip_version = self.headers.ip_version;
        self.reason = Reason::Default as u8;
        let kind = classifier.kind(&self.behind, ip_version, direction, self.interface == LOOPBACK);
        if !self.is_followed(config, kind) {
            return Plan::asking(kind as u8);
        }
        let Some(found) = self.find_flow(packet, direction, classifier, flows) else {
            return Plan::asking(kind as u8);
        };
        let (protocol, signal) = (found.protocol(), found.signal());
        let Found {
            flow,
            is_half_open,
            from_low,
            is_error,
            ..
        } = found;
        if flow.is_null() {
            return if is_error {
                Plan::asking(kind as u8)
            } else {
                of_no_flow(protocol, signal, false)
            };
        }
        let now_ns = flows.now_ns();
        // SAFETY: a flow in a table is valid for as long as the table is.
        let (state, word, is_current, expires_ns) = unsafe {
            let word = (*flow).rule;
            (
                (*flow).state,
                word as u32,
                word >> 32 == config.generation,
                (*flow).expires_ns,
            )
        };
        if is_error {
            self.verdict = word;
            return if expires_ns > now_ns {
                of_error(config, is_current)
            } else {
                Plan::asking(kind as u8)
            };
        }
        // SAFETY: as above.
        let next = unsafe { track::next(flow, from_low, signal, now_ns) };
        if next.state == NEXT_ANEW {
            return of_no_flow(protocol, signal, !is_half_open);
        }
        let is_first = next.from_originator && (state == State::SynSent as u8 || state == State::Unreplied as u8);
        // SAFETY: as above.
        unsafe { track::advance(flow, next, &config.flows.idle_ns, now_ns, self.bytes(0)) };
        self.verdict = word;
        let plan = of_flow(config, is_current, is_first, next.from_originator);
        if is_half_open && State::from_number(next.state).is_some_and(State::is_proven) {
            plan.with_todo(todo::PROMOTE)
        } else {
            plan
        }
    }

    /// Whether a packet of this kind can belong to a flow.
    #[inline(always)]
    fn is_followed(&self, config: &Config, kind: u32) -> bool {
        config.flows.established_buckets != 0 && kind == Kind::Ordinary as u32 && self.note.is_later == 0
    }

    /// Finds the flow that a packet belongs to, or that it is an error about; and keeps by which ports. `None` if it has
    /// nothing to do with flows.
    #[inline(always)]
    fn find_flow<P: Parse, T: Tables, F: Flows>(
        &mut self,
        packet: &P,
        direction: Direction,
        classifier: &Classifier<'_, T>,
        flows: &F,
    ) -> Option<Found> {
        let behind = Behind {
            offset: usize::from(self.note.upper_offset),
            protocol: self.behind.protocol,
            tcp_flags: self.behind.tcp_flags,
            icmp_type: self.behind.icmp_type,
            source_port: self.behind.source_port,
            destination_port: self.behind.destination_port,
        };
        let subject = Subject::of(packet, &self.headers, &behind);
        // Behind a veil, or the rest would be followed for every signal and every way to quote a packet.
        let veil = classifier.veil();
        let ports = u64::from(subject.source.port) | u64::from(subject.destination.port) << 16;
        let about = u64::from(subject.protocol) | (subject.signal as u64) << 8 | (subject.kind as u64) << 16;
        let ports = veil.over(ports);
        let about = veil.over(about);
        if (about >> 16) as u8 == track::Kind::Other as u8 {
            return None;
        }
        let is_error = (about >> 16) as u8 == track::Kind::Error as u8;
        let source = end(veiled(subject.source.address, veil), ports as u16);
        let destination = end(veiled(subject.destination.address, veil), (ports >> 16) as u16);
        self.note.source_port = source.port;
        self.note.destination_port = destination.port;
        self.note.signal = (about >> 8) as u8;
        let goes_out = (direction == Direction::Egress) != is_error;
        let (key, from_low) = flow_key(self.headers.ip_version, about as u8, source, destination, goes_out);
        let (flow, is_half_open) = find(flows, &classifier.config.flows, &key);
        Some(Found {
            flow,
            is_half_open,
            from_low,
            is_error,
            about,
        })
    }

    /// Takes what was found out, and the verdict that the flow has, if it holds.
    #[inline(always)]
    fn take(&mut self, plan: Plan, veil: Veil) {
        self.note.second = plan.second();
        self.note.how = plan.how();
        self.note.todo = plan.todo();
        let mut verdict = Verdict::from_word(self.verdict);
        if plan.how() & how::PRESET == 0 {
            verdict = Verdict::new(NO_RULE, Reason::Default as u8, false);
        } else if plan.how() & how::OUTDATED != 0 {
            verdict = verdict.without_rule();
        }
        self.verdict = veil.over(u64::from(verdict.word())) as u32;
        let verdict = Verdict::from_word(self.verdict);
        self.number = verdict.number();
        self.reason = verdict.reason();
        self.blocks = u8::from(verdict.blocks());
    }

    /// Whether what is to be asked then is asked; and prepares it.
    #[inline(never)]
    fn asks_again(&mut self) -> bool {
        if self.note.how & how::IF_PASSES != 0 && self.blocks == 0 {
            return false;
        }
        self.note.how |= how::IS_SECOND;
        if self.note.second & REVERSED != 0 {
            core::mem::swap(&mut self.headers.source, &mut self.headers.destination);
            core::mem::swap(&mut self.note.source_port, &mut self.note.destination_port);
            self.behind = self.behind.reversed();
            self.note.how |= how::IS_REVERSED;
        }
        true
    }

    /// Which way the packet goes that is asked about.
    #[inline(always)]
    fn direction(&self, hook: Hook) -> Direction {
        let direction = hook.direction();
        if self.note.how & how::IS_REVERSED != 0 {
            direction.reversed()
        } else {
            direction
        }
    }

    /// Looks everything up that is known of the packet.
    #[inline(always)]
    fn ask<P: Parse, S: Socket, T: Tables>(
        &mut self,
        kind: u8,
        packet: impl Fn() -> P,
        socket: S,
        hook: Hook,
        classifier: &Classifier<'_, T>,
    ) {
        self.question.rest = classifier.veil().over(0);
        if classifier.config.metadata.asks != 0 {
            self.question.rest = self.metadata(&packet(), socket, classifier);
        }
        self.question.rest = self.look_fields_up(kind, self.direction(hook), *classifier);
    }

    /// Looks up what is known beside the headers: the number of its class.
    #[inline(never)]
    fn metadata<P: Parse, S: Socket, T: Tables>(&self, packet: &P, socket: S, classifier: &Classifier<'_, T>) -> u64 {
        if self.note.how & how::IS_REVERSED != 0 {
            classifier.metadata(self.interface, NO_MAC, UnknownSocket)
        } else {
            classifier.metadata(self.interface, packet.source_mac(), socket)
        }
    }

    /// Looks the fields up; the question's last part. (A function whose result is not used may leave a pointer to the stack
    /// in the register for results, which the verifier refuses.)
    #[inline(never)]
    fn look_fields_up<T: Tables>(&mut self, kind: u8, direction: Direction, classifier: Classifier<'_, T>) -> u64 {
        let metadata = self.question.rest;
        let kind = u32::from(kind);
        // ANCHOR: ask
        let question = if self.headers.ip_version == 0 {
            classifier.question_without_ip(metadata, direction, kind)
        } else {
            let key = Key {
                source: self.headers.source,
                destination: self.headers.destination,
                ip_version: self.headers.ip_version,
                upper: self.behind,
            };
            classifier.question(&key, metadata, direction, kind)
        };
        // ANCHOR_END: ask
        let veil = classifier.veil();
        self.question.addresses = veil.over(question.addresses);
        self.question.ports = veil.over(question.ports);
        veil.over(question.rest)
    }

    /// Has the first rule that matches decide, or what holds without one, and those count that only count.
    #[inline(always)]
    fn answer<T: Tables>(&mut self, otherwise: impl Fn() -> u64, classifier: &Classifier<'_, T>) {
        let number = classifier.tables.first_match(self.question);
        if classifier.config.has & has::COUNTING != 0 && !self.is_other_way() {
            let before = if number < self.number { number } else { self.number };
            let bytes = self.bytes(otherwise());
            classifier.tables.count_matches(self.question, before, bytes);
        }
        let number = self.judge(number, *classifier);
        self.number = classifier.veil().over(u64::from(number)) as u32;
    }

    /// Whether it is only asked whether the packet would pass the other way round.
    #[inline(always)]
    fn is_other_way(&self) -> bool {
        self.note.how & (how::IF_PASSES | how::IS_SECOND) == how::IF_PASSES | how::IS_SECOND
    }

    /// Keeps what the rule of this number says, or what holds without one, if it counts; the number of the rule that
    /// decides so far.
    #[inline(never)]
    fn judge<T: Tables>(&mut self, number: u32, classifier: Classifier<'_, T>) -> u32 {
        // ANCHOR: judge
        let question = self.question;
        let (reason, blocks) = match classifier.rule(number) {
            Some(rule) => (Reason::Rule as u8, rule.action & Action::Block as u8),
            None => classifier.otherwise(question.kind() as u32, question.direction_of()),
        };
        // ANCHOR_END: judge
        let veil = classifier.veil();
        let reason = veil.over(u64::from(reason)) as u8;
        let blocks = veil.over(u64::from(blocks)) as u8;
        let how = self.note.how;
        let kind = question.kind() as u32;
        if kind != Kind::Established as u32 && kind != Kind::Related as u32 {
            let verdict = Verdict::new(number, reason, blocks != 0);
            self.verdict = veil.over(u64::from(verdict.word())) as u32;
        }
        let is_other_way = self.is_other_way();
        if is_other_way && blocks != 0 {
            return self.number;
        }
        let holds_without_rule = if how & how::IS_SECOND != 0 {
            self.number == NO_RULE
        } else {
            how & how::PRESET == 0
        };
        if is_other_way || holds_without_rule || number < self.number {
            self.reason = reason;
            self.blocks = blocks;
            return number;
        }
        self.number
    }

    /// Whether the table of flows is to learn of what was decided: then [`Inspection::remember`].
    #[inline(always)]
    pub fn is_remembered(&self) -> bool {
        self.note.todo != 0
    }

    /// Has the table of flows learn of what was decided.
    #[inline(always)]
    pub fn remember<F: Flows>(&mut self, hook: Hook, config: &Config, flows: &F) {
        self.note.todo = self.has_remembered(self.direction(hook), config, flows);
    }

    /// Always 0, of which the compiler does not know: see above.
    #[inline(never)]
    fn has_remembered<F: Flows>(&self, direction: Direction, config: &Config, flows: &F) -> u8 {
        let settings = &config.flows;
        let source = end(self.headers.source, self.note.source_port);
        let destination = end(self.headers.destination, self.note.destination_port);
        let goes_out = direction == Direction::Egress;
        let (key, from_low) = flow_key(
            self.headers.ip_version,
            self.behind.protocol,
            source,
            destination,
            goes_out,
        );
        let todo = self.note.todo;
        if todo & todo::BEGIN != 0 {
            // Neither what is blocked begins a flow nor what would be.
            if self.blocks == 0 {
                self.begin(&key, from_low, config, flows);
            }
            return done();
        }
        let (flow, is_half_open) = find(flows, settings, &key);
        if flow.is_null() {
            return done();
        }
        if todo & todo::UPDATE != 0 {
            // SAFETY: a flow in a table is valid for as long as the table is.
            unsafe {
                (*flow).rule = self.verdict_of(config);
            }
        }
        if todo & todo::PROMOTE != 0 && is_half_open {
            promote(flow, &key, settings, flows);
        }
        done()
    }

    /// The verdict, and above it the policy that gave it: written at once, so that no other CPU takes the one for the
    /// other's.
    #[inline(always)]
    fn verdict_of(&self, config: &Config) -> u64 {
        u64::from(self.verdict) | config.generation << 32
    }

    #[inline(always)]
    fn begin<F: Flows>(&self, key: &FlowKey, from_low: bool, config: &Config, flows: &F) {
        let settings = &config.flows;
        // A reply without a request begins nothing, nor does TCP without SYN, which does not get here.
        let state = match self.note.signal {
            signal if signal == Signal::Syn as u8 => State::SynSent,
            signal if signal == Signal::Datagram as u8 => State::Unreplied,
            _ => return,
        };
        let now_ns = flows.now_ns();
        let hash = key.hash(settings.hash_key);
        if self.note.todo & todo::REMOVE != 0 {
            flows.buckets().release(established(hash, settings));
        }
        let flow = Flow {
            key: FlowKey::default(),
            state: state as u8,
            originator_is_low: u8::from(from_low),
            generation: 0,
            was_taken: 0,
            expires_ns: now_ns + settings.idle_ns.get(state as usize).copied().unwrap_or(0),
            packets: [1, 0],
            bytes: [self.bytes(0), 0],
            rule: self.verdict_of(config),
        };
        // SAFETY: it is here.
        let inserted =
            unsafe { table::insert(flows.buckets(), half_open(hash, settings), key, &raw const flow, now_ns) };
        flows.tally(FlowEvent::Created);
        if inserted == Inserted::Evicted {
            flows.tally(FlowEvent::EvictedHalfOpen);
        }
    }
}

/// Whether a packet can only belong to a flow that was there before: TCP without SYN.
#[inline(always)]
fn begins_nothing(protocol: u8, signal: Signal) -> bool {
    protocol == TCP && signal as u8 != Signal::Syn as u8
}

/// Of a packet that belongs to no flow; `is_left` if an entry is left of one that is over.
#[inline(always)]
fn of_no_flow(protocol: u8, signal: Signal, is_left: bool) -> Plan {
    // ANCHOR: of_no_flow
    if begins_nothing(protocol, signal) {
        return Plan::new(Kind::Invalid as u8, Kind::Invalid as u8 | REVERSED, how::IF_PASSES);
    }
    // ANCHOR_END: of_no_flow
    let plan = Plan::asking(Kind::Ordinary as u8).with_todo(todo::BEGIN);
    if is_left { plan.with_todo(todo::REMOVE) } else { plan }
}

/// Of an error about a flow.
#[inline(always)]
fn of_error(config: &Config, is_current: bool) -> Plan {
    if config.essentials != 0 {
        return Plan::asking(Kind::Essential as u8 + Essential::IcmpError as u8);
    }
    let first = if config.has & has::RELATED != 0 {
        Kind::Related as u8
    } else {
        NOTHING
    };
    let outdated = if is_current { 0 } else { how::OUTDATED };
    Plan::new(first, NOTHING, how::PRESET | outdated)
}

/// Of a packet of a flow: whether its verdict is of the policy in force, and whether nobody has answered yet and this is
/// the packet again that began it.
#[inline(always)]
fn of_flow(config: &Config, is_current: bool, is_first: bool, from_originator: bool) -> Plan {
    // ANCHOR: of_flow
    // What only the originator's packets show: the interface, the MAC address, the socket.
    let depends_on_more = config.metadata.asks != 0;
    let has_verdict = is_current && !(is_first && depends_on_more);
    let can_ask = from_originator || !depends_on_more;
    let original = match (
        can_ask && (!has_verdict || config.has & has::COUNTING != 0),
        from_originator,
    ) {
        (false, _) => NOTHING,
        (true, true) => Kind::Ordinary as u8,
        (true, false) => Kind::Ordinary as u8 | REVERSED,
    };
    let named = if !is_first && config.has & has::ESTABLISHED != 0 {
        Kind::Established as u8
    } else {
        NOTHING
    };
    // ANCHOR_END: of_flow
    match (has_verdict, can_ask) {
        (true, _) => Plan::new(named, original, how::PRESET),
        (false, false) => Plan::new(named, original, how::PRESET | how::OUTDATED),
        (false, true) => Plan::new(named, original, 0).with_todo(todo::UPDATE),
    }
}

#[inline(always)]
const fn end(address: Address, port: u16) -> Endpoint {
    Endpoint { address, port }
}

/// An address of which the verifier does not know that the words of IPv4's are short.
#[inline(always)]
fn veiled(address: Address, veil: Veil) -> Address {
    Address::from_words(address.words().map(|word| veil.over(word)))
}

#[inline(always)]
fn done() -> u8 {
    black_box(0)
}

/// What [`Inspection::find_flow`] finds.
struct Found {
    /// The flow, whether its time is over or not; null if there is none.
    flow: *mut Flow,
    is_half_open: bool,
    /// Whether the packet comes from the flow's lower end.
    from_low: bool,
    /// Whether the packet is an error about the flow.
    is_error: bool,
    /// From the lowest byte on: the flow's protocol, a [`Signal`] and a [`track::Kind`]. One number behind a veil.
    about: u64,
}

impl Found {
    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.about as u8
    }

    #[inline(always)]
    fn signal(&self) -> Signal {
        Signal::from_number((self.about >> 8) as u8)
    }
}

/// The key of the flow of a packet that goes out or comes in, and whether its source is the lower end.
///
/// The host sees some packets twice, once on their way out and once on their way in: on the loopback interface, between
/// namespaces, and what it forwards. These are two flows, each with a verdict of its own, so the key says from which side
/// of the host the lower end is seen: a packet that goes out and its answer, which comes in, have the same.
#[inline(always)]
fn flow_key(ip_version: u8, protocol: u8, source: Endpoint, destination: Endpoint, goes_out: bool) -> (FlowKey, bool) {
    // ANCHOR: flow_key
    let (mut key, from_low) = FlowKey::new(ip_version, protocol, source, destination, 0);
    key.zone = u32::from(goes_out != from_low);
    // ANCHOR_END: flow_key
    (key, from_low)
}

/// The flow with this key, or null; and whether it is half open.
#[inline(always)]
fn find<F: Flows>(flows: &F, settings: &flow::Settings, key: &FlowKey) -> (*mut Flow, bool) {
    let hash = key.hash(settings.hash_key);
    let flow = table::find(flows.buckets(), established(hash, settings), key);
    if !flow.is_null() {
        return (flow, false);
    }
    (table::find(flows.buckets(), half_open(hash, settings), key), true)
}

/// Where flows are whose both ends are proven.
#[inline(always)]
fn established(hash: u64, settings: &flow::Settings) -> table::Place {
    table::Place::of(hash, settings.established_buckets)
}

/// Where all others are.
#[inline(always)]
fn half_open(hash: u64, settings: &flow::Settings) -> table::Place {
    let mut place = table::Place::of(hash, settings.half_open_buckets);
    place.bucket += settings.established_buckets;
    place
}

/// Moves a flow from the half-open ones to the proven ones.
#[inline(always)]
fn promote<F: Flows>(flow: *const Flow, key: &FlowKey, settings: &flow::Settings, flows: &F) {
    let hash = key.hash(settings.hash_key);
    // SAFETY: a flow in a table is valid for as long as the table is.
    let inserted = unsafe { table::insert(flows.buckets(), established(hash, settings), key, flow, flows.now_ns()) };
    if inserted == Inserted::Nowhere {
        return;
    }
    flows.tally(FlowEvent::Established);
    if inserted == Inserted::Evicted {
        flows.tally(FlowEvent::EvictedEstablished);
    }
    flows.buckets().release(half_open(hash, settings));
}
