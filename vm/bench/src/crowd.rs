// SPDX-License-Identifier: MIT OR Apache-2.0
//! Idle clients of one listener, up to a million, and what is measured beside them.
//!
//! All clients are one thread, which sends for each of them ([`TunClients`]). The kernel does what a segment asks for before the
//! system call that sends it returns: [`TunClients::spent`] is what it took, with all that woke up meanwhile.
//!
//! Clients come in lots, with a pause after each, so that a deadline can be put between two lots. Time is cheap here: the
//! machine's clock jumps over idle time.
//!
//! The table of connections is as large as somebody with a million of them would make it, and the same however many there
//! are. With fewer places the kernel's own searches would take longer the more there are, at any listener.

use std::collections::VecDeque;
use std::mem;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use accf_bench::{Bench, Listener, Measurement};
use accf_kit::control::{self, Config, OnTimeout, Stats};
use accf_kit::count;
use accf_kit::counters::Counters;
use accf_kit::endpoint::{self, Listen};
use accf_kit::netns::Netns;
use accf_kit::segment::Flags;
use accf_kit::slab::Slabs;
use accf_kit::tun_clients::{TunClient, TunClients};
use anyhow::{bail, ensure, Context, Result};
use nix::libc;
use nix::sys::resource::{setrlimit, Resource};
use socket2::{SockRef, Socket};

use crate::rounds::{in_turn, Figures, FAMILY, REQUEST};
use crate::server::{Kind, Server};
use crate::{holding, interference, Plan};

/// What is measured beside a crowd.
pub(crate) const BENCHES: [Bench; 2] = [Bench::Holding, Bench::Interference];

/// How many clients come, speak or meet their deadline at once: fewer than [`BACKLOG`], as nobody accepts meanwhile.
pub(crate) const LOT: u32 = 100;
/// The pause after each lot.
const PAUSE: Duration = Duration::from_millis(50);
/// The backlog of a listener.
const BACKLOG: u32 = 128;
/// More clients than there ever are at once.
const MOST: u32 = 2_000_000;
/// How many places the namespace's table of connections has; a power of two.
const TABLE: u32 = 1 << 21;
/// How many descriptors a server may have: each client of a plain listener costs one.
const DESCRIPTORS: u64 = 1_000_000;
/// After how many seconds `TCP_DEFER_ACCEPT` gives up: later than anything here takes.
const DEFERRED: i32 = 3600;
/// How long a segment of the server may take that comes at once.
const AT_ONCE: Duration = Duration::from_millis(10);
/// How long the kernel takes at most for what it does later: freeing memory, above all.
pub(crate) const SOON: Duration = Duration::from_secs(2);
/// How often as long it may take to be done with a namespace.
const PATIENCE: u32 = 60;
/// Where the kernel keeps sockets and requests: each namespace has some of its own, and frees them last.
const SOCKETS: [&str; 2] = ["TCP", "request_sock_TCP"];

/// The kernel's counter of syncookies.
const COOKIES: &str = "TcpExtSyncookiesSent";

/// How many clients of `dataready` there are when something is measured.
const STEPS: [u32; 4] = [1_000, 10_000, 100_000, 1_000_000];
/// How many there are at most in a short run.
const MOST_IF_SHORT: u32 = 10_000;
/// How many the other listeners hold at most: a plain one needs kilobytes for each.
const MOST_HELD: u32 = 100_000;
/// How many their server accepts at most, which takes long.
const MOST_BESIDE: u32 = 10_000;
/// How many either is in a short run.
const MOST_OF_OTHERS_IF_SHORT: u32 = 1_000;
/// More than these come in the last round only, as that takes long; each figure is measured there once for every round.
const MOST_IN_EACH_ROUND: u32 = 10_000;

/// So many clients when something is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// How many.
    pub(crate) clients: u32,
    /// How often each figure is measured then.
    pub(crate) passes: u32,
}

/// Measures some of [`BENCHES`].
pub(crate) fn measure(plan: Plan, wanted: &[Bench]) -> Result<Vec<Measurement>> {
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS)?;
    let mut held = wanted
        .contains(&Bench::Holding)
        .then(|| Figures::new(Bench::Holding));
    let mut beside = wanted
        .contains(&Bench::Interference)
        .then(|| Figures::new(Bench::Interference));
    for round in 0..plan.rounds {
        for listener in in_turn(Listener::ALL, round) {
            measure_at(listener, plan, round, &mut held, &mut beside)
                .with_context(|| format!("{}, round {}", listener.key(), round + 1))?;
        }
    }
    let figures = held.into_iter().chain(beside);
    Ok(figures.flat_map(Figures::finish).collect())
}

