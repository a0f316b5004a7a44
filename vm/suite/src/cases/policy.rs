// SPDX-License-Identifier: MIT OR Apache-2.0

//! The policy for silent clients at their deadline: accept, reset, drop.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use accf_kit::capture::{Capture, Packet, Trace};
use accf_kit::clock::Stamp;
use accf_kit::control::{self, settings, timeout, OnTimeout};
use accf_kit::endpoint::{connect_here, set_tcp_option, Family, Listen, Listener};
use accf_kit::raw::RawClient;
use accf_kit::segment::{Flags, Segment};
use accf_kit::wait;
use accf_kit::wire::{Wire, INTERFACE};
use anyhow::{bail, ensure, Context as _, Result};
use socket2::SockRef;

use crate::case::{case, each_family, expect_eq, once, Context};
use crate::count::{counted, counts, describe, stats};
use crate::scene::{
    accept, accept_queue_holds, bare_acks, connect_again, exchange_and_close, expect_reset,
    join_scoped, reads_end, reads_reset, receives_nothing, serve, totals, Client, LoopbackScene,
    RawScene, Scene, WireScene, REQUEST,
};

/// A deadline long enough to tell it from "at once", and short enough to wait for.
const DEADLINE: Duration = Duration::from_millis(600);

fn listen(family: Family, deadline: Duration, on_timeout: OnTimeout) -> Listen {
    let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
    Listen::filtered(family).config(settings(deadline_ms, 0, on_timeout))
}

/// Returns the resets of a trace.
fn resets(trace: &Trace) -> Vec<&Packet> {
    trace
        .packets
        .iter()
        .filter(|packet| packet.segment.is_rst())
        .collect()
}

/// Waits for the server's reset of a client.
fn reset_of(capture: &Capture, context: &Context, client: u16) -> Result<Packet> {
    capture
        .wait_for(context.patience(), |packet| {
            packet.segment.is_rst() && packet.segment.destination.port() == client
        })?
        .context("no reset at the deadline")
}

/// Checks that every client accepts a reset: it has exactly the sequence number that the client
/// expects next (RFC 5961).
fn is_exact(reset: &Segment, syn_ack: &Segment) -> Result<()> {
    expect_eq!(reset.flags, Flags::RST, "flags of the reset {reset}");
    expect_eq!(
        reset.seq,
        syn_ack.seq.wrapping_add(1),
        "sequence number of the reset"
    );
    expect_eq!(reset.payload.len(), 0, "bytes in the reset");
    Ok(())
}

/// Checks that the client gets one reset, at the deadline, that its kernel accepts, and that the
/// server does not get the connection.
fn reset_in(context: &Context, scene: &impl Scene, mut client: Client) -> Result<()> {
    let port = client.local.port();
    let ack = scene.bare_ack(context, &client)?;
    reads_reset(&mut client.stream)?;
    let read = Stamp::now();
    let packet = reset_of(scene.capture(), context, port)?;
    let after = context.happened_on_time(ack.at, packet.at, DEADLINE, "to the reset")?;
    context.note(format!("reset {after:.1} ms after the bare ACK"));
    context.at_once(packet.at, read, "from the reset to the client's error")?;
    scene.counts(context, counted!(timeout_reset: 1))?;
    // Time for any other segment that is sent because of the deadline.
    scene.accept_nothing(Duration::from_millis(300), "the client was reset")?;
    let trace = scene.capture().so_far()?.of_port(scene.port());
    let syn_ack = trace.first(Segment::is_syn_ack).context("no SYN-ACK")?;
    expect_eq!(trace.syn_acks(), 1, "SYN-ACKs");
    let resets = resets(&trace);
    expect_eq!(resets.len(), 1, "resets");
    for reset in resets {
        is_exact(&reset.segment, &syn_ack.segment)?;
    }
    expect_eq!(
        trace.between(ack.at, Stamp::now()).packets.len(),
        1,
        "segments after the bare ACK"
    );
    Ok(())
}

