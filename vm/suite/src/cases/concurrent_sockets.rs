// SPDX-License-Identifier: MIT OR Apache-2.0

//! Many clients of every kind at once: each is accounted for.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::thread::{self, sleep};
use std::time::Duration;

use accf_kit::capture::{Packet, Trace};
use accf_kit::endpoint::{connect_here, reset_on_close, Accepted, Family, Listen, Listener};
use accf_kit::wire::Wire;
use accf_kit::{module, sockets, wait};
use anyhow::{anyhow, ensure, Context as _, Result};

use crate::case::{expect_eq, Case, Context, Stage};
use crate::scene::rest;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            Stage::Alone,
            "crowd.five_hundred_of_every_kind",
            |context| crowd(context, "", 500),
        )
        .long(Duration::from_secs(150)),
        Case::new(
            Stage::Alone,
            "crowd.three_hundred_and_short_deadlines",
            |context| crowd(context, "timeout_ms=400", 300),
        )
        .long(Duration::from_secs(150)),
    ]
}

/// What a client does once it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// It speaks at once.
    Eager,
    /// It thinks, and speaks.
    Thinker,
    /// It thinks, and speaks in small pieces.
    Stutterer,
    /// It says nothing, and ends the stream.
    Leaver,
    /// It says nothing, and resets.
    Breaker,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Eager,
        Self::Thinker,
        Self::Stutterer,
        Self::Leaver,
        Self::Breaker,
    ];
}

/// What a server saw of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// It read this many bytes up to the end of the stream, and sent them back.
    Echoed(usize),
    /// The stream broke.
    Broken,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

struct Plan {
    kind: Kind,
    family: Family,
    think: Duration,
    message: Vec<u8>,
}

fn plans(context: &Context, count: usize) -> Vec<Plan> {
    let mut rng = context.rng();
    (0..count)
        .map(|nth| {
            let length = rng.usize(1..4000);
            Plan {
                kind: Kind::ALL[rng.usize(..Kind::ALL.len())],
                family: Family::ALL[nth % Family::ALL.len()],
                think: Duration::from_millis(rng.u64(50..1500)),
                message: std::iter::repeat_with(|| rng.u8(..)).take(length).collect(),
            }
        })
        .collect()
}

/// Plays a client; returns its port.
fn play(plan: &Plan, server: SocketAddr, patience: Duration) -> Result<u16> {
    let mut stream = connect_here(server)?;
    stream.set_read_timeout(Some(patience * 4))?;
    let port = stream.local_addr()?.port();
    if plan.kind != Kind::Eager {
        sleep(plan.think);
    }
    match plan.kind {
        Kind::Eager | Kind::Thinker => stream.write_all(&plan.message)?,
        Kind::Stutterer => {
            for piece in plan.message.chunks(plan.message.len().div_ceil(4)) {
                stream.write_all(piece)?;
                sleep(Duration::from_millis(3));
            }
        }
        Kind::Leaver => {}
        Kind::Breaker => {
            reset_on_close(&stream)?;
            return Ok(port);
        }
    }
    stream.shutdown(Shutdown::Write)?;
    let expected: &[u8] = match plan.kind {
        Kind::Leaver => b"",
        _ => &plan.message,
    };
    let echo = rest(&mut stream)?;
    ensure!(
        echo == expected,
        "a {} of {} bytes reads {} bytes, or others",
        plan.kind,
        expected.len(),
        echo.len()
    );
    Ok(port)
}

/// Serves one connection to its end.
fn echo(mut accepted: Accepted, patience: Duration) -> Seen {
    let mut serve = || -> std::io::Result<usize> {
        accepted.stream.set_read_timeout(Some(patience * 4))?;
        let mut bytes = Vec::new();
        accepted.stream.read_to_end(&mut bytes)?;
        accepted.stream.write_all(&bytes)?;
        Ok(bytes.len())
    };
    serve().map_or(Seen::Broken, Seen::Echoed)
}

