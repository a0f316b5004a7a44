// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask setup`: make the sysroot and the kernels.

use anyhow::Result;
use xshell::Shell;

use crate::kernel::{Kernel, Kind};
use crate::sysroot::Sysroot;

/// Make the sysroot and both kernels; the other commands make what they need of it by themselves.
#[derive(Debug, clap::Args)]
pub(crate) struct Setup {
    /// Make a new sysroot from today's archive: newer packages, the newest supported kernel.
    #[arg(long)]
    refresh: bool,

    /// The package archive's debian/ directory; by default what the host's apt is configured with.
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
}

impl Setup {
    /// Runs the command.
    pub(crate) fn run(&self, _sh: &Shell) -> Result<()> {
        if self.refresh {
            Sysroot::forget()?;
        }
        let sysroot = Sysroot::ensure(self.mirror.as_deref())?;
        println!("sysroot: {}", sysroot.path().display());
        for kind in [Kind::Stock, Kind::Dev] {
            let kernel = Kernel::ensure(&sysroot, kind)?;
            println!("{} kernel: {}", kind.name(), kernel.image.display());
        }
        Ok(())
    }
}
