// SPDX-License-Identifier: MIT OR Apache-2.0
//! The three listeners, set up to wait equally long.

use std::time::Duration;

use accf_demo::{Listener, UnixNanos};
use accf_kit::clock::Stamp;
use accf_kit::endpoint::{self, Family, Listen};
use accf_kit::netns::Netns;
use anyhow::Result;

/// A kind of listener and its deadline.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) listener: Listener,
    /// How long a connection may wait for data; a plain listener takes no notice.
    pub(crate) deadline: Duration,
}

impl Setup {
    /// Opens it on a free port.
    pub(crate) fn open(&self, server: &Netns) -> Result<endpoint::Listener> {
        let seconds = i32::try_from(self.deadline.as_secs())?;
        match self.listener {
            Listener::Plain => Listen::plain(Family::V4),
            Listener::DeferAccept => Listen::deferred(Family::V4, seconds),
            Listener::Dataready => Listen::filtered(Family::V4),
        }
        .open(server)
    }

    /// How it is set up, as a person would write it.
    pub(crate) fn describe(&self) -> String {
        match self.listener {
            Listener::Plain => "plain".to_owned(),
            Listener::DeferAccept => format!("TCP_DEFER_ACCEPT = {} s", self.deadline.as_secs()),
            Listener::Dataready => {
                format!("dataready, timeout_ms = {}", self.deadline.as_millis())
            }
        }
    }

    /// The deadline in milliseconds, if it has one.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        let ms = u64::try_from(self.deadline.as_millis()).ok();
        ms.filter(|_| self.listener != Listener::Plain)
    }
}

/// A point in time as the report writes it.
pub(crate) fn unix_nanos(stamp: Stamp) -> UnixNanos {
    UnixNanos(u64::try_from(stamp.epoch().as_nanos()).unwrap_or(u64::MAX))
}
