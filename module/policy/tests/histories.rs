// SPDX-License-Identifier: GPL-2.0-only

//! Properties of whole histories of a listener; the policy is called as `net/` calls it.

use std::collections::VecDeque;
use std::num::NonZeroU8;

use accf_policy::{
    backlog_excluded,
    backlog_share,
    is_deferred_with_batch,
    may_synack_timer_run,
    next_look,
    on_fin,
    on_park,
    on_segment,
    on_synack,
    synack_timer_deferral,
    timer_action,
    Action,
    Admission,
    Bypass,
    Config,
    Dataready,
    End,
    Expiry,
    Filter,
    Nanos,
    OnClose,
    OnTimeout,
    Parking,
    Phase,
    RoomWatch,
    SegmentKind,
    Stats,
    SynAck,
    Timeout,
    TimerAction,
    Trigger,
    Verdict,
    WAIT_BUCKETS, //
};
use proptest::prelude::*;

/// One event at a listener.
#[derive(Clone, Debug)]
enum Event {
    /// A segment of this client arrives.
    Segment(usize, SegmentKind),
    /// This client resets its connection.
    Reset(usize),
    /// This many nanoseconds pass.
    Time(u64),
    /// The server calls `accept()`.
    Accept,
    /// The server changes its settings.
    Ask(Config),
    /// Another listener of the namespace reaches the namespace's limit, or is below it again.
    Namespace(bool),
}

/// The end of a client's request, and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Without ever being parked.
    Passed,
    /// After it was parked, with the counter of this end.
    Ended(End, u64),
}

/// The state of a listener in `net/`, without the kernel.
struct Listener {
    config: Config,
    backlog: usize,
    namespace_full: bool,
    now: u64,
    queue: VecDeque<(usize, u64)>,
    alarm: Option<u64>,
    room_watch: RoomWatch,
    accept_queue: usize,
    fates: Vec<Option<Fate>>,
    parked_at: Vec<Option<u64>>,
    stats: Stats,
    most: u64,
}

impl Listener {
    fn new(config: Config, clients: usize, backlog: usize) -> Self {
        Self {
            config,
            backlog,
            namespace_full: false,
            now: 0,
            queue: VecDeque::new(),
            alarm: None,
            room_watch: RoomWatch::default(),
            accept_queue: 0,
            fates: vec![None; clients],
            parked_at: vec![None; clients],
            stats: Stats::default(),
            most: 0,
        }
    }

    /// As `sk_acceptq_is_full()`.
    fn is_full(&self) -> bool {
        self.accept_queue > self.backlog
    }

    fn unpark(&mut self, client: usize, end: End) {
        assert_eq!(self.fates[client], None, "client {client} ended twice");
        self.fates[client] = Some(Fate::Ended(end, self.now));
        let index = self
            .queue
            .iter()
            .position(|&(parked, _)| parked == client)
            .expect("a parked client");
        let (_, at) = self.queue.remove(index).expect("that index");
        self.stats.end(end, Nanos(self.now - at));
    }

    fn expire(&mut self, expiry: Expiry) {
        let (client, _) = self.queue[0];
        if expiry.outcome(&self.config) == OnTimeout::Accept {
            assert!(!self.is_full(), "it would be refused");
            let action = on_segment(Dataready::verdict(SegmentKind::BareAck), || Phase::Expired);
            assert_eq!(action, Action::Admit);
            self.accept_queue += 1;
        }
        self.unpark(client, End::of_expired(expiry, self.config.on_timeout));
    }

