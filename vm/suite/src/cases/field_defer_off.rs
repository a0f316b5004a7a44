// SPDX-License-Identifier: MIT OR Apache-2.0

//! `TCP_DEFER_ACCEPT` on a running server: set while clients are parked, and taken back.

use std::time::Duration;

use accf_kit::control::{self, settings, OnTimeout, State};
use accf_kit::endpoint::{defer_accept, set_defer_accept, Family, Listen};
use anyhow::Result;

use crate::case::{case, each_family, expect_eq, Context};
use crate::count::counted;
use crate::scene::{exchange_and_close, Scene, WireScene};

use super::field_pause::silent_clients_are_accepted;

case!(Default, "field.defer_off.set_while_parked" => each_family(set_while_parked));
/// Checks that a client whose deadline comes after the option was set, and before any SYN that
/// shows it to the module, is accepted at the new deadline: the ACK that is rebuilt for it meets
/// TCP's own deferral.
fn set_while_parked(context: &Context, family: Family) -> Result<()> {
    let listen = Listen::filtered(family).config(settings(2000, 0, OnTimeout::Accept));
    let scene = WireScene::new(context, family, &listen)?;
    let (client, ack) = scene.connect_and_ack(context)?;
    set_defer_accept(&scene.listener, 2)?;
    let accepted = scene.accept_on_time(context, &client, ack.at, Duration::from_secs(3))?;
    scene.counts(context, counted!(timeout_accept: 1))?;
    expect_eq!(
        (
            control::config(&scene.listener)?.timeout,
            defer_accept(&scene.listener)?
        ),
        (Some(Duration::from_secs(3)), 0),
        "timeout_ms and TCP_DEFER_ACCEPT"
    );
    exchange_and_close(client, accepted)?;
    scene.judge_totals(1, 0)
}

case!(Default, "field.defer_off.by_a_pause" => each_family(by_a_pause));
/// Checks that a server which has set the option, and sets it to 0, is rid of the wait by a pause:
/// as a plain listener, where 0 is enough. The option itself reads 0 either way.
fn by_a_pause(context: &Context, family: Family) -> Result<()> {
    let config = settings(600_000, 100, OnTimeout::Accept);
    let scene = WireScene::new(context, family, &Listen::filtered(family).config(config))?;
    let plain = Listen::plain(family).open(&scene.wire.server)?;
    for listener in [&plain, &scene.listener] {
        set_defer_accept(listener, 10)?;
    }
    let (parked, _) = scene.connect_and_pause(context, Duration::from_millis(300))?;
    for listener in [&plain, &scene.listener] {
        set_defer_accept(listener, 0)?;
        expect_eq!(defer_accept(listener)?, 0, "TCP_DEFER_ACCEPT");
    }
    control::pause(&scene.listener)?;
    let accepted = scene.accept_from(context, &parked)?;
    exchange_and_close(parked, accepted)?;
    silent_clients_are_accepted(context, &scene, &plain)?;
    scene.counts(context, counted!(released_paused: 1, bypass_paused: 1))?;

    // The configured timeout comes back with the configuration.
    expect_eq!(
        control::config(&scene.listener)?.state,
        State::Paused,
        "the state"
    );
    control::set_config(&scene.listener, &config)?;
    expect_eq!(control::config(&scene.listener)?, config, "settings");
    scene.judge_resets_sent(0)
}