/// Where a round measures.
fn steps(plan: Plan, round: u32) -> Vec<Step> {
    let is_last = round + 1 == plan.rounds;
    let wanted = |clients: &u32| {
        (is_last || *clients <= MOST_IN_EACH_ROUND) && (!plan.short || *clients <= MOST_IF_SHORT)
    };
    let step = |clients| Step {
        clients,
        passes: if clients > MOST_IN_EACH_ROUND {
            plan.rounds
        } else {
            1
        },
    };
    STEPS.into_iter().filter(wanted).map(step).collect()
}

/// Measures at one listener.
fn measure_at(
    listener: Listener,
    plan: Plan,
    round: u32,
    held: &mut Option<Figures>,
    beside: &mut Option<Figures>,
) -> Result<()> {
    let steps = steps(plan, round);
    let most = |others| match listener {
        Listener::Dataready => MOST,
        _ if plan.short => MOST_OF_OTHERS_IF_SHORT,
        _ => others,
    };
    // `TCP_DEFER_ACCEPT` holds no more than its backlog.
    let backlog = match listener {
        Listener::DeferAccept if held.is_some() => MOST,
        _ => BACKLOG,
    };
    let mut crowd = Crowd::new(listener, backlog)?;
    if let Some(figures) = held {
        crowd.run(|crowd| holding::measure(crowd, &steps, most(MOST_HELD), figures))?;
        if beside.is_some() && listener != Listener::Dataready {
            // A server is to accept those that can be accepted, and the backlog to be the usual one. Nobody has accepted whom the
            // filter holds.
            crowd.end()?;
            crowd = Crowd::new(listener, BACKLOG)?;
        }
    }
    if let Some(figures) = beside {
        let server = crowd.serve()?;
        crowd.run(|crowd| {
            interference::measure(crowd, &server, &steps, most(MOST_BESIDE), figures)
        })?;
        server.stop()?;
    }
    crowd.end()
}

/// The middle one of some numbers: what is interrupted by the clock, or does what the kernel has put off, does not count.
pub(crate) fn median(numbers: &mut [u64]) -> Result<f64> {
    numbers.sort_unstable();
    let middle = numbers.get(numbers.len() / 2).context("no numbers")?;
    Ok(*middle as f64)
}

/// Idle clients of one listener.
#[derive(Debug)]
pub(crate) struct Crowd {
    ns: Netns,
    kind: Listener,
    listener: Arc<endpoint::Listener>,
    is_served: bool,
    swarm: TunClients,
    before: Counters,
    /// Those that are there, in the order in which they came.
    lots: VecDeque<Lot>,
    /// How many have come so far, idle ones and others.
    came: u32,
    /// The memory without the namespace.
    without: Slabs,
}

/// Clients that came one right after the other.
#[derive(Debug)]
struct Lot {
    clients: Vec<Client>,
    /// When the last one's bare ACK had come.
    last: Instant,
}

/// One client.
#[derive(Debug)]
struct Client {
    member: TunClient,
    /// The server's end, if there is one and no [`Server`] has it.
    socket: Option<Socket>,
}

/// What the deadline of some clients took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expired {
    /// How many they were.
    pub(crate) clients: u32,
    /// Instructions, for all of them together.
    pub(crate) instructions: u64,
}

impl Crowd {
    /// Opens a listener whose clients are still to come.
    fn new(kind: Listener, backlog: u32) -> Result<Self> {
        let without = Slabs::read_exactly(SOON)?;
        let ns = namespace()?;
        ns.set_sysctl("net.core.somaxconn", &backlog.to_string())?;
        let listen = match kind {
            Listener::Plain => Listen::plain(FAMILY),
            Listener::DeferAccept => Listen::deferred(FAMILY, DEFERRED),
            Listener::Dataready => {
                Listen::filtered(FAMILY).config(settings(None, OnTimeout::Accept))
            }
        };
        let listener = listen.backlog(i32::try_from(backlog)?).open(&ns)?;
        Ok(Self {
            swarm: TunClients::new(&ns, FAMILY, listener.port())?,
            before: Counters::read(&ns)?,
            ns,
            kind,
            listener: Arc::new(listener),
            is_served: false,
            lots: VecDeque::new(),
            came: 0,
            without,
        })
    }

