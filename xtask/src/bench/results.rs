// SPDX-License-Identifier: MIT OR Apache-2.0
//! The results of the benchmarks as JSON, as Markdown, and for a terminal.

use std::collections::BTreeSet;

use accf_bench::{Bench, Listener, Measurement, Recording, Unit};
use serde::Serialize;
use serde_json::{json, Value};

use super::figures::{case_title, in_order, title, value, Comparison, Figures, Key, Statistics};
use super::plot;
use crate::report::{Document, Section};
use crate::table::{number, numeric, percent, words, Column, Table};
use crate::verdict::{self, Verdict};

/// The version of `report.json`.
const SCHEMA: u32 = 2;

/// All measurements and verdicts.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    recording: &'a Recording,
    /// The benchmarks that were requested.
    benches: &'a [Bench],
    /// The verdicts on all bars.
    pub(crate) bars: Vec<Verdict>,
    /// The comparison with another version of the module.
    before: Option<Before<'a>>,
    figures: Figures<'a>,
}

/// A measurement and its statistics.
#[derive(Debug, Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    measurement: &'a Measurement,
    #[serde(flatten)]
    statistics: Option<Statistics>,
}

/// The comparison with another version of the module.
#[derive(Debug, Serialize)]
pub(crate) struct Before<'a> {
    /// The commit and its first line.
    revision: &'a str,
    changes: Vec<Change<'a>>,
}

/// A figure of both versions.
#[derive(Debug, Serialize)]
struct Change<'a> {
    #[serde(flatten)]
    key: Key<'a>,
    unit: Unit,
    before: Statistics,
    after: Statistics,
    /// The figure after as a fraction of the figure before.
    ratio: Option<f64>,
    /// The same in words.
    change: String,
}

impl<'a> Before<'a> {
    /// Compares the costs of the filter in both recordings.
    pub(crate) fn new(revision: &'a str, before: &'a Recording, after: &Recording) -> Self {
        let figures = Figures { recording: after };
        let changes = before.measurements.iter().filter_map(|measurement| {
            let (key, unit) = (Key::of(measurement), measurement.unit);
            let counted = matches!(unit, Unit::Instructions | Unit::Bytes);
            if key.listener != Listener::Dataready || !counted {
                return None;
            }
            let before = Statistics::of(&measurement.samples)?;
            let after = figures.statistics(key).ok()?;
            let comparison = Comparison::new(&after, &before);
            Some(Change {
                key,
                unit,
                before,
                after,
                ratio: comparison.map(|comparison| comparison.ratio),
                change: comparison.map_or_else(|| "–".into(), |comparison| comparison.words()),
            })
        });
        Self {
            revision,
            changes: changes.collect(),
        }
    }

    /// Returns the table of changes; of a figure with several places it has the last one.
    fn table(&self) -> Table {
        let columns = vec![
            words("benchmark"),
            words("of dataready"),
            words(""),
            numeric("at", "at"),
            numeric("before", "before"),
            numeric("after", "after"),
            words("change"),
        ];
        let is_last = |change: &&Change<'_>| {
            let (mut all, key) = (self.changes.iter(), change.key);
            all.all(|it| it.key.anywhere() != key.anywhere() || it.key.x <= key.x)
        };
        let rows = self.changes.iter().filter(is_last).map(|change| {
            let key = change.key;
            vec![
                key.bench.key().to_owned(),
                metric_title(key.metric).to_owned(),
                case_title(key.case).to_owned(),
                key.x.map_or_else(String::new, number),
                value(change.before.median, change.unit),
                value(change.after.median, change.unit),
                change.change.clone(),
            ]
        });
        Table::new(columns, rows).without_empty_columns()
    }

    /// Returns the section of the changes.
    fn section(&self) -> Section {
        let heading = format!("Before ({}) and after", self.revision);
        Section::new(heading, self.table())
    }

    /// Returns the commit of the other version.
    fn commit(&self) -> &str {
        self.revision.split(' ').next().unwrap_or(self.revision)
    }
}

