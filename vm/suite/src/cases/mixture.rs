// SPDX-License-Identifier: MIT OR Apache-2.0

//! A hundred thousand clients of every kind: whatever they do, the sums are exact.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use accf_kit::control::{self, settings, timeout, OnTimeout, Stats};
use accf_kit::counters::Counters;
use accf_kit::endpoint::{Family, Listen, Listener};
use accf_kit::netns::Netns;
use accf_kit::segment::Flags;
use accf_kit::swarm::{Member, Swarm};
use accf_kit::{module, sockets, wait};
use anyhow::{anyhow, bail, ensure, Context as _, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::case::{expect_eq, expect_in, Case, Context, Kernel, Stage};
use crate::count::{describe, stats};
use crate::scene::REQUEST;

pub(crate) fn cases() -> Vec<Case> {
    [Family::V4, Family::V6, Family::Mapped]
        .into_iter()
        .map(|family| {
            Case::new(
                Stage::Alone,
                format!("mixture.every_connection_is_accounted_for.{family}"),
                move |context| mixture(context, family),
            )
            .long(Duration::from_secs(600))
        })
        .collect()
}

/// What a client does once its SYN was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// It speaks with the third segment.
    Eager,
    /// It acknowledges, thinks, and speaks.
    Thinker,
    /// The same, but it says everything twice, its SYN too.
    Stutterer,
    /// It acknowledges, thinks, and ends the stream.
    Leaver,
    /// It acknowledges, thinks, and resets.
    Breaker,
    /// It acknowledges, and says nothing before its deadline.
    Silent,
    /// It says nothing any more.
    Mute,
    /// It resets instead of acknowledging.
    Refuser,
}

impl Kind {
    /// Whether it is parked if anybody is.
    fn is_parked(self) -> bool {
        matches!(
            self,
            Self::Thinker | Self::Stutterer | Self::Leaver | Self::Breaker | Self::Silent
        )
    }

    fn random(rng: &mut fastrand::Rng) -> Self {
        match rng.u8(..100) {
            0..=14 => Self::Eager,
            15..=39 => Self::Thinker,
            40..=49 => Self::Stutterer,
            50..=61 => Self::Leaver,
            62..=73 => Self::Breaker,
            74..=92 => Self::Silent,
            93..=95 => Self::Mute,
            _ => Self::Refuser,
        }
    }
}

/// Where clients may go: the settings of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    on_timeout: OnTimeout,
    /// So few may be parked that newcomers have to evict, and there is no deadline; 0: there is one.
    room: u32,
}

const PLACES: [Place; 5] = [
    Place {
        on_timeout: OnTimeout::Accept,
        room: 0,
    },
    Place {
        on_timeout: OnTimeout::Reset,
        room: 0,
    },
    Place {
        on_timeout: OnTimeout::Drop,
        room: 0,
    },
    Place {
        on_timeout: OnTimeout::Accept,
        room: 25,
    },
    Place {
        on_timeout: OnTimeout::Reset,
        room: 25,
    },
];

/// How many clients are there at once.
const AT_ONCE: usize = 800;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Its SYN was not answered yet.
    Asking,
    /// It is parked, as far as it knows, and will do something later.
    Thinking,
    /// It has done all that it had to do, and waits for the end: a reset.
    Waiting,
    Over,
}

/// One client.
#[derive(Debug)]
struct Player {
    kind: Kind,
    place: usize,
    member: Member,
    phase: Phase,
    /// When it acknowledged.
    acked: Option<Instant>,
    /// Whether it acted so late that its deadline may have been first.
    late: bool,
}

/// What a server saw of the clients of one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Served {
    with_data: u64,
    at_the_end: u64,
    silent: u64,
    broken: u64,
}

