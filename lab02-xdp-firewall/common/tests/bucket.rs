//! The token bucket against one that counts tokens, as everybody would write it first.

use lab02_xdp_firewall_common::bucket::{Bucket, Limit};
use proptest::prelude::*;

/// Tokens in a bucket, exactly, in units of a token times a second times 10^9.
struct Counting {
    tokens: u128,
    at_ns: u64,
}

const SCALE: u128 = 1_000_000_000;

impl Counting {
    fn take(&mut self, now_ns: u64, tokens: u64, rate: u64, burst: u64) -> bool {
        let elapsed = u128::from(now_ns.saturating_sub(self.at_ns));
        self.tokens = (self.tokens + elapsed * u128::from(rate)).min(u128::from(burst) * SCALE);
        self.at_ns = now_ns;
        let cost = u128::from(tokens) * SCALE;
        if self.tokens < cost {
            return false;
        }
        self.tokens -= cost;
        true
    }
}

/// How much of `seconds` seconds of packets of `tokens` tokens, one each `gap_ns`, passes.
fn passed(limit: Limit, tokens: u64, gap_ns: u64, seconds: u64) -> u64 {
    let mut bucket = Bucket::default();
    let start = 1_000_000_000_000;
    (0..seconds * 1_000_000_000 / gap_ns)
        .filter(|number| bucket.take(start + number * gap_ns, limit.cost_ns(tokens), limit.burst_ns))
        .count() as u64
}

#[test]
fn a_flood_is_cut_to_the_rate_after_the_burst() {
    for rate in [1, 10, 1000, 100_000] {
        let burst = 50;
        let passed = passed(Limit::new(rate, burst), 1, 5_000, 10);
        let expected = rate * 10 + burst;
        assert!(
            passed.abs_diff(expected) <= 1 + expected / 1000,
            "{passed} of {expected} at {rate} a second"
        );
    }
}

#[test]
fn bytes_are_cut_to_the_rate_too() {
    // 10 Mbit/s and 100 Gbit/s in bytes a second.
    for (rate, gap_ns) in [(1_250_000, 100_000), (12_500_000_000, 60)] {
        let (burst, seconds, len) = (65_536, 2, 1500);
        let bytes = passed(Limit::new(rate, burst), len, gap_ns, seconds) * len;
        let expected = rate * seconds + burst;
        assert!(bytes.abs_diff(expected) < expected / 500 + len, "{bytes} of {expected}");
    }
}

#[test]
fn the_longest_packet_costs_the_most_at_the_lowest_rate() {
    let limit = Limit::new(1, 70_000);
    for bytes in [1, 1500, 17_593, 65_535, Limit::MAX_TOKENS] {
        assert_eq!(limit.cost_ns(bytes), bytes * 1_000_000_000, "{bytes} bytes");
    }
}

#[test]
fn a_rate_of_nothing_lets_nothing_pass() {
    assert_eq!(passed(Limit::new(0, 10), 1, 1_000_000, 10), 0);
}

#[test]
fn a_bucket_is_full_again_after_a_pause_and_no_fuller_than_its_burst() {
    let limit = Limit::new(1000, 5);
    let mut bucket = Bucket::default();
    for pause_ns in [0, 3_600_000_000_000, u64::MAX / 2] {
        let now_ns = 1_000_000_000 + pause_ns;
        let taken = (0..100)
            .filter(|_| bucket.take(now_ns, limit.cost_ns(1), limit.burst_ns))
            .count();
        assert_eq!(taken, 5, "after {pause_ns} ns");
    }
}

#[test]
fn a_clock_that_runs_backwards_a_little_gives_nothing_away() {
    // Two CPUs read the clock, then take the lock in the other order.
    let limit = Limit::new(1000, 1);
    let mut bucket = Bucket::default();
    assert!(bucket.take(2_000_000, limit.cost_ns(1), limit.burst_ns));
    assert!(!bucket.take(1_999_000, limit.cost_ns(1), limit.burst_ns));
}

proptest! {
    #[test]
    fn verdicts_are_those_of_counted_tokens(
        rate in 1..1_000_000u64,
        burst in 1..1000u64,
        steps in proptest::collection::vec((0..3_000_000u64, 1..20u64), 1..200),
    ) {
        let limit = Limit::new(rate, burst);
        let mut bucket = Bucket::default();
        let mut counting = Counting { tokens: u128::from(burst) * SCALE, at_ns: 0 };
        let mut now_ns = 1_000_000_000;
        for (gap_ns, tokens) in steps {
            now_ns += gap_ns;
            let before = counting.tokens;
            let expected = counting.take(now_ns, tokens, rate, burst);
            let got = bucket.take(now_ns, limit.cost_ns(tokens), limit.burst_ns);
            // Whole nanoseconds round by less than a hundredth of a token here; at the very edge either may be right.
            let edge = counting.tokens.abs_diff(if expected { 0 } else { u128::from(tokens) * SCALE }) < SCALE / 50;
            if got != expected {
                prop_assert!(edge, "rate {rate}, burst {burst}, {tokens} tokens of {before}");
                // Go on from the same state.
                bucket = Bucket { full_at_ns: now_ns + ((u128::from(burst) * SCALE - counting.tokens) / u128::from(rate)) as u64 };
            }
        }
    }
}
