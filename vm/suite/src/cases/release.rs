// SPDX-License-Identifier: MIT OR Apache-2.0

//! What releases or ends a parked connection: data, the end of the stream, a reset.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use accf_kit::clock::Stamp;
use accf_kit::endpoint::{let_data_carry_the_ack, reset_on_close, Family};
use accf_kit::segment::Flags;
use accf_kit::tcp_info::{State, TcpInfo};
use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::case::{case, each_family, expect_eq, Context};
use crate::scene::{
    close, connect_again, exchange_and_close, reads_end, receives_nothing, rest, serve, totals,
    Client, Peer, RawScene, Scene, WireScene, REQUEST, RESPONSE,
};

case!(Default, "release.piggyback" => each_family(piggyback));
/// Checks that data on the third segment is accepted at once.
fn piggyback(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let mut client = scene.half_open(context)?;
    scene.serve(context, &mut client)?;
    client.ack()?;
    client.fin()?;
    scene.judge(|trace| {
        totals(trace, 1, 0)?;
        let third = trace
            .packets
            .iter()
            .filter(|packet| packet.segment.source == client.local)
            .nth(1)
            .context("the client sent no second segment")?;
        expect_eq!(
            third.segment.payload,
            REQUEST,
            "the handshake's third segment"
        );
        Ok(())
    })
}

case!(Default, "release.piggyback_of_a_kernel_client" => each_family(kernel_piggyback));
/// The same from a Linux client that delays its ACK.
fn kernel_piggyback(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::filtered(context, family)?;
    let server = scene.wire.server_address(family, scene.port());
    let stream = scene.wire.client.run(|| {
        let socket = Socket::new(
            Domain::for_address(server),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        let_data_carry_the_ack(&socket)?;
        socket.set_tcp_nodelay(true)?;
        socket.connect_timeout(&server.into(), context.patience())?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(REQUEST)?;
        stream.set_read_timeout(Some(context.patience()))?;
        Ok(stream)
    })?;
    let mut client = Client::new(stream)?;
    let accepted = scene.accept(context)?;
    serve(&accepted)?;
    client.response()?;
    close(client, accepted)?;
    scene.judge(|trace| {
        expect_eq!(trace.syn_acks(), 1, "SYN-ACKs");
        let to_server = trace.to_port(server.port());
        let third = to_server.packets.get(1).context("no third segment")?;
        expect_eq!(
            third.segment.payload,
            REQUEST,
            "the handshake's third segment"
        );
        Ok(())
    })
}

case!(Default, "release.fin" => each_family(fin));
/// Checks that a client that ends the stream without data is accepted, and still gets a response.
fn fin(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::filtered(context, family)?;
    let (mut client, _) = scene.connect_and_pause(context, Duration::from_millis(700))?;
    let sent = Stamp::now();
    client.stream.shutdown(Shutdown::Write)?;
    let mut accepted = scene.accept(context)?;
    context.at_once(sent, accepted.at, "from the FIN to accept()")?;
    reads_end(&mut accepted.stream, "bytes before the end of the stream")?;
    expect_eq!(
        TcpInfo::of(&accepted.stream)?.state,
        State::CloseWait,
        "the accepted socket's state"
    );
    accepted.stream.write_all(RESPONSE)?;
    client.response()?;
    drop(accepted);
    reads_end(&mut client.stream, "bytes after the response")?;
    scene.requests(context, 0)?;
    scene.judge_totals(1, 0)
}

case!(Default, "release.fin_at_once" => each_family(fin_at_once));
/// Checks clients that close as soon as they are connected.
fn fin_at_once(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::filtered(context, family)?;
    for _ in 0..10 {
        drop(scene.connect()?);
        let mut accepted = scene.accept(context)?;
        reads_end(&mut accepted.stream, "bytes before the end of the stream")?;
    }
    scene.requests(context, 0)?;
    scene.judge_totals(10, 0)
}

case!(Default, "release.data_with_fin" => each_family(data_with_fin));
/// Checks a request and the end of the stream in one segment, from a parked client and on the third
/// segment.
fn data_with_fin(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let (parked, _) = scene.parked(context)?;
    let direct = scene.half_open(context)?;
    for mut client in [parked, direct] {
        let flags = Flags {
            psh: true,
            ..Flags::FIN_ACK
        };
        client.push(flags, REQUEST)?;
        let mut accepted = scene.accept_from(context, &client)?;
        expect_eq!(
            rest(&mut accepted.stream)?,
            REQUEST,
            "what the server reads"
        );
        accepted.stream.write_all(RESPONSE)?;
        client.read_response(context)?;
    }
    scene.judge_syn_acks(2)
}

case!(Default, "release.rst" => each_family(rst));
/// Checks that a parked client that resets is not accepted, and that the next one is not affected.
fn rst(context: &Context, family: Family) -> Result<()> {
    let scene = WireScene::filtered(context, family)?;
    let (client, _) = scene.connect_and_ack(context)?;
    scene.requests(context, 1)?;
    reset_on_close(&client.stream)?;
    drop(client);
    scene.requests(context, 0)?;
    let (mut next, _) = scene.connect_and_ack(context)?;
    scene.accept_nothing(
        Duration::from_secs(1),
        "one client has reset, and the other has not sent anything",
    )?;
    next.request()?;
    let accepted = scene.accept_from(context, &next)?;
    let mut probe = [0; 1];
    expect_eq!(accepted.stream.peek(&mut probe)?, 1, "bytes to read");
    serve(&accepted)?;
    next.response()?;
    exchange_and_close(next, accepted)?;
    scene.judge_totals(2, 1)
}

case!(Default, "release.rst_of_a_raw_client" => each_family(raw_rst));
/// The same with the exact segment, which is not answered; a second connection from the same port
/// is a new one.
fn raw_rst(context: &Context, family: Family) -> Result<()> {
    let scene = RawScene::filtered(context, family)?;
    let (mut client, _) = scene.parked(context)?;
    scene.requests(context, 1)?;
    client.rst()?;
    scene.requests(context, 0)?;
    receives_nothing(
        &mut client,
        Duration::from_millis(300),
        "an answer to the reset",
    )?;
    connect_again(context, &mut client)?;
    scene.accept_nothing(
        Duration::from_millis(500),
        "the client has not sent anything",
    )?;
    scene.serve(context, &mut client)?;
    scene.judge_syn_acks(2)
}
