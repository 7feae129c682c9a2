//! Two of everything that a new list replaces: one in force, one to be filled while packets arrive.

/// How many there are.
pub const SLOTS: u32 = 2;

/// The other one.
#[inline(always)]
pub const fn other(slot: u32) -> u32 {
    1 - slot
}
