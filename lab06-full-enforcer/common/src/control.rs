//! The control word: one number, changed at once, which every program reads once a packet.
//!
//! A packet is decided by what one reading of it says, so that a new policy or another mode takes effect between two
//! packets and never within one.

/// Whether what a policy blocks is blocked.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It is counted, and passes.
    #[default]
    Observe = 0,
    /// It is dropped.
    Block = 1,
}

impl Mode {
    /// A name for people and for JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Block => "block",
        }
    }

    /// The other one.
    #[must_use]
    pub const fn toggled(self) -> Self {
        match self {
            Self::Observe => Self::Block,
            Self::Block => Self::Observe,
        }
    }
}

/// The control word: the slot of the policy in force in its lowest byte, the mode in the next one.
///
/// The bits above are free, for what a rollback without a daemon will need: the slot to fall back to, and until when.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control(u64);

impl Control {
    /// The word for a slot and a mode.
    pub const fn new(slot: u32, mode: Mode) -> Self {
        Self((slot & 0xff) as u64 | (mode as u64) << 8)
    }

    /// From the word as a map holds it.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// The word as a map holds it.
    pub const fn word(self) -> u64 {
        self.0
    }

    /// The slot of the policy in force.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        (self.0 & 0xff) as u32
    }

    /// The mode in force.
    #[inline(always)]
    pub const fn mode(self) -> Mode {
        if self.0 >> 8 & 0xff == Mode::Block as u64 {
            Mode::Block
        } else {
            Mode::Observe
        }
    }
}
