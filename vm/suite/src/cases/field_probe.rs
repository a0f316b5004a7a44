// SPDX-License-Identifier: MIT OR Apache-2.0

//! Probes, such as a load balancer's health checks: they connect and close without a byte.

use std::net::Shutdown;
use std::time::Duration;

use accf_kit::control::{self, settings, Config, OnClose, OnTimeout, State, ACCF_CONFIG, SOL_ACCF};
use accf_kit::endpoint::{reset_on_close, Family, Listen, Listener};
use accf_kit::segment::{Flags, Segment};
use anyhow::{Context as _, Result};
use nix::errno::Errno;

use crate::case::{case, each_family, expect_eq, Context};
use crate::count::{counted, counts};
use crate::scene::{
    accept, errno, expect_reset, reads_end, reads_reset, receives_nothing, RawScene, Scene,
    WireScene, REQUEST,
};

/// How many probes there are.
const PROBES: usize = 20;

/// Returns settings of a listener that no deadline disturbs.
fn config(on_close: OnClose) -> Config {
    Config {
        on_close,
        ..settings(600_000, 100, OnTimeout::Accept)
    }
}

fn listen(family: Family, on_close: OnClose) -> Listen {
    Listen::filtered(family).config(config(on_close))
}

/// Lets clients connect and close, one after another, and returns how many connections woke the
/// server.
fn probe(context: &Context, scene: &WireScene, listener: &Listener) -> Result<usize> {
    let mut woken = 0;
    for _ in 0..PROBES {
        drop(scene.connect_to(listener)?);
        // The time that a server would have to be woken in.
        if let Some(mut accepted) = listener.accept(Duration::from_millis(50))? {
            reads_end(&mut accepted.stream, "bytes of a probe")?;
            woken += 1;
        }
    }
    // One that was late.
    while let Some(mut accepted) = listener.accept(context.prompt())? {
        reads_end(&mut accepted.stream, "bytes of a probe")?;
        woken += 1;
    }
    Ok(woken)
}

case!(Default, "field.probe.accept" => each_family(accepted));
/// Checks that probes wake the server as at a plain listener, if the listener does not ask for
/// anything else.
fn accepted(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::new(context, family, &listen(family, OnClose::Accept))?;
    let plain = Listen::plain(family).open(&scene.wire.server)?;
    expect_eq!(probe(context, &scene, &plain)?, PROBES, "at a plain one");
    expect_eq!(probe(context, &scene, &scene.listener)?, PROBES, "wake-ups");
    scene.counts(context, counted!(released_fin: PROBES as u64))?;
    scene.judge_resets_sent(0)
}

case!(Default, "field.probe.reset" => each_family(reset));
/// Checks that probes do not wake a server that does not want them, that each FIN is answered once,
/// and at once, and that other clients do not notice.
fn reset(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::new(context, family, &listen(family, OnClose::Reset))?;
    let plain = Listen::plain(family).open(&scene.wire.server)?;
    expect_eq!(probe(context, &scene, &plain)?, PROBES, "at a plain one");
    expect_eq!(probe(context, &scene, &scene.listener)?, 0, "wake-ups");
    let mut expected = counted!(closed_reset: PROBES as u64);
    scene.counts(context, expected)?;
    scene.requests(context, 0)?;

    // A probe that resets is not seen either.
    let (client, _) = scene.connect_and_ack(context)?;
    reset_on_close(&client.stream)?;
    drop(client);
    expected.aborted = 1;
    scene.counts(context, expected)?;
    // A client that closes after its request.
    let (mut client, _) = scene.connect_and_ack(context)?;
    scene.serve_parked(context, &mut client)?;
    expected.released_data = 1;
    scene.counts(context, expected)?;
    let port = client.local.port();
    client.stream.shutdown(Shutdown::Write)?;
    reads_end(&mut client.stream, "bytes after the response")?;

    let listening = scene.port();
    scene.judge(|trace| {
        let resets = trace.sent().resets();
        expect_eq!(resets, PROBES, "resets by the server");
        let fins = trace
            .to_port(listening)
            .count(|segment: &Segment| segment.flags.fin);
        // The last client's is the one of a connection.
        expect_eq!(fins, PROBES + 1, "FINs, none of which was sent twice");
        for packet in &trace.sent().packets {
            let segment = &packet.segment;
            if segment.is_rst() && segment.destination.port() != port {
                expect_eq!(segment.flags, Flags::RST, "flags of {segment}");
            }
        }
        Ok(())
    })
}

case!(Default, "field.probe.half_closed" => each_family(half_closed));
/// Checks what a client sees that has only shut down its sending side.
fn half_closed(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::new(context, family, &listen(family, OnClose::Reset))?;
    let (mut client, _) = scene.connect_and_ack(context)?;
    client.stream.shutdown(Shutdown::Write)?;
    reads_reset(&mut client.stream)?;
    scene.counts(context, counted!(closed_reset: 1))
}

