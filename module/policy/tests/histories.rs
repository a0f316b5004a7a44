// SPDX-License-Identifier: GPL-2.0-only

//! Properties of whole histories of a listener, driven through the policy as `net/` drives it.

use std::collections::VecDeque;

use accf_policy::{
    on_alarm, on_segment, on_synack, Action, Alarm, Dataready, Filter, Nanos, Phase, Segment,
    SynAck, Timeout, Trigger, Verdict,
};
use proptest::prelude::*;

/// What can happen to one listener.
#[derive(Clone, Debug)]
enum Event {
    /// This client's segment comes in.
    Segment(usize, Segment),
    /// This client resets its connection.
    Reset(usize),
    /// So many nanoseconds pass.
    Time(u64),
    /// The server calls `accept()`.
    Accept,
}

/// How one client's request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Admitted(u64),
    Expired(u64),
    Reset,
}

/// A listener as `net/listener.rs` keeps it, without the kernel.
struct Listener {
    timeout: Timeout,
    backlog: usize,
    now: u64,
    queue: VecDeque<(usize, u64)>,
    alarm: Option<u64>,
    accept_queue: usize,
    ends: Vec<Option<End>>,
    parked_at: Vec<Option<u64>>,
    swallowed: usize,
}

impl Listener {
    fn new(timeout: Timeout, clients: usize, backlog: usize) -> Self {
        Self {
            timeout,
            backlog,
            now: 0,
            queue: VecDeque::new(),
            alarm: None,
            accept_queue: 0,
            ends: vec![None; clients],
            parked_at: vec![None; clients],
            swallowed: 0,
        }
    }

    /// As `sk_acceptq_is_full()`.
    fn is_full(&self) -> bool {
        self.accept_queue > self.backlog
    }

    fn end(&mut self, client: usize, end: End) {
        assert_eq!(self.ends[client], None, "client {client} ended twice");
        self.ends[client] = Some(end);
        self.queue.retain(|&(parked, _)| parked != client);
    }

    fn arrive(&mut self, client: usize, segment: Segment) {
        if self.ends[client].is_some() {
            return;
        }
        let phase = match self.queue.iter().any(|&(parked, _)| parked == client) {
            true => Phase::Parked,
            false => Phase::Fresh,
        };
        match on_segment::<Dataready>(phase, segment) {
            Action::Park => {
                assert_eq!(phase, Phase::Fresh);
                self.queue.push_back((client, self.now));
                self.parked_at[client] = Some(self.now);
                self.swallowed += 1;
                if self.alarm.is_none() {
                    self.alarm = self.timeout.deadline(Nanos(self.now)).map(|at| at.0);
                }
            }
            Action::Hold => {
                assert_eq!(phase, Phase::Parked);
                self.swallowed += 1;
            }
            Action::Admit if self.is_full() => {}
            Action::Admit => {
                self.accept_queue += 1;
                self.end(client, End::Admitted(self.now));
            }
        }
    }

    fn pass(&mut self, nanos: u64) {
        let until = self.now + nanos;
        while let Some(at) = self.alarm.filter(|&at| at <= until) {
            self.now = self.now.max(at);
            self.ring();
        }
        self.now = until;
    }

    fn ring(&mut self) {
        loop {
            let oldest = self.queue.front().map(|&(_, at)| Nanos(at));
            match on_alarm(Nanos(self.now), oldest, self.timeout, self.is_full()) {
                Alarm::Idle => {
                    self.alarm = None;
                    return;
                }
                Alarm::At(at) => {
                    assert!(
                        at.0 > self.now,
                        "an alarm in the past would never let go of the CPU"
                    );
                    self.alarm = Some(at.0);
                    return;
                }
                Alarm::Due => {
                    let (client, _) = self.queue[0];
                    assert_eq!(
                        on_segment::<Dataready>(Phase::Due, Segment::BareAck),
                        Action::Admit
                    );
                    self.accept_queue += 1;
                    self.end(client, End::Expired(self.now));
                }
            }
        }
    }

    fn step(&mut self, event: &Event) {
        match *event {
            Event::Segment(client, segment) => self.arrive(client, segment),
            Event::Reset(client) if self.ends[client].is_none() => self.end(client, End::Reset),
            Event::Reset(_) => {}
            Event::Time(nanos) => self.pass(nanos),
            Event::Accept => self.accept_queue = self.accept_queue.saturating_sub(1),
        }
        assert!(
            self.queue
                .iter()
                .zip(self.queue.iter().skip(1))
                .all(|(a, b)| a.1 <= b.1),
            "out of order"
        );
    }
}

const CLIENTS: usize = 12;