/// Returns the title of a quantity.
fn metric_title(metric: &str) -> &str {
    match metric {
        "instructions_ack" => "of them for the bare ACK",
        "instructions_request" => "of them for the request",
        "system_calls" => "system calls",
        "context_switches" => "context switches",
        "wakeups" => "wake-ups",
        "bytes" => "bytes of a parked connection",
        "park" => "instructions to park",
        "release" => "instructions to release",
        "timer" => "instructions at the deadline",
        "evict" => "instructions to park and evict",
        "sent_again" => "requests sent again",
        "last_answer" => "last response after, ms",
        "close" => "instructions of close(), for each",
        "told" => "last one told after, ms",
        "probe" => "instructions to probe",
        "answer" => "instructions for the answer",
        "latency" => "instructions to the response",
        "rto" => "RTO, ms",
        "rtt" => "RTT, ms",
        "repair" => "repaired after, ms",
        "late" => "late by, ms",
        "syn_acks" => "SYN-ACKs",
        "from_server" => "segments from the server",
        "from_client" => "segments from the client",
        other => other,
    }
}

/// The description of a benchmark.
struct About {
    /// Its heading.
    heading: &'static str,
    /// What was done and counted.
    prose: &'static str,
    /// The column of the places, if there are several.
    x: Option<Column>,
}

/// Returns the description of a benchmark.
fn about(bench: Bench) -> About {
    match bench {
        Bench::Connection => About {
            heading: "The cost of one connection",
            prose: "A server reads a request, answers and closes. One server waits with epoll, \
                    accepts until the queue is empty, and tries to read at once; the other blocks \
                    in `accept()`, and then in `read()`. The client sends its request in the \
                    segment that completes the handshake (\"with the ACK\"), or completes the \
                    handshake and pauses. The instructions of the kernel and of the server are \
                    counted, from the SYN to the last ACK, without those of the client, which \
                    builds its segments itself.",
            x: None,
        },
        Bench::Holding => About {
            heading: "The cost of a parked connection",
            prose: "Clients complete the handshake and stay silent. Their connections wait as \
                    requests that the filter has parked, as requests whose ACK `TCP_DEFER_ACCEPT` \
                    has dropped, or, at a plain listener, as accepted sockets. For several numbers \
                    of such connections, the table shows the memory of one (of the objects in \
                    use), and the instructions for its bare ACK (\"to park\"), for its request \
                    (\"to release\"; the server does not accept meanwhile), and for its deadline.",
            x: Some(numeric("idle connections", "idle")),
        },
        Bench::Interference => About {
            heading: "The cost of idle clients for active ones",
            prose: "While many clients of a server are connected and idle, others connect, one at \
                    a time, and send their request with the ACK. The listener's backlog is 128. \
                    The server uses epoll; it has accepted the idle clients of a plain listener, \
                    and waits for their requests. The instructions of the kernel and of the server \
                    are counted, from the SYN until the response has arrived.",
            x: Some(numeric("idle connections", "idle")),
        },
        Bench::Pause => About {
            heading: "After the pause",
            prose: "A client whose round-trip time is 40 ms completes the handshake and sends its \
                    request after a pause. The round-trip time that the accepted socket has \
                    measured decides how long it waits before it repairs a loss: here the first \
                    response is lost once. Linux usually repairs such a loss with a tail loss \
                    probe; with probes off, it waits for its retransmission timeout (RTO).",
            x: Some(numeric("pause, s", "pause, s")),
        },
        Bench::Deadline => About {
            heading: "How exact a deadline is",
            prose: "Clients complete the handshake and stay silent. At the deadline that the \
                    server requested, they are accepted or reset. The table shows by how many \
                    milliseconds the worst client of each round was late.",
            x: Some(numeric("deadline, ms", "deadline,\nms")),
        },
        Bench::Eviction => About {
            heading: "The cost of an eviction",
            prose: "A listener has parked as many connections as it may: one each of many \
                    addresses, and 1,000 of one more. That one opens others. The instructions are \
                    those of the bare ACK of each, which parks it, and resets or drops the oldest \
                    of the address that has the most. Addresses that share one of the module's 256 \
                    buckets count as one.",
            x: Some(numeric("sources", "sources")),
        },
        Bench::Burst => About {
            heading: "A burst",
            prose: "800 clients connect ahead of need (400 in a short run), and then all send \
                    their requests before the server gets the processor. By then the server of the \
                    plain listener has accepted them. The backlog is 128, or large enough for all; \
                    `TCP_DEFER_ACCEPT` holds no more silent clients than its backlog. A client \
                    that is not answered sends its request again after 200 ms, 600 ms, and so on. \
                    The instructions are those of the kernel and of the server, for each \
                    connection: from its SYN on, and from its request on, which is where the \
                    connections of a filtered listener are made and accepted. A server that works \
                    takes 2 ms more for each response.",
            x: None,
        },
        Bench::Close => About {
            heading: "The end of a listener",
            prose:
                "A listener with many silent clients is closed: they are in the accept queue of \
                    a plain one, and parked at a filtered one. The table shows the instructions of \
                    `close()` by the number of clients, and the time until the last of them has \
                    been told by an RST. The listener is locked for less than `close()` takes.",
            x: Some(numeric("clients", "clients")),
        },
        Bench::Probes => About {
            heading: "The cost of a probe",
            prose: "1,000 parked clients are probed five times a second, beside others that are \
                    not, and answer to each probe. The table shows the instructions to probe one, \
                    from its timer on, and those for its answer.",
            x: Some(numeric("other parked connections", "others")),
        },
        Bench::Segments => About {
            heading: "Segments",
            prose:
                "The segments of a client that connects and stays silent beyond the deadline of \
                    5 s, and of a client that connects, pauses for 3 s, sends its request, and \
                    gets the response.",
            x: None,
        },
        Bench::Others => About {
            heading: "No cost to others",
            prose: "A connection of a plain listener whose client pauses, with an epoll server: \
                    before the module is loaded, with it, and while another listener parks \
                    connections.",
            x: None,
        },
    }
}

