//! How long a call takes that goes through a whole network stack, on a machine that does other things now and then.

use std::{thread, time::Instant};

use testbed::{Result, stay_on_cpu};

/// How many batches are timed.
const BATCHES: usize = 81;

/// The time of a call in nanoseconds, when `batch` makes so many: the lower quartile of batches, after one that does not count.
///
/// A batch that takes a millisecond or two has the CPU for itself, or is interrupted and takes several times as long. On a
/// machine that does other things, that may be most of them; one long measurement would have the others' time in it, to a
/// different degree each time.
///
/// All is done on one CPU, on which a veth also receives.
pub fn quartile_ns(calls: u32, mut batch: impl FnMut() -> Result + Send) -> Result<u32> {
    let mut timed = || {
        let start = Instant::now();
        batch()?;
        Ok((start.elapsed().as_nanos() / u128::from(calls)) as u32)
    };
    // A thread of its own, as it stays on the CPU for good.
    let mut times_ns = thread::scope(|scope| {
        let timing = scope.spawn(|| {
            stay_on_cpu(0)?;
            timed()?;
            (0..BATCHES).map(|_| timed()).collect::<Result<Vec<u32>>>()
        });
        timing.join().expect("what is timed does not panic")
    })?;
    times_ns.sort_unstable();
    Ok(times_ns[BATCHES / 4])
}