    fn receive(&mut self, client: usize, segment: SegmentKind) {
        if self.fates[client].is_some() {
            return;
        }
        let is_parked = self.queue.iter().any(|&(parked, _)| parked == client);
        let phase = match is_parked {
            true => Phase::Parked,
            false => Phase::Unparked,
        };
        match on_segment(Dataready::verdict(segment), || phase) {
            Action::Park => self.park(client),
            Action::Hold => assert!(is_parked),
            Action::Bypass(cause) => panic!("no client is exempt, but {cause:?}"),
            Action::Admit
                if segment == SegmentKind::Fin && on_fin(&self.config) == OnClose::Reset =>
            {
                if is_parked {
                    self.unpark(client, End::ClosedReset);
                } else {
                    self.fates[client] = Some(Fate::Passed);
                }
            }
            Action::Admit if self.is_full() => {}
            Action::Admit => {
                self.accept_queue += 1;
                if is_parked {
                    self.unpark(client, End::of_accepted(segment, None));
                } else {
                    self.fates[client] = Some(Fate::Passed);
                }
            }
        }
    }

    fn park(&mut self, client: usize) {
        let parked = self.stats.parked;
        match on_park(&self.config, parked, self.namespace_full, || self.is_full()) {
            Err(cause) => {
                self.stats.bypass(cause);
                if !self.is_full() {
                    self.accept_queue += 1;
                    self.fates[client] = Some(Fate::Passed);
                }
                return;
            }
            Ok(Admission::ParkAndEvict) => self.expire(Expiry::Eviction),
            Ok(Admission::Park | Admission::ParkAndCount) => {}
        }
        self.queue.push_back((client, self.now));
        self.parked_at[client] = Some(self.now);
        self.stats.park();
        self.most = self.most.max(self.stats.parked);
        if self.alarm.is_none() {
            self.schedule();
        }
    }

    fn decide(&self) -> TimerAction {
        timer_action(
            Nanos(self.now),
            &self.config,
            self.stats.parked,
            self.queue.front().map(|&(_, at)| Nanos(at)),
            self.is_full(),
        )
    }

    fn schedule(&mut self) {
        match self.decide() {
            TimerAction::Idle => self.room_watch.stop(),
            TimerAction::At(at) => {
                self.room_watch.stop();
                self.alarm = Some(at.0);
            }
            TimerAction::Expire(_) => self.alarm = Some(self.now),
            TimerAction::WaitForRoom => {
                self.alarm = Some(self.room_watch.next(Nanos(self.now)).0);
            }
        }
    }

    fn pass(&mut self, nanos: u64) {
        let until = self.now + nanos;
        while let Some(at) = self.alarm.filter(|&at| at <= until) {
            self.now = self.now.max(at);
            self.fire_timer();
        }
        self.now = until;
    }

    fn fire_timer(&mut self) {
        loop {
            match self.decide() {
                TimerAction::Idle => {
                    self.alarm = None;
                    self.room_watch.stop();
                    return;
                }
                TimerAction::At(at) => {
                    self.room_watch.stop();
                    self.set_alarm(at);
                    return;
                }
                TimerAction::WaitForRoom => {
                    let now = Nanos(self.now);
                    let (queued, capacity) = (self.accept_queue as u32, self.backlog as u32 + 1);
                    self.room_watch.on_full(now, queued, capacity);
                    self.set_alarm(self.room_watch.next(now));
                    return;
                }
                TimerAction::Expire(expiry) => {
                    self.room_watch.on_handed_over();
                    self.expire(expiry);
                }
            }
        }
    }

    fn set_alarm(&mut self, at: Nanos) {
        assert!(
            at.0 > self.now,
            "a timer in the past would never leave the CPU"
        );
        self.alarm = Some(at.0);
    }

    fn step(&mut self, event: &Event) {
        match *event {
            Event::Segment(client, segment) => self.receive(client, segment),
            Event::Reset(client) => {
                if self.queue.iter().any(|&(parked, _)| parked == client) {
                    self.unpark(client, End::Aborted);
                } else if self.fates[client].is_none() {
                    self.fates[client] = Some(Fate::Passed);
                }
            }
            Event::Time(nanos) => self.pass(nanos),
            Event::Accept => self.accept_queue = self.accept_queue.saturating_sub(1),
            Event::Ask(config) => {
                self.config = config;
                self.schedule();
                self.pass(0);
            }
            Event::Namespace(full) => self.namespace_full = full,
        }
        assert!(
            self.queue
                .iter()
                .zip(self.queue.iter().skip(1))
                .all(|(a, b)| a.1 <= b.1),
            "out of order"
        );
        assert_eq!(self.stats.parked, self.queue.len() as u64);
        assert!(is_balanced(&self.stats));
    }
}

