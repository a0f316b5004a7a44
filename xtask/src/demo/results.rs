// SPDX-License-Identifier: MIT OR Apache-2.0
//! The demo's result for programs (`report.json`) and for people (`report.md`).

use std::collections::BTreeMap;

use accf_demo::{Counters, HttpServer, Listener, Scenario, ServedRequest};
use serde::Serialize;

use super::capture::End;
use super::facts::{Facts, Findings};
use super::PICTURE_FILE;
use crate::report::{Document, Section};
use crate::table::{number, numeric, words, Column, Table};
use crate::verdict::{self, Verdict};

/// The version of `report.json`.
const SCHEMA: u32 = 3;

/// Everything the demo found, and whether that is what it claims.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    schema: u32,
    /// Every check passed.
    pass: bool,
    kernel_release: String,
    path: PathNumbers,
    /// By the scenario's letter.
    scenarios: BTreeMap<&'static str, Scene>,
    pub(crate) checks: Vec<Verdict>,
    /// How many of the checks, the first ones, are premises.
    premises: usize,
    scenarios_took_ms: u64,
}

#[derive(Clone, Debug, Serialize)]
struct PathNumbers {
    description: String,
    one_way_delay_ms: u32,
    echoes: usize,
    rtt_ms: Option<f64>,
    rtt_longest_ms: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
struct Scene {
    title: &'static str,
    /// By the listener's key.
    listeners: BTreeMap<&'static str, Numbers>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
enum Numbers {
    Exchange(Box<ExchangeNumbers>),
    /// By the server's key.
    Requests(BTreeMap<&'static str, RequestNumbers>),
}

#[derive(Clone, Debug, Serialize)]
struct ExchangeNumbers {
    setting: String,
    deadline_ms: Option<u64>,
    on_timeout: Option<&'static str>,
    syn_acks_sent: usize,
    segments: usize,
    segments_from_client: usize,
    segments_from_server: usize,
    segments_from_server_into_silence: Option<usize>,
    third_segment_data_bytes: Option<usize>,
    client_silence_ms: Option<f64>,
    accept_after_syn_ms: Option<f64>,
    accept_after_bare_ack_ms: Option<f64>,
    accept_after_request_ms: Option<f64>,
    worker_blocked_ms: Option<f64>,
    rtt_ms: Option<f64>,
    rttvar_ms: Option<f64>,
    rto_ms: Option<f64>,
    total_retransmissions: Option<u32>,
    time_to_first_byte_ms: Option<f64>,
    resets_sent: usize,
    reset_after_bare_ack_ms: Option<f64>,
    reset_relative_sequence_number: Option<u32>,
    let_go_after_bare_ack_ms: Option<f64>,
    client_error: Option<String>,
    client_error_after_syn_ms: Option<f64>,
    listener_counters: Option<Counters>,
    machine_late_ms: f64,
    runs: u32,
    /// What the server sent while the client was silent, in words.
    #[serde(skip)]
    into_silence: String,
}

impl ExchangeNumbers {
    fn new(facts: &Facts) -> Self {
        let exchange = &facts.exchange;
        let info = exchange
            .accepted
            .as_ref()
            .map(|accepted| &accepted.tcp_info);
        Self {
            setting: exchange.setting.clone(),
            deadline_ms: exchange.deadline_ms,
            on_timeout: exchange.listener.on_timeout(),
            syn_acks_sent: facts.syn_acks(),
            segments: facts.segments.len(),
            segments_from_client: facts.segments_from(End::Client),
            segments_from_server: facts.segments_from(End::Server),
            segments_from_server_into_silence: facts.sent_into_silence().map(|sent| sent.len()),
            third_segment_data_bytes: facts.third_segment_len(),
            client_silence_ms: facts.silence_ms(),
            accept_after_syn_ms: facts.accept_after_syn_ms(),
            accept_after_bare_ack_ms: facts.accept_after_bare_ack_ms(),
            accept_after_request_ms: facts.accept_after_request_ms(),
            worker_blocked_ms: facts.worker_idle_ms(),
            rtt_ms: facts.rtt_ms(),
            rttvar_ms: info.map(|info| f64::from(info.rttvar_us) / 1e3),
            rto_ms: facts.rto_ms(),
            total_retransmissions: info.map(|info| info.total_retrans),
            time_to_first_byte_ms: facts.time_to_first_byte_ms(),
            resets_sent: facts.resets().count(),
            reset_after_bare_ack_ms: facts.reset_after_bare_ack_ms(),
            reset_relative_sequence_number: facts.reset_relative_seq(),
            let_go_after_bare_ack_ms: facts.let_go_after_bare_ack_ms(),
            client_error: exchange.client.error.as_ref().map(|e| e.name.clone()),
            client_error_after_syn_ms: facts.error_after_syn_ms(),
            listener_counters: exchange.counters,
            machine_late_ms: exchange.machine_late_us as f64 / 1e3,
            runs: exchange.runs,
            into_silence: into_silence(facts),
        }
    }

