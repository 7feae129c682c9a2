//! Waiting for what the kernel does in its own time.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{Error, Result};

const PATIENCE: Duration = Duration::from_secs(10);

/// Asks until `is_done`; gives up after ten seconds.
pub(crate) fn wait_for(what: &str, mut is_done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is_done()? {
        if start.elapsed() > PATIENCE {
            return Err(Error::TimedOut {
                what: what.to_owned(),
                waited_s: PATIENCE.as_secs(),
            });
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
