// SPDX-License-Identifier: MIT OR Apache-2.0

//! Clients of every kind at one end of a wire, filtered listeners with all settings at the other,
//! where the wire loses packets, a firewall looks at them, or memory is short.
//!
//! Whatever that is, each client's fate must agree with what it did, and the counts of each
//! listener must add up.

use std::time::Duration;

use anyhow::{ensure, Context as _, Result};

use crate::account::describe;
use crate::clients::sockets::Sockets;
use crate::clients::{released_were_accepted, Behaviour, Clients, Pace, Policy, Target};
use crate::control::Stats;
use crate::endpoint::Family;
use crate::netns::Netns;
use crate::server::{Served, Server};
use crate::wire::Wire;

/// How many may be parked where there is little room.
const LITTLE_ROOM: u32 = 3;

/// Has connection tracking look at each packet, and drop what belongs to no connection.
const TRACKING: &str = "table inet tracking {
    chain input {
        type filter hook input priority filter; policy accept;
        ct state invalid counter drop
        ct state established,related counter accept
        ct state new counter accept
    }
    chain output {
        type filter hook output priority filter; policy accept;
        ct state invalid counter drop
    }
}
";

/// What is the matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impairment {
    /// How many of a hundred packets are lost, come twice, overtake others.
    pub disturbed: u8,
    /// A firewall at both ends knows of connections.
    pub tracked: bool,
    /// Allocations fail, or a namespace has little room.
    pub shortage: bool,
    /// The allocations that fail include those of the network stack.
    pub no_packets: bool,
}

/// The wire, the listeners and the clients.
#[derive(Debug)]
pub struct ImpairedWire {
    wire: Wire,
    server: Server,
    clients: Clients<Sockets>,
    policies: [Policy; 5],
    impairment: Impairment,
}

impl ImpairedWire {
    /// Lays a wire and opens the listeners. A client lives for `lifetime`, beyond its silence.
    pub fn new(
        impairment: Impairment,
        deadline: Duration,
        lifetime: Duration,
        mut rng: fastrand::Rng,
    ) -> Result<Self> {
        let wire = Wire::new()?;
        for ns in [&wire.client, &wire.server] {
            if impairment.tracked {
                track(ns)?;
            }
            if impairment.disturbed > 0 {
                persist(ns)?;
            }
        }
        if impairment.disturbed > 0 {
            wire.disturb(impairment.disturbed)?;
        }
        let mut server = Server::new()?;
        let mut targets = Vec::new();
        let policies = Policy::all(deadline, LITTLE_ROOM, Some(deadline));
        for policy in policies {
            let family = *rng.choice(&Family::ALL).context("no family")?;
            let listener = policy.open(family, &wire.server)?;
            targets.push(Target {
                lossy: impairment.disturbed > 0 || impairment.shortage,
                forgets: impairment.disturbed > 0 && impairment.no_packets,
                ..policy.at(wire.server_address(family, listener.port()))
            });
            server.add(listener)?;
        }
        // How much later than a client believes the server may hear it.
        let margin = deadline / 3;
        let clients = Sockets::clients(targets, margin, lifetime, rng)?;
        Ok(Self {
            wire,
            server,
            clients,
            policies,
            impairment,
        })
    }

    /// Returns the clients' namespace.
    pub fn client_ns(&self) -> &Netns {
        &self.wire.client
    }

    /// Returns the server's namespace.
    pub fn server_ns(&self) -> &Netns {
        &self.wire.server
    }

    /// Returns the clients.
    pub fn clients(&self) -> &Clients<Sockets> {
        &self.clients
    }

    /// Starts clients until `more`, called with the number of those that have begun, returns false;
    /// goes on until all are gone.
    pub fn run(&mut self, pace: Pace, more: impl FnMut(u64) -> bool + Send) -> Result<()> {
        let Self {
            wire,
            server,
            clients,
            ..
        } = self;
        clients.run_in(&wire.client, pace, more, || {
            server.step(Duration::from_millis(50)).map(drop)
        })
    }

    /// Waits until all listeners are at rest, compares their counts with what the server saw, and
    /// closes them.
    pub fn settle(&mut self, limit: Duration) -> Result<Vec<Stats>> {
        let mut all = Vec::new();
        for (index, policy) in self.policies.iter().enumerate() {
            let seen = self.server.settle(index, limit)?;
            let served = self.server.served(index);
            self.account(index, policy, &seen, &served)
                .with_context(|| {
                    format!(
                        "a listener ({policy:?}) with {}; {served:?}",
                        describe(&seen)
                    )
                })?;
            drop(self.server.take(index)?);
            all.push(seen);
        }
        Ok(all)
    }

    /// Makes sure that every connection that was released was accepted, and no other connection but
    /// such as were never parked.
    fn account(&self, index: usize, policy: &Policy, seen: &Stats, served: &Served) -> Result<()> {
        let released = released_were_accepted(policy, seen, served)?;
        // Where the ACK gets lost, a client that sends was never parked.
        if self.impairment.disturbed > 0 || self.impairment.shortage {
            return Ok(());
        }
        // The request of a client that sends at once may be handled before its ACK is, on another
        // processor.
        let at_once = [Behaviour::DataInAck, Behaviour::DataAtOnce];
        let at_once = self.clients.tally().count(index, &at_once);
        let most = released + at_once + seen.bypassed() + seen.fallback;
        ensure!(
            served.accepted <= most,
            "{} were accepted, of {most} at most that could be",
            served.accepted
        );
        Ok(())
    }
}

/// Has both ends of a namespace's connections send again each second what is not heard, until it
/// is.
///
/// Also when the socket is closed: by itself, the kernel then gives up once it waits as long as it
/// may (`tcp_orphan_retries()`), which is after five FINs here, or fewer: now and then a client
/// would wait for its end for ever.
fn persist(ns: &Netns) -> Result<()> {
    for (name, value) in [
        ("net.ipv4.tcp_rto_max_ms", "1000"),
        ("net.ipv4.tcp_syn_linear_timeouts", "30"),
        ("net.ipv4.tcp_syn_retries", "30"),
        ("net.ipv4.tcp_synack_retries", "30"),
        ("net.ipv4.tcp_orphan_retries", "30"),
    ] {
        ns.set_sysctl(name, value)?;
    }
    Ok(())
}

fn track(ns: &Netns) -> Result<()> {
    ns.feed("nft", &["-f", "-"], TRACKING)
        .context("connection tracking (CONFIG_NFT_CT)")
        .map(drop)
}
