// SPDX-License-Identifier: MIT OR Apache-2.0

//! Segments that neither carry data nor end a parked request: answered as TCP does, and the request
//! stays parked.

use std::io::Read;
use std::time::Duration;

use accf_kit::account::at_rest;
use accf_kit::control::{self, timeout};
use accf_kit::endpoint::{set_tcp_option, Family, Listen};
use accf_kit::raw::RawClient;
use accf_kit::segment::{Flags, Segment, Timestamps};
use accf_kit::{forge, wait};
use anyhow::{ensure, Context as _, Result};

use super::plain::unanswered;
use crate::case::{case, each_family, expect_eq, Context};
use crate::count::counted;
use crate::scene::{
    connect_again, reads_end, receives_nothing, serve, serve_raw, Peer, RawScene, Scene, REQUEST,
    RESPONSE,
};

/// How long to wait for an answer that must not come: too short for a retransmission.
const SILENCE: Duration = Duration::from_millis(400);

/// Checks that the server sends nothing.
fn no_answer(client: &mut RawClient, to: &str) -> Result<()> {
    receives_nothing(client, SILENCE, &format!("an answer to {to}"))
}

/// Waits for the server's answer.
fn answer(context: &Context, client: &mut RawClient, to: &str) -> Result<Segment> {
    let received = client.receive(context.patience())?;
    Ok(received
        .with_context(|| format!("no answer to {to}"))?
        .segment)
}

/// Waits for the server's answer, which must be a bare ACK of all that the client has sent.
fn acknowledged(context: &Context, client: &mut RawClient, to: &str) -> Result<Segment> {
    let reply = answer(context, client, to)?;
    expect_eq!(reply.flags, Flags::ACK, "flags of the answer to {to}");
    expect_eq!(reply.ack, client.snd_nxt, "what is acknowledged to {to}");
    Ok(reply)
}

/// Sends a segment that is at another sequence number than the next one.
fn send_at(client: &mut RawClient, flags: Flags, payload: &[u8], seq: u32) -> Result<()> {
    let mut segment = client.segment(flags, payload);
    segment.seq = seq;
    client.send(&segment).map(drop)
}

/// Checks that the request is still parked, that nothing was accepted, and that the client is
/// served once it sends data.
fn still_parked(context: &Context, scene: &RawScene, client: &mut RawClient) -> Result<()> {
    scene.requests(context, 1)?;
    scene.accept_nothing(SILENCE, "the client has not sent anything new")?;
    scene.serve(context, client)
}

case!(Default, "odd.unanswered_syn_ack" => each_family(unanswered_syn_ack));
/// Checks that an unanswered SYN-ACK is sent again as on a plain listener.
fn unanswered_syn_ack(context: &Context, family: Family) -> Result<()> {
    unanswered(context, family, &Listen::filtered(family))
}

case!(Default, "odd.duplicate_bare_acks" => each_family(duplicate_acks));
fn duplicate_acks(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let (mut client, _) = scene.parked(context)?;
    for window in [u16::MAX, u16::MAX, 1000, 0, 2000] {
        client.window = window;
        client.ack()?;
    }
    no_answer(&mut client, "duplicate bare ACKs")?;
    client.window = u16::MAX;
    still_parked(context, &scene, &mut client)?;
    scene.judge_totals(1, 0)
}

case!(Default, "odd.keepalive_probes" => each_family, keepalive(false));
case!(Default, "odd.keepalive_probes_with_timestamps" => each_family, keepalive(true));
/// Checks that a keepalive probe, without data or with one byte before the window, is answered by
/// an ACK.
///
/// With timestamps, what the client sends after that echoes the answer's, which is newer than the
/// SYN-ACK's.
fn keepalive(context: &Context, family: Family, timestamps: bool) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let mut client = scene.client();
    if timestamps {
        client = client.with_timestamps();
    }
    client.open(context.patience())?;
    scene.requests(context, 1)?;
    for garbage in [&b""[..], b"\0"] {
        let before = client.snd_nxt.wrapping_sub(1);
        send_at(&mut client, Flags::ACK, garbage, before)?;
        let what = format!("a keepalive probe with {} bytes", garbage.len());
        let answer = acknowledged(context, &mut client, &what)?;
        expect_eq!(
            answer.seq,
            client.rcv_nxt,
            "sequence number of the answer to {what}"
        );
        // TCP answers probes without data at most every half second.
        no_answer(&mut client, "nothing")?;
    }
    still_parked(context, &scene, &mut client)?;
    scene.judge_totals(1, 0)
}

