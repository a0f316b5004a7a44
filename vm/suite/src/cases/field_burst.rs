// SPDX-License-Identifier: MIT OR Apache-2.0

//! Many clients that connected ahead of need send at the same moment, and the accept queue is
//! short: no request is lost, and new clients come in beside them.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use accf_kit::control::{self, timeout};
use accf_kit::counters::Counters;
use accf_kit::endpoint::{Family, Listen, Listener};
use accf_kit::netns::Netns;
use accf_kit::tcp_info;
use accf_kit::{module, wait};
use anyhow::{ensure, Context as _, Result};
use nix::sys::resource::{setrlimit, Resource};

use crate::case::{case, each_family, expect_eq, expect_in, Context, Kernel};
use crate::count::{counted, counts};
use crate::scene::{accept_queue_holds, join_scoped, Client, REQUEST, RESPONSE};

/// The descriptors that both ends of all clients take.
const DESCRIPTORS: u64 = 4096;
/// How often the time of a burst is taken at most.
const ROUNDS: usize = 8;
/// How much longer the last client may wait than where there is room for all.
const TIMES: f64 = 1.1;

/// A listener, and clients that have connected and are silent.
struct Crowd {
    listener: Listener,
    ns: Netns,
    clients: Vec<Client>,
}

impl Crowd {
    fn new(listen: &Listen) -> Result<Self> {
        setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS)?;
        let ns = Netns::new()?;
        // A slow machine sends tail loss probes although nothing is lost: two ticks after a
        // response and a FIN. What is lost is still sent again at the retransmission timeout.
        ns.set_sysctl("net.ipv4.tcp_early_retrans", "0")?;
        let listener = listen.open(&ns)?;
        Ok(Self {
            listener,
            ns,
            clients: Vec::new(),
        })
    }

    /// Returns a filtered listener with this many parked clients.
    fn parked(context: &Context, family: Family, backlog: i32, clients: usize) -> Result<Self> {
        let listen = Listen::filtered(family).config(timeout(0)).backlog(backlog);
        let mut crowd = Self::new(&listen)?;
        // Handshakes that come faster than they are parked would fill the SYN backlog.
        while crowd.clients.len() < clients {
            let more = (clients - crowd.clients.len()).min(usize::try_from(backlog)?.max(2) / 2);
            crowd.connect(family, more)?;
            let parked = crowd.clients.len() as u64;
            counts(context, &crowd.listener, counted!(parked: parked))?;
        }
        // Until the last one is idle, and no client under way.
        sleep(Duration::from_millis(120));
        Ok(crowd)
    }

    /// Connects more clients.
    fn connect(&mut self, family: Family, count: usize) -> Result<()> {
        let server = family.loopback(self.listener.port());
        let more: Vec<Client> = self.ns.run(|| {
            (0..count)
                .map(|_| Client::new(TcpStream::connect(server)?))
                .collect::<Result<_>>()
        })?;
        self.clients.extend(more);
        Ok(())
    }

    /// Has all clients ask at once while `serve` runs. Returns when the last one has its answer.
    fn ask(&mut self, serve: impl FnOnce(&Listener) -> Result<()> + Send) -> Result<Duration> {
        let Self {
            listener, clients, ..
        } = self;
        let listener = &*listener;
        thread::scope(|scope| {
            let server = scope.spawn(move || serve(listener));
            let start = Instant::now();
            for client in clients.iter_mut() {
                client.stream.write_all(REQUEST).context("ask")?;
            }
            for (nth, client) in clients.iter_mut().enumerate() {
                client.response().with_context(|| format!("client {nth}"))?;
            }
            let last = start.elapsed();
            join_scoped(server)?;
            Ok(last)
        })
    }

    /// Returns the backlog that the listener shows.
    fn backlog(&self) -> Result<u64> {
        backlog_of(&self.listener)
    }
}

fn backlog_of(listener: &Listener) -> Result<u64> {
    let info = tcp_info::all(listener)?;
    let sacked = info.into_iter().find(|(name, _)| *name == "sacked");
    sacked.map(|(_, value)| value).context("no backlog")
}

