// SPDX-License-Identifier: MIT OR Apache-2.0
//! Idle clients of one listener, up to a million, and what is measured beside them.
//!
//! All clients are one thread, which sends for each of them ([`Swarm`]). The kernel does what a segment asks for before the
//! system call that sends it returns: [`Swarm::spent`] is what it took, with all that woke up meanwhile.
//!
//! Clients come in batches, with a pause after each, so that a deadline can be put between two batches. Time is cheap here: the
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

use accf_bench::Listener;
use accf_kit::control::{self, Config, OnTimeout, Stats};
use accf_kit::count;
use accf_kit::counters::Counters;
use accf_kit::endpoint::{self, Listen};
use accf_kit::netns::Netns;
use accf_kit::segment::Flags;
use accf_kit::slab::Slabs;
use accf_kit::swarm::{Member, Swarm};
use anyhow::{bail, ensure, Context, Result};
use nix::libc;
use socket2::{SockRef, Socket};

use crate::rounds::{FAMILY, REQUEST};
use crate::server::{Kind, Server};

/// How many clients come, speak or meet their deadline at once: fewer than [`BACKLOG`], as nobody accepts meanwhile.
pub(crate) const BATCH: u32 = 100;
/// The pause after each batch.
const BATCH_PAUSE: Duration = Duration::from_millis(50);
/// The backlog of a listener.
pub(crate) const BACKLOG: u32 = 128;
/// More clients than there ever are at once.
pub(crate) const MAX_CLIENTS: u32 = 2_000_000;
/// How many places the namespace's table of connections has; a power of two.
const TABLE_SIZE: u32 = 1 << 21;
/// After how many seconds `TCP_DEFER_ACCEPT` gives up: later than anything here takes.
const DEFER_ACCEPT_SECONDS: i32 = 3600;
/// How long a segment of the server may take that comes at once.
const ANSWERS_WITHIN: Duration = Duration::from_millis(10);
/// How long the kernel takes at most for what it does later: freeing memory, above all.
pub(crate) const SETTLES_WITHIN: Duration = Duration::from_secs(2);
/// How often as long it may take to be done with a namespace.
const CLOSE_ATTEMPTS: u32 = 60;
/// Where the kernel keeps sockets and requests: each namespace has some of its own, and frees them last.
const SOCKET_CACHES: [&str; 2] = ["TCP", "request_sock_TCP"];

/// The kernel's counter of syncookies.
const COOKIES: &str = "TcpExtSyncookiesSent";

/// Idle clients of one listener.
#[derive(Debug)]
pub(crate) struct IdleClients {
    ns: Netns,
    kind: Listener,
    listener: Arc<endpoint::Listener>,
    is_served: bool,
    swarm: Swarm,
    before: Counters,
    /// Those that are there, in the order in which they started.
    batches: VecDeque<Batch>,
    /// How many have come so far, idle ones and others.
    started: u32,
    /// The memory slabs_before the namespace.
    slabs_before: Slabs,
}

/// Clients that started one right after the other.
#[derive(Debug)]
struct Batch {
    clients: Vec<Client>,
    /// When the last one's bare ACK had come.
    last: Instant,
}

/// One client.
#[derive(Debug)]
struct Client {
    member: Member,
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

impl IdleClients {
    /// Opens a listener whose clients are still to come.
    pub(crate) fn new(kind: Listener, backlog: u32) -> Result<Self> {
        let slabs_before = Slabs::read_exactly(SETTLES_WITHIN)?;
        let ns = namespace()?;
        ns.set_sysctl("net.core.somaxconn", &backlog.to_string())?;
        let listen = match kind {
            Listener::Plain => Listen::plain(FAMILY),
            Listener::DeferAccept => Listen::deferred(FAMILY, DEFER_ACCEPT_SECONDS),
            Listener::Dataready => {
                Listen::filtered(FAMILY).config(settings(None, OnTimeout::Accept))
            }
        };
        let listener = listen.backlog(i32::try_from(backlog)?).open(&ns)?;
        Ok(Self {
            swarm: Swarm::new(&ns, FAMILY, listener.port())?,
            before: Counters::read(&ns)?,
            ns,
            kind,
            listener: Arc::new(listener),
            is_served: false,
            batches: VecDeque::new(),
            started: 0,
            slabs_before,
        })
    }

    /// Runs something on a thread that runs only while nobody else wants to: whoever a client wakes takes the processor from it
    /// at once.
    pub(crate) fn run(&mut self, f: impl FnOnce(&mut Self) -> Result<()> + Send) -> Result<()> {
        let ns = self.ns.clone();
        ns.run(|| {
            count::run_only_when_idle()?;
            f(self)
        })
    }

    /// Has a server accept whoever is to be accepted from now on.
    pub(crate) fn start_server(&mut self) -> Result<Server> {
        self.is_served = true;
        Server::serve(&self.ns, Kind::Epoll, self.listener.clone())
    }

