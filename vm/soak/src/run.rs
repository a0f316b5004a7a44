// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs a round: loads the module, runs everything at once, lets all of it come to rest, and
//! unloads the module.

use std::sync::atomic::Ordering;
use std::thread::{self, sleep, ScopedJoinHandle};
use std::time::{Duration, Instant};

use accf_kit::endpoint::{Family, Listen};
use accf_kit::fault::Failing;
use accf_kit::module;
use accf_kit::netns::Netns;
use anyhow::{ensure, Context as _, Result};
use nix::errno::Errno;

use crate::round::{Round, Shortage};
use crate::{
    bursts, changing_listeners, impaired_wire, namespaces, pauses, probes, segment_clients,
    server_group, sources, watch,
};

/// What an actor in a round does.
pub(crate) type Actor = fn(&Round<'_>) -> Result<()>;

/// A round with fewer clients goes on for a while: on a machine that is very busy.
const ENOUGH: u64 = 400;

/// The actors that make clients and serve them: each ends by itself once the round is over.
pub(crate) const ACTORS: [(&str, Actor); 10] = [
    ("raw clients", segment_clients::run),
    ("a cable that loses", impaired_wire::lossy),
    ("a cable with conntrack", impaired_wire::tracked),
    ("changing listeners", changing_listeners::run),
    ("listeners that pause", pauses::run),
    ("probes", probes::run),
    ("bursts", bursts::run),
    ("sources", sources::run),
    ("a group", server_group::run),
    ("namespaces", namespaces::run),
];

/// Runs a round for as long as `time` says, and until all of it is over.
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
        // An actor that ends before the round is over has failed.
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

/// Complains if a thread failed.
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

/// Returns what the module is loaded with.
fn parameters(round: &Round<'_>, rng: &mut fastrand::Rng) -> String {
    let timeout_ms = rng.u32(200..5_000);
    let on_timeout = rng.u8(..3);
    // Otherwise some clients might not be parked for want of room.
    let max_parked_netns = if round.has_all() {
        262_144
    } else {
        rng.u32(8..64)
    };
    format!("timeout_ms={timeout_ms} on_timeout={on_timeout} max_parked_netns={max_parked_netns}")
}

/// Tries to unload the module: in vain as long as it is in use, and then with success.
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
                        "the module's reference count is {count}, and nothing uses it"
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
