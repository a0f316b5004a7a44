// SPDX-License-Identifier: MIT OR Apache-2.0

//! Listeners without a filter: the same whether the module is loaded or not.

use std::thread::sleep;
use std::time::Duration;

use accf_kit::capture::Direction;
use accf_kit::endpoint::{Family, Listen};
use anyhow::{bail, Context as _, Result};

use crate::case::{case, each_family, expect_eq, expect_in, Context};
use crate::scene::{
    accept_while, close, established, exchange_and_close, expect_filter, RawScene, Scene, WireScene,
};

case!(Unloaded, "unloaded.plain.accepted_at_once" => each_family(at_once));
case!(Default, "plain.accepted_at_once" => each_family(at_once));
/// Checks that a silent client is accepted as soon as its bare ACK is there, and that nothing more
/// is sent.
fn at_once(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::new(context, family, &Listen::plain(family))?;
    let (accepted, client) = accept_while(&scene.listener, context, || scene.connect())?;
    let ack = scene.bare_ack(context, &client)?;
    context.at_once(ack.at, accepted.at, "from the bare ACK to accept()")?;
    expect_filter(&scene.listener, None, "the listener's filter")?;
    expect_filter(&accepted.stream, None, "the accepted socket's filter")?;
    // Longer than the first retransmission of a SYN-ACK would take.
    sleep(Duration::from_millis(1500));
    established(&client, &accepted)?;
    exchange_and_close(client, accepted)?;
    scene.judge_totals(1, 0)
}

case!(Unloaded, "unloaded.plain.defer_accept" => each_family(defer_accept));
case!(Default, "plain.defer_accept" => each_family(defer_accept));
/// Checks `TCP_DEFER_ACCEPT` without a filter: TCP drops the bare ACK, and sends the SYN-ACK again
/// when the time is up.
fn defer_accept(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::new(context, family, &Listen::deferred(family, 1))?;

    let (mut client, _) = scene.connect_and_ack(context)?;
    sleep(Duration::from_millis(400));
    let accepted = scene.serve_parked(context, &mut client)?;
    close(client, accepted)?;

    let (client, _) = scene.connect_and_ack(context)?;
    let accepted = scene.accept(context)?;
    let silent = client.local.port();
    exchange_and_close(client, accepted)?;
    scene.judge(|trace| {
        let silent = trace.filter(|packet| packet.segment.touches(silent));
        let acks: Vec<_> = silent
            .packets
            .iter()
            .filter(|packet| packet.segment.is_bare_ack() && packet.direction == Direction::In)
            .collect();
        let [first, second, ..] = acks.as_slice() else {
            bail!("the silent client was not asked for a second bare ACK");
        };
        expect_in!(
            second.at.ms_after(first.at),
            900.0..2000.0,
            "milliseconds between the bare ACKs of a silent client"
        );
        let mut counts: Vec<usize> = trace.syn_acks_by_client().into_values().collect();
        counts.sort_unstable();
        expect_eq!(
            counts,
            [1, 2],
            "SYN-ACKs to the client that sends, and to the silent one"
        );
        Ok(())
    })
}

case!(Unloaded, "unloaded.plain.unanswered_syn_ack" => each_family(unanswered_syn_ack));
case!(Default, "plain.unanswered_syn_ack" => each_family(unanswered_syn_ack));
/// Checks that an unanswered SYN-ACK is sent again after one second and after two more.
fn unanswered_syn_ack(context: &Context, family: Family) -> Result<()> {
    unanswered(context, family, &Listen::plain(family))
}

/// The same for any listener: no filter acts before the third segment.
pub(crate) fn unanswered(context: &Context, family: Family, listen: &Listen) -> Result<()> {
    let scene = RawScene::new(context, family, listen)?;
    let mut client = scene.half_open(context)?;
    let third = |packets: &[_]| packets.len() >= 3;
    let mut seen = Vec::new();
    accf_kit::wait::until(Duration::from_secs(3) + context.patience(), || {
        seen = scene
            .capture
            .so_far()?
            .filter(|packet| packet.segment.is_syn_ack() && packet.direction == Direction::Out)
            .packets;
        Ok(third(&seen))
    })?;
    let first = seen.first().context("no SYN-ACK at all")?.at;
    let times: Vec<f64> = seen
        .iter()
        .map(|packet| (packet.at.ms_after(first) / 100.0).round() / 10.0)
        .collect();
    context.note(format!("SYN-ACKs at {times:?} s"));
    expect_eq!(times.len(), 3, "SYN-ACKs, at {times:?} s");
    scene.accept_nothing(Duration::ZERO, "the handshake is not over")?;
    // A late third segment still opens the connection.
    client.ack()?;
    scene.serve(context, &mut client)?;
    Ok(())
}