/// Accepts a client.
fn accept(context: &Context, listener: &Listener) -> Result<TcpStream> {
    loop {
        match listener.socket().accept() {
            Ok((socket, _)) => {
                socket.set_nonblocking(false)?;
                socket.set_read_timeout(Some(context.patience()))?;
                return Ok(socket.into());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => ensure!(
                wait::readable(listener, context.patience())?,
                "no more clients came"
            ),
            Err(error) => return Err(error).context("accept"),
        }
    }
}

/// Answers the request of a client, with some work.
fn answer(stream: &mut TcpStream, work: Duration) -> Result<()> {
    let mut request = vec![0; REQUEST.len()];
    stream.read_exact(&mut request).context("the request")?;
    expect_eq!(request, REQUEST, "the request");
    if !work.is_zero() {
        sleep(work);
    }
    stream.write_all(RESPONSE).context("the response")
}

/// Accepts and answers this many clients, one after another.
fn serve(context: &Context, listener: &Listener, count: usize, work: Duration) -> Result<()> {
    for _ in 0..count {
        answer(&mut accept(context, listener)?, work)?;
    }
    Ok(())
}

/// Checks that no segment of a namespace was sent again since `before`.
fn nothing_lost(ns: &Netns, before: &Counters) -> Result<()> {
    not_grown(ns, before, ["TcpRetransSegs", "TcpExtTCPTimeouts"])
}

/// Checks that TCP has refused no connection in a namespace since `before`.
fn nothing_refused(ns: &Netns, before: &Counters) -> Result<()> {
    not_grown(ns, before, ["TcpExtListenOverflows", "TcpExtListenDrops"])
}

fn not_grown(ns: &Netns, before: &Counters, counters: [&str; 2]) -> Result<()> {
    let after = Counters::read(ns)?;
    for counter in counters {
        expect_eq!(after.growth(before, counter)?, 0, "growth of {counter}");
    }
    Ok(())
}

/// Returns how many clients come: a kernel with sanitizers is slow, and a client waits no longer
/// than its retransmission timeout for an ACK.
fn clients_on(kernel: Kernel) -> usize {
    match kernel {
        Kernel::Stock => 800,
        Kernel::Dev => 200,
    }
}

case!(Alone, "field.burst.prompt" => each_family, burst(128, Duration::ZERO));
case!(Alone, "field.burst.working" => each_family, burst(128, Duration::from_millis(2)));
case!(Alone, "field.burst.short_backlog" => each_family, burst(4, Duration::from_millis(2)));
/// Checks that the requests of clients that send together are all answered, nothing of them sent
/// again, although the backlog is shorter; and, by a server with work, as fast as at a plain
/// listener whose server has accepted them before, or as at a filtered one with a long backlog,
/// where making and accepting 800 connections takes longer than the server's work.
fn burst(context: &Context, family: Family, backlog: i32, work: Duration) -> Result<()> {
    module::reload("")?;
    let clients = clients_on(Kernel::of_this_guest());
    let mut best = f64::INFINITY;
    let (mut best_plain, mut best_roomy) = (f64::INFINITY, f64::INFINITY);
    // The best of some rounds counts: other work of this machine slows down some of them, and an
    // ACK that it keeps back for 200 ms has a segment sent again.
    for _ in 0..ROUNDS {
        let mut plain = Crowd::new(&Listen::plain(family).backlog(backlog))?;
        let mut accepted = Vec::new();
        for _ in 0..clients {
            plain.connect(family, 1)?;
            accepted.push(accept(context, &plain.listener)?);
        }
        let plain_last = plain.ask(|_| {
            accepted
                .iter_mut()
                .try_for_each(|stream| answer(stream, work))
        })?;

        let mut crowd = Crowd::parked(context, family, backlog, clients)?;
        let before = Counters::read(&crowd.ns)?;
        let last = crowd.ask(|listener| serve(context, listener, clients, work))?;
        nothing_refused(&crowd.ns, &before)?;
        let lost = Counters::read(&crowd.ns)?.growth(&before, "TcpRetransSegs")?;
        let late = control::stats(&crowd.listener)?.released_late;
        counts(
            context,
            &crowd.listener,
            counted!(released_data: clients as u64, released_late: late),
        )?;
        expect_eq!(crowd.backlog()?, backlog as u64, "the backlog afterwards");
        ensure!(
            late > 0 || work.is_zero(),
            "the accept queue was never full"
        );

        let roomy_last = Crowd::parked(context, family, 2 * clients as i32, clients)?
            .ask(|listener| serve(context, listener, clients, work))?;
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        context.note(format!(
            "the last answer after {:.0} ms; plain {:.0} ms; filtered with room for all {:.0} ms; \
             {late} of {clients} late, {lost} segments sent again",
            millis(last),
            millis(plain_last),
            millis(roomy_last)
        ));
        if lost == 0 {
            best = best.min(millis(last));
        }
        best_plain = best_plain.min(millis(plain_last));
        best_roomy = best_roomy.min(millis(roomy_last));
        let is_fast = best <= best_plain.max(best_roomy) * TIMES;
        if lost == 0 && (is_fast || work.is_zero()) {
            break;
        }
    }
    ensure!(best.is_finite(), "segments were sent again in each round");
    // Without work, the time is that of this machine's processors.
    if !work.is_zero() {
        expect_in!(
            best,
            0.0..=best_plain.max(best_roomy) * TIMES,
            "milliseconds until the last answer"
        );
    }
    module::unload(context.patience())
}

case!(NoDeadline, "field.burst.closed" => each_family(closed));
/// Checks that clients that close together, without a byte, are all accepted, nothing of them sent
/// again.
fn closed(context: &Context, family: Family) -> Result<()> {
    const CLIENTS: usize = 60;
    let crowd = Crowd::parked(context, family, 8, CLIENTS)?;
    let before = Counters::read(&crowd.ns)?;
    for client in &crowd.clients {
        client.stream.shutdown(Shutdown::Write)?;
    }
    accept_queue_holds(&crowd.listener, context, CLIENTS as u32)?;
    for _ in 0..CLIENTS {
        let mut stream = accept(context, &crowd.listener)?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest)?;
        expect_eq!(rest, b"", "what the client has sent");
    }
    nothing_lost(&crowd.ns, &before)?;
    nothing_refused(&crowd.ns, &before)?;
    let (all, late) = (CLIENTS as u64, CLIENTS as u64 - 9);
    counts(
        context,
        &crowd.listener,
        counted!(released_fin: all, released_late: late),
    )
}

