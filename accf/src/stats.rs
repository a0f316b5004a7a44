// SPDX-License-Identifier: MIT OR Apache-2.0
//! The statistics of a listener.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::abi::{accf_source, accf_stats, ACCF_SOURCES, ACCF_WAIT_BUCKETS};

/// The number of buckets of [`Stats::wait_log2`].
pub const WAIT_BUCKETS: usize = ACCF_WAIT_BUCKETS;

/// The number of places in [`Stats::sources`].
pub const SOURCES: usize = ACCF_SOURCES;

/// The statistics of a listener: one consistent snapshot.
///
/// Counters count connections since the filter was attached, except those described with "Now".
/// Counters that an older module does not have are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Now: parked connections.
    pub parked: u64,
    /// Now: requests that count against the listener's SYN backlog (the kernel's
    /// `request_sock_queue.qlen`). Of the parked requests, few do: one per CPU, and at most an
    /// eighth of the backlog. May be negative for a moment.
    pub half_open: i64,
    /// Now: the requests among `half_open` whose SYN-ACK has not been retransmitted yet
    /// (`request_sock_queue.young`); no parked request is among them. May be negative for a moment.
    pub half_open_young: i64,

    /// Connections that were parked.
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
    /// Parked, then evicted: accepted, reset or dropped before the deadline, since another
    /// connection was over the limit ([`Config::max_parked`](crate::Config::max_parked), or the
    /// module's `max_parked_netns`).
    pub evicted: u64,
    /// Parked, then ended by TCP: the client's RST, an ICMP error, the administrator (`ss --kill`),
    /// or a SYN inside of the window while the accept queue was full. Or reset, as the listener was
    /// shut down.
    pub aborted: u64,
    /// Parked, then fell back to plain TCP: TCP could not make a connection at the deadline (no
    /// memory, no route, a firewall), the listener was closed or may not park any
    /// longer (see `bypass_abort_on_overflow` and `bypass_signed`), or a SYN came inside of the
    /// window: the connection was made, so that it answers the SYN (RFC 5961).
    pub fallback: u64,
    /// SYN-ACKs that were not retransmitted although the SYN-ACK timer of a parked request fired.
    ///
    /// Almost always 0: the listener's timer defers the SYN-ACK timer by weeks, 0.3 s after the
    /// request was parked. It is not 0 if the SYN-ACK timer fired before that, on a machine that
    /// stalled for 0.3 s or more, or if a request stayed parked for those weeks. The SYN-ACK timer
    /// of such a request may then fire every two minutes.
    pub synack_suppressed: u64,

    /// Not parked: the SYN was answered with a syncookie.
    pub bypass_syncookie: u64,
    /// Not parked: the SYN carried data or a cookie of TCP Fast Open (RFC 7413).
    pub bypass_fastopen: u64,
    /// Not parked: `net.ipv4.tcp_abort_on_overflow` is set.
    pub bypass_abort_on_overflow: u64,
    /// Not parked: `max_parked` was reached, and none could be accepted instead as the accept
    /// queue was full.
    pub bypass_accept_queue_full: u64,
    /// Not parked: memory ran out.
    pub bypass_no_memory: u64,
    /// Not parked: the network namespace has as many parked connections as it may
    /// (`max_parked_netns`), and none of this listener's could be accepted instead. None is reset
    /// or dropped for that.
    pub bypass_namespace_limit: u64,
    /// Not parked: the listener checks TCP-MD5 or TCP-AO signatures (RFC 2385, RFC 5925).
    pub bypass_signed: u64,
    /// Not parked for any other reason: the listener is closing, its filter is still being
    /// attached, the request's timer was firing, the request was made for another listener, it is
    /// MPTCP's, or the socket has lost the module's operations.
    pub bypass_other: u64,

    /// A histogram of the time from a client's bare ACK to its first byte or FIN. Its sum is
    /// `released_data + released_fin`. [`waits`](Self::waits) returns the bounds.
    pub wait_log2: [u64; WAIT_BUCKETS],

    /// Parked, then accepted because parking was paused ([`State`](crate::State)).
    pub released_paused: u64,
    /// Not parked: parking is paused.
    pub bypass_paused: u64,
    /// Parked, then reset because the client closed its side without a byte
    /// ([`OnClose`](crate::OnClose)).
    pub closed_reset: u64,
    /// The same for a connection that was not parked when its FIN came: the FIN came before the
    /// bare ACK, TCP could not make a connection of the ACK, or the connection had fallen back.
    pub closed_reset_unparked: u64,

    /// How often the connection that was chosen to be evicted was not the oldest one, but the
    /// oldest one of the source that had the most.
    pub evicted_greediest: u64,
    /// Now: the sources that have the most of those parked connections that are counted by source,
    /// and two at least; the first one has the most. None is counted before `parked` is half of
    /// [`Config::max_parked`](crate::Config::max_parked); then only the oldest are; all are when
    /// `parked` has reached it.
    pub sources: [Option<Source>; SOURCES],

    /// Of `released_data` and `released_fin`: those that came when the accept queue was full, and
    /// were accepted nonetheless. The accept queue takes those of clients that were idle, up to
    /// `net.core.somaxconn`, whatever the backlog is.
    pub released_late: u64,
    /// Segments with data, or with the client's FIN, that were dropped since the accept queue was
    /// full: of a client that was parked for a moment only, or at `net.core.somaxconn`. The
    /// connection stays parked, and the client retransmits them.
    pub overflow_dropped: u64,

    /// Probes that were sent to parked clients ([`Config::probe`](crate::Config::probe)).
    pub probes: u64,
    /// Parked, then reset because the client did not answer to probes; or ended because it answered
    /// to one by an RST.
    pub died: u64,
}

