//! Decides about a packet that somebody thinks of, by the classifier that the kernel runs, and says how it came to that.

use std::{collections::BTreeSet, net::IpAddr, str::FromStr};

use enforcer_policy::{
    decide,
    model::{Mac, Protocol, State},
    text,
};
use lab01_count_packets_common::headers::Address;
use lab04_cgroup_policy_common::destination::Destination;
use lab06_full_enforcer_common::{
    classify::{self, Classifier},
    control::Mode,
    counters::Reason,
    decision::Decision,
    key::{Direction, Essential, Hook, Key, LOOPBACK, NO_MAC, UnknownSocket, UpperKey, mac_number},
    table::{Action, Field, Kind, Record, RuleMode, asks},
};
use serde::Serialize;

use crate::{
    api::HookStatus,
    compile::{self, Compiled},
    local::namespace_cookie,
    names::ImaginedSocket,
};

/// A packet that somebody thinks of.
#[derive(Clone, Debug)]
pub struct Query {
    /// Which way it goes.
    pub direction: Direction,
    /// The name of the interface by which it does; `None` for one that no rule names.
    pub interface: Option<String>,
    /// The sender's MAC address, of a packet that comes in; `None` for one that no rule names.
    pub mac: Option<Mac>,
    /// The cgroup of the socket that sends it, as a policy writes it.
    pub cgroup: String,
    /// The user who made that socket.
    pub uid: u32,
    /// The group of the process that did; `None` if that is not known.
    pub gid: Option<u32>,
    /// The source address.
    pub source: IpAddr,
    /// The destination address, of the same family.
    pub destination: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The source port, where the protocol has ports.
    pub source_port: u16,
    /// The destination port, where the protocol has ports.
    pub destination_port: u16,
    /// Type and code, where the protocol is ICMP or ICMPv6.
    pub icmp: (u8, u8),
    /// What its flow is: one of which it is the first packet, or which it began; or one that it is an error about.
    pub state: State,
}

/// What becomes of it, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `allow`, `block` or `rate_limit`.
    pub verdict: &'static str,
    /// The rule, or `default`, or `essential`.
    pub rule: String,
    /// Where it is decided: a hook, or two with `or` between them, or `none`.
    pub hook: String,
    /// Whether there is never such a packet, for the call of `connect` is refused that would have it sent. Only of TCP, and
    /// with no regard to which destinations are the host's own, where no call is refused.
    pub connect_is_refused: bool,
    /// `rule` or `default`, or which of the essentials it is; `flow` for a rule that matches the packet that began the flow,
    /// `reverse_orientation` if the packet would pass the other way round.
    pub reason: String,
    /// `observe` or `block`: whether the verdict is carried out.
    pub mode: &'static str,
    /// `pass`, `observe_drop` or `drop`; of `rate_limit`, what holds below the rate.
    pub outcome: &'static str,
    /// The rules that only count it, and come before.
    pub logged_by: Vec<String>,
    /// The look-ups in their order, each with the rules that are still in question after it.
    pub steps: Vec<Step>,
    /// How many steps the search in what they left took: partitions taken up, and runs and records compared.
    pub searched: u32,
}

/// A look-up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What was looked up.
    pub looked_up: String,
    /// The first [`SHOWN`] rules that are still in question, in the order of matching.
    pub rules: Vec<String>,
    /// How many more there are.
    pub more: usize,
}

/// How many rules a step names.
pub const SHOWN: usize = 8;

/// What is known of the enforcer that has the policy in force.
#[derive(Clone, Debug)]
pub struct InForce {
    /// The mode.
    pub mode: Mode,
    /// Where it is attached.
    pub hooks: Vec<HookStatus>,
}

