// SPDX-License-Identifier: MIT OR Apache-2.0
//! The parser of KTAP, the test results of KUnit and of our client suite.
//!
//! Each nesting level is indented by two spaces or more, as KUnit prints it. A suite is a test with
//! tests inside; only the innermost ones count. Every plan must be fulfilled.

use std::fmt;

/// The outcome of one test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It did not run; its detail says why.
    Skipped,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        })
    }
}

/// One innermost test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Test {
    /// The names of the suites around it and its own, joined by `/`.
    pub(crate) name: String,
    /// Its outcome.
    pub(crate) outcome: Outcome,
    /// Its diagnostics, or why it was skipped.
    pub(crate) detail: String,
}

/// The results in a KTAP text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Results {
    /// The innermost tests in the order of their results.
    pub(crate) tests: Vec<Test>,
    /// Errors of the text itself: missing or unfulfilled plans.
    pub(crate) errors: Vec<String>,
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for test in &self.tests {
            writeln!(f, "{:8} {}", test.outcome, test.name)?;
            if test.outcome != Outcome::Passed {
                for line in test.detail.lines() {
                    writeln!(f, "           {line}")?;
                }
            }
        }
        self.errors
            .iter()
            .try_for_each(|error| writeln!(f, "ERROR    {error}"))
    }
}

/// A level of the text that is being read.
#[derive(Debug, Default)]
struct Level {
    /// How far its lines are indented.
    indent: usize,
    /// The suite's name, once known.
    name: Option<String>,
    /// The plan, once known.
    plan: Option<usize>,
    /// How many results there were.
    count: usize,
    /// Diagnostics of the test whose result comes next.
    diagnostics: Vec<String>,
    /// Where its tests begin in the results.
    first: usize,
}

/// Reads KTAP.
pub(crate) fn parse(text: &str) -> Results {
    let mut results = Results::default();
    let mut levels: Vec<Level> = Vec::new();
    for line in text.lines() {
        let content = line.trim_start();
        let indent = line.len() - content.len();
        if content.starts_with("KTAP version ") || content.starts_with("TAP version ") {
            // The text of several runs in a row: the levels that are still open have ended.
            close_to(&mut levels, indent, &mut results);
            open(&mut levels, indent, &results);
            continue;
        }
        if let Some(name) = content.strip_prefix("# Subtest: ") {
            if levels.last().is_none_or(|level| level.indent < indent) {
                // Old producers open a level without a version line.
                open(&mut levels, indent, &results);
            }
            if let Some(level) = levels.last_mut() {
                level.name = Some(name.trim().to_owned());
            }
            continue;
        }
        if let Some(plan) = content.strip_prefix("1..") {
            let plan = plan.split_whitespace().next().and_then(|n| n.parse().ok());
            if let (Some(level), Some(plan)) = (levels.last_mut(), plan) {
                if level.indent == indent {
                    level.plan = Some(plan);
                    continue;
                }
            }
        }
        if let Some((passed, rest)) = result_line(content) {
            result(&mut levels, &mut results, indent, passed, rest);
            continue;
        }
        if let Some(level) = levels.last_mut() {
            if !content.is_empty() {
                let diagnostic = content.strip_prefix("# ").unwrap_or(content);
                level.diagnostics.push(diagnostic.to_owned());
            }
        }
    }
    if levels.is_empty() {
        results.errors.push("no KTAP at all".to_owned());
    }
    while let Some(level) = levels.pop() {
        close(&level, &levels, &mut results);
    }
    results
}

/// Opens a level.
fn open(levels: &mut Vec<Level>, indent: usize, results: &Results) {
    levels.push(Level {
        indent,
        first: results.tests.len(),
        ..Level::default()
    });
}

/// Closes the levels that are indented by `indent` or more without a result of their own.
fn close_to(levels: &mut Vec<Level>, indent: usize, results: &mut Results) {
    while levels.last().is_some_and(|level| level.indent >= indent) {
        if let Some(level) = levels.pop() {
            let name = close(&level, levels, results);
            if indent > 0 {
                let error = format!("{name}: the suite ended without a result");
                results.errors.push(error);
            }
        }
    }
}

/// Splits a result line into whether it passed and what follows the number.
fn result_line(content: &str) -> Option<(bool, &str)> {
    let (passed, rest) = match content.strip_prefix("not ok") {
        Some(rest) => (false, rest),
        None => (true, content.strip_prefix("ok")?),
    };
    let rest = rest.strip_prefix(' ')?.trim_start();
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return None;
    }
    let rest = rest[digits..].trim_start();
    Some((passed, rest.strip_prefix("- ").unwrap_or(rest)))
}

