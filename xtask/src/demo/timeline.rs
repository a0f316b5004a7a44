// SPDX-License-Identifier: MIT OR Apache-2.0
//! The events of a connection for pictures, and a time scale that leaves silence out.

use super::capture::{End, Flags, Segment};
use super::facts::Facts;

/// Longer silence is shown as a gap.
pub(crate) const QUIET_MS: f64 = 150.0;

/// One arrow of a ladder. Times are milliseconds since the client's SYN left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Arrow {
    pub(crate) segment: Segment,
    pub(crate) sent_ms: f64,
    /// `None` if the segment was not captured at its destination.
    pub(crate) arrived_ms: Option<f64>,
}

impl Arrow {
    /// Returns the label of the arrow.
    pub(crate) fn label(&self) -> String {
        let segment = self.segment;
        let mut label = match segment.payload_len {
            0 => segment.name().to_owned(),
            len => format!("{len} B of data"),
        };
        if segment.payload_len > 0 && segment.flags.contains(Flags::FIN) {
            label += ", FIN";
        }
        if segment.retransmission {
            label += " again";
        }
        label
    }
}

/// The events of one connection, with their times.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ladder {
    /// The segments in the order of sending.
    pub(crate) arrows: Vec<Arrow>,
    /// When `accept()` returned.
    pub(crate) accept_ms: Option<f64>,
    /// When the worker that called `accept()` had its first byte to read, if ever.
    pub(crate) first_read_ms: Option<f64>,
    /// When the bare ACK arrived.
    pub(crate) bare_ack_ms: Option<f64>,
    /// When the kernel dropped the connection silently.
    pub(crate) dropped_ms: Option<f64>,
    /// When the client got an error, and its name.
    pub(crate) error: Option<(f64, String)>,
}

/// Where a ladder ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// After the last segment.
    End,
    /// After the first data from the server; without data, after the first RST or before the first
    /// FIN.
    Answer,
}

impl Ladder {
    /// Returns the ladder of a connection.
    pub(crate) fn new(facts: &Facts, until: Until) -> Self {
        let ms = |at: accf_demo::UnixNanos| at.ms_since(facts.start());
        let all = &facts.segments;
        let first = |flag| all.iter().position(|s| s.flags.contains(flag));
        let shown = match until {
            Until::End => all.len(),
            Until::Answer => all
                .iter()
                .position(|s| s.from == End::Server && s.payload_len > 0)
                .map(|answer| answer + 1)
                .or_else(|| first(Flags::RST).map(|rst| rst + 1))
                .or_else(|| first(Flags::FIN))
                .unwrap_or(all.len()),
        };
        let arrows = all
            .iter()
            .take(shown)
            .map(|segment| Arrow {
                segment: *segment,
                sent_ms: ms(segment.sent()),
                arrived_ms: segment.arrived().map(ms),
            })
            .collect();
        let accepted = facts.exchange.accepted.as_ref();
        // `accept()` or an RST shows the end of the request; a silent drop is shown by itself.
        let silently = accepted.is_none() && facts.request().is_some();
        let error = facts.exchange.client.error.as_ref();
        Self {
            arrows,
            accept_ms: accepted.map(|accepted| ms(accepted.at)),
            first_read_ms: accepted.and_then(|accepted| accepted.first_read).map(ms),
            bare_ack_ms: facts.bare_ack().and_then(|ack| ack.at(End::Server)).map(ms),
            dropped_ms: facts.exchange.let_go.filter(|_| silently).map(ms),
            error: error.map(|error| (ms(error.at), error.name.clone())),
        }
    }

    /// Returns when the connection stops being pending in the kernel: it is accepted, reset or
    /// dropped.
    pub(crate) fn pending_until_ms(&self) -> Option<f64> {
        let is_reset = |it: &Segment| it.from == End::Server && it.flags.contains(Flags::RST);
        let mut arrows = self.arrows.iter();
        let reset = arrows.find(|arrow| is_reset(&arrow.segment));
        self.accept_ms
            .or(self.dropped_ms)
            .or(reset.map(|arrow| arrow.sent_ms))
    }

    /// Returns all instants of the picture.
    pub(crate) fn instants(&self) -> impl Iterator<Item = f64> + '_ {
        let arrows = self
            .arrows
            .iter()
            .flat_map(|a| [Some(a.sent_ms), a.arrived_ms]);
        arrows.chain([self.accept_ms, self.dropped_ms]).flatten()
    }
}

/// A stretch of time that is drawn to scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Stretch {
    /// The first and the last instant.
    pub(crate) ms: (f64, f64),
    /// The places of both instants.
    pub(crate) y: (f64, f64),
}

/// A time scale that cuts out silence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scale {
    /// The stretches in order; the time between two of them is cut out.
    pub(crate) stretches: Vec<Stretch>,
}