/// Returns whether each request that was parked is parked now, or has exactly one end.
fn is_balanced(stats: &Stats) -> bool {
    let ended: u64 = ENDS.into_iter().map(|end| stats.ended(end)).sum();
    stats.parked_total == stats.parked + ended
}

const ENDS: [End; End::COUNT] = [
    End::Data,
    End::Fin,
    End::TimeoutAccept,
    End::TimeoutReset,
    End::TimeoutDrop,
    End::Evicted,
    End::Aborted,
    End::Fallback,
    End::Paused,
    End::ClosedReset,
    End::Died,
];

const CLIENTS: usize = 12;

const POLICIES: [OnTimeout; 3] = [OnTimeout::Accept, OnTimeout::Reset, OnTimeout::Drop];

fn config_of(millis: u32) -> Config {
    Config {
        timeout: Timeout::from_millis(millis),
        max_parked: CLIENTS as u32,
        on_timeout: OnTimeout::Accept,
        parking: Parking::On,
        on_close: OnClose::Accept,
        probe_ms: 0,
    }
}

/// Settings of a listener that parks.
fn config() -> impl Strategy<Value = Config> {
    (
        0..60_000_u32,
        1..CLIENTS as u32 + 2,
        prop::sample::select(POLICIES.to_vec()),
        prop::sample::select(vec![OnClose::Accept, OnClose::Reset]),
    )
        .prop_map(|(millis, max_parked, on_timeout, on_close)| Config {
            timeout: Timeout::from_millis(millis),
            max_parked,
            on_timeout,
            parking: Parking::On,
            on_close,
            probe_ms: 0,
        })
}

/// Settings of a listener that parks, or is paused.
fn any_config() -> impl Strategy<Value = Config> {
    (config(), prop::bool::weighted(0.3)).prop_map(|(config, is_paused)| Config {
        parking: match is_paused {
            true => Parking::Paused,
            false => Parking::On,
        },
        ..config
    })
}

fn segment() -> impl Strategy<Value = SegmentKind> {
    prop_oneof![
        4 => Just(SegmentKind::BareAck),
        1 => Just(SegmentKind::Data),
        1 => Just(SegmentKind::Fin),
    ]
}

/// Events of clients, time and the server's `accept()`.
fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..CLIENTS, segment()).prop_map(|(client, segment)| Event::Segment(client, segment)),
        1 => (0..CLIENTS).prop_map(Event::Reset),
        3 => (0..20_000_000_000_u64).prop_map(Event::Time),
        2 => Just(Event::Accept),
    ]
}

