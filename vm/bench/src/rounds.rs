// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the benchmarks have in common: the request and its response, listeners with equal
//! deadlines, and figures with a sample from each round.

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use accf_bench::{Bench, Listener, Measurement, Unit};
use accf_kit::control::{self, OnTimeout, Stats};
use accf_kit::counters::Counters;
use accf_kit::endpoint::{self, Family, Listen};
use accf_kit::netns::Netns;
use anyhow::{ensure, Context, Result};

/// The family of the listeners and their clients.
pub(crate) const FAMILY: Family = Family::V4;

/// How much a benchmark measures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// How often each figure is measured.
    pub(crate) rounds: u32,
    /// Fewer connections and shorter times.
    pub(crate) short: bool,
}

/// The request of each client.
pub(crate) const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
/// The server's response.
pub(crate) const RESPONSE: &[u8] = b"HTTP/1.0 200 OK\r\n\r\nhello\n";

/// Rotates the order from round to round, so that none always has the same one before it.
pub(crate) fn in_turn<T: Copy, const N: usize>(all: [T; N], round: u32) -> [T; N] {
    let mut turned = all;
    turned.rotate_left(round as usize % N);
    turned
}

/// Opens a listener with a deadline and what happens then; `TCP_DEFER_ACCEPT` takes whole seconds,
/// and a plain listener has no deadline.
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

/// Checks that a filtered listener has parked all of its clients, and each until this end.
pub(crate) fn all_parked(
    listening: &endpoint::Listener,
    clients: u32,
    ended: fn(&Stats) -> u64,
) -> Result<()> {
    let stats = control::stats(listening.socket()).context("ACCF_STATS")?;
    ensure!(
        [stats.parked_total, ended(&stats)] == [u64::from(clients); 2],
        "not all of {clients} clients were parked until the expected end: {stats:?}"
    );
    Ok(())
}

/// Accepts a connection, and reads its request.
pub(crate) fn accept_request(listening: &endpoint::Listener, limit: Duration) -> Result<TcpStream> {
    let mut server = listening.accept(limit)?.context("not accepted")?.stream;
    let mut request = [0; REQUEST.len()];
    server.read_exact(&mut request).context("the request")?;
    ensure!(request == REQUEST, "the server read something else");
    Ok(server)
}

/// Checks that the server has sent no syncookie since `before`: a connection made with one is not
/// parked.
pub(crate) fn no_syncookies(before: &Counters, after: &Counters) -> Result<()> {
    let sent = after.growth(before, "TcpExtSyncookiesSent")?;
    ensure!(sent == 0, "the server has sent {sent} syncookies");
    Ok(())
}

/// Returns the median. It leaves out the few that the clock's interrupt, or work that the kernel
/// had deferred, made larger.
pub(crate) fn median(numbers: &mut [u64]) -> Result<f64> {
    numbers.sort_unstable();
    let middle = numbers.get(numbers.len() / 2).context("no numbers")?;
    Ok(*middle as f64)
}

/// Which figure a sample belongs to; see [`Measurement`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    metric: &'static str,
    unit: Unit,
    listener: Listener,
    case: &'static str,
    x: Option<f64>,
}

impl Figure {
    /// A figure of the only case, without an x axis.
    pub(crate) const fn new(metric: &'static str, unit: Unit, listener: Listener) -> Self {
        Self {
            metric,
            unit,
            listener,
            case: "",
            x: None,
        }
    }

    /// The same figure of another case.
    pub(crate) const fn case(self, case: &'static str) -> Self {
        Self { case, ..self }
    }

    /// The same figure at a value on the x axis.
    pub(crate) const fn at(self, x: f64) -> Self {
        Self { x: Some(x), ..self }
    }
}

/// The figures of a benchmark, in the order in which they were first added.
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

    /// Appends a note to a figure, once, whether or not there are samples.
    pub(crate) fn explain(&mut self, figure: Figure, note: &str) {
        let notes = self.of(figure).note.get_or_insert_default();
        if !notes.contains(note) {
            if !notes.is_empty() {
                notes.push_str("; ");
            }
            notes.push_str(note);
        }
    }

    /// Notes that a figure is measured with fewer clients only.
    pub(crate) fn leave_out(&mut self, figure: Figure, max_clients: u32) {
        let note = format!("measured with up to {max_clients} clients only");
        self.explain(figure, &note);
    }

    /// Returns all of them.
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

    const FIGURE: Figure = Figure::new("late", Unit::Milliseconds, Listener::Dataready).at(50.0);

    #[test]
    fn each_is_first_in_some_round() {
        let firsts: Vec<u8> = (0..3).map(|round| in_turn([1, 2, 3], round)[0]).collect();
        assert_eq!(firsts, [1, 2, 3]);
    }

    #[test]
    fn samples_are_added_to_their_figures() {
        let mut figures = Figures::new(Bench::Deadline);
        figures.add(FIGURE, 1.0);
        figures.add(FIGURE.at(100.0), 2.0);
        figures.add(FIGURE, 3.0);
        let samples: Vec<Vec<f64>> = figures.finish().into_iter().map(|it| it.samples).collect();
        assert_eq!(samples, [vec![1.0, 3.0], vec![2.0]]);
    }

    #[test]
    fn a_repeated_note_is_kept_once() {
        let mut figures = Figures::new(Bench::Deadline);
        for note in ["one", "two", "one"] {
            figures.explain(FIGURE, note);
        }
        let figures = figures.finish();
        assert_eq!(figures[0].note.as_deref(), Some("one; two"));
        assert!(figures[0].samples.is_empty());
    }
}
