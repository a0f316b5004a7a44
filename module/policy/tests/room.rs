// SPDX-License-Identifier: GPL-2.0-only

//! Properties of how expired requests wait for room in the accept queue.

use accf_policy::{
    Nanos,
    RoomWatch, //
};
use proptest::prelude::*;

const MICRO: u64 = 1_000;
const MILLI: u64 = 1_000_000;

/// The shortest and the longest pause between two looks.
const SHORTEST: u64 = 20 * MICRO;
const LONGEST: u64 = 50 * MILLI;

/// How many looks a server costs at most after it has accepted, beside those at the longest pause:
/// the pause grows by a quarter of the time so far.
const LOOKS: u64 = 41;

/// A listener with any number of expired requests that wait, and an accept queue.
struct Listener {
    now: u64,
    capacity: u32,
    queued: u32,
    watch: RoomWatch,
    looks: u64,
}

impl Listener {
    /// Returns a listener at the deadline of its requests.
    fn new(capacity: u32) -> Self {
        let mut listener = Self {
            now: 0,
            capacity,
            queued: 0,
            watch: RoomWatch::default(),
            looks: 0,
        };
        listener.look();
        listener
    }

    /// Fills the queue, as the listener's timer does.
    fn look(&mut self) {
        self.looks += 1;
        while self.queued < self.capacity {
            self.watch.on_handed_over();
            self.queued += 1;
        }
        let now = Nanos(self.now);
        self.watch.on_full(now, self.queued, self.capacity);
        let pause = self.watch.next(now).0 - self.now;
        assert!((SHORTEST..=LONGEST).contains(&pause), "a pause of {pause}");
    }

    /// Returns when the next look is.
    fn next(&self) -> u64 {
        self.watch.next(Nanos(self.now)).0
    }

    /// Lets time pass.
    fn pass(&mut self, until: u64) {
        while self.next() <= until {
            self.now = self.next();
            self.look();
        }
        self.now = until;
    }

    /// Takes a connection out of the queue, and waits for one if there is none.
    fn accept(&mut self) {
        if self.queued == 0 {
            self.pass(self.next());
        }
        self.queued -= 1;
    }
}

