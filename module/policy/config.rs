// SPDX-License-Identifier: GPL-2.0-only

//! A listener's terms: how long it waits, how many it holds, and what becomes of who stays silent.

use super::{
    Bypass,
    Timeout, //
};

/// What becomes of a connection that is silent until its deadline, or that makes room for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTimeout {
    /// The server accepts it.
    Accept,
    /// The client gets an RST.
    Reset,
    /// It is forgotten.
    Drop,
}

impl OnTimeout {
    /// What the user's number means (`enum accf_on_timeout`).
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Accept),
            1 => Some(Self::Reset),
            2 => Some(Self::Drop),
            _ => None,
        }
    }

    /// The number that the user would give.
    pub const fn number(self) -> u32 {
        match self {
            Self::Accept => 0,
            Self::Reset => 1,
            Self::Drop => 2,
        }
    }
}

/// What a listener was asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long a silent connection is held back.
    pub timeout: Timeout,
    /// How many may be parked; at least 1.
    pub max_parked: u32,
    /// What becomes of the rest.
    pub on_timeout: OnTimeout,
}

/// What to do with a connection that the filter wants parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)] // Told apart with one instruction, unlike what the compiler makes of a niche.
pub enum Admission {
    /// Park it.
    Park,
    /// Park it; the oldest meets its deadline now.
    ParkAndEvict,
    /// It goes on as on a plain listener.
    Refuse(Bypass),
}

/// Decides whether a listener with `parked` connections parks one more.
///
/// `namespace_full`: its network namespace has as many as it may. `accept_queue_full`: a connection made now would be
/// refused.
///
/// Clients are reset or dropped only for the sake of the listener's own bound, which its server asked for: not because
/// somebody else's listener takes all the room.
#[inline(always)]
pub fn on_park(
    config: &Config,
    parked: u64,
    namespace_full: bool,
    accept_queue_full: impl Fn() -> bool,
) -> Admission {
    let accepts = config.on_timeout == OnTimeout::Accept;
    if parked >= u64::from(config.max_parked) {
        if accepts && accept_queue_full() {
            Admission::Refuse(Bypass::AcceptQueueFull)
        } else {
            Admission::ParkAndEvict
        }
    } else if !namespace_full {
        Admission::Park
    } else if accepts && parked != 0 && !accept_queue_full() {
        Admission::ParkAndEvict
    } else {
        Admission::Refuse(Bypass::NamespaceLimit)
    }
}
