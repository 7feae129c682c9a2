//! What is counted where, and how what was blocked is remembered.

use crate::{
    classifier::{DEFAULT_RULE, INGRESS, MALFORMED_RULE, Packet, RESERVED_RULES},
    destination::Destination,
};

/// What became of a packet, or of what a system call was to send.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// It passes.
    Passed = 0,
    /// It is dropped.
    Dropped = 1,
    /// It passes, and would be dropped if the policy and the rule blocked.
    WouldDrop = 2,
}

impl Outcome {
    /// How many there are.
    pub const COUNT: u32 = 3;

    /// All of them, in the order of their indices.
    pub const ALL: [Self; Self::COUNT as usize] = [Self::Passed, Self::Dropped, Self::WouldDrop];

    /// The index of its counter among those of a hook.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// A name for people and for JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Dropped => "dropped",
            Self::WouldDrop => "would_drop",
        }
    }
}

/// How many counters a rule has: one for what met it and nothing more, one for what it would have dropped.
pub const COUNTERS_OF_A_RULE: u32 = 2;

/// The counter of a rule. What an `allow` rule passes and what a `block` rule drops are counted in the first.
#[inline(always)]
pub const fn rule_counter(rule: u32, outcome: Outcome) -> u32 {
    rule * COUNTERS_OF_A_RULE + matches!(outcome, Outcome::WouldDrop) as u32
}

/// The names of the rules that are in no file.
pub const fn reserved_name(rule: u32) -> Option<&'static str> {
    match rule {
        DEFAULT_RULE => Some("default"),
        MALFORMED_RULE => Some("malformed"),
        rule if rule < RESERVED_RULES => Some("essential"),
        _ => None,
    }
}

/// What was blocked, or would have been: who was spoken to, and by which rule.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blocked {
    /// The other side: the destination on the way out, the source on the way in. IPv4 in the first four bytes.
    pub peer: [u8; 16],
    /// The rule's counter number.
    pub rule: u32,
    /// The destination port, in host order; 0 without ports.
    pub port: u16,
    /// The protocol number.
    pub protocol: u8,
    /// 4 or 6; 0 for what is malformed.
    pub ip_version: u8,
    /// 1 on the way in, 0 on the way out.
    pub ingress: u8,
    /// Always 0.
    pub padding: [u8; 3],
}

const _: () = assert!(size_of::<Blocked>() == 28);

// SAFETY: `#[repr(C)]`, integers, no padding but a field, any bits are valid.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Blocked {}

impl Blocked {
    /// A packet that goes this way.
    #[inline(always)]
    pub fn packet(packet: &Packet, rule: u32, direction: usize) -> Self {
        let is_ingress = direction == INGRESS;
        let [_, port] = packet.ports;
        Self {
            peer: if is_ingress {
                packet.source.ipv6()
            } else {
                packet.destination.ipv6()
            },
            rule,
            port,
            protocol: packet.protocol,
            ip_version: packet.ip_version,
            ingress: u8::from(is_ingress),
            padding: [0; 3],
        }
    }

    /// A packet that was malformed, so that nobody knows to whom it was to go.
    #[inline(always)]
    pub fn nobody(rule: u32, direction: usize) -> Self {
        Self {
            rule,
            ingress: u8::from(direction == INGRESS),
            ..Self::default()
        }
    }

    /// What a system call was to send.
    #[inline(always)]
    pub fn call(destination: &Destination, rule: u32) -> Self {
        Self {
            peer: destination.address.ipv6(),
            rule,
            port: destination.port,
            protocol: destination.protocol,
            ip_version: destination.ip_version,
            ingress: 0,
            padding: [0; 3],
        }
    }
}
