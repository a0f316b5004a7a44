// SPDX-License-Identifier: MIT OR Apache-2.0
//! The results of the demo as JSON, as Markdown, and for a terminal.

use accf_demo::{HttpServer, Scenario, ServedRequest};
use serde_json::{json, Map, Value};

use super::capture::End;
use super::facts::{Facts, Findings};
use super::PICTURE_FILE;
use crate::report::{Document, Section};
use crate::table::{number, numeric, words, Column, Table};
use crate::verdict::{self, Verdict};

/// The version of `report.json`.
const SCHEMA: u32 = 3;

/// All findings and verdicts of the demo.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    findings: &'a Findings,
    /// The premises and then the claims.
    pub(crate) checks: Vec<Verdict>,
    /// How many of the checks are premises.
    premises: usize,
}

/// Returns the numbers of one connection; each has its unit in its name.
fn exchange_numbers(facts: &Facts) -> Value {
    let exchange = &facts.exchange;
    let info = exchange
        .accepted
        .as_ref()
        .map(|accepted| &accepted.tcp_info);
    json!({
        "setting": exchange.setting,
        "deadline_ms": exchange.deadline_ms,
        "on_timeout": exchange.listener.on_timeout(),
        "syn_acks_sent": facts.syn_acks(),
        "segments": facts.segments.len(),
        "segments_from_client": facts.segments_from(End::Client),
        "segments_from_server": facts.segments_from(End::Server),
        "segments_from_server_into_silence": facts.sent_into_silence().map(|sent| sent.len()),
        "third_segment_data_bytes": facts.third_segment_len(),
        "client_silence_ms": facts.silence_ms(),
        "accept_after_syn_ms": facts.accept_after_syn_ms(),
        "accept_after_bare_ack_ms": facts.accept_after_bare_ack_ms(),
        "accept_after_request_ms": facts.accept_after_request_ms(),
        "worker_blocked_ms": facts.worker_idle_ms(),
        "rtt_ms": facts.rtt_ms(),
        "rttvar_ms": info.map(|info| f64::from(info.rttvar_us) / 1e3),
        "rto_ms": facts.rto_ms(),
        "total_retransmissions": info.map(|info| info.total_retrans),
        "time_to_first_byte_ms": facts.time_to_first_byte_ms(),
        "resets_sent": facts.resets().count(),
        "reset_after_bare_ack_ms": facts.reset_after_bare_ack_ms(),
        "reset_relative_sequence_number": facts.reset_relative_seq(),
        "let_go_after_bare_ack_ms": facts.let_go_after_bare_ack_ms(),
        "client_error": exchange.client.error.as_ref().map(|error| &error.name),
        "client_error_after_syn_ms": facts.error_after_syn_ms(),
        "listener_counters": exchange.counters,
        "machine_late_ms": exchange.machine_late_us as f64 / 1e3,
        "runs": exchange.runs,
    })
}

/// Returns the numbers of one request of scenario (c).
fn request_numbers(request: &ServedRequest) -> Value {
    json!({
        "setting": request.setting,
        "idle_connections": request.idle_ports.len(),
        "answered": request.time_to_first_byte_ms.is_some(),
        "time_to_first_byte_ms": request.time_to_first_byte_ms,
        "curl_total_ms": request.total_ms,
        "curl_exit": request.curl_exit,
        "curl_max_time_ms": request.max_time_ms,
        "http_status": request.http_status,
        "worker_timeout_ms": request.worker_timeout_ms,
        "workers_killed": request.workers_killed,
        "machine_late_ms": request.machine_late_us as f64 / 1e3,
        "runs": request.runs,
    })
}

/// Writes how long the worker had a connection without anything to read.
fn blocked(facts: &Facts) -> String {
    // A worker that never had anything to read waits without end.
    match (&facts.exchange.accepted, facts.worker_idle_ms()) {
        (Some(_), None) => "no end".into(),
        (_, blocked) => or_dash(blocked),
    }
}

/// Writes how the connection ended for the client of scenario (d).
fn ending(facts: &Facts) -> String {
    let error = facts.exchange.client.error.as_ref();
    let name = error.map_or("nothing", |error| &error.name);
    match (facts.time_to_first_byte_ms(), facts.error_after_syn_ms()) {
        (Some(_), None) => "connected; served".to_owned(),
        (_, Some(at)) if facts.silence_ms().is_none() => format!("{name}, {}", number(at)),
        (_, Some(_)) if facts.resets().next().is_some() => "connected; RST".to_owned(),
        _ => format!("connected; {name}"),
    }
}

