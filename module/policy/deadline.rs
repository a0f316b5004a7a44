// SPDX-License-Identifier: GPL-2.0-only

//! Deadlines: computed from when a request was parked, never stored, so that the order of parking is the order of
//! deadlines.

/// A point on the monotonic clock, or a span of it, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanos(pub u64);

impl Nanos {
    /// `millis` milliseconds. 2^32 ms are 49.7 days, far inside the range.
    pub const fn from_millis(millis: u32) -> Self {
        Self(millis as u64 * 1_000_000)
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

/// What a listener's timer must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Nobody has a deadline.
    Idle,
    /// Fire at this point.
    At(Nanos),
    /// The oldest parked request has reached its deadline.
    Due,
}

/// Decides what a listener's timer does at `now`, given when the oldest request was parked.
///
/// `accept_queue_full`: a connection made now would be refused, so a due request waits for room.
pub fn on_alarm(
    now: Nanos,
    oldest_parked_at: Option<Nanos>,
    timeout: Timeout,
    accept_queue_full: bool,
) -> Alarm {
    let Some(deadline) = oldest_parked_at.and_then(|parked_at| timeout.deadline(parked_at)) else {
        return Alarm::Idle;
    };
    if now < deadline {
        Alarm::At(deadline)
    } else if accept_queue_full {
        Alarm::At(now.after(ACCEPT_QUEUE_RETRY))
    } else {
        Alarm::Due
    }
}
