// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask build`: build the modules.

use anyhow::Result;
use xshell::Shell;

use crate::kernel::{Kernel, Kind, Target};
use crate::module;
use crate::sysroot::Sysroot;

/// Build the modules for a kernel and print their paths.
#[derive(Debug, clap::Args)]
pub(crate) struct Build {
    /// `stock`, `dev`, `kcsan`, `rt`, or the build directory of a configured kernel of your own
    /// with Rust support; the host's compilers must be those that it was built with.
    #[arg(long, value_name = "KERNEL", default_value = "stock")]
    kernel: Target,
}

impl Build {
    /// Runs the command.
    pub(crate) fn run(&self, _sh: &Shell) -> Result<()> {
        match &self.kernel {
            Target::Ours(kind) => build_ours(*kind),
            Target::Custom(tree) => {
                println!("{}", module::build_custom(tree)?.display());
                Ok(())
            }
        }
    }
}

/// Builds for one of the kernels that guests run.
fn build_ours(kind: Kind) -> Result<()> {
    let sysroot = Sysroot::ensure(None)?;
    let kernel = Kernel::ensure(&sysroot, kind)?;
    let modules = module::build(&sysroot, &kernel)?;
    for module in [Some(modules.accf), modules.kunit].into_iter().flatten() {
        println!("{}", module.display());
    }
    Ok(())
}
