// SPDX-License-Identifier: MIT OR Apache-2.0
//! Idle clients of one listener, up to a million.
//!
//! One thread sends for all clients ([`TunClients`]). The kernel processes a segment before the
//! system call that sends it returns: [`TunClients::spent`] counts the instructions for it,
//! including those of the programs that it wakes.
//!
//! Clients connect in batches, with a pause after each, so that a deadline can be set between two
//! batches. Pauses cost nothing: the machine's clock jumps over idle time.
//!
//! The table of connections has the size that a million of them need, and the same size for any
//! number. In a smaller table the kernel's lookups would take longer with more connections, at any
//! listener.

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
use accf_kit::tun_clients::{TunClient, TunClients};
use anyhow::{bail, ensure, Context, Result};
use nix::libc;
use socket2::{SockRef, Socket};

use crate::rounds::{FAMILY, REQUEST};
use crate::server::{Kind, Server};

/// The clients that connect, send or expire at once: fewer than [`BACKLOG`], as the server does not
/// accept meanwhile.
pub(crate) const BATCH: u32 = 100;
/// The pause after each batch.
const BATCH_PAUSE: Duration = Duration::from_millis(50);
/// The backlog of a listener.
pub(crate) const BACKLOG: u32 = 128;
/// More clients than are ever connected at once.
pub(crate) const MAX_CLIENTS: u32 = 2_000_000;
/// The size of the namespace's table of connections; a power of two.
const TABLE_SIZE: u32 = 1 << 21;
/// The deadline of `TCP_DEFER_ACCEPT`, in seconds: longer than the benchmark takes.
const DEFER_ACCEPT_SECONDS: i32 = 3600;
/// The limit for a segment that the server sends at once.
const ANSWERS_WITHIN: Duration = Duration::from_millis(10);
/// The limit for the kernel's deferred work: freeing memory, above all.
pub(crate) const SETTLES_WITHIN: Duration = Duration::from_secs(2);
/// How often [`SETTLES_WITHIN`] may pass until a namespace is removed.
const CLOSE_ATTEMPTS: u32 = 60;
/// The slab caches of sockets and requests: a namespace has objects in both, and frees them last.
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
    tun: TunClients,
    before: Counters,
    /// The connected ones, the oldest first.
    batches: VecDeque<Batch>,
    /// The number of all clients so far, idle and active.
    started: u32,
    /// The memory before the namespace was made.
    slabs_before: Slabs,
}

/// Clients that connected one right after the other.
#[derive(Debug)]
struct Batch {
    clients: Vec<Client>,
    /// The time after the last one's bare ACK.
    last: Instant,
}

/// One client.
#[derive(Debug)]
struct Client {
    member: TunClient,
    /// The server's end, if it was accepted, and not by a [`Server`].
    socket: Option<Socket>,
}

/// The cost of the deadline of some clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expired {
    /// The number of clients.
    pub(crate) clients: u32,
    /// The instructions for all of them together.
    pub(crate) instructions: u64,
}

impl IdleClients {
    /// Opens a listener without clients.
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
            tun: TunClients::new(&ns, FAMILY, listener.port())?,
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

    /// Runs a closure on a thread of idle priority: a program that a client wakes runs at once.
    pub(crate) fn run(&mut self, f: impl FnOnce(&mut Self) -> Result<()> + Send) -> Result<()> {
        let ns = self.ns.clone();
        ns.run(|| {
            count::run_only_when_idle()?;
            f(self)
        })
    }

    /// Starts a server that accepts from now on.
    pub(crate) fn start_server(&mut self) -> Result<Server> {
        self.is_served = true;
        Server::serve(&self.ns, Kind::Epoll, self.listener.clone())
    }

    /// Resets all connections, closes the listener, and waits until its memory is freed.
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

    /// Returns the kind of the listener.
    pub(crate) fn kind(&self) -> Listener {
        self.kind
    }

