// SPDX-License-Identifier: MIT OR Apache-2.0

//! Hundreds of clients of every kind that are kernel sockets, on several threads: each is accounted
//! for, and every packet is looked at.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use accf_kit::capture::{Packet, Trace};
use accf_kit::clients::sockets::Sockets;
use accf_kit::clients::{Behaviour, Clients, Fate, Limit, Mix, Pace, Policy, Target, Timing};
use accf_kit::control::OnTimeout;
use accf_kit::endpoint::{Family, Listen, Listener};
use accf_kit::server::{Served, Server};
use accf_kit::wire::Wire;
use accf_kit::{module, sockets, wait};
use anyhow::{ensure, Result};

use crate::case::{case, expect_eq, expect_in, once, Context};
use crate::scene::join_scoped;

const MIX: &Mix = &[
    (Behaviour::DataAtOnce, 20),
    (Behaviour::DataLater, 20),
    (Behaviour::DataInPieces, 20),
    (Behaviour::FinLater, 20),
    (Behaviour::ResetLater, 20),
];

/// How many random bytes a client sends at most.
const MOST_BYTES: u16 = 4000;
/// How many threads are clients, and how many of its clients each has at once.
const CLIENT_THREADS: u64 = 4;
const AT_ONCE: usize = 8;
/// How many threads are the server; all of them accept from each listener.
const SERVER_THREADS: usize = 4;

case!(
    Alone, "crowd.five_hundred_of_every_kind" =>
    once(|context| run(context, None, 500)).long(Duration::from_secs(150))
);
case!(
    Alone, "crowd.three_hundred_and_short_deadlines" =>
    once(|context| run(context, Some(Duration::from_millis(400)), 300))
        .long(Duration::from_secs(150))
);
fn run(context: &Context, deadline: Option<Duration>, count: u64) -> Result<()> {
    context.note(format!("seed {}", context.seed));
    let parameters = deadline.map(|deadline| format!("timeout_ms={}", deadline.as_millis()));
    module::reload(&parameters.unwrap_or_default())?;
    let wire = Wire::new()?;
    let listen = |family| Listen::filtered(family).backlog(1024).open(&wire.server);
    let listeners: Vec<Listener> = Family::ALL.into_iter().map(listen).collect::<Result<_>>()?;
    let policy = Policy {
        on_timeout: OnTimeout::Accept,
        deadline,
        max_parked: 0,
    };
    let targets: Vec<Target> = Family::ALL
        .into_iter()
        .zip(&listeners)
        .map(|(family, listener)| policy.at(wire.server_address(family, listener.port())))
        .collect();
    let capture = wire.watch_server()?;
    let patience = context.patience();
    let timing = Timing {
        pause: Duration::from_millis(50)..Duration::from_millis(1500),
        margin: Duration::ZERO,
        limit: Limit::Each(patience * 4),
    };
    let mut rng = context.rng();
    let mut clients = Vec::new();
    for _ in 0..CLIENT_THREADS {
        let sockets = Sockets::new(MOST_BYTES, rng.fork())?;
        let (targets, timing, rng) = (targets.clone(), timing.clone(), rng.fork());
        clients.push(Clients::new(sockets, targets, MIX, timing, rng));
    }
    let mut servers = Vec::new();
    for _ in 0..SERVER_THREADS {
        let mut server = Server::new()?;
        for listener in &listeners {
            server.add(listener.try_clone()?)?;
        }
        servers.push(server);
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let over = &over;
        let servers: Vec<_> = servers
            .iter_mut()
            .map(|server| scope.spawn(|| server.run(over)))
            .collect();
        let wire = &wire;
        let clients: Vec<_> = clients
            .iter_mut()
            .map(|clients| {
                scope.spawn(|| -> Result<()> {
                    wire.client.enter()?;
                    let pace = Pace {
                        at_once: AT_ONCE,
                        gap: Duration::ZERO,
                    };
                    clients.run(pace, |begun| begun < count / CLIENT_THREADS)
                })
            })
            .collect();
        let mut result = Ok(());
        for thread in clients {
            result = result.and(join_scoped(thread));
        }
        // The last connections may still be on their way to accept().
        sleep(context.prompt());
        over.store(true, Ordering::Relaxed);
        for thread in servers {
            result = result.and(join_scoped(thread));
        }
        result
    })?;

    for (family, listener) in Family::ALL.into_iter().zip(&listeners) {
        let mut requests = 0;
        wait::until(patience, || {
            requests = sockets::requests(&wire.server, listener.port())?;
            Ok(requests == 0)
        })?;
        expect_eq!(requests, 0, "requests left ({family})");
    }
    let trace = capture.stop()?;
    for (index, family) in Family::ALL.into_iter().enumerate() {
        let mut served = Served::default();
        for server in &servers {
            served.add(&server.served(index));
        }
        account(&clients, index, &served, deadline.is_some())
            .map_err(|error| error.context(format!("clients ({family}); {served:?}")))?;
    }
    let mut kinds: BTreeMap<(Behaviour, Fate), u64> = BTreeMap::new();
    for clients in &clients {
        for ((_, behaviour, _, fate), count) in clients.tally().fates() {
            *kinds.entry((*behaviour, *fate)).or_default() += count;
        }
    }
    expect_eq!(
        kinds.values().sum::<u64>(),
        count,
        "clients that came to their end"
    );
    for ((behaviour, fate), count) in kinds {
        context.note(format!("{}: {count} {}", behaviour.text(), fate.text()));
    }
    let late = no_syn_ack_after_an_ack(&trace)?;
    context.note(format!(
        "{} SYN-ACKs, {late} of them sent again before the client's ACK came",
        trace.syn_acks()
    ));
    expect_eq!(trace.syn_acks() as u64, count + late as u64, "SYN-ACKs");

    drop(servers);
    drop(listeners);
    drop(wire);
    module::unload(patience)
}

