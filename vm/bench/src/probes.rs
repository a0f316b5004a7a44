// SPDX-License-Identifier: MIT OR Apache-2.0
//! What it costs to probe parked clients.
//!
//! Some clients are probed often, beside more and more that are not, and answer to each probe.
//! While probes are sent, this thread keeps the processor busy: what it does not get has gone to
//! interrupts, of which those without a client are subtracted.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::thread::sleep;
use std::time::{Duration, Instant};

use accf_bench::{Bench, Listener, Measurement, Unit};
use accf_kit::control::{self, Config, OnTimeout, Stats};
use accf_kit::count;
use accf_kit::counters::Counters;
use accf_kit::endpoint;
use accf_kit::endpoint::Listen;
use accf_kit::segment::{Flags, Segment};
use accf_kit::tun_clients::{TunClient, TunClients};
use anyhow::{ensure, Context, Result};

use crate::idle_clients::{namespace, BATCH, SETTLES_WITHIN};
use crate::rounds::{median, no_syncookies, Figure, Figures, Plan, FAMILY};
use crate::steps::{steps, Step};

/// The maximum of clients that are not probed.
const MAX_IDLE: u32 = 100_000;
/// After how long these would be probed: longer than the benchmark takes.
const IDLE_FOR: Duration = Duration::from_secs(3600);
/// The pause after each batch of them that connects.
const BATCH_PAUSE: Duration = Duration::from_millis(50);
/// The clients that are probed, and how often.
const PROBED: u32 = 1_000;
const PROBED_AFTER: Duration = Duration::from_millis(200);
/// Longer than the 0.3 s after which the time of a client's first probe is set.
const PARKED_FOR: Duration = Duration::from_secs(1);
/// How long probes are counted.
const WINDOW: Duration = Duration::from_millis(100);
/// How many probes are to be counted for one sample, at least.
const PROBES: u64 = 1_000;
/// The limit for a segment that the server sends at once.
const ANSWERS_WITHIN: Duration = Duration::from_millis(10);

/// Measures.
pub(crate) fn measure(plan: Plan) -> Result<Vec<Measurement>> {
    let mut figures = Figures::new(Bench::Probes);
    for round in 0..plan.rounds {
        let wanted = steps(plan, round).into_iter();
        for step in wanted.filter(|step| step.clients <= MAX_IDLE) {
            probe(step, &mut figures).with_context(|| format!("{} clients", step.clients))?;
        }
    }
    Ok(figures.finish())
}

/// A listener with parked clients that are probed.
struct Probed {
    listener: endpoint::Listener,
    tun: TunClients,
    /// All clients, by their numbers.
    clients: Vec<TunClient>,
    /// Those that have been probed, and have not answered yet.
    asked: VecDeque<u32>,
    answers: u64,
}

/// Parks the clients of a step, and measures.
fn probe(step: Step, figures: &mut Figures) -> Result<()> {
    let ticks = ticks();
    let ns = namespace()?;
    let all = step.clients + PROBED;
    let settings = |probe| Config {
        probe: Some(probe),
        // Of more than half, the module would count connections by source.
        max_parked: NonZeroU32::new(2 * all),
        ..control::settings(0, 0, OnTimeout::Accept)
    };
    let listener = Listen::filtered(FAMILY)
        .config(settings(IDLE_FOR))
        .open(&ns)?;
    let mut probed = Probed {
        tun: TunClients::new(&ns, FAMILY, listener.port())?,
        listener,
        clients: Vec::new(),
        asked: VecDeque::new(),
        answers: 0,
    };
    let before = Counters::read(&ns)?;
    for first in (0..step.clients).step_by(BATCH as usize) {
        let mut batch = probed.tun.open(first..first + BATCH, ANSWERS_WITHIN)?;
        probed.clients.append(&mut batch);
        sleep(BATCH_PAUSE);
    }
    // By then it is settled when those will be probed.
    sleep(PARKED_FOR);
    control::set_config(&probed.listener, &settings(PROBED_AFTER))?;
    for _ in 0..PROBED {
        probed.open()?;
    }
    no_syncookies(&before, &Counters::read(&ns)?)?;
    let of = |metric| {
        Figure::new(metric, Unit::Instructions, Listener::Dataready).at(step.clients.into())
    };
    for _ in 0..step.passes {
        let mut answers = Vec::new();
        let (mut probes, mut spent) = (0, 0);
        while probes < PROBES {
            let before = probed.stats()?.probes;
            spent += interrupts().saturating_sub(ticks);
            probes += probed.stats()?.probes - before;
            answers.append(&mut probed.answer()?);
        }
        figures.add(of("probe"), spent as f64 / probes as f64);
        figures.add(of("answer"), median(&mut answers)?);
    }
    let stats = probed.stats()?;
    ensure!(
        [stats.parked, stats.died] == [u64::from(all), 0],
        "not all of {all} clients are parked: {stats:?}"
    );
    ensure!(
        stats.probes - probed.answers <= u64::from(PROBED),
        "{} answers to probes: {stats:?}",
        probed.answers
    );
    Ok(())
}

