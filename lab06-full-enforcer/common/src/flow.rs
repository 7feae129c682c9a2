//! Following flows: whose packets are judged as the packet that began them.
//!
//! The table and the states of a flow are lab03's. What is kept here of a flow besides is the verdict on the packet that
//! began it, and the policy that gave it: as long as that is in force, nothing needs to be looked up for the packets behind.

use lab03_tc_egress_common::{
    decide::FlowEvent,
    flow::{
        state::State,
        table::{Bucket, Buckets},
    },
};

use crate::{classify::NO_RULE, counters::Reason, table::NUMBER_BITS};

/// What following flows goes by.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// How long a flow may be silent in each state, in nanoseconds, by the state's number.
    pub idle_ns: [u64; State::COUNT],
    /// The key of the hash of flows: random.
    pub hash_key: [u64; 2],
    /// How many buckets there are for flows whose both ends are proven, which come first; 0 if no flows are followed.
    pub established_buckets: u32,
    /// How many there are for all others, behind those.
    pub half_open_buckets: u32,
}

const _: () = assert!(size_of::<Settings>() == State::COUNT * 8 + 16 + 8);

/// The table of flows, and what belongs to it. In an eBPF program these are maps and helpers.
pub trait Flows {
    /// The table.
    type Buckets: Buckets;
    /// The table: [`Settings::established_buckets`], and behind them [`Settings::half_open_buckets`].
    fn buckets(&self) -> &Self::Buckets;
    /// Nanoseconds since boot, to a few milliseconds.
    fn now_ns(&self) -> u64;
    /// Counts what happens in the table.
    fn tally(&self, event: FlowEvent);
}

/// Where no flows are followed: [`Settings::established_buckets`] is 0.
#[derive(Clone, Copy, Debug)]
pub struct NoFlows;

impl Flows for NoFlows {
    type Buckets = Self;

    fn buckets(&self) -> &Self {
        self
    }

    fn now_ns(&self) -> u64 {
        0
    }

    fn tally(&self, _event: FlowEvent) {}
}

impl Buckets for NoFlows {
    type Lock = ();

    fn bucket(&self, _index: u32) -> *mut Bucket {
        core::ptr::null_mut()
    }

    fn lock(&self, _index: u32) -> *mut () {
        core::ptr::null_mut()
    }

    unsafe fn unlock(&self, _lock: *mut ()) {}
}

/// What the packet that began a flow met, as the flow's entry keeps it (the lower half of `Flow::rule`, with
/// [`Config::generation`](crate::table::Config::generation) above it): from the lowest bit on, the number of
/// the rule in [`NUMBER_BITS`], all of them set where there is none; why; and whether it was to be blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict(u32);

const NO_NUMBER: u32 = (1 << NUMBER_BITS) - 1;

impl Verdict {
    /// By the rule of this number, or [`NO_RULE`]; why; and whether it was to be blocked.
    #[inline(always)]
    pub const fn new(number: u32, reason: u8, blocks: bool) -> Self {
        Self(number & NO_NUMBER | (reason as u32) << NUMBER_BITS | (blocks as u32) << 31)
    }

    /// As an entry has it.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// As an entry has it.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0
    }

    /// The number of the rule, in the policy that gave the verdict, or [`NO_RULE`].
    #[inline(always)]
    pub const fn number(self) -> u32 {
        let number = self.0 & NO_NUMBER;
        if number == NO_NUMBER { NO_RULE } else { number }
    }

    /// Why: a [`Reason`].
    #[inline(always)]
    pub const fn reason(self) -> u8 {
        (self.0 >> NUMBER_BITS) as u8 & 0xf
    }

    /// Whether it was to be blocked.
    #[inline(always)]
    pub const fn blocks(self) -> bool {
        self.0 >> 31 != 0
    }

    /// The same without the rule, for a policy that does not know it any more.
    #[inline(always)]
    #[must_use]
    pub const fn without_rule(self) -> Self {
        Self::new(NO_RULE, Reason::Default as u8, self.blocks())
    }
}