/// Writes the outcomes that the listener counted.
fn counted(facts: &Facts) -> String {
    let Some(counters) = facts.exchange.counters else {
        return "–".to_owned();
    };
    let counts = counters.told().into_iter();
    let counts = counts.map(|(name, count)| format!("{name} {count}"));
    counts.collect::<Vec<_>>().join(", ")
}

/// Writes what the server sent while the client was silent, and how long after the bare ACK.
fn into_silence(facts: &Facts) -> String {
    let Some(sent) = facts.sent_into_silence() else {
        return "–".to_owned();
    };
    let acked = facts.bare_ack().and_then(|ack| ack.at(End::Server));
    let told = sent.iter().map(|segment| {
        let after = acked.map_or(f64::NAN, |acked| segment.sent().ms_since(acked));
        format!("{}, {}", segment.name(), number(after))
    });
    match told.collect::<Vec<_>>().join("; ") {
        none if none.is_empty() => "nothing".to_owned(),
        told => told,
    }
}

/// Writes the outcome of a request of scenario (c).
fn outcome(request: &ServedRequest) -> String {
    let after = match request.workers_killed {
        0 => String::new(),
        1 => ", after 1 hung worker was killed".into(),
        n => format!(", after {n} hung workers were killed"),
    };
    match (request.time_to_first_byte_ms, request.http_status) {
        (Some(_), Some(status)) => format!("HTTP {status}{after}"),
        (Some(_), None) => format!("answered without HTTP{after}"),
        (None, _) if request.curl_exit == 28 => {
            let limit = number(request.max_time_ms as f64 / 1e3);
            format!("stuck: curl gave up after {limit} s{after}")
        }
        (None, _) => {
            let status = request.curl_exit;
            format!("no answer: curl ended with status {status}{after}")
        }
    }
}

fn or_dash(value: Option<f64>) -> String {
    value.map_or_else(|| "–".into(), number)
}

/// The table of scenarios (a) and (b).
const EXCHANGE_COLUMNS: [Column; 11] = [
    words(""),
    words("listener"),
    numeric("SYN-ACKs sent", "SYN-\nACKs"),
    numeric("segments", "seg-\nments"),
    numeric("accept() after SYN, ms", "accept()\nafter SYN"),
    numeric("accept() after bare ACK, ms", "after\nbare ACK"),
    numeric("accept() after request, ms", "after\nrequest"),
    numeric("worker blocked, ms", "worker\nblocked"),
    numeric("RTT, ms", "RTT"),
    numeric("RTO, ms", "RTO"),
    numeric("first byte, ms", "first\nbyte"),
];

/// The table of scenario (d).
const SILENT_COLUMNS: [Column; 7] = [
    words("listener"),
    numeric("SYN-ACKs sent", "SYN-\nACKs"),
    numeric("accept() after bare ACK, ms", "accept()\nafter ACK"),
    numeric("worker blocked, ms", "worker\nblocked"),
    words("the server sent meanwhile, ms").short("the server\nsent meanwhile"),
    words("the client, after 10 s").short("the client,\nafter 10 s"),
    words("the listener counted").short("the listener\ncounted"),
];

/// Explains the columns of that table.
const SILENT_NOTE: &str = "Times are milliseconds, from the bare ACK arriving at the server; an \
    error's counts from the client's SYN leaving. \"Meanwhile\" is while the client was silent. A \
    client that is still connected after 10 s sends its request, and is served or gets an RST. \
    What a listener counted is its ACCF_STATS, read at the end.";

/// The table of scenario (c).
const REQUEST_COLUMNS: [Column; 4] = [
    words("server"),
    words("listener"),
    numeric("first byte, ms", "first\nbyte, ms"),
    words("outcome"),
];

/// Explains the columns of that table.
const REQUEST_NOTE: &str = "\"First byte\" is curl's `time_starttransfer`, connecting included. \
    Where the machine stood still meanwhile, a scenario ran again, and the calmest run counts: \
    `runs` and `machine_late_ms` in `report.json`.";

