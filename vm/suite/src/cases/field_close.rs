// SPDX-License-Identifier: MIT OR Apache-2.0

//! A listener ends while clients are parked: each is told, as at a plain listener, unless another
//! listener of the port takes it over.

use std::net::Shutdown;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use accf_kit::capture::Trace;
use accf_kit::clock::Stamp;
use accf_kit::control::{settings, OnTimeout};
use accf_kit::endpoint::{disconnect, Family, Listen, Listener};
use accf_kit::segment::Segment;
use accf_kit::tun_clients::TunClients;
use accf_kit::wire::Wire;
use accf_kit::{module, netns::Netns, wait};
use anyhow::{ensure, Context as _, Result};

use super::command;
use crate::case::{case, each_family, expect_eq, expect_in, once, Context};
use crate::count::{counted, counts};
use crate::scene::{accept_from_port, reads_reset, requests, serve, Scene, WireScene};

/// How many clients there are.
const CLIENTS: usize = 20;

/// A port that the kernel has chosen would be released by shutdown().
const PORT: u16 = 4000;

/// How a listener ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Close,
    Shutdown,
    /// `connect()` with `AF_UNSPEC`.
    Disconnect,
    /// `ss -K`.
    Destroy,
}

/// How soon every client is to be told.
fn soon(context: &Context) -> Duration {
    Duration::from_millis(700) + context.prompt()
}

/// Ends the listener. Returns it where it stays open.
fn end(listener: Listener, wire: &Wire, how: End) -> Result<Option<Listener>> {
    match how {
        End::Close => return Ok(None),
        End::Shutdown => listener.socket().shutdown(Shutdown::Both)?,
        End::Disconnect => disconnect(&listener)?,
        End::Destroy => {
            let port = format!(":{PORT}");
            let arguments = ["-K", "-Hlt", "sport", "=", &port];
            wire.server.command("ss", &arguments)?;
        }
    }
    Ok(Some(listener))
}

/// Connects clients to a listener, half of them long before the rest, ends it, and checks that all
/// read a reset in time. Returns what the wire saw.
fn told(context: &Context, family: Family, listen: &Listen, how: End) -> Result<Trace> {
    let scene = WireScene::new(context, family, &listen.clone().port(PORT))?;
    let mut clients = scene.connect_many(CLIENTS / 2)?;
    // The SYN-ACK timers of these are deferred by then.
    sleep(Duration::from_millis(700));
    clients.extend(scene.connect_many(CLIENTS / 2)?);
    for client in &clients {
        scene.bare_ack(context, client)?;
    }
    let WireScene {
        wire,
        listener,
        capture,
        ..
    } = scene;
    let ended = end(listener, &wire, how)?;
    let start = Stamp::now();
    for client in &mut clients {
        reads_reset(&mut client.stream).context(format!("{how:?}"))?;
    }
    let told = Stamp::now();
    let allowed = soon(context) + context.late(start, told);
    expect_in!(
        told.ms_after(start),
        0.0..allowed.as_secs_f64() * 1e3,
        "milliseconds until all were told, {how:?}"
    );
    requests(&wire.server, PORT, context, 0)?;
    drop(ended);
    capture.stop()
}

/// Checks that a filtered listener's end tells its clients what a plain one's does.
fn as_plain(context: &Context, family: Family, how: End) -> Result<()> {
    let filtered = Listen::filtered(family);
    for (listen, what) in [
        (Listen::plain(family), "plain"),
        (
            filtered
                .clone()
                .config(settings(600_000, 0, OnTimeout::Accept)),
            "accept",
        ),
        (
            filtered
                .clone()
                .config(settings(600_000, 0, OnTimeout::Drop)),
            "drop",
        ),
        (
            filtered.config(settings(0, 0, OnTimeout::Accept)),
            "without a deadline",
        ),
    ] {
        let trace = told(context, family, &listen, how).context(what)?;
        let resets = trace.sent().resets();
        expect_eq!(resets, CLIENTS, "resets, {what}");
        // None is sent twice.
        for packet in trace.sent().packets {
            let Segment {
                flags,
                seq,
                destination,
                ..
            } = packet.segment;
            if flags.rst {
                let syn_ack = trace
                    .first(|segment| segment.is_syn_ack() && segment.destination == destination);
                let syn_ack = syn_ack.context("a reset of no client of ours")?;
                let expected = syn_ack.segment.seq.wrapping_add(1);
                expect_eq!(seq, expected, "sequence number of a reset, {what}");
            }
        }
    }
    Ok(())
}

case!(Default, "field.close.close" => each_family, as_plain(End::Close));
case!(Default, "field.close.shutdown" => each_family, as_plain(End::Shutdown));
case!(Default, "field.close.disconnect" => each_family, as_plain(End::Disconnect));
case!(Default, "field.close.destroy" => each_family, as_plain(End::Destroy));

/// How many clients think while the server reloads.
const THINKING: usize = 15;

