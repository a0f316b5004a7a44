// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the guest side of the demo reports to the host side.
//!
//! The guest (`main.rs`) runs the scenarios and records what it saw, unjudged: [`GuestReport`] as
//! JSON, and one packet capture per end of the path. The host (`xtask/src/demo/`) combines both,
//! computes the table and judges it. Every instant is a [`UnixNanos`], read from `CLOCK_REALTIME`,
//! the clock that also stamps the captured packets.

#![forbid(unsafe_code)]

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The file in `$ACCF_OUT` that holds the [`GuestReport`]; written last, so its presence means
/// "complete".
pub const REPORT_FILE: &str = "guest.json";

/// The version of these types; the host refuses a report of another version.
pub const SCHEMA: u32 = 2;

/// An instant: nanoseconds of `CLOCK_REALTIME` since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixNanos(pub u64);

impl UnixNanos {
    /// Reads the clock.
    pub fn now() -> Self {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self(u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Returns the milliseconds from `earlier` to `self`; negative if `self` is the earlier one.
    pub fn ms_since(self, earlier: Self) -> f64 {
        (i128::from(self.0) - i128::from(earlier.0)) as f64 / 1e6
    }
}

/// How the listening socket is set up to treat connections without data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Listener {
    /// Not at all: an ordinary listener.
    Plain,
    /// With the kernel's own `TCP_DEFER_ACCEPT`.
    DeferAccept,
    /// With accf's filter `dataready`, which hands the connection to the server at the deadline.
    Dataready,
    /// The same, which resets the connection at the deadline.
    DatareadyReset,
    /// The same, which drops the connection at the deadline.
    DatareadyDrop,
}

impl Listener {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 5] = [
        Self::Plain,
        Self::DeferAccept,
        Self::Dataready,
        Self::DatareadyReset,
        Self::DatareadyDrop,
    ];

    /// Those that differ before any deadline.
    pub const PATIENT: [Self; 3] = [Self::Plain, Self::DeferAccept, Self::Dataready];

    /// Returns the name in file names and JSON keys.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::DeferAccept => "defer_accept",
            Self::Dataready => "dataready",
            Self::DatareadyReset => "dataready_reset",
            Self::DatareadyDrop => "dataready_drop",
        }
    }

    /// Returns the name in tables and pictures.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::DeferAccept => "TCP_DEFER_ACCEPT",
            Self::Dataready => "dataready",
            Self::DatareadyReset => "dataready, reset",
            Self::DatareadyDrop => "dataready, drop",
        }
    }

    /// Returns the name where each `on_timeout` is shown.
    pub const fn full_title(self) -> &'static str {
        match self {
            Self::Dataready => "dataready, accept",
            other => other.title(),
        }
    }

    /// Returns what the filter does at the deadline, `accept`, `reset` or `drop`; `None` without a
    /// filter.
    pub const fn on_timeout(self) -> Option<&'static str> {
        match self {
            Self::Plain | Self::DeferAccept => None,
            Self::Dataready => Some("accept"),
            Self::DatareadyReset => Some("reset"),
            Self::DatareadyDrop => Some("drop"),
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.title())
    }
}

/// One of the four scenarios of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Scenario {
    /// Handshake, silence, then a request.
    #[serde(rename = "a")]
    Rfc793,
    /// Data on the third segment.
    #[serde(rename = "b")]
    Piggyback,
    /// Idle connections in front of a one-worker HTTP server.
    #[serde(rename = "c")]
    LoadBalancer,
    /// Handshake, silence beyond a deadline, then a request.
    #[serde(rename = "d")]
    Silent,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Rfc793,
        Self::Piggyback,
        Self::LoadBalancer,
        Self::Silent,
    ];

    /// Returns the letter in JSON keys and headings.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Rfc793 => "a",
            Self::Piggyback => "b",
            Self::LoadBalancer => "c",
            Self::Silent => "d",
        }
    }

    /// Returns what happens in it.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Rfc793 => "RFC 793 client: handshake, silence, then a request",
            Self::Piggyback => "Piggyback client: the request rides on the third segment",
            Self::LoadBalancer => "Load balancer: idle connections in front of a one-worker server",
            Self::Silent => "Silent client: handshake, then nothing for longer than the deadline",
        }
    }

    /// Returns the listeners it is run with, in the order in which they are shown.
    pub const fn listeners(self) -> &'static [Listener] {
        match self {
            Self::Silent => &Listener::ALL,
            _ => &Listener::PATIENT,
        }
    }
}

