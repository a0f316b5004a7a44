// SPDX-License-Identifier: MIT OR Apache-2.0

//! One listener and its clients: what has to become of each, and when.

use std::collections::VecDeque;
use std::fmt;

/// A point in time, or a span of it.
pub type Millis = u64;

/// How soon a connection that is due is made once there is room in the accept queue, at the latest. (README: "waits past
/// its deadline until there is room"; the module looks so often.)
pub const ROOM_NOTICED_WITHIN: Millis = 50;

/// After this time without an ACK a SYN-ACK is sent again, and then after twice as long.
const SYN_ACK_TIMEOUT: Millis = 1000;

/// How long the kernel says no more to a client that is half open and repeats itself
/// (`net.ipv4.tcp_invalid_ratelimit`).
const ANSWER_INTERVAL: Millis = 500;

/// By so much it may be earlier or later: the kernel counts its clock's ticks, which stand still while a busy machine does,
/// and are made up for.
const TICKS_ERROR: Millis = 300;

/// What becomes of a client that is silent until its deadline, or that makes room for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTimeout {
    /// The server accepts it.
    Accept,
    /// It gets an RST.
    Reset,
    /// It is forgotten.
    Drop,
}

/// A listener's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long a silent client is held back; for ever, if there is nothing.
    pub timeout: Option<Millis>,
    /// How many are held back at most; 0 for more than there ever are.
    pub max_parked: u32,
    /// What becomes of the rest.
    pub on_timeout: OnTimeout,
}

/// What a client sends. All numbers are those of its first byte, but where it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Its SYN: the first one, or the same again.
    Syn,
    /// The third segment of a handshake, bare; or the same again.
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
    /// Data that lies far behind.
    OldData,
    /// An ACK of something that was never sent.
    WrongAck,
    /// A SYN inside of the window.
    SynInWindow,
    /// A SYN far outside of the window.
    StraySyn,
    /// A few bytes without an ACK.
    NoAck,
}

/// What the server sends to a client that is not connected yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Its answer to a SYN.
    SynAck,
    /// An ACK of all that is in order, which is the SYN.
    Ack,
    /// A reset that the client believes: at the byte that it expects next.
    Reset,
    /// A reset with the numbers of what it answers.
    StrayReset,
}

/// What a listener has counted (`struct accf_stats`); what is not here stays zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Counts {
    pub parked: u64,
    /// Without the parked ones, of which a few may be among those that the kernel counts.
    pub half_open: u64,
    pub half_open_young: u64,
    pub released_data: u64,
    pub released_fin: u64,
    pub timeout_accept: u64,
    pub timeout_reset: u64,
    pub timeout_drop: u64,
    pub evicted: u64,
    pub aborted: u64,
    pub bypass_accept_queue_full: u64,
}

impl Counts {
    /// How many were ever parked.
    pub fn parked_total(&self) -> u64 {
        self.parked
            + self.released_data
            + self.released_fin
            + self.timeout_accept
            + self.timeout_reset
            + self.timeout_drop
            + self.evicted
            + self.aborted
    }
}

impl fmt::Display for Counts {
    /// Those that are not zero.
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
            ("bypass_accept_queue_full", self.bypass_accept_queue_full),
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

/// Something that happens by itself, at a time that is known as well as this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Not before.
    pub from: Millis,
    /// Not after.
    pub to: Millis,
}

impl Window {
    /// The same, that much later.
    fn after(self, time: Millis) -> Self {
        Self {
            from: self.from + time,
            to: self.to + time,
        }
    }

    /// Whether it cannot be told, at `now`, which comes first; nor within `guard` before and after that.
    pub(crate) fn is_unclear(self, now: Millis, guard: Millis) -> bool {
        now + guard > self.from && now < self.to + guard
    }
}

/// Where a client stands, as the server knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody knows it.
    Gone,
    /// Its SYN was answered.
    HalfOpen {
        /// When the SYN-ACK is sent again.
        timer: Window,
        /// How often it was.
        timeouts: u32,
        /// It should have been connected, but there was no room: the filter has no say any more.
        acked: bool,
    },
    /// Held back since then.
    Parked(Window),
    /// Connected, and not accepted yet.
    Queued,
    /// Connected and accepted.
    Accepted,
}

