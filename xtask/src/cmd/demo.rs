// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask demo`: shows on the wire what the filter changes, and checks it.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use xshell::Shell;

use crate::demo;
use crate::kernel::Kind;
use crate::lab::Lab;
use crate::table::Screen;
use crate::{program, project, report, ui, verdict};

/// The guest's time limit, for an emulated guest on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(600);

/// The picture in the README.
const DOCS_PICTURE: &str = "docs/ladder.svg";

/// Show, packet by packet, what plain, TCP_DEFER_ACCEPT and dataready listeners do, and check it.
///
/// Boots the stock kernel, loads the module and runs four scenarios over a path with 40 ms of
/// round-trip time; in one of them a silent client meets each of dataready's three policies. Tables
/// and ladder diagrams go to the terminal; report.md, report.json, a pcapng for each listener and
/// ladder.svg to target/accf/demo/. Fails if a claim does not hold.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Demo {
    /// Also replace the picture in docs/ that the README shows.
    #[arg(long)]
    update_docs: bool,
}

impl Demo {
    /// Runs the command.
    pub(crate) fn run(&self, sh: &Shell) -> Result<ExitCode> {
        let lab = Lab::new(Kind::Stock)?;
        let program = program::build(sh, "accf-demo")?;

        let out = project::target().join("demo");
        project::empty(&out)?;
        let recorded = out.join("guest");
        ui::step("the demo in a guest", |_| {
            run_guest(&lab, &program, &recorded)
        })?;
        let outcome = demo::evaluate(&recorded, &out, Screen::stdout())?;
        report::show(&outcome.shown, "Report, packets and picture", &out);
        if self.update_docs && verdict::all_hold(&outcome.checks) {
            project::replace(DOCS_PICTURE, &outcome.picture)?;
        }
        let closing_line = demo::closing_line(&outcome.checks);
        Ok(verdict::conclude(&outcome.checks, &closing_line))
    }
}

/// Runs the scenarios in a guest, which leaves its recordings in `recorded`.
fn run_guest(lab: &Lab, program: &Path, recorded: &Path) -> Result<()> {
    let mut guest = lab.guest(&[]);
    guest.timeout = Some(TIMEOUT);
    guest.out = recorded.to_owned();
    // Without a spinner, the guest's output shows the progress.
    guest.echo = !std::io::stderr().is_terminal();
    lab.run_to_success(&guest, &[program], 0)
}