    /// Runs something on a thread that runs only while nobody else wants to: whoever a client wakes takes the processor from it
    /// at once.
    fn run(&mut self, f: impl FnOnce(&mut Self) -> Result<()> + Send) -> Result<()> {
        let ns = self.ns.clone();
        ns.run(|| {
            count::run_only_when_idle()?;
            f(self)
        })
    }

    /// Has a server accept whoever is to be accepted from now on.
    fn serve(&mut self) -> Result<Server> {
        self.is_served = true;
        Server::serve(&self.ns, Kind::Epoll, self.listener.clone())
    }

    /// Has everybody go, closes the listener, and waits until nothing is left.
    fn end(mut self) -> Result<()> {
        self.leave(0)?;
        let without = mem::take(&mut self.without);
        drop(self);
        for _ in 0..PATIENCE {
            let growth = Slabs::read_exactly(SOON)?.growth(&without);
            if SOCKETS
                .iter()
                .all(|&cache| growth.get(cache).is_none_or(|&bytes| bytes <= 0))
            {
                return Ok(());
            }
        }
        bail!("a namespace's sockets are still there")
    }

    /// Which listener it is.
    pub(crate) fn kind(&self) -> Listener {
        self.kind
    }

    /// The clients' thread.
    pub(crate) fn swarm(&mut self) -> &mut TunClients {
        &mut self.swarm
    }

    /// A client that has not been there before.
    pub(crate) fn newcomer(&mut self) -> TunClient {
        let member = self.swarm.client(self.came);
        self.came += 1;
        member
    }

    /// How many idle clients there are.
    pub(crate) fn len(&self) -> u32 {
        let clients = self.lots.iter().map(|lot| lot.clients.len());
        clients.sum::<usize>() as u32
    }

    /// What the filter has counted, if there is one.
    fn stats(&self) -> Result<Stats> {
        Ok(match self.kind {
            Listener::Dataready => control::stats(self.listener.socket())?,
            _ => Stats::default(),
        })
    }

    /// Changes the filter's settings.
    fn set(&self, timeout: Option<Duration>, on_timeout: OnTimeout) -> Result<()> {
        control::set_config(self.listener.socket(), &settings(timeout, on_timeout))?;
        Ok(())
    }

    /// How many clients have been answered with a syncookie.
    pub(crate) fn cookies(&self) -> Result<i64> {
        Counters::read(&self.ns)?.growth(&self.before, COOKIES)
    }

    /// Has clients come until there are so many.
    pub(crate) fn fill(&mut self, clients: u32) -> Result<()> {
        let mut missing = clients.saturating_sub(self.len());
        while missing > 0 {
            let count = missing.min(LOT);
            self.come(count)?;
            missing -= count;
        }
        Ok(())
    }

    /// Has some clients do their handshakes, and says how many instructions each one's bare ACK took.
    pub(crate) fn come(&mut self, count: u32) -> Result<Vec<u64>> {
        let first = self.came;
        let mut members: Vec<TunClient> = (0..count).map(|_| self.newcomer()).collect();
        for member in &mut members {
            self.swarm.syn(member)?;
        }
        let mut answered = 0;
        while answered < count {
            let any = self.swarm.pump(AT_ONCE, |nth, segment| {
                let index = nth.wrapping_sub(first) as usize;
                let member = members
                    .get_mut(index)
                    .with_context(|| format!("to an idle client: {segment}"))?;
                ensure!(
                    segment.is_syn_ack() && member.rcv_nxt == 0,
                    "not the one answer to a SYN: {segment}"
                );
                member.rcv_nxt = segment.end_seq();
                answered += 1;
                Ok(())
            })?;
            ensure!(any, "{answered} of {count} SYNs were answered");
        }
        let mut instructions = Vec::with_capacity(members.len());
        for member in &mut members {
            let before = self.swarm.spent();
            self.swarm.push(member, Flags::ACK, b"")?;
            instructions.push(self.swarm.spent() - before);
        }
        let last = Instant::now();
        let mut clients = Vec::with_capacity(members.len());
        for member in members {
            let is_ours = self.kind == Listener::Plain && !self.is_served;
            let socket = is_ours.then(|| self.accept()).transpose()?;
            clients.push(Client { member, socket });
        }
        self.lots.push_back(Lot { clients, last });
        sleep(PAUSE);
        Ok(instructions)
    }

