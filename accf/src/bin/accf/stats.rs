// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes a listener's counters in words, and the histogram of how long its clients took to send.

use std::fmt::Write as _;

use accf::{Listener, OnClose, OnTimeout, State, Stats, WaitBucket};

use crate::text::{address, exact, max_parked, number, rough, timeout};

/// The width of the text before a counter, with its indentation.
const LABEL_WIDTH: usize = 62;
/// The width of a counter.
const COUNT_WIDTH: usize = 14;
/// The width of the longest bar.
const BAR_WIDTH: usize = 32;

/// Writes a page for each listener.
pub(crate) fn render(listeners: &[&Listener]) -> String {
    let pages: Vec<String> = listeners.iter().map(|listener| page(listener)).collect();
    pages.join("\n")
}

/// Writes the page of one listener.
fn page(listener: &Listener) -> String {
    let config = &listener.config;
    let mut text = format!(
        "{}  {}  (uid {}, socket {})\n",
        address(listener),
        listener.filter,
        listener.uid,
        listener.inode
    );
    let line = |text: &mut String, label: &str, value: &str| {
        text.push_str(format!("  {label:<18}{value}").trim_end());
        text.push('\n');
    };
    match config.state {
        State::Parking => {}
        State::Paused => line(
            &mut text,
            "paused",
            "no connection is parked, and those that are parked are accepted",
        ),
        State::Other(other) => line(
            &mut text,
            "state",
            &format!("{other}, which this program does not know: it is older than the module"),
        ),
    }
    line(
        &mut text,
        "timeout",
        &match config.timeout {
            None => "none: a silent connection stays parked until it sends".to_owned(),
            Some(_) => format!(
                "{}, then {}",
                timeout(config),
                on_deadline(config.on_timeout)
            ),
        },
    );
    line(
        &mut text,
        "may be parked",
        &match config.max_parked {
            None => "as many as the module's default".to_owned(),
            Some(_) => format!(
                "{}; one more evicts the oldest of the source with the most: {}",
                max_parked(config),
                on_eviction(config.on_timeout)
            ),
        },
    );
    match config.on_close {
        OnClose::Accept => {}
        OnClose::Reset => line(
            &mut text,
            "closed unused",
            "a client that closes without a byte is reset",
        ),
        OnClose::Other(other) => line(
            &mut text,
            "closed unused",
            &format!(
                "on_close {other}, which this program does not know: it is older than the module"
            ),
        ),
    }
    if let Some(probe) = config.probe {
        let probe = exact(probe);
        line(
            &mut text,
            "probe",
            &format!("after {probe} without a sign of the client, and again after {probe}"),
        );
    }
    line(
        &mut text,
        "accept queue",
        &format!(
            "{} of {}",
            number(listener.accept_queue.into()),
            number(listener.backlog.into())
        ),
    );
    text.push('\n');
    text.push_str(&counters(&listener.stats));
    text.push_str(&sources(&listener.stats));
    text.push('\n');
    text.push_str(&waits(&listener.stats));
    text
}

/// Returns what happens to a silent connection at its deadline.
fn on_deadline(on_timeout: OnTimeout) -> String {
    match on_timeout {
        OnTimeout::Accept => "the server accepts the silent connection".to_owned(),
        OnTimeout::Reset => "the client is reset".to_owned(),
        OnTimeout::Drop => "the connection is forgotten".to_owned(),
        OnTimeout::Other(other) => {
            format!(
                "on_timeout {other}, which this program does not know: it is older than the module"
            )
        }
    }
}

/// Returns what happens to the evicted connection when one is over the limit.
fn on_eviction(on_timeout: OnTimeout) -> &'static str {
    match on_timeout {
        OnTimeout::Accept => "it is accepted",
        OnTimeout::Reset => "it is reset",
        OnTimeout::Drop => "it is forgotten",
        OnTimeout::Other(_) => "see on_timeout",
    }
}