/// The same, and changes of the settings and of the namespace.
fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => event(),
        1 => any_config().prop_map(Event::Ask),
        1 => any::<bool>().prop_map(Event::Namespace),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// With room in the accept queue, a parked client ends exactly at its deadline, or before it.
    #[test]
    fn no_client_waits_past_the_deadline(
        millis in 1..60_000_u32,
        on_timeout in prop::sample::select(POLICIES.to_vec()),
        events in prop::collection::vec(event(), 0..200),
    ) {
        let config = Config { on_timeout, ..config_of(millis) };
        let mut listener = Listener::new(config, CLIENTS, CLIENTS);
        for event in &events {
            listener.step(event);
        }
        listener.pass(u64::from(millis) * 1_000_000);
        let expired = End::of_expired(Expiry::Timeout, on_timeout);
        for (client, parked_at) in listener.parked_at.iter().enumerate() {
            let Some(parked_at) = *parked_at else { continue };
            let deadline = parked_at + u64::from(millis) * 1_000_000;
            match listener.fates[client] {
                Some(Fate::Ended(end, at)) if end == expired => prop_assert_eq!(at, deadline),
                Some(Fate::Ended(End::Data | End::Fin | End::Aborted, at)) => {
                    prop_assert!(at <= deadline);
                }
                fate => prop_assert!(false, "client {}: {:?}", client, fate),
            }
        }
        prop_assert!(listener.queue.is_empty());
    }

    /// A full accept queue delays a connection, and loses none: all are accepted once the server
    /// accepts.
    #[test]
    fn a_full_accept_queue_loses_no_client(
        millis in 1..5_000_u32,
        backlog in 0..3_usize,
        events in prop::collection::vec(event(), 0..200),
    ) {
        let mut listener = Listener::new(config_of(millis), CLIENTS, backlog);
        for event in &events {
            listener.step(event);
        }
        for _ in 0..CLIENTS * 2 {
            listener.step(&Event::Accept);
            listener.pass(u64::from(millis) * 1_000_000 + 50_000_000);
        }
        prop_assert!(listener.queue.is_empty());
        for (client, parked_at) in listener.parked_at.iter().enumerate() {
            if let Some(parked_at) = *parked_at {
                let fate = listener.fates[client];
                prop_assert!(fate.is_some());
                if let Some(Fate::Ended(End::TimeoutAccept, at)) = fate {
                    prop_assert!(at >= parked_at + u64::from(millis) * 1_000_000, "accepted early");
                }
            }
        }
    }

    /// With any changes of the settings and of the namespace: no client is lost or counted twice
    /// (`step()` checks that), never more than the limit are parked, and the oldest is evicted.
    #[test]
    fn the_counters_add_up(
        first in any_config(),
        backlog in 0..CLIENTS,
        events in prop::collection::vec(any_event(), 0..300),
    ) {
        let mut listener = Listener::new(first, CLIENTS, backlog);
        for event in &events {
            let oldest = listener.queue.front().copied();
            let evicted = listener.stats.ended(End::Evicted);
            listener.step(event);
            if let (Event::Segment(..), Some((oldest, _))) = (event, oldest) {
                if listener.stats.ended(End::Evicted) > evicted {
                    prop_assert_eq!(
                        listener.fates[oldest],
                        Some(Fate::Ended(End::Evicted, listener.now))
                    );
                }
            }
        }
        for end in [End::Fallback, End::Data] {
            let fates = listener.fates.iter().flatten();
            let count = fates.filter(|fate| matches!(fate, Fate::Ended(e, _) if *e == end)).count();
            prop_assert_eq!(count as u64, listener.stats.ended(end));
        }
        let waited: u64 = listener.stats.wait_log2.iter().sum();
        prop_assert_eq!(waited, listener.stats.ended(End::Data) + listener.stats.ended(End::Fin));
    }

    /// Never more clients are parked than the limit.
    #[test]
    fn never_more_are_parked_than_the_limit(
        config in config(),
        events in prop::collection::vec(event(), 0..200),
    ) {
        let mut listener = Listener::new(config, CLIENTS, CLIENTS);
        for event in &events {
            listener.step(event);
        }
        prop_assert!(listener.most <= u64::from(config.max_parked));
    }

    /// A client that closes without a byte is accepted or reset, as the settings say, and nothing
    /// but a pause changes that: it is never left without an answer.
    #[test]
    fn a_client_that_closes_is_accepted_or_reset(
        config in any_config(),
        events in prop::collection::vec(event(), 0..200),
        client in 0..CLIENTS,
    ) {
        let mut listener = Listener::new(config, CLIENTS, CLIENTS);
        for event in &events {
            listener.step(event);
        }
        let waits = listener.queue.iter().any(|&(parked, _)| parked == client);
        let accepted = listener.accept_queue;
        listener.step(&Event::Segment(client, SegmentKind::Fin));
        if waits {
            let resets = config.on_close == OnClose::Reset && config.parking == Parking::On;
            let end = if resets { End::ClosedReset } else { End::Fin };
            prop_assert_eq!(listener.fates[client], Some(Fate::Ended(end, listener.now)));
            prop_assert_eq!(listener.accept_queue, accepted + usize::from(!resets));
        }
    }

    /// A pause parks no client, and ends none but by its own doing: all that are parked are
    /// accepted, at once if the accept queue has room, and otherwise as the server accepts.
    #[test]
    fn a_pause_hands_over_all_clients(
        first in config(),
        backlog in 0..CLIENTS,
        before in prop::collection::vec(event(), 0..100),
        after in prop::collection::vec(event(), 0..100),
    ) {
        let mut listener = Listener::new(first, CLIENTS, backlog);
        for event in &before {
            listener.step(event);
        }
        let (parked, ended) = (listener.queue.clone(), listener.stats);
        listener.step(&Event::Ask(Config { parking: Parking::Paused, ..first }));
        let room = (backlog + 1).saturating_sub(listener.accept_queue);
        prop_assert!(listener.queue.is_empty() || room == 0);
        for event in &after {
            listener.step(event);
        }
        for _ in 0..CLIENTS * 2 {
            listener.step(&Event::Accept);
            listener.pass(50_000_000);
        }
        prop_assert!(listener.queue.is_empty());
        prop_assert_eq!(listener.stats.parked_total, ended.parked_total);
        for end in [End::TimeoutAccept, End::TimeoutReset, End::TimeoutDrop, End::Evicted] {
            prop_assert_eq!(listener.stats.ended(end), ended.ended(end));
        }
        for (client, _) in parked {
            let fate = listener.fates[client];
            prop_assert!(
                matches!(
                    fate,
                    Some(Fate::Ended(End::Paused | End::Data | End::Fin | End::Aborted, _))
                ),
                "client {}: {:?}", client, fate
            );
        }
    }

    /// Without a deadline, and below the limit, a silent client stays parked, and the timer is
    /// never set.
    #[test]
    fn without_a_timeout_only_the_client_decides(events in prop::collection::vec(event(), 0..200)) {
        let mut listener = Listener::new(config_of(0), CLIENTS, CLIENTS);
        for event in &events {
            listener.step(event);
            prop_assert_eq!(listener.alarm, None);
        }
        prop_assert_eq!(listener.stats.ended(End::TimeoutAccept), 0);
        prop_assert_eq!(listener.stats.ended(End::Evicted), 0);
    }

    /// The timer fires before the deadline only for an eviction, and is never set in the past.
    #[test]
    fn the_timer_is_set_in_the_future(
        now: u64,
        parked in 0..40_u64,
        parked_at in prop::option::of(any::<u64>()),
        config in any_config(),
        full: bool,
    ) {
        let deadline = parked_at.and_then(|at| config.timeout.deadline(Nanos(at)));
        let is_over = parked_at.is_some() && parked > u64::from(config.max_parked);
        let is_paused = parked_at.is_some() && config.parking == Parking::Paused;
        let waits = full && (is_paused || config.on_timeout == OnTimeout::Accept);
        let is_late = deadline.is_some_and(|at| now >= at.0);
        match timer_action(Nanos(now), &config, parked, parked_at.map(Nanos), full) {
            TimerAction::Idle => prop_assert!(deadline.is_none() && !is_over && !is_paused),
            TimerAction::At(at) => {
                prop_assert!(at.0 > now && Some(at) == deadline && !is_over && !is_paused);
            }
            TimerAction::WaitForRoom => {
                prop_assert!(waits && (is_late || is_over || is_paused));
            }
            TimerAction::Expire(Expiry::Pause) => prop_assert!(!waits && is_paused),
            TimerAction::Expire(Expiry::Timeout) => {
                prop_assert!(!waits && !is_paused && is_late);
            }
            TimerAction::Expire(Expiry::Eviction) => {
                prop_assert!(!waits && !is_paused && !is_late && is_over);
            }
            // Neither a SYN nor the listener's state is known here.
            TimerAction::Expire(Expiry::SynInWindow | Expiry::Stopped | Expiry::Died) => {
                prop_assert!(false)
            }
        }
    }

    /// Data and the end of the stream are admitted in any phase.
    #[test]
    fn data_and_fin_are_admitted(
        phase in prop::sample::select(vec![
            Phase::Unparked, Phase::Exempt(Bypass::Other), Phase::Parked, Phase::Expired,
        ]),
        segment in prop::sample::select(vec![SegmentKind::Data, SegmentKind::Fin]),
    ) {
        prop_assert_eq!(on_segment(Dataready::verdict(segment), || phase), Action::Admit);
    }

    /// Parked requests have a small share of the backlog: one per CPU, and an eighth of it at most.
    /// With each one that is parked, the excluded number grows by one at most.
    #[test]
    fn parked_requests_leave_the_backlog_to_others(
        parked in 0..100_000_u64, backlog: u32, cpus in 1..9_000_u32,
    ) {
        let off = backlog_excluded(parked, backlog_share(backlog, cpus));
        let on = parked - off;
        prop_assert!(on <= u64::from(cpus));
        prop_assert!(on <= u64::from(backlog / 8));
        prop_assert!(on == parked || on == u64::from(cpus.min(backlog / 8)));
        prop_assert!(backlog_excluded(parked + 1, backlog_share(backlog, cpus)) - off <= 1);
    }

    /// `TCP_DEFER_ACCEPT` is taken over with the value that `getsockopt()` returns.
    #[test]
    fn defer_accept_is_what_the_kernel_says(retransmits: NonZeroU8) {
        // Does what `retrans_to_secs()` does, with its arguments.
        let (mut timeout, mut period, mut left) = (1_u32, 1_u32, retransmits.get());
        while left > 1 {
            timeout = (timeout * 2).min(120);
            period += timeout;
            left -= 1;
        }
        let timeout = Timeout::from_retransmits(retransmits);
        prop_assert_eq!(timeout.millis() / 1000, period);
    }

    /// A SYN-ACK timer that is not deferred at once is deferred at least 0.3 s before it fires. One
    /// that has fired before is always deferred at once.
    #[test]
    fn synack_timers_are_deferred_in_time(
        parked_at in 0..u64::MAX / 2, left in 0..120_000_u32, timeouts in 0..3_u8, max_timeouts: u8,
    ) {
        let (parked_at, left) = (Nanos(parked_at), Nanos::from_millis(left));
        if may_synack_timer_run(timeouts, max_timeouts, left) {
            let end = synack_timer_deferral(parked_at);
            prop_assert!(end.after(Nanos::from_millis(300)) <= parked_at.after(left));
            prop_assert!(is_deferred_with_batch(end, parked_at));
            prop_assert!(!is_deferred_with_batch(parked_at, parked_at));
            prop_assert_eq!(timeouts, 0);
            prop_assert!(max_timeouts >= 2);
        } else {
            prop_assert!(timeouts > 0 || max_timeouts < 2 || left < Nanos::from_millis(600));
        }
    }

    /// A timeout in milliseconds is returned as the same milliseconds.
    #[test]
    fn milliseconds_are_converted_without_loss(millis: u32) {
        prop_assert_eq!(Timeout::from_millis(millis).millis(), millis);
    }
}

