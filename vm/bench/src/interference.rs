// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long an active client waits beside many idle ones.
//!
//! It sends its request with the third segment of the handshake. From its SYN until its response,
//! all instructions of the kernel and the server count ([`TunClients::spent`]); the client's do
//! not.
//! There is one processor, so the response has arrived once the server waits again.
//!
//! Active and idle clients have the same server, with a backlog of 128: it has accepted the idle
//! ones of a plain listener, and waits for their requests.

use accf_bench::Unit;
use accf_kit::segment::{Flags, Segment};
use accf_kit::tun_clients::{TunClient, TunClients};
use anyhow::{ensure, Context, Result};

use crate::idle_clients::IdleClients;
use crate::rounds::{median, Figure, Figures, REQUEST, RESPONSE};
use crate::server::Server;
use crate::steps::Step;

/// The active clients for one sample, one after another.
const VISITS: u32 = 51;
/// The last step, without idle clients.
const NONE_LEFT: Step = Step {
    clients: 0,
    passes: 1,
};

/// Resets more and more idle clients, and measures at each step of at most `max_clients`, down to
/// none.
pub(crate) fn measure(
    idle: &mut IdleClients,
    server: &Server,
    steps: &[Step],
    max_clients: u32,
    figures: &mut Figures,
) -> Result<()> {
    let listener = idle.kind();
    for step in steps.iter().filter(|step| step.clients <= max_clients) {
        idle.grow_to(step.clients)?;
    }
    let (all, with_cookies) = (idle.len(), idle.cookies()?);
    for step in steps.iter().rev().chain([&NONE_LEFT]) {
        let figure = Figure::new("latency", Unit::Instructions, listener).at(step.clients.into());
        if step.clients > max_clients {
            figures.leave_out(figure, max_clients);
            continue;
        }
        idle.shrink_to(step.clients)?;
        let (before, cookies) = (server.usage()?, idle.cookies()?);
        for _ in 0..step.passes {
            let mut latencies = Vec::new();
            for _ in 0..VISITS {
                let client = idle.new_client();
                latencies.push(visit(idle.tun(), client)?);
            }
            figures.add(figure, median(&mut latencies)?);
        }
        let visits = u64::from(step.passes * VISITS);
        let answered = server.usage()?.since(&before).answered;
        ensure!(
            answered == visits,
            "{answered} of {visits} clients were answered"
        );
        idle.check()?;
        if with_cookies > 0 {
            let note =
                format!("{with_cookies} of {all} idle clients had a syncookie, and were accepted");
            figures.explain(figure, &note);
        }
        if idle.cookies()? > cookies {
            figures.explain(figure, "and so had the active ones");
        }
    }
    Ok(())
}

/// Plays an active client, and returns how many instructions its response took.
fn visit(tun: &mut TunClients, mut client: TunClient) -> Result<u64> {
    let before = tun.spent();
    tun.syn(&mut client)?;
    let answer = next(tun, &client).context("for a SYN")?;
    ensure!(answer.is_syn_ack(), "not the answer to a SYN: {answer}");
    client.rcv_nxt = answer.end_seq();
    tun.push(&mut client, Flags::PSH_ACK, REQUEST)?;
    let mut response = next(tun, &client).context("for a request")?;
    if response.is_bare_ack() {
        // The kernel acknowledges data of the handshake at once.
        response = next(tun, &client).context("for a request")?;
    }
    let latency = tun.spent() - before;
    ensure!(response.payload == RESPONSE, "not the response: {response}");
    // Leaves no TIME-WAIT.
    tun.push(&mut client, Flags::RST, b"")?;
    while tun.take()?.is_some() {}
    Ok(latency)
}

/// Takes the next segment, which must be for this client and available at once.
fn next(tun: &mut TunClients, client: &TunClient) -> Result<Segment> {
    // The woken server runs before the client goes on. Instructions while waiting would not count.
    let (nth, segment) = tun.take()?.context("no segment at once")?;
    ensure!(
        nth == client.nth,
        "not for client {}: {segment}",
        client.nth
    );
    Ok(segment)
}
