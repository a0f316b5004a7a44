// SPDX-License-Identifier: MIT OR Apache-2.0

//! Connections that cannot be parked: accepted as on a plain listener, and counted by cause.

use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::time::Duration;

use accf_kit::control::{settings, OnTimeout, Stats};
use accf_kit::endpoint::{set_tcp_option, Family, Listen, Listener};
use accf_kit::fault::NoMemory;
use accf_kit::segment::{Flags, Segment};
use accf_kit::wire::Wire;
use accf_kit::{module, signature, sockets, wait};
use anyhow::{bail, Context as _, Result};
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use crate::case::{case, each_family, expect_eq, Context};
use crate::count::{counted, stats};
use crate::scene::{
    accept_queue_holds, accept_while, exchange_and_close, receives_nothing, serve, serve_raw,
    Client, Peer, RawScene, Scene, WireScene, REQUEST, RESPONSE,
};

/// Checks that two silent clients are each accepted at once, work, and are counted.
fn silent_at_once(context: &Context, scene: WireScene, count: impl Fn(u64) -> Stats) -> Result<()> {
    for nth in 1..=2 {
        let (accepted, client) =
            accept_while(&scene.listener, context, || scene.connect_and_ack(context))?;
        let (client, ack) = client;
        context.at_once(ack.at, accepted.at, "from the bare ACK to accept()")?;
        expect_eq!(
            accepted.peer.port(),
            client.local.port(),
            "the client that was accepted"
        );
        scene.counts(context, count(nth))?;
        exchange_and_close(client, accepted)?;
    }
    scene.requests(context, 0)?;
    scene.judge_totals(2, 0)
}

/// Checks that a client that sends data with the third segment is no bypass: it would not have been
/// parked.
fn speaker_does_not_count(context: &Context, scene: &RawScene) -> Result<()> {
    let before = stats(&scene.listener)?;
    let mut client = scene.half_open(context)?;
    scene.serve(context, &mut client)?;
    scene.counts(context, before)
}

case!(Default, "bypass.syncookie" => each_family(syncookie));
fn syncookie(context: &Context, family: Family) -> Result<()> {
    let wire = Wire::new()?;
    wire.server.set_sysctl("net.ipv4.tcp_syncookies", "2")?;
    let scene = WireScene::on(context, wire, family, &Listen::filtered(family))?;
    silent_at_once(context, scene, |nth| counted!(bypass_syncookie: nth))?;

    let scene = RawScene::filtered(context, family)?;
    scene.ns.set_sysctl("net.ipv4.tcp_syncookies", "2")?;
    speaker_does_not_count(context, &scene)
}

const TCP_FASTOPEN: i32 = 23;

/// Fast Open for servers, without a cookie.
const SERVER_WITHOUT_COOKIE: &str = "514";

case!(Default, "bypass.fastopen" => each_family(fastopen));
fn fastopen(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    scene
        .ns
        .set_sysctl("net.ipv4.tcp_fastopen", SERVER_WITHOUT_COOKIE)?;
    set_tcp_option(&scene.listener, TCP_FASTOPEN, 16).context("TCP_FASTOPEN")?;
    for nth in 1..=2 {
        let mut client = scene.client();
        let mut syn = client.segment(Flags::SYN, REQUEST);
        syn.mss = Some(1460);
        let sent = client.send(&syn)?;
        client.snd_nxt = syn.end_seq();
        let answer = client
            .receive(context.patience())?
            .context("no answer to a SYN with data")?
            .segment;
        expect_eq!(answer.is_syn_ack(), true, "whether {answer} is a SYN-ACK");
        expect_eq!(
            answer.ack,
            client.snd_nxt,
            "what the SYN-ACK acknowledges: the data, too"
        );
        let accepted = scene.accept(context)?;
        context.at_once(sent, accepted.at, "from the SYN to accept()")?;
        scene.counts(context, counted!(bypass_fastopen: nth))?;
        // The filter ignores its bare ACK, as the connection exists already.
        client.ack()?;
        serve(&accepted)?;
        client.read_response(context)?;
        scene.counts(context, counted!(bypass_fastopen: nth))?;
    }
    Ok(())
}

case!(Default, "bypass.fastopen_not_asked_for" => each_family(no_fastopen));
/// Checks that data on a SYN without Fast Open is ignored, and that the client is parked.
fn no_fastopen(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let mut client = scene.client();
    let mut syn = client.segment(Flags::SYN, REQUEST);
    syn.mss = Some(1460);
    client.send(&syn)?;
    client.snd_nxt = client.isn.wrapping_add(1);
    let answer = client
        .receive(context.patience())?
        .context("no answer to a SYN with data")?
        .segment;
    expect_eq!(
        answer.ack,
        client.snd_nxt,
        "what the SYN-ACK acknowledges: not the data"
    );
    client.ack()?;
    scene.counts(context, counted!(parked: 1))?;
    scene.serve(context, &mut client)?;
    scene.counts(context, counted!(released_data: 1))
}

