// SPDX-License-Identifier: MIT OR Apache-2.0

//! Waiting with a limit, or on a thread of its own.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::netns;

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
        thread::sleep(Duration::from_millis(10));
    }
}

/// A thread that reads a descriptor; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Reader {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Reader {
    /// Calls `read`, which must not block, whenever `source` has something to read.
    pub(crate) fn start<T: AsFd + Send + Sync + 'static>(
        source: Arc<T>,
        mut read: impl FnMut(&T) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let stop = Arc::new(EventFd::from_flags(flags)?);
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || loop {
            let fds = [source.as_fd(), stopped.as_fd()];
            let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("poll"),
            }
            if fds[1].any() == Some(true) {
                return Ok(());
            }
            read(&source)?;
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Ends the thread and returns its error, if it had one.
    pub(crate) fn stop(&mut self) -> Result<()> {
        match self.thread.take() {
            Some(thread) => {
                self.stop.write(1)?;
                netns::join(thread)
            }
            None => Ok(()),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // An error cannot be reported here; `stop` reports it.
        let _ = self.stop();
    }
}
