// SPDX-License-Identifier: MIT OR Apache-2.0

//! Cases: how they are registered, and the context they run in.

use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use accf_kit::capture::{Capture, Viewer};
use accf_kit::clock::{Pulse, Stamp};
use accf_kit::endpoint::{Accepted, Between, Family};
use anyhow::{bail, ensure, Result};

/// Fails unless a value is the one expected; the error says both.
macro_rules! expect_eq {
    ($seen:expr, $expected:expr, $($what:tt)+) => {
        match (&$seen, &$expected) {
            (seen, expected) => ::anyhow::ensure!(
                seen == expected,
                "{}: expected {expected:?}, saw {seen:?}",
                format_args!($($what)+)
            ),
        }
    };
}

/// Fails unless a value is in a range; the error says both.
macro_rules! expect_in {
    ($seen:expr, $range:expr, $($what:tt)+) => {
        match (&$seen, &($range)) {
            (seen, range) => ::anyhow::ensure!(
                range.contains(seen),
                "{}: expected {range:?}, saw {seen:?}",
                format_args!($($what)+)
            ),
        }
    };
}

/// Registers a case of the table, or one for each of several families: a stage, a name
/// (`area.what`, unique), and how it runs; or `each_family, test(argument)` for a test that takes
/// more than the context and the family.
///
/// Stands right above the function that it runs. Cases of a stage run in the order of their files'
/// names, and of their lines.
macro_rules! case {
    ($stage:ident, $name:literal => $run:expr) => {
        ::inventory::submit! {
            $crate::case::Entry {
                stage: $crate::case::Stage::$stage,
                name: $name,
                run: $run,
                file: file!(),
                line: line!(),
            }
        }
    };
    ($stage:ident, $name:literal => each_family, $test:ident($($argument:expr),+)) => {
        $crate::case::case!(
            $stage, $name =>
            $crate::case::each_family(|context, family| $test(context, family, $($argument),+))
        );
    };
}

pub(crate) use {case, expect_eq, expect_in};

/// The state that the module is in while a case runs, and whether other cases run beside it.
///
/// In the order in which stages run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Not loaded; with other cases.
    Unloaded,
    /// Loaded without parameters; with other cases.
    Default,
    /// The same for cases that feed the kernel random input ([`crate::fuzz`]) for as long as they
    /// are told to; one that fails does not run a second time.
    Fuzz,
    /// Loaded with a deadline short enough to wait for; with other cases.
    TwoSeconds,
    /// Loaded without a deadline; with other cases.
    NoDeadline,
    /// Loaded so that each network namespace may park four; with other cases.
    FourPerNetns,
    /// The case loads and unloads the module itself; alone.
    Alone,
    /// The same, but the module can perhaps not be unloaded after it; alone.
    Last,
}

impl Stage {
    /// Returns the parameters that the module is loaded with for the cases of this stage.
    pub(crate) fn parameters(self) -> Option<&'static str> {
        match self {
            Self::Default | Self::Fuzz => Some(""),
            Self::TwoSeconds => Some("timeout_ms=2000"),
            Self::NoDeadline => Some("timeout_ms=0"),
            Self::FourPerNetns => Some("max_parked_netns=4"),
            Self::Unloaded | Self::Alone | Self::Last => None,
        }
    }

    /// Returns whether each case runs alone, in the order of the table.
    pub(crate) fn one_by_one(self) -> bool {
        matches!(self, Self::Alone | Self::Last)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, self.parameters()) {
            (_, Some("")) => f.write_str("module loaded"),
            (_, Some(parameters)) => write!(f, "module loaded with {parameters}"),
            (Self::Unloaded, None) => f.write_str("module not loaded"),
            (Self::Last, None) => f.write_str("at the very end"),
            (_, None) => f.write_str("one by one"),
        }
    }
}

/// The function of a registered case.
#[derive(Clone, Copy)]
enum Body {
    Once(fn(&Context) -> Result<()>),
    Families(&'static [Family], fn(&Context, Family) -> Result<()>),
}

/// How a registered case runs: its function, and what the runner has to know.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    body: Body,
    limit: Limit,
    early: bool,
}

/// How long a case may take on a fast kernel.
#[derive(Clone, Copy)]
enum Limit {
    Fixed(Duration),
    Computed(fn() -> Duration),
}