/// Accepts whatever comes, looks whether it said something, and resets it.
fn serve_all(listeners: &[Listener], over: &AtomicBool) -> Result<Vec<Served>> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (index, listener) in listeners.iter().enumerate() {
        epoll.add(
            listener.as_fd(),
            EpollEvent::new(EpollFlags::EPOLLIN, index as u64),
        )?;
    }
    let mut served = vec![Served::default(); listeners.len()];
    let mut events = [EpollEvent::empty(); 8];
    let mut buffer = [0; 256];
    loop {
        let last = over.load(Ordering::Relaxed);
        let count = epoll.wait(&mut events, EpollTimeout::from(50_u8))?;
        if count == 0 && last {
            return Ok(served);
        }
        for event in events.iter().take(count) {
            let index = event.data() as usize;
            let (Some(listener), Some(served)) = (listeners.get(index), served.get_mut(index))
            else {
                continue;
            };
            loop {
                let (socket, _) = match listener.socket().accept() {
                    Ok(accepted) => accepted,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("accept"),
                };
                socket.set_nonblocking(true)?;
                let seen = match (&socket).read(&mut buffer) {
                    Ok(0) => &mut served.at_the_end,
                    Ok(length) => {
                        ensure!(
                            buffer.get(..length) == Some(REQUEST),
                            "{length} bytes that no client sent"
                        );
                        &mut served.with_data
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => &mut served.silent,
                    Err(_) => &mut served.broken,
                };
                *seen += 1;
                // Its close is a reset, which ends the client, and leaves nothing behind.
                socket.set_linger(Some(Duration::ZERO))?;
            }
        }
    }
}

/// All clients, and what they are to do when.
struct Play<'a> {
    swarm: Swarm,
    ports: Vec<u16>,
    players: Vec<Player>,
    timers: BinaryHeap<Reverse<(Instant, u32)>>,
    running: usize,
    deadline: Duration,
    rng: fastrand::Rng,
    context: &'a Context,
}

