// SPDX-License-Identifier: MIT OR Apache-2.0

//! Runs scripts with the module's policy, called as `module/net/` calls it, with a minimal kernel
//! around it; and checks some properties of the scripts themselves.

use std::collections::VecDeque;

use accf_model::history::{histories_of_sources, History, CLIENTS};
use accf_model::script::{in_millis, Action, Cue, Director, Pace, Script};
use accf_model::server::{self, Counts, Seen};
use accf_policy::{
    on_fin, on_park, on_segment, timer_action, AcceptQueue, Action as Ruling, Admission, Bucket,
    Burst, Bypass, Config, Dataready, End, Expiry, Filter, Joining, Nanos, OnClose, OnTimeout,
    Parking, Phase, RoomWatch, SegmentKind, Sources, Stats, Timeout, TimerAction,
};
use proptest::prelude::*;

const PACE: Pace = Pace {
    unit: 60,
    guard: 30,
    timers_late: 100,
};

const MILLI: u64 = 1_000_000;

/// The state of a client's request in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Gone,
    HalfOpen { acked: bool },
    Parked,
    Connected,
}

/// A listener that follows the policy's decisions.
struct Listener {
    config: Config,
    backlog: usize,
    now: u64,
    is_open: bool,
    states: Vec<State>,
    /// The bucket of each client's source.
    buckets: Vec<u8>,
    /// The parked clients, and since when.
    parked: VecDeque<(usize, u64)>,
    alarm: Option<u64>,
    room_watch: RoomWatch,
    burst: Burst,
    queue: VecDeque<usize>,
    accepted: Vec<usize>,
    stats: Stats,
    resets: Vec<usize>,
}

fn config_of(config: server::Config) -> Config {
    let millis = config.timeout.map_or(0, |millis| millis as u32);
    Config {
        timeout: Timeout::from_millis(millis),
        max_parked: match config.max_parked {
            0 => 16384,
            most => most,
        },
        on_timeout: match config.on_timeout {
            server::OnTimeout::Accept => OnTimeout::Accept,
            server::OnTimeout::Reset => OnTimeout::Reset,
            server::OnTimeout::Drop => OnTimeout::Drop,
        },
        parking: match config.paused {
            true => Parking::Paused,
            false => Parking::On,
        },
        on_close: match config.resets_on_close {
            true => OnClose::Reset,
            false => OnClose::Accept,
        },
        probe_ms: 0,
    }
}

impl Listener {
    fn new(history: &History) -> Self {
        Self {
            config: config_of(in_millis(history.config, PACE)),
            backlog: history.backlog,
            now: 0,
            is_open: true,
            states: vec![State::Gone; CLIENTS],
            buckets: history.sources.iter().map(|it| *it as u8 + 7).collect(),
            parked: VecDeque::new(),
            alarm: None,
            room_watch: RoomWatch::default(),
            burst: Burst::default(),
            queue: VecDeque::new(),
            accepted: Vec::new(),
            stats: Stats::default(),
            resets: vec![0; CLIENTS],
        }
    }

    fn is_full(&self) -> bool {
        self.queue.len() > self.backlog
    }

    fn unpark(&mut self, client: usize, end: End) {
        let index = self.parked.iter().position(|it| it.0 == client).unwrap();
        let (_, at) = self.parked.remove(index).unwrap();
        self.stats.end(end, Nanos(self.now - at));
    }

    /// Returns the oldest client of the source that has the most.
    fn victim(&self) -> usize {
        let bucket = |nth: usize| self.buckets[self.parked[nth].0];
        let mut sources = Sources::new(Box::new(std::array::from_fn(Bucket::new)));
        let first = |nth| {
            (0..=nth)
                .find(|first| bucket(*first) == bucket(nth))
                .unwrap()
        };
        for nth in 0..self.parked.len() {
            // Their order is as good as the times.
            sources.count(bucket(nth), Nanos(first(nth) as u64));
        }
        let greediest = sources.greediest().expect("one is parked");
        let nth = (0..).find(|nth| bucket(*nth) == greediest).unwrap();
        self.parked[nth].0
    }

    fn expire(&mut self, expiry: Expiry) {
        let client = match expiry {
            Expiry::Eviction => self.victim(),
            _ => self.parked[0].0,
        };
        match expiry.outcome(&self.config) {
            OnTimeout::Accept => {
                assert!(!self.is_full(), "it would be refused");
                let ruling =
                    on_segment(Dataready::verdict(SegmentKind::BareAck), || Phase::Expired);
                assert_eq!(ruling, Ruling::Admit);
                self.states[client] = State::Connected;
                self.queue.push_back(client);
            }
            on_timeout => {
                self.states[client] = State::Gone;
                self.resets[client] += usize::from(on_timeout == OnTimeout::Reset);
            }
        }
        self.unpark(client, End::of_expired(expiry, self.config.on_timeout));
    }

