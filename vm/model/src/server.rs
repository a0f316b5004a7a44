// SPDX-License-Identifier: MIT OR Apache-2.0

//! One listener and its clients: what must happen to each, and when.

use std::collections::VecDeque;
use std::fmt;

/// A point in time, or a span of it.
pub type Millis = u64;

/// The limit for an expired request to be accepted once the accept queue has room: the module looks
/// at least that often, and more often the sooner the server has accepted.
pub const ROOM_NOTICED_WITHIN: Millis = 50;

/// In this time after a parked client's data has found the accept queue full, new clients have as
/// much room beyond the backlog as parked ones had: less than the second that the module says.
/// Later they have less and less.
const ROOM_STAYS_FOR: Millis = 400;

/// A client that was parked for less is not idle, and for more is: 100 ms, says the module.
const NOT_IDLE: Millis = 50;
const IDLE: Millis = 150;

/// After this time without an ACK the SYN-ACK is retransmitted, and then after twice as long.
const SYN_ACK_TIMEOUT: Millis = 1000;

/// The minimum interval of the kernel's answers to a half-open client that repeats a segment
/// (`net.ipv4.tcp_invalid_ratelimit`).
const ANSWER_INTERVAL: Millis = 500;

/// The error of that interval: the kernel counts clock ticks, which stop while a busy machine
/// stands still, and then catch up.
const TICKS_ERROR: Millis = 300;

/// What happens to a client that is silent until its deadline, or that is evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTimeout {
    /// The server accepts it.
    Accept,
    /// It gets an RST.
    Reset,
    /// Its request is dropped silently.
    Drop,
}

/// A listener's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How long a silent client is parked (in a [history](crate::history), in units); `None`:
    /// without a deadline.
    pub timeout: Option<Millis>,
    /// The maximum of parked clients; 0: any number.
    pub max_parked: u32,
    /// What happens to a client that expires or is evicted.
    pub on_timeout: OnTimeout,
    /// Whether no client is parked, and those that are parked are accepted.
    pub paused: bool,
    /// Whether a client that closes without a byte gets an RST; otherwise the server accepts it.
    pub resets_on_close: bool,
}

/// What a client sends. Sequence numbers are those of its first byte unless noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Its SYN: the first one, or the same again.
    Syn,
    /// The third segment of a handshake, without data; or the same again.
    Ack,
    /// A few bytes.
    Data,
    /// The end of the stream.
    Fin,
    /// A few bytes and the end of the stream.
    DataFin,
    /// A reset exactly at the next byte.
    Rst,
    /// A reset somewhere else in the window (RFC 5961).
    InexactRst,
    /// A keepalive probe: an ACK one byte before the window.
    Probe,
    /// The same with a byte of garbage.
    ProbeWithByte,
    /// Data far before the window.
    OldData,
    /// An ACK of data that was never sent.
    WrongAck,
    /// A SYN inside the window.
    SynInWindow,
    /// A SYN far outside the window.
    StraySyn,
    /// A few bytes without an ACK.
    NoAck,
}

impl Segment {
    /// Returns whether it carries something for the server.
    fn is_for_server(self) -> bool {
        matches!(self, Self::Data | Self::Fin | Self::DataFin)
    }
}

/// What the server sends to a client that is not connected yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Its answer to a SYN.
    SynAck,
    /// An ACK of the SYN.
    Ack,
    /// A reset that the client accepts: at the byte that it expects next.
    Reset,
    /// A reset with the numbers of the segment that it answers.
    StrayReset,
}

/// A listener's counters (`struct accf_stats`); those left out here stay zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Counts {
    pub parked: u64,
    /// Without the parked ones, although the kernel counts a few of them.
    pub half_open: u64,
    pub half_open_young: u64,
    pub released_data: u64,
    pub released_fin: u64,
    pub timeout_accept: u64,
    pub timeout_reset: u64,
    pub timeout_drop: u64,
    pub evicted: u64,
    pub aborted: u64,
    pub fallback: u64,
    pub bypass_accept_queue_full: u64,
    pub released_paused: u64,
    pub bypass_paused: u64,
    pub closed_reset: u64,
    pub closed_reset_unparked: u64,
    pub released_late: u64,
    pub overflow_dropped: u64,
}

