// SPDX-License-Identifier: MIT OR Apache-2.0

//! The administrator ends sockets (`SOCK_DESTROY`, `ss -K`): a filtered listener and its parked
//! requests go as a plain listener and its half-open requests do.

use std::thread::sleep;
use std::time::Duration;

use accf_kit::account::at_rest;
use accf_kit::control::{settings, OnTimeout};
use accf_kit::endpoint::{Family, Listen, Listener};
use anyhow::{ensure, Context as _, Result};

use crate::case::{case, each_family, expect_eq, Context};
use crate::count::{counted, stats};
use crate::scene::{accept_from_port, errno, expect_reset, serve, Peer, RawScene, Scene, REQUEST};
use crate::ways::LONG;

/// Ends the sockets of the listener's port that are in a state; returns how many.
fn destroy(scene: &RawScene, state: &str) -> Result<usize> {
    let port = format!("= :{}", scene.port());
    let text = scene
        .ns
        .command("ss", &["-HKtn", "state", state, "sport", &port])?;
    Ok(text.lines().count())
}

case!(Default, "field.destroy.parked" => each_family(parked));
/// Checks that all parked requests can be ended at once: each client learns it when it sends, and
/// the listener goes on.
fn parked(context: &Context, family: Family) -> Result<()> {
    const CLIENTS: u64 = 12;
    let scene = RawScene::filtered(context, family)?;
    let mut clients = scene.parked_many(context, CLIENTS as usize)?;
    let half_open = scene.half_open(context)?;
    scene.counts(context, counted!(parked: CLIENTS, half_open: 1))?;
    let ended = destroy(&scene, "syn-recv")?;
    expect_eq!(ended as u64, CLIENTS + 1, "requests that `ss -K` has ended");
    scene.requests(context, 0)?;
    at_rest(&scene.read_counts(context, counted!(aborted: CLIENTS))?)?;
    clients.push(half_open);
    for client in &mut clients {
        client.data(REQUEST)?;
        expect_reset(context, client, "no reset of a client that was ended")?;
    }
    let (mut newcomer, _) = scene.parked(context)?;
    scene.serve(context, &mut newcomer)?;
    let counts = scene.read_counts(context, counted!(aborted: CLIENTS, released_data: 1))?;
    at_rest(&counts)
}

case!(Default, "field.destroy.listener" => each_family(listener).long(LONG));
/// Checks that a listener can be ended while clients are parked: its clients are reset, `accept()`
/// says what it says of a plain listener, and it can listen again.
fn listener(context: &Context, family: Family) -> Result<()> {
    let filtered = |timeout_ms, on_timeout| {
        Listen::filtered(family).config(settings(timeout_ms, 0, on_timeout))
    };
    let plain = end_and_listen_again(context, family, &Listen::plain(family), None)?;
    let ways = [
        (0, OnTimeout::Accept),
        (4000, OnTimeout::Accept),
        (4000, OnTimeout::Reset),
        (4000, OnTimeout::Drop),
    ];
    for (timeout_ms, on_timeout) in ways {
        let what = format!("timeout {timeout_ms} ms, then {on_timeout:?}");
        let listen = filtered(timeout_ms, on_timeout);
        let seen = end_and_listen_again(context, family, &listen, Some(timeout_ms))
            .with_context(|| what.clone())?;
        expect_eq!(seen, plain, "what a listener says that was ended, {what}");
    }
    Ok(())
}

fn end_and_listen_again(
    context: &Context,
    family: Family,
    listen: &Listen,
    timeout_ms: Option<u32>,
) -> Result<Vec<String>> {
    const CLIENTS: u64 = 4;
    let scene = RawScene::new(context, family, listen)?;
    let mut clients = scene.parked_many(context, CLIENTS as usize)?;
    let mut half_open = scene.half_open(context)?;
    if timeout_ms.is_some() {
        scene.counts(context, counted!(parked: CLIENTS, half_open: 1))?;
    }
    let ended = destroy(&scene, "listening")?;
    expect_eq!(ended, 1, "listeners that `ss -K` has ended");
    let socket = scene.listener.socket();
    let mut seen = vec![format!("accept: {:?}", errno(socket.accept())?)];
    // Some at once, the others after their deadline.
    let late = clients.split_off(2);
    for client in &mut clients {
        client.data(REQUEST)?;
        expect_reset(context, client, "no reset of a client of an ended listener")?;
    }
    half_open.ack()?;
    expect_reset(context, &mut half_open, "no reset of a half-open client")?;
    if let Some(timeout_ms) = timeout_ms {
        sleep(Duration::from_millis(u64::from(timeout_ms) + 300));
    }
    for mut client in late {
        client.data(REQUEST)?;
        expect_reset(context, &mut client, "no reset of a silent client")?;
    }
    scene.requests(context, 0)?;
    if timeout_ms.is_some() {
        let counts = stats(&scene.listener)?;
        expect_eq!(
            counts.parked,
            0,
            "requests that are parked at an ended listener"
        );
        expect_eq!(counts.parked_total, CLIENTS, "requests that were parked");
        at_rest(&counts)?;
    }

    seen.push(format!("listen: {:?}", errno(socket.listen(8))?));
    let again = Listener::from_socket(socket.try_clone()?)?;
    let mut newcomer = scene.host.client(family, again.port());
    newcomer.open(context.patience())?;
    if timeout_ms.is_some() {
        let before = Duration::from_millis(200);
        ensure!(
            again.accept(before)?.is_none(),
            "a silent client was accepted by a listener that listens again"
        );
    }
    newcomer.data(REQUEST)?;
    let accepted = accept_from_port(&again, context, newcomer.port())?;
    let served = serve(&accepted);
    if served.is_ok() {
        newcomer.read_response(context)?;
    }
    let served = served.map_err(|error| format!("{error:#}"));
    seen.push(format!("then serve a client: {served:?}"));
    Ok(seen)
}