    /// Accepts a connection that must be there.
    fn accept(&self) -> Result<Socket> {
        let accepted = self.listener.socket().accept4(libc::SOCK_CLOEXEC);
        let (socket, _) = accepted.context("a connection to accept")?;
        Ok(socket)
    }

    /// Takes out a lot of clients from all over the crowd, the oldest and the newest among them.
    fn pick(&mut self) -> Result<Vec<Client>> {
        let last = self.len().checked_sub(1).context("nobody is there")?;
        ensure!(last >= LOT, "only {} clients are there", last + 1);
        // No two are the same.
        let mut places = (0..LOT)
            .map(|nth| (u64::from(nth) * u64::from(last) / u64::from(LOT - 1)) as usize)
            .peekable();
        let mut clients = Vec::new();
        let mut first = 0;
        for lot in &mut self.lots {
            let behind = first + lot.clients.len();
            while let Some(place) = places.next_if(|place| *place < behind) {
                clients.push(lot.clients.remove(place - first));
                // Those behind have moved up.
                first += 1;
            }
            first = behind;
        }
        self.lots.retain(|lot| !lot.clients.is_empty());
        Ok(clients)
    }

    /// Has a lot of clients send their requests, and says how many instructions each one's took. They are from all over the
    /// crowd, the oldest and the newest among them, and go afterwards.
    pub(crate) fn speak(&mut self) -> Result<Vec<u64>> {
        let before = self.stats()?;
        let mut clients = self.pick()?;
        let mut instructions = Vec::with_capacity(clients.len());
        for client in &mut clients {
            let before = self.swarm.spent();
            self.swarm
                .push(&mut client.member, Flags::PSH_ACK, REQUEST)?;
            instructions.push(self.swarm.spent() - before);
        }
        for client in &mut clients {
            if client.socket.is_none() {
                client.socket = Some(self.accept()?);
            }
        }
        if self.kind == Listener::Dataready {
            let released = self.stats()?.released_data - before.released_data;
            ensure!(
                released == u64::from(LOT),
                "{released} of {LOT} clients were released"
            );
        }
        // Nobody has read their requests: closing resets, and nothing remains.
        drop(clients);
        let resets = self.resets()?;
        ensure!(
            resets == LOT,
            "{resets} of {LOT} clients had got a connection"
        );
        sleep(PAUSE);
        Ok(instructions)
    }

    /// Has about a lot of the oldest clients meet their deadline at once.
    pub(crate) fn expire(&mut self, on_timeout: OnTimeout) -> Result<Expired> {
        let mut oldest = self.lots.pop_front().context("nobody is there")?;
        // Some of a lot may have spoken before.
        while let Some(next) = self
            .lots
            .pop_front_if(|next| oldest.clients.len() + next.clients.len() <= LOT as usize)
        {
            oldest.clients.extend(next.clients);
            oldest.last = next.last;
        }
        let clients = u32::try_from(oldest.clients.len())?;
        let before = self.stats()?;
        // The same when nobody is due.
        let call = busy(|| self.set(None, on_timeout))?;
        let timeout = oldest.last.elapsed().saturating_sub(PAUSE / 2);
        let timeout = Duration::from_millis(u64::try_from(timeout.as_millis())?);
        let instructions = busy(|| self.set(Some(timeout), on_timeout))?.saturating_sub(call);
        self.set(None, on_timeout)?;

        let after = self.stats()?;
        let ended = after.timeout_accept + after.timeout_reset + after.timeout_drop
            - (before.timeout_accept + before.timeout_reset + before.timeout_drop);
        ensure!(
            ended == u64::from(clients),
            "{ended} of {clients} clients met their deadline"
        );
        let resets = self.resets()?;
        let expected = if on_timeout == OnTimeout::Reset {
            clients
        } else {
            0
        };
        ensure!(
            resets == expected,
            "{resets} of {clients} clients were reset, not {expected}"
        );
        if on_timeout == OnTimeout::Accept {
            for _ in 0..clients {
                let socket = self.accept()?;
                SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
            }
            let resets = self.resets()?;
            ensure!(
                resets == clients,
                "{resets} of {clients} clients had got a connection"
            );
        }
        sleep(PAUSE);
        Ok(Expired {
            clients,
            instructions,
        })
    }

    /// Reads all that clients were sent who are not there any more, and counts the resets.
    pub(crate) fn resets(&mut self) -> Result<u32> {
        let mut resets = 0;
        while let Some((_, segment)) = self.swarm.take()? {
            resets += u32::from(segment.is_rst());
        }
        Ok(resets)
    }