/// Takes a result line.
fn result(levels: &mut Vec<Level>, results: &mut Results, indent: usize, passed: bool, rest: &str) {
    // A result closes the suite it is the result of.
    let mut closed = None;
    while levels.last().is_some_and(|level| level.indent > indent) {
        closed = levels.pop();
        if let Some(level) = &closed {
            close(level, levels, results);
        }
    }
    let number = results.tests.len();
    if levels.is_empty() {
        let error = format!("a result outside any KTAP: {rest}");
        results.errors.push(error);
        open(levels, indent, results);
    }
    let (name, directive) = match rest.split_once('#') {
        Some((name, directive)) => (name.trim(), directive.trim()),
        None => (rest.trim(), ""),
    };
    let skip_reason = directive
        .get(..4)
        .filter(|word| word.eq_ignore_ascii_case("skip"))
        .map(|_| directive[4..].trim().to_owned());
    let full = path(levels, Some(name));
    let Some(level) = levels.last_mut() else {
        return;
    };
    level.count += 1;
    let diagnostics = std::mem::take(&mut level.diagnostics).join("\n");
    let inner = closed.map(|closed| closed.first..number);
    let inner_failed = inner.clone().is_some_and(|range| {
        let mut tests = results.tests[range].iter();
        tests.any(|test| test.outcome == Outcome::Failed)
    });
    let is_suite = inner.is_some_and(|range| !range.is_empty());
    let outcome = match (&skip_reason, passed) {
        (Some(_), true) => Outcome::Skipped,
        (_, true) => Outcome::Passed,
        (_, false) => Outcome::Failed,
    };
    // A suite counts by its tests, unless it failed although they did not.
    if is_suite && (outcome != Outcome::Failed || inner_failed) {
        return;
    }
    results.tests.push(Test {
        name: full,
        outcome,
        detail: skip_reason.unwrap_or(diagnostics),
    });
}

/// Returns the names of the suites around, and `name`, joined.
fn path(levels: &[Level], name: Option<&str>) -> String {
    let suites = levels.iter().filter_map(|level| level.name.as_deref());
    match suites.chain(name).collect::<Vec<_>>().as_slice() {
        [] => "the outermost level".to_owned(),
        names => names.join("/"),
    }
}

/// Checks the plan of a level inside `levels` that has ended. Returns the level's name.
fn close(level: &Level, levels: &[Level], results: &mut Results) -> String {
    let (name, count) = (path(levels, level.name.as_deref()), level.count);
    let error = match level.plan {
        Some(plan) if plan != count => Some(format!(
            "{name}: {plan} tests were planned, {count} have a result"
        )),
        // The debugfs file of a suite has its level without a plan around it.
        None if count == 0 => Some(format!("{name}: neither a plan nor a result")),
        _ => None,
    };
    results.errors.extend(error);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the tests with their outcomes, and the errors, in a line.
    fn short(results: &Results) -> String {
        let tests = results.tests.iter();
        let tests = tests.map(|test| format!("{} {}", test.name, test.outcome));
        let all: Vec<String> = tests.chain(results.errors.iter().cloned()).collect();
        all.join(", ")
    }

    #[test]
    fn a_flat_suite() {
        let results = parse(
            "KTAP version 1\n1..3\nok 1 bare ack\n# wanted 1\n# got 2\nnot ok 2 - fin\n\
             ok 3 tls # SKIP no kTLS here\n",
        );
        assert_eq!(short(&results), "bare ack ok, fin FAILED, tls skipped");
        assert_eq!(results.tests[1].detail, "wanted 1\ngot 2");
        assert_eq!(results.tests[2].detail, "no kTLS here");
    }

    #[test]
    fn kunits_nested_suites() {
        let results = parse(
            "KTAP version 1\n\
             1..2\n    KTAP version 1\n    # Subtest: fifo\n    # module: accf_kunit\n\
             \x20   1..2\n    ok 1 empty\n    # order: EXPECTATION FAILED at fifo.rs:3\n\
             \x20   Expected 1 == 2\n    not ok 2 order\n\
             # fifo: pass:1 fail:1 skip:0 total:2\nnot ok 1 fifo\n    \
             KTAP version 1\n    # Subtest: ulp\n    1..1\n    ok 1 attach\nok 2 ulp\n",
        );
        let wanted = "fifo/empty ok, fifo/order FAILED, ulp/attach ok";
        assert_eq!(short(&results), wanted);
        assert!(results.tests[1].detail.contains("Expected 1 == 2"));
    }

    #[test]
    fn a_suite_that_fails_by_itself_counts() {
        let results = parse(
            "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: s\n    1..1\n    ok 1 a\n\
             not ok 1 s\n",
        );
        assert_eq!(short(&results), "s/a ok, s FAILED");
    }

    #[test]
    fn an_unfulfilled_plan_is_an_error() {
        let results = parse("KTAP version 1\n1..3\nok 1 a\n");
        assert_eq!(results.errors.len(), 1);
        assert!(results.errors[0].contains("3 tests were planned, 1 have"));
        let results = parse(
            "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: s\n    1..2\n    ok 1 a\n\
             ok 1 s\n",
        );
        assert!(results.errors[0].starts_with("s: 2 tests"), "{results:?}");
    }

    #[test]
    fn a_text_that_stops_is_an_error() {
        let results = parse("KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: s\n");
        assert!(!results.errors.is_empty());
    }

    #[test]
    fn no_ktap_is_an_error() {
        assert_eq!(parse("").errors, ["no KTAP at all"]);
        assert_eq!(parse("Segmentation fault\n").errors, ["no KTAP at all"]);
    }

    #[test]
    fn texts_in_a_row_add_up() {
        // /sys/kernel/debug/kunit/*/results, one after the other.
        let results = parse(
            "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: a\n    1..1\n    ok 1 x\n\
             ok 1 a\nKTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: b\n    1..1\n    \
             ok 1 y\nok 1 b\n",
        );
        assert_eq!(short(&results), "a/x ok, b/y ok");
    }
}