    /// Has everybody go, closes the listener, and waits until nothing is left.
    pub(crate) fn close(mut self) -> Result<()> {
        self.shrink_to(0)?;
        let slabs_before = mem::take(&mut self.slabs_before);
        drop(self);
        for _ in 0..CLOSE_ATTEMPTS {
            let growth = Slabs::read_exactly(SETTLES_WITHIN)?.growth(&slabs_before);
            if SOCKET_CACHES
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
    pub(crate) fn swarm(&mut self) -> &mut Swarm {
        &mut self.swarm
    }

    /// A client that has not been there before.
    pub(crate) fn new_client(&mut self) -> Member {
        let member = self.swarm.member(self.started);
        self.started += 1;
        member
    }

    /// How many idle clients there are.
    pub(crate) fn len(&self) -> u32 {
        let clients = self.batches.iter().map(|batch| batch.clients.len());
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
    fn configure(&self, timeout: Option<Duration>, on_timeout: OnTimeout) -> Result<()> {
        control::set_config(self.listener.socket(), &settings(timeout, on_timeout))?;
        Ok(())
    }

    /// How many clients have been answered with a syncookie.
    pub(crate) fn cookies(&self) -> Result<i64> {
        Counters::read(&self.ns)?.growth(&self.before, COOKIES)
    }

    /// Has clients come until there are so many.
    pub(crate) fn grow_to(&mut self, clients: u32) -> Result<()> {
        let mut missing = clients.saturating_sub(self.len());
        while missing > 0 {
            let count = missing.min(BATCH);
            self.connect(count)?;
            missing -= count;
        }
        Ok(())
    }

    /// Has some clients do their handshakes, and says how many instructions each one's bare ACK took.
    pub(crate) fn connect(&mut self, count: u32) -> Result<Vec<u64>> {
        let first = self.started;
        let mut members: Vec<Member> = (0..count).map(|_| self.new_client()).collect();
        for member in &mut members {
            self.swarm.syn(member)?;
        }
        let mut answered = 0;
        while answered < count {
            let any = self.swarm.pump(ANSWERS_WITHIN, |nth, segment| {
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
        self.batches.push_back(Batch { clients, last });
        sleep(BATCH_PAUSE);
        Ok(instructions)
    }

    /// Accepts a connection that must be there.
    fn accept(&self) -> Result<Socket> {
        let accepted = self.listener.socket().accept4(libc::SOCK_CLOEXEC);
        let (socket, _) = accepted.context("a connection to accept")?;
        Ok(socket)
    }

    /// Takes out a batch of clients from all over the idle, the oldest and the newest among them.
    fn pick(&mut self) -> Result<Vec<Client>> {
        let last = self.len().checked_sub(1).context("nobody is there")?;
        ensure!(last >= BATCH, "only {} clients are there", last + 1);
        // No two are the same.
        let mut places = (0..BATCH)
            .map(|nth| (u64::from(nth) * u64::from(last) / u64::from(BATCH - 1)) as usize)
            .peekable();
        let mut clients = Vec::new();
        let mut first = 0;
        for batch in &mut self.batches {
            let behind = first + batch.clients.len();
            while let Some(place) = places.next_if(|place| *place < behind) {
                clients.push(batch.clients.remove(place - first));
                // Those behind have moved up.
                first += 1;
            }
            first = behind;
        }
        self.batches.retain(|batch| !batch.clients.is_empty());
        Ok(clients)
    }

    /// Has a batch of clients send their requests, and says how many instructions each one's took. They are from all over the
    /// idle, the oldest and the newest among them, and go afterwards.
    pub(crate) fn send_requests(&mut self) -> Result<Vec<u64>> {
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
                released == u64::from(BATCH),
                "{released} of {BATCH} clients were released"
            );
        }
        // Nobody has read their requests: closing resets, and nothing remains.
        drop(clients);
        let resets = self.resets()?;
        ensure!(
            resets == BATCH,
            "{resets} of {BATCH} clients had got a connection"
        );
        sleep(BATCH_PAUSE);
        Ok(instructions)
    }

    /// Has about a batch of the oldest clients meet their deadline at once.
    pub(crate) fn expire(&mut self, on_timeout: OnTimeout) -> Result<Expired> {
        let mut oldest = self.batches.pop_front().context("nobody is there")?;
        // Some of a batch may have spoken before.
        while let Some(next) = self
            .batches
            .pop_front_if(|next| oldest.clients.len() + next.clients.len() <= BATCH as usize)
        {
            oldest.clients.extend(next.clients);
            oldest.last = next.last;
        }
        let clients = u32::try_from(oldest.clients.len())?;
        let before = self.stats()?;
        // The same when nobody is due.
        let call = busy(|| self.configure(None, on_timeout))?;
        let timeout = oldest.last.elapsed().saturating_sub(BATCH_PAUSE / 2);
        let timeout = Duration::from_millis(u64::try_from(timeout.as_millis())?);
        let instructions = busy(|| self.configure(Some(timeout), on_timeout))?.saturating_sub(call);
        self.configure(None, on_timeout)?;

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
        sleep(BATCH_PAUSE);
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
    pub(crate) fn shrink_to(&mut self, clients: u32) -> Result<()> {
        let mut surplus = self.len().saturating_sub(clients) as usize;
        while surplus > 0 {
            let Some(newest) = self.batches.back_mut() else {
                break;
            };
            let left = newest.clients.len().saturating_sub(surplus);
            for mut client in newest.clients.drain(left..) {
                self.swarm.push(&mut client.member, Flags::RST, b"")?;
                surplus -= 1;
            }
            if newest.clients.is_empty() {
                self.batches.pop_back();
            }
        }
        sleep(BATCH_PAUSE);
        Ok(())
    }

    /// Makes sure that everybody is held who is to be holding_figures, and that nobody was treated in another way than all the others.
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
                    dropped == i64::from(self.started),
                    "{dropped} of {} bare ACKs were dropped",
                    self.started
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
    here.set_sysctl(SIZE, &TABLE_SIZE.to_string())?;
    let ns = Netns::new();
    here.set_sysctl(SIZE, &before)?;
    let ns = ns?;
    let size = ns.sysctl("net.ipv4.tcp_ehash_entries")?;
    ensure!(
        size == TABLE_SIZE.to_string(),
        "the namespace's table has {size} places"
    );
    Ok(ns)
}

/// A filter's settings.
fn settings(timeout: Option<Duration>, on_timeout: OnTimeout) -> Config {
    Config {
        timeout,
        max_parked: NonZeroU32::new(MAX_CLIENTS),
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
