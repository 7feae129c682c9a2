//! The record of a decision, and the books that are kept of records.
//!
//! A record is a message, and messages can be too many. What is not sent is counted, so that a reader can tell "nothing
//! happened" from "nothing was told": of every decision exactly one of three numbers goes up, [`Tally::emitted`],
//! [`Tally::suppressed`] or [`Tally::lost`].

use lab02_xdp_firewall_common::{bucket::Limit, firewall::Reason};

use crate::tuple::FiveTuple;

/// Where a decision was made.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// XDP: a frame that arrived.
    Xdp = 0,
    /// `cgroup_skb`, egress: a packet that a socket sends.
    Egress = 1,
    /// `connect(2)` to an IPv4 address.
    Connect4 = 2,
    /// `connect(2)` to an IPv6 address, or to an IPv4 address written as one.
    Connect6 = 3,
    /// `sendmsg(2)` of an unconnected socket to an IPv4 address.
    Sendmsg4 = 4,
    /// `sendmsg(2)` of an unconnected socket to an IPv6 address, or to an IPv4 address written as one.
    Sendmsg6 = 5,
}

impl Hook {
    /// How many there are.
    pub const COUNT: u32 = 6;

    /// All of them, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::Xdp,
        Self::Egress,
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Sendmsg6,
    ];

    /// A name for people and for JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Egress => "egress",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
        }
    }

    /// The program that decides there.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Xdp => "firewall",
            hook => hook.name(),
        }
    }

    /// Whether every packet passes here, and not every connection: what passes such a hook is told only on demand.
    #[inline(always)]
    pub const fn sees_packets(self) -> bool {
        matches!(self, Self::Xdp | Self::Egress)
    }

    /// Where the decisions for `reason` at this hook are accounted for, below [`SLOTS`].
    #[inline(always)]
    pub const fn slot(self, reason: Reason) -> u32 {
        self as u32 * Reason::COUNT + reason.index()
    }

    /// The hook and the reason that are accounted for there.
    pub const fn of_slot(slot: u32) -> Option<(Self, Reason)> {
        if slot >= SLOTS {
            return None;
        }
        Some((
            Self::ALL[(slot / Reason::COUNT) as usize],
            Reason::ALL[(slot % Reason::COUNT) as usize],
        ))
    }
}

/// How many pairs of hook and reason there are.
pub const SLOTS: u32 = Hook::COUNT * Reason::COUNT;

/// What was decided.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// It goes on.
    Allow = 0,
    /// It ends here.
    Block = 1,
    /// It would have ended here, but is only observed.
    ObserveDrop = 2,
}

impl Outcome {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Allow, Self::Block, Self::ObserveDrop];

    /// What comes of a reason.
    #[inline(always)]
    pub fn of(reason: Reason, observe: bool) -> Self {
        match (reason.verdict(), observe) {
            (lab02_xdp_firewall_common::firewall::Verdict::Pass, _) => Self::Allow,
            (_, false) => Self::Block,
            (_, true) => Self::ObserveDrop,
        }
    }

    /// A name for people and for JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Block => "block",
            Self::ObserveDrop => "observe_drop",
        }
    }
}

// ANCHOR: decision
/// A decision, as it travels through the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Nanoseconds since boot, time asleep included (`CLOCK_BOOTTIME`): 64 bits of them last 584 years.
    pub time_ns: u64,
    /// From whom to whom; all zero where that could not be read.
    pub tuple: FiveTuple,
    /// The kernel's cookie of the socket; 0 where no socket is known.
    pub cookie: u64,
    /// The kernel's id of the cgroup; 0 where none is known.
    pub cgroup: u64,
    /// The process; 0 where none is known, and then neither user nor name are.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its name, as far as the kernel keeps it.
    pub comm: [u8; 16],
    /// The packet's length as the hook sees it: with the Ethernet header at XDP, from the IP header on at `cgroup_skb`,
    /// and 0 where there is no packet yet.
    pub bytes: u32,
    /// The rule that decided, counted from 0; [`Decision::NO_RULE`] where there are no numbered rules, as in this lab.
    pub rule: u32,
    /// The interface's index; 0 where there is none yet.
    pub interface: u32,
    /// A [`Hook`].
    pub hook: u8,
    /// An [`Outcome`].
    pub outcome: u8,
    /// A [`Reason`].
    pub reason: u8,
    /// In which way it is malformed, where that is the reason:
    /// [`Malformed`](lab02_xdp_firewall_common::transport::Malformed).
    pub malformed: u8,
}

