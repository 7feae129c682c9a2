//! The kernel's clock and the calendar's.

use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since boot, time asleep included: what programs call `bpf_ktime_get_boot_ns`.
pub fn boot_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| Duration::from(time).as_nanos() as u64)
}

/// Turns times since boot into times of the calendar.
#[derive(Clone, Copy, Debug)]
pub struct Calendar {
    booted: SystemTime,
}

impl Calendar {
    /// By the two clocks as they are now.
    pub fn now() -> Self {
        let since_boot = Duration::from_nanos(boot_ns());
        let booted = SystemTime::now().checked_sub(since_boot);
        Self {
            booted: booted.unwrap_or(SystemTime::UNIX_EPOCH),
        }
    }

    /// The time of the calendar, as RFC 3339 has it, to the microsecond.
    pub fn at(&self, boot_ns: u64) -> String {
        humantime::format_rfc3339_micros(self.booted + Duration::from_nanos(boot_ns)).to_string()
    }
}