impl Counts {
    /// Returns how many were ever parked.
    pub fn parked_total(&self) -> u64 {
        self.parked
            + self.released_data
            + self.released_fin
            + self.timeout_accept
            + self.timeout_reset
            + self.timeout_drop
            + self.evicted
            + self.aborted
            + self.fallback
            + self.released_paused
            + self.closed_reset
    }
}

impl fmt::Display for Counts {
    /// Writes those that are not zero.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            ("parked", self.parked),
            ("half_open", self.half_open),
            ("half_open_young", self.half_open_young),
            ("released_data", self.released_data),
            ("released_fin", self.released_fin),
            ("timeout_accept", self.timeout_accept),
            ("timeout_reset", self.timeout_reset),
            ("timeout_drop", self.timeout_drop),
            ("evicted", self.evicted),
            ("aborted", self.aborted),
            ("fallback", self.fallback),
            ("bypass_accept_queue_full", self.bypass_accept_queue_full),
            ("released_paused", self.released_paused),
            ("bypass_paused", self.bypass_paused),
            ("closed_reset", self.closed_reset),
            ("closed_reset_unparked", self.closed_reset_unparked),
            ("released_late", self.released_late),
            ("overflow_dropped", self.overflow_dropped),
        ];
        let mut separator = "";
        for (name, count) in counts.into_iter().filter(|(_, count)| *count != 0) {
            write!(f, "{separator}{name} {count}")?;
            separator = ", ";
        }
        if separator.is_empty() {
            f.write_str("nothing")?;
        }
        Ok(())
    }
}

/// The time of an event of the server's own, as exactly as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Not before.
    pub from: Millis,
    /// Not after.
    pub to: Millis,
}

impl Window {
    /// Returns the same window, later by `time`.
    fn after(self, time: Millis) -> Self {
        Self {
            from: self.from + time,
            to: self.to + time,
        }
    }

    /// Returns whether `now`, give or take `guard`, may be before or after the event.
    pub(crate) fn is_unclear(self, now: Millis, guard: Millis) -> bool {
        now + guard > self.from && now < self.to + guard
    }
}

/// Why the parking of a client ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expiry {
    /// Its deadline is over.
    Deadline,
    /// More are parked than allowed.
    Eviction,
    /// Parking is paused.
    Pause,
}

/// A half-open client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HalfOpen {
    /// When the SYN-ACK is retransmitted next.
    timer: Window,
    /// How often it was retransmitted.
    timeouts: u32,
    /// Its ACK arrived, but the accept queue was full: the filter does not park it any more.
    acked: bool,
}

/// A client's state at the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Unknown to the server.
    Gone,
    /// Its SYN was answered.
    HalfOpen(HalfOpen),
    /// Parked since this time.
    Parked(Window),
    /// Connected, and not accepted yet.
    Queued,
    /// Connected and accepted.
    Accepted,
}

/// The connections beyond the backlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Burst {
    /// When the first one was made.
    began: Millis,
    /// The most that there were.
    most: usize,
}

#[derive(Clone, Debug)]
struct Client {
    /// Where it comes from.
    source: usize,
    state: State,
    /// When it last got an answer that is rate-limited.
    answered: Option<Window>,
    /// Whether it got a SYN-ACK, and so knows the server's sequence numbers.
    has_syn_ack: bool,
    sent: Vec<Sent>,
}

/// The state at one moment, as far as it is visible from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The listener's counters; `None` once it is closed.
    pub counts: Option<Counts>,
    /// The number of connections in the accept queue.
    pub queued: usize,
    /// The clients whose connections were accepted, in that order.
    pub accepted: Vec<usize>,
    /// The segments sent to each client, without those of its connection.
    pub sent: Vec<Vec<Sent>>,
    /// Whether each client is connected.
    pub connected: Vec<bool>,
    /// Whether each client is half open: its ACK has not arrived, or the accept queue was full.
    pub half_open: Vec<bool>,
}