/// A source of clients: an IPv4 address, or the /64 of an IPv6 address.
///
/// ```
/// use accf::Source;
///
/// let source = |address: &str| Source::new(address.parse().unwrap(), 3).to_string();
/// assert_eq!(source("192.0.2.1"), "192.0.2.1");
/// assert_eq!(source("2001:db8::"), "2001:db8::/64");
/// assert_eq!(source("::"), "several");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Source {
    /// The IPv4 address, or the first address of the /64. `::` if several sources share the number,
    /// and none has most of it.
    pub address: IpAddr,
    /// How many of its connections are parked. Sources are counted in 256 buckets: those of other
    /// sources in the same bucket are counted as well.
    pub parked: u64,
}

impl Source {
    /// Makes a source.
    pub fn new(address: IpAddr, parked: u64) -> Self {
        Self { address, parked }
    }

    /// Converts an entry that a module returned; `None` if it says nothing.
    fn from_abi(raw: accf_source) -> Option<Self> {
        let address = Ipv6Addr::from(raw.address).to_canonical();
        (raw.parked != 0).then(|| Self::new(address, raw.parked))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => f.write_str("several"),
            IpAddr::V4(address) => write!(f, "{address}"),
            IpAddr::V6(address) => write!(f, "{address}/64"),
        }
    }
}

/// A bucket of the histogram of waits: `from <= wait < to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitBucket {
    /// The shortest wait in this bucket.
    pub from: Duration,
    /// The shortest wait that is too long for this bucket. `None` in the last bucket.
    pub to: Option<Duration>,
    /// The number of connections.
    pub count: u64,
}

impl WaitBucket {
    /// Returns the bucket `index` of [`Stats::wait_log2`], with a count of 0. `None` if there is
    /// none.
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
        // 2^(i-1) ms, but 0 for the first bucket.
        let from = match index.checked_sub(1) {
            None => Duration::ZERO,
            Some(exponent) => Duration::from_millis(1 << exponent),
        };
        let to = (index + 1 < WAIT_BUCKETS).then(|| Duration::from_millis(1 << index));
        Some(Self { from, to, count: 0 })
    }

    /// Returns whether a wait belongs in this bucket.
    pub fn contains(&self, wait: Duration) -> bool {
        self.from <= wait && self.to.is_none_or(|to| wait < to)
    }
}

impl Stats {
    /// Returns the buckets of the histogram of waits, shortest waits first.
    pub fn waits(&self) -> impl DoubleEndedIterator<Item = WaitBucket> + '_ {
        let counts = self.wait_log2.iter().enumerate();
        counts.filter_map(|(index, &count)| {
            let bucket = WaitBucket::empty(index)?;
            Some(WaitBucket { count, ..bucket })
        })
    }

    /// Returns the sum of the connections that are parked now and of those whose parking ended. It
    /// equals [`parked_total`](Self::parked_total), unless the module has a defect.
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
            self.released_paused,
            self.closed_reset,
            self.died,
        ]
        .iter()
        .fold(0, |sum, count| sum.wrapping_add(*count))
    }

    /// Returns how many connections could not be parked, for any reason.
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
            self.bypass_paused,
        ]
        .iter()
        .fold(0, |sum, count| sum.wrapping_add(*count))
    }

    /// Converts the statistics that a module returned.
    pub(crate) fn from_abi(raw: &accf_stats) -> Self {
        // Without `..`, so that a new field of the header is an error here until it is converted.
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
            released_paused,
            bypass_paused,
            closed_reset,
            closed_reset_unparked,
            evicted_greediest,
            sources,
            released_late,
            overflow_dropped,
            probes,
            died,
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
            released_paused,
            bypass_paused,
            closed_reset,
            closed_reset_unparked,
            evicted_greediest,
            sources: sources.map(Source::from_abi),
            released_late,
            overflow_dropped,
            probes,
            died,
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
    fn sources_have_the_address_of_their_family() {
        let mut raw = accf_stats::default();
        let addresses = ["::ffff:192.0.2.1", "2001:db8:1:2::"].map(|it| it.parse().unwrap());
        for (nth, address) in addresses.iter().map(Ipv6Addr::octets).enumerate() {
            raw.sources[nth] = accf_source {
                address,
                parked: 7 - nth as u64,
            };
        }
        let sources = Stats::from_abi(&raw).sources;
        let shown: Vec<_> = sources
            .iter()
            .flatten()
            .map(|source| (source.to_string(), source.parked))
            .collect();
        let expected = [("192.0.2.1", 7), ("2001:db8:1:2::/64", 6)];
        assert_eq!(
            shown,
            expected.map(|(address, parked)| (address.to_owned(), parked))
        );
    }

    #[test]
    fn the_sums_include_every_counter() {
        use zerocopy::IntoBytes;
        // Every word of the structure is 1.
        let words = size_of::<accf_stats>() / 8;
        let bytes: Vec<u8> = (0..words).flat_map(|_| 1_u64.to_ne_bytes()).collect();
        let raw: accf_stats = crate::abi::decode(&bytes);
        assert_eq!(raw.as_bytes(), bytes);
        let stats = Stats::from_abi(&raw);
        assert_eq!(stats.accounted(), 12);
        assert_eq!(stats.bypassed(), 9);
        // half_open, half_open_young, parked_total, synack_suppressed, closed_reset_unparked,
        // evicted_greediest, released_late, overflow_dropped, probes
        let others = 9 + WAIT_BUCKETS + SOURCES * size_of::<accf_source>() / 8;
        assert_eq!(words, 12 + 9 + others);
    }
}
