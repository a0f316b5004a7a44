// SPDX-License-Identifier: MIT OR Apache-2.0
//! Verdicts on the claims of the demo, the benchmarks and the soak.

use std::fmt;
use std::process::ExitCode;

use serde::Serialize;

use crate::report::Section;
use crate::table::{fixed, number, percent, words, Column, Kind, Table, FAILS, HOLDS};

/// What a number has to be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    /// This number.
    Exactly(f64),
    /// This number or less.
    AtMost(f64),
    /// This number or more.
    AtLeast(f64),
    /// One of the two numbers or between them.
    Between(f64, f64),
}

impl Bound {
    /// Returns the range of numbers that are at most `off` from `middle`.
    pub(crate) fn around(middle: f64, off: f64) -> Self {
        Self::Between(middle - off, middle + off)
    }

    /// Returns whether `value` is within the bound, or beyond it by no more than `slack` times the
    /// bound.
    pub(crate) fn holds(self, value: f64, slack: f64) -> bool {
        let at_least = |least: f64| value >= least * (1.0 - slack);
        let at_most = |most: f64| value <= most * (1.0 + slack);
        match self {
            Self::Exactly(wanted) => value == wanted,
            Self::AtMost(most) => at_most(most),
            Self::AtLeast(least) => at_least(least),
            Self::Between(least, most) => at_least(least) && at_most(most),
        }
    }
}

/// What a number measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    /// One figure divided by another.
    Ratio,
    /// How far such a ratio is from 1.
    Difference,
    /// Bytes of memory.
    Bytes,
    /// Milliseconds.
    Milliseconds,
    /// Things of this name. There is no slack for a count.
    Count(&'static str),
}

impl Unit {
    /// Writes a number without its unit.
    fn digits(self, value: f64) -> String {
        match self {
            Self::Ratio => fixed(value, 2),
            Self::Difference => percent(value),
            Self::Milliseconds if value.abs() < 10.0 => fixed(value, 2),
            Self::Bytes | Self::Milliseconds | Self::Count(_) => number(value),
        }
    }

    /// Writes a text about numbers with their unit.
    fn with_name(self, text: &str) -> String {
        match self {
            Self::Ratio | Self::Difference => text.to_owned(),
            Self::Bytes => format!("{text} bytes"),
            Self::Milliseconds => format!("{text} ms"),
            Self::Count(what) if text.ends_with(" 1") || text == "1" => {
                format!("{text} {}", what.trim_end_matches('s'))
            }
            Self::Count(what) => format!("{text} {what}"),
        }
    }

    /// Writes a number with its unit.
    pub(crate) fn write(self, value: f64) -> String {
        self.with_name(&self.digits(value))
    }

    /// Writes a bound with its unit.
    fn write_bound(self, bound: Bound) -> String {
        let digits = |value| self.digits(value);
        self.with_name(&match bound {
            Bound::Exactly(wanted) => format!("= {}", digits(wanted)),
            Bound::AtMost(most) => format!("≤ {}", digits(most)),
            Bound::AtLeast(least) => format!("≥ {}", digits(least)),
            Bound::Between(least, most) => format!("{} … {}", digits(least), digits(most)),
        })
    }
}

/// The number of a claim, and its bound.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    /// The number that was found; without one, the claim fails.
    pub(crate) value: Option<f64>,
    /// What the number has to be; without a bound, the claim fails.
    pub(crate) bound: Option<Bound>,
    /// What both measure.
    pub(crate) unit: Unit,
    /// Of a ratio: the larger spread of the two figures that it compares.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) spread: Option<f64>,
    /// A difference is claimed, and the spread is larger than the difference.
    #[serde(skip)]
    pub(crate) unclear: bool,
}

impl Figure {
    /// Returns whether the claim holds, or is missed by no more than `slack` times the bound.
    fn holds(&self, slack: f64) -> bool {
        let slack = match self.unit {
            Unit::Count(_) => 0.0,
            _ => slack,
        };
        let (Some(value), Some(bound)) = (self.value, self.bound) else {
            return false;
        };
        !self.unclear && bound.holds(value, slack)
    }
}

