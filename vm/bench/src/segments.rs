// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many segments a silent and a slow client cost, each way.
//!
//! Clients are the kernel's own, which answer a retransmitted SYN-ACK with another ACK.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use accf_bench::{Bench, Listener, Measurement, Unit};
use accf_kit::capture::Direction;
use accf_kit::clock::Stamp;
use accf_kit::control::{OnTimeout, Stats};
use accf_kit::counters::Counters;
use accf_kit::endpoint::{self, connect};
use accf_kit::wire::Wire;
use anyhow::{ensure, Context, Result};

use crate::rounds::{self, Figure, Figures, Plan, FAMILY, REQUEST, RESPONSE};

/// The listeners' deadline.
const DEADLINE: Duration = Duration::from_secs(5);
/// The time for which a silent client is watched: longer than any listener's deadline in practice.
const WATCHED: Duration = Duration::from_secs(15);
/// The pause of the slow client.
const PAUSE: Duration = Duration::from_secs(3);
/// The time after the last system call until all segments have been sent.
const SETTLES_WITHIN: Duration = Duration::from_secs(1);

/// What a client does once it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Nothing.
    Silent,
    /// It pauses, sends a request, and is answered.
    Slow,
}

impl Manner {
    /// Returns the name of the case.
    const fn key(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Slow => "slow",
        }
    }
}

/// The segments of one connection.
#[derive(Clone, Copy, Debug)]
struct Counted {
    syn_acks: usize,
    from_server: usize,
    from_client: usize,
}

/// Measures; a short run measures the same.
pub(crate) fn measure(plan: Plan) -> Result<Vec<Measurement>> {
    let wire = Wire::new()?;
    let mut figures = Figures::new(Bench::Segments);
    for round in 0..plan.rounds {
        for manner in [Manner::Silent, Manner::Slow] {
            for listener in rounds::in_turn(Listener::ALL, round) {
                let counted = count(&wire, listener, manner)
                    .with_context(|| format!("{}, {}", listener.key(), manner.key()))?;
                for (metric, count) in [
                    ("syn_acks", counted.syn_acks),
                    ("from_server", counted.from_server),
                    ("from_client", counted.from_client),
                ] {
                    let figure = Figure::new(metric, Unit::Segments, listener).case(manner.key());
                    figures.add(figure, f64::from(u32::try_from(count)?));
                }
            }
        }
    }
    Ok(figures.finish())
}

/// Counts the segments of one connection: of a silent client from its SYN until [`WATCHED`] after
/// it connected, of a slow one from its SYN to its end.
fn count(wire: &Wire, listener: Listener, manner: Manner) -> Result<Counted> {
    let listening = rounds::open(&wire.server, listener, DEADLINE, OnTimeout::Accept)?;
    let capture = wire.watch_server()?;
    let both = || anyhow::Ok((Counters::read(&wire.client)?, Counters::read(&wire.server)?));
    let before = both()?;
    let trace = match manner {
        Manner::Silent => {
            let _open = stay_silent(wire, &listening)?;
            capture.stop()?
        }
        Manner::Slow => {
            be_slow(wire, &listening)?;
            capture.stop()?
        }
    };
    let trace = trace.of_port(listening.port());
    let after = both()?;
    rounds::no_syncookies(&before.1, &after.1)?;
    let count = |direction| trace.filter(|it| it.direction == direction).packets.len();
    let counted = Counted {
        syn_acks: trace.syn_acks(),
        from_server: count(Direction::Out),
        from_client: count(Direction::In),
    };
    let retransmitted = [
        after.0.growth(&before.0, "TcpRetransSegs")?,
        after.1.growth(&before.1, "TcpRetransSegs")?,
    ];
    // A lost segment would be counted twice.
    ensure!(
        retransmitted == [0, i64::try_from(counted.syn_acks)? - 1],
        "client and server have retransmitted {retransmitted:?} segments, not only SYN-ACKs:\n{}",
        trace.describe()
    );
    if listener == Listener::Dataready {
        let ended: fn(&Stats) -> u64 = match manner {
            Manner::Silent => |stats| stats.timeout_accept,
            Manner::Slow => |stats| stats.released_data,
        };
        rounds::all_parked(&listening, 1, ended)?;
    }
    Ok(counted)
}

/// Connects, is accepted, and stays silent; returns both ends, still open.
fn stay_silent(wire: &Wire, listening: &endpoint::Listener) -> Result<(TcpStream, TcpStream)> {
    let server = wire.server_address(FAMILY, listening.port());
    let client = connect(&wire.client, server)?;
    let connected = Stamp::now();
    let accepted = listening.accept(WATCHED)?.context("never accepted")?;
    thread::sleep(WATCHED.saturating_sub(Stamp::now().since(connected)));
    Ok((client, accepted.stream))
}

/// Connects, pauses, sends a request, and reads the response to its end.
fn be_slow(wire: &Wire, listening: &endpoint::Listener) -> Result<()> {
    let server = wire.server_address(FAMILY, listening.port());
    let mut client = connect(&wire.client, server)?;
    thread::sleep(PAUSE);
    client.write_all(REQUEST)?;
    let mut server = rounds::accept_request(listening, WATCHED)?;
    server.write_all(RESPONSE)?;
    drop(server);
    let mut response = Vec::new();
    client.read_to_end(&mut response).context("the response")?;
    ensure!(response == RESPONSE, "the client read {response:?}");
    drop(client);
    thread::sleep(SETTLES_WITHIN);
    Ok(())
}