#[test]
fn a_bare_ack_parks_an_unparked_request_only() {
    for (phase, action) in [
        (Phase::Unparked, Action::Park),
        (Phase::Parked, Action::Hold),
        (
            Phase::Exempt(Bypass::Signed),
            Action::Bypass(Bypass::Signed),
        ),
        (Phase::Expired, Action::Admit),
    ] {
        assert_eq!(
            on_segment(Dataready::verdict(SegmentKind::BareAck), || phase),
            action,
            "{phase:?}"
        );
    }
}

#[test]
fn only_the_client_can_make_a_parked_request_send_its_syn_ack() {
    assert_eq!(on_synack(Trigger::Timer), SynAck::Suppress);
    assert_eq!(on_synack(Trigger::ClientSyn), SynAck::Send);
}

#[test]
fn zero_milliseconds_mean_no_deadline() {
    assert_eq!(Timeout::from_millis(0), Timeout::Never);
    assert_eq!(Timeout::Never.deadline(Nanos(7)), None);
    assert_eq!(
        Timeout::from_millis(1).deadline(Nanos(7)),
        Some(Nanos(1_000_007))
    );
}

#[test]
fn a_deadline_saturates() {
    assert_eq!(
        Timeout::from_millis(u32::MAX).deadline(Nanos(u64::MAX)),
        Some(Nanos(u64::MAX))
    );
}