/// Returns the pause after two looks `elapsed` apart, with `handed` connections in between.
fn pause(elapsed: u64, handed: u32, capacity: u32) -> u64 {
    let mut watch = RoomWatch::default();
    watch.on_full(Nanos(0), capacity, capacity);
    for _ in 0..handed {
        watch.on_handed_over();
    }
    let now = Nanos(elapsed);
    watch.on_full(now, capacity, capacity);
    watch.next(now).0 - elapsed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// A server with any work for each connection gets its clients at its own pace. (If it empties
    /// the queue in less than the shortest pause, it waits for that.)
    #[test]
    fn a_steady_server_does_not_wait(
        work in 2 * MICRO..20 * MILLI,
        capacity in 4..200_u32,
        clients in 200..1_000_u64,
    ) {
        let mut listener = Listener::new(capacity);
        for _ in 0..clients {
            listener.accept();
            listener.pass(listener.now + work);
        }
        let fills = clients / u64::from(capacity) + 2;
        let most = clients * work * 11 / 10 + fills * SHORTEST;
        prop_assert!(listener.now <= most, "{} of {}", listener.now, clients * work);
        // Each look but the first few has a purpose.
        let most = LOOKS + 6 * clients / u64::from(capacity.min(4)) + listener.now / LONGEST;
        prop_assert!(listener.looks <= most, "{} looks", listener.looks);
    }

    /// A server with the shortest backlogs is not held up by much.
    #[test]
    fn a_short_backlog_costs_little(work in 80 * MICRO..20 * MILLI, capacity in 1..4_u32) {
        const CLIENTS: u64 = 200;
        let mut listener = Listener::new(capacity);
        for _ in 0..CLIENTS {
            listener.accept();
            listener.pass(listener.now + work);
        }
        let most = CLIENTS * work * 5 / 4 + LONGEST;
        prop_assert!(listener.now <= most, "{} of {}", listener.now, CLIENTS * work);
    }

    /// Whatever the server does, the number of looks is bounded: by how often it accepts, and by 20
    /// in a second.
    #[test]
    fn the_looks_are_bounded(
        capacity in 1..5_000_u32,
        steps in prop::collection::vec((1..200 * MILLI, 0..200_u32), 0..50),
    ) {
        let mut listener = Listener::new(capacity);
        let mut accepts = 0;
        for (time, burst) in steps {
            listener.pass(listener.now + time);
            let burst = burst.min(listener.queued);
            listener.queued -= burst;
            accepts += u64::from(burst > 0);
        }
        let most = (accepts + 1) * LOOKS + listener.now / LONGEST;
        prop_assert!(listener.looks <= most, "{} looks, {most} allowed", listener.looks);
    }

    /// A server that resumes after a pause waits for at most a quarter of that pause.
    #[test]
    fn a_look_is_late_by_a_quarter(capacity in 1..5_000_u32, pause in 1..10_000 * MILLI) {
        let mut listener = Listener::new(capacity);
        listener.pass(pause);
        let late = listener.next() - listener.now;
        prop_assert!(late <= (pause / 4).clamp(SHORTEST, LONGEST));
    }

    /// The more the server accepts, the sooner the next look; the longer it takes, the later.
    #[test]
    fn the_pause_is_monotone(
        elapsed in 0..u64::MAX / 2,
        more: u32,
        handed in 0..5_000_u32,
        faster in 1..5_000_u32,
        capacity in 1..5_000_u32,
    ) {
        let this = pause(elapsed, handed, capacity);
        prop_assert!((SHORTEST..=LONGEST).contains(&this));
        prop_assert!(pause(elapsed + u64::from(more), handed, capacity) >= this);
        if handed > 0 {
            prop_assert!(pause(elapsed, handed + faster, capacity) <= this);
        }
    }
}

#[test]
fn a_server_that_never_accepts_costs_20_looks_in_a_second() {
    const SECOND: u64 = 1_000 * MILLI;
    let mut listener = Listener::new(17);
    listener.pass(SECOND);
    assert!(listener.looks <= 60, "{} looks", listener.looks);
    let before = listener.looks;
    listener.pass(11 * SECOND);
    assert_eq!(listener.looks - before, 200);
}

#[test]
fn the_end_of_time_is_no_exception() {
    let mut watch = RoomWatch::default();
    watch.on_full(Nanos(u64::MAX), u32::MAX, u32::MAX);
    assert_eq!(watch.next(Nanos(u64::MAX)), Nanos(u64::MAX));
    assert_eq!(pause(u64::MAX / 2, 1, u32::MAX), LONGEST);
}

#[test]
fn without_a_request_that_waits_there_is_no_pace() {
    let mut watch = RoomWatch::default();
    assert_eq!(watch.next(Nanos(5)), Nanos(5));
    watch.on_full(Nanos(5), 17, 17);
    watch.on_full(Nanos(MILLI), 17, 17);
    watch.stop();
    watch.on_handed_over();
    assert_eq!(watch, RoomWatch::default());
}

/// A burst of others has made the queue longer than the backlog. The server works through it, and
/// that is its pace, although no request that waits was handed over.
#[test]
fn a_server_that_works_through_an_excess_is_not_taken_for_an_idle_one() {
    const CAPACITY: u32 = 17;
    const WORK: u64 = MILLI;
    let mut watch = RoomWatch::default();
    let mut looks = 0;
    let mut now = 0;
    loop {
        let queued = 800_u64.saturating_sub(now / WORK) as u32;
        if queued < CAPACITY {
            break;
        }
        watch.on_full(Nanos(now), queued, CAPACITY);
        now = watch.next(Nanos(now)).0;
        looks += 1;
    }
    let room_at = (801 - u64::from(CAPACITY)) * WORK;
    let late = now - room_at;
    assert!(late <= 5 * WORK, "{late} ns late after {looks} looks");
    assert!(looks <= 60, "{looks} looks");
}
