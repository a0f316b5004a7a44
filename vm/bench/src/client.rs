// SPDX-License-Identifier: MIT OR Apache-2.0
//! The client of a measured server: one connection after another, segment by segment, and what each
//! costs.
//!
//! There is one processor. The client has the lowest priority and never sleeps. So a server that is
//! woken runs at once, until it waits again, before the client's system call returns:
//! [`TunClients::spent`] then is what the kernel and the server do for a connection. It leaves out
//! the client's own program, and what it takes to read the server's segments.

use std::thread;
use std::time::{Duration, Instant};

use accf_kit::count;
use accf_kit::counters::Counters;
use accf_kit::netns::Netns;
use accf_kit::segment::Flags;
use accf_kit::tun_clients::{TunClient, TunClients};
use anyhow::{bail, ensure, Context, Result};
use nix::sys::resource::{getrusage, UsageWho};

use crate::rounds::{FAMILY, REQUEST, RESPONSE};
use crate::server::{Server, Usage};

/// The clients that visit a server before the next server's turn: any drift affects all servers.
const BATCH: u32 = 50;
/// The clients that visit a server before anything is measured: more than the clients' addresses.
const WARM_UP: u32 = 250;
/// How often a client polls for a segment before it gives up.
const MAX_POLLS: u32 = 100_000;
/// The most connections in TIME-WAIT: fewer than the kernel's limit
/// (`net.ipv4.tcp_max_tw_buckets`).
const MAX_TIME_WAIT: u32 = 8000;
/// The age of the oldest TIME-WAIT up to which none has expired: somewhat less than a minute.
const MAX_AGE: Duration = Duration::from_secs(50);
/// How long it takes at most until all have expired: timers of that length are late by seconds.
const EXPIRES_WITHIN: Duration = Duration::from_secs(180);
/// The time for the kernel's deferred work after connections: freeing memory, removing a namespace.
const SETTLES_WITHIN: Duration = Duration::from_secs(1);

/// Counters that must not have grown: each would mean that connections differed.
const UNEXPECTED: [&str; 4] = [
    "TcpRetransSegs",
    "TcpExtSyncookiesSent",
    "TcpExtListenOverflows",
    "TcpOutRsts",
];

/// What the third segment of the handshake carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Nothing: the client pauses until the server waits again, and then sends its request.
    Pause,
    /// The request, which needs no round trip more than the handshake.
    SameTrip,
}

impl Manner {
    /// Both of them.
    pub(crate) const ALL: [Self; 2] = [Self::Pause, Self::SameTrip];
}

/// What the connections of one server cost together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Costs {
    /// The number of connections.
    pub(crate) connections: u32,
    /// Instructions from the SYN to the last ACK.
    pub(crate) instructions: u64,
    /// Those for the bare ACK that ends the handshake, and what the server does then.
    pub(crate) ack: u64,
    /// Those for the request, and what the server does until it waits again.
    pub(crate) request: u64,
    /// What the server did.
    pub(crate) server: Usage,
    /// Instructions of the client itself, and for what it reads; not included above.
    own: u64,
    /// Those of the connection that took the fewest.
    least_own: Option<u64>,
}

impl Costs {
    /// Returns the mean per connection of a sum over all of them.
    pub(crate) fn each(&self, sum: u64) -> f64 {
        sum as f64 / f64::from(self.connections)
    }

    /// Checks that the server ran during the client's system calls, and at no other time.
    ///
    /// Then the client takes the same number of instructions each time, but for clock interrupts.
    fn check_own(&self) -> Result<()> {
        let least = self.least_own.unwrap_or(0);
        let usual = least * u64::from(self.connections);
        ensure!(
            self.own <= usual + usual / 5,
            "{} clients took {} instructions of their own, and one of them only {least}: \
             the server, or another program, runs outside of their system calls",
            self.connections,
            self.own
        );
        Ok(())
    }
}

/// Clients of all servers in a namespace; each connects once.
#[derive(Debug)]
pub(crate) struct Clients {
    ns: Netns,
    tun: TunClients,
    next: u32,
    /// A time when no connection was in TIME-WAIT.
    none_before: Instant,
}

impl Clients {
    /// Attaches clients to a namespace, with a default port for those that are given none.
    pub(crate) fn new(ns: &Netns, port: u16) -> Result<Self> {
        Ok(Self {
            ns: ns.clone(),
            tun: TunClients::new(ns, FAMILY, port)?,
            next: 0,
            none_before: Instant::now(),
        })
    }

    /// Returns the clients' TUN interface, for clients that do something else.
    pub(crate) fn tun(&mut self) -> &mut TunClients {
        &mut self.tun
    }

    /// Visits each server so often that no measured visit is a first time.
    pub(crate) fn warm_up(&mut self, servers: &[&Server]) -> Result<()> {
        for manner in Manner::ALL {
            // Whatever the kernel and the programs do only once is done in these visits.
            self.visit_once(manner, servers, WARM_UP)?;
        }
        Ok(())
    }

    /// Makes this many connections to each server, and returns what they cost at each.
    ///
    /// Repeats it once if another program ran meanwhile: the kernel sometimes has work of its own.
    pub(crate) fn visit(
        &mut self,
        manner: Manner,
        servers: &[&Server],
        connections: u32,
    ) -> Result<Vec<Costs>> {
        let check = |costs: &Vec<Costs>| costs.iter().try_for_each(Costs::check_own);
        let costs = self.visit_once(manner, servers, connections)?;
        if check(&costs).is_ok() {
            return Ok(costs);
        }
        let costs = self.visit_once(manner, servers, connections)?;
        check(&costs)?;
        Ok(costs)
    }