case!(Default, "policy.reset" => each_family(reset));
fn reset(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::new(context, family, &listen(family, DEADLINE, OnTimeout::Reset))?;
    let client = scene.connect()?;
    reset_in(context, &scene, client)?;
    scene.requests(context, 0)
}

case!(Default, "policy.reset_bound_to_a_device" => each_family(reset_on_device));
fn reset_on_device(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::new(context, family, &listen(family, DEADLINE, OnTimeout::Reset))?;
    SockRef::from(scene.listener.socket())
        .bind_device(Some(INTERFACE.as_bytes()))
        .context("SO_BINDTODEVICE")?;
    let client = scene.connect()?;
    reset_in(context, &scene, client)
}

case!(Default, "policy.reset_on_loopback" => each_family(reset_on_loopback));
fn reset_on_loopback(context: &Context, family: Family) -> Result<()> {
    let listen = listen(family, DEADLINE, OnTimeout::Reset);
    let scene = LoopbackScene::new(context, family, &listen)?;
    let client = scene.connect()?;
    reset_in(context, &scene, client)
}

case!(Default, "policy.reset_of_a_raw_client" => each_family, raw_reset(false));
case!(Default, "policy.reset_of_a_raw_client_with_timestamps" => each_family, raw_reset(true));
/// The same for a raw client, segment by segment.
fn raw_reset(context: &Context, family: Family, timestamps: bool) -> Result<()> {
    let scene = RawScene::new(context, family, &listen(family, DEADLINE, OnTimeout::Reset))?;
    let mut client = scene.client();
    if timestamps {
        client = client.with_timestamps();
    }
    client.open(context.patience())?;
    let expected = client.rcv_nxt;
    let ack = scene.bare_ack(context, &client)?;
    let reset = client
        .receive(context.patience())?
        .context("nothing came at the deadline")?
        .segment;
    expect_eq!(reset.flags, Flags::RST, "flags of what came: {reset}");
    expect_eq!(reset.seq, expected, "sequence number of the reset");
    let packet = reset_of(&scene.capture, context, client.local.port())?;
    context.happened_on_time(ack.at, packet.at, DEADLINE, "to the reset")?;
    scene.counts(context, counted!(timeout_reset: 1))?;
    scene.requests(context, 0)?;
    scene.accept_nothing(Duration::from_millis(300), "the client was reset")?;
    receives_nothing(
        &mut client,
        Duration::from_millis(300),
        "what came after the reset",
    )?;
    // The connection is unknown now.
    client.data(REQUEST)?;
    let answer = client
        .receive(context.patience())?
        .context("no answer to data after the reset")?
        .segment;
    expect_eq!(answer.is_rst(), true, "whether {answer} is a reset");
    scene.counts(context, counted!(timeout_reset: 1))
}

case!(Default, "policy.reset_after_odd_segments" => each_family(reset_after_odd));
/// Checks that the reset has the sequence number of the handshake, whatever came after it.
fn reset_after_odd(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::new(context, family, &listen(family, DEADLINE, OnTimeout::Reset))?;
    let mut client = scene.client().with_timestamps();
    client.open(context.patience())?;
    let expected = client.rcv_nxt;
    let ack = scene.bare_ack(context, &client)?;
    client.window = 0;
    client.ack()?;
    let mut probe = client.segment(Flags::ACK, b"");
    probe.seq = client.snd_nxt.wrapping_sub(1);
    client.send(&probe)?;
    let reset = expect_reset(context, &mut client, "no reset at the deadline")?.segment;
    expect_eq!(reset.seq, expected, "sequence number of the reset");
    expect_eq!(reset.flags, Flags::RST, "flags of the reset");
    let packet = reset_of(&scene.capture, context, client.local.port())?;
    context.happened_on_time(ack.at, packet.at, DEADLINE, "to the reset")?;
    scene.counts(context, counted!(timeout_reset: 1))
}

