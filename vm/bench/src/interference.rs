// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long an active client waits while many think.
//!
//! It sends its request with the third segment of the handshake. From its SYN until the response has come, everything counts
//! that the kernel and the server do ([`TunClients::spent`]), and nothing that the client does. There is one processor, so the
//! response has come once the server has nothing to do any more.
//!
//! All idle clients are the server's, whose backlog is 128: it has accepted those of a plain listener, and waits for them.

use accf_bench::Unit;
use accf_kit::segment::{Flags, Segment};
use accf_kit::tun_clients::{TunClient, TunClients};
use anyhow::{ensure, Context, Result};

use crate::crowd::{median, Crowd, Step};
use crate::rounds::{Figure, Figures, REQUEST, RESPONSE};
use crate::server::Server;

/// How many active clients there are for one sample, one after another.
const VISITS: u32 = 51;
/// The last step.
const NOBODY: Step = Step {
    clients: 0,
    passes: 1,
};

/// Has a crowd shrink, and measures at each step of at most `most` clients, and when it is gone.
pub(crate) fn measure(
    crowd: &mut Crowd,
    server: &Server,
    steps: &[Step],
    most: u32,
    figures: &mut Figures,
) -> Result<()> {
    let listener = crowd.kind();
    for step in steps.iter().filter(|step| step.clients <= most) {
        crowd.fill(step.clients)?;
    }
    let (idle, refused) = (crowd.len(), crowd.cookies()?);
    for step in steps.iter().rev().chain([&NOBODY]) {
        let figure = Figure {
            metric: "latency",
            unit: Unit::Instructions,
            listener,
            case: "",
            x: Some(step.clients.into()),
        };
        if step.clients > most {
            figures.explain(figure, &format!("measured with up to {most} clients only"));
            continue;
        }
        crowd.leave(step.clients)?;
        let (before, cookies) = (server.usage()?, crowd.cookies()?);
        for _ in 0..step.passes {
            let mut latencies = Vec::new();
            for _ in 0..VISITS {
                let client = crowd.newcomer();
                latencies.push(visit(crowd.swarm(), client)?);
            }
            figures.add(figure, median(&mut latencies)?);
        }
        let visits = u64::from(step.passes * VISITS);
        let answered = server.usage()?.since(&before).answered;
        ensure!(
            answered == visits,
            "{answered} of {visits} clients were answered"
        );
        crowd.check()?;
        if refused > 0 {
            let note =
                format!("{refused} of {idle} idle clients had a syncookie, and were accepted");
            figures.explain(figure, &note);
        }
        if crowd.cookies()? > cookies {
            figures.explain(figure, "and so had the active ones");
        }
    }
    Ok(())
}

/// Has a client get its response, and says how many instructions that took.
fn visit(swarm: &mut TunClients, mut client: TunClient) -> Result<u64> {
    let before = swarm.spent();
    swarm.syn(&mut client)?;
    let answer = next(swarm, &client).context("for a SYN")?;
    ensure!(answer.is_syn_ack(), "not the answer to a SYN: {answer}");
    client.rcv_nxt = answer.end_seq();
    swarm.push(&mut client, Flags::PSH_ACK, REQUEST)?;
    let mut response = next(swarm, &client).context("for a request")?;
    if response.is_bare_ack() {
        // The kernel acknowledges at once what came with the handshake.
        response = next(swarm, &client).context("for a request")?;
    }
    let latency = swarm.spent() - before;
    ensure!(response.payload == RESPONSE, "not the response: {response}");
    // Nothing of it is to remain.
    swarm.push(&mut client, Flags::RST, b"")?;
    while swarm.take()?.is_some() {}
    Ok(latency)
}

/// The segment that has come, which must be for this client.
fn next(swarm: &mut TunClients, client: &TunClient) -> Result<Segment> {
    // Who is woken runs before the client goes on, so nobody has to wait; and while somebody did, nobody would count.
    let (nth, segment) = swarm.take()?.context("nothing has come at once")?;
    ensure!(
        nth == client.nth,
        "not for client {}: {segment}",
        client.nth
    );
    Ok(segment)
}
