// SPDX-License-Identifier: MIT OR Apache-2.0
//! A kernel ready for guests, with the modules built for it and the programs to run in it.

use std::ffi::OsStr;

use anyhow::Result;

use crate::guest::{Guest, Module, Report};
use crate::kernel::{Kernel, Kind};
use crate::module::{self, Modules};
use crate::sysroot::Sysroot;

/// A kernel to run guests with.
#[derive(Debug)]
pub(crate) struct Lab {
    sysroot: Sysroot,
    kernel: Kernel,
    modules: Option<Modules>,
}

impl Lab {
    /// Makes whatever is missing: the sysroot, the kernel, and the modules for it.
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

    /// Returns a guest that loads the module, if there is one, with `parameters` (`name=value`).
    pub(crate) fn guest(&self, parameters: &[String]) -> Guest {
        let module = self.modules.as_ref().map(|modules| Module {
            path: modules.accf.clone(),
            parameters: parameters.to_vec(),
        });
        let kunit = self.modules.iter().filter_map(|m| m.kunit.as_ref());
        Guest {
            module,
            environment: kunit
                .map(|path| ("ACCF_KUNIT_KO".to_owned(), path.clone().into()))
                .collect(),
            ..Guest::default()
        }
    }

    /// Boots `guest` and runs `command` in it.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, guest: &Guest, command: &[S]) -> Result<Report> {
        guest.run(&self.sysroot, &self.kernel, command)
    }

    /// Boots `guest` and gives a shell on our terminal.
    pub(crate) fn shell(&self, guest: &Guest) -> Result<Report> {
        guest.shell(&self.sysroot, &self.kernel)
    }
}