#[test]
fn at_the_limit_one_is_evicted_if_possible() {
    let at_limit = |on_timeout, parked, namespace_full, accept_queue_full| {
        let config = Config {
            timeout: Timeout::Never,
            max_parked: 3,
            on_timeout,
            parking: Parking::On,
            on_close: OnClose::Accept,
            probe_ms: 0,
        };
        on_park(&config, parked, namespace_full, || accept_queue_full)
    };
    use Admission::{
        Park,
        ParkAndCount,
        ParkAndEvict, //
    };
    use OnTimeout::{
        Accept,
        Reset, //
    };
    assert_eq!(at_limit(Accept, 0, false, true), Ok(Park));
    for parked in [1, 2] {
        assert_eq!(at_limit(Accept, parked, false, true), Ok(ParkAndCount));
    }
    assert_eq!(at_limit(Accept, 3, false, false), Ok(ParkAndEvict));
    assert_eq!(
        at_limit(Accept, 3, false, true),
        Err(Bypass::AcceptQueueFull)
    );
    assert_eq!(at_limit(Reset, 3, false, true), Ok(ParkAndEvict));
    // At the limit of the namespace, which other listeners use up, no client is reset.
    assert_eq!(at_limit(Accept, 1, true, false), Ok(ParkAndEvict));
    let full = Err(Bypass::NamespaceLimit);
    assert_eq!(at_limit(Accept, 1, true, true), full);
    assert_eq!(at_limit(Reset, 2, true, true), full);
    assert_eq!(at_limit(Accept, 0, true, false), full);
}

