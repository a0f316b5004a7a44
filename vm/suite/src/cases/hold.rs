// SPDX-License-Identifier: MIT OR Apache-2.0

//! A client that does its handshake and pauses before it sends data.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use accf_kit::capture::{Direction, Trace};
use accf_kit::clock::Stamp;
use accf_kit::counters::Counters;
use accf_kit::endpoint::{connect, keep_alive, Family, Listen};
use accf_kit::segment::Segment;
use accf_kit::tcp_info::TcpInfo;
use accf_kit::wire::Wire;
use accf_kit::{ulp, wait};
use anyhow::{ensure, Context as _, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::case::{case, each_family, expect_eq, expect_in, families, once, Context, Kernel};
use crate::scene::{
    accept, accept_while, bare_ack, close, established, exchange_and_close, expect_filter,
    join_scoped, reads_end, rest, serve, totals, Scene, WireScene,
};

case!(Default, "hold.bare_ack_then_data" => each_family(bare_ack_then_data));
/// Checks the sequence of the report to netdev: handshake, silence, then a request.
fn bare_ack_then_data(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::filtered(context, family)?;
    // A deferring listener would have sent its SYN-ACK again after 1 s and after 3 s.
    let (mut client, ack) = scene.connect_and_pause(context, Duration::from_secs(4))?;
    scene.requests(context, 1)?;
    let sent = client.request()?;
    let accepted = scene.accept(context)?;
    context.at_once(sent, accepted.at, "from the request to accept()")?;
    context.note(format!(
        "accept() {:.1} ms after the request, {:.1} ms after the bare ACK",
        accepted.at.ms_after(sent),
        accepted.at.ms_after(ack.at)
    ));
    expect_filter(&accepted.stream, None, "the accepted socket's filter")?;
    scene.requests(context, 0)?;
    serve(&accepted)?;
    client.response()?;
    established(&client, &accepted)?;
    close(client, accepted)?;
    scene.judge(|trace| {
        totals(trace, 1, 0)?;
        expect_eq!(trace.count(Segment::is_fin), 2, "FINs");
        let silence = trace.between(ack.at, sent);
        expect_eq!(
            silence.packets.len(),
            0,
            "segments while the client was silent"
        );
        Ok(())
    })
}

case!(Default, "hold.byte_at_a_time" => each_family(byte_at_a_time));
/// Checks that the first byte releases the connection, and that none is lost or doubled.
fn byte_at_a_time(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::filtered(context, family)?;
    let (mut client, _) = scene.connect_and_pause(context, Duration::from_millis(300))?;
    let text = b"one byte at a time";
    let mut accepted = None;
    for byte in text {
        client.stream.write_all(&[*byte])?;
        if accepted.is_none() {
            accepted = Some(scene.accept(context)?);
        }
        sleep(Duration::from_millis(5));
    }
    client.stream.shutdown(Shutdown::Write)?;
    let mut accepted = accepted.context("nothing was sent")?;
    expect_eq!(rest(&mut accepted.stream)?, text, "what the server reads");
    drop(accepted);
    reads_end(&mut client.stream, "bytes the client reads")?;
    scene.judge(|trace| {
        totals(trace, 1, 0)?;
        let first = trace.first(Segment::has_data).context("no data")?;
        expect_eq!(first.segment.payload, b"o", "the first segment with data");
        Ok(())
    })
}

case!(Default, "hold.a_megabyte_each_way" => each_family(megabyte));
/// Checks that a megabyte goes each way on a connection that was parked.
fn megabyte(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::filtered(context, family)?;
    let (mut client, _) = scene.connect_and_pause(context, Duration::from_millis(300))?;
    let mut rng = context.rng();
    let bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..))
        .take(1 << 20)
        .collect();
    let echoed = thread::scope(|scope| {
        let sender = client.stream.try_clone()?;
        scope.spawn({
            let bytes = &bytes;
            move || {
                let mut sender = sender;
                // A failure shows as missing bytes at the other end.
                let _ = sender.write_all(bytes);
                let _ = sender.shutdown(Shutdown::Write);
            }
        });
        let mut accepted = scene.accept(context)?;
        let received = rest(&mut accepted.stream)?;
        ensure!(
            received == bytes,
            "the server reads {} other bytes",
            received.len()
        );
        scope.spawn(move || {
            let _ = accepted.stream.write_all(&received);
        });
        rest(&mut client.stream)
    })?;
    ensure!(
        echoed == bytes,
        "the client reads {} other bytes",
        echoed.len()
    );
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Timestamps {
    On,
    Off,
}

