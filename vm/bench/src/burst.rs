// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a burst costs: clients connect ahead of need and stay silent, then all send their requests
//! before the server gets the processor.
//!
//! The server of a plain listener has accepted them by then. That of a filtered listener has not,
//! and its accept queue has room for a fraction of them only. A client that is not answered sends
//! its request again after the time that TCP would wait: [`FIRST_RTO`], then twice as long.
//!
//! `TCP_DEFER_ACCEPT` cannot hold more silent clients than its backlog.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use accf_bench::{Bench, Listener, Measurement, Unit};
use accf_kit::control::{self, OnTimeout};
use accf_kit::count;
use accf_kit::counters::Counters;
use accf_kit::endpoint;
use accf_kit::endpoint::Listen;
use accf_kit::segment::Flags;
use accf_kit::tun_clients::{TunClient, TunClients};
use anyhow::{ensure, Context, Result};

use crate::idle_clients::{namespace, BACKLOG, BATCH, SETTLES_WITHIN};
use crate::rounds::{in_turn, no_syncookies, Figure, Figures, Plan, FAMILY, REQUEST, RESPONSE};

/// The clients, and those in a short run.
const CLIENTS: u32 = 800;
const CLIENTS_IF_SHORT: u32 = 400;
/// A backlog with room for all of them.
const ROOM: u32 = 1_000;
/// The pause after each batch that connects.
const BATCH_PAUSE: Duration = Duration::from_millis(50);
/// How long all are silent.
const SILENT: Duration = Duration::from_millis(500);
/// After which time a client sends its request again for the first time (`TCP_RTO_MIN`).
const FIRST_RTO: Duration = Duration::from_millis(200);
/// How often it does before the benchmark gives up.
const RETRANSMISSIONS: u32 = 6;
/// The limit for a segment that the server sends at once.
const ANSWERS_WITHIN: Duration = Duration::from_millis(10);

/// How long the server works for each response, where it does.
const WORK: Duration = Duration::from_millis(2);

/// How a burst is played.
#[derive(Clone, Copy, Debug)]
struct Setup {
    listener: Listener,
    case: &'static str,
    backlog: u32,
    work: Duration,
}

const PROMPT: Setup = Setup {
    listener: Listener::Dataready,
    case: "backlog_128",
    backlog: BACKLOG,
    work: Duration::ZERO,
};
const WORKING: Setup = Setup {
    case: "working",
    work: WORK,
    ..PROMPT
};
const SETUPS: [Setup; 5] = [
    Setup {
        listener: Listener::Plain,
        ..PROMPT
    },
    PROMPT,
    Setup {
        case: "room",
        backlog: ROOM,
        ..PROMPT
    },
    Setup {
        listener: Listener::Plain,
        ..WORKING
    },
    WORKING,
];

/// What a burst took.
struct Burst {
    /// The instructions of the kernel and the server, from the first SYN to the last response.
    instructions: u64,
    /// Those of them from the first request on.
    instructions_request: u64,
    /// The requests that were sent again.
    sent_again: u32,
    /// The time from the first request to the last response.
    last_answer: Duration,
}

/// Measures.
pub(crate) fn measure(plan: Plan) -> Result<Vec<Measurement>> {
    let clients = if plan.short {
        CLIENTS_IF_SHORT
    } else {
        CLIENTS
    };
    let mut figures = Figures::new(Bench::Burst);
    // Whatever is done only once is done here.
    burst(PROMPT, clients).context("warm-up")?;
    for round in 0..plan.rounds {
        for setup in in_turn(SETUPS, round) {
            let Setup { listener, case, .. } = setup;
            let seen =
                burst(setup, clients).with_context(|| format!("{}, {case}", listener.key()))?;
            let each = |instructions: u64| instructions as f64 / f64::from(clients);
            let samples = [
                ("sent_again", Unit::Segments, f64::from(seen.sent_again)),
                (
                    "last_answer",
                    Unit::Milliseconds,
                    seen.last_answer.as_secs_f64() * 1e3,
                ),
                ("instructions", Unit::Instructions, each(seen.instructions)),
                (
                    "instructions_request",
                    Unit::Instructions,
                    each(seen.instructions_request),
                ),
            ];
            for (metric, unit, sample) in samples {
                figures.add(Figure::new(metric, unit, listener).case(case), sample);
            }
        }
    }
    Ok(figures.finish())
}

