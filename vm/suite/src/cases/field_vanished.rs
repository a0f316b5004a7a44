// SPDX-License-Identifier: MIT OR Apache-2.0

//! Clients that vanish without a word while they are parked: they are probed, as the connections of
//! a plain listener are, and those that do not answer are reset.

use std::io::{ErrorKind, Read as _};
use std::thread::sleep;
use std::time::{Duration, Instant};

use accf_kit::control::{self, timeout, Config};
use accf_kit::endpoint::{probe_clients, Family, Listen};
use accf_kit::raw::{RawClient, Received};
use accf_kit::segment::{Flags, Segment};
use accf_kit::tcp_info;
use anyhow::{ensure, Context as _, Result};
use socket2::{SockRef, TcpKeepalive};

use crate::case::{case, each_family, expect_eq, Context};
use crate::count::{counted, counts, read_counts};
use crate::scene::{
    accept, expect_reset, receives_nothing, serve, RawScene, Scene as _, WireScene,
};

/// How many clients vanish.
const CLIENTS: usize = 10;
/// How many probes are not answered before a client is given up.
const PROBES: u32 = 3;
/// How long a case takes that waits for SYN-ACKs.
const LONG: Duration = Duration::from_secs(60);
/// TCP_KEEPIDLE and TCP_KEEPINTVL.
const SECOND: Duration = Duration::from_secs(1);

/// Returns a listener that parks without a deadline.
fn filtered(family: Family) -> Listen {
    Listen::filtered(family).config(timeout(0))
}

/// Returns the next segment that a client is sent, which has to come.
fn next(context: &Context, client: &mut RawClient, what: &str) -> Result<Received> {
    client
        .receive(context.patience())?
        .with_context(|| format!("{what} did not come"))
}

/// Checks that a segment is a probe: an ACK of the byte before the one that the client expects.
fn is_probe(client: &RawClient, segment: &Segment) -> Result<()> {
    expect_eq!(segment.flags, Flags::ACK, "flags of {segment}");
    expect_eq!(segment.payload.len(), 0, "bytes of {segment}");
    let before = client.rcv_nxt.wrapping_sub(1);
    expect_eq!(segment.seq, before, "sequence number of {segment}");
    expect_eq!(segment.ack, client.snd_nxt, "acknowledged by {segment}");
    Ok(())
}

/// Checks that a client is probed as often as the listener says, and reset then.
fn is_given_up(context: &Context, client: &mut RawClient) -> Result<()> {
    for nth in 1..=PROBES {
        let probe = next(context, client, &format!("probe {nth}"))?;
        is_probe(client, &probe.segment)?;
    }
    let reset = expect_reset(context, client, "the client was not reset")?;
    expect_eq!(reset.segment.seq, client.rcv_nxt, "where the reset is");
    Ok(())
}

case!(NoDeadline, "field.vanished.keepalive" => each_family, vanished(false));
case!(NoDeadline, "field.vanished.timestamps" => each_family, vanished(true));
/// Checks that clients that vanish are probed as the listener's SO_KEEPALIVE says, and leave no
/// request.
fn vanished(context: &Context, family: Family, timestamps: bool) -> Result<()> {
    let scene = RawScene::new(context, family, &filtered(family))?;
    probe_clients(&scene.listener, SECOND, PROBES)?;
    let begin = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = scene.client();
        if timestamps {
            client = client.with_timestamps();
        }
        client.open(context.patience())?;
        clients.push(client);
    }
    let all = CLIENTS as u64;
    scene.counts(context, counted!(parked: all))?;
    scene.counts(
        context,
        counted!(died: all, probes: all * u64::from(PROBES)),
    )?;
    let took = begin.elapsed();
    ensure!(
        took >= SECOND * (1 + PROBES),
        "they were given up after {took:?}"
    );
    for client in &mut clients {
        is_given_up(context, client)?;
    }
    scene.requests(context, 0)
}

case!(NoDeadline, "field.vanished.plain" => each_family(plain));
/// Checks that a plain listener's connections are probed in the same way.
fn plain(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::new(context, family, &Listen::plain(family))?;
    probe_clients(&scene.listener, SECOND, PROBES)?;
    let mut client = scene.client();
    client.open(context.patience())?;
    let mut accepted = accept(&scene.listener, context)?;
    is_given_up(context, &mut client)?;
    accepted.stream.set_read_timeout(Some(context.patience()))?;
    let end = accepted.stream.read(&mut [0]).map_err(|error| error.kind());
    expect_eq!(end, Err(ErrorKind::TimedOut), "what the server reads");
    Ok(())
}

case!(NoDeadline, "field.vanished.probe_ms" => each_family(probe_ms));
/// Checks that a listener may ask for probes without SO_KEEPALIVE, and that `TCP_KEEPCNT` counts.
fn probe_ms(context: &Context, family: Family) -> Result<()> {
    let config = Config {
        probe: Some(Duration::from_millis(400)),
        ..timeout(0)
    };
    let scene = RawScene::new(context, family, &Listen::filtered(family).config(config))?;
    let keepalive = TcpKeepalive::new().with_retries(PROBES);
    SockRef::from(scene.listener.socket()).set_tcp_keepalive(&keepalive)?;
    SockRef::from(scene.listener.socket()).set_keepalive(false)?;
    let probe = control::config(&scene.listener)?.probe;
    expect_eq!(probe, config.probe, "the setting");
    let (mut client, _) = scene.parked(context)?;
    is_given_up(context, &mut client)?;
    scene.counts(context, counted!(died: 1, probes: u64::from(PROBES)))
}

