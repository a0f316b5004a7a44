// SPDX-License-Identifier: MIT OR Apache-2.0

//! Socket options of a listener for its connections: they say the same, whichever way a connection
//! was accepted.

use accf_kit::control::get_bytes;
use accf_kit::endpoint::{bound, set_tcp_option, tcp_option, Accepted, Family, Listener};
use accf_kit::rx_stamps::{self, Ask};
use accf_kit::segment::Segment;
use accf_kit::{ulp, wait};
use anyhow::{ensure, Context as _, Result};
use nix::libc;

use crate::case::{case, each_family, expect_eq, Context};
use crate::count::counted;
use crate::scene::{accept_from_port, errno, serve, Scene, WireScene, REQUEST};
use crate::ways::{Comparison, Moment, View, Way, LONG};

const TCP_SAVE_SYN: i32 = 27;
const TCP_SAVED_SYN: i32 = 28;

fn saved_syn(accepted: &Accepted) -> Result<Vec<u8>> {
    let mut bytes = vec![0; 512];
    let length = get_bytes(
        &accepted.stream,
        libc::IPPROTO_TCP,
        TCP_SAVED_SYN,
        &mut bytes,
    )
    .context("TCP_SAVED_SYN")?;
    bytes.truncate(length);
    Ok(bytes)
}

/// Returns the SYN that was saved, but for the listener's port, and what depends on it.
fn saved_syn_alike(view: &View<'_>) -> Result<Vec<String>> {
    if view.moment != Moment::Requested {
        return Ok(Vec::new());
    }
    let mut bytes = saved_syn(view.accepted)?;
    let ip = if view.scene.family.is_v4_on_the_wire() {
        20
    } else {
        40
    };
    let port = view.scene.port().to_be_bytes();
    ensure!(
        bytes.get(ip + 2..ip + 4) == Some(&port[..]),
        "a saved SYN to another port: {bytes:x?}"
    );
    for (at, length) in [(ip + 2, 2), (ip + 16, 2)] {
        if let Some(varying) = bytes.get_mut(at..at + length) {
            varying.fill(0);
        }
    }
    // The kernel tells it once.
    let again = saved_syn(view.accepted)?.len();
    Ok(vec![format!("{bytes:x?}, then {again} bytes")])
}

case!(Default, "field.options.saved_syn" => each_family(|c, f| save_syn(c, f, 1)).long(LONG));
case!(Default, "field.options.saved_frame" => each_family(|c, f| save_syn(c, f, 2)).long(LONG));
/// Checks `TCP_SAVE_SYN`.
fn save_syn(context: &Context, family: Family, what: i32) -> Result<()> {
    Comparison {
        prepare: &|scene| {
            set_tcp_option(&scene.listener, TCP_SAVE_SYN, what).context("TCP_SAVE_SYN")
        },
        look: &saved_syn_alike,
        ..Comparison::DEFAULT
    }
    .run(context, family)
}

case!(Default, "field.options.saved_ethernet_frame" => each_family(ethernet_frame).long(LONG));
/// Checks that the SYN's Ethernet header is saved where the listener asks for it.
fn ethernet_frame(context: &Context, family: Family) -> Result<()> {
    const ETHERNET: usize = 14;
    let mut plain = None;
    for way in [Way::Plain, Way::Data, Way::Deadline] {
        let scene = WireScene::new(context, family, &way.listen(family))?;
        set_tcp_option(&scene.listener, TCP_SAVE_SYN, 2).context("TCP_SAVE_SYN")?;
        let (mut client, _) = scene.connect_and_ack(context)?;
        if way == Way::Data {
            scene.counts(context, counted!(parked: 1))?;
            client.request()?;
        }
        let bytes = saved_syn(&scene.accept_from(context, &client)?)?;
        let (header, packet) = bytes.split_at_checked(ETHERNET).context("a short frame")?;
        let syn = Segment::parse(packet).context("what was saved is no segment")?;
        expect_eq!(syn.source, client.local, "source of the saved SYN");
        let seen = (header.to_vec(), bytes.len());
        match &plain {
            None => plain = Some(seen),
            Some(plain) => expect_eq!(seen, *plain, "Ethernet header, bytes in all ({way:?})"),
        }
    }
    Ok(())
}

