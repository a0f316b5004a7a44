// SPDX-License-Identifier: MIT OR Apache-2.0
//! The listeners, set up with equal deadlines.

use std::time::Duration;

use accf_demo::{Listener, UnixNanos};
use accf_kit::clock::Stamp;
use accf_kit::control::{self, OnTimeout};
use accf_kit::endpoint::{self, Family, Listen};
use accf_kit::netns::Netns;
use anyhow::Result;

/// A kind of listener and its deadline.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) listener: Listener,
    /// How long a connection may wait for data; a plain listener has no such limit.
    pub(crate) deadline: Duration,
}

impl Setup {
    /// Opens it on a free port.
    pub(crate) fn open(&self, server: &Netns) -> Result<endpoint::Listener> {
        let seconds = i32::try_from(self.deadline.as_secs())?;
        let ms = u32::try_from(self.deadline.as_millis())?;
        let filtered =
            |on_timeout| Listen::filtered(Family::V4).config(control::settings(ms, 0, on_timeout));
        match self.listener {
            Listener::Plain => Listen::plain(Family::V4),
            Listener::DeferAccept => Listen::deferred(Family::V4, seconds),
            Listener::Dataready => filtered(OnTimeout::Accept),
            Listener::DatareadyReset => filtered(OnTimeout::Reset),
            Listener::DatareadyDrop => filtered(OnTimeout::Drop),
        }
        .open(server)
    }

    /// Returns how it is set up, as text.
    pub(crate) fn describe(&self) -> String {
        match (self.listener, self.listener.on_timeout()) {
            (Listener::Plain, _) => "plain".to_owned(),
            (_, None) => format!("TCP_DEFER_ACCEPT = {} s", self.deadline.as_secs()),
            (_, Some(on_timeout)) => {
                let ms = self.deadline.as_millis();
                format!("dataready, timeout_ms = {ms}, on_timeout = {on_timeout}")
            }
        }
    }

    /// Returns the deadline in milliseconds, if it has one.
    pub(crate) fn deadline_ms(&self) -> Option<u64> {
        let ms = u64::try_from(self.deadline.as_millis()).ok();
        ms.filter(|_| self.listener != Listener::Plain)
    }
}

/// Converts a point in time to that of the report.
pub(crate) fn unix_nanos(stamp: Stamp) -> UnixNanos {
    UnixNanos(u64::try_from(stamp.epoch().as_nanos()).unwrap_or(u64::MAX))
}
