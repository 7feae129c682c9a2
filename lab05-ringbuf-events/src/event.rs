//! What the programs tell, put together with what is known besides.

use std::net::{IpAddr, SocketAddr};

use lab02_xdp_firewall_common::{firewall::Reason, transport::Malformed};
use lab05_ringbuf_events_common::{
    decision::{Decision, Hook, Outcome},
    process::{Deed, ProcessEvent},
};

use crate::{
    flows::address,
    processes::{Process, text},
};

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// It was decided about a frame, a packet or a connection.
    Decision(Decision),
    /// A process did something; the process as it is afterwards, with its name and its parent's.
    Process {
        /// What it did.
        event: ProcessEvent,
        /// The process.
        process: Process,
        /// The parent's name, if it is known.
        parent: Option<String>,
    },
}

impl Event {
    /// When, in nanoseconds since boot.
    pub fn time_ns(&self) -> u64 {
        match self {
            Self::Decision(decision) => decision.time_ns,
            Self::Process { event, .. } => event.time_ns,
        }
    }

    /// The process that it is about, if one is known.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Decision(decision) => Some(decision.pid).filter(|pid| *pid != 0),
            Self::Process { event, .. } => Some(event.pid),
        }
    }

    /// The process's name; empty if it is not known.
    pub fn comm(&self) -> String {
        match self {
            Self::Decision(decision) => text(&decision.comm),
            Self::Process { process, event, .. } if process.comm.is_empty() => text(&event.comm),
            Self::Process { process, .. } => process.comm.clone(),
        }
    }
}

/// The hook of a record; XDP for a number that is none.
pub fn hook(decision: &Decision) -> Hook {
    Hook::ALL.get(usize::from(decision.hook)).copied().unwrap_or(Hook::Xdp)
}

/// The outcome of a record.
pub fn outcome(decision: &Decision) -> Outcome {
    Outcome::ALL
        .get(usize::from(decision.outcome))
        .copied()
        .unwrap_or(Outcome::Block)
}

/// The reason of a record.
pub fn reason(decision: &Decision) -> Reason {
    Reason::ALL
        .get(usize::from(decision.reason))
        .copied()
        .unwrap_or(Reason::Malformed)
}

/// In which way a malformed packet is malformed.
pub fn malformed(decision: &Decision) -> Option<Malformed> {
    if !matches!(reason(decision), Reason::Malformed | Reason::MalformedPassed) {
        return None;
    }
    Malformed::ALL.get(usize::from(decision.malformed)).copied()
}

/// Both sides; `None` where the packet is no IP, or could not be read.
pub fn sides(decision: &Decision) -> Option<(SocketAddr, SocketAddr)> {
    let tuple = &decision.tuple;
    if tuple.ip_version == 0 {
        return None;
    }
    let side = |ip: IpAddr, port| SocketAddr::new(ip, port);
    Some((
        side(address(tuple, &tuple.source), tuple.source_port),
        side(address(tuple, &tuple.destination), tuple.destination_port),
    ))
}

/// The option that made the rule that decided, as far as the reason tells it.
pub fn rule(reason: Reason) -> &'static str {
    match reason {
        Reason::Address => "block-ip",
        Reason::Port => "block-port",
        Reason::SourcePort => "block-source-port",
        Reason::Mac => "block-mac",
        Reason::Allowed => "allow",
        Reason::Malformed | Reason::MalformedPassed => "malformed",
        _ => "default",
    }
}

/// The map in which the rule stands; `None` for what no map decides.
pub fn map(decision: &Decision) -> Option<&'static str> {
    let is_v6 = decision.tuple.ip_version == 6;
    match reason(decision) {
        Reason::Address if is_v6 => Some("NODES_V6, BUCKETS_V6"),
        Reason::Address => Some("NODES_V4, BUCKETS_V4"),
        Reason::Port | Reason::SourcePort => Some("PORTS"),
        Reason::Mac => Some("BLOCKED_MACS"),
        _ => None,
    }
}

/// The protocol's name where it has one that everybody knows, else its number.
pub fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        136 => "udplite".into(),
        number => number.to_string(),
    }
}

/// What a process did.
pub fn deed(event: &ProcessEvent) -> Deed {
    Deed::ALL.get(event.deed as usize).copied().unwrap_or(Deed::Exit)
}

/// How a process ended, in words.
pub fn end_in_words(exit_code: u32) -> String {
    let (signal, status) = (exit_code & 0x7f, exit_code >> 8 & 0xff);
    if signal == 0 {
        format!("status {status}")
    } else {
        match nix::sys::signal::Signal::try_from(signal.cast_signed()) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {signal}"),
        }
    }
}
