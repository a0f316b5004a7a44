// SPDX-License-Identifier: MIT OR Apache-2.0
//! What closing a listener costs that has many clients.
//!
//! Those of a plain listener are in its accept queue, those of a filtered one are parked. The
//! kernel holds the listener's lock for less than `close(2)` takes, so that is an upper limit.

use std::thread::sleep;
use std::time::{Duration, Instant};

use accf_bench::{Bench, Listener, Measurement, Unit};
use accf_kit::control::{self, OnTimeout};
use accf_kit::count;
use accf_kit::counters::Counters;
use accf_kit::endpoint::Listen;
use accf_kit::tun_clients::TunClients;
use anyhow::{ensure, Context, Result};

use crate::idle_clients::{namespace, BATCH};
use crate::rounds::{in_turn, no_syncookies, Figure, Figures, Plan, FAMILY};

/// The numbers of clients.
const CLIENTS: [u32; 2] = [1_000, 10_000];
/// The listeners; `TCP_DEFER_ACCEPT` drops its silent clients without a word.
const LISTENERS: [Listener; 2] = [Listener::Plain, Listener::Dataready];
/// The pause after each batch that connects.
const BATCH_PAUSE: Duration = Duration::from_millis(50);
/// The limit for a segment that the server sends at once.
const ANSWERS_WITHIN: Duration = Duration::from_millis(10);
/// The limit for the next reset.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// What a close took.
struct Close {
    /// The instructions of the system call.
    instructions: u64,
    /// The time from the system call to the last client's reset.
    told: Duration,
}

/// Measures; a short run measures the same.
pub(crate) fn measure(plan: Plan) -> Result<Vec<Measurement>> {
    let mut figures = Figures::new(Bench::Close);
    for round in 0..plan.rounds {
        for clients in CLIENTS {
            for listener in in_turn(LISTENERS, round) {
                let seen = close(listener, clients)
                    .with_context(|| format!("{}, {clients} clients", listener.key()))?;
                let of = |metric, unit| Figure::new(metric, unit, listener).at(clients.into());
                figures.add(
                    of("close", Unit::Instructions),
                    seen.instructions as f64 / f64::from(clients),
                );
                figures.add(
                    of("told", Unit::Milliseconds),
                    seen.told.as_secs_f64() * 1e3,
                );
            }
        }
    }
    Ok(figures.finish())
}

/// Connects the clients, and closes their listener.
fn close(listener: Listener, clients: u32) -> Result<Close> {
    let ns = namespace()?;
    ns.set_sysctl("net.core.somaxconn", &clients.to_string())?;
    let listen = match listener {
        Listener::Dataready => {
            Listen::filtered(FAMILY).config(control::settings(0, 2 * clients, OnTimeout::Accept))
        }
        _ => Listen::plain(FAMILY),
    };
    let listening = listen.backlog(i32::try_from(clients)?).open(&ns)?;
    let mut tun = TunClients::new(&ns, FAMILY, listening.port())?;
    let before = Counters::read(&ns)?;
    for begin in (0..clients).step_by(BATCH as usize) {
        tun.open(begin..begin + BATCH, ANSWERS_WITHIN)?;
        sleep(BATCH_PAUSE);
    }
    no_syncookies(&before, &Counters::read(&ns)?)?;
    if listener == Listener::Dataready {
        let parked = control::stats(&listening).context("ACCF_STATS")?.parked;
        ensure!(
            parked == u64::from(clients),
            "{parked} of {clients} clients are parked"
        );
    }
    let begin = Instant::now();
    let ((), instructions) = count::during(|| drop(listening));
    let mut is_told = vec![false; clients as usize];
    let mut untold = clients;
    let mut told = Duration::ZERO;
    while untold > 0 {
        let any = tun.pump(TOLD_WITHIN, |nth, segment| {
            let is_told = is_told.get_mut(nth as usize).context("no such client")?;
            if segment.is_rst() && !*is_told {
                *is_told = true;
                untold -= 1;
                told = begin.elapsed();
            }
            Ok(())
        })?;
        ensure!(any, "{untold} of {clients} clients were not told");
    }
    Ok(Close { instructions, told })
}