impl Play<'_> {
    /// Lets one more client begin.
    fn begin(&mut self) -> Result<()> {
        let nth = u32::try_from(self.players.len())?;
        let place = self.rng.usize(..PLACES.len());
        let port = *self.ports.get(place).context("no such place")?;
        let mut member = self.swarm.member_of(nth, port);
        self.swarm.syn(&mut member)?;
        self.players.push(Player {
            kind: Kind::random(&mut self.rng),
            place,
            member,
            phase: Phase::Asking,
            acked: None,
            late: false,
        });
        self.running += 1;
        Ok(())
    }

    /// Its SYN was answered.
    fn answered(&mut self, nth: u32) -> Result<()> {
        let Some(player) = self.players.get_mut(nth as usize) else {
            bail!("a SYN-ACK for nobody");
        };
        let pause = Duration::from_millis(self.rng.u64(1..250));
        let place = PLACES.get(player.place).context("no such place")?;
        let member = &mut player.member;
        match player.kind {
            Kind::Eager => {
                self.swarm.push(member, Flags::PSH_ACK, REQUEST)?;
                player.phase = Phase::Waiting;
            }
            Kind::Mute => self.over(nth),
            Kind::Refuser => {
                self.swarm.push(member, Flags::RST, b"")?;
                self.over(nth);
            }
            Kind::Thinker | Kind::Stutterer | Kind::Leaver | Kind::Breaker | Kind::Silent => {
                player.acked = Some(Instant::now());
                self.swarm.push(member, Flags::ACK, b"")?;
                player.phase = Phase::Thinking;
                if player.kind == Kind::Stutterer {
                    self.swarm.push(member, Flags::ACK, b"")?;
                    let mut syn = self.swarm.segment(member, Flags::SYN, b"");
                    syn.seq = member.snd_nxt.wrapping_sub(1);
                    self.swarm.send(&syn)?;
                }
                let is_dropped = place.on_timeout == OnTimeout::Drop;
                let then = match player.kind {
                    // Long after it was dropped it speaks, to hear that it was.
                    Kind::Silent if is_dropped => Some(self.deadline + Duration::from_secs(2)),
                    Kind::Silent => None,
                    _ => Some(pause),
                };
                match then {
                    Some(then) => self.timers.push(Reverse((Instant::now() + then, nth))),
                    None => player.phase = Phase::Waiting,
                }
            }
        }
        Ok(())
    }

    /// It has thought.
    fn act(&mut self, nth: u32) -> Result<()> {
        let Some(player) = self.players.get_mut(nth as usize) else {
            bail!("a timer of nobody");
        };
        if player.phase != Phase::Thinking {
            return Ok(());
        }
        player.phase = Phase::Waiting;
        let member = &mut player.member;
        match player.kind {
            Kind::Leaver => self.swarm.push(member, Flags::FIN_ACK, b"")?,
            Kind::Breaker => self.swarm.push(member, Flags::RST, b"")?,
            _ => self.swarm.push(member, Flags::PSH_ACK, REQUEST)?,
        }
        let elapsed = player.acked.map_or(Duration::ZERO, |at| at.elapsed());
        player.late = elapsed + Duration::from_millis(50) > self.deadline;
        if player.kind == Kind::Breaker {
            self.over(nth);
        }
        Ok(())
    }

    fn over(&mut self, nth: u32) {
        if let Some(player) = self.players.get_mut(nth as usize) {
            if player.phase != Phase::Over {
                player.phase = Phase::Over;
                self.running -= 1;
            }
        }
    }

    /// Hears what the server says, for a while at most.
    fn hear(&mut self, limit: Duration) -> Result<bool> {
        let mut answered = Vec::new();
        let mut reset = Vec::new();
        let players = &mut self.players;
        let any = self.swarm.pump(limit, |nth, segment| {
            let Some(player) = players.get_mut(nth as usize) else {
                return Ok(());
            };
            if segment.is_rst() {
                reset.push(nth);
            } else if segment.is_syn_ack() {
                if player.phase == Phase::Asking && player.member.rcv_nxt == 0 {
                    player.member.rcv_nxt = segment.end_seq();
                    answered.push(nth);
                }
            } else if segment.has_data() {
                bail!("the server said something: {segment}");
            }
            Ok(())
        })?;
        for nth in answered {
            self.answered(nth)?;
        }
        for nth in reset {
            self.over(nth);
        }
        Ok(any)
    }

    /// Plays until `count` clients have come and gone.
    fn play(&mut self, count: usize, listeners: &[Listener]) -> Result<()> {
        let patience = self.context.patience() * 6;
        let mut progress = Instant::now();
        let mut emptied = false;
        loop {
            let before = (self.players.len(), self.running);
            let mut begun = 0;
            while self.players.len() < count && self.running < AT_ONCE && begun < 32 {
                self.begin()?;
                begun += 1;
            }
            let now = Instant::now();
            while let Some(Reverse((at, nth))) = self.timers.peek().copied() {
                if at > now {
                    break;
                }
                self.timers.pop();
                self.act(nth)?;
            }
            let next = self.timers.peek().map(|Reverse((at, _))| *at);
            let idle = next.map_or(Duration::from_millis(50), |at| {
                at.saturating_duration_since(now)
            });
            let limit = if begun > 0 {
                Duration::ZERO
            } else {
                idle.min(Duration::from_millis(50))
            };
            self.hear(limit)?;
            if self.players.len() == count && self.running == 0 {
                return Ok(());
            }
            if before != (self.players.len(), self.running) {
                progress = Instant::now();
            }
            // Those who found room where there is no deadline are the last ones.
            if !emptied && self.players.len() == count && progress.elapsed() > self.deadline {
                emptied = true;
                for (place, listener) in PLACES.iter().zip(listeners) {
                    if place.room > 0 {
                        let last = settings(1, place.room, place.on_timeout);
                        control::set_config(listener, &last)?;
                    }
                }
            }
            if progress.elapsed() > patience {
                bail!("nothing moves any more: {}", self.stuck());
            }
        }
    }

    /// Who is still there, by what it does and where.
    fn stuck(&self) -> String {
        let mut counts: BTreeMap<(Phase, Kind, usize), Vec<u32>> = BTreeMap::new();
        for player in &self.players {
            if player.phase != Phase::Over {
                counts
                    .entry((player.phase, player.kind, player.place))
                    .or_default()
                    .push(player.member.nth);
            }
        }
        let text: Vec<String> = counts
            .into_iter()
            .map(|((phase, kind, place), who)| {
                format!(
                    "{} {kind:?} {phase:?} at place {place}, {:?} …",
                    who.len(),
                    who.first()
                )
            })
            .collect();
        text.join("; ")
    }

    /// How many of a kind went to a place, at least and at most as many as did it in time.
    fn of(&self, place: usize, kinds: &[Kind]) -> std::ops::RangeInclusive<u64> {
        let all = self
            .players
            .iter()
            .filter(|player| player.place == place && kinds.contains(&player.kind));
        let (mut sure, mut late) = (0, 0);
        for player in all {
            if player.late && player.kind != Kind::Silent {
                late += 1;
            } else {
                sure += 1;
            }
        }
        sure..=sure + late
    }
}

