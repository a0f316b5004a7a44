// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a listener must have counted, and its server must have seen, of clients that did what they
//! did.

use std::ops::RangeInclusive;

use anyhow::{ensure, Result};

use super::behaviour::Behaviour;
use super::tally::Tally;
use super::target::Policy;
use crate::control::{OnTimeout, Stats};
use crate::server::Served;

/// Compares what a listener counted with what its clients did and its server saw, where nothing
/// stood in their way. As many as `doubtful` may have been bypassed.
pub(super) fn exactly(
    tally: &Tally,
    target: usize,
    policy: &Policy,
    doubtful: u64,
    seen: &Stats,
    served: &Served,
) -> Result<()> {
    use Behaviour::{
        DataInAck, DataInPieces, DataLater, FinLater, HandshakeTwice, ResetLater, Silent,
    };
    let about = |count: u64| count.saturating_sub(doubtful)..=count;
    let bypassed = seen.bypassed();
    let parked = tally.to_be_parked(target);
    within(&[
        ("parked", seen.parked_total, about(parked)),
        ("not to be parked", bypassed, 0..=doubtful),
        ("fallen back to plain TCP", seen.fallback, 0..=0),
    ])?;
    only_own_policy(policy, seen)?;
    let not_parked = about(tally.count(target, &[DataInAck]));
    let plus = |count: u64| not_parked.start() + count..=not_parked.end() + count + bypassed;
    let released_data = plus(seen.released_data);
    let senders = tally.in_time(target, &[DataLater, DataInPieces, HandshakeTwice]);
    if policy.max_parked > 0 {
        // Which clients were evicted before they did something is up to chance.
        let left = u64::from(policy.max_parked);
        within(&[
            ("evicted", seen.evicted, 0..=parked),
            ("released by data", seen.released_data, 0..=*senders.end()),
            ("left to meet a deadline", timeouts(seen), 0..=left),
        ])?;
        if policy.on_timeout == OnTimeout::Reset {
            let released_fin = seen.released_fin..=seen.released_fin + bypassed;
            return within(&[
                ("accepted with data", served.with_data, released_data),
                ("accepted with their end", served.at_end, released_fin),
                ("accepted silent", served.silent, 0..=bypassed),
                ("broken", served.broken, 0..=bypassed),
            ]);
        }
        // A client that was evicted, and reset before the server looked at it, broke.
        let accepted = plus(seen.parked_total - seen.aborted);
        return within(&[("accepted", served.accepted, accepted)]);
    }
    let leavers = tally.in_time(target, &[FinLater]);
    let breakers = tally.in_time(target, &[ResetLater]);
    let silent = tally.count(target, &[Silent]);
    let late = |range: &RangeInclusive<u64>| range.end() - range.start();
    let late = late(&senders) + late(&leavers) + late(&breakers);
    let in_time =
        |range: &RangeInclusive<u64>| range.start().saturating_sub(doubtful)..=*range.end();
    let expired = silent.saturating_sub(doubtful)..=silent + late;
    let accepted = plus(seen.released_data + seen.released_fin + seen.timeout_accept);
    let with_data = *released_data.start()..=released_data.end() + late;
    within(&[
        ("evicted", seen.evicted, 0..=0),
        ("released by data", seen.released_data, in_time(&senders)),
        ("released by FIN", seen.released_fin, in_time(&leavers)),
        ("reset by their client", seen.aborted, in_time(&breakers)),
        ("at their deadline", timeouts(seen), expired),
        ("broken", served.broken, 0..=late + bypassed),
        ("accepted", served.accepted, accepted),
        ("accepted with data", served.with_data, with_data),
    ])
}

/// Makes sure that every connection that was released was accepted, and that only this policy was
/// applied; returns how many were released.
pub fn released_were_accepted(policy: &Policy, seen: &Stats, served: &Served) -> Result<u64> {
    only_own_policy(policy, seen)?;
    let mut released = seen.released_data + seen.released_fin + seen.timeout_accept;
    if policy.on_timeout == OnTimeout::Accept {
        released += seen.evicted;
    }
    ensure!(
        served.accepted >= released,
        "{} were accepted, of {released} that were released",
        served.accepted
    );
    Ok(released)
}

fn only_own_policy(policy: &Policy, seen: &Stats) -> Result<()> {
    let own = match policy.on_timeout {
        OnTimeout::Accept => seen.timeout_accept,
        OnTimeout::Reset => seen.timeout_reset,
        _ => seen.timeout_drop,
    };
    within(&[("at a deadline with this policy", timeouts(seen), own..=own)])
}

fn timeouts(seen: &Stats) -> u64 {
    seen.timeout_accept + seen.timeout_reset + seen.timeout_drop
}

/// Makes sure that numbers of connections, with what they are of, are in their ranges.
fn within(checks: &[(&str, u64, RangeInclusive<u64>)]) -> Result<()> {
    for (what, seen, expected) in checks {
        ensure!(
            expected.contains(seen),
            "connections {what}: expected {expected:?}, saw {seen}"
        );
    }
    Ok(())
}
