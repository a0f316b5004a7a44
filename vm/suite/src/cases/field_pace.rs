// SPDX-License-Identifier: MIT OR Apache-2.0

//! Many clients meet their deadline together, and the accept queue is short: each is accepted as
//! soon as the server gets to it.

use std::io;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use accf_kit::control::{self, timeout};
use accf_kit::counters::Counters;
use accf_kit::endpoint::{Family, Listen, Listener};
use accf_kit::netns::Netns;
use accf_kit::segment::Flags;
use accf_kit::tun_clients::TunClients;
use accf_kit::{module, wait};
use anyhow::{ensure, Context as _, Result};
use socket2::Socket;

use crate::case::{case, each_family, expect_eq, expect_in, Context};
use crate::count::{counted, counts};
use crate::scene::join_scoped;

/// How many clients meet their deadline together.
const CLIENTS: u32 = 300;
/// The backlog of the filtered listener.
const BACKLOG: i32 = 16;
/// How often the time of a burst is taken at most.
const ROUNDS: usize = 15;

/// A listener, and clients that are silent.
struct Crowd {
    listener: Listener,
    ns: Netns,
    clients: TunClients,
}

impl Crowd {
    fn new(family: Family, listen: &Listen) -> Result<Self> {
        let ns = Netns::new()?;
        let listener = listen.open(&ns)?;
        let clients = TunClients::new(&ns, family, listener.port())?;
        Ok(Self {
            listener,
            ns,
            clients,
        })
    }

    /// Returns a filtered listener with clients that are parked for as long as they are silent.
    fn parked(context: &Context, family: Family, backlog: i32) -> Result<Self> {
        let listen = Listen::filtered(family).config(timeout(0)).backlog(backlog);
        let mut crowd = Self::new(family, &listen)?;
        // More handshakes at once would fill the backlog.
        let at_once = u32::try_from(backlog)? / 2;
        for first in (0..CLIENTS).step_by(at_once as usize) {
            let last = CLIENTS.min(first + at_once);
            crowd.clients.open(first..last, context.patience())?;
        }
        counts(context, &crowd.listener, counted!(parked: CLIENTS.into()))?;
        // A millisecond has passed for all of them.
        sleep(Duration::from_millis(5));
        Ok(crowd)
    }

    /// Returns when each client was accepted, all having reached their deadline at the start.
    fn times_at_deadline(&self, context: &Context, work: Duration) -> Result<Vec<Duration>> {
        let start = Instant::now();
        control::set_config(&self.listener, &timeout(1)).context("ACCF_CONFIG")?;
        accept_all(context, &self.listener, start, work)
    }

    /// Returns when each client of a plain listener with a long backlog was accepted, the bare ACKs
    /// of all having come at the start.
    fn times_of_plain(context: &Context, family: Family, work: Duration) -> Result<Vec<Duration>> {
        let backlog = i32::try_from(2 * CLIENTS)?;
        let mut crowd = Self::new(family, &Listen::plain(family).backlog(backlog))?;
        let acks = crowd.half_open(context)?;
        let Self {
            listener, clients, ..
        } = &mut crowd;
        thread::scope(|scope| {
            let start = Instant::now();
            let wire = scope.spawn(move || acks.iter().try_for_each(|ack| clients.inject(ack)));
            let times = accept_all(context, listener, start, work);
            join_scoped(wire)?;
            times
        })
    }

    /// Has the clients send their SYNs, and returns the ACKs of the SYN-ACKs.
    fn half_open(&mut self, context: &Context) -> Result<Vec<Vec<u8>>> {
        let mut acks = Vec::new();
        for nth in 0..CLIENTS {
            let mut client = self.clients.client(nth);
            self.clients.syn(&mut client)?;
            while client.rcv_nxt == 0 {
                // On a slow machine, SYN-ACKs of clients before it are sent again.
                let any = self.clients.pump(context.patience(), |to, segment| {
                    if to == nth && segment.is_syn_ack() {
                        client.rcv_nxt = segment.end_seq();
                    }
                    Ok(())
                })?;
                ensure!(any, "no answer to the SYN of client {nth}");
            }
            acks.push(self.clients.segment(&client, Flags::ACK, b"").build()?);
        }
        Ok(acks)
    }
}

