// SPDX-License-Identifier: MIT OR Apache-2.0

//! A running server's filter is to go: parking is paused, and resumed.

use std::os::fd::AsFd;
use std::time::Duration;

use accf_kit::clock::Stamp;
use accf_kit::control::{
    self, accf_config, settings, Config, OnTimeout, State, ACCF_CONFIG, SOL_ACCF,
};
use accf_kit::endpoint::{Family, Listen, Listener};
use anyhow::{Context as _, Result};
use nix::errno::Errno;

use crate::case::{case, each_family, expect_eq, Context};
use crate::count::{counted, counts};
use crate::scene::{
    accept, accept_from_port, bare_ack, errno, exchange_and_close, reads_end, Scene, WireScene,
};

/// A deadline that no case waits for.
const FAR_MS: u32 = 600_000;

/// Returns the bytes of a configuration in fields of 32 bits.
fn bytes(fields: &[u32]) -> Vec<u8> {
    fields
        .iter()
        .flat_map(|field| field.to_ne_bytes())
        .collect()
}

/// Checks the settings of a listener: its own answer, and that of `inet_diag`.
fn expect_config(scene: &WireScene, expected: Config, what: &str) -> Result<()> {
    expect_eq!(control::config(&scene.listener)?, expected, "{what}");
    let told = control::from_diag(&scene.wire.server, scene.port())?.context("no such listener")?;
    expect_eq!(told.config, expected, "{what}, by inet_diag");
    Ok(())
}

/// Checks that a client that sends nothing is accepted at once, at `plain` and at the listener of
/// the scene.
pub(super) fn silent_clients_are_accepted(
    context: &Context,
    scene: &WireScene,
    plain: &Listener,
) -> Result<()> {
    for listener in [plain, &scene.listener] {
        let client = scene.connect_to(listener)?;
        let ack = bare_ack(&scene.capture, context, client.local.port())?;
        let accepted = accept_from_port(listener, context, client.local.port())?;
        context.at_once(ack.at, accepted.at, "from the bare ACK to accept()")?;
        exchange_and_close(client, accepted)?;
    }
    Ok(())
}

case!(Default, "field.pause.accept" => each_family, hands_over(OnTimeout::Accept));
case!(Default, "field.pause.reset" => each_family, hands_over(OnTimeout::Reset));
case!(Default, "field.pause.drop" => each_family, hands_over(OnTimeout::Drop));
/// Checks that a pause hands over all parked clients at once, in order and without a segment,
/// whatever `on_timeout` says; that a client is then accepted as at a plain listener; and that
/// clients are parked again after the pause.
fn hands_over(context: &Context, family: Family, on_timeout: OnTimeout) -> Result<()> {
    // More than the listener's timer handles in one run.
    const CLIENTS: usize = 100;
    let config = settings(FAR_MS, 1000, on_timeout);
    let scene = WireScene::new(context, family, &Listen::filtered(family).config(config))?;
    let plain = Listen::plain(family).open(&scene.wire.server)?;
    let clients = scene.connect_many(CLIENTS)?;
    let parked = CLIENTS as u64;
    scene.counts(context, counted!(parked: parked))?;

    let paused = Stamp::now();
    control::pause(&scene.listener)?;
    scene.counts(context, counted!(released_paused: parked))?;
    let handed_over = Stamp::now();
    context.at_once(paused, handed_over, "from the pause to the last connection")?;
    let mut accepted = Vec::new();
    for client in &clients {
        // In the order in which they were parked.
        accepted.push(scene.accept_from(context, client)?);
    }
    for (client, accepted) in clients.into_iter().zip(accepted) {
        exchange_and_close(client, accepted)?;
    }

    silent_clients_are_accepted(context, &scene, &plain)?;
    let so_far = counted!(released_paused: parked, bypass_paused: 1);
    scene.counts(context, so_far)?;

    control::resume(&scene.listener)?;
    expect_config(&scene, config, "settings after the pause")?;
    let (mut client, _) = scene.connect_and_pause(context, Duration::from_millis(300))?;
    let mut counts = so_far;
    counts.parked = 1;
    scene.counts(context, counts)?;
    scene.serve(context, &mut client)?;
    counts.parked = 0;
    counts.released_data = 1;
    scene.counts(context, counts)?;

    scene.judge(|trace| {
        expect_eq!(trace.resets(), 0, "resets");
        expect_eq!(trace.syn_acks(), CLIENTS + 2, "SYN-ACKs");
        let between = trace.between(paused, handed_over);
        expect_eq!(between.packets.len(), 0, "segments of the pause");
        Ok(())
    })
}

