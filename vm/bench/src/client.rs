// SPDX-License-Identifier: MIT OR Apache-2.0
//! The client of a measured server: one connection after another, segment by segment, and what each costs.
//!
//! There is one processor. The client runs only while nobody else wants to, and never sleeps, so that a server runs as
//! soon as it is woken and until it has nothing to do, all before the client's system call returns: [`TunClients::spent`] then
//! is what the kernel and the server have to do for a connection. The client's own program has no part in it, nor has what it
//! takes to read what the server has sent.

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

/// How many clients visit a server before the next one's turn: whatever else changes, changes for all of them.
const BATCH: u32 = 50;
/// How many clients visit a server before anything is measured: as many as have an address of their own, and some.
const WARM_UP: u32 = 250;
/// How often a client looks whether a segment has come before it gives up.
const LOOKS: u32 = 100_000;
/// How many closed connections the kernel is made to remember at most: fewer than it can (`net.ipv4.tcp_max_tw_buckets`).
const REMEMBERED: u32 = 8000;
/// How long it remembers them all: somewhat less than a minute.
const REMEMBERS: Duration = Duration::from_secs(50);
/// How long it may take until it has forgotten them: timers of that length are late by several seconds.
const FORGETS: Duration = Duration::from_secs(180);
/// How long the kernel gets to do what connections leave to do: to free memory, to take down a namespace.
const SETTLING: Duration = Duration::from_secs(1);

/// What must not have happened: it would have made a connection another one than the next.
const TROUBLES: [&str; 4] = [
    "TcpRetransSegs",
    "TcpExtSyncookiesSent",
    "TcpExtListenOverflows",
    "TcpOutRsts",
];

/// What the third segment of the handshake carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Nothing: the client pauses until the server has nothing to do any more, and then sends its request.
    Pause,
    /// The request: it needs no round trip more than the handshake.
    SameTrip,
}

impl Manner {
    /// Both of them.
    pub(crate) const ALL: [Self; 2] = [Self::Pause, Self::SameTrip];
}

/// What connections of one server cost, added up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bill {
    /// How many connections.
    pub(crate) connections: u32,
    /// Instructions from the SYN to the last ACK.
    pub(crate) instructions: u64,
    /// Those for the bare ACK that ends the handshake, and what the server does then.
    pub(crate) ack: u64,
    /// Those for the request, with all that the server does until it waits again.
    pub(crate) request: u64,
    /// What the server did.
    pub(crate) server: Usage,
    /// Instructions of the client itself, and for what it reads, which are not among the others.
    own: u64,
    /// Those of the connection that took fewest.
    least_own: Option<u64>,
}

impl Bill {
    /// A sum over all connections, for each of them.
    pub(crate) fn each(&self, sum: u64) -> f64 {
        sum as f64 / f64::from(self.connections)
    }

    /// Makes sure that the server ran in the client's system calls, and at no other time.
    ///
    /// Then the client takes the same number of instructions each time. Some are interrupted by the clock.
    fn check_own(&self) -> Result<()> {
        let least = self.least_own.unwrap_or(0);
        let usual = least * u64::from(self.connections);
        ensure!(
            self.own <= usual + usual / 5,
            "{} clients took {} instructions of their own, and one of them only {least}: the server, or somebody else, \
             runs when they do",
            self.connections,
            self.own
        );
        Ok(())
    }
}

/// Clients of all servers in a namespace, none of whom comes twice.
#[derive(Debug)]
pub(crate) struct Clients {
    ns: Netns,
    swarm: TunClients,
    next: u32,
    /// When the kernel remembered none of those who have come since.
    oldest: Instant,
}

impl Clients {
    /// Connects them to a namespace; `port` is where those go who are not told another one.
    pub(crate) fn new(ns: &Netns, port: u16) -> Result<Self> {
        Ok(Self {
            ns: ns.clone(),
            swarm: TunClients::new(ns, FAMILY, port)?,
            next: 0,
            oldest: Instant::now(),
        })
    }

    /// For clients who do something else.
    pub(crate) fn swarm(&mut self) -> &mut TunClients {
        &mut self.swarm
    }

    /// They visit each server so often that no measured visit is a first time.
    pub(crate) fn warm_up(&mut self, servers: &[&Server]) -> Result<()> {
        for manner in Manner::ALL {
            // What the kernel and the programs do for the first time, they may do at any time.
            self.attend(manner, servers, WARM_UP)?;
        }
        Ok(())
    }

    /// That many visit each of the servers; returns what they cost at each.
    ///
    /// They come once more if somebody else took the processor meanwhile: the kernel has work of its own now and then.
    pub(crate) fn visit(
        &mut self,
        manner: Manner,
        servers: &[&Server],
        connections: u32,
    ) -> Result<Vec<Bill>> {
        let undisturbed = |bills: &Vec<Bill>| bills.iter().try_for_each(Bill::check_own);
        let bills = self.attend(manner, servers, connections)?;
        if undisturbed(&bills).is_ok() {
            return Ok(bills);
        }
        let bills = self.attend(manner, servers, connections)?;
        undisturbed(&bills)?;
        Ok(bills)
    }

