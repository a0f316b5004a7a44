// SPDX-License-Identifier: MIT OR Apache-2.0
//! Listeners that change all the time while clients come: their settings, their filter, whether
//! they are there at all.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use accf_kit::account::stats;
use accf_kit::clients::Target;
use accf_kit::control::{pause, resume, set_config, settings, Config};
use accf_kit::endpoint::{set_defer_accept, Family, Listen, Listener};
use accf_kit::netns::Netns;
use accf_kit::server::Server;
use accf_kit::{ulp, wait};
use anyhow::{Context as _, Result};

use crate::ecn::Ecn;
use crate::random::{any_family, any_on_close, any_policy, any_settings};
use crate::round::Round;
use crate::socket_clients::run_clients;

const PLACE: &str = "listeners that change and close";

/// How many listeners there are.
const LISTENERS: usize = 4;
const BACKLOG: i32 = 1024;
/// Below the ports that clients get: a listener that is opened again finds its port free.
const FIRST_PORT: u16 = 8001;

/// A listener that changes.
struct Changing {
    family: Family,
    port: u16,
    /// Whether it listens, and has no filter yet.
    bare: bool,
    /// When it is to be there again.
    closed_until: Option<Instant>,
}

pub(crate) fn run(round: &Round<'_>) -> Result<()> {
    let mut rng = round.rng(PLACE);
    let ns = round.namespace()?;
    let ecn = Ecn::at_random(round, &mut rng, &ns, &ns)?;
    let mut server = Server::new()?;
    let mut beds = Vec::new();
    let mut targets = Vec::new();
    for (port, _) in (FIRST_PORT..).zip(0..LISTENERS) {
        let family = any_family(&mut rng);
        let listener = Listen::filtered(family)
            .backlog(BACKLOG)
            .port(port)
            .config(any_settings(&mut rng))
            .open(&ns)?;
        let address = family.loopback(listener.port());
        targets.push(Target::that_changes(address, Duration::from_secs(2)));
        beds.push(Changing {
            family,
            port: listener.port(),
            bare: false,
            closed_until: None,
        });
        server.add(listener)?;
    }
    let mut next = Instant::now();
    round.begin();
    run_clients(round, PLACE, &ns, targets, || {
        server.step(Duration::from_millis(10))?;
        if Instant::now() >= next && !round.is_over() {
            let index = rng.usize(..LISTENERS);
            let bed = beds.get_mut(index).context("no such listener")?;
            change(round, &ns, &mut server, index, bed, &mut rng)?;
            next = Instant::now() + Duration::from_millis(rng.u64(10..200));
        }
        for (index, bed) in beds.iter_mut().enumerate() {
            let is_time = bed
                .closed_until
                .is_some_and(|at| round.is_over() || Instant::now() >= at);
            if is_time {
                open(round, &ns, &mut server, index, bed, &mut rng)?;
            }
        }
        Ok(())
    })?;
    ecn.report(round)?;
    for (index, bed) in beds.iter_mut().enumerate() {
        if bed.closed_until.is_some() {
            open(round, &ns, &mut server, index, bed, &mut rng)?;
        }
        let listener = server.listener(index).context("no such listener")?;
        if bed.bare {
            ulp::attach(listener, ulp::DATAREADY).context("attach at last")?;
        }
        // Clients that are still parked meet their deadline now.
        set_config(listener, &settings(1, 0, any_policy(&mut rng)))?;
        round.at_rest(&server.settle(index, round.limit())?);
        drop(server.take(index)?);
    }
    Ok(())
}

/// Opens a listener again, on the same port; now and then without its filter, which it gets under
/// load.
fn open(
    round: &Round<'_>,
    ns: &Netns,
    server: &mut Server,
    index: usize,
    bed: &mut Changing,
    rng: &mut fastrand::Rng,
) -> Result<()> {
    let listen = match rng.u8(..3) {
        0 => Listen::plain(bed.family),
        1 => Listen::filtered(bed.family)
            .config(any_settings(rng))
            .filter_after_listen(),
        _ => Listen::filtered(bed.family).config(any_settings(rng)),
    };
    let listen = listen.backlog(BACKLOG).port(bed.port);
    // A process that is just being started has copies of all sockets for a moment, which may be
    // long where much is going on.
    let mut listener = listen.open(ns);
    wait::until(round.limit(), || {
        if listener.is_err() {
            listener = listen.open(ns);
        }
        Ok(listener.is_ok())
    })?;
    let listener = listener?;
    bed.bare = ulp::attached(&listener)?.is_none();
    server.put_back(index, listener)?;
    bed.closed_until = None;
    round.board.event("listeners opened under load");
    Ok(())
}

/// Changes a listener at random.
fn change(
    round: &Round<'_>,
    ns: &Netns,
    server: &mut Server,
    index: usize,
    bed: &mut Changing,
    rng: &mut fastrand::Rng,
) -> Result<()> {
    if bed.closed_until.is_some() {
        return Ok(());
    }
    let listener = server.listener(index).context("no such listener")?;
    if bed.bare {
        ulp::attach(listener, ulp::DATAREADY).context("attach under load")?;
        set_config(listener, &any_settings(rng))?;
        bed.bare = false;
        round.board.event("filters attached to live listeners");
        return Ok(());
    }
    match rng.u8(..100) {
        0..=39 => {
            let config = Config {
                on_close: any_on_close(rng),
                ..any_settings(rng)
            };
            set_config(listener, &config)?;
            round.board.event("settings changed under load");
        }
        40..=49 => {
            set_defer_accept(listener, rng.i32(0..5))?;
            round.board.event("TCP_DEFER_ACCEPT set under load");
        }
        50..=56 => {
            pause(listener)?;
            round.board.event("parking paused under load");
        }
        57..=59 => resume(listener)?,
        60..=74 => {
            stats(listener)?;
            round.board.event("counts read under load");
        }
        75..=84 => listen_again(round, listener)?,
        _ => {
            stats(listener)?;
            let listener = server.take(index)?;
            drop(listener);
            round.board.event("listeners closed under load");
            // Some at once, some later.
            bed.closed_until = Some(Instant::now() + Duration::from_millis(rng.u64(0..300)));
            if rng.bool() {
                open(round, ns, server, index, bed, rng)?;
            }
        }
    }
    Ok(())
}

/// Has a listener stop, and listen again.
fn listen_again(round: &Round<'_>, listener: &Listener) -> Result<()> {
    listener.socket().shutdown(Shutdown::Both)?;
    listener.socket().listen(BACKLOG).context("listen again")?;
    round.board.event("listeners shut down that listen again");
    Ok(())
}
