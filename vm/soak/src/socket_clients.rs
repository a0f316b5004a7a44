// SPDX-License-Identifier: MIT OR Apache-2.0
//! Clients that are kernel sockets, for as long as a round goes on.

use std::time::Duration;

use accf_kit::clients::sockets::Sockets;
use accf_kit::clients::{Clients, Pace, Target};
use accf_kit::counters::Counters;
use accf_kit::netns::Netns;
use anyhow::Result;

use crate::round::Round;

/// Runs clients in a namespace until the round is over, while `meanwhile` goes on; counts their
/// fates.
pub(crate) fn run_clients(
    round: &Round<'_>,
    place: &str,
    ns: &Netns,
    targets: Vec<Target>,
    meanwhile: impl FnMut() -> Result<()>,
) -> Result<()> {
    let rng = round.rng(&format!("clients: {place}"));
    let mut clients = Sockets::clients(targets, Duration::ZERO, round.lifetime(), rng)?;
    let more = |begun| more(round, place, begun);
    clients.run_in(ns, pace(round), more, meanwhile)?;
    report(round, place, &clients, resets_not_sent(round, ns)?);
    Ok(())
}

/// Returns how many clients there are at once, and how fast they come.
pub(crate) fn pace(round: &Round<'_>) -> Pace {
    Pace {
        at_once: 60,
        gap: round.gap(),
    }
}

/// Says how many clients have begun; returns whether another one comes.
pub(crate) fn more(round: &Round<'_>, place: &str, begun: u64) -> bool {
    round.board.begun(place, begun);
    !round.is_over()
}

/// Returns how many resets the kernel did not send in a namespace for want of memory; 0 in a round
/// in which nothing is short.
fn resets_not_sent(round: &Round<'_>, ns: &Netns) -> Result<u64> {
    if round.has_all() {
        return Ok(0);
    }
    let failed = u64::try_from(Counters::read(ns)?.get("TcpExtTCPAbortFailed")?)?;
    round
        .board
        .events_of("resets that there was no memory for", failed);
    Ok(failed)
}

/// Counts how clients ended, and complains of fates that should not be.
pub(crate) fn report(
    round: &Round<'_>,
    place: &str,
    clients: &Clients<Sockets>,
    resets_not_sent: u64,
) {
    for ((_, behaviour, _, fate), count) in clients.tally().fates() {
        round
            .board
            .clients(place, behaviour.text(), fate.text(), *count);
    }
    for complaint in clients.complaints(resets_not_sent) {
        round.board.complain(format!(
            "round {} ({}), {place}: {complaint}",
            round.number + 1,
            round.shortage
        ));
    }
}
