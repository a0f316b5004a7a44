// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reading the counts: one consistent snapshot, at any time and by any way of reading.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use accf_kit::account::at_rest;
use accf_kit::control::{self, settings, OnTimeout, Stats};
use accf_kit::endpoint::{connect_here, reset_on_close, Family, Listen};
use accf_kit::segment::Segment;
use anyhow::{ensure, Context as _, Result};

use crate::case::{case, each_family, expect_eq, Context};
use crate::count::{consistent, counted, describe, stats};
use crate::scene::{join_scoped, reads_end, RawScene, Scene, WireScene, REQUEST};

/// Returns the bucket of the histogram that has one wait more than before.
fn bucket(before: &Stats, after: &Stats) -> Result<accf_kit::control::WaitBucket> {
    let mut grown = before
        .waits()
        .zip(after.waits())
        .filter(|(before, after)| after.count == before.count + 1);
    let (_, bucket) = grown.next().context("no bucket has grown")?;
    ensure!(grown.next().is_none(), "more than one bucket has grown");
    Ok(bucket)
}

case!(Default, "account.how_long_clients_wait" => each_family(histogram));
/// Checks that a client's wait is counted in the right bucket, ended by data or by the end of the
/// stream.
fn histogram(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let mut before = stats(&scene.listener)?;
    let mut buckets = Vec::new();
    for (nth, pause_ms) in [0, 10, 45, 180, 700, 1500].into_iter().enumerate() {
        let (mut client, ack) = scene.parked(context)?;
        sleep(Duration::from_millis(pause_ms));
        if nth % 2 == 0 {
            client.data(REQUEST)?;
        } else {
            client.fin()?;
        }
        drop(scene.accept(context)?);
        let end = scene
            .capture
            .wait_for(context.patience(), |packet| {
                packet.segment.source == client.local
                    && (packet.segment.has_data() || packet.segment.is_fin())
            })?
            .context("what the client sent was not seen")?;
        let after = stats(&scene.listener)?;
        let bucket = bucket(&before, &after)
            .with_context(|| format!("{} after {}", describe(&after), describe(&before)))?;
        // The capture sees both a little earlier than the module does, and stamps them by another
        // clock.
        let waited = end.at.since(ack.at);
        let slack = Duration::from_millis(4) + waited / 50;
        let late = context.late(ack.at, end.at);
        let (least, most) = (waited.saturating_sub(slack + late), waited + slack + late);
        ensure!(
            bucket.from <= most && bucket.to.is_none_or(|to| to > least),
            "a wait of {waited:?} is in the bucket from {:?} to {:?}",
            bucket.from,
            bucket.to
        );
        buckets.push(bucket.from);
        before = after;
    }
    context.note(format!("buckets from {buckets:?}"));
    scene.counts(context, counted!(released_data: 3, released_fin: 3))
}

case!(Default, "account.consistent_at_any_time" => each_family(consistent_always));
/// Checks, while clients come and go on all processors, that every reading has correct sums, and
/// counts that only grow.
fn consistent_always(context: &Context, family: Family) -> Result<()> {
    const CLIENTS: usize = 120;
    let listen =
        Listen::filtered(family)
            .backlog(1024)
            .config(settings(150, 10, OnTimeout::Accept));
    let scene = WireScene::new(context, family, &listen)?;
    let server = scene.wire.server_address(family, scene.port());
    let over = AtomicBool::new(false);
    let reads = thread::scope(|scope| {
        let over = &over;
        let scene = &scene;
        let accepting = scope.spawn(move || -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                drop(scene.listener.accept(Duration::from_millis(50))?);
            }
            Ok(())
        });
        let reading: Vec<_> = [false, true]
            .into_iter()
            .map(|diag| {
                scope.spawn(move || -> Result<usize> {
                    let mut reads = 0;
                    let mut before = Stats::default();
                    while !over.load(Ordering::Relaxed) {
                        let seen = if diag {
                            control::from_diag(&scene.wire.server, scene.port())?
                                .context("inet_diag does not report the listener")?
                                .stats
                        } else {
                            control::stats(&scene.listener)?
                        };
                        consistent(&seen)?;
                        only_grown(&before, &seen)?;
                        before = seen;
                        reads += 1;
                        thread::yield_now();
                    }
                    Ok(reads)
                })
            })
            .collect();
        let clients: Vec<_> = (0..3)
            .map(|thread| {
                scope.spawn(move || -> Result<()> {
                    scene.wire.client.enter()?;
                    let mut rng = context.rng();
                    for _ in 0..thread {
                        rng.u8(..);
                    }
                    let mut idle = Vec::new();
                    for nth in 0..CLIENTS / 3 {
                        let stream = connect_here(server)?;
                        match rng.u8(..4) {
                            0 => idle.push(stream),
                            1 => reset_on_close(&stream)?,
                            2 => drop(stream),
                            _ => {
                                use std::io::Write;
                                // The server may have reset it by then.
                                let _ = (&stream).write_all(REQUEST);
                                idle.push(stream);
                            }
                        }
                        if nth % 10 == 0 {
                            sleep(Duration::from_millis(20));
                        }
                    }
                    sleep(Duration::from_millis(300));
                    Ok(())
                })
            })
            .collect();
        let mut outcome = Ok(());
        for client in clients {
            outcome = outcome.and(join_scoped(client));
        }
        over.store(true, Ordering::Relaxed);
        join_scoped(accepting)?;
        let mut reads = Vec::new();
        for reader in reading {
            reads.push(join_scoped(reader)?);
        }
        outcome.map(|()| reads)
    })?;
    context.note(format!("{reads:?} readings"));
    ensure!(
        reads.iter().all(|reads| *reads > 0) && reads.iter().sum::<usize>() > 20,
        "too few readings: {reads:?}"
    );
    scene.requests(context, 0)?;
    let seen = stats(&scene.listener)?;
    context.note(describe(&seen));
    expect_eq!(seen.bypassed(), 0, "connections that could not be parked");
    at_rest(&seen)
}

