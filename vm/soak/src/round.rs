// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a round offers to everything that happens in it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use accf_kit::account;
use accf_kit::control::Stats;
use accf_kit::endpoint::{reset_on_close, Listener};
use accf_kit::fault::Whose;
use accf_kit::netns::Netns;
use accf_kit::tun_clients::TunClients;
use anyhow::{ensure, Result};

use crate::board::Board;
use crate::program::Program;

/// What is short in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// Nothing.
    None,
    /// This percentage of allocations fails, and room is short as well.
    Of(Whose, u8),
    /// Room for parked requests in each namespace.
    Room,
}

/// In this order, over and over; the worst one comes early, too.
const SHORTAGES: [Shortage; 6] = [
    Shortage::None,
    Shortage::Of(Whose::Module, 10),
    Shortage::Of(Whose::Network, 1),
    Shortage::None,
    Shortage::Of(Whose::Module, 1),
    Shortage::Of(Whose::Network, 10),
];

impl Shortage {
    /// Returns what is short in a round.
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

/// One round, as it is given to each thread in it.
pub(crate) struct Round<'a> {
    /// Which it is, from 0.
    pub(crate) number: u32,
    /// The seed of its random numbers.
    pub(crate) seed: u64,
    /// What is short.
    pub(crate) shortage: Shortage,
    /// Where everything is counted.
    pub(crate) board: &'a Board,
    /// This program, for processes of its own.
    pub(crate) program: &'a Program,
    /// How many times longer than on a stock kernel everything may take.
    pub(crate) patience: u32,
    /// How many actors there are, and how many of them are ready.
    actors: usize,
    ready: AtomicUsize,
    /// No more clients are to begin.
    pub(crate) over: AtomicBool,
    /// All clients are gone, and servers may go.
    pub(crate) settled: AtomicBool,
    /// Nothing holds the module any more.
    pub(crate) released: AtomicBool,
}

impl<'a> Round<'a> {
    /// Makes a round that has not begun.
    pub(crate) fn new(
        number: u32,
        seed: u64,
        board: &'a Board,
        program: &'a Program,
        patience: u32,
        actors: usize,
    ) -> Self {
        Self {
            number,
            seed,
            shortage: Shortage::of_round(number),
            board,
            program,
            patience,
            actors,
            ready: AtomicUsize::new(0),
            over: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            released: AtomicBool::new(false),
        }
    }

    /// Returns random numbers that are the same for the same seed, round and name.
    pub(crate) fn rng(&self, name: &str) -> fastrand::Rng {
        let start = self.seed ^ u64::from(self.number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hash = name.bytes().fold(start, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        fastrand::Rng::with_seed(hash)
    }

    /// Makes a network namespace for an actor, and has the board count and show it.
    pub(crate) fn namespace(&self) -> Result<Netns> {
        let ns = Netns::new()?;
        self.board.event("namespaces made");
        self.board.show_namespace(&ns);
        Ok(ns)
    }

    /// Waits until all actors are ready, so that they begin together.
    pub(crate) fn begin(&self) {
        self.ready.fetch_add(1, Ordering::Relaxed);
        while !self.has_begun() && !self.is_over() {
            sleep(Duration::from_millis(20));
        }
    }

    /// Returns whether all actors were ready.
    pub(crate) fn has_begun(&self) -> bool {
        self.ready.load(Ordering::Relaxed) >= self.actors
    }

    /// Returns whether no more clients are to begin.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Returns whether all clients are gone, and servers may go.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    /// Returns whether nothing is short, so that it is known what has to become of each client.
    pub(crate) fn has_all(&self) -> bool {
        self.shortage == Shortage::None
    }

    /// Returns the deadline of listeners whose clients' fate is to be known.
    pub(crate) fn deadline(&self) -> Duration {
        Duration::from_millis(1500) * self.patience.min(3)
    }

    /// Returns how long a client may live, beyond its silence.
    pub(crate) fn lifetime(&self) -> Duration {
        Duration::from_secs(40) * self.patience.min(3)
    }

    /// Returns how long to wait for what will surely happen.
    pub(crate) fn limit(&self) -> Duration {
        Duration::from_secs(30) * self.patience
    }

    /// From one client to the next at a place.
    pub(crate) fn gap(&self) -> Duration {
        Duration::from_millis(8) * self.patience
    }

    /// Sleeps for a random while; returns whether the round goes on.
    pub(crate) fn pause(&self, rng: &mut fastrand::Rng, most: Duration) -> bool {
        /// A longer sleep would notice too late that the round is over.
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

    /// Takes segments off a wire until `done` says so, which must be within the limit.
    pub(crate) fn wait_for(
        &self,
        tun: &mut TunClients,
        mut done: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        let begin = Instant::now();
        while !done()? {
            ensure!(
                begin.elapsed() < self.limit(),
                "not within {:?}",
                self.limit()
            );
            tun.pump(Duration::from_millis(10), |_, _| Ok(()))?;
        }
        Ok(())
    }

    /// Waits until a listener has come to rest, and records that. `hear` takes what its clients are
    /// sent off the wire; connections are reset.
    pub(crate) fn comes_to_rest(
        &self,
        listener: &Listener,
        mut hear: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let seen = account::settle(listener, self.limit(), account::at_rest, || {
            hear()?;
            while let Some(accepted) = listener.accept_now()? {
                reset_on_close(&accepted.stream)?;
            }
            Ok(())
        })?;
        self.at_rest(&seen);
        Ok(())
    }

    /// Records that a listener has come to rest, with these counts.
    pub(crate) fn at_rest(&self, seen: &Stats) {
        self.board.counted(seen);
        self.board
            .event("listeners at rest with nothing left, and sums that are right");
    }
}
