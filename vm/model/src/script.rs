// SPDX-License-Identifier: MIT OR Apache-2.0

//! A time for each move of a history, and what is to be seen before and after it.
//!
//! The [`Director`] says what is next, and is told when it was done: on a machine that is busy that may be later than
//! it should, and the rest follows. A [`Script`] is what becomes of a history where nothing is ever late.

use std::collections::VecDeque;
use std::fmt;

use crate::history::{self, History, Move, CLIENTS};
use crate::server::{Millis, Seen, Segment, Server, Terms};

/// How exactly a machine does something at a time.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The unit of the times in a [`History`].
    pub unit: Millis,
    /// So far a move keeps away from whatever happens by itself.
    pub guard: Millis,
    /// So late the kernel's own timers may be.
    pub timers_late: Millis,
}

/// After this time nothing more is begun,
const LONGEST: Millis = 4_500;
/// and after this time all must be over: later on, the kernel gives up those who are half open.
const LAST: Millis = 6_500;

/// What is done to the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// This client sends a segment.
    Send(usize, Segment),
    /// The server asks for these settings.
    Configure(Terms),
    /// The server calls `accept()`.
    Accept,
    /// The server closes the listener.
    Close,
    /// Nothing.
    Look,
}

/// What is next.
#[derive(Clone, Debug)]
pub enum Cue {
    /// Nothing before that time.
    Wait(Millis),
    /// This, now, and this is to be seen before.
    Act(Action, Box<Seen>),
    /// That was all.
    Over,
}

/// It took so long that it cannot be told what is to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLate;

/// A move of the director's.
#[derive(Clone, Copy, Debug)]
enum Item {
    Pause(Millis),
    Do(Action),
}

/// Puts a history on the stage.
#[derive(Clone, Debug)]
pub struct Director {
    pace: Pace,
    server: Server,
    items: VecDeque<Item>,
    not_before: Millis,
    /// How often the next item has been put off.
    postponed: u32,
    /// What is in the queue now is the end.
    is_ending: bool,
}

impl Director {
    /// At time 0, when the listener is new.
    pub fn new(history: &History, pace: Pace) -> Self {
        let items = history.moves.iter().flat_map(|movement| match *movement {
            Move::Send(client, segment) => vec![Item::Do(Action::Send(client, segment))],
            Move::Open(client) => vec![
                Item::Do(Action::Send(client, Segment::Syn)),
                Item::Do(Action::Send(client, Segment::Ack)),
            ],
            Move::Wait(quarters) => vec![Item::Pause(Millis::from(quarters) * pace.unit / 4)],
            Move::Configure(terms) => vec![Item::Do(Action::Configure(in_millis(terms, pace)))],
            Move::Accept => vec![Item::Do(Action::Accept)],
            Move::Close => vec![Item::Do(Action::Close)],
        });
        let terms = in_millis(history.terms, pace);
        Self {
            pace,
            server: Server::new(terms, history.backlog, CLIENTS, pace.timers_late),
            items: items.collect(),
            not_before: 0,
            postponed: 0,
            is_ending: false,
        }
    }

    /// What is next at a time, which is not before that of the last call.
    ///
    /// What cannot happen is left out, and what has no clear outcome now is put off.
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
                // In the end everybody is accepted, and there is one more look.
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

    /// The action has been done, in this time; what is to be seen then, until [`Self::next_by_itself`].
    pub fn done(&mut self, from: Millis, to: Millis) -> Result<Seen, TooLate> {
        if self.next_by_itself().is_some_and(|next| next <= to) {
            return Err(TooLate);
        }
        self.server.begin(from, to);
        match self.items.front() {
            Some(Item::Do(Action::Send(client, segment))) => self.server.receive(*client, *segment),
            Some(Item::Do(Action::Configure(terms))) => self.server.configure(*terms),
            Some(Item::Do(Action::Accept)) => self.server.accept(),
            Some(Item::Do(Action::Close)) => self.server.close(),
            Some(Item::Do(Action::Look) | Item::Pause(_)) | None => {}
        }
        self.drop_item();
        Ok(self.server.seen())
    }

    /// When something happens by itself, at the earliest.
    pub fn next_by_itself(&self) -> Option<Millis> {
        self.server.next_by_itself()
    }

    fn drop_item(&mut self) {
        self.items.pop_front();
        self.postponed = 0;
    }

    /// Whether it makes sense now.
    fn may_happen(&self, action: Action) -> bool {
        match action {
            Action::Send(client, segment) => self.server.may_send(client, segment),
            Action::Configure(_) | Action::Accept | Action::Close => self.server.is_open(),
            Action::Look => true,
        }
    }

    /// Until when the outcome is unclear, if it is.
    fn unclear_until(&self, action: Action) -> Option<Millis> {
        let (server, guard) = (&self.server, self.pace.guard);
        match action {
            Action::Send(client, segment) => server.unclear_answer(client, segment, guard),
            Action::Configure(terms) => server.unclear_configure(terms, guard),
            Action::Accept => server.unclear_accept(guard),
            Action::Close | Action::Look => None,
        }
    }

    /// The first time from then on that is far enough from all that happens by itself.
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
                // What happens before then may have something else happen.
                (None, Some(first)) => server.advance(first),
                (None, None) => return at,
            }
        }
    }
}

/// One action, and what is to be seen.
#[derive(Clone, Debug)]
pub struct Step {
    /// When it is done.
    pub at: Millis,
    /// What is done.
    pub action: Action,
    /// What is to be seen at that time, just before.
    pub before: Seen,
    /// What is to be seen just after, and until something happens by itself: not within the guard.
    pub after: Seen,
}

/// A history played on time.
#[derive(Clone, Debug)]
pub struct Script {
    /// The listener's backlog.
    pub backlog: usize,
    /// Its settings in the beginning.
    pub terms: Terms,
    /// What happens, one after the other; what happens by itself is the difference between one's `after` and the next
    /// one's `before`.
    pub steps: Vec<Step>,
}

impl Script {
    /// What becomes of a history if each action takes so long.
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
                        terms: in_millis(history.terms, pace),
                        steps,
                    });
                }
            }
        }
    }
}

/// Settings as the server takes them.
pub fn in_millis(terms: history::Terms, pace: Pace) -> Terms {
    let history::Terms {
        timeout,
        max_parked,
        on_timeout,
    } = terms;
    Terms {
        timeout: (timeout > 0).then_some(Millis::from(timeout) * pace.unit),
        max_parked,
        on_timeout,
    }
}

impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.timeout {
            Some(timeout) => write!(f, "{timeout} ms")?,
            None => f.write_str("no deadline")?,
        }
        match self.max_parked {
            0 => f.write_str(", room for all")?,
            most => write!(f, ", room for {most}")?,
        }
        write!(f, ", then {:?}", self.on_timeout)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send(client, segment) => write!(f, "client {client} sends {segment:?}"),
            Self::Configure(terms) => write!(f, "the server asks for {terms}"),
            Self::Accept => f.write_str("the server accepts"),
            Self::Close => f.write_str("the server closes the listener"),
            Self::Look => f.write_str("the end"),
        }
    }
}

impl fmt::Display for Script {
    /// One line for the beginning, and one for each step.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backlog {}; {}", self.backlog, self.terms)?;
        self.steps
            .iter()
            .try_for_each(|step| write!(f, "\n{:5} ms  {}", step.at, step.action))
    }
}