#[derive(Clone, Debug)]
struct Client {
    state: State,
    /// When it was last told what it is told only so often.
    answered: Option<Window>,
    /// It has had a SYN-ACK, and so knows the server's numbers.
    has_syn_ack: bool,
    sent: Vec<Sent>,
}

/// All that is to be seen from outside, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The listener's counters; nothing, once it is closed.
    pub counts: Option<Counts>,
    /// How many connections wait in the accept queue.
    pub queued: usize,
    /// The clients whose connections were accepted, in that order.
    pub accepted: Vec<usize>,
    /// What each client has been sent. For one that is connected, what it is sent as such is left out.
    pub sent: Vec<Vec<Sent>>,
    /// Whether each client is connected.
    pub connected: Vec<bool>,
    /// Whether each client is half open: its ACK has not come, or there was no room for it.
    pub half_open: Vec<bool>,
}

/// The listener.
#[derive(Clone, Debug)]
pub struct Server {
    now: Millis,
    /// What is done now is over by then.
    over: Millis,
    terms: Terms,
    backlog: usize,
    is_open: bool,
    /// How late the kernel's own timers may be.
    timers_late: Millis,
    clients: Vec<Client>,
    /// Who is parked, the oldest first.
    parked: VecDeque<usize>,
    queue: VecDeque<usize>,
    accepted: Vec<usize>,
    /// There is room again for who is due, which is seen by then.
    room_noticed_by: Option<Millis>,
    counts: Counts,
}

impl Server {
    /// A listener that nobody has talked to, at time 0.
    pub fn new(terms: Terms, backlog: usize, clients: usize, timers_late: Millis) -> Self {
        let client = Client {
            state: State::Gone,
            answered: None,
            has_syn_ack: false,
            sent: Vec::new(),
        };
        Self {
            now: 0,
            over: 0,
            terms,
            backlog,
            is_open: true,
            timers_late,
            clients: vec![client; clients],
            parked: VecDeque::new(),
            queue: VecDeque::new(),
            accepted: Vec::new(),
            room_noticed_by: None,
            counts: Counts::default(),
        }
    }

    /// What time it is.
    pub fn now(&self) -> Millis {
        self.now
    }

    /// Whether it listens.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether connections wait to be accepted.
    pub fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    /// What is to be seen now.
    pub fn seen(&self) -> Seen {
        let mut counts = self.counts;
        counts.parked = self.parked.len() as u64;
        for client in &self.clients {
            if let State::HalfOpen { timeouts, .. } = client.state {
                counts.half_open += 1;
                counts.half_open_young += u64::from(timeouts == 0);
            }
        }
        let is_connected =
            |client: &Client| matches!(client.state, State::Queued | State::Accepted);
        let is_half_open = |client: &Client| matches!(client.state, State::HalfOpen { .. });
        Seen {
            counts: self.is_open.then_some(counts),
            queued: self.queue.len(),
            accepted: self.accepted.clone(),
            sent: self.clients.iter().map(|it| it.sent.clone()).collect(),
            connected: self.clients.iter().map(is_connected).collect(),
            half_open: self.clients.iter().map(is_half_open).collect(),
        }
    }

    /// Whether it makes sense for a client to send this now; what is left out is said of connections, not of the filter,
    /// or has too many outcomes.
    pub fn may_send(&self, client: usize, segment: Segment) -> bool {
        let client = &self.clients[client];
        match client.state {
            State::Queued | State::Accepted => false,
            State::Gone if segment == Segment::Syn => {
                // More half-open clients than that, and the kernel answers with cookies. It counts a parked one or another.
                let half_open = self.seen().counts.map_or(0, |counts| counts.half_open) as usize;
                let spare = self.parked.len().min(self.backlog / 8);
                half_open + spare <= self.backlog
            }
            State::Gone => {
                let is_syn = matches!(segment, Segment::SynInWindow | Segment::StraySyn);
                client.has_syn_ack && !is_syn
            }
            State::HalfOpen { .. } | State::Parked(_) => true,
        }
    }

