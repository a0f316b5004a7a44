// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask tidy`: check the rules that no compiler checks.

use anyhow::Result;
use xshell::Shell;

use crate::tidy;

/// Check licence headers, documentation, where `unsafe` is, width, SAFETY comments, imports, words
/// that are out, the layers of module/net/, commit subjects, and that nothing of this machine is in
/// a file or commit.
#[derive(Debug, clap::Args)]
pub(crate) struct Tidy {}

impl Tidy {
    /// Runs the command.
    pub(crate) fn run(&self, sh: &Shell) -> Result<()> {
        tidy::run(sh)?;
        println!("tidy");
        Ok(())
    }
}