case!(Default, "hold.rtt" => each_family, rtt(Timestamps::On));
case!(
    Default, "hold.rtt_without_timestamps.v4" =>
    once(|context| rtt(context, Family::V4, Timestamps::Off))
);
/// Checks that RTT and RTO are those of a plain listener: a client's pause is not part of them.
fn rtt(context: &Context, family: Family, timestamps: Timestamps) -> Result<()> {
    const PATH: Duration = Duration::from_millis(40);
    let wire = Wire::with_rtt(PATH)?;
    if timestamps == Timestamps::Off {
        wire.client.set_sysctl("net.ipv4.tcp_timestamps", "0")?;
    }
    let scene = WireScene::on(context, wire, family, &Listen::filtered(family))?;
    let plain = Listen::plain(family).open(&scene.wire.server)?;

    let (mut client, _) = scene.connect_and_ack(context)?;
    let mut plain_client = connect(
        &scene.wire.client,
        scene.wire.server_address(family, plain.port()),
    )?;
    scene.accept_nothing(Duration::from_secs(3), "the client has not sent anything")?;
    client.request()?;
    plain_client.write_all(b"x")?;
    let accepted = scene.accept(context)?;
    let plain_accepted = accept(&plain, context)?;
    (&plain_accepted.stream).read_exact(&mut [0])?;
    let (held, free) = (
        TcpInfo::of(&accepted.stream)?,
        TcpInfo::of(&plain_accepted.stream)?,
    );
    serve(&accepted)?;
    client.response()?;
    close(client, accepted)?;

    let (port, trace) = (scene.port(), scene.capture.stop()?);
    let path = path_ms(&trace.of_port(port), PATH)?;
    context.note(format!(
        "path {path:.1?} ms: RTT {:.1} ms, RTO {:.0} ms; plain: RTT {:.1} ms, RTO {:.0} ms",
        ms(held.rtt),
        ms(held.rto),
        ms(free.rtt),
        ms(free.rto)
    ));
    expect_eq!(trace.of_port(port).syn_acks(), 1, "SYN-ACKs");
    rtt_is_the_paths(context, held.rtt, path)?;
    rto_is_the_paths(&held)?;
    // The same, measured by the plain listener's: for what was different on its way.
    let expected = ms(free.rto) * ms(first_rto(held.rtt)) / ms(first_rto(free.rtt));
    expect_in!(
        ms(held.rto),
        expected * 0.9..expected * 1.1,
        "tcpi_rto of the accepted socket, in ms, by the plain listener's"
    );
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Returns bounds of the path's round-trip time of a trace's first handshake, in milliseconds.
///
/// The capture sees a SYN-ACK when it has been through the delay of the server's side, which is
/// half of the path's and never less. It was made at some time between the SYN and that.
pub(super) fn path_ms(trace: &Trace, rtt: Duration) -> Result<RangeInclusive<f64>> {
    let syn = trace.first(Segment::is_syn).context("no SYN")?;
    let syn_ack = trace.first(Segment::is_syn_ack).context("no SYN-ACK")?;
    let ack = trace.first(Segment::is_bare_ack).context("no bare ACK")?;
    let least = ack.at.ms_after(syn_ack.at) + ms(rtt) / 2.0;
    let most = ack.at.ms_after(syn.at);
    ensure!(
        least <= most + 1.0,
        "the path took at least {least:.1} ms and at most {most:.1} ms"
    );
    Ok(least..=most)
}

/// Checks a socket's round-trip time against the path's.
pub(super) fn rtt_is_the_paths(
    context: &Context,
    rtt: Duration,
    path: RangeInclusive<f64>,
) -> Result<()> {
    let slack = match context.kernel {
        Kernel::Stock => 10.0,
        Kernel::Dev => 30.0,
    };
    expect_in!(
        ms(rtt),
        path.start() - slack..=path.end() + slack,
        "tcpi_rtt of the accepted socket, in ms"
    );
    Ok(())
}

/// Returns the retransmission timeout after the first sample of a round-trip time (RFC 6298, with
/// TCP's minimum).
fn first_rto(rtt: Duration) -> Duration {
    rtt + (2 * rtt).max(Duration::from_millis(200))
}

/// Checks a socket's retransmission timeout against its round-trip time.
pub(super) fn rto_is_the_paths(info: &TcpInfo) -> Result<()> {
    let expected = ms(first_rto(info.rtt));
    expect_in!(
        ms(info.rto),
        expected * 0.9..expected * 1.1,
        "tcpi_rto of the accepted socket, in ms"
    );
    Ok(())
}

case!(Default, "hold.epoll_wakes_once" => each_family(epoll_wakes_once));
/// Checks that `epoll_wait()` wakes once for each connection, and not for a bare ACK.
fn epoll_wakes_once(context: &Context, family: Family) -> Result<()> {
    const CLIENTS: usize = 8;
    let scene = WireScene::filtered(context, family)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    // Edge-triggered: each event is one call of the listener's wake-up.
    epoll.add(
        &scene.listener,
        EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 1),
    )?;
    let stop = EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
    epoll.add(&stop, EpollEvent::new(EpollFlags::EPOLLIN, 2))?;
    let listener = &scene.listener;
    let accepted = &AtomicUsize::new(0);
    thread::scope(|scope| {
        let server = scope.spawn(move || -> Result<usize> {
            let mut wakeups = 0;
            loop {
                let mut events = [EpollEvent::empty(); 4];
                let count = epoll.wait(&mut events, EpollTimeout::NONE)?;
                let mut last = false;
                for event in events.iter().take(count) {
                    match event.data() {
                        1 => {
                            wakeups += 1;
                            let mut count = 0;
                            while listener.accept_now()?.is_some() {
                                count += 1;
                            }
                            // Added after the loop, so that the queue is empty when the next client
                            // sends.
                            accepted.fetch_add(count, Ordering::Relaxed);
                        }
                        _ => last = true,
                    }
                }
                if last {
                    return Ok(wakeups);
                }
            }
        });
        let outcome: Result<_> = (|| {
            let mut clients = scene.connect_many(CLIENTS)?;
            scene.requests(context, CLIENTS)?;
            sleep(Duration::from_millis(300));
            for (index, client) in clients.iter_mut().enumerate() {
                client.request()?;
                // One after another, so that each causes a wake-up.
                let woken = wait::until(context.patience(), || {
                    Ok(accepted.load(Ordering::Relaxed) == index + 1)
                })?;
                ensure!(woken, "connection {} was not accepted", index + 1);
            }
            // Time for a superfluous wake-up.
            sleep(Duration::from_millis(300));
            Ok(())
        })();
        stop.write(1)?;
        let server = join_scoped(server)?;
        outcome?;
        expect_eq!(server, CLIENTS, "wake-ups of epoll_wait()");
        expect_eq!(
            accepted.load(Ordering::Relaxed),
            CLIENTS,
            "connections accepted"
        );
        Ok(())
    })
}