    /// What happens by itself from now on.
    pub fn windows(&self) -> Vec<Window> {
        let mut windows = Vec::new();
        if !self.is_open {
            return windows;
        }
        windows.extend(self.room_noticed_by.map(|to| Window { from: self.now, to }));
        let deadlines = self
            .parked
            .iter()
            .filter_map(|&client| self.deadline(client));
        windows.extend(deadlines.filter(|deadline| deadline.to > self.now));
        for client in &self.clients {
            if let State::HalfOpen { timer, .. } = client.state {
                windows.push(timer);
            }
        }
        windows
    }

    /// When a segment of a client would be answered or not, depending on a moment: nothing, if that is clear.
    ///
    /// The time given is when it becomes clear.
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

    /// The same for new settings: somebody's deadline would be right now.
    pub fn unclear_configure(&self, terms: Terms, guard: Millis) -> Option<Millis> {
        let timeout = terms.timeout?;
        self.parked
            .iter()
            .filter_map(|&client| self.parked_at(client))
            .map(|at| at.after(timeout))
            .find(|deadline| deadline.is_unclear(self.now, guard))
            .map(|deadline| deadline.to + guard)
    }

    /// The same for `accept()`, which may let somebody in who waits for room: somebody else's deadline would be at the same
    /// time.
    pub fn unclear_accept(&self, guard: Millis) -> Option<Millis> {
        if !self.is_waiting_for_room() {
            return None;
        }
        let deadlines = self
            .parked
            .iter()
            .filter_map(|&client| self.deadline(client));
        deadlines
            .filter(|at| at.to > self.now && at.from < self.now + ROOM_NOTICED_WITHIN + 2 * guard)
            .map(|at| at.to + guard)
            .max()
    }

    /// What happens by itself and is not over.
    pub fn next_by_itself(&self) -> Option<Millis> {
        self.windows().into_iter().map(|window| window.from).min()
    }

    /// Lets time pass; what is done then is done at some time from then to `over`.
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

