// SPDX-License-Identifier: GPL-2.0-only

//! Deadlines: computed from when a request was parked, never stored, so that the order of parking is the order of
//! deadlines.

use core::num::NonZeroU8;

use super::{
    Config,
    OnTimeout, //
};

/// A point on the monotonic clock, or a span of it, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanos(pub u64);

impl Nanos {
    /// `millis` milliseconds. 2^32 ms are 49.7 days, far inside the range.
    pub const fn from_millis(millis: u32) -> Self {
        Self(millis as u64 * 1_000_000)
    }

    /// Whole microseconds.
    pub const fn micros(self) -> u64 {
        self.0 / 1_000
    }

    /// The later point `span` from here; the end of time where that cannot be told.
    pub const fn after(self, span: Nanos) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

/// How long a silent connection is held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// Until it sends, however long that takes.
    Never,
    /// At most this long, from its bare ACK.
    After(Nanos),
}

impl Timeout {
    /// The timeout that the user's number of milliseconds means: 0 holds until data.
    pub const fn from_millis(millis: u32) -> Self {
        match millis {
            0 => Timeout::Never,
            millis => Timeout::After(Nanos::from_millis(millis)),
        }
    }

    /// The timeout that a number of SYN-ACK retransmissions means: what `getsockopt(TCP_DEFER_ACCEPT)` says in seconds
    /// (`retrans_to_secs()`): 1, 3, 7, 15, 31, 63, 127, and from then on two minutes more each.
    pub fn from_retransmits(retransmits: NonZeroU8) -> Self {
        const MAX: u32 = 120;
        let mut secs = 0;
        let mut pause = 1;
        for _ in 0..retransmits.get() {
            secs += pause;
            pause = (pause * 2).min(MAX);
        }
        Self::from_millis(secs * 1000)
    }

    /// The number of milliseconds that [`Self::from_millis`] makes this of.
    pub const fn millis(self) -> u32 {
        match self {
            Timeout::Never => 0,
            Timeout::After(span) => (span.0 / 1_000_000) as u32,
        }
    }

    /// The deadline of a request parked at `parked_at`.
    pub const fn deadline(self, parked_at: Nanos) -> Option<Nanos> {
        match self {
            Timeout::Never => None,
            Timeout::After(span) => Some(parked_at.after(span)),
        }
    }
}

/// How soon a due request is tried again while the listener's accept queue is full.
///
/// Nothing goes over the wire in between; the server has 20 chances a second to have called `accept()`.
const ACCEPT_QUEUE_RETRY: Nanos = Nanos::from_millis(50);

/// For how long a parked request's own timer, which is to send the SYN-ACK again, is let be. Most clients send sooner, and the
/// timer need not be touched for them.
const DEFER_AFTER: Nanos = Nanos::from_millis(300);
/// If one is put off then, so are those of all requests that were parked at least this long ago, so that the listener's timer
/// does not fire for each.
const DEFER_BATCH: Nanos = Nanos::from_millis(150);
/// If it is to fire sooner than this, it is put off at once.
const MIN_REMAINING: Nanos = Nanos::from_millis(600);
/// It may fire nonetheless, on a machine that stands still meanwhile. Should it do so again and again, the request must outlive
/// that: it counts as one timeout each time, never as more.
const MIN_TIMEOUTS_LEFT: u8 = 2;

/// May the own timer of a request run on that is parked now? It has fired `timeouts` times, may fire `max_timeouts` times, and has
/// `left` until then.
#[inline]
pub fn may_synack_timer_run(timeouts: u8, max_timeouts: u8, left: Nanos) -> bool {
    timeouts == 0 && max_timeouts >= MIN_TIMEOUTS_LEFT && left >= MIN_REMAINING
}

/// When the own timer of a request that was parked at `parked_at` is to be put off.
#[inline]
pub const fn synack_timer_deferral(parked_at: Nanos) -> Nanos {
    parked_at.after(DEFER_AFTER)
}

/// If some are put off `now`, is that of a request that was parked at `parked_at`, too?
pub const fn is_deferred_with_batch(now: Nanos, parked_at: Nanos) -> bool {
    now.0 >= parked_at.after(DEFER_BATCH).0
}

/// Why a parked request's time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// It has reached its deadline.
    Timeout,
    /// More are parked than may be, and it is the oldest.
    Eviction,
}

/// What a listener's timer must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerAction {
    /// Nobody has a deadline.
    Idle,
    /// Fire at this point.
    At(Nanos),
    /// The oldest parked request's time is up.
    Expire(Expiry),
}

/// Decides what a listener's timer does at `now`, given how many are parked, and when the oldest was.
///
/// `accept_queue_full`: a connection made now would be refused, so one that is to be accepted waits for room.
pub fn timer_action(
    now: Nanos,
    config: &Config,
    parked: u64,
    oldest_parked_at: Option<Nanos>,
    accept_queue_full: bool,
) -> TimerAction {
    let Some(parked_at) = oldest_parked_at else {
        return TimerAction::Idle;
    };
    let expiry = match config.timeout.deadline(parked_at) {
        Some(deadline) if now >= deadline => Expiry::Timeout,
        _ if parked > u64::from(config.max_parked) => Expiry::Eviction,
        Some(deadline) => return TimerAction::At(deadline),
        None => return TimerAction::Idle,
    };
    if accept_queue_full && config.on_timeout == OnTimeout::Accept {
        TimerAction::At(now.after(ACCEPT_QUEUE_RETRY))
    } else {
        TimerAction::Expire(expiry)
    }
}
