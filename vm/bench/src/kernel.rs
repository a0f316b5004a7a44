// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the guest's kernel says of itself.

use std::fs;

use anyhow::{Context, Result};

/// `uname -r`.
pub(crate) fn release() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(release.trim().to_owned())
}

/// CONFIG_HZ: what the packaged configuration says that stands beside the kernel's modules.
pub(crate) fn hz() -> Result<u32> {
    let path = format!("/usr/lib/modules/{}/config", release()?);
    let config = fs::read_to_string(&path).with_context(|| path.clone())?;
    let hz = config
        .lines()
        .find_map(|line| line.strip_prefix("CONFIG_HZ="));
    let hz = hz.with_context(|| format!("{path} has no CONFIG_HZ"))?;
    hz.parse().context("CONFIG_HZ")
}