    /// How long the worker had a connection without anything to read.
    fn blocked(&self) -> String {
        // A worker that never had anything to read has no end to its waiting.
        match (self.accept_after_syn_ms, self.worker_blocked_ms) {
            (Some(_), None) => "no end".into(),
            (_, blocked) => or_dash(blocked),
        }
    }

    /// What the client of scenario (d) met.
    fn ending(&self) -> String {
        let name = self.client_error.as_deref().unwrap_or("nothing");
        match (self.time_to_first_byte_ms, self.client_error_after_syn_ms) {
            (Some(_), None) => "connected; served".to_owned(),
            (_, Some(at)) if self.client_silence_ms.is_none() => {
                format!("{name}, {}", number(at))
            }
            (_, Some(_)) if self.resets_sent > 0 => "connected; RST".to_owned(),
            _ => format!("connected; {name}"),
        }
    }

    /// What became of the connections, as the listener itself counted.
    fn counted(&self) -> String {
        let Some(counters) = self.listener_counters else {
            return "–".to_owned();
        };
        let told = counters.told().into_iter();
        let told: Vec<_> = told
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        told.join(", ")
    }
}

/// What the server sent while the client was silent: how many of which, and when after the bare ACK.
fn into_silence(facts: &Facts) -> String {
    let Some(sent) = facts.sent_into_silence() else {
        return "–".to_owned();
    };
    let acked = facts.bare_ack().and_then(|ack| ack.at(End::Server));
    let told: Vec<String> = sent
        .into_iter()
        .map(|segment| {
            let after = acked.map_or(f64::NAN, |acked| segment.sent().ms_since(acked));
            format!("{}, {}", segment.name(), number(after))
        })
        .collect();
    if told.is_empty() {
        "nothing".to_owned()
    } else {
        told.join("; ")
    }
}

#[derive(Clone, Debug, Serialize)]
struct RequestNumbers {
    setting: String,
    idle_connections: usize,
    answered: bool,
    time_to_first_byte_ms: Option<f64>,
    curl_total_ms: f64,
    curl_exit: i32,
    curl_max_time_ms: u64,
    http_status: Option<u16>,
    worker_timeout_ms: Option<u64>,
    workers_killed: u32,
    machine_late_ms: f64,
    runs: u32,
}

impl RequestNumbers {
    fn new(request: &ServedRequest) -> Self {
        Self {
            setting: request.setting.clone(),
            idle_connections: request.idle_ports.len(),
            answered: request.time_to_first_byte_ms.is_some(),
            time_to_first_byte_ms: request.time_to_first_byte_ms,
            curl_total_ms: request.total_ms,
            curl_exit: request.curl_exit,
            curl_max_time_ms: request.max_time_ms,
            http_status: request.http_status,
            worker_timeout_ms: request.worker_timeout_ms,
            workers_killed: request.workers_killed,
            machine_late_ms: request.machine_late_us as f64 / 1e3,
            runs: request.runs,
        }
    }