case!(Default, "odd.retransmitted_syn" => each_family(retransmitted_syn));
/// Checks that a client that sends its SYN again gets the SYN-ACK again, once: it has perhaps not
/// seen it.
fn retransmitted_syn(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let (mut client, _) = scene.parked(context)?;
    // Past TCP's rate limit for answers to repeated SYNs.
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
    // Longer than the timer of a SYN-ACK that was just sent.
    scene.accept_nothing(
        Duration::from_secs(4),
        "the client has not sent anything new",
    )?;
    scene.serve(context, &mut client)?;
    scene.judge(|trace| {
        let sent = trace.sent();
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

case!(Default, "odd.wrong_ack_number" => each_family(wrong_ack));
/// Checks that an ACK of something never sent is answered by a reset, before and after the right
/// one, and that the request stays.
fn wrong_ack(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let mut client = scene.half_open(context)?;
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

case!(Default, "odd.second_segment_first" => each_family(second_segment_first));
/// Checks that the second half of a request, if it overtakes the first, releases the connection,
/// and that the bytes are in order.
fn second_segment_first(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
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
    client.read_response(context)?;
    Ok(())
}

case!(Default, "odd.end_before_the_data" => each_family(end_first));
/// Checks that the end of the stream, if it overtakes the request, releases the connection, and
/// that the request comes first.
fn end_first(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let (mut client, _) = scene.parked(context)?;
    let request = client.segment(Flags::PSH_ACK, REQUEST);
    let mut fin = client.segment(Flags::FIN_ACK, b"");
    fin.seq = request.end_seq();
    client.send(&fin)?;
    let mut accepted = scene.accept(context)?;
    expect_eq!(
        wait::readable(&accepted.stream, Duration::from_millis(200))?,
        false,
        "whether there is anything to read before the request has come"
    );
    client.send(&request)?;
    client.snd_nxt = fin.end_seq();
    serve(&accepted)?;
    reads_end(&mut accepted.stream, "bytes behind the request")?;
    client.read_response(context)?;
    // Counted as data: the FIN comes after a gap.
    scene.counts(context, counted!(released_data: 1))
}

case!(Default, "odd.beyond_the_window" => each_family(beyond_the_window));
/// Checks that data and a FIN beyond the window are answered by an ACK and otherwise ignored.
fn beyond_the_window(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let (mut client, _) = scene.parked(context)?;
    for (flags, payload) in [(Flags::PSH_ACK, &b"too far"[..]), (Flags::FIN_ACK, b"")] {
        let far = client.snd_nxt.wrapping_add(1_000_000);
        send_at(&mut client, flags, payload, far)?;
        let what = format!("[{flags}] beyond the window");
        acknowledged(context, &mut client, &what)?;
        scene.counts(context, counted!(parked: 1))?;
    }
    still_parked(context, &scene, &mut client)
}

case!(Default, "odd.old_timestamp" => each_family(old_timestamp));
/// Checks that data with a timestamp older than the bare ACK's is answered by an ACK and otherwise
/// ignored.
fn old_timestamp(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
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
    acknowledged(context, &mut client, "an old timestamp")?;
    still_parked(context, &scene, &mut client)
}

case!(Default, "odd.inexact_reset" => each_family(inexact_rst));
/// Checks that a reset inside the window, but not at its edge, gets a challenge ACK (RFC 5961).
fn inexact_rst(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let (mut client, _) = scene.parked(context)?;
    let inside = client.snd_nxt.wrapping_add(100);
    send_at(&mut client, Flags::RST, b"", inside)?;
    acknowledged(context, &mut client, "a reset inside the window")?;
    still_parked(context, &scene, &mut client)
}

case!(Default, "odd.stray_segments" => each_family(stray));
/// Checks that a reset, data and a SYN outside the window do not end the request.
fn stray(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let (mut client, _) = scene.parked(context)?;
    let far = client.snd_nxt.wrapping_sub(1_000_000);

    send_at(&mut client, Flags::RST, b"", far)?;
    no_answer(&mut client, "a reset outside the window")?;

    send_at(&mut client, Flags::PSH_ACK, b"stray", far)?;
    acknowledged(context, &mut client, "data outside the window")?;

    std::thread::sleep(Duration::from_millis(600));
    send_at(&mut client, Flags::SYN, b"", far)?;
    acknowledged(context, &mut client, "a SYN outside the window")?;

    still_parked(context, &scene, &mut client)
}

/// Checks that `end` ends a parked request and no other one, and that the client can connect again.
fn ends(
    context: &Context,
    family: Family,
    end: impl Fn(&Context, &RawScene, &mut RawClient) -> Result<()>,
) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let (mut client, _) = scene.parked(context)?;
    let (mut other, _) = scene.parked(context)?;
    end(context, &scene, &mut client)?;
    scene.requests(context, 1)?;
    scene.counts(context, counted!(parked: 1, aborted: 1))?;
    scene.accept_nothing(SILENCE, "one client is gone, and the other is silent")?;
    scene.serve(context, &mut other)?;
    let seen = scene.read_counts(context, counted!(released_data: 1, aborted: 1))?;
    expect_eq!(seen.half_open, 0, "half-open requests in the end");
    // The same client connects again.
    connect_again(context, &mut client)?;
    scene.serve(context, &mut client)
}

case!(Default, "odd.syn_in_the_window" => each_family(syn_in_window));
/// Checks that a SYN inside the window, from a later user of the client's address or from any other
/// origin, gets a challenge ACK (RFC 5961), and has the connection made.
fn syn_in_window(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let (mut client, _) = scene.parked(context)?;
    let (mut other, _) = scene.parked(context)?;
    let inside = client.snd_nxt.wrapping_add(100);
    send_at(&mut client, Flags::SYN, b"", inside)?;
    acknowledged(context, &mut client, "a SYN inside the window")?;
    scene.requests(context, 1)?;
    scene.counts(context, counted!(parked: 1, fallback: 1))?;
    scene.serve(context, &mut client)?;
    scene.serve(context, &mut other)?;
    let seen = scene.read_counts(context, counted!(released_data: 1, fallback: 1))?;
    expect_eq!(seen.half_open, 0, "half-open requests in the end");
    scene.judge_resets_sent(0)
}

case!(Default, "odd.killed_by_ss" => each_family(killed_by_ss));
/// Checks a request that the administrator ends with `ss -K`.
fn killed_by_ss(context: &Context, family: Family) -> Result<()> {
    ends(context, family, |_, scene, client| {
        let (server, port) = (scene.port(), client.local.port());
        let text = scene.ns.command(
            "ss",
            &[
                "-HKtn",
                "state",
                "syn-recv",
                "sport",
                &format!("= :{server}"),
                "dport",
                &format!("= :{port}"),
            ],
        )?;
        ensure!(
            text.contains(&format!(":{port}")),
            "`ss -K` ended nothing: {text:?}"
        );
        Ok(())
    })
}

case!(Default, "odd.icmp_error" => each_family(icmp_error));
/// Checks ICMP errors from a router: about the SYN-ACK, and about another segment.
fn icmp_error(context: &Context, family: Family) -> Result<()> {
    ends(context, family, |context, scene, client| {
        let mut syn_ack = Segment::new(client.server, client.local, Flags::SYN_ACK);
        // About a segment that was never sent: ignored.
        syn_ack.seq = client.rcv_nxt.wrapping_add(5000);
        scene.host.inject(&forge::unreachable(&syn_ack)?)?;
        scene.counts(context, counted!(parked: 2))?;
        syn_ack.seq = client.rcv_nxt.wrapping_sub(1);
        scene.host.inject(&forge::unreachable(&syn_ack)?)?;
        Ok(())
    })
}

case!(Default, "odd.counted_once" => each_family(counted_once));
/// Checks that a client that sends neither data nor the end is counted once.
fn counted_once(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let (mut client, _) = scene.parked(context)?;
    for round in 0..3 {
        std::thread::sleep(Duration::from_millis(600));
        client.syn()?;
        answer(context, &mut client, "the retransmitted SYN")?;
        client.ack()?;
        let mut wrong = client.segment(Flags::ACK, b"");
        wrong.ack = client.rcv_nxt.wrapping_add(1000);
        client.send(&wrong)?;
        answer(context, &mut client, "a wrong ACK number")?;
        let far = client.snd_nxt.wrapping_sub(1_000_000);
        send_at(&mut client, Flags::RST, b"", far)?;
        scene
            .counts(context, counted!(parked: 1))
            .with_context(|| format!("round {round}"))?;
    }
    scene.serve(context, &mut client)?;
    at_rest(&scene.read_counts(context, counted!(released_data: 1))?)
}

case!(Default, "odd.save_syn" => each_family(save_syn));
/// Checks that `TCP_SAVED_SYN` works for clients that sent data and for silent ones.
fn save_syn(context: &Context, family: Family) -> Result<()> {
    const TCP_SAVE_SYN: i32 = 27;
    const TCP_SAVED_SYN: i32 = 28;
    let listen = Listen::filtered(family).config(timeout(500));
    let scene = RawScene::new(context, family, &listen)?;
    set_tcp_option(&scene.listener, TCP_SAVE_SYN, 1).context("TCP_SAVE_SYN")?;
    for sends in [true, false] {
        let (mut client, _) = scene.parked(context)?;
        if sends {
            client.data(REQUEST)?;
        }
        let accepted = scene.accept(context)?;
        let mut bytes = [0; 512];
        let length = control::get_bytes(
            &accepted.stream,
            nix::libc::IPPROTO_TCP,
            TCP_SAVED_SYN,
            &mut bytes,
        )
        .context("TCP_SAVED_SYN")?;
        let syn = Segment::parse(bytes.get(..length).unwrap_or_default())
            .context("what was saved is no segment")?;
        expect_eq!(syn.flags, Flags::SYN, "flags of the saved SYN");
        expect_eq!(syn.seq, client.isn, "sequence number of the saved SYN");
        expect_eq!(
            syn.source.port(),
            client.local.port(),
            "the port that the saved SYN is from"
        );
        if !sends {
            client.data(REQUEST)?;
        }
        serve(&accepted)?;
    }
    Ok(())
}

case!(Default, "odd.low_water_mark" => each_family(low_water_mark));
/// Checks that the first byte releases a connection, and that the accepted socket wakes at its
/// low-water mark of ten.
fn low_water_mark(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let ten = 10_i32.to_ne_bytes();
    control::set_bytes(
        &scene.listener,
        nix::libc::SOL_SOCKET,
        nix::libc::SO_RCVLOWAT,
        &ten,
    )
    .context("SO_RCVLOWAT")?;
    let (mut client, _) = scene.parked(context)?;
    let (first, second) = REQUEST.split_at(3);
    client.data(first)?;
    let accepted = scene.accept(context)?;
    expect_eq!(
        wait::readable(&accepted.stream, Duration::from_millis(300))?,
        false,
        "whether three bytes wake a server that wants ten"
    );
    client.data(second)?;
    expect_eq!(
        wait::readable(&accepted.stream, context.patience())?,
        true,
        "whether more than ten do"
    );
    serve(&accepted)?;
    scene.counts(context, counted!(released_data: 1))
}

case!(Default, "odd.urgent_data" => each_family(urgent_data));
/// Checks that an urgent byte releases the connection, and is read out of band.
fn urgent_data(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let (mut client, _) = scene.parked(context)?;
    let mut urgent = client.segment(Flags::PSH_ACK, b"abc!");
    urgent.flags.urg = true;
    urgent.urgent = 4;
    client.send(&urgent)?;
    client.snd_nxt = urgent.end_seq();
    let mut accepted = scene.accept(context)?;
    let mut normal = [0; 3];
    accepted
        .stream
        .read_exact(&mut normal)
        .context("read what is in band")?;
    expect_eq!(&normal, b"abc", "what is in band");
    let mut byte = [std::mem::MaybeUninit::uninit(); 1];
    let length = socket2::SockRef::from(&accepted.stream)
        .recv_out_of_band(&mut byte)
        .context("read what is out of band")?;
    expect_eq!(length, 1, "bytes out of band");
    serve_raw(&mut client, &accepted)?;
    scene.counts(context, counted!(released_data: 1))
}

case!(Default, "odd.zero_window" => each_family(zero_window));
/// Checks that a client with a window of zero is accepted, and gets the response once its window
/// opens.
fn zero_window(context: &Context, family: Family) -> Result<()> {
    let listen = Listen::filtered(family).config(timeout(700));
    let scene = RawScene::new(context, family, &listen)?;
    for sends in [true, false] {
        let mut client = scene.client();
        client.window = 0;
        client.open(context.patience())?;
        if sends {
            client.data(REQUEST)?;
        }
        let accepted = scene.accept(context)?;
        if !sends {
            client.data(REQUEST)?;
        }
        serve(&accepted)?;
        let early = client.receive_until(Duration::from_millis(150), Segment::has_data)?;
        expect_eq!(
            early.map(|received| received.segment.to_string()),
            None,
            "data into a window of zero (sends at once: {sends})"
        );
        client.window = 2000;
        client.ack()?;
        let response = client
            .receive_until(context.patience(), |segment| segment.payload.len() > 1)?
            .with_context(|| format!("no response into an open window (sends at once: {sends})"))?;
        expect_eq!(response.segment.payload, RESPONSE, "the response");
    }
    scene.counts(context, counted!(released_data: 1, timeout_accept: 1))
}
