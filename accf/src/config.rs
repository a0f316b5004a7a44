// SPDX-License-Identifier: MIT OR Apache-2.0
//! A listener's settings.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::abi::{
    accf_config, ACCF_ON_CLOSE_ACCEPT, ACCF_ON_CLOSE_RESET, ACCF_ON_TIMEOUT_ACCEPT,
    ACCF_ON_TIMEOUT_DROP, ACCF_ON_TIMEOUT_RESET, ACCF_STATE_PARKING, ACCF_STATE_PAUSED,
};
use crate::Error;

/// A listener's settings: [`config`](crate::config()) reads them, [`set_config`](crate::set_config)
/// sets them.
///
/// `Config::default()` parks connections until they send, and as many as the module's default
/// allows. A new listener begins with the module's parameters instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// How long a silent connection stays parked, from the client's bare ACK. `None`: until the
    /// client sends.
    ///
    /// The module counts whole milliseconds, 1 to 4,294,967,295 of them; [`set_config`] rounds up.
    ///
    /// If the application sets `TCP_DEFER_ACCEPT`, the module takes its value over, as the kernel
    /// rounded it up: to 1, 3, 7, 15, 31, 63 … seconds.
    ///
    /// [`set_config`]: crate::set_config
    pub timeout: Option<Duration>,
    /// How many connections may be parked at once. One more evicts the oldest of the source
    /// that has the most parked ([`Source`](crate::Source)): `on_timeout` is applied to it before
    /// its deadline.
    ///
    /// `None` sets the module's default (its parameter `max_parked`). [`config`](crate::config())
    /// returns the number in force, whether it was set or is the default.
    pub max_parked: Option<NonZeroU32>,
    /// What happens to a connection that is silent until its deadline, or that is evicted.
    pub on_timeout: OnTimeout,
    /// Whether connections are parked.
    pub state: State,
    /// What happens to a connection whose client closes its side without having sent a byte.
    pub on_close: OnClose,
    /// After how much silence a parked client is probed, and how long it may take to answer before
    /// it is probed again. When it has not answered to as many probes as the socket's
    /// `TCP_KEEPCNT`, it is reset. `None`: as the socket's `SO_KEEPALIVE`, `TCP_KEEPIDLE` and
    /// `TCP_KEEPINTVL` say.
    ///
    /// The module counts whole milliseconds, as for `timeout`. It is for connections that are
    /// parked from then on.
    pub probe: Option<Duration>,
}

/// What happens to a connection that is silent until its deadline, or that is evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnTimeout {
    /// The server accepts an established, silent connection. Nothing is sent.
    #[default]
    Accept,
    /// The client gets one RST. The server does not see the connection.
    Reset,
    /// The connection is dropped. Nothing is sent, until the client sends: then it gets an RST.
    Drop,
    /// The number of an action that this crate does not know, but a newer module does.
    Other(u32),
}

/// What happens to a connection whose client closes its side without having sent a byte, as health
/// checks do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnClose {
    /// The server accepts the connection, and reads the end of the stream.
    #[default]
    Accept,
    /// The client's FIN is answered with an RST, and the server does not see the connection. A
    /// client that has closed its socket does not notice; one that has only shut down its sending
    /// side reads `ECONNRESET` instead of the end of the stream.
    Reset,
    /// The number of an action that this crate does not know, but a newer module does.
    Other(u32),
}

/// Whether a listener parks connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It does.
    #[default]
    Parking,
    /// It does not: `accept()` returns new connections as on a listener without a filter. The
    /// connections that are parked are accepted, the oldest first, whatever `on_timeout` says.
    Paused,
    /// The number of a state that this crate does not know, but a newer module does.
    Other(u32),
}

impl Config {
    /// Converts the settings that a module returned.
    pub(crate) fn from_abi(raw: &accf_config) -> Self {
        let timeout = NonZeroU32::new(raw.timeout_ms);
        Self {
            timeout: timeout.map(|ms| Duration::from_millis(ms.get().into())),
            max_parked: NonZeroU32::new(raw.max_parked),
            on_timeout: OnTimeout::from_abi(raw.on_timeout),
            state: State::from_abi(raw.state),
            on_close: OnClose::from_abi(raw.on_close),
            probe: NonZeroU32::new(raw.probe_ms).map(|ms| Duration::from_millis(ms.get().into())),
        }
    }

    /// Converts the settings to what the module takes.
    pub(crate) fn to_abi(self) -> Result<accf_config, Error> {
        Ok(accf_config {
            timeout_ms: self.timeout.map_or(Ok(0), milliseconds)?,
            max_parked: self.max_parked.map_or(0, NonZeroU32::get),
            on_timeout: self.on_timeout.to_abi(),
            state: self.state.to_abi(),
            on_close: self.on_close.to_abi(),
            probe_ms: self.probe.map_or(Ok(0), milliseconds)?,
        })
    }
}