/// A server that is given the processor only when its functions are called.
struct Server {
    work: Duration,
    listener: endpoint::Listener,
    accepted: Vec<TcpStream>,
    spent: u64,
}

impl Server {
    /// Accepts all that can be accepted.
    fn accept(&mut self) -> Result<()> {
        let (done, spent) = count::during(|| {
            while let Some(accepted) = self.listener.accept_now()? {
                self.accepted.push(accepted.stream);
            }
            anyhow::Ok(())
        });
        self.spent += spent;
        done
    }

    /// Answers the requests of all that it has accepted, and closes them.
    fn answer(&mut self) -> Result<()> {
        for mut stream in self.accepted.drain(..) {
            // What it works does not count.
            sleep(self.work);
            let (done, spent) = count::during(|| {
                let mut request = [0; REQUEST.len()];
                stream.read_exact(&mut request).context("the request")?;
                ensure!(request == REQUEST, "the server read something else");
                stream.write_all(RESPONSE)?;
                drop(stream);
                Ok(())
            });
            self.spent += spent;
            done?;
        }
        Ok(())
    }
}

/// A client, and the sequence number of its request.
struct Client {
    client: TunClient,
    request_at: u32,
    is_answered: bool,
}

/// Plays one burst.
fn burst(setup: Setup, count: u32) -> Result<Burst> {
    let Setup {
        listener,
        backlog,
        work,
        ..
    } = setup;
    // What was measured before is to be gone.
    sleep(SETTLES_WITHIN);
    let ns = namespace()?;
    let listen = match listener {
        Listener::Dataready => {
            Listen::filtered(FAMILY).config(control::settings(0, 2 * CLIENTS, OnTimeout::Accept))
        }
        _ => Listen::plain(FAMILY),
    };
    let mut server = Server {
        listener: listen.backlog(i32::try_from(backlog)?).open(&ns)?,
        work,
        accepted: Vec::new(),
        spent: 0,
    };
    let mut tun = TunClients::new(&ns, FAMILY, server.listener.port())?;
    let before = Counters::read(&ns)?;
    let first = tun.spent();
    let mut clients = Vec::new();
    for begin in (0..count).step_by(BATCH as usize) {
        for client in tun.open(begin..begin + BATCH, ANSWERS_WITHIN)? {
            clients.push(Client {
                client,
                request_at: client.snd_nxt,
                is_answered: false,
            });
        }
        if listener == Listener::Plain {
            server.accept()?;
        }
        sleep(BATCH_PAUSE);
    }
    sleep(SILENT);
    let connected = tun.spent() - first + server.spent;

    let begin = Instant::now();
    let mut sent_again = 0;
    let mut wait = FIRST_RTO;
    let mut next = begin + wait;
    let mut last_answer = None;
    for attempt in 0..=RETRANSMISSIONS {
        for client in clients.iter_mut().filter(|client| !client.is_answered) {
            client.client.snd_nxt = client.request_at;
            tun.push(&mut client.client, Flags::PSH_ACK, REQUEST)?;
            sent_again += u32::from(attempt > 0);
        }
        server.accept()?;
        server.answer()?;
        while let Some((nth, segment)) = tun.take()? {
            let client = clients.get_mut(nth as usize).context("no such client")?;
            if segment.payload == RESPONSE {
                client.is_answered = true;
                last_answer = Some(begin.elapsed());
            }
        }
        if clients.iter().all(|client| client.is_answered) {
            break;
        }
        sleep(next.saturating_duration_since(Instant::now()));
        wait *= 2;
        next += wait;
    }
    let unanswered = clients.iter().filter(|client| !client.is_answered).count();
    ensure!(
        unanswered == 0,
        "{unanswered} of {count} clients were not answered, though each had sent its request \
         {RETRANSMISSIONS} times more"
    );
    no_syncookies(&before, &Counters::read(&ns)?)?;
    if listener == Listener::Dataready {
        let stats = control::stats(&server.listener).context("ACCF_STATS")?;
        ensure!(
            [stats.parked_total, stats.released_data] == [u64::from(count); 2],
            "not all of {count} clients were parked until their requests: {stats:?}"
        );
    }
    let instructions = tun.spent() - first + server.spent;
    Ok(Burst {
        instructions,
        instructions_request: instructions - connected,
        sent_again,
        last_answer: last_answer.context("no answer")?,
    })
}
