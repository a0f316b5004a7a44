// SPDX-License-Identifier: MIT OR Apache-2.0

//! A client vanishes without a word and connects again from the same port, and its SYN meets the
//! connection that the server still has: the client must not be refused, and a SYN of any other
//! origin must not end the connection.
//!
//! What a connection of plain TCP answers is right: a challenge ACK (RFC 5961, section 4.2).

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use accf_kit::account::at_rest;
use accf_kit::capture::Trace;
use accf_kit::clock::Stamp;
use accf_kit::control::{settings, OnTimeout, Stats};
use accf_kit::endpoint::{self, set_tcp_option, Family, Listen};
use accf_kit::raw::RawClient;
use accf_kit::segment::{Flags, Segment};
use anyhow::{ensure, Context as _, Result};
use nix::libc;

use crate::case::{case, each_family, expect_eq, expect_in, Context};
use crate::count::counted;
use crate::scene::{
    accept_queue_holds, reads_reset, receives_nothing, rest, serve, Client, Peer, RawScene, Scene,
    WireScene, REQUEST,
};

/// How long to wait for an answer that must not come: within TCP's limit of an answer in half a
/// second.
const SILENCE: Duration = Duration::from_millis(200);

/// Well inside of the window of a connection that has received nothing.
const INSIDE: u32 = 50_000;

