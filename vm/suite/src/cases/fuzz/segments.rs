// SPDX-License-Identifier: MIT OR Apache-2.0

//! Segments of every kind, aimed at parked requests, while well-behaved clients beside them must be
//! served.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use accf_kit::control::{self, settings, OnTimeout, Stats};
use accf_kit::endpoint::{Family, Listen, Listener};
use accf_kit::forge::{Envelope, Forged, MAX_OPTIONS};
use accf_kit::netns::Netns;
use accf_kit::segment::{Flags, Segment, Timestamps};
use accf_kit::tun_clients::{TunClient, TunClients};
use accf_kit::{sockets, wait};
use anyhow::{bail, ensure, Context as _, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::Socket;

use crate::case::{case, each_family, expect_eq, expect_in, Context};
use crate::count::{describe, stats};
use crate::fuzz::{self, bytes, Fed};
use crate::scene::{join_scoped, REQUEST, RESPONSE};

/// How many clients of a round send random segments.
const RANDOM: u32 = 24;
/// How many clients behave well.
const HONEST: u32 = 8;
/// How many steps each of them has.
const STEPS: usize = 14;
/// A handshake that took no longer than this was done before the SYN-ACK's first retransmission.
const IN_TIME: Duration = Duration::from_millis(700);

/// An ACK this late after its SYN may arrive when the request is gone, which is after 3 s.
const TOO_LATE: Duration = Duration::from_secs(2);

/// What a machine that is fast enough does not see.
const LATE: &str = "well-behaved clients that were too late";

/// What every run must see.
const SURE: &str = "parked for sure";

/// The settings of a round.
#[derive(Clone, Copy, Debug)]
struct Setup {
    timeout_ms: u32,
    max_parked: u32,
    on_timeout: OnTimeout,
    /// `net.ipv4.tcp_syncookies`: 2 is always.
    cookies: u8,
    /// `net.ipv4.tcp_fastopen`.
    fast_open: u16,
    /// `net.ipv4.tcp_abort_on_overflow`.
    abort: bool,
}

impl Setup {
    fn random(rng: &mut fastrand::Rng) -> Self {
        let on_timeout = [OnTimeout::Accept, OnTimeout::Reset, OnTimeout::Drop];
        Self {
            timeout_ms: rng.choice([0, 40, 60_000, 60_000]).unwrap_or_default(),
            max_parked: rng.choice([0, 0, 5]).unwrap_or_default(),
            on_timeout: rng.choice(on_timeout).unwrap_or(OnTimeout::Accept),
            cookies: if rng.u8(..8) == 0 { 2 } else { 1 },
            // Server and client, without a cookie, for all listeners.
            fast_open: if rng.u8(..4) == 0 { 0x603 } else { 1 },
            abort: rng.u8(..8) == 0,
        }
    }

    /// Returns whether every client that acknowledges is parked.
    fn parks(&self) -> bool {
        self.cookies < 2 && self.fast_open == 1 && !self.abort
    }

    /// Returns whether a client that pauses is served in any case.
    fn serves_pausing(&self) -> bool {
        self.on_timeout == OnTimeout::Accept
            || (self.timeout_ms != 40 && self.max_parked == 0)
            || self.cookies == 2
            || self.abort
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Has got no answer.
    Asking,
    /// Has a SYN-ACK.
    HalfOpen,
    /// Has acknowledged it.
    Parked,
    /// In any other state.
    Open,
}

/// A client of a round.
#[derive(Debug)]
struct Client {
    member: TunClient,
    /// The sequence numbers of all SYNs that it sent.
    isns: Vec<u32>,
    /// Whether it has sent a SYN in this attempt.
    asked: bool,
    phase: Phase,
    began: Instant,
    /// Whether it has sent nothing but a SYN, and then a bare ACK.
    clean: bool,
    /// Whether its bare ACK must have been accepted, and it has not sent another SYN since.
    taken: bool,
    timestamps: Option<Timestamps>,
    /// The step at which it speaks, if it is well-behaved.
    speaks: Option<usize>,
    spoke: bool,
    served: bool,
    /// How long after its SYN it acknowledged the SYN-ACK.
    acknowledged: Option<Duration>,
    /// Whether it was reset.
    reset: bool,
    /// When it was created: times in the log count from here.
    born: Instant,
    log: VecDeque<String>,
}

impl Client {
    fn new(member: TunClient, rng: &mut fastrand::Rng, speaks: Option<usize>) -> Self {
        let timestamps = rng.bool().then(|| Timestamps {
            value: rng.u32(1..),
            echo: 0,
        });
        Self {
            member,
            isns: Vec::new(),
            asked: false,
            phase: Phase::Asking,
            began: Instant::now(),
            clean: true,
            taken: false,
            timestamps,
            speaks,
            spoke: false,
            served: false,
            acknowledged: None,
            reset: false,
            born: Instant::now(),
            log: VecDeque::new(),
        }
    }

    fn is_honest(&self) -> bool {
        self.speaks.is_some()
    }

    /// Returns whether the machine was too slow for it to acknowledge in time, and it was reset for
    /// that.
    fn was_late(&self) -> bool {
        let late = self.acknowledged.is_some_and(|after| after >= TOO_LATE);
        self.is_honest() && !self.served && self.reset && late
    }

    /// Starts again before the SYN, with another sequence number: a client that is reset connects
    /// again.
    fn start_again(&mut self, isn: u32) {
        self.member.snd_nxt = isn;
        self.member.rcv_nxt = 0;
        self.phase = Phase::Asking;
        self.asked = false;
        self.spoke = false;
        self.acknowledged = None;
        self.reset = false;
    }

    fn note(&mut self, what: String) {
        const LAST: usize = 16;
        if self.log.len() == LAST {
            self.log.pop_front();
        }
        let at = self.born.elapsed().as_secs_f64();
        self.log.push_back(format!("{at:.3} s: {what}"));
    }

    fn log_text(&self) -> String {
        let log = Vec::from(self.log.clone()).join("\n  ");
        format!("client {}:\n  {log}", self.member.nth)
    }
}

/// The state that lasts longer than a round.
struct Fuzzer<'a> {
    context: &'a Context,
    ns: Netns,
    tun: TunClients,
    listener: Listener,
    next: u32,
    /// The SYNs that were sent: at most this many requests were parked.
    syns: u64,
    /// At least this many requests were parked.
    sure: u64,
}

case!(Fuzz, "fuzz.segments" => each_family(segments));
fn segments(context: &Context, family: Family) -> Result<()> {
    let ns = Netns::new()?;
    let listener = Listen::filtered(family).backlog(1024).open(&ns)?;
    // A request that is not acknowledged is dropped after 3 s; answers have no rate limit.
    for (name, value) in [("tcp_synack_retries", "1"), ("tcp_invalid_ratelimit", "0")] {
        ns.set_sysctl(&format!("net.ipv4.{name}"), value)?;
    }
    let tun = TunClients::new(&ns, family, listener.port())?;
    let server = Server {
        listener: &listener.socket().try_clone()?,
        over: AtomicBool::new(false),
        hang_up: AtomicBool::new(false),
    };
    let mut fuzzer = Fuzzer {
        context,
        ns,
        tun,
        listener,
        next: 0,
        syns: 0,
        sure: 0,
    };
    thread::scope(|scope| {
        let serving = scope.spawn(|| server.serve());
        let needed = [
            "segments",
            "segments to the parked",
            "well-behaved clients",
            SURE,
        ];
        let fed = fuzz::rounds(context, &needed, |rng, fed| fuzzer.round(rng, fed, &server));
        server.over.store(true, Ordering::Relaxed);
        join_scoped(serving)?;
        fed
    })?;
    context.note(describe(&stats(&fuzzer.listener)?));
    Ok(())
}

impl Fuzzer<'_> {
    fn round(&mut self, rng: &mut fastrand::Rng, fed: &mut Fed, server: &Server<'_>) -> Result<()> {
        let setup = Setup::random(rng);
        for (name, value) in [
            ("tcp_syncookies", u16::from(setup.cookies)),
            ("tcp_fastopen", setup.fast_open),
            ("tcp_abort_on_overflow", u16::from(setup.abort)),
        ] {
            let name = format!("net.ipv4.{name}");
            self.ns.set_sysctl(&name, &value.to_string())?;
        }
        let config = settings(setup.timeout_ms, setup.max_parked, setup.on_timeout);
        control::set_config(&self.listener, &config)?;
        let first = self.next;
        self.next += RANDOM + HONEST;
        let mut clients: Vec<Client> = (first..self.next)
            .map(|nth| {
                let honest = nth - first >= RANDOM;
                let speaks = honest.then(|| rng.usize(1..STEPS));
                Client::new(self.tun.client(nth), rng, speaks)
            })
            .collect();
        let played = self
            .play(rng, fed, &setup, &mut clients)
            .with_context(|| format!("{setup:?}"));
        played?;
        server.hang_up.store(true, Ordering::Relaxed);
        let done = wait::until(self.context.patience(), || {
            Ok(!server.hang_up.load(Ordering::Relaxed))
        })?;
        ensure!(done, "the server does not hang up");
        self.end(&clients)
            .with_context(|| format!("at the end of a round with {setup:?}"))
    }

    fn play(
        &mut self,
        rng: &mut fastrand::Rng,
        fed: &mut Fed,
        setup: &Setup,
        clients: &mut [Client],
    ) -> Result<()> {
        let sure_before = self.sure;
        for step in 0..STEPS {
            for client in clients.iter_mut() {
                if client.is_honest() {
                    self.act(client, setup, step)?;
                } else if step == 0 || rng.bool() {
                    self.send_random(rng, fed, client, setup)?;
                }
            }
            self.receive(clients, Duration::ZERO)?;
            // Some acknowledge at once, however slow this machine is.
            for client in clients.iter_mut() {
                if client.clean
                    && client.phase == Phase::HalfOpen
                    && !client.is_honest()
                    && rng.bool()
                {
                    self.ack(client, setup)?;
                }
            }
        }
        fed.many(SURE, self.sure - sure_before);
        // Well-behaved clients must be served by now.
        let must_be_served = |client: &Client| {
            let is_eager = client.speaks.is_some_and(|step| step % 4 == 0);
            client.is_honest() && !client.served && (is_eager || setup.serves_pausing())
        };
        let limit = Instant::now() + self.context.patience() * 4;
        while clients.iter().any(must_be_served) && Instant::now() < limit {
            for client in clients.iter_mut().filter(|client| client.was_late()) {
                fed.one(LATE);
                client.start_again(rng.u32(..));
            }
            for client in clients.iter_mut().filter(|client| client.is_honest()) {
                self.act(client, setup, STEPS)?;
            }
            self.receive(clients, Duration::from_millis(20))?;
        }
        if let Some(client) = clients.iter().find(|client| must_be_served(client)) {
            bail!(
                "a well-behaved client was not served (phase {:?}, sent its request: {}), {}",
                client.phase,
                client.spoke,
                client.log_text()
            );
        }
        // Listens for unexpected segments, sometimes as long as a SYN-ACK retransmission takes.
        let while_longer = if rng.u8(..6) == 0 {
            IN_TIME * 2
        } else {
            Duration::ZERO
        };
        let start = Instant::now();
        loop {
            self.receive(clients, Duration::from_millis(5))?;
            if start.elapsed() >= while_longer {
                break;
            }
        }
        fed.many("well-behaved clients", HONEST.into());
        Ok(())
    }

    /// Receives what the server sends.
    fn receive(&mut self, clients: &mut [Client], limit: Duration) -> Result<()> {
        let first = clients.first().map_or(0, |client| client.member.nth);
        self.tun.pump(limit, |nth, segment| {
            let index = nth.wrapping_sub(first) as usize;
            // Segments for clients of earlier rounds are ignored.
            let Some(client) = clients.get_mut(index) else {
                return Ok(());
            };
            client.note(format!("heard {segment}"));
            if segment.is_syn_ack() {
                ensure!(
                    !client.taken,
                    "the SYN-ACK was sent again to a client whose ACK was taken, {}",
                    client.log_text()
                );
                let isn = client.isns.last().copied();
                if isn.is_some_and(|isn| segment.ack == isn.wrapping_add(1)) {
                    client.member.rcv_nxt = segment.end_seq();
                    client.member.snd_nxt = segment.ack;
                    if client.phase == Phase::Asking {
                        client.phase = Phase::HalfOpen;
                    }
                }
            } else if segment.has_data() && client.is_honest() {
                ensure!(
                    segment.payload == RESPONSE,
                    "not the response: {segment}, {}",
                    client.log_text()
                );
                client.served = true;
            }
            client.reset |= segment.flags.rst;
            match (&mut client.timestamps, segment.timestamps) {
                (Some(own), Some(theirs)) => own.echo = theirs.value,
                (own, None) if segment.is_syn_ack() => *own = None,
                _ => {}
            }
            Ok(())
        })?;
        Ok(())
    }

    fn segment(&self, client: &Client, flags: Flags, payload: &[u8]) -> Segment {
        Segment {
            timestamps: client.timestamps,
            ..self.tun.segment(&client.member, flags, payload)
        }
    }

    fn send(&mut self, client: &mut Client, forged: &Forged) -> Result<()> {
        if forged.segment.flags.syn {
            client.isns.push(forged.segment.seq);
            client.taken = false;
            self.syns += 1;
        }
        client.note(format!("sent {} {:?}", forged.segment, odd(forged)));
        for packet in forged.packets()? {
            self.tun.inject(&packet)?;
        }
        if let Some(timestamps) = &mut client.timestamps {
            timestamps.value = timestamps.value.wrapping_add(1);
        }
        Ok(())
    }

    fn syn(&mut self, client: &mut Client) -> Result<()> {
        let mut syn = self.segment(client, Flags::SYN, b"");
        syn.mss = Some(1460);
        syn.sack_permitted = true;
        syn.window_scale = Some(7);
        client.began = Instant::now();
        client.asked = true;
        self.send(client, &syn.into())
    }

    /// Acknowledges the SYN-ACK and nothing else.
    fn ack(&mut self, client: &mut Client, setup: &Setup) -> Result<()> {
        let ack = self.segment(client, Flags::ACK, b"");
        client.acknowledged = Some(client.began.elapsed());
        self.send(client, &ack.into())?;
        client.phase = Phase::Parked;
        if client.clean && setup.parks() && client.began.elapsed() < IN_TIME {
            self.sure += 1;
            client.taken = true;
        }
        Ok(())
    }

    /// Makes a step of a well-behaved client: every fourth sends its request with its ACK.
    fn act(&mut self, client: &mut Client, setup: &Setup, step: usize) -> Result<()> {
        let Some(speaks) = client.speaks else {
            return Ok(());
        };
        let is_eager = speaks % 4 == 0;
        match client.phase {
            Phase::Asking if !client.asked => self.syn(client)?,
            Phase::HalfOpen if !is_eager => self.ack(client, setup)?,
            Phase::HalfOpen | Phase::Parked if !client.spoke && (is_eager || step >= speaks) => {
                client.spoke = true;
                client.phase = Phase::Open;
                let after = client.began.elapsed();
                client.acknowledged.get_or_insert(after);
                let request = self.segment(client, Flags::PSH_ACK, REQUEST);
                self.send(client, &request.into())?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Sends a segment to the server.
    fn send_random(
        &mut self,
        rng: &mut fastrand::Rng,
        fed: &mut Fed,
        client: &mut Client,
        setup: &Setup,
    ) -> Result<()> {
        fed.one("segments");
        if client.phase == Phase::Parked {
            fed.one("segments to the parked");
        }
        let forged = match (client.phase, rng.u8(..100)) {
            (Phase::Asking, 0..=79) if client.isns.is_empty() => return self.syn(client),
            (Phase::HalfOpen, 0..=69) => return self.ack(client, setup),
            (Phase::HalfOpen, 70..=74) | (Phase::Parked, 0..=4) => {
                client.phase = Phase::Open;
                self.segment(client, Flags::PSH_ACK, b"hello").into()
            }
            (Phase::Parked, 5..=8) => {
                client.phase = Phase::Open;
                self.segment(client, Flags::FIN_ACK, b"").into()
            }
            (Phase::Parked, 9..=10) => {
                client.phase = Phase::Open;
                self.segment(client, Flags::RST, b"").into()
            }
            (Phase::Parked, 11..=16) => self.segment(client, Flags::ACK, b"").into(),
            (Phase::Parked | Phase::HalfOpen, 75..=79) => {
                let mut syn = self.segment(client, Flags::SYN, b"");
                syn.seq = client.isns.last().copied().unwrap_or_default();
                syn.into()
            }
            // From the beginning.
            (Phase::Open, 0..=19) => {
                client.phase = Phase::Asking;
                client.member.snd_nxt = rng.u32(..);
                client.member.rcv_nxt = 0;
                self.segment(client, Flags::SYN, b"").into()
            }
            _ => {
                let base = self.segment(client, Flags::ACK, b"");
                forge(rng, base)
            }
        };
        client.clean = false;
        self.send(client, &forged)
    }

    /// Ends all clients, and checks that nothing is left.
    fn end(&mut self, clients: &[Client]) -> Result<()> {
        control::set_config(&self.listener, &settings(1, 0, OnTimeout::Drop))?;
        let (mut seen, mut requests) = (Stats::default(), 0);
        let gone = wait::until(self.context.patience() * 4, || {
            for client in clients {
                for isn in &client.isns {
                    let mut rst = self.tun.segment(&client.member, Flags::RST, b"");
                    rst.seq = isn.wrapping_add(1);
                    self.tun.send(&rst)?;
                }
            }
            while self.tun.pump(Duration::ZERO, |_, _| Ok(()))? {}
            seen = stats(&self.listener)?;
            requests = sockets::requests(&self.ns, self.listener.port())?;
            Ok((seen.parked, seen.half_open, seen.half_open_young, requests) == (0, 0, 0, 0))
        })?;
        ensure!(
            gone,
            "clients are left, {requests} requests in SYN_RECV: {}",
            describe(&seen)
        );
        expect_in!(
            seen.parked_total,
            self.sure..=self.syns,
            "connections that were parked, of {}",
            describe(&seen)
        );
        expect_eq!(
            (seen.bypass_no_memory, seen.bypass_namespace_limit),
            (0, 0),
            "connections that could not be parked, of {}",
            describe(&seen)
        );
        Ok(())
    }
}

/// Describes how a forged segment differs from a plain one.
pub(super) fn odd(forged: &Forged) -> String {
    let plain = Forged::from(forged.segment.clone());
    if *forged == plain {
        return format!("{:?}", forged.segment.timestamps);
    }
    let mut short = forged.clone();
    short.segment.payload = Vec::new();
    format!("{short:?}")
}

/// Returns a number near another, or any.
fn near(rng: &mut fastrand::Rng, number: u32) -> u32 {
    // Up to the largest windows, scaled or not.
    const EDGES: [u32; 6] = [64_240, 65_535, 65_536, 1 << 20, 1 << 30, 1 << 31];
    let delta = match rng.u8(..8) {
        0..=3 => return number,
        4 => rng.u32(..3),
        5 => rng.u32(..2000),
        6 => {
            let edge = rng.choice(EDGES).unwrap_or_default();
            edge.wrapping_add(rng.u32(..5)).wrapping_sub(2)
        }
        _ => return rng.u32(..),
    };
    if rng.bool() {
        number.wrapping_add(delta)
    } else {
        number.wrapping_sub(delta)
    }
}

/// Forges a segment from another.
pub(super) fn forge(rng: &mut fastrand::Rng, mut segment: Segment) -> Forged {
    segment.flags = flags(rng);
    segment.seq = near(rng, segment.seq);
    segment.ack = near(rng, segment.ack);
    if rng.u8(..4) == 0 {
        let any = rng.u16(..);
        segment.window = rng.choice([0, 1, 500, any]).unwrap_or_default();
    }
    if rng.u8(..4) == 0 {
        segment.urgent = rng.u16(..);
    }
    let length = match rng.u8(..8) {
        0..=3 => 0,
        4..=6 => rng.usize(..40),
        _ => rng.usize(..1400),
    };
    segment.payload = std::iter::repeat_with(|| rng.u8(..)).take(length).collect();
    match rng.u8(..8) {
        0 => segment.timestamps = None,
        1 => {
            let own = segment
                .timestamps
                .unwrap_or(Timestamps { value: 1, echo: 1 });
            segment.timestamps = Some(Timestamps {
                value: near(rng, own.value),
                echo: near(rng, own.echo),
            });
        }
        _ => {}
    }
    let mut forged = Forged::from(segment);
    match rng.u8(..6) {
        0 => forged.options = Some(bytes(rng, MAX_OPTIONS)),
        1 | 2 => forged.options = Some(options(rng)),
        _ => {}
    }
    if rng.u8(..16) == 0 {
        forged.data_offset = Some(rng.u8(..16));
    }
    if rng.u8(..16) == 0 {
        forged.checksum_off_by = rng.u16(1..u16::MAX);
    }
    if rng.u8(..8) == 0 {
        forged.reserved = rng.u8(..16);
        forged.congestion = (rng.bool(), rng.bool());
    }
    forged.envelope = match rng.u8(..40) {
        0 => {
            // Hop-by-hop and destination options, routing, mobility, an unknown one.
            let kind = rng.choice([0, 43, 60, 135, 253]).unwrap_or_default();
            Envelope::Extended(kind, bytes(rng, 40))
        }
        1 => Envelope::Fragments {
            size: 8 * rng.u16(1..6),
            backwards: rng.bool(),
        },
        2 => Envelope::Cut(rng.u16(1..60)),
        3 => Envelope::Claims(rng.i16(-60..60)),
        _ => Envelope::Plain,
    };
    forged
}

fn flags(rng: &mut fastrand::Rng) -> Flags {
    match rng.u8(..16) {
        0..=4 => Flags::ACK,
        5..=6 => Flags::PSH_ACK,
        7 => Flags::FIN_ACK,
        8 => Flags::SYN,
        9 => Flags::SYN_ACK,
        10 => Flags::RST,
        11 => Flags::RST_ACK,
        _ => Flags {
            syn: rng.u8(..4) == 0,
            ack: rng.bool(),
            fin: rng.bool(),
            rst: rng.u8(..4) == 0,
            psh: rng.bool(),
            urg: rng.bool(),
        },
    }
}

/// Returns known TCP options, with right and wrong lengths, cut off somewhere.
pub(super) fn options(rng: &mut fastrand::Rng) -> Vec<u8> {
    // MSS, window scale, SACK permitted, SACK, timestamps, MD5, AO, MPTCP, Fast Open, AccECN,
    // experiments; with their lengths.
    const KNOWN: [(u8, u8); 14] = [
        (2, 4),
        (3, 3),
        (4, 2),
        (5, 10),
        (5, 18),
        (8, 10),
        (19, 18),
        (29, 16),
        (30, 12),
        (34, 10),
        (34, 2),
        (172, 11),
        (253, 4),
        (254, 12),
    ];
    let mut list = Vec::new();
    for _ in 0..rng.usize(1..6) {
        let (kind, length) = match rng.u8(..8) {
            0 => (rng.u8(..), rng.u8(..42)),
            1 => {
                list.push(rng.u8(..2));
                continue;
            }
            _ => rng.choice(KNOWN).unwrap_or_default(),
        };
        list.push(kind);
        list.push(match rng.u8(..6) {
            0 => rng.u8(..),
            1 => rng.u8(..4),
            _ => length,
        });
        // The magic numbers of Fast Open and SMC, among others.
        if kind >= 253 {
            let magic = [&[0xf9, 0x89][..], &[0xe2, 0xd4, 0xc3, 0xd9]];
            list.extend(rng.choice(magic).unwrap_or_default());
        }
        let body = usize::from(length.saturating_sub(2));
        list.extend(std::iter::repeat_with(|| rng.u8(..)).take(body));
    }
    list.truncate(if rng.u8(..4) == 0 {
        rng.usize(..=MAX_OPTIONS)
    } else {
        MAX_OPTIONS
    });
    list
}

/// A server that accepts every connection, and answers each request.
struct Server<'a> {
    listener: &'a Socket,
    over: AtomicBool,
    /// Whether to reset all connections.
    hang_up: AtomicBool,
}

impl Server<'_> {
    fn serve(&self) -> Result<()> {
        /// The number of the listener among the connections.
        const LISTENER: u64 = u64::MAX;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(
            self.listener.as_fd(),
            EpollEvent::new(EpollFlags::EPOLLIN, LISTENER),
        )?;
        let mut connections: Vec<Option<Socket>> = Vec::new();
        let mut events = [EpollEvent::empty(); 16];
        let mut buffer = [0; 4096];
        while !self.over.load(Ordering::Relaxed) {
            let count = match epoll.wait(&mut events, EpollTimeout::from(20_u8)) {
                // A stop and a continue of this process interrupt it (signal(7)).
                Err(Errno::EINTR) => continue,
                count => count?,
            };
            for event in events.iter().take(count) {
                if event.data() == LISTENER {
                    self.accept(&epoll, &mut connections)?;
                    continue;
                }
                let index = usize::try_from(event.data())?;
                let Some(slot) = connections.get_mut(index) else {
                    continue;
                };
                let Some(mut connection) = slot.as_ref() else {
                    continue;
                };
                match connection.read(&mut buffer) {
                    Ok(length) if length > 0 => {
                        if buffer.get(..length) == Some(REQUEST) {
                            // The client may be gone by now.
                            let _ = connection.write(RESPONSE);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    _ => *slot = None,
                }
            }
            if self.hang_up.load(Ordering::Relaxed) {
                connections.clear();
                self.hang_up.store(false, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    fn accept(&self, epoll: &Epoll, connections: &mut Vec<Option<Socket>>) -> Result<()> {
        loop {
            let connection = match self.listener.accept() {
                Ok((connection, _)) => connection,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("accept"),
            };
            connection.set_nonblocking(true)?;
            // Closing it sends a reset, and leaves nothing behind.
            connection.set_linger(Some(Duration::ZERO))?;
            let number = u64::try_from(connections.len())?;
            epoll.add(
                connection.as_fd(),
                EpollEvent::new(EpollFlags::EPOLLIN, number),
            )?;
            connections.push(Some(connection));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_acknowledged_in_time_is_not_late() {
        let member = TunClient {
            nth: 0,
            port: 80,
            snd_nxt: 1,
            rcv_nxt: 0,
        };
        let was_late = |speaks, acknowledged, reset, served| {
            let client = Client {
                acknowledged,
                reset,
                served,
                ..Client::new(member, &mut fastrand::Rng::with_seed(1), speaks)
            };
            client.was_late()
        };
        let (in_time, late) = (Some(TOO_LATE / 2), Some(TOO_LATE));
        assert!(was_late(Some(1), late, true, false));
        assert!(!was_late(Some(1), in_time, true, false));
        assert!(!was_late(Some(1), None, true, false));
        // It may still be served, it was served, or it is not well-behaved.
        assert!(!was_late(Some(1), late, false, false));
        assert!(!was_late(Some(1), late, true, true));
        assert!(!was_late(None, late, true, false));
    }
}