/// The listener.
#[derive(Clone, Debug)]
pub struct Server {
    now: Millis,
    /// The end of the present action.
    over: Millis,
    config: Config,
    backlog: usize,
    is_open: bool,
    /// How late the kernel's own timers may be.
    timers_late: Millis,
    clients: Vec<Client>,
    /// The parked clients, the oldest first.
    parked: VecDeque<usize>,
    queue: VecDeque<usize>,
    accepted: Vec<usize>,
    /// Until when an expired client notices that the accept queue has room again.
    room_noticed_by: Option<Millis>,
    burst: Option<Burst>,
    counts: Counts,
}

impl Server {
    /// Makes a listener without clients' segments, at time 0. `sources` are the clients' addresses.
    pub fn new(config: Config, backlog: usize, sources: &[usize], timers_late: Millis) -> Self {
        let client = |source: &usize| Client {
            source: *source,
            state: State::Gone,
            answered: None,
            has_syn_ack: false,
            sent: Vec::new(),
        };
        Self {
            now: 0,
            over: 0,
            config,
            backlog,
            is_open: true,
            timers_late,
            clients: sources.iter().map(client).collect(),
            parked: VecDeque::new(),
            queue: VecDeque::new(),
            accepted: Vec::new(),
            room_noticed_by: None,
            burst: None,
            counts: Counts::default(),
        }
    }

    /// Returns the present time.
    pub fn now(&self) -> Millis {
        self.now
    }

    /// Returns whether it listens.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Returns whether connections wait in the accept queue.
    pub fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Returns the visible state.
    pub fn seen(&self) -> Seen {
        let mut counts = self.counts;
        counts.parked = self.parked.len() as u64;
        for client in &self.clients {
            if let State::HalfOpen(it) = client.state {
                counts.half_open += 1;
                counts.half_open_young += u64::from(it.timeouts == 0);
            }
        }
        let is_connected =
            |client: &Client| matches!(client.state, State::Queued | State::Accepted);
        let is_half_open = |client: &Client| matches!(client.state, State::HalfOpen(_));
        Seen {
            counts: self.is_open.then_some(counts),
            queued: self.queue.len(),
            accepted: self.accepted.clone(),
            sent: self.clients.iter().map(|it| it.sent.clone()).collect(),
            connected: self.clients.iter().map(is_connected).collect(),
            half_open: self.clients.iter().map(is_half_open).collect(),
        }
    }

    /// Returns whether a client may send this now. Segments are left out whose outcome depends on
    /// TCP's connections instead of the filter, or on too many conditions.
    pub fn may_send(&self, client: usize, segment: Segment) -> bool {
        let client = &self.clients[client];
        let joins = match client.state {
            State::Gone => segment == Segment::Syn,
            State::HalfOpen(_) => segment.is_for_server(),
            _ => false,
        };
        let is_late = |burst: Burst| self.over > burst.began + ROOM_STAYS_FOR;
        if joins && self.is_full() && self.burst.is_some_and(is_late) {
            return false;
        }
        if let State::Parked(at) = client.state {
            let is_clear = self
                .was_idle(at)
                .is_some_and(|was_idle| was_idle || !self.burst.is_some_and(is_late));
            if segment.is_for_server() && self.is_full() && !is_clear {
                return false;
            }
        }
        match client.state {
            State::Queued | State::Accepted => false,
            State::Gone if segment == Segment::Syn => {
                // With more half-open clients, a few parked ones among them, the kernel sends
                // cookies.
                let half_open = self.seen().counts.map_or(0, |counts| counts.half_open) as usize;
                let spare = self.parked.len().min(self.backlog / 8);
                half_open + spare <= self.backlog
            }
            State::Gone => {
                let is_syn = matches!(segment, Segment::SynInWindow | Segment::StraySyn);
                client.has_syn_ack && !is_syn
            }
            State::HalfOpen(_) | State::Parked(_) => true,
        }
    }