/// Returns a plain listener and filtered ones, and what to call them.
fn listeners(family: Family) -> [(Listen, &'static str); 4] {
    let filtered = |on_timeout| Listen::filtered(family).config(settings(60_000, 0, on_timeout));
    [
        (Listen::plain(family), "plain"),
        (filtered(OnTimeout::Accept), "filtered"),
        (filtered(OnTimeout::Reset), "filtered, resets the silent"),
        (filtered(OnTimeout::Drop), "filtered, drops the silent"),
    ]
}

/// Sends a segment of a client whose first new sequence number was `edge`, and checks that it gets
/// a challenge ACK.
fn challenged(
    context: &Context,
    client: &mut RawClient,
    segment: &Segment,
    edge: u32,
    what: &str,
) -> Result<()> {
    let seq = client.rcv_nxt;
    client.send(segment)?;
    let answer = client
        .receive(context.patience())?
        .with_context(|| format!("no answer to {what}"))?
        .segment;
    expect_eq!(answer.flags, Flags::ACK, "flags of the answer to {what}");
    expect_eq!(
        (answer.seq, answer.ack),
        (seq, edge),
        "sequence numbers of the answer to {what}"
    );
    Ok(())
}

/// Has a client start again from its port, at `isn`, as TCP does: it resets what answers its first
/// SYN with the numbers of another connection, and sends the SYN again.
fn start_over(context: &Context, client: &mut RawClient, isn: u32, what: &str) -> Result<()> {
    let edge = client.snd_nxt;
    let mut syn = client.segment(Flags::SYN, b"");
    syn.seq = isn;
    challenged(context, client, &syn, edge, what)?;
    client.snd_nxt = edge;
    client.rst()?;
    client.isn = isn;
    client.open(context.patience()).context(what.to_owned())?;
    Ok(())
}

/// Checks that a client that has just connected again is served.
fn is_served(context: &Context, scene: &RawScene, client: &mut RawClient) -> Result<()> {
    client.send_request()?;
    serve(&scene.accept_from(context, client)?)?;
    client.read_response(context)
}

/// What a filtered listener has counted.
fn counted_by(context: &Context, scene: &RawScene, what: &str, expected: Stats) -> Result<()> {
    if what == "plain" {
        return Ok(());
    }
    scene
        .counts(context, expected)
        .with_context(|| what.to_owned())
}

case!(
    Default, "field.same_port.in_the_window" =>
    each_family(in_the_window).long(Duration::from_secs(120))
);
fn in_the_window(context: &Context, family: Family) -> Result<()> {
    for (listen, which) in listeners(family) {
        let scene = RawScene::new(context, family, &listen)?;
        for (nth, offset) in (1..).zip([0, 1, 100, INSIDE]) {
            let what = format!("a SYN {offset} bytes into the window ({which})");
            let (mut client, _) = scene.parked(context)?;
            let isn = client.snd_nxt.wrapping_add(offset);
            start_over(context, &mut client, isn, &what)?;
            // The server sees the old connection, which was reset.
            let mut old = scene.accept_from(context, &client)?;
            reads_reset(&mut old.stream).with_context(|| what.clone())?;
            let expected = counted!(parked: 1, released_data: nth - 1, fallback: nth);
            counted_by(context, &scene, which, expected)?;
            is_served(context, &scene, &mut client).with_context(|| what.clone())?;
            let expected = counted!(released_data: nth, fallback: nth);
            counted_by(context, &scene, which, expected)?;
        }
        scene.judge_resets_sent(0).context(which)?;
    }
    Ok(())
}

case!(
    Default, "field.same_port.outside_of_the_window" =>
    each_family(outside).long(Duration::from_secs(120))
);
/// Checks that a SYN outside of the window is answered alike; there the request itself does.
fn outside(context: &Context, family: Family) -> Result<()> {
    for (listen, which) in listeners(family) {
        let scene = RawScene::new(context, family, &listen)?;
        for (nth, offset) in (1..).zip([200_000, 200_000_u32.wrapping_neg()]) {
            let what = format!("a SYN outside of the window, by {offset} ({which})");
            let (mut client, _) = scene.parked(context)?;
            let isn = client.snd_nxt.wrapping_add(offset);
            start_over(context, &mut client, isn, &what)?;
            if which == "plain" {
                let mut old = scene.accept_from(context, &client)?;
                reads_reset(&mut old.stream).with_context(|| what.clone())?;
            }
            let expected = counted!(parked: 1, released_data: nth - 1, aborted: nth);
            counted_by(context, &scene, which, expected)?;
            is_served(context, &scene, &mut client).with_context(|| what)?;
        }
        scene.judge_resets_sent(0).context(which)?;
    }
    Ok(())
}

case!(
    Default, "field.same_port.blind" =>
    each_family(blind).long(Duration::from_secs(120))
);
/// Checks that a SYN of another origin, which has hit the window, does not end the connection: its
/// client is asked, once in half a second, and is served when it sends its request.
fn blind(context: &Context, family: Family) -> Result<()> {
    const SYN_FIN: Flags = Flags {
        fin: true,
        ..Flags::SYN
    };
    for (listen, which) in listeners(family) {
        let scene = RawScene::new(context, family, &listen)?;
        let forged = [
            (Flags::SYN, &b""[..]),
            (Flags::SYN, b"data"),
            (Flags::SYN_ACK, b""),
            (SYN_FIN, b""),
        ];
        for (nth, (flags, payload)) in (1..).zip(forged) {
            let what = format!("{flags} with {} bytes ({which})", payload.len());
            let (mut client, _) = scene.parked(context)?;
            let edge = client.snd_nxt;
            let mut syn = client.segment(flags, payload);
            syn.seq = edge.wrapping_add(INSIDE);
            challenged(context, &mut client, &syn, edge, &what)?;
            syn.seq = syn.seq.wrapping_add(1);
            client.send(&syn)?;
            let again = format!("an answer to another {what}");
            receives_nothing(&mut client, SILENCE, &again)?;
            is_served(context, &scene, &mut client).with_context(|| what)?;
            counted_by(context, &scene, which, counted!(fallback: nth))?;
        }
        let clients = forged.len();
        scene
            .judge(|trace| {
                expect_eq!(trace.sent().syn_acks(), clients, "SYN-ACKs");
                expect_eq!(trace.resets(), 0, "resets");
                Ok(())
            })
            .context(which)?;
    }
    Ok(())
}

case!(Default, "field.same_port.full_accept_queue" => each_family(full_accept_queue));
/// Checks that a client that starts again while the accept queue is full is not refused either: the
/// request goes without a word, and the SYN is answered once there is room.
fn full_accept_queue(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::new(context, family, &Listen::filtered(family).backlog(1))?;
    let (mut client, _) = scene.parked(context)?;
    for queued in 1..=2 {
        let (mut other, _) = scene.parked(context)?;
        other.data(REQUEST)?;
        accept_queue_holds(&scene.listener, context, queued)?;
    }
    client.isn = client.snd_nxt.wrapping_add(INSIDE);
    for _ in 0..2 {
        client.syn()?;
        receives_nothing(
            &mut client,
            SILENCE,
            "an answer while the accept queue is full",
        )?;
        scene.counts(context, counted!(released_data: 2, aborted: 1))?;
    }
    for _ in 0..2 {
        serve(&scene.accept(context)?)?;
    }
    client.open(context.patience())?;
    is_served(context, &scene, &mut client)?;
    at_rest(&scene.read_counts(context, counted!(released_data: 3, aborted: 1))?)?;
    scene.judge_resets_sent(0)
}

case!(
    Default, "field.same_port.kernel" =>
    each_family(kernel).long(Duration::from_secs(120))
);
/// Checks clients of the kernel's own TCP, of which the process ends and comes back after 0 to 3
/// ms: the clock of their sequence numbers leaves the window after 4 ms.
fn kernel(context: &Context, family: Family) -> Result<()> {
    const CLIENTS: u16 = 14;
    for (listen, what) in [
        (Listen::plain(family), "plain"),
        (Listen::filtered(family), "filtered"),
    ] {
        let scene = WireScene::new(context, family, &listen)?;
        for nth in 0..CLIENTS {
            let port = 40_000 + nth;
            // Half of them do not pause: this machine may be slow.
            let pause = Duration::from_micros(500) * u32::from(nth.saturating_sub(CLIENTS / 2));
            let (mut client, began, done) = scene
                .wire
                .client
                .run(|| vanish_and_return(&scene, port, pause))
                .with_context(|| format!("client {nth}, after {pause:?} ({what})"))?;
            // At once, or when its SYN is sent again, which is after a second at most.
            let late = context.late(began, done) + context.prompt();
            expect_in!(
                done.ms_after(began),
                0.0..1000.0 + late.as_secs_f64() * 1e3,
                "milliseconds until client {nth} has connected again ({what})"
            );
            client.request()?;
            serve_the_living(context, &scene, port)?;
            client.response()?;
        }
        let server = scene.port();
        scene.judge(|trace| {
            let hits = (0..CLIENTS).filter(|nth| hits_the_window(trace, server, 40_000 + nth));
            context.note(format_args!(
                "{what}: {} of {CLIENTS} in the window",
                hits.count()
            ));
            expect_eq!(trace.sent().resets(), 0, "resets of the server ({what})");
            Ok(())
        })?;
    }
    Ok(())
}

/// Connects from `port`, ends without a word, and connects again; returns the second client, and
/// when it began and had connected.
fn vanish_and_return(
    scene: &WireScene,
    port: u16,
    pause: Duration,
) -> Result<(Client, Stamp, Stamp)> {
    const LIMIT: Duration = Duration::from_secs(20);
    let server = scene.wire.server_address(scene.family, scene.port());
    let family = match server {
        SocketAddr::V4(_) => Family::V4,
        SocketAddr::V6(_) => Family::V6,
    };
    // Both are ready before the first connects: this machine may be slow.
    let first = endpoint::bound(family, port, false)?;
    let second = endpoint::bound(family, port, false)?;
    first.connect_timeout(&server.into(), LIMIT)?;
    // A socket in this mode ends without a segment.
    set_tcp_option(&first, libc::TCP_REPAIR, 1).context("TCP_REPAIR")?;
    drop(first);
    if !pause.is_zero() {
        sleep(pause);
    }
    let began = Stamp::now();
    second
        .connect_timeout(&server.into(), LIMIT)
        .with_context(|| format!("connect again from port {port}"))?;
    let done = Stamp::now();
    second.set_read_timeout(Some(LIMIT))?;
    Ok((Client::new(second.into())?, began, done))
}

/// Accepts connections from `port` up to the one that has a request, and serves that.
fn serve_the_living(context: &Context, scene: &WireScene, port: u16) -> Result<()> {
    for _ in 0..2 {
        let mut accepted = scene.accept_from_port(context, port)?;
        if serve(&accepted).is_ok() {
            return Ok(());
        }
        ensure!(
            rest(&mut accepted.stream)?.is_empty(),
            "the rest of a request"
        );
    }
    anyhow::bail!("no connection from port {port} has a request")
}

/// Returns whether the second connection from `port` began inside of the first one's window.
fn hits_the_window(trace: &Trace, server: u16, port: u16) -> bool {
    let mut isns: Vec<u32> = Vec::new();
    for packet in &trace.packets {
        let segment = &packet.segment;
        if segment.flags == Flags::SYN
            && segment.source.port() == port
            && segment.destination.port() == server
            && !isns.contains(&segment.seq)
        {
            isns.push(segment.seq);
        }
    }
    matches!(*isns, [first, second, ..] if second.wrapping_sub(first) <= INSIDE)
}
