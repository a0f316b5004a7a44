// SPDX-License-Identifier: MIT OR Apache-2.0
//! Building the workspace's programs that run in guests.

use std::path::PathBuf;

use anyhow::{bail, Context, Result};
use xshell::{cmd, Shell};

use crate::{project, ui};

/// Builds the workspace's program `package` for guests: linked statically, so that it runs on any
/// guest's libc. Returns its path, which guests see.
pub(crate) fn build(sh: &Shell, package: &str) -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let directory = project::target().join("guest");
    ui::step(&format!("{package} for guests"), |_| {
        let _here = sh.push_dir(project::root());
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        cmd!(
            sh,
            "{cargo} build --quiet --release --package {package} --target {TARGET} --target-dir {directory}"
        )
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .quiet()
        .run()
        .with_context(|| format!("cannot build {package} for guests"))
    })?;
    let program = directory.join(TARGET).join("release").join(package);
    if !program.is_file() {
        bail!("the package {package} has no program of that name");
    }
    Ok(program)
}
