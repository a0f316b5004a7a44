// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an idle connection costs, and what it takes to park, release and expire one, beside many
//! idle ones.
//!
//! | | `dataready` | `TCP_DEFER_ACCEPT` | plain |
//! | --- | --- | --- | --- |
//! | `bytes`: an idle client | a request, and the filter's entry | a request | an accepted socket |
//! | `park`: its bare ACK | is parked | is dropped | makes the socket |
//! | `release`: its request | makes the socket | makes the socket | goes into the socket |
//! | `timer`: its deadline | accept, reset or drop | | |
//!
//! Memory is that of the objects in use. The server does not accept during a measurement.

use std::collections::BTreeMap;

use accf_bench::{Listener, Unit};
use accf_kit::control::OnTimeout;
use accf_kit::slab::Slabs;
use anyhow::Result;

use crate::idle_clients::{IdleClients, BATCH, SETTLES_WITHIN};
use crate::rounds::{median, Figure, Figures};
use crate::steps::Step;

/// The batches that are parked, released, and expire with each `on_timeout`, for one sample.
const BATCHES: u32 = 10;

/// The idle clients before the first reading of memory: fewer than at the first step.
const FIRST: u32 = 3 * BATCH;

/// The cases of `timer`.
const TIMERS: [(&str, OnTimeout); 3] = [
    ("accept", OnTimeout::Accept),
    ("reset", OnTimeout::Reset),
    ("drop", OnTimeout::Drop),
];

/// Connects more and more idle clients, and measures at each step of at most `max_clients`.
pub(crate) fn measure(
    idle: &mut IdleClients,
    steps: &[Step],
    max_clients: u32,
    figures: &mut Figures,
) -> Result<()> {
    // Allocates what is kept for each address, or from the first connections on: it does not count.
    idle.grow_to(FIRST)?;
    idle.send_requests()?;
    idle.grow_to(FIRST)?;
    let before = Slabs::read_exactly(SETTLES_WITHIN)?;
    let listener = idle.kind();
    for step in steps {
        let of = |metric, unit| Figure::new(metric, unit, listener).at(step.clients.into());
        let bytes = of("bytes", Unit::Bytes);
        let park = of("park", Unit::Instructions);
        let release = of("release", Unit::Instructions);
        if step.clients > max_clients {
            for figure in [bytes, park, release] {
                figures.leave_out(figure, max_clients);
            }
            continue;
        }
        idle.grow_to(step.clients)?;
        for _ in 0..step.passes {
            let growth = Slabs::read_exactly(SETTLES_WITHIN)?.growth(&before);
            let (total, note) = each(growth, step.clients - FIRST);
            figures.add(bytes, total);
            figures.explain(bytes, &note);
            let (mut parks, mut releases) = (Vec::new(), Vec::new());
            for _ in 0..BATCHES {
                releases.append(&mut idle.send_requests()?);
                parks.append(&mut idle.connect(BATCH)?);
            }
            figures.add(park, median(&mut parks)?);
            figures.add(release, median(&mut releases)?);
            if listener == Listener::Dataready {
                for (case, on_timeout) in TIMERS {
                    let mut timers = Vec::new();
                    for _ in 0..BATCHES {
                        let expired = idle.expire(on_timeout)?;
                        timers.push(expired.instructions / u64::from(expired.clients));
                        idle.connect(expired.clients)?;
                    }
                    let timer = of("timer", Unit::Instructions).case(case);
                    figures.add(timer, median(&mut timers)?);
                    figures.explain(timer, "50 to 100 expire at once");
                }
            }
            idle.check()?;
        }
    }
    Ok(())
}

/// Returns the growth in bytes per additional client, and its slab caches.
///
/// No object is smaller than eight bytes: a cache that has grown by less per client was not grown
/// by clients.
fn each(growth: BTreeMap<String, i64>, clients: u32) -> (f64, String) {
    let mut caches: Vec<(String, f64)> = growth
        .into_iter()
        .map(|(name, bytes)| (name, bytes as f64 / f64::from(clients)))
        .collect();
    caches.retain(|(_, bytes)| *bytes >= 8.0);
    let total = caches.iter().map(|(_, bytes)| bytes).sum();
    caches.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let caches: Vec<String> = caches
        .iter()
        .map(|(name, bytes)| format!("{name} {bytes:.0}"))
        .collect();
    (total, caches.join(", "))
}
