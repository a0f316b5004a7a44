// SPDX-License-Identifier: MIT OR Apache-2.0
//! A listener's statistics.

use std::time::Duration;

use crate::abi::{accf_stats, ACCF_WAIT_BUCKETS};

/// The number of buckets of [`Stats::wait_log2`].
pub const WAIT_BUCKETS: usize = ACCF_WAIT_BUCKETS;

/// A listener's statistics: one consistent picture.
///
/// Counts are of connections since the filter was attached, except where it says "now". What an
/// older module does not count is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Now: parked connections.
    pub parked: u64,
    /// Now: requests that count against the listener's SYN backlog (the kernel's
    /// `request_sock_queue.qlen`). Never negative. Of the parked ones, no more than one for each
    /// processor is among them.
    pub half_open: i64,
    /// Now: those of them whose SYN-ACK has not been sent again yet (`request_sock_queue.young`).
    pub half_open_young: i64,

    /// Connections that were ever parked.
    pub parked_total: u64,
    /// Parked, then accepted because data came.
    pub released_data: u64,
    /// Parked, then accepted because the client closed its side.
    pub released_fin: u64,
    /// Parked, then accepted at the deadline.
    pub timeout_accept: u64,
    /// Parked, then reset at the deadline.
    pub timeout_reset: u64,
    /// Parked, then dropped at the deadline.
    pub timeout_drop: u64,
    /// Parked, then accepted, reset or dropped before the deadline to make room for another one
    /// ([`Config::max_parked`](crate::Config::max_parked)).
    pub evicted: u64,
    /// Parked, then ended by the client's RST, a SYN in the window, an ICMP error, or the
    /// administrator (`ss --kill`).
    pub aborted: u64,
    /// Parked, then given back to the kernel, which could not make a connection at the deadline: no
    /// memory, no route, a firewall.
    pub fallback: u64,
    /// SYN-ACKs that a parked connection's own timer asked for, and that were not sent.
    pub synack_suppressed: u64,

    /// Not parked: the SYN was answered with a syncookie.
    pub bypass_syncookie: u64,
    /// Not parked: the SYN carried data or a cookie of TCP Fast Open (RFC 7413).
    pub bypass_fastopen: u64,
    /// Not parked: `net.ipv4.tcp_abort_on_overflow` is set.
    pub bypass_abort_on_overflow: u64,
    /// Not parked: `max_parked` was reached, and the oldest could not be accepted as the accept
    /// queue was full.
    pub bypass_accept_queue_full: u64,
    /// Not parked: there was no memory.
    pub bypass_no_memory: u64,
    /// Not parked: the network namespace has as many as it may, and none of them is this listener's.
    pub bypass_namespace_limit: u64,
    /// Not parked: the listener checks TCP-MD5 or TCP-AO signatures (RFC 2385, RFC 5925).
    pub bypass_signed: u64,
    /// Not parked for any other reason: the listener is closing, the request was given back before,
    /// its timer was just firing.
    pub bypass_other: u64,

    /// How long clients took from their bare ACK to their first byte or FIN; its sum is
    /// `released_data + released_fin`. [`waits`](Self::waits) gives the bounds.
    pub wait_log2: [u64; WAIT_BUCKETS],
}

/// One bucket of the histogram of waits: `from <= wait < to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitBucket {
    /// The shortest wait that counts here.
    pub from: Duration,
    /// The shortest wait that is too long to count here. The last bucket has no such bound.
    pub to: Option<Duration>,
    /// The number of connections.
    pub count: u64,
}

impl WaitBucket {
    /// Returns the empty bucket `index` of [`Stats::wait_log2`]; none if there are not so many.
    ///
    /// ```
    /// use std::time::Duration;
    /// use accf::{WaitBucket, WAIT_BUCKETS};
    ///
    /// let bucket = WaitBucket::empty(3).unwrap();
    /// assert_eq!(bucket.from, Duration::from_millis(4));
    /// assert_eq!(bucket.to, Some(Duration::from_millis(8)));
    /// assert_eq!(WaitBucket::empty(WAIT_BUCKETS), None);
    /// ```
    pub fn empty(index: usize) -> Option<Self> {
        if index >= WAIT_BUCKETS {
            return None;
        }
        // 2^(i-1) ms, but nothing for the first one.
        let from = match index.checked_sub(1) {
            None => Duration::ZERO,
            Some(exponent) => Duration::from_millis(1 << exponent),
        };
        let to = (index + 1 < WAIT_BUCKETS).then(|| Duration::from_millis(1 << index));
        Some(Self { from, to, count: 0 })
    }

    /// Says whether a wait counts here.
    pub fn contains(&self, wait: Duration) -> bool {
        self.from <= wait && self.to.is_none_or(|to| wait < to)
    }
}