case!(Default, "policy.reset_and_come_again" => each_family(come_again));
/// Checks that a client that was reset can connect again from the same port.
fn come_again(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::new(context, family, &listen(family, DEADLINE, OnTimeout::Reset))?;
    let (mut client, _) = scene.parked(context)?;
    for round in 1..=3 {
        client
            .receive_until(context.patience(), Segment::is_rst)?
            .with_context(|| format!("no reset at the deadline, round {round}"))?;
        scene.counts(context, counted!(timeout_reset: round))?;
        connect_again(context, &mut client)?;
    }
    scene.serve(context, &mut client)?;
    scene.counts(context, counted!(timeout_reset: 3, released_data: 1))
}

/// Polls the counts and returns when a client was dropped.
fn dropped_at(context: &Context, listener: &Listener) -> Result<Stamp> {
    let limit = Stamp::now();
    loop {
        let seen = stats(listener)?;
        if seen.timeout_drop == 1 {
            return Ok(Stamp::now());
        }
        if Stamp::now().since(limit) > context.patience() {
            bail!("the client was not dropped: {}", describe(&seen));
        }
        sleep(Duration::from_millis(2));
    }
}

case!(Default, "policy.drop" => each_family(drop_silently));
/// Checks that nothing is sent at the deadline, and that later data is answered as for an unknown
/// connection.
fn drop_silently(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::new(context, family, &listen(family, DEADLINE, OnTimeout::Drop))?;
    let (mut client, ack) = scene.connect_and_ack(context)?;
    let dropped = dropped_at(context, &scene.listener)?;
    let after = context.happened_on_time(ack.at, dropped, DEADLINE, "to the drop")?;
    context.note(format!("dropped {after:.1} ms after the bare ACK"));
    scene.requests(context, 0)?;
    scene.accept_nothing(Duration::from_millis(400), "the client was dropped")?;
    let spoken = client.request()?;
    reads_reset(&mut client.stream)?;
    scene.accept_nothing(Duration::from_millis(200), "the client was dropped")?;
    scene.counts(context, counted!(timeout_drop: 1))?;
    scene.judge(|trace| {
        expect_eq!(trace.syn_acks(), 1, "SYN-ACKs");
        expect_eq!(
            trace.between(ack.at, spoken).packets.len(),
            0,
            "segments around the deadline"
        );
        expect_eq!(trace.resets(), 1, "resets");
        Ok(())
    })
}

case!(Default, "policy.drop_of_a_raw_client" => each_family(raw_drop));
/// The same for a raw client, which then connects again.
fn raw_drop(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::new(context, family, &listen(family, DEADLINE, OnTimeout::Drop))?;
    let (mut client, ack) = scene.parked(context)?;
    let dropped = dropped_at(context, &scene.listener)?;
    context.happened_on_time(ack.at, dropped, DEADLINE, "to the drop")?;
    receives_nothing(
        &mut client,
        Duration::from_millis(1200),
        "what a dropped client is sent",
    )?;
    let expected = client.rcv_nxt;
    client.data(REQUEST)?;
    let answer = client
        .receive(context.patience())?
        .context("no answer to late data")?
        .segment;
    expect_eq!(answer.is_rst(), true, "whether {answer} is a reset");
    expect_eq!(answer.seq, expected, "sequence number of the reset");
    connect_again(context, &mut client)?;
    scene.serve(context, &mut client)?;
    scene.counts(context, counted!(timeout_drop: 1, released_data: 1))
}

