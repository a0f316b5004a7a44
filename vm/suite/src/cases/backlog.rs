// SPDX-License-Identifier: MIT OR Apache-2.0

//! Parked requests take no room from new ones: the SYN backlog is for requests that have not been
//! acknowledged.

use std::thread::sleep;
use std::time::Duration;

use accf_kit::account::at_rest;
use accf_kit::control::{self, timeout};
use accf_kit::counters::Counters;
use accf_kit::endpoint::{Family, Listen};
use accf_kit::netns::Netns;
use accf_kit::segment::Flags;
use accf_kit::slab::Slabs;
use accf_kit::tun_clients::TunClients;
use accf_kit::{module, sockets, wait};
use anyhow::{bail, ensure, Context as _, Result};

use crate::case::{case, each_family, expect_eq, expect_in, Context, Kernel, Skip};
use crate::count::{counted, describe, stats};
use crate::scene::{requests, serve, serve_raw, RawScene, Scene, REQUEST};

/// Loads the module, and opens a filtered listener that many raw clients can connect to.
fn scene_with_clients(
    context: &Context,
    family: Family,
    backlog: i32,
) -> Result<(RawScene, TunClients)> {
    module::reload("")?;
    let listen = Listen::filtered(family).backlog(backlog);
    let scene = RawScene::new(context, family, &listen)?;
    let tun = TunClients::new(&scene.ns, family, scene.port())?;
    Ok((scene, tun))
}

/// Checks that counters of a namespace have not grown.
fn no_growth(ns: &Netns, before: &Counters, counters: &[&str]) -> Result<()> {
    let after = Counters::read(ns)?;
    for counter in counters {
        expect_eq!(after.growth(before, counter)?, 0, "growth of {counter}");
    }
    Ok(())
}

case!(
    Alone, "backlog.thousands_of_idle_clients" =>
    each_family(thousands).long(Duration::from_secs(300))
);
/// Checks that a client that sends data is served as if it were alone, beside thousands of idle
/// clients and with a backlog of 128.
fn thousands(context: &Context, family: Family) -> Result<()> {
    const SPEAKERS: usize = 40;
    let count: u32 = match context.kernel {
        Kernel::Stock => 10_000,
        Kernel::Dev => 2_000,
    };
    let (scene, mut tun) = scene_with_clients(context, family, 128)?;
    let before = Counters::read(&scene.ns)?;
    let mut clients = tun.open(0..count, context.patience())?;
    let seen = scene.read_counts(context, counted!(parked: count.into()))?;
    context.note(describe(&seen));
    expect_eq!(
        sockets::requests(&scene.ns, scene.port())?,
        count as usize,
        "requests in SYN_RECV"
    );

    // No SYN-ACK is sent again, and no timer of theirs fires.
    let quiet = tun.pump(Duration::from_millis(1500), |nth, segment| {
        bail!("client {nth} got {segment}, out of nothing")
    })?;
    ensure!(!quiet, "an idle client got a segment");
    no_growth(
        &scene.ns,
        &before,
        &["TcpRetransSegs", "TcpExtTCPSynRetrans", "TcpExtTCPTimeouts"],
    )?;

    // One client that sends data with the third segment, and one that pauses first.
    let mut direct = scene.client();
    let syn = direct.syn()?;
    let answer = direct
        .receive(context.patience())?
        .context("no answer to the SYN of the active client")?;
    context.at_once(syn, answer.at, "from the SYN to the SYN-ACK")?;
    scene.serve(context, &mut direct)?;
    let (mut pausing, _) = scene.parked(context)?;
    scene.serve(context, &mut pausing)?;
    // No client was answered with a cookie, and none was refused.
    no_growth(
        &scene.ns,
        &before,
        &[
            "TcpExtSyncookiesSent",
            "TcpExtListenDrops",
            "TcpExtListenOverflows",
            "TcpExtTCPReqQFullDoCookies",
            "TcpExtTCPReqQFullDrop",
            "TcpExtTCPSynRetrans",
        ],
    )?;

    // Each of them is served as soon as it sends data.
    let mut rng = context.rng();
    rng.shuffle(&mut clients);
    for client in clients.iter_mut().take(SPEAKERS) {
        tun.push(client, Flags::PSH_ACK, REQUEST)?;
        let accepted = scene.accept_from_port(context, tun.address(client.nth).port())?;
        serve(&accepted)?;
        tun.push(client, Flags::RST, b"")?;
    }
    // The same number reset.
    for client in clients.iter_mut().skip(SPEAKERS).take(SPEAKERS) {
        tun.push(client, Flags::RST, b"")?;
    }
    let spoken = SPEAKERS as u64;
    scene.counts(
        context,
        counted!(
            parked: u64::from(count) - 2 * spoken,
            released_data: spoken + 1,
            aborted: spoken
        ),
    )?;
    // Closing the listener ends the requests that are left.
    let RawScene { ns, listener, .. } = scene;
    let port = listener.port();
    drop(listener);
    requests(&ns, port, context, 0)?;
    drop(tun);
    module::unload(context.patience())
}

