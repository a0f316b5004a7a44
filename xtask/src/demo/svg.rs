// SPDX-License-Identifier: MIT OR Apache-2.0
//! Draws the picture in the README: ladders of the listeners side by side.
//!
//! The colours follow the reader's preference for light or dark; the picture has its own
//! background, so it is readable on a page that ignores the preference.

use accf_demo::{HttpServer, Listener, Scenario};
use svg::node::element::{Circle, Group, Line, Path, Polygon, Rectangle, Style, Text, Title, SVG};
use svg::node::Text as Characters;
use svg::Node;

use super::capture::{End, Flags};
use super::checks::bound;
use super::facts::{Facts, Findings};
use super::ms;
use super::timeline::{Arrow, Ladder, Scale, Until, QUIET_MS};
use crate::report::LICENCE;

const WIDTH: f64 = 1200.0;
/// Room for the time axis.
const AXIS: f64 = 96.0;
const RIGHT: f64 = 20.0;
/// The width of all columns of a panel.
const COLUMNS: f64 = WIDTH - AXIS - RIGHT;
const MARGIN_MS: f64 = 9.0;
/// Height of a cut.
const GAP: f64 = 58.0;
/// Height of a line of numbers.
const ROW: f64 = 22.0;
const TITLE: f64 = 96.0;
const HEAD: f64 = 92.0;
/// Room below the numbers.
const FOOT: f64 = 34.0;
const LEGEND: f64 = 98.0;