case!(Default, "field.probe.segment_by_segment" => each_family(raw));
/// Checks the sequence number of the reset; that a FIN which completes the handshake is answered
/// alike; and that data before or with the FIN is for the server.
fn raw(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::new(context, family, &listen(family, OnClose::Reset))?;
    let (mut client, _) = scene.parked(context)?;
    let expected = client.rcv_nxt;
    client.fin()?;
    let reset = expect_reset(context, &mut client, "no reset of a client that closed")?.segment;
    expect_eq!(reset.flags, Flags::RST, "flags of the reset");
    expect_eq!(reset.seq, expected, "sequence number of the reset");
    receives_nothing(
        &mut client,
        Duration::from_millis(1200),
        "what came after the reset",
    )?;
    scene.counts(context, counted!(closed_reset: 1))?;

    let mut client = scene.half_open(context)?;
    let expected = client.rcv_nxt;
    client.fin()?;
    let reset = expect_reset(context, &mut client, "no reset of a FIN without an ACK")?.segment;
    expect_eq!(reset.seq, expected, "sequence number of the reset");
    let mut so_far = counted!(closed_reset: 1, closed_reset_unparked: 1);
    scene.counts(context, so_far)?;
    scene.requests(context, 0)?;

    for parked in [true, false] {
        let mut client = if parked {
            scene.parked(context)?.0
        } else {
            scene.half_open(context)?
        };
        let both = client.segment(Flags::FIN_ACK, REQUEST);
        client.send(&both)?;
        let mut accepted = scene.accept_from(context, &client)?;
        let request = crate::scene::rest(&mut accepted.stream)?;
        expect_eq!(request, REQUEST, "the request");
        so_far.released_data += u64::from(parked);
        scene.counts(context, so_far)?;
    }
    scene.accept_nothing(Duration::from_millis(200), "the others were reset")
}

case!(Default, "field.probe.paused" => each_family(paused));
/// Checks that a paused listener accepts what closes, as a plain one does, and so does one that
/// must not park.
fn paused(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::new(context, family, &listen(family, OnClose::Reset))?;
    control::pause(&scene.listener)?;
    let (client, _) = scene.connect_and_ack(context)?;
    drop(client);
    let mut accepted = accept(&scene.listener, context)?;
    reads_end(&mut accepted.stream, "bytes of a probe")?;
    scene.counts(context, counted!(bypass_paused: 1))?;
    control::resume(&scene.listener)?;

    let (client, _) = scene.connect_and_ack(context)?;
    scene.counts(context, counted!(parked: 1, bypass_paused: 1))?;
    let server = &scene.wire.server;
    server.set_sysctl("net.ipv4.tcp_abort_on_overflow", "1")?;
    drop(client);
    let mut accepted = accept(&scene.listener, context)?;
    reads_end(&mut accepted.stream, "bytes of a probe")?;
    scene.counts(context, counted!(released_fin: 1, bypass_paused: 1))?;
    scene.judge_resets_sent(0)
}

case!(Default, "field.probe.settings" => each_family(set_and_get));
/// Checks that `on_close` is a setting like others, that a value that does not exist changes
/// nothing, and that it counts as 0 for a program that does not know it.
fn set_and_get(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::new(context, family, &Listen::filtered(family))?;
    let listener = &scene.listener;
    let bytes = |fields: &[u32]| -> Vec<u8> {
        fields
            .iter()
            .flat_map(|field| field.to_ne_bytes())
            .collect()
    };
    let set = |fields: &[u32]| {
        errno(control::set_bytes(
            listener,
            SOL_ACCF,
            ACCF_CONFIG,
            &bytes(fields),
        ))
    };
    expect_eq!(
        control::config(listener)?.on_close,
        OnClose::Accept,
        "what a listener begins with"
    );
    expect_eq!(set(&[600_000, 100, 0, 0, 1])?, None, "setting on_close");
    let told = control::from_diag(&scene.wire.server, scene.port())?.context("no such listener")?;
    expect_eq!(told.config, config(OnClose::Reset), "by inet_diag");
    for on_close in [2, 9, 256, u32::MAX] {
        expect_eq!(
            set(&[7, 8, 2, 1, on_close])?,
            Some(Errno::EINVAL),
            "on_close {on_close}"
        );
        expect_eq!(
            control::config(listener)?,
            config(OnClose::Reset),
            "what was set before"
        );
    }
    for shorter in [&[600_000, 100, 0][..], &[600_000, 100, 0, 0]] {
        control::set_config(listener, &config(OnClose::Reset))?;
        expect_eq!(set(shorter)?, None, "setting {} fields", shorter.len());
        let seen = control::config(listener)?;
        expect_eq!(
            (seen.on_close, seen.state),
            (OnClose::Accept, State::Parking),
            "on_close and state after {} fields",
            shorter.len()
        );
    }
    counts(context, listener, counted!())
}
