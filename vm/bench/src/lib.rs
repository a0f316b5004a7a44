// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the guest side of the benchmarks reports to the host side.
//!
//! The guest (`main.rs`) measures and judges nothing: it leaves a [`Recording`] as JSON. The host (`xtask/src/bench/`)
//! compares, plots, and knows the bars.
//!
//! Instructions are counted by the machine: under QEMU's `-icount shift=0` the processor's time-stamp counter, and with
//! it every clock of the guest, advances by one (nanosecond) for each instruction executed, and jumps over idle time.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// The file in `$ACCF_OUT` that holds the [`Recording`]; written last, so its presence means "complete".
pub const RECORDING_FILE: &str = "bench.json";

/// The version of these types; the host refuses a recording of another version.
pub const SCHEMA: u32 = 1;

/// A benchmark, by the name it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bench {
    /// What one connection costs, from SYN to the last FIN.
    Connection,
    /// What a connection that thinks costs, and what it takes to park, release and time out, while many think.
    Holding,
    /// How long an active client waits while many think.
    Interference,
    /// What the accepted socket believes of the path after the client's pause, and how fast a lost response is repaired.
    Pause,
    /// How exact a deadline is.
    Deadline,
    /// How many segments a silent and a slow client cost.
    Segments,
    /// What a connection of a plain listener costs with and without the module.
    Others,
}

impl Bench {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 7] = [
        Self::Connection,
        Self::Holding,
        Self::Interference,
        Self::Pause,
        Self::Deadline,
        Self::Segments,
        Self::Others,
    ];

    /// The name on the command line, in file names and JSON.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Holding => "holding",
            Self::Interference => "interference",
            Self::Pause => "pause",
            Self::Deadline => "deadline",
            Self::Segments => "segments",
            Self::Others => "others",
        }
    }
}

/// How the listening socket was told to treat connections without data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Listener {
    /// Not at all: an ordinary listener.
    Plain,
    /// The kernel's own answer, `TCP_DEFER_ACCEPT`.
    DeferAccept,
    /// accf's filter `dataready`.
    Dataready,
}

impl Listener {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Plain, Self::DeferAccept, Self::Dataready];

    /// The name in JSON and, for a person, in tables and plots.
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
    /// Anything that is counted: system calls, context switches, wake-ups.
    Count,
}

/// One figure, measured once in each round.
///
/// | bench | metric | case | x |
/// | --- | --- | --- | --- |
/// | connection | `instructions`, `system_calls`, `context_switches`, `wakeups` | `epoll/pause`, `epoll/same_trip`, `blocking/pause`, `blocking/same_trip` | |
/// | connection | `instructions_ack`, `instructions_request`: those for the bare ACK, and for the request, with what the server does then | `epoll/pause`, `blocking/pause` | |
/// | holding | `bytes`; `park`, `release` (instructions); `timer` (instructions) | ``; ``; `accept`, `reset`, `drop` | connections held |
/// | interference | `latency` (instructions) | `` | connections held |
/// | pause | `rto`, `rtt`; `repair` (milliseconds) | ``; ``, `rto_only` (without tail loss probes) | the client's pause in seconds |
/// | deadline | `late` (milliseconds after the deadline; negative: before) | ``, `reset` | the deadline in milliseconds |
/// | segments | `syn_acks`, `from_server`, `from_client` | `silent`, `slow` | |
/// | others | `instructions` | `without_module`, `with_module`, `filter_elsewhere` | |
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The benchmark.
    pub bench: Bench,
    /// What was measured.
    pub metric: String,
    /// In which unit.
    pub unit: Unit,
    /// At which listener.
    pub listener: Listener,
    /// Under which circumstances; empty where there are no others.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub case: String,
    /// Against what it is plotted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<f64>,
    /// One for each round; none where it could not be measured, for a reason that [`Self::note`] tells.
    pub samples: Vec<f64>,
    /// What a reader must know of it.
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
    /// Clock ticks a second (CONFIG_HZ), as the kernel's own TCP timers show it.
    pub hz: u32,
    /// Rounds: how often each figure was measured, if nothing kept it from that.
    pub rounds: u32,
    /// Measured with fewer connections and shorter times, as in CI.
    pub short: bool,
    /// The figures.
    pub measurements: Vec<Measurement>,
}

/// The file in `$ACCF_OUT` that holds the [`Profile`]; written last, so its presence means "complete".
pub const PROFILE_FILE: &str = "profile.json";

/// The file in `$ACCF_OUT` that holds a copy of the guest's `/proc/kallsyms`.
pub const SYMBOLS_FILE: &str = "kallsyms";

/// Connections that a profiler has watched; what it has counted it leaves elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// The listener they were made to.
    pub listener: Listener,
    /// Under which circumstances, as in [`Measurement::case`].
    pub case: String,
    /// How many connections they were.
    pub connections: u32,
    /// How many instructions all of them together took, without the client's own.
    pub instructions: u64,
}

/// What one guest did while a profiler watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// [`SCHEMA`].
    pub schema: u32,
    /// `uname -r`.
    pub kernel: String,
    /// In the order in which they were made.
    pub sections: Vec<Section>,
}
