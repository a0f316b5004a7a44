// SPDX-License-Identifier: GPL-2.0-only

//! Deadlines: computed from the time when a request was parked, never stored. So the order of
//! parking is the order of deadlines.

use core::num::NonZeroU8;

use super::{
    Config,
    OnTimeout,
    Parking, //
};

/// A point on the monotonic clock, or a span of it, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanos(pub u64);

impl Nanos {
    /// Returns a span of `millis` milliseconds. 2^32 ms are 49.7 days, far inside the range.
    pub const fn from_millis(millis: u32) -> Self {
        Self(millis as u64 * 1_000_000)
    }

    /// Returns the number of whole microseconds.
    pub const fn micros(self) -> u64 {
        self.0 / 1_000
    }

    /// Returns the point that is `span` later, or the end of time if that overflows.
    pub const fn after(self, span: Nanos) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

/// How long a silent connection stays parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// Until the client sends, however long that takes.
    Never,
    /// At most this long, counted from the client's bare ACK.
    After(Nanos),
}

impl Timeout {
    /// Returns the timeout that the user's number of milliseconds means; 0 is [`Timeout::Never`].
    pub const fn from_millis(millis: u32) -> Self {
        match millis {
            0 => Timeout::Never,
            millis => Timeout::After(Nanos::from_millis(millis)),
        }
    }

    /// Returns the timeout that a number of SYN-ACK retransmissions means, in seconds as
    /// `getsockopt(TCP_DEFER_ACCEPT)` reports it (`retrans_to_secs()`): 1, 3, 7, 15, 31, 63, 127,
    /// and two minutes more for each further retransmission.
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

    /// Returns the number of milliseconds: the inverse of [`Self::from_millis`].
    pub const fn millis(self) -> u32 {
        match self {
            Timeout::Never => 0,
            Timeout::After(span) => (span.0 / 1_000_000) as u32,
        }
    }

    /// Returns the deadline of a request parked at `parked_at`.
    pub const fn deadline(self, parked_at: Nanos) -> Option<Nanos> {
        match self {
            Timeout::Never => None,
            Timeout::After(span) => Some(parked_at.after(span)),
        }
    }
}

/// How long the SYN-ACK timer of a parked request stays armed before it is deferred. Most clients
/// send sooner, and the timers of their requests need not be touched.
const DEFER_AFTER: Nanos = Nanos::from_millis(300);
/// How long a request must have been parked for its SYN-ACK timer to be deferred in one batch with
/// another one, so that the listener's timer does not fire for each request.
const DEFER_BATCH: Nanos = Nanos::from_millis(150);
/// How much time a SYN-ACK timer must have left to stay armed; otherwise it is deferred at once.
const MIN_REMAINING: Nanos = Nanos::from_millis(600);
/// How often an armed SYN-ACK timer must be allowed to fire. It may fire although it is to be
/// deferred, if the machine stalls. The count of timeouts is reset each time, so it never
/// exceeds one, and the request survives any number of such firings.
const MIN_TIMEOUTS_LEFT: u8 = 2;

/// Returns whether the SYN-ACK timer of a request that is parked now may stay armed. The timer has
/// fired `timeouts` times, may fire `max_timeouts` times, and has `left` until it fires next.
pub fn may_synack_timer_run(timeouts: u8, max_timeouts: u8, left: Nanos) -> bool {
    timeouts == 0 && max_timeouts >= MIN_TIMEOUTS_LEFT && left >= MIN_REMAINING
}

/// Returns when to defer the SYN-ACK timer of a request that was parked at `parked_at`.
pub const fn synack_timer_deferral(parked_at: Nanos) -> Nanos {
    parked_at.after(DEFER_AFTER)
}

/// Returns whether a batch of SYN-ACK timers that is deferred `now` includes the timer of a request
/// that was parked at `parked_at`.
pub const fn is_deferred_with_batch(now: Nanos, parked_at: Nanos) -> bool {
    now.0 >= parked_at.after(DEFER_BATCH).0
}

/// Why a parked request has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// It has reached its deadline.
    Timeout,
    /// More requests are parked than allowed, and it is the oldest one of the source that has the
    /// most, or the oldest of all if not all are counted by source.
    Eviction,
    /// A SYN inside of its window came: TCP makes the connection at once, which answers the SYN.
    SynInWindow,
    /// Parking is paused.
    Pause,
    /// The listener has stopped, and no other one takes the request.
    Stopped,
    /// The client has not answered to probes.
    Died,
}

impl Expiry {
    /// Returns what becomes of a request that has expired for this reason at a listener with this
    /// configuration: a pause ends no connection, nor does a SYN, and the end of a listener is told
    /// to its clients, whatever it does at a deadline.
    pub const fn outcome(self, config: &Config) -> OnTimeout {
        match self {
            Self::Timeout | Self::Eviction => config.on_timeout,
            Self::Pause | Self::SynInWindow => OnTimeout::Accept,
            Self::Stopped | Self::Died => OnTimeout::Reset,
        }
    }
}

/// How often to look whether a listener still listens.
const STOP_LOOK: Nanos = Nanos::from_millis(500);

/// Returns when the timer of a listener fires that has parked requests, and something to do at
/// `due`: then, or earlier to look whether the listener still listens.
///
/// Nothing tells the module when a listener is shut down (`shutdown()`, `connect()` with
/// `AF_UNSPEC`, `ss -K`). So its clients learn of it half a second later at most.
pub fn next_look(now: Nanos, due: Option<Nanos>) -> Nanos {
    let look = now.after(STOP_LOOK);
    due.map_or(look, |due| due.min(look))
}

/// What a listener's timer must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimerAction {
    /// Nothing: no request has a deadline.
    Idle,
    /// Fire at this point.
    At(Nanos),
    /// Expire the oldest parked request, or for [`Expiry::Eviction`] the one that it names.
    Expire(Expiry),
    /// Look for room in the accept queue later ([`RoomWatch`](super::RoomWatch)): the oldest
    /// parked request is expired and is to be accepted, and the queue is full.
    WaitForRoom,
}

/// Decides what a listener's timer does at `now`, given how many requests are parked, and when the
/// oldest was.
///
/// `accept_queue_full`: a connection made now would be refused, so a request that is to be accepted
/// waits for room.
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
        _ if config.parking == Parking::Paused => Expiry::Pause,
        Some(deadline) if now >= deadline => Expiry::Timeout,
        _ if parked > u64::from(config.max_parked) => Expiry::Eviction,
        Some(deadline) => return TimerAction::At(deadline),
        None => return TimerAction::Idle,
    };
    if accept_queue_full && expiry.outcome(config) == OnTimeout::Accept {
        TimerAction::WaitForRoom
    } else {
        TimerAction::Expire(expiry)
    }
}