case!(Default, "policy.fifty_milliseconds" => each_family(fifty_milliseconds));
/// Checks the shortest deadline that is promised, with each policy.
fn fifty_milliseconds(context: &Context, family: Family) -> Result<()> {
    const SHORT: Duration = Duration::from_millis(50);
    let wire = Wire::new()?;
    let scene = WireScene::on(
        context,
        wire.clone(),
        family,
        &listen(family, SHORT, OnTimeout::Accept),
    )?;
    let (client, ack) = scene.connect_and_ack(context)?;
    let accepted = scene.accept(context)?;
    let after = context.on_time(ack.at, &accepted, SHORT)?;
    context.note(format!("connection {after:.1} ms after the bare ACK"));
    exchange_and_close(client, accepted)?;
    scene.counts(context, counted!(timeout_accept: 1))?;

    let resetting = listen(family, SHORT, OnTimeout::Reset).open(&wire.server)?;
    let mut client = scene.connect_to(&resetting)?;
    reads_reset(&mut client.stream)?;
    let ack = scene.bare_ack(context, &client)?;
    let packet = reset_of(&scene.capture, context, client.local.port())?;
    let after = context.happened_on_time(ack.at, packet.at, SHORT, "to the reset")?;
    context.note(format!("reset {after:.1} ms after the bare ACK"));

    let dropping = listen(family, SHORT, OnTimeout::Drop).open(&wire.server)?;
    let client = scene.connect_to(&dropping)?;
    let dropped = dropped_at(context, &dropping)?;
    let ack = scene.bare_ack(context, &client)?;
    let after = context.happened_on_time(ack.at, dropped, SHORT, "to the drop")?;
    context.note(format!("dropped {after:.1} ms after the bare ACK"));
    Ok(())
}

/// The deadlines that are measured together.
const FOUR: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(3),
];
/// How many clients each of them has.
const EACH: usize = 5;

/// Opens four listeners, each with its own deadline, on one cable.
fn four_listeners(
    context: &Context,
    family: Family,
    on_timeout: OnTimeout,
) -> Result<(Wire, Capture, Vec<Listener>)> {
    let wire = Wire::new()?;
    let listeners = FOUR
        .iter()
        .map(|deadline| listen(family, *deadline, on_timeout).open(&wire.server))
        .collect::<Result<Vec<_>>>()?;
    let capture = wire.watch_server()?;
    context.show_on_failure(&capture);
    Ok((wire, capture, listeners))
}

fn connect_in_turn(
    wire: &Wire,
    family: Family,
    listeners: &[Listener],
) -> Result<Vec<std::net::TcpStream>> {
    wire.client.run(|| {
        let mut clients = Vec::new();
        for _ in 0..EACH {
            for listener in listeners {
                clients.push(connect_here(wire.server_address(family, listener.port()))?);
                sleep(Duration::from_millis(7));
            }
        }
        Ok(clients)
    })
}

case!(Default, "policy.four_deadlines.accept" => each_family(four_accept));
/// Checks that each of four listeners meets its own deadline.
fn four_accept(context: &Context, family: Family) -> Result<()> {
    let (wire, capture, listeners) = four_listeners(context, family, OnTimeout::Accept)?;
    let (accepted, _clients) = thread::scope(|scope| {
        let servers: Vec<_> = listeners
            .iter()
            .map(|listener| {
                scope.spawn(move || {
                    (0..EACH)
                        .map(|_| accept(listener, context))
                        .collect::<Result<Vec<_>>>()
                })
            })
            .collect();
        let clients = connect_in_turn(&wire, family, &listeners);
        let accepted = servers
            .into_iter()
            .map(join_scoped)
            .collect::<Result<Vec<_>>>();
        Ok::<_, anyhow::Error>((accepted?, clients?))
    })?;
    let acks = bare_acks(&capture.stop()?);
    for (deadline, connections) in FOUR.iter().zip(&accepted) {
        let mut latest = 0.0_f64;
        for connection in connections {
            let ack = acks
                .get(&connection.peer.port())
                .context("a connection whose bare ACK was not seen")?;
            let after = context
                .on_time(*ack, connection, *deadline)
                .with_context(|| format!("deadline of {deadline:?}"))?;
            latest = latest.max(after - deadline.as_secs_f64() * 1e3);
        }
        context.note(format!("{deadline:?}: the latest {latest:.1} ms late"));
    }
    for listener in &listeners {
        counts(context, listener, counted!(timeout_accept: EACH as u64))?;
    }
    Ok(())
}