/// Decides about the packet under a policy, as it is in force, or else in the mode that it asks for.
pub fn explain(compiled: &Compiled, query: &Query, in_force: Option<&InForce>) -> Explanation {
    let key = query.key();
    let classifier = Classifier {
        config: &compiled.config,
        tables: compiled,
    };
    let interface = query.interface(compiled);
    let is_loopback = interface == LOOPBACK;
    let mac = query.mac.map_or(NO_MAC, |mac| mac_number(mac.0));
    let metadata = match query.direction {
        Direction::Ingress => classifier.metadata(interface, mac, UnknownSocket),
        Direction::Egress => classifier.metadata(interface, NO_MAC, query.socket(compiled)),
    };
    let kind = classifier.kind(&key.upper, key.ip_version, query.direction, is_loopback);
    let (decision, by_flow) = if kind == Kind::Ordinary as u32 {
        decide_by_state(&classifier, query, &key, metadata)
    } else {
        (classifier.decide(&key, metadata, query.direction, kind), None)
    };
    let (decision, by_flow, hook) = match query.direction {
        // An answer to what was asked from here is not judged by whose socket it is for: that was done when it was asked.
        Direction::Ingress if decision.blocks == 0 && decision.reason != Reason::Essential => {
            let metadata = classifier.metadata(interface, NO_MAC, query.socket(compiled));
            let kind = match query.state {
                State::Invalid if kind == Kind::Ordinary as u32 => Kind::Invalid as u32,
                _ => kind,
            };
            match classifier.decide_at_socket(&key, metadata, kind) {
                Some(blocked) => (blocked, None, Hook::CgroupIngress.name().to_owned()),
                None => (decision, by_flow, query.hook(in_force)),
            }
        }
        _ => (decision, by_flow, query.hook(in_force)),
    };
    let mode = match decision.rule.mode {
        own if decision.reason == Reason::Rule && own == RuleMode::Observe as u8 => Mode::Observe,
        _ => in_force.map_or(compiled.mode, |in_force| in_force.mode),
    };
    let essential = key.upper.essential(key.ip_version, query.direction, is_loopback);
    let reason = match (decision.reason, essential) {
        (Reason::Rule, _) if by_flow.is_some() => by_flow.unwrap_or_default().to_owned(),
        (Reason::Essential, None) => in_snake_case(compile::reason(Essential::IcmpError)),
        (Reason::Essential, Some(essential)) => in_snake_case(compile::reason(essential)),
        (reason, _) => reason.name().to_owned(),
    };
    let blocks = decision.blocks != 0;
    let connect_is_refused =
        blocks && mode == Mode::Block && !is_loopback && connect_is_refused(&classifier, query, &key, in_force);
    Explanation {
        verdict: match decision.rule.action {
            action if action == Action::RateLimit as u8 => "rate_limit",
            _ if blocks => "block",
            _ => "allow",
        },
        rule: match decision.reason {
            Reason::Rule => compiled.names[decision.number as usize].clone(),
            reason => reason.name().to_owned(),
        },
        hook,
        connect_is_refused,
        reason,
        mode: mode.name(),
        outcome: match (blocks, mode) {
            (false, _) => "pass",
            (true, Mode::Observe) => "observe_drop",
            (true, Mode::Block) => "drop",
        },
        logged_by: logged_by(compiled, &decision),
        steps: steps(compiled, &decision, &key, query),
        searched: classify::steps(compiled, decision.question),
    }
}

/// Decides about what is not essential by itself, as the programs do by what is known of its flow; and how the flow comes
/// into it.
fn decide_by_state(
    classifier: &Classifier<'_, Compiled>,
    query: &Query,
    key: &Key,
    metadata: u64,
) -> (Decision, Option<&'static str>) {
    let decide = |kind: u32| classifier.decide(key, metadata, query.direction, kind);
    let named_or_first = |kind: Kind| {
        let (itself, first) = (decide(kind as u32), decide(Kind::Ordinary as u32));
        if itself.number < first.number {
            (itself, None)
        } else {
            (first, Some("flow"))
        }
    };
    match query.state {
        State::New => (decide(Kind::Ordinary as u32), None),
        State::Established => named_or_first(Kind::Established),
        State::Related if classifier.config.essentials == 0 => named_or_first(Kind::Related),
        State::Related => (decide(Kind::Essential as u32 + Essential::IcmpError as u32), None),
        State::Invalid => {
            let itself = decide(Kind::Invalid as u32);
            let reversed = Key {
                source: key.destination,
                destination: key.source,
                upper: key.upper.reversed(),
                ..*key
            };
            let interface = query.interface(classifier.tables);
            let metadata = classifier.metadata(interface, NO_MAC, UnknownSocket);
            let direction = query.direction.reversed();
            let other_way = classifier.decide(&reversed, metadata, direction, Kind::Invalid as u32);
            if itself.blocks != 0 && other_way.blocks == 0 {
                (other_way, Some("reverse_orientation"))
            } else {
                (itself, None)
            }
        }
    }
}

