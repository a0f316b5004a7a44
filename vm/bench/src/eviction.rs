// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an eviction costs where many sources have parked a connection each, and one has many.

use std::time::Duration;

use accf_bench::{Bench, Listener, Measurement, Unit};
use accf_kit::control::{self, OnTimeout};
use accf_kit::counters::Counters;
use accf_kit::endpoint::Listen;
use accf_kit::segment::Flags;
use accf_kit::tun_clients::{TunClients, FIRST_SPREAD, SAME_ADDRESS};
use anyhow::{ensure, Context, Result};

use crate::idle_clients::namespace;
use crate::rounds::{median, no_syncookies, Figure, Figures, Plan, FAMILY};

/// The numbers of sources with one connection each.
const SOURCES: [u32; 3] = [1_000, 10_000, 100_000];
/// The maximum in a short run.
const MAX_IF_SHORT: u32 = 10_000;
/// The connections of the greedy source that are parked, and then those that come with each
/// `on_timeout`.
const GREEDY: u32 = 1_000;
/// Clients connect in batches, with a pause after each.
const BATCH: u32 = 100;
const BATCH_PAUSE: Duration = Duration::from_millis(50);
/// The limit for a segment that the server sends at once.
const ANSWERS_WITHIN: Duration = Duration::from_millis(10);

/// What becomes of the evicted.
const CASES: [(&str, OnTimeout); 2] = [("reset", OnTimeout::Reset), ("drop", OnTimeout::Drop)];

/// Measures.
pub(crate) fn measure(plan: Plan) -> Result<Vec<Measurement>> {
    let mut figures = Figures::new(Bench::Eviction);
    for _ in 0..plan.rounds {
        for sources in SOURCES {
            if !plan.short || sources <= MAX_IF_SHORT {
                with_sources(sources, &mut figures)
                    .with_context(|| format!("{sources} sources"))?;
            }
        }
    }
    Ok(figures.finish())
}

/// Fills a listener, and measures the bare ACK of each client that is one too many.
fn with_sources(sources: u32, figures: &mut Figures) -> Result<()> {
    let ns = namespace()?;
    let settings = |on_timeout| control::settings(0, sources + GREEDY, on_timeout);
    let listener = Listen::filtered(FAMILY)
        .config(settings(OnTimeout::Reset))
        .open(&ns)?;
    let mut tun = TunClients::new(&ns, FAMILY, listener.port())?;
    tun.spread(&ns)?;
    let before = Counters::read(&ns)?;
    for first in (0..sources).step_by(BATCH as usize) {
        let first = FIRST_SPREAD + first;
        tun.open(first..first + BATCH, ANSWERS_WITHIN)?;
        std::thread::sleep(BATCH_PAUSE);
    }
    let mut greedy = (0..).step_by(SAME_ADDRESS as usize);
    for nth in greedy.by_ref().take(GREEDY as usize) {
        open(&mut tun, nth)?;
    }
    let mut evicted = 0;
    for (case, on_timeout) in CASES {
        control::set_config(&listener, &settings(on_timeout))?;
        let mut instructions = Vec::new();
        for nth in greedy.by_ref().take(GREEDY as usize) {
            instructions.push(open(&mut tun, nth)?);
        }
        evicted += u64::from(GREEDY);
        let stats = control::stats(&listener).context("ACCF_STATS")?;
        ensure!(
            [stats.parked, stats.evicted] == [u64::from(sources + GREEDY), evicted],
            "not each was parked, and evicted another one: {stats:?}"
        );
        let figure = Figure::new("evict", Unit::Instructions, Listener::Dataready)
            .case(case)
            .at(sources.into());
        figures.add(figure, median(&mut instructions)?);
    }
    no_syncookies(&before, &Counters::read(&ns)?)
}

/// Does a client's handshake, and returns how many instructions its bare ACK took.
fn open(tun: &mut TunClients, nth: u32) -> Result<u64> {
    let mut client = tun.client(nth);
    tun.syn(&mut client)?;
    while client.rcv_nxt == 0 {
        let any = tun.pump(ANSWERS_WITHIN, |to, segment| {
            if to == nth && segment.is_syn_ack() {
                client.rcv_nxt = segment.end_seq();
            } else {
                // One that was evicted.
                ensure!(segment.is_rst(), "to client {to}: {segment}");
            }
            Ok(())
        })?;
        ensure!(any, "no answer to the SYN of client {nth}");
    }
    let before = tun.spent();
    tun.push(&mut client, Flags::ACK, b"")?;
    Ok(tun.spent() - before)
}
