// SPDX-License-Identifier: MIT OR Apache-2.0
//! The demo's result for programs (`report.json`) and for people (`report.md`).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use accf_demo::{HttpServer, Listener, Scenario, ServedRequest};
use serde::Serialize;

use super::capture::End;
use super::checks::{Check, Kind};
use super::facts::{Facts, Findings};
use super::number;

/// Everything the demo found, and whether that is what it claims.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    schema: u32,
    /// Every check passed.
    pub(crate) pass: bool,
    kernel_release: String,
    path: PathNumbers,
    /// By the scenario's letter.
    scenarios: BTreeMap<&'static str, Scene>,
    pub(crate) checks: Vec<Check>,
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
    syn_acks_sent: usize,
    segments: usize,
    segments_from_client: usize,
    segments_from_server: usize,
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
    machine_late_ms: f64,
    runs: u32,
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
            syn_acks_sent: facts.syn_acks(),
            segments: facts.segments.len(),
            segments_from_client: facts.segments_from(End::Client),
            segments_from_server: facts.segments_from(End::Server),
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
            machine_late_ms: exchange.machine_late_us as f64 / 1e3,
            runs: exchange.runs,
        }
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

/// A column of a table for people.
pub(crate) struct Column {
    /// Its title in words.
    pub(crate) title: &'static str,
    /// The same in two short lines, for a terminal.
    pub(crate) short: &'static str,
    pub(crate) numeric: bool,
}

const fn words(title: &'static str) -> Column {
    Column {
        title,
        short: title,
        numeric: false,
    }
}

const fn numeric(title: &'static str, short: &'static str) -> Column {
    Column {
        title,
        short,
        numeric: true,
    }
}