case!(Default, "field.pause.full_accept_queue" => each_family(full_accept_queue));
/// Checks that a pause loses no client where the accept queue is full: they are accepted as the
/// server makes room, and one that is still parked when the pause ends stays parked.
fn full_accept_queue(context: &Context, family: Family) -> Result<()> {
    const BACKLOG: i32 = 3;
    const ROOM: u64 = 4;
    const CLIENTS: u64 = 12;
    let listen =
        Listen::filtered(family)
            .backlog(BACKLOG)
            .config(settings(FAR_MS, 0, OnTimeout::Drop));
    let scene = WireScene::new(context, family, &listen)?;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(scene.connect_and_ack(context)?.0);
    }
    scene.counts(context, counted!(parked: CLIENTS))?;
    control::pause(&scene.listener)?;
    scene.counts(
        context,
        counted!(parked: CLIENTS - ROOM, released_paused: ROOM),
    )?;

    control::resume(&scene.listener)?;
    let mut clients = clients.into_iter();
    for client in clients.by_ref().take(ROOM as usize) {
        let accepted = scene.accept_from(context, &client)?;
        exchange_and_close(client, accepted)?;
    }
    scene.accept_nothing(Duration::from_millis(300), "the pause is over")?;
    scene.counts(
        context,
        counted!(parked: CLIENTS - ROOM, released_paused: ROOM),
    )?;

    control::pause(&scene.listener)?;
    for client in clients {
        let accepted = scene.accept_from(context, &client)?;
        exchange_and_close(client, accepted)?;
    }
    scene.counts(context, counted!(released_paused: CLIENTS))?;
    scene.judge_resets_sent(0)
}

case!(Default, "field.pause.again_and_again" => each_family(again_and_again));
/// Checks that each client is accepted, and counted once, where the state changes quickly.
fn again_and_again(context: &Context, family: Family) -> Result<()> {
    const CLIENTS: u64 = 40;
    let listen = Listen::filtered(family).config(settings(FAR_MS, 0, OnTimeout::Reset));
    let scene = WireScene::new(context, family, &listen)?;
    let mut clients = Vec::new();
    for nth in 0..CLIENTS {
        if nth % 3 == 0 {
            control::pause(&scene.listener)?;
        }
        if nth % 3 == 1 {
            control::resume(&scene.listener)?;
        }
        clients.push(scene.connect()?);
    }
    control::pause(&scene.listener)?;
    let mut ports: Vec<u16> = clients.iter().map(|client| client.local.port()).collect();
    let mut accepted = Vec::new();
    for _ in 0..CLIENTS {
        accepted.push(accept(&scene.listener, context)?);
    }
    let mut seen: Vec<u16> = accepted.iter().map(|one| one.peer.port()).collect();
    ports.sort_unstable();
    seen.sort_unstable();
    expect_eq!(seen, ports, "the clients that were accepted");
    let stats = control::stats(&scene.listener)?;
    expect_eq!(
        (
            stats.parked,
            stats.released_paused,
            stats.released_paused + stats.bypass_paused
        ),
        (0, stats.parked_total, CLIENTS),
        "parked, handed over and not parked"
    );
    drop(accepted);
    for mut client in clients {
        reads_end(&mut client.stream, "bytes before the end")?;
    }
    Ok(())
}

case!(Default, "field.pause.settings" => each_family(set_and_get));
/// Checks that a pause is a setting like others: by its number, by the library and in `inet_diag`;
/// that one that does not exist changes nothing; and that a program that does not know the field
/// neither pauses nor ends a pause.
fn set_and_get(context: &Context, family: Family) -> Result<()> {
    const SIZE: usize = size_of::<accf_config>();
    let scene = WireScene::new(context, family, &Listen::filtered(family))?;
    let listener = &scene.listener;
    let set = |value: &[u8]| errno(control::set_bytes(listener, SOL_ACCF, ACCF_CONFIG, value));
    let settings_of = |timeout_ms, state| Config {
        state,
        ..settings(timeout_ms, 50, OnTimeout::Reset)
    };

    expect_eq!(set(&bytes(&[1000, 50, 1, 1]))?, None, "pausing");
    expect_config(&scene, settings_of(1000, State::Paused), "settings")?;
    for state in [2, 3, 256, u32::MAX] {
        expect_eq!(
            set(&bytes(&[7, 8, 2, state]))?,
            Some(Errno::EINVAL),
            "state {state}"
        );
        expect_config(
            &scene,
            settings_of(1000, State::Paused),
            "what was set before",
        )?;
    }
    // What a program passes that was built before the field existed.
    expect_eq!(set(&bytes(&[2000, 50, 1]))?, None, "setting 12 bytes");
    expect_config(
        &scene,
        settings_of(2000, State::Paused),
        "settings after 12 bytes in a pause",
    )?;
    let client = scene.connect()?;
    exchange_and_close(client, scene.accept(context)?)?;
    counts(context, listener, counted!(bypass_paused: 1))?;
    let mut old = [0xa5; 12];
    let length = control::get_bytes(listener.as_fd(), SOL_ACCF, ACCF_CONFIG, &mut old)?;
    expect_eq!(
        (length, old.to_vec()),
        (12, bytes(&[2000, 50, 1])),
        "what such a program reads"
    );

    // The whole structure ends the pause, and with zeros behind it as well.
    let mut whole = bytes(&[3000, 50, 1, 0]);
    whole.resize(SIZE, 0);
    expect_eq!(set(&whole)?, None, "resuming");
    expect_config(&scene, settings_of(3000, State::Parking), "settings")?;
    expect_eq!(set(&bytes(&[4000, 50, 1]))?, None, "setting 12 bytes");
    expect_config(
        &scene,
        settings_of(4000, State::Parking),
        "settings after 12 bytes",
    )?;
    control::pause(listener)?;
    control::pause(listener)?;
    expect_config(&scene, settings_of(4000, State::Paused), "settings")?;
    whole.resize(100, 0);
    expect_eq!(set(&whole)?, None, "resuming with 100 bytes");
    expect_config(&scene, settings_of(3000, State::Parking), "settings")
}