case!(Default, "hold.reuseport" => each_family(reuse_port));
/// Checks that two filtered listeners that share a port each park their connections, and lose none.
fn reuse_port(context: &Context, family: Family) -> Result<()> {
    const CLIENTS: usize = 24;
    let listen = Listen::filtered(family).reuse_port();
    let scene = WireScene::new(context, family, &listen)?;
    let second = listen.port(scene.port()).open(&scene.wire.server)?;
    let mut clients = scene.connect_many(CLIENTS)?;
    scene.requests(context, CLIENTS)?;
    scene.accept_nothing(Duration::from_secs(1), "no client has sent anything")?;
    expect_eq!(
        second.accept_now()?.is_some(),
        false,
        "a connection on the second listener"
    );
    for client in &mut clients {
        client.request()?;
    }
    scene.requests(context, 0)?;
    let mut served = [0, 0];
    for (listener, count) in [&scene.listener, &second].into_iter().zip(&mut served) {
        while let Some(accepted) = listener.accept_now()? {
            serve(&accepted)?;
            *count += 1;
        }
    }
    for client in &mut clients {
        client.response()?;
    }
    expect_eq!(served[0] + served[1], CLIENTS, "connections served");
    context.note(format!("{} and {} connections", served[0], served[1]));
    ensure!(
        served[0] > 0 && served[1] > 0,
        "all {CLIENTS} connections went to one of two listeners"
    );
    scene.judge_syn_acks(CLIENTS)
}

