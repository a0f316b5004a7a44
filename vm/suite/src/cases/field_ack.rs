// SPDX-License-Identifier: MIT OR Apache-2.0

//! The bare ACK of a parked request: a connection is the same as at a plain listener, whichever way
//! it was accepted.

use std::io::Write as _;
use std::time::Duration;

use accf_kit::clock::Stamp;
use accf_kit::control::timeout;
use accf_kit::endpoint::{Accepted, Family, Listen};
use accf_kit::forge::Forged;
use accf_kit::packet_options::{self, Ask};
use accf_kit::raw::RawClient;
use accf_kit::segment::{Flags, Segment};
use accf_kit::tcp_info;
use accf_kit::wait;
use accf_kit::wire::Wire;
use anyhow::{ensure, Context as _, Result};
use socket2::SockRef;

use crate::case::{case, each_family, expect_eq, expect_in, families, Context};
use crate::count::counted;
use crate::scene::{Client, RawScene, Scene, WireScene, REQUEST};
use crate::ways::{
    alike, begins_with_one_of, facts, handshake, inject, without_syn_acks, Headers, Way,
    FLOW_LABELS, LONG, WINDOW_SCALE,
};

/// The ACK of a client of the kernel's, but for its hop limit.
const ACK: Headers = Headers {
    ace: 2,
    dsfield: 0,
    hop_limit: 33,
    flow_label: 0xa_bcde,
    window: 500,
};

/// What clients say in their SYNs.
const MSS: u16 = 1024;

type Facts = Vec<String>;

/// Clients that send certain bare ACKs, and how the listener is set up for them.
struct Play<'a> {
    acks: &'a [Headers],
    /// AE, CWR and ECE of the SYNs.
    syn_ace: u8,
    timestamps: bool,
    /// Called with the listener's scene before the first SYN.
    prepare: &'a dyn Fn(&RawScene) -> Result<()>,
    /// Called with each connection before it is looked at.
    accepted: &'a dyn Fn(&Accepted) -> Result<()>,
}

impl Play<'_> {
    /// Returns what is known of the connections that were accepted this way, in the order of the
    /// ACKs; after data if `then_data`.
    fn of(
        &self,
        context: &Context,
        family: Family,
        way: Way,
        then_data: bool,
    ) -> Result<Vec<Facts>> {
        let scene = RawScene::new(context, family, &way.listen(family))?;
        // What one connection was like must not tell of the next.
        scene.ns.set_sysctl("net.ipv4.tcp_no_metrics_save", "1")?;
        (self.prepare)(&scene)?;
        let mut clients = Vec::new();
        for ack in self.acks {
            clients.push(connect(
                context,
                &scene,
                self.syn_ace,
                self.timestamps,
                ack,
            )?);
        }
        if way == Way::Data {
            scene.counts(context, counted!(parked: self.acks.len() as u64))?;
            for client in &mut clients {
                say(&scene, client)?;
            }
        }
        let mut accepted = Vec::new();
        for _ in &clients {
            accepted.push(scene.accept(context)?);
        }
        let mut found = Vec::new();
        for client in &mut clients {
            let at = accepted
                .iter()
                .position(|accepted| accepted.peer.port() == client.local.port())
                .context("a client was not accepted")?;
            let connection = accepted.swap_remove(at);
            if then_data {
                if way != Way::Data {
                    say(&scene, client)?;
                }
                ensure!(
                    wait::readable(&connection.stream, context.patience())?,
                    "nothing to read"
                );
                let end = client.snd_nxt;
                client
                    .receive_until(context.patience(), |segment| segment.ack == end)?
                    .context("the data was not acknowledged")?;
            }
            (self.accepted)(&connection)?;
            found.push(without_syn_acks(facts(&connection, family)?));
        }
        Ok(found)
    }

    /// Checks that connections are alike, whichever way they were accepted.
    fn compare(&self, context: &Context, family: Family) -> Result<()> {
        for (then_data, ways) in [
            (false, &[Way::Deadline][..]),
            (true, &[Way::Data, Way::Deadline]),
        ] {
            let plain = self.of(context, family, Way::Plain, then_data)?;
            for &way in ways {
                let others = self.of(context, family, way, then_data)?;
                for ((ack, plain), other) in self.acks.iter().zip(&plain).zip(&others) {
                    let what = format!("{way:?}, then data: {then_data}, {ack:?}");
                    alike(plain, other, &what)?;
                }
            }
        }
        Ok(())
    }
}

