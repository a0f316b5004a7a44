// SPDX-License-Identifier: GPL-2.0-only

//! A listener's configuration: how long it parks connections, how many, and what becomes of those
//! that stay silent.

use super::{
    counts_sources,
    Bypass,
    Timeout, //
};

/// What becomes of a connection that is silent until its deadline, or that is evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTimeout {
    /// The server accepts it.
    Accept,
    /// The client gets an RST.
    Reset,
    /// The kernel forgets it, and nothing is sent.
    Drop,
}

impl OnTimeout {
    /// Returns what the user's number means (`enum accf_on_timeout`).
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Accept),
            1 => Some(Self::Reset),
            2 => Some(Self::Drop),
            _ => None,
        }
    }

    /// Returns the number that the user would give.
    pub const fn number(self) -> u32 {
        match self {
            Self::Accept => 0,
            Self::Reset => 1,
            Self::Drop => 2,
        }
    }
}

/// Whether a listener parks connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parking {
    /// It does.
    On,
    /// It parks none, and hands over to the server those that are parked.
    Paused,
}

impl Parking {
    /// Returns what the user's number means (`enum accf_state`).
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::On),
            1 => Some(Self::Paused),
            _ => None,
        }
    }

    /// Returns the number that the user would give.
    pub const fn number(self) -> u32 {
        match self {
            Self::On => 0,
            Self::Paused => 1,
        }
    }
}

/// What becomes of a connection whose client closes its side without having sent a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnClose {
    /// The server accepts it, and reads the end of the stream.
    Accept,
    /// The client gets an RST.
    Reset,
}

impl OnClose {
    /// Returns what the user's number means (`enum accf_on_close`).
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Accept),
            1 => Some(Self::Reset),
            _ => None,
        }
    }

    /// Returns the number that the user would give.
    pub const fn number(self) -> u32 {
        match self {
            Self::Accept => 0,
            Self::Reset => 1,
        }
    }
}

/// What a listener was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long a silent connection stays parked.
    pub timeout: Timeout,
    /// How many connections may be parked; at least 1.
    pub max_parked: u32,
    /// What becomes of a connection that is still silent then, or that is evicted.
    pub on_timeout: OnTimeout,
    /// Whether connections are parked at all.
    pub parking: Parking,
    /// What becomes of a connection whose client closes without a byte.
    pub on_close: OnClose,
    /// After how many milliseconds of silence a client is probed; 0: as `SO_KEEPALIVE` says
    /// ([`Probing`](super::Probing)).
    pub probe_ms: u32,
}

/// Decides what becomes of a connection whose client has closed its side without a byte: a listener
/// that is paused accepts it, as a plain one does.
pub const fn on_fin(config: &Config) -> OnClose {
    match config.parking {
        Parking::On => config.on_close,
        Parking::Paused => OnClose::Accept,
    }
}

/// What to do with a connection that the filter wants parked, and that has a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Park it.
    Park,
    /// Park it, and count parked connections by source.
    ParkAndCount,
    /// Park it, and evict one ([`Expiry::Eviction`](super::Expiry::Eviction)).
    ParkAndEvict,
}

/// Decides whether a listener with `parked` connections parks one more. If not, it goes on as on a
/// plain listener.
///
/// `namespace_full`: the listener's network namespace has reached its limit. `accept_queue_full`: a
/// connection made now would be refused.
///
/// A connection is reset or dropped only for the listener's own limit, for which its server asked;
/// never because other listeners use up the limit of the namespace.
#[inline(always)] // See `Listener::park()`.
pub fn on_park(
    config: &Config,
    parked: u64,
    namespace_full: bool,
    accept_queue_full: impl Fn() -> bool,
) -> Result<Admission, Bypass> {
    if config.parking == Parking::Paused {
        return Err(Bypass::Paused);
    }
    // The only comparison of most connections.
    if !counts_sources(config.max_parked, parked) && !namespace_full {
        return Ok(Admission::Park);
    }
    let accepts = config.on_timeout == OnTimeout::Accept;
    if parked >= u64::from(config.max_parked) {
        if accepts && accept_queue_full() {
            Err(Bypass::AcceptQueueFull)
        } else {
            Ok(Admission::ParkAndEvict)
        }
    } else if !namespace_full {
        Ok(Admission::ParkAndCount)
    } else if accepts && parked != 0 && !accept_queue_full() {
        Ok(Admission::ParkAndEvict)
    } else {
        Err(Bypass::NamespaceLimit)
    }
}
