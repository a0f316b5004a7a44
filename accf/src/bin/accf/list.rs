// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes the table of listeners.

use accf::{Config, Listener, State};
use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, TableStyle};

use crate::text::{address, max_parked, number, timeout};

/// A style with a line under the heading and no other lines.
const RULES: TableStyle =
    TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// The name of each column, and whether it holds numbers.
const COLUMNS: [(&str, bool); 10] = [
    ("listener", false),
    ("filter", false),
    ("timeout", true),
    ("then", false),
    ("parked", true),
    ("at most", true),
    ("ever", true),
    ("released", true),
    ("timed out", true),
    ("bypassed", true),
];

/// Writes one line for each listener. `Dynamic` fits the table into the terminal, if there is one.
pub(crate) fn render(listeners: &[&Listener], arrangement: ContentArrangement) -> String {
    let mut table = Table::new();
    table
        .load_style(RULES)
        .set_content_arrangement(arrangement)
        .set_header(COLUMNS.map(|(name, _)| name));
    for (column, (_, is_number)) in table.column_iter_mut().zip(COLUMNS) {
        if is_number {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for listener in listeners {
        table.add_row(row(listener));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Returns the cells of one listener.
fn row(listener: &Listener) -> [String; COLUMNS.len()] {
    let (config, stats) = (&listener.config, &listener.stats);
    let timed_out = [
        stats.timeout_accept,
        stats.timeout_reset,
        stats.timeout_drop,
    ];
    [
        address(listener),
        listener.filter.clone(),
        timeout(config),
        config.on_timeout.to_string(),
        number(stats.parked),
        at_most(config),
        number(stats.parked_total),
        number(stats.released_data.saturating_add(stats.released_fin)),
        number(timed_out.iter().fold(0, |sum, n| sum.saturating_add(*n))),
        number(stats.bypassed()),
    ]
}

/// Returns how many connections may be parked: none, if parking is paused.
fn at_most(config: &Config) -> String {
    match config.state {
        State::Paused => "paused".to_owned(),
        _ => max_parked(config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn each_listener_has_one_line() {
        let (unused, busy, paused) = (sample::unused(), sample::busy(), sample::paused());
        let text = render(&[&unused, &busy, &paused], ContentArrangement::Disabled);
        let expected = [
            concat!(
                " listener        filter      timeout   then     parked   at most    ever",
                "   released   timed out   bypassed",
            ),
            &"─".repeat(107),
            concat!(
                " 192.0.2.1:443   dataready      none   accept        0   default       0",
                "          0           0          0",
            ),
            concat!(
                " [::]:8080       dataready     1.5 s   reset        12     2,000   1,366",
                "      1,107         180        225",
            ),
            concat!(
                " 192.0.2.1:443   dataready      none   accept        0    paused       0",
                "          0           0          4",
            ),
            "",
        ]
        .join("\n");
        assert_eq!(text, expected, "{text}");
    }
}