/// Explains the columns of the first table.
const EXCHANGE_NOTE: &str = "Times are milliseconds. accept() counts from the client's SYN \
    leaving, or from the bare ACK or the request arriving at the server; a negative time means \
    that accept() came first. \"Worker blocked\" is from accept() to the first byte that could be \
    read. RTT and RTO are TCP_INFO of the accepted socket, read straight after accept(). \"First \
    byte\" counts from the moment the client had a request to make.";

impl<'a> Report<'a> {
    /// Combines `findings` and the verdicts on them.
    pub(crate) fn new(
        findings: &'a Findings,
        premises: Vec<Verdict>,
        claims: Vec<Verdict>,
    ) -> Self {
        Self {
            findings,
            premises: premises.len(),
            checks: [premises, claims].concat(),
        }
    }

    /// Returns all numbers as JSON.
    pub(crate) fn numbers(&self) -> Value {
        let (findings, guest) = (self.findings, &self.findings.guest);
        let scenarios = Scenario::ALL.into_iter().map(|scenario| {
            let listeners = scenario.listeners().iter().copied();
            let listeners = listeners.filter_map(|listener| {
                let numbers = match scenario {
                    Scenario::LoadBalancer => {
                        let requests = HttpServer::ALL.into_iter().filter_map(|server| {
                            let request = findings.served(server, listener)?;
                            Some((server.key().to_owned(), request_numbers(request)))
                        });
                        Value::Object(requests.collect())
                    }
                    _ => exchange_numbers(findings.of(scenario, listener)?),
                };
                Some((listener.key().to_owned(), numbers))
            });
            let listeners: Map<String, Value> = listeners.collect();
            let numbers = json!({ "title": scenario.title(), "listeners": listeners });
            (scenario.key().to_owned(), numbers)
        });
        let echoes = &guest.path.echo_rtt_us;
        json!({
            "schema": SCHEMA,
            "pass": verdict::all_hold(&self.checks),
            "kernel_release": guest.kernel_release,
            "path": {
                "description": guest.path.description,
                "one_way_delay_ms": guest.path.one_way_delay_ms,
                "echoes": echoes.len(),
                "rtt_ms": findings.path_rtt_ms(),
                "rtt_longest_ms": longest(echoes),
            },
            "scenarios": scenarios.collect::<Map<String, Value>>(),
            "checks": self.checks,
            "premises": self.premises,
            "scenarios_took_ms": guest.took_ms,
        })
    }

    /// Describes the path in a sentence.
    fn path(&self) -> String {
        let n = |value: Option<f64>| value.map_or_else(|| "?".into(), number);
        let path = &self.findings.guest.path;
        format!(
            "The path: {}. Its own round-trip time, the shortest of {} ICMP echoes: {} ms (the \
             longest: {} ms).",
            path.description,
            path.echo_rtt_us.len(),
            n(self.findings.path_rtt_ms()),
            n(longest(&path.echo_rtt_us)),
        )
    }