const STYLE: &str = "
text { font-family: system-ui, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif; }
text { font-size: 15px; }
.page { fill: #ffffff; stroke: #d0d7de; }
.ink { fill: #1f2328; }
.soft { fill: #59636e; }
.warn { fill: #b35900; }
.good { fill: #1a7f37; }
.title { font-size: 22px; font-weight: 700; }
.scene { font-size: 18px; font-weight: 700; }
.name { font-size: 17px; font-weight: 700; }
.bold { font-weight: 700; }
.small { font-size: 13.5px; }
.mono { font-family: ui-monospace, SFMono-Regular, Menlo, 'DejaVu Sans Mono', monospace; }
.mono { font-size: 14px; }
.mono.narrow { font-size: 12px; }
.panel { fill: #f6f8fa; }
.rule { stroke: #d0d7de; stroke-width: 1; fill: none; }
.grid { stroke: #d8dee4; stroke-width: 1; stroke-dasharray: 2 5; }
.life { stroke: #59636e; stroke-width: 2; }
.cut { fill: #eaeef2; }
.zigzag { stroke: #8c959f; stroke-width: 1.5; fill: none; }
.arrow { stroke: #0969da; stroke-width: 2; fill: none; }
.arrow-tip { fill: #0969da; }
.again { stroke: #d1242f; stroke-width: 2.5; fill: none; }
.again-tip, .again-text { fill: #d1242f; }
.again-text { font-weight: 700; }
.dropped { fill: #f6f8fa; stroke: #1a7f37; stroke-width: 2.5; }
.error { stroke: #d1242f; stroke-width: 3; fill: none; }
.idle { fill: #f0883e; }
.pending { fill: #dafbe1; stroke: #1a7f37; stroke-width: 1.5; }
.accept { fill: #1a7f37; stroke: #ffffff; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117; stroke: #30363d; }
.ink { fill: #e6edf3; }
.soft { fill: #9198a1; }
.warn { fill: #f0a95c; }
.good { fill: #56d364; }
.panel { fill: #151b23; }
.rule { stroke: #30363d; }
.grid { stroke: #2a313c; }
.life { stroke: #9198a1; }
.cut { fill: #1c2430; }
.zigzag { stroke: #656c76; }
.arrow { stroke: #4493f8; }
.arrow-tip { fill: #4493f8; }
.again { stroke: #ff6a69; }
.again-tip, .again-text { fill: #ff6a69; }
.idle { fill: #c9691c; }
.pending { fill: #12341f; stroke: #3fb950; }
.accept { fill: #3fb950; stroke: #0d1117; }
.dropped { fill: #151b23; stroke: #3fb950; }
.error { stroke: #ff6a69; }
}
";

/// The layout of a column.
#[derive(Clone, Copy, Debug)]
struct Layout {
    width: f64,
    /// The lifelines, from the column's left edge.
    client: f64,
    server: f64,
    /// The height of a millisecond.
    per_ms: f64,
    /// The class of the labels of arrows.
    label: &'static str,
}

impl Layout {
    /// The layout of three columns, with room for words beside each ladder.
    const WIDE: Self = Self {
        width: COLUMNS / 3.0,
        client: 44.0,
        server: 218.0,
        per_ms: 2.3,
        label: "mono",
    };

    /// The layout of five columns.
    const NARROW: Self = Self {
        width: COLUMNS / 5.0,
        client: 16.0,
        server: 124.0,
        per_ms: 1.7,
        label: "mono narrow",
    };

    fn of(columns: usize) -> Self {
        match columns {
            ..=3 => Self::WIDE,
            _ => Self::NARROW,
        }
    }

    fn is_narrow(self) -> bool {
        self.width < Self::WIDE.width
    }
}

/// Draws the scenarios (a) and (d) as ladders, and the outcomes of the requests of (c).
pub(crate) fn render(findings: &Findings) -> String {
    let mut body = Group::new();
    let mut y = TITLE;
    let panels = [
        scene(findings, Scenario::Rfc793),
        scene(findings, Scenario::Silent),
        load_balancer(findings),
    ];
    for (panel, height) in panels {
        body = body.add(panel.set("transform", format!("translate(0 {y:.1})")));
        y += height;
    }
    body = body.add(legend().set("transform", format!("translate(0 {y:.1})")));
    let height = y + LEGEND;

    let page = rect("page", (0.5, 0.5), (WIDTH - 1.0, height - 1.0), 10.0);
    let path = findings.path_rtt_ms().map_or_else(String::new, |rtt| {
        format!(
            "Measured on Linux {} over a path with {} of round-trip time. Time runs downward, to \
             scale; silence is cut out.",
            findings.guest.kernel_release,
            ms(rtt)
        )
    });
    let picture = SVG::new()
        .set("viewBox", format!("0 0 {WIDTH} {height:.0}"))
        .set("width", WIDTH)
        .set("height", format!("{height:.0}"))
        .set("role", "img")
        .add(Title::new(
            "What a silent TCP client meets, for several kinds of listener",
        ))
        .add(Style::new(STYLE))
        .add(page)
        .add(text(
            "ink title",
            28.0,
            42.0,
            "A client that connects now and speaks later",
        ))
        .add(text("soft", 28.0, 70.0, path))
        .add(body);
    format!("{LICENCE}{picture}\n")
}

/// Draws a scenario: a panel with a time axis and its columns. Returns it with its height.
fn scene(findings: &Findings, scenario: Scenario) -> (Group, f64) {
    let columns: Vec<(&Facts, Ladder)> = scenario
        .listeners()
        .iter()
        .filter_map(|listener| findings.of(scenario, *listener))
        .map(|facts| (facts, Ladder::new(facts, Until::Answer)))
        .collect();
    let layout = Layout::of(columns.len());
    let rows = columns.iter().map(|(f, _)| numbers(f, findings).len());
    let foot = FOOT + ROW * rows.max().unwrap_or(0) as f64;
    let scale = Scale::new(
        columns.iter().flat_map(|(_, ladder)| ladder.instants()),
        QUIET_MS,
        layout.per_ms,
        MARGIN_MS,
        GAP,
    );
    let (top, bottom) = (HEAD, HEAD + scale.height());
    let heading = match scenario {
        Scenario::Rfc793 => {
            "The client connects, is silent for six seconds, then sends its request"
        }
        Scenario::Silent => {
            "The client stays silent beyond the deadline of 5 s, then sends its request if it is \
             still connected"
        }
        other => other.title(),
    };
    let mut g = panel(bottom + foot, heading);

    // Cuts, below everything else.
    for pair in scale.stretches.windows(2) {
        let [before, after] = pair else { continue };
        let (from, to) = (top + before.y.1, top + after.y.0);
        let size = (WIDTH - AXIS - RIGHT - 8.0, to - from - 16.0);
        g.append(rect("cut", (AXIS, from + 8.0), size, 0.0));
        for edge in [from + 8.0, to - 8.0] {
            g.append(zigzag(AXIS, WIDTH - RIGHT - 8.0, edge));
        }
        let silence = after.ms.0 - before.ms.1 + 2.0 * MARGIN_MS;
        let (label, y) = (format!("{:.1} s", silence / 1e3), (from + to) / 2.0 + 5.0);
        g.append(end_text("soft bold", AXIS - 12.0, y, label));
    }
    // The time axis.
    for stretch in &scale.stretches {
        let inner = (stretch.ms.0 + MARGIN_MS, stretch.ms.1 - MARGIN_MS);
        for tick in ticks(inner.0, inner.1) {
            let y = top + scale.y(tick);
            g.append(line("grid", (AXIS, y), (WIDTH - RIGHT - 8.0, y)));
            let label = if tick < 1e3 {
                format!("{tick:.0} ms")
            } else {
                format!("{:.2} s", tick / 1e3)
            };
            g.append(end_text("soft small", AXIS - 12.0, y + 5.0, label));
        }
    }
    for (i, (facts, ladder)) in columns.iter().enumerate() {
        let x = AXIS + layout.width * i as f64;
        if i > 0 {
            let ends = (46.0, bottom + foot - 24.0);
            g.append(line("rule", (x - 4.0, ends.0), (x - 4.0, ends.1)));
        }
        let rows = numbers(facts, findings);
        column(
            &mut g,
            (x, layout),
            (facts, ladder),
            &scale,
            (top, bottom),
            rows,
        );
    }
    (g, bottom + foot)
}

/// Draws the ladder of one listener.
fn column(
    g: &mut Group,
    (x, layout): (f64, Layout),
    (facts, ladder): (&Facts, &Ladder),
    scale: &Scale,
    (top, bottom): (f64, f64),
    rows: Vec<Row>,
) {
    let (client, server) = (x + layout.client, x + layout.server);
    let y = |ms: f64| top + scale.y(ms);
    let listener = facts.exchange.listener;

    let name = match layout.is_narrow() {
        true => listener.full_title(),
        false => listener.title(),
    };
    g.append(text("ink name", x + 12.0, 60.0, name));
    g.append(middle_text("soft small", client, top - 8.0, "client"));
    g.append(middle_text("soft small", server, top - 8.0, "server"));
    for life in [client, server] {
        g.append(line("life", (life, top), (life, bottom)));
    }

    // The bars between the bare ACK and the first byte to read.
    let bar = |class: &str, from: f64, to: f64| {
        let size = (9.0, (to - from).max(0.0));
        rect(class, (server - 4.5, from), size, 3.0)
    };
    let beside = server + 12.0;
    let noticeable = |from: f64, to: f64| to - from > QUIET_MS;
    // Words are in the first of several successive cuts.
    let words = |wide: [&'static str; 2], narrow: [&'static str; 2]| match layout.is_narrow() {
        true => narrow,
        false => wide,
    };
    if let (Some(acked), Some(until)) = (ladder.bare_ack_ms, ladder.pending_until_ms()) {
        if noticeable(acked, until) {
            g.append(bar("pending", y(acked), y(until)));
            let words = words(
                ["waits in the kernel,", "no worker woken"],
                ["waits in the", "kernel"],
            );
            note(g, "good", beside, cut_after(scale, acked, top), &words);
        }
    }
    if let Some(accepted) = ladder.accept_ms {
        let until = ladder.first_read_ms.unwrap_or(f64::INFINITY);
        if noticeable(accepted, until) {
            let end = if until.is_finite() { y(until) } else { bottom };
            g.append(bar("idle", y(accepted), end));
            let words = words(
                ["worker blocked,", "nothing to read"],
                ["worker", "blocked"],
            );
            let at = cut_after(scale, accepted, top);
            if at < end {
                note(g, "warn", beside, at, &words);
            }
        }
    }

    let mut below: Option<usize> = None;
    for (i, arrow) in ladder.arrows.iter().enumerate() {
        // Two arrows in the same direction so close that their labels would touch: one above, one
        // below.
        let close = |other: Option<&Arrow>| {
            other.is_some_and(|other| {
                other.segment.from == arrow.segment.from
                    && (y(arrow.sent_ms) - y(other.sent_ms)).abs() < 24.0
            })
        };
        let under = i > 0 && close(ladder.arrows.get(i - 1)) && below != Some(i - 1);
        if under {
            below = Some(i);
        }
        draw_arrow(g, arrow, (client, server), y, layout.label, under);
    }

    for (at_ms, class, words) in [
        (ladder.accept_ms, "accept", "accept()"),
        (ladder.dropped_ms, "dropped", "dropped"),
    ] {
        if let Some(at_ms) = at_ms {
            let at = y(at_ms);
            g.append(circle(class, (server, at)));
            g.append(text("good bold", beside, at - 3.0, words));
            g.append(text("good small", beside, at + 14.0, ms(at_ms)));
        }
    }
    let mut arrows = ladder.arrows.iter().rev();
    let rst = arrows.find(|arrow| arrow.segment.flags.contains(Flags::RST));
    if let (Some((_, name)), Some(rst)) = (&ladder.error, rst) {
        let at = y(rst.arrived_ms.unwrap_or(rst.sent_ms));
        for side in [-6.0, 6.0] {
            let ends = ((client - 6.0, at - side), (client + 6.0, at + side));
            g.append(line("error", ends.0, ends.1));
        }
        g.append(text("again-text small", client + 10.0, at + 14.0, name));
    }

    // The numbers below.
    let mut row = bottom + 26.0;
    let ends = (x + 8.0, x + layout.width - 16.0);
    g.append(line("rule", (ends.0, bottom + 4.0), (ends.1, bottom + 4.0)));
    for (name, value, class) in rows {
        g.append(text("soft", x + 12.0, row, name));
        g.append(end_text(class, x + layout.width - 22.0, row, value));
        row += ROW;
    }
}

/// Draws scenario (c): a panel with a row for each server. Returns it with its height.
fn load_balancer(findings: &Findings) -> (Group, f64) {
    let height = 78.0 + 26.0 * HttpServer::ALL.len() as f64;
    let first = findings.guest.requests.first();
    let idle = first.map_or(0, |request| request.idle_ports.len());
    let heading = format!(
        "A load balancer keeps {idle} idle connections open to a one-worker server; then one real \
         request"
    );
    let mut g = panel(height, &heading);
    let width = Layout::WIDE.width;
    let mut y = 62.0;
    for server in HttpServer::ALL {
        let listeners = Scenario::LoadBalancer.listeners().iter().copied();
        for (i, listener) in listeners.enumerate() {
            let x = AXIS + width * i as f64;
            if i > 0 {
                g.append(line("rule", (x - 4.0, y - 18.0), (x - 4.0, y + 10.0)));
            }
            let Some(request) = findings.served(server, listener) else {
                continue;
            };
            let took = request.time_to_first_byte_ms;
            let value = match took {
                Some(took) => format!("answered in {}", ms(took)),
                None => format!("no answer in {} s", request.max_time_ms / 1000),
            };
            let class = judged(took.is_some_and(|took| took <= bound::FIRST_BYTE_MS));
            g.append(text("soft", x + 12.0, y, server.short_title()));
            g.append(end_text(class, x + width - 22.0, y, value));
        }
        y += 26.0;
    }
    (g, height)
}

/// A line below a column: the name, the value, and the class of a good or bad value.
type Row = (&'static str, String, &'static str);

fn judged(good: bool) -> &'static str {
    match good {
        true => "ink bold",
        false => "again-text",
    }
}

fn row(name: &'static str, value: impl Into<String>, good: bool) -> Row {
    (name, value.into(), judged(good))
}

/// Returns the numbers below a column.
fn numbers(facts: &Facts, findings: &Findings) -> Vec<Row> {
    let syn_acks = facts.syn_acks();
    let mut rows = vec![row("SYN-ACKs sent", syn_acks.to_string(), syn_acks == 1)];
    if facts.exchange.scenario == Scenario::Silent {
        rows.extend(ending(facts));
        return rows;
    }
    let idle = facts.worker_idle_ms();
    let value = match idle {
        Some(idle) => ms(idle),
        None => "until it gives up".into(),
    };
    let short = idle.is_some_and(|ms| ms < QUIET_MS);
    rows.push(row("worker blocked", value, short));
    let path = findings.path_rtt_ms().unwrap_or(f64::NAN);
    if let Some(rtt) = facts.rtt_ms() {
        let good = (rtt - path).abs() <= bound::RTT_OFF_MS;
        rows.push(row("RTT of the socket", ms(rtt), good));
    }
    let plain = findings.of(facts.exchange.scenario, Listener::Plain);
    let plain = plain.and_then(Facts::rto_ms);
    if let (Some(rto), Some(plain)) = (facts.rto_ms(), plain) {
        let good = 100.0 * (rto / plain - 1.0).abs() <= bound::RTO_OFF_PERCENT;
        rows.push(row("RTO of the socket", ms(rto), good));
    }
    rows
}

/// Returns how a silent client's connection ended.
fn ending(facts: &Facts) -> Vec<Row> {
    let listener = facts.exchange.listener;
    // In time is at the requested deadline. A plain listener has none.
    let in_time = |after: Option<f64>| match (after, facts.exchange.deadline_ms) {
        (Some(after), Some(deadline)) => (after - deadline as f64).abs() <= bound::DEADLINE_OFF_MS,
        (after, None) => after.is_some(),
        (None, _) => false,
    };
    let accepted = facts.accept_after_bare_ack_ms();
    let good = match listener {
        Listener::DatareadyReset | Listener::DatareadyDrop => accepted.is_none(),
        _ => in_time(accepted),
    };
    let value = match accepted {
        Some(after) => format!("ACK + {:.2} s", after / 1e3),
        None => "never".to_owned(),
    };
    let mut rows = vec![row("accept()", value, good)];

    let sent = facts.sent_into_silence().unwrap_or_default();
    let value = match sent.as_slice() {
        [] => "nothing".to_owned(),
        [one] => one.name().to_owned(),
        more => format!("{} segments", more.len()),
    };
    let wanted = match listener {
        Listener::DatareadyReset => {
            matches!(sent.as_slice(), [rst] if rst.flags.contains(Flags::RST))
        }
        _ => sent.is_empty(),
    };
    rows.push(row("server sent", value, wanted));

    let idle = match (accepted, facts.worker_idle_ms()) {
        (None, _) => "never".to_owned(),
        (Some(_), None) => "no end".to_owned(),
        (Some(_), Some(idle)) => format!("{:.2} s", idle / 1e3),
    };
    // The worker may wait for the rest of the client's silence after the deadline.
    let left = facts.silence_ms().unwrap_or(0.0) - facts.exchange.deadline_ms.unwrap_or(0) as f64;
    let short = |idle| idle <= left + bound::DEADLINE_OFF_MS;
    let good = facts.worker_idle_ms().is_none_or(short) && listener != Listener::Plain;
    rows.push(row("worker blocked", idle, good));

    let late = match (facts.request(), facts.exchange.client.first_byte) {
        (None, _) => "not made",
        (Some(_), Some(_)) => "answered",
        (Some(_), None) if facts.resets().next().is_some() => "RST",
        (Some(_), None) => "no answer",
    };
    rows.push(row("late request", late, late != "no answer"));
    rows
}

/// Returns the middle of the first cut after `at_ms`, or a place below `at_ms` if there is none.
fn cut_after(scale: &Scale, at_ms: f64, top: f64) -> f64 {
    let mut cuts = scale.stretches.windows(2);
    match cuts.find(|pair| pair[0].ms.1 >= at_ms) {
        Some(pair) => top + (pair[0].y.1 + pair[1].y.0) / 2.0,
        None => top + scale.y(at_ms) + 40.0,
    }
}

/// Writes a few short lines, centred on `y`.
fn note(g: &mut Group, class: &str, x: f64, y: f64, lines: &[&str]) {
    let first = y + 5.0 - 8.5 * (lines.len() as f64 - 1.0);
    for (i, words) in lines.iter().enumerate() {
        let y = first + 17.0 * i as f64;
        g.append(text(&format!("{class} small"), x, y, *words));
    }
}

fn draw_arrow(
    g: &mut Group,
    arrow: &Arrow,
    (client, server): (f64, f64),
    y: impl Fn(f64) -> f64,
    label_class: &str,
    label_below: bool,
) {
    let again = arrow.segment.retransmission;
    let (class, words) = match again {
        true => ("again", "again-text"),
        false => ("arrow", "ink"),
    };
    let (from, to) = match arrow.segment.from {
        End::Client => (client, server),
        End::Server => (server, client),
    };
    let toward = if to > from { 1.0 } else { -1.0 };
    // Lost on the way: half an arrow with a cross.
    let lost = arrow.arrived_ms.is_none();
    let (x1, y1) = (from + toward * 6.0, y(arrow.sent_ms));
    let (x2, y2) = match arrow.arrived_ms {
        Some(arrived) => (to - toward * 6.0, y(arrived)),
        None => ((from + to) / 2.0, y(arrow.sent_ms) + 20.0),
    };
    let (dx, dy) = (x2 - x1, y2 - y1);
    let length = dx.hypot(dy);
    let (ux, uy) = (dx / length, dy / length);
    g.append(line(class, (x1, y1), (x2 - 8.0 * ux, y2 - 8.0 * uy)));
    if lost {
        g.append(middle_text(words, x2, y2 + 5.0, "✕"));
    } else {
        let (bx, by) = (x2 - 11.0 * ux, y2 - 11.0 * uy);
        let sides = [
            (bx - 5.0 * uy, by + 5.0 * ux),
            (bx + 5.0 * uy, by - 5.0 * ux),
        ];
        g.append(tip(class, (x2, y2), sides));
    }
    let angle = (dy / dx).atan().to_degrees();
    let (mx, my) = ((x1 + x2) / 2.0, (y1 + y2) / 2.0);
    let shift = if label_below { 17.0 } else { -6.0 };
    let class = format!("{words} {label_class}");
    let label = middle_text(&class, 0.0, shift, arrow.label());
    let along = format!("translate({mx:.1} {my:.1}) rotate({angle:.1})");
    g.append(label.set("transform", along));
}

fn legend() -> Group {
    let mut g = Group::new();
    let y = 22.0;
    let mut x = 28.0;
    for (class, words, width) in [
        ("arrow", "segment", 134.0),
        ("again", "retransmission", 182.0),
        ("accept", "accept() returned", 164.0),
        ("dropped", "dropped", 110.0),
        ("pending", "waits in the kernel", 190.0),
        ("idle", "blocks a worker that has nothing to read", 0.0),
    ] {
        let beside = match class {
            "arrow" | "again" => {
                g.append(line(class, (x, y), (x + 30.0, y)));
                let sides = [(x + 27.0, y - 5.0), (x + 27.0, y + 5.0)];
                g.append(tip(class, (x + 38.0, y), sides));
                46.0
            }
            "accept" | "dropped" => {
                g.append(circle(class, (x + 8.0, y)));
                24.0
            }
            _ => {
                g.append(rect(class, (x, y - 5.0), (30.0, 9.0), 3.0));
                38.0
            }
        };
        g.append(text("ink small", x + beside, y + 5.0, words));
        x += width;
    }
    for (below, words) in [
        (
            33.0,
            "Both ends were captured: each arrow starts when the segment left and ends when it \
             arrived. Times count from the client’s SYN.",
        ),
        (
            55.0,
            "RTT and RTO are those of the socket that accept() returned. The RTO is how long the \
             server waits before it retransmits a lost response.",
        ),
    ] {
        g.append(text("soft small", 28.0, y + below, words));
    }
    g
}

/// Returns the background of a panel with its heading.
fn panel(height: f64, heading: &str) -> Group {
    let size = (WIDTH - 28.0, height - 14.0);
    Group::new()
        .add(rect("panel", (14.0, 0.0), size, 8.0))
        .add(text("ink scene", 28.0, 30.0, heading))
}

/// Returns round instants within `first..=last`, at the distance of lines of text.
fn ticks(first: f64, last: f64) -> Vec<f64> {
    const STEP: f64 = 20.0;
    let mut ticks = Vec::new();
    // Ticks may be within the margin.
    // `+ 0.0` turns a negative zero into zero.
    let mut tick = ((first - MARGIN_MS / 2.0) / STEP).ceil() * STEP + 0.0;
    while tick <= last + MARGIN_MS / 2.0 {
        ticks.push(tick);
        tick += STEP;
    }
    if ticks.is_empty() {
        ticks.push((first + last) / 2.0);
    }
    ticks
}

fn zigzag(from: f64, to: f64, y: f64) -> Path {
    let mut d = format!("M{from:.1} {y:.1}");
    let (mut x, mut up) = (from, true);
    while x < to {
        x = (x + 8.0).min(to);
        d += &format!(" L{x:.1} {:.1}", if up { y - 3.0 } else { y + 3.0 });
        up = !up;
    }
    Path::new().set("class", "zigzag").set("d", d)
}

fn rect(class: &str, (x, y): (f64, f64), (width, height): (f64, f64), rx: f64) -> Rectangle {
    Rectangle::new()
        .set("class", class)
        .set("x", fixed(x))
        .set("y", fixed(y))
        .set("width", fixed(width))
        .set("height", fixed(height))
        .set("rx", rx)
}

fn circle(class: &str, (x, y): (f64, f64)) -> Circle {
    Circle::new()
        .set("class", class)
        .set("cx", fixed(x))
        .set("cy", fixed(y))
        .set("r", 7)
}

/// Returns the tip of an arrow of this class.
fn tip(class: &str, end: (f64, f64), [left, right]: [(f64, f64); 2]) -> Polygon {
    let points = [end, left, right].map(|(x, y)| format!("{x:.1},{y:.1}"));
    Polygon::new()
        .set("class", format!("{class}-tip"))
        .set("points", points.join(" "))
}

fn line(class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) -> Line {
    Line::new()
        .set("class", class)
        .set("x1", fixed(x1))
        .set("y1", fixed(y1))
        .set("x2", fixed(x2))
        .set("y2", fixed(y2))
}

fn text(class: &str, x: f64, y: f64, words: impl Into<String>) -> Text {
    Text::new("")
        .set("class", class)
        .set("x", fixed(x))
        .set("y", fixed(y))
        .add(Characters::new(words.into()))
}

fn middle_text(class: &str, x: f64, y: f64, words: impl Into<String>) -> Text {
    text(class, x, y, words).set("text-anchor", "middle")
}

fn end_text(class: &str, x: f64, y: f64, words: impl Into<String>) -> Text {
    text(class, x, y, words).set("text-anchor", "end")
}

/// Writes a coordinate with one decimal, which is exact enough.
fn fixed(value: f64) -> String {
    format!("{value:.1}")
}
