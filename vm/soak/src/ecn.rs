// SPDX-License-Identifier: MIT OR Apache-2.0
//! Clients that ask for Accurate ECN (RFC 9768), in some namespaces.

use accf_kit::counters::Counters;
use accf_kit::netns::Netns;
use anyhow::Result;

use crate::round::Round;

/// The setting: how connections use ECN.
const SETTING: &str = "net.ipv4.tcp_ecn";
/// Accurate ECN is asked for, and granted.
const ACCURATE: &str = "3";
/// What a server grants: ECN as of RFC 3168, or Accurate ECN, in each way that there is.
const SERVERS: [&str; 4] = ["2", "3", "4", "5"];

/// The segments that an IPv4 socket of a namespace got which were capable of ECN: those with data
/// of connections that have agreed on it.
const CAPABLE: &str = "IpExtInECT0Pkts";

/// Namespaces in which clients ask for Accurate ECN, or not.
#[derive(Debug)]
pub(crate) struct Ecn<'a> {
    server: Option<&'a Netns>,
}

impl<'a> Ecn<'a> {
    /// Has the clients in a namespace ask for Accurate ECN, at random; `server` is where their
    /// server is.
    pub(crate) fn at_random(
        round: &Round<'_>,
        rng: &mut fastrand::Rng,
        client: &Netns,
        server: &'a Netns,
    ) -> Result<Self> {
        if rng.bool() {
            return Ok(Self { server: None });
        }
        // First the server's: it may be in the same namespace.
        server.set_sysctl(SETTING, rng.choice(SERVERS).unwrap_or(ACCURATE))?;
        client.set_sysctl(SETTING, ACCURATE)?;
        round
            .board
            .event("namespaces whose clients ask for Accurate ECN");
        Ok(Self {
            server: Some(server),
        })
    }

    /// Counts what has come of it.
    pub(crate) fn report(&self, round: &Round<'_>) -> Result<()> {
        if let Some(server) = self.server {
            let capable = Counters::read(server)?.get(CAPABLE)?;
            round
                .board
                .events_of("segments capable of ECN", u64::try_from(capable)?);
        }
        Ok(())
    }
}
