// SPDX-License-Identifier: MIT OR Apache-2.0
//! Figures: the statistics of the rounds of a measurement, and comparisons of two figures.

use accf_bench::{Bench, Listener, Measurement, Recording, Unit};
use serde::Serialize;

use crate::table::{fixed, number, percent};

/// The statistics of the rounds of one measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Statistics {
    /// The median.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The greatest.
    pub(crate) max: f64,
    /// From the least to the greatest, as a fraction of the median; infinite if the median is 0.
    pub(crate) spread: f64,
}

impl Statistics {
    /// Returns the statistics of `samples`; `None` if there are none, or one is not finite.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        if samples.iter().any(|sample| !sample.is_finite()) {
            return None;
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let upper = sorted.get(sorted.len() / 2)?;
        let lower = sorted.get((sorted.len() - 1) / 2)?;
        let median = (lower + upper) / 2.0;
        let spread = if max == min {
            0.0
        } else {
            (max - min) / median.abs()
        };
        Some(Self {
            median,
            min,
            max,
            spread,
        })
    }
}

/// The comparison of two figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Comparison {
    /// The first one's median as a fraction of the second one's.
    pub(crate) ratio: f64,
    /// The larger of both spreads; a smaller difference does not count.
    pub(crate) spread: f64,
}

impl Comparison {
    /// Compares `this` with `that`; `None` if `that` is 0.
    pub(crate) fn new(this: &Statistics, that: &Statistics) -> Option<Self> {
        let ratio = this.median / that.median;
        ratio.is_finite().then_some(Self {
            ratio,
            spread: this.spread.max(that.spread),
        })
    }

    /// Returns the distance of the ratio from 1.
    pub(crate) fn difference(&self) -> f64 {
        (self.ratio - 1.0).abs()
    }

    /// Returns whether the difference is larger than the spread.
    pub(crate) fn is_clear(&self) -> bool {
        self.difference() > self.spread
    }

    /// Writes the difference in words, for a table's cell or a sentence.
    pub(crate) fn words(&self) -> String {
        if self.ratio == 1.0 && self.spread == 0.0 {
            return "the same".into();
        }
        if !self.is_clear() {
            return format!(
                "no difference beyond the spread of {}",
                percent(self.spread)
            );
        }
        match self.ratio {
            times if times >= MANY => format!("{} ×", number(times)),
            part if part > 0.0 && part <= 1.0 / MANY => format!("1/{}", fixed(1.0 / part, 0)),
            less if less < 1.0 => format!("−{}", percent(self.difference())),
            _ => format!("+{}", percent(self.difference())),
        }
    }
}

/// Ratios from this on are written as `12 ×` or `1/12` instead of in percent.
const MANY: f64 = 10.0;

/// The name of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Key<'a> {
    /// The benchmark.
    pub(crate) bench: Bench,
    /// The quantity.
    pub(crate) metric: &'a str,
    /// The case; empty if there is only one.
    pub(crate) case: &'a str,
    /// The listener.
    pub(crate) listener: Listener,
    /// The place on the x axis.
    pub(crate) x: Option<f64>,
}

impl<'a> Key<'a> {
    /// Returns a figure of `bench` without a case, of the listener with the filter.
    pub(crate) fn new(bench: Bench, metric: &'a str) -> Self {
        Self {
            bench,
            metric,
            case: "",
            listener: Listener::Dataready,
            x: None,
        }
    }

    /// Returns the same figure of another case.
    pub(crate) fn case(self, case: &'a str) -> Self {
        Self { case, ..self }
    }

    /// Returns the same figure of another listener.
    pub(crate) fn at(self, listener: Listener) -> Self {
        Self { listener, ..self }
    }

    /// Returns the same figure at another place.
    pub(crate) fn x(self, x: f64) -> Self {
        Self { x: Some(x), ..self }
    }

    /// Returns the same figure without a place.
    pub(crate) fn anywhere(self) -> Self {
        Self { x: None, ..self }
    }

    /// Returns the name of a measurement.
    pub(crate) fn of(measurement: &'a Measurement) -> Self {
        Self {
            bench: measurement.bench,
            metric: &measurement.metric,
            case: &measurement.case,
            listener: measurement.listener,
            x: measurement.x,
        }
    }
}

/// The figures of a recording, by their names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures<'a> {
    /// The recording.
    pub(crate) recording: &'a Recording,
}

