// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the guest side of the benchmarks reports to the host side.
//!
//! The guest (`main.rs`) measures and judges nothing: it leaves a [`Recording`] as JSON. The host
//! (`xtask/src/bench/`) compares, plots, and knows the bars.
//!
//! The emulated machine counts instructions: under QEMU's `-icount shift=0` the processor's
//! time-stamp counter, and with it every clock of the guest, advances by one (nanosecond) for each
//! instruction executed, and jumps over idle time.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// The file in `$ACCF_OUT` that holds the [`Recording`]; written last, so its presence means
/// "complete".
pub const RECORDING_FILE: &str = "bench.json";

/// The version of these types; the host refuses a recording of another version.
pub const SCHEMA: u32 = 1;

/// A benchmark, by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bench {
    /// What one connection costs, from SYN to the last FIN.
    Connection,
    /// What an idle connection costs, and what it takes to park, release and expire one, beside
    /// many idle ones.
    Holding,
    /// How long an active client waits beside many idle ones.
    Interference,
    /// Which round-trip time the accepted socket has after the client's pause, and how fast a lost
    /// response is repaired.
    Pause,
    /// How exact a deadline is.
    Deadline,
    /// What an eviction costs beside many sources.
    Eviction,
    /// What it costs, and who must send again, when many parked clients send at once.
    Burst,
    /// What it costs to close a listener, and how soon its clients know.
    Close,
    /// What it costs to ask a parked client whether it is still there.
    Probes,
    /// How many segments a silent and a slow client cost.
    Segments,
    /// What a connection of a plain listener costs with and without the module.
    Others,
}

impl Bench {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 11] = [
        Self::Connection,
        Self::Holding,
        Self::Interference,
        Self::Pause,
        Self::Deadline,
        Self::Eviction,
        Self::Burst,
        Self::Close,
        Self::Probes,
        Self::Segments,
        Self::Others,
    ];

    /// Returns the name on the command line, in file names and JSON.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Holding => "holding",
            Self::Interference => "interference",
            Self::Pause => "pause",
            Self::Deadline => "deadline",
            Self::Eviction => "eviction",
            Self::Burst => "burst",
            Self::Close => "close",
            Self::Probes => "probes",
            Self::Segments => "segments",
            Self::Others => "others",
        }
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
    /// With accf's filter `dataready`.
    Dataready,
}

impl Listener {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Plain, Self::DeferAccept, Self::Dataready];

    /// Returns the name in JSON, tables and plots.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::DeferAccept => "defer_accept",
            Self::Dataready => "dataready",
        }
    }
}

/// The unit of a [`Measurement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Instructions of the guest's processor, of the kernel and of programs.
    Instructions,
    /// Bytes of the kernel's memory.
    Bytes,
    /// Milliseconds of the guest's clock.
    Milliseconds,
    /// TCP segments on the wire.
    Segments,
    /// A plain count: of system calls, context switches, wake-ups.
    Count,
}

/// One figure, measured once in each round.
///
/// | bench | metric | case | x |
/// | --- | --- | --- | --- |
/// | connection | `instructions`, `system_calls` | `{epoll,blocking}/{pause,same_trip}` | |
/// | connection | `context_switches`, `wakeups` | `{epoll,blocking}/{pause,same_trip}` | |
/// | connection | `instructions_ack`, `instructions_request` (1) | `{epoll,blocking}/pause` | |
/// | holding | `bytes`, `park`, `release` (2) | `` | idle connections |
/// | holding | `timer` (2) | `accept`, `reset`, `drop` | idle connections |
/// | interference | `latency` (2) | `` | idle connections |
/// | pause | `rto`, `rtt` (milliseconds) | `` | the client's pause in seconds |
/// | pause | `repair` (milliseconds) | ``, `rto_only` (3) | the client's pause in seconds |
/// | deadline | `late` (milliseconds, negative: early) | ``, `reset` | the deadline in ms |
/// | eviction | `evict` (2) | `reset`, `drop` | sources with one connection each |
/// | burst | `sent_again`, `last_answer` (milliseconds) | `backlog_128`, `room` (4), `working` (6) | |
/// | burst | `instructions`, `instructions_request` (5) | `backlog_128`, `room` (4), `working` (6) | |
/// | close | `close` (2), `told` (milliseconds) | `` | clients |
/// | probes | `probe`, `answer` (2) | `` | other parked clients |
/// | segments | `syn_acks`, `from_server`, `from_client` | `silent`, `slow` | |
/// | others | `instructions` | `without_module`, `with_module`, `filter_elsewhere` | |
///
/// 1. Those for the bare ACK, and for the request; what the server does then is included.
/// 2. In instructions, but for `bytes`.
/// 3. Without tail loss probes.
/// 4. With a backlog for all clients.
/// 5. Of one connection; those from its request on.
/// 6. The server works for each response, which does not count as instructions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The benchmark.
    pub bench: Bench,
    /// What was measured.
    pub metric: String,
    /// Its unit.
    pub unit: Unit,
    /// The listener.
    pub listener: Listener,
    /// The circumstances; empty where there is one case only.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub case: String,
    /// The value on the x axis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<f64>,
    /// One for each round; none where it could not be measured, for the reason in [`Self::note`].
    pub samples: Vec<f64>,
    /// What a reader must know about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// All that one guest measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recording {
    /// [`SCHEMA`].
    pub schema: u32,
    /// `uname -r`.
    pub kernel: String,
    /// Clock ticks per second (CONFIG_HZ), the granularity of the kernel's own TCP timers.
    pub hz: u32,
    /// How often each figure was measured, where it could be.
    pub rounds: u32,
    /// Whether it was measured with fewer connections and shorter times, as in CI.
    pub short: bool,
    /// The figures.
    pub measurements: Vec<Measurement>,
}

/// The file in `$ACCF_OUT` that holds the [`Profile`]; written last, so its presence means
/// "complete".
pub const PROFILE_FILE: &str = "profile.json";

/// The file in `$ACCF_OUT` that holds a copy of the guest's `/proc/kallsyms`.
pub const SYMBOLS_FILE: &str = "kallsyms";

/// Connections that a profiler has watched; the profiler writes its counts to files of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// The listener they were made to.
    pub listener: Listener,
    /// The circumstances, as in [`Measurement::case`].
    pub case: String,
    /// The number of connections.
    pub connections: u32,
    /// The instructions that all of them together took, without the client's own.
    pub instructions: u64,
}

/// What one guest did while a profiler watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// [`SCHEMA`].
    pub schema: u32,
    /// `uname -r`.
    pub kernel: String,
    /// The sections, in the order of the profiler's files.
    pub sections: Vec<Section>,
}
