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
fn send_all(burst: &mut Burst, backlog: u32, mut queued: u32, count: u32, now: u64) -> u32 {
    for _ in 0..count {
        let full = queued > backlog;
        if burst.has_room(Joining::Parked, queue(queued, backlog), Nanos(now)) {
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
        let queued = send_all(&mut Burst::default(), backlog, 0, clients, 5);
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
        let queued = send_all(&mut burst, backlog, 0, clients, 7);
        let most = queued.max(backlog + 1);
        prop_assert_eq!(room_for_newcomers(&burst, backlog, 7 + early), most);
        let room = |now| room_for_newcomers(&burst, backlog, 7 + now);
        let (first, last) = (times[0].min(times[1]), times[0].max(times[1]));
        prop_assert!(room(first) >= room(last));
        prop_assert!(room(last) > backlog);
        // Half of it is there after three seconds, and nothing after half a minute.
        prop_assert_eq!(room(3 * SECOND), backlog + 1 + (most - backlog - 1) / 2);
        prop_assert_eq!(room(30 * SECOND), backlog + 1);
    }

    /// A server that is too slow for its clients gets its backlog back: the queue does not stay
    /// long because it is long.
    #[test]
    fn an_overload_does_not_keep_the_queue_long(backlog in 1..500_u32, clients in 0..4_000_u32) {
        let mut burst = Burst::default();
        let mut queued = send_all(&mut burst, backlog, 0, clients, 0);
        let mut parked = 0;
        // 100 clients come and 50 are accepted in a second. Those that are let in are parked, and
        // send a second later.
        for tenth in 0..1_000_u64 {
            let now = tenth * SECOND / 10;
            queued = queued.saturating_sub(5);
            if tenth % 10 == 0 {
                queued = send_all(&mut burst, backlog, queued, parked, now);
                parked = 0;
            }
            for _ in 0..10 {
                let room = burst.has_room(Joining::Newcomer, queue(queued, backlog), Nanos(now));
                parked += u32::from(room);
            }
        }
        // The clients of one second, twice: those that are parked when the queue is full, and
        // those for whose burst there is room a second later.
        prop_assert!(queued <= backlog + 1 + 2 * 100, "{queued}");
    }
}

#[test]
fn the_end_of_time_is_no_exception() {
    let mut burst = Burst::default();
    burst.on_late(queue(u32::MAX, 0), Nanos(u64::MAX));
    assert!(burst.has_room(Joining::Newcomer, queue(7, 3), Nanos(u64::MAX)));
    assert!(burst.has_room(Joining::Newcomer, queue(7, 3), Nanos(0)));
}
