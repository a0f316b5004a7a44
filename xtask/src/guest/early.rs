// SPDX-License-Identifier: MIT OR Apache-2.0
//! Machines that hang before their first process runs, and emulators that crash.
//!
//! An emulated machine with several processors on a busy host sometimes hangs while the kernel
//! boots, before there is anything of ours to test; QEMU was also seen to fail an assertion then.
//! Such a guest proves nothing: it is booted again, a few times, and the boot that hung is
//! reported. Once the first process runs, or the kernel has complained, a hang is a result like any
//! other.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use fs_err as fs;

use super::machine::End;
use super::splat;

/// How long a machine may be silent before its first process runs.
///
/// The kernel prints messages all the time while it boots (see `KERNEL_ARGUMENTS`), so this is long
/// even on a busy host.
pub(super) const SILENCE: Duration = Duration::from_secs(60);

/// How often a machine that hung early is booted again.
pub(super) const AGAIN: usize = 2;

/// What is known of a running machine that has left no verdict.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    /// The time since it was switched on.
    pub(super) age: Duration,
    /// The time since its last console output, or since it was switched on.
    pub(super) silent_for: Duration,
    /// Its first process has created its mark.
    pub(super) has_started: bool,
    /// The kernel has reported that something is wrong.
    pub(super) complains: bool,
}

/// The decision about a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// It may go on.
    Wait,
    /// It has hung before there was anything to test.
    HungEarly,
    /// Its time is over.
    TimedOut,
}

impl Sight {
    /// Returns whether no process has run in it yet, and the kernel has not complained.
    pub(super) fn is_early(self) -> bool {
        !self.has_started && !self.complains
    }

    /// Decides about a machine that may run for `limit`.
    pub(super) fn judge(self, limit: Option<Duration>) -> Judgement {
        if limit.is_some_and(|limit| self.age > limit) {
            Judgement::TimedOut
        } else if self.is_early() && self.silent_for > SILENCE {
            Judgement::HungEarly
        } else {
            Judgement::Wait
        }
    }
}

/// Returns whether the output of an emulator shows that it crashed, by SIGABRT or SIGSEGV.
pub(super) fn is_a_crash(said: &str) -> bool {
    said.lines().any(|line| {
        line.starts_with("qemu-system-")
            && (line.ends_with("failed (134)") || line.ends_with("failed (139)"))
    })
}

/// Boots a machine by `boot`, and again while it hangs or crashes early, up to [`AGAIN`] times.
/// Returns how the last boot ended, and what `vain` returned for those before.
pub(super) fn insist<T>(
    mut boot: impl FnMut() -> Result<(End, T)>,
    mut vain: impl FnMut(usize, &End) -> Result<String>,
) -> Result<(End, T, Vec<String>)> {
    let mut in_vain = Vec::new();
    loop {
        let (end, with) = boot()?;
        if !matches!(end, End::HungEarly | End::CrashedEarly(_)) || in_vain.len() == AGAIN {
            return Ok((end, with, in_vain));
        }
        in_vain.push(vain(in_vain.len() + 1, &end)?);
    }
}