impl Scale {
    /// Returns a scale for `instants`. Where nothing happens for more than `quiet_ms`, time is cut
    /// out and `gap` units of height are left; every stretch gets `margin_ms` on both sides.
    pub(crate) fn new(
        instants: impl IntoIterator<Item = f64>,
        quiet_ms: f64,
        units_per_ms: f64,
        margin_ms: f64,
        gap: f64,
    ) -> Self {
        let mut sorted: Vec<f64> = instants.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let mut spans: Vec<(f64, f64)> = Vec::new();
        for ms in sorted {
            match spans.last_mut() {
                Some((_, last)) if ms - *last <= quiet_ms => *last = ms,
                _ => spans.push((ms, ms)),
            }
        }
        let mut y = 0.0;
        let mut stretches = Vec::new();
        for (first, last) in spans {
            let ms = (first - margin_ms, last + margin_ms);
            let end = y + (ms.1 - ms.0) * units_per_ms;
            stretches.push(Stretch { ms, y: (y, end) });
            y = end + gap;
        }
        Self { stretches }
    }

    /// Returns the place of `ms`.
    pub(crate) fn y(&self, ms: f64) -> f64 {
        let mut before = (f64::NEG_INFINITY, 0.0);
        for Stretch {
            ms: (first, last),
            y: (top, bottom),
        } in &self.stretches
        {
            if ms < *first {
                // Cut out: in proportion within the gap.
                let part = (ms - before.0) / (first - before.0);
                return if part.is_finite() {
                    before.1 + part * (top - before.1)
                } else {
                    *top
                };
            }
            if ms <= *last {
                let part = if last > first {
                    (ms - first) / (last - first)
                } else {
                    0.0
                };
                return top + part * (bottom - top);
            }
            before = (*last, *bottom);
        }
        before.1
    }

    /// Returns the height of the scale.
    pub(crate) fn height(&self) -> f64 {
        self.stretches.last().map_or(0.0, |stretch| stretch.y.1)
    }
}

#[cfg(test)]
mod tests {
    use accf_demo::{Listener, Scenario};

    use super::*;
    use crate::demo::sample::sample;

    #[test]
    fn the_scale_cuts_silence_out_and_keeps_the_order() {
        let scale = Scale::new([0.0, 60.0, 6000.0, 6060.0, 20.0], 150.0, 2.0, 5.0, 40.0);
        let spans: Vec<_> = scale.stretches.iter().map(|s| s.ms).collect();
        assert_eq!(spans, [(-5.0, 65.0), (5995.0, 6065.0)]);
        assert_eq!(scale.y(0.0), 10.0);
        assert_eq!(scale.y(60.0) - scale.y(20.0), 80.0);
        assert_eq!(scale.y(6000.0) - scale.y(60.0), 10.0 + 40.0 + 10.0);
        assert_eq!(scale.height(), 2.0 * 140.0 + 40.0);
        let mut ys: Vec<f64> = (-10..7000).map(|ms| scale.y(f64::from(ms))).collect();
        assert!(ys.is_sorted());
        ys.dedup();
        assert!(ys.iter().all(|y| y.is_finite()));
    }

    #[test]
    fn an_empty_scale_is_flat() {
        let scale = Scale::new([], 150.0, 2.0, 5.0, 40.0);
        assert_eq!((scale.height(), scale.y(5.0)), (0.0, 0.0));
    }

    #[test]
    fn a_ladder_ends_with_the_answer_or_before_the_end_of_the_connection() {
        let findings = sample().findings();
        let labels = |scenario, listener, until| {
            let facts = findings.of(scenario, listener).unwrap();
            let ladder = Ladder::new(facts, until);
            let labels: Vec<String> = ladder.arrows.iter().map(Arrow::label).collect();
            labels.join(" | ")
        };
        let served = "47 B of data | ACK | 89 B of data";
        let plain = labels(Scenario::Rfc793, Listener::Plain, Until::Answer);
        assert_eq!(plain, format!("SYN | SYN-ACK | ACK | {served}"));
        let again = format!("SYN | SYN-ACK | ACK | SYN-ACK again | ACK | {served}");
        for (listener, until, wanted) in [
            (Listener::DeferAccept, Until::Answer, again.as_str()),
            (
                Listener::DatareadyReset,
                Until::Answer,
                "SYN | SYN-ACK | ACK | RST",
            ),
            (
                Listener::DatareadyDrop,
                Until::End,
                "SYN | SYN-ACK | ACK | 47 B of data | RST",
            ),
        ] {
            assert_eq!(labels(Scenario::Silent, listener, until), wanted);
        }
    }

    #[test]
    fn a_connection_is_pending_until_it_is_accepted_reset_or_dropped() {
        let findings = sample().findings();
        let ladder = |listener| {
            let facts = findings.of(Scenario::Silent, listener).unwrap();
            Ladder::new(facts, Until::Answer)
        };
        let accept = ladder(Listener::Dataready);
        assert_eq!(accept.pending_until_ms(), Some(5061.2));
        assert_eq!(accept.dropped_ms, None);
        let reset = ladder(Listener::DatareadyReset);
        assert_eq!(reset.pending_until_ms(), Some(5061.2));
        assert_eq!(reset.dropped_ms, None);
        let told = Some((5081.7, "ECONNRESET".to_owned()));
        assert_eq!(reset.error, told);
        let drop = ladder(Listener::DatareadyDrop);
        assert_eq!(drop.pending_until_ms(), Some(5063.2));
        assert_eq!(drop.dropped_ms, Some(5063.2));
    }
}
