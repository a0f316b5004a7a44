// SPDX-License-Identifier: MIT OR Apache-2.0

//! Compares what a listener has counted with what its clients did.

use std::os::fd::AsFd;

use accf_kit::account::fields;
use accf_kit::control::Stats;
use accf_kit::wait;
use anyhow::{bail, Result};

pub(crate) use accf_kit::account::{consistent, describe, processors, stats};

use crate::case::Context;

/// Makes counts: those that are named, and zero for all others.
macro_rules! counted {
    ($($field:ident: $count:expr),* $(,)?) => {{
        #[allow(unused_mut)]
        let mut stats = ::accf_kit::control::Stats::default();
        $(stats.$field = $count;)*
        stats
    }};
}

pub(crate) use counted;

/// Waits until a listener has counted exactly what `expected` says.
///
/// `parked_total` need not be named: it is the sum of the others. A few parked connections may
/// still count as half-open, one for each processor; how many SYN-ACKs were suppressed is up to the
/// kernel's timers.
pub(crate) fn counts(context: &Context, listener: impl AsFd, expected: Stats) -> Result<()> {
    read_counts(context, listener, expected).map(drop)
}

/// The same; returns what it has counted.
pub(crate) fn read_counts(
    context: &Context,
    listener: impl AsFd,
    mut expected: Stats,
) -> Result<Stats> {
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