    fn acknowledge(&mut self, client: usize, segment: SegmentKind) {
        let phase = match self.states[client] {
            State::Parked => Phase::Parked,
            State::HalfOpen { acked: true } => Phase::Expired,
            _ => Phase::Unparked,
        };
        match on_segment(Dataready::verdict(segment), || phase) {
            Ruling::Hold => {}
            Ruling::Park => self.park(client),
            Ruling::Admit | Ruling::Bypass(_) => self.connect(client, segment),
        }
    }

    fn park(&mut self, client: usize) {
        let parked = self.parked.len() as u64;
        let admission = match on_park(&self.config, parked, false, || self.is_full()) {
            Ok(admission) => admission,
            Err(cause) => {
                self.stats.bypass(cause);
                self.connect(client, SegmentKind::BareAck);
                return;
            }
        };
        self.states[client] = State::Parked;
        self.parked.push_back((client, self.now));
        self.stats.park();
        if admission == Admission::ParkAndEvict {
            self.expire(Expiry::Eviction);
        }
        if self.alarm.is_none() {
            self.schedule();
        }
    }

    fn accept_queue(&self) -> AcceptQueue {
        AcceptQueue {
            queued: self.queue.len() as u32,
            backlog: self.backlog as u32,
            somaxconn: 4096,
        }
    }

    fn has_room(&self, joining: Joining) -> bool {
        let now = Nanos(self.now);
        self.burst.has_room(joining, self.accept_queue(), now)
    }

    fn connect(&mut self, client: usize, segment: SegmentKind) {
        let joining = match self.states[client] {
            State::Parked => {
                let at = self.parked.iter().find(|it| it.0 == client).unwrap().1;
                Joining::Parked(Nanos(at))
            }
            _ => Joining::Newcomer,
        };
        let may_be_late = segment != SegmentKind::BareAck && self.has_room(joining);
        let is_full = self.is_full();
        if is_full && !may_be_late {
            let is_counted =
                self.states[client] == State::Parked && segment != SegmentKind::BareAck;
            self.stats.overflow_dropped += u64::from(is_counted);
            if let State::HalfOpen { acked } = &mut self.states[client] {
                *acked = true;
            }
            return;
        }
        if self.states[client] == State::Parked {
            self.unpark(client, End::of_accepted(segment, None));
        }
        self.states[client] = State::Connected;
        if is_full && joining != Joining::Newcomer {
            let queue = self.accept_queue();
            self.burst.on_late(queue, Nanos(self.now));
            self.stats.released_late += 1;
        }
        self.queue.push_back(client);
    }

    fn abort(&mut self, client: usize) {
        if self.states[client] == State::Parked {
            self.unpark(client, End::Aborted);
        }
        self.states[client] = State::Gone;
    }

    fn schedule(&mut self) {
        let oldest = self.parked.front().map(|it| Nanos(it.1));
        let parked = self.parked.len() as u64;
        let alarm = timer_action(
            Nanos(self.now),
            &self.config,
            parked,
            oldest,
            self.is_full(),
        );
        self.alarm = match alarm {
            TimerAction::Idle => None,
            TimerAction::At(at) => Some(at.0),
            TimerAction::Expire(_) => Some(self.now),
            TimerAction::WaitForRoom => Some(self.room_watch.next(Nanos(self.now)).0),
        };
    }

    /// Lets time pass, and runs the timer, until `to`.
    fn pass(&mut self, to: u64) {
        while let Some(at) = self.alarm.filter(|at| self.is_open && *at <= to) {
            self.now = self.now.max(at);
            loop {
                let oldest = self.parked.front().map(|it| Nanos(it.1));
                let parked = self.parked.len() as u64;
                let now = Nanos(self.now);
                match timer_action(now, &self.config, parked, oldest, self.is_full()) {
                    TimerAction::Expire(expiry) => {
                        self.room_watch.on_handed_over();
                        self.expire(expiry);
                    }
                    TimerAction::WaitForRoom => {
                        let queued = self.queue.len() as u32;
                        self.room_watch
                            .on_full(now, queued, self.backlog as u32 + 1);
                        break;
                    }
                    TimerAction::At(_) | TimerAction::Idle => {
                        self.room_watch.stop();
                        break;
                    }
                }
            }
            self.schedule();
        }
        self.now = self.now.max(to);
    }