    /// Returns the connections of a scenario.
    fn exchanges(&self, scenario: Scenario) -> impl Iterator<Item = &'a Facts> {
        let (listeners, findings) = (scenario.listeners().iter(), self.findings);
        listeners.filter_map(move |listener| findings.of(scenario, *listener))
    }

    /// Returns the rows under [`EXCHANGE_COLUMNS`].
    fn exchange_rows(&self, scenario: Scenario) -> impl Iterator<Item = Vec<String>> + use<'_> {
        self.exchanges(scenario).map(move |facts| {
            vec![
                scenario.key().to_owned(),
                facts.exchange.listener.title().to_owned(),
                facts.syn_acks().to_string(),
                facts.segments.len().to_string(),
                or_dash(facts.accept_after_syn_ms()),
                or_dash(facts.accept_after_bare_ack_ms()),
                or_dash(facts.accept_after_request_ms()),
                blocked(facts),
                or_dash(facts.rtt_ms()),
                or_dash(facts.rto_ms()),
                or_dash(facts.time_to_first_byte_ms()),
            ]
        })
    }

    /// Returns the rows under [`SILENT_COLUMNS`].
    fn silent_rows(&self) -> impl Iterator<Item = Vec<String>> + use<'_> {
        self.exchanges(Scenario::Silent).map(|facts| {
            let accept = facts.accept_after_bare_ack_ms();
            vec![
                facts.exchange.listener.full_title().to_owned(),
                facts.syn_acks().to_string(),
                accept.map_or_else(|| "never".into(), number),
                blocked(facts),
                into_silence(facts),
                ending(facts),
                counted(facts),
            ]
        })
    }

    /// Returns the rows under [`REQUEST_COLUMNS`].
    fn request_rows(&self) -> impl Iterator<Item = Vec<String>> + use<'_> {
        HttpServer::ALL.into_iter().flat_map(move |server| {
            let listeners = Scenario::LoadBalancer.listeners().iter();
            listeners.filter_map(move |listener| {
                let request = self.findings.served(server, *listener)?;
                Some(vec![
                    server.title().to_owned(),
                    listener.title().to_owned(),
                    or_dash(request.time_to_first_byte_ms),
                    outcome(request),
                ])
            })
        })
    }

    /// Describes how each listener of a scenario was set up.
    fn settings(&self, scenario: Scenario) -> String {
        let settings: Vec<&str> = match scenario {
            Scenario::LoadBalancer => {
                let listeners = scenario.listeners().iter();
                let first = listeners.filter_map(|listener| {
                    let mut servers = HttpServer::ALL.into_iter();
                    servers.find_map(|server| self.findings.served(server, *listener))
                });
                first.map(|request| request.setting.as_str()).collect()
            }
            _ => {
                let exchanges = self.exchanges(scenario);
                exchanges
                    .map(|facts| facts.exchange.setting.as_str())
                    .collect()
            }
        };
        format!("Listeners: {}.", settings.join("; "))
    }

    /// Returns the section of one scenario.
    fn section(&self, scenario: Scenario, table: Table, note: &str) -> Section {
        let heading = format!("({}) {}", scenario.key(), scenario.title());
        Section {
            intro: self.settings(scenario),
            notes: vec![note.to_owned()],
            ..Section::new(heading, table)
        }
    }

    /// Returns the report.
    pub(crate) fn document(&self) -> Document {
        let connections = [Scenario::Rfc793, Scenario::Piggyback].map(|scenario| {
            let (key, title) = (scenario.key(), scenario.title());
            format!("* ({key}) {title}. {}", self.settings(scenario))
        });
        let rows = [Scenario::Rfc793, Scenario::Piggyback].into_iter();
        let rows = rows.flat_map(|scenario| self.exchange_rows(scenario));
        let kernel = &self.findings.guest.kernel_release;
        let (premises, claims) = self.checks.split_at(self.premises);
        Document {
            title: "accf demo".to_owned(),
            closing_line: closing_line(&self.checks),
            summary: format!("Kernel {kernel}, unmodified. {}", self.path()),
            intro: format!("![Scenarios (a), (d) and (c) as a picture]({PICTURE_FILE})"),
            sections: vec![
                Section {
                    intro: connections.join("\n"),
                    notes: vec![EXCHANGE_NOTE.to_owned()],
                    ..Section::new("Connections", Table::new(EXCHANGE_COLUMNS, rows))
                },
                self.section(
                    Scenario::LoadBalancer,
                    Table::new(REQUEST_COLUMNS, self.request_rows()),
                    REQUEST_NOTE,
                ),
                self.section(
                    Scenario::Silent,
                    Table::new(SILENT_COLUMNS, self.silent_rows()),
                    SILENT_NOTE,
                ),
            ],
            verdicts: vec![
                verdict::section(
                    "Premises: each scenario was what its name says",
                    "premise",
                    premises,
                ),
                verdict::section("Claims about accf", "claim", claims),
            ],
            files: &[
                (
                    "`report.json`",
                    "every number above, with its unit in its name",
                ),
                (
                    "`plain.pcapng`, `defer_accept.pcapng`, `dataready.pcapng`, \
                     `dataready_reset.pcapng`, `dataready_drop.pcapng`",
                    "the packets of each listener at the server's end, with comments, for \
                     Wireshark",
                ),
                ("`ladder.svg`", "scenarios (a), (c) and (d) as a picture"),
                ("`guest/`", "what all of this was computed from"),
            ],
        }
    }
}

/// Returns the longest of the echoes, in milliseconds.
fn longest(echoes: &[u64]) -> Option<f64> {
    echoes.iter().max().map(|us| *us as f64 / 1e3)
}

/// Returns the last line of the demo.
pub(crate) fn closing_line(checks: &[Verdict]) -> String {
    let held = "The demo holds: every check passed.";
    verdict::closing_line(checks, held, "the demo does not hold.")
}