/// Runs once. It needs no more than a few seconds; its limit is for busy machines.
pub(crate) const fn once(body: fn(&Context) -> Result<()>) -> Run {
    Run::of(Body::Once(body))
}

/// Runs once for each family; `.{family}` is added to the name.
pub(crate) const fn each_family(body: fn(&Context, Family) -> Result<()>) -> Run {
    families(&Family::ALL, body)
}

/// Runs once for each of these families; `.{family}` is added to the name.
pub(crate) const fn families(
    families: &'static [Family],
    body: fn(&Context, Family) -> Result<()>,
) -> Run {
    Run::of(Body::Families(families, body))
}

impl Run {
    const fn of(body: Body) -> Self {
        Self {
            body,
            limit: Limit::Fixed(Duration::from_secs(60)),
            early: false,
        }
    }

    /// Sets another limit; the case starts before others of its stage.
    pub(crate) const fn long(mut self, limit: Duration) -> Self {
        self.limit = Limit::Fixed(limit);
        self.early = true;
        self
    }

    /// The same for a limit that is known only when the suite runs.
    pub(crate) const fn long_as(mut self, limit: fn() -> Duration) -> Self {
        self.limit = Limit::Computed(limit);
        self.early = true;
        self
    }
}

/// What [`case!`] registers.
pub(crate) struct Entry {
    pub(crate) stage: Stage,
    pub(crate) name: &'static str,
    pub(crate) run: Run,
    pub(crate) file: &'static str,
    pub(crate) line: u32,
}

inventory::collect!(Entry);

impl Entry {
    /// Returns all entries, in the order in which they run.
    pub(crate) fn all() -> Vec<&'static Self> {
        let mut all: Vec<_> = inventory::iter::<Self>().collect();
        all.sort_by_key(|entry| (entry.stage, entry.file, entry.line));
        all
    }

    /// Returns the entry's cases.
    pub(crate) fn cases(&self) -> Vec<Case> {
        let case = |name, body| Case {
            name,
            stage: self.stage,
            limit: match self.run.limit {
                Limit::Fixed(limit) => limit,
                Limit::Computed(limit) => limit(),
            },
            early: self.run.early,
            body,
        };
        match self.run.body {
            Body::Once(body) => vec![case(self.name.to_owned(), Box::new(body))],
            Body::Families(families, body) => families
                .iter()
                .map(|&family| {
                    let name = format!("{}.{family}", self.name);
                    case(name, Box::new(move |context| body(context, family)))
                })
                .collect(),
        }
    }
}

/// What a case does.
type Test = Box<dyn Fn(&Context) -> Result<()>>;

/// One test.
pub(crate) struct Case {
    /// Its name, unique in the table: `area.what.family`.
    pub(crate) name: String,
    /// What it needs.
    pub(crate) stage: Stage,
    /// How long it may take on a fast kernel.
    pub(crate) limit: Duration,
    /// Whether it takes so long that it should start first.
    pub(crate) early: bool,
    /// Its function.
    pub(crate) body: Test,
}

/// The kernels that the suite tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// A distribution's.
    Stock,
    /// One of ours, with checkers on: slow, and with every feature.
    Dev,
}

impl Kernel {
    /// Returns the kernel of this guest, which its environment names.
    pub(crate) fn of_this_guest() -> Self {
        match std::env::var("ACCF_KERNEL").as_deref() {
            Ok("dev" | "kcsan" | "rt") => Self::Dev,
            _ => Self::Stock,
        }
    }

    /// Returns how many times longer than on a stock kernel a step may take.
    pub(crate) fn patience(self) -> u32 {
        match self {
            Self::Stock => 1,
            Self::Dev => 4,
        }
    }
}

/// Ends a case on a kernel without `bpf()`.
pub(crate) fn needs_bpf(context: &Context) -> Result<()> {
    // The kernel with checkers is built without it.
    if context.kernel == Kernel::Dev {
        return Err(Skip("this kernel has no bpf() (CONFIG_BPF_SYSCALL)".to_owned()).into());
    }
    Ok(())
}

/// The context that a case runs in.
pub(crate) struct Context {
    /// The kernel it runs on.
    pub(crate) kernel: Kernel,
    /// The seed of its random numbers.
    pub(crate) seed: u64,
    /// How long to feed the kernel random input, if the command line says.
    pub(crate) fuzz_time: Option<Duration>,
    pub(crate) name: String,
    captures: Mutex<Vec<Viewer>>,
    pulse: Pulse,
}