    /// Returns the times of the server's own events from now on.
    pub fn windows(&self) -> Vec<Window> {
        let mut windows = Vec::new();
        if !self.is_open {
            return windows;
        }
        windows.extend(self.room_noticed_by.map(|to| Window { from: self.now, to }));
        windows.extend(self.deadlines());
        for client in &self.clients {
            if let State::HalfOpen(it) = client.state {
                windows.push(it.timer);
            }
        }
        windows
    }

    /// Returns until when it is unclear whether a client's segment is answered; `None` if it is
    /// clear.
    pub fn unclear_answer(&self, client: usize, segment: Segment, guard: Millis) -> Option<Millis> {
        let client = &self.clients[client];
        let is_limited = matches!(
            segment,
            Segment::Syn | Segment::Probe | Segment::InexactRst | Segment::StraySyn
        );
        if !is_limited || matches!(client.state, State::Gone) {
            return None;
        }
        let again = client.answered?.after(ANSWER_INTERVAL);
        let guard = guard + TICKS_ERROR;
        again
            .is_unclear(self.now, guard)
            .then_some(again.to + guard)
    }

    /// Returns the same for new settings, with which a deadline would be just now.
    pub fn unclear_configure(&self, config: Config, guard: Millis) -> Option<Millis> {
        let timeout = config.timeout.filter(|_| !config.paused)?;
        self.parked
            .iter()
            .filter_map(|&client| self.parked_at(client))
            .map(|at| at.after(timeout))
            .find(|deadline| deadline.is_unclear(self.now, guard))
            .map(|deadline| deadline.to + guard)
    }

    /// Returns the same for `accept()`: an expired client that waits for room may be queued at the
    /// same time as another client's deadline.
    pub fn unclear_accept(&self, guard: Millis) -> Option<Millis> {
        if !self.is_waiting_for_room() {
            return None;
        }
        self.deadlines()
            .filter(|at| at.from < self.now + ROOM_NOTICED_WITHIN + 2 * guard)
            .map(|at| at.to + guard)
            .max()
    }

    /// Returns the earliest time of an event of the server's own.
    pub fn next_by_itself(&self) -> Option<Millis> {
        self.windows().into_iter().map(|window| window.from).min()
    }

    /// Lets time pass; the next action happens at some time from `at` to `over`.
    pub fn begin(&mut self, at: Millis, over: Millis) {
        self.advance(at);
        self.over = over.max(self.now);
    }

    /// Lets time pass.
    pub fn advance(&mut self, to: Millis) {
        loop {
            let next = self.windows().into_iter().map(|window| window.to).min();
            let Some(next) = next.filter(|at| *at <= to) else {
                break;
            };
            self.now = self.now.max(next);
            self.over = self.now;
            if self.room_noticed_by == Some(next) {
                self.room_noticed_by = None;
            }
            self.fire_timers();
            self.expire_all();
        }
        self.now = self.now.max(to);
        self.over = self.now;
    }

    /// Handles a client's segment.
    pub fn receive(&mut self, client: usize, segment: Segment) {
        match self.clients[client].state {
            State::Gone if self.is_open => self.receive_unknown(client, segment),
            State::Gone => {
                let reset = match segment {
                    Segment::Rst | Segment::InexactRst => return,
                    Segment::Syn | Segment::WrongAck | Segment::NoAck => Sent::StrayReset,
                    _ => Sent::Reset,
                };
                self.send(client, reset);
            }
            State::HalfOpen(_) | State::Parked(_) => self.receive_for_request(client, segment),
            State::Queued | State::Accepted => {}
        }
        self.expire_all();
    }

    fn receive_unknown(&mut self, client: usize, segment: Segment) {
        match segment {
            // A plain listener drops it, too.
            Segment::Syn if self.is_full_for_newcomers() => {}
            Segment::Syn => {
                let timer = self.timer(0);
                let it = &mut self.clients[client];
                it.answered = None;
                it.has_syn_ack = true;
                it.state = State::HalfOpen(HalfOpen {
                    timer,
                    timeouts: 0,
                    acked: false,
                });
                self.send(client, Sent::SynAck);
            }
            Segment::Rst | Segment::InexactRst | Segment::NoAck => {}
            Segment::WrongAck => self.send(client, Sent::StrayReset),
            _ => self.send(client, Sent::Reset),
        }
    }