impl<'a> Figures<'a> {
    /// Returns all measurements of a benchmark.
    pub(crate) fn of(self, bench: Bench) -> impl Iterator<Item = &'a Measurement> {
        let all = self.recording.measurements.iter();
        all.filter(move |measurement| measurement.bench == bench)
    }

    /// Returns the measurement of this name.
    pub(crate) fn find(self, key: Key<'_>) -> Option<&'a Measurement> {
        let mut all = self.recording.measurements.iter();
        all.find(|measurement| Key::of(measurement) == key)
    }

    /// Returns the rounds of the measurement of this name, or why there are none.
    pub(crate) fn samples(self, key: Key<'_>) -> Result<&'a [f64], String> {
        let name = || {
            let mut name = format!("{} of {}", key.metric, title(key.listener));
            if !key.case.is_empty() {
                name += &format!(", {}", key.case);
            }
            if let Some(x) = key.x {
                name += &format!(", at {}", number(x));
            }
            name
        };
        let Some(measurement) = self.find(key) else {
            return Err(format!("{} was not measured", name()));
        };
        if measurement.samples.is_empty() {
            let note = measurement.note.as_deref().unwrap_or("nothing says why");
            return Err(format!("{} could not be measured: {note}", name()));
        }
        Ok(&measurement.samples)
    }

    /// Returns the statistics of the measurement of this name, or why there are none.
    pub(crate) fn statistics(self, key: Key<'_>) -> Result<Statistics, String> {
        let samples = self.samples(key)?;
        Statistics::of(samples).ok_or_else(|| format!("{} has no number", key.metric))
    }

    /// Compares two measurements.
    pub(crate) fn compare(self, this: Key<'_>, that: Key<'_>) -> Result<Comparison, String> {
        let (this, that) = (self.statistics(this)?, self.statistics(that)?);
        Comparison::new(&this, &that).ok_or_else(|| "a comparison with 0 has no result".into())
    }

    /// Returns the cases of a figure, whether or not they could be measured; the empty one comes
    /// first.
    pub(crate) fn cases(self, key: Key<'_>) -> Vec<&'a str> {
        let mut cases = vec![""];
        for measurement in self.of(key.bench) {
            let other = Key::of(measurement);
            let same = other.metric == key.metric && other.listener == key.listener;
            if same && !cases.contains(&other.case) {
                cases.push(other.case);
            }
        }
        cases
    }

    /// Returns the places of a figure in rising order, whether or not they could be measured.
    pub(crate) fn places(self, key: Key<'_>) -> Vec<f64> {
        let all = self.of(key.bench);
        let same = all.filter(|it| Key::of(it).anywhere() == key.anywhere());
        in_order(same.filter_map(|measurement| measurement.x))
    }
}

/// Returns places in rising order, each once.
pub(crate) fn in_order(places: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut places: Vec<f64> = places.into_iter().collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    places
}

/// Returns the title of a listener.
pub(crate) fn title(listener: Listener) -> &'static str {
    match listener {
        Listener::Plain => "plain",
        Listener::DeferAccept => "TCP_DEFER_ACCEPT",
        Listener::Dataready => "dataready",
    }
}

/// Returns the title of a case.
pub(crate) fn case_title(case: &str) -> &str {
    match case {
        "epoll/pause" => "epoll, client pauses",
        "epoll/same_trip" => "epoll, request with the ACK",
        "blocking/pause" => "blocking, client pauses",
        "blocking/same_trip" => "blocking, request with the ACK",
        "rto_only" => "without tail loss probes",
        "accept" => "accepted",
        "reset" => "reset",
        "drop" => "dropped",
        "backlog_128" => "backlog 128",
        "room" => "backlog for all",
        "working" => "server works",
        "silent" => "silent client",
        "slow" => "slow client",
        "without_module" => "without the module",
        "with_module" => "the module loaded",
        "filter_elsewhere" => "another listener has the filter",
        other => other,
    }
}

/// Writes a value for a table, without its unit.
pub(crate) fn value(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Milliseconds if value.abs() < 10.0 => fixed(value, 2),
        Unit::Instructions => fixed(value, 0),
        // The mean of whole numbers may be a little off a whole number.
        _ if value.abs() < 100.0 => number((value * 10.0).round() / 10.0),
        _ => number(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_spread() {
        let odd = Statistics::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!(
            (odd.median, odd.min, odd.max, odd.spread),
            (2.0, 1.0, 3.0, 1.0)
        );
        let even = Statistics::of(&[1.0, 2.0]).unwrap();
        assert_eq!((even.median, even.spread), (1.5, 1.0 / 1.5));
        let zeroes = Statistics::of(&[0.0, 0.0]).unwrap();
        assert_eq!((zeroes.median, zeroes.spread), (0.0, 0.0));
        assert_eq!(Statistics::of(&[]), None);
        assert_eq!(Statistics::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn a_difference_within_the_spread_is_none() {
        let compare = |this: &[f64], that: &[f64]| {
            let (this, that) = (Statistics::of(this)?, Statistics::of(that)?);
            Some(Comparison::new(&this, &that)?.words())
        };
        let cases = [
            (&[80.0, 80.0][..], &[100.0, 100.0][..], "−20.0 %"),
            (&[110.0], &[100.0], "+10.0 %"),
            (&[100.5], &[100.0], "+0.50 %"),
            (&[100.0], &[100.0], "the same"),
            (&[300.0], &[100.0], "+200 %"),
            (&[1234.0], &[100.0], "12.3 ×"),
            (&[100.0], &[1234.0], "1/12"),
            // The figures differ by 5 %, and the rounds of one of them by 10 %.
            (
                &[90.0, 95.0, 99.5],
                &[100.0],
                "no difference beyond the spread of 10.0 %",
            ),
            (
                &[95.0],
                &[95.0, 100.0, 105.0],
                "no difference beyond the spread of 10.0 %",
            ),
        ];
        for (this, that, words) in cases {
            assert_eq!(
                compare(this, that).as_deref(),
                Some(words),
                "{this:?} {that:?}"
            );
        }
        assert_eq!(compare(&[1.0], &[0.0]), None);
    }
}