    fn receive(&mut self, client: usize, segment: server::Segment) {
        use server::Segment as Sent;
        let is_known = matches!(self.states[client], State::HalfOpen { .. } | State::Parked);
        match segment {
            Sent::Syn if !is_known => {
                self.states[client] = match self.is_open && self.has_room(Joining::Syn) {
                    true => State::HalfOpen { acked: false },
                    false => State::Gone,
                };
            }
            _ if !is_known => {}
            Sent::Ack => self.acknowledge(client, SegmentKind::BareAck),
            Sent::Data | Sent::DataFin => self.acknowledge(client, SegmentKind::Data),
            Sent::Fin if on_fin(&self.config) == OnClose::Reset => {
                if self.states[client] == State::Parked {
                    self.unpark(client, End::ClosedReset);
                } else {
                    self.stats.closed_reset_unparked += 1;
                }
                self.states[client] = State::Gone;
                self.resets[client] += 1;
            }
            Sent::Fin => self.acknowledge(client, SegmentKind::Fin),
            Sent::SynInWindow if self.states[client] == State::Parked && !self.is_full() => {
                self.unpark(
                    client,
                    End::of_accepted(SegmentKind::BareAck, Some(Expiry::SynInWindow)),
                );
                self.states[client] = State::Connected;
                self.queue.push_back(client);
            }
            Sent::Rst | Sent::SynInWindow => self.abort(client),
            // TCP handles it without the policy.
            _ => {}
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send(client, segment) => self.receive(client, segment),
            Action::Configure(config) => {
                self.config = config_of(config);
                self.schedule();
            }
            Action::Accept => {
                let client = self.queue.pop_front();
                self.accepted.extend(client);
            }
            Action::Close => {
                self.is_open = false;
                self.parked.clear();
                self.queue.clear();
                self.states.fill(State::Gone);
            }
            Action::Look => {}
        }
        self.pass(self.now);
    }

    fn counts(&self) -> Counts {
        let half_open = |state: &&State| matches!(state, State::HalfOpen { .. });
        Counts {
            parked: self.stats.parked,
            half_open: self.states.iter().filter(half_open).count() as u64,
            half_open_young: 0,
            released_data: self.stats.ended(End::Data),
            released_fin: self.stats.ended(End::Fin),
            timeout_accept: self.stats.ended(End::TimeoutAccept),
            timeout_reset: self.stats.ended(End::TimeoutReset),
            timeout_drop: self.stats.ended(End::TimeoutDrop),
            evicted: self.stats.ended(End::Evicted),
            aborted: self.stats.ended(End::Aborted),
            fallback: self.stats.ended(End::Fallback),
            bypass_accept_queue_full: self.stats.bypassed(Bypass::AcceptQueueFull),
            released_paused: self.stats.ended(End::Paused),
            bypass_paused: self.stats.bypassed(Bypass::Paused),
            closed_reset: self.stats.ended(End::ClosedReset),
            closed_reset_unparked: self.stats.closed_reset_unparked,
            released_late: self.stats.released_late,
            overflow_dropped: self.stats.overflow_dropped,
        }
    }

    fn agrees(&self, seen: &Seen) -> Result<(), TestCaseError> {
        if let Some(counts) = seen.counts {
            // TCP's own timers are not part of the policy.
            let expected = Counts {
                half_open_young: 0,
                ..counts
            };
            prop_assert_eq!(self.counts(), expected);
            prop_assert_eq!(self.stats.parked_total, expected.parked_total());
        }
        prop_assert_eq!(self.queue.len(), seen.queued);
        prop_assert_eq!(&self.accepted, &seen.accepted);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// In any history the policy agrees with the model before and after each move, however long
    /// each move takes.
    #[test]
    fn the_policy_agrees_with_the_model(
        history in histories_of_sources(60),
        speeds in prop::collection::vec((0..10_u64, 0..10_u64, 0..10_u64), 1..50),
    ) {
        let mut listener = Listener::new(&history);
        let mut director = Director::new(&history, PACE);
        let mut now = 0;
        for nth in 0.. {
            let (before, from, to) = speeds[nth % speeds.len()];
            match director.next(now).unwrap() {
                Cue::Wait(until) => now = until,
                Cue::Act(action, seen) => {
                    let place = |when: &str| format!("at {now} ms, {when} {action:?}");
                    listener.pass((now + before) * MILLI);
                    listener.agrees(&seen).map_err(|error| {
                        TestCaseError::fail(format!("{}: {error}", place("before")))
                    })?;
                    // The action happens in the middle of its duration.
                    listener.pass((now + before) * MILLI + (from + to) * MILLI / 2);
                    listener.act(action);
                    let seen = director.done(now + before, now + before + from + to).unwrap();
                    listener.agrees(&seen).map_err(|error| {
                        TestCaseError::fail(format!("{}: {error}", place("after")))
                    })?;
                    now += before + from + to;
                }
                Cue::Over => break,
            }
        }
    }

    /// Scripts are in order, end in time, and begin with zero counters.
    #[test]
    fn scripts_are_in_order(history in histories_of_sources(60)) {
        let script = Script::of(&history, PACE, 2).unwrap();
        let mut last = 0;
        for step in &script.steps {
            prop_assert!(step.at >= last);
            last = step.at;
        }
        let first = script.steps.first().map(|step| step.before.counts);
        prop_assert_eq!(first, Some(Some(Counts::default())));
    }
}