    fn receive_for_request(&mut self, client: usize, segment: Segment) {
        match segment {
            Segment::Syn => {
                if self.may_answer(client) {
                    self.send(client, Sent::SynAck);
                    if let State::HalfOpen(mut it) = self.clients[client].state {
                        it.timer = self.timer(it.timeouts);
                        self.clients[client].state = State::HalfOpen(it);
                    }
                }
            }
            Segment::Ack => self.acknowledge(client),
            Segment::Data | Segment::DataFin => self.receive_data(client, false),
            Segment::Fin if self.config.resets_on_close && !self.config.paused => {
                self.reset_closed(client);
            }
            Segment::Fin => self.receive_data(client, true),
            Segment::Rst => self.abort(client),
            Segment::SynInWindow => self.receive_syn_in_window(client),
            Segment::WrongAck => self.send(client, Sent::StrayReset),
            Segment::InexactRst | Segment::Probe | Segment::StraySyn => {
                if self.may_answer(client) {
                    self.send(client, Sent::Ack);
                }
            }
            Segment::ProbeWithByte | Segment::OldData => self.send(client, Sent::Ack),
            Segment::NoAck => {}
        }
    }

    /// Changes the settings, which apply at once, also to parked clients.
    pub fn configure(&mut self, config: Config) {
        self.config = config;
        self.expire_all();
    }

    /// Calls `accept()`; the accepted client is then the last of [`Seen::accepted`].
    pub fn accept(&mut self) {
        let waits = self.is_waiting_for_room();
        let Some(client) = self.queue.pop_front() else {
            return;
        };
        self.clients[client].state = State::Accepted;
        self.accepted.push(client);
        if waits && !self.is_full() {
            self.room_noticed_by = Some(self.over + ROOM_NOTICED_WITHIN);
        }
        self.expire_all();
    }

    /// Closes the listener: connections in the accept queue and parked clients are reset, all other
    /// requests are dropped.
    pub fn close(&mut self) {
        self.is_open = false;
        while let Some(client) = self.parked.pop_front() {
            self.send(client, Sent::Reset);
        }
        self.room_noticed_by = None;
        while let Some(client) = self.queue.pop_front() {
            self.send(client, Sent::Reset);
            self.clients[client].state = State::Gone;
        }
        for client in &mut self.clients {
            if client.state != State::Accepted {
                client.state = State::Gone;
            }
        }
    }

    /// Handles a bare ACK.
    fn acknowledge(&mut self, client: usize) {
        match self.clients[client].state {
            State::HalfOpen(HalfOpen { acked: true, .. }) => self.connect(client),
            State::HalfOpen(_) if self.config.paused => {
                self.counts.bypass_paused += 1;
                self.connect(client);
            }
            State::HalfOpen(_) => {
                let may_park = self.may_park_one_more();
                if !may_park && self.config.on_timeout == OnTimeout::Accept && self.is_full() {
                    // The oldest cannot be evicted.
                    self.counts.bypass_accept_queue_full += 1;
                    self.connect(client);
                    return;
                }
                self.clients[client].state = State::Parked(self.present());
                self.parked.push_back(client);
                if !may_park {
                    self.expire(Expiry::Eviction);
                }
            }
            _ => {}
        }
    }

    /// Handles data or a FIN. If the accept queue is full, only a parked client becomes connected.
    fn receive_data(&mut self, client: usize, is_fin: bool) {
        let parked_at = self.parked_at(client);
        let was_idle = parked_at.is_some_and(|at| self.was_idle(at) == Some(true));
        let was_full = self.is_full();
        if was_idle || !self.is_full_for_newcomers() {
            self.enqueue(client);
        } else if parked_at.is_none() {
            self.connect(client);
        } else {
            self.counts.overflow_dropped += 1;
            return;
        }
        if was_full && parked_at.is_some() {
            let most = self.queue.len() - self.backlog - 1;
            let began = self.now;
            let burst = self.burst.get_or_insert(Burst { began, most });
            burst.most = burst.most.max(most);
            self.counts.released_late += 1;
        }
        if parked_at.is_some() {
            self.parked.retain(|it| *it != client);
            if is_fin {
                self.counts.released_fin += 1;
            } else {
                self.counts.released_data += 1;
            }
        }
    }