/// Makes sure that no client was sent a SYN-ACK whose ACK had come, unless it sent its SYN again;
/// returns how many were sent again before.
fn no_syn_ack_after_an_ack(trace: &Trace) -> Result<usize> {
    #[derive(Default)]
    struct Handshake {
        syn_acks: usize,
        acked: bool,
    }
    // By client and server: the same client's port may be used with several servers.
    let mut handshakes: HashMap<(SocketAddr, SocketAddr), Handshake> = HashMap::new();
    let mut again = 0;
    for Packet { segment, .. } in &trace.packets {
        let from_client = (segment.source, segment.destination);
        let from_server = (segment.destination, segment.source);
        if segment.is_syn() {
            let handshake = handshakes.entry(from_client).or_default();
            // Otherwise it is the same SYN once more.
            if handshake.acked {
                *handshake = Handshake::default();
            }
        } else if segment.is_syn_ack() {
            let handshake = handshakes.entry(from_server).or_default();
            ensure!(
                !handshake.acked,
                "a SYN-ACK after the client's ACK:\n{}",
                trace.of_peer(segment.destination).describe()
            );
            again += usize::from(handshake.syn_acks > 0);
            handshake.syn_acks += 1;
        } else if let Some(handshake) = handshakes.get_mut(&from_client) {
            handshake.acked = true;
        }
    }
    Ok(again)
}

/// Compares what the clients of a listener did with what the server saw of them.
///
/// A client that was answered has read exactly the random bytes that it sent, from a connection of
/// its own.
fn account(
    clients: &[Clients<Sockets>],
    index: usize,
    served: &Served,
    with_deadlines: bool,
) -> Result<()> {
    let complaints: Vec<String> = clients.iter().flat_map(|it| it.complaints(0)).collect();
    ensure!(complaints.is_empty(), "{}", complaints.join("; "));
    let count = |behaviours: &[Behaviour]| -> u64 {
        let all = clients.iter();
        all.map(|it| it.tally().count(index, behaviours)).sum()
    };
    let senders = [
        Behaviour::DataAtOnce,
        Behaviour::DataLater,
        Behaviour::DataInPieces,
    ];
    expect_eq!(served.with_data, count(&senders), "connections with data");
    expect_eq!(
        served.at_end,
        count(&[Behaviour::FinLater]),
        "connections that ended without data"
    );
    // Accepted or not, depending on whether its deadline came first.
    let most = if with_deadlines {
        count(&[Behaviour::ResetLater])
    } else {
        0
    };
    expect_in!(served.broken, 0..=most, "connections that were reset");
    expect_eq!(
        served.accepted,
        served.with_data + served.at_end + served.broken,
        "connections that were accepted"
    );
    Ok(())
}
