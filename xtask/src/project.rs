// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are: the checkout and the directories of its build products.

use std::path::{Path, PathBuf};

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