    /// Does the same once, without that check.
    fn visit_once(
        &mut self,
        manner: Manner,
        servers: &[&Server],
        connections: u32,
    ) -> Result<Vec<Costs>> {
        let visits = u32::try_from(servers.len())? * connections;
        self.wait_until_settled(visits)?;
        let before = Counters::read(&self.ns)?;
        let mut costs = Vec::new();
        for server in servers {
            costs.push((Costs::default(), server.usage()?));
        }
        let clients = self.next..self.next + connections;
        self.next = clients.end;
        let tun = &mut self.tun;
        // On a thread of its own: the idle priority is for this thread only.
        self.ns.run(|| {
            count::run_only_when_idle()?;
            let sleeps = own_sleeps()?;
            for first in clients.clone().step_by(BATCH as usize) {
                for (server, (cost, _)) in servers.iter().zip(&mut costs) {
                    for nth in first..clients.end.min(first + BATCH) {
                        connect(tun, tun.client_of(nth, server.port()), manner, cost)
                            .with_context(|| format!("client {nth} of port {}", server.port()))?;
                    }
                }
            }
            ensure!(
                own_sleeps()? == sleeps,
                "the client slept: the processor was idle, and the clock jumped"
            );
            Ok(())
        })?;
        let after = Counters::read(&self.ns)?;
        let opened = after.growth(&before, "TcpPassiveOpens")?;
        ensure!(
            opened == i64::from(visits),
            "{opened} connections were made, not {visits}"
        );
        for counter in UNEXPECTED {
            let count = after.growth(&before, counter)?;
            ensure!(count == 0, "{counter} grew by {count}");
        }
        let counted = costs.into_iter().zip(servers);
        let counted = counted.map(|((mut cost, used), server)| {
            cost.server = server.usage()?.since(&used);
            ensure!(
                cost.server.answered == u64::from(connections),
                "{} of {connections} clients were answered",
                cost.server.answered
            );
            Ok(cost)
        });
        counted.collect()
    }

    /// Waits until the kernel has done its deferred work, and until no TIME-WAIT can expire during
    /// the visits.
    fn wait_until_settled(&mut self, visits: u32) -> Result<()> {
        // The machine's clock jumps over idle time.
        thread::sleep(SETTLES_WITHIN);
        let mut time_wait = time_wait_sockets(&self.ns)?;
        if time_wait + visits > MAX_TIME_WAIT || self.none_before.elapsed() > MAX_AGE {
            while time_wait > 0 {
                ensure!(
                    self.none_before.elapsed() < EXPIRES_WITHIN,
                    "{time_wait} connections are still in TIME-WAIT"
                );
                thread::sleep(SETTLES_WITHIN);
                time_wait = time_wait_sockets(&self.ns)?;
            }
        }
        if time_wait == 0 {
            self.none_before = Instant::now();
        }
        Ok(())
    }
}

/// Returns the number of connections in TIME-WAIT.
fn time_wait_sockets(ns: &Netns) -> Result<u32> {
    let text = ns.proc_net("sockstat")?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "tw");
    let count = words.nth(1).context("/proc/net/sockstat has no `tw`")?;
    Ok(count.parse()?)
}

/// Returns how often this thread has slept.
fn own_sleeps() -> Result<i64> {
    Ok(getrusage(UsageWho::RUSAGE_THREAD)?.voluntary_context_switches())
}

/// Plays one client from the SYN to the last ACK, and adds what that cost.
///
/// The server closes first. Each of its segments must be the expected one, so all listeners send
/// the same ones.
fn connect(
    tun: &mut TunClients,
    member: TunClient,
    manner: Manner,
    cost: &mut Costs,
) -> Result<()> {
    let begin = (count::instructions(), tun.spent());
    let mut member = member;
    tun.syn(&mut member)?;
    take(tun, &mut member, Flags::SYN_ACK, b"")?;
    if manner == Manner::Pause {
        let before = tun.spent();
        tun.push(&mut member, Flags::ACK, b"")?;
        cost.ack += tun.spent() - before;
    }
    let before = tun.spent();
    tun.push(&mut member, Flags::PSH_ACK, REQUEST)?;
    cost.request += tun.spent() - before;
    take(tun, &mut member, Flags::ACK, b"")?;
    take(tun, &mut member, Flags::PSH_ACK, RESPONSE)?;
    tun.push(&mut member, Flags::ACK, b"")?;
    take(tun, &mut member, Flags::FIN_ACK, b"")?;
    tun.push(&mut member, Flags::ACK, b"")?;
    tun.push(&mut member, Flags::FIN_ACK, b"")?;
    take(tun, &mut member, Flags::ACK, b"")?;
    let spent = tun.spent() - begin.1;
    let own = count::instructions() - begin.0 - spent;
    cost.connections += 1;
    cost.instructions += spent;
    cost.own += own;
    cost.least_own = Some(cost.least_own.map_or(own, |least| least.min(own)));
    Ok(())
}

/// Takes the server's next segment, which must have these flags and this payload.
fn take(tun: &mut TunClients, member: &mut TunClient, flags: Flags, payload: &[u8]) -> Result<()> {
    for _ in 0..MAX_POLLS {
        let Some((nth, segment)) = tun.take()? else {
            continue;
        };
        let is_first = member.rcv_nxt == 0;
        let is_expected = nth == member.nth
            && segment.flags == flags
            && segment.payload == payload
            && segment.ack == member.snd_nxt
            && (is_first || segment.seq == member.rcv_nxt);
        ensure!(
            is_expected,
            "[{flags}] len {} was expected, not {segment}",
            payload.len()
        );
        member.rcv_nxt = segment.end_seq();
        return Ok(());
    }
    bail!(
        "[{flags}] len {} was expected, and nothing came",
        payload.len()
    )
}