/// Returns a timeout in whole milliseconds, rounded up. Refuses zero, which means "no timeout".
fn milliseconds(timeout: Duration) -> Result<u32, Error> {
    match u32::try_from(timeout.as_nanos().div_ceil(1_000_000)) {
        Ok(ms) if ms > 0 => Ok(ms),
        _ => Err(Error::TimeoutOutOfRange(timeout)),
    }
}

impl OnTimeout {
    /// Converts a module's number.
    fn from_abi(raw: u32) -> Self {
        match raw {
            ACCF_ON_TIMEOUT_ACCEPT => Self::Accept,
            ACCF_ON_TIMEOUT_RESET => Self::Reset,
            ACCF_ON_TIMEOUT_DROP => Self::Drop,
            other => Self::Other(other),
        }
    }

    /// Returns the number that the module knows this by.
    fn to_abi(self) -> u32 {
        match self {
            Self::Accept => ACCF_ON_TIMEOUT_ACCEPT,
            Self::Reset => ACCF_ON_TIMEOUT_RESET,
            Self::Drop => ACCF_ON_TIMEOUT_DROP,
            Self::Other(other) => other,
        }
    }
}

impl State {
    /// Converts a module's number.
    fn from_abi(raw: u32) -> Self {
        match raw {
            ACCF_STATE_PARKING => Self::Parking,
            ACCF_STATE_PAUSED => Self::Paused,
            other => Self::Other(other),
        }
    }

    /// Returns the number that the module knows this by.
    fn to_abi(self) -> u32 {
        match self {
            Self::Parking => ACCF_STATE_PARKING,
            Self::Paused => ACCF_STATE_PAUSED,
            Self::Other(other) => other,
        }
    }
}

impl OnClose {
    /// Converts a module's number.
    fn from_abi(raw: u32) -> Self {
        match raw {
            ACCF_ON_CLOSE_ACCEPT => Self::Accept,
            ACCF_ON_CLOSE_RESET => Self::Reset,
            other => Self::Other(other),
        }
    }

    /// Returns the number that the module knows this by.
    fn to_abi(self) -> u32 {
        match self {
            Self::Accept => ACCF_ON_CLOSE_ACCEPT,
            Self::Reset => ACCF_ON_CLOSE_RESET,
            Self::Other(other) => other,
        }
    }
}

impl fmt::Display for OnClose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.pad("accept"),
            Self::Reset => f.pad("reset"),
            Self::Other(other) => f.pad(&other.to_string()),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parking => f.pad("parking"),
            Self::Paused => f.pad("paused"),
            Self::Other(other) => f.pad(&other.to_string()),
        }
    }
}

impl fmt::Display for OnTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.pad("accept"),
            Self::Reset => f.pad("reset"),
            Self::Drop => f.pad("drop"),
            Self::Other(other) => f.pad(&other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_round_trip() {
        for (on_timeout, state, on_close) in [
            (OnTimeout::Accept, State::Parking, OnClose::Accept),
            (OnTimeout::Reset, State::Paused, OnClose::Reset),
            (OnTimeout::Drop, State::Other(5), OnClose::Other(6)),
            (OnTimeout::Other(17), State::Parking, OnClose::Accept),
        ] {
            let config = Config {
                timeout: Some(Duration::from_millis(1500)),
                max_parked: NonZeroU32::new(7),
                on_timeout,
                state,
                on_close,
                probe: Some(Duration::from_secs(200)),
            };
            assert_eq!(Config::from_abi(&config.to_abi().unwrap()), config);
        }
    }

    #[test]
    fn the_default_is_all_zeros() {
        assert_eq!(Config::default().to_abi().unwrap(), accf_config::default());
        assert_eq!(Config::from_abi(&accf_config::default()), Config::default());
    }

    #[test]
    fn a_short_timeout_is_rounded_up() {
        assert_eq!(milliseconds(Duration::from_nanos(1)).unwrap(), 1);
        assert_eq!(milliseconds(Duration::from_micros(1001)).unwrap(), 2);
        assert!(milliseconds(Duration::ZERO).is_err());
    }

    #[test]
    fn the_longest_timeout_has_32_bits() {
        let longest = Duration::from_millis(u32::MAX.into());
        assert_eq!(milliseconds(longest).unwrap(), u32::MAX);
        assert!(milliseconds(longest + Duration::from_nanos(1)).is_err());
        assert!(milliseconds(Duration::MAX).is_err());
    }
}
