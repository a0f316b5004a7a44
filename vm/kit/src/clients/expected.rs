// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a listener must have counted, and its server must have seen, of clients that did what they did.

use std::ops::RangeInclusive;

use anyhow::{ensure, Result};

use super::behaviour::Behaviour;
use super::tally::Tally;
use super::target::Policy;
use crate::control::{OnTimeout, Stats};
use crate::server::Served;

/// Compares what a listener counted with what its clients did and its server saw, where nothing stood
/// in their way. As many as `doubtful` may have been bypassed.
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
    let parked = tally.to_be_parked(target);
    within(
        seen.parked_total,
        about(parked),
        "connections that were parked",
    )?;
    within(
        seen.bypassed(),
        0..=doubtful,
        "connections that could not be parked",
    )?;
    within(
        seen.fallback,
        0..=0,
        "connections that fell back to plain TCP",
    )?;
    only_own_policy(policy, seen)?;
    let not_parked = about(tally.count(target, &[DataInAck]));
    let plus = |count: u64| not_parked.start() + count..=not_parked.end() + count + seen.bypassed();
    let senders = tally.in_time(target, &[DataLater, DataInPieces, HandshakeTwice]);
    if policy.max_parked > 0 {
        // Which clients were evicted before they did something is up to chance.
        within(seen.evicted, 0..=parked, "connections that were evicted")?;
        within(
            seen.released_data,
            0..=*senders.end(),
            "connections released by data",
        )?;
        within(
            timeouts(seen),
            0..=u64::from(policy.max_parked),
            "deadlines of those that were left",
        )?;
        if policy.on_timeout == OnTimeout::Reset {
            within(
                served.with_data,
                plus(seen.released_data),
                "connections accepted with data",
            )?;
            within(
                served.at_end,
                seen.released_fin..=seen.released_fin + seen.bypassed(),
                "connections accepted with their end",
            )?;
            within(
                served.silent,
                0..=seen.bypassed(),
                "silent connections accepted",
            )?;
            within(served.broken, 0..=seen.bypassed(), "connections that broke")?;
        } else {
            // A client that was evicted, and reset before the server looked at it, broke.
            within(
                served.accepted,
                plus(seen.parked_total - seen.aborted),
                "connections accepted",
            )?;
        }
        return Ok(());
    }
    within(seen.evicted, 0..=0, "connections that were evicted")?;
    let leavers = tally.in_time(target, &[FinLater]);
    let breakers = tally.in_time(target, &[ResetLater]);
    let silent = tally.in_time(target, &[Silent]);
    let late = |range: &RangeInclusive<u64>| range.end() - range.start();
    let all_late = late(&senders) + late(&leavers) + late(&breakers);
    let in_time =
        |range: &RangeInclusive<u64>| range.start().saturating_sub(doubtful)..=*range.end();
    within(
        seen.released_data,
        in_time(&senders),
        "connections released by data",
    )?;
    within(
        seen.released_fin,
        in_time(&leavers),
        "connections released by FIN",
    )?;
    within(
        seen.aborted,
        in_time(&breakers),
        "connections reset by their client",
    )?;
    within(
        timeouts(seen),
        silent.start().saturating_sub(doubtful)..=silent.end() + all_late,
        "connections that met their deadline",
    )?;
    within(
        served.broken,
        0..=all_late + seen.bypassed(),
        "connections that broke",
    )?;
    within(
        served.accepted,
        plus(seen.released_data + seen.released_fin + seen.timeout_accept),
        "connections accepted",
    )?;
    let with_data = plus(seen.released_data);
    within(
        served.with_data,
        *with_data.start()..=with_data.end() + all_late,
        "connections accepted with data",
    )
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
    within(
        timeouts(seen),
        own..=own,
        "deadlines by this policy, of all",
    )
}

fn timeouts(seen: &Stats) -> u64 {
    seen.timeout_accept + seen.timeout_reset + seen.timeout_drop
}

fn within(seen: u64, expected: RangeInclusive<u64>, what: &str) -> Result<()> {
    ensure!(
        expected.contains(&seen),
        "{what}: expected {expected:?}, saw {seen}"
    );
    Ok(())
}
