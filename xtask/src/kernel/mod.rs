// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernels that modules are built for and that guests run.

pub(crate) mod config;
mod own;
mod stock;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{bail, Result};
use clap::ValueEnum;

use crate::sysroot::Sysroot;

/// One of the kernels that guests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// The distribution's own kernel, untouched.
    Stock,
    /// The same source with all checkers that go together.
    Dev,
    /// The same source with KCSAN, which finds data races.
    Kcsan,
    /// The same source with PREEMPT_RT and the checkers but KASAN.
    Rt,
}

impl Kind {
    /// Returns the name as users write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Dev => "dev",
            Self::Kcsan => "kcsan",
            Self::Rt => "rt",
        }
    }

    /// Returns whether the kernel is configured by us, and so has KUnit.
    pub(crate) fn is_own(self) -> bool {
        self != Self::Stock
    }
}

/// A kernel to build modules for: one of ours, or a user's own build tree.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// One of those that guests run.
    Ours(Kind),
    /// The build directory of a configured and built kernel.
    Custom(PathBuf),
}

impl Target {
    /// Returns the name of the directory that the products go to.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ours(kind) => kind.name(),
            Self::Custom(_) => "custom",
        }
    }
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Ok(kind) = Kind::from_str(text, false) {
            return Ok(Self::Ours(kind));
        }
        if !Path::new(text)
            .join("include/generated/autoconf.h")
            .is_file()
        {
            let names: Vec<_> = Kind::value_variants()
                .iter()
                .map(|kind| format!("`{}`", kind.name()))
                .collect();
            bail!(
                "{text} is none of {} and not the build directory of a configured kernel (no \
                 include/generated/autoconf.h; run `make modules_prepare` there)",
                names.join(", ")
            );
        }
        Ok(Self::Custom(std::fs::canonicalize(text)?))
    }
}

/// A complete kernel: its build tree and its image.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// Which one it is.
    pub(crate) kind: Kind,
    /// The build tree; inside the sysroot it must be at [`crate::sysroot::BUILD`].
    pub(crate) build: PathBuf,
    /// The image to boot.
    pub(crate) image: PathBuf,
    /// Arguments that make `make` use the compilers that built it, as they were used.
    pub(crate) make_arguments: Vec<OsString>,
}

impl Kernel {
    /// Returns the kernel `kind`; builds it if it is not there.
    pub(crate) fn ensure(sysroot: &Sysroot, kind: Kind) -> Result<Self> {
        match kind {
            Kind::Stock => stock::ensure(sysroot),
            Kind::Dev | Kind::Kcsan | Kind::Rt => own::ensure(sysroot, kind),
        }
    }
}

/// Returns `-jN` for the host's `N` processors.
pub(crate) fn jobs() -> String {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("-j{count}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_have_the_same_names_everywhere() {
        for kind in Kind::value_variants() {
            // As `--kernel` and `cargo xtask kernel` read it.
            assert_eq!(Kind::from_str(kind.name(), false), Ok(*kind));
            let target: Target = kind.name().parse().unwrap();
            assert_eq!(target.name(), kind.name());
        }
        let error = "nonesuch".parse::<Target>().unwrap_err().to_string();
        for name in ["nonesuch", "`stock`", "`dev`", "`kcsan`", "`rt`"] {
            assert!(error.contains(name), "{error}");
        }
    }
}
