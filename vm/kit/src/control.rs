// SPDX-License-Identifier: MIT OR Apache-2.0

//! A filtered listener's settings and counts: the crate `accf`, and what only a test would ask the
//! kernel for.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{bail, Context, Result};

pub use accf::abi::{accf_config, accf_stats, ACCF_CONFIG, ACCF_STATS, SOL_ACCF};
pub use accf::{
    attach, config, listeners_on, pause, resume, set_config, stats, Config, Error, OnClose,
    OnTimeout, State, Stats, WaitBucket,
};

use crate::netns::Netns;
use crate::sys;

/// Returns settings in the module's own units: milliseconds, 0 for none; and 0 for the default
/// number.
pub fn settings(timeout_ms: u32, max_parked: u32, on_timeout: OnTimeout) -> Config {
    let timeout = (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms.into()));
    Config {
        timeout,
        max_parked: NonZeroU32::new(max_parked),
        on_timeout,
        ..Config::default()
    }
}

/// Returns settings with nothing but a deadline: the default number, and accepted.
pub fn timeout(timeout_ms: u32) -> Config {
    settings(timeout_ms, 0, OnTimeout::Accept)
}

/// `getsockopt()` as it is: how many bytes the kernel wrote.
pub fn get_bytes(socket: impl AsFd, level: i32, name: i32, value: &mut [u8]) -> io::Result<usize> {
    sys::get_option(socket.as_fd(), level, name, value)
}

/// `setsockopt()` as it is.
pub fn set_bytes(socket: impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    sys::set_option(socket.as_fd(), level, name, value)
}

/// `getsockopt()` of an argument where nothing is mapped.
pub fn get_nowhere(socket: impl AsFd, level: i32, name: i32, length: u32) -> io::Result<()> {
    sys::get_option_nowhere(socket.as_fd(), level, name, length)
}

/// `setsockopt()` of an argument where nothing is mapped.
pub fn set_nowhere(socket: impl AsFd, level: i32, name: i32, length: u32) -> io::Result<()> {
    sys::set_option_nowhere(socket.as_fd(), level, name, length)
}

/// Returns what `inet_diag` tells of the only filtered listener on a port of a namespace; nothing,
/// if there is none.
pub fn from_diag(ns: &Netns, port: u16) -> Result<Option<accf::Listener>> {
    let mut found = ns.run(|| listeners_on(port).context("sock_diag"))?;
    let first = found.pop();
    if !found.is_empty() {
        bail!("{} listeners on port {port}", found.len() + 1);
    }
    Ok(first)
}
