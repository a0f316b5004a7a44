// SPDX-License-Identifier: MIT OR Apache-2.0
//! The release and the clock rate of the guest's kernel.

use std::fs;

use anyhow::{Context, Result};

/// Returns what `uname -r` prints.
pub(crate) fn release() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(release.trim().to_owned())
}

/// Returns CONFIG_HZ, from the packaged configuration beside the kernel's modules.
pub(crate) fn hz() -> Result<u32> {
    let path = format!("/usr/lib/modules/{}/config", release()?);
    let config = fs::read_to_string(&path).with_context(|| path.clone())?;
    let hz = config
        .lines()
        .find_map(|line| line.strip_prefix("CONFIG_HZ="));
    let hz = hz.with_context(|| format!("{path} has no CONFIG_HZ"))?;
    hz.parse().context("CONFIG_HZ")
}
