// SPDX-License-Identifier: MIT OR Apache-2.0

//! Points in time that packets and system calls share.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time on the clock the kernel stamps packets with (`CLOCK_REALTIME`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(Duration);

impl Stamp {
    /// This very moment.
    pub fn now() -> Self {
        Self(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        )
    }

    /// A point in time given as the time since 1970.
    pub fn from_epoch(since_epoch: Duration) -> Self {
        Self(since_epoch)
    }

    /// The time since 1970.
    pub fn epoch(self) -> Duration {
        self.0
    }

    /// How long after `earlier` this is; nothing, if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// How many milliseconds after `other` this is; negative, if it is before it.
    pub fn ms_after(self, other: Self) -> f64 {
        (self.0.as_secs_f64() - other.0.as_secs_f64()) * 1e3
    }
}

impl fmt::Display for Stamp {
    /// Seconds within the current thousand, with microseconds: short, and enough to compare lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:03}.{:06}",
            self.0.as_secs() % 1000,
            self.0.subsec_micros()
        )
    }
}
