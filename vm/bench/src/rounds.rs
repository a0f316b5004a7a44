// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the benchmarks of single connections have in common: listeners that wait equally long, and samples that come in
//! round by round.

use std::time::Duration;

use accf_bench::{Bench, Listener, Measurement, Unit};
use accf_kit::control::{self, OnTimeout};
use accf_kit::counters::Counters;
use accf_kit::endpoint::{self, Family, Listen};
use accf_kit::netns::Netns;
use anyhow::{ensure, Context, Result};

/// The family of the listeners and their clients.
pub(crate) const FAMILY: Family = Family::V4;

/// What a benchmark is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// How often each figure is measured.
    pub(crate) rounds: u32,
    /// Fewer connections and shorter times.
    pub(crate) short: bool,
}

/// What a client asks.
pub(crate) const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
/// What it is answered.
pub(crate) const RESPONSE: &[u8] = b"HTTP/1.0 200 OK\r\n\r\nhello\n";

/// These in another order in each round, so that none always has the same one before it.
pub(crate) fn in_turn<T: Copy, const N: usize>(all: [T; N], round: u32) -> [T; N] {
    let mut turned = all;
    turned.rotate_left(round as usize % N);
    turned
}

/// Opens a listener that waits for data as long as it is told, and then does what it is told; `TCP_DEFER_ACCEPT` waits for
/// whole seconds, and a plain listener not at all.
pub(crate) fn open(
    ns: &Netns,
    listener: Listener,
    deadline: Duration,
    on_timeout: OnTimeout,
) -> Result<endpoint::Listener> {
    let listen = match listener {
        Listener::Plain => Listen::plain(FAMILY),
        Listener::DeferAccept => {
            let seconds = deadline.as_millis().div_ceil(1000);
            Listen::deferred(FAMILY, i32::try_from(seconds)?)
        }
        Listener::Dataready => {
            let ms = u32::try_from(deadline.as_millis())?;
            Listen::filtered(FAMILY).config(control::settings(ms, 0, on_timeout))
        }
    };
    listen.open(ns)
}

/// Makes sure that no connection of a server since `before` was made with a syncookie: nothing can hold such a one back.
pub(crate) fn no_syncookies(before: &Counters, after: &Counters) -> Result<()> {
    let sent = after.growth(before, "TcpExtSyncookiesSent")?;
    ensure!(sent == 0, "the server has sent {sent} syncookies");
    Ok(())
}

/// The middle one of some numbers: what is interrupted by the clock, or does what the kernel has put off, does not count.
pub(crate) fn median(numbers: &mut [u64]) -> Result<f64> {
    numbers.sort_unstable();
    let middle = numbers.get(numbers.len() / 2).context("no numbers")?;
    Ok(*middle as f64)
}

/// Which figure a sample belongs to; see [`Measurement`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    pub(crate) metric: &'static str,
    pub(crate) unit: Unit,
    pub(crate) listener: Listener,
    pub(crate) case: &'static str,
    pub(crate) x: Option<f64>,
}

/// The figures of a benchmark, in the order in which they were first heard of.
#[derive(Debug)]
pub(crate) struct Figures {
    bench: Bench,
    measurements: Vec<Measurement>,
}

impl Figures {
    pub(crate) fn new(bench: Bench) -> Self {
        Self {
            bench,
            measurements: Vec::new(),
        }
    }

    /// Adds a round's sample to its figure.
    pub(crate) fn add(&mut self, figure: Figure, sample: f64) {
        self.of(figure).samples.push(sample);
    }

    /// Tells what a reader must know of a figure, whether or not there are samples; what was told before stays.
    pub(crate) fn explain(&mut self, figure: Figure, note: &str) {
        let told = self.of(figure).note.get_or_insert_default();
        if !told.contains(note) {
            if !told.is_empty() {
                told.push_str("; ");
            }
            told.push_str(note);
        }
    }

    /// All of them.
    pub(crate) fn finish(self) -> Vec<Measurement> {
        self.measurements
    }

    fn of(&mut self, figure: Figure) -> &mut Measurement {
        let known = self.measurements.iter().position(|it| {
            it.metric == figure.metric
                && it.listener == figure.listener
                && it.case == figure.case
                && it.x == figure.x
        });
        let index = known.unwrap_or(self.measurements.len());
        if known.is_none() {
            self.measurements.push(Measurement {
                bench: self.bench,
                metric: figure.metric.to_owned(),
                unit: figure.unit,
                listener: figure.listener,
                case: figure.case.to_owned(),
                x: figure.x,
                samples: Vec::new(),
                note: None,
            });
        }
        &mut self.measurements[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIGURE: Figure = Figure {
        metric: "late",
        unit: Unit::Milliseconds,
        listener: Listener::Dataready,
        case: "",
        x: Some(50.0),
    };

    #[test]
    fn everybody_is_first_in_some_round() {
        let firsts: Vec<u8> = (0..3).map(|round| in_turn([1, 2, 3], round)[0]).collect();
        assert_eq!(firsts, [1, 2, 3]);
    }

    #[test]
    fn samples_come_to_their_figures() {
        let other = Figure {
            x: Some(100.0),
            ..FIGURE
        };
        let mut figures = Figures::new(Bench::Deadline);
        figures.add(FIGURE, 1.0);
        figures.add(other, 2.0);
        figures.add(FIGURE, 3.0);
        let samples: Vec<Vec<f64>> = figures.finish().into_iter().map(|it| it.samples).collect();
        assert_eq!(samples, [vec![1.0, 3.0], vec![2.0]]);
    }

    #[test]
    fn what_is_told_again_is_not_repeated() {
        let mut figures = Figures::new(Bench::Deadline);
        for note in ["one", "two", "one"] {
            figures.explain(FIGURE, note);
        }
        let figures = figures.finish();
        assert_eq!(figures[0].note.as_deref(), Some("one; two"));
        assert!(figures[0].samples.is_empty());
    }
}
