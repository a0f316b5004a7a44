// SPDX-License-Identifier: MIT OR Apache-2.0
//! The scales and marks of axes.

use crate::table::number;

/// The scale of an axis. A *place* is a number that is linear on paper, whatever the scale.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scale {
    /// Linear.
    Linear,
    /// Linear, with marks at whole numbers only.
    Whole,
    /// Logarithmic; all values are above 0.
    Log,
    /// Logarithmic on both sides of 0, and about linear between the negative of this value and the
    /// value.
    Symmetric(f64),
    /// These values only, side by side.
    Steps(Vec<f64>),
    /// This number of things, side by side at 0, 1, 2 …
    Things(usize),
}

/// A mark on an axis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tick {
    /// The place of the mark.
    pub(crate) place: f64,
    /// The label; empty for a minor mark.
    pub(crate) label: String,
}

/// The greatest number of ticks of a linear scale.
const TICKS: f64 = 6.0;

/// Logarithmic scales of fewer decades have labels between the powers of ten, too.
const FEW_DECADES: f64 = 2.6;

impl Scale {
    /// Returns a logarithmic scale for positive values that are far apart, and a linear one for
    /// others.
    pub(crate) fn for_values(values: impl IntoIterator<Item = f64>) -> Self {
        const FAR: f64 = 20.0;
        let (least, most) = bounds(values);
        if least > 0.0 && most / least > FAR {
            Self::Log
        } else {
            Self::Linear
        }
    }

    /// Returns the place of a value.
    pub(crate) fn place(&self, value: f64) -> f64 {
        match self {
            Self::Linear | Self::Whole | Self::Things(_) => value,
            Self::Log => value.max(f64::MIN_POSITIVE).log10(),
            Self::Symmetric(even) => value.signum() * (1.0 + value.abs() / even).log10(),
            Self::Steps(steps) => {
                let step = steps.iter().position(|step| *step >= value);
                step.unwrap_or(steps.len()) as f64
            }
        }
    }

    /// Returns the range of the places of `values`, with some room; a linear scale includes 0.
    pub(crate) fn range(&self, values: impl IntoIterator<Item = f64>) -> (f64, f64) {
        let things = |count: usize| (-0.6, count.max(1) as f64 - 0.4);
        match self {
            Self::Things(count) => things(*count),
            Self::Steps(steps) => things(steps.len()),
            Self::Linear | Self::Whole => {
                let (least, most) = bounds(values);
                let (least, most) = (least.min(0.0), most.max(0.0));
                if least == most {
                    return (0.0, 1.0);
                }
                let room = (most - least) * 0.12;
                let below = if least < 0.0 { room } else { 0.0 };
                (least - below, most + room)
            }
            Self::Log | Self::Symmetric(_) => {
                let (least, most) = bounds(values.into_iter().map(|value| self.place(value)));
                let room = (most - least).max(0.3) * 0.08;
                (least - room, most + room)
            }
        }
    }

    /// Returns the marks of an axis between two places.
    pub(crate) fn ticks(&self, (from, to): (f64, f64), label: impl Fn(f64) -> String) -> Vec<Tick> {
        let tick = |value: f64, label: String| Tick {
            place: self.place(value),
            label,
        };
        let ticks: Vec<Tick> = match self {
            Self::Things(count) => (0..*count)
                .map(|thing| tick(thing as f64, label(thing as f64)))
                .collect(),
            Self::Steps(steps) => steps.iter().map(|step| tick(*step, label(*step))).collect(),
            Self::Linear | Self::Whole => {
                let least = if *self == Self::Whole { 1.0 } else { 0.0 };
                let step = even_step(((to - from) / TICKS).max(least));
                let count = |place: f64| (place / step).floor() as i64;
                (count(from)..=count(to))
                    .map(|n| n as f64 * step)
                    .map(|value| tick(value, label(value)))
                    .collect()
            }
            Self::Log => {
                let few = to - from < FEW_DECADES;
                let mut ticks = Vec::new();
                for decade in from.floor() as i32..=to.ceil() as i32 {
                    for part in [1.0, 2.0, 5.0] {
                        let value = part * 10f64.powi(decade);
                        let named = part == 1.0 || few;
                        ticks.push(tick(
                            value,
                            if named { label(value) } else { String::new() },
                        ));
                    }
                }
                ticks
            }
            Self::Symmetric(even) => {
                let mut ticks = vec![tick(0.0, label(0.0))];
                for decade in 0..12 {
                    let value = even * 10f64.powi(decade);
                    ticks.push(tick(value, label(value)));
                    ticks.push(tick(-value, label(-value)));
                }
                ticks
            }
        };
        let mut ticks: Vec<Tick> = ticks
            .into_iter()
            .filter(|tick| (from..=to).contains(&tick.place))
            .collect();
        ticks.sort_by(|a, b| a.place.total_cmp(&b.place));
        ticks
    }
}

