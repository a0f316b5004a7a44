// SPDX-License-Identifier: MIT OR Apache-2.0

//! Servers and clients that are the kernel's own, many of them on one thread each.
//!
//! Every client says who it is, and is answered by its name: a connection that is handed to the wrong one shows. A client
//! ends in one [`Fate`], whatever happens to it; which ones are right depends on its [`Habit`] and its listener's settings
//! ([`Target::allows`]).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context as _, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Protocol, Socket, Type};

use crate::account;
use crate::control::{OnTimeout, Stats};
use crate::endpoint::{let_data_carry_the_ack, Listener};

/// Both a request and its answer are this long: a word, a number, the end of the line.
const LENGTH: usize = 5 + 16 + 1;

/// What a client says.
fn request(name: u64) -> [u8; LENGTH] {
    line(b"hello", name)
}

/// What it is answered.
fn response(name: u64) -> [u8; LENGTH] {
    line(b"reply", name)
}

fn line(word: &[u8; 5], name: u64) -> [u8; LENGTH] {
    let mut line = [b'\n'; LENGTH];
    let (start, rest) = line.split_at_mut(5);
    start.copy_from_slice(word);
    let digits = format!("{name:016x}");
    if let Some(middle) = rest.get_mut(..16) {
        middle.copy_from_slice(digits.as_bytes());
    }
    line
}

/// Who says a request; nothing, if it is none.
fn name_in(request: &[u8]) -> Option<u64> {
    let digits = request.strip_prefix(b"hello")?.strip_suffix(b"\n")?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Habit {
    /// It speaks with the handshake's third segment.
    Eager,
    /// It speaks as soon as it is connected.
    Prompt,
    /// It thinks, and speaks.
    Thinker,
    /// It thinks, and ends its side without a word.
    Leaver,
    /// It thinks, and closes without a word.
    Closer,
    /// It thinks, and resets.
    Breaker,
    /// It says nothing before its deadline; later it speaks.
    Silent,
}

impl Habit {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Eager,
        Self::Prompt,
        Self::Thinker,
        Self::Leaver,
        Self::Closer,
        Self::Breaker,
        Self::Silent,
    ];

    /// One of them, at random.
    pub fn random(rng: &mut fastrand::Rng) -> Self {
        match rng.u8(..100) {
            0..=9 => Self::Eager,
            10..=24 => Self::Prompt,
            25..=49 => Self::Thinker,
            50..=61 => Self::Leaver,
            62..=71 => Self::Closer,
            72..=81 => Self::Breaker,
            _ => Self::Silent,
        }
    }

    /// What it does, in words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Eager => "speaks with its ACK",
            Self::Prompt => "speaks at once",
            Self::Thinker => "thinks, speaks",
            Self::Leaver => "thinks, ends its side",
            Self::Closer => "thinks, closes",
            Self::Breaker => "thinks, resets",
            Self::Silent => "is silent past its deadline",
        }
    }
}

/// What became of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fate {
    /// It got its answer.
    Answered,
    /// It heard the end of the stream, and no answer.
    Ended,
    /// It was reset.
    Reset,
    /// Nobody listened.
    Refused,
    /// Its own TCP gave up.
    TimedOut,
    /// It went of its own accord.
    Left,
    /// Nothing became of it in all the time that a client has.
    Lost,
}

impl Fate {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Answered,
        Self::Ended,
        Self::Reset,
        Self::Refused,
        Self::TimedOut,
        Self::Left,
        Self::Lost,
    ];

    /// What became of it, in words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Ended => "ended",
            Self::Reset => "reset",
            Self::Refused => "refused",
            Self::TimedOut => "timed out",
            Self::Left => "left",
            Self::Lost => "lost",
        }
    }

    fn of(error: &io::Error) -> Result<Self> {
        Ok(match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNRESET | Errno::EPIPE) => Self::Reset,
            Some(Errno::ECONNREFUSED) => Self::Refused,
            Some(Errno::ETIMEDOUT) => Self::TimedOut,
            _ => bail!("a client's connection failed: {error}"),
        })
    }
}

