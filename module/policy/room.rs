// SPDX-License-Identifier: GPL-2.0-only

//! When to look for room in a full accept queue: as often as the server's own pace asks for.

use super::Nanos;

/// The shortest pause between two looks.
///
/// It bounds what a fast server with a short backlog costs; each look costs about a microsecond.
const SHORTEST: Nanos = Nanos(20_000);

/// The longest pause between two looks: a server that does not accept at all costs 20 looks per
/// second.
const LONGEST: Nanos = Nanos::from_millis(50);

/// The divisor of the part of the accept queue that the server may empty before the next look, and
/// of the part of the server's pause by which a look may come late: a quarter.
const PART: u64 = 4;

/// Returns how long to wait before the next look for room in an accept queue that is full when it
/// holds `capacity` connections, and holds `excess` more now.
///
/// `elapsed` is the time since it was full before, or since it has been full. `accepted` is how
/// many connections the server has taken out of it in that time.
///
/// * None: the next look comes after a quarter of the time that the server has taken so far. So a
///   server that resumes after a pause waits a quarter of that pause at most, and the looks become
///   fewer.
/// * Fewer than the queue holds: the next look comes when the server is expected to have accepted
///   the excess and a quarter of the queue, so that it does not run out of connections.
/// * As many as the queue holds, or more: the queue may have been empty for a while, and the pace
///   is unknown. The next look comes as soon as possible.
fn pause_before_look(elapsed: Nanos, accepted: u32, capacity: u32, excess: u32) -> Nanos {
    let pause = match u64::from(accepted) {
        0 => elapsed.0 / PART,
        accepted if accepted >= u64::from(capacity) + u64::from(excess) => 0,
        accepted => {
            let awaited = u64::from(capacity) + PART * u64::from(excess);
            elapsed.0.saturating_mul(awaited) / (PART * accepted)
        }
    };
    Nanos(pause).max(SHORTEST).min(LONGEST)
}

/// A listener whose expired requests wait for room in its accept queue, and the looks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoomWatch(Option<Watch>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Watch {
    /// Since when the server has not made room, as far as is known.
    since: Nanos,
    /// How many connections were put into the queue since then for requests that waited.
    handed: u32,
    /// How many it held then.
    queued: u32,
    /// When to look again.
    next: Nanos,
}

impl RoomWatch {
    /// Notes that a request was handed over to become a connection.
    pub fn on_handed_over(&mut self) {
        if let Some(watch) = &mut self.0 {
            watch.handed = watch.handed.saturating_add(1);
        }
    }

    /// Notes that a look `now` found `queued` connections in the queue, which is full when it holds
    /// `capacity`. The next look is later than `now`.
    pub fn on_full(&mut self, now: Nanos, queued: u32, capacity: u32) {
        let (since, accepted) = self.0.map_or((now, 0), |watch| {
            let put = watch.queued.saturating_add(watch.handed);
            (watch.since, put.saturating_sub(queued))
        });
        let elapsed = Nanos(now.0.saturating_sub(since.0));
        let excess = queued.saturating_sub(capacity);
        self.0 = Some(Watch {
            since: if accepted == 0 { since } else { now },
            handed: 0,
            queued,
            next: now.after(pause_before_look(elapsed, accepted, capacity, excess)),
        });
    }

    /// Notes that no request waits for room.
    pub fn stop(&mut self) {
        self.0 = None;
    }

    /// Returns when to look, for requests that wait for room: at once, if that is new.
    pub fn next(&self, now: Nanos) -> Nanos {
        self.0.map_or(now, |watch| watch.next)
    }
}
