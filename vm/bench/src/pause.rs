// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which round-trip time the accepted socket has after its client's pause, and how fast a lost
//! response is repaired.
//!
//! If the server's kernel counts the client's pause as part of the round-trip time, its
//! retransmission timeout grows with the pause: a lost response is sent again that much later.
//!
//! Only one segment is outstanding then, so usually a *tail loss probe* repairs the loss: the
//! kernel sends the last segment again after two round-trip times and 200 ms, or at the
//! retransmission timeout if that is earlier. The case `rto_only` is without it.

use std::fmt;
use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use accf_bench::{Bench, Listener, Measurement, Unit};
use accf_kit::capture::Trace;
use accf_kit::clock::Stamp;
use accf_kit::control::OnTimeout;
use accf_kit::counters::Counters;
use accf_kit::endpoint::connect;
use accf_kit::segment::Segment;
use accf_kit::tcp_info::TcpInfo;
use accf_kit::wait;
use accf_kit::wire::Wire;
use anyhow::{bail, ensure, Context, Result};

use crate::rounds::{self, Figure, Figures, Plan, FAMILY, REQUEST, RESPONSE};

/// The path's round-trip time.
const RTT: Duration = Duration::from_millis(40);
/// The listeners' deadline: longer than any pause.
const DEADLINE: Duration = Duration::from_secs(60);
/// The limit for each step, longer than the kernel's maximum retransmission timeout of 120 s.
const LIMIT: Duration = Duration::from_secs(150);
/// The time between request and response: the request is acknowledged before the response, so that
/// only the response is lost.
const ANSWER_DELAY: Duration = Duration::from_millis(100);

/// Each case with its `tcp_early_retrans`: the kernel's default, and without tail loss probes.
const CASES: [(&str, &str); 2] = [("", "3"), ("rto_only", "0")];

/// What was seen of one connection.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The retransmission timeout of the socket as it was accepted.
    rto: Duration,
    /// Its smoothed round-trip time.
    rtt: Duration,
    /// From the server's `write()` until the client has read the first byte.
    repair: Duration,
    /// What caused the retransmission of the response.
    by: By,
}

/// The cause of a retransmission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// A tail loss probe.
    Probe,
    /// The retransmission timeout.
    Timeout,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Probe => "repaired by a tail loss probe",
            Self::Timeout => "repaired at the retransmission timeout",
        })
    }
}

/// Measures.
pub(crate) fn measure(plan: Plan) -> Result<Vec<Measurement>> {
    let pauses: &[f64] = if plan.short {
        &[0.1, 1.0, 3.0]
    } else {
        &[0.1, 0.3, 1.0, 3.0, 10.0]
    };
    let wire = Wire::with_rtt(RTT)?;
    for ns in [&wire.client, &wire.server] {
        // Metrics of one connection must not influence the next.
        ns.set_sysctl("net.ipv4.tcp_no_metrics_save", "1")?;
    }
    let mut figures = Figures::new(Bench::Pause);
    for round in 0..plan.rounds {
        for (case, probes) in CASES {
            wire.server
                .set_sysctl("net.ipv4.tcp_early_retrans", probes)?;
            for pause in pauses.iter().copied() {
                for listener in rounds::in_turn(Listener::ALL, round) {
                    let seen = exchange(&wire, listener, Duration::from_secs_f64(pause))
                        .with_context(|| {
                            format!("{}, a pause of {pause} s {case}", listener.key())
                        })?;
                    add(&mut figures, listener, case, pause, seen);
                }
            }
        }
    }
    Ok(figures.finish())
}

/// Adds what was seen to its figures.
fn add(figures: &mut Figures, listener: Listener, case: &'static str, pause: f64, seen: Seen) {
    let figure = |metric| {
        Figure::new(metric, Unit::Milliseconds, listener)
            .case(case)
            .at(pause)
    };
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    // The accepted socket's values do not depend on the case.
    if case.is_empty() {
        figures.add(figure("rto"), ms(seen.rto));
        figures.add(figure("rtt"), ms(seen.rtt));
    }
    figures.add(figure("repair"), ms(seen.repair));
    figures.explain(figure("repair"), &seen.by.to_string());
}

