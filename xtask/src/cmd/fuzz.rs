// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask fuzz`: feed the module random input.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use xshell::Shell;

use super::{exit_code, test::keep};
use crate::kernel::Kind;
use crate::ktap::{self, Outcome, Results};
use crate::lab::Lab;
use crate::{program, project, ui};

/// How long a guest may take besides: to boot, and to end the last round of each case.
const BESIDES: Duration = Duration::from_secs(1200);

/// More than there are cases.
const ALL_AT_ONCE: &str = "64";

/// Feed the module random input, in a guest: socket options, questions to inet_diag, segments.
///
/// Runs the client suite's cases `fuzz.…`, all at once, each for the given minutes. A failed case
/// prints the seed and the input that led to the failure; logs are under target/accf/fuzz/.
#[derive(Debug, clap::Args)]
pub(crate) struct Fuzz {
    /// The minutes that each case runs for; 0: one round.
    #[arg(long, default_value_t = 10)]
    minutes: u64,

    /// The kernel to boot.
    #[arg(long, value_enum, default_value = "stock")]
    kernel: Kind,

    /// The seed of the random numbers; a run prints its own.
    #[arg(long)]
    seed: Option<u64>,

    /// Only cases with this in their name; may be repeated.
    #[arg(long, value_name = "SUBSTR", default_value = "fuzz.")]
    filter: Vec<String>,

    /// The number of processors.
    #[arg(long, default_value_t = 2)]
    cpus: u32,
}

impl Fuzz {
    /// Runs the command.
    pub(crate) fn run(&self, sh: &Shell) -> Result<ExitCode> {
        let lab = Lab::new(self.kernel)?;
        let suite = program::build_suite(sh)?;
        let out = project::target().join("fuzz");
        project::empty(&out)?;

        let time = Duration::from_secs(self.minutes * 60);
        let mut guest = lab.guest(&[]);
        guest.cpus = self.cpus;
        guest.timeout = Some(time + BESIDES);
        guest.kmemleak = self.kernel == Kind::Dev;
        guest.out = out.clone();
        let mut command = vec![
            suite.display().to_string(),
            "run".to_owned(),
            "--jobs".to_owned(),
            ALL_AT_ONCE.to_owned(),
            "--fuzz-seconds".to_owned(),
            time.as_secs().to_string(),
        ];
        for filter in &self.filter {
            command.extend(["--filter".to_owned(), filter.clone()]);
        }
        if let Some(seed) = self.seed {
            command.extend(["--seed".to_owned(), seed.to_string()]);
        }
        let report = lab.run(&guest, &command)?;
        keep(&report, &out)?;
        let results = ktap::parse(&String::from_utf8_lossy(&report.stdout));
        println!("\n{}", summary(&results));
        ui::print_timings();
        println!("\nLogs: {}", out.display());
        let status = report.verdict()?;
        Ok(exit_code(status == 0 && is_good(&results)))
    }
}

/// Returns whether a case passed and no case failed.
fn is_good(results: &Results) -> bool {
    let failed = |outcome| outcome == Outcome::Failed;
    results.errors.is_empty()
        && results.tests.iter().any(|t| t.outcome == Outcome::Passed)
        && !results.tests.iter().any(|test| failed(test.outcome))
}

/// Describes what each case fed to the kernel.
fn summary(results: &Results) -> String {
    let mut text = String::new();
    for test in &results.tests {
        let fed = test.detail.lines().find_map(|line| {
            let (_, fed) = line.split_once("fed, in ")?;
            Some(fed.trim())
        });
        let fed = fed.unwrap_or("see above");
        text.push_str(&format!("{:8} {}: {fed}\n", test.outcome, test.name));
    }
    for error in &results.errors {
        text.push_str(&format!("ERROR    {error}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "KTAP version 1\n1..2\n\
                        # fuzz.a (1.0 s)\n#   fed, in 3 rounds and 1.0 s: 7 calls\nok 1 fuzz.a\n\
                        # fuzz.b (1.0 s)\n#   round 0: oh\nnot ok 2 fuzz.b\n";

    #[test]
    fn the_summary_shows_what_was_fed() {
        let results = ktap::parse(TEXT);
        let text = summary(&results);
        assert_eq!(
            text,
            "ok       fuzz.a: 3 rounds and 1.0 s: 7 calls\nFAILED   fuzz.b: see above\n"
        );
        assert!(!is_good(&results));
    }

    #[test]
    fn a_run_without_a_case_is_a_failure() {
        assert!(!is_good(&ktap::parse("KTAP version 1\n1..0\n")));
        let good = TEXT.replace("not ok", "ok");
        assert!(is_good(&ktap::parse(&good)));
    }
}
