// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a listener has counted, compared with what its clients did.

use std::os::fd::AsFd;
use std::thread;

use accf_kit::control::{self, Stats};
use accf_kit::wait;
use anyhow::{bail, Context as _, Result};

use crate::case::{expect_eq, expect_in, Context};

/// Counts: those that are named, and zero for all others.
macro_rules! counted {
    ($($field:ident: $count:expr),* $(,)?) => {{
        #[allow(unused_mut)]
        let mut stats = ::accf_kit::control::Stats::default();
        $(stats.$field = $count;)*
        stats
    }};
}

pub(crate) use counted;

/// Reads what a listener has counted, and makes sure that it is consistent in itself.
pub(crate) fn stats(listener: impl AsFd) -> Result<Stats> {
    let stats = control::stats(listener).context("ACCF_STATS")?;
    consistent(&stats)?;
    Ok(stats)
}

/// Makes sure that no connection is counted twice, and none is forgotten.
pub(crate) fn consistent(stats: &Stats) -> Result<()> {
    let told = describe(stats);
    expect_eq!(
        stats.accounted(),
        stats.parked_total,
        "connections that were parked and are accounted for, of {told}"
    );
    expect_eq!(
        stats.wait_log2.iter().sum::<u64>(),
        stats.released_data + stats.released_fin,
        "sum of the histogram, of {told}"
    );
    // The kernel counts in two steps, and each processor may be between them. At rest it is exact: see who asks then.
    expect_in!(
        stats.half_open_young,
        -processors()..=stats.half_open + processors(),
        "half_open_young, of {told}"
    );
    Ok(())
}

/// Waits until a listener has counted what `expected` says, and no more and no less; returns what it has counted.
///
/// `parked_total` need not be named: it is the sum of those that are. A few parked connections may still be half-open to
/// the kernel, one for each of its processors; how many SYN-ACKs were suppressed is the kernel's business.
pub(crate) fn counts(context: &Context, listener: impl AsFd, expected: Stats) -> Result<Stats> {
    let mut expected = expected;
    expected.parked_total = expected.accounted();
    let mut seen = Stats::default();
    let as_expected = wait::until(context.patience(), || {
        seen = stats(&listener)?;
        Ok(agrees(&seen, &expected))
    })?;
    if !as_expected {
        bail!(
            "what the listener has counted: expected {}, saw {}",
            describe(&expected),
            describe(&seen)
        );
    }
    Ok(seen)
}

fn agrees(seen: &Stats, expected: &Stats) -> bool {
    let spare = if expected.parked > 0 { processors() } else { 0 };
    let half_open = expected.half_open..=expected.half_open + spare;
    let comparable = |stats: &Stats| {
        let mut counts = fields(stats);
        counts.retain(|(name, _)| {
            !matches!(*name, "half_open" | "half_open_young" | "synack_suppressed")
        });
        counts
    };
    half_open.contains(&seen.half_open) && comparable(seen) == comparable(expected)
}

fn processors() -> i64 {
    thread::available_parallelism().map_or(1, usize::from) as i64
}

/// The counts that are not zero, by name.
pub(crate) fn describe(stats: &Stats) -> String {
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

/// All counts but the histogram, by name.
fn fields(stats: &Stats) -> Vec<(&'static str, i128)> {
    macro_rules! fields {
        ($($field:ident)*) => { vec![$((stringify!($field), i128::from(stats.$field))),*] };
    }
    fields![
        parked half_open half_open_young parked_total released_data released_fin timeout_accept timeout_reset
        timeout_drop evicted aborted returned synack_suppressed bypass_syncookie bypass_fastopen
        bypass_abort_on_overflow bypass_accept_queue_full bypass_no_memory bypass_namespace_limit bypass_signed
        bypass_other
    ]
}