/// What is known of the flow of the packet in hand.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// The ports by which the flow is found; of an echo, its identifier and 0.
    pub source_port: u16,
    /// Likewise.
    pub destination_port: u16,
    /// Where the transport header begins: bytes from the packet's start.
    pub upper_offset: u16,
    /// 1 for a later fragment.
    pub is_later: u8,
    /// A [`Signal`](lab03_tc_egress_common::flow::state::Signal).
    pub signal: u8,
    /// Fills up.
    pub padding: u8,
    /// What is asked after the first question: the index of a [`Kind`](crate::table::Kind), or [`NOTHING`]; with
    /// [`REVERSED`] if with source and destination, ingress and egress exchanged.
    pub second: u8,
    /// How the answers go together: bits of [`mod@how`].
    pub how: u8,
    /// What is to be done to the table of flows: bits of [`mod@todo`].
    pub todo: u8,
}

const _: () = assert!(size_of::<Note>() == 12);

impl Note {
    /// Of no packet.
    pub const EMPTY: Self = Self {
        source_port: 0,
        destination_port: 0,
        upper_offset: 0,
        is_later: 0,
        signal: 0,
        padding: 0,
        second: NOTHING,
        how: 0,
        todo: 0,
    };
}

/// What is to be done about a packet: what is asked first, what is asked then ([`Note::second`]), [`Note::how`] and
/// [`Note::todo`], a byte each from the lowest on. A number, so that it fits behind a [`Veil`](crate::veil::Veil).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan(pub u64);

impl Plan {
    /// To ask this, and then that, with nothing to be done to the table of flows.
    #[inline(always)]
    pub const fn new(first: u8, second: u8, how: u8) -> Self {
        Self(first as u64 | (second as u64) << 8 | (how as u64) << 16)
    }

    /// To ask only this.
    #[inline(always)]
    pub const fn asking(first: u8) -> Self {
        Self::new(first, NOTHING, 0)
    }

    /// The same, and this is to be done.
    #[inline(always)]
    #[must_use]
    pub const fn with_todo(self, todo: u8) -> Self {
        Self(self.0 | (todo as u64) << 24)
    }

    /// What is asked first: the index of a [`Kind`](crate::table::Kind), or [`NOTHING`].
    #[inline(always)]
    pub const fn first(self) -> u8 {
        self.0 as u8
    }

    /// See [`Note::second`].
    #[inline(always)]
    pub const fn second(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// See [`Note::how`].
    #[inline(always)]
    pub const fn how(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// See [`Note::todo`].
    #[inline(always)]
    pub const fn todo(self) -> u8 {
        (self.0 >> 24) as u8
    }
}

/// Where a question could be: nothing is asked.
pub const NOTHING: u8 = 0xff;

/// For [`Note::second`]: the other way round.
pub const REVERSED: u8 = 0x40;

/// Bits of [`Note::how`].
pub mod how {
    /// There is a verdict already, the one that the flow has: what is asked first counts if its rule comes before.
    pub const PRESET: u8 = 1;
    /// What is asked then counts only if it lets pass what would be blocked.
    pub const IF_PASSES: u8 = 2;
    /// What is asked then is being asked.
    pub const IS_SECOND: u8 = 4;
    /// Source and destination are exchanged now.
    pub const IS_REVERSED: u8 = 8;
    /// The verdict that there is was given by a policy before, whose rules are others.
    pub const OUTDATED: u8 = 16;
}

/// Bits of [`Note::todo`].
pub mod todo {
    /// A flow begins with the packet, if it passes.
    pub const BEGIN: u8 = 1;
    /// The flow's verdict is a new one.
    pub const UPDATE: u8 = 2;
    /// The flow is proven.
    pub const PROMOTE: u8 = 4;
    /// Before another one begins, what is left of a flow with the same key is to be taken out of the proven ones.
    pub const REMOVE: u8 = 8;
}