case!(Default, "hold.keepalive" => each_family(keepalive));
/// Checks that keepalive probes of a parked client are answered, and that it is served when it
/// sends data.
///
/// The answers carry timestamps newer than the SYN-ACK's, and the client's next segments echo them.
fn keepalive(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::filtered(context, family)?;
    let (mut client, ack) = scene.connect_and_ack(context)?;
    keep_alive(&client.stream)?;
    scene.accept_nothing(
        Duration::from_millis(3500),
        "the client has only sent keepalive probes",
    )?;
    let sent = Stamp::now();
    let accepted = scene.serve_parked(context, &mut client)?;
    close(client, accepted)?;
    scene.judge(|trace| {
        totals(trace, 1, 0)?;
        let silence = trace.between(ack.at, sent);
        let probes = silence.filter(|packet| packet.direction == Direction::In);
        let answers = silence.sent();
        expect_in!(probes.packets.len(), 2..=4, "keepalive probes");
        expect_eq!(
            answers.packets.len(),
            probes.packets.len(),
            "answers to keepalive probes"
        );
        Ok(())
    })
}

case!(Default, "hold.counters" => each_family(counters));
/// Checks that no counter of the kernel says that something was dropped, retransmitted or
/// overflowed.
fn counters(context: &Context, family: Family) -> Result<()> {
    const CLIENTS: usize = 10;
    let scene = WireScene::filtered(context, family)?;
    let before = Counters::read(&scene.wire.server)?;
    let clients = scene.connect_many(CLIENTS)?;
    scene.requests(context, CLIENTS)?;
    // Over the time of the first retransmission.
    sleep(Duration::from_millis(1500));
    for mut client in clients {
        let accepted = scene.serve_parked(context, &mut client)?;
        close(client, accepted)?;
    }
    let after = Counters::read(&scene.wire.server)?;
    let changes = after.changes(&before);
    for name in [
        "TcpRetransSegs",
        "TcpAttemptFails",
        "TcpEstabResets",
        "TcpInErrs",
        "TcpOutRsts",
        "TcpExtTCPSynRetrans",
        "TcpExtTCPDeferAcceptDrop",
        "TcpExtListenOverflows",
        "TcpExtListenDrops",
        "TcpExtTCPTimeouts",
        "TcpExtTCPReqQFullDrop",
        "TcpExtTCPReqQFullDoCookies",
        "TcpExtSyncookiesSent",
        "TcpExtTCPChallengeACK",
        "TcpExtTCPDSACKOldSent",
    ] {
        expect_eq!(after.growth(&before, name)?, 0, "{name}, of {changes:?}");
    }
    expect_eq!(
        after.growth(&before, "TcpPassiveOpens")?,
        CLIENTS as i64,
        "TcpPassiveOpens, of {changes:?}"
    );
    expect_eq!(after.get("TcpCurrEstab")?, 0, "connections left");
    Ok(())
}

case!(Default, "hold.attached_while_listening" => each_family(attached_while_listening));
/// Checks that attaching a filter does not affect connections that are in the accept queue already.
fn attached_while_listening(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::new(context, family, &Listen::plain(family))?;
    let (early, _) = scene.connect_and_ack(context)?;
    scene.requests(context, 0)?;
    ulp::attach(&scene.listener, ulp::DATAREADY).context("attach")?;
    let (mut late, _) = scene.connect_and_ack(context)?;
    let accepted = scene.accept_from(context, &early)?;
    scene.accept_nothing(
        Duration::from_millis(500),
        "the second client has not sent anything",
    )?;
    exchange_and_close(early, accepted)?;
    let accepted = scene.serve_parked(context, &mut late)?;
    close(late, accepted)
}