case!(Alone, "backlog.the_kernels_own_deferral_fills_it" => each_family(deferred));
/// Checks that `TCP_DEFER_ACCEPT` fails the test above, so that it can fail.
fn deferred(context: &Context, family: Family) -> Result<()> {
    const COUNT: u32 = 500;
    let scene = RawScene::new(context, family, &Listen::deferred(family, 60).backlog(128))?;
    let mut tun = TunClients::new(&scene.ns, family, scene.port())?;
    let before = Counters::read(&scene.ns)?;
    let answered = tun.try_open(0..COUNT, Duration::from_millis(400))?;
    let requests = sockets::requests(&scene.ns, scene.port())?;
    let cookies = Counters::read(&scene.ns)?.growth(&before, "TcpExtSyncookiesSent")?;
    context.note(format!(
        "{} of {COUNT} answered, {cookies} with a cookie; {requests} requests",
        answered.len()
    ));
    expect_in!(requests, 1..300, "requests in SYN_RECV");
    expect_in!(cookies, 1..i64::MAX, "cookies sent");
    Ok(())
}

case!(Alone, "backlog.syns_only" => each_family(syns_only));
/// Checks that requests with a SYN only fill the backlog, and are counted exactly.
fn syns_only(context: &Context, family: Family) -> Result<()> {
    const SYNS: u32 = 60;
    let (scene, mut tun) = scene_with_clients(context, family, 256)?;
    tun.open(1000..1100, context.patience())?;
    // One of them may still count as half-open until the next one is parked.
    scene.counts(context, counted!(parked: 100))?;
    let spare = stats(&scene.listener)?.half_open;
    let mut clients: Vec<_> = (0..SYNS).map(|nth| tun.client(nth)).collect();
    for client in &mut clients {
        tun.syn(client)?;
    }
    let mut answers = 0;
    while answers < SYNS {
        let any = tun.pump(context.patience(), |nth, segment| {
            let client = clients
                .get_mut(nth as usize)
                .context("a segment for another client")?;
            ensure!(segment.is_syn_ack(), "not a SYN-ACK: {segment}");
            client.rcv_nxt = segment.end_seq();
            answers += 1;
            Ok(())
        })?;
        ensure!(any, "{answers} of {SYNS} SYNs were answered");
    }
    let syns = i64::from(SYNS);
    let seen = stats(&scene.listener)?;
    expect_in!(
        seen.half_open,
        syns..=syns + spare,
        "half-open requests, of {}",
        describe(&seen)
    );
    // A second later each SYN-ACK has been sent again, and no request is young.
    let mut seen = seen;
    wait::until(context.patience(), || {
        seen = stats(&scene.listener)?;
        Ok(seen.half_open_young <= spare)
    })?;
    expect_in!(
        seen.half_open_young,
        0..=spare,
        "young requests, of {}",
        describe(&seen)
    );
    expect_in!(
        seen.half_open,
        syns..=syns + spare,
        "half-open requests, of {}",
        describe(&seen)
    );
    // Some reset, some acknowledge, some send data.
    let (resets, acks, data) = (10, 30, 20);
    for (index, client) in clients.iter_mut().enumerate() {
        if index < resets {
            tun.push(client, Flags::RST, b"")?;
        } else if index < resets + acks {
            tun.push(client, Flags::ACK, b"")?;
        } else {
            tun.push(client, Flags::PSH_ACK, REQUEST)?;
        }
    }
    scene.counts(context, counted!(parked: 130))?;
    for _ in 0..data {
        serve(&scene.accept(context)?)?;
    }
    // A client that was accepted with the third segment was never parked.
    scene.accept_nothing(Duration::from_millis(100), "the others are silent")?;
    control::set_config(&scene.listener, &timeout(1))?;
    for _ in 0..130 {
        drop(scene.accept(context)?);
    }
    scene.counts(context, counted!(timeout_accept: 130))?;
    at_rest(&stats(&scene.listener)?)?;
    drop((scene, tun));
    module::unload(context.patience())
}

