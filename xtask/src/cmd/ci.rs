// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask ci`: everything that has to hold before a change is merged.

use std::process::ExitCode;

use anyhow::Result;
use xshell::Shell;

use super::{Demo, Test};

/// Run the tests and the demo, and print how long each part took.
#[derive(Debug, clap::Args)]
pub(crate) struct Ci {}

impl Ci {
    /// Runs the command.
    pub(crate) fn run(&self, sh: &Shell) -> Result<ExitCode> {
        // A failure of one does not keep the other from running.
        let demo = Demo::default().run(sh);
        let test = Test::default().run(sh)?;
        let demo = demo?;
        Ok(if demo == ExitCode::SUCCESS {
            test
        } else {
            demo
        })
    }
}
