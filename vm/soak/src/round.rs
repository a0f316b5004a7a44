// SPDX-License-Identifier: MIT OR Apache-2.0
//! One round: the module is loaded, everything happens at once, all of it comes to rest, and the module goes.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, sleep, ScopedJoinHandle};
use std::time::{Duration, Instant};

use accf_kit::control::{OnTimeout, Stats};
use accf_kit::endpoint::{Family, Listen};
use accf_kit::fault::{Failing, Whose};
use accf_kit::module;
use accf_kit::netns::Netns;
use anyhow::{ensure, Context as _, Result};
use nix::errno::Errno;

use crate::board::Board;
use crate::program::Program;
use crate::{changing_listeners, impaired_wire, namespaces, segment_clients, server_group, watch};

/// What is short in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// Nothing.
    None,
    /// So many of a hundred allocations fail, and room as well.
    Of(Whose, u8),
    /// Room in each namespace for those that are parked.
    Room,
}

/// In this order, again and again; also that is reached soon which is worst.
const SHORTAGES: [Shortage; 6] = [
    Shortage::None,
    Shortage::Of(Whose::Module, 10),
    Shortage::Of(Whose::Network, 1),
    Shortage::None,
    Shortage::Of(Whose::Module, 1),
    Shortage::Of(Whose::Network, 10),
];

impl Shortage {
    /// That of a round.
    pub(crate) fn of_round(number: u32) -> Self {
        let index = number as usize % SHORTAGES.len();
        SHORTAGES.get(index).copied().unwrap_or(Self::None)
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("memory for all"),
            Self::Room => f.write_str("little room"),
            Self::Of(Whose::Module, percent) => {
                write!(f, "{percent} % of the module's allocations fail")
            }
            Self::Of(Whose::Network, percent) => {
                write!(f, "{percent} % of the network's allocations fail")
            }
        }
    }
}

/// What everybody in a round is given.
pub(crate) struct Round<'a> {
    /// Which it is, from 0.
    pub(crate) number: u32,
    /// Where its random numbers start.
    pub(crate) seed: u64,
    /// What is short.
    pub(crate) shortage: Shortage,
    /// Where everything is counted.
    pub(crate) board: &'a Board,
    /// This program, for processes of its own.
    pub(crate) program: &'a Program,
    /// How many times longer than on a stock kernel everything may take.
    pub(crate) patience: u32,
    /// So many actors are ready.
    ready: AtomicUsize,
    /// No more clients are to begin.
    over: AtomicBool,
    /// All clients are gone.
    settled: AtomicBool,
    /// Nobody holds the module any more.
    released: AtomicBool,
}

impl Round<'_> {
    /// Random numbers that are the same for the same seed, round and name.
    pub(crate) fn rng(&self, name: &str) -> fastrand::Rng {
        let start = self.seed ^ u64::from(self.number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = name.bytes().fold(start, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        fastrand::Rng::with_seed(hash)
    }

    /// An actor has all that it needs, and begins: waits for the others, so that all begin together.
    pub(crate) fn begin(&self) {
        self.ready.fetch_add(1, Ordering::Relaxed);
        while !self.has_begun() && !self.is_over() {
            sleep(Duration::from_millis(20));
        }
    }

    /// Whether everybody was ready.
    fn has_begun(&self) -> bool {
        self.ready.load(Ordering::Relaxed) >= ACTORS.len()
    }

    /// Whether no more clients are to begin.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Whether all clients are gone, and servers may go.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    /// Whether nothing is short, so that it is known what has to become of each client.
    pub(crate) fn has_all(&self) -> bool {
        self.shortage == Shortage::None
    }

    /// The deadline of listeners whose clients' fate is to be known.
    pub(crate) fn deadline(&self) -> Duration {
        Duration::from_millis(1500) * self.patience.min(3)
    }

    /// How long a client may live, beyond its silence.
    pub(crate) fn lifetime(&self) -> Duration {
        Duration::from_secs(40) * self.patience.min(3)
    }

    /// How long to wait for what will surely happen.
    pub(crate) fn limit(&self) -> Duration {
        Duration::from_secs(30) * self.patience
    }

    /// From one client to the next at a place.
    pub(crate) fn gap(&self) -> Duration {
        Duration::from_millis(8) * self.patience
    }

    /// Sleeps for a random while; says whether the round goes on.
    pub(crate) fn pause(&self, rng: &mut fastrand::Rng, most: Duration) -> bool {
        /// Who sleeps longer would notice too late that it is over.
        const NAP: Duration = Duration::from_millis(100);
        let end = Instant::now() + most.mul_f64(rng.f64());
        while !self.is_over() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            sleep(left.min(NAP));
        }
        false
    }

    /// A listener has come to rest, with these counts.
    pub(crate) fn at_rest(&self, seen: &Stats) {
        self.board.counted(seen);
        self.board
            .event("listeners at rest with nothing left, and sums that are right");
    }
}