    /// A client's segment comes in.
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
            State::HalfOpen { .. } | State::Parked(_) => self.receive_for_request(client, segment),
            State::Queued | State::Accepted => {}
        }
        self.expire_all();
    }

    fn receive_unknown(&mut self, client: usize, segment: Segment) {
        match segment {
            // A plain listener has no time for it either.
            Segment::Syn if self.is_full() => {}
            Segment::Syn => {
                let timer = self.timer(0);
                let it = &mut self.clients[client];
                it.answered = None;
                it.has_syn_ack = true;
                it.state = State::HalfOpen {
                    timer,
                    timeouts: 0,
                    acked: false,
                };
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
                    if let State::HalfOpen {
                        timeouts, acked, ..
                    } = self.clients[client].state
                    {
                        self.clients[client].state = State::HalfOpen {
                            timer: self.timer(timeouts),
                            timeouts,
                            acked,
                        };
                    }
                }
            }
            Segment::Ack => self.acknowledge(client),
            Segment::Data | Segment::DataFin => self.receive_data(client, false),
            Segment::Fin => self.receive_data(client, true),
            Segment::Rst => self.abort(client),
            Segment::SynInWindow => {
                self.send(client, Sent::StrayReset);
                self.abort(client);
            }
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

    /// The server asks for other settings, which hold at once, also for who is parked.
    pub fn configure(&mut self, terms: Terms) {
        self.terms = terms;
        self.expire_all();
    }

    /// The server calls `accept()`; whom it gets is the last of [`Seen::accepted`] then.
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

    /// The server closes the listener: who waits in the accept queue is reset, everybody else forgotten.
    pub fn close(&mut self) {
        self.is_open = false;
        self.parked.clear();
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

    /// A bare ACK.
    fn acknowledge(&mut self, client: usize) {
        match self.clients[client].state {
            State::HalfOpen { acked: true, .. } => self.connect(client),
            State::HalfOpen { .. } => {
                let may_park = self.may_park_one_more();
                if !may_park && self.terms.on_timeout == OnTimeout::Accept && self.is_full() {
                    // Nobody can make room.
                    self.counts.bypass_accept_queue_full += 1;
                    self.connect(client);
                    return;
                }
                self.clients[client].state = State::Parked(self.present());
                self.parked.push_back(client);
                if !may_park {
                    self.expire(true);
                }
            }
            _ => {}
        }
    }

    /// Something for the server to read. If there is no room for the connection, it is as if it had not come.
    fn receive_data(&mut self, client: usize, is_fin: bool) {
        let was_parked = matches!(self.clients[client].state, State::Parked(_));
        self.connect(client);
        if was_parked && self.clients[client].state == State::Queued {
            self.parked.retain(|it| *it != client);
            if is_fin {
                self.counts.released_fin += 1;
            } else {
                self.counts.released_data += 1;
            }
        }
    }

    /// Makes a connection of a request, if there is room.
    fn connect(&mut self, client: usize) {
        if !self.is_full() {
            self.clients[client].state = State::Queued;
            self.queue.push_back(client);
        } else if let State::HalfOpen { acked, .. } = &mut self.clients[client].state {
            *acked = true;
        }
    }

    /// The client has gone.
    fn abort(&mut self, client: usize) {
        if let State::Parked(_) = self.clients[client].state {
            self.parked.retain(|it| *it != client);
            self.counts.aborted += 1;
        }
        self.clients[client].state = State::Gone;
    }

    /// Does to the oldest what the listener wants done.
    fn expire(&mut self, is_eviction: bool) {
        let Some(client) = self.parked.pop_front() else {
            return;
        };
        let count = match self.terms.on_timeout {
            _ if is_eviction => &mut self.counts.evicted,
            OnTimeout::Accept => &mut self.counts.timeout_accept,
            OnTimeout::Reset => &mut self.counts.timeout_reset,
            OnTimeout::Drop => &mut self.counts.timeout_drop,
        };
        *count += 1;
        self.clients[client].state = State::Gone;
        match self.terms.on_timeout {
            OnTimeout::Accept => self.connect(client),
            OnTimeout::Reset => self.send(client, Sent::Reset),
            OnTimeout::Drop => {}
        }
    }

    /// Whether the oldest's time is up; and if it is, whether that is to make room.
    fn expired(&self) -> Option<bool> {
        let &oldest = self.parked.front()?;
        if self.deadline(oldest).is_some_and(|it| it.to <= self.now) {
            Some(false)
        } else {
            let most = self.max_parked();
            most.is_some_and(|most| self.parked.len() > most)
                .then_some(true)
        }
    }

    /// Whether somebody's time is up, but there is no room in the accept queue.
    fn is_waiting_for_room(&self) -> bool {
        self.terms.on_timeout == OnTimeout::Accept && self.is_full() && self.expired().is_some()
    }

    /// What is due happens.
    fn expire_all(&mut self) {
        while self.is_open && self.room_noticed_by.is_none() && !self.is_waiting_for_room() {
            let Some(is_eviction) = self.expired() else {
                return;
            };
            self.expire(is_eviction);
        }
    }

    /// The kernel's own timers: SYN-ACKs are sent again to who has not acknowledged one.
    fn fire_timers(&mut self) {
        for client in 0..self.clients.len() {
            let State::HalfOpen {
                timer,
                timeouts,
                acked,
            } = self.clients[client].state
            else {
                continue;
            };
            if timer.to > self.now {
                continue;
            }
            let pause = SYN_ACK_TIMEOUT << (timeouts + 1);
            self.send(client, Sent::SynAck);
            self.clients[client].state = State::HalfOpen {
                timer: Window {
                    from: timer.from + pause,
                    to: timer.to + pause + self.timers_late,
                },
                timeouts: timeouts + 1,
                acked,
            };
        }
    }

    /// When the SYN-ACK is sent again that is sent now.
    fn timer(&self, timeouts: u32) -> Window {
        let mut timer = self.present().after(SYN_ACK_TIMEOUT << timeouts);
        timer.to += self.timers_late;
        timer
    }

    /// Now, as far as that is known.
    fn present(&self) -> Window {
        Window {
            from: self.now,
            to: self.over,
        }
    }

    /// Whether a client that repeats itself is answered; it is noted that it is.
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

    fn deadline(&self, client: usize) -> Option<Window> {
        Some(self.parked_at(client)?.after(self.terms.timeout?))
    }

    fn max_parked(&self) -> Option<usize> {
        (self.terms.max_parked > 0).then_some(self.terms.max_parked as usize)
    }

    fn may_park_one_more(&self) -> bool {
        self.max_parked()
            .is_none_or(|most| self.parked.len() < most)
    }

    /// Whether a connection that is made now is refused: a backlog of one is room for two.
    fn is_full(&self) -> bool {
        self.queue.len() > self.backlog
    }
}
