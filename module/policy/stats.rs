// SPDX-License-Identifier: GPL-2.0-only

//! The counters of a listener.

use super::{
    Expiry,
    Nanos,
    OnTimeout,
    SegmentKind, //
};

/// Why a connection is not parked any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Accepted: data came.
    Data,
    /// Accepted: the client closed its side.
    Fin,
    /// Accepted at the deadline.
    TimeoutAccept,
    /// Reset at the deadline.
    TimeoutReset,
    /// Dropped at the deadline.
    TimeoutDrop,
    /// Accepted, reset or dropped before the deadline, to make room for another one.
    Evicted,
    /// Dropped by the kernel, usually because of the client's RST; or reset, because the listener
    /// has stopped.
    Aborted,
    /// Fell back to plain TCP.
    Fallback,
    /// Accepted: parking was paused.
    Paused,
    /// Reset: the client closed its side.
    ClosedReset,
    /// Reset: the client did not answer to probes. Or it answered to one by an RST.
    Died,
}

impl End {
    /// The number of variants.
    pub const COUNT: usize = 11;

    /// Returns the end of a connection that `segment` made, with the reason why its request had
    /// `expired`, if it had.
    pub const fn of_accepted(segment: SegmentKind, expired: Option<Expiry>) -> Self {
        match (segment, expired) {
            (SegmentKind::Data, _) => Self::Data,
            (SegmentKind::Fin, _) => Self::Fin,
            (SegmentKind::BareAck, Some(expiry)) => Self::of_expired(expiry, OnTimeout::Accept),
            (SegmentKind::BareAck, None) => Self::Fallback,
        }
    }

    /// Returns the end of a connection whose request expired, by its listener's `on_timeout`.
    pub const fn of_expired(expiry: Expiry, on_timeout: OnTimeout) -> Self {
        match (expiry, on_timeout) {
            (Expiry::Eviction, _) => Self::Evicted,
            (Expiry::SynInWindow, _) => Self::Fallback,
            (Expiry::Pause, _) => Self::Paused,
            (Expiry::Stopped, _) => Self::Aborted,
            (Expiry::Died, _) => Self::Died,
            (Expiry::Timeout, OnTimeout::Accept) => Self::TimeoutAccept,
            (Expiry::Timeout, OnTimeout::Reset) => Self::TimeoutReset,
            (Expiry::Timeout, OnTimeout::Drop) => Self::TimeoutDrop,
        }
    }
}

/// Why a connection that the filter wanted parked was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    /// The SYN was answered with a syncookie.
    Syncookie,
    /// The SYN carried data or a cookie (RFC 7413).
    FastOpen,
    /// `net.ipv4.tcp_abort_on_overflow` is set.
    AbortOnOverflow,
    /// `max_parked` was reached, and none could be accepted instead: the accept queue was full.
    AcceptQueueFull,
    /// There was no memory.
    NoMemory,
    /// The network namespace has reached its limit.
    NamespaceLimit,
    /// The listener checks signatures (RFC 2385, RFC 5925).
    Signed,
    /// Anything else.
    Other,
    /// Parking is paused.
    Paused,
}

impl Bypass {
    /// The number of variants.
    pub const COUNT: usize = 9;
}

/// The number of buckets of [`Stats::wait_log2`].
pub const WAIT_BUCKETS: usize = 32;

/// A listener's counters.
///
/// Every connection that was ever parked is parked now or came to exactly one end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections that are parked now.
    pub parked: u64,
    /// Connections that were ever parked.
    pub parked_total: u64,
    /// Connections that are not parked any more, by [`End`].
    ended: [u64; End::COUNT],
    /// Connections that were not parked, by [`Bypass`].
    bypassed: [u64; Bypass::COUNT],
    /// SYN-ACKs that the SYN-ACK timer of a parked request asked for, and that were not sent.
    pub synack_suppressed: u64,
    /// How often the connection to evict was not the oldest: its source had the most.
    pub evicted_greediest: u64,
    /// Requests of parked clients that were made connections beyond the backlog.
    pub released_late: u64,
    /// Segments of parked clients that were dropped, as the accept queue was full.
    pub overflow_dropped: u64,
    /// Probes that were sent to clients.
    pub probes: u64,
    /// Connections that were never parked, and reset because the client closed its side.
    pub closed_reset_unparked: u64,
    /// How long clients took to send: bucket `i` counts waits of less than 2^i milliseconds.
    pub wait_log2: [u64; WAIT_BUCKETS],
}

impl Stats {
    /// Counts a connection that is parked.
    pub fn park(&mut self) {
        // Never wraps: a listener cannot park 2^64 connections.
        self.parked = self.parked.wrapping_add(1);
        self.parked_total = self.parked_total.wrapping_add(1);
    }

    /// Counts a connection that is not parked any more, and was for a time of `waited`.
    pub fn end(&mut self, end: End, waited: Nanos) {
        self.parked -= 1;
        let count = |counter: &mut u64| *counter = counter.wrapping_add(1);
        count(&mut self.ended[end as usize]);
        if matches!(end, End::Data | End::Fin) {
            count(&mut self.wait_log2[wait_bucket(waited)]);
        }
    }

    /// Counts a connection that was not parked.
    pub fn bypass(&mut self, cause: Bypass) {
        self.bypassed[cause as usize] += 1;
    }

    /// Returns how many connections came to this end.
    pub const fn ended(&self, end: End) -> u64 {
        self.ended[end as usize]
    }

    /// Returns how many connections were not parked for this cause.
    pub const fn bypassed(&self, cause: Bypass) -> u64 {
        self.bypassed[cause as usize]
    }
}

/// Returns the bucket of a wait: 0 for less than a millisecond, and one more each time it doubles.
fn wait_bucket(waited: Nanos) -> usize {
    let millis = waited.0 / 1_000_000;
    let bits = u64::BITS - millis.leading_zeros();
    (bits as usize).min(WAIT_BUCKETS - 1)
}
