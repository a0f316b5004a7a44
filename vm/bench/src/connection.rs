// SPDX-License-Identifier: MIT OR Apache-2.0
//! What one connection costs, from its SYN to the last ACK of its close, with the same client and
//! the same server.

use accf_bench::{Bench, Listener, Measurement, Unit};
use accf_kit::control;
use accf_kit::counters::Counters;
use accf_kit::endpoint::Listen;
use accf_kit::netns::Netns;
use anyhow::{ensure, Context, Result};

use crate::client::{Clients, Costs, Manner};
use crate::rounds::{in_turn, Figure, Figures, Plan, FAMILY};
use crate::server::{Kind, Server};

/// The deadline of `TCP_DEFER_ACCEPT` in seconds, equal to the filter's default.
const DEADLINE: i32 = 60;

/// A server, and the kind of its listener.
pub(crate) struct Subject {
    pub(crate) listener: Listener,
    pub(crate) server: Server,
}

/// Measures.
pub(crate) fn measure(plan: Plan) -> Result<Vec<Measurement>> {
    let ns = Netns::new()?;
    // Each client is given its server's port.
    let mut clients = Clients::new(&ns, 0)?;
    let mut figures = Figures::new(Bench::Connection);
    for kind in [Kind::Epoll, Kind::Blocking] {
        let subjects = start(&ns, kind)?;
        clients.warm_up(&subjects.each_ref().map(|subject| &subject.server))?;
        for round in 0..plan.rounds {
            for manner in Manner::ALL {
                let case = case(kind, manner);
                let subjects = in_turn(subjects.each_ref(), round);
                let costs = one_round(&ns, &mut clients, manner, &subjects, connections(plan))
                    .with_context(|| format!("{case}, round {round}"))?;
                for (subject, cost) in subjects.iter().zip(costs) {
                    add(&mut figures, subject.listener, case, manner, &cost);
                }
            }
        }
        for subject in subjects {
            subject.server.stop()?;
        }
    }
    Ok(figures.finish())
}

/// Returns how many connections a figure is the mean of.
pub(crate) fn connections(plan: Plan) -> u32 {
    if plan.short {
        300
    } else {
        2000
    }
}

/// Returns the name of a case; see [`Measurement`].
pub(crate) const fn case(kind: Kind, manner: Manner) -> &'static str {
    match (kind, manner) {
        (Kind::Epoll, Manner::Pause) => "epoll/pause",
        (Kind::Epoll, Manner::SameTrip) => "epoll/same_trip",
        (Kind::Blocking, Manner::Pause) => "blocking/pause",
        (Kind::Blocking, Manner::SameTrip) => "blocking/same_trip",
    }
}

/// Starts a server with each kind of listener.
pub(crate) fn start(ns: &Netns, kind: Kind) -> Result<[Subject; 3]> {
    let subject = |listener, listen: Listen| -> Result<Subject> {
        let server = Server::start(ns, kind, &listen)?;
        Ok(Subject { listener, server })
    };
    Ok([
        subject(Listener::Plain, Listen::plain(FAMILY))?,
        subject(Listener::DeferAccept, Listen::deferred(FAMILY, DEADLINE))?,
        subject(Listener::Dataready, Listen::filtered(FAMILY))?,
    ])
}

/// Connects clients to each listener, and checks that it parked or deferred those it should.
pub(crate) fn one_round(
    ns: &Netns,
    clients: &mut Clients,
    manner: Manner,
    subjects: &[&Subject],
    connections: u32,
) -> Result<Vec<Costs>> {
    let before = parked_or_deferred(ns, subjects)?;
    let servers: Vec<&Server> = subjects.iter().map(|subject| &subject.server).collect();
    let costs = clients.visit(manner, &servers, connections)?;
    let after = parked_or_deferred(ns, subjects)?;
    for ((subject, before), after) in subjects.iter().zip(before).zip(after) {
        let expected = match (subject.listener, manner) {
            (Listener::Plain, _) | (_, Manner::SameTrip) => 0,
            (Listener::DeferAccept | Listener::Dataready, Manner::Pause) => u64::from(connections),
        };
        let count = after - before;
        ensure!(
            count == expected,
            "the listener {} parked or deferred {count} of {connections} clients, not {expected}",
            subject.listener.key()
        );
    }
    Ok(costs)
}

/// Returns how many clients each listener has parked until data arrived, or deferred by dropping
/// their ACK.
fn parked_or_deferred(ns: &Netns, subjects: &[&Subject]) -> Result<Vec<u64>> {
    let count = |subject: &&Subject| -> Result<u64> {
        Ok(match subject.listener {
            Listener::Plain => 0,
            Listener::DeferAccept => {
                u64::try_from(Counters::read(ns)?.get("TcpExtTCPDeferAcceptDrop")?)?
            }
            Listener::Dataready => {
                let stats = control::stats(subject.server.listener())?;
                ensure!(
                    stats.released_data == stats.parked_total,
                    "{} clients were parked, and {} released by data",
                    stats.parked_total,
                    stats.released_data
                );
                stats.parked_total
            }
        })
    };
    subjects.iter().map(count).collect()
}

/// Adds a round's figures for one listener.
fn add(
    figures: &mut Figures,
    listener: Listener,
    case: &'static str,
    manner: Manner,
    cost: &Costs,
) {
    let mut add = |metric, unit, sum| {
        let figure = Figure::new(metric, unit, listener).case(case);
        figures.add(figure, cost.each(sum));
    };
    add("instructions", Unit::Instructions, cost.instructions);
    if manner == Manner::Pause {
        add("instructions_ack", Unit::Instructions, cost.ack);
        add("instructions_request", Unit::Instructions, cost.request);
    }
    add("system_calls", Unit::Count, cost.server.system_calls);
    add(
        "context_switches",
        Unit::Count,
        cost.server.context_switches(),
    );
    add("wakeups", Unit::Count, cost.server.wakeups);
}
