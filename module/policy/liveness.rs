// SPDX-License-Identifier: GPL-2.0-only

//! Probes of parked clients: whether they are still there.

use super::{
    Config,
    Nanos, //
};

/// How often the clients of a listener are probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probing {
    /// How long a client is silent before the first probe.
    pub idle: Nanos,
    /// How long an answer may take before the next probe.
    pub interval: Nanos,
    /// How many probes without an answer show that the client is gone.
    pub probes: u8,
}

/// What to do with a client from which nothing was heard in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// Probe it.
    Probe,
    /// It is gone.
    Gone,
}

impl Probing {
    /// Returns how a listener with this configuration probes. `keepalive` is what its socket
    /// options say ([`Self::idle`] and [`Self::interval`] without `SO_KEEPALIVE` as well);
    /// `is_keepalive` is `SO_KEEPALIVE`.
    ///
    /// `probe_ms` takes the place of the times, and needs no `SO_KEEPALIVE`.
    pub fn of(config: &Config, keepalive: Self, is_keepalive: bool) -> Option<Self> {
        match config.probe_ms {
            0 => is_keepalive.then_some(keepalive),
            millis => {
                let time = Nanos::from_millis(millis);
                Some(Self {
                    idle: time,
                    interval: time,
                    ..keepalive
                })
            }
        }
    }

    /// Returns what to do when a client did not answer in time for the `silences`th time, the first
    /// time being before any probe.
    pub fn on_silence(&self, silences: u8) -> Silence {
        // Silences are counted up to the largest number.
        if silences > self.probes || silences == u8::MAX {
            Silence::Gone
        } else {
            Silence::Probe
        }
    }
}

/// Returns how many timeouts a request may show while its client is probed, of which it has had
/// `timeouts`; `None` if the client cannot be probed.
///
/// The SYN-ACK timer's handler drops a request without a word that has had `max_timeouts`, before
/// it asks for a SYN-ACK (and so for a probe). Under pressure it takes no more than two for the
/// maximum.
pub fn timeouts_while_probed(timeouts: u8, max_timeouts: u8) -> Option<u8> {
    let kept = timeouts.min(1);
    (kept < max_timeouts.min(2)).then_some(kept)
}
