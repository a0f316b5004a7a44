// SPDX-License-Identifier: MIT OR Apache-2.0

//! Many clients of every kind on one thread, and what must have become of them.
//!
//! What a client does, and when, is its [`Behaviour`]; how it does it is its [`Transport`]'s. The
//! transport [`sockets`] has the kernel's TCP do it; the transport [`segments`] sends each segment
//! itself. Each client connects to a [`Target`] and ends in one [`Fate`]. Which fates are right
//! depends on what it did and on its listener's settings ([`Target::allows`]); so does what the
//! listener must have counted ([`Clients::account`]).

mod behaviour;
mod expected;
pub mod segments;
pub mod sockets;
mod tally;
mod target;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};

use self::behaviour::When;
pub use self::behaviour::{Behaviour, Fate, Mix};
pub use self::expected::released_were_accepted;
pub use self::tally::{Fates, Tally};
pub use self::target::{Policy, Target};
use crate::control::Stats;
use crate::server::Served;

/// How clients send and receive.
pub trait Transport {
    /// Starts a client's handshake; returns its fate, if it has one already.
    fn connect(&mut self, id: u32, target: &Target, behaviour: Behaviour) -> Result<Option<Fate>>;

    /// Completes a client's handshake, if the kernel does not; returns from when on the server may
    /// have had its ACK.
    fn acknowledge(&mut self, _id: u32, _behaviour: Behaviour) -> Result<Option<Instant>> {
        Ok(None)
    }

    /// Has a client do what it is there for.
    fn act(&mut self, id: u32, behaviour: Behaviour) -> Result<Acted>;

    /// Sends a client's last segment again, if the kernel does not.
    fn repeat(&mut self, _id: u32) -> Result<()> {
        Ok(())
    }

    /// Returns whether a silent client, some time after its deadline, must send something to hear
    /// how it ends.
    fn must_send_after_deadline(&self, _policy: &Policy) -> bool {
        true
    }

    /// Waits for at most `limit` until something happens to clients, and adds what did.
    fn wait(&mut self, limit: Duration, events: &mut Vec<(u32, Event)>) -> Result<()>;

    /// Forgets a client that has met its fate.
    fn close(&mut self, id: u32, fate: Fate);
}

/// What happened to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Its SYN was answered.
    Connected,
    /// It has met its fate.
    Over(Fate),
}

/// What a client does after it has acted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acted {
    /// It waits for its fate.
    Waits,
    /// It acts again after some time.
    Again(Duration),
    /// It has met its fate.
    Over(Fate),
}

/// How long clients take.
#[derive(Clone, Debug)]
pub struct Timing {
    /// How long those pause that act some time after their handshake.
    pub pause: Range<Duration>,
    /// How much later than a client acts its server may notice.
    pub margin: Duration,
    /// How long to wait for them.
    pub limit: Limit,
}

/// How long to wait for clients.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// As long for each, beyond its silence: then it is [`Fate::Lost`].
    Each(Duration),
    /// As long for anything to happen to any client: then that is an error.
    Standstill(Duration),
}

/// How many clients there are at once, and how fast they come.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How many there are at once, at most.
    pub at_once: usize,
    /// From one to the next, at least; zero: as fast as it goes.
    pub gap: Duration,
}

/// Where a client is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// Its SYN was not answered yet.
    Connecting,
    /// It is to acknowledge later.
    Hesitating,
    /// It is to act later.
    Pausing,
    /// It has acted, and waits for its fate.
    Waiting,
}

/// What is to be done with a client at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    Acknowledge,
    Act,
    Repeat,
    GiveUp,
}

#[derive(Debug)]
struct Client {
    target: usize,
    behaviour: Behaviour,
    step: Step,
    begun: Instant,
    /// From when on the server may have had its ACK.
    acknowledged: Instant,
    /// Whether it acted when its deadline may have been over.
    late: bool,
}