impl Context {
    /// Returns the context of the case `name`.
    pub(crate) fn new(name: &str, seed: u64) -> Self {
        Self {
            kernel: Kernel::of_this_guest(),
            seed,
            fuzz_time: None,
            name: name.to_owned(),
            captures: Mutex::new(Vec::new()),
            pulse: Pulse::start(),
        }
    }

    /// Sets how long to feed the kernel random input.
    pub(crate) fn fuzz_for(mut self, time: Option<Duration>) -> Self {
        self.fuzz_time = time;
        self
    }

    /// Returns random numbers that depend on the case and the seed only.
    pub(crate) fn rng(&self) -> fastrand::Rng {
        self.rng_from(self.seed)
    }

    /// The same for another seed.
    pub(crate) fn rng_from(&self, seed: u64) -> fastrand::Rng {
        let name = self.name.bytes().fold(seed, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        fastrand::Rng::with_seed(name)
    }

    /// Returns how soon "at once" is.
    ///
    /// Well below a second, after which TCP's first timer fires.
    pub(crate) fn prompt(&self) -> Duration {
        match self.kernel {
            Kernel::Stock => Duration::from_millis(300),
            Kernel::Dev => Duration::from_millis(600),
        }
    }

    /// Checks that `then` came at once after `since`, allowing for what this machine was late.
    pub(crate) fn at_once(&self, since: Stamp, then: Stamp, what: &str) -> Result<()> {
        let late = self.pulse.worst(since, then);
        let allowed = self.prompt() + late;
        expect_in!(
            then.ms_after(since),
            0.0..allowed.as_secs_f64() * 1e3,
            "milliseconds {what} (this machine was up to {late:?} late)"
        );
        Ok(())
    }

    /// Checks that `accept()` returned a connection as soon as there was one.
    pub(crate) fn accepted_at_once(&self, accepted: &Accepted) -> Result<()> {
        self.at_once(
            accepted.made.to,
            accepted.at,
            "from the connection to accept()",
        )
    }

    /// Checks that a connection came at its deadline after the bare ACK; returns the milliseconds.
    ///
    /// Early by more than two clock ticks is wrong. Late is wrong beyond the tolerance and what
    /// this machine was late at that time. What counts is when the connection was made, at the
    /// latest for the former, and at the earliest for the latter; [`Self::accepted_at_once`] checks
    /// when it was accepted. A connection looks older than it is by what the clock tick lagged when
    /// it was made ([`latest`]).
    pub(crate) fn on_time(
        &self,
        ack: Stamp,
        accepted: &Accepted,
        deadline: Duration,
    ) -> Result<f64> {
        let due = Stamp::from_epoch(ack.epoch() + deadline);
        let made = accepted.made;
        // Where the connection is not early but its stamp is, the tick lagged in all of this time.
        let lag = self.pulse.worst(made.to, due);
        let made = Between {
            to: latest(made, lag, accepted.at),
            ..made
        };
        let what = format!("to the connection, whose stamp may be {lag:?} too old,");
        self.happened_on_time(ack, made, deadline, &what)
    }

    /// The same for other events at a deadline; `what` ends the sentence "milliseconds from the
    /// bare ACK …".
    pub(crate) fn happened_on_time(
        &self,
        ack: Stamp,
        happened: impl Into<Between>,
        deadline: Duration,
        what: &str,
    ) -> Result<f64> {
        let happened = happened.into();
        let due = Stamp::from_epoch(ack.epoch() + deadline);
        let late = self.pulse.worst(due, happened.from);
        let (early_ms, tolerance) = match self.kernel {
            Kernel::Stock => (10.0, Duration::from_millis(50)),
            Kernel::Dev => (20.0, Duration::from_millis(150)),
        };
        let deadline_ms = deadline.as_secs_f64() * 1e3;
        let range = deadline_ms - early_ms..deadline_ms + (tolerance + late).as_secs_f64() * 1e3;
        let (from, to) = (happened.from.ms_after(ack), happened.to.ms_after(ack));
        ensure!(
            may_be_in(&range, from, to),
            "milliseconds from the bare ACK {what} (this machine was up to {late:?} late): \
             expected {range:?}, saw {from:?} to {to:?}"
        );
        Ok(from)
    }

    /// Returns the most that this machine was late between two times.
    pub(crate) fn late(&self, from: Stamp, to: Stamp) -> Duration {
        self.pulse.worst(from, to)
    }

    /// Returns how long to wait for what has to happen: only a failure takes that long.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(5) * self.kernel.patience()
    }

