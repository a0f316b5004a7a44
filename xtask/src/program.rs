// SPDX-License-Identifier: MIT OR Apache-2.0
//! Building the workspace's programs that run in guests, and what watches the guests.

use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use xshell::{cmd, Cmd, Shell};

use crate::{project, ui};

/// Builds the workspace's program `package` for guests: linked statically, so that it runs on any
/// guest's libc. Returns its path, which guests see.
pub(crate) fn build(sh: &Shell, package: &str) -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let directory = project::target().join("guest");
    ui::step(&format!("{package} for guests"), |_| {
        cargo_build(sh, package, &directory)
            .args(["--target", TARGET])
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .run()
            .with_context(|| format!("cannot build {package} for guests"))
    })?;
    let program = directory.join(TARGET).join("release").join(package);
    if !program.is_file() {
        bail!("the package {package} has no program of that name");
    }
    Ok(program)
}

/// Builds the workspace's plugin of QEMU `package`. Returns its path.
pub(crate) fn build_plugin(sh: &Shell, package: &str) -> Result<PathBuf> {
    let directory = project::target().join("plugin");
    ui::step(&format!("{package} for QEMU"), |_| {
        cargo_build(sh, package, &directory)
            .run()
            .with_context(|| format!("cannot build {package} for QEMU"))
    })?;
    let library = format!("lib{}.so", package.replace('-', "_"));
    let plugin = directory.join("release").join(library);
    if !plugin.is_file() {
        bail!("the package {package} is no plugin");
    }
    Ok(plugin)
}

/// The command that builds a package into a directory of its own.
fn cargo_build<'a>(sh: &'a Shell, package: &str, directory: &Path) -> Cmd<'a> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let manifest = project::root().join("Cargo.toml");
    cmd!(
        sh,
        "{cargo} build --quiet --release --manifest-path {manifest} --package {package} --target-dir {directory}"
    )
    .quiet()
}