/// A claim that is to be judged.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    name: String,
    says: String,
}

impl Claim {
    /// Returns a claim with a short, stable name, and in words.
    pub(crate) fn new(name: impl Into<String>, says: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            says: says.into(),
        }
    }

    /// Judges the claim by a figure that is `found` in words.
    pub(crate) fn figure(self, figure: Figure, found: String) -> Verdict {
        Verdict {
            name: self.name,
            says: self.says,
            pass: figure.holds(0.0),
            found,
            figure: Some(figure),
        }
    }

    /// Judges the claim that `value` is within `bound`.
    pub(crate) fn number(
        self,
        value: Option<f64>,
        unit: Unit,
        bound: impl Into<Option<Bound>>,
    ) -> Verdict {
        let figure = Figure {
            value,
            bound: bound.into(),
            unit,
            spread: None,
            unclear: false,
        };
        let found = value.map_or_else(|| "nothing".into(), |value| unit.write(value));
        self.figure(figure, found)
    }

    /// Judges the claim that a time in milliseconds is within `bound`.
    pub(crate) fn ms(self, value: Option<f64>, bound: impl Into<Option<Bound>>) -> Verdict {
        self.number(value, Unit::Milliseconds, bound)
    }

    /// Judges the claim that there are `wanted` things of this name.
    pub(crate) fn count(
        self,
        what: &'static str,
        value: impl Into<Option<usize>>,
        wanted: u32,
    ) -> Verdict {
        let value = value.into().map(|value| value as f64);
        let bound = Bound::Exactly(f64::from(wanted));
        self.number(value, Unit::Count(what), bound)
    }

    /// Judges the claim that there are no `complaints`; without any, `otherwise` is what was found.
    pub(crate) fn complaints(self, complaints: &[String], otherwise: &str) -> Verdict {
        let pass = complaints.is_empty();
        Verdict {
            name: self.name,
            says: self.says,
            pass,
            found: match pass {
                true => otherwise.to_owned(),
                false => complaints.join("\n"),
            },
            figure: None,
        }
    }
}

/// One claim, and whether it holds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Verdict {
    /// A short, stable name.
    pub(crate) name: String,
    /// The claim, in words.
    pub(crate) says: String,
    /// Whether the claim holds.
    pub(crate) pass: bool,
    /// What was found, in words.
    pub(crate) found: String,
    /// The number that was judged, if the claim is about one.
    #[serde(flatten)]
    pub(crate) figure: Option<Figure>,
}

impl Verdict {
    /// Returns whether the claim holds, or its number misses the bound by no more than `slack`
    /// times the bound.
    pub(crate) fn holds(&self, slack: f64) -> bool {
        match &self.figure {
            Some(figure) => figure.holds(slack),
            None => self.pass,
        }
    }

    /// Writes what the number has to be; empty if the claim is not about a number.
    fn must_be(&self) -> String {
        let Some(figure) = &self.figure else {
            return String::new();
        };
        let bound = figure.bound.map(|bound| figure.unit.write_bound(bound));
        bound.unwrap_or_else(|| "measured".to_owned())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: found {}", self.says, self.found)?;
        match self.must_be().as_str() {
            "" => Ok(()),
            bound => write!(f, ", must be {bound}"),
        }
    }
}

/// Returns whether there are claims, and all of them hold.
pub(crate) fn all_hold(verdicts: &[Verdict]) -> bool {
    !verdicts.is_empty() && verdicts.iter().all(|verdict| verdict.pass)
}

/// Returns the claims that do not hold.
pub(crate) fn failed(verdicts: &[Verdict]) -> impl Iterator<Item = &Verdict> {
    verdicts.iter().filter(|verdict| !verdict.pass)
}

/// Returns a section with the table of all claims, each of which is a `what`.
pub(crate) fn section(heading: &str, what: &'static str, verdicts: &[Verdict]) -> Section {
    let columns = [
        Column::new("", Kind::Verdicts),
        words(what),
        words("found"),
        words("must be"),
        Column::new("name in `report.json`", Kind::CodeInMarkdown),
    ];
    let rows = verdicts.iter().map(|verdict| {
        vec![
            if verdict.pass { HOLDS } else { FAILS }.to_owned(),
            verdict.says.clone(),
            verdict.found.clone(),
            verdict.must_be(),
            verdict.name.clone(),
        ]
    });
    Section::new(heading, Table::new(columns, rows).without_empty_columns())
}