    /// Returns the clients' TUN interface.
    pub(crate) fn tun(&mut self) -> &mut TunClients {
        &mut self.tun
    }

    /// Returns a client that has not connected before.
    pub(crate) fn new_client(&mut self) -> TunClient {
        let member = self.tun.client(self.started);
        self.started += 1;
        member
    }

    /// Returns the number of idle clients.
    pub(crate) fn len(&self) -> u32 {
        let clients = self.batches.iter().map(|batch| batch.clients.len());
        clients.sum::<usize>() as u32
    }

    /// Returns the filter's counters; zeros at other listeners.
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

    /// Returns how many SYNs were answered with a syncookie.
    pub(crate) fn cookies(&self) -> Result<i64> {
        Counters::read(&self.ns)?.growth(&self.before, COOKIES)
    }

    /// Connects clients until this many are connected.
    pub(crate) fn grow_to(&mut self, clients: u32) -> Result<()> {
        let mut missing = clients.saturating_sub(self.len());
        while missing > 0 {
            let count = missing.min(BATCH);
            self.connect(count)?;
            missing -= count;
        }
        Ok(())
    }

    /// Connects a batch of clients, and returns how many instructions each bare ACK took.
    pub(crate) fn connect(&mut self, count: u32) -> Result<Vec<u64>> {
        let first = self.started;
        let mut members: Vec<TunClient> = (0..count).map(|_| self.new_client()).collect();
        for member in &mut members {
            self.tun.syn(member)?;
        }
        let mut answered = 0;
        while answered < count {
            let any = self.tun.pump(ANSWERS_WITHIN, |nth, segment| {
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
            let before = self.tun.spent();
            self.tun.push(member, Flags::ACK, b"")?;
            instructions.push(self.tun.spent() - before);
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

    /// Accepts a connection, which must be in the accept queue.
    fn accept(&self) -> Result<Socket> {
        let accepted = self.listener.socket().accept4(libc::SOCK_CLOEXEC);
        let (socket, _) = accepted.context("a connection to accept")?;
        Ok(socket)
    }

    /// Takes out a batch of clients, spread evenly from the oldest to the newest.
    fn pick(&mut self) -> Result<Vec<Client>> {
        let last = self.len().checked_sub(1).context("no client")?;
        ensure!(last >= BATCH, "only {} clients are connected", last + 1);
        // All are different.
        let mut places = (0..BATCH)
            .map(|nth| (u64::from(nth) * u64::from(last) / u64::from(BATCH - 1)) as usize)
            .peekable();
        let mut clients = Vec::new();
        let mut first = 0;
        for batch in &mut self.batches {
            let behind = first + batch.clients.len();
            while let Some(place) = places.next_if(|place| *place < behind) {
                clients.push(batch.clients.remove(place - first));
                // The clients behind it have moved up.
                first += 1;
            }
            first = behind;
        }
        self.batches.retain(|batch| !batch.clients.is_empty());
        Ok(clients)
    }

    /// Sends the requests of a batch of clients, spread evenly from the oldest to the newest, and
    /// returns how many instructions each took. The connections are closed afterwards.
    pub(crate) fn send_requests(&mut self) -> Result<Vec<u64>> {
        let before = self.stats()?;
        let mut clients = self.pick()?;
        let mut instructions = Vec::with_capacity(clients.len());
        for client in &mut clients {
            let before = self.tun.spent();
            self.tun.push(&mut client.member, Flags::PSH_ACK, REQUEST)?;
            instructions.push(self.tun.spent() - before);
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
        // Their requests were not read: closing sends an RST, and leaves no TIME-WAIT.
        drop(clients);
        self.expect_resets(BATCH)?;
        sleep(BATCH_PAUSE);
        Ok(instructions)
    }

    /// Lets up to a batch of the oldest clients expire at once.
    pub(crate) fn expire(&mut self, on_timeout: OnTimeout) -> Result<Expired> {
        let mut oldest = self.batches.pop_front().context("no client")?;
        // Batches shrink as some of their clients send requests.
        while let Some(next) = self
            .batches
            .pop_front_if(|next| oldest.clients.len() + next.clients.len() <= BATCH as usize)
        {
            oldest.clients.extend(next.clients);
            oldest.last = next.last;
        }
        let clients = u32::try_from(oldest.clients.len())?;
        let before = self.stats()?;
        // The cost of the call without an expired client.
        let call = busy(|| self.configure(None, on_timeout))?;
        let timeout = oldest.last.elapsed().saturating_sub(BATCH_PAUSE / 2);
        let timeout = Duration::from_millis(u64::try_from(timeout.as_millis())?);
        let instructions = busy(|| self.configure(Some(timeout), on_timeout))?.saturating_sub(call);
        self.configure(None, on_timeout)?;

        let timeouts =
            |stats: &Stats| stats.timeout_accept + stats.timeout_reset + stats.timeout_drop;
        let ended = timeouts(&self.stats()?) - timeouts(&before);
        ensure!(
            ended == u64::from(clients),
            "{ended} of {clients} clients expired"
        );
        let is_reset = on_timeout == OnTimeout::Reset;
        self.expect_resets(if is_reset { clients } else { 0 })?;
        if on_timeout == OnTimeout::Accept {
            for _ in 0..clients {
                let socket = self.accept()?;
                SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
            }
            self.expect_resets(clients)?;
        }
        sleep(BATCH_PAUSE);
        Ok(Expired {
            clients,
            instructions,
        })
    }

    /// Reads the segments for clients that are gone, and checks the number of resets.
    fn expect_resets(&mut self, expected: u32) -> Result<()> {
        let mut resets = 0;
        while let Some((_, segment)) = self.tun.take()? {
            resets += u32::from(segment.is_rst());
        }
        ensure!(
            resets == expected,
            "{resets} clients were reset, not {expected}"
        );
        Ok(())
    }

    /// Resets the newest connections until this many are left.
    pub(crate) fn shrink_to(&mut self, clients: u32) -> Result<()> {
        let mut surplus = self.len().saturating_sub(clients) as usize;
        while surplus > 0 {
            let Some(newest) = self.batches.back_mut() else {
                break;
            };
            let left = newest.clients.len().saturating_sub(surplus);
            for mut client in newest.clients.drain(left..) {
                self.tun.push(&mut client.member, Flags::RST, b"")?;
                surplus -= 1;
            }
            if newest.clients.is_empty() {
                self.batches.pop_back();
            }
        }
        sleep(BATCH_PAUSE);
        Ok(())
    }

    /// Checks that all idle clients are parked or deferred where they should be, and that all were
    /// treated alike.
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
            // With the usual backlog, it can defer few; the server accepts those with a syncookie.
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

/// Makes a namespace with a large table of connections.
pub(crate) fn namespace() -> Result<Netns> {
    let ns = Netns::with_table(TABLE_SIZE)?;
    let size = ns.sysctl("net.ipv4.tcp_ehash_entries")?;
    ensure!(
        size == TABLE_SIZE.to_string(),
        "the namespace's table has {size} entries"
    );
    Ok(ns)
}

/// Returns a filter's settings.
fn settings(timeout: Option<Duration>, on_timeout: OnTimeout) -> Config {
    Config {
        timeout,
        // Of more than half, the module would count connections by source.
        max_parked: NonZeroU32::new(2 * MAX_CLIENTS),
        on_timeout,
        ..Config::default()
    }
}

/// Counts the instructions that a closure takes, and those of the work that it causes in the
/// kernel, until that is done.
fn busy(f: impl FnOnce() -> Result<()>) -> Result<u64> {
    /// More instructions than a pass of the loop takes, and fewer than any interrupt.
    const STEP: u64 = 200;
    /// Longer than any pause between two parts of the kernel's work.
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
