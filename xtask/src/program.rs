// SPDX-License-Identifier: MIT OR Apache-2.0
//! Builds the workspace's programs that run in guests, and the plugin of QEMU.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use xshell::{cmd, Cmd, Shell};

use crate::{project, ui};

/// The target that programs for guests are built for.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The programs for guests.
const PROGRAMS: [&str; 5] = ["accf", "accf-bench", "accf-demo", "accf-soak", "accf-suite"];

/// Returns the directory of the programs for guests, which is on the guests' PATH.
pub(crate) fn directory() -> PathBuf {
    output().join(TARGET).join("release")
}

/// Returns the directory that programs for guests are built into.
fn output() -> PathBuf {
    project::target().join("guest")
}

/// Builds the workspace's program `package` for guests: linked statically, so that it runs on any
/// guest's libc. Returns its path, which guests see.
pub(crate) fn build(sh: &Shell, package: &str) -> Result<PathBuf> {
    ui::step(&format!("{package} for guests"), |_| {
        cargo_build(sh, package, &output())
            .args(["--target", TARGET])
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .run()
            .with_context(|| format!("cannot build {package} for guests"))
    })?;
    let program = directory().join(package);
    if !program.is_file() {
        bail!("the package {package} has no program of that name");
    }
    Ok(program)
}

/// Builds the client suite, and the command `accf`, which it runs. Returns the suite's path.
pub(crate) fn build_suite(sh: &Shell) -> Result<PathBuf> {
    build(sh, "accf")?;
    build(sh, "accf-suite")
}

/// Builds the command `accf` and the programs that `command` names; all, for a shell.
pub(crate) fn build_named(sh: &Shell, command: &[OsString]) -> Result<()> {
    for package in named(command)? {
        build(sh, package)?;
    }
    Ok(())
}

/// Returns the programs for guests that `command` needs, of which a shell (no command) gets all.
fn named(command: &[OsString]) -> Result<Vec<&'static str>> {
    let text = command.join(OsStr::new(" "));
    let text = text.to_string_lossy();
    let words: Vec<&str> = text
        .split(|c: char| !(c.is_alphanumeric() || matches!(c, '-' | '_')))
        .collect();
    if let Some(first) = command.first().and_then(|word| word.to_str()) {
        // Any other command may be one of the guest's.
        if first.starts_with("accf") && !first.contains('/') && !PROGRAMS.contains(&first) {
            bail!("no program `{first}`: guests have {}", PROGRAMS.join(", "));
        }
    }
    Ok(PROGRAMS
        .into_iter()
        .filter(|name| command.is_empty() || *name == "accf" || words.contains(name))
        .collect())
}

/// Builds the workspace's plugin of QEMU `package` and returns its path.
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

/// Returns the command that builds a package into a directory of its own.
fn cargo_build<'a>(sh: &'a Shell, package: &str, directory: &Path) -> Cmd<'a> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let manifest = project::root().join("Cargo.toml");
    cmd!(
        sh,
        "{cargo} build --quiet --release --manifest-path {manifest} --package {package}"
    )
    .arg("--target-dir")
    .arg(directory)
    .quiet()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the programs that the command of these words needs.
    fn needed(words: &[&str]) -> Vec<&'static str> {
        let command: Vec<OsString> = words.iter().map(OsString::from).collect();
        named(&command).unwrap()
    }

    #[test]
    fn a_command_gets_the_programs_that_it_names() {
        assert_eq!(needed(&["true"]), ["accf"]);
        assert_eq!(needed(&["accf", "list"]), ["accf"]);
        let suite = ["accf", "accf-suite"];
        assert_eq!(needed(&["accf-suite", "run", "--list"]), suite);
        assert_eq!(needed(&["strace", "-f", "accf-suite", "run"]), suite);
        assert_eq!(needed(&["sh", "-c", "accf list; accf-suite run"]), suite);
        assert_eq!(needed(&["ls", "accf-suites", "my_accf-suite"]), ["accf"]);
        assert_eq!(needed(&[]), PROGRAMS);
    }

    #[test]
    fn a_program_that_guests_do_not_have_is_an_error() {
        let error = named(&["accf-suit".into()]).unwrap_err().to_string();
        for part in ["accf-suit`", "accf-suite"] {
            assert!(error.contains(part), "{error}");
        }
        // A script of the user's own.
        named(&["./accf-try".into()]).unwrap();
    }

    #[test]
    fn every_program_is_a_package_of_the_workspace() {
        for name in PROGRAMS {
            let directory = name.strip_prefix("accf-").map(|rest| format!("vm/{rest}"));
            let manifest = project::root().join(directory.as_deref().unwrap_or(name));
            let text = std::fs::read_to_string(manifest.join("Cargo.toml")).unwrap();
            assert!(text.contains(&format!("name = \"{name}\"\n")), "{name}");
        }
    }
}