/// Checks that no total has shrunk.
fn only_grown(before: &Stats, after: &Stats) -> Result<()> {
    let totals = |stats: &Stats| {
        [
            stats.parked_total,
            stats.released_data,
            stats.released_fin,
            stats.timeout_accept,
            stats.timeout_reset,
            stats.timeout_drop,
            stats.evicted,
            stats.aborted,
            stats.fallback,
            stats.synack_suppressed,
            stats.released_paused,
            stats.closed_reset,
            stats.closed_reset_unparked,
            stats.released_late,
            stats.overflow_dropped,
            stats.probes,
            stats.died,
        ]
    };
    ensure!(
        totals(before)
            .iter()
            .zip(totals(after))
            .all(|(before, after)| *before <= after),
        "a total has shrunk: {} after {}",
        describe(after),
        describe(before)
    );
    Ok(())
}

case!(Default, "account.every_end_once" => each_family(every_end));
/// Checks the counts after each way in which a parked connection can end.
fn every_end(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let mut expected = counted!();
    let (mut client, _) = scene.parked(context)?;
    scene.serve(context, &mut client)?;
    expected.released_data = 1;
    scene.counts(context, expected)?;

    let (mut client, _) = scene.parked(context)?;
    client.fin()?;
    let mut accepted = scene.accept(context)?;
    reads_end(&mut accepted.stream, "bytes before the end")?;
    expected.released_fin = 1;
    scene.counts(context, expected)?;

    let (mut client, _) = scene.parked(context)?;
    client.rst()?;
    expected.aborted = 1;
    scene.counts(context, expected)?;

    for on_timeout in [OnTimeout::Accept, OnTimeout::Reset, OnTimeout::Drop] {
        control::set_config(&scene.listener, &settings(60_000, 1, on_timeout))?;
        let (_oldest, _) = scene.parked(context)?;
        let (_newcomer, _) = scene.parked(context)?;
        expected.evicted += 1;
        expected.parked = 1;
        scene.counts(context, expected)?;
        control::set_config(&scene.listener, &settings(1, 1, on_timeout))?;
        expected.parked = 0;
        match on_timeout {
            OnTimeout::Accept => expected.timeout_accept = 1,
            OnTimeout::Reset => expected.timeout_reset = 1,
            _ => expected.timeout_drop = 1,
        }
        scene.counts(context, expected)?;
    }
    control::set_config(&scene.listener, &settings(60_000, 0, OnTimeout::Reset))?;
    let (_handed_over, _) = scene.parked(context)?;
    control::pause(&scene.listener)?;
    expected.released_paused = 1;
    scene.counts(context, expected)?;
    let (_not_parked, _) = scene.parked(context)?;
    expected.bypass_paused = 1;
    scene.counts(context, expected)?;
    control::resume(&scene.listener)?;
    for _ in 0..4 {
        drop(scene.accept(context)?);
    }
    scene.accept_nothing(Duration::from_millis(200), "four were to be accepted")?;
    // A client that sends data with the third segment is not counted by any of these.
    let mut client = scene.half_open(context)?;
    scene.serve(context, &mut client)?;
    scene.counts(context, expected)?;
    scene.judge(|trace| {
        let evicted_and_due = 2;
        let sent = trace.sent();
        let of_policy = sent.count(|segment: &Segment| segment.is_rst() && !segment.flags.ack);
        expect_eq!(of_policy, evicted_and_due, "resets without an ACK");
        Ok(())
    })
}