/// Accepts all clients, with `work` after each; returns when each was accepted.
fn accept_all(
    context: &Context,
    listener: &Listener,
    start: Instant,
    work: Duration,
) -> Result<Vec<Duration>> {
    let mut sockets: Vec<Socket> = Vec::new();
    let mut times = Vec::new();
    while times.len() < CLIENTS as usize {
        match listener.socket().accept() {
            Ok((socket, _)) => {
                times.push(start.elapsed());
                sockets.push(socket);
                if !work.is_zero() {
                    sleep(work);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ensure!(
                wait::readable(listener, context.patience())?,
                "{} of {CLIENTS} were accepted, and no more came",
                times.len()
            ),
            Err(error) => return Err(error).context("accept"),
        }
    }
    Ok(times)
}

/// Returns how often a timer of the kind that a listener has fired so far, on all processors.
fn looks_so_far() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/softirqs").context("/proc/softirqs")?;
    let line = text
        .lines()
        .map(str::trim_start)
        .find_map(|line| line.strip_prefix("HRTIMER:"));
    let counts = line
        .context("no line HRTIMER in /proc/softirqs")?
        .split_whitespace();
    counts
        .map(|count| count.parse::<u64>().context("not a number"))
        .sum()
}

/// Returns the times in milliseconds after which half of the clients, and all, were accepted.
fn half_and_last(times: &[Duration]) -> (f64, f64) {
    let at = |nth: usize| times.get(nth).map_or(0.0, |time| time.as_secs_f64() * 1e3);
    (at(times.len() / 2), at(times.len() - 1))
}

case!(Alone, "field.burst_deadline.prompt" => each_family, burst(BACKLOG, Duration::ZERO));
case!(Alone, "field.burst_deadline.slow" => each_family, burst(4, Duration::from_millis(2)));
/// Checks that a server gets the clients for which its accept queue is too short as fast as it
/// accepts them: as fast as clients that come at a plain listener with a long backlog; or as those
/// of a filtered one with a long backlog, where making 300 connections takes longer than accepting
/// them (a kernel with sanitizers).
fn burst(context: &Context, family: Family, backlog: i32, work: Duration) -> Result<()> {
    const TIMES: f64 = 1.2;
    module::reload("")?;
    let long = i32::try_from(2 * CLIENTS)?;
    let mut best = f64::INFINITY;
    let (mut best_plain, mut best_roomy) = (f64::INFINITY, f64::INFINITY);
    // The best of some rounds counts: other work of this machine slows down some of them.
    for _ in 0..ROUNDS {
        let plain = Crowd::times_of_plain(context, family, work).context("plain")?;
        let crowd = Crowd::parked(context, family, backlog)?;
        let before = Counters::read(&crowd.ns)?;
        let looks = looks_so_far()?;
        let times = crowd.times_at_deadline(context, work)?;
        let looks = looks_so_far()? - looks;
        let after = Counters::read(&crowd.ns)?;
        for counter in ["TcpExtListenOverflows", "TcpExtListenDrops"] {
            expect_eq!(after.growth(&before, counter)?, 0, "growth of {counter}");
        }
        counts(
            context,
            &crowd.listener,
            counted!(timeout_accept: CLIENTS.into()),
        )?;
        let (half, last) = half_and_last(&times);
        let roomy = Crowd::parked(context, family, long)?.times_at_deadline(context, work)?;
        let (plain_half, plain_last) = half_and_last(&plain);
        let (roomy_half, roomy_last) = half_and_last(&roomy);
        context.note(format!(
            "half of them after {half:.1} ms, the last after {last:.1} ms, {looks} looks; \
             plain {plain_half:.1} ms, {plain_last:.1} ms; \
             filtered with room for all {roomy_half:.1} ms, {roomy_last:.1} ms"
        ));
        best = best.min(last);
        best_plain = best_plain.min(plain_last);
        best_roomy = best_roomy.min(roomy_last);
        if best <= best_plain.max(best_roomy) * TIMES {
            break;
        }
    }
    expect_in!(
        best,
        0.0..=best_plain.max(best_roomy) * TIMES,
        "milliseconds until the last was accepted"
    );
    module::unload(context.patience())
}

case!(Alone, "field.burst_deadline.idle_server" => each_family(idle_server));
/// Checks that a server that does not accept costs few looks for room, and gets all clients as soon
/// as it accepts again.
fn idle_server(context: &Context, family: Family) -> Result<()> {
    const SECOND: Duration = Duration::from_secs(1);
    module::reload("")?;
    let crowd = Crowd::parked(context, family, BACKLOG)?;
    let looks_in = |time: Duration| -> Result<u64> {
        let before = looks_so_far()?;
        sleep(time);
        Ok(looks_so_far()? - before)
    };
    let others = looks_in(SECOND)?;
    control::set_config(&crowd.listener, &timeout(1)).context("ACCF_CONFIG")?;
    let first = looks_in(SECOND)?;
    let second = looks_in(SECOND)?;
    context.note(format!(
        "timers: {others} in a second before the deadline, then {first}, then {second}"
    ));
    // 40 while the pauses grow, then 20 in a second. A sleep on a busy machine takes longer.
    expect_in!(first, 20..=100 + 2 * others, "looks in the first second");
    expect_in!(second, 10..=40 + 2 * others, "looks in the second second");
    let waiting = u64::from(CLIENTS) - (BACKLOG as u64 + 1);
    counts(
        context,
        &crowd.listener,
        counted!(parked: waiting, timeout_accept: u64::from(CLIENTS) - waiting),
    )?;
    accept_all(context, &crowd.listener, Instant::now(), Duration::ZERO)?;
    counts(
        context,
        &crowd.listener,
        counted!(timeout_accept: CLIENTS.into()),
    )?;
    drop(crowd);
    module::unload(context.patience())
}