    /// Handles a SYN inside of the window. A parked client becomes connected, so that the SYN gets
    /// a connection's answer; if the accept queue is full, it is dropped without a word.
    fn receive_syn_in_window(&mut self, client: usize) {
        if !matches!(self.clients[client].state, State::Parked(_)) {
            self.send(client, Sent::StrayReset);
            self.abort(client);
        } else if self.is_full() {
            self.abort(client);
        } else {
            self.connect(client);
            self.parked.retain(|it| *it != client);
            self.counts.fallback += 1;
        }
    }

    /// Resets a client that has closed its side without a byte.
    fn reset_closed(&mut self, client: usize) {
        if let State::Parked(_) = self.clients[client].state {
            self.parked.retain(|it| *it != client);
            self.counts.closed_reset += 1;
        } else {
            self.counts.closed_reset_unparked += 1;
        }
        self.clients[client].state = State::Gone;
        self.send(client, Sent::Reset);
    }

    /// Makes a connection of a request, if the accept queue has room.
    fn connect(&mut self, client: usize) {
        if !self.is_full() {
            self.enqueue(client);
        } else if let State::HalfOpen(it) = &mut self.clients[client].state {
            it.acked = true;
        }
    }

    /// Makes a connection of a request.
    fn enqueue(&mut self, client: usize) {
        self.clients[client].state = State::Queued;
        self.queue.push_back(client);
    }

    /// Handles the end of a request by the client.
    fn abort(&mut self, client: usize) {
        if let State::Parked(_) = self.clients[client].state {
            self.parked.retain(|it| *it != client);
            self.counts.aborted += 1;
        }
        self.clients[client].state = State::Gone;
    }

    /// Returns which client is evicted: the oldest of the source that has the most parked ones.
    fn victim(&self) -> Option<usize> {
        let source = |client: &usize| self.clients.get(*client).map(|client| client.source);
        let share = |client: &usize| {
            let same = |it: &&usize| source(it) == source(client);
            self.parked.iter().filter(same).count()
        };
        // The last one of those with the most, from the newest to the oldest.
        self.parked.iter().rev().copied().max_by_key(share)
    }

    /// Ends the parking of a client: the oldest one, if it is not evicted.
    fn expire(&mut self, expiry: Expiry) {
        let next = match expiry {
            Expiry::Eviction => self.victim(),
            Expiry::Deadline | Expiry::Pause => self.parked.front().copied(),
        };
        let Some(client) = next else {
            return;
        };
        self.parked.retain(|it| *it != client);
        let on_timeout = self.on_expiry(expiry);
        let count = match (expiry, on_timeout) {
            (Expiry::Pause, _) => &mut self.counts.released_paused,
            (Expiry::Eviction, _) => &mut self.counts.evicted,
            (Expiry::Deadline, OnTimeout::Accept) => &mut self.counts.timeout_accept,
            (Expiry::Deadline, OnTimeout::Reset) => &mut self.counts.timeout_reset,
            (Expiry::Deadline, OnTimeout::Drop) => &mut self.counts.timeout_drop,
        };
        *count += 1;
        self.clients[client].state = State::Gone;
        match on_timeout {
            OnTimeout::Accept => self.connect(client),
            OnTimeout::Reset => self.send(client, Sent::Reset),
            OnTimeout::Drop => {}
        }
    }

    /// Returns what happens to a client whose parking ends for this reason.
    fn on_expiry(&self, expiry: Expiry) -> OnTimeout {
        match expiry {
            Expiry::Pause => OnTimeout::Accept,
            Expiry::Deadline | Expiry::Eviction => self.config.on_timeout,
        }
    }

    /// Returns why one client, usually the oldest, may not stay parked; `None` if all may.
    fn expired(&self) -> Option<Expiry> {
        let &oldest = self.parked.front()?;
        if self.config.paused {
            Some(Expiry::Pause)
        } else if self.deadline(oldest).is_some_and(|it| it.to <= self.now) {
            Some(Expiry::Deadline)
        } else {
            let most = self.max_parked();
            most.is_some_and(|most| self.parked.len() > most)
                .then_some(Expiry::Eviction)
        }
    }