case!(NoDeadline, "field.vanished.off" => each_family(off));
/// Checks that nothing is sent without SO_KEEPALIVE.
fn off(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::new(context, family, &filtered(family))?;
    probe_clients(&scene.listener, SECOND, PROBES)?;
    SockRef::from(scene.listener.socket()).set_keepalive(false)?;
    let (mut client, _) = scene.parked(context)?;
    receives_nothing(&mut client, 3 * SECOND, "sent to a silent client")?;
    scene.serve(context, &mut client)?;
    scene.counts(context, counted!(released_data: 1))
}

case!(NoDeadline, "field.vanished.alive" => each_family(alive));
/// Checks that clients that are there stay parked through many probes, and that the connection is
/// as if there had been none.
fn alive(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::new(context, family, &filtered(family))?;
    probe_clients(&scene.listener, SECOND, PROBES)?;
    let mut clients = scene.connect_many(CLIENTS)?;
    let all = CLIENTS as u64;
    // Several times as many as are allowed to be lost.
    let enough = all * u64::from(PROBES) * 2;
    let begin = Instant::now();
    while control::stats(&scene.listener)?.probes < enough {
        ensure!(
            begin.elapsed() < 20 * SECOND + context.patience(),
            "no more probes came"
        );
        sleep(Duration::from_millis(100));
    }
    let seen = control::stats(&scene.listener)?;
    ensure!(
        seen.parked == all && seen.died == 0,
        "a client that is there was given up: {seen:?}"
    );
    for client in &mut clients {
        client.request()?;
        let accepted = accept(&scene.listener, context)?;
        serve(&accepted)?;
        client.response()?;
        let info = tcp_info::all(&accepted.stream)?;
        for (name, value) in info {
            if [
                "total_rto",
                "total_rto_recoveries",
                "total_rto_time",
                "total_retrans",
            ]
            .contains(&name)
            {
                expect_eq!(value, 0, "{name} of a connection that was probed");
            }
        }
    }
    let probes = control::stats(&scene.listener)?.probes;
    counts(
        context,
        &scene.listener,
        counted!(released_data: all, probes: probes),
    )
}

case!(NoDeadline, "field.vanished.one_answer" => each_family(one_answer));
/// Checks that one answer in time is enough, and that a client that sends after that is served.
fn one_answer(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::new(context, family, &filtered(family))?;
    probe_clients(&scene.listener, SECOND, PROBES)?;
    let (mut client, _) = scene.parked(context)?;
    for _ in 0..2 {
        for nth in 1..=PROBES {
            let probe = next(context, &mut client, &format!("probe {nth}"))?;
            is_probe(&client, &probe.segment)?;
        }
        client.ack()?;
    }
    scene.serve(context, &mut client)?;
    scene.counts(
        context,
        counted!(released_data: 1, probes: 2 * u64::from(PROBES)),
    )
}

case!(NoDeadline, "field.vanished.restarted" => each_family(restarted));
/// Checks that a client that has started again, and resets the connection that it does not know, is
/// given up at its first probe.
fn restarted(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::new(context, family, &filtered(family))?;
    probe_clients(&scene.listener, SECOND, PROBES)?;
    let (mut client, _) = scene.parked(context)?;
    let probe = next(context, &mut client, "the probe")?;
    is_probe(&client, &probe.segment)?;
    client.rst()?;
    let seen = read_counts(context, &scene.listener, counted!(died: 1, probes: 1))?;
    expect_eq!(seen.aborted, 0, "aborted");
    receives_nothing(&mut client, 2 * SECOND, "sent to a client that has reset")
}

case!(NoDeadline, "field.vanished.synack_retries" => each_family(synack_retries).long(LONG));
/// Checks that a client that is there stays parked, and is served, however few SYN-ACKs may be sent
/// again, and however many were: TCP drops a request without a word whose SYN-ACK timer has fired
/// as often as that.
fn synack_retries(context: &Context, family: Family) -> Result<()> {
    for (retries, syn_acks, is_probed) in [
        ("0", 1, false),
        ("1", 1, true),
        ("1", 2, false),
        ("2", 3, true),
    ] {
        let scene = RawScene::new(context, family, &filtered(family))?;
        scene
            .ns
            .set_sysctl("net.ipv4.tcp_synack_retries", retries)?;
        probe_clients(&scene.listener, SECOND, PROBES)?;
        let mut client = scene.client();
        client.half_open(context.patience())?;
        for nth in 2..=syn_acks {
            let again = next(context, &mut client, &format!("SYN-ACK {nth}"))?.segment;
            ensure!(again.is_syn_ack(), "not SYN-ACK {nth}: {again}");
        }
        client.ack()?;
        scene.counts(context, counted!(parked: 1))?;
        let probes = if is_probed { 2 } else { 0 };
        for nth in 1..=probes {
            let probe = next(context, &mut client, &format!("probe {nth}"))?;
            is_probe(&client, &probe.segment)?;
            client.ack()?;
        }
        if !is_probed {
            receives_nothing(
                &mut client,
                3 * SECOND,
                "sent to a client that is not probed",
            )?;
        }
        scene.serve(context, &mut client)?;
        scene
            .counts(context, counted!(released_data: 1, probes: probes))
            .with_context(|| format!("tcp_synack_retries={retries}, {syn_acks} SYN-ACKs"))?;
    }
    Ok(())
}
