// SPDX-License-Identifier: MIT OR Apache-2.0

//! Clients that stay silent until their deadline.

use std::thread::{self, sleep};
use std::time::Duration;

use accf_kit::clock::Stamp;
use accf_kit::endpoint::{Accepted, Family, Listen};
use accf_kit::segment::{Flags, Segment};
use accf_kit::tcp_info::TcpInfo;
use accf_kit::wire::{Wire, INTERFACE};
use accf_kit::{sockets, wait};
use anyhow::{ensure, Context as _, Result};
use socket2::SockRef;

use super::hold::{path_ms, rto_is_the_paths, rtt_is_the_paths};
use crate::case::{case, each_family, expect_eq, expect_in, once, Context};
use crate::scene::{
    bare_acks, close, established, exchange_and_close, expect_filter, join_scoped, rest, serve,
    serve_raw, totals, Client, LoopbackScene, RawScene, Scene, WireScene, RESPONSE,
};

/// The deadline that the module is loaded with in the stage `TwoSeconds`.
const DEADLINE: Duration = Duration::from_secs(2);

/// Checks that a silent client is accepted at the deadline, without a segment on the wire, and that
/// the connection is like any other.
fn silent_on(context: &Context, scene: WireScene) -> Result<()> {
    let (client, ack) = scene.connect_and_ack(context)?;
    let accepted = scene.accept_from(context, &client)?;
    let after = context.on_time(ack.at, &accepted, DEADLINE)?;
    context.accepted_at_once(&accepted)?;
    context.note(format!(
        "connection {after:.1} ms after the bare ACK, accept() {:.1} ms",
        accepted.at.ms_after(ack.at)
    ));
    expect_filter(&accepted.stream, None, "the accepted socket's filter")?;
    established(&client, &accepted)?;
    // Time for any segment that was sent because of the deadline.
    sleep(Duration::from_millis(300));
    let spoken = Stamp::now();
    exchange_and_close(client, accepted)?;
    scene.requests(context, 0)?;
    scene.judge(|trace| {
        totals(trace, 1, 0)?;
        let silence = trace.between(ack.at, spoken);
        expect_eq!(silence.packets.len(), 0, "segments around the deadline");
        Ok(())
    })
}

case!(TwoSeconds, "deadline.silent" => each_family(silent));
fn silent(context: &Context, family: Family) -> Result<()> {
    silent_on(context, WireScene::filtered(context, family)?)
}

case!(
    TwoSeconds, "deadline.strict_reverse_path.v4" =>
    once(|context| with_sysctl(context, Family::V4, "net.ipv4.conf.all.rp_filter", "1"))
);
case!(
    TwoSeconds, "deadline.syn_ack_retries_0" =>
    each_family, with_sysctl("net.ipv4.tcp_synack_retries", "0")
);
case!(
    TwoSeconds, "deadline.syn_ack_retries_1" =>
    each_family, with_sysctl("net.ipv4.tcp_synack_retries", "1")
);
/// The same with a sysctl that must make no difference.
fn with_sysctl(context: &Context, family: Family, name: &str, value: &str) -> Result<()> {
    let wire = Wire::new()?;
    wire.server.set_sysctl(name, value)?;
    silent_on(
        context,
        WireScene::on(context, wire, family, &Listen::filtered(family))?,
    )
}

case!(TwoSeconds, "deadline.bound_to_a_device" => each_family(bound_to_device));
/// The same for a listener bound to an interface.
fn bound_to_device(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::filtered(context, family)?;
    SockRef::from(scene.listener.socket())
        .bind_device(Some(INTERFACE.as_bytes()))
        .context("SO_BINDTODEVICE")?;
    silent_on(context, scene)
}

