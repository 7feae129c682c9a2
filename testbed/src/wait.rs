//! Waiting for what the kernel does in its own time.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{Error, Result};

const PATIENCE: Duration = Duration::from_secs(10);

/// The environment variable that says how many times as long to wait as on a usual machine, for one that is emulated.
pub const SLOWNESS: &str = "EBPF_KERNEL_SLOWNESS";

/// How long to wait here for what takes up to `usual` on a usual machine, before it is taken for a failure.
pub fn patience(usual: Duration) -> Duration {
    let slowness = std::env::var(SLOWNESS).ok().and_then(|text| text.parse().ok());
    usual * slowness.unwrap_or(1)
}

/// Asks until `is_done`; gives up after ten seconds.
pub(crate) fn wait_for(what: &str, mut is_done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    let patience = patience(PATIENCE);
    while !is_done()? {
        if start.elapsed() > patience {
            return Err(Error::TimedOut {
                what: what.to_owned(),
                waited_s: patience.as_secs(),
            });
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
