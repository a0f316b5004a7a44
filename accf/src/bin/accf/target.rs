// SPDX-License-Identifier: MIT OR Apache-2.0
//! The addresses of the listeners that `accf stats` shows.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;

/// An address, a port, or both. The default matches every listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Target {
    address: Option<IpAddr>,
    port: Option<NonZeroU16>,
}

/// The error of parsing a [`Target`].
#[derive(Debug)]
pub(crate) struct Invalid;

impl Target {
    /// Returns whether a listener on `address` matches. A wildcard address matches only itself.
    pub(crate) fn matches(self, address: SocketAddr) -> bool {
        self.address.is_none_or(|ip| ip == address.ip())
            && self.port.is_none_or(|port| port.get() == address.port())
    }
}

impl FromStr for Target {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // `Display` writes this for the default.
        if text == "*" {
            return Ok(Self::default());
        }
        // Must come before a port alone, as `::` also begins with a colon.
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self {
                address: Some(address),
                port: None,
            });
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self {
                address: Some(address.ip()),
                port: Some(NonZeroU16::new(address.port()).ok_or(Invalid)?),
            });
        }
        let bracketed = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        if let Some(address) = bracketed {
            return Ok(Self {
                address: Some(address.parse::<Ipv6Addr>().map_err(|_| Invalid)?.into()),
                port: None,
            });
        }
        let port = text.strip_prefix('*').unwrap_or(text);
        let port = port.strip_prefix(':').ok_or(Invalid)?;
        Ok(Self {
            address: None,
            port: Some(port.parse().map_err(|_| Invalid)?),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.port) {
            (None, None) => f.write_str("*"),
            (None, Some(port)) => write!(f, ":{port}"),
            (Some(address), None) => write!(f, "{address}"),
            (Some(address), Some(port)) => write!(f, "{}", SocketAddr::new(address, port.get())),
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "give ADDRESS, ADDRESS:PORT or :PORT, such as 192.0.2.1, [2001:db8::1]:443 or :8080",
        )
    }
}

impl std::error::Error for Invalid {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns whether `text` matches a listener on `address`.
    fn matches(text: &str, address: &str) -> bool {
        let target: Target = text.parse().unwrap();
        target.matches(address.parse().unwrap())
    }

    #[test]
    fn a_port_matches_any_address() {
        assert!(matches(":80", "127.0.0.1:80"));
        assert!(matches("*:80", "[::1]:80"));
        assert!(!matches(":80", "127.0.0.1:81"));
    }

    #[test]
    fn an_address_matches_any_port() {
        assert!(matches("127.0.0.1", "127.0.0.1:80"));
        assert!(matches("::1", "[::1]:80"));
        assert!(matches("[::1]", "[::1]:80"));
        assert!(!matches("127.0.0.1", "0.0.0.0:80"));
    }

    #[test]
    fn address_and_port_must_both_match() {
        assert!(matches("[::1]:80", "[::1]:80"));
        assert!(!matches("[::1]:80", "[::1]:81"));
        assert!(!matches("0.0.0.0:80", "[::]:80"));
    }

    #[test]
    fn invalid_targets_are_refused() {
        for text in [
            "",
            ":",
            "[]",
            "[127.0.0.1]",
            ":0",
            ":65536",
            "127.0.0.1:0",
            "host",
            "80",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn targets_round_trip() {
        for text in ["*", ":80", "::1", "[::1]:80", "127.0.0.1", "127.0.0.1:80"] {
            let target: Target = text.parse().unwrap();
            assert_eq!(target.to_string(), text);
        }
    }
}
