// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest that measures: one processor, whose instructions are its clock.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use accf_bench::Bench;
use anyhow::Result;
use xshell::Shell;

use crate::guest::Guest;
use crate::lab::Lab;
use crate::program;

/// How long the guest may take; an emulated one on a busy machine is slow.
const TIMEOUT: Duration = Duration::from_secs(4 * 3600);

/// The same for a short run.
const SHORT_TIMEOUT: Duration = Duration::from_secs(1200);

/// How often measuring may begin anew: it refuses what was disturbed, by work that the kernel does at times of its own.
const REPEATS: u32 = 1;

/// The machine that counts: one nanosecond of all clocks is an instruction, and nobody waits while it idles.
const QEMU_ARGUMENTS: [&str; 4] = [
    "-accel",
    "tcg,thread=single",
    "-icount",
    "shift=0,sleep=off",
];

/// What is to be measured.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// The benchmarks.
    pub(crate) benches: Vec<Bench>,
    /// How often each figure is measured.
    pub(crate) rounds: u32,
    /// Fewer connections and shorter times.
    pub(crate) short: bool,
}

/// Builds the program that measures.
pub(crate) fn build_program(sh: &Shell) -> Result<PathBuf> {
    program::build(sh, "accf-bench")
}

/// A guest that counts. Its command loads `module` itself.
pub(crate) fn machine(lab: &Lab, module: &Path) -> Guest {
    let mut guest = lab.guest(&[]);
    guest.module = None;
    guest
        .environment
        .push(("ACCF_KO".to_owned(), module.as_os_str().to_owned()));
    guest.cpus = 1;
    guest.qemu_arguments = QEMU_ARGUMENTS.map(str::to_owned).to_vec();
    // Where no spinner shows that it goes on, the guest's own words do.
    guest.echo = !std::io::stderr().is_terminal();
    guest
}

impl Request {
    /// Runs the program in a guest, which leaves its recording in `recorded`. It loads `module` itself.
    pub(crate) fn run(
        &self,
        lab: &Lab,
        program: &Path,
        module: &Path,
        recorded: &Path,
    ) -> Result<()> {
        let mut guest = machine(lab, module);
        guest.memory = if self.short { "1536M" } else { "3G" }.to_owned();
        guest.timeout = Some(if self.short { SHORT_TIMEOUT } else { TIMEOUT });
        guest.out = recorded.to_owned();
        let mut command = vec![
            program.as_os_str().to_owned(),
            "--rounds".into(),
            self.rounds.to_string().into(),
        ];
        if self.short {
            command.push("--short".into());
        }
        command.extend(self.benches.iter().map(|bench| bench.key().into()));
        lab.run_to_success(&guest, &command, REPEATS)
    }
}