case!(TwoSeconds, "deadline.link_local.v6" => once(link_local));
/// The same between link-local addresses.
fn link_local(context: &Context) -> Result<()> {
    let family = Family::V6;
    let wire = Wire::new()?;
    let (_, server) = wire.add_link_local()?;
    let scope = wire.client.interface_index(INTERFACE)?;
    let scene = WireScene::on(context, wire, family, &Listen::filtered(family))?;
    let server = std::net::SocketAddrV6::new(server, scene.port(), 0, scope);
    let stream = scene.wire.client.run(|| {
        let socket = accf_kit::endpoint::bound(family, 0, false)?;
        socket.connect_timeout(&server.into(), context.patience())?;
        Ok(std::net::TcpStream::from(socket))
    })?;
    stream.set_read_timeout(Some(context.patience()))?;
    let client = Client::new(stream)?;
    let ack = scene.bare_ack(context, &client)?;
    let accepted = scene.accept_on_time(context, &client, ack.at, DEADLINE)?;
    exchange_and_close(client, accepted)?;
    scene.judge_totals(1, 0)
}

case!(TwoSeconds, "deadline.loopback" => each_family(loopback));
/// The same over the loopback interface.
fn loopback(context: &Context, family: Family) -> Result<()> {
    let scene = LoopbackScene::filtered(context, family)?;
    let client = scene.connect()?;
    let ack = scene.bare_ack(context, &client)?;
    let accepted = scene.accept_on_time(context, &client, ack.at, DEADLINE)?;
    exchange_and_close(client, accepted)?;
    scene.judge_totals(1, 0)
}

/// Connects clients, accepts them meanwhile, and checks each against its own bare ACK.
fn all_on_time(
    context: &Context,
    scene: &WireScene,
    count: usize,
    connect: impl FnOnce() -> Result<Vec<Client>>,
) -> Result<(Vec<Client>, Vec<Accepted>)> {
    let (accepted, clients) = thread::scope(|scope| {
        let server = scope.spawn(|| {
            (0..count)
                .map(|nth| {
                    scene
                        .accept(context)
                        .with_context(|| format!("connection {} of {count}", nth + 1))
                })
                .collect::<Result<Vec<_>>>()
        });
        let clients = connect();
        let accepted = join_scoped(server);
        Ok::<_, anyhow::Error>((accepted?, clients?))
    })?;
    let acks = bare_acks(&scene.capture.so_far()?.to_port(scene.port()));
    let mut latest = 0.0_f64;
    for connection in &accepted {
        let ack = acks
            .get(&connection.peer.port())
            .context("a connection whose bare ACK was not seen")?;
        latest = latest.max(context.on_time(*ack, connection, DEADLINE)?);
    }
    context.note(format!(
        "{count} connections, the latest {:.1} ms after its deadline",
        latest - DEADLINE.as_secs_f64() * 1e3
    ));
    Ok((clients, accepted))
}

case!(TwoSeconds, "deadline.many_at_once" => each_family(many));
fn many(context: &Context, family: Family) -> Result<()> {
    const CLIENTS: usize = 200;
    let scene = WireScene::new(context, family, &Listen::filtered(family).backlog(1024))?;
    let (mut clients, accepted) =
        all_on_time(context, &scene, CLIENTS, || scene.connect_many(CLIENTS))?;
    for client in &mut clients {
        client.request()?;
    }
    for connection in &accepted {
        serve(connection)?;
    }
    drop(accepted);
    for client in &mut clients {
        expect_eq!(rest(&mut client.stream)?, RESPONSE, "the response");
    }
    scene.requests(context, 0)?;
    scene.judge_totals(CLIENTS, 0)
}

case!(TwoSeconds, "deadline.one_after_another" => each_family(one_after_another));
/// Checks that each of several consecutive deadlines is met.
fn one_after_another(context: &Context, family: Family) -> Result<()> {
    const CLIENTS: usize = 12;
    let scene = WireScene::filtered(context, family)?;
    all_on_time(context, &scene, CLIENTS, || {
        (0..CLIENTS)
            .map(|_| {
                sleep(Duration::from_millis(130));
                scene.connect()
            })
            .collect()
    })?;
    Ok(())
}

case!(TwoSeconds, "deadline.data_before" => each_family(data_before));
/// Checks that no second connection comes at the deadline after data has released the first.
fn data_before(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::filtered(context, family)?;
    let (mut client, ack) = scene.connect_and_ack(context)?;
    scene.accept_nothing(
        Duration::from_millis(1500).saturating_sub(Stamp::now().since(ack.at)),
        "the client has not sent anything",
    )?;
    client.request()?;
    let accepted = scene.accept(context)?;
    expect_in!(
        accepted.at.ms_after(ack.at),
        1490.0..1950.0,
        "milliseconds from the bare ACK to accept()"
    );
    serve(&accepted)?;
    client.response()?;
    scene.accept_nothing(
        Duration::from_secs(1),
        "its only client was accepted before",
    )?;
    exchange_and_close(client, accepted)
}