fn crowd(context: &Context, parameters: &str, count: usize) -> Result<()> {
    const CLIENT_THREADS: usize = 32;
    const SERVER_THREADS: usize = 4;
    context.note(format!("seed {}", context.seed));
    module::reload(parameters)?;
    let wire = Wire::new()?;
    let listeners: HashMap<Family, Listener> = Family::ALL
        .into_iter()
        .map(|family| {
            let listener = Listen::filtered(family).backlog(1024).open(&wire.server)?;
            Ok((family, listener))
        })
        .collect::<Result<_>>()?;
    let capture = wire.watch_server()?;
    let plans = plans(context, count);
    let queue = Mutex::new(plans.iter().enumerate());
    let over = AtomicBool::new(false);
    let patience = context.patience();

    // The server's view by family and port of the client, the client's by its number.
    type ServerView = Vec<((Family, u16), Seen)>;
    let (served, played): (ServerView, Vec<(usize, u16)>) = thread::scope(|scope| {
        let servers: Vec<_> = listeners
            .iter()
            .flat_map(|entry| std::iter::repeat_n(entry, SERVER_THREADS))
            .map(|(family, listener)| {
                let over = &over;
                scope.spawn(move || -> Result<ServerView> {
                    let mut seen = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        if let Some(accepted) = listener.accept(Duration::from_millis(100))? {
                            let peer = (*family, accepted.peer.port());
                            // Some are slow to speak: each has a thread.
                            seen.push((peer, scope.spawn(move || echo(accepted, patience))));
                        }
                    }
                    seen.into_iter()
                        .map(|(peer, echo)| {
                            Ok((peer, echo.join().map_err(|_| anyhow!("a server panicked"))?))
                        })
                        .collect()
                })
            })
            .collect();
        let clients: Vec<_> = (0..CLIENT_THREADS)
            .map(|_| {
                let (queue, wire, listeners) = (&queue, &wire, &listeners);
                scope.spawn(move || -> Result<Vec<(usize, u16)>> {
                    wire.client.enter()?;
                    let mut played = Vec::new();
                    loop {
                        let next = queue
                            .lock()
                            .map_err(|_| anyhow!("a client panicked"))?
                            .next();
                        let Some((nth, plan)) = next else {
                            return Ok(played);
                        };
                        let port = listeners.get(&plan.family).context("no listener")?.port();
                        let server = wire.server_address(plan.family, port);
                        let port = play(plan, server, patience).with_context(|| {
                            format!("client {nth}, a {} ({})", plan.kind, plan.family)
                        })?;
                        played.push((nth, port));
                    }
                })
            })
            .collect();
        let mut played: Result<Vec<_>> = Ok(Vec::new());
        for client in clients {
            let result = client
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a client panicked")));
            played = played.and_then(|mut all| {
                all.extend(result?);
                Ok(all)
            });
        }
        // The last connections may still be on their way to accept().
        sleep(context.prompt());
        over.store(true, Ordering::Relaxed);
        let mut served = Vec::new();
        for server in servers {
            served.extend(server.join().map_err(|_| anyhow!("a server panicked"))??);
        }
        Ok::<_, anyhow::Error>((served, played?))
    })?;

    let left = |family: &Family| -> Result<usize> {
        let port = listeners.get(family).context("no listener")?.port();
        sockets::requests(&wire.server, port)
    };
    for family in Family::ALL {
        let mut requests = 0;
        wait::until(patience, || {
            requests = left(&family)?;
            Ok(requests == 0)
        })?;
        expect_eq!(requests, 0, "requests left ({family})");
    }
    let trace = capture.stop()?;
    let with_deadlines = !parameters.is_empty();
    account(context, &plans, &served, &played, with_deadlines)?;
    let late = no_syn_ack_after_an_ack(&trace)?;
    context.note(format!(
        "{} SYN-ACKs, {late} of them sent again before the client's ACK came",
        trace.syn_acks()
    ));
    expect_eq!(trace.syn_acks(), count + late, "SYN-ACKs");

    drop(listeners);
    drop(wire);
    module::unload(patience)
}

/// Makes sure that nobody was sent a SYN-ACK whose ACK had come, unless it asked again; returns how many were sent again
/// before.
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

/// Compares what each client did with what the servers saw of it.
fn account(
    context: &Context,
    plans: &[Plan],
    served: &[((Family, u16), Seen)],
    played: &[(usize, u16)],
    with_deadlines: bool,
) -> Result<()> {
    // More than one, where a client that has reset has left its port to another.
    let mut by_peer: HashMap<(Family, u16), Vec<Seen>> = HashMap::new();
    for (peer, seen) in served {
        by_peer.entry(*peer).or_default().push(*seen);
    }
    expect_eq!(played.len(), plans.len(), "clients that came to their end");
    let mut kinds: BTreeMap<(Kind, &str), usize> = BTreeMap::new();
    for (nth, port) in played {
        let plan = plans.get(*nth).context("an unknown client")?;
        let expected = match plan.kind {
            Kind::Leaver => Some(Seen::Echoed(0)),
            // Accepted or not, depending on whether its deadline came first.
            Kind::Breaker if with_deadlines => Some(Seen::Broken),
            Kind::Breaker => None,
            _ => Some(Seen::Echoed(plan.message.len())),
        };
        let all = by_peer.entry((plan.family, *port)).or_default();
        let seen = expected.and_then(|expected| {
            let index = all.iter().position(|seen| *seen == expected)?;
            Some(all.swap_remove(index))
        });
        ensure!(
            seen.is_some() || plan.kind == Kind::Breaker,
            "what the server saw of client {nth}, a {} ({}) that thinks {} ms: expected {expected:?}, saw {all:?}",
            plan.kind,
            plan.family,
            plan.think.as_millis()
        );
        let what = match seen {
            Some(Seen::Echoed(_)) => "served",
            Some(Seen::Broken) => "broken",
            None => "never accepted",
        };
        *kinds.entry((plan.kind, what)).or_default() += 1;
    }
    by_peer.retain(|_, seen| !seen.is_empty());
    ensure!(by_peer.is_empty(), "connections of nobody: {by_peer:?}");
    for ((kind, what), count) in kinds {
        context.note(format!("{count} {kind}s {what}"));
    }
    Ok(())
}