/// One line: its level of indentation, what is counted, and the count.
type Counter = (usize, &'static str, i128);

/// Writes the counters.
fn counters(stats: &Stats) -> String {
    // A counter that is zero is shown, too: it says that this never happened. Only
    // `synack_suppressed`, which is almost always zero and counts no connections, is left to
    // `--json`.
    let groups: [(&str, &[Counter]); 3] = [
        (
            "now",
            &[
                (0, "parked", stats.parked.into()),
                (
                    0,
                    "half open: count against the SYN backlog",
                    stats.half_open.into(),
                ),
                (
                    1,
                    "of them, SYN-ACK sent once",
                    stats.half_open_young.into(),
                ),
            ],
        ),
        (
            "since the filter was attached",
            &[
                (0, "parked", stats.parked_total.into()),
                (1, "accepted when data came", stats.released_data.into()),
                (
                    1,
                    "accepted when the client closed",
                    stats.released_fin.into(),
                ),
                (
                    2,
                    "of both, although the accept queue was full",
                    stats.released_late.into(),
                ),
                (
                    1,
                    "silent until the deadline, accepted",
                    stats.timeout_accept.into(),
                ),
                (
                    1,
                    "silent until the deadline, reset",
                    stats.timeout_reset.into(),
                ),
                (
                    1,
                    "silent until the deadline, dropped",
                    stats.timeout_drop.into(),
                ),
                (1, "evicted: over the limit", stats.evicted.into()),
                (
                    2,
                    "not the oldest, but its source had the most",
                    stats.evicted_greediest.into(),
                ),
                (
                    1,
                    "ended by the client, ICMP or the administrator",
                    stats.aborted.into(),
                ),
                (1, "did not answer to probes", stats.died.into()),
                (2, "probes sent", stats.probes.into()),
                (1, "fell back to plain TCP", stats.fallback.into()),
                (
                    1,
                    "accepted because parking was paused",
                    stats.released_paused.into(),
                ),
                (1, "closed without a byte, reset", stats.closed_reset.into()),
                (
                    0,
                    "segments dropped: the accept queue was full",
                    stats.overflow_dropped.into(),
                ),
                (
                    0,
                    "closed without a byte before they were parked, reset",
                    stats.closed_reset_unparked.into(),
                ),
            ],
        ),
        (
            "not parked, as on a plain listener, because",
            &[
                (
                    0,
                    "the SYN was answered with a syncookie",
                    stats.bypass_syncookie.into(),
                ),
                (
                    0,
                    "the SYN carried TCP Fast Open",
                    stats.bypass_fastopen.into(),
                ),
                (
                    0,
                    "tcp_abort_on_overflow is set",
                    stats.bypass_abort_on_overflow.into(),
                ),
                (
                    0,
                    "max_parked was reached, and the accept queue was full",
                    stats.bypass_accept_queue_full.into(),
                ),
                (0, "memory ran out", stats.bypass_no_memory.into()),
                (
                    0,
                    "max_parked_netns was reached",
                    stats.bypass_namespace_limit.into(),
                ),
                (
                    0,
                    "the listener checks TCP-MD5 or TCP-AO",
                    stats.bypass_signed.into(),
                ),
                (0, "parking was paused", stats.bypass_paused.into()),
                (0, "of any other reason", stats.bypass_other.into()),
            ],
        ),
    ];
    let mut text = String::new();
    for (heading, counters) in groups {
        writeln!(text, "  {heading}").ok();
        for (level, label, count) in counters {
            let label = format!("{:indent$}{label}", "", indent = 4 + 2 * level);
            writeln!(
                text,
                "{label:<LABEL_WIDTH$}{:>COUNT_WIDTH$}",
                signed(*count)
            )
            .ok();
        }
    }
    text
}

/// Writes the sources that have the most parked connections, if the module counts them.
fn sources(stats: &Stats) -> String {
    let mut text = String::new();
    for (nth, source) in stats.sources.iter().flatten().enumerate() {
        if nth == 0 {
            text.push_str("  parked now, by the addresses that have the most\n");
        }
        let label = format!("    {source}");
        let parked = number(source.parked);
        writeln!(text, "{label:<LABEL_WIDTH$}{parked:>COUNT_WIDTH$}").ok();
    }
    text
}

/// Writes a number that may be negative for a moment.
fn signed(value: i128) -> String {
    let sign = if value < 0 { "-" } else { "" };
    let size = u64::try_from(value.unsigned_abs()).unwrap_or(u64::MAX);
    format!("{sign}{}", number(size))
}

/// Draws the histogram, from the first bucket that is not empty to the last.
fn waits(stats: &Stats) -> String {
    let mut text = "  from the client's ACK to its first byte or its end\n".to_owned();
    let buckets: Vec<WaitBucket> = stats.waits().collect();
    let busy = |bucket: &WaitBucket| bucket.count > 0;
    let (Some(first), Some(last)) = (
        buckets.iter().position(busy),
        buckets.iter().rposition(busy),
    ) else {
        text.push_str("    no parked connection has sent anything yet\n");
        return text;
    };
    let shown = buckets.get(first..=last).unwrap_or_default();
    let most = shown.iter().map(|bucket| bucket.count).max().unwrap_or(0);
    for bucket in shown {
        let bounds = match bucket.to {
            None => format!("{} or more", rough(bucket.from)),
            Some(to) if bucket.from.is_zero() => format!("less than {}", rough(to)),
            Some(to) => format!("{} to {}", rough(bucket.from), rough(to)),
        };
        let bar = bar(bucket.count, most);
        writeln!(
            text,
            "{bounds:>24}  {bar:<BAR_WIDTH$}{:>COUNT_WIDTH$}",
            number(bucket.count)
        )
        .ok();
    }
    text
}

/// Draws a bar in eighths of a character. Only zero has no bar.
fn bar(count: u64, most: u64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    if count == 0 || most == 0 {
        return String::new();
    }
    let length = u128::from(count) * (BAR_WIDTH as u128) * 8 / u128::from(most);
    let length = usize::try_from(length)
        .unwrap_or(BAR_WIDTH * 8)
        .clamp(1, BAR_WIDTH * 8);
    let rest = EIGHTHS.get(length % 8).unwrap_or(&"");
    format!("{}{rest}", "█".repeat(length / 8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn a_page_shows_the_settings_and_counters() {
        let text = render(&[&sample::busy()]);
        let expected = "\
[::]:8080  dataready  (uid 1000, socket 4711)
  timeout           1.5 s, then the client is reset
  may be parked     2,000; one more evicts the oldest of the source with the most: it is reset
  closed unused     a client that closes without a byte is reset
  probe             after 200 s without a sign of the client, and again after 200 s
  accept queue      2 of 4,096

  now
    parked                                                                12
    half open: count against the SYN backlog                               3
      of them, SYN-ACK sent once                                           1
  since the filter was attached
    parked                                                             1,366
      accepted when data came                                          1,100
      accepted when the client closed                                      7
        of both, although the accept queue was full                        6
      silent until the deadline, accepted                                 50
      silent until the deadline, reset                                    60
      silent until the deadline, dropped                                  70
      evicted: over the limit                                              8
        not the oldest, but its source had the most                        5
      ended by the client, ICMP or the administrator                       9
      did not answer to probes                                            16
        probes sent                                                       15
      fell back to plain TCP                                              10
      accepted because parking was paused                                 11
      closed without a byte, reset                                        13
    segments dropped: the accept queue was full                           14
    closed without a byte before they were parked, reset                   3
  not parked, as on a plain listener, because
    the SYN was answered with a syncookie                                 21
    the SYN carried TCP Fast Open                                         22
    tcp_abort_on_overflow is set                                          23
    max_parked was reached, and the accept queue was full                 24
    memory ran out                                                        25
    max_parked_netns was reached                                          26
    the listener checks TCP-MD5 or TCP-AO                                 27
    parking was paused                                                    29
    of any other reason                                                   28
  parked now, by the addresses that have the most
    198.51.100.7                                                           6
    2001:db8:1:2::/64                                                      4

  from the client's ACK to its first byte or its end
          less than 1 ms  ███▏                                       100
            1 ms to 2 ms  ████████████████████████████████         1,000
            2 ms to 4 ms                                               0
            4 ms to 8 ms  ▏                                            7
";
        assert_eq!(text, expected, "{text}");
    }

    #[test]
    fn an_unused_listener_has_zero_counters() {
        let text = render(&[&sample::unused()]);
        assert!(text.contains("stays parked until it sends"), "{text}");
        assert!(text.contains("as many as the module's default"), "{text}");
        assert!(text.contains("no parked connection has sent"), "{text}");
    }

    #[test]
    fn a_page_tells_of_a_pause() {
        let text = render(&[&sample::paused()]);
        assert!(
            text.contains("\n  paused            no connection is parked"),
            "{text}"
        );
        assert!(!render(&[&sample::busy()]).contains("  paused  "));
    }

    #[test]
    fn pages_are_separated_by_an_empty_line() {
        let text = render(&[&sample::unused(), &sample::busy()]);
        assert_eq!(text.matches("\n\n[::]:8080").count(), 1, "{text}");
    }

    #[test]
    fn bars_are_visible_and_fit_their_column() {
        assert_eq!(bar(0, 10), "");
        assert_eq!(bar(1, u64::MAX), "▏");
        assert_eq!(bar(u64::MAX, u64::MAX).chars().count(), BAR_WIDTH);
        assert_eq!(bar(3, 4), "█".repeat(24));
        assert_eq!(bar(9, 64), "████▌");
    }

    #[test]
    fn the_last_bucket_has_no_upper_bound() {
        let mut stats = Stats::default();
        stats.wait_log2[accf::WAIT_BUCKETS - 1] = 1;
        assert!(waits(&stats).contains("12.4 d or more"));
    }

    #[test]
    fn a_negative_count_is_shown() {
        assert_eq!(signed(-1_000), "-1,000");
    }
}
