// SPDX-License-Identifier: MIT OR Apache-2.0
//! How exact a deadline is: the time from the bare ACK of a silent client until the server can
//! accept it, or until the client is reset.
//!
//! The clients are the kernel's own, because `TCP_DEFER_ACCEPT` accepts a client only if it answers
//! the retransmitted SYN-ACK. The time of the bare ACK is taken at the server's interface.
//!
//! A timer that fires at clock ticks is late by an amount that depends on when between two ticks it
//! was started. So several clients connect in each round, and the offsets from a tick are spread
//! evenly over the clients of all rounds. A round's sample is its worst client.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use accf_bench::{Bench, Listener, Measurement, Unit};
use accf_kit::capture::Trace;
use accf_kit::clock::Stamp;
use accf_kit::control::{OnTimeout, Stats};
use accf_kit::counters::Counters;
use accf_kit::endpoint::{self, connect_here};
use accf_kit::segment::Segment;
use accf_kit::wait;
use accf_kit::wire::Wire;
use anyhow::{bail, ensure, Context, Result};

use crate::kernel;
use crate::rounds::{self, Figure, Figures, Plan, FAMILY};

/// The number of clients in each round; each connects in a clock tick of its own.
const CLIENTS: u32 = 4;

/// The deadline of the clients that are not measured.
const WARM_UP_MS: u32 = 50;

/// How a listener treats silent clients.
#[derive(Clone, Copy, Debug)]
struct Setup {
    listener: Listener,
    case: &'static str,
    on_timeout: OnTimeout,
}

/// The setups with a deadline; a plain listener has none.
const SETUPS: [Setup; 3] = [
    Setup {
        listener: Listener::DeferAccept,
        case: "",
        on_timeout: OnTimeout::Accept,
    },
    Setup {
        listener: Listener::Dataready,
        case: "",
        on_timeout: OnTimeout::Accept,
    },
    Setup {
        listener: Listener::Dataready,
        case: "reset",
        on_timeout: OnTimeout::Reset,
    },
];

/// When clients connect.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// The time from which clock ticks are counted.
    origin: Instant,
    /// The length of a clock tick.
    tick: Duration,
    rounds: u32,
}

impl Pace {
    /// Sleeps until it is a client's turn: one client in each tick, each at a larger offset than
    /// the last one.
    fn wait_for_turn(&self, round: u32, nth: u32) -> Result<()> {
        let ticks = self.origin.elapsed().as_nanos() / self.tick.as_nanos();
        let next = self.origin + self.tick * u32::try_from(ticks + 1)?;
        let turn = next + self.offset(round, nth);
        thread::sleep(turn.saturating_duration_since(Instant::now()));
        Ok(())
    }

    /// Returns a client's offset from a tick: different for all clients of all rounds.
    fn offset(&self, round: u32, nth: u32) -> Duration {
        self.tick * (nth * self.rounds + round) / (self.rounds * CLIENTS)
    }
}

/// Measures.
pub(crate) fn measure(plan: Plan) -> Result<Vec<Measurement>> {
    let deadlines: &[u32] = if plan.short {
        &[50, 500, 5_000]
    } else {
        &[
            50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000,
        ]
    };
    let pace = Pace {
        origin: Instant::now(),
        tick: Duration::from_secs(1) / kernel::hz()?,
        rounds: plan.rounds,
    };
    let wire = Wire::new()?;
    for setup in SETUPS {
        // Whatever is done only once is done here.
        worst(&wire, setup, WARM_UP_MS, 0, &pace).context("warm-up")?;
    }
    let mut figures = Figures::new(Bench::Deadline);
    for round in 0..plan.rounds {
        for ms in deadlines.iter().copied() {
            for setup in rounds::in_turn(SETUPS, round) {
                let figure = Figure::new("late", Unit::Milliseconds, setup.listener)
                    .case(setup.case)
                    .at(ms.into());
                if setup.listener == Listener::DeferAccept {
                    if ms < 1_000 {
                        figures.explain(figure, "it takes whole seconds");
                        continue;
                    }
                    figures.explain(figure, "the kernel rounds it up to 1, 3, 7, 15, 31, 63 … s");
                }
                let late = worst(&wire, setup, ms, round, &pace)
                    .with_context(|| format!("{}, {ms} ms {}", setup.listener.key(), setup.case))?;
                figures.add(figure, late);
            }
        }
    }
    Ok(figures.finish())
}

