//! What goes wrong with packets on their way, and bytes that are no packet at all.

/// Changes to the bytes of a packet; lengths and checksums in it are left as they are.
pub trait Mutate {
    /// Cuts the packet off after `length` bytes.
    #[must_use]
    fn truncate_to(self, length: usize) -> Self;

    /// Replaces the byte at `offset`.
    #[must_use]
    fn with_byte(self, offset: usize, value: u8) -> Self;

    /// Replaces the bytes from `offset` on.
    #[must_use]
    fn with_bytes(self, offset: usize, values: &[u8]) -> Self;

    /// Appends zeros up to `length` bytes, as network cards do up to 60.
    #[must_use]
    fn pad_to(self, length: usize) -> Self;
}

impl Mutate for Vec<u8> {
    fn truncate_to(mut self, length: usize) -> Self {
        assert!(
            length <= self.len(),
            "{} bytes cannot be truncated to {length}",
            self.len()
        );
        self.truncate(length);
        self
    }

    fn with_byte(self, offset: usize, value: u8) -> Self {
        self.with_bytes(offset, &[value])
    }

    fn with_bytes(mut self, offset: usize, values: &[u8]) -> Self {
        self[offset..offset + values.len()].copy_from_slice(values);
        self
    }

    fn pad_to(mut self, length: usize) -> Self {
        self.resize(length.max(self.len()), 0);
        self
    }
}

/// `length` bytes that look random and are the same for the same seed (`SplitMix64`).
pub fn random_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)).to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}
