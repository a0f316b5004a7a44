// SPDX-License-Identifier: MIT OR Apache-2.0
//! Figures: what the rounds of a measurement come to, and how two of them compare.

use accf_bench::{Bench, Listener, Measurement, Recording, Unit};
use serde::Serialize;

use crate::table::{fixed, number, percent};

/// What the rounds of one measurement come to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Statistics {
    /// The middle one, or the mean of the two in the middle.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The greatest.
    pub(crate) max: f64,
    /// From the least to the greatest, as a part of the median; without end where that is 0.
    pub(crate) spread: f64,
}

impl Statistics {
    /// Sums `samples` up; there must be one, and no sample may be other than a number.
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

/// Two figures side by side.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Comparison {
    /// The first one's median as a part of the second one's.
    pub(crate) ratio: f64,
    /// The larger of both spreads: a smaller difference is none.
    pub(crate) spread: f64,
}

impl Comparison {
    /// Compares `this` with `that`; nothing compares with 0.
    pub(crate) fn new(this: &Statistics, that: &Statistics) -> Option<Self> {
        let ratio = this.median / that.median;
        ratio.is_finite().then_some(Self {
            ratio,
            spread: this.spread.max(that.spread),
        })
    }

    /// How far the ratio is from 1.
    pub(crate) fn difference(&self) -> f64 {
        (self.ratio - 1.0).abs()
    }

    /// Whether there is a difference that the spread does not account for.
    pub(crate) fn is_clear(&self) -> bool {
        self.difference() > self.spread
    }

    /// The difference in words, for a table's cell or a sentence.
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

/// From so many times on, a difference is not told in percent.
const MANY: f64 = 10.0;

/// Which figure is meant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Key<'a> {
    /// The benchmark.
    pub(crate) bench: Bench,
    /// What was measured.
    pub(crate) metric: &'a str,
    /// Under which circumstances.
    pub(crate) case: &'a str,
    /// At which listener.
    pub(crate) listener: Listener,
    /// Against what it is plotted.
    pub(crate) x: Option<f64>,
}

impl<'a> Key<'a> {
    /// A figure of `bench` without circumstances, at a listener with the filter.
    pub(crate) fn new(bench: Bench, metric: &'a str) -> Self {
        Self {
            bench,
            metric,
            case: "",
            listener: Listener::Dataready,
            x: None,
        }
    }

    /// The same under other circumstances.
    pub(crate) fn case(self, case: &'a str) -> Self {
        Self { case, ..self }
    }

    /// The same at another listener.
    pub(crate) fn at(self, listener: Listener) -> Self {
        Self { listener, ..self }
    }

    /// The same at another place of the plot.
    pub(crate) fn x(self, x: f64) -> Self {
        Self { x: Some(x), ..self }
    }

    /// The name of a measurement.
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
    /// What they are from.
    pub(crate) recording: &'a Recording,
}

impl<'a> Figures<'a> {
    /// All measurements of a benchmark.
    pub(crate) fn of(self, bench: Bench) -> impl Iterator<Item = &'a Measurement> {
        let all = self.recording.measurements.iter();
        all.filter(move |measurement| measurement.bench == bench)
    }

    /// The measurement of that name.
    pub(crate) fn find(self, key: Key<'_>) -> Option<&'a Measurement> {
        let mut all = self.recording.measurements.iter();
        all.find(|measurement| Key::of(measurement) == key)
    }

    /// The rounds of the measurement of that name, or why there are none.
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

    /// What the rounds of the measurement of that name come to, or why there is nothing.
    pub(crate) fn statistics(self, key: Key<'_>) -> Result<Statistics, String> {
        let samples = self.samples(key)?;
        Statistics::of(samples).ok_or_else(|| format!("{} has no number", key.metric))
    }

    /// Compares the measurement of that name with the one at another listener or place.
    pub(crate) fn compare(self, this: Key<'_>, that: Key<'_>) -> Result<Comparison, String> {
        let (this, that) = (self.statistics(this)?, self.statistics(that)?);
        Comparison::new(&this, &that).ok_or_else(|| "nothing compares with 0".into())
    }

    /// The circumstances under which a figure like this one was measured, or was to be: none in particular, and others.
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

    /// Where on the plot figures like this one were measured, or were to be, in rising order.
    pub(crate) fn places(self, key: Key<'_>) -> Vec<f64> {
        let mut places: Vec<f64> = self
            .of(key.bench)
            .filter(|measurement| {
                let other = Key::of(measurement);
                Key { x: None, ..other } == Key { x: None, ..key }
            })
            .filter_map(|measurement| measurement.x)
            .collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        places
    }
}

/// A listener's name for people.
pub(crate) fn title(listener: Listener) -> &'static str {
    match listener {
        Listener::Plain => "plain",
        Listener::DeferAccept => "TCP_DEFER_ACCEPT",
        Listener::Dataready => "dataready",
    }
}

/// The circumstances of a measurement for people.
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
        "silent" => "silent client",
        "slow" => "slow client",
        "without_module" => "without the module",
        "with_module" => "the module loaded",
        "filter_elsewhere" => "another listener has the filter",
        other => other,
    }
}

/// A value as it stands in a table, without its unit.
pub(crate) fn value(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Milliseconds if value.abs() < 10.0 => fixed(value, 2),
        Unit::Instructions => fixed(value, 0),
        // A mean of whole numbers may be a little off one.
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
            // 5 % apart, but one of them is by 10 % not sure.
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