case!(Default, "bypass.abort_on_overflow" => each_family(abort_on_overflow));
fn abort_on_overflow(context: &Context, family: Family) -> Result<()> {
    let wire = Wire::new()?;
    wire.server
        .set_sysctl("net.ipv4.tcp_abort_on_overflow", "1")?;
    let scene = WireScene::on(context, wire, family, &Listen::filtered(family))?;
    silent_at_once(
        context,
        scene,
        |nth| counted!(bypass_abort_on_overflow: nth),
    )?;

    let scene = RawScene::filtered(context, family)?;
    scene.ns.set_sysctl("net.ipv4.tcp_abort_on_overflow", "1")?;
    speaker_does_not_count(context, &scene)?;
    // Set while requests are parked: a silent one stays parked, and an ACK that is sent twice
    // resets none.
    scene.ns.set_sysctl("net.ipv4.tcp_abort_on_overflow", "0")?;
    let (mut client, _) = scene.parked(context)?;
    let (mut other, _) = scene.parked(context)?;
    scene.ns.set_sysctl("net.ipv4.tcp_abort_on_overflow", "1")?;
    scene.accept_nothing(
        Duration::from_millis(300),
        "the clients were parked when the setting changed",
    )?;
    client.ack()?;
    let accepted = scene.accept_from(context, &client)?;
    serve_raw(&mut client, &accepted)?;
    scene.counts(context, counted!(parked: 1, fallback: 1))?;
    scene.serve(context, &mut other)?;
    scene.counts(context, counted!(released_data: 1, fallback: 1))
}

case!(Default, "bypass.accept_queue_full" => each_family(accept_queue_full));
/// Checks that the oldest is not evicted if the accept queue has no room for it.
fn accept_queue_full(context: &Context, family: Family) -> Result<()> {
    let listen = Listen::filtered(family)
        .backlog(1)
        .config(settings(60_000, 1, OnTimeout::Accept));
    let scene = RawScene::new(context, family, &listen)?;
    let (mut oldest, _) = scene.parked(context)?;
    // SYNs are answered while the accept queue has room; two connections fill it. One by one, as
    // the backlog is 1.
    let mut newcomer = scene.half_open(context)?;
    let mut clients = vec![scene.client(), scene.client()];
    for client in &mut clients {
        client.half_open(context.patience())?;
        client.data(REQUEST)?;
    }
    accept_queue_holds(&scene.listener, context, 2)?;
    newcomer.ack()?;
    scene.counts(
        context,
        counted!(parked: 1, half_open: 1, bypass_accept_queue_full: 1),
    )?;
    expect_eq!(
        sockets::requests(&scene.ns, scene.port())?,
        2,
        "requests: the parked one, and the one that is not"
    );
    for _ in &clients {
        serve(&scene.accept(context)?)?;
    }
    // As on a plain listener whose queue was full, the client is accepted with its next segment. It
    // is counted once.
    newcomer.ack()?;
    let accepted = scene.accept_from(context, &newcomer)?;
    serve_raw(&mut newcomer, &accepted)?;
    scene.serve(context, &mut oldest)?;
    scene.counts(
        context,
        counted!(released_data: 1, bypass_accept_queue_full: 1),
    )
}

/// Sets the key for one direction of a connection: its socket, the peer's address, the key.
type Sign = fn(&Socket, IpAddr, &[u8]) -> std::io::Result<()>;

const MD5: Sign = |socket, peer, key| signature::md5(socket, peer, key);
const AO: Sign = |socket, peer, key| signature::ao(socket, peer, key);

/// TCP-MD5, and the error of a kernel without it.
const ONLY_MD5: (&str, Sign, &[Errno]) = ("TCP-MD5", MD5, &[Errno::ENOPROTOOPT]);

const KEY: &[u8] = b"a key of both ends";

case!(Default, "bypass.signed_md5" => each_family, signed("TCP-MD5", MD5));
case!(Default, "bypass.signed_ao" => each_family, signed("TCP-AO", AO));
/// Makes a listener check the signatures of a peer.
///
/// Ends the case if the kernel cannot, which fails with one of the errors in `missing`.
fn sign_listener(
    context: &Context,
    listener: &Listener,
    peer: IpAddr,
    (what, sign, missing): (&str, Sign, &[Errno]),
) -> Result<()> {
    match sign(listener.socket(), peer, KEY) {
        Ok(()) => Ok(()),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(errno) if missing.contains(&errno) => context.lacks(what),
            _ => bail!("{what}: {error}"),
        },
    }
}