/// The backlog of a listener where new clients come in a burst, and the burst.
const BACKLOG: u32 = 16;
const BURST: u32 = 60;

/// Has a burst come, and a new client while the server works through it. Returns `None` if a second
/// has passed meanwhile.
fn burst_and_newcomer(context: &Context, family: Family) -> Result<Option<Crowd>> {
    const GROWTH: Duration = Duration::from_secs(1);
    let mut crowd = Crowd::parked(context, family, BACKLOG as i32, BURST as usize)?;
    let before = Counters::read(&crowd.ns)?;
    let begin = Instant::now();
    for client in &mut crowd.clients {
        client.stream.write_all(REQUEST)?;
    }
    accept_queue_holds(&crowd.listener, context, BURST)?;
    // A queue of that length is full: room for a new client comes with each that is accepted.
    serve(context, &crowd.listener, 1, Duration::ZERO)?;
    let server = family.loopback(crowd.listener.port());
    let newcomer = crowd
        .ns
        .run(|| Ok(TcpStream::connect_timeout(&server, GROWTH)))?;
    if begin.elapsed() >= GROWTH {
        return Ok(None);
    }
    crowd
        .clients
        .push(Client::new(newcomer.context("a new client")?)?);
    let (all, late) = (u64::from(BURST), u64::from(BURST - BACKLOG - 1));
    counts(
        context,
        &crowd.listener,
        counted!(parked: 1, released_data: all, released_late: late),
    )?;
    nothing_lost(&crowd.ns, &before)?;
    expect_eq!(
        crowd.backlog()?,
        u64::from(BACKLOG),
        "the backlog in the burst"
    );
    Ok(Some(crowd))
}