fn mixture(context: &Context, family: Family) -> Result<()> {
    let count: usize = match (context.kernel, family) {
        (Kernel::Stock, Family::V4) => 100_000,
        (Kernel::Stock, _) => 30_000,
        (Kernel::Dev, Family::V4) => 10_000,
        (Kernel::Dev, _) => 2_000,
    };
    let deadline = match context.kernel {
        Kernel::Stock => Duration::from_millis(1500),
        Kernel::Dev => Duration::from_millis(4000),
    };
    context.note(format!("seed {}", context.seed));
    module::reload("")?;
    let ns = Netns::new()?;
    // The mute are forgotten after 3 s.
    ns.set_sysctl("net.ipv4.tcp_synack_retries", "1")?;
    let deadline_ms = u32::try_from(deadline.as_millis())?;
    let listeners: Vec<Listener> = PLACES
        .iter()
        .map(|place| {
            let deadline_ms = if place.room > 0 { 0 } else { deadline_ms };
            Listen::filtered(family)
                .backlog(1024)
                .config(settings(deadline_ms, place.room, place.on_timeout))
                .open(&ns)
        })
        .collect::<Result<_>>()?;
    let ports: Vec<u16> = listeners.iter().map(Listener::port).collect();
    let first = *ports.first().context("no listener")?;
    let mut stage = Play {
        swarm: Swarm::new(&ns, family, first)?,
        ports,
        players: Vec::with_capacity(count),
        timers: BinaryHeap::new(),
        running: 0,
        deadline,
        rng: context.rng(),
        context,
    };
    let before = Counters::read(&ns)?;
    let start = Instant::now();
    let over = AtomicBool::new(false);
    let served = thread::scope(|scope| {
        let server = scope.spawn(|| serve_all(&listeners, &over));
        let played = stage.play(count, &listeners);
        over.store(true, Ordering::Relaxed);
        let served = server.join().map_err(|_| anyhow!("the server panicked"))?;
        played?;
        served
    })?;
    let took = start.elapsed().as_secs_f64();
    context.note(format!(
        "{count} clients in {took:.1} s, {:.0} in a second",
        count as f64 / took
    ));
    let after = Counters::read(&ns)?;
    for counter in ["TcpExtSyncookiesSent", "TcpExtListenOverflows"] {
        expect_eq!(after.growth(&before, counter)?, 0, "growth of {counter}");
    }
    for (index, listener) in listeners.iter().enumerate() {
        let seen = settled(context, listener)?;
        let served = served.get(index).copied().unwrap_or_default();
        context.note(format!("place {index}: {}; {served:?}", describe(&seen)));
        account(&stage, index, &seen, &served).with_context(|| {
            format!(
                "place {index} ({:?}): {}; {served:?}",
                PLACES.get(index),
                describe(&seen)
            )
        })?;
    }
    // What is left is exactly nothing: whoever comes now is counted as it is.
    let listener = listeners.first().context("no listener")?;
    control::set_config(listener, &timeout(60_000))?;
    half_open_exactly(context, &ns, &mut stage.swarm, listener)?;
    drop(listeners);
    drop(stage);
    drop(ns);
    module::unload(context.patience())
}

/// Waits until nobody is parked or half-open any more.
fn settled(context: &Context, listener: &Listener) -> Result<Stats> {
    let mut seen = Stats::default();
    wait::until(context.patience() * 3, || {
        seen = stats(listener)?;
        Ok((seen.parked, seen.half_open, seen.half_open_young) == (0, 0, 0))
    })?;
    expect_eq!(
        (seen.parked, seen.half_open, seen.half_open_young),
        (0, 0, 0),
        "parked, half-open and young requests in the end, of {}",
        describe(&seen)
    );
    Ok(seen)
}

