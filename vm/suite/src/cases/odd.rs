// SPDX-License-Identifier: MIT OR Apache-2.0

//! Segments a parked request may get that are neither data nor the end: answered as the kernel would, and still parked.

use std::time::Duration;

use accf_kit::capture::Direction;
use accf_kit::endpoint::{Family, Listen};
use accf_kit::raw::RawClient;
use accf_kit::segment::{Flags, Segment, Timestamps};
use anyhow::{Context as _, Result};

use super::plain::unanswered;
use super::DEFAULT;
use crate::case::{each_family, expect_eq, Case, Context};
use crate::scene::{serve, RawScene};

pub(crate) fn cases() -> Vec<Case> {
    [
        each_family(DEFAULT, "odd.unanswered_syn_ack", |context, family| {
            unanswered(context, family, &Listen::filtered(family))
        }),
        each_family(DEFAULT, "odd.duplicate_bare_acks", duplicate_acks),
        each_family(DEFAULT, "odd.keepalive_probes", |context, family| {
            keepalive(context, family, false)
        }),
        each_family(
            DEFAULT,
            "odd.keepalive_probes_with_timestamps",
            |context, family| keepalive(context, family, true),
        ),
        each_family(DEFAULT, "odd.retransmitted_syn", retransmitted_syn),
        each_family(DEFAULT, "odd.wrong_ack_number", wrong_ack),
        each_family(DEFAULT, "odd.second_segment_first", second_segment_first),
        each_family(DEFAULT, "odd.old_timestamp", old_timestamp),
        each_family(DEFAULT, "odd.inexact_reset", inexact_rst),
        each_family(DEFAULT, "odd.stray_segments", stray),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// How long silence is watched for: long enough for an answer, too short for a retransmission.
const SILENCE: Duration = Duration::from_millis(400);

/// Makes sure that the server sends nothing.
fn no_answer(client: &mut RawClient, to: &str) -> Result<()> {
    expect_eq!(
        client
            .receive(SILENCE)?
            .map(|received| received.segment.to_string()),
        None,
        "an answer to {to}"
    );
    Ok(())
}

/// Waits for the server's answer.
fn answer(context: &Context, client: &mut RawClient, to: &str) -> Result<Segment> {
    let received = client.receive(context.patience())?;
    Ok(received
        .with_context(|| format!("no answer to {to}"))?
        .segment)
}

/// The request is still there, nothing was accepted, and the client is served once it speaks.
fn still_parked(context: &Context, scene: &RawScene, client: &mut RawClient) -> Result<()> {
    scene.requests(context, 1)?;
    scene.accept_nothing(SILENCE, "the client has not sent anything new")?;
    scene.serve(context, client)
}

fn duplicate_acks(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::new(context, family, &Listen::filtered(family))?;
    let (mut client, _) = scene.parked(context)?;
    for window in [u16::MAX, u16::MAX, 1000, 0, 2000] {
        client.window = window;
        client.ack()?;
    }
    no_answer(&mut client, "duplicate bare ACKs")?;
    client.window = u16::MAX;
    still_parked(context, &scene, &mut client)?;
    scene.judge(|trace| {
        expect_eq!(trace.syn_acks(), 1, "SYN-ACKs");
        expect_eq!(trace.resets(), 0, "resets");
        Ok(())
    })
}

/// A probe asks "are you there?", with no byte or with one of garbage before the window: the answer is an ACK.
///
/// With timestamps, what the client sends after that echoes the answer's, which is newer than the SYN-ACK's.
fn keepalive(context: &Context, family: Family, timestamps: bool) -> Result<()> {
    let scene = RawScene::new(context, family, &Listen::filtered(family))?;
    let mut client = scene.client();
    if timestamps {
        client = client.with_timestamps();
    }
    client.open(context.patience())?;
    scene.requests(context, 1)?;
    for garbage in [&b""[..], b"\0"] {
        let mut probe = client.segment(Flags::ACK, garbage);
        probe.seq = client.snd_nxt.wrapping_sub(1);
        client.send(&probe)?;
        let what = format!("a keepalive probe with {} bytes", garbage.len());
        let answer = answer(context, &mut client, &what)?;
        expect_eq!(answer.flags, Flags::ACK, "flags of the answer to {what}");
        expect_eq!(answer.ack, client.snd_nxt, "what is acknowledged to {what}");
        expect_eq!(
            answer.seq,
            client.rcv_nxt,
            "sequence number of the answer to {what}"
        );
        // The kernel answers probes without data no oftener than every half second.
        no_answer(&mut client, "nothing")?;
    }
    still_parked(context, &scene, &mut client)?;
    scene.judge(|trace| {
        expect_eq!(trace.syn_acks(), 1, "SYN-ACKs");
        expect_eq!(trace.resets(), 0, "resets");
        Ok(())
    })
}

/// A client that sends its SYN again has not seen the SYN-ACK, whatever else came: it gets it again, once.
fn retransmitted_syn(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::new(context, family, &Listen::filtered(family))?;
    let (mut client, _) = scene.parked(context)?;
    // Past the time within which the kernel keeps quiet about repeated SYNs.
    std::thread::sleep(Duration::from_millis(600));
    client.syn()?;
    let again = answer(context, &mut client, "the retransmitted SYN")?;
    expect_eq!(again.is_syn_ack(), true, "whether {again} is a SYN-ACK");
    expect_eq!(
        again.ack,
        client.snd_nxt,
        "what the second SYN-ACK acknowledges"
    );
    client.ack()?;
    scene.requests(context, 1)?;
    // Longer than the timer of a SYN-ACK just sent.
    scene.accept_nothing(
        Duration::from_secs(4),
        "the client has not sent anything new",
    )?;
    scene.serve(context, &mut client)?;
    scene.judge(|trace| {
        let sent = trace.filter(|packet| packet.direction == Direction::Out);
        expect_eq!(sent.syn_acks(), 2, "SYN-ACKs");
        let numbers: Vec<u32> = sent
            .packets
            .iter()
            .filter(|packet| packet.segment.is_syn_ack())
            .map(|packet| packet.segment.seq)
            .collect();
        expect_eq!(numbers.first(), numbers.last(), "their sequence numbers");
        expect_eq!(sent.resets(), 0, "resets");
        Ok(())
    })
}

/// An ACK of something never sent is answered by a reset, before and after the right one; the request stays.
fn wrong_ack(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::new(context, family, &Listen::filtered(family))?;
    let mut client = scene.client();
    client.half_open(context.patience())?;
    for parked in [false, true] {
        if parked {
            client.ack()?;
            scene.requests(context, 1)?;
        }
        let mut wrong = client.segment(Flags::ACK, b"");
        wrong.ack = client.rcv_nxt.wrapping_add(1000);
        client.send(&wrong)?;
        let answer = answer(context, &mut client, "a wrong ACK number")?;
        expect_eq!(
            answer.flags,
            Flags::RST,
            "flags of the answer (parked: {parked})"
        );
        expect_eq!(answer.seq, wrong.ack, "sequence number of the reset");
    }
    still_parked(context, &scene, &mut client)
}

/// The second half of a request overtakes the first: released by it, but the bytes are in order.
fn second_segment_first(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::new(context, family, &Listen::filtered(family))?;
    let (mut client, _) = scene.parked(context)?;
    let (first, second) = crate::scene::REQUEST.split_at(5);
    let first = client.segment(Flags::PSH_ACK, first);
    let mut late = client.segment(Flags::PSH_ACK, second);
    late.seq = first.end_seq();
    client.send(&late)?;
    std::thread::sleep(Duration::from_millis(200));
    client.send(&first)?;
    client.snd_nxt = late.end_seq();
    let accepted = scene.accept(context)?;
    serve(&accepted)?;
    let answer = client
        .receive_until(context.patience(), Segment::has_data)?
        .context("no response")?;
    expect_eq!(
        answer.segment.ack,
        client.snd_nxt,
        "what the response acknowledges"
    );
    Ok(())
}

/// Data with a timestamp older than the bare ACK's is from the past: acknowledged as such, and not data.
fn old_timestamp(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::new(context, family, &Listen::filtered(family))?;
    let mut client = scene.client().with_timestamps();
    client.open(context.patience())?;
    scene.requests(context, 1)?;
    let mut old = client.segment(Flags::PSH_ACK, b"old");
    let now = old.timestamps.context("the server uses no timestamps")?;
    old.timestamps = Some(Timestamps {
        value: now.value.wrapping_sub(1000),
        ..now
    });
    client.send(&old)?;
    let answer = answer(context, &mut client, "an old timestamp")?;
    expect_eq!(answer.flags, Flags::ACK, "flags of the answer");
    expect_eq!(answer.ack, client.snd_nxt, "what is acknowledged");
    still_parked(context, &scene, &mut client)
}

/// A reset inside the window that is not exactly at its edge is not believed without asking back (RFC 5961).
fn inexact_rst(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::new(context, family, &Listen::filtered(family))?;
    let (mut client, _) = scene.parked(context)?;
    let mut rst = client.segment(Flags::RST, b"");
    rst.seq = client.snd_nxt.wrapping_add(100);
    client.send(&rst)?;
    let reply = answer(context, &mut client, "a reset inside the window")?;
    expect_eq!(reply.flags, Flags::ACK, "flags of the answer");
    expect_eq!(reply.ack, client.snd_nxt, "what is acknowledged");
    still_parked(context, &scene, &mut client)
}

/// A reset and data outside the window, and a SYN of long ago: the connection is none of their business.
fn stray(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::new(context, family, &Listen::filtered(family))?;
    let (mut client, _) = scene.parked(context)?;
    let far = client.snd_nxt.wrapping_sub(1_000_000);

    let mut rst = client.segment(Flags::RST, b"");
    rst.seq = far;
    client.send(&rst)?;
    no_answer(&mut client, "a reset outside the window")?;

    let mut data = client.segment(Flags::PSH_ACK, b"stray");
    data.seq = far;
    client.send(&data)?;
    let reply = answer(context, &mut client, "data outside the window")?;
    expect_eq!(reply.flags, Flags::ACK, "flags of the answer to stray data");
    expect_eq!(
        reply.ack,
        client.snd_nxt,
        "what is acknowledged to stray data"
    );

    std::thread::sleep(Duration::from_millis(600));
    let mut syn = client.segment(Flags::SYN, b"");
    syn.seq = far;
    client.send(&syn)?;
    let reply = answer(context, &mut client, "a SYN outside the window")?;
    expect_eq!(
        reply.flags,
        Flags::ACK,
        "flags of the answer to a stray SYN"
    );
    expect_eq!(
        reply.ack,
        client.snd_nxt,
        "what is acknowledged to a stray SYN"
    );

    still_parked(context, &scene, &mut client)
}