#[test]
fn a_paused_listener_parks_nothing() {
    for (parked, namespace_full, accept_queue_full) in [(0, false, false), (9, true, true)] {
        let config = Config {
            parking: Parking::Paused,
            ..config_of(0)
        };
        let admission = on_park(&config, parked, namespace_full, || accept_queue_full);
        assert_eq!(admission, Err(Bypass::Paused));
    }
}

#[test]
fn a_pause_resets_and_drops_nothing() {
    for on_timeout in POLICIES {
        let config = Config {
            on_timeout,
            parking: Parking::Paused,
            ..config_of(1)
        };
        // The deadline is over, too.
        let action = timer_action(Nanos(u64::MAX), &config, 1, Some(Nanos(0)), false);
        assert_eq!(action, TimerAction::Expire(Expiry::Pause));
        assert_eq!(Expiry::Pause.outcome(&config), OnTimeout::Accept);
        assert_eq!(Expiry::Timeout.outcome(&config), on_timeout);
        assert_eq!(Expiry::Eviction.outcome(&config), on_timeout);
    }
}

#[test]
fn the_end_of_a_listener_is_told_whatever_it_does_at_a_deadline() {
    for on_timeout in POLICIES {
        let config = Config {
            on_timeout,
            ..config_of(1)
        };
        assert_eq!(Expiry::Stopped.outcome(&config), OnTimeout::Reset);
        assert_eq!(End::of_expired(Expiry::Stopped, on_timeout), End::Aborted);
    }
}