case!(Default, "policy.four_deadlines.reset" => each_family(four_reset));
fn four_reset(context: &Context, family: Family) -> Result<()> {
    let (wire, capture, listeners) = four_listeners(context, family, OnTimeout::Reset)?;
    let _clients = connect_in_turn(&wire, family, &listeners)?;
    for listener in &listeners {
        counts(context, listener, counted!(timeout_reset: EACH as u64))?;
    }
    let trace = capture.stop()?;
    let acks = bare_acks(&trace);
    let resets = resets(&trace);
    expect_eq!(resets.len(), FOUR.len() * EACH, "resets");
    let mut latest = HashMap::new();
    for reset in resets {
        let ack = acks
            .get(&reset.segment.destination.port())
            .context("a reset of a client whose bare ACK was not seen")?;
        let nth = listeners
            .iter()
            .position(|listener| listener.port() == reset.segment.source.port())
            .context("a reset from another port")?;
        let deadline = *FOUR.get(nth).context("no deadline")?;
        let after = context
            .happened_on_time(*ack, reset.at, deadline, "to the reset")
            .with_context(|| format!("deadline of {deadline:?}"))?;
        let late = latest.entry(deadline).or_insert(0.0_f64);
        *late = late.max(after - deadline.as_secs_f64() * 1e3);
    }
    context.note(format!("the latest, in ms: {latest:.1?}"));
    Ok(())
}

case!(Default, "policy.reset.data_before" => each_family, data_before(OnTimeout::Reset));
case!(Default, "policy.drop.data_before" => each_family, data_before(OnTimeout::Drop));
/// Checks that the policy does not affect a client that sends data in time.
fn data_before(context: &Context, family: Family, on_timeout: OnTimeout) -> Result<()> {
    let deadline = Duration::from_millis(1500);
    let scene = WireScene::new(context, family, &listen(family, deadline, on_timeout))?;
    let (mut client, ack) = scene.connect_and_ack(context)?;
    sleep(Duration::from_millis(1000).saturating_sub(Stamp::now().since(ack.at)));
    let sent = client.request()?;
    let accepted = scene.accept(context)?;
    context.at_once(sent, accepted.at, "from the request to accept()")?;
    sleep(Duration::from_millis(900));
    serve(&accepted)?;
    client.response()?;
    exchange_and_close(client, accepted)?;
    scene.counts(context, counted!(released_data: 1))?;
    scene.judge_totals(1, 0)
}

case!(
    Default, "policy.reset.fin_and_rst_before" =>
    each_family, fin_and_rst_before(OnTimeout::Reset)
);
case!(
    Default, "policy.drop.fin_and_rst_before" =>
    each_family, fin_and_rst_before(OnTimeout::Drop)
);
/// The same for clients that end the stream or reset in time.
fn fin_and_rst_before(context: &Context, family: Family, on_timeout: OnTimeout) -> Result<()> {
    let deadline = Duration::from_millis(1500);
    let scene = RawScene::new(context, family, &listen(family, deadline, on_timeout))?;
    let (mut leaver, _) = scene.parked(context)?;
    let (mut breaker, _) = scene.parked(context)?;
    leaver.fin()?;
    breaker.rst()?;
    let mut accepted = scene.accept_from(context, &leaver)?;
    reads_end(&mut accepted.stream, "bytes before the end of the stream")?;
    scene.accept_nothing(Duration::from_millis(1800), "the other client has reset")?;
    scene.counts(context, counted!(released_fin: 1, aborted: 1))?;
    scene.judge_resets_sent(0)
}

