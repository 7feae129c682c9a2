//! What a packet is to a table of flows, and what it does to the flow that it belongs to.

use core::hint::black_box;

use lab01_count_packets_common::{headers::Headers, packet::Packet};
use lab02_xdp_firewall_common::transport::{ICMP, ICMPV6, TCP};

use super::{
    key::Endpoint,
    state::{self, Signal, State, Step},
    table::Flow,
};
use crate::quote::{self, Quote};

/// What a packet is to the table.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A packet of a flow.
    Packet = 0,
    /// An ICMP error about one.
    Error = 1,
    /// Nothing that is followed: a message of ICMP that is neither an error nor an echo.
    Other = 2,
}

/// The flow that a packet belongs to, or that it is about, and what it says to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// What the packet is to it.
    pub kind: Kind,
    /// What it says.
    pub signal: Signal,
    /// The flow's protocol.
    pub protocol: u8,
    /// Who has sent the packet, or the one that an error is about.
    pub source: Endpoint,
    /// Who was to get it.
    pub destination: Endpoint,
}

/// What the parsers have read behind the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Behind {
    /// Where it starts: bytes from the start of the packet.
    pub offset: usize,
    /// The protocol.
    pub protocol: u8,
    /// TCP's flags; else 0.
    pub tcp_flags: u8,
    /// The type of ICMP or ICMPv6; else 0.
    pub icmp_type: u8,
    /// In host order; 0 without ports.
    pub source_port: u16,
    /// In host order; 0 without ports.
    pub destination_port: u16,
}

impl Subject {
    // ANCHOR: subject
    /// Of a packet that is no later fragment.
    #[inline(always)]
    pub fn of<P: Packet + ?Sized>(packet: &P, headers: &Headers, behind: &Behind) -> Self {
        let end = |address, port| Endpoint { address, port };
        let mut subject = Self {
            kind: Kind::Packet,
            signal: Signal::Datagram,
            protocol: behind.protocol,
            source: end(headers.source, behind.source_port),
            destination: end(headers.destination, behind.destination_port),
        };
        match behind.protocol {
            TCP => subject.signal = Signal::of_tcp_flags(behind.tcp_flags),
            ICMP | ICMPV6 if quote::is_error(behind.protocol, behind.icmp_type) => {
                subject.kind = Kind::Other;
                // It goes to whoever sent the packet, or it is no answer to that.
                if let Some(quote) = Quote::read(packet, headers, behind.offset)
                    && quote.source.address == headers.destination
                {
                    subject.kind = Kind::Error;
                    subject.protocol = quote.protocol;
                    (subject.source, subject.destination) = (quote.source, quote.destination);
                }
            }
            ICMP | ICMPV6 => {
                let id = packet.read(behind.offset + 4).map_or(0, u16::from_be_bytes);
                match quote::echo_ports(behind.protocol, behind.icmp_type, id) {
                    Some(ends) => {
                        (subject.source.port, subject.destination.port) = ends;
                        if ends.0 == 0 {
                            subject.signal = Signal::Reply;
                        }
                    }
                    None => subject.kind = Kind::Other,
                }
            }
            _ => {}
        }
        subject
    }
    // ANCHOR_END: subject
}

/// What a packet does to the flow that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// The number of the state that it brings the flow to, [`NEXT_SAME`] or [`NEXT_ANEW`].
    pub state: u8,
    /// Whether it comes from the originator.
    pub from_originator: bool,
}

/// Nothing changes, not even that the flow is not silent.
pub const NEXT_SAME: u8 = 0xff;
/// The flow is over; the packet may begin another one.
pub const NEXT_ANEW: u8 = 0xfe;

/// What a packet does to the flow that it belongs to. A flow whose time is over begins anew.
///
/// # Safety
///
/// `flow` is valid. Others may be writing to it.
#[inline(always)]
pub unsafe fn next(flow: *const Flow, from_low: bool, signal: Signal, now_ns: u64) -> Next {
    // SAFETY: the caller's pointer is valid.
    let (state, low, expires_ns) = unsafe { ((*flow).state, (*flow).originator_is_low, (*flow).expires_ns) };
    let from_originator = (low != 0) == from_low;
    let state = match State::from_number(state) {
        Some(state) if expires_ns > now_ns => match state::step(state, from_originator, signal) {
            Step::To(next) => next as u8,
            Step::Nothing => NEXT_SAME,
            Step::Anew => NEXT_ANEW,
        },
        _ => NEXT_ANEW,
    };
    Next { state, from_originator }
}

/// Has a flow learn of a packet of so many bytes.
///
/// # Safety
///
/// `flow` is valid. Two CPUs may write a state at once; either is one that the flow was in.
#[inline(always)]
pub unsafe fn advance(flow: *mut Flow, next: Next, idle_ns: &[u64; State::COUNT], now_ns: u64, bytes: u64) {
    // SAFETY: the caller's pointer is valid.
    unsafe {
        if next.state != NEXT_SAME {
            if (*flow).state != next.state {
                (*flow).state = next.state;
            }
            // The compiler knows that it is a state's number, and leaves the comparison away that the verifier wants to see.
            let idle_ns = idle_ns.get(black_box(usize::from(next.state))).copied().unwrap_or(0);
            (*flow).expires_ns = now_ns + idle_ns;
        }
        super::table::count(flow, next.from_originator, bytes);
    }
}
