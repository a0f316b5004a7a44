// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest of the benchmarks: it has one processor, and its clocks count instructions.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use accf_bench::Bench;
use anyhow::Result;

use crate::guest::Guest;
use crate::lab::Lab;

/// The guest's time limit, for an emulated guest on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(4 * 3600);

/// The time limit of a short run.
const SHORT_TIMEOUT: Duration = Duration::from_secs(1200);

/// How often the program may be started again: it fails if periodic work of the kernel disturbed a
/// measurement.
const REPEATS: u32 = 1;

/// Lets each instruction advance all clocks by one nanosecond, and skips idle time.
const QEMU_ARGUMENTS: [&str; 4] = [
    "-accel",
    "tcg,thread=single",
    "-icount",
    "shift=0,sleep=off",
];

/// The benchmarks to run.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// The names of the benchmarks.
    pub(crate) benches: Vec<Bench>,
    /// The number of rounds.
    pub(crate) rounds: u32,
    /// Whether to run with fewer connections and shorter times.
    pub(crate) short: bool,
}

/// Returns a guest whose clocks count instructions. Its command loads `module` itself.
pub(crate) fn machine(lab: &Lab, module: &Path) -> Guest {
    let mut guest = lab.guest(&[]);
    guest.module = None;
    guest
        .environment
        .push(("ACCF_KO".to_owned(), module.as_os_str().to_owned()));
    guest.cpus = 1;
    guest.qemu_arguments = QEMU_ARGUMENTS.map(str::to_owned).to_vec();
    // Without a spinner, the guest's output shows the progress.
    guest.echo = !std::io::stderr().is_terminal();
    guest
}

impl Request {
    /// Runs the program in a guest, which leaves its recording in `recorded`. It loads `module`
    /// itself.
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
