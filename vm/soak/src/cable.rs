// SPDX-License-Identifier: MIT OR Apache-2.0
//! Clients and a server that are the kernel's own, at the two ends of a cable with something the matter with it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use accf_kit::account::describe;
use accf_kit::control::{settings, OnTimeout, Stats};
use accf_kit::endpoint::{Listen, Listener};
use accf_kit::netns::Netns;
use accf_kit::traffic::{Crowd, Fates, Habit, Served, Server, Target};
use accf_kit::wire::Wire;
use anyhow::{anyhow, ensure, Context as _, Result};

use crate::round::{any_family, Round};

/// How many of a hundred packets are lost, come twice, overtake others.
const DISTURBED: u8 = 20;

/// What connection tracking is to do: look at each packet, and drop what belongs to no connection.
const TRACKING: &str = "table inet soak {
    chain input {
        type filter hook input priority filter; policy accept;
        ct state invalid counter drop
        ct state established,related counter accept
        ct state new counter accept
    }
    chain output {
        type filter hook output priority filter; policy accept;
        ct state invalid counter drop
    }
}
";

/// The settings of the listeners: what becomes of the silent, and whether there is so little room that some make it.
const LISTENERS: [(OnTimeout, bool); 5] = [
    (OnTimeout::Accept, false),
    (OnTimeout::Reset, false),
    (OnTimeout::Drop, false),
    (OnTimeout::Accept, true),
    (OnTimeout::Reset, true),
];

/// So many are there at once, at most.
const AT_ONCE: usize = 60;

/// A cable that loses, repeats and reorders packets.
pub(crate) fn lossy(round: &Round<'_>) -> Result<()> {
    let wire = Wire::new()?;
    wire.disturb(DISTURBED)?;
    for ns in [&wire.client, &wire.server] {
        for (name, value) in [
            // Whoever is not heard says it again each second, until it is heard.
            ("net.ipv4.tcp_rto_max_ms", "1000"),
            ("net.ipv4.tcp_syn_linear_timeouts", "30"),
            ("net.ipv4.tcp_syn_retries", "30"),
            ("net.ipv4.tcp_synack_retries", "30"),
        ] {
            ns.set_sysctl(name, value)?;
        }
    }
    traffic(
        round,
        &wire,
        "a cable that loses, repeats and reorders 20 %",
        true,
    )
}

/// A cable where both ends have a firewall that knows of connections.
pub(crate) fn tracked(round: &Round<'_>) -> Result<()> {
    let wire = Wire::new()?;
    for ns in [&wire.client, &wire.server] {
        track(ns)?;
    }
    traffic(round, &wire, "a cable with connection tracking", false)
}

fn track(ns: &Netns) -> Result<()> {
    ns.feed("nft", &["-f", "-"], TRACKING)
        .context("connection tracking (CONFIG_NFT_CT)")
        .map(drop)
}

fn traffic(round: &Round<'_>, wire: &Wire, place: &str, loses: bool) -> Result<()> {
    round.board.events_of("namespaces made", 2);
    round.board.show_namespace(&wire.server);
    let mut rng = round.rng(place);
    let lossy = loses || !round.has_memory();
    let deadline = round.deadline();
    let deadline_ms = u32::try_from(deadline.as_millis())?;
    let mut server = Server::new()?;
    let mut targets = Vec::new();
    for (on_timeout, evicts) in LISTENERS {
        let family = any_family(&mut rng);
        let listener = Listen::filtered(family)
            .backlog(1024)
            .config(settings(
                deadline_ms,
                if evicts { 3 } else { 0 },
                on_timeout,
            ))
            .open(&wire.server)?;
        targets.push(Target {
            address: wire.server_address(family, listener.port()),
            deadline,
            on_timeout: Some(on_timeout),
            // Where memory is short, there is also little room for all.
            evicts: evicts || !round.has_memory(),
            lossy,
        });
        server.add(listener)?;
    }
    let margin = deadline / 3;
    let mut crowd = Crowd::new(targets, margin, round.lifetime(), rng)?;
    let gone = AtomicBool::new(false);
    round.begin();
    let crowd = thread::scope(|scope| -> Result<Crowd> {
        let clients = scope.spawn(|| -> Result<Crowd> {
            wire.client.enter()?;
            let result = crowd.run(AT_ONCE, round.gap(), |crowd| {
                let begun = crowd.begun().values().sum();
                round.board.begun(place, begun);
                round.is_over()
            });
            gone.store(true, Ordering::Relaxed);
            result.map(|()| crowd)
        });
        while !gone.load(Ordering::Relaxed) && !clients.is_finished() {
            server.step(Duration::from_millis(50))?;
        }
        clients
            .join()
            .map_err(|_| anyhow!("the clients panicked"))?
    })?;
    tell(round, place, &crowd);
    for index in 0..LISTENERS.len() {
        let listener = server.take(index)?.context("no such listener")?;
        let seen = settle(round, &mut server, index, listener)?;
        let served = server.served(index);
        accepted(
            &seen,
            &served,
            LISTENERS.get(index),
            crowd.fates(),
            index,
            lossy,
        )
        .with_context(|| {
            format!(
                "{:?}: {}; {served:?}",
                LISTENERS.get(index),
                describe(&seen)
            )
        })?;
    }
    Ok(())
}

/// Counts what became of clients, and complains of what should not have.
pub(crate) fn tell(round: &Round<'_>, place: &str, crowd: &Crowd) {
    for ((_, habit, _, fate), count) in crowd.fates() {
        round
            .board
            .clients(place, habit.text(), fate.text(), *count);
    }
    for complaint in crowd.complaints() {
        round.board.complain(format!(
            "round {} ({}), {place}: {complaint}",
            round.number + 1,
            round.shortage
        ));
    }
}

/// Serves whoever still comes to a listener until it is at rest, then closes it.
pub(crate) fn settle(
    round: &Round<'_>,
    server: &mut Server,
    index: usize,
    listener: Listener,
) -> Result<Stats> {
    server.put_back(index, listener)?;
    let copy = server
        .listener(index)
        .context("no such listener")?
        .socket()
        .try_clone()?;
    let copy = Listener::from_socket(copy)?;
    let seen = round.settle(&copy, || {
        while server.step(Duration::from_millis(10))? {}
        Ok(())
    });
    // Whatever was accepted last is in the queue by now.
    while server.step(Duration::from_millis(10))? {}
    server.take(index)?;
    seen
}

/// Whoever was released was accepted, and nobody else but those that were never held back.
fn accepted(
    seen: &Stats,
    served: &Served,
    settings: Option<&(OnTimeout, bool)>,
    fates: &Fates,
    index: usize,
    lossy: bool,
) -> Result<()> {
    let mut released = seen.released_data + seen.released_fin + seen.timeout_accept;
    if settings.is_some_and(|(on_timeout, _)| *on_timeout == OnTimeout::Accept) {
        released += seen.evicted;
    }
    ensure!(
        served.accepted >= released,
        "{} were accepted, of {released} that were released",
        served.accepted
    );
    // Where the ACK gets lost, whoever speaks was never held back.
    if lossy {
        return Ok(());
    }
    // Who speaks at once may be heard before its ACK is, on another processor.
    let eager: u64 = fates
        .iter()
        .filter(|((target, habit, ..), _)| {
            *target == index && matches!(habit, Habit::Eager | Habit::Prompt)
        })
        .map(|(_, count)| *count)
        .sum();
    let most = released + eager + seen.bypassed() + seen.returned;
    ensure!(
        served.accepted <= most,
        "{} were accepted, of {most} at most that could be",
        served.accepted
    );
    Ok(())
}
