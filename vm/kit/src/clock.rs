// SPDX-License-Identifier: MIT OR Apache-2.0

//! Points in time that packets and system calls share.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sched::{sched_setaffinity, CpuSet};
use nix::unistd::Pid;

/// A point in time on the clock the kernel stamps packets with (`CLOCK_REALTIME`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(Duration);

impl Stamp {
    /// Returns the present moment.
    pub fn now() -> Self {
        Self(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
        )
    }

    /// Makes a point in time given as the time since 1970.
    pub fn from_epoch(since_epoch: Duration) -> Self {
        Self(since_epoch)
    }

    /// Returns the time since 1970.
    pub fn epoch(self) -> Duration {
        self.0
    }

    /// Returns how long after `earlier` this is; nothing, if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the point in time that much before this one.
    pub fn before(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(time))
    }

    /// Returns how many milliseconds after `other` this is; negative, if it is before it.
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

/// Knows how late this machine ran its programs.
///
/// An emulated machine on a busy host stops now and then, or one of its processors does, and so
/// does every program there. A thread on each of them that does nothing but sleep shows when, and
/// by how much: what a test allows beyond its own tolerance.
#[derive(Clone, Debug)]
pub struct Pulse {
    /// Of each processor.
    beats: Vec<Arc<Mutex<Beats>>>,
}

#[derive(Debug)]
struct Beats {
    past: Vec<Beat>,
    /// When the next one is due: if that is over, the thread is late right now.
    next_due: Stamp,
}

#[derive(Clone, Copy, Debug)]
struct Beat {
    due: Stamp,
    at: Stamp,
}

impl Pulse {
    const PERIOD: Duration = Duration::from_millis(20);

    /// Starts the threads; they end with the process, or when the last clone is gone.
    pub fn start() -> Self {
        let count = thread::available_parallelism().map_or(1, usize::from);
        Self {
            beats: (0..count).map(Self::beat).collect(),
        }
    }

    /// Starts the thread of a processor. If it may not run there, it runs anywhere.
    fn beat(processor: usize) -> Arc<Mutex<Beats>> {
        let next = || Stamp(Stamp::now().0 + Self::PERIOD);
        let beats = Arc::new(Mutex::new(Beats {
            past: Vec::new(),
            next_due: next(),
        }));
        let weak = Arc::downgrade(&beats);
        thread::spawn(move || {
            let mut set = CpuSet::new();
            let pinned = set.set(processor);
            let _ = pinned.and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
            loop {
                thread::sleep(Self::PERIOD);
                let Some(beats) = weak.upgrade() else {
                    return;
                };
                let mut beats = lock(&beats);
                let (due, at) = (beats.next_due, Stamp::now());
                beats.past.push(Beat { due, at });
                beats.next_due = next();
            }
        });
        beats
    }

    /// Returns the most that a program which was due between two points in time was late.
    pub fn worst(&self, from: Stamp, to: Stamp) -> Duration {
        let worst = self.beats.iter().map(|beats| lock(beats).worst(from, to));
        worst.max().unwrap_or_default()
    }
}

impl Beats {
    fn worst(&self, from: Stamp, to: Stamp) -> Duration {
        let pending = Beat {
            due: self.next_due,
            at: Stamp::now().max(self.next_due),
        };
        self.past
            .iter()
            .chain([&pending])
            .filter(|beat| beat.due <= to && beat.at >= from)
            .map(|beat| beat.at.since(beat.due))
            .max()
            .unwrap_or_default()
    }
}

fn lock(beats: &Mutex<Beats>) -> MutexGuard<'_, Beats> {
    beats.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_beat_of_a_time_is_found() {
        let ms = |ms| Stamp(Duration::from_millis(ms));
        let beat = |due, at| Beat {
            due: ms(due),
            at: ms(at),
        };
        let beats = |past: Vec<Beat>, next_due| Arc::new(Mutex::new(Beats { past, next_due }));
        // Two processors; one stood still.
        let pulse = Pulse {
            beats: vec![
                beats(vec![beat(20, 20), beat(40, 40)], Stamp::now()),
                beats(
                    vec![beat(20, 21), beat(41, 99), beat(119, 122)],
                    Stamp(Stamp::now().0 - Duration::from_secs(1)),
                ),
            ],
        };
        assert_eq!(pulse.worst(ms(0), ms(200)), Duration::from_millis(58));
        assert_eq!(pulse.worst(ms(60), ms(70)), Duration::from_millis(58));
        assert_eq!(pulse.worst(ms(100), ms(200)), Duration::from_millis(3));
        assert_eq!(pulse.worst(ms(0), ms(30)), Duration::from_millis(1));
        assert_eq!(pulse.worst(ms(100), ms(110)), Duration::ZERO);
        // The beat that should have been a second ago is still missing.
        assert!(pulse.worst(ms(0), Stamp::now()) >= Duration::from_secs(1));
    }

    #[test]
    fn stamps_compare_both_ways() {
        let (early, late) = (
            Stamp(Duration::from_millis(5)),
            Stamp(Duration::from_millis(7)),
        );
        assert_eq!(late.since(early), Duration::from_millis(2));
        assert_eq!(early.since(late), Duration::ZERO);
        assert!((early.ms_after(late) + 2.0).abs() < 1e-6);
    }
}