case!(
    Default, "policy.reset.data_at_that_moment" =>
    each_family, data_at_that_moment(OnTimeout::Reset)
);
case!(
    Default, "policy.drop.data_at_that_moment" =>
    each_family, data_at_that_moment(OnTimeout::Drop)
);
/// Checks that a client that sends data as its deadline expires is either served, or gets a reset.
fn data_at_that_moment(context: &Context, family: Family, on_timeout: OnTimeout) -> Result<()> {
    const CLIENTS: usize = 40;
    let deadline = Duration::from_millis(1500);
    let scene = WireScene::new(context, family, &listen(family, deadline, on_timeout))?;
    let clients = scene.connect_many(CLIENTS)?;
    let acks = bare_acks(&scene.capture.so_far()?.to_port(scene.port()));
    let mut rng = context.rng();
    let spread = i64::from(context.kernel.patience()) * 10_000;
    let over = AtomicBool::new(false);
    let (served, refused) = thread::scope(|scope| {
        let server = scope.spawn(|| -> Result<Vec<u16>> {
            let mut served = Vec::new();
            while !over.load(Ordering::Relaxed) {
                if let Some(accepted) = scene.listener.accept(Duration::from_millis(50))? {
                    serve(&accepted)?;
                    served.push(accepted.peer.port());
                }
            }
            Ok(served)
        });
        let outcome: Result<usize> = (|| {
            let mut refused = 0;
            let mut spoken = Vec::new();
            for mut client in clients {
                let ack = acks
                    .get(&client.local.port())
                    .context("a client whose bare ACK was not seen")?;
                let aim = deadline.as_micros() as i64 + rng.i64(-spread..spread);
                let aim = Duration::from_micros(aim.unsigned_abs());
                sleep(aim.saturating_sub(Stamp::now().since(*ack)));
                match client.request() {
                    Ok(_) => spoken.push(client),
                    // The client has got its reset already.
                    Err(_) => refused += 1,
                }
            }
            for mut client in spoken {
                if let Err(error) = client.response() {
                    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
                    expect_eq!(
                        kind,
                        Some(io::ErrorKind::ConnectionReset),
                        "what a client reads that is not served: {error:#}"
                    );
                    refused += 1;
                }
            }
            Ok(refused)
        })();
        over.store(true, Ordering::Relaxed);
        let served = join_scoped(server)?;
        Ok::<_, anyhow::Error>((served, outcome?))
    })?;
    let mut different = served.clone();
    different.sort_unstable();
    different.dedup();
    expect_eq!(different.len(), served.len(), "different clients served");
    expect_eq!(served.len() + refused, CLIENTS, "clients served or refused");
    context.note(format!("{} served, {refused} refused", served.len()));
    let (served, refused) = (served.len() as u64, refused as u64);
    let expected = if on_timeout == OnTimeout::Reset {
        counted!(released_data: served, timeout_reset: refused)
    } else {
        counted!(released_data: served, timeout_drop: refused)
    };
    scene.counts(context, expected)?;
    scene.requests(context, 0)
}

case!(Default, "policy.reset.many_at_once" => each_family, many(OnTimeout::Reset));
case!(Default, "policy.drop.many_at_once" => each_family, many(OnTimeout::Drop));
/// Checks that each of many clients is reset or dropped once, and that none is left.
fn many(context: &Context, family: Family, on_timeout: OnTimeout) -> Result<()> {
    const CLIENTS: usize = 150;
    let deadline = Duration::from_millis(800);
    let scene = WireScene::new(
        context,
        family,
        &listen(family, deadline, on_timeout).backlog(1024),
    )?;
    let clients = scene.connect_many(CLIENTS)?;
    let expected = if on_timeout == OnTimeout::Reset {
        counted!(timeout_reset: CLIENTS as u64)
    } else {
        counted!(timeout_drop: CLIENTS as u64)
    };
    scene.counts(context, expected)?;
    scene.requests(context, 0)?;
    scene.accept_nothing(Duration::from_millis(100), "no client was accepted")?;
    let spoken = Stamp::now();
    for mut client in clients {
        if on_timeout == OnTimeout::Drop {
            client.request()?;
        }
        reads_reset(&mut client.stream)?;
    }
    scene.judge(|trace| {
        totals(trace, CLIENTS, CLIENTS)?;
        let before = trace.filter(|packet| packet.at <= spoken).resets();
        let expected = if on_timeout == OnTimeout::Reset {
            CLIENTS
        } else {
            0
        };
        expect_eq!(before, expected, "resets at the deadline");
        Ok(())
    })
}