    /// The same, whatever else happens.
    fn attend(
        &mut self,
        manner: Manner,
        servers: &[&Server],
        connections: u32,
    ) -> Result<Vec<Bill>> {
        let visits = u32::try_from(servers.len())? * connections;
        self.settle(visits)?;
        let before = Counters::read(&self.ns)?;
        let mut bills = Vec::new();
        for server in servers {
            bills.push((Bill::default(), server.usage()?));
        }
        let clients = self.next..self.next + connections;
        self.next = clients.end;
        let swarm = &mut self.swarm;
        // On a thread of its own, which alone runs only while nobody else wants to.
        self.ns.run(|| {
            count::run_only_when_idle()?;
            let sleeps = own_sleeps()?;
            for first in clients.clone().step_by(BATCH as usize) {
                for (server, (bill, _)) in servers.iter().zip(&mut bills) {
                    for nth in first..clients.end.min(first + BATCH) {
                        connect(swarm, swarm.client_of(nth, server.port()), manner, bill)
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
        for trouble in TROUBLES {
            let count = after.growth(&before, trouble)?;
            ensure!(count == 0, "{trouble} grew by {count}");
        }
        let settled = bills.into_iter().zip(servers);
        let settled = settled.map(|((mut bill, used), server)| {
            bill.server = server.usage()?.since(&used);
            ensure!(
                bill.server.answered == u64::from(connections),
                "{} of {connections} clients were answered",
                bill.server.answered
            );
            Ok(bill)
        });
        settled.collect()
    }

    /// Waits until the kernel has done what was left to do, and will not have to forget a closed connection meanwhile.
    fn settle(&mut self, visits: u32) -> Result<()> {
        // Idle time costs this machine nothing.
        thread::sleep(SETTLING);
        let mut remembered = remembered(&self.ns)?;
        if remembered + visits > REMEMBERED || self.oldest.elapsed() > REMEMBERS {
            while remembered > 0 {
                ensure!(
                    self.oldest.elapsed() < FORGETS,
                    "{remembered} closed connections are still remembered"
                );
                thread::sleep(SETTLING);
                remembered = self::remembered(&self.ns)?;
            }
        }
        if remembered == 0 {
            self.oldest = Instant::now();
        }
        Ok(())
    }
}

/// How many closed connections the kernel remembers (TIME-WAIT).
fn remembered(ns: &Netns) -> Result<u32> {
    let text = ns.proc_net("sockstat")?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "tw");
    let count = words.nth(1).context("/proc/net/sockstat has no `tw`")?;
    Ok(count.parse()?)
}

/// How often this thread has slept.
fn own_sleeps() -> Result<i64> {
    Ok(getrusage(UsageWho::RUSAGE_THREAD)?.voluntary_context_switches())
}

/// Is one client from the SYN to the last ACK, and adds what that cost to the bill.
///
/// The server closes first. Each of its segments must be the one that is due, so all listeners' are the same ones.
fn connect(
    swarm: &mut TunClients,
    member: TunClient,
    manner: Manner,
    bill: &mut Bill,
) -> Result<()> {
    let begin = (count::instructions(), swarm.spent());
    let mut member = member;
    swarm.syn(&mut member)?;
    take(swarm, &mut member, Flags::SYN_ACK, b"")?;
    if manner == Manner::Pause {
        let before = swarm.spent();
        swarm.push(&mut member, Flags::ACK, b"")?;
        bill.ack += swarm.spent() - before;
    }
    let before = swarm.spent();
    swarm.push(&mut member, Flags::PSH_ACK, REQUEST)?;
    bill.request += swarm.spent() - before;
    take(swarm, &mut member, Flags::ACK, b"")?;
    take(swarm, &mut member, Flags::PSH_ACK, RESPONSE)?;
    swarm.push(&mut member, Flags::ACK, b"")?;
    take(swarm, &mut member, Flags::FIN_ACK, b"")?;
    swarm.push(&mut member, Flags::ACK, b"")?;
    swarm.push(&mut member, Flags::FIN_ACK, b"")?;
    take(swarm, &mut member, Flags::ACK, b"")?;
    let spent = swarm.spent() - begin.1;
    let own = count::instructions() - begin.0 - spent;
    bill.connections += 1;
    bill.instructions += spent;
    bill.own += own;
    bill.least_own = Some(bill.least_own.map_or(own, |least| least.min(own)));
    Ok(())
}

/// Takes the server's next segment, which must be this one.
fn take(
    swarm: &mut TunClients,
    member: &mut TunClient,
    flags: Flags,
    payload: &[u8],
) -> Result<()> {
    for _ in 0..LOOKS {
        let Some((nth, segment)) = swarm.take()? else {
            continue;
        };
        let is_first = member.rcv_nxt == 0;
        let is_due = nth == member.nth
            && segment.flags == flags
            && segment.payload == payload
            && segment.ack == member.snd_nxt
            && (is_first || segment.seq == member.rcv_nxt);
        ensure!(
            is_due,
            "[{flags}] len {} was due, and this came: {segment}",
            payload.len()
        );
        member.rcv_nxt = segment.end_seq();
        return Ok(());
    }
    bail!("[{flags}] len {} was due, and nothing came", payload.len())
}