#[test]
fn a_listener_is_looked_at_twice_a_second() {
    let millis = Nanos::from_millis;
    let now = millis(1000);
    for (due, next) in [
        (None, millis(1500)),
        (Some(millis(1001)), millis(1001)),
        (Some(millis(1500)), millis(1500)),
        (Some(millis(60_000)), millis(1500)),
        // Late.
        (Some(millis(999)), millis(999)),
    ] {
        assert_eq!(next_look(now, due), next, "{due:?}");
    }
    assert_eq!(next_look(Nanos(u64::MAX), None), Nanos(u64::MAX));
}

#[test]
fn each_end_has_its_counter() {
    let timeout = Some(Expiry::Timeout);
    let eviction = Some(Expiry::Eviction);
    let syn = Some(Expiry::SynInWindow);
    for (segment, due, end) in [
        (SegmentKind::Data, None, End::Data),
        (SegmentKind::Data, timeout, End::Data),
        (SegmentKind::Fin, None, End::Fin),
        (SegmentKind::BareAck, timeout, End::TimeoutAccept),
        (SegmentKind::BareAck, eviction, End::Evicted),
        (SegmentKind::BareAck, syn, End::Fallback),
        (SegmentKind::BareAck, Some(Expiry::Pause), End::Paused),
        (SegmentKind::Data, Some(Expiry::Stopped), End::Data),
        (SegmentKind::Fin, Some(Expiry::Pause), End::Fin),
        (SegmentKind::BareAck, None, End::Fallback),
    ] {
        assert_eq!(End::of_accepted(segment, due), end, "{segment:?} {due:?}");
    }
}

#[test]
fn waits_are_counted_by_powers_of_two() {
    for (nanos, bucket) in [
        (0, 0),
        (999_999, 0),
        (1_000_000, 1),
        (1_999_999, 1),
        (2_000_000, 2),
        (1_023_000_000, 10),
        (1_024_000_000, 11),
        (u64::MAX, WAIT_BUCKETS - 1),
    ] {
        let mut stats = Stats::default();
        stats.park();
        stats.end(End::Data, Nanos(nanos));
        let mut expected = [0; WAIT_BUCKETS];
        expected[bucket] = 1;
        assert_eq!(stats.wait_log2, expected, "{nanos} ns");
    }
    // A client that sent nothing is not counted.
    let mut stats = Stats::default();
    stats.park();
    stats.end(End::TimeoutAccept, Nanos(5));
    assert_eq!(stats.wait_log2, [0; WAIT_BUCKETS]);
}

#[test]
fn numbers_mean_what_the_header_says() {
    for (number, on_timeout) in POLICIES.into_iter().enumerate() {
        assert_eq!(OnTimeout::from_number(number as u32), Some(on_timeout));
        assert_eq!(on_timeout.number(), number as u32);
    }
    assert_eq!(OnTimeout::from_number(3), None);
    for (number, parking) in [Parking::On, Parking::Paused].into_iter().enumerate() {
        assert_eq!(Parking::from_number(number as u32), Some(parking));
        assert_eq!(parking.number(), number as u32);
    }
    assert_eq!(Parking::from_number(2), None);
    for (number, on_close) in [OnClose::Accept, OnClose::Reset].into_iter().enumerate() {
        assert_eq!(OnClose::from_number(number as u32), Some(on_close));
        assert_eq!(on_close.number(), number as u32);
    }
    assert_eq!(OnClose::from_number(2), None);
}

#[test]
fn data_is_admitted_without_a_look_at_the_phase() {
    let action = on_segment(Verdict::Ready, || panic!("that takes a lock"));
    assert_eq!(action, Action::Admit);
}

#[test]
fn the_names_fit_tcps_table() {
    assert!(Dataready::NAME.len() < 16);
    assert_eq!(Dataready::verdict(SegmentKind::BareAck), Verdict::Wait);
}