impl Probed {
    fn stats(&self) -> Result<Stats> {
        control::stats(&self.listener).context("ACCF_STATS")
    }

    /// Has one more client do its handshake; those that are probed meanwhile answer.
    fn open(&mut self) -> Result<()> {
        let nth = u32::try_from(self.clients.len())?;
        let mut client = self.tun.client(nth);
        self.tun.syn(&mut client)?;
        while client.rcv_nxt == 0 {
            let asked = &mut self.asked;
            let any = self.tun.pump(ANSWERS_WITHIN, |to, segment| {
                if to == nth && segment.is_syn_ack() {
                    client.rcv_nxt = segment.end_seq();
                    return Ok(());
                }
                note(asked, to, segment)
            })?;
            ensure!(any, "no answer to the SYN of client {nth}");
        }
        self.tun.push(&mut client, Flags::ACK, b"")?;
        self.clients.push(client);
        self.answer_asked()?;
        Ok(())
    }

    /// Takes the probes that have come, and answers them; returns the instructions that each answer
    /// took.
    fn answer(&mut self) -> Result<Vec<u64>> {
        while let Some((to, segment)) = self.tun.take()? {
            note(&mut self.asked, to, &segment)?;
        }
        self.answer_asked()
    }

    fn answer_asked(&mut self) -> Result<Vec<u64>> {
        let mut spent = Vec::new();
        while let Some(nth) = self.asked.pop_front() {
            let client = self.clients.get_mut(nth as usize);
            let client = client.context("a probe for no client")?;
            let before = self.tun.spent();
            self.tun.push(client, Flags::ACK, b"")?;
            spent.push(self.tun.spent() - before);
            self.answers += 1;
        }
        Ok(spent)
    }
}

/// Notes a probe, which any segment for a connected client must be.
fn note(asked: &mut VecDeque<u32>, to: u32, segment: &Segment) -> Result<()> {
    ensure!(
        segment.is_bare_ack(),
        "not a probe, for client {to}: {segment}"
    );
    asked.push_back(to);
    Ok(())
}

/// Waits until what was measured before is gone, and returns how many instructions interrupts take
/// in a [`WINDOW`] in which there is nothing else.
fn ticks() -> u64 {
    let mut least = interrupts();
    loop {
        sleep(SETTLES_WITHIN);
        let taken = interrupts();
        if taken >= least - least / 10 {
            return taken.min(least);
        }
        least = taken;
    }
}

/// Keeps the processor busy for [`WINDOW`], and returns how many instructions others have taken.
fn interrupts() -> u64 {
    /// More instructions than a pass of the loop takes, and fewer than any interrupt.
    const STEP: u64 = 200;
    let end = Instant::now() + WINDOW;
    let mut taken = 0;
    loop {
        // Looking at the clock takes longer than a step.
        let is_over = Instant::now() >= end;
        let mut last = count::instructions();
        for _ in 0..10_000 {
            let now = count::instructions();
            if now - last > STEP {
                taken += now - last;
            }
            last = now;
        }
        if is_over {
            return taken;
        }
    }
}
