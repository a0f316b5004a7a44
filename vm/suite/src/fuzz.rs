// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random input, round by round, until the time is over.
//!
//! Each round has its own random numbers, made from the run's seed and the round's number: running
//! it first repeats it. The interleaving of its threads is not repeated.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};

use crate::case::{Context, Kernel};
use crate::runner::PROGRESS;

/// How often a long run reports its progress.
const TELL: Duration = Duration::from_secs(10);

/// How many times longer than planned a run may take until it has fed some of each needed kind.
const MOST: u32 = 6;

/// Counts what was fed to the kernel, by kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fed {
    counts: BTreeMap<&'static str, u64>,
}

impl Fed {
    /// Counts one more.
    pub(crate) fn one(&mut self, what: &'static str) {
        self.many(what, 1);
    }

    /// Counts some more.
    pub(crate) fn many(&mut self, what: &'static str, count: u64) {
        *self.counts.entry(what).or_default() += count;
    }

    /// Returns how many of `what` were fed.
    fn count(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or_default()
    }
}

impl fmt::Display for Fed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self
            .counts
            .iter()
            .map(|(what, count)| format!("{count} {what}"))
            .collect();
        f.write_str(&texts.join(", "))
    }
}

/// Runs rounds until the time is over, at least one, and notes what they fed to the kernel.
///
/// Some of each `needed` kind must be fed: a machine too slow for that is given more time.
pub(crate) fn rounds(
    context: &Context,
    needed: &[&'static str],
    mut round: impl FnMut(&mut fastrand::Rng, &mut Fed) -> Result<()>,
) -> Result<()> {
    let time = context.fuzz_time.unwrap_or(match context.kernel {
        Kernel::Stock => Duration::from_secs(5),
        Kernel::Dev => Duration::from_secs(8),
    });
    let start = Instant::now();
    let mut told = start;
    let mut fed = Fed::default();
    let mut nth = 0;
    loop {
        let seed = context.seed.wrapping_add(nth);
        let mut rng = context.rng_from(seed);
        round(&mut rng, &mut fed).with_context(|| {
            let name = &context.name;
            format!(
                "round {nth}, which comes first with `accf-suite run --filter {name} \
                 --seed {seed} --fuzz-seconds 0`"
            )
        })?;
        nth += 1;
        let lacking = needed.iter().find(|what| fed.count(what) == 0);
        // One round only, to repeat it.
        let is_over = time.is_zero() || (start.elapsed() >= time && lacking.is_none());
        if is_over {
            break;
        }
        if let (true, Some(what)) = (start.elapsed() >= time * MOST, lacking) {
            bail!("in {nth} rounds, nothing was fed of: {what} ({fed})");
        }
        if context.fuzz_time.is_some() && told.elapsed() >= TELL {
            told = Instant::now();
            println!(
                "{PROGRESS}{:.0} s, {nth} rounds: {fed}",
                start.elapsed().as_secs_f64()
            );
        }
    }
    context.note(format!(
        "fed, in {nth} rounds and {:.1} s: {fed}",
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Returns a random number, often a special one.
pub(crate) fn special(rng: &mut fastrand::Rng) -> u32 {
    const SPECIAL: [u32; 18] = [
        0,
        1,
        2,
        3,
        4,
        255,
        256,
        16_383,
        16_384,
        16_385,
        60_000,
        0x7fff_ffff,
        0x8000_0000,
        0x8000_0001,
        0xffff_fffe,
        u32::MAX,
        4_294_967,
        0xffff,
    ];
    match rng.u8(..4) {
        0 => rng.u32(..),
        1 => 1 << rng.u32(..32),
        2 => rng.u32(..100_000),
        _ => rng.choice(SPECIAL).unwrap_or_default(),
    }
}

/// Returns random bytes, at most `most`.
pub(crate) fn bytes(rng: &mut fastrand::Rng, most: usize) -> Vec<u8> {
    let length = rng.usize(..=most);
    std::iter::repeat_with(|| rng.u8(..)).take(length).collect()
}