impl<'a> Report<'a> {
    /// Puts all results together.
    pub(crate) fn new(
        recording: &'a Recording,
        benches: &'a [Bench],
        bars: Vec<Verdict>,
        before: Option<Before<'a>>,
    ) -> Self {
        Self {
            recording,
            benches,
            bars,
            before,
            figures: Figures { recording },
        }
    }

    /// Returns all numbers as JSON.
    pub(crate) fn numbers(&self) -> Value {
        let rows = self.recording.measurements.iter().map(|measurement| Row {
            measurement,
            statistics: Statistics::of(&measurement.samples),
        });
        json!({
            "schema": SCHEMA,
            "pass": verdict::all_hold(&self.bars),
            "kernel": self.recording.kernel,
            "hz": self.recording.hz,
            "rounds": self.recording.rounds,
            "short": self.recording.short,
            "benches": self.benches,
            "bars": self.bars,
            "measurements": rows.collect::<Vec<_>>(),
            "before": self.before,
        })
    }

    /// Returns the table of a benchmark.
    fn table(&self, bench: Bench) -> Table {
        if bench == Bench::Others {
            return self.others();
        }
        let x = about(bench).x;
        let mut columns = vec![words(""), words("")];
        columns.extend(x);
        let has_x = columns.len() > 2;
        columns.extend([
            numeric("plain", "plain"),
            numeric("TCP_DEFER_ACCEPT", "TCP_DEFER_\nACCEPT"),
            numeric("dataready", "dataready"),
            words("dataready against plain"),
            words("against TCP_DEFER_ACCEPT"),
        ]);
        let mut rows = Vec::new();
        let mut last = ("", "");
        for key in self.keys(bench) {
            // Words of the row above are not repeated.
            let above = std::mem::replace(&mut last, (key.metric, key.case));
            let unless = |said: bool, words: &str| match said {
                true => String::new(),
                false => words.to_owned(),
            };
            let (metric, case) = (metric_title(key.metric), case_title(key.case));
            let mut row = if has_x {
                let said = above == (key.metric, key.case);
                vec![unless(said, metric), unless(said, case)]
            } else {
                vec![unless(above.1 == key.case, case), metric.to_owned()]
            };
            if has_x {
                row.push(key.x.map_or_else(String::new, number));
            }
            row.extend(Listener::ALL.map(|listener| self.cell(key.at(listener))));
            let proportional = [
                "instructions",
                "bytes",
                "park",
                "release",
                "timer",
                "latency",
                "close",
                "instructions_request",
                "rto",
                "repair",
            ]
            .contains(&key.metric);
            row.extend([Listener::Plain, Listener::DeferAccept].map(|other| {
                let this = key.at(Listener::Dataready);
                match self.figures.compare(this, key.at(other)) {
                    Ok(comparison) if proportional => comparison.words(),
                    _ => String::new(),
                }
            }));
            rows.push(row);
        }
        Table::new(columns, rows).without_empty_columns()
    }

