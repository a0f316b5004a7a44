// SPDX-License-Identifier: MIT OR Apache-2.0

//! Clients of every habit at one end of a cable, filtered listeners of all settings at the other; and something may be the
//! matter with the cable, or with memory.
//!
//! Whatever that is, each client's fate must agree with what it did, and the counts of each listener must add up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{anyhow, ensure, Context as _, Result};

use crate::account::describe;
use crate::clients::sockets::{Crowd, Habit, Server, Target};
use crate::control::{settings, OnTimeout, Stats};
use crate::endpoint::{Family, Listen};
use crate::netns::Netns;
use crate::wire::Wire;

/// What each of the listeners is like: what becomes of the silent, and whether there is so little room that some make it.
const LISTENERS: [(OnTimeout, bool); 5] = [
    (OnTimeout::Accept, false),
    (OnTimeout::Reset, false),
    (OnTimeout::Drop, false),
    (OnTimeout::Accept, true),
    (OnTimeout::Reset, true),
];

/// Where there is little room, so many may be parked.
const LITTLE_ROOM: u32 = 3;

/// What connection tracking is to do: look at each packet, and drop what belongs to no connection.
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
    /// So many of a hundred packets are lost, come twice, overtake others.
    pub disturbed: u8,
    /// A firewall at both ends knows of connections.
    pub tracked: bool,
    /// Allocations fail, or a namespace has little room.
    pub shortage: bool,
    /// The allocations that fail are the kernel's own, too.
    pub no_packets: bool,
}

/// The listeners and the clients.
#[derive(Debug)]
pub struct ImpairedWire {
    wire: Wire,
    server: Server,
    crowd: Crowd,
    trouble: Impairment,
}

impl ImpairedWire {
    /// Lays a cable and opens the listeners. A client lives for `lifetime`, beyond its silence.
    pub fn new(
        trouble: Impairment,
        deadline: Duration,
        lifetime: Duration,
        mut rng: fastrand::Rng,
    ) -> Result<Self> {
        let wire = Wire::new()?;
        for ns in [&wire.client, &wire.server] {
            if trouble.tracked {
                track(ns)?;
            }
            if trouble.disturbed > 0 {
                persist(ns)?;
            }
        }
        if trouble.disturbed > 0 {
            wire.disturb(trouble.disturbed)?;
        }
        let mut server = Server::new()?;
        let mut targets = Vec::new();
        let deadline_ms = u32::try_from(deadline.as_millis())?;
        for (on_timeout, evicts) in LISTENERS {
            let family = *rng.choice(&Family::ALL).context("no family")?;
            let room = if evicts { LITTLE_ROOM } else { 0 };
            let listener = Listen::filtered(family)
                .backlog(1024)
                .config(settings(deadline_ms, room, on_timeout))
                .open(&wire.server)?;
            targets.push(Target {
                address: wire.server_address(family, listener.port()),
                deadline,
                on_timeout: Some(on_timeout),
                evicts: evicts || trouble.shortage,
                lossy: trouble.disturbed > 0 || trouble.shortage,
                forgets: trouble.disturbed > 0 && trouble.no_packets,
            });
            server.add(listener)?;
        }
        // A client may be heard so much later than it believes.
        let margin = deadline / 3;
        let crowd = Crowd::new(targets, margin, lifetime, rng)?;
        Ok(Self {
            wire,
            server,
            crowd,
            trouble,
        })
    }

    /// The server's namespace.
    pub fn server_ns(&self) -> &Netns {
        &self.wire.server
    }

    /// The clients.
    pub fn crowd(&self) -> &Crowd {
        &self.crowd
    }

    /// Has up to `at_once` clients be there, one more each `gap` at most, until `over` says so; then until all are gone.
    pub fn run(
        &mut self,
        at_once: usize,
        gap: Duration,
        over: impl FnMut(&Crowd) -> bool + Send,
    ) -> Result<()> {
        let gone = AtomicBool::new(false);
        let Self {
            wire,
            server,
            crowd,
            ..
        } = self;
        thread::scope(|scope| {
            let clients = scope.spawn(|| -> Result<()> {
                wire.client.enter()?;
                let result = crowd.run(at_once, gap, over);
                gone.store(true, Ordering::Relaxed);
                result
            });
            while !gone.load(Ordering::Relaxed) && !clients.is_finished() {
                server.step(Duration::from_millis(50))?;
            }
            clients
                .join()
                .map_err(|_| anyhow!("the clients panicked"))?
        })
    }

    /// Waits until all listeners are at rest, compares their counts with what the server saw, and closes them.
    pub fn settle(&mut self, limit: Duration) -> Result<Vec<Stats>> {
        let mut all = Vec::new();
        for (index, (on_timeout, evicts)) in LISTENERS.into_iter().enumerate() {
            let seen = self.server.settle(index, limit)?;
            self.account(index, &seen).with_context(|| {
                format!(
                    "a listener ({on_timeout:?}, {}) with {}; {:?}",
                    if evicts { "little room" } else { "room" },
                    describe(&seen),
                    self.server.served(index)
                )
            })?;
            drop(self.server.take(index)?);
            all.push(seen);
        }
        Ok(all)
    }

    /// Whoever was released was accepted, and nobody else but those that were never held back.
    fn account(&self, index: usize, seen: &Stats) -> Result<()> {
        let accepted = self.server.served(index).accepted;
        let mut released = seen.released_data + seen.released_fin + seen.timeout_accept;
        let (on_timeout, _) = LISTENERS.get(index).context("no such listener")?;
        if *on_timeout == OnTimeout::Accept {
            released += seen.evicted;
        }
        let policies = [
            (OnTimeout::Accept, seen.timeout_accept),
            (OnTimeout::Reset, seen.timeout_reset),
            (OnTimeout::Drop, seen.timeout_drop),
        ];
        for (policy, count) in policies {
            ensure!(
                count == 0 || policy == *on_timeout,
                "{count} met the policy {policy:?}"
            );
        }
        ensure!(
            accepted >= released,
            "{accepted} were accepted, of {released} that were released"
        );
        // Where the ACK gets lost, whoever speaks was never held back.
        if self.trouble.disturbed > 0 || self.trouble.shortage {
            return Ok(());
        }
        // Who speaks at once may be heard before its ACK is, on another processor.
        let at_once: u64 = self
            .crowd
            .fates()
            .iter()
            .filter(|((target, habit, ..), _)| {
                *target == index && matches!(habit, Habit::Eager | Habit::Prompt)
            })
            .map(|(_, count)| *count)
            .sum();
        let most = released + at_once + seen.bypassed() + seen.fallback;
        ensure!(
            accepted <= most,
            "{accepted} were accepted, of {most} at most that could be"
        );
        Ok(())
    }
}

/// Has both ends of a namespace's connections say again each second what is not heard, until it is.
///
/// Also when nobody has the socket open any more: by itself, the kernel then gives up once it waits as long as it may
/// (`tcp_orphan_retries()`), which is after five FINs here, or fewer: now and then a client would wait for its end for ever.
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