/// Compares what a listener counted with what its clients did and its server saw.
fn account(stage: &Play<'_>, index: usize, seen: &Stats, served: &Served) -> Result<()> {
    let place = PLACES.get(index).context("no such place")?;
    let parked = stage
        .players
        .iter()
        .filter(|player| player.place == index && player.kind.is_parked())
        .count() as u64;
    expect_eq!(seen.parked_total, parked, "connections that were parked");
    expect_eq!(seen.bypassed(), 0, "connections that could not be parked");
    expect_eq!(seen.returned, 0, "connections that were given back");
    let eager = *stage.of(index, &[Kind::Eager]).end();
    let timeouts = [seen.timeout_accept, seen.timeout_reset, seen.timeout_drop];
    if place.room > 0 {
        // Who was evicted before it did something is up to chance.
        expect_in!(seen.evicted, 1..=parked, "connections that were evicted");
        expect_in!(
            seen.released_data,
            1..=*stage.of(index, &[Kind::Thinker, Kind::Stutterer]).end(),
            "connections released by data"
        );
        expect_in!(
            timeouts.iter().sum::<u64>(),
            0..=u64::from(place.room),
            "deadlines of those that were left"
        );
        if place.on_timeout == OnTimeout::Reset {
            expect_eq!(
                served.with_data,
                eager + seen.released_data,
                "connections accepted with data"
            );
            expect_eq!(
                served.at_the_end,
                seen.released_fin,
                "connections accepted with their end"
            );
            expect_eq!(served.silent, 0, "silent connections accepted");
            expect_eq!(served.broken, 0, "connections that broke");
        } else {
            expect_eq!(
                // Who was evicted, and reset before the server had a look, broke.
                served.with_data + served.at_the_end + served.silent + served.broken,
                eager + parked - seen.aborted,
                "connections accepted"
            );
        }
        return Ok(());
    }
    expect_eq!(seen.evicted, 0, "connections that were evicted");
    let speakers = stage.of(index, &[Kind::Thinker, Kind::Stutterer]);
    let leavers = stage.of(index, &[Kind::Leaver]);
    let breakers = stage.of(index, &[Kind::Breaker]);
    let silent = stage.of(index, &[Kind::Silent]);
    let late = |range: &std::ops::RangeInclusive<u64>| range.end() - range.start();
    let all_late = late(&speakers) + late(&leavers) + late(&breakers);
    expect_in!(seen.released_data, speakers, "connections released by data");
    expect_in!(seen.released_fin, leavers, "connections released by FIN");
    expect_in!(seen.aborted, breakers, "connections reset by their client");
    let of_policy = match place.on_timeout {
        OnTimeout::Accept => seen.timeout_accept,
        OnTimeout::Reset => seen.timeout_reset,
        _ => seen.timeout_drop,
    };
    expect_in!(
        of_policy,
        *silent.start()..=silent.end() + all_late,
        "connections that met their deadline"
    );
    expect_eq!(
        timeouts.iter().sum::<u64>(),
        of_policy,
        "deadlines by another policy"
    );
    expect_in!(served.broken, 0..=all_late, "connections that broke");
    let accepted = served.with_data + served.at_the_end + served.silent + served.broken;
    expect_eq!(
        accepted,
        eager + seen.released_data + seen.released_fin + seen.timeout_accept,
        "connections accepted"
    );
    expect_in!(
        served.with_data,
        eager + seen.released_data..=eager + seen.released_data + all_late,
        "connections accepted with data"
    );
    Ok(())
}

/// After all that, a number of SYNs is that number.
fn half_open_exactly(
    context: &Context,
    ns: &Netns,
    swarm: &mut Swarm,
    listener: &Listener,
) -> Result<()> {
    const SYNS: u32 = 37;
    const FIRST: u32 = 200_000;
    for nth in FIRST..FIRST + SYNS {
        let mut member = swarm.member(nth);
        swarm.syn(&mut member)?;
    }
    let mut answers = 0;
    while answers < SYNS {
        let any = swarm.pump(context.patience(), |_, segment| {
            answers += u32::from(segment.is_syn_ack());
            Ok(())
        })?;
        ensure!(any, "{answers} of {SYNS} SYNs were answered");
    }
    let seen = stats(listener)?;
    expect_eq!(
        seen.half_open,
        i64::from(SYNS),
        "half-open requests in the end"
    );
    expect_eq!(
        sockets::requests(ns, listener.port())?,
        SYNS as usize,
        "requests in SYN_RECV"
    );
    settled(context, listener).map(drop)
}