/// Checks that connections with signed segments are not parked: the ACK rebuilt at the deadline
/// could not be signed.
fn signed(context: &Context, family: Family, what: &str, sign: Sign) -> Result<()> {
    let scene = WireScene::filtered(context, family)?;
    let as_seen_by_the_server = family.as_seen(scene.wire.client_ip(family));
    let missing = &[Errno::ENOPROTOOPT, Errno::ENOENT];
    let signature: (_, _, &[_]) = (what, sign, missing);
    sign_listener(context, &scene.listener, as_seen_by_the_server, signature)?;
    let server = scene.wire.server_address(family, scene.port());
    for nth in 1..=2 {
        let (accepted, client) = accept_while(&scene.listener, context, || {
            scene.wire.client.run(|| {
                let socket = Socket::new(
                    Domain::for_address(server),
                    Type::STREAM,
                    Some(Protocol::TCP),
                )?;
                sign(&socket, server.ip(), KEY)?;
                socket
                    .connect_timeout(&server.into(), context.patience())
                    .with_context(|| format!("connect with {what}"))?;
                let stream = TcpStream::from(socket);
                stream.set_read_timeout(Some(context.patience()))?;
                Client::new(stream)
            })
        })?;
        scene.counts(context, count_signed(nth))?;
        exchange_and_close(client, accepted)?;
    }
    scene.requests(context, 0)?;
    scene.judge_totals(2, 0)
}

fn count_signed(nth: u64) -> Stats {
    counted!(bypass_signed: nth)
}

case!(Default, "bypass.signed_md5_of_a_raw_client" => each_family(raw_signed));
/// The same segment by segment: a segment without a valid signature is ignored, and a signed ACK is
/// not parked.
fn raw_signed(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let mut client = scene.client();
    let as_seen_by_the_server = family.as_seen(client.local.ip());
    sign_listener(context, &scene.listener, as_seen_by_the_server, ONLY_MD5)?;
    let send = |segment: &Segment, key: Option<&[u8]>| {
        let packet = segment.build_signed(key)?;
        scene.host.inject(&packet)
    };
    const WRONG: &[u8] = b"an unknown key";
    const SILENCE: Duration = Duration::from_millis(200);

    let syn = client.segment(Flags::SYN, b"");
    for key in [None, Some(WRONG)] {
        send(&syn, key)?;
        let what = format!("an answer to a SYN signed with {key:?}");
        receives_nothing(&mut client, SILENCE, &what)?;
    }
    send(&syn, Some(KEY))?;
    client.snd_nxt = syn.end_seq();
    client
        .receive_until(context.patience(), Segment::is_syn_ack)?
        .context("no SYN-ACK")?;

    let ack = client.segment(Flags::ACK, b"");
    for key in [None, Some(WRONG)] {
        send(&ack, key)?;
        scene.accept_nothing(SILENCE, "the ACK has no valid signature")?;
        scene.counts(context, counted!(half_open: 1))?;
    }
    let sent = send(&ack, Some(KEY))?;
    let accepted = scene.accept(context)?;
    context.at_once(sent, accepted.at, "from the bare ACK to accept()")?;
    scene.counts(context, count_signed(1))?;

    let request = client.segment(Flags::PSH_ACK, REQUEST);
    send(&request, Some(WRONG))?;
    expect_eq!(
        wait::readable(&accepted.stream, SILENCE)?,
        false,
        "whether the server reads what is signed with another key"
    );
    send(&request, Some(KEY))?;
    serve(&accepted)?;
    let answer = client
        .receive_until(context.patience(), Segment::has_data)?
        .context("no response")?;
    expect_eq!(answer.segment.payload, RESPONSE, "the response");
    expect_eq!(
        answer.segment.ack,
        request.end_seq(),
        "what the response acknowledges"
    );
    Ok(())
}

case!(Default, "bypass.signed_for_somebody_else" => each_family(signed_for_another));
/// Checks that a listener with a key for any peer parks no client.
fn signed_for_another(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::filtered(context, family)?;
    let stranger = Ipv4Addr::new(203, 0, 113, 9);
    let stranger: IpAddr = match family {
        Family::V4 => stranger.into(),
        Family::V6 | Family::Mapped => stranger.to_ipv6_mapped().into(),
    };
    sign_listener(context, &scene.listener, stranger, ONLY_MD5)?;
    silent_at_once(context, scene, count_signed)
}

case!(Alone, "bypass.no_memory" => each_family(no_memory));
/// Checks that a connection is not parked if the memory for its list entry cannot be allocated.
fn no_memory(context: &Context, family: Family) -> Result<()> {
    module::reload("")?;
    let scene = RawScene::filtered(context, family)?;
    for nth in 1..=3 {
        let mut client = scene.half_open(context)?;
        let Some(failing) = NoMemory::for_the_next(1)? else {
            return context.lacks("failslab");
        };
        let sent = client.ack()?;
        let accepted = scene.accept(context)?;
        expect_eq!(failing.left()?, 0, "allocations that are still to fail");
        drop(failing);
        context.at_once(sent, accepted.at, "from the bare ACK to accept()")?;
        scene.counts(context, counted!(bypass_no_memory: nth))?;
        serve_raw(&mut client, &accepted)?;
    }
    // The next allocation succeeds, and its connection is parked.
    let (mut client, _) = scene.parked(context)?;
    scene.counts(context, counted!(parked: 1, bypass_no_memory: 3))?;
    scene.serve(context, &mut client)?;
    drop(scene);
    module::unload(context.patience())
}