    /// Returns whether the oldest is to be accepted, but the accept queue is full.
    fn is_waiting_for_room(&self) -> bool {
        let accepts = |expiry| self.on_expiry(expiry) == OnTimeout::Accept;
        self.is_full() && self.expired().is_some_and(accepts)
    }

    /// Expires or evicts all clients that are to be.
    fn expire_all(&mut self) {
        while self.is_open && self.room_noticed_by.is_none() && !self.is_waiting_for_room() {
            let Some(expiry) = self.expired() else {
                return;
            };
            self.expire(expiry);
        }
    }

    /// Runs TCP's own timers, which retransmit SYN-ACKs that were not acknowledged.
    fn fire_timers(&mut self) {
        for client in &mut self.clients {
            if let State::HalfOpen(it) = &mut client.state {
                if it.timer.to <= self.now {
                    it.timeouts += 1;
                    it.timer = it.timer.after(SYN_ACK_TIMEOUT << it.timeouts);
                    it.timer.to += self.timers_late;
                    client.sent.push(Sent::SynAck);
                }
            }
        }
    }

    /// Returns when a SYN-ACK that is sent now is retransmitted.
    fn timer(&self, timeouts: u32) -> Window {
        let mut timer = self.present().after(SYN_ACK_TIMEOUT << timeouts);
        timer.to += self.timers_late;
        timer
    }

    /// Returns the present time, as exactly as it is known.
    fn present(&self) -> Window {
        Window {
            from: self.now,
            to: self.over,
        }
    }

    /// Returns whether a repeated segment is answered, and notes the answer.
    fn may_answer(&mut self, client: usize) -> bool {
        let present = self.present();
        let answered = &mut self.clients[client].answered;
        let may = answered.is_none_or(|it| present.from >= it.to + ANSWER_INTERVAL);
        if may {
            *answered = Some(present);
        }
        may
    }

    fn send(&mut self, client: usize, sent: Sent) {
        self.clients[client].sent.push(sent);
    }

    fn parked_at(&self, client: usize) -> Option<Window> {
        match self.clients[client].state {
            State::Parked(at) => Some(at),
            _ => None,
        }
    }

    /// Returns the deadlines of the parked clients that have not expired.
    fn deadlines(&self) -> impl Iterator<Item = Window> + '_ {
        let deadlines = self.parked.iter();
        let deadlines = deadlines.filter_map(|&client| self.deadline(client));
        deadlines.filter(|deadline| deadline.to > self.now)
    }

    fn deadline(&self, client: usize) -> Option<Window> {
        let timeout = self.config.timeout.filter(|_| !self.config.paused)?;
        Some(self.parked_at(client)?.after(timeout))
    }

    fn max_parked(&self) -> Option<usize> {
        (self.config.max_parked > 0).then_some(self.config.max_parked as usize)
    }

    fn may_park_one_more(&self) -> bool {
        self.max_parked()
            .is_none_or(|most| self.parked.len() < most)
    }

    /// Returns whether the accept queue is full. As in the kernel, a backlog of one has room for
    /// two.
    fn is_full(&self) -> bool {
        self.queue.len() > self.backlog
    }

    /// Returns whether a client that was parked at this time may join a full accept queue as one
    /// that was idle; `None` if that is not clear.
    fn was_idle(&self, at: Window) -> Option<bool> {
        match self.burst {
            Some(burst) if at.to < burst.began => Some(true),
            // It is not for a second.
            Some(_) => (self.over < at.from + IDLE).then_some(false),
            None if self.now >= at.to + IDLE => Some(true),
            None => (self.over < at.from + NOT_IDLE).then_some(false),
        }
    }

    /// Returns whether the accept queue is full for clients that are not parked.
    fn is_full_for_newcomers(&self) -> bool {
        self.queue.len() > self.backlog + self.burst.map_or(0, |burst| burst.most)
    }
}
