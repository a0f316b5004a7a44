// SPDX-License-Identifier: MIT OR Apache-2.0

//! More clients than may be parked: the oldest is evicted.

use std::collections::VecDeque;
use std::thread::sleep;
use std::time::Duration;

use accf_kit::clock::Stamp;
use accf_kit::control::{self, settings, OnTimeout};
use accf_kit::endpoint::{Family, Listen};
use accf_kit::raw::RawClient;
use anyhow::{Context as _, Result};

use crate::case::{case, each_family, expect_eq, once, Context};
use crate::count::{counted, counts};
use crate::scene::{accept_from_port, expect_reset, serve_raw, RawScene, Scene, REQUEST};

/// How many may be parked.
const ROOM: usize = 3;
/// How many clients connect.
const CLIENTS: usize = 7;

fn crowded(context: &Context, family: Family, on_timeout: OnTimeout) -> Result<RawScene> {
    let config = settings(60_000, ROOM as u32, on_timeout);
    RawScene::new(context, family, &Listen::filtered(family).config(config))
}

/// Checks that the clients that were not evicted are still parked, and serves them.
fn all_served(
    context: &Context,
    scene: &RawScene,
    left: impl IntoIterator<Item = RawClient>,
) -> Result<()> {
    for mut client in left {
        scene.serve(context, &mut client)?;
    }
    scene.requests(context, 0)?;
    scene.accept_nothing(Duration::from_millis(200), "all have been served")
}

/// Parks one client after another; from the first that is over the limit, checks what happens to
/// the oldest, and the counts. Returns the clients that are parked at the end.
fn evict_oldest(
    context: &Context,
    scene: &RawScene,
    check: impl Fn(&mut RawClient, Stamp) -> Result<()>,
) -> Result<VecDeque<RawClient>> {
    let mut parked = VecDeque::new();
    for nth in 0..CLIENTS {
        let (client, ack) = scene.parked(context)?;
        parked.push_back(client);
        if nth < ROOM {
            continue;
        }
        let mut oldest = parked.pop_front().context("no client is parked")?;
        check(&mut oldest, ack.at)?;
        let evicted = (nth - ROOM + 1) as u64;
        scene.counts(context, counted!(parked: ROOM as u64, evicted: evicted))?;
    }
    Ok(parked)
}

case!(Default, "evict.oldest_first.accept" => each_family(accepted_in_order));
fn accepted_in_order(context: &Context, family: Family) -> Result<()> {
    let scene = crowded(context, family, OnTimeout::Accept)?;
    let parked = evict_oldest(context, &scene, |oldest, ack| {
        let accepted = scene.accept_from(context, oldest)?;
        context.at_once(ack, accepted.at, "from the newcomer's ACK to accept()")?;
        serve_raw(oldest, &accepted)
    })?;
    all_served(context, &scene, parked)?;
    scene.judge_syn_acks(CLIENTS)
}

case!(Default, "evict.oldest_first.reset" => each_family(reset_in_order));
fn reset_in_order(context: &Context, family: Family) -> Result<()> {
    let scene = crowded(context, family, OnTimeout::Reset)?;
    let parked = evict_oldest(context, &scene, |oldest, ack| {
        let expected = oldest.rcv_nxt;
        let reset = expect_reset(context, oldest, "no reset for the oldest")?;
        context.at_once(ack, reset.at, "from the newcomer's ACK to the reset")?;
        expect_eq!(reset.segment.seq, expected, "sequence number of the reset");
        Ok(())
    })?;
    scene.accept_nothing(Duration::from_millis(200), "no client has sent anything")?;
    all_served(context, &scene, parked)?;
    scene.judge_resets_sent(CLIENTS - ROOM)
}

