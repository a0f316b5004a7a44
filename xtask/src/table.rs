// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables and numbers for people, on a terminal and in Markdown.

use std::fmt;

use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, LineStyle, Table, TableStyle};
use console::{style, StyledObject};

/// A line below the header, and one at each end.
const RULES: TableStyle = TableStyle::new()
    .top_border(LineStyle::none().fill('─').junction('─'))
    .header_separator(LineStyle::none().fill('─').junction('─'))
    .bottom_border(LineStyle::none().fill('─').junction('─'));

/// Tables are not made narrower than this.
const NARROWEST: usize = 100;

/// Where output goes, and what it can show.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    /// Colours are wanted.
    pub(crate) colours: bool,
    /// Characters in a line.
    pub(crate) width: usize,
}

impl Screen {
    /// The terminal behind standard output; without one, no colours and a usual width.
    pub(crate) fn stdout() -> Self {
        let term = console::Term::stdout();
        let colours = term.is_term() && console::colors_enabled();
        let width = if term.is_term() {
            usize::from(term.size().1)
        } else {
            120
        };
        Self { colours, width }
    }

    /// Has `words` look as `how` says, where colours are wanted.
    pub(crate) fn paint<'a>(
        self,
        words: &'a str,
        how: impl Fn(StyledObject<&'a str>) -> StyledObject<&'a str>,
    ) -> String {
        how(style(words).force_styling(self.colours)).to_string()
    }
}

/// A column of a table for people.
pub(crate) struct Column {
    /// Its title in words.
    pub(crate) title: &'static str,
    /// The same in two short lines, for a terminal.
    pub(crate) short: &'static str,
    /// Its cells are numbers, which stand to the right.
    pub(crate) numeric: bool,
}

/// A column of words.
pub(crate) const fn words(title: &'static str) -> Column {
    Column {
        title,
        short: title,
        numeric: false,
    }
}

/// A column of numbers: its title, and the same in two short lines.
pub(crate) const fn numeric(title: &'static str, short: &'static str) -> Column {
    Column {
        title,
        short,
        numeric: true,
    }
}

/// An empty table as wide as the screen.
fn empty_table(screen: Screen) -> Table {
    let mut table = Table::new();
    table
        .load_style(RULES)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(u16::try_from(screen.width.max(NARROWEST)).unwrap_or(u16::MAX));
    table
}

/// A table of `rows` for a terminal.
pub(crate) fn table(screen: Screen, columns: &[Column], rows: Vec<Vec<String>>) -> String {
    let mut table = empty_table(screen);
    table.set_header(columns.iter().map(|column| cell(column.short, column)));
    for row in rows {
        table.add_row(
            row.into_iter()
                .zip(columns)
                .map(|(words, column)| cell(&words, column)),
        );
    }
    narrow(&mut table);
    table.trim_fmt() + "\n"
}

/// A cell of a column.
fn cell(words: &str, column: &Column) -> Cell {
    let alignment = if column.numeric {
        CellAlignment::Right
    } else {
        CellAlignment::Left
    };
    Cell::new(words).set_alignment(alignment)
}

/// Something that held or did not.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    /// It held.
    pub(crate) pass: bool,
    /// What it is about, as a sentence.
    pub(crate) says: String,
    /// What was found, in words.
    pub(crate) found: String,
    /// What it has to be, in words.
    pub(crate) must_be: String,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            says,
            found,
            must_be,
            ..
        } = self;
        write!(f, "{says}: found {found}, must be {must_be}")
    }
}

/// Verdicts under the name `what`, one per row; those that fail stand out.
pub(crate) fn verdicts(
    screen: Screen,
    what: &str,
    verdicts: impl IntoIterator<Item = Verdict>,
) -> String {
    let mut table = empty_table(screen);
    table.set_header(["", what, "found", "must be"]);
    if screen.colours {
        table.enforce_styling();
    }
    for verdict in verdicts {
        let (word, colour) = if verdict.pass {
            ("pass", Color::Green)
        } else {
            ("FAIL", Color::Red)
        };
        let word = Cell::new(word);
        table.add_row([
            if screen.colours {
                word.fg(colour)
            } else {
                word
            },
            Cell::new(verdict.says),
            Cell::new(verdict.found).set_alignment(CellAlignment::Right),
            Cell::new(verdict.must_be),
        ]);
    }
    narrow(&mut table);
    table.trim_fmt() + "\n"
}

/// One blank between columns, so that the widest table fits an ordinary terminal.
fn narrow(table: &mut Table) {
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
}

/// Running text, in lines that are easy to read.
pub(crate) fn prose(words: &str, screen: Screen) -> String {
    textwrap::fill(words, screen.width.min(NARROWEST)) + "\n"
}

/// A table in Markdown.
pub(crate) fn markdown_table(columns: &[Column], rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
    let mut out = line(columns.iter().map(|column| column.title).collect());
    out += &line(
        columns
            .iter()
            .map(|c| if c.numeric { "---:" } else { "---" })
            .collect(),
    );
    for row in rows {
        out += &line(row.iter().map(String::as_str).collect());
    }
    out
}

/// A number as people write it: no more digits than it is worth, thousands set apart.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size < 100.0 && value.fract() != 0.0 => 1,
        _ => 0,
    };
    fixed(value, decimals)
}

/// A number with so many decimals, thousands set apart.
pub(crate) fn fixed(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return "unknown".into();
    }
    let plain = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = plain.split_once('.').unwrap_or((plain.as_str(), ""));
    let mut out = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    if !fraction.is_empty() {
        out = format!("{out}.{fraction}");
    }
    let negative = value < 0.0 && plain.chars().any(|c| ('1'..='9').contains(&c));
    if negative {
        format!("−{out}")
    } else {
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        let cases = [
            (0.0, "0"),
            (1.0, "1"),
            (0.04, "0.0"),
            (-0.04, "0.0"),
            (40.83, "40.8"),
            (-1.26, "−1.3"),
            (244.0, "244"),
            (244.4, "244"),
            (6081.5, "6,082"),
            (-6019.6, "−6,020"),
            (1234567.0, "1,234,567"),
            (f64::NAN, "unknown"),
        ];
        for (value, wanted) in cases {
            assert_eq!(number(value), wanted, "{value}");
        }
    }
}
