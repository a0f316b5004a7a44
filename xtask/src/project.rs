// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are: the checkout and the directories of its build products.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Returns the checkout's root directory.
pub(crate) fn root() -> &'static Path {
    // xtask/ is a direct child of the root.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("/"))
}

/// Returns the directory that holds every product and log of the tasks.
pub(crate) fn target() -> PathBuf {
    root().join("target/accf")
}

/// Makes the directory `path`, empty: nothing of an earlier run is to be taken for a result of this one.
pub(crate) fn empty(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
}

/// Replaces the committed file `name`, a path in the checkout, by `text`, and says so.
pub(crate) fn replace(name: &str, text: &str) -> Result<()> {
    let path = root().join(name);
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
    }
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("Replaced {name}");
    Ok(())
}
