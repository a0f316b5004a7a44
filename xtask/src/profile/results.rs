// SPDX-License-Identifier: MIT OR Apache-2.0
//! The results of the profile as JSON, as Markdown, and for a terminal.

use std::collections::{BTreeMap, BTreeSet};

use accf_bench::Listener;
use serde::Serialize;

use super::counts::{Cost, Counts};
use super::symbols::Function;
use super::MODULE;
use crate::report::{Document, Section};
use crate::table::{fixed, numeric, words, Column, Kind, Table};

/// The version of `report.json`.
const SCHEMA: u32 = 1;

/// Functions with fewer instructions per connection, or a smaller difference, have no row.
const WORTH_A_ROW: f64 = 1.0;

/// The number of rows of a table in the terminal.
const SHOWN: usize = 30;

/// Explains the numbers.
const NOTE: &str = "Instructions of one connection, without the client's own: the mean of all \
    connections. Each function's are its own, not those of the functions it calls. A string \
    instruction with a repeat prefix counts once for each byte or word, so memset and memcpy weigh \
    more here than on a real processor. Timers and RCU callbacks hit one listener a bit more than \
    another, by chance.";

/// The cost of each function at each listener.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema: u32,
    kernel: String,
    sections: Vec<Part>,
}

/// One listener in one case; all numbers are per connection.
#[derive(Debug, Serialize)]
pub(crate) struct Part {
    listener: Listener,
    case: String,
    connections: u32,
    /// All instructions.
    instructions: f64,
    /// Instructions of the server's program.
    programs: f64,
    /// Instructions of the kernel and its modules.
    kernel: f64,
    /// Instructions of the module's functions.
    module: f64,
    /// The kernel's functions, the most expensive first.
    functions: Vec<Row>,
}

/// A function's cost for one connection.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    #[serde(flatten)]
    function: Function,
    /// Instructions of the function itself.
    instructions: f64,
    /// How often the function was called.
    calls: f64,
}

/// A function's costs at two listeners, for one connection.
#[derive(Clone, Debug, PartialEq)]
struct Difference<'a> {
    function: &'a Function,
    /// Additional instructions at the first listener.
    more: f64,
    instructions: [f64; 2],
    calls: [f64; 2],
}

impl Part {
    /// Returns the costs of a section.
    pub(crate) fn new(section: &accf_bench::Section, counts: &Counts) -> Self {
        let each = |sum: u64| sum as f64 / f64::from(section.connections.max(1));
        let row = |(function, cost): (&Function, &Cost)| Row {
            function: function.clone(),
            instructions: each(cost.instructions),
            calls: each(cost.calls),
        };
        let mut functions: Vec<Row> = counts.functions.iter().map(row).collect();
        functions.sort_by(|a, b| b.instructions.total_cmp(&a.instructions));
        Self {
            listener: section.listener,
            case: section.case.clone(),
            connections: section.connections,
            instructions: each(counts.total()),
            programs: each(counts.programs),
            kernel: each(counts.kernel()),
            module: each(counts.module(MODULE)),
            functions,
        }
    }

    /// Returns the differences from another listener, the greatest first.
    fn differences<'a>(&'a self, other: &'a Self) -> Vec<Difference<'a>> {
        let by_function = |part: &'a Self| -> BTreeMap<&'a Function, &'a Row> {
            let rows = part.functions.iter();
            rows.map(|row| (&row.function, row)).collect()
        };
        let both = [by_function(self), by_function(other)];
        let all: BTreeSet<&Function> = both.iter().flat_map(BTreeMap::keys).copied().collect();
        let difference = |function| {
            let of = |value: fn(&Row) -> f64| {
                both.each_ref()
                    .map(|rows| rows.get(function).map_or(0.0, |row| value(row)))
            };
            let instructions = of(|row| row.instructions);
            let [here, there] = instructions;
            Difference {
                function,
                more: here - there,
                instructions,
                calls: of(|row| row.calls),
            }
        };
        let mut differences: Vec<_> = all.into_iter().map(difference).collect();
        differences.retain(|it| it.more.abs() >= WORTH_A_ROW);
        differences.sort_by(|a, b| b.more.abs().total_cmp(&a.more.abs()));
        differences
    }
}

impl Report {
    /// Returns the report on these sections.
    pub(crate) fn new(kernel: String, sections: Vec<Part>) -> Self {
        Self {
            schema: SCHEMA,
            kernel,
            sections,
        }
    }

    /// Returns the cases in the order in which they were profiled.
    fn cases(&self) -> Vec<&str> {
        let mut cases = Vec::new();
        for part in &self.sections {
            if !cases.contains(&part.case.as_str()) {
                cases.push(&part.case);
            }
        }
        cases
    }