/// Everything the guest saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuestReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// `uname -r` of the guest.
    pub kernel_release: String,
    /// The path between the two ends.
    pub path: Path,
    /// Scenarios (a), (b) and (d): one connection for each of their listeners.
    pub exchanges: Vec<Exchange>,
    /// Scenario (c): one real request for each of its listeners and each server.
    pub requests: Vec<ServedRequest>,
    /// File name, in the same directory, of the capture at the client's end.
    pub client_capture: String,
    /// File name, in the same directory, of the capture at the server's end.
    pub server_capture: String,
    /// How long the scenarios took.
    pub took_ms: u64,
}

/// The path between client and server, and its round-trip time measured without TCP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Path {
    /// A description of how it is made.
    pub description: String,
    /// netem's delay in each direction.
    pub one_way_delay_ms: u32,
    /// Round-trip times of ICMP echoes from the client's end, in the order sent, without the
    /// warm-up.
    pub echo_rtt_us: Vec<u64>,
}

/// One connection of scenario (a), (b) or (d), as its two ends saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exchange {
    /// The scenario.
    pub scenario: Scenario,
    /// The listener it was made to.
    pub listener: Listener,
    /// How the listener was set up, as text.
    pub setting: String,
    /// The configured deadline, if the listener has one.
    pub deadline_ms: Option<u64>,
    /// The client's TCP port.
    pub client_port: u16,
    /// The listener's TCP port.
    pub server_port: u16,
    /// The client's view.
    pub client: ClientView,
    /// What `accept()` returned, if it returned.
    pub accepted: Option<Accepted>,
    /// The listener's counters at the end, if it has a filter.
    pub counters: Option<Counters>,
    /// (d): when the listener's counters first showed that the connection was no longer parked.
    pub let_go: Option<UnixNanos>,
    /// The most by which the machine was late in running a thread meanwhile.
    pub machine_late_us: u64,
    /// How often the scenario was run; the run in which the machine was late the least is reported.
    pub runs: u32,
}

/// What the client did and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientView {
    /// `connect()` called.
    pub connect_called: UnixNanos,
    /// `connect()` returned.
    pub connected: UnixNanos,
    /// When the client had a request to send: in (a) and (d) after its silence, in (b) when it
    /// called `connect()`.
    pub request_ready: Option<UnixNanos>,
    /// `read()` returned the first byte of the response.
    pub first_byte: Option<UnixNanos>,
    /// The error that ended the exchange early.
    pub error: Option<ClientError>,
}

/// How the connection failed, as the client saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientError {
    /// When the client saw the error.
    pub at: UnixNanos,
    /// The error's name, such as `ECONNRESET`, or its message.
    pub name: String,
}

/// The part of a listener's `ACCF_STATS` that the demo shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Connections that are parked now.
    pub parked: u64,
    /// All connections parked so far.
    pub parked_total: u64,
    /// Accepted because data arrived.
    pub released_data: u64,
    /// Accepted because the client closed its side.
    pub released_fin: u64,
    /// Accepted at the deadline.
    pub timeout_accept: u64,
    /// Reset at the deadline.
    pub timeout_reset: u64,
    /// Dropped at the deadline.
    pub timeout_drop: u64,
    /// Ended by the client or the network.
    pub aborted: u64,
    /// SYN-ACK retransmissions that were not sent.
    pub synack_suppressed: u64,
}

impl Counters {
    /// Returns the outcomes whose counters are not zero, by name.
    pub fn told(&self) -> Vec<(&'static str, u64)> {
        let all = [
            ("released_data", self.released_data),
            ("released_fin", self.released_fin),
            ("timeout_accept", self.timeout_accept),
            ("timeout_reset", self.timeout_reset),
            ("timeout_drop", self.timeout_drop),
            ("aborted", self.aborted),
        ];
        all.into_iter().filter(|(_, count)| *count > 0).collect()
    }
}