/// Plays one connection: the client pauses before its request, and the first copy of the response
/// is lost.
fn exchange(wire: &Wire, listener: Listener, pause: Duration) -> Result<Seen> {
    let listening = rounds::open(&wire.server, listener, DEADLINE, OnTimeout::Accept)?;
    let capture = wire.watch_server()?;
    let before = Counters::read(&wire.server)?;

    let mut client = connect(&wire.client, wire.server_address(FAMILY, listening.port()))?;
    client.set_read_timeout(Some(LIMIT))?;
    thread::sleep(pause);
    let is_waiting = !wait::readable(&listening, Duration::ZERO)?;
    ensure!(
        is_waiting == (listener != Listener::Plain),
        "after the pause, the connection is not in the accept queue: {is_waiting}"
    );
    client.write_all(REQUEST)?;

    let mut server = rounds::accept_request(&listening, LIMIT)?;
    let accepted = TcpInfo::of(&server)?;
    thread::sleep(ANSWER_DELAY);
    // Read here: the SYN-ACK timer of a deferred request counts as a timeout, too.
    let asked = Counters::read(&wire.server)?;
    let loss = wire.lose_from_server()?;
    let written = Stamp::now();
    server.write_all(RESPONSE)?;
    let lost = loss.end()?;
    ensure!(
        lost == 1,
        "{lost} packets were lost, instead of the one response"
    );

    let mut response = [0; RESPONSE.len()];
    let (first, rest) = response.split_at_mut(1);
    client.read_exact(first).context("the response")?;
    let repair = Stamp::now().since(written);
    client
        .read_exact(rest)
        .context("the rest of the response")?;
    ensure!(response == RESPONSE, "the client read something else");
    let acknowledged = wait::until(LIMIT, || Ok(TcpInfo::of(&server)?.unacked == 0))?;
    ensure!(acknowledged, "the response was never acknowledged");
    let sent_again = TcpInfo::of(&server)?.total_retrans - accepted.total_retrans;
    ensure!(
        sent_again == 1,
        "the response was sent again {sent_again} times"
    );

    let after = Counters::read(&wire.server)?;
    rounds::no_syncookies(&before, &after)?;
    if listener == Listener::Dataready {
        rounds::all_parked(&listening, 1, |stats| stats.released_data)?;
    }
    check(&capture.stop()?.of_port(listening.port()), repair)?;
    Ok(Seen {
        rto: accepted.rto,
        rtt: accepted.rtt,
        repair,
        by: cause(&asked, &after)?,
    })
}

/// Checks that only the one response was lost, and that one copy of it crossed the wire, long
/// after the first.
fn check(trace: &Trace, repair: Duration) -> Result<()> {
    let requests = trace.count(|segment| segment.payload == REQUEST);
    let responses = trace.count(|segment| segment.payload == RESPONSE);
    ensure!(
        (trace.count(Segment::is_syn), requests, responses) == (1, 1, 1) && repair > 2 * RTT,
        "more was lost than one response, or less (repaired after {repair:?}):\n{}",
        trace.describe()
    );
    Ok(())
}

/// Returns the cause of the one retransmission.
fn cause(before: &Counters, after: &Counters) -> Result<By> {
    let probes = after.growth(before, "TcpExtTCPLossProbes")?;
    let timeouts = after.growth(before, "TcpExtTCPTimeouts")?;
    match (probes, timeouts) {
        (1, 0) => Ok(By::Probe),
        (0, 1) => Ok(By::Timeout),
        _ => bail!("{probes} tail loss probes and {timeouts} timeouts for one loss"),
    }
}
