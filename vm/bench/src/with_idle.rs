// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs the benchmarks that share a listener's idle clients: `holding` as their number grows,
//! `interference` as it shrinks.

use accf_bench::{Bench, Listener, Measurement};
use anyhow::{Context, Result};
use nix::sys::resource::{setrlimit, Resource};

use crate::idle_clients::{IdleClients, BACKLOG, MAX_CLIENTS};
use crate::rounds::{in_turn, Figures, Plan};
use crate::steps::steps;
use crate::{holding, interference};

/// The benchmarks beside idle clients.
pub(crate) const BENCHES: [Bench; 2] = [Bench::Holding, Bench::Interference];

/// The limit of descriptors for the server: each client of a plain listener costs one.
const DESCRIPTORS: u64 = 1_000_000;
/// The maximum of idle clients at other listeners than `dataready`: a plain one needs kilobytes for
/// each.
const MAX_HELD: u32 = 100_000;
/// The maximum of those that their server accepts, which takes long.
const MAX_ACCEPTED: u32 = 10_000;
/// Both maxima in a short run.
const MAX_OF_OTHERS_IF_SHORT: u32 = 1_000;

/// Measures some of [`BENCHES`].
pub(crate) fn measure(plan: Plan, wanted: &[Bench]) -> Result<Vec<Measurement>> {
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS)?;
    let figures_of = |bench| wanted.contains(&bench).then(|| Figures::new(bench));
    let mut holding = figures_of(Bench::Holding);
    let mut interference = figures_of(Bench::Interference);
    for round in 0..plan.rounds {
        for listener in in_turn(Listener::ALL, round) {
            measure_at(listener, plan, round, &mut holding, &mut interference)
                .with_context(|| format!("{}, round {}", listener.key(), round + 1))?;
        }
    }
    let figures = holding.into_iter().chain(interference);
    Ok(figures.flat_map(Figures::finish).collect())
}

/// Measures at one listener.
fn measure_at(
    listener: Listener,
    plan: Plan,
    round: u32,
    holding: &mut Option<Figures>,
    interference: &mut Option<Figures>,
) -> Result<()> {
    let steps = steps(plan, round);
    let most = |others| match listener {
        Listener::Dataready => MAX_CLIENTS,
        _ if plan.short => MAX_OF_OTHERS_IF_SHORT,
        _ => others,
    };
    // `TCP_DEFER_ACCEPT` defers no more than its backlog.
    let backlog = match listener {
        Listener::DeferAccept if holding.is_some() => MAX_CLIENTS,
        _ => BACKLOG,
    };
    let mut idle = IdleClients::new(listener, backlog)?;
    if let Some(figures) = holding {
        idle.run(|idle| holding::measure(idle, &steps, most(MAX_HELD), figures))?;
        if interference.is_some() && listener != Listener::Dataready {
            // `interference` needs clients that its server has accepted, and the usual backlog.
            // Those of `dataready` are parked, and serve both.
            idle.close()?;
            idle = IdleClients::new(listener, BACKLOG)?;
        }
    }
    if let Some(figures) = interference {
        let server = idle.start_server()?;
        idle.run(|idle| interference::measure(idle, &server, &steps, most(MAX_ACCEPTED), figures))?;
        server.stop()?;
    }
    idle.close()
}