case!(Alone, "field.burst.newcomers" => each_family(newcomers));
/// Checks that new clients come in while the server works through a burst, and that a server that
/// does not accept any more has its backlog back after a while.
fn newcomers(context: &Context, family: Family) -> Result<()> {
    const ATTEMPTS: usize = 5;
    /// Until the room for new clients is at least a fifth smaller.
    const LATER: Duration = Duration::from_secs(3);
    module::reload("timeout_ms=0")?;
    let mut crowd = (0..ATTEMPTS)
        .find_map(|_| burst_and_newcomer(context, family).transpose())
        .context("this machine is too slow to tell")??;

    sleep(LATER);
    let server = family.loopback(crowd.listener.port());
    let refused = crowd.ns.run(|| {
        let prompt = Duration::from_millis(600);
        Ok(TcpStream::connect_timeout(&server, prompt).is_err())
    })?;
    ensure!(
        refused,
        "a new client came in, although the server accepts none"
    );

    // The one that is parked is late, too.
    let newcomer = crowd.clients.last_mut().context("no client")?;
    newcomer.stream.write_all(REQUEST)?;
    let all = u64::from(BURST) + 1;
    let late = all - u64::from(BACKLOG) - 1;
    counts(
        context,
        &crowd.listener,
        counted!(released_data: all, released_late: late),
    )?;
    serve(context, &crowd.listener, BURST as usize, Duration::ZERO)?;
    for client in &mut crowd.clients {
        client.response()?;
    }
    crowd.connect(family, 1)?;
    drop(crowd);
    module::unload(context.patience())
}

case!(NoDeadline, "field.burst.somaxconn" => each_family(somaxconn));
/// Checks that the accept queue of a burst is no longer than the longest backlog of the namespace,
/// and that the rest stay parked, and are accepted when they send again.
fn somaxconn(context: &Context, family: Family) -> Result<()> {
    const SOMAXCONN: usize = 40;
    const CLIENTS: usize = 100;
    let mut crowd = Crowd::parked(context, family, 16, CLIENTS)?;
    crowd
        .ns
        .set_sysctl("net.core.somaxconn", &SOMAXCONN.to_string())?;
    let before = Counters::read(&crowd.ns)?;
    for client in &mut crowd.clients {
        client.stream.write_all(REQUEST)?;
    }
    accept_queue_holds(&crowd.listener, context, SOMAXCONN as u32 + 1)?;
    let dropped = control::stats(&crowd.listener)?.overflow_dropped;
    ensure!(
        dropped >= (CLIENTS - SOMAXCONN - 1) as u64,
        "{dropped} segments were dropped"
    );
    let after = Counters::read(&crowd.ns)?;
    let overflows = after.growth(&before, "TcpExtListenOverflows")?;
    ensure!(
        overflows >= dropped as i64,
        "{overflows} overflows for TCP, {dropped} for the module"
    );
    serve(context, &crowd.listener, CLIENTS, Duration::ZERO)?;
    for client in &mut crowd.clients {
        client.response()?;
    }
    let stats = control::stats(&crowd.listener)?;
    expect_eq!(stats.released_data, CLIENTS as u64, "accepted as data came");
    expect_eq!(stats.parked, 0, "still parked");
    Ok(())
}

case!(NoDeadline, "field.burst.listen_again" => each_family(listen_again));
/// Checks that a backlog that `listen()` sets during a burst stays, and that no request is lost for
/// it.
fn listen_again(context: &Context, family: Family) -> Result<()> {
    const CLIENTS: usize = 120;
    let mut crowd = Crowd::parked(context, family, 8, CLIENTS)?;
    let before = Counters::read(&crowd.ns)?;
    let over = AtomicBool::new(false);
    let changing = crowd.listener.try_clone()?;
    let last = thread::scope(|scope| {
        let over = &over;
        let changer = scope.spawn(move || -> Result<i32> {
            let mut backlog = 8;
            while !over.load(Ordering::Relaxed) {
                backlog = 5 + (backlog + 1) % 7;
                changing.socket().listen(backlog)?;
                // Or it is raised just now.
                let seen = backlog_of(&changing)?;
                ensure!(
                    seen == backlog as u64 || seen == u64::from(u32::MAX),
                    "a backlog of {seen} after listen({backlog})"
                );
            }
            Ok(backlog)
        });
        let asked = crowd.ask(|listener| serve(context, listener, CLIENTS, Duration::ZERO));
        over.store(true, Ordering::Relaxed);
        let last = join_scoped(changer)?;
        asked.map(|_| last)
    })?;
    nothing_lost(&crowd.ns, &before)?;
    expect_eq!(crowd.backlog()?, last as u64, "the backlog afterwards");
    Ok(())
}