impl Stats {
    /// Returns the histogram of waits, bucket by bucket.
    pub fn waits(&self) -> impl DoubleEndedIterator<Item = WaitBucket> + '_ {
        let counts = self.wait_log2.iter().enumerate();
        counts.filter_map(|(index, &count)| {
            let bucket = WaitBucket::empty(index)?;
            Some(WaitBucket { count, ..bucket })
        })
    }

    /// Returns how many of the connections that were ever parked are accounted for, those that are
    /// parked now included. It is [`parked_total`](Self::parked_total), or the module is wrong.
    pub fn accounted(&self) -> u64 {
        [
            self.parked,
            self.released_data,
            self.released_fin,
            self.timeout_accept,
            self.timeout_reset,
            self.timeout_drop,
            self.evicted,
            self.aborted,
            self.fallback,
        ]
        .iter()
        .fold(0, |sum, count| sum.wrapping_add(*count))
    }

    /// Returns how many connections could not be parked, for whatever reason.
    pub fn bypassed(&self) -> u64 {
        [
            self.bypass_syncookie,
            self.bypass_fastopen,
            self.bypass_abort_on_overflow,
            self.bypass_accept_queue_full,
            self.bypass_no_memory,
            self.bypass_namespace_limit,
            self.bypass_signed,
            self.bypass_other,
        ]
        .iter()
        .fold(0, |sum, count| sum.wrapping_add(*count))
    }

    /// Returns the statistics that a module told.
    pub(crate) fn from_abi(raw: &accf_stats) -> Self {
        // No `..`: a field that is new to the header must not be forgotten here.
        let accf_stats {
            parked,
            half_open,
            half_open_young,
            parked_total,
            released_data,
            released_fin,
            timeout_accept,
            timeout_reset,
            timeout_drop,
            evicted,
            aborted,
            fallback,
            synack_suppressed,
            bypass_syncookie,
            bypass_fastopen,
            bypass_abort_on_overflow,
            bypass_accept_queue_full,
            bypass_no_memory,
            bypass_namespace_limit,
            bypass_signed,
            bypass_other,
            wait_log2,
        } = *raw;
        Self {
            parked,
            half_open,
            half_open_young,
            parked_total,
            released_data,
            released_fin,
            timeout_accept,
            timeout_reset,
            timeout_drop,
            evicted,
            aborted,
            fallback,
            synack_suppressed,
            bypass_syncookie,
            bypass_fastopen,
            bypass_abort_on_overflow,
            bypass_accept_queue_full,
            bypass_no_memory,
            bypass_namespace_limit,
            bypass_signed,
            bypass_other,
            wait_log2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_have_no_gaps() {
        let buckets: Vec<_> = Stats::default().waits().collect();
        assert_eq!(buckets.len(), WAIT_BUCKETS);
        assert_eq!(buckets[0].from, Duration::ZERO);
        assert_eq!(buckets[0].to, Some(Duration::from_millis(1)));
        for pair in buckets.windows(2) {
            assert_eq!(pair[0].to, Some(pair[1].from));
        }
        let last = buckets[WAIT_BUCKETS - 1];
        assert_eq!(last.from, Duration::from_millis(1 << 30));
        assert_eq!(last.to, None);
    }

    #[test]
    fn every_wait_falls_into_one_bucket() {
        for us in [0, 999, 1_000, 1_999, 2_000, 5_000_000, u64::MAX] {
            let wait = Duration::from_micros(us);
            let matching = Stats::default()
                .waits()
                .filter(|bucket| bucket.contains(wait))
                .count();
            assert_eq!(matching, 1, "{wait:?}");
        }
    }

    #[test]
    fn waits_pairs_counts_with_bounds() {
        let mut stats = Stats::default();
        stats.wait_log2[2] = 5;
        let filled: Vec<_> = stats.waits().filter(|bucket| bucket.count > 0).collect();
        let expected = WaitBucket {
            from: Duration::from_millis(2),
            to: Some(Duration::from_millis(4)),
            count: 5,
        };
        assert_eq!(filled, [expected]);
    }

    #[test]
    fn the_sums_include_every_counter() {
        use zerocopy::IntoBytes;
        // Every word of the structure is one.
        let words = size_of::<accf_stats>() / 8;
        let bytes: Vec<u8> = (0..words).flat_map(|_| 1_u64.to_ne_bytes()).collect();
        let raw: accf_stats = crate::abi::decode(&bytes);
        assert_eq!(raw.as_bytes(), bytes);
        let stats = Stats::from_abi(&raw);
        assert_eq!(stats.accounted(), 9);
        assert_eq!(stats.bypassed(), 8);
        let others = 4 + WAIT_BUCKETS; // half_open, half_open_young, parked_total, synack_suppressed
        assert_eq!(words, 9 + 8 + others);
    }
}
