// SPDX-License-Identifier: MIT OR Apache-2.0

//! Waiting with a limit.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{bail, Result};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

/// Waits until `fd` is readable, and says whether it became so within `limit`.
///
/// A connection to accept, data, the end of the stream and an error are all "readable".
pub fn readable(fd: impl AsFd, limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // One more millisecond, so that a rest below one is slept and not spun.
        let timeout = PollTimeout::try_from(left + Duration::from_micros(999))?;
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => bail!("poll: {error}"),
        }
    }
}

/// Asks `done` again and again until it says yes, and says whether it did so within `limit`.
pub fn until(limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        if done()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
