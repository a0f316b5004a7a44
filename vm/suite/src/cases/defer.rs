// SPDX-License-Identifier: MIT OR Apache-2.0

//! `TCP_DEFER_ACCEPT` on a filtered listener: its value becomes the filter's deadline.

use std::thread::sleep;
use std::time::Duration;

use accf_kit::control::{self, settings, timeout, OnTimeout};
use accf_kit::counters::Counters;
use accf_kit::endpoint::{bound, defer_accept, set_defer_accept, Family, Listen, Listener};
use accf_kit::netns::Netns;
use accf_kit::ulp;
use accf_kit::wire::Wire;
use anyhow::{Context as _, Result};

use crate::case::{case, each_family, expect_eq, Context};
use crate::count::counted;
use crate::scene::{exchange_and_close, RawScene, Scene, WireScene};

/// Returns a listener's deadline in milliseconds, and the value of `TCP_DEFER_ACCEPT`.
fn deadlines(listener: &impl std::os::fd::AsFd) -> Result<(Option<u128>, i32)> {
    let timeout = control::config(listener)?.timeout;
    Ok((
        timeout.map(|timeout| timeout.as_millis()),
        defer_accept(listener)?,
    ))
}

/// Checks that a silent client is accepted after exactly a second, and that its ACK is not dropped.
fn waits_a_second(context: &Context, scene: WireScene) -> Result<()> {
    let before = Counters::read(&scene.wire.server)?;
    let (client, ack) = scene.connect_and_ack(context)?;
    expect_eq!(
        deadlines(&scene.listener)?,
        (Some(1000), 0),
        "timeout_ms and TCP_DEFER_ACCEPT"
    );
    scene.counts(context, counted!(parked: 1))?;
    let accepted = scene.accept_on_time(context, &client, ack.at, Duration::from_secs(1))?;
    scene.counts(context, counted!(timeout_accept: 1))?;
    let after = Counters::read(&scene.wire.server)?;
    expect_eq!(
        after.growth(&before, "TcpExtTCPDeferAcceptDrop")?,
        0,
        "ACKs that the kernel dropped"
    );
    exchange_and_close(client, accepted)?;
    // The same for a client that sends data.
    let (mut client, _) = scene.connect_and_ack(context)?;
    scene.serve(context, &mut client)?;
    scene.judge_totals(2, 0)
}

case!(Default, "defer.before_attach" => each_family(before_attach));
fn before_attach(context: &Context, family: Family) -> Result<()> {
    taken_over(context, family, &Listen::filtered(family).defer_accept(1))
}

case!(Default, "defer.attach_while_listening" => each_family(attach_while_listening));
fn attach_while_listening(context: &Context, family: Family) -> Result<()> {
    let listen = Listen::filtered(family)
        .defer_accept(1)
        .filter_after_listen();
    taken_over(context, family, &listen)
}

fn taken_over(context: &Context, family: Family, listen: &Listen) -> Result<()> {
    let scene = WireScene::new(context, family, listen)?;
    expect_eq!(
        deadlines(&scene.listener)?,
        (Some(1000), 0),
        "timeout_ms and TCP_DEFER_ACCEPT once attached"
    );
    waits_a_second(context, scene)
}

case!(Default, "defer.rounded_as_the_kernel_does" => each_family(rounded));
/// Checks that a value is rounded as TCP does it, up to the times of SYN-ACK retransmissions.
fn rounded(_: &Context, family: Family) -> Result<()> {
    let ns = Netns::new()?;
    for (asked, rounded) in [
        (1, 1),
        (2, 3),
        (3, 3),
        (5, 7),
        (10, 15),
        (60, 63),
        (100, 127),
    ] {
        let plain = Listen::deferred(family, asked).open(&ns)?;
        expect_eq!(
            defer_accept(&plain)?,
            rounded,
            "TCP_DEFER_ACCEPT of {asked} on a plain listener"
        );
        let listener = Listen::filtered(family).defer_accept(asked).open(&ns)?;
        expect_eq!(
            deadlines(&listener)?,
            (Some(rounded as u128 * 1000), 0),
            "timeout_ms and TCP_DEFER_ACCEPT after {asked} s"
        );
        expect_eq!(
            control::config(&listener)?.on_timeout,
            OnTimeout::Accept,
            "on_timeout after {asked} s"
        );
    }
    // 0 sets no deadline: the module's default stays.
    let listener = Listen::filtered(family).defer_accept(0).open(&ns)?;
    expect_eq!(
        deadlines(&listener)?,
        (Some(60_000), 0),
        "timeout_ms and TCP_DEFER_ACCEPT after 0 s"
    );
    Ok(())
}