/// From one time to the next that a client sends the same again.
const REPEAT: Duration = Duration::from_secs(1);

/// Many clients, and what each is to do when.
#[derive(Debug)]
pub struct Clients<T> {
    transport: T,
    targets: Vec<Target>,
    mix: &'static Mix,
    timing: Timing,
    rng: fastrand::Rng,
    clients: HashMap<u32, Client>,
    schedule: BinaryHeap<Reverse<(Instant, u32, Action)>>,
    /// The number of the next client.
    next: u32,
    tally: Tally,
    events: Vec<(u32, Event)>,
    repeats: bool,
    tolerant: bool,
    hesitation: Option<Range<Duration>>,
}

impl<T: Transport> Clients<T> {
    /// Makes clients of some listeners.
    pub fn new(
        transport: T,
        targets: Vec<Target>,
        mix: &'static Mix,
        timing: Timing,
        rng: fastrand::Rng,
    ) -> Self {
        Self {
            transport,
            targets,
            mix,
            timing,
            rng,
            clients: HashMap::new(),
            schedule: BinaryHeap::new(),
            next: 0,
            tally: Tally::default(),
            events: Vec::new(),
            repeats: false,
            tolerant: false,
            hesitation: None,
        }
    }

    /// Has a client that waits send the same again each second, as TCP does: where segments may get
    /// lost.
    pub fn repeating(mut self) -> Self {
        self.repeats = true;
        self
    }

    /// Expects nothing certain of clients that acknowledge late: on a machine that is very busy.
    pub fn tolerant(mut self) -> Self {
        self.tolerant = true;
        self
    }

    /// Has clients acknowledge at a time in this range after their SYN.
    ///
    /// A second after it the kernel sends the SYN-ACK again: a client that acknowledges just then
    /// may be bypassed, and nothing else.
    pub fn hesitant(mut self, hesitation: Range<Duration>) -> Self {
        self.hesitation = Some(hesitation);
        self
    }

    /// Returns the transport.
    pub fn transport(&self) -> &T {
        &self.transport
    }

    /// Returns the transport.
    pub fn transport_mut(&mut self) -> &mut T {
        &mut self.transport
    }

    /// Returns how many clients there are.
    pub fn running(&self) -> usize {
        self.clients.len()
    }

    /// Returns how the clients so far have ended.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Describes the fates that do not agree with what the clients did, where the kernel had no
    /// memory for `resets_not_sent` resets.
    pub fn complaints(&self, resets_not_sent: u64) -> Vec<String> {
        self.tally.complaints(&self.targets, resets_not_sent)
    }

    /// Compares what a listener counted with what its clients did and its server saw, where nothing
    /// stood in their way.
    pub fn account(&self, index: usize, seen: &Stats, served: &Served) -> Result<()> {
        let target = self.targets.get(index).context("no such listener")?;
        let doubtful = match self.hesitation {
            // Nothing else than that may have happened to any client.
            Some(_) => seen.bypassed(),
            None => self.tally.doubtful(index),
        };
        expected::exactly(&self.tally, index, &target.policy, doubtful, seen, served)
    }

    /// Lets a client begin that connects to a random listener and behaves like a random one of the
    /// mix.
    fn begin(&mut self) -> Result<()> {
        let target = self.rng.usize(..self.targets.len());
        let behaviour = Behaviour::random(self.mix, &mut self.rng);
        self.begin_as(target, behaviour)
    }