/// Has a listener with [`THINKING`] clients end after another one of the port has begun to listen,
/// and has the clients send their requests. Returns how many were served and how many reset.
fn reload(context: &Context, family: Family, migrates: bool, how: End) -> Result<(usize, usize)> {
    let wire = Wire::new()?;
    let value = if migrates { "1" } else { "0" };
    wire.server.set_sysctl("net.ipv4.tcp_migrate_req", value)?;
    let listen = Listen::filtered(family)
        .reuse_port()
        .port(PORT)
        .config(settings(600_000, 0, OnTimeout::Accept));
    let scene = WireScene::on(context, wire, family, &listen)?;
    let mut clients = scene.connect_many(THINKING)?;
    scene.counts(context, counted!(parked: THINKING as u64))?;
    let second = listen.open(&scene.wire.server)?;
    let list = command::accf(&scene.wire.server, &["list"])?;
    let list = String::from_utf8_lossy(&list.stdout);
    let is_told = list.contains("net.ipv4.tcp_migrate_req is 0");
    expect_eq!(
        is_told,
        !migrates,
        "whether `accf list` says what to set in\n{list}"
    );
    let WireScene { wire, listener, .. } = scene;
    let ended = end(listener, &wire, how)?;
    sleep(soon(context));
    let mut reset = 0;
    let mut served = 0;
    for client in &mut clients {
        // Who was told cannot send any more.
        if client.request().is_err() {
            reset += 1;
            continue;
        }
        // A silent client that woke the new listener would come first.
        let accepted = accept_from_port(&second, context, client.local.port())?;
        serve(&accepted)?;
        client.response()?;
        served += 1;
    }
    drop(ended);
    requests(&wire.server, PORT, context, 0)?;
    Ok((served, reset))
}

case!(Default, "field.close.reload" => each_family(reloaded));
/// Checks that no client that thinks during a reload is left in the dark: it is served by the new
/// listener where TCP migrates requests, and told elsewhere.
fn reloaded(context: &Context, family: Family) -> Result<()> {
    for how in [End::Close, End::Shutdown] {
        let migrated = reload(context, family, true, how)?;
        expect_eq!(
            migrated,
            (THINKING, 0),
            "served and reset, tcp_migrate_req=1, {how:?}"
        );
        let told = reload(context, family, false, how)?;
        expect_eq!(
            told,
            (0, THINKING),
            "served and reset, tcp_migrate_req=0, {how:?}"
        );
    }
    let log = Command::new("dmesg").output().context("start dmesg")?;
    ensure!(
        String::from_utf8_lossy(&log.stdout)
            .contains("net.ipv4.tcp_migrate_req=1 hands them to another listener"),
        "the kernel log does not say what to set"
    );
    Ok(())
}

case!(Default, "field.close.group" => each_family(group_ends));
/// Checks that every client is told if all listeners of a port are closed at once, though each of
/// them would hand its clients to the next.
fn group_ends(context: &Context, family: Family) -> Result<()> {
    const LISTENERS: usize = 4;
    let wire = Wire::new()?;
    wire.server.set_sysctl("net.ipv4.tcp_migrate_req", "1")?;
    let listen = Listen::filtered(family)
        .reuse_port()
        .port(PORT)
        .config(settings(600_000, 0, OnTimeout::Accept));
    let scene = WireScene::on(context, wire, family, &listen)?;
    let others: Vec<Listener> = (1..LISTENERS)
        .map(|_| listen.open(&scene.wire.server))
        .collect::<Result<_>>()?;
    let mut clients = scene.connect_many(5 * CLIENTS)?;
    for client in &clients {
        scene.bare_ack(context, client)?;
    }
    let WireScene { wire, listener, .. } = scene;
    drop((listener, others));
    for client in &mut clients {
        reads_reset(&mut client.stream)?;
    }
    requests(&wire.server, PORT, context, 0)
}

case!(Alone, "field.close.unload_at_once" => once(unload).long(Duration::from_secs(120)));
/// Checks that many clients are told although the module is unloaded at once, and that unloading
/// waits for that, and for nothing else.
fn unload(context: &Context) -> Result<()> {
    const MANY: u32 = 1000;
    module::reload("")?;
    let ns = Netns::new()?;
    let listener = Listen::filtered(Family::V4).open(&ns)?;
    let mut tun = TunClients::new(&ns, Family::V4, listener.port())?;
    let clients = tun.open(0..MANY, context.patience())?;
    counts(context, &listener, counted!(parked: u64::from(MANY)))?;
    drop(listener);
    module::unload(context.patience())?;
    let mut resets = vec![0; clients.len()];
    wait::until(context.patience(), || {
        while let Some((nth, segment)) = tun.take()? {
            resets[nth as usize] += u32::from(segment.is_rst());
        }
        Ok(resets.iter().all(|&resets| resets > 0))
    })?;
    ensure!(
        resets.iter().all(|&resets| resets == 1),
        "not each client was told once: {resets:?}"
    );
    module::load("")
}