/// Returns the last line of a report: `held` if all claims hold, and otherwise the names of those
/// that do not, and `missed`.
pub(crate) fn closing_line(verdicts: &[Verdict], held: &str, missed: &str) -> String {
    if all_hold(verdicts) {
        return held.to_owned();
    }
    let names: Vec<&str> = failed(verdicts)
        .map(|verdict| verdict.name.as_str())
        .collect();
    format!("FAILED ({}): {missed}", names.join(", "))
}

/// Prints the claims that do not hold and the closing line, and returns the exit status.
pub(crate) fn conclude(verdicts: &[Verdict], closing_line: &str) -> ExitCode {
    for verdict in failed(verdicts) {
        eprintln!("error: {verdict}");
    }
    println!("\n{closing_line}");
    match all_hold(verdicts) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_holds_at_its_limit_and_not_beyond() {
        let holds = |bound: Bound, value| bound.holds(value, 0.0);
        let (most, least) = (Bound::AtMost(2.0), Bound::AtLeast(2.0));
        assert!(holds(most, 2.0) && !holds(most, 2.0001));
        assert!(holds(least, 2.0) && !holds(least, 1.9999));
        assert!(holds(Bound::Exactly(2.0), 2.0) && !holds(Bound::Exactly(2.0), 1.0));
        let between = Bound::around(2.0, 1.0);
        assert!(holds(between, 1.0) && holds(between, 3.0));
        assert!(!holds(between, 0.9999) && !holds(between, 3.0001));
        assert!(!holds(most, f64::NAN) && !holds(between, f64::NAN));
        assert!(most.holds(2.1, 0.05) && !most.holds(2.11, 0.05));
        assert!(least.holds(1.9, 0.05) && !least.holds(1.89, 0.05));
    }

    #[test]
    fn a_claim_needs_a_number_and_a_bound() {
        let quick = Claim::new("a", "it is quick");
        let bound = Bound::AtMost(20.0);
        assert!(quick.clone().ms(Some(20.0), bound).pass);
        let nothing = quick.clone().ms(None, bound);
        assert!(!nothing.holds(1.0));
        assert_eq!(
            nothing.to_string(),
            "it is quick: found nothing, must be ≤ 20 ms"
        );
        let unbounded = quick.ms(Some(20.0), None);
        assert!(!unbounded.holds(1.0));
        assert_eq!(
            unbounded.to_string(),
            "it is quick: found 20 ms, must be measured"
        );
        let once = |found: usize| Claim::new("b", "once").count("segments", found, 1);
        assert!(once(1).pass && !once(2).holds(10.0));
        assert_eq!(
            once(2).to_string(),
            "once: found 2 segments, must be = 1 segment"
        );
    }

    #[test]
    fn the_closing_line_names_what_failed() {
        let verdict = |name: &str, complaints: &[String]| {
            Claim::new(name, "nothing leaks").complaints(complaints, "two scans")
        };
        let both = [verdict("a", &[]), verdict("b", &["one object".to_owned()])];
        let good = &both[..1];
        let line = |verdicts| closing_line(verdicts, "All held.", "after 1 min.");
        assert_eq!(both[0].to_string(), "nothing leaks: found two scans");
        assert_eq!(line(good), "All held.");
        assert_eq!(line(&both), "FAILED (b): after 1 min.");
        assert_eq!(conclude(good, ""), ExitCode::SUCCESS);
        assert_eq!(conclude(&both, ""), ExitCode::FAILURE);
        // Without claims, nothing holds.
        assert_eq!(conclude(&[], ""), ExitCode::FAILURE);
        let table = section("Checks", "check", &both).table.markdown();
        assert!(
            table.contains("| **FAILS** | nothing leaks | one object | `b` |"),
            "{table}"
        );
    }
}
