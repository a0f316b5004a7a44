// SPDX-License-Identifier: MIT OR Apache-2.0

//! Many clients of every kind at once, segment by segment, and what must have been counted of them.
//!
//! The clients are members of a [`TunClients`], so they do what they are told to and nothing else: one acknowledges and thinks,
//! one says everything twice, one never says anything. Each goes to one of several listeners with different settings
//! ([`Place`]). As it is known what each of them did, it is known what its listener must have counted ([`Play::account`]).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::{self, Read};
use std::ops::{Range, RangeInclusive};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context as _, Result};
use nix::sched::{sched_setaffinity, CpuSet};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::Pid;

use crate::control::{self, settings, OnTimeout, Stats};
use crate::endpoint::Listener;
use crate::segment::{Flags, Segment};
use crate::tun_clients::{TunClient, TunClients};

/// What these clients say.
pub const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

/// What a client does once its SYN was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
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
pub struct Place {
    /// What becomes of the silent.
    pub on_timeout: OnTimeout,
    /// So few may be parked that newcomers have to evict, and there is no deadline; 0: there is one.
    pub room: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Its SYN was not answered yet.
    Asking,
    /// It is to acknowledge later.
    Hesitating,
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
    member: TunClient,
    phase: Phase,
    /// When it sent its SYN.
    asked: Instant,
    /// Whether it took so long to answer that its request may not have been there any more, or just being looked after.
    doubtful: bool,
    /// When it acknowledged.
    acked: Option<Instant>,
    /// Whether it acted so late that its deadline may have been first.
    late: bool,
    /// Its last segment, for those that send it again.
    last: Option<Segment>,
}

/// What a server saw of the clients of one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Connections that had said something.
    pub with_data: u64,
    /// Connections that had ended without a word.
    pub at_the_end: u64,
    /// Connections that had said nothing yet.
    pub silent: u64,
    /// Connections that were reset before they were looked at.
    pub broken: u64,
}

impl Served {
    /// All connections that were accepted.
    pub fn all(&self) -> u64 {
        self.with_data + self.at_the_end + self.silent + self.broken
    }
}

/// Accepts whatever comes until it is over and nothing comes any more, looks whether it said something, and resets it.
pub fn serve_all(listeners: &[Listener], over: &AtomicBool) -> Result<Vec<Served>> {
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

/// How many clients there are at once, and how fast they come.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// So many are there at once, at most.
    pub at_once: usize,
    /// From one to the next, at least; zero: as fast as it goes.
    pub gap: Duration,
}

/// All clients, and what they are to do when.
pub struct Play<'a> {
    swarm: TunClients,
    places: &'a [Place],
    ports: Vec<u16>,
    players: Vec<Player>,
    timers: BinaryHeap<Reverse<(Instant, u32)>>,
    running: usize,
    deadline: Duration,
    rng: fastrand::Rng,
    /// For how long nothing may move before that is an error.
    patience: Duration,
    /// Who is not heard says it again.
    persistent: bool,
    /// Who is late with its ACK is not expected to be understood.
    tolerant: bool,
    /// How long after its SYN a client acknowledges; nothing: as soon as it can.
    hesitation: Option<Range<Duration>>,
    /// So many there are.
    processors: usize,
    /// So many of a hundred come with a segment that makes no sense.
    garbage: u8,
    garbage_sent: u64,
}

impl<'a> Play<'a> {
    /// A play at listeners of one namespace: a port for each place. Where there is a deadline, it is `deadline`.
    pub fn new(
        swarm: TunClients,
        places: &'a [Place],
        ports: Vec<u16>,
        deadline: Duration,
        patience: Duration,
        rng: fastrand::Rng,
    ) -> Self {
        Self {
            swarm,
            places,
            ports,
            players: Vec::new(),
            timers: BinaryHeap::new(),
            running: 0,
            deadline,
            rng,
            patience,
            persistent: false,
            tolerant: false,
            hesitation: None,
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            garbage: 0,
            garbage_sent: 0,
        }
    }

    /// Has whoever hears nothing for a second say the same again, as TCP does: where segments may not be understood.
    pub fn persistent(mut self) -> Self {
        self.persistent = true;
        self
    }

    /// Expects nothing certain of those that were late with their ACK: on a machine that is very busy.
    pub fn tolerant(mut self) -> Self {
        self.tolerant = true;
        self
    }