/// A listener that clients go to, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Where it is.
    pub address: SocketAddr,
    /// When the silent meet its policy, if it stays as it is.
    pub deadline: Duration,
    /// How it treats them; nothing, if that changes, or if the listener itself does not stay.
    pub on_timeout: Option<OnTimeout>,
    /// Whether anybody may meet the policy before the deadline, to make room.
    pub evicts: bool,
    /// Whether anything may take longer than it should, or fail at first: segments get lost, or memory is short.
    pub lossy: bool,
    /// Whether a client whose ACK gets lost may be forgotten: the kernel drops a request when it has no memory to send the
    /// SYN-ACK again (`reqsk_timer_handler()`), filter or not.
    pub forgets: bool,
}

impl Target {
    /// How long a silent client says nothing: until well after its deadline.
    fn silence(&self) -> Duration {
        self.deadline + Duration::from_secs(2)
    }

    /// Whether a client's fate agrees with what it did: `late` is one that spoke when its deadline may have been over.
    pub fn allows(&self, habit: Habit, late: bool, fate: Fate) -> bool {
        let Some(on_timeout) = self.on_timeout else {
            // Whatever the listener does, somebody tells every client how it ends.
            return fate != Fate::Lost;
        };
        let may_be_turned_away =
            self.forgets || on_timeout != OnTimeout::Accept && (late || self.evicts || self.lossy);
        let expected = match habit {
            Habit::Closer | Habit::Breaker => Fate::Left,
            Habit::Leaver => Fate::Ended,
            // Room is made with whoever is there: who was evicted has been turned away.
            Habit::Silent if on_timeout != OnTimeout::Accept => Fate::Reset,
            _ => Fate::Answered,
        };
        // Where something stood in its way, a connection may not have been held back at all.
        let may_be_let_in = self.lossy && habit == Habit::Silent && fate == Fate::Answered;
        fate == expected || (fate == Fate::Reset && may_be_turned_away) || may_be_let_in
    }
}

/// How clients ended: where they went, what they did, whether they were late, what became of them; and how many.
pub type Fates = BTreeMap<(usize, Habit, bool, Fate), u64>;

/// Where a client is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Connecting,
    Thinking,
    Waiting,
}

#[derive(Debug)]
struct Client {
    socket: Socket,
    target: usize,
    habit: Habit,
    step: Step,
    born: Instant,
    late: bool,
    heard: Vec<u8>,
}

/// Many clients on one thread, which must be in their namespace.
#[derive(Debug)]
pub struct Crowd {
    epoll: Epoll,
    targets: Vec<Target>,
    clients: HashMap<u64, Client>,
    timers: BinaryHeap<Reverse<(Instant, u64, bool)>>,
    next: u64,
    rng: fastrand::Rng,
    /// How much later than it believes a client may have been heard.
    margin: Duration,
    /// How long a client may live.
    limit: Duration,
    fates: Fates,
    begun: BTreeMap<Habit, u64>,
}