    /// Returns the section of a listener in a case.
    fn part(&self, case: &str, listener: Listener) -> Option<&Part> {
        let mut parts = self.sections.iter();
        parts.find(|part| part.case == case && part.listener == listener)
    }

    /// Returns what the filter's section in a case is compared with; the listener that must cost
    /// the same comes first.
    fn comparisons(&self, case: &str) -> Vec<(&Part, &Part)> {
        let others = if case.ends_with("same_trip") {
            [Listener::Plain, Listener::DeferAccept]
        } else {
            [Listener::DeferAccept, Listener::Plain]
        };
        let filter = self.part(case, Listener::Dataready);
        let others = others.into_iter().filter_map(|it| self.part(case, it));
        others.filter_map(|other| Some((filter?, other))).collect()
    }

    /// Returns the report for a terminal: the first comparison of each case, without the smallest
    /// differences.
    pub(crate) fn shown(&self) -> Document {
        let sections = self.cases().into_iter().flat_map(|case| {
            let comparisons = self.comparisons(case).into_iter().take(1);
            let comparisons = comparisons.map(|(filter, other)| comparison(filter, other, SHOWN));
            [self.summary(case)].into_iter().chain(comparisons)
        });
        self.document(sections.collect())
    }

    /// Returns the complete report.
    pub(crate) fn all(&self) -> Document {
        let sections = self.cases().into_iter().flat_map(|case| {
            let comparisons = self.comparisons(case).into_iter();
            let comparisons =
                comparisons.map(|(filter, other)| comparison(filter, other, usize::MAX));
            let functions = self.part(case, Listener::Dataready).map(functions);
            [self.summary(case)]
                .into_iter()
                .chain(comparisons)
                .chain(functions)
        });
        self.document(sections.collect())
    }

    /// Returns a report with these sections.
    fn document(&self, sections: Vec<Section>) -> Document {
        Document {
            title: "Instructions of a connection by function".to_owned(),
            summary: format!("Linux {}. {NOTE}", self.kernel),
            sections,
            ..Document::default()
        }
    }

    /// Returns the table of a case's listeners.
    fn summary(&self, case: &str) -> Section {
        let parts = self.sections.iter().filter(|part| part.case == case);
        let rows = parts.map(|part| {
            let mut row = vec![part.listener.key().to_owned()];
            let numbers = [part.instructions, part.programs, part.kernel, part.module];
            row.extend(numbers.map(|value| fixed(value, 0)));
            row
        });
        Section::new(case, Table::new(SUMMARY, rows))
    }
}

/// The columns of a case's listeners.
const SUMMARY: [Column; 5] = [
    words("listener"),
    numeric("instructions", "instructions"),
    numeric("of the server's program", "of the\nserver"),
    numeric("of the kernel", "of the\nkernel"),
    numeric("of them accf.ko's own", "accf.ko's\nown"),
];

/// The columns of a difference; the second listener is in the heading.
const DIFFERENCES: [Column; 6] = [
    numeric("difference", "difference"),
    numeric("instructions", "instruc-\ntions"),
    numeric("at the other", "at the\nother"),
    numeric("calls", "calls"),
    numeric("at the other", "at the\nother"),
    Column::new("function", Kind::Code),
];

/// The columns of a listener's functions.
const FUNCTIONS: [Column; 3] = [
    numeric("instructions", "instructions"),
    numeric("calls", "calls"),
    Column::new("function", Kind::Code),
];

/// Returns the `most` greatest differences between two listeners of a case.
fn comparison(filter: &Part, other: &Part, most: usize) -> Section {
    let more = filter.instructions - other.instructions;
    let heading = format!(
        "{}: {} against {}: {} instructions {}",
        filter.case,
        filter.listener.key(),
        other.listener.key(),
        fixed(more.abs(), 0),
        if more < 0.0 { "fewer" } else { "more" }
    );
    let differences = filter.differences(other).into_iter().take(most);
    let rows = differences.map(|it| {
        let [here, there] = it.instructions;
        let mut row: Vec<String> = [it.more, here, there].map(|sum| fixed(sum, 0)).to_vec();
        row.extend(it.calls.map(|calls| fixed(calls, 2)));
        row.push(it.function.to_string());
        row
    });
    Section::new(heading, Table::new(DIFFERENCES, rows))
}

/// Returns the functions of a listener.
fn functions(part: &Part) -> Section {
    let rows = part.functions.iter();
    let rows = rows.take_while(|row| row.instructions >= WORTH_A_ROW);
    let rows = rows.map(|row| {
        let (instructions, calls) = (fixed(row.instructions, 0), fixed(row.calls, 2));
        vec![instructions, calls, row.function.to_string()]
    });
    let heading = format!("{}: all of {}", part.case, part.listener.key());
    Section::new(heading, Table::new(FUNCTIONS, rows))
}