    /// Has clients acknowledge so long after their SYN.
    ///
    /// A second after it the kernel sends the SYN-ACK again: who acknowledges just then may be bypassed, and nothing else.
    pub fn hesitant(mut self, hesitation: Range<Duration>) -> Self {
        self.hesitation = Some(hesitation);
        self
    }

    /// Has so many of a hundred clients come with a segment that makes no sense, from them or from a stranger.
    pub fn with_garbage(mut self, percent: u8) -> Self {
        self.garbage = percent;
        self
    }

    /// How many clients there were.
    pub fn clients(&self) -> usize {
        self.players.len()
    }

    /// How many segments made no sense.
    pub fn garbage_sent(&self) -> u64 {
        self.garbage_sent
    }

    /// How many clients there were of each kind.
    pub fn kinds(&self) -> BTreeMap<Kind, u64> {
        let mut kinds = BTreeMap::new();
        for player in &self.players {
            *kinds.entry(player.kind).or_default() += 1;
        }
        kinds
    }

    /// The far side of the interface.
    pub fn swarm(&mut self) -> &mut TunClients {
        &mut self.swarm
    }

    /// Lets one more client begin.
    fn begin(&mut self) -> Result<()> {
        const AGAIN: Duration = Duration::from_secs(1);
        let nth = u32::try_from(self.players.len())?;
        let place = self.rng.usize(..self.places.len());
        let port = *self.ports.get(place).context("no such place")?;
        let mut member = self.swarm.member_of(nth, port);
        self.be_on_processor(nth)?;
        self.swarm.syn(&mut member)?;
        self.players.push(Player {
            kind: Kind::random(&mut self.rng),
            place,
            member,
            phase: Phase::Asking,
            asked: Instant::now(),
            doubtful: false,
            acked: None,
            late: false,
            last: None,
        });
        self.running += 1;
        if self.persistent {
            self.timers.push(Reverse((Instant::now() + AGAIN, nth)));
        }
        if self.rng.u8(..100) < self.garbage {
            self.send_garbage(nth, port)?;
        }
        Ok(())
    }

    /// Sends a segment that makes no sense: in the name of a client that is there, or of one that never comes.
    ///
    /// Its numbers are far from any that mean something to the other side, so it changes nothing.
    fn send_garbage(&mut self, newest: u32, port: u16) -> Result<()> {
        const STRANGERS: u32 = 1 << 22;
        let who = self.rng.u32(..=newest);
        let who = if self.rng.bool() {
            who
        } else {
            STRANGERS + who
        };
        let port = self
            .players
            .get(who as usize)
            .map_or(port, |player| player.member.port);
        let member = self.swarm.member_of(who, port);
        let flags = Flags {
            // One more half-open request would be counted.
            syn: false,
            fin: self.rng.bool(),
            rst: self.rng.u8(..8) == 0,
            psh: self.rng.bool(),
            ack: self.rng.bool(),
            ..Flags::default()
        };
        let length = self.rng.usize(..64);
        let payload: Vec<u8> = (0..length).map(|_| self.rng.u8(..)).collect();
        let mut segment = self.swarm.segment(&member, flags, &payload);
        // Half of all numbers are old, and half of these are not in any window.
        segment.seq = member
            .snd_nxt
            .wrapping_sub(self.rng.u32(0x1000_0000..0x7000_0000));
        segment.ack = self.rng.u32(..);
        self.garbage_sent += 1;
        self.swarm.send(&segment)
    }

    /// A client sends, and remembers what.
    fn push(&mut self, nth: u32, flags: Flags, payload: &[u8]) -> Result<()> {
        let player = self.players.get_mut(nth as usize).context("nobody sends")?;
        let segment = self.swarm.segment(&player.member, flags, payload);
        self.swarm.send(&segment)?;
        player.member.snd_nxt = segment.end_seq();
        player.last = Some(segment);
        Ok(())
    }

    /// Its SYN was answered: it acknowledges, now or later.
    fn hesitate(&mut self, nth: u32) -> Result<()> {
        let Some(Range { start, end }) = self.hesitation.clone() else {
            return self.answered(nth);
        };
        let Some(player) = self.players.get_mut(nth as usize) else {
            bail!("a SYN-ACK for nobody");
        };
        player.phase = Phase::Hesitating;
        let at = player.asked + start + (end - start).mul_f64(self.rng.f64());
        self.timers.push(Reverse((at, nth)));
        Ok(())
    }