impl Crowd {
    /// Clients of some listeners. `margin` is how much later than it believes a client may have been heard, and `limit` how
    /// long one may live, beyond its silence.
    pub fn new(
        targets: Vec<Target>,
        margin: Duration,
        limit: Duration,
        mut rng: fastrand::Rng,
    ) -> Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            targets,
            clients: HashMap::new(),
            timers: BinaryHeap::new(),
            // Names of other crowds' clients are others.
            next: rng.u64(..) & !0xffff_ffff,
            rng,
            margin,
            limit,
            fates: Fates::new(),
            begun: BTreeMap::new(),
        })
    }

    /// How many clients are there.
    pub fn running(&self) -> usize {
        self.clients.len()
    }

    /// How the clients so far have ended.
    pub fn fates(&self) -> &Fates {
        &self.fates
    }

    /// How many clients have begun, by what they do.
    pub fn begun(&self) -> &BTreeMap<Habit, u64> {
        &self.begun
    }

    /// The fates that do not agree with what the clients did, in words.
    pub fn complaints(&self) -> Vec<String> {
        self.complaints_beyond(0)
    }

    /// The same, where the kernel had no memory for so many resets (`TcpExtTCPAbortFailed`).
    ///
    /// It sends a connection's reset once, or never (`tcp_send_active_reset()`): as many clients of listeners that do not stay
    /// may wait for ever. Such a listener had their connection, which nobody had accepted, and all that they said.
    pub fn complaints_beyond(&self, resets_not_sent: u64) -> Vec<String> {
        let may_wait = |target: &Target, fate: Fate| {
            target.on_timeout.is_none() && fate == Fate::Lost && self.waiting() <= resets_not_sent
        };
        let wrong = self
            .fates
            .iter()
            .filter(|((target, habit, late, fate), _)| {
                let target = self.targets.get(*target);
                !target.is_some_and(|target| {
                    target.allows(*habit, *late, *fate) || may_wait(target, *fate)
                })
            });
        wrong
            .map(|((target, habit, late, fate), count)| {
                let late = if *late { " late" } else { "" };
                let target = self.targets.get(*target);
                format!("{count}{late} {habit:?} clients were {fate:?}, of {target:?}")
            })
            .collect()
    }

    /// How many clients of listeners that do not stay nobody told how it ends.
    fn waiting(&self) -> u64 {
        let lost = self.fates.iter().filter(|((target, _, _, fate), _)| {
            let target = self.targets.get(*target);
            *fate == Fate::Lost && target.is_some_and(|target| target.on_timeout.is_none())
        });
        lost.map(|(_, count)| count).sum()
    }

    /// Lets a client begin, of a random listener and with a random habit.
    pub fn begin(&mut self) -> Result<()> {
        let target = self.rng.usize(..self.targets.len());
        let habit = Habit::random(&mut self.rng);
        self.begin_as(target, habit)
    }

    /// Lets a client begin.
    pub fn begin_as(&mut self, target: usize, habit: Habit) -> Result<()> {
        let address = self
            .targets
            .get(target)
            .context("no such listener")?
            .address;
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )
        .context("a client's socket")?;
        socket.set_tcp_nodelay(true)?;
        if habit == Habit::Eager {
            let_data_carry_the_ack(&socket)?;
        }
        let name = self.next;
        self.next += 1;
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        *self.begun.entry(habit).or_default() += 1;
        let born = Instant::now();
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
            Err(error) => {
                let fate = Fate::of(&error)?;
                self.count(target, habit, false, fate);
                return Ok(());
            }
        }
        self.epoll.add(&socket, EpollEvent::new(flags, name))?;
        let silence = self.targets.get(target).map(Target::silence);
        let end = born + self.limit + silence.unwrap_or_default();
        self.timers.push(Reverse((end, name, true)));
        self.clients.insert(
            name,
            Client {
                socket,
                target,
                habit,
                step: Step::Connecting,
                born,
                late: false,
                heard: Vec::new(),
            },
        );
        Ok(())
    }

    fn count(&mut self, target: usize, habit: Habit, late: bool, fate: Fate) {
        *self.fates.entry((target, habit, late, fate)).or_default() += 1;
    }

    /// Lets happen what happens, for a while at most.
    pub fn step(&mut self, limit: Duration) -> Result<()> {
        let now = Instant::now();
        let next = self.timers.peek().map(|Reverse((at, ..))| *at);
        let wait = next.map_or(limit, |at| at.saturating_duration_since(now).min(limit));
        let mut events = [EpollEvent::empty(); 64];
        // One more millisecond, so that a rest below one is slept and not spun.
        let timeout = EpollTimeout::try_from(wait + Duration::from_micros(999))?;
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error).context("epoll"),
        };
        for event in events.iter().take(count) {
            self.hear(event.data())?;
        }
        let now = Instant::now();
        while let Some(Reverse((at, name, last))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            if last {
                if self.clients.contains_key(&name) {
                    self.end(name, Fate::Lost);
                }
            } else {
                self.act(name)?;
            }
        }
        Ok(())
    }

    /// Whether the deadline may be over of one that is to act before it.
    fn is_late(&self, client: &Client) -> bool {
        let target = self.targets.get(client.target);
        client.habit != Habit::Silent
            && target.is_some_and(|it| client.born.elapsed() + self.margin > it.deadline)
    }

    /// Takes a client out, whose fate is known.
    fn end(&mut self, name: u64, fate: Fate) {
        if let Some(client) = self.clients.remove(&name) {
            let late = client.late || (client.step == Step::Thinking && self.is_late(&client));
            // Some resets, and some do it the long way.
            if fate == Fate::Answered && self.rng.bool() {
                let _ = client.socket.set_linger(Some(Duration::ZERO));
            }
            self.count(client.target, client.habit, late, fate);
        }
    }

    /// Something has happened to a client.
    fn hear(&mut self, name: u64) -> Result<()> {
        let Some(client) = self.clients.get_mut(&name) else {
            return Ok(());
        };
        if client.step == Step::Connecting {
            if let Some(error) = client.socket.take_error()? {
                let fate = Fate::of(&error)?;
                self.end(name, fate);
                return Ok(());
            }
            match client.socket.peer_addr() {
                Ok(_) => {}
                // Not yet.
                Err(error) if error.raw_os_error() == Some(Errno::ENOTCONN as i32) => return Ok(()),
                Err(error) => return Err(error).context("a client's peer"),
            }
            client.step = Step::Thinking;
            let target = self
                .targets
                .get(client.target)
                .context("no such listener")?;
            let least = (target.deadline / 4).max(Duration::from_millis(2));
            let pause = match client.habit {
                Habit::Eager | Habit::Prompt => Duration::ZERO,
                Habit::Silent => target.silence(),
                _ => least.mul_f64(self.rng.f64()),
            };
            if pause.is_zero() {
                self.act(name)?;
            } else {
                self.timers
                    .push(Reverse((Instant::now() + pause, name, false)));
            }
        }
        self.read(name)
    }

    /// Takes what there is to be read.
    fn read(&mut self, name: u64) -> Result<()> {
        let Some(client) = self.clients.get_mut(&name) else {
            return Ok(());
        };
        let mut buffer = [0; 256];
        let fate = loop {
            match (&client.socket).read(&mut buffer) {
                Ok(0) => break Fate::Ended,
                Ok(length) => {
                    client.heard.extend(buffer.iter().take(length));
                    if client.heard.len() >= LENGTH {
                        ensure!(
                            client.heard == response(name),
                            "client {name:016x} was answered {:?}",
                            String::from_utf8_lossy(&client.heard)
                        );
                        break Fate::Answered;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Fate::of(&error)?,
            }
        };
        self.end(name, fate);
        Ok(())
    }

    /// A client has thought.
    fn act(&mut self, name: u64) -> Result<()> {
        let Some(client) = self.clients.get_mut(&name) else {
            return Ok(());
        };
        if client.step != Step::Thinking {
            return Ok(());
        }
        client.step = Step::Waiting;
        let done = match client.habit {
            Habit::Closer => Ok(true),
            Habit::Breaker => client
                .socket
                .set_linger(Some(Duration::ZERO))
                .map(|()| true),
            Habit::Leaver => client.socket.shutdown(Shutdown::Write).map(|()| false),
            _ => (&client.socket).write(&request(name)).and_then(|length| {
                if length == LENGTH {
                    Ok(false)
                } else {
                    Err(io::ErrorKind::WriteZero.into())
                }
            }),
        };
        let target = self
            .targets
            .get(client.target)
            .context("no such listener")?;
        client.late =
            client.habit != Habit::Silent && client.born.elapsed() + self.margin > target.deadline;
        let late = self
            .clients
            .get(&name)
            .is_some_and(|client| self.is_late(client));
        if let Some(client) = self.clients.get_mut(&name) {
            client.late = late;
        }
        match done {
            Ok(true) => self.end(name, Fate::Left),
            Ok(false) => {}
            // It was reset, or ended, before: not connected any more.
            Err(error) if error.raw_os_error() == Some(Errno::ENOTCONN as i32) => {
                self.end(name, Fate::Reset);
            }
            Err(error) => {
                let fate = Fate::of(&error)?;
                self.end(name, fate);
            }
        }
        Ok(())
    }

    /// Keeps up to `at_once` clients there, one more each `gap` at most, until `over` says so; then until all are gone.
    pub fn run(
        &mut self,
        at_once: usize,
        gap: Duration,
        mut over: impl FnMut(&Self) -> bool,
    ) -> Result<()> {
        let mut next = Instant::now();
        loop {
            let is_over = over(self);
            let now = Instant::now();
            if !is_over && self.running() < at_once && now >= next {
                self.begin()?;
                next = now + gap;
            } else if is_over && self.running() == 0 {
                return Ok(());
            }
            self.step(gap.max(Duration::from_millis(1)))?;
        }
    }
}

/// What a server saw at one of its listeners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Connections that were accepted.
    pub accepted: u64,
    /// … and then answered,
    pub answered: u64,
    /// … that ended without a word,
    pub ended: u64,
    /// … that were reset.
    pub broken: u64,
}