/// Whether `connect` is refused there, by an enforcer on this kernel.
fn connect_is_refused(
    classifier: &Classifier<'_, Compiled>,
    query: &Query,
    key: &Key,
    in_force: Option<&InForce>,
) -> bool {
    let hook = match key.ip_version {
        4 => Hook::Connect4,
        _ => Hook::Connect6,
    };
    let destination = Destination {
        address: key.destination,
        port: key.upper.destination_port,
        ip_version: key.ip_version,
        protocol: key.upper.protocol,
        ..Destination::default()
    };
    query.direction == Direction::Egress
        && query.protocol == Protocol::TCP
        && query.state == State::New
        && namespace_cookie().is_ok()
        && in_force.is_none_or(|in_force| in_force.is_attached(hook, query))
        && classifier.refuses(&destination).is_some()
}

/// The rules that only count it and come before, in the order of matching.
fn logged_by(compiled: &Compiled, decision: &Decision) -> Vec<String> {
    let mut numbers = BTreeSet::new();
    classify::counting_matches(compiled, decision.question, decision.number, |rule| {
        numbers.insert(rule.id);
    });
    let names = numbers
        .into_iter()
        .map(|number| compiled.names[number as usize].clone());
    names.collect()
}

/// The look-ups of [`Classifier::question`], one by one, with the records that hold what was found so far.
fn steps(compiled: &Compiled, decision: &Decision, key: &Key, query: &Query) -> Vec<Step> {
    let direction = format!("direction {}", query.direction.name());
    let mut look_ups = vec![
        (Field::Source, format!("source {}", query.source)),
        (Field::Destination, format!("destination {}", query.destination)),
        (
            Field::First,
            port_text(
                key,
                "source port",
                key.upper.source_port,
                "ICMP type",
                key.upper.icmp_type,
            ),
        ),
        (
            Field::Second,
            port_text(
                key,
                "destination port",
                key.upper.destination_port,
                "ICMP code",
                key.upper.icmp_code,
            ),
        ),
        (Field::Protocol, format!("protocol {}", query.protocol)),
    ];
    if compiled.config.metadata.asks != 0 {
        look_ups.push((Field::Metadata, query.metadata_text(compiled.config.metadata.asks)));
    }
    let mut left: Vec<&Record> = classify::in_question(compiled, decision.question).collect();
    let mut steps = vec![step(compiled, direction, &left)];
    for (field, looked_up) in look_ups {
        let class = classify::class_of(compiled, decision.question, field);
        left.retain(|record| compiled.holds(record, field, class));
        steps.push(step(compiled, looked_up, &left));
    }
    steps
}

fn step(compiled: &Compiled, looked_up: String, left: &[&Record]) -> Step {
    let numbers: BTreeSet<u32> = left.iter().map(|record| record.rule).collect();
    let shown = numbers.iter().take(SHOWN);
    Step {
        looked_up,
        rules: shown.map(|number| compiled.names[*number as usize].clone()).collect(),
        more: numbers.len().saturating_sub(SHOWN),
    }
}

fn port_text(key: &Key, port_name: &str, port: u16, icmp_name: &str, icmp: u8) -> String {
    if key.upper.has_ports != 0 {
        format!("{port_name} {port}")
    } else if key.upper.has_icmp != 0 {
        format!("{icmp_name} {icmp}")
    } else {
        format!("no {port_name}")
    }
}