fn segment() -> impl Strategy<Value = Segment> {
    prop_oneof![
        4 => Just(Segment::BareAck),
        1 => Just(Segment::Data),
        1 => Just(Segment::Fin),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..CLIENTS, segment()).prop_map(|(client, segment)| Event::Segment(client, segment)),
        1 => (0..CLIENTS).prop_map(Event::Reset),
        3 => (0..20_000_000_000_u64).prop_map(Event::Time),
        2 => Just(Event::Accept),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// With room in the accept queue, a client that was parked ends at its deadline to the nanosecond, or before it.
    #[test]
    fn nobody_waits_past_the_deadline(
        millis in 1..60_000_u32,
        events in prop::collection::vec(event(), 0..200),
    ) {
        let timeout = Timeout::from_millis(millis);
        let mut listener = Listener::new(timeout, CLIENTS, CLIENTS);
        for event in &events {
            listener.step(event);
        }
        listener.pass(u64::from(millis) * 1_000_000);
        for (client, parked_at) in listener.parked_at.iter().enumerate() {
            let Some(parked_at) = *parked_at else { continue };
            let deadline = parked_at + u64::from(millis) * 1_000_000;
            match listener.ends[client] {
                Some(End::Expired(at)) => prop_assert_eq!(at, deadline),
                Some(End::Admitted(at)) => prop_assert!(at <= deadline),
                Some(End::Reset) => {}
                None => prop_assert!(false, "client {} was forgotten", client),
            }
        }
        prop_assert!(listener.queue.is_empty());
    }

    /// A full accept queue delays a connection, and loses none: all are accepted once the server accepts.
    #[test]
    fn a_full_accept_queue_loses_nobody(
        millis in 1..5_000_u32,
        backlog in 0..3_usize,
        events in prop::collection::vec(event(), 0..200),
    ) {
        let mut listener = Listener::new(Timeout::from_millis(millis), CLIENTS, backlog);
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
                let end = listener.ends[client];
                prop_assert!(end.is_some());
                if let Some(End::Expired(at)) = end {
                    prop_assert!(at >= parked_at + u64::from(millis) * 1_000_000, "accepted early");
                }
            }
        }
    }

    /// Without a deadline a silent client waits for ever, and the timer is never set.
    #[test]
    fn without_a_timeout_only_the_client_decides(events in prop::collection::vec(event(), 0..200)) {
        let mut listener = Listener::new(Timeout::from_millis(0), CLIENTS, CLIENTS);
        for event in &events {
            listener.step(event);
            prop_assert_eq!(listener.alarm, None);
        }
        prop_assert!(!listener.ends.iter().any(|end| matches!(end, Some(End::Expired(_)))));
    }

    /// The alarm never fires before the deadline, and never lies in the past.
    #[test]
    fn alarms_lie_ahead(now: u64, parked_at in prop::option::of(any::<u64>()), millis: u32, full: bool) {
        let timeout = Timeout::from_millis(millis);
        let deadline = parked_at.and_then(|at| timeout.deadline(Nanos(at)));
        match on_alarm(Nanos(now), parked_at.map(Nanos), timeout, full) {
            Alarm::Idle => prop_assert_eq!(deadline, None),
            Alarm::At(at) => {
                let deadline = deadline.expect("a deadline");
                prop_assert!(at.0 > now || now == u64::MAX);
                prop_assert!(at == deadline || (full && now >= deadline.0));
            }
            Alarm::Due => prop_assert!(!full && now >= deadline.expect("a deadline").0),
        }
    }

    /// Data and the end of the stream are never held back, whatever the phase.
    #[test]
    fn what_the_server_can_read_is_admitted(
        phase in prop::sample::select(vec![Phase::Fresh, Phase::Exempt, Phase::Parked, Phase::Due]),
        segment in prop::sample::select(vec![Segment::Data, Segment::Fin]),
    ) {
        prop_assert_eq!(on_segment::<Dataready>(phase, segment), Action::Admit);
    }
}

#[test]
fn a_bare_ack_parks_only_what_may_be_parked() {
    for (phase, action) in [
        (Phase::Fresh, Action::Park),
        (Phase::Parked, Action::Hold),
        (Phase::Exempt, Action::Admit),
        (Phase::Due, Action::Admit),
    ] {
        assert_eq!(
            on_segment::<Dataready>(phase, Segment::BareAck),
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
fn zero_milliseconds_hold_until_data() {
    assert_eq!(Timeout::from_millis(0), Timeout::Never);
    assert_eq!(Timeout::Never.deadline(Nanos(7)), None);
    assert_eq!(
        Timeout::from_millis(1).deadline(Nanos(7)),
        Some(Nanos(1_000_007))
    );
}

#[test]
fn a_deadline_past_the_end_of_time_is_the_end_of_time() {
    assert_eq!(
        Timeout::from_millis(u32::MAX).deadline(Nanos(u64::MAX)),
        Some(Nanos(u64::MAX))
    );
}

#[test]
fn the_names_fit_tcps_table() {
    assert!(Dataready::NAME.len() < 16);
    assert_eq!(Dataready::verdict(Segment::BareAck), Verdict::Wait);
}
