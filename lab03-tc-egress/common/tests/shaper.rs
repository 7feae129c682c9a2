//! The time at which packets leave, against an account that is kept in exact numbers (F4, P2).

use lab02_xdp_firewall_common::bucket::{Bucket, Limit};
use lab03_tc_egress_common::shaper::departure_ns;
use proptest::prelude::*;

proptest! {
    /// In any span of time there leave at most the rate's bytes, the burst, and one packet that was larger than it.
    #[test]
    fn what_leaves_is_never_more_than_rate_and_burst(
        packets in prop::collection::vec((0..2_000_000_u64, 60..70_000_u64), 1..200),
        rate in 125_000..125_000_000_u64,
        horizon in prop_oneof![Just(0), Just(2_000_000_000_u64)],
    ) {
        let burst = 65_536;
        let limit = Limit::new(rate, burst);
        let (mut bucket, mut now) = (Bucket::default(), 1_000_000_000);
        let mut left: Vec<(u64, u64)> = Vec::new();
        for (pause, bytes) in packets {
            now += pause;
            let cost = limit.cost_ns(bytes);
            if let Some(at) = departure_ns(&mut bucket, now, cost, limit.burst_ns, horizon) {
                prop_assert!(at >= now && at - now <= horizon);
                prop_assert!(left.last().is_none_or(|(last, _)| *last <= at), "packets overtake");
                left.push((at, bytes));
            }
        }
        for (first, (start, _)) in left.iter().enumerate() {
            let mut sum = 0;
            for (at, bytes) in &left[first..] {
                sum += bytes;
                let seconds = (at - start) as f64 / 1e9;
                let most = rate as f64 * seconds + burst as f64 + 70_000.0;
                prop_assert!(sum as f64 <= most * 1.001, "{sum} of at most {most} in {seconds} s");
            }
        }
    }

    /// Whoever always has something to send gets the whole rate: the burst is more than comes between two packets.
    #[test]
    fn a_sender_that_never_pauses_gets_the_whole_rate(rate in 125_000..125_000_000_u64, bytes in 1000..40_000_u64, waits in any::<bool>()) {
        let limit = Limit::new(rate, 65_536);
        let horizon = if waits { 2_000_000_000 } else { 0 };
        let mut bucket = Bucket::default();
        let (start, step) = (1_000_000_000, 100_000);
        let end = start + 20_000_000_000;
        let (mut now, mut sent) = (start, 0_u64);
        while now < end {
            if departure_ns(&mut bucket, now, limit.cost_ns(bytes), limit.burst_ns, horizon).is_some() {
                sent += bytes;
            }
            now += step;
            if sent > rate * 40 {
                break;
            }
        }
        // No more can be sent than is offered, a packet a step.
        let offered = bytes as f64 * 20_000_000_000.0 / step as f64;
        let expected = (rate as f64 * if waits { 22.0 } else { 20.0 } + 65_536.0).min(offered);
        let ratio = sent as f64 / expected;
        prop_assert!((0.95..1.06).contains(&ratio), "{sent} of {expected}");
    }
}

#[test]
fn a_packet_larger_than_the_burst_leaves_from_a_full_bucket_and_is_paid_for() {
    // 125,000 bytes a second: 8,000 ns a byte.
    let limit = Limit::new(125_000, 65_536);
    let mut bucket = Bucket::default();
    let cost = limit.cost_ns(68_000);
    assert_eq!(departure_ns(&mut bucket, 1000, cost, limit.burst_ns, 0), Some(1000));
    assert_eq!(
        departure_ns(&mut bucket, 1000, limit.cost_ns(1), limit.burst_ns, 0),
        None
    );
    let paid_ns = 1000 + cost - limit.burst_ns + limit.cost_ns(1);
    assert_eq!(
        departure_ns(&mut bucket, paid_ns - 1, limit.cost_ns(1), limit.burst_ns, 0),
        None
    );
    assert_eq!(
        departure_ns(&mut bucket, paid_ns, limit.cost_ns(1), limit.burst_ns, 0),
        Some(paid_ns)
    );
}
