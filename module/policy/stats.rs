// SPDX-License-Identifier: GPL-2.0-only

//! What a listener counts.

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
    /// Attached room for another one.
    Evicted,
    /// The kernel dropped it: the client's RST, as a rule.
    Aborted,
    /// Given back to the kernel.
    Fallback,
}

impl End {
    /// How many there are.
    pub const COUNT: usize = 8;

    /// The end of a connection that was made because `segment` came, when it was `due` for a reason, or not at all.
    pub const fn of_accepted(segment: SegmentKind, due: Option<Expiry>) -> Self {
        match (segment, due) {
            (SegmentKind::Data, _) => Self::Data,
            (SegmentKind::Fin, _) => Self::Fin,
            (SegmentKind::BareAck, Some(expiry)) => Self::of_expired(expiry, OnTimeout::Accept),
            (SegmentKind::BareAck, None) => Self::Fallback,
        }
    }

    /// The end of a connection that was due for a reason, and met with its listener's policy.
    pub const fn of_expired(expiry: Expiry, on_timeout: OnTimeout) -> Self {
        match (expiry, on_timeout) {
            (Expiry::Eviction, _) => Self::Evicted,
            (Expiry::Timeout, OnTimeout::Accept) => Self::TimeoutAccept,
            (Expiry::Timeout, OnTimeout::Reset) => Self::TimeoutReset,
            (Expiry::Timeout, OnTimeout::Drop) => Self::TimeoutDrop,
        }
    }
}

/// Why a connection that the filter would have held back was not parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    /// The SYN was answered with a syncookie.
    Syncookie,
    /// The SYN carried data or a cookie (RFC 7413).
    FastOpen,
    /// `net.ipv4.tcp_abort_on_overflow` is set.
    AbortOnOverflow,
    /// `max_parked` was reached, and nobody could be accepted to make room.
    AcceptQueueFull,
    /// There was no memory.
    NoMemory,
    /// The namespace has as many as it may.
    NamespaceLimit,
    /// The listener checks signatures (RFC 2385, RFC 5925).
    Signed,
    /// Anything else.
    Other,
}

impl Bypass {
    /// How many there are.
    pub const COUNT: usize = 8;
}

/// The buckets of [`Stats::wait_log2`].
pub const WAIT_BUCKETS: usize = 32;

/// A listener's counters.
///
/// Whatever was parked is parked now or came to exactly one end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Parked now.
    pub parked: u64,
    /// Parked ever.
    pub parked_total: u64,
    /// By [`End`].
    ended: [u64; End::COUNT],
    /// By [`Bypass`].
    bypassed: [u64; Bypass::COUNT],
    /// SYN-ACKs that a parked request's timer asked for.
    pub synack_suppressed: u64,
    /// How long clients took to send: bucket `i` is for less than 2^i milliseconds.
    pub wait_log2: [u64; WAIT_BUCKETS],
}

impl Stats {
    /// Counts a connection that is parked.
    #[inline]
    pub fn park(&mut self) {
        // 64 bits: nobody parks so many.
        self.parked = self.parked.wrapping_add(1);
        self.parked_total = self.parked_total.wrapping_add(1);
    }

    /// Counts a connection that is not parked any more, having waited for so long.
    #[inline]
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

    /// How many came to this end.
    pub const fn ended(&self, end: End) -> u64 {
        self.ended[end as usize]
    }

    /// How many were not parked for this cause.
    pub const fn bypassed(&self, cause: Bypass) -> u64 {
        self.bypassed[cause as usize]
    }
}

/// The bucket of a wait: 0 for less than a millisecond, and one more each time it doubles.
fn wait_bucket(waited: Nanos) -> usize {
    let millis = waited.0 / 1_000_000;
    let bits = u64::BITS - millis.leading_zeros();
    (bits as usize).min(WAIT_BUCKETS - 1)
}