    /// Prints a note on the run for the reader of the results.
    pub(crate) fn note(&self, text: impl fmt::Display) {
        println!("{text}");
    }

    /// Adds what a capture saw to the diagnostics of a failure.
    pub(crate) fn show_on_failure(&self, capture: &Capture) {
        self.captures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(capture.viewer());
    }

    /// Returns the first packets that the captures of this case saw.
    pub(crate) fn on_the_wire(&self) -> String {
        const ENOUGH: usize = 60;
        let mut text = String::new();
        let captures = self.captures.lock().unwrap_or_else(PoisonError::into_inner);
        for capture in captures.iter() {
            let Ok(trace) = capture.so_far() else {
                continue;
            };
            text.push_str("on the wire:\n");
            text.extend(trace.describe().split_inclusive('\n').take(ENOUGH));
            if let Some(rest) = trace.packets.len().checked_sub(ENOUGH + 1) {
                text.push_str(&format!("… and {} more\n", rest + 1));
            }
        }
        text
    }

    /// Ends the case because the kernel lacks `what`: a skip on a stock kernel, a failure on ours,
    /// which has every feature.
    pub(crate) fn lacks(&self, what: &str) -> Result<()> {
        match self.kernel {
            Kernel::Stock => Err(Skip(format!("this kernel has no {what}")).into()),
            Kernel::Dev => bail!("our kernel lacks {what}: its configuration should have it"),
        }
    }
}

/// Returns whether what happened between `from` and `to` may have happened in `range`.
fn may_be_in(range: &Range<f64>, from: f64, to: f64) -> bool {
    to >= range.start && from < range.end
}

/// Returns the latest that a connection can have been made which looks as if it was by `made.to`,
/// and was accepted at `accepted`.
///
/// The kernel stamps a socket with the time of its last clock tick (`tcp_jiffies32`), and tells its
/// age by a later one. If the processor that counts the ticks had not run for `lag` when the socket
/// was made, while the deadline's timer fired on another one, the stamp is that much too old. It
/// handles the tick before it runs a program again, so the tick lags by no more than they are late.
fn latest(made: Between, lag: Duration, accepted: Stamp) -> Stamp {
    let to = Stamp::from_epoch(made.to.epoch() + lag);
    // What had been accepted was made.
    to.min(accepted)
}

/// The error of a case that does not apply to this kernel.
#[derive(Debug)]
pub(crate) struct Skip(pub(crate) String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certainly_early_or_late_fails() {
        let range = 1990.0..2050.0;
        assert!(may_be_in(&range, 2000.0, 2001.0));
        // The thread did not run for 15 ms while it asked for the age.
        assert!(may_be_in(&range, 1988.0, 2003.0));
        assert!(may_be_in(&range, 2045.0, 2060.0));
        assert!(!may_be_in(&range, 1975.0, 1989.9));
        assert!(!may_be_in(&range, 2050.0, 2060.0));
        // A point in time.
        assert!(may_be_in(&range, 1990.0, 1990.0));
        assert!(!may_be_in(&range, 1989.0, 1989.0));
    }

    #[test]
    fn a_lagging_tick_excuses_no_more_than_its_lag() {
        let stamp = |ms| Stamp::from_epoch(Duration::from_millis(ms));
        let range = 1990.0..2050.0;
        // Whether a connection that looks as if it was made at `made` ms is on time.
        let is_on_time = |made, lag, accepted| {
            let made = Between::from(stamp(made));
            let to = latest(made, Duration::from_millis(lag), stamp(accepted));
            may_be_in(&range, made.from.ms_after(stamp(0)), to.ms_after(stamp(0)))
        };
        // It came at its deadline while the tick lagged by 150 ms.
        assert!(is_on_time(1850, 150, 2001));
        // The tick did not lag as much.
        assert!(!is_on_time(1850, 139, 2001));
        assert!(!is_on_time(1850, 0, 2001));
        // However the tick lagged, it was there before.
        assert!(!is_on_time(1850, 150, 1989));
        assert!(!is_on_time(1850, 5_000, 1860));
        // A lag does not make a connection later than it looks.
        assert!(is_on_time(2045, 150, 2200));
        assert!(!is_on_time(2051, 150, 2200));
    }
}
