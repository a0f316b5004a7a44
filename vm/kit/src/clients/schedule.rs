// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is to be done when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Actions, each with the time from which on it is to be done.
#[derive(Debug)]
pub(super) struct Schedule<T>(BinaryHeap<Reverse<(Instant, T)>>);

impl<T: Ord> Schedule<T> {
    pub(super) fn new() -> Self {
        Self(BinaryHeap::new())
    }

    pub(super) fn add(&mut self, at: Instant, action: T) {
        self.0.push(Reverse((at, action)));
    }

    /// Returns when the next action is to be done.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes out the next action whose time has come.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<T> {
        if self.next()? > now {
            return None;
        }
        self.0.pop().map(|Reverse((_, action))| action)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn actions_expire_in_the_order_of_their_times() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut schedule = Schedule::new();
        for ms in [20, 10, 30] {
            schedule.add(after(ms), ms);
        }
        assert_eq!(schedule.next(), Some(after(10)));
        assert_eq!(schedule.pop_expired(after(9)), None);
        assert_eq!(schedule.pop_expired(after(20)), Some(10));
        assert_eq!(schedule.pop_expired(after(20)), Some(20));
        assert_eq!(schedule.pop_expired(after(20)), None);
        assert_eq!(schedule.next(), Some(after(30)));
    }
}
