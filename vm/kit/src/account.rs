// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a listener has counted: sums that must be right whenever one looks.

use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context as _, Result};

use crate::control::{self, Stats};
use crate::wait;

/// Reads what a listener has counted, and makes sure that it is consistent in itself.
pub fn stats(listener: impl AsFd) -> Result<Stats> {
    let stats = control::stats(listener).context("ACCF_STATS")?;
    consistent(&stats)?;
    Ok(stats)
}

/// Makes sure that no connection is counted twice, and none is forgotten.
pub fn consistent(stats: &Stats) -> Result<()> {
    let told = describe(stats);
    ensure!(
        stats.accounted() == stats.parked_total,
        "{} connections were parked, and {} are accounted for, of {told}",
        stats.parked_total,
        stats.accounted()
    );
    let waited: u64 = stats.wait_log2.iter().sum();
    ensure!(
        waited == stats.released_data + stats.released_fin,
        "{waited} released connections in the histogram, of {told}"
    );
    // The kernel counts in two steps, and each processor may be between them. At rest the count is
    // exact: `at_rest()` checks that.
    ensure!(
        (-processors()..=stats.half_open + processors()).contains(&stats.half_open_young),
        "half_open_young is {}, of {told}",
        stats.half_open_young
    );
    Ok(())
}

/// Makes sure that no request is parked or half-open.
pub fn at_rest(stats: &Stats) -> Result<()> {
    ensure!(
        (stats.parked, stats.half_open, stats.half_open_young) == (0, 0, 0),
        "parked, half-open and young requests in the end: {:?}, of {}",
        (stats.parked, stats.half_open, stats.half_open_young),
        describe(stats)
    );
    Ok(())
}

/// Makes sure of the same for a listener that took over connections of others in its `SO_REUSEPORT`
/// group (`net.ipv4.tcp_migrate_req`).
///
/// It may have counted off requests that it never had: when a client resets a half-open connection
/// of a listener that has stopped, `tcp_check_req()` counts it off the one that would have got it,
/// filter or not.
pub fn at_rest_after_migration(stats: &Stats) -> Result<()> {
    ensure!(
        stats.parked == 0 && stats.half_open <= stats.half_open_young && stats.half_open_young <= 0,
        "parked, half-open and young requests in the end: {:?}, of {}",
        (stats.parked, stats.half_open, stats.half_open_young),
        describe(stats)
    );
    Ok(())
}

/// Calls `meanwhile` until a listener is at rest, as `is_at_rest` tells; returns its counts, which
/// are consistent.
pub fn settle(
    listener: impl AsFd,
    limit: Duration,
    is_at_rest: fn(&Stats) -> Result<()>,
    mut meanwhile: impl FnMut() -> Result<()>,
) -> Result<Stats> {
    let mut seen = Stats::default();
    wait::until(limit, || {
        meanwhile()?;
        seen = stats(&listener)?;
        Ok(is_at_rest(&seen).is_ok())
    })?;
    is_at_rest(&seen)?;
    Ok(seen)
}

/// Returns how many processors there are.
pub fn processors() -> i64 {
    thread::available_parallelism().map_or(1, usize::from) as i64
}

/// Returns the counts that are not zero, by name.
pub fn describe(stats: &Stats) -> String {
    let counts: Vec<String> = fields(stats)
        .into_iter()
        .filter(|(_, count)| *count != 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    if counts.is_empty() {
        return "nothing".to_owned();
    }
    counts.join(", ")
}

/// Returns all counts but the histogram, by name.
pub fn fields(stats: &Stats) -> Vec<(&'static str, i128)> {
    macro_rules! fields {
        ($($field:ident)*) => { vec![$((stringify!($field), i128::from(stats.$field))),*] };
    }
    fields![
        parked half_open half_open_young parked_total released_data released_fin
        timeout_accept timeout_reset timeout_drop evicted aborted fallback synack_suppressed
        bypass_syncookie bypass_fastopen bypass_abort_on_overflow bypass_accept_queue_full
        bypass_no_memory bypass_namespace_limit bypass_signed bypass_other released_paused
        bypass_paused closed_reset closed_reset_unparked released_late overflow_dropped
        probes died
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Stats {
        let mut stats = Stats::default();
        stats.parked_total = 3;
        stats.released_data = 1;
        stats.aborted = 1;
        stats.parked = 1;
        stats.wait_log2[4] = 1;
        stats
    }

    #[test]
    fn consistent_sums_pass() {
        consistent(&sound()).unwrap();
        assert!(at_rest(&sound()).is_err());
        at_rest(&Stats::default()).unwrap();
    }

    #[test]
    fn a_migration_target_may_have_counted_off_what_it_never_had() {
        let mut target = Stats::default();
        at_rest_after_migration(&target).unwrap();
        (target.half_open, target.half_open_young) = (-2, -1);
        at_rest_after_migration(&target).unwrap();
        assert!(at_rest(&target).is_err());
        (target.half_open, target.half_open_young) = (0, -1);
        assert!(at_rest_after_migration(&target).is_err());
        (target.half_open, target.half_open_young) = (1, 1);
        assert!(at_rest_after_migration(&target).is_err());
        assert!(at_rest_after_migration(&sound()).is_err());
    }

    #[test]
    fn forgotten_and_doubly_counted_connections_are_errors() {
        let mut forgotten = sound();
        forgotten.aborted = 0;
        assert!(consistent(&forgotten).is_err());
        let mut twice = sound();
        twice.evicted = 1;
        assert!(consistent(&twice).is_err());
        let mut no_wait = sound();
        no_wait.wait_log2[4] = 0;
        assert!(consistent(&no_wait).is_err());
    }

    #[test]
    fn only_counts_that_are_not_zero_are_described() {
        assert_eq!(describe(&Stats::default()), "nothing");
        assert_eq!(
            describe(&sound()),
            "parked 1, parked_total 3, released_data 1, aborted 1"
        );
    }
}