/// Connects a client, whose SYN has AE, CWR and ECE of its own, with this bare ACK.
fn connect(
    context: &Context,
    scene: &RawScene,
    syn_ace: u8,
    timestamps: bool,
    ack: &Headers,
) -> Result<RawClient> {
    let mut client = scene.client();
    if timestamps {
        client = client.with_timestamps();
    }
    let syn = Headers {
        ace: syn_ace,
        dsfield: 0x40,
        hop_limit: 200,
        flow_label: 0x1_2345,
        window: u16::MAX,
    };
    handshake(context, scene, &mut client, MSS, syn, *ack)?;
    Ok(client)
}

/// Sends the request, as a client does that has agreed on Accurate ECN.
fn say(scene: &RawScene, client: &mut RawClient) -> Result<()> {
    let headers = Headers {
        ace: 5,
        dsfield: 2,
        hop_limit: 99,
        flow_label: 0x5_4321,
        window: client.window,
    };
    let request = headers.on(client.segment(Flags::PSH_ACK, REQUEST));
    client.snd_nxt = request.segment.end_seq();
    inject(scene, &request)
}

fn unprepared(_: &RawScene) -> Result<()> {
    Ok(())
}

fn as_it_is(_: &Accepted) -> Result<()> {
    Ok(())
}

case!(Default, "field.ack.window" => each_family(window));
/// Checks that a server can send as much as its client has room for, and no more.
fn window(context: &Context, family: Family) -> Result<()> {
    // Fewer segments than the first congestion window has.
    const ROOM: u32 = 8 * MSS as u32;
    const WINDOW: u16 = (ROOM >> WINDOW_SCALE) as u16;
    for way in [Way::Plain, Way::Deadline] {
        let scene = RawScene::new(context, family, &way.listen(family))?;
        let ack = Headers {
            window: WINDOW,
            ..ACK
        };
        let mut client = connect(context, &scene, 0, false, &ack)?;
        let accepted = scene.accept_from(context, &client)?;
        let window = tcp_info::all(&accepted.stream)?
            .into_iter()
            .find_map(|(name, value)| (name == "snd_wnd").then_some(value));
        expect_eq!(window, Some(ROOM.into()), "snd_wnd of TCP_INFO ({way:?})");
        let start = client.rcv_nxt;
        (&accepted.stream).write_all(&[b'!'; 2 * ROOM as usize])?;
        let mut came = 0;
        while let Some(received) = client.receive(Duration::from_millis(150))? {
            came = came.max(received.segment.end_seq().wrapping_sub(start));
        }
        expect_eq!(came, ROOM, "bytes for a client with this room ({way:?})");
    }
    Ok(())
}

case!(Default, "field.ack.packet_options" => each_family(packet_options_of_listener).long(LONG));
/// Checks what `IP_PKTOPTIONS` and `IPV6_2292PKTOPTIONS` say of a client, where the listener asks.
fn packet_options_of_listener(context: &Context, family: Family) -> Result<()> {
    for ask in [Ask::All, Ask::FlowInfo] {
        Play {
            acks: &[
                ACK,
                Headers {
                    dsfield: 0xb8,
                    hop_limit: 1,
                    flow_label: 1,
                    ..ACK
                },
                Headers {
                    dsfield: 0x29,
                    hop_limit: 255,
                    flow_label: 0xf_ffff,
                    ..ACK
                },
            ],
            syn_ace: 0,
            timestamps: false,
            prepare: &|scene| {
                packet_options::ask(&scene.listener, family, ask)?;
                Ok(())
            },
            accepted: &as_it_is,
        }
        .compare(context, family)
        .with_context(|| format!("{ask:?}"))?;
    }
    Ok(())
}

