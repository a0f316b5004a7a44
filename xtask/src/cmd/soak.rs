// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask soak`: runs everything at once for a long time, and checks that nothing is left of
//! it.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use xshell::Shell;

use crate::kernel::Kind;
use crate::lab::Lab;
use crate::soak::Request;
use crate::table::Screen;
use crate::{program, project, report, ui, verdict};

/// Run everything at once in a guest with four processors, and prove that nothing is left of it.
///
/// Clients of every kind connect to listeners of every kind while settings change, listeners close,
/// servers are killed, namespaces are removed, allocations fail (dev kernel), packets are lost, and
/// unloading the module is tried all the time. report.md, report.json and the guest's logs go to
/// target/accf/soak/. Fails if a proof does not hold; the last line says so.
#[derive(Debug, clap::Args)]
pub(crate) struct Soak {
    /// For how long clients connect, without the time to boot and to wait for the end of each
    /// round.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,

    /// The kernel to boot.
    #[arg(long, value_enum, default_value = "dev")]
    kernel: Kind,

    /// The seed of all random numbers [default: from the clock].
    #[arg(long)]
    seed: Option<u64>,
}

impl Soak {
    /// Runs the command.
    pub(crate) fn run(&self, sh: &Shell) -> Result<ExitCode> {
        let seed = self.seed.map_or_else(any_seed, Ok)?;
        let request = Request {
            kind: self.kernel,
            time: Duration::from_secs(self.minutes * 60),
            seed,
        };
        let lab = Lab::new(self.kernel)?;
        let program = program::build(sh, "accf-soak")?;
        let out = project::target().join("soak");
        println!("seed {seed}: --seed {seed} repeats the random numbers");
        let soak = ui::step("the soak in a guest", |_| {
            request.run(&lab, &program, &out, true)
        })?;
        report::show(
            &soak.document().terminal(Screen::stdout()),
            "Report and logs",
            &out,
        );
        Ok(verdict::conclude(&soak.proofs, &soak.closing_line()))
    }
}

/// Returns a seed from the clock.
pub(crate) fn any_seed() -> Result<u64> {
    let time = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    // Short enough to be typed.
    Ok(u64::from(time.subsec_nanos()) ^ (time.as_secs() & 0xffff))
}