#[derive(Debug)]
struct Guest {
    socket: Socket,
    listener: usize,
    heard: Vec<u8>,
    answered: bool,
    since: Instant,
}

/// Listeners and their connections on one thread.
#[derive(Debug)]
pub struct Server {
    epoll: Epoll,
    listeners: Vec<Option<Listener>>,
    served: Vec<Served>,
    guests: HashMap<u64, Guest>,
    next: u64,
    swept: Instant,
}

/// Where the numbers of connections begin; those of listeners are smaller.
const FIRST_GUEST: u64 = 1 << 32;

impl Server {
    /// A server without a listener.
    pub fn new() -> Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            listeners: Vec::new(),
            served: Vec::new(),
            guests: HashMap::new(),
            next: FIRST_GUEST,
            swept: Instant::now(),
        })
    }

    /// Takes over a listener, and returns its number.
    pub fn add(&mut self, listener: Listener) -> Result<usize> {
        let index = self.listeners.len();
        self.watch(index, &listener)?;
        self.listeners.push(Some(listener));
        self.served.push(Served::default());
        Ok(index)
    }

    /// Gives the number of one that was taken out to another listener.
    pub fn put_back(&mut self, index: usize, listener: Listener) -> Result<()> {
        self.watch(index, &listener)?;
        let slot = self.listeners.get_mut(index).context("no such listener")?;
        ensure!(slot.is_none(), "there is a listener {index}");
        *slot = Some(listener);
        Ok(())
    }

    fn watch(&self, index: usize, listener: &Listener) -> Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, index as u64);
        self.epoll
            .add(listener.as_fd(), event)
            .context("watch a listener")
    }

    /// Takes a listener out; its connections stay.
    pub fn take(&mut self, index: usize) -> Result<Option<Listener>> {
        let listener = self.listeners.get_mut(index).and_then(Option::take);
        if let Some(listener) = &listener {
            self.epoll
                .delete(listener.as_fd())
                .context("a listener that is not watched")?;
        }
        Ok(listener)
    }

    /// A listener, if it is there.
    pub fn listener(&self, index: usize) -> Option<&Listener> {
        self.listeners.get(index)?.as_ref()
    }

    /// What it saw at a listener.
    pub fn served(&self, index: usize) -> Served {
        self.served.get(index).copied().unwrap_or_default()
    }

    /// Serves whoever still comes until a listener is at rest, and returns its counts.
    pub fn settle(&mut self, index: usize, limit: Duration) -> Result<Stats> {
        self.settle_as(index, limit, account::at_rest)
    }

    /// The same where `is_at_rest` tells what that is.
    pub fn settle_as(
        &mut self,
        index: usize,
        limit: Duration,
        is_at_rest: fn(&Stats) -> Result<()>,
    ) -> Result<Stats> {
        let listener = self.listener(index).context("no such listener")?;
        let copy = listener.socket().try_clone()?;
        let seen = account::settle(copy, limit, is_at_rest, || self.serve_all())?;
        // Who was accepted last is in the queue by now.
        self.serve_all()?;
        Ok(seen)
    }

    /// Serves until there is nothing to do.
    fn serve_all(&mut self) -> Result<()> {
        while self.step(Duration::from_millis(10))? {}
        Ok(())
    }

    /// How many connections it has.
    pub fn guests(&self) -> usize {
        self.guests.len()
    }

    /// Serves for a while at most; says whether there was anything to do.
    pub fn step(&mut self, limit: Duration) -> Result<bool> {
        /// A connection whose client is never heard of again is closed.
        const IDLE: Duration = Duration::from_secs(60);
        let mut events = [EpollEvent::empty(); 64];
        let timeout = EpollTimeout::try_from(limit)?;
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error).context("epoll"),
        };
        for event in events.iter().take(count) {
            let number = event.data();
            if number < FIRST_GUEST {
                self.accept(usize::try_from(number)?)?;
            } else {
                self.serve(number)?;
            }
        }
        if self.swept.elapsed() > Duration::from_secs(5) {
            self.swept = Instant::now();
            self.guests.retain(|_, guest| guest.since.elapsed() < IDLE);
        }
        Ok(count > 0)
    }

    fn accept(&mut self, index: usize) -> Result<()> {
        /// A budget: other listeners get their turn.
        const AT_ONCE: usize = 32;
        for _ in 0..AT_ONCE {
            let Some(listener) = self.listener(index) else {
                return Ok(());
            };
            let socket = match listener.socket().accept() {
                Ok((socket, _)) => socket,
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN) => return Ok(()),
                    // It has just been shut down, or the connection has.
                    Some(Errno::EINVAL | Errno::ECONNABORTED) => return Ok(()),
                    _ => return Err(error).context("accept"),
                },
            };
            socket.set_nonblocking(true)?;
            let name = self.next;
            self.next += 1;
            self.epoll
                .add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, name))?;
            if let Some(served) = self.served.get_mut(index) {
                served.accepted += 1;
            }
            self.guests.insert(
                name,
                Guest {
                    socket,
                    listener: index,
                    heard: Vec::new(),
                    answered: false,
                    since: Instant::now(),
                },
            );
        }
        Ok(())
    }

    fn serve(&mut self, number: u64) -> Result<()> {
        let Some(guest) = self.guests.get_mut(&number) else {
            return Ok(());
        };
        let Some(served) = self.served.get_mut(guest.listener) else {
            bail!("a connection of no listener");
        };
        let mut buffer = [0; 256];
        loop {
            match (&guest.socket).read(&mut buffer) {
                Ok(0) => {
                    served.ended += u64::from(!guest.answered);
                    break;
                }
                Ok(length) => {
                    guest.heard.extend(buffer.iter().take(length));
                    ensure!(
                        guest.heard.len() <= LENGTH,
                        "a client says more than it should: {:?}",
                        String::from_utf8_lossy(&guest.heard)
                    );
                    if guest.heard.len() < LENGTH {
                        continue;
                    }
                    let name = name_in(&guest.heard).with_context(|| {
                        let text = String::from_utf8_lossy(&guest.heard);
                        format!("no client says {text:?}")
                    })?;
                    guest.answered = true;
                    if (&guest.socket).write(&response(name)).is_err() {
                        served.broken += 1;
                        break;
                    }
                    served.answered += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    served.broken += u64::from(!guest.answered);
                    break;
                }
            }
        }
        self.guests.remove(&number);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{Family, Listen};

    fn target(on_timeout: Option<OnTimeout>) -> Target {
        Target {
            address: "127.0.0.1:1".parse().unwrap(),
            deadline: Duration::from_millis(200),
            on_timeout,
            evicts: false,
            lossy: false,
            forgets: false,
        }
    }

    #[test]
    fn names_come_back() {
        assert_eq!(name_in(&request(0x1234)), Some(0x1234));
        assert_eq!(name_in(&response(0x1234)), None);
        assert_eq!(name_in(b"hello"), None);
    }

    #[test]
    fn a_fate_agrees_with_the_listeners_settings() {
        let reset = target(Some(OnTimeout::Reset));
        assert!(reset.allows(Habit::Silent, false, Fate::Reset));
        assert!(!reset.allows(Habit::Silent, false, Fate::Answered));
        assert!(!reset.allows(Habit::Thinker, false, Fate::Reset));
        assert!(reset.allows(Habit::Thinker, true, Fate::Reset));
        let accept = target(Some(OnTimeout::Accept));
        assert!(accept.allows(Habit::Silent, false, Fate::Answered));
        assert!(!accept.allows(Habit::Silent, false, Fate::Reset));
        assert!(!accept.allows(Habit::Thinker, true, Fate::Reset));
        let forgets = Target {
            forgets: true,
            ..accept
        };
        assert!(forgets.allows(Habit::Thinker, false, Fate::Reset));
        assert!(!forgets.allows(Habit::Thinker, false, Fate::Ended));
        assert!(!accept.allows(Habit::Leaver, false, Fate::TimedOut));
        let whatever = target(None);
        assert!(whatever.allows(Habit::Eager, false, Fate::Refused));
        assert!(!whatever.allows(Habit::Eager, false, Fate::Lost));
    }

    #[test]
    fn as_many_may_wait_as_resets_were_not_sent() {
        let crowd_of = |on_timeout, lost| {
            let mut crowd = Crowd::new(
                vec![target(on_timeout)],
                Duration::ZERO,
                Duration::ZERO,
                fastrand::Rng::with_seed(1),
            )
            .unwrap();
            crowd
                .fates
                .insert((0, Habit::Prompt, false, Fate::Lost), lost);
            crowd
        };
        assert!(crowd_of(None, 2).complaints_beyond(2).is_empty());
        assert_eq!(crowd_of(None, 2).complaints_beyond(1).len(), 1);
        assert_eq!(crowd_of(None, 1).complaints().len(), 1);
        let stays = crowd_of(Some(OnTimeout::Reset), 1);
        assert_eq!(stays.complaints_beyond(1).len(), 1);
    }

    /// With a plain listener everybody is accepted at once: as with a filter that accepts at the deadline.
    #[test]
    fn everybody_is_served_by_a_plain_listener() {
        let mut server = Server::new().unwrap();
        let listener = Listen::plain(Family::V4).open_here().unwrap();
        let mut target = target(Some(OnTimeout::Accept));
        target.address.set_port(listener.port());
        let index = server.add(listener).unwrap();
        let mut crowd = Crowd::new(
            vec![target],
            Duration::ZERO,
            Duration::from_secs(20),
            fastrand::Rng::with_seed(1),
        )
        .unwrap();
        for habit in Habit::ALL {
            crowd.begin_as(0, habit).unwrap();
        }
        while crowd.running() > 0 {
            server.step(Duration::from_millis(1)).unwrap();
            crowd.step(Duration::from_millis(1)).unwrap();
        }
        assert_eq!(crowd.complaints(), Vec::<String>::new());
        assert_eq!(crowd.fates().values().sum::<u64>(), 7);
        while server.guests() > 0 {
            server.step(Duration::from_millis(1)).unwrap();
        }
        let served = server.served(index);
        assert_eq!((served.accepted, served.answered), (7, 4));
        assert_eq!((served.ended, served.broken), (2, 1));
    }
}