/// Renames the output of the machine's boot `number`, which ended with `end`, so that the next boot
/// does not add to it. Returns a description of the boot.
pub(super) fn set_aside(run: &Path, number: usize, end: &End) -> Result<String> {
    let mut last = "nothing before".to_owned();
    for name in ["virtme.log", "console"] {
        let from = run.join(name);
        if !from.exists() {
            continue;
        }
        let said = fs::read(&from)?;
        let said = String::from_utf8_lossy(&said);
        let line = said.lines().rev().find(|line| !line.trim().is_empty());
        if let Some(line) = line {
            last = format!("last `{}`", splat::message(line.trim()));
        }
        let to = run.join(format!("{name}.hung-{number}"));
        fs::rename(&from, &to)?;
    }
    let what = match end {
        End::CrashedEarly(said) => format!("crashed before the first process ran: {}", said.trim()),
        _ => format!(
            "hung before the first process ran: no output for {} s",
            SILENCE.as_secs()
        ),
    };
    Ok(format!(
        "boot {number} {what}, and {last}; see {}",
        run.join(format!("console.hung-{number}")).display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    const SECOND: Duration = Duration::from_secs(1);
    const LIMIT: Option<Duration> = Some(Duration::from_secs(600));

    /// A machine that has hung in early boot.
    fn hung() -> Sight {
        Sight {
            age: SILENCE + SECOND * 5,
            silent_for: SILENCE + SECOND,
            has_started: false,
            complains: false,
        }
    }

    #[test]
    fn a_machine_that_is_silent_before_its_first_process_has_hung() {
        assert_eq!(hung().judge(LIMIT), Judgement::HungEarly);
        assert_eq!(hung().judge(None), Judgement::HungEarly);
    }

    #[test]
    fn a_machine_with_recent_output_goes_on() {
        let slow = Sight {
            age: SILENCE * 4,
            silent_for: SILENCE - SECOND,
            ..hung()
        };
        assert_eq!(slow.judge(LIMIT), Judgement::Wait);
    }

    #[test]
    fn once_the_first_process_runs_only_the_timeout_counts() {
        let mut late = Sight {
            has_started: true,
            ..hung()
        };
        assert_eq!(late.judge(LIMIT), Judgement::Wait);
        assert_eq!(late.judge(None), Judgement::Wait);
        late.age = SECOND * 601;
        assert_eq!(late.judge(LIMIT), Judgement::TimedOut);
    }

    #[test]
    fn a_kernel_that_complains_is_not_booted_again() {
        let complains = Sight {
            complains: true,
            ..hung()
        };
        assert_eq!(complains.judge(LIMIT), Judgement::Wait);
    }

    #[test]
    fn a_crash_of_the_emulator_is_told_from_its_complaints() {
        assert!(is_a_crash(
            "x.c:228: Assertion `addr' failed.\nAborted\nqemu-system-x86_64 failed (134)\n"
        ));
        assert!(!is_a_crash(
            "qemu-system-x86_64: -cpu: no such\nqemu-system-x86_64 failed (1)\n"
        ));
        assert!(!is_a_crash(""));
    }

    #[test]
    fn a_limit_that_is_shorter_than_the_silence_holds() {
        assert_eq!(hung().judge(Some(SILENCE)), Judgement::TimedOut);
    }

    /// Returns how often a machine is booted whose first `hangs` boots hang, and their
    /// descriptions.
    fn boots(hangs: usize) -> (usize, End, Vec<String>) {
        let mut count = 0;
        let (end, number, in_vain) = insist(
            || {
                count += 1;
                let end = if count <= hangs {
                    End::HungEarly
                } else {
                    End::TimedOut
                };
                Ok((end, count))
            },
            |number, _| Ok(number.to_string()),
        )
        .unwrap();
        assert_eq!(number, count);
        (count, end, in_vain)
    }

    #[test]
    fn a_machine_is_booted_three_times_at_most() {
        let (count, end, in_vain) = boots(0);
        assert!(matches!((count, end), (1, End::TimedOut)) && in_vain.is_empty());
        let (count, end, in_vain) = boots(2);
        assert!(matches!((count, end), (3, End::TimedOut)));
        assert_eq!(in_vain, ["1", "2"]);
        let (count, end, in_vain) = boots(9);
        assert!(matches!((count, end), (3, End::HungEarly)));
        assert_eq!(in_vain, ["1", "2"]);
    }

    #[test]
    fn the_output_of_a_machine_that_hung_is_kept() {
        let run = Scratch::new("hung");
        let said = "[    0.0] first\r\n[    0.1] tsc: last\r\n\r\n";
        fs::write(run.0.join("console"), said).unwrap();
        fs::write(run.0.join("virtme.log"), "").unwrap();
        let text = set_aside(&run.0, 1, &End::HungEarly).unwrap();
        assert!(text.contains("last `tsc: last`; see"), "{text}");
        assert_eq!(run.text("console.hung-1"), said);
        assert!(!run.0.join("console").exists());
        let text = set_aside(&run.0, 2, &End::HungEarly).unwrap();
        assert!(text.contains("nothing before"), "{text}");
    }
}
