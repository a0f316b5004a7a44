// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernel sockets at both ends of a wire that loses packets, or where a firewall looks at them.

use accf_kit::fault::Whose;
use accf_kit::impaired_wire::{ImpairedWire, Impairment};
use anyhow::Result;

use crate::ecn::Ecn;
use crate::round::{Round, Shortage};
use crate::socket_clients::{more, pace, report};

/// How many of a hundred packets are lost, come twice, overtake others.
const DISTURBED: u8 = 20;

/// Runs clients over a wire that loses, repeats and reorders packets.
pub(crate) fn lossy(round: &Round<'_>) -> Result<()> {
    let impairment = Impairment {
        disturbed: DISTURBED,
        ..Impairment::default()
    };
    run(
        round,
        "a wire that loses, repeats and reorders 20 %",
        impairment,
    )
}

/// Runs clients over a wire where both ends have a firewall that knows of connections.
pub(crate) fn tracked(round: &Round<'_>) -> Result<()> {
    let impairment = Impairment {
        tracked: true,
        ..Impairment::default()
    };
    run(round, "a wire with connection tracking", impairment)
}

fn run(round: &Round<'_>, place: &str, impairment: Impairment) -> Result<()> {
    let impairment = Impairment {
        shortage: !round.has_all(),
        no_packets: matches!(round.shortage, Shortage::Of(Whose::Network, _)),
        ..impairment
    };
    let mut wire = ImpairedWire::new(
        impairment,
        round.deadline(),
        round.lifetime(),
        round.rng(place),
    )?;
    round.board.events_of("namespaces made", 2);
    round.board.show_namespace(wire.server_ns());
    let server = wire.server_ns().clone();
    let mut rng = round.rng(&format!("ECN: {place}"));
    let ecn = Ecn::at_random(round, &mut rng, wire.client_ns(), &server)?;
    round.begin();
    wire.run(pace(round), |begun| more(round, place, begun))?;
    ecn.report(round)?;
    report(round, place, wire.clients(), 0);
    for seen in wire.settle(round.limit())? {
        round.at_rest(&seen);
    }
    Ok(())
}
