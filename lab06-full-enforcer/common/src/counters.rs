//! Where each outcome is counted: indices into arrays of [`Counter`](lab01_count_packets_common::counter::Counter)s.

use crate::key::Hook;

/// What became of a packet.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// It was allowed.
    Passed = 0,
    /// It was to be blocked, and passed in observe mode.
    Observed = 1,
    /// It was blocked.
    Dropped = 2,
}

impl Outcome {
    /// How many there are.
    pub const COUNT: u32 = 3;

    /// All of them, in the order of their indices.
    pub const ALL: [Self; Self::COUNT as usize] = [Self::Passed, Self::Observed, Self::Dropped];
}

/// Why a packet met its verdict.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The first rule that matches says so.
    Rule = 0,
    /// No rule matches, and the direction's default says so.
    Default = 1,
    /// It is among the essentials, and no rule names it.
    Essential = 2,
    /// It is malformed, and the default for that says so.
    Malformed = 3,
}

impl Reason {
    /// How many there are.
    pub const COUNT: u32 = 4;

    /// All of them, in the order of their indices.
    pub const ALL: [Self; Self::COUNT as usize] = [Self::Rule, Self::Default, Self::Essential, Self::Malformed];

    /// From its index; the last one for what is none.
    #[inline(always)]
    pub const fn from_index(index: u32) -> Self {
        match index {
            0 => Self::Rule,
            1 => Self::Default,
            2 => Self::Essential,
            _ => Self::Malformed,
        }
    }

    /// A name for people and for JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Default => "default",
            Self::Essential => "essential",
            Self::Malformed => "malformed",
        }
    }
}

/// How many counters there are for so many ids of rules.
pub const fn by_rule_len(ids: u32) -> u32 {
    ids * Outcome::COUNT
}

/// How many counters there are by hook and reason.
pub const BY_REASON: u32 = Hook::COUNT * Reason::COUNT * Outcome::COUNT;

/// The counter of a rule, by its stable id, and an outcome.
#[inline(always)]
pub const fn by_rule(id: u32, outcome: Outcome) -> u32 {
    id * Outcome::COUNT + outcome as u32
}

/// The counter of a hook, a reason and an outcome.
#[inline(always)]
pub const fn by_reason(hook: Hook, reason: Reason, outcome: Outcome) -> u32 {
    (hook as u32 * Reason::COUNT + reason as u32) * Outcome::COUNT + outcome as u32
}