/// What the server saw of an accepted connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accepted {
    /// `accept()` returned.
    pub at: UnixNanos,
    /// `TCP_INFO` of the accepted socket, read straight after.
    pub tcp_info: TcpInfo,
    /// `read()` returned the first byte of the request.
    pub first_read: Option<UnixNanos>,
}

/// The part of `TCP_INFO` that the demo shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpInfo {
    /// Smoothed round-trip time.
    pub rtt_us: u32,
    /// Its mean deviation.
    pub rttvar_us: u32,
    /// Retransmission timeout.
    pub rto_us: u32,
    /// Segments retransmitted since the SYN.
    pub total_retrans: u32,
}

/// A single-threaded HTTP server from a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HttpServer {
    /// Python's `http.server.HTTPServer`.
    PythonHttpServer,
    /// gunicorn with one `sync` worker.
    Gunicorn,
}

impl HttpServer {
    /// Both.
    pub const ALL: [Self; 2] = [Self::PythonHttpServer, Self::Gunicorn];

    /// Returns the name in JSON keys and file names.
    pub const fn key(self) -> &'static str {
        match self {
            Self::PythonHttpServer => "python_http_server",
            Self::Gunicorn => "gunicorn",
        }
    }

    /// Returns the name in tables and pictures.
    pub const fn title(self) -> &'static str {
        match self {
            Self::PythonHttpServer => "Python http.server",
            Self::Gunicorn => "gunicorn, 1 sync worker",
        }
    }

    /// Returns the short name, for where it is clear that there is one worker.
    pub const fn short_title(self) -> &'static str {
        match self {
            Self::PythonHttpServer => "http.server",
            Self::Gunicorn => "gunicorn",
        }
    }
}

/// Scenario (c): one real request behind idle connections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServedRequest {
    /// The listener it was made to.
    pub listener: Listener,
    /// How the listener was set up.
    pub setting: String,
    /// The server behind it.
    pub server: HttpServer,
    /// The listener's TCP port.
    pub server_port: u16,
    /// Client ports of the idle connections opened before.
    pub idle_ports: Vec<u16>,
    /// Client port of curl's connection, as curl reports it.
    pub curl_port: Option<u16>,
    /// The limit given to curl (`--max-time`).
    pub max_time_ms: u64,
    /// The time after which the server kills a worker that does not respond (gunicorn
    /// `--timeout`).
    pub worker_timeout_ms: Option<u64>,
    /// The time from curl's start of the transfer to the first byte of the response; `None` if curl
    /// gave up.
    pub time_to_first_byte_ms: Option<f64>,
    /// How long curl ran in all.
    pub total_ms: f64,
    /// HTTP status of the response.
    pub http_status: Option<u16>,
    /// curl's exit status (28: timed out).
    pub curl_exit: i32,
    /// Workers the server killed because they hung, counted in its log.
    pub workers_killed: u32,
    /// The most by which the machine was late in running a thread meanwhile; 0 if not measured.
    pub machine_late_us: u64,
    /// How often the request was made; the run in which the machine was late the least is reported.
    pub runs: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_subtract_in_both_directions() {
        let (early, late) = (
            UnixNanos(1_000_000_000_000_000_000),
            UnixNanos(1_000_000_000_002_500_000),
        );
        assert_eq!(late.ms_since(early), 2.5);
        assert_eq!(early.ms_since(late), -2.5);
    }

    #[test]
    fn keys_in_json_are_those_of_key() {
        for listener in Listener::ALL {
            assert_eq!(serde_json::to_value(listener).unwrap(), listener.key());
        }
        for scenario in Scenario::ALL {
            assert_eq!(serde_json::to_value(scenario).unwrap(), scenario.key());
        }
        for server in HttpServer::ALL {
            assert_eq!(serde_json::to_value(server).unwrap(), server.key());
        }
    }

    #[test]
    fn a_counter_of_zero_is_not_an_outcome() {
        let counters = Counters {
            parked_total: 3,
            timeout_drop: 2,
            released_fin: 1,
            ..Counters::default()
        };
        assert_eq!(counters.told(), [("released_fin", 1), ("timeout_drop", 2)]);
    }
}
