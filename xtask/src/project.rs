// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are: the checkout and the directories of its build products.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{bail, Result};
use fs_err as fs;

/// The directory of this package when it was compiled.
const COMPILED: &str = env!("CARGO_MANIFEST_DIR");

/// Returns the checkout's root directory; see [`check`].
pub(crate) fn root() -> &'static Path {
    // xtask/ is a direct child of the root.
    Path::new(COMPILED).parent().unwrap_or(Path::new("/"))
}

/// Checks that cargo runs this program in the checkout that it was compiled in.
///
/// Cargo takes the program for up to date in a checkout that was moved or copied with its target/.
/// Its paths, and the files of vm/ that are compiled into it, are then those of the old place.
pub(crate) fn check() -> Result<()> {
    let running = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    check_place(Path::new(COMPILED), running.as_deref())
}

/// Checks that `running`, where cargo found this package, is `compiled`.
fn check_place(compiled: &Path, running: Option<&Path>) -> Result<()> {
    let Some(running) = running else {
        bail!("only cargo says which checkout is meant: run this program as `cargo xtask`");
    };
    // A link to a checkout is the same checkout.
    let same = match (compiled.canonicalize(), running.canonicalize()) {
        (Ok(compiled), Ok(running)) => compiled == running,
        _ => false,
    };
    if !same {
        bail!(
            "this program was compiled in {} but runs in {}: the checkout was moved, or copied \
             with its target/, and the program would build and test the old place. Run `cargo \
             clean --package xtask`, then the command again",
            compiled.display(),
            running.display()
        );
    }
    Ok(())
}

/// Returns the directory that holds every product and log of the tasks.
pub(crate) fn target() -> PathBuf {
    root().join("target/accf")
}

/// Makes the directory `path`, empty: a result of an earlier run must not count as one of this run.
pub(crate) fn empty(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path)?;
    }
    Ok(fs::create_dir_all(path)?)
}

/// Replaces the committed file `name`, a path in the checkout, by `text`, and prints its name.
pub(crate) fn replace(name: &str, text: &str) -> Result<()> {
    let path = root().join(name);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(&path, text)?;
    println!("Replaced {name}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn another_checkout_than_the_compiled_one_is_refused() {
        let scratch = Scratch::new("checkouts");
        let [old, copy, link, gone] = ["old", "copy", "link", "gone"].map(|n| scratch.0.join(n));
        fs::create_dir(&old).unwrap();
        fs::create_dir(&copy).unwrap();
        std::os::unix::fs::symlink(&old, &link).unwrap();
        check_place(&old, Some(&old)).unwrap();
        check_place(&old, Some(&link)).unwrap();
        for compiled in [&old, &gone] {
            let error = check_place(compiled, Some(&copy)).unwrap_err().to_string();
            for part in [compiled, &copy] {
                assert!(error.contains(&part.display().to_string()), "{error}");
            }
            assert!(error.contains("cargo clean --package xtask"), "{error}");
        }
    }

    #[test]
    fn a_run_without_cargo_is_refused() {
        let error = check_place(Path::new("/"), None).unwrap_err().to_string();
        assert!(error.contains("cargo xtask"), "{error}");
    }
}
