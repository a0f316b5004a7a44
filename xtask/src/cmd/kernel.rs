// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask kernel`: make one of the kernels.

use anyhow::Result;
use xshell::Shell;

use crate::kernel::{Kernel, Kind};
use crate::sysroot::Sysroot;

/// Make one of the kernels and print its path.
#[derive(Debug, clap::Args)]
pub(crate) struct KernelCmd {
    /// Which kernel.
    #[arg(value_enum)]
    kind: Kind,
}

impl KernelCmd {
    /// Runs the command.
    pub(crate) fn run(&self, _sh: &Shell) -> Result<()> {
        let sysroot = Sysroot::ensure(None)?;
        let kernel = Kernel::ensure(&sysroot, self.kind)?;
        println!("image: {}", kernel.image.display());
        println!("build tree: {}", kernel.build.display());
        Ok(())
    }
}