case!(TwoSeconds, "deadline.data_at_that_moment" => each_family(data_at_that_moment));
/// Checks that a client that sends data as its deadline expires is accepted once, with its data.
fn data_at_that_moment(context: &Context, family: Family) -> Result<()> {
    const CLIENTS: usize = 40;
    let scene = WireScene::filtered(context, family)?;
    let mut clients = scene.connect_many(CLIENTS)?;
    scene.requests(context, CLIENTS)?;
    let acks = bare_acks(&scene.capture.so_far()?.to_port(scene.port()));
    let mut rng = context.rng();
    let spread = i64::from(context.kernel.patience()) * 10_000;
    for client in &mut clients {
        let ack = acks
            .get(&client.local.port())
            .context("a client whose bare ACK was not seen")?;
        let aim = Duration::from_micros((2_000_000 + rng.i64(-spread..spread)).unsigned_abs());
        sleep(aim.saturating_sub(Stamp::now().since(*ack)));
        client.request()?;
    }
    let mut seen = Vec::new();
    for _ in 0..CLIENTS {
        let accepted = scene.accept(context)?;
        serve(&accepted)?;
        seen.push(accepted.peer.port());
    }
    for client in &mut clients {
        client.response()?;
    }
    scene.accept_nothing(Duration::from_secs(1), "each client was accepted before")?;
    seen.sort_unstable();
    seen.dedup();
    expect_eq!(seen.len(), CLIENTS, "different clients accepted");
    scene.requests(context, 0)?;
    scene.judge_totals(CLIENTS, 0)
}

case!(TwoSeconds, "deadline.rst_before" => each_family(rst_before));
/// Checks that a client that has reset is not accepted at its deadline.
fn rst_before(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let (mut client, _) = scene.parked(context)?;
    sleep(Duration::from_millis(500));
    client.rst()?;
    scene.requests(context, 0)?;
    scene.accept_nothing(Duration::from_millis(2500), "the only client has reset")?;
    scene.judge_syn_acks(1)
}

case!(TwoSeconds, "deadline.rtt" => each_family(rtt));
/// Checks that a socket accepted at the deadline knows the path's round-trip time.
fn rtt(context: &Context, family: Family) -> Result<()> {
    const PATH: Duration = Duration::from_millis(40);
    let scene = WireScene::on(
        context,
        Wire::with_rtt(PATH)?,
        family,
        &Listen::filtered(family),
    )?;
    let (client, ack) = scene.connect_and_ack(context)?;
    let accepted = scene.accept(context)?;
    let info = TcpInfo::of(&accepted.stream)?;
    let path = path_ms(&scene.capture.so_far()?, PATH)?;
    context.note(format!(
        "path {path:.1?} ms, RTT {:?}, RTO {:?}",
        info.rtt, info.rto
    ));
    rtt_is_the_paths(context, info.rtt, path)?;
    rto_is_the_paths(&info)?;
    context.on_time(ack.at, &accepted, DEADLINE)?;
    exchange_and_close(client, accepted)
}

case!(TwoSeconds, "deadline.after_a_retransmitted_syn" => each_family(after_syn));
/// Checks that a SYN sent again while parked is answered, and does not move the deadline.
fn after_syn(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let (mut client, ack) = scene.parked(context)?;
    sleep(Duration::from_millis(700));
    client.syn()?;
    client
        .receive_until(context.patience(), Segment::is_syn_ack)?
        .context("no answer to the retransmitted SYN")?;
    let accepted = scene.accept_on_time(context, &client, ack.at, DEADLINE)?;
    serve_raw(&mut client, &accepted)?;
    scene.judge_totals(2, 0)
}