/// What somebody in a round does.
type Actor = fn(&Round<'_>) -> Result<()>;

/// A round in which there were fewer clients goes on for a while: on a machine that is very busy.
const ENOUGH: u64 = 400;

/// Those that make clients and serve them: each comes to an end by itself once the round is over.
const ACTORS: [(&str, Actor); 6] = [
    ("raw clients", segment_clients::run),
    ("a cable that loses", impaired_wire::lossy),
    ("a cable with conntrack", impaired_wire::tracked),
    ("a garden", changing_listeners::grow),
    ("a group", server_group::run),
    ("namespaces", namespaces::churn),
];

/// Has a round happen, for as long as `time` says and until it is over.
pub(crate) fn run(mut round: Round<'_>, time: Duration) -> Result<()> {
    let mut rng = round.rng("round");
    module::load(&parameters(&round, &mut rng))?;
    round.board.event("module loaded");
    let failing = match round.shortage {
        Shortage::None | Shortage::Room => None,
        Shortage::Of(whose, percent) => Failing::some(whose, percent)?,
    };
    if failing.is_none() && !round.has_all() {
        // This kernel's allocations do not fail at will.
        round.shortage = Shortage::Room;
    }
    println!(
        "round {}: {} s, {}",
        round.number + 1,
        time.as_secs(),
        round.shortage
    );
    // While it is open, the module is in use, whatever happens to all others.
    let anchor = Listen::filtered(Family::V6).open(&Netns::new()?)?;
    let round = &round;
    thread::scope(|scope| {
        let unloader = scope.spawn(|| unload_all_the_time(round));
        let watchers: Vec<_> = (0..2)
            .map(|nth| scope.spawn(move || watch::watch(round, nth)))
            .collect();
        let actors: Vec<_> = ACTORS
            .into_iter()
            .map(|(name, act)| (name, scope.spawn(move || act(round))))
            .collect();
        let mut end = Instant::now() + round.limit();
        let mut last = end;
        let mut has_begun = false;
        let mut shown = Instant::now();
        // Whoever is done before the round is over has failed.
        while (Instant::now() < end || (Instant::now() < last && round.board.now() < ENOUGH))
            && !actors.iter().any(|(_, actor)| actor.is_finished())
        {
            sleep(Duration::from_millis(100));
            if round.has_begun() && !has_begun {
                has_begun = true;
                end = Instant::now() + time;
                last = end + time * 2;
            }
            if shown.elapsed() > Duration::from_secs(5) {
                shown = Instant::now();
                println!("{}", round.board.line());
            }
        }
        if !has_begun {
            round.board.complain("a round did not begin");
        }
        round.over.store(true, Ordering::Relaxed);
        for (name, actor) in actors {
            report(round, name, actor);
        }
        round.settled.store(true, Ordering::Relaxed);
        for watcher in watchers {
            report(round, "a watcher", watcher);
        }
        if let Some(failing) = failing {
            match failing.injected() {
                Ok(0) => round
                    .board
                    .complain("no allocation has failed in a round in which some were to"),
                Ok(injected) => round.board.events_of(
                    &format!("allocations that failed, as {}", round.shortage),
                    injected.into(),
                ),
                Err(error) => round.board.complain(format!("failslab: {error:#}")),
            }
        }
        round.board.forget_namespaces();
        drop(anchor);
        round.released.store(true, Ordering::Relaxed);
        report(round, "unloading", unloader);
    });
    Ok(())
}

/// Hears how somebody's part ended.
fn report(round: &Round<'_>, name: &str, thread: ScopedJoinHandle<'_, Result<()>>) {
    let said = match thread.join() {
        Ok(Ok(())) => return,
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => "panicked".to_owned(),
    };
    round.board.complain(format!(
        "round {} ({}), {name}: {said}",
        round.number + 1,
        round.shortage
    ));
}

/// What the module is loaded with.
fn parameters(round: &Round<'_>, rng: &mut fastrand::Rng) -> String {
    let timeout_ms = rng.u32(200..5_000);
    let on_timeout = rng.u8(..3);
    // Otherwise somebody might not be held back for want of room.
    let max_parked_netns = if round.has_all() {
        262_144
    } else {
        rng.u32(8..64)
    };
    format!("timeout_ms={timeout_ms} on_timeout={on_timeout} max_parked_netns={max_parked_netns}")
}

/// Tries to unload the module: in vain, as long as somebody has it, and then with success.
fn unload_all_the_time(round: &Round<'_>) -> Result<()> {
    let mut released: Option<Instant> = None;
    loop {
        // What is released after this was asked is not what kept it from going.
        let is_released = round.released.load(Ordering::Relaxed);
        match module::try_unload() {
            Ok(()) => {
                round.board.event("module unloaded");
                ensure!(
                    is_released || round.released.load(Ordering::Relaxed),
                    "the module went while a listener had a filter"
                );
                return Ok(());
            }
            Err(Errno::EWOULDBLOCK) if !is_released => {
                round.board.event("unloading refused, as it has to be");
                sleep(Duration::from_millis(25) * round.patience);
            }
            Err(Errno::EWOULDBLOCK) => {
                let since = *released.get_or_insert_with(Instant::now);
                if since.elapsed() > round.limit() {
                    let count = module::refcount()?.unwrap_or(0);
                    ensure!(
                        count == 0,
                        "the module's reference count is {count} with nobody left who has it"
                    );
                    module::try_unload().context("unload the module at last")?;
                    return Ok(());
                }
                sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error).context("unload the module"),
        }
    }
}

/// A policy, at random.
pub(crate) fn any_policy(rng: &mut fastrand::Rng) -> OnTimeout {
    match rng.u8(..3) {
        0 => OnTimeout::Accept,
        1 => OnTimeout::Reset,
        _ => OnTimeout::Drop,
    }
}

/// A family, at random.
pub(crate) fn any_family(rng: &mut fastrand::Rng) -> Family {
    match rng.u8(..3) {
        0 => Family::V4,
        1 => Family::V6,
        _ => Family::Mapped,
    }
}

impl<'a> Round<'a> {
    /// A round that has not begun.
    pub(crate) fn new(
        number: u32,
        seed: u64,
        board: &'a Board,
        program: &'a Program,
        patience: u32,
    ) -> Self {
        Self {
            number,
            seed,
            shortage: Shortage::of_round(number),
            board,
            program,
            patience,
            ready: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            released: AtomicBool::new(false),
        }
    }
}