case!(Default, "defer.after_attach" => each_family(after_attach));
fn after_attach(context: &Context, family: Family) -> Result<()> {
    const PORT: u16 = 4002;
    let wire = Wire::new()?;
    let socket = wire.server.run(|| {
        let socket = bound(family, PORT, false)?;
        ulp::attach(&socket, ulp::DATAREADY)?;
        set_defer_accept(&socket, 1)?;
        socket.listen(16)?;
        Ok(socket)
    })?;
    let scene = WireScene {
        capture: wire.watch_server()?,
        wire,
        family,
        listener: Listener::from_socket(socket)?,
    };
    context.show_on_failure(&scene.capture);
    waits_a_second(context, scene)
}

case!(Default, "defer.after_listen" => each_family(after_listen));
fn after_listen(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::new(
        context,
        family,
        &Listen::filtered(family).filter_after_listen(),
    )?;
    let (mut client, _) = scene.connect_and_ack(context)?;
    let accepted = scene.serve_parked(context, &mut client)?;
    drop((client, accepted));
    set_defer_accept(&scene.listener, 2)?;
    let (client, ack) = scene.connect_and_ack(context)?;
    expect_eq!(
        deadlines(&scene.listener)?,
        (Some(3000), 0),
        "timeout_ms and TCP_DEFER_ACCEPT"
    );
    let accepted = scene.accept_on_time(context, &client, ack.at, Duration::from_secs(3))?;
    scene.counts(context, counted!(released_data: 1, timeout_accept: 1))?;
    exchange_and_close(client, accepted)?;
    scene.judge_syn_acks(2)
}

case!(Default, "defer.while_parked" => each_family(while_parked));
/// Checks that the value holds from the next SYN on, also for requests already parked, and that the
/// policy stays.
fn while_parked(context: &Context, family: Family) -> Result<()> {
    let listen = Listen::filtered(family).config(settings(60_000, 50, OnTimeout::Accept));
    let scene = WireScene::new(context, family, &listen)?;
    let (first, first_ack) = scene.connect_and_ack(context)?;
    set_defer_accept(&scene.listener, 2)?;
    sleep(Duration::from_millis(400));
    let (second, second_ack) = scene.connect_and_ack(context)?;
    expect_eq!(
        control::config(&scene.listener)?,
        settings(3000, 50, OnTimeout::Accept),
        "configuration"
    );
    for (client, ack) in [(first, first_ack), (second, second_ack)] {
        let accepted = scene.accept_on_time(context, &client, ack.at, Duration::from_secs(3))?;
        exchange_and_close(client, accepted)?;
    }
    scene.counts(context, counted!(timeout_accept: 2))
}

case!(Default, "defer.between_syn_and_ack" => each_family(between_syn_and_ack));
/// Checks that TCP may drop the ACK of a SYN that came before the option was set, and that the
/// client is served.
fn between_syn_and_ack(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let mut client = scene.half_open(context)?;
    set_defer_accept(&scene.listener, 1)?;
    client.ack()?;
    sleep(Duration::from_millis(200));
    scene.serve(context, &mut client)?;
    let (mut next, _) = scene.parked(context)?;
    expect_eq!(
        deadlines(&scene.listener)?,
        (Some(1000), 0),
        "timeout_ms and TCP_DEFER_ACCEPT"
    );
    scene.serve(context, &mut next)
}

case!(Default, "defer.again_and_again" => each_family(again_and_again));
/// Checks that the last call wins: the option, the configuration, the option again.
fn again_and_again(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    for (asked, expected_ms) in [(1, 1000), (10, 15_000), (3, 3000)] {
        set_defer_accept(&scene.listener, asked)?;
        let (mut client, _) = scene.parked(context)?;
        expect_eq!(
            deadlines(&scene.listener)?,
            (Some(expected_ms), 0),
            "timeout_ms and TCP_DEFER_ACCEPT after {asked} s"
        );
        scene.serve(context, &mut client)?;
        // A value of 0 is not taken over.
        set_defer_accept(&scene.listener, 0)?;
        let (mut client, _) = scene.parked(context)?;
        expect_eq!(
            deadlines(&scene.listener)?,
            (Some(expected_ms), 0),
            "timeout_ms and TCP_DEFER_ACCEPT after 0 s"
        );
        scene.serve(context, &mut client)?;
        // A value that is not taken over yet is older than this configuration.
        set_defer_accept(&scene.listener, asked)?;
        control::set_config(&scene.listener, &timeout(40_000)).context("ACCF_CONFIG")?;
        let (mut client, _) = scene.parked(context)?;
        expect_eq!(
            deadlines(&scene.listener)?,
            (Some(40_000), 0),
            "timeout_ms and TCP_DEFER_ACCEPT after both"
        );
        scene.serve(context, &mut client)?;
    }
    Ok(())
}
