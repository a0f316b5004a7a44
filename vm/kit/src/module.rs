// SPDX-License-Identifier: MIT OR Apache-2.0

//! Loading and unloading the module under test.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use nix::errno::Errno;
use nix::kmod::{delete_module, finit_module, DeleteModuleFlags, ModuleInitFlags};

use crate::wait;

/// The module's name in the kernel.
pub const NAME: &str = "accf";

/// Returns the file the module is loaded from, as the guest's environment names it.
pub fn file() -> Result<PathBuf> {
    std::env::var_os("ACCF_KO")
        .map(PathBuf::from)
        .context("ACCF_KO is not set: it names the file of the module, as `cargo xtask vm` does")
}

/// Loads the module with parameters such as `timeout_ms=2000`.
pub fn load(parameters: &str) -> Result<()> {
    let path = file()?;
    let file = File::open(&path)
        .with_context(|| format!("cannot open {}: was the module built?", path.display()))?;
    finit_module(&file, &CString::new(parameters)?, ModuleInitFlags::empty()).with_context(|| {
        format!(
            "cannot load {} with `{parameters}`: the kernel log says why",
            path.display()
        )
    })
}

/// Asks the kernel to unload the module, once: `EWOULDBLOCK` says that it is in use, `ENOENT` that
/// it is not loaded.
pub fn try_unload() -> Result<(), Errno> {
    let name = CString::new(NAME).map_err(|_| Errno::EINVAL)?;
    delete_module(&name, DeleteModuleFlags::O_NONBLOCK)
}

/// Unloads the module; what still holds it has `limit` to let go.
pub fn unload(limit: Duration) -> Result<()> {
    let mut last = Ok(());
    wait::until(limit, || {
        last = try_unload();
        Ok(last != Err(Errno::EWOULDBLOCK))
    })?;
    match last {
        Ok(()) => Ok(()),
        Err(Errno::EWOULDBLOCK) => bail!(
            "the module is still in use after {} ms: reference count {}, {}; other processes:\n{}",
            limit.as_millis(),
            refcount()?.map_or_else(|| "unknown".to_owned(), |count| count.to_string()),
            match is_pinned()? {
                true => "pinned",
                false => "not pinned",
            },
            processes()
        ),
        Err(error) => Err(error).context("unload the module"),
    }
}

/// Describes the processes that have a command line, which those of the kernel do not have: what
/// each is, its state, and where its threads wait.
pub fn processes() -> String {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let described = numbers.filter_map(|entry| {
        let at = |file: &str| fs::read_to_string(entry.path().join(file)).ok();
        let command = at("cmdline")?.replace('\0', " ");
        let stat = at("stat")?;
        let (_, state) = stat.rsplit_once(") ")?;
        (!command.is_empty()).then(|| {
            let number = entry.file_name();
            let stack = at("stack").unwrap_or_default().replace('\n', "; ");
            format!(
                "{} {} {}[{}]",
                number.to_string_lossy(),
                state.chars().next().unwrap_or('?'),
                command,
                stack
            )
        })
    });
    described.collect::<Vec<String>>().join("\n")
}

/// Unloads the module if it is loaded, and loads it with other parameters.
pub fn reload(parameters: &str) -> Result<()> {
    if is_loaded()? {
        unload(Duration::from_secs(10))?;
    }
    load(parameters)
}

/// Returns whether the module is loaded.
pub fn is_loaded() -> Result<bool> {
    Ok(refcount()?.is_some())
}

/// Where the module's code is: its first address, and one behind it.
pub fn text() -> Result<(u64, u64)> {
    let path = format!("/sys/module/{NAME}/sections/.text");
    let start = fs::read_to_string(&path).with_context(|| path.clone())?;
    let start = u64::from_str_radix(start.trim().trim_start_matches("0x"), 16)
        .with_context(|| format!("{path}: `{}`", start.trim()))?;
    let modules = fs::read_to_string("/proc/modules").context("/proc/modules")?;
    // All of the module's memory is at least as much as its code.
    let size = column(&modules, NAME, 1).context("the module is not loaded")?;
    Ok((start, start.saturating_add(size)))
}

/// Returns whether the module says that it is pinned: it cannot be unloaded until the next reboot.
pub fn is_pinned() -> Result<bool> {
    let path = format!("/sys/module/{NAME}/parameters/pinned");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    match text.trim() {
        "Y" => Ok(true),
        "N" => Ok(false),
        other => bail!("{path}: `{other}` is neither Y nor N"),
    }
}

/// Returns how many things hold the module; nothing, if it is not loaded.
pub fn refcount() -> Result<Option<u64>> {
    match fs::read_to_string("/proc/modules") {
        Ok(modules) => Ok(refcount_in(&modules, NAME)),
        // A kernel without modules has none loaded.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("/proc/modules"),
    }
}

fn refcount_in(modules: &str, name: &str) -> Option<u64> {
    column(modules, name, 2)
}

/// Returns a number of a module's line, by its column; the name is column 0.
fn column(modules: &str, name: &str, column: usize) -> Option<u64> {
    let line = modules
        .lines()
        .find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_described() {
        let start = format!("{} ", std::process::id());
        let all = processes();
        assert!(all.lines().any(|line| line.starts_with(&start)), "{all}");
    }

    #[test]
    fn the_reference_count_is_the_third_column() {
        let modules = "accf_kunit 16384 0 - Live 0x0000000000000000 (OE)\n\
                       accf 53248 3 accf_kunit, Live 0x0000000000000000 (OE)\n";
        assert_eq!(refcount_in(modules, "accf"), Some(3));
        assert_eq!(refcount_in(modules, "accf_kunit"), Some(0));
        assert_eq!(refcount_in(modules, "acc"), None);
    }
}
