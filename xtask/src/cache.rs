// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cache outside the checkout: directories named by what they were made from.
//!
//! An entry is built under a temporary name and renamed when it is complete, so what has its final
//! name is whole. A lock per entry keeps two tasks from building the same thing at once.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{bail, Context, Result};
use fs_err as fs;
use sha2::{Digest, Sha256};

use crate::host;

/// Entries that were not used for this long are removed.
const KEEP: Duration = Duration::from_secs(30 * 24 * 3600);

/// The file inside an entry whose modification time says when it was last used.
const STAMP: &str = ".accf-used";

/// The kinds of entries; nothing else in the cache is ever removed.
const KINDS: [&str; 5] = [
    "sysroot",
    "kernel-stock",
    "kernel-dev",
    "kernel-kcsan",
    "kernel-rt",
];

/// Returns the cache's directory: `$XDG_CACHE_HOME/accf`, by default `~/.cache/accf`.
pub(crate) fn dir() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|dir| Path::new(dir).is_absolute()) {
        Some(dir) => PathBuf::from(dir),
        None => std::env::home_dir()
            .context("no home directory to keep the cache in: set XDG_CACHE_HOME")?
            .join(".cache"),
    };
    Ok(base.join("accf"))
}

/// Returns the key of something made from `parts`.
pub(crate) fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // The length keeps ("ab", "c") apart from ("a", "bc").
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let digest = hash.finalize();
    digest.iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// One directory of the cache.
pub(crate) struct Entry {
    kind: &'static str,
    path: PathBuf,
}

impl Entry {
    /// Names the entry of `kind` made from `parts`.
    pub(crate) fn new(kind: &'static str, parts: &[&str]) -> Result<Self> {
        debug_assert!(KINDS.contains(&kind));
        let path = dir()?.join(format!("{kind}-{}", key(parts)));
        Ok(Self { kind, path })
    }

    /// Returns the path of the log of how the entry was made.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.with_extension("log")
    }

    /// Returns whether the entry is there, and so complete.
    pub(crate) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Makes the entry by `build` unless it is there; `build` fills the directory it is given.
    pub(crate) fn ensure(&self, build: impl FnOnce(&Path) -> Result<()>) -> Result<&Path> {
        if !self.exists() {
            let cache = dir()?;
            fs::create_dir_all(&cache)?;
            let _lock = self.lock()?;
            // Another task may have made it while we waited.
            if !self.exists() {
                self.make(build)?;
                prune(&cache, self.kind)?;
            }
        }
        // Best effort: the stamp decides only when an unused entry is removed.
        let _ = File::create(self.path.join(STAMP));
        Ok(&self.path)
    }

    /// Removes the entry.
    pub(crate) fn remove(&self) -> Result<()> {
        if !self.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        remove(&self.path)
    }

    /// Builds the entry under a temporary name, then renames it.
    fn make(&self, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let temp = self.path.with_extension("tmp");
        // An interrupted task may have left one.
        remove(&temp)?;
        let log = self.log();
        if log.exists() {
            fs::remove_file(&log)?;
        }
        fs::create_dir(&temp)?;
        build(&temp)?;
        Ok(fs::rename(&temp, &self.path)?)
    }

    /// Takes the entry's lock, waiting for another task that builds it.
    fn lock(&self) -> Result<File> {
        let path = self.path.with_extension("lock");
        let file =
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("another task is making {}; waiting", self.path.display());
                file.lock()
                    .with_context(|| format!("cannot lock {}", path.display()))?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        Ok(file)
    }
}

/// Removes the entries of `kind` that were not used for a long time, and unfinished ones of
/// interrupted tasks.
fn prune(cache: &Path, kind: &str) -> Result<()> {
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        if is_ours(&path, kind) && is_old(&path) {
            eprintln!("removing {}, unused for a month", path.display());
            remove(&path)?;
        }
        let unfinished = path.extension().is_some_and(|end| end == "tmp");
        if unfinished && is_ours(&path.with_extension(""), kind) && is_abandoned(&path) {
            eprintln!("removing {}, never finished", path.display());
            remove(&path)?;
        }
    }
    Ok(())
}

/// Returns whether no task is making the unfinished entry `path`.
fn is_abandoned(path: &Path) -> bool {
    File::open(path.with_extension("lock")).is_ok_and(|lock| lock.try_lock().is_ok())
}

/// Returns whether `path` has the name of a complete entry of `kind`.
fn is_ours(path: &Path, kind: &str) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.strip_prefix(kind)?.strip_prefix('-'))
        .is_some_and(|key| key.len() == 16 && key.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Returns whether the entry was last used long ago; false without a stamp, which would tell.
fn is_old(entry: &Path) -> bool {
    let used = fs::metadata(entry.join(STAMP)).and_then(|data| data.modified());
    used.is_ok_and(|used| {
        SystemTime::now()
            .duration_since(used)
            .is_ok_and(|age| age > KEEP)
    })
}

/// Removes a directory of the cache, whose files may belong to subordinate users.
fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let mut command = std::process::Command::new("rm");
    command.args(["-rf", "--one-file-system", "--"]).arg(path);
    let status = host::as_root(command)
        .status()
        .context("cannot run rm on a cache entry")?;
    if !status.success() {
        bail!("cannot remove {}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn keys_depend_on_every_part_and_their_borders() {
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_ne!(key(&["a"]), key(&["a", ""]));
        assert_eq!(key(&["a"]).len(), 16);
    }

    #[test]
    fn only_names_of_ours_are_pruned() {
        let scratch = Scratch::new("cache");
        let dir = &scratch.0;
        let ours = dir.join("sysroot-0123456789abcdef");
        let other_kind = dir.join("kernel-dev-0123456789abcdef");
        let unfinished = dir.join("sysroot-0123456789abcdef.tmp");
        let foreign = dir.join("sysroot-of-my-own");
        for path in [&ours, &other_kind, &unfinished, &foreign] {
            fs::create_dir_all(path).unwrap();
        }
        assert!(is_ours(&ours, "sysroot"));
        assert!(!is_ours(&other_kind, "sysroot"));
        assert!(!is_ours(&unfinished, "sysroot"));
        assert!(!is_ours(&foreign, "sysroot"));
        assert!(!is_old(&ours), "no stamp: not known to be old");
        assert!(!is_abandoned(&unfinished), "no lock: not known to be ours");
        let lock = File::create(unfinished.with_extension("lock")).unwrap();
        assert!(is_abandoned(&unfinished));
        lock.lock().unwrap();
        assert!(!is_abandoned(&unfinished), "a task is making it");
    }
}
