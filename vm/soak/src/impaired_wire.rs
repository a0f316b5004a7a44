// SPDX-License-Identifier: MIT OR Apache-2.0
//! Clients and a server that are the kernel's own, at the two ends of a cable with something the matter with it.

use accf_kit::clients::sockets::Crowd;
use accf_kit::counters::Counters;
use accf_kit::fault::Whose;
use accf_kit::impaired_wire::{ImpairedWire, Impairment};
use accf_kit::netns::Netns;
use anyhow::Result;

use crate::round::{Round, Shortage};

/// How many of a hundred packets are lost, come twice, overtake others.
const DISTURBED: u8 = 20;

/// So many are there at once, at most.
const AT_ONCE: usize = 60;

/// A cable that loses, repeats and reorders packets.
pub(crate) fn lossy(round: &Round<'_>) -> Result<()> {
    let trouble = Impairment {
        disturbed: DISTURBED,
        ..Impairment::default()
    };
    meet(
        round,
        "a cable that loses, repeats and reorders 20 %",
        trouble,
    )
}

/// A cable where both ends have a firewall that knows of connections.
pub(crate) fn tracked(round: &Round<'_>) -> Result<()> {
    let trouble = Impairment {
        tracked: true,
        ..Impairment::default()
    };
    meet(round, "a cable with connection tracking", trouble)
}

fn meet(round: &Round<'_>, place: &str, trouble: Impairment) -> Result<()> {
    let trouble = Impairment {
        shortage: !round.has_all(),
        no_packets: matches!(round.shortage, Shortage::Of(Whose::Network, _)),
        ..trouble
    };
    let mut meeting = ImpairedWire::new(
        trouble,
        round.deadline(),
        round.lifetime(),
        round.rng(place),
    )?;
    round.board.events_of("namespaces made", 2);
    round.board.show_namespace(meeting.server_ns());
    round.begin();
    meeting.run(AT_ONCE, round.gap(), |crowd| {
        let begun = crowd.begun().values().sum();
        round.board.begun(place, begun);
        round.is_over()
    })?;
    tell(round, place, meeting.crowd(), 0);
    for seen in meeting.settle(round.limit())? {
        round.at_rest(&seen);
    }
    Ok(())
}

/// How many resets the kernel did not send in a namespace, for want of memory; none, in a round in which nothing is short.
pub(crate) fn resets_not_sent(round: &Round<'_>, ns: &Netns) -> Result<u64> {
    if round.has_all() {
        return Ok(0);
    }
    let failed = u64::try_from(Counters::read(ns)?.get("TcpExtTCPAbortFailed")?)?;
    round
        .board
        .events_of("resets that there was no memory for", failed);
    Ok(failed)
}

/// Counts what became of clients, and complains of what should not have; `resets_not_sent` is how many may wait for one.
pub(crate) fn tell(round: &Round<'_>, place: &str, crowd: &Crowd, resets_not_sent: u64) {
    for ((_, habit, _, fate), count) in crowd.fates() {
        round
            .board
            .clients(place, habit.text(), fate.text(), *count);
    }
    for complaint in crowd.complaints_beyond(resets_not_sent) {
        round.board.complain(format!(
            "round {} ({}), {place}: {complaint}",
            round.number + 1,
            round.shortage
        ));
    }
}
