//! When a packet may leave.
//!
//! The same bucket as lab02's, asked another question: not whether the packet conforms now, but when it will. Whoever can
//! wait (the `fq` queueing discipline sends packets at the time that is written on them) sends it then; whoever cannot
//! takes "later" as "no".

use lab02_xdp_firewall_common::bucket::{Bucket, Limit};

use crate::target::Target;

/// A rate, and the destinations that it is for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Where its packets go; ports do not matter.
    pub target: Target,
    /// The rate, in bytes of the IP layer.
    pub limit: Limit,
}

const _: () = assert!(size_of::<Shape>() == 56);

/// The lowest rate, in bytes a second: 8 kbit/s. A super-packet of half a megabyte still has a price that does not
/// overflow.
pub const MIN_RATE: u64 = 1000;

const _: () = assert!((512 * 1024) < u64::MAX / 2 / Limit::new(MIN_RATE, 1).token_ns_scaled);

/// How far ahead a packet may be scheduled. What would have to wait longer is dropped, or an application that sends
/// faster than the rate would fill the queue; `fq` itself holds on to 10 seconds.
pub const HORIZON_NS: u64 = 2_000_000_000;

// ANCHOR: departure
/// When a packet may leave that takes `cost_ns` of the rate, as it may be sent at `now_ns` at the earliest; `None`, and
/// nothing taken, if that is more than `horizon_ns` away.
///
/// A packet that costs more than the whole burst, as one of segmentation offload can, leaves when the bucket is full,
/// and leaves it in debt: the rate holds, and nothing is stuck for ever.
#[inline(always)]
pub fn departure_ns(bucket: &mut Bucket, now_ns: u64, cost_ns: u64, burst_ns: u64, horizon_ns: u64) -> Option<u64> {
    let full_at_ns = if bucket.full_at_ns > now_ns {
        bucket.full_at_ns
    } else {
        now_ns
    };
    let wanted_ns = if cost_ns < burst_ns { cost_ns } else { burst_ns };
    let wait_ns = (full_at_ns - now_ns + wanted_ns).saturating_sub(burst_ns);
    if wait_ns > horizon_ns {
        return None;
    }
    bucket.full_at_ns = full_at_ns + cost_ns;
    Some(now_ns + wait_ns)
}
// ANCHOR_END: departure

// SAFETY: `#[repr(C)]`, integers without padding, any bits are valid.
#[cfg(not(target_arch = "bpf"))]
unsafe impl aya::Pod for Shape {}