case!(Default, "field.ack.packet_options_of_the_child" => each_family(packet_options_of_child));
/// The same where the accepted socket asks.
fn packet_options_of_child(context: &Context, family: Family) -> Result<()> {
    Play {
        acks: &[ACK],
        syn_ace: 0,
        timestamps: true,
        prepare: &unprepared,
        accepted: &|accepted| Ok(packet_options::ask(&accepted.stream, family, Ask::All)?),
    }
    .compare(context, family)
}

case!(
    Default, "field.ack.reflected_flow_label" =>
    families(&[Family::V6], reflected_flow_label)
);
/// Checks that a server that reflects its clients' flow labels does so.
fn reflected_flow_label(context: &Context, family: Family) -> Result<()> {
    Play {
        acks: &[ACK],
        syn_ace: 0,
        timestamps: false,
        prepare: &|scene| {
            scene.ns.set_sysctl("net.ipv6.flowlabel_consistency", "0")?;
            packet_options::reflect_flow_label(&scene.listener)?;
            Ok(())
        },
        accepted: &as_it_is,
    }
    .compare(context, family)
}

case!(Default, "field.ack.accurate_ecn" => each_family(|c, f| accurate_ecn(c, f, 7)).long(LONG));
case!(Default, "field.ack.classic_ecn" => each_family(|c, f| accurate_ecn(c, f, 3)).long(LONG));
case!(Default, "field.ack.without_ecn" => each_family(|c, f| accurate_ecn(c, f, 0)).long(LONG));
/// Checks connections whose bare ACKs have all values of AE, CWR and ECE, and of IP's bits of ECN.
fn accurate_ecn(context: &Context, family: Family, syn_ace: u8) -> Result<()> {
    let acks: Vec<Headers> = (0..8)
        .flat_map(|ace| {
            (0..4).map(move |dsfield| Headers {
                ace,
                dsfield,
                ..ACK
            })
        })
        .collect();
    Play {
        acks: &acks,
        syn_ace,
        timestamps: true,
        prepare: &|scene| scene.ns.set_sysctl("net.ipv4.tcp_ecn", "3"),
        accepted: &as_it_is,
    }
    .compare(context, family)
}

case!(Default, "field.ack.ecn_of_a_kernel_client" => each_family(kernel_client).long(LONG));
/// Checks that a server marks what it sends to a Linux client as capable of ECN.
fn kernel_client(context: &Context, family: Family) -> Result<()> {
    const SEGMENTS: usize = 5;
    for mode in ["3", "4", "5"] {
        for way in [Way::Plain, Way::Data, Way::Deadline] {
            let wire = Wire::new()?;
            wire.server.set_sysctl("net.ipv4.tcp_ecn", mode)?;
            wire.client.set_sysctl("net.ipv4.tcp_ecn", "3")?;
            let scene = WireScene::on(context, wire, family, &way.listen(family))?;
            let (mut client, _) = scene.connect_and_ack(context)?;
            if way == Way::Data {
                client.request()?;
            }
            let accepted = scene.accept_from(context, &client)?;
            let mut stream = &accepted.stream;
            stream.set_nodelay(true)?;
            for _ in 0..SEGMENTS {
                stream.write_all(b"!")?;
            }
            let received = received(context, &client, SEGMENTS)?;
            let what = format!("tcp_ecn={mode}, {way:?}");
            expect_eq!(
                received,
                SEGMENTS as u64,
                "bytes in segments that are capable of ECN ({what})"
            );
            let modes: Vec<_> = tcp_info::all(&accepted.stream)?
                .into_iter()
                .filter(|(name, _)| name.starts_with("ecn_mode"))
                .map(|(_, value)| value & 0xf3)
                .collect();
            expect_eq!(modes, [2], "Accurate ECN, and its failures ({what})");
        }
    }
    Ok(())
}

/// Waits until a client has received `count` bytes, and returns how many of them came with ECT(0).
fn received(context: &Context, client: &Client, count: usize) -> Result<u64> {
    let field = |wanted: &str| -> Result<u64> {
        tcp_info::all(&client.stream)?
            .into_iter()
            .find_map(|(name, value)| (name == wanted).then_some(value))
            .with_context(|| format!("no {wanted}"))
    };
    wait::until(context.patience(), || {
        Ok(field("bytes_received")? == count as u64)
    })?;
    expect_eq!(
        field("bytes_received")?,
        count as u64,
        "bytes that the client has received"
    );
    field("received_e0_bytes")
}