/// Returns the least and the greatest of `values`; 0 and 1 if there are none.
fn bounds(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let mut values = values.into_iter().filter(|value| value.is_finite());
    let Some(first) = values.next() else {
        return (0.0, 1.0);
    };
    values.fold((first, first), |(least, most), value| {
        (least.min(value), most.max(value))
    })
}

/// Returns the next round step from `least` upward: 1, 2, 2.5, 5 or 10 times a power of ten.
fn even_step(least: f64) -> f64 {
    if !(least.is_finite() && least > 0.0) {
        return 1.0;
    }
    let magnitude = 10f64.powi(least.log10().floor() as i32);
    let step = [1.0, 2.0, 2.5, 5.0]
        .into_iter()
        .find(|step| step * magnitude >= least);
    step.unwrap_or(10.0) * magnitude
}

/// Writes a number in three digits: `4k`, `1M`, `0.25`.
pub(crate) fn short(value: f64) -> String {
    let size = value.abs();
    let (scaled, unit) = match size {
        _ if size >= 999_950.0 => (value / 1e6, "M"),
        _ if size >= 1000.0 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    // Three digits are shown.
    let digits = scaled.abs().max(1e-9).log10().floor() as i32;
    let decimals = usize::try_from(2 - digits).unwrap_or(0).min(3);
    let text = format!("{scaled:.decimals$}");
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{}{unit}", text.replace('-', "−"))
}

/// Writes a number with all digits before the decimal point.
pub(crate) fn long(value: f64) -> String {
    if value != 0.0 && value.abs() < 1.0 {
        short(value)
    } else {
        number(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the labels of a scale's ticks over `values`.
    fn labels(scale: &Scale, values: &[f64]) -> Vec<String> {
        let range = scale.range(values.iter().copied());
        let ticks = scale.ticks(range, short).into_iter();
        let labels = ticks
            .map(|tick| tick.label)
            .filter(|label| !label.is_empty());
        labels.collect()
    }

    #[test]
    fn ticks_are_at_round_numbers() {
        assert_eq!(
            labels(&Scale::Linear, &[324.0, 2756.0]),
            ["0", "1k", "2k", "3k"]
        );
        assert_eq!(
            labels(&Scale::Linear, &[0.0]),
            ["0", "0.2", "0.4", "0.6", "0.8", "1"]
        );
        assert_eq!(labels(&Scale::Whole, &[2.0]), ["0", "1", "2"]);
        assert_eq!(
            labels(&Scale::Log, &[1e3, 1e6]),
            ["1k", "10k", "100k", "1M"]
        );
        assert_eq!(labels(&Scale::Log, &[0.2, 1.5]), ["0.2", "0.5", "1"]);
        assert_eq!(
            labels(&Scale::Symmetric(1.0), &[-12.0, 300.0]),
            ["−10", "−1", "0", "1", "10", "100"]
        );
        let steps = Scale::Steps(vec![0.0, 1e3, 1e5]);
        assert_eq!(labels(&steps, &[]), ["0", "1k", "100k"]);
    }

    #[test]
    fn every_value_has_its_place_in_the_range() {
        let values = [0.5, 3.0, 40.0, 1e5];
        for scale in [
            Scale::Linear,
            Scale::Log,
            Scale::Symmetric(1.0),
            Scale::Steps(values.to_vec()),
        ] {
            let (from, to) = scale.range(values);
            let places: Vec<f64> = values.iter().map(|value| scale.place(*value)).collect();
            assert!(places.is_sorted(), "{scale:?}");
            let inside = |place: &f64| (from..=to).contains(place);
            assert!(places.iter().all(inside), "{scale:?}");
        }
        // A scale without values has a range, too.
        let (from, to) = Scale::Log.range([]);
        assert!(from < to);
    }

    #[test]
    fn short_numbers_have_three_digits() {
        let cases = [
            (0.0, "0"),
            (0.05, "0.05"),
            (1.0, "1"),
            (324.4, "324"),
            (1000.0, "1k"),
            (85_234.0, "85.2k"),
            (999_999.0, "1M"),
            (-1500.0, "−1.5k"),
            (100_000.0, "100k"),
        ];
        for (value, wanted) in cases {
            assert_eq!(short(value), wanted);
        }
        assert_eq!(long(0.25), "0.25");
        assert_eq!(long(12_345.0), "12,345");
    }
}