/// The table of scenarios (a), (b) and (d).
pub(crate) const EXCHANGE_COLUMNS: [Column; 11] = [
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

/// The table of scenario (c).
pub(crate) const REQUEST_COLUMNS: [Column; 4] = [
    words("server"),
    words("listener"),
    numeric("first byte, ms", "first\nbyte, ms"),
    words("outcome"),
];

/// What the columns of the first table mean.
pub(crate) const EXCHANGE_NOTE: &str = "Times are milliseconds. accept() counts from the client's SYN leaving, or \
    from the bare ACK or the request arriving at the server; a negative time means that accept() came first. \"Worker \
    blocked\" is from accept() to the first byte that could be read. RTT and RTO are TCP_INFO of the accepted \
    socket, read straight after accept(). \"First byte\" counts from the moment the client had a request to make.";

impl Report {
    /// Sums `findings` and `checks` up.
    pub(crate) fn new(findings: &Findings, checks: Vec<Check>) -> Self {
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
            let listeners = Listener::ALL
                .into_iter()
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
            schema: 1,
            pass: checks.iter().all(|check| check.pass),
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
            scenarios_took_ms: guest.took_ms,
        }
    }

    /// The path in a sentence.
    pub(crate) fn path(&self) -> String {
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
            Listener::ALL.into_iter().filter_map(move |listener| {
                let scene = self.scenarios.get(scenario.key())?;
                Some((scenario, listener, scene.listeners.get(listener.key())?))
            })
        })
    }

    /// The rows under [`EXCHANGE_COLUMNS`].
    pub(crate) fn exchange_rows(&self) -> Vec<Vec<String>> {
        let n = |value: Option<f64>| value.map_or_else(|| "–".into(), number);
        self.numbers()
            .filter_map(|(scenario, listener, numbers)| {
                let Numbers::Exchange(e) = numbers else {
                    return None;
                };
                // A worker that never had anything to read has no end to its waiting.
                let blocked = match (e.accept_after_syn_ms, e.worker_blocked_ms) {
                    (Some(_), None) => "no end".into(),
                    (_, blocked) => n(blocked),
                };
                Some(vec![
                    scenario.key().to_owned(),
                    listener.title().to_owned(),
                    e.syn_acks_sent.to_string(),
                    e.segments.to_string(),
                    n(e.accept_after_syn_ms),
                    n(e.accept_after_bare_ack_ms),
                    n(e.accept_after_request_ms),
                    blocked,
                    n(e.rtt_ms),
                    n(e.rto_ms),
                    n(e.time_to_first_byte_ms),
                ])
            })
            .collect()
    }

    /// The rows under [`REQUEST_COLUMNS`].
    pub(crate) fn request_rows(&self) -> Vec<Vec<String>> {
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
                    request
                        .time_to_first_byte_ms
                        .map_or_else(|| "–".into(), number),
                    request.outcome(),
                ]);
            }
        }
        rows
    }

    /// How each listener of a scenario was set up, for the report's text.
    fn settings(&self, scenario: Scenario) -> Vec<String> {
        let of_scenario = self.numbers().filter(|(s, ..)| *s == scenario);
        of_scenario
            .filter_map(|(_, _, numbers)| match numbers {
                Numbers::Exchange(e) => Some(e.setting.clone()),
                Numbers::Requests(r) => r.values().next().map(|r| r.setting.clone()),
            })
            .collect()
    }

    /// The report for people.
    pub(crate) fn markdown(&self) -> String {
        let mut out = String::new();
        let verdict = if self.pass {
            "every check passed"
        } else {
            "**some checks FAILED**"
        };
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "<!-- SPDX-License-Identifier: MIT OR Apache-2.0 -->\n\
             # accf demo: {verdict}\n\n\
             Kernel {}, unmodified. {}\n\n\
             ![Scenarios (a), (d) and (c) as a picture](ladder.svg)\n\n\
             ## Connections\n\n",
            self.kernel_release,
            self.path()
        );
        for scenario in [Scenario::Rfc793, Scenario::Piggyback, Scenario::Silent] {
            let _ = writeln!(
                out,
                "* ({}) {}. Listeners: {}.",
                scenario.key(),
                scenario.title(),
                self.settings(scenario).join("; ")
            );
        }
        out.push('\n');
        out += &markdown_table(&EXCHANGE_COLUMNS, &self.exchange_rows());
        let _ = writeln!(out, "\n{EXCHANGE_NOTE}");
        let _ = write!(
            out,
            "\n## (c) {}\n\nListeners: {}.\n\n",
            Scenario::LoadBalancer.title(),
            self.settings(Scenario::LoadBalancer).join("; ")
        );
        out += &markdown_table(&REQUEST_COLUMNS, &self.request_rows());
        out += "\n\"First byte\" is curl's `time_starttransfer`, connecting included.\n\n\
                Where the machine stood still meanwhile, a scenario ran again, and the calmest run \
                counts: `runs` and `machine_late_ms` in `report.json`.\n\n## Checks\n\n";
        let columns = [
            words(""),
            words("check"),
            numeric("found", "found"),
            words("must be"),
            words("kind"),
        ];
        let rows: Vec<Vec<String>> = self
            .checks
            .iter()
            .map(|check| {
                let kind = match check.kind {
                    Kind::Premise => "premise",
                    Kind::Claim => "claim",
                };
                vec![
                    if check.pass { "pass" } else { "**FAIL**" }.to_owned(),
                    check.says.clone(),
                    check.value.map_or_else(|| "nothing".into(), number),
                    format!("{} {}", check.bound, check.unit),
                    kind.to_owned(),
                ]
            })
            .collect();
        out += &markdown_table(&columns, &rows);
        out += "\nA premise says that a scenario was what its name says; a claim is about accf.\n\n\
                ## Files\n\n\
                * `report.json`: every number above, with its unit in its name.\n\
                * `plain.pcapng`, `defer_accept.pcapng`, `dataready.pcapng`: the packets of each listener as they \
                passed the server's end, with comments; for Wireshark.\n\
                * `ladder.svg`: scenarios (a), (c) and (d) as a picture.\n\
                * `guest/`: what all of this was computed from.\n";
        out
    }
}

fn markdown_table(columns: &[Column], rows: &[Vec<String>]) -> String {
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
