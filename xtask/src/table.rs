// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes tables and numbers for a terminal and in Markdown.

use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, LineStyle, TableStyle};
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
    /// Whether to use colours.
    pub(crate) colours: bool,
    /// The number of characters in a line.
    pub(crate) width: usize,
}

impl Screen {
    /// No terminal.
    pub(crate) const PLAIN: Self = Self {
        colours: false,
        width: 120,
    };

    /// Returns the terminal of standard output, if it is one.
    pub(crate) fn stdout() -> Self {
        let term = console::Term::stdout();
        if !term.is_term() {
            return Self::PLAIN;
        }
        Self {
            colours: console::colors_enabled(),
            width: usize::from(term.size().1),
        }
    }

    /// Styles `words` if colours are used.
    pub(crate) fn paint<'a>(
        self,
        words: &'a str,
        how: impl Fn(StyledObject<&'a str>) -> StyledObject<&'a str>,
    ) -> String {
        how(style(words).force_styling(self.colours)).to_string()
    }
}

/// How the cells of a column are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Words, on the left.
    Words,
    /// Numbers, on the right.
    Numbers,
    /// [`HOLDS`] or [`FAILS`], in green or red; Markdown has the latter in bold.
    Verdicts,
    /// Names from a program, which Markdown shows as code.
    Code,
    /// The same, in Markdown only.
    CodeInMarkdown,
}

/// The cell of a claim that holds.
pub(crate) const HOLDS: &str = "holds";
/// The cell of a claim that does not hold.
pub(crate) const FAILS: &str = "FAILS";

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    /// The title.
    title: &'static str,
    /// The title in two short lines, for a terminal.
    short: &'static str,
    kind: Kind,
}

impl Column {
    /// Returns a column of cells of this kind.
    pub(crate) const fn new(title: &'static str, kind: Kind) -> Self {
        Self {
            title,
            short: title,
            kind,
        }
    }

    /// Sets another title for a terminal.
    pub(crate) const fn short(self, short: &'static str) -> Self {
        Self { short, ..self }
    }
}

/// Returns a column of words.
pub(crate) const fn words(title: &'static str) -> Column {
    Column::new(title, Kind::Words)
}

/// Returns a column of numbers with its title, and the title in two short lines.
pub(crate) const fn numeric(title: &'static str, short: &'static str) -> Column {
    Column::new(title, Kind::Numbers).short(short)
}

/// A table for a terminal and for Markdown.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Returns a table. Each row has a cell for each column.
    pub(crate) fn new(
        columns: impl Into<Vec<Column>>,
        rows: impl IntoIterator<Item = Vec<String>>,
    ) -> Self {
        Self {
            columns: columns.into(),
            rows: rows.into_iter().collect(),
        }
    }

    /// Leaves out the columns that have only empty cells.
    pub(crate) fn without_empty_columns(self) -> Self {
        let Self { columns, rows } = self;
        let used: Vec<bool> = (0..columns.len())
            .map(|index| {
                rows.iter()
                    .any(|row| row.get(index).is_some_and(|cell| !cell.is_empty()))
            })
            .collect();
        Self {
            columns: only(columns, &used),
            rows: rows.into_iter().map(|row| only(row, &used)).collect(),
        }
    }

    /// Writes the table for a terminal, as wide as the screen but at least [`NARROWEST`].
    pub(crate) fn terminal(self, screen: Screen) -> String {
        let mut table = comfy_table::Table::new();
        table
            .load_style(RULES)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(u16::try_from(screen.width.max(NARROWEST)).unwrap_or(u16::MAX));
        if screen.colours {
            table.enforce_styling();
        }
        let shown = self.columns.iter();
        let shown = shown.map(|column| column.kind != Kind::CodeInMarkdown);
        let shown: Vec<bool> = shown.collect();
        let columns = only(self.columns, &shown);
        let titles = columns
            .iter()
            .map(|column| align(column.short, column.kind));
        table.set_header(titles);
        for row in self.rows {
            let cells = only(row, &shown).into_iter().zip(&columns);
            table.add_row(cells.map(|(words, column)| {
                // A number stays on the line of its unit.
                let cell = align(words.replace(" %", "\u{a0}%"), column.kind);
                match column.kind {
                    Kind::Verdicts if screen.colours && words == HOLDS => cell.fg(Color::Green),
                    Kind::Verdicts if screen.colours => cell.fg(Color::Red),
                    _ => cell,
                }
            }));
        }
        // One blank between columns, so that the widest table fits an ordinary terminal.
        for column in table.column_iter_mut() {
            column.set_padding((0, 1));
        }
        table.trim_fmt() + "\n"
    }

    /// Writes the table in Markdown.
    pub(crate) fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let titles = self.columns.iter().map(|column| column.title.to_owned());
        let rules = self.columns.iter().map(|column| match column.kind {
            Kind::Numbers => "---:".to_owned(),
            _ => "---".to_owned(),
        });
        let mut out = line(titles.collect()) + &line(rules.collect());
        for row in &self.rows {
            let cells = row.iter().zip(&self.columns).map(|(words, column)| {
                // A cell is one line.
                let words = words.replace('\n', "<br>").replace('|', "\\|");
                match column.kind {
                    Kind::Verdicts if words == FAILS => format!("**{words}**"),
                    Kind::Code | Kind::CodeInMarkdown => format!("`{words}`"),
                    _ => words,
                }
            });
            out += &line(cells.collect());
        }
        out
    }
}

/// Returns the items whose place in `kept` is true.
fn only<T>(items: Vec<T>, kept: &[bool]) -> Vec<T> {
    let pairs = items.into_iter().zip(kept);
    pairs
        .filter(|(_, kept)| **kept)
        .map(|(item, _)| item)
        .collect()
}

/// Returns a cell of a terminal's table.
fn align(words: impl ToString, kind: Kind) -> Cell {
    Cell::new(words).set_alignment(match kind {
        Kind::Numbers => CellAlignment::Right,
        _ => CellAlignment::Left,
    })
}

/// Wraps running text.
pub(crate) fn prose(words: &str, screen: Screen) -> String {
    textwrap::fill(words, screen.width.min(NARROWEST)) + "\n"
}

/// Writes a number with one decimal if it is below 100, and with thousands separated by commas.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size < 100.0 && value.fract() != 0.0 => 1,
        _ => 0,
    };
    fixed(value, decimals)
}

/// Writes a number with `decimals` decimals, and with thousands separated by commas.
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

/// Writes a fraction in percent, with up to two decimals.
pub(crate) fn percent(part: f64) -> String {
    let percent = part.abs() * 100.0;
    if percent > 0.0 && percent < 0.005 {
        return "under 0.01 %".into();
    }
    let decimals = match percent {
        size if size >= 100.0 => 0,
        size if size >= 1.0 => 1,
        _ => 2,
    };
    format!("{} %", fixed(percent, decimals))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_and_grouped() {
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

    #[test]
    fn percentages_have_up_to_two_decimals() {
        for (part, words) in [
            (0.0004, "0.04 %"),
            (0.000_01, "under 0.01 %"),
            (0.0, "0.00 %"),
            (-0.012, "1.2 %"),
            (0.5, "50.0 %"),
            (12.0, "1,200 %"),
        ] {
            assert_eq!(percent(part), words);
        }
    }
}
