// SPDX-License-Identifier: MIT OR Apache-2.0

//! A time for each move of a history, and the expected state before and after it.
//!
//! The [`Director`] returns the next action, and takes the time at which it was done: on a busy
//! machine that may be later than planned, and all later times follow. A [`Script`] is a history
//! run without any lateness.

use std::collections::VecDeque;
use std::fmt;

use crate::history::{History, Move};
use crate::server::{Config, Millis, Seen, Segment, Server};

/// How exactly a machine keeps times.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The unit of the times in a [`History`].
    pub unit: Millis,
    /// The minimum distance of a move from any event of the server's own.
    pub guard: Millis,
    /// How late the kernel's own timers may be.
    pub timers_late: Millis,
}

/// After this time no further move begins.
const LONGEST: Millis = 4_500;
/// At this time a script must be over: later on, the kernel drops half-open requests.
const LAST: Millis = 6_500;

/// An action of a client or the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// This client sends a segment.
    Send(usize, Segment),
    /// The server changes its settings to these.
    Configure(Config),
    /// The server calls `accept()`.
    Accept,
    /// The server closes the listener.
    Close,
    /// Nothing: only the state is compared.
    Look,
}

/// What to do next.
#[derive(Clone, Debug)]
pub enum Cue {
    /// Nothing before this time.
    Wait(Millis),
    /// This action, now, with the expected state before it.
    Act(Action, Box<Seen>),
    /// Nothing: the history is over.
    Over,
}

/// An action took so long that its outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLate;

/// An entry of the director's queue.
#[derive(Clone, Copy, Debug)]
enum Item {
    Pause(Millis),
    Do(Action),
}

/// Runs a history: finds a time for each action, and predicts its outcome.
#[derive(Clone, Debug)]
pub struct Director {
    pace: Pace,
    server: Server,
    items: VecDeque<Item>,
    not_before: Millis,
    /// How often the next item has been postponed.
    postponed: u32,
    /// Whether the queue has the items of the end only.
    is_ending: bool,
}

impl Director {
    /// Begins at time 0, with a new listener.
    pub fn new(history: &History, pace: Pace) -> Self {
        let items = history.moves.iter().flat_map(|movement| match *movement {
            Move::Send(client, segment) => vec![Item::Do(Action::Send(client, segment))],
            Move::Open(client) => vec![
                Item::Do(Action::Send(client, Segment::Syn)),
                Item::Do(Action::Send(client, Segment::Ack)),
            ],
            Move::Wait(quarters) => vec![Item::Pause(Millis::from(quarters) * pace.unit / 4)],
            Move::Configure(config) => vec![Item::Do(Action::Configure(in_millis(config, pace)))],
            Move::Accept => vec![Item::Do(Action::Accept)],
            Move::Close => vec![Item::Do(Action::Close)],
        });
        let config = in_millis(history.config, pace);
        Self {
            pace,
            server: Server::new(config, history.backlog, &history.sources, pace.timers_late),
            items: items.collect(),
            not_before: 0,
            postponed: 0,
            is_ending: false,
        }
    }

    /// Returns what to do next; `now` is not before that of the last call.
    ///
    /// Leaves out actions that are not possible, and postpones those whose outcome is unclear now.
    pub fn next(&mut self, now: Millis) -> Result<Cue, TooLate> {
        const MAX_POSTPONED: u32 = 20;
        if now > LAST {
            return Err(TooLate);
        }
        if now > LONGEST && !self.is_ending {
            self.items.clear();
        }
        loop {
            let clear = self.clear_from(now.max(self.not_before));
            if clear > now {
                return Ok(Cue::Wait(clear));
            }
            self.server.advance(now);
            let action = match self.items.front().copied() {
                Some(Item::Do(action)) => action,
                Some(Item::Pause(time)) => {
                    self.not_before = now + time;
                    self.drop_item();
                    continue;
                }
                // At the end all connections are accepted, and the state is compared once more.
                None if self.server.is_open() && self.server.has_queued() => {
                    self.items.push_back(Item::Do(Action::Accept));
                    continue;
                }
                None if !self.is_ending => {
                    self.is_ending = true;
                    self.items.push_back(Item::Pause(2 * self.pace.guard));
                    self.items.push_back(Item::Do(Action::Look));
                    continue;
                }
                None => return Ok(Cue::Over),
            };
            match self.unclear_until(action) {
                _ if !self.may_happen(action) => self.drop_item(),
                None => return Ok(Cue::Act(action, Box::new(self.server.seen()))),
                Some(_) if self.postponed == MAX_POSTPONED => self.drop_item(),
                Some(later) => {
                    self.postponed += 1;
                    self.not_before = later;
                }
            }
        }
    }

