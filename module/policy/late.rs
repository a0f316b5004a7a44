// SPDX-License-Identifier: GPL-2.0-only

//! A burst of requests: the connections that the accept queue holds beyond the backlog.
//!
//! A plain listener's server has accepted its idle clients long before they send. A filtered
//! listener's parked clients become connections when they send; if many do at once, their server
//! has not been slow, and none of them may be refused. So the request of a parked client makes a
//! connection although the backlog is full, up to what the namespace's administrator lets any
//! listener have (`net.core.somaxconn`).
//!
//! The server then works through a queue that is longer than its backlog. On a plain listener new
//! clients would find an empty queue meanwhile, so here they find one of the length of the burst:
//! for a while, and for less and less. A server that is slow for longer gets its backlog back,
//! which protects it.

use super::Nanos;

/// For how long a burst may grow, and stays as large as it is.
const GROWTH: Nanos = Nanos::from_millis(1_000);
/// How long it takes afterwards until new clients get half of the room that they had.
const HALF_LIFE: Nanos = Nanos::from_millis(2_000);

/// How long a client must have been parked for its request to begin a burst.
///
/// Every client is parked for the time until its request comes, which is not idleness. If those
/// counted, a server that is too slow for its clients would have a burst all the time.
const IDLE: Nanos = Nanos::from_millis(100);
/// The same for one that was parked after the last burst began, while that is not over.
const IDLE_SINCE_BURST: Nanos = Nanos::from_millis(1_000);

/// What is to become a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joining {
    /// The request of a client that was parked at this time, and has been until now.
    Parked(Nanos),
    /// A request of a client that is not parked: it came with the bare ACK, or before it.
    Newcomer,
    /// A SYN.
    Syn,
}

/// The accept queue of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptQueue {
    /// How many connections it holds (`sk_ack_backlog`).
    pub queued: u32,
    /// The backlog that `listen()` has set. The queue is full if it holds more than that.
    pub backlog: u32,
    /// The longest backlog that `listen()` may set (`net.core.somaxconn`).
    pub somaxconn: u32,
}

/// The last burst of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Burst(Option<Excess>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Excess {
    /// When the first connection beyond the backlog was made.
    began: Nanos,
    /// The most connections beyond the backlog that the queue has held while it grew.
    most: u32,
}

impl AcceptQueue {
    /// Returns how many connections it holds when it is full.
    pub const fn capacity(&self) -> u32 {
        self.backlog.saturating_add(1)
    }

    /// Returns whether it is full (`sk_acceptq_is_full()`).
    pub const fn is_full(&self) -> bool {
        self.queued > self.backlog
    }
}

impl Burst {
    /// Returns whether `joining` may become a connection at `now`.
    pub fn has_room(&self, joining: Joining, queue: AcceptQueue, now: Nanos) -> bool {
        let room = match joining {
            Joining::Parked(at) if self.was_idle(at, now) => queue.backlog.max(queue.somaxconn),
            _ => queue.backlog.saturating_add(self.room_for_newcomers(now)),
        };
        queue.queued <= room
    }

    /// Returns whether a client that was parked at `at`, and sends at `now`, is one of those that a
    /// plain listener's server would have accepted long ago.
    fn was_idle(&self, at: Nanos, now: Nanos) -> bool {
        let idle = Nanos(now.0.saturating_sub(at.0));
        match self.0 {
            Some(last) if !self.is_over(now) => at < last.began || idle >= IDLE_SINCE_BURST,
            _ => idle >= IDLE,
        }
    }

    /// Returns whether there is no burst any more for which new clients have room.
    pub fn is_over(&self, now: Nanos) -> bool {
        self.0
            .is_none_or(|last| now >= last.began.after(GROWTH) && self.room_for_newcomers(now) == 0)
    }

    /// Notes that the request of a parked client was made a connection at `now`, which goes into
    /// `queue` next.
    pub fn on_late(&mut self, queue: AcceptQueue, now: Nanos) {
        let excess = queue
            .queued
            .saturating_add(1)
            .saturating_sub(queue.capacity());
        match self.0 {
            Some(last) if now < last.began.after(GROWTH) => {
                let most = last.most.max(excess);
                self.0 = Some(Excess { most, ..last });
            }
            // It only shrinks, so that a server that is too slow for its clients does not keep a
            // queue that is longer than its backlog.
            Some(_) if !self.is_over(now) => {}
            _ => {
                self.0 = Some(Excess {
                    began: now,
                    most: excess,
                });
            }
        }
    }

    /// Returns how far beyond the backlog new clients may join at `now`.
    fn room_for_newcomers(&self, now: Nanos) -> u32 {
        let Some(Excess { began, most }) = self.0 else {
            return 0;
        };
        let shrinking = now.0.saturating_sub(began.after(GROWTH).0);
        let halvings = u32::try_from(shrinking / HALF_LIFE.0).unwrap_or(u32::MAX);
        let at_begin = most.checked_shr(halvings).unwrap_or(0);
        // A straight line from one halving to the next.
        let gone = u64::from(at_begin) * (shrinking % HALF_LIFE.0) / (2 * HALF_LIFE.0);
        at_begin - gone as u32
    }
}