case!(Default, "field.options.timestamps" => each_family(timestamps).long(LONG));
/// Checks that the first data of a connection has the time at which it was received.
fn timestamps(context: &Context, family: Family) -> Result<()> {
    for ask in Ask::ALL {
        Comparison {
            prepare: &|scene| {
                rx_stamps::ask(&scene.listener, ask)?;
                Ok(())
            },
            look: &|view| {
                if view.moment != Moment::Requested {
                    return Ok(Vec::new());
                }
                let sent = view
                    .scene
                    .capture
                    .wait_for(context.patience(), |packet| {
                        packet.segment.source == view.client.local && packet.segment.has_data()
                    })?
                    .context("the request is not on the wire")?;
                let (bytes, at) = rx_stamps::of_data(&view.accepted.stream)?;
                expect_eq!(bytes, REQUEST.len(), "bytes to read");
                let at = at.context("the data has no timestamp")?;
                // The capture has the same packet's.
                let apart = at.since(sent.at).max(sent.at.since(at));
                ensure!(
                    apart.as_micros() <= 1,
                    "the data was received {apart:?} apart from when the capture saw it"
                );
                Ok(vec!["the packet's".to_owned()])
            },
            ..Comparison::DEFAULT
        }
        .run(context, family)
        .with_context(|| format!("{ask:?}"))?;
    }
    Ok(())
}

case!(Default, "field.options.repair" => each_family(repair).long(LONG));
/// Checks what `TCP_REPAIR` does to a listener, and to a socket that listens in that mode: what it
/// does to a plain one; and that the listener works.
fn repair(context: &Context, family: Family) -> Result<()> {
    const OFF: i32 = 0;
    const ON: i32 = 1;
    const OFF_WITHOUT_PROBE: i32 = -1;
    let mut plain = None;
    for way in [Way::Plain, Way::Data, Way::Deadline] {
        let scene = WireScene::new(context, family, &way.listen(family))?;
        let mut seen = Vec::new();
        // A listener, with a client that is parked.
        let (mut client, _) = scene.connect_and_ack(context)?;
        for mode in [ON, OFF, OFF_WITHOUT_PROBE] {
            let result = set_tcp_option(&scene.listener, libc::TCP_REPAIR, mode);
            seen.push(format!("mode {mode} of a listener: {:?}", errno(result)?));
        }
        let result = tcp_option(&scene.listener, libc::TCP_REPAIR);
        seen.push(format!(
            "mode of a listener: {:?}",
            result.map_err(|e| e.kind())
        ));
        if way == Way::Data {
            client.request()?;
        }
        let accepted = scene.accept_from(context, &client)?;
        if way != Way::Data {
            client.request()?;
        }
        serve(&accepted)?;
        client.response()?;
        // A socket that is in the mode before it listens.
        let socket = scene.wire.server.run(|| bound(family, 0, false))?;
        set_tcp_option(&socket, libc::TCP_REPAIR, ON).context("TCP_REPAIR")?;
        if way != Way::Plain {
            ulp::attach(&socket, ulp::DATAREADY).context("attach in repair mode")?;
        }
        seen.push(format!("listen: {:?}", errno(socket.listen(8))?));
        for mode in [ON, OFF] {
            let result = set_tcp_option(&socket, libc::TCP_REPAIR, mode);
            seen.push(format!("then mode {mode}: {:?}", errno(result)?));
        }
        let listener = Listener::from_socket(socket)?;
        let mut other = scene.connect_to(&listener)?;
        other.request()?;
        ensure!(
            wait::readable(&listener, context.patience())?,
            "no connection of a listener that was in repair mode"
        );
        let accepted = accept_from_port(&listener, context, other.local.port())?;
        let mode = tcp_option(&accepted.stream, libc::TCP_REPAIR);
        seen.push(format!(
            "mode of its connection: {:?}",
            mode.map_err(|e| e.kind())
        ));
        let result = set_tcp_option(&accepted.stream, libc::TCP_REPAIR, OFF);
        seen.push(format!("mode 0 of its connection: {:?}", errno(result)?));
        serve(&accepted)?;
        other.response()?;
        match &plain {
            None => plain = Some(seen),
            Some(plain) => expect_eq!(seen, *plain, "what TCP_REPAIR does ({way:?})"),
        }
    }
    Ok(())
}
