//! A token bucket, in the form of the generic cell rate algorithm (ITU-T I.371, annex A).
//!
//! A bucket that fills at a rate and is emptied by packets is the same as a clock that each packet sets forward by the
//! time its tokens take to come: if the clock is further ahead of now than the burst allows, the packet does not
//! conform. One number instead of two, no division, and it cannot wrap: nanoseconds since boot fill 64 bits after 584
//! years.

/// The state of one bucket: nothing but the moment at which it will be full again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Nanoseconds since boot. In the past for a bucket that is full; 0, which is always past, for a new one.
    pub full_at_ns: u64,
}

/// What a bucket lets through.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// How long a token takes to come, in nanoseconds times 2^[`Limit::FRACTION_BITS`].
    pub token_ns_scaled: u64,
    /// How long a full bucket takes to fill, in nanoseconds.
    pub burst_ns: u64,
}

impl Limit {
    /// The fraction bits of `token_ns_scaled`: at 100 Gbit/s a byte takes 0.08 ns, and that to one part in 20,000; and at
    /// a byte a second a packet of [`Limit::MAX_TOKENS`] does not overflow.
    pub const FRACTION_BITS: u32 = 18;

    /// The most tokens that are taken at once: more than the longest IP packet has bytes.
    pub const MAX_TOKENS: u64 = 70_000;

    /// A limit of `rate` tokens a second and a bucket of `burst` tokens. A rate of 0 lets the burst pass, once.
    pub const fn new(rate: u64, burst: u64) -> Self {
        const SECOND_NS: u128 = 1_000_000_000;
        if rate == 0 {
            return Self {
                token_ns_scaled: u64::MAX >> 24,
                burst_ns: 0,
            };
        }
        let token_ns_scaled = (SECOND_NS << Self::FRACTION_BITS) / rate as u128;
        let burst_ns = burst as u128 * SECOND_NS / rate as u128;
        Self {
            token_ns_scaled: token_ns_scaled as u64,
            burst_ns: if burst_ns > u64::MAX as u128 / 4 {
                u64::MAX / 4
            } else {
                burst_ns as u64
            },
        }
    }

    /// How long `tokens`, at most [`Limit::MAX_TOKENS`], take to come, in nanoseconds, rounded to the nearest.
    #[inline(always)]
    pub const fn cost_ns(&self, tokens: u64) -> u64 {
        let half = 1 << (Self::FRACTION_BITS - 1);
        (tokens.wrapping_mul(self.token_ns_scaled) + half) >> Self::FRACTION_BITS
    }
}

const _: () = assert!(Limit::MAX_TOKENS < (u64::MAX - (1 << 17)) / Limit::new(1, 1).token_ns_scaled);

impl Bucket {
    /// Takes tokens that take `cost_ns` to come out of a bucket that takes `burst_ns` to fill; false, and nothing taken,
    /// if there are not so many.
    ///
    /// `now_ns` may be a little older than that of a call before, from another CPU: the bucket then is fuller by no
    /// more than that.
    #[inline(always)]
    pub fn take(&mut self, now_ns: u64, cost_ns: u64, burst_ns: u64) -> bool {
        // ANCHOR: take
        let full_at_ns = if self.full_at_ns > now_ns {
            self.full_at_ns
        } else {
            now_ns
        };
        let full_again_ns = full_at_ns + cost_ns;
        if full_again_ns - now_ns > burst_ns {
            return false;
        }
        self.full_at_ns = full_again_ns;
        true
        // ANCHOR_END: take
    }
}