    /// Where clients hesitate: has who plays run on one processor, of so many. What it sends is handled there, and so is the
    /// request's timer, which is on the one that handled the SYN.
    fn be_on_processor(&self, nth: u32) -> Result<()> {
        if self.hesitation.is_none() {
            return Ok(());
        }
        let mut set = CpuSet::new();
        set.set(nth as usize % self.processors)?;
        sched_setaffinity(Pid::from_raw(0), &set).context("sched_setaffinity")
    }

    /// It acknowledges.
    fn answered(&mut self, nth: u32) -> Result<()> {
        /// After a second the kernel begins to send SYN-ACKs again, and in the end gives up.
        const IN_TIME: Duration = Duration::from_millis(800);
        let Some(player) = self.players.get_mut(nth as usize) else {
            bail!("a SYN-ACK for nobody");
        };
        player.doubtful = self.tolerant && player.asked.elapsed() > IN_TIME;
        let player = &*player;
        let kind = player.kind;
        let place = *self.places.get(player.place).context("no such place")?;
        let pause = Duration::from_millis(self.rng.u64(1..250));
        match kind {
            Kind::Eager => {
                self.push(nth, Flags::PSH_ACK, REQUEST)?;
                self.set_phase(nth, Phase::Waiting);
            }
            Kind::Mute => self.over(nth),
            Kind::Refuser => {
                self.push(nth, Flags::RST, b"")?;
                self.over(nth);
            }
            Kind::Thinker | Kind::Stutterer | Kind::Leaver | Kind::Breaker | Kind::Silent => {
                if let Some(player) = self.players.get_mut(nth as usize) {
                    player.acked = Some(Instant::now());
                    player.phase = Phase::Thinking;
                }
                self.push(nth, Flags::ACK, b"")?;
                if kind == Kind::Stutterer {
                    self.push(nth, Flags::ACK, b"")?;
                    let player = self.players.get(nth as usize).context("nobody stutters")?;
                    let mut syn = self.swarm.segment(&player.member, Flags::SYN, b"");
                    syn.seq = player.member.snd_nxt.wrapping_sub(1);
                    self.swarm.send(&syn)?;
                }
                let is_dropped = place.on_timeout == OnTimeout::Drop;
                let then = match kind {
                    // Long after it was dropped it speaks, to hear that it was.
                    Kind::Silent if is_dropped => Some(self.deadline + Duration::from_secs(2)),
                    Kind::Silent => None,
                    _ => Some(pause),
                };
                match then {
                    Some(then) => self.timers.push(Reverse((Instant::now() + then, nth))),
                    None => self.set_phase(nth, Phase::Waiting),
                }
            }
        }
        Ok(())
    }

    fn phase(&self, nth: u32) -> Option<Phase> {
        self.players.get(nth as usize).map(|player| player.phase)
    }

    fn set_phase(&mut self, nth: u32, phase: Phase) {
        if let Some(player) = self.players.get_mut(nth as usize) {
            player.phase = phase;
        }
    }

    /// Its time has come: it has thought, or has not been heard.
    fn act(&mut self, nth: u32) -> Result<()> {
        let Some(player) = self.players.get_mut(nth as usize) else {
            bail!("a timer of nobody");
        };
        match player.phase {
            Phase::Thinking => {}
            Phase::Hesitating => {
                self.be_on_processor(nth.wrapping_add(1))?;
                return self.answered(nth);
            }
            Phase::Asking | Phase::Waiting if self.persistent => return self.say_again(nth),
            Phase::Asking | Phase::Waiting | Phase::Over => return Ok(()),
        }
        player.phase = Phase::Waiting;
        let kind = player.kind;
        match kind {
            Kind::Leaver => self.push(nth, Flags::FIN_ACK, b"")?,
            Kind::Breaker => self.push(nth, Flags::RST, b"")?,
            _ => self.push(nth, Flags::PSH_ACK, REQUEST)?,
        }
        self.note_lateness(nth);
        if kind == Kind::Breaker {
            self.over(nth);
        } else if self.persistent {
            self.say_again_later(nth);
        }
        Ok(())
    }