    /// Returns the names of a benchmark's figures without the listener, grouped by quantity and
    /// case.
    fn keys(&self, bench: Bench) -> Vec<Key<'a>> {
        let mut kinds: Vec<(&str, &str)> = Vec::new();
        let mut keys: Vec<Key<'_>> = Vec::new();
        for measurement in self.figures.of(bench) {
            let key = Key::of(measurement).at(Listener::Plain);
            if !kinds.contains(&(key.metric, key.case)) {
                kinds.push((key.metric, key.case));
            }
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let rank = |key: &Key<'_>| {
            let mut kinds = kinds.iter();
            kinds.position(|kind| *kind == (key.metric, key.case))
        };
        keys.sort_by(|a, b| {
            let places = || a.x.unwrap_or(0.0).total_cmp(&b.x.unwrap_or(0.0));
            rank(a).cmp(&rank(b)).then_with(places)
        });
        keys
    }

    /// Returns the table of the plain listeners.
    fn others(&self) -> Table {
        let columns = vec![
            words(""),
            numeric("instructions", "instructions"),
            words("against without the module"),
        ];
        let key = Key::new(Bench::Others, "instructions").at(Listener::Plain);
        let rows = self.figures.of(Bench::Others).map(|measurement| {
            let this = Key::of(measurement);
            let base = key.case("without_module");
            let change = match self.figures.compare(this, base) {
                Ok(comparison) if this != base => comparison.words(),
                _ => String::new(),
            };
            vec![
                case_title(&measurement.case).to_owned(),
                self.cell(this),
                change,
            ]
        });
        Table::new(columns, rows)
    }

    /// Writes a figure with its spread, if there is any.
    fn cell(&self, key: Key<'_>) -> String {
        let Some(measurement) = self.figures.find(key) else {
            return String::new();
        };
        let Some(all) = Statistics::of(&measurement.samples) else {
            return "–".into();
        };
        let unit = measurement.unit;
        let median = value(all.median, unit);
        let proportional = matches!(unit, Unit::Instructions | Unit::Bytes);
        let (min, max) = (value(all.min, unit), value(all.max, unit));
        match percent(all.spread) {
            _ if min == max => median,
            spread if proportional => format!("{median} ({spread})"),
            _ => format!("{median} ({min} … {max})"),
        }
    }

    /// Returns the remarks on a benchmark's figures; the same remark on several listeners appears
    /// once.
    fn notes(&self, bench: Bench) -> Vec<String> {
        let mut notes: Vec<(Vec<&str>, String)> = Vec::new();
        for listener in Listener::ALL {
            let all = self.figures.of(bench);
            let all: Vec<&Measurement> = all.filter(|it| it.listener == listener).collect();
            let mut told = BTreeSet::new();
            for note in all.iter().filter_map(|it| it.note.as_deref()) {
                if !told.insert(note) {
                    continue;
                }
                let note = format!("{}: {note}", places(&all, note));
                match notes.iter_mut().find(|(_, other)| *other == note) {
                    Some((listeners, _)) => listeners.push(title(listener)),
                    None => notes.push((vec![title(listener)], note)),
                }
            }
        }
        let write = |(listeners, note): (Vec<&str>, _)| format!("{}, {note}", listeners.join(", "));
        notes.into_iter().map(write).collect()
    }

    /// Returns the benchmarks that have figures.
    fn shown(&self) -> impl Iterator<Item = Bench> + '_ {
        let benches = self.benches.iter().copied();
        benches.filter(|bench| self.figures.of(*bench).next().is_some())
    }

    /// Describes the measurements in a few sentences.
    fn method(&self) -> String {
        let rounds = match self.recording.rounds {
            1 => "once".to_owned(),
            rounds => format!(
                "{} times, the listeners in another order each time; what is shown is the median",
                number(f64::from(rounds))
            ),
        };
        format!(
            "Linux {}, unmodified, in a virtual machine with one processor (HZ={}). Everything was \
             measured {rounds}. In brackets: the difference of the least and the greatest round, \
             if there is any; a comparison whose difference is smaller says so instead of a \
             number.",
            self.recording.kernel, self.recording.hz
        )
    }

    /// Returns the section of a benchmark.
    fn section(&self, bench: Bench) -> Section {
        let About { heading, prose, .. } = about(bench);
        Section {
            intro: format!("{prose}\n\n![{heading}]({})", plot::file(bench)),
            notes: self.notes(bench),
            ..Section::new(heading, self.table(bench))
        }
    }

    /// Returns the report.
    pub(crate) fn document(&self) -> Document {
        let sections = self.shown().map(|bench| self.section(bench));
        let before = self.before.as_ref().map(Before::section);
        let short = match self.recording.short {
            true => " This was a short run: fewer connections, shorter times.",
            false => "",
        };
        Document {
            title: "accf bench".to_owned(),
            closing_line: closing_line(&self.bars),
            summary: self.method() + short,
            intro: String::new(),
            sections: sections.chain(before).collect(),
            verdicts: vec![verdict::section("The bars", "bar", &self.bars)],
            files: &[
                (
                    "`report.json`",
                    "every bar and every measurement, with all rounds",
                ),
                ("`bench-*.svg`", "the plots"),
                ("`guest/`", "what all of this was computed from"),
            ],
        }
    }

    /// Returns the text of docs/benchmarks.md.
    pub(crate) fn page(&self) -> String {
        let before = self.before.as_ref().map(Before::commit);
        let before = before.map_or_else(String::new, |commit| format!(" --before {commit}"));
        let page = Document {
            title: "Benchmarks".to_owned(),
            closing_line: String::new(),
            summary: format!(
                "What a connection costs at three listeners of the same kernel: a plain one, one \
                 with `TCP_DEFER_ACCEPT`, and one with accf's filter `dataready`. The server and \
                 the client are the same programs each time. This page was written by\n\n\
                 ```console\n$ cargo xtask bench --update-docs{before}\n```\n\n\
                 and gives the same numbers on any machine, within about the spread that is shown: \
                 instructions, bytes and segments are *counted*. The virtual machine runs under \
                 QEMU's `-icount shift=0`, where every instruction advances all clocks by one \
                 nanosecond and idle time is skipped, so the difference of two readings of the \
                 clock is the number of instructions in between, of the kernel and of programs, \
                 however busy the host is."
            ),
            intro: self.method(),
            files: &[],
            ..self.document()
        };
        page.markdown()
    }
}