    /// What became of it, in words.
    fn outcome(&self) -> String {
        let after = match self.workers_killed {
            0 => String::new(),
            1 => ", after 1 hung worker was killed".into(),
            n => format!(", after {n} hung workers were killed"),
        };
        match (self.answered, self.http_status) {
            (true, Some(status)) => format!("HTTP {status}{after}"),
            (true, None) => format!("answered without HTTP{after}"),
            (false, _) if self.curl_exit == 28 => {
                let limit = self.curl_max_time_ms as f64 / 1e3;
                format!("stuck: curl gave up after {} s{after}", number(limit))
            }
            (false, _) => format!(
                "no answer: curl ended with status {}{after}",
                self.curl_exit
            ),
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

/// What the columns of that table mean.
const SILENT_NOTE: &str = "Times are milliseconds, from the bare ACK arriving at the server; an error's \
    counts from the client's SYN leaving. \"Meanwhile\" is while the client was silent. A client that is still connected \
    after 10 s sends its request, and is served or gets an RST. What a listener counted is its ACCF_STATS, read in the \
    end.";

/// The table of scenario (c).
const REQUEST_COLUMNS: [Column; 4] = [
    words("server"),
    words("listener"),
    numeric("first byte, ms", "first\nbyte, ms"),
    words("outcome"),
];

/// What the columns of that table mean.
const REQUEST_NOTE: &str = "\"First byte\" is curl's `time_starttransfer`, connecting included. \
    Where the machine stood still meanwhile, a scenario ran again, and the calmest run counts: \
    `runs` and `machine_late_ms` in `report.json`.";

/// What the columns of the first table mean.
const EXCHANGE_NOTE: &str = "Times are milliseconds. accept() counts from the client's SYN leaving, or \
    from the bare ACK or the request arriving at the server; a negative time means that accept() came first. \"Worker \
    blocked\" is from accept() to the first byte that could be read. RTT and RTO are TCP_INFO of the accepted \
    socket, read straight after accept(). \"First byte\" counts from the moment the client had a request to make.";

impl Report {
    /// Sums up `findings` and the verdicts on them.
    pub(crate) fn new(findings: &Findings, premises: Vec<Verdict>, claims: Vec<Verdict>) -> Self {
        let first_claim = premises.len();
        let checks = [premises, claims].concat();
        let guest = &findings.guest;
        let scene = |scenario: Scenario| {
            let numbers = |listener| match scenario {
                Scenario::LoadBalancer => Some(Numbers::Requests(
                    HttpServer::ALL
                        .into_iter()
                        .filter_map(|server| {
                            let request = findings.served(server, listener)?;
                            Some((server.key(), RequestNumbers::new(request)))
                        })
                        .collect(),
                )),
                _ => {
                    let facts = findings.of(scenario, listener)?;
                    Some(Numbers::Exchange(Box::new(ExchangeNumbers::new(facts))))
                }
            };
            let listeners = scenario.listeners().iter().copied();
            let listeners = listeners
                .filter_map(|listener| Some((listener.key(), numbers(listener)?)))
                .collect();
            (
                scenario.key(),
                Scene {
                    title: scenario.title(),
                    listeners,
                },
            )
        };
        let echoes = &guest.path.echo_rtt_us;
        Self {
            schema: SCHEMA,
            pass: verdict::all_hold(&checks),
            kernel_release: guest.kernel_release.clone(),
            path: PathNumbers {
                description: guest.path.description.clone(),
                one_way_delay_ms: guest.path.one_way_delay_ms,
                echoes: echoes.len(),
                rtt_ms: findings.path_rtt_ms(),
                rtt_longest_ms: echoes.iter().max().map(|us| *us as f64 / 1e3),
            },
            scenarios: Scenario::ALL.into_iter().map(scene).collect(),
            checks,
            premises: first_claim,
            scenarios_took_ms: guest.took_ms,
        }
    }

    /// The path in a sentence.
    fn path(&self) -> String {
        let n = |value: Option<f64>| value.map_or_else(|| "?".into(), number);
        format!(
            "The path: {}. Its own round-trip time, the shortest of {} ICMP echoes: {} ms (the longest: {} ms).",
            self.path.description,
            self.path.echoes,
            n(self.path.rtt_ms),
            n(self.path.rtt_longest_ms),
        )
    }

    fn numbers(&self) -> impl Iterator<Item = (Scenario, Listener, &Numbers)> {
        Scenario::ALL.into_iter().flat_map(move |scenario| {
            let listeners = scenario.listeners().iter().copied();
            listeners.filter_map(move |listener| {
                let scene = self.scenarios.get(scenario.key())?;
                Some((scenario, listener, scene.listeners.get(listener.key())?))
            })
        })
    }

    /// The numbers of every connection in scenarios that `wanted` holds for.
    fn exchanges(
        &self,
        wanted: impl Fn(Scenario) -> bool,
    ) -> impl Iterator<Item = (Scenario, Listener, &ExchangeNumbers)> {
        self.numbers()
            .filter(move |(scenario, ..)| wanted(*scenario))
            .filter_map(|(scenario, listener, numbers)| match numbers {
                Numbers::Exchange(numbers) => Some((scenario, listener, numbers.as_ref())),
                Numbers::Requests(_) => None,
            })
    }

    /// The rows under [`EXCHANGE_COLUMNS`].
    fn exchange_rows(&self) -> Vec<Vec<String>> {
        self.exchanges(|scenario| scenario != Scenario::Silent)
            .map(|(scenario, listener, e)| {
                vec![
                    scenario.key().to_owned(),
                    listener.title().to_owned(),
                    e.syn_acks_sent.to_string(),
                    e.segments.to_string(),
                    or_dash(e.accept_after_syn_ms),
                    or_dash(e.accept_after_bare_ack_ms),
                    or_dash(e.accept_after_request_ms),
                    e.blocked(),
                    or_dash(e.rtt_ms),
                    or_dash(e.rto_ms),
                    or_dash(e.time_to_first_byte_ms),
                ]
            })
            .collect()
    }

    /// The rows under [`SILENT_COLUMNS`].
    fn silent_rows(&self) -> Vec<Vec<String>> {
        self.exchanges(|scenario| scenario == Scenario::Silent)
            .map(|(_, listener, e)| {
                vec![
                    listener.full_title().to_owned(),
                    e.syn_acks_sent.to_string(),
                    e.accept_after_bare_ack_ms
                        .map_or_else(|| "never".into(), number),
                    e.blocked(),
                    e.into_silence.clone(),
                    e.ending(),
                    e.counted(),
                ]
            })
            .collect()
    }

    /// The rows under [`REQUEST_COLUMNS`].
    fn request_rows(&self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        for server in HttpServer::ALL {
            for (_, listener, numbers) in self.numbers() {
                let Numbers::Requests(requests) = numbers else {
                    continue;
                };
                let Some(request) = requests.get(server.key()) else {
                    continue;
                };
                rows.push(vec![
                    server.title().to_owned(),
                    listener.title().to_owned(),
                    or_dash(request.time_to_first_byte_ms),
                    request.outcome(),
                ]);
            }
        }
        rows
    }

    /// How each listener of a scenario was set up, for the report's text.
    fn settings(&self, scenario: Scenario) -> String {
        let of_scenario = self.numbers().filter(|(s, ..)| *s == scenario);
        let settings = of_scenario.filter_map(|(_, _, numbers)| match numbers {
            Numbers::Exchange(e) => Some(e.setting.as_str()),
            Numbers::Requests(r) => r.values().next().map(|r| r.setting.as_str()),
        });
        format!("Listeners: {}.", settings.collect::<Vec<_>>().join("; "))
    }

    /// The section of one scenario.
    fn section(&self, scenario: Scenario, table: Table, note: &str) -> Section {
        let heading = format!("({}) {}", scenario.key(), scenario.title());
        Section {
            intro: self.settings(scenario),
            notes: vec![note.to_owned()],
            ..Section::new(heading, table)
        }
    }

    /// The report for people.
    pub(crate) fn document(&self) -> Document {
        let connections = [Scenario::Rfc793, Scenario::Piggyback].map(|scenario| {
            let (key, title) = (scenario.key(), scenario.title());
            format!("* ({key}) {title}. {}", self.settings(scenario))
        });
        let (premises, claims) = self.checks.split_at(self.premises);
        Document {
            title: "accf demo".to_owned(),
            closing_line: closing_line(&self.checks),
            summary: format!("Kernel {}, unmodified. {}", self.kernel_release, self.path()),
            intro: format!("![Scenarios (a), (d) and (c) as a picture]({PICTURE_FILE})"),
            sections: vec![
                Section {
                    intro: connections.join("\n"),
                    notes: vec![EXCHANGE_NOTE.to_owned()],
                    ..Section::new(
                        "Connections",
                        Table::new(EXCHANGE_COLUMNS, self.exchange_rows()),
                    )
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
                    "the packets of each listener at the server's end, with comments, for Wireshark",
                ),
                ("`ladder.svg`", "scenarios (a), (c) and (d) as a picture"),
                ("`guest/`", "what all of this was computed from"),
            ],
        }
    }
}

/// The line that the demo ends with.
pub(crate) fn closing_line(checks: &[Verdict]) -> String {
    let held = "The demo holds: every check passed.";
    verdict::closing_line(checks, held, "the demo does not hold.")
}
