// SPDX-License-Identifier: GPL-2.0-only

//! Properties of the connections that the accept queue holds beyond the backlog.

use accf_policy::{
    AcceptQueue,
    Burst,
    Joining,
    Nanos, //
};
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
const SOMAXCONN: u32 = 4096;

fn queue(queued: u32, backlog: u32) -> AcceptQueue {
    AcceptQueue {
        queued,
        backlog,
        somaxconn: SOMAXCONN,
    }
}

/// Has `count` parked clients send at `now`, and returns how many are in the queue then.
fn send_all(
    burst: &mut Burst,
    backlog: u32,
    mut queued: u32,
    count: u32,
    parked_at: u64,
    now: u64,
) -> u32 {
    let joining = Joining::Parked(Nanos(parked_at));
    for _ in 0..count {
        let full = queued > backlog;
        if burst.has_room(joining, queue(queued, backlog), Nanos(now)) {
            if full {
                burst.on_late(queue(queued, backlog), Nanos(now));
            }
            queued += 1;
        }
    }
    queued
}

/// Returns how many new clients join an empty queue until it is full for them.
fn room_for_newcomers(burst: &Burst, backlog: u32, now: u64) -> u32 {
    (0..)
        .find(|&queued| !burst.has_room(Joining::Newcomer, queue(queued, backlog), Nanos(now)))
        .unwrap()
}

proptest! {
    /// A listener without a burst has room for one more than its backlog, as TCP says.
    #[test]
    fn without_a_burst_the_backlog_is_what_listen_has_set(
        backlog in 0..SOMAXCONN,
        queued in 0..2 * SOMAXCONN,
        now: u64,
    ) {
        let room = Burst::default().has_room(Joining::Newcomer, queue(queued, backlog), Nanos(now));
        prop_assert_eq!(room, queued <= backlog);
    }

    /// No parked client is refused before the queue is as long as any listener's may be, and none
    /// is let in afterwards.
    #[test]
    fn parked_clients_have_the_room_that_somaxconn_gives(
        backlog in 0..2 * SOMAXCONN,
        clients in 0..3 * SOMAXCONN,
    ) {
        let queued = send_all(&mut Burst::default(), backlog, 0, clients, 5, SECOND);
        prop_assert_eq!(queued, clients.min(backlog.max(SOMAXCONN) + 1));
    }

    /// In a burst, and for a while after it, new clients are let in as soon as the server has
    /// accepted one; then their room shrinks until it is that of the backlog.
    #[test]
    fn the_room_for_newcomers_shrinks(
        backlog in 0..1_000_u32,
        clients in 0..3_000_u32,
        early in 0..=SECOND,
        times in prop::collection::vec(0..20 * SECOND, 2),
    ) {
        let mut burst = Burst::default();
        let began = SECOND;
        let queued = send_all(&mut burst, backlog, 0, clients, 0, began);
        let most = queued.max(backlog + 1);
        prop_assert_eq!(room_for_newcomers(&burst, backlog, began + early), most);
        let room = |now| room_for_newcomers(&burst, backlog, began + now);
        let (first, last) = (times[0].min(times[1]), times[0].max(times[1]));
        prop_assert!(room(first) >= room(last));
        prop_assert!(room(last) > backlog);
        // Half of it is there after three seconds, and nothing after half a minute.
        prop_assert_eq!(room(3 * SECOND), backlog + 1 + (most - backlog - 1) / 2);
        prop_assert_eq!(room(30 * SECOND), backlog + 1);
    }

    /// A server that is too slow for its clients keeps its backlog, however much too slow it is:
    /// every client is parked for a round trip, which is no burst.
    #[test]
    fn an_overload_is_no_burst(
        backlog in 16..300_u32,
        times in 2..12_u32,
        round_trip in 1..9_u64,
        idle in 0..2_000_u32,
    ) {
        const TICK: u64 = SECOND / 100;
        const SERVED: u32 = 10;
        let mut burst = Burst::default();
        // Idle clients send once, in the overload.
        let mut queued = send_all(&mut burst, backlog, 0, idle, 0, SECOND);
        let mut under_way = std::collections::VecDeque::new();
        let (mut sum, mut long, mut ticks) = (0_u64, 0_u64, 0_u64);
        let begin = SECOND / TICK;
        for tick in begin..begin + 60 * 100 {
            let now = tick * TICK;
            queued = queued.saturating_sub(SERVED);
            while under_way.front().is_some_and(|&at| at + round_trip * TICK <= now) {
                let at = under_way.pop_front().unwrap();
                queued = send_all(&mut burst, backlog, queued, 1, at, now);
            }
            for _ in 0..SERVED * times {
                if burst.has_room(Joining::Syn, queue(queued, backlog), Nanos(now)) {
                    under_way.push_back(now);
                }
            }
            // The idle ones have been worked off, and their room is gone.
            if tick > begin + 35 * 100 {
                sum += u64::from(queued);
                long += u64::from(queued > 2 * backlog);
                ticks += 1;
            }
        }
        prop_assert!(sum / ticks <= u64::from(backlog) + 1, "{} on average", sum / ticks);
        prop_assert_eq!(long, 0);
    }
}