case!(Default, "policy.accept_queue_full" => each_family(accept_queue_full));
/// Checks that clients to be accepted wait until the accept queue has room, and that clients to be
/// reset do not.
fn accept_queue_full(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::new(context, family, &Listen::filtered(family).backlog(1))?;
    let silent = scene.parked_many(context, 2)?;
    let speakers = fill_accept_queue(context, &scene)?;
    control::set_config(&scene.listener, &timeout(50))?;
    sleep(Duration::from_millis(500));
    scene.counts(context, counted!(parked: 2))?;
    for _ in &speakers {
        serve(&scene.accept(context)?)?;
    }
    // Now there is room.
    for _ in &silent {
        let accepted = scene.accept(context)?;
        ensure!(
            silent
                .iter()
                .any(|client| client.local.port() == accepted.peer.port()),
            "{} was accepted",
            accepted.peer
        );
    }
    scene.counts(context, counted!(timeout_accept: 2))?;

    control::set_config(&scene.listener, &timeout(60_000))?;
    let mut third = scene.parked(context)?.0;
    let speakers = fill_accept_queue(context, &scene)?;
    let set = Stamp::now();
    control::set_config(&scene.listener, &settings(50, 0, OnTimeout::Reset))?;
    let reset = expect_reset(context, &mut third, "no reset, which needs no room")?;
    context.at_once(set, reset.at, "from the shorter deadline to the reset")?;
    for _ in &speakers {
        serve(&scene.accept(context)?)?;
    }
    scene.counts(context, counted!(timeout_accept: 2, timeout_reset: 1))
}

/// Fills the accept queue of a listener with a backlog of 1, with clients that send data at once.
fn fill_accept_queue(context: &Context, scene: &RawScene) -> Result<Vec<RawClient>> {
    // One more than the backlog: the kernel allows it.
    let mut speakers = vec![scene.client(), scene.client()];
    for speaker in &mut speakers {
        speaker.half_open(context.patience())?;
    }
    for speaker in &mut speakers {
        speaker.data(REQUEST)?;
    }
    accept_queue_holds(&scene.listener, context, 2)?;
    Ok(speakers)
}

case!(
    Default, "policy.deadline_beyond_seven_bits_of_timeouts.v4" =>
    once(beyond_seven_bits).long(Duration::from_secs(240))
);
/// Checks that no overflow of the request's seven-bit timeout count ends or wakes a parked client.
fn beyond_seven_bits(context: &Context) -> Result<()> {
    const TCP_RTO_MAX_MS: i32 = 44;
    const LONG: Duration = Duration::from_secs(137);
    let family = Family::V4;
    let wire = Wire::new()?;
    wire.server.set_sysctl("net.ipv4.tcp_synack_retries", "2")?;
    let scene = WireScene::on(
        context,
        wire,
        family,
        &Listen::filtered(family).config(timeout(u32::try_from(LONG.as_millis())?)),
    )?;
    // If TCP's SYN-ACK timer runs, it fires every second from now on.
    if let Err(error) = set_tcp_option(&scene.listener, TCP_RTO_MAX_MS, 1000) {
        bail!("TCP_RTO_MAX_MS: {error}");
    }
    let (client, ack) = scene.connect_and_ack(context)?;
    scene.accept_nothing(LONG - Duration::from_secs(2), "its deadline is not over")?;
    ensure!(
        wait::until(Duration::ZERO, || Ok(stats(&scene.listener)?.parked == 1))?,
        "the client is not parked any more: {}",
        describe(&stats(&scene.listener)?)
    );
    let accepted = scene.accept_on_time(context, &client, ack.at, LONG)?;
    let seen = scene.read_counts(context, counted!(timeout_accept: 1))?;
    context.note(describe(&seen));
    exchange_and_close(client, accepted)?;
    scene.judge_totals(1, 0)
}
