// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a connection that thinks costs, and what it takes to park, release and time out, while many think.
//!
//! | | `dataready` | `TCP_DEFER_ACCEPT` | plain |
//! | --- | --- | --- | --- |
//! | `bytes`: a client that is held | a request, and what the filter keeps of it | a request | an accepted socket |
//! | `park`: its bare ACK | is parked | is dropped | makes the socket |
//! | `release`: its request | makes the socket | makes the socket | goes into the socket |
//! | `timer`: its deadline | by policy | | |
//!
//! Memory is that of the objects in use. Nobody accepts while something is measured.

use std::collections::BTreeMap;

use accf_bench::{Listener, Unit};
use accf_kit::control::OnTimeout;
use accf_kit::slab::Slabs;
use anyhow::Result;

use crate::crowd::{median, Crowd, Step, LOT, SOON};
use crate::rounds::{Figure, Figures};

/// How many lots are parked, released, and meet each kind of deadline, for one sample.
const LOTS: u32 = 10;

/// How many clients there are before memory is looked at: fewer than at the first step.
const FIRST: u32 = 3 * LOT;

/// What may become of a client at its deadline, as a case.
const TIMERS: [(&str, OnTimeout); 3] = [
    ("accept", OnTimeout::Accept),
    ("reset", OnTimeout::Reset),
    ("drop", OnTimeout::Drop),
];

/// Has a crowd grow, and measures at each step of at most `most` clients.
pub(crate) fn measure(
    crowd: &mut Crowd,
    steps: &[Step],
    most: u32,
    figures: &mut Figures,
) -> Result<()> {
    // What there is once for each address, or was made for the first connections and is kept, does not count.
    crowd.fill(FIRST)?;
    crowd.speak()?;
    crowd.fill(FIRST)?;
    let before = Slabs::read_exactly(SOON)?;
    let listener = crowd.kind();
    for step in steps {
        let of = |metric, unit| Figure {
            metric,
            unit,
            listener,
            case: "",
            x: Some(step.clients.into()),
        };
        let bytes = of("bytes", Unit::Bytes);
        let park = of("park", Unit::Instructions);
        let release = of("release", Unit::Instructions);
        if step.clients > most {
            for figure in [bytes, park, release] {
                figures.explain(figure, &format!("measured with up to {most} clients only"));
            }
            continue;
        }
        crowd.fill(step.clients)?;
        for _ in 0..step.passes {
            let growth = Slabs::read_exactly(SOON)?.growth(&before);
            let (total, note) = each(growth, step.clients - FIRST);
            figures.add(bytes, total);
            figures.explain(bytes, &note);
            let (mut parks, mut releases) = (Vec::new(), Vec::new());
            for _ in 0..LOTS {
                releases.append(&mut crowd.speak()?);
                parks.append(&mut crowd.come(LOT)?);
            }
            figures.add(park, median(&mut parks)?);
            figures.add(release, median(&mut releases)?);
            if listener == Listener::Dataready {
                for (case, on_timeout) in TIMERS {
                    let mut timers = Vec::new();
                    for _ in 0..LOTS {
                        let expired = crowd.expire(on_timeout)?;
                        timers.push(expired.instructions / u64::from(expired.clients));
                        crowd.come(expired.clients)?;
                    }
                    let timer = Figure {
                        case,
                        ..of("timer", Unit::Instructions)
                    };
                    figures.add(timer, median(&mut timers)?);
                    figures.explain(timer, "50 to 100 are due at once");
                }
            }
            crowd.check()?;
        }
    }
    Ok(())
}

/// How many bytes more there are for each of so many more clients, and where.
///
/// No object is smaller than eight bytes: where there is less for each client, something else has grown.
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