case!(Default, "evict.oldest_first.drop" => each_family(dropped_in_order));
fn dropped_in_order(context: &Context, family: Family) -> Result<()> {
    let scene = crowded(context, family, OnTimeout::Drop)?;
    let mut parked = VecDeque::new();
    for nth in 0..CLIENTS {
        parked.push_back(scene.parked(context)?.0);
        let evicted = (nth + 1).saturating_sub(ROOM) as u64;
        scene.counts(
            context,
            counted!(parked: (nth + 1).min(ROOM) as u64, evicted: evicted),
        )?;
    }
    scene.accept_nothing(Duration::from_millis(200), "no client has sent anything")?;
    // The evicted clients, and only they, now get a reset.
    for _ in ROOM..CLIENTS {
        let mut dropped = parked.pop_front().context("no client is left")?;
        dropped.data(REQUEST)?;
        expect_reset(context, &mut dropped, "no reset of a dropped client")?;
    }
    all_served(context, &scene, parked)?;
    scene.judge_resets_sent(CLIENTS - ROOM)
}

case!(Default, "evict.who_has_gone_makes_room" => each_family(gone));
/// Checks that clients that sent data or reset are not evicted.
fn gone(context: &Context, family: Family) -> Result<()> {
    let scene = crowded(context, family, OnTimeout::Reset)?;
    let (mut third, _) = scene.served_reset_and_parked(context)?;
    let (mut fourth, _) = scene.parked(context)?;
    let (fifth, _) = scene.parked(context)?;
    scene.counts(context, counted!(parked: 3, released_data: 1, aborted: 1))?;
    fourth.fin()?;
    drop(scene.accept(context)?);
    let (sixth, _) = scene.parked(context)?;
    let (seventh, _) = scene.parked(context)?;
    expect_reset(context, &mut third, "no reset for the oldest")?;
    scene.counts(
        context,
        counted!(parked: 3, released_data: 1, released_fin: 1, aborted: 1, evicted: 1),
    )?;
    all_served(context, &scene, [fifth, sixth, seventh])
}

case!(Default, "evict.room_for_one" => each_family(room_for_one));
/// Checks eviction without a deadline and with room for one.
fn room_for_one(context: &Context, family: Family) -> Result<()> {
    let config = settings(0, 1, OnTimeout::Accept);
    let scene = RawScene::new(context, family, &Listen::filtered(family).config(config))?;
    let (mut last, _) = scene.parked(context)?;
    for nth in 1..=4 {
        let (client, ack) = scene.parked(context)?;
        let accepted = scene.accept_from(context, &last)?;
        context.at_once(ack.at, accepted.at, "from the newcomer's ACK to accept()")?;
        scene.counts(context, counted!(parked: 1, evicted: nth))?;
        serve_raw(&mut last, &accepted)?;
        last = client;
    }
    all_served(context, &scene, [last])
}

case!(Default, "evict.hundreds_in_order.v4" => once(hundreds_in_order));
/// Checks that hundreds of clients, connecting without a pause, are evicted in the order in which
/// they came.
fn hundreds_in_order(context: &Context) -> Result<()> {
    const MANY: usize = 300;
    let family = Family::V4;
    let config = settings(60_000, 10, OnTimeout::Accept);
    let scene = RawScene::new(
        context,
        family,
        &Listen::filtered(family).config(config).backlog(1024),
    )?;
    let mut clients = Vec::new();
    for _ in 0..MANY {
        let mut client = scene.client();
        client.open(context.patience())?;
        clients.push(client);
    }
    scene.counts(context, counted!(parked: 10, evicted: MANY as u64 - 10))?;
    for client in clients.iter().take(MANY - 10) {
        scene.accept_from(context, client)?;
    }
    scene.accept_nothing(Duration::from_millis(200), "the others are parked")?;
    control::set_config(&scene.listener, &settings(1, 10, OnTimeout::Drop))?;
    scene.counts(
        context,
        counted!(timeout_drop: 10, evicted: MANY as u64 - 10),
    )
}