const _: () = assert!(size_of::<Decision>() == 104);
// ANCHOR_END: decision

impl Decision {
    /// [`Decision::rule`] where no rule is named.
    pub const NO_RULE: u32 = u32::MAX;

    /// A record that says nothing yet.
    pub const NOTHING: Self = Self {
        time_ns: 0,
        tuple: FiveTuple::EMPTY,
        cookie: 0,
        cgroup: 0,
        pid: 0,
        uid: 0,
        comm: [0; 16],
        bytes: 0,
        rule: Self::NO_RULE,
        interface: 0,
        hook: 0,
        outcome: 0,
        reason: 0,
        malformed: 0,
    };
}

// ANCHOR: tally
/// The books of one hook and one reason, kept by each CPU for itself.
///
/// `emitted + suppressed + lost == decisions`, always.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many decisions there were.
    pub decisions: u64,
    /// How many records were put into the ring buffer.
    pub emitted: u64,
    /// How many were left out on purpose: by sampling, by the limit on events a second, or as not asked for.
    pub suppressed: u64,
    /// How many found the ring buffer full.
    pub lost: u64,
}

const _: () = assert!(size_of::<Tally>() == 32);
// ANCHOR_END: tally

impl Tally {
    /// Whether the books are in order.
    pub const fn is_balanced(&self) -> bool {
        self.emitted + self.suppressed + self.lost == self.decisions
    }
}

impl core::iter::Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), |sum, tally| Self {
            decisions: sum.decisions + tally.decisions,
            emitted: sum.emitted + tally.emitted,
            suppressed: sum.suppressed + tally.suppressed,
            lost: sum.lost + tally.lost,
        })
    }
}

/// Which decisions are told, and whether they are carried out.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many records of one hook and reason there may be a second; in force if `is_limited` is not 0.
    pub limit: Limit,
    /// Whether there is such a limit.
    pub is_limited: u32,
    /// One decision in so many is told, picked at random; 0 and 1 are all.
    pub one_in: u32,
    /// 1 to let pass, and tell, what would be blocked.
    pub observe: u32,
    /// 1 to tell every packet that passes, too, and not only every connection.
    pub tell_packets: u32,
}

const _: () = assert!(size_of::<Settings>() == 32);

impl Settings {
    /// All is told but the packets that pass, and what is to be blocked is blocked.
    pub const DEFAULT: Self = Self {
        limit: Limit {
            token_ns_scaled: 0,
            burst_ns: 0,
        },
        is_limited: 0,
        one_in: 1,
        observe: 0,
        tell_packets: 0,
    };

    // ANCHOR: wants
    /// Whether a decision is to be told. `random` is any number, and `take_token` takes from the bucket of the hook and
    /// reason.
    #[inline(always)]
    pub fn wants(
        &self,
        hook: Hook,
        outcome: Outcome,
        random: impl FnOnce() -> u32,
        take_token: impl FnOnce(&Limit) -> bool,
    ) -> bool {
        if hook.sees_packets() && outcome as u8 == Outcome::Allow as u8 && self.tell_packets == 0 {
            return false;
        }
        if self.one_in > 1 && !random().is_multiple_of(self.one_in) {
            return false;
        }
        // Last, so that a record that is not sent for another reason takes no token.
        self.is_limited == 0 || take_token(&self.limit)
    }
    // ANCHOR_END: wants
}

#[cfg(target_os = "linux")]
mod pod {
    // SAFETY: `#[repr(C)]`, integers without padding, any bits are valid.
    unsafe impl aya::Pod for super::Decision {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Tally {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Settings {}
}