    /// Its deadline may have been over by now.
    fn note_lateness(&mut self, nth: u32) {
        let deadline = self.deadline;
        if let Some(player) = self.players.get_mut(nth as usize) {
            let elapsed = player.acked.map_or(Duration::ZERO, |at| at.elapsed());
            // What is sent is not handled at once where the machine is busy.
            player.late = elapsed + deadline / 5 > deadline;
        }
    }

    fn say_again_later(&mut self, nth: u32) {
        const AGAIN: Duration = Duration::from_secs(1);
        self.timers.push(Reverse((Instant::now() + AGAIN, nth)));
    }

    /// Sends the SYN or the last segment once more.
    fn say_again(&mut self, nth: u32) -> Result<()> {
        let player = self.players.get(nth as usize).context("nobody repeats")?;
        match (&player.last, player.phase) {
            (_, Phase::Asking) => {
                let mut again = self.swarm.member_of(nth, player.member.port);
                self.swarm.syn(&mut again)?;
            }
            (Some(last), _) => self.swarm.send(last)?,
            (None, _) => {}
        }
        self.say_again_later(nth);
        Ok(())
    }

    fn over(&mut self, nth: u32) {
        if let Some(player) = self.players.get_mut(nth as usize) {
            if player.phase != Phase::Over {
                player.phase = Phase::Over;
                player.last = None;
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
                // One that refuses what made no sense has another number.
                if player.phase != Phase::Asking && segment.seq == player.member.rcv_nxt {
                    reset.push(nth);
                }
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
            self.hesitate(nth)?;
        }
        for nth in reset {
            // So busy is the machine that it hears of its end before it has acted.
            if self.phase(nth) == Some(Phase::Thinking) {
                self.note_lateness(nth);
            }
            self.over(nth);
        }
        Ok(any)
    }

    /// Plays as long as `more` says, of the number of clients so far, that another one comes, and until all are gone.
    pub fn play(
        &mut self,
        pace: Pace,
        listeners: &[Listener],
        mut more: impl FnMut(usize) -> bool,
    ) -> Result<()> {
        let mut progress = Instant::now();
        let mut next_one = Instant::now();
        let mut emptied = false;
        let mut complete = false;
        loop {
            let before = (self.players.len(), self.running);
            let mut begun = 0;
            while !complete && self.running < pace.at_once && begun < 32 {
                let now = Instant::now();
                if now < next_one {
                    break;
                }
                if !more(self.players.len()) {
                    complete = true;
                    break;
                }
                self.begin()?;
                begun += 1;
                next_one = now + pace.gap;
            }
            complete |= !more(self.players.len());
            let now = Instant::now();
            while let Some(Reverse((at, nth))) = self.timers.peek().copied() {
                if at > now {
                    break;
                }
                self.timers.pop();
                self.act(nth)?;
            }
            let next = self.timers.peek().map(|Reverse((at, _))| *at);
            let next = match (next, complete || pace.gap.is_zero()) {
                (Some(at), false) => Some(at.min(next_one)),
                (None, false) => Some(next_one),
                (next, true) => next,
            };
            let idle = next.map_or(Duration::from_millis(50), |at| {
                at.saturating_duration_since(now)
            });
            let limit = if begun > 0 {
                Duration::ZERO
            } else {
                idle.min(Duration::from_millis(50))
            };
            self.hear(limit)?;
            if complete && self.running == 0 {
                return Ok(());
            }
            if before != (self.players.len(), self.running) {
                progress = Instant::now();
            }
            // Those who found room where there is no deadline are the last ones.
            if !emptied && complete && progress.elapsed() > self.deadline {
                emptied = true;
                for (place, listener) in self.places.iter().zip(listeners) {
                    if place.room > 0 {
                        let last = settings(1, place.room, place.on_timeout);
                        control::set_config(listener, &last)?;
                    }
                }
            }
            if progress.elapsed() > self.patience {
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
    pub fn of(&self, place: usize, kinds: &[Kind]) -> RangeInclusive<u64> {
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

    /// How many went to a place and are parked if anybody is.
    pub fn to_be_parked(&self, place: usize) -> u64 {
        self.players
            .iter()
            .filter(|player| player.place == place && player.kind.is_parked())
            .count() as u64
    }

    /// How many went to a place and were so late with their ACK that it is not known what it was to the server: on a machine
    /// that is very busy.
    pub fn doubtful(&self, place: usize) -> u64 {
        self.players
            .iter()
            .filter(|player| player.place == place && player.doubtful)
            .count() as u64
    }

    /// Compares what a listener counted with what its clients did and its server saw, where nothing stood in their way.
    pub fn account(&self, index: usize, seen: &Stats, served: &Served) -> Result<()> {
        let place = self.places.get(index).context("no such place")?;
        let doubtful = match self.hesitation {
            // Nothing else than that may have happened to anybody.
            Some(_) => seen.bypassed(),
            None => self.doubtful(index),
        };
        let about = |count: u64| count.saturating_sub(doubtful)..=count;
        let parked = self.to_be_parked(index);
        within(
            seen.parked_total,
            about(parked),
            "connections that were parked",
        )?;
        within(
            seen.bypassed(),
            0..=doubtful,
            "connections that could not be parked",
        )?;
        equal(seen.fallback, 0, "connections that were given back")?;
        let eager = about(*self.of(index, &[Kind::Eager]).end());
        let plus = |count: u64| eager.start() + count..=eager.end() + count + seen.bypassed();
        let timeouts = seen.timeout_accept + seen.timeout_reset + seen.timeout_drop;
        if place.room > 0 {
            // Who was evicted before it did something is up to chance.
            within(seen.evicted, 0..=parked, "connections that were evicted")?;
            within(
                seen.released_data,
                0..=*self.of(index, &[Kind::Thinker, Kind::Stutterer]).end(),
                "connections released by data",
            )?;
            within(
                timeouts,
                0..=u64::from(place.room),
                "deadlines of those that were left",
            )?;
            if place.on_timeout == OnTimeout::Reset {
                within(
                    served.with_data,
                    plus(seen.released_data),
                    "connections accepted with data",
                )?;
                within(
                    served.at_the_end,
                    seen.released_fin..=seen.released_fin + seen.bypassed(),
                    "connections accepted with their end",
                )?;
                within(
                    served.silent,
                    0..=seen.bypassed(),
                    "silent connections accepted",
                )?;
                within(served.broken, 0..=seen.bypassed(), "connections that broke")?;
            } else {
                // Who was evicted, and reset before the server had a look, broke.
                within(
                    served.all(),
                    plus(seen.parked_total - seen.aborted),
                    "connections accepted",
                )?;
            }
            return Ok(());
        }
        equal(seen.evicted, 0, "connections that were evicted")?;
        let late = |range: &RangeInclusive<u64>| range.end() - range.start();
        let speakers = self.of(index, &[Kind::Thinker, Kind::Stutterer]);
        let leavers = self.of(index, &[Kind::Leaver]);
        let breakers = self.of(index, &[Kind::Breaker]);
        let silent = self.of(index, &[Kind::Silent]);
        let all_late = late(&speakers) + late(&leavers) + late(&breakers);
        let in_time =
            |range: &RangeInclusive<u64>| range.start().saturating_sub(doubtful)..=*range.end();
        within(
            seen.released_data,
            in_time(&speakers),
            "connections released by data",
        )?;
        within(
            seen.released_fin,
            in_time(&leavers),
            "connections released by FIN",
        )?;
        within(
            seen.aborted,
            in_time(&breakers),
            "connections reset by their client",
        )?;
        let of_policy = match place.on_timeout {
            OnTimeout::Accept => seen.timeout_accept,
            OnTimeout::Reset => seen.timeout_reset,
            _ => seen.timeout_drop,
        };
        within(
            of_policy,
            silent.start().saturating_sub(doubtful)..=silent.end() + all_late,
            "connections that met their deadline",
        )?;
        equal(timeouts, of_policy, "deadlines by this policy, of all")?;
        within(
            served.broken,
            0..=all_late + seen.bypassed(),
            "connections that broke",
        )?;
        within(
            served.all(),
            plus(seen.released_data + seen.released_fin + seen.timeout_accept),
            "connections accepted",
        )?;
        let with_data = plus(seen.released_data);
        within(
            served.with_data,
            *with_data.start()..=with_data.end() + all_late,
            "connections accepted with data",
        )
    }
}

fn equal(seen: u64, expected: u64, what: &str) -> Result<()> {
    ensure!(seen == expected, "{what}: expected {expected}, saw {seen}");
    Ok(())
}

fn within(seen: u64, expected: RangeInclusive<u64>, what: &str) -> Result<()> {
    ensure!(
        expected.contains(&seen),
        "{what}: expected {expected:?}, saw {seen}"
    );
    Ok(())
}
