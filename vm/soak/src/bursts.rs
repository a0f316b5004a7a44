// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bursts: clients that connect ahead of need, and of which some ask or close at the same moment,
//! more than the accept queue is long, while the others vanish, and are probed.

use std::io::Read as _;
use std::thread::sleep;
use std::time::Duration;

use accf_kit::account::describe;
use accf_kit::control::{pause, resume, stats, timeout};
use accf_kit::endpoint::{probe_clients, reset_on_close, Accepted, Listen, Listener};
use accf_kit::segment::Flags;
use accf_kit::tun_clients::{TunClient, TunClients};
use anyhow::{ensure, Context as _, Result};

use crate::random::any_family;
use crate::round::Round;

const PLACE: &str = "bursts";

/// The backlog, and how many clients come at a time.
const BACKLOG: i32 = 64;
const CLIENTS: u32 = 150;
/// What a client asks.
const REQUEST: &[u8] = b"burst";
/// After this time of silence a client is probed, and given up after two more such times.
const SILENCE: Duration = Duration::from_secs(2);
/// For how long a client is parked before it counts as idle, at least.
const IDLE: Duration = Duration::from_millis(1_100);

/// How many clients did what.
#[derive(Clone, Copy, Debug, Default)]
struct Habits {
    asked: u64,
    closed: u64,
    vanished: u64,
}

pub(crate) fn run(round: &Round<'_>) -> Result<()> {
    let mut rng = round.rng(PLACE);
    let family = any_family(&mut rng);
    let ns = round.namespace()?;
    // Half-open clients are forgotten after 7 s.
    ns.set_sysctl("net.ipv4.tcp_synack_retries", "2")?;
    let listen = Listen::filtered(family).backlog(BACKLOG).config(timeout(0));
    let listener = listen.open(&ns)?;
    probe_clients(&listener, SILENCE, 2)?;
    let mut tun = TunClients::new(&ns, family, listener.port())?;
    let mut first = 0;
    let mut sum = Habits::default();
    round.begin();
    let most = Duration::from_millis(300) * round.patience;
    while round.pause(&mut rng, most) {
        let habits = burst(round, &mut rng, &mut tun, &listener, first).with_context(|| {
            let seen = stats(&listener).map_or_else(|error| error.to_string(), |it| describe(&it));
            format!("{family}, a listener that has counted {seen}")
        })?;
        first += CLIENTS;
        sum.asked += habits.asked;
        sum.closed += habits.closed;
        sum.vanished += habits.vanished;
        round.board.begun(PLACE, first.into());
    }
    for (habit, count) in [
        ("asks with others", sum.asked),
        ("closes with others", sum.closed),
        ("vanishes", sum.vanished),
    ] {
        round.board.clients(PLACE, habit, "accounted for", count);
    }
    round.board.events_of("requests in bursts", sum.asked);
    round.board.events_of("clients that vanished", sum.vanished);
    pause(&listener)?;
    round.comes_to_rest(&listener, || {
        tun.pump(Duration::from_millis(1), |_, _| Ok(()))?;
        Ok(())
    })
}

/// Has clients come, ask, close and vanish; returns how many did what, once all are gone.
fn burst(
    round: &Round<'_>,
    rng: &mut fastrand::Rng,
    tun: &mut TunClients,
    listener: &Listener,
    first: u32,
) -> Result<Habits> {
    let before = stats(listener)?;
    let mut clients = tun.try_open(first..first + CLIENTS, round.limit() / 20)?;
    let all = u64::try_from(clients.len())?;
    if round.has_all() {
        ensure!(
            all == u64::from(CLIENTS),
            "{all} of {CLIENTS} clients could connect"
        );
        round
            .wait_for(tun, || Ok(stats(listener)?.parked == all))
            .context("all parked")?;
        // Until the last one counts as idle, also soon after the burst before.
        sleep(IDLE);
    }
    let mut habits = Habits::default();
    rng.shuffle(&mut clients);
    for client in &mut clients {
        act(rng, tun, client, &mut habits)?;
    }
    let mut asked = 0;
    let mut closed = 0;
    let mut serve = || -> Result<bool> {
        while let Some(accepted) = listener.accept_now()? {
            match read(&accepted)? {
                Some(true) => asked += 1,
                Some(false) => closed += 1,
                None => {}
            }
            reset_on_close(&accepted.stream)?;
        }
        let seen = stats(listener)?;
        Ok(seen.parked == 0 && seen.half_open <= 0)
    };
    if !round.has_all() {
        // Those that have not all been parked, or whose segments were dropped, are not told apart.
        pause(listener)?;
        round.wait_for(tun, &mut serve).context("all gone")?;
        resume(listener)?;
        return Ok(habits);
    }
    round.wait_for(tun, &mut serve).context("all gone")?;
    serve()?;
    let seen = stats(listener)?;
    for (what, seen, expected) in [
        ("requests read", asked, habits.asked),
        ("ends read", closed, habits.closed),
        (
            "released by data",
            seen.released_data - before.released_data,
            habits.asked,
        ),
        ("died", seen.died - before.died, habits.vanished),
        ("aborted", seen.aborted - before.aborted, 0),
        (
            "segments dropped",
            seen.overflow_dropped - before.overflow_dropped,
            0,
        ),
    ] {
        ensure!(seen == expected, "{what}: {seen}, not {expected}");
    }
    Ok(habits)
}

/// Has a client do what it does.
fn act(
    rng: &mut fastrand::Rng,
    tun: &TunClients,
    client: &mut TunClient,
    habits: &mut Habits,
) -> Result<()> {
    match rng.u8(..10) {
        0 => habits.vanished += 1,
        1 | 2 => {
            tun.push(client, Flags::FIN_ACK, b"")?;
            habits.closed += 1;
        }
        _ => {
            tun.push(client, Flags::PSH_ACK, REQUEST)?;
            habits.asked += 1;
        }
    }
    Ok(())
}

/// Reads what a client has sent: whether it has asked, or closed; `None` if nothing is there.
fn read(accepted: &Accepted) -> Result<Option<bool>> {
    let mut bytes = [0; REQUEST.len()];
    accepted.stream.set_nonblocking(true)?;
    match (&accepted.stream).read(&mut bytes) {
        Ok(0) => Ok(Some(false)),
        Ok(length) => {
            ensure!(bytes.get(..length) == Some(REQUEST), "not the request");
            Ok(Some(true))
        }
        Err(_) => Ok(None),
    }
}