/// Returns how many milliseconds after the deadline the worst of a round's clients was accepted or
/// reset.
fn worst(wire: &Wire, setup: Setup, asked_ms: u32, round: u32, pace: &Pace) -> Result<f64> {
    let asked = Duration::from_millis(asked_ms.into());
    let listening = rounds::open(&wire.server, setup.listener, asked, setup.on_timeout)?;
    let server = wire.server_address(FAMILY, listening.port());
    let capture = wire.watch_server()?;
    let before = Counters::read(&wire.server)?;
    let clients: Vec<TcpStream> = wire.client.run(|| {
        let connect = |nth| {
            pace.wait_for_turn(round, nth)?;
            connect_here(server)
        };
        (0..CLIENTS).map(connect).collect()
    })?;
    // `TCP_DEFER_ACCEPT` rounds its deadline up.
    let limit = asked * 4 + Duration::from_secs(10);
    let ends = if setup.on_timeout == OnTimeout::Reset {
        resets(&clients, limit)?
    } else {
        accepts(&listening, limit)?
    };
    rounds::no_syncookies(&before, &Counters::read(&wire.server)?)?;
    if setup.listener == Listener::Dataready {
        let timed_out: fn(&Stats) -> u64 = match setup.on_timeout {
            OnTimeout::Reset => |stats| stats.timeout_reset,
            _ => |stats| stats.timeout_accept,
        };
        rounds::all_parked(&listening, CLIENTS, timed_out)?;
    }
    let trace = capture.stop()?.of_port(listening.port());
    let late = clients.iter().map(|client| {
        Ok(time_until_end(client.local_addr()?, &ends, &trace)? - f64::from(asked_ms))
    });
    let late: Vec<f64> = late.collect::<Result<_>>()?;
    let worst = late.into_iter().max_by(|a, b| a.abs().total_cmp(&b.abs()));
    worst.context("no clients")
}

/// When each client was accepted or reset.
type Ends = Vec<(SocketAddr, Stamp)>;

/// Waits until the clients, none of which is accepted yet, are accepted.
fn accepts(listening: &endpoint::Listener, limit: Duration) -> Result<Ends> {
    let early = wait::readable(listening, Duration::ZERO)?;
    ensure!(!early, "accepted before all had connected");
    let mut accepted = Vec::new();
    for _ in 0..CLIENTS {
        ensure!(wait::readable(listening, limit)?, "not accepted");
        let at = Stamp::now();
        // Closed when all are accepted: closing would delay the next.
        accepted.push((listening.accept_now()?.context("nothing to accept")?, at));
    }
    Ok(accepted.iter().map(|(it, at)| (it.peer, *at)).collect())
}

/// Waits until the clients, none of which is reset yet, are reset in the order of their connecting.
fn resets(clients: &[TcpStream], limit: Duration) -> Result<Ends> {
    for client in clients {
        let early = wait::readable(client, Duration::ZERO)?;
        ensure!(!early, "reset before all had connected");
    }
    let mut reset = Vec::new();
    for mut client in clients {
        ensure!(wait::readable(client, limit)?, "not reset");
        let at = Stamp::now();
        match client.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => bail!("not reset: {other:?}"),
        }
        reset.push((client.local_addr()?, at));
    }
    Ok(reset)
}

/// Returns how many milliseconds after its bare ACK a client was accepted or reset.
fn time_until_end(client: SocketAddr, ends: &Ends, trace: &Trace) -> Result<f64> {
    let at = ends.iter().find(|(peer, _)| *peer == client);
    let (_, at) = at.with_context(|| format!("{client} was neither accepted nor reset"))?;
    let trace = trace.of_peer(client);
    let ack = trace.first(Segment::is_bare_ack);
    let ack = ack.with_context(|| format!("no bare ACK of {client}"))?;
    Ok(at.ms_after(ack.at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_spread_over_a_tick() {
        let pace = Pace {
            origin: Instant::now(),
            tick: Duration::from_millis(4),
            rounds: 2,
        };
        let places = (0..2).flat_map(|round| (0..CLIENTS).map(move |nth| (round, nth)));
        let mut offsets: Vec<u128> = places
            .map(|(round, nth)| pace.offset(round, nth).as_micros())
            .collect();
        offsets.sort_unstable();
        assert_eq!(offsets, [0, 500, 1000, 1500, 2000, 2500, 3000, 3500]);
    }
}
