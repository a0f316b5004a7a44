// SPDX-License-Identifier: MIT OR Apache-2.0
//! Repeats a measurement during which the machine stood still, as an emulated one on a busy host
//! sometimes does.

use std::time::Duration;

use accf_kit::clock::{Pulse, Stamp};
use anyhow::Result;

const RUNS: u32 = 5;

/// The run in which the machine was late the least.
pub(crate) struct BestRun<T> {
    pub(crate) result: T,
    /// The most by which the machine was late in running a thread whose sleep was over.
    pub(crate) late: Duration,
    /// The number of runs.
    pub(crate) runs: u32,
}

impl<T> BestRun<T> {
    /// Returns how late the machine was, as in the report.
    pub(crate) fn late_us(&self) -> u64 {
        u64::try_from(self.late.as_micros()).unwrap_or(u64::MAX)
    }
}

/// Measures, and measures again if the machine was late by more than `tolerable` meanwhile.
///
/// The lateness is measured by a thread that has no part in the measurement. The run with the least
/// lateness counts, whatever its results are.
pub(crate) fn best_run<T>(
    pulse: &Pulse,
    tolerable: Duration,
    measure: impl FnMut() -> Result<T>,
) -> Result<BestRun<T>> {
    choose(|from, to| pulse.worst(from, to), tolerable, measure)
}

/// Does what [`best_run`] does, with `lateness` for how late the machine was between two times.
fn choose<T>(
    mut lateness: impl FnMut(Stamp, Stamp) -> Duration,
    tolerable: Duration,
    mut measure: impl FnMut() -> Result<T>,
) -> Result<BestRun<T>> {
    let mut run = || {
        let from = Stamp::now();
        let result = measure()?;
        anyhow::Ok((result, lateness(from, Stamp::now())))
    };
    let (mut result, mut late) = run()?;
    let mut runs = 1;
    let mut latest = late;
    while latest > tolerable && runs < RUNS {
        crate::say(&format!(
            "the machine stood still for {} ms: running it again",
            latest.as_millis()
        ));
        let next = run()?;
        runs += 1;
        latest = next.1;
        if latest < late {
            (result, late) = next;
        }
    }
    Ok(BestRun { result, late, runs })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chooses among runs numbered from 1, each with its lateness in `script`.
    fn best_of(script: &[u64], tolerable: u64) -> BestRun<u32> {
        let mut late = script.iter().copied().map(Duration::from_millis);
        let mut number = 0;
        let run = || {
            number += 1;
            Ok(number)
        };
        let tolerable = Duration::from_millis(tolerable);
        choose(
            |_, _| late.next().expect("one run too many"),
            tolerable,
            run,
        )
        .unwrap()
    }

    #[test]
    fn a_run_without_lateness_is_the_last_one() {
        let best = best_of(&[9], 10);
        assert_eq!((best.result, best.runs, best.late_us()), (1, 1, 9000));
        let best = best_of(&[80, 3], 10);
        assert_eq!((best.result, best.runs, best.late_us()), (2, 2, 3000));
    }

    #[test]
    fn if_every_run_is_late_the_least_late_counts() {
        let best = best_of(&[80, 30, 50, 40, 60], 10);
        assert_eq!((best.result, best.runs, best.late_us()), (2, 5, 30_000));
        let best = best_of(&[20, 30, 50, 40, 60], 10);
        assert_eq!((best.result, best.runs, best.late_us()), (1, 5, 20_000));
    }

    #[test]
    fn a_measurement_that_fails_is_not_repeated() {
        let mut runs = 0;
        let best = choose(
            |_, _| Duration::MAX,
            Duration::ZERO,
            || -> Result<()> {
                runs += 1;
                anyhow::bail!("no")
            },
        );
        assert!(best.is_err());
        assert_eq!(runs, 1);
    }
}