/// Returns the last line of the benchmarks.
pub(crate) fn closing_line(bars: &[Verdict]) -> String {
    let missed = verdict::failed(bars).count();
    let missed = format!("{missed} of {} bars missed.", bars.len());
    verdict::closing_line(bars, "Every bar holds.", &missed)
}

/// Returns the figures and places of a listener that have this note.
fn places(all: &[&Measurement], note: &str) -> String {
    let has_note = |measurement: &&&Measurement| measurement.note.as_deref() == Some(note);
    let mut kinds: Vec<(String, Vec<f64>)> = Vec::new();
    for measurement in all.iter().filter(has_note) {
        let mut kind = metric_title(&measurement.metric).to_owned();
        let mut same = all.iter().filter(|it| it.metric == measurement.metric);
        // The case is left out if the note is on all cases.
        if !measurement.case.is_empty() && !same.all(|other| has_note(&other)) {
            kind += &format!(", {}", case_title(&measurement.case));
        }
        match kinds.iter_mut().find(|(other, _)| *other == kind) {
            Some((_, places)) => places.extend(measurement.x),
            None => kinds.push((kind, measurement.x.into_iter().collect())),
        }
    }
    let kinds = kinds
        .into_iter()
        .map(|(kind, places)| match in_order(places)[..] {
            [] => kind,
            [one] => format!("{kind} at {}", number(one)),
            [first, .., last] => format!("{kind} at {} to {}", number(first), number(last)),
        });
    kinds.collect::<Vec<String>>().join("; ")
}