    /// Notes that the action was done between these times; returns the expected state after it,
    /// which lasts until [`Self::next_by_itself`].
    pub fn done(&mut self, from: Millis, to: Millis) -> Result<Seen, TooLate> {
        if self.next_by_itself().is_some_and(|next| next <= to) {
            return Err(TooLate);
        }
        self.server.begin(from, to);
        match self.items.front() {
            Some(Item::Do(Action::Send(client, segment))) => self.server.receive(*client, *segment),
            Some(Item::Do(Action::Configure(config))) => self.server.configure(*config),
            Some(Item::Do(Action::Accept)) => self.server.accept(),
            Some(Item::Do(Action::Close)) => self.server.close(),
            Some(Item::Do(Action::Look) | Item::Pause(_)) | None => {}
        }
        self.drop_item();
        Ok(self.server.seen())
    }

    /// Returns the earliest time of an event of the server's own.
    pub fn next_by_itself(&self) -> Option<Millis> {
        self.server.next_by_itself()
    }

    fn drop_item(&mut self) {
        self.items.pop_front();
        self.postponed = 0;
    }

    /// Returns whether the action is possible now.
    fn may_happen(&self, action: Action) -> bool {
        match action {
            Action::Send(client, segment) => self.server.may_send(client, segment),
            Action::Configure(_) | Action::Accept | Action::Close => self.server.is_open(),
            Action::Look => true,
        }
    }

    /// Returns until when the action's outcome is unclear, if it is.
    fn unclear_until(&self, action: Action) -> Option<Millis> {
        let (server, guard) = (&self.server, self.pace.guard);
        match action {
            Action::Send(client, segment) => server.unclear_answer(client, segment, guard),
            Action::Configure(config) => server.unclear_configure(config, guard),
            Action::Accept => server.unclear_accept(guard),
            Action::Close | Action::Look => None,
        }
    }

    /// Returns the first time from `at` on that is far enough from all events of the server's own.
    fn clear_from(&self, mut at: Millis) -> Millis {
        let guard = self.pace.guard;
        let mut server = self.server.clone();
        loop {
            let windows = server.windows();
            let conflict = windows
                .iter()
                .filter(|window| window.is_unclear(at, guard))
                .map(|window| window.to + guard)
                .max();
            let first = windows.iter().map(|window| window.to).min();
            match (conflict, first.filter(|to| *to <= at)) {
                (Some(later), _) => at = later,
                // An event before `at` may cause another one.
                (None, Some(first)) => server.advance(first),
                (None, None) => return at,
            }
        }
    }
}

/// One action, and the expected states.
#[derive(Clone, Debug)]
pub struct Step {
    /// When it is done.
    pub at: Millis,
    /// What is done.
    pub action: Action,
    /// The expected state just before.
    pub before: Seen,
    /// The expected state just after, until an event of the server's own: not within the guard.
    pub after: Seen,
}

/// A history run without lateness.
#[derive(Clone, Debug)]
pub struct Script {
    /// The listener's backlog.
    pub backlog: usize,
    /// Its first settings.
    pub config: Config,
    /// The steps in order; events of the server's own are the difference between one's `after` and
    /// the next one's `before`.
    pub steps: Vec<Step>,
}

impl Script {
    /// Runs a history in which each action takes `step`.
    pub fn of(history: &History, pace: Pace, step: Millis) -> Result<Self, TooLate> {
        let mut director = Director::new(history, pace);
        let mut steps = Vec::new();
        let mut now = 0;
        loop {
            match director.next(now)? {
                Cue::Wait(until) => now = until,
                Cue::Act(action, before) => {
                    let (at, over) = (now, now + step);
                    let after = director.done(at, over)?;
                    steps.push(Step {
                        at,
                        action,
                        before: *before,
                        after,
                    });
                    now = over;
                }
                Cue::Over => {
                    return Ok(Self {
                        backlog: history.backlog,
                        config: in_millis(history.config, pace),
                        steps,
                    });
                }
            }
        }
    }
}

/// Converts settings of a history to those of a server, with times in milliseconds.
pub fn in_millis(config: Config, pace: Pace) -> Config {
    Config {
        timeout: config.timeout.map(|units| units * pace.unit),
        ..config
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.timeout {
            Some(timeout) => write!(f, "{timeout} ms")?,
            None => f.write_str("no deadline")?,
        }
        match self.max_parked {
            0 => f.write_str(", any number parked")?,
            most => write!(f, ", at most {most} parked")?,
        }
        write!(f, ", then {:?}", self.on_timeout)?;
        f.write_str(if self.paused { ", paused" } else { "" })?;
        f.write_str(match self.resets_on_close {
            true => ", resets at a FIN",
            false => "",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send(client, segment) => write!(f, "client {client} sends {segment:?}"),
            Self::Configure(config) => write!(f, "the server sets {config}"),
            Self::Accept => f.write_str("the server accepts"),
            Self::Close => f.write_str("the server closes the listener"),
            Self::Look => f.write_str("the end"),
        }
    }
}

impl fmt::Display for Script {
    /// Writes one line for the first settings, and one for each step.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backlog {}; {}", self.backlog, self.config)?;
        self.steps
            .iter()
            .try_for_each(|step| write!(f, "\n{:5} ms  {}", step.at, step.action))
    }
}
