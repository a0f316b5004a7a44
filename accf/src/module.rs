// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel shows of the loaded module.

use std::fs;
use std::io;
use std::path::Path;

use crate::Error;

/// The directory where the kernel shows its modules.
const MODULES: &str = "/sys/module";
/// The module's read-only parameter there.
const PINNED: &str = "accf/parameters/pinned";

/// Returns whether the module is pinned: it cannot be unloaded until the next reboot.
///
/// The module pins itself when a clone of a request, which the kernel made to migrate it to another
/// listener, may point into the module, and nothing tells the module when that clone is gone. The
/// filters keep working.
///
/// Returns `false` if the module is not loaded, or does not have this parameter.
///
/// # Errors
///
/// [`Error::UnknownPinned`], [`Error::Os`].
pub fn module_pinned() -> Result<bool, Error> {
    pinned_in(Path::new(MODULES))
}

/// Returns [`module_pinned`] for the modules that the directory `modules` shows.
fn pinned_in(modules: &Path) -> Result<bool, Error> {
    let value = match fs::read(modules.join(PINNED)) {
        Ok(value) => value,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => {
            return Err(Error::Os {
                doing: "read /sys/module/accf/parameters/pinned",
                source,
            });
        }
    };
    match value.trim_ascii_end() {
        b"Y" => Ok(true),
        b"N" => Ok(false),
        other => Err(Error::UnknownPinned {
            value: String::from_utf8_lossy(other).into_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// Makes a directory of modules without any module. It is removed on drop.
    fn modules() -> TempDir {
        tempfile::tempdir().unwrap()
    }

    /// Makes a directory of modules with the module and its parameter `pinned`.
    fn modules_with(pinned: &[u8]) -> TempDir {
        let modules = modules();
        fs::create_dir_all(modules.path().join("accf/parameters")).unwrap();
        fs::write(modules.path().join(PINNED), pinned).unwrap();
        modules
    }

    #[test]
    fn y_is_pinned_and_n_is_not() {
        assert!(pinned_in(modules_with(b"Y\n").path()).unwrap());
        assert!(!pinned_in(modules_with(b"N\n").path()).unwrap());
    }

    #[test]
    fn a_missing_module_or_parameter_is_not_pinned() {
        let modules = modules();
        assert!(!pinned_in(modules.path()).unwrap());
        fs::create_dir_all(modules.path().join("accf/parameters")).unwrap();
        assert!(!pinned_in(modules.path()).unwrap());
        assert!(!pinned_in(&modules.path().join("nowhere")).unwrap());
    }

    #[test]
    fn other_values_are_errors() {
        for value in [&b""[..], b"\n", b"y\n", b"1\n", b"YN\n", b"Y\nN\n", b"\xff"] {
            let modules = modules_with(value);
            let error = pinned_in(modules.path()).unwrap_err();
            assert!(matches!(error, Error::UnknownPinned { .. }), "{value:?}");
            assert!(error.to_string().contains("newer module"), "{error}");
        }
    }

    #[test]
    fn an_unreadable_parameter_is_an_error() {
        let modules = modules();
        fs::create_dir_all(modules.path().join(PINNED)).unwrap();
        let error = pinned_in(modules.path()).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EISDIR));
    }
}
