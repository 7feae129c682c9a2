//! Hides from the verifier what it knows, so that it stops telling ways through a program apart that differ by it.
//!
//! The verifier follows a program along every way through it, and knows of each what was stored on the stack: that this
//! one saw IPv4, say, or no ports. Two ways that meet again are one for it only if what it knows of them is the same, so
//! every stage behind is followed once for each combination. lab02 keeps what stages tell each other in a map, of whose
//! values the verifier knows nothing. Where that cannot be done (see `enforce_egress` on why), a veil does it.

use core::hint::black_box;

/// A number of which the verifier knows nothing, for it was read from a map.
#[derive(Clone, Copy, Debug)]
pub struct Veil(u64);

impl Veil {
    /// By a number from a map; any will do.
    #[inline(always)]
    pub const fn new(from_map: u64) -> Self {
        Self(from_map)
    }

    /// The same value. Combined with an unknown number it is unknown; that the same number is taken out again is not seen,
    /// neither by the verifier, which does not compare numbers that it does not know, nor by the compiler.
    // ANCHOR: over
    #[inline(always)]
    pub fn over(self, value: u64) -> u64 {
        black_box(value ^ self.0) ^ self.0
    }
    // ANCHOR_END: over
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_a_veil_is_the_same() {
        for value in [0, 1, 0x1234_5678_9abc_def0, u64::MAX] {
            for from_map in [0, 7, u64::MAX] {
                assert_eq!(Veil::new(from_map).over(value), value);
            }
        }
    }
}