case!(TwoSeconds, "deadline.after_odd_segments" => each_family(after_odd_segments));
/// Checks that duplicate ACKs and keepalive probes do not move the deadline.
fn after_odd_segments(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let (mut client, ack) = scene.parked(context)?;
    for _ in 0..3 {
        sleep(Duration::from_millis(500));
        client.ack()?;
        let mut probe = client.segment(Flags::ACK, b"");
        probe.seq = client.snd_nxt.wrapping_sub(1);
        client.send(&probe)?;
    }
    let accepted = scene.accept_on_time(context, &client, ack.at, DEADLINE)?;
    serve_raw(&mut client, &accepted)
}

case!(TwoSeconds, "deadline.of_a_late_bare_ack" => each_family(late_ack));
/// Checks that the time of a bare ACK that comes after a retransmitted SYN-ACK counts from that
/// ACK.
fn late_ack(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let mut client = scene.half_open(context)?;
    client
        .receive_until(context.patience(), Segment::is_syn_ack)?
        .context("the SYN-ACK was not sent again")?;
    client.ack()?;
    let ack = scene.bare_ack(context, &client)?;
    let accepted = scene.accept_on_time(context, &client, ack.at, DEADLINE)?;
    serve_raw(&mut client, &accepted)?;
    scene.judge_totals(2, 0)
}

case!(TwoSeconds, "deadline.near_before_slow" => each_family(near_before_slow));
/// Checks the order of two clients: one was parked and its SYN-ACK timer has not fired yet; the
/// SYN-ACK of the other, parked later, was retransmitted.
fn near_before_slow(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let mut slow = scene.half_open(context)?;
    slow.receive_until(context.patience(), Segment::is_syn_ack)?
        .context("the SYN-ACK was not sent again")?;
    let mut near = scene.client();
    near.open(context.patience())?;
    slow.ack()?;
    for (client, name) in [(&mut near, "near"), (&mut slow, "slow")] {
        let ack = scene.bare_ack(context, client)?;
        let accepted = scene.accept(context)?;
        expect_eq!(
            accepted.peer.port(),
            client.local.port(),
            "the port of the {name} client, whose turn it is"
        );
        context.on_time(ack.at, &accepted, DEADLINE)?;
        serve_raw(client, &accepted)?;
    }
    Ok(())
}

case!(
    Default, "deadline.default_is_a_minute" =>
    once(default_is_a_minute).long(Duration::from_secs(150))
);
/// Checks that by default a silent client is parked for a minute and then accepted.
fn default_is_a_minute(context: &Context) -> Result<()> {
    let family = Family::V4;
    let scene = WireScene::filtered(context, family)?;
    let (client, ack) = scene.connect_and_ack(context)?;
    scene.accept_nothing(Duration::from_secs(55), "its minute is not over")?;
    let accepted = scene
        .listener
        .accept(Duration::from_secs(10))?
        .context("no connection to accept")?;
    let after = context.on_time(ack.at, &accepted, Duration::from_secs(60))?;
    context.accepted_at_once(&accepted)?;
    context.note(format!(
        "connection {after:.1} ms after the bare ACK, accept() {:.1} ms",
        accepted.at.ms_after(ack.at)
    ));
    exchange_and_close(client, accepted)?;
    scene.judge_totals(1, 0)
}

case!(NoDeadline, "deadline.zero_holds_until_data" => each_family(never));
/// Checks that a deadline of zero means none.
fn never(context: &Context, family: Family) -> Result<()> {
    let wire = Wire::new()?;
    wire.server.set_sysctl("net.ipv4.tcp_synack_retries", "0")?;
    let scene = WireScene::on(context, wire, family, &Listen::filtered(family))?;
    let (mut client, ack) = scene.connect_and_ack(context)?;
    scene.accept_nothing(Duration::from_secs(8), "there is no deadline")?;
    ensure!(
        wait::until(Duration::ZERO, || Ok(sockets::requests(
            &scene.wire.server,
            scene.port()
        )? == 1))?,
        "the parked request is gone"
    );
    let spoken = Stamp::now();
    let accepted = scene.serve_parked(context, &mut client)?;
    close(client, accepted)?;
    scene.judge(|trace| {
        expect_eq!(trace.syn_acks(), 1, "SYN-ACKs");
        expect_eq!(
            trace.between(ack.at, spoken).packets.len(),
            0,
            "segments in the silence"
        );
        Ok(())
    })
}
