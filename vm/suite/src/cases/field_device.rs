// SPDX-License-Identifier: MIT OR Apache-2.0

//! A listener that is bound to another interface while clients are connected: it keeps those that a
//! plain listener keeps.

use std::time::Duration;

use accf_kit::control::timeout;
use accf_kit::endpoint::{Accepted, Family, Listen};
use accf_kit::raw::INTERFACE;
use anyhow::{Context as _, Result};
use socket2::SockRef;

use crate::case::{case, each_family, expect_eq, Context};
use crate::count::counted;
use crate::scene::{serve, serve_raw, Peer, RawScene, Scene, REQUEST};
use crate::ways::LONG;

/// An interface that no client is behind.
const OTHER: &str = "dummy0";

fn bound_to(accepted: &Accepted) -> Result<String> {
    let device = SockRef::from(&accepted.stream).device()?;
    Ok(device.map_or_else(String::new, |name| {
        String::from_utf8_lossy(&name).into_owned()
    }))
}

case!(Default, "field.device.changed" => each_family(changed).long(LONG));
/// Checks a client that is half-open while the interface changes, one that sends after it, and one
/// that is silent.
fn changed(context: &Context, family: Family) -> Result<()> {
    let ways = [
        (None, Some(OTHER)),
        (None, Some("lo")),
        (Some(INTERFACE), Some(OTHER)),
        (Some(INTERFACE), None),
        (None, Some(INTERFACE)),
    ];
    for (before, after) in ways {
        let what = format!("from {before:?} to {after:?}");
        let plain = play(context, family, before, after, false)
            .with_context(|| format!("a plain listener {what}"))?;
        let filtered = play(context, family, before, after, true)
            .with_context(|| format!("a filtered listener {what}"))?;
        expect_eq!(filtered, plain, "what the clients saw, {what}");
    }
    Ok(())
}

/// Returns what became of the clients.
fn play(
    context: &Context,
    family: Family,
    before: Option<&str>,
    after: Option<&str>,
    filtered: bool,
) -> Result<Vec<String>> {
    let deadline = Duration::from_millis(3000) * context.kernel.patience();
    let listen = if filtered {
        Listen::filtered(family).config(timeout(deadline.as_millis() as u32))
    } else {
        Listen::plain(family)
    };
    let scene = RawScene::new(context, family, &listen)?;
    scene
        .ns
        .ip(&format!("link add {OTHER} type dummy\nlink set {OTHER} up"))?;
    let bind = |device: Option<&str>| {
        scene
            .listener
            .socket()
            .bind_device(device.map(str::as_bytes))
    };
    bind(before)?;
    let mut half_open = scene.half_open(context)?;
    let (mut sends, _) = scene.parked(context)?;
    let (mut silent, _) = scene.parked(context)?;
    if filtered {
        scene.counts(context, counted!(parked: 2, half_open: 1))?;
    }
    bind(after)?;
    let mut seen = Vec::new();

    half_open.ack()?;
    scene.bare_ack(context, &half_open)?;
    if filtered {
        scene.counts(context, counted!(parked: 3))?;
    }
    sends.data(REQUEST)?;
    let mut accepted = Vec::new();
    if filtered {
        accepted.push(scene.accept_from(context, &sends)?);
        half_open.data(REQUEST)?;
        accepted.push(scene.accept_from(context, &half_open)?);
        accepted.push(scene.accept_from(context, &silent)?);
        scene.counts(context, counted!(released_data: 2, timeout_accept: 1))?;
    } else {
        half_open.data(REQUEST)?;
        for client in [&sends, &silent, &half_open] {
            accepted.push(scene.accept_from(context, client)?);
        }
        // In the order of the filtered listener.
        accepted.swap(1, 2);
    }
    for (client, accepted) in [&mut sends, &mut half_open].into_iter().zip(&accepted) {
        serve(accepted)?;
        client.read_response(context)?;
    }
    let last = accepted.last().context("no connection was accepted")?;
    serve_raw(&mut silent, last)?;
    silent.read_response(context)?;
    for connection in &accepted {
        seen.push(format!("bound to {:?}", bound_to(connection)?));
    }

    let mut newcomer = scene.client();
    newcomer.syn()?;
    let answer = newcomer
        .receive_until(context.patience(), |segment| {
            segment.is_syn_ack() || segment.is_rst()
        })?
        .context("a newcomer was not answered")?;
    seen.push(format!("a newcomer got {}", answer.segment.flags));
    Ok(seen)
}
