//! When reports are due, and when the last one is.

use std::{future::Future, io, pin::Pin, time::Duration};

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};

use crate::signals::asked_to_stop;

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// A report; more follow.
    Report,
    /// The last report.
    LastReport,
}

/// Reports at an interval, until a time is over or Ctrl-C or SIGTERM asks to stop.
pub struct Schedule {
    start: Instant,
    end: Option<Instant>,
    ticks: Interval,
    stop: Pin<Box<dyn Future<Output = io::Result<()>>>>,
}

impl Schedule {
    /// Starts now; the first report is due after one interval.
    pub fn start(interval: Duration, duration: Option<Duration>) -> Self {
        let start = Instant::now();
        let mut ticks = interval_at(start + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            start,
            // A time further away than the clock can tell never comes.
            end: duration.and_then(|duration| start.checked_add(duration)),
            ticks,
            stop: Box::pin(asked_to_stop()),
        }
    }

    /// The time since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Waits until something is due.
    pub async fn next(&mut self) -> io::Result<Due> {
        let end = self.end;
        let end = async move {
            match end {
                Some(end) => sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            asked = &mut self.stop => { asked?; Ok(Due::LastReport) }
            () = end => Ok(Due::LastReport),
            _ = self.ticks.tick() => Ok(Due::Report),
        }
    }
}

/// A time from the command line: not nothing.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration =
        humantime::parse_duration(text).map_err(|error| format!("{error}; write it like 500ms, 2s or 1m"))?;
    if duration.is_zero() {
        Err("it must be more than nothing".into())
    } else {
        Ok(duration)
    }
}

/// A time between two reports from the command line: neither a strain nor for ever.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if interval < Duration::from_millis(100) {
        Err("the shortest interval is 100ms".into())
    } else if interval > Duration::from_hours(24) {
        Err("the longest interval is 1day".into())
    } else {
        Ok(interval)
    }
}