/// Returns a burst that began at a second, of clients parked long before, with this excess.
fn burst_of(excess: u32) -> Burst {
    let mut burst = Burst::default();
    send_all(&mut burst, 10, 11, excess, 0, SECOND);
    burst
}

#[test]
fn a_burst_grows_for_a_second() {
    for (later, most) in [(SECOND - 1, 11 + 50), (SECOND, 11 + 20)] {
        let mut burst = burst_of(20);
        send_all(&mut burst, 10, 11, 50, 0, SECOND + later);
        assert_eq!(room_for_newcomers(&burst, 10, SECOND + SECOND), most);
    }
}

#[test]
fn a_burst_that_shrinks_and_grows_again_is_as_large_as_it_was() {
    let mut burst = burst_of(20);
    send_all(&mut burst, 10, 11, 5, 0, SECOND + 5);
    assert_eq!(room_for_newcomers(&burst, 10, SECOND + 5), 11 + 20);
}

#[test]
fn there_is_a_second_burst_when_the_first_is_gone() {
    let mut burst = burst_of(20);
    let later = 40 * SECOND;
    assert!(burst.is_over(Nanos(later)));
    send_all(&mut burst, 10, 11, 30, later - SECOND, later);
    assert!(!burst.is_over(Nanos(later)));
    assert_eq!(room_for_newcomers(&burst, 10, later), 11 + 30);
}

#[test]
fn a_client_is_idle_after_a_while() {
    let full = queue(11, 10);
    let may = |burst: &Burst, at, now| burst.has_room(Joining::Parked(Nanos(at)), full, Nanos(now));
    let none = Burst::default();
    assert!(may(&none, SECOND, SECOND + SECOND / 10));
    assert!(!may(&none, SECOND, SECOND + SECOND / 10 - 1));
    // The queue of this burst is as long as it was, so that there is no room for others.
    let burst = burst_of(1);
    let long = queue(12, 10);
    let may = |at, now| burst.has_room(Joining::Parked(Nanos(at)), long, Nanos(now));
    assert!(may(SECOND - 1, SECOND + 1));
    assert!(!may(SECOND, SECOND + SECOND / 2));
    assert!(may(SECOND, SECOND + SECOND));
}

#[test]
fn the_end_of_time_is_no_exception() {
    let mut burst = Burst::default();
    burst.on_late(queue(u32::MAX, 0), Nanos(u64::MAX));
    assert!(burst.has_room(Joining::Newcomer, queue(7, 3), Nanos(u64::MAX)));
    assert!(burst.has_room(Joining::Newcomer, queue(7, 3), Nanos(0)));
}