    /// Has the newest reset their connections until so many are left.
    pub(crate) fn leave(&mut self, clients: u32) -> Result<()> {
        let mut surplus = self.len().saturating_sub(clients) as usize;
        while surplus > 0 {
            let Some(newest) = self.lots.back_mut() else {
                break;
            };
            let left = newest.clients.len().saturating_sub(surplus);
            for mut client in newest.clients.drain(left..) {
                self.swarm.push(&mut client.member, Flags::RST, b"")?;
                surplus -= 1;
            }
            if newest.clients.is_empty() {
                self.lots.pop_back();
            }
        }
        sleep(PAUSE);
        Ok(())
    }

    /// Makes sure that everybody is held who is to be held, and that nobody was treated in another way than all the others.
    pub(crate) fn check(&self) -> Result<()> {
        let counters = Counters::read(&self.ns)?;
        let counted = |counter| counters.growth(&self.before, counter);
        for counter in [
            "TcpExtListenDrops",
            "TcpExtListenOverflows",
            "TcpExtTCPSynRetrans",
            "TcpRetransSegs",
        ] {
            ensure!(counted(counter)? == 0, "{} {counter}", counted(counter)?);
        }
        let cookies = counted(COOKIES)?;
        match self.kind {
            // With no more than the usual backlog, it cannot hold many, and somebody else accepts the others.
            Listener::DeferAccept if self.is_served => return Ok(()),
            Listener::DeferAccept => {
                let dropped = counted("TcpExtTCPDeferAcceptDrop")?;
                ensure!(
                    dropped == i64::from(self.came),
                    "{dropped} of {} bare ACKs were dropped",
                    self.came
                );
            }
            Listener::Dataready => {
                let stats = self.stats()?;
                let idle = self.len();
                ensure!(
                    stats.parked == u64::from(idle) && stats.bypassed() == 0,
                    "not all of {idle} clients are parked: {stats:?}"
                );
            }
            // Each was accepted.
            Listener::Plain => {}
        }
        ensure!(cookies == 0, "{cookies} syncookies");
        Ok(())
    }
}

/// A namespace with a large table of connections.
fn namespace() -> Result<Netns> {
    const SIZE: &str = "net.ipv4.tcp_child_ehash_entries";
    // A setting of whoever makes a namespace.
    let here = Netns::current()?;
    let before = here.sysctl(SIZE)?;
    here.set_sysctl(SIZE, &TABLE.to_string())?;
    let ns = Netns::new();
    here.set_sysctl(SIZE, &before)?;
    let ns = ns?;
    let size = ns.sysctl("net.ipv4.tcp_ehash_entries")?;
    ensure!(
        size == TABLE.to_string(),
        "the namespace's table has {size} places"
    );
    Ok(ns)
}

/// A filter's settings.
fn settings(timeout: Option<Duration>, on_timeout: OnTimeout) -> Config {
    Config {
        timeout,
        max_parked: NonZeroU32::new(MOST),
        on_timeout,
    }
}

/// How many instructions something takes, and what the kernel does because of it until nothing more happens.
fn busy(f: impl FnOnce() -> Result<()>) -> Result<u64> {
    /// More than the loop takes, and less than any interrupt.
    const STEP: u64 = 200;
    /// Longer than the kernel pauses in between.
    const QUIET: u64 = 200_000;
    let begin = count::instructions();
    f()?;
    let mut last = count::instructions();
    let mut busy = last - begin;
    let mut quiet_since = last;
    while last - quiet_since < QUIET {
        let now = count::instructions();
        if now - last > STEP {
            busy += now - last;
            quiet_since = now;
        }
        last = now;
    }
    Ok(busy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_crowds_come_once_and_each_figure_has_a_sample_for_every_round() {
        for short in [true, false] {
            let plan = Plan { rounds: 3, short };
            let all: Vec<Step> = (0..plan.rounds)
                .flat_map(|round| steps(plan, round))
                .collect();
            for clients in STEPS {
                let passes: Vec<u32> = all
                    .iter()
                    .filter(|step| step.clients == clients)
                    .map(|step| step.passes)
                    .collect();
                let expected: &[u32] = match clients {
                    ..=MOST_IN_EACH_ROUND => &[1, 1, 1],
                    _ if short => &[],
                    _ => &[3],
                };
                assert_eq!(passes, expected, "{clients} clients");
            }
        }
    }
}