case!(
    Default, "hold.outlives_syn_ack_retries" =>
    families(&[Family::V4, Family::V6], outlives_retries)
);
/// Checks that a request stays parked beyond the time after which TCP gives up retransmitting its
/// SYN-ACK.
fn outlives_retries(context: &Context, family: Family) -> Result<()> {
    let wire = Wire::new()?;
    // TCP would drop the request after 3 s.
    wire.server.set_sysctl("net.ipv4.tcp_synack_retries", "1")?;
    let scene = WireScene::on(context, wire, family, &Listen::filtered(family))?;
    let (mut client, _) = scene.connect_and_pause(context, Duration::from_secs(8))?;
    let accepted = scene.serve_parked(context, &mut client)?;
    close(client, accepted)?;
    scene.judge_totals(1, 0)
}

case!(Default, "hold.several_threads_accept" => once(several_threads));
/// Checks that each connection is accepted once while several threads wait in `accept()`.
fn several_threads(context: &Context) -> Result<()> {
    const CLIENTS: usize = 40;
    const THREADS: usize = 4;
    let family = Family::V6;
    let scene = WireScene::filtered(context, family)?;
    let listener = &scene.listener;
    let over = &AtomicBool::new(false);
    thread::scope(|scope| {
        let servers: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(move || -> Result<Vec<u16>> {
                    let mut peers = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        if let Some(accepted) = listener.accept(Duration::from_millis(100))? {
                            // Without data this fails.
                            serve(&accepted)?;
                            peers.push(accepted.peer.port());
                        }
                    }
                    Ok(peers)
                })
            })
            .collect();
        let clients: Result<_> = (|| {
            let mut clients = scene.connect_many(CLIENTS)?;
            scene.requests(context, CLIENTS)?;
            for client in &mut clients {
                client.request()?;
            }
            for client in &mut clients {
                client.response()?;
            }
            Ok(clients)
        })();
        // Time for a superfluous connection.
        sleep(Duration::from_millis(300));
        over.store(true, Ordering::Relaxed);
        let mut served = Vec::new();
        for server in servers {
            served.extend(join_scoped(server)?);
        }
        let clients = clients?;
        expect_eq!(served.len(), CLIENTS, "connections accepted");
        let expected: BTreeSet<u16> = clients.iter().map(|client| client.local.port()).collect();
        expect_eq!(
            served.into_iter().collect::<BTreeSet<_>>(),
            expected,
            "the clients that were served"
        );
        Ok(())
    })
}

case!(Default, "hold.backlog_of_one" => once(backlog_of_one));
/// Checks that the smallest backlog serves clients one after another and side by side.
fn backlog_of_one(context: &Context) -> Result<()> {
    let family = Family::V4;
    let scene = WireScene::new(context, family, &Listen::filtered(family).backlog(1))?;
    for _ in 0..3 {
        let (mut client, _) = scene.connect_and_pause(context, Duration::from_millis(300))?;
        let accepted = scene.serve_parked(context, &mut client)?;
        close(client, accepted)?;
    }
    let mut clients = scene.connect_many(3)?;
    for client in &mut clients {
        client.request()?;
    }
    for _ in 0..clients.len() {
        serve(&scene.accept(context)?)?;
    }
    for client in &mut clients {
        client.response()?;
    }
    Ok(())
}

case!(Default, "hold.plain_listener_beside" => once(plain_beside));
/// Checks that a filter does not affect a plain listener of the same process and namespace.
fn plain_beside(context: &Context) -> Result<()> {
    let family = Family::V4;
    let scene = WireScene::filtered(context, family)?;
    let plain = Listen::plain(family).open(&scene.wire.server)?;
    let (mut held, _) = scene.connect_and_ack(context)?;
    let server = scene.wire.server_address(family, plain.port());
    let (accepted, client) = accept_while(&plain, context, || connect(&scene.wire.client, server))?;
    let ack = bare_ack(&scene.capture, context, client.local_addr()?.port())?;
    context.at_once(
        ack.at,
        accepted.at,
        "from the bare ACK to the plain listener's accept()",
    )?;
    scene.accept_nothing(Duration::from_secs(1), "its client has not sent anything")?;
    let trace = scene.capture.so_far()?.from_port(plain.port());
    expect_eq!(trace.sent().syn_acks(), 1, "SYN-ACKs of the plain listener");
    drop((accepted, client));
    scene.serve(context, &mut held)
}
