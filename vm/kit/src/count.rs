// SPDX-License-Identifier: MIT OR Apache-2.0

//! Counting instead of timing, on a machine that can.
//!
//! QEMU with `-icount shift=0` and one processor advances that processor's time-stamp counter, and
//! all clocks of the guest, by one nanosecond for each instruction. Differences are then numbers of
//! instructions, of programs and of the kernel, whatever else the host does.

use std::time::Instant;

use anyhow::{ensure, Result};

use crate::{marks, sys};

/// Returns how many instructions this machine's processor has executed, if [`check`] has found that
/// it counts them.
pub fn instructions() -> u64 {
    sys::time_stamp_counter()
}

/// Does some work, and returns how many instructions that took: of this thread, and of all others
/// that had the processor meanwhile.
///
/// A profiler that watches the machine (`cargo xtask profile`) counts exactly these.
pub fn during<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let begin = instructions();
    sys::mark::<{ marks::RESUME }>();
    let result = work();
    sys::mark::<{ marks::PAUSE }>();
    (result, instructions() - begin)
}

/// Does some work, and has a profiler, if one watches, separate what is counted [`during`] it from
/// everything else.
pub fn section<T>(work: impl FnOnce() -> T) -> T {
    sys::mark::<{ marks::BEGIN }>();
    let result = work();
    sys::mark::<{ marks::END }>();
    result
}

/// Refuses a machine that does not count instructions.
///
/// The same work must take the same number of them, and all clocks must agree on that number.
pub fn check() -> Result<()> {
    const STEPS: u64 = 20_000;
    let work = || {
        let begin = instructions();
        let mut sum = 0u64;
        for step in 0..STEPS {
            sum = std::hint::black_box(sum.wrapping_add(step));
        }
        instructions() - begin
    };
    let clock = Instant::now();
    let begin = instructions();
    let mut runs: Vec<u64> = (0..9).map(|_| work()).collect();
    let (counted, elapsed) = (instructions() - begin, clock.elapsed());
    runs.sort_unstable();
    // Some are interrupted by the clock tick; the least and the middle one are not.
    let (least, middle) = (runs[0], runs[runs.len() / 2]);
    ensure!(
        middle - least <= least / 1000,
        "this machine does not count instructions: the same work took {least} and {middle} \
         (is it QEMU with -icount shift=0 and one processor?)"
    );
    let elapsed = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
    ensure!(
        elapsed.abs_diff(counted) <= counted / 50,
        "this machine's clock is not its count of instructions: {counted} of them in {elapsed} ns \
         (is it QEMU with -icount shift=0?)"
    );
    Ok(())
}

/// Makes the calling thread one that runs only while no other wants to (`SCHED_IDLE`), and that
/// every thread that wakes up preempts: what a client on the server's own machine should be. It
/// must not sleep then: it would leave the processor idle, and the clock would jump.
pub fn run_only_when_idle() -> Result<()> {
    Ok(sys::run_only_when_idle()?)
}