case!(FourPerNetns, "evict.namespace_ceiling" => each_family(namespace_ceiling));
/// Checks the limit of a namespace, which all of its listeners share. A listener evicts its own
/// oldest only; it never evicts another listener's.
fn namespace_ceiling(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let second = Listen::filtered(family).open(&scene.ns)?;
    let mut parked = VecDeque::from(scene.parked_many(context, 4)?);
    scene.counts(context, counted!(parked: 4))?;

    // The second listener has no request to evict: its client is accepted as on a plain one.
    let mut stranger = scene.host.client(family, second.port());
    let sent = stranger.open(context.patience())?;
    let accepted = accept_from_port(&second, context, stranger.local.port())?;
    context.at_once(sent, accepted.at, "from the bare ACK to accept()")?;
    serve_raw(&mut stranger, &accepted)?;
    counts(context, &second, counted!(bypass_namespace_limit: 1))?;
    scene.counts(context, counted!(parked: 4))?;

    // The first listener evicts its oldest.
    parked.push_back(scene.parked(context)?.0);
    let mut oldest = parked.pop_front().context("no client is parked")?;
    let accepted = scene.accept_from(context, &oldest)?;
    serve_raw(&mut oldest, &accepted)?;
    scene.counts(context, counted!(parked: 4, evicted: 1))?;

    // It does not evict if the policy is to reset or to drop: the oldest has not had its time.
    for (nth, on_timeout) in [(1, OnTimeout::Reset), (2, OnTimeout::Drop)] {
        control::set_config(&scene.listener, &settings(60_000, 0, on_timeout))?;
        let (mut newcomer, _) = scene.parked(context)?;
        let accepted = scene.accept_from(context, &newcomer)?;
        serve_raw(&mut newcomer, &accepted)?;
        scene.counts(
            context,
            counted!(parked: 4, evicted: 1, bypass_namespace_limit: nth),
        )?;
    }

    // A request that ends makes room for any listener of the namespace.
    let mut speaker = parked.pop_front().context("no client is parked")?;
    scene.serve(context, &mut speaker)?;
    let mut stranger = scene.host.client(family, second.port());
    stranger.open(context.patience())?;
    counts(
        context,
        &second,
        counted!(parked: 1, bypass_namespace_limit: 1),
    )?;
    // Now the second listener has a request to evict.
    let mut newcomer = scene.host.client(family, second.port());
    newcomer.open(context.patience())?;
    counts(
        context,
        &second,
        counted!(parked: 1, evicted: 1, bypass_namespace_limit: 1),
    )?;
    accept_from_port(&second, context, stranger.local.port())?;
    // Closing a listener ends its parked requests.
    drop(scene.listener);
    let mut latecomers = Vec::new();
    for _ in 0..3 {
        let mut client = scene.host.client(family, second.port());
        client.open(context.patience())?;
        latecomers.push(client);
    }
    counts(
        context,
        &second,
        counted!(parked: 4, evicted: 1, bypass_namespace_limit: 1),
    )
}

case!(FourPerNetns, "evict.namespaces_share_nothing" => each_family(namespaces));
/// Checks that the limit counts each namespace separately.
fn namespaces(context: &Context, family: Family) -> Result<()> {
    let first = RawScene::filtered(context, family)?;
    let second = RawScene::filtered(context, family)?;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(first.parked(context)?.0);
        clients.push(second.parked(context)?.0);
    }
    for scene in [&first, &second] {
        scene.counts(context, counted!(parked: 4))?;
    }
    drop(first);
    // A new namespace starts with a count of zero.
    let third = RawScene::filtered(context, family)?;
    clients.extend(third.parked_many(context, 4)?);
    for scene in [&second, &third] {
        scene.counts(context, counted!(parked: 4))?;
    }
    let mut fifth = third.client();
    fifth.open(context.patience())?;
    third.counts(context, counted!(parked: 4, evicted: 1))?;
    second.counts(context, counted!(parked: 4))?;
    sleep(Duration::from_millis(100));
    second.accept_nothing(Duration::ZERO, "its clients have not sent anything")
}
