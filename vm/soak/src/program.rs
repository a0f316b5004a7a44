// SPDX-License-Identifier: MIT OR Apache-2.0
//! This program, for processes of its own.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::memfd::{memfd_create, MFdFlags};

/// A copy of this program in memory, where starting it does not depend on how the guest sees the
/// host's files.
#[derive(Debug)]
pub(crate) struct Program {
    copy: OwnedFd,
}

impl Program {
    /// Copies it.
    pub(crate) fn load() -> Result<Self> {
        let mut copy = File::from(memfd_create("accf-soak", MFdFlags::MFD_CLOEXEC)?);
        io::copy(&mut File::open("/proc/self/exe")?, &mut copy).context("copy this program")?;
        // A file that is open for writing cannot be executed.
        let copy = File::open(format!("/proc/self/fd/{}", copy.as_raw_fd()))?;
        Ok(Self { copy: copy.into() })
    }

    /// Returns a command that runs it.
    pub(crate) fn command(&self) -> Command {
        Command::new(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.copy.as_raw_fd()
        ))
    }
}
