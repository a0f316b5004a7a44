// SPDX-License-Identifier: MIT OR Apache-2.0

//! A hundred thousand clients of every kind: whatever they do, the sums are exact.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use accf_kit::account::{at_rest, settle};
use accf_kit::clients::segments::{serve_all, Pace, Place, Play, Served};
use accf_kit::control::{self, settings, timeout, OnTimeout, Stats};
use accf_kit::counters::Counters;
use accf_kit::endpoint::{Family, Listen, Listener};
use accf_kit::netns::Netns;
use accf_kit::tun_clients::TunClients;
use accf_kit::{module, sockets};
use anyhow::{anyhow, ensure, Context as _, Result};

use crate::case::{expect_eq, Case, Context, Kernel, Stage};
use crate::count::{describe, stats};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6, Family::Mapped] {
        cases.push(
            Case::new(
                Stage::Alone,
                format!("mixture.every_connection_is_accounted_for.{family}"),
                move |context| mixture(context, family, None),
            )
            .long(Duration::from_secs(600)),
        );
        cases.push(
            Case::new(
                Stage::Alone,
                format!("mixture.acknowledged_as_the_syn_ack_is_sent_again.{family}"),
                move |context| mixture(context, family, Some(HESITATION)),
            )
            .long(Duration::from_secs(600)),
        );
    }
    cases
}

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
        room: 25,
    },
    Place {
        on_timeout: OnTimeout::Reset,
        room: 25,
    },
];

/// How long after their SYN those acknowledge that meet the request's timer: it is set to a second, and fires at the end of a slot
/// of up to eight jiffies.
const HESITATION: Range<Duration> = Duration::from_millis(990)..Duration::from_millis(1050);

/// How many clients are there at once.
const AT_ONCE: usize = 800;

fn mixture(context: &Context, family: Family, hesitation: Option<Range<Duration>>) -> Result<()> {
    let count: usize = match (context.kernel, family) {
        (Kernel::Stock, _) if hesitation.is_some() => 2_000,
        (Kernel::Dev, _) if hesitation.is_some() => 200,
        (Kernel::Stock, Family::V4) => 100_000,
        (Kernel::Stock, _) => 30_000,
        (Kernel::Dev, Family::V4) => 10_000,
        (Kernel::Dev, _) => 2_000,
    };
    let deadline = match context.kernel {
        Kernel::Stock => Duration::from_millis(1500),
        Kernel::Dev => Duration::from_millis(4000),
    };
    context.note(format!("seed {}", context.seed));
    module::reload("")?;
    let ns = Netns::new()?;
    let is_hesitant = hesitation.is_some();
    // The mute are forgotten after 3 s; or after 7 s, where others are so slow.
    let retries = if is_hesitant { "2" } else { "1" };
    ns.set_sysctl("net.ipv4.tcp_synack_retries", retries)?;
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
    let patience = context.patience() * 6;
    let mut stage = Play::new(swarm, &PLACES, ports, deadline, patience, context.rng());
    if let Some(hesitation) = hesitation {
        stage = stage.hesitant(hesitation);
    }
    let before = Counters::read(&ns)?;
    let start = Instant::now();
    let over = AtomicBool::new(false);
    let served = thread::scope(|scope| {
        let server = scope.spawn(|| serve_all(&listeners, &over));
        let pace = Pace {
            at_once: match context.kernel {
                _ if !is_hesitant => AT_ONCE,
                // So few that they act in time.
                Kernel::Stock => 150,
                Kernel::Dev => 30,
            },
            gap: Duration::ZERO,
        };
        let played = stage.play(pace, &listeners, |clients| clients < count);
        over.store(true, Ordering::Relaxed);
        let served = server.join().map_err(|_| anyhow!("the server panicked"))?;
        played?;
        served
    })?;
    let took = start.elapsed().as_secs_f64();
    context.note(format!(
        "{count} clients in {took:.1} s, {:.0} in a second",
        count as f64 / took
    ));
    let after = Counters::read(&ns)?;
    for counter in ["TcpExtSyncookiesSent", "TcpExtListenOverflows"] {
        expect_eq!(after.growth(&before, counter)?, 0, "growth of {counter}");
    }
    if is_hesitant {
        let again = after.growth(&before, "TcpExtTCPSynRetrans")?;
        context.note(format!("{again} SYN-ACKs were sent again"));
        ensure!(
            again > count as i64 / 20,
            "{again} SYN-ACKs were sent again: {count} clients did not meet the timer"
        );
    }
    for (index, listener) in listeners.iter().enumerate() {
        let seen = settled(context, listener)?;
        let served = served.get(index).copied().unwrap_or_default();
        context.note(format!("place {index}: {}; {served:?}", describe(&seen)));
        account(&stage, index, &seen, &served, !is_hesitant).with_context(|| {
            format!(
                "place {index} ({:?}): {}; {served:?}; the kernel counted, for all places: {:?}",
                PLACES.get(index),
                describe(&seen),
                after.changes(&before)
            )
        })?;
    }
    // What is left is exactly nothing: whoever comes now is counted as it is.
    let listener = listeners.first().context("no listener")?;
    control::set_config(listener, &timeout(60_000))?;
    half_open_exactly(context, &ns, stage.swarm(), listener)?;
    drop(listeners);
    drop(stage);
    drop(ns);
    module::unload(context.patience())
}

/// Waits until nobody is parked or half-open any more.
fn settled(context: &Context, listener: &Listener) -> Result<Stats> {
    settle(listener, context.patience() * 3, at_rest, || Ok(()))
}

/// Compares what a listener counted with what its clients did and its server saw.
fn account(
    stage: &Play<'_>,
    index: usize,
    seen: &Stats,
    served: &Served,
    are_many: bool,
) -> Result<()> {
    stage.account(index, seen, served)?;
    // So many are there at once that where there is little room, somebody is evicted, and somebody is not.
    if are_many && PLACES.get(index).is_some_and(|place| place.room > 0) {
        ensure!(seen.evicted > 0, "nobody was evicted");
        ensure!(seen.released_data > 0, "nobody was released by data");
    }
    Ok(())
}

/// After all that, a number of SYNs is that number.
fn half_open_exactly(
    context: &Context,
    ns: &Netns,
    swarm: &mut TunClients,
    listener: &Listener,
) -> Result<()> {
    const SYNS: u32 = 37;
    const FIRST: u32 = 200_000;
    for nth in FIRST..FIRST + SYNS {
        let mut member = swarm.member(nth);
        swarm.syn(&mut member)?;
    }
    let mut answers = 0;
    while answers < SYNS {
        let any = swarm.pump(context.patience(), |_, segment| {
            answers += u32::from(segment.is_syn_ack());
            Ok(())
        })?;
        ensure!(any, "{answers} of {SYNS} SYNs were answered");
    }
    let seen = stats(listener)?;
    expect_eq!(
        seen.half_open,
        i64::from(SYNS),
        "half-open requests in the end"
    );
    expect_eq!(
        sockets::requests(ns, listener.port())?,
        SYNS as usize,
        "requests in SYN_RECV"
    );
    settled(context, listener).map(drop)
}
