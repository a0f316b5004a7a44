// SPDX-License-Identifier: MIT OR Apache-2.0
//! One address that opens more connections than there is room for, beside the clients of another
//! one: it makes room for itself, and theirs are served when they ask.

use std::io::Read as _;
use std::time::{Duration, Instant};

use accf_kit::account::describe;
use accf_kit::control::{pause, resume, set_config, settings, stats, OnTimeout};
use accf_kit::endpoint::{reset_on_close, Family, Listen, Listener};
use accf_kit::segment::Flags;
use accf_kit::tun_clients::{TunClient, TunClients, SAME_ADDRESS};
use anyhow::{ensure, Context as _, Result};

use crate::round::Round;

const PLACE: &str = "sources";

/// How many may be parked.
const ROOM: u32 = 32;
/// How many clients the one address has, and how many connections the greedy one opens.
const POOL: u32 = 10;
const GREEDY: u32 = 40;
/// How many connections an address opens before its ports come again.
const ROWS: u32 = 50_000;
/// A deadline that no client meets.
const FAR_MS: u32 = 600_000;
/// What a client asks.
const REQUEST: &[u8] = b"pool";

pub(crate) fn run(round: &Round<'_>) -> Result<()> {
    let mut rng = round.rng(PLACE);
    // All IPv6 clients behind the interface are of one /64, which is one source.
    let family = *rng
        .choice(&[Family::V4, Family::Mapped])
        .context("no family")?;
    let ns = round.namespace()?;
    // Half-open clients are forgotten after 7 s.
    ns.set_sysctl("net.ipv4.tcp_synack_retries", "2")?;
    let config = settings(FAR_MS, ROOM, OnTimeout::Reset);
    let listener = Listen::filtered(family).config(config).open(&ns)?;
    let mut tun = TunClients::new(&ns, family, listener.port())?;
    let (mut begun, mut served) = (0, 0);
    let mut row = 0;
    round.begin();
    let most = Duration::from_secs(1) * round.patience;
    while round.pause(&mut rng, most) {
        let on_timeout = *rng
            .choice(&[OnTimeout::Accept, OnTimeout::Reset, OnTimeout::Drop])
            .context("nothing to do with the evicted")?;
        set_config(&listener, &settings(FAR_MS, ROOM, on_timeout))?;
        served += compete(round, &mut tun, &listener, row).with_context(|| {
            let seen = stats(&listener).map_or_else(|error| error.to_string(), |it| describe(&it));
            format!("{family}, {on_timeout:?}, a listener that has counted {seen}")
        })?;
        row = (row + GREEDY) % ROWS;
        begun += u64::from(POOL + GREEDY);
        round.board.begun(PLACE, begun);
    }
    round
        .board
        .events_of("clients served beside a greedy source", served);
    round.comes_to_rest(&listener, || {
        tun.pump(Duration::from_millis(1), |_, _| Ok(()))?;
        Ok(())
    })
}

/// Has the pool connect, then the greedy address, and then the pool ask; returns how many of it
/// were served, once all are gone.
fn compete(round: &Round<'_>, tun: &mut TunClients, listener: &Listener, row: u32) -> Result<u64> {
    let at = |address: u32| (row..).map(move |row| row * SAME_ADDRESS + address);
    let mut pool = connect(round, tun, at(0).take(POOL as usize))?;
    // One that is evicted has seen its connection end before the others begin.
    let greedy = connect(round, tun, at(1).take(GREEDY as usize))?;
    let has_all = round.has_all() && pool.len() == POOL as usize && greedy.len() == GREEDY as usize;
    if has_all {
        round
            .wait_for(tun, || Ok(stats(listener)?.parked == u64::from(ROOM)))
            .context("all parked")?;
    }
    // Sources that share a bucket are one, and the pool's are the oldest of it.
    let sources = stats(listener)?.sources.iter().flatten().count();
    for client in &mut pool {
        tun.push(client, Flags::PSH_ACK, REQUEST)?;
    }
    let mut served = 0;
    let mut serve = || -> Result<()> {
        while let Some(accepted) = listener.accept_now()? {
            let mut bytes = [0; REQUEST.len()];
            accepted.stream.set_nonblocking(true)?;
            if matches!((&accepted.stream).read(&mut bytes), Ok(length) if length == bytes.len()) {
                ensure!(bytes == REQUEST, "not the request");
                served += 1;
            }
            reset_on_close(&accepted.stream)?;
        }
        Ok(())
    };
    let is_exact = has_all && sources > 1;
    if is_exact {
        round
            .wait_for(tun, || {
                serve()?;
                Ok(stats(listener)?.parked == u64::from(ROOM - POOL))
            })
            .context("the pool served")?;
    }
    // The clients that are left are handed over, and reset.
    pause(listener)?;
    round
        .wait_for(tun, || {
            serve()?;
            let seen = stats(listener)?;
            Ok(seen.parked == 0 && seen.half_open <= 0)
        })
        .context("all gone")?;
    resume(listener)?;
    serve()?;
    ensure!(
        !is_exact || served == u64::from(POOL),
        "{served} of {POOL} clients of the pool were served"
    );
    Ok(if is_exact { served } else { 0 })
}

/// Has clients do their handshakes, one after another; returns those that the server has answered.
fn connect(
    round: &Round<'_>,
    tun: &mut TunClients,
    numbers: impl Iterator<Item = u32>,
) -> Result<Vec<TunClient>> {
    let mut connected = Vec::new();
    for nth in numbers {
        let mut client = tun.client(nth);
        tun.syn(&mut client)?;
        let begin = Instant::now();
        while client.rcv_nxt == 0 && begin.elapsed() < round.limit() / 20 {
            tun.pump(Duration::from_millis(10), |to, segment| {
                if to == nth && segment.is_syn_ack() && segment.ack == client.snd_nxt {
                    client.rcv_nxt = segment.end_seq();
                }
                Ok(())
            })?;
        }
        if client.rcv_nxt != 0 {
            tun.push(&mut client, Flags::ACK, b"")?;
            connected.push(client);
        }
    }
    Ok(connected)
}