case!(Default, "field.ack.kernel_client" => each_family(like_plain).long(LONG));
/// Checks connections of Linux clients with a TTL and a TOS of their own, for each way of ECN.
fn like_plain(context: &Context, family: Family) -> Result<()> {
    for ecn in ["0", "1", "3"] {
        for (then_data, ways) in [
            (false, &[Way::Plain, Way::Deadline][..]),
            (true, &[Way::Plain, Way::Data, Way::Deadline]),
        ] {
            let mut plain = None;
            for &way in ways {
                let wire = Wire::new()?;
                wire.server.set_sysctl("net.ipv4.tcp_ecn", ecn)?;
                wire.client.set_sysctl("net.ipv4.tcp_ecn", ecn)?;
                let scene = WireScene::on(context, wire, family, &way.listen(family))?;
                packet_options::ask(&scene.listener, family, Ask::FlowInfo)?;
                let mut client = with_ttl_and_tos(&scene, context)?;
                scene.bare_ack(context, &client)?;
                if way == Way::Data {
                    scene.counts(context, counted!(parked: 1))?;
                    client.request()?;
                }
                let accepted = scene.accept_from(context, &client)?;
                if then_data {
                    if way != Way::Data {
                        client.request()?;
                    }
                    ensure!(
                        wait::readable(&accepted.stream, context.patience())?,
                        "nothing to read"
                    );
                    // Until the request is acknowledged.
                    let acknowledged = wait::until(context.patience(), || {
                        Ok(tcp_info::all(&client.stream)?.contains(&("unacked", 0)))
                    })?;
                    ensure!(acknowledged, "the request is not acknowledged");
                }
                let mut facts = facts(&accepted, family)?;
                // The client's flow label is a random number.
                let labels = [FLOW_LABELS, "control message 41.11"];
                facts.retain(|fact| !begins_with_one_of(fact, &labels));
                match &plain {
                    None => plain = Some(facts),
                    Some(plain) => {
                        let what = format!("{way:?}, then data: {then_data}, tcp_ecn={ecn}");
                        alike(plain, &facts, &what)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Connects a client whose packets have a TTL of 33, and a TOS.
fn with_ttl_and_tos(scene: &WireScene, context: &Context) -> Result<Client> {
    let server = scene.wire.server_address(scene.family, scene.port());
    let stream = scene.wire.client.run(|| {
        let domain = socket2::Domain::for_address(server);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        let socket_ref = SockRef::from(&socket);
        if server.is_ipv4() {
            socket_ref.set_ttl_v4(33)?;
            socket_ref.set_tos_v4(0x28)?;
        } else {
            socket_ref.set_unicast_hops_v6(33)?;
            socket_ref.set_tclass_v6(0x28)?;
        }
        socket.set_tcp_nodelay(true)?;
        socket.connect_timeout(&server.into(), context.patience())?;
        Ok(std::net::TcpStream::from(socket))
    })?;
    stream.set_read_timeout(Some(context.patience()))?;
    Client::new(stream)
}

/// A client that answers the SYN-ACK once it has come several times.
#[derive(Clone, Copy, Debug)]
struct Late {
    syn_acks: usize,
    /// Whether its ACK echoes the timestamp of the first of them, or of the last.
    echoes_first: bool,
    /// Whether its ACK says that the SYN-ACK came twice.
    dsack: bool,
}

case!(Default, "field.ack.repeated_syn_ack" => each_family(repeated_syn_ack).long(LONG));
/// Checks connections of clients whose first ACKs were lost.
fn repeated_syn_ack(context: &Context, family: Family) -> Result<()> {
    let late = |dsack| {
        [(2, true), (2, false), (3, true), (3, false)].map(|(syn_acks, echoes_first)| Late {
            syn_acks,
            echoes_first,
            dsack,
        })
    };
    let [without, with] = [late(false), late(true)];
    // What data says of the SYN-ACK is what TCP knows, and that is nothing.
    for (clients, then_data, way) in [
        (&without, true, Way::Data),
        (&without, true, Way::Deadline),
        (&with, false, Way::Deadline),
    ] {
        let plain = accept_late(context, family, Way::Plain, clients, then_data)?;
        let others = accept_late(context, family, way, clients, then_data)?;
        for ((client, plain), other) in clients.iter().zip(&plain).zip(&others) {
            alike(plain, other, &format!("{way:?}, {client:?}"))?;
        }
    }
    Ok(())
}

/// Accepts clients this way, checks how long they were in recovery, and returns what else is known
/// of their connections.
fn accept_late(
    context: &Context,
    family: Family,
    way: Way,
    clients: &[Late],
    then_data: bool,
) -> Result<Vec<Facts>> {
    // More than anything else takes.
    const PAUSE: Duration = Duration::from_millis(1500);
    let listen = match way {
        Way::Deadline => Listen::filtered(family).config(timeout(1500)),
        _ => way.listen(family),
    };
    let scene = RawScene::new(context, family, &listen)?;
    scene.ns.set_sysctl("net.ipv4.tcp_no_metrics_save", "1")?;
    let mut opened = Vec::new();
    for _ in clients {
        let mut client = scene.client().with_timestamps();
        client.syn()?;
        opened.push((client, Stamp::now()));
    }
    let (mut waits, mut requests) = (Vec::new(), Vec::new());
    for ((client, since), late) in opened.iter_mut().zip(clients) {
        let mut stamps = Vec::new();
        while stamps.len() < late.syn_acks {
            let received = client
                .receive_until(context.patience(), Segment::is_syn_ack)?
                .context("the SYN-ACK did not come again")?;
            stamps.extend(received.segment.timestamps);
        }
        let echo = if late.echoes_first {
            stamps.first()
        } else {
            stamps.last()
        };
        let echo = echo.context("the SYN-ACK has no timestamps")?.value;
        let mut ack = late_segment(client, Flags::ACK, b"", echo);
        if late.dsack {
            let options = ack.options.get_or_insert_default();
            options.extend([1, 1, 5, 10]);
            options.extend(client.rcv_nxt.wrapping_sub(1).to_be_bytes());
            options.extend(client.rcv_nxt.to_be_bytes());
        }
        inject(&scene, &ack)?;
        waits.push(Stamp::now().since(*since));
        // What comes after a repeated SYN-ACK echoes the one that was taken.
        requests.push(late_segment(client, Flags::PSH_ACK, REQUEST, echo));
    }
    if way == Way::Data {
        scene.counts(context, counted!(parked: clients.len() as u64))?;
        std::thread::sleep(PAUSE);
        for request in &requests {
            inject(&scene, request)?;
        }
    }
    let mut found = Vec::new();
    for (((client, _), wait), request) in opened.iter_mut().zip(waits).zip(&requests) {
        let connection = scene.accept_from(context, client)?;
        let recovery = tcp_info::all(&connection.stream)?
            .into_iter()
            .find_map(|(name, value)| (name == "total_rto_time").then_some(value));
        let wait_ms = wait.as_millis() as u64;
        expect_in!(
            recovery.context("no total_rto_time")?,
            wait_ms.saturating_sub(1000)..wait_ms + 500,
            "milliseconds in recovery of a client that answered after {wait_ms} ms ({way:?})"
        );
        if then_data {
            if way != Way::Data {
                inject(&scene, request)?;
            }
            let end = request.segment.end_seq();
            client
                .receive_until(context.patience(), |segment| segment.ack == end)?
                .context("the data was not acknowledged")?;
        }
        found.push(facts(&connection, family)?);
    }
    Ok(found)
}

/// Returns a segment of a client that echoes this timestamp.
fn late_segment(client: &RawClient, flags: Flags, payload: &[u8], echo: u32) -> Forged {
    let segment = client.segment(flags, payload);
    let value = segment.timestamps.map_or(0, |timestamps| timestamps.value);
    let mut options = vec![1, 1, 8, 10];
    options.extend(value.to_be_bytes());
    options.extend(echo.to_be_bytes());
    let mut forged = Forged::from(segment);
    forged.options = Some(options);
    forged
}