fn in_snake_case(reason: decide::Reason) -> String {
    serde_json::to_value(reason)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// In [`Explanation::hook`]: the enforcer is attached nowhere where the packet comes by.
pub const NO_HOOK: &str = "none";

impl InForce {
    /// Whether it is attached to a hook where the packet comes by.
    fn is_attached(&self, hook: Hook, query: &Query) -> bool {
        let is_at = |status: &HookStatus| match (&query.interface, hook) {
            (Some(interface), Hook::XdpIngress | Hook::TcIngress | Hook::TcEgress) => status.at == *interface,
            _ => true,
        };
        self.hooks
            .iter()
            .any(|status| status.hook == hook.name() && is_at(status))
    }
}

impl Query {
    /// The index of its interface, as the policy has it.
    fn interface(&self, compiled: &Compiled) -> u32 {
        match self.interface.as_deref() {
            None => 0,
            Some(decide::LOOPBACK) => LOOPBACK,
            Some(name) => compiled.places.interface(name),
        }
    }

    /// The hooks that decide about what goes its way, of those to which the enforcer is attached; without one, of those to which
    /// it would be.
    fn hook(&self, in_force: Option<&InForce>) -> String {
        let there = |hooks: [Hook; 2]| {
            let is_there = |hook: &Hook| in_force.is_none_or(|in_force| in_force.is_attached(*hook, self));
            let there: Vec<&str> = hooks.into_iter().filter(is_there).map(Hook::name).collect();
            there
        };
        let hooks = match self.direction {
            // One of them at each interface.
            Direction::Ingress => there([Hook::XdpIngress, Hook::TcIngress]),
            // What was decided in the cgroup is not decided again.
            Direction::Egress => there([Hook::CgroupEgress, Hook::TcEgress])
                .into_iter()
                .take(1)
                .collect(),
        };
        if hooks.is_empty() {
            return NO_HOOK.to_owned();
        }
        hooks.join(" or ")
    }

    fn socket<'a>(&'a self, compiled: &'a Compiled) -> ImaginedSocket<'a> {
        ImaginedSocket {
            names: &compiled.places,
            cgroup: &self.cgroup,
            uid: self.uid,
            gid: self.gid,
        }
    }

    /// What is looked up of it beside its headers.
    fn metadata_text(&self, asked: u32) -> String {
        let goes_out = self.direction == Direction::Egress;
        let interface = self.interface.as_deref().unwrap_or("another");
        let mac = self.mac.map_or_else(|| "another".to_owned(), |mac| text::mac(&mac));
        let group = self
            .gid
            .map_or_else(|| "group unknown".to_owned(), |gid| format!("group {gid}"));
        let parts = [
            (asks::INTERFACE, true, format!("interface {interface}")),
            (asks::MAC, !goes_out, format!("MAC {mac}")),
            (asks::CGROUP, goes_out, format!("cgroup {}", self.cgroup)),
            (asks::UID, goes_out, format!("user {}", self.uid)),
            (asks::GID, goes_out, group),
        ];
        let parts = parts
            .into_iter()
            .filter(|(bit, is_known, _)| *is_known && asked & bit != 0);
        let parts: Vec<String> = parts.map(|(_, _, text)| text).collect();
        if parts.is_empty() {
            return "nothing beside headers".to_owned();
        }
        parts.join(", ")
    }

    /// The packet as rules see it.
    pub fn key(&self) -> Key {
        let has_ports = self.protocol.has_ports();
        let has_icmp = self.protocol.is_icmp();
        Key {
            source: address(self.source),
            destination: address(self.destination),
            ip_version: if self.source.is_ipv4() { 4 } else { 6 },
            upper: UpperKey {
                source_port: if has_ports { self.source_port } else { 0 },
                destination_port: if has_ports { self.destination_port } else { 0 },
                protocol: self.protocol.0,
                icmp_type: if has_icmp { self.icmp.0 } else { 0 },
                icmp_code: if has_icmp { self.icmp.1 } else { 0 },
                has_ports: u8::from(has_ports),
                has_icmp: u8::from(has_icmp),
                tcp_flags: 0,
                padding: 0,
            },
        }
    }
}

fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::from_ipv4(address.octets()),
        IpAddr::V6(address) => Address::from_ipv6(address.octets()),
    }
}

/// A protocol as people write it on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenProtocol(pub Protocol);

impl FromStr for WrittenProtocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Protocol::NAMED.into_iter().find(|(name, _)| *name == text);
        if let Some((_, protocol)) = named {
            return Ok(Self(protocol));
        }
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number
            .then(|| text.parse().ok().map(Protocol))
            .flatten()
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no protocol; write tcp, udp, icmp, icmpv6 or a number from 0 to 255"))
    }
}