    /// Lets a client begin.
    pub fn begin_as(&mut self, index: usize, behaviour: Behaviour) -> Result<()> {
        let target = self.targets.get(index).context("no such listener")?;
        let id = self.next;
        self.next += 1;
        self.tally.begin(behaviour);
        let begun = Instant::now();
        if let Some(fate) = self.transport.connect(id, target, behaviour)? {
            self.tally.end(index, behaviour, false, fate);
            return Ok(());
        }
        if let Limit::Each(limit) = self.timing.limit {
            let end = begun + limit + target.silence().unwrap_or_default();
            self.schedule.push(Reverse((end, id, Action::GiveUp)));
        }
        if self.repeats {
            self.schedule
                .push(Reverse((begun + REPEAT, id, Action::Repeat)));
        }
        let client = Client {
            target: index,
            behaviour,
            step: Step::Connecting,
            begun,
            acknowledged: begun,
            late: false,
        };
        self.clients.insert(id, client);
        Ok(())
    }

    /// Handles what happens to clients and does what is to be done, for at most `limit`.
    pub fn step(&mut self, limit: Duration) -> Result<()> {
        let now = Instant::now();
        let next = self.schedule.peek();
        let wait = next.map_or(limit, |Reverse((at, ..))| {
            at.saturating_duration_since(now).min(limit)
        });
        let mut events = std::mem::take(&mut self.events);
        self.transport.wait(wait, &mut events)?;
        for (id, event) in events.drain(..) {
            match event {
                Event::Connected => self.connected(id)?,
                Event::Over(fate) => self.end(id, fate),
            }
        }
        self.events = events;
        let now = Instant::now();
        while let Some(Reverse((at, id, action))) = self.schedule.peek().copied() {
            if at > now {
                break;
            }
            self.schedule.pop();
            let Some(client) = self.clients.get(&id) else {
                continue;
            };
            match (action, client.step) {
                (Action::GiveUp, _) => self.end(id, Fate::Lost),
                (Action::Acknowledge, Step::Hesitating) => self.acknowledge(id)?,
                (Action::Act, Step::Pausing) => self.act(id)?,
                (Action::Repeat, step) => {
                    if matches!(step, Step::Connecting | Step::Waiting) {
                        self.transport.repeat(id)?;
                    }
                    self.schedule
                        .push(Reverse((now + REPEAT, id, Action::Repeat)));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Has a client acknowledge, now or later: its SYN was answered.
    fn connected(&mut self, id: u32) -> Result<()> {
        let Some(client) = self.clients.get_mut(&id) else {
            return Ok(());
        };
        if client.step != Step::Connecting {
            return Ok(());
        }
        let Some(hesitation) = self.hesitation.clone() else {
            return self.acknowledge(id);
        };
        client.step = Step::Hesitating;
        let at = client.begun + between(hesitation, &mut self.rng);
        self.schedule.push(Reverse((at, id, Action::Acknowledge)));
        Ok(())
    }

    fn acknowledge(&mut self, id: u32) -> Result<()> {
        /// After a second the kernel begins to send SYN-ACKs again, and in the end gives up.
        const IN_TIME: Duration = Duration::from_millis(800);
        let Some(client) = self.clients.get_mut(&id) else {
            return Ok(());
        };
        if self.tolerant && client.begun.elapsed() > IN_TIME {
            self.tally.doubt(client.target);
        }
        if let Some(acknowledged) = self.transport.acknowledge(id, client.behaviour)? {
            client.acknowledged = acknowledged;
        }
        let target = self.targets.get(client.target);
        let target = target.context("no such listener")?;
        client.step = Step::Pausing;
        let pause = match client.behaviour.when() {
            When::AtOnce => return self.act(id),
            When::AfterAPause => Some(between(self.timing.pause.clone(), &mut self.rng)),
            When::AfterTheDeadline => target
                .silence()
                .filter(|_| self.transport.must_send_after_deadline(&target.policy)),
        };
        match pause {
            Some(pause) => {
                let at = Instant::now() + pause;
                self.schedule.push(Reverse((at, id, Action::Act)));
            }
            None => client.step = Step::Waiting,
        }
        Ok(())
    }

    /// Has a client do what it is there for.
    fn act(&mut self, id: u32) -> Result<()> {
        let Some(client) = self.clients.get_mut(&id) else {
            return Ok(());
        };
        client.step = Step::Waiting;
        let acted = self.transport.act(id, client.behaviour)?;
        client.late |= is_late(client, &self.targets, self.timing.margin);
        match acted {
            Acted::Waits => {}
            Acted::Again(pause) => {
                client.step = Step::Pausing;
                let at = Instant::now() + pause;
                self.schedule.push(Reverse((at, id, Action::Act)));
            }
            Acted::Over(fate) => self.end(id, fate),
        }
        Ok(())
    }

    /// Takes out a client whose fate is known.
    fn end(&mut self, id: u32, fate: Fate) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        // On a machine that is very busy, a client may hear of its end before it has acted.
        let is_late =
            client.step == Step::Pausing && is_late(&client, &self.targets, self.timing.margin);
        self.transport.close(id, fate);
        let late = client.late || is_late;
        self.tally.end(client.target, client.behaviour, late, fate);
    }

    /// Starts clients until `more`, called with the number of those that have begun, returns false;
    /// goes on until all are gone.
    pub fn run(&mut self, pace: Pace, more: impl FnMut(u64) -> bool) -> Result<()> {
        self.run_and_drain(pace, more, || Ok(()))
    }

    /// Does the same with listeners that park a few clients without a deadline: once nothing else
    /// happens any more, `drain` ends the clients that are parked there.
    pub fn run_and_drain(
        &mut self,
        pace: Pace,
        mut more: impl FnMut(u64) -> bool,
        mut drain: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        /// How many clients may begin before what has come is looked at.
        const BATCH: usize = 32;
        const LONGEST: Duration = Duration::from_millis(50);
        let deadlines = self.targets.iter().filter_map(|it| it.policy.deadline);
        let deadline = deadlines.max().unwrap_or_default();
        let mut next = Instant::now();
        let mut progress = next;
        let mut drained = false;
        loop {
            let before = (self.next, self.running());
            let mut complete = !more(self.next.into());
            for _ in 0..BATCH {
                if complete || self.running() >= pace.at_once || Instant::now() < next {
                    break;
                }
                self.begin()?;
                next = Instant::now() + pace.gap;
                complete = !more(self.next.into());
            }
            if complete && self.running() == 0 {
                return Ok(());
            }
            let limit = if complete || self.running() >= pace.at_once {
                LONGEST
            } else {
                next.saturating_duration_since(Instant::now()).min(LONGEST)
            };
            self.step(limit)?;
            if before != (self.next, self.running()) {
                progress = Instant::now();
            }
            if complete && !drained && progress.elapsed() > deadline {
                drained = true;
                drain()?;
            }
            if let Limit::Standstill(limit) = self.timing.limit {
                if progress.elapsed() > limit {
                    bail!("nothing happens any more to {}", self.remaining());
                }
            }
        }
    }

    /// Describes the clients that are still there.
    fn remaining(&self) -> String {
        let mut counts: BTreeMap<(Step, Behaviour, usize), u64> = BTreeMap::new();
        for client in self.clients.values() {
            let key = (client.step, client.behaviour, client.target);
            *counts.entry(key).or_default() += 1;
        }
        let text = counts
            .into_iter()
            .map(|((step, behaviour, target), count)| {
                format!("{count} {behaviour:?} {step:?} at listener {target}")
            });
        text.collect::<Vec<_>>().join("; ")
    }
}

/// Returns whether the deadline may be over of a client that is to act before it.
fn is_late(client: &Client, targets: &[Target], margin: Duration) -> bool {
    let deadline = targets
        .get(client.target)
        .and_then(|target| target.policy.deadline);
    client.behaviour != Behaviour::Silent
        && deadline.is_some_and(|deadline| client.acknowledged.elapsed() + margin > deadline)
}

/// Returns a time in a range, at random.
fn between(range: Range<Duration>, rng: &mut fastrand::Rng) -> Duration {
    range.start + (range.end - range.start).mul_f64(rng.f64())
}
