// SPDX-License-Identifier: MIT OR Apache-2.0
//! Clients that decide on every segment themselves: among them half-open ones, and ones that say things twice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use accf_kit::account::{self, describe};
use accf_kit::clients::segments::{serve_all, Kind, Pace, Place, Play, Served};
use accf_kit::control::{settings, OnTimeout};
use accf_kit::counters::Counters;
use accf_kit::endpoint::{Listen, Listener};
use accf_kit::netns::Netns;
use accf_kit::tun_clients::TunClients;
use anyhow::{anyhow, ensure, Context as _, Result};

use crate::round::{any_family, Round};

const PLACE: &str = "raw clients";

const PLACES: [Place; 5] = [
    Place {
        on_timeout: OnTimeout::Accept,
        room: 0,
    },
    Place {
        on_timeout: OnTimeout::Reset,
        room: 0,
    },
    Place {
        on_timeout: OnTimeout::Drop,
        room: 0,
    },
    Place {
        on_timeout: OnTimeout::Accept,
        room: 4,
    },
    Place {
        on_timeout: OnTimeout::Reset,
        room: 4,
    },
];

pub(crate) fn play(round: &Round<'_>) -> Result<()> {
    let mut rng = round.rng(PLACE);
    let family = any_family(&mut rng);
    let ns = Netns::new()?;
    round.board.event("namespaces made");
    round.board.show_namespace(&ns);
    // The mute are forgotten after 7 s; everybody else acknowledges before, however busy the machine is.
    ns.set_sysctl("net.ipv4.tcp_synack_retries", "2")?;
    let deadline = round.deadline();
    let deadline_ms = u32::try_from(deadline.as_millis())?;
    let listeners: Vec<Listener> = PLACES
        .iter()
        .map(|place| {
            let deadline_ms = if place.room > 0 { 0 } else { deadline_ms };
            Listen::filtered(family)
                .backlog(1024)
                .config(settings(deadline_ms, place.room, place.on_timeout))
                .open(&ns)
        })
        .collect::<Result<_>>()?;
    let ports: Vec<u16> = listeners.iter().map(Listener::port).collect();
    let first = *ports.first().context("no listener")?;
    let swarm = TunClients::new(&ns, family, first)?;
    let mut play = Play::new(swarm, &PLACES, ports, deadline, round.limit(), rng)
        .with_garbage(20)
        .tolerant();
    if !round.has_all() {
        play = play.persistent();
    }
    let before = Counters::read(&ns)?;
    round.begin();
    let pace = Pace {
        at_once: 80,
        gap: round.gap() / 2,
    };
    let over = AtomicBool::new(false);
    let served = thread::scope(|scope| {
        let server = scope.spawn(|| serve_all(&listeners, &over));
        let played = play.play(pace, &listeners, |clients| {
            round.board.begun(PLACE, clients as u64);
            !round.is_over()
        });
        over.store(true, Ordering::Relaxed);
        let served = server.join().map_err(|_| anyhow!("the server panicked"))?;
        played?;
        served
    })?;
    for (kind, count) in play.kinds() {
        round
            .board
            .clients(PLACE, text(kind), "accounted for", count);
    }
    round
        .board
        .events_of("segments that make no sense", play.garbage_sent());
    for (index, listener) in listeners.iter().enumerate() {
        let seen = account::settle(listener, round.limit(), account::at_rest, || Ok(()))?;
        round.at_rest(&seen);
        let served = served.get(index).copied().unwrap_or_default();
        let account = if round.has_all() {
            play.account(index, &seen, &served)
        } else {
            roughly(&play, index, &seen, &served)
        };
        account.with_context(|| {
            format!(
                "{family} clients of {:?}: {}; {served:?}; the kernel counted, for all places: {:?}",
                PLACES.get(index),
                describe(&seen),
                Counters::read(&ns).map(|now| now.changes(&before))
            )
        })?;
    }
    Ok(())
}

/// Compares what was counted with what the clients did, where some could not be held back.
fn roughly(
    play: &Play<'_>,
    index: usize,
    seen: &accf_kit::control::Stats,
    served: &Served,
) -> Result<()> {
    let parked = play.to_be_parked(index);
    let doubtful = play.doubtful(index);
    // Some of the eager are not understood at first, and then acknowledge.
    let most = parked + *play.of(index, &[Kind::Eager]).end();
    ensure!(
        seen.parked_total <= most && parked <= seen.parked_total + seen.bypassed() + doubtful,
        "{} were parked and {} were not, of {parked} to {most} ({doubtful} in doubt)",
        seen.parked_total,
        seen.bypassed()
    );
    let of_them = seen.released_data + seen.released_fin + seen.timeout_accept;
    ensure!(
        served.all() >= of_them,
        "{} were accepted, of {of_them} that were released",
        served.all()
    );
    Ok(())
}

fn text(kind: Kind) -> &'static str {
    match kind {
        Kind::Eager => "speaks with its ACK",
        Kind::Thinker => "thinks, speaks",
        Kind::Stutterer => "the same, everything twice",
        Kind::Leaver => "thinks, ends its side",
        Kind::Breaker => "thinks, resets",
        Kind::Silent => "is silent past its deadline",
        Kind::Mute => "leaves its connection half-open",
        Kind::Refuser => "resets instead of its ACK",
    }
}
