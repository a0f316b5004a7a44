// SPDX-License-Identifier: MIT OR Apache-2.0
//! Draws ladders for a terminal.

use accf_demo::Scenario;
use console::measure_text_width;

use super::capture::End;
use super::facts::{Facts, Findings};
use super::ms;
use super::timeline::{Arrow, Ladder, Until, QUIET_MS};
use crate::table::Screen;

/// Characters between the lifelines.
const SPAN: usize = 29;
/// Width of a ladder with its times and remarks.
const BLOCK: usize = 60;

/// Draws the ladders of one scenario, side by side if the screen is wide enough.
pub(crate) fn ladders(findings: &Findings, scenario: Scenario, screen: Screen) -> String {
    let listeners = scenario.listeners().iter();
    let facts = listeners.filter_map(|listener| findings.of(scenario, *listener));
    let blocks: Vec<Vec<String>> = facts.map(|facts| ladder(facts, screen)).collect();
    let heading = format!("({}) {}", scenario.key(), scenario.title());
    let mut out = screen.paint(&heading, |s| s.bold());
    out += "\n\n";
    for blocks in blocks.chunks((screen.width / BLOCK).max(1)) {
        for i in 0..blocks.iter().map(Vec::len).max().unwrap_or(0) {
            let mut row = String::new();
            for block in blocks {
                let cell = block.get(i).map_or("", String::as_str);
                row += cell;
                row += &" ".repeat(BLOCK.saturating_sub(measure_text_width(cell)));
            }
            out += row.trim_end();
            out.push('\n');
        }
    }
    out
}

/// One event of a ladder.
enum Event {
    Arrow(Arrow),
    Accept,
    FirstRead,
    Dropped,
    /// The client got an error.
    Error(String),
}

fn ladder(facts: &Facts, screen: Screen) -> Vec<String> {
    let ladder = Ladder::new(facts, Until::End);
    let mut events: Vec<(f64, Event)> = ladder
        .arrows
        .iter()
        .map(|arrow| (arrow.sent_ms, Event::Arrow(*arrow)))
        .collect();
    events.extend(ladder.accept_ms.map(|at| (at, Event::Accept)));
    events.extend(ladder.first_read_ms.map(|at| (at, Event::FirstRead)));
    events.extend(ladder.dropped_ms.map(|at| (at, Event::Dropped)));
    let pending_until = ladder.pending_until_ms();
    events.extend(ladder.error.map(|(at, name)| (at, Event::Error(name))));
    events.sort_by(|a, b| a.0.total_cmp(&b.0));

    let setting = format!("{:11}{}", "", facts.exchange.setting);
    let mut rows = vec![
        screen.paint(&setting, |s| s.cyan().bold()),
        format!("{:11}client{:>width$}", "", "server", width = SPAN - 2),
    ];
    let mut before: Option<f64> = None;
    let mut has_it: Option<&str> = None;
    for (at, event) in events {
        let quiet = before.map_or(0.0, |before| at - before);
        if quiet > QUIET_MS {
            let words = format!("{:.1} s of silence", quiet / 1e3);
            let holder = match (has_it, pending_until, ladder.bare_ack_ms) {
                (Some(words), _, _) => screen.paint(words, |s| s.yellow()),
                (None, Some(_), Some(_)) => screen.paint("in the kernel", |s| s.green()),
                _ => String::new(),
            };
            rows.push(format!("{:10} ┊{words:^SPAN$}┊ {holder}", ""));
        }
        before = Some(before.map_or(at, |before| before.max(at)));
        let time = format!("{:>10}", ms(at));
        match event {
            Event::Arrow(arrow) => {
                let segment = arrow.segment;
                let mut drawn = draw(&arrow.label(), segment.from, arrow.arrived_ms.is_some());
                if segment.retransmission {
                    drawn = screen.paint(&drawn, |s| s.red().bold());
                }
                rows.push(format!("{time} │{drawn}│"));
                // What comes next is silence only after the segment has arrived.
                before = before.map(|at| at.max(arrow.arrived_ms.unwrap_or(at)));
            }
            Event::Accept => {
                let accept = screen.paint("● accept()", |s| s.green().bold());
                rows.push(format!("{time} │{:SPAN$}{accept}", ""));
                if let (Some(rtt), Some(rto)) = (facts.rtt_ms(), facts.rto_ms()) {
                    let numbers = format!("RTT {}, RTO {}", ms(rtt), ms(rto));
                    rows.push(format!("{:10} │{numbers:>width$} │", "", width = SPAN - 1));
                }
                has_it = Some("worker blocked");
            }
            Event::FirstRead => {
                has_it = Some("");
            }
            Event::Dropped => {
                let dropped = screen.paint("○ dropped", |s| s.green().bold());
                rows.push(format!("{time} │{:SPAN$}{dropped}", ""));
                has_it = Some("no connection");
            }
            Event::Error(name) => {
                let error = screen.paint("✕", |s| s.red().bold());
                let words = format!(" {name}");
                rows.push(format!("{time} {error}{words:SPAN$}│"));
            }
        }
    }
    rows.push(String::new());
    rows
}

/// Draws an arrow with its label, [`SPAN`] characters wide.
fn draw(label: &str, from: End, arrives: bool) -> String {
    let label = format!(" {label} ");
    let rest = SPAN.saturating_sub(label.chars().count() + 1);
    let (left, right) = (rest / 2, rest - rest / 2);
    match (from, arrives) {
        (End::Client, true) => format!("{}{label}{}▶", "─".repeat(left), "─".repeat(right)),
        (End::Client, false) => format!("{}{label}✕{}", "─".repeat(left), " ".repeat(right)),
        (End::Server, true) => format!("◀{}{label}{}", "─".repeat(left), "─".repeat(right)),
        (End::Server, false) => format!("{}✕{label}{}", " ".repeat(left), "─".repeat(right)),
    }
}
