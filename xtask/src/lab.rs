// SPDX-License-Identifier: MIT OR Apache-2.0
//! A kernel ready for guests, with the modules built for it and the programs to run in it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{bail, Result};

use crate::guest::{Guest, Module, Report};
use crate::kernel::{Kernel, Kind};
use crate::module::{self, Modules};
use crate::sysroot::Sysroot;
use crate::{program, ui};

/// The time from power-on to the loaded module, in the table of timings.
pub(crate) const BOOTING_AND_LOADING: &str = "booting and loading the module";

/// A kernel to run guests with.
#[derive(Debug)]
pub(crate) struct Lab {
    sysroot: Sysroot,
    kernel: Kernel,
    modules: Option<Modules>,
}

impl Lab {
    /// Makes what is missing: the sysroot, the kernel, and the modules for it.
    pub(crate) fn new(kind: Kind) -> Result<Self> {
        let mut lab = Self::without_module(kind)?;
        lab.modules = Some(module::build(&lab.sysroot, &lab.kernel)?);
        Ok(lab)
    }

    /// Makes the sysroot and the kernel if they are missing; the guests load no module.
    pub(crate) fn without_module(kind: Kind) -> Result<Self> {
        let sysroot = Sysroot::ensure(None)?;
        let kernel = Kernel::ensure(&sysroot, kind)?;
        Ok(Self {
            sysroot,
            kernel,
            modules: None,
        })
    }

    /// Builds the module from `source`, another checkout, and keeps it in `output`.
    pub(crate) fn build_module(&self, source: &Path, output: &Path) -> Result<PathBuf> {
        module::build_from(&self.sysroot, &self.kernel, source, output)
    }

    /// Returns the module, if there is one.
    pub(crate) fn module(&self) -> Option<&Path> {
        let modules = self.modules.as_ref()?;
        Some(&modules.accf)
    }

    /// Returns a guest that loads the module, if there is one, with `parameters` (`name=value`).
    pub(crate) fn guest(&self, parameters: &[String]) -> Guest {
        let module = self.modules.as_ref().map(|modules| Module {
            path: modules.accf.clone(),
            parameters: parameters.to_vec(),
        });
        let kunit = self.modules.as_ref().and_then(|m| m.kunit.clone());
        let programs = ("ACCF_BIN", program::directory());
        Guest {
            module,
            environment: kunit
                .map(|path| ("ACCF_KUNIT_KO", path))
                .into_iter()
                .chain([programs])
                .map(|(name, path)| (name.to_owned(), path.into()))
                .collect(),
            ..Guest::default()
        }
    }

    /// Boots `guest` and runs `command` in it.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, guest: &Guest, command: &[S]) -> Result<Report> {
        guest.run(&self.sysroot, &self.kernel, command)
    }

    /// Boots `guest` and runs `command` in it, which must succeed; then removes the logs.
    ///
    /// A command that fails is run again, up to `repeats` times, and what it printed is shown. A
    /// guest whose run is worthless is not run again.
    pub(crate) fn run_to_success<S: AsRef<OsStr>>(
        &self,
        guest: &Guest,
        command: &[S],
        repeats: u32,
    ) -> Result<()> {
        let mut left = repeats;
        loop {
            let report = self.run(guest, command)?;
            if let Some(boot) = report.boot_time {
                let loads = guest.module.is_some();
                ui::record(
                    if loads {
                        BOOTING_AND_LOADING
                    } else {
                        "booting"
                    },
                    boot,
                );
            }
            let status = report.verdict()?;
            if status == 0 {
                return report.remove_logs();
            }
            let said = format!(
                "the command ended with status {status} in the guest:\n{}\n(logs: {})",
                String::from_utf8_lossy(&report.stderr).trim(),
                report.run.display()
            );
            if left == 0 {
                bail!("{said}");
            }
            left -= 1;
            eprintln!("running it again: {said}");
        }
    }

    /// Boots `guest` and gives a shell on our terminal.
    pub(crate) fn shell(&self, guest: &Guest) -> Result<Report> {
        guest.shell(&self.sysroot, &self.kernel)
    }
}