case!(Alone, "backlog.flood_beside_the_parked" => each_family(flood));
/// Checks that a SYN flood fills the backlog without touching parked requests, and that later
/// clients get cookies.
fn flood(context: &Context, family: Family) -> Result<()> {
    const PARKED: u32 = 300;
    const SYNS: u32 = 400;
    let (scene, mut tun) = scene_with_clients(context, family, 128)?;
    let before = Counters::read(&scene.ns)?;
    let mut parked = tun.open(0..PARKED, context.patience())?;
    scene.counts(context, counted!(parked: PARKED.into()))?;
    for nth in 10_000..10_000 + SYNS {
        let mut client = tun.client(nth);
        tun.syn(&mut client)?;
    }
    let seen = stats(&scene.listener)?;
    context.note(describe(&seen));
    expect_eq!(seen.parked, u64::from(PARKED), "parked connections");
    expect_in!(seen.half_open, 100..=130, "half-open requests");
    let cookies = Counters::read(&scene.ns)?.growth(&before, "TcpExtSyncookiesSent")?;
    expect_in!(cookies, 200..=i64::from(SYNS), "cookies sent");
    // A client that connects now gets a cookie and is accepted at once: the filter fails open.
    let mut client = scene.client();
    let acked = client.open(context.patience())?;
    let accepted = scene.accept(context)?;
    context.at_once(acked, accepted.at, "from the bare ACK to accept()")?;
    serve_raw(&mut client, &accepted)?;
    let seen = stats(&scene.listener)?;
    expect_eq!(seen.bypass_syncookie, 1, "connections made of cookies");
    expect_eq!(seen.parked, u64::from(PARKED), "parked connections");
    // The requests parked before are still there.
    for client in parked.iter_mut().take(50) {
        tun.push(client, Flags::PSH_ACK, REQUEST)?;
        let accepted = scene.accept_from_port(context, tun.address(client.nth).port())?;
        serve(&accepted)?;
    }
    let seen = stats(&scene.listener)?;
    expect_eq!(seen.released_data, 50, "connections released by data");
    expect_eq!(seen.bypassed(), 1, "connections that could not be parked");
    drop((scene, tun));
    module::unload(context.patience())
}

case!(Alone, "backlog.of_one" => each_family(of_one));
/// Checks that the smallest backlog holds any number of idle clients and refuses none.
fn of_one(context: &Context, family: Family) -> Result<()> {
    const CLIENTS: u32 = 30;
    let (scene, mut tun) = scene_with_clients(context, family, 1)?;
    let before = Counters::read(&scene.ns)?;
    for nth in 0..CLIENTS {
        // One by one: two handshakes at once exceed the backlog.
        tun.open(nth..nth + 1, context.patience())?;
    }
    scene.counts(context, counted!(parked: CLIENTS.into()))?;
    let mut client = scene.half_open(context)?;
    // Read before the client is served: on a slow machine it answers late, and the response is sent
    // again.
    let after = Counters::read(&scene.ns)?;
    scene.serve(context, &mut client)?;
    for counter in [
        "TcpExtSyncookiesSent",
        "TcpExtListenDrops",
        "TcpExtTCPSynRetrans",
    ] {
        expect_eq!(after.growth(&before, counter)?, 0, "growth of {counter}");
    }
    drop((scene, tun));
    module::unload(context.patience())
}

case!(Alone, "backlog.memory_of_a_parked_connection" => each_family(memory));
/// Measures the memory of a parked connection, in all slab caches.
fn memory(context: &Context, family: Family) -> Result<()> {
    const MOST: f64 = 400.0;
    const COUNT: u32 = 6_000;
    if context.kernel == Kernel::Dev {
        return Err(Skip("this kernel's checkers keep memory of their own".to_owned()).into());
    }
    let (scene, mut tun) = scene_with_clients(context, family, 128)?;
    // Not counted: what is allocated once for each address, and in stock for each processor.
    let first = 1_000;
    tun.open(0..first, context.patience())?;
    scene.counts(context, counted!(parked: first.into()))?;
    sleep(Duration::from_millis(300));
    let before = Slabs::read()?;
    tun.open(first..first + COUNT, context.patience())?;
    scene.counts(context, counted!(parked: u64::from(first + COUNT)))?;
    sleep(Duration::from_millis(300));
    let growth = Slabs::read()?.growth(&before);
    let each = |bytes: i64| bytes as f64 / f64::from(COUNT);
    let total: i64 = growth.values().sum();
    for (cache, bytes) in &growth {
        if each(*bytes).abs() >= 1.0 {
            context.note(format!("{cache}: {:.1} bytes", each(*bytes)));
        }
    }
    context.note(format!(
        "{:.1} bytes for each of {COUNT} parked connections",
        each(total)
    ));
    // Fewer bytes than a request has mean that the measurement failed.
    expect_in!(
        each(total),
        200.0..=MOST,
        "bytes of a parked connection ({growth:?})"
    );
    drop((scene, tun));
    module::unload(context.patience())
}
