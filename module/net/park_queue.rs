// SPDX-License-Identifier: GPL-2.0-only

//! The parked requests of a listener.

use kernel::{
    list::{
        List,
        ListArc, //
    },
    prelude::*,
    sync::{
        Arc,
        ArcBorrow,
        UniqueArc, //
    },
    time::hrtimer::ArcHrTimerHandle, //
};

use crate::policy::{
    self,
    Bypass,
    Config,
    Expiry,
    Nanos,
    OnTimeout,
    Stats, //
};

use super::{
    listener::Listener,
    parked_request::ParkedRequest,
    reqsk_ops::RequestOpsOverride, //
};

/// So many requests meet their deadline in one run of the timer; the rest follow in the next, so that other softirqs get
/// their turn.
pub(super) const BUDGET: usize = 64;

/// So many [`ParkedRequest`] of requests that are gone are kept, 4 KiB.
pub(super) const SPARE: usize = 64;

/// May requests be parked?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Not yet: there may be CPUs that make connections without asking us.
    Attached,
    /// Yes.
    Active,
    /// No more.
    Closed,
}

/// What the lock guards.
pub(super) struct ParkQueue {
    /// The parked requests but for those in `fresh`, which were parked later.
    pub(super) deferred: List<ParkedRequest>,
    /// Those whose own timers have not been put off, as they do not fire soon, and who came after such a one.
    pub(super) armed: List<ParkedRequest>,
    pub(super) stats: Stats,
    pub(super) config: Config,
    /// So many of the parked requests keep their place in the SYN backlog, at most.
    pub(super) backlog_share: u32,
    /// So many of them do not count against it.
    pub(super) backlog_excluded: u64,
    /// So many of them are due, and in somebody's hands.
    pub(super) expired: u64,
    /// When the timer fires, if it is set.
    pub(super) timer_at: Option<Nanos>,
    /// That of the last request parked, as a rule that of the next one, too.
    pub(super) ops_override: Option<&'static RequestOpsOverride>,
    pub(super) state: State,
    /// Of requests that are not parked any more, for those to come: as a rule, as many come as go.
    pub(super) spare: KVec<Pin<UniqueArc<ParkedRequest>>>,
    /// Stops the timer when dropped, which waits for the timer's handler: never under the lock.
    pub(super) timer: Option<ArcHrTimerHandle<Listener>>,
}

impl ParkQueue {
    pub(super) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// How many wait: the parked ones that are not due.
    pub(super) fn unexpired(&self) -> u64 {
        self.stats.parked - self.expired
    }

    /// The one that has waited longest.
    pub(super) fn oldest(&self) -> Option<ArcBorrow<'_, ParkedRequest>> {
        // As many are due as CPUs are at it, at most (on PREEMPT_RT, as tasks are).
        Iterator::chain(self.deferred.iter(), self.armed.iter())
            .find(|parked| parked.flags().expired().is_none())
    }

    /// One for a request to come.
    #[inline(always)]
    pub(super) fn take_spare(&mut self) -> Result<Pin<UniqueArc<ParkedRequest>>, Bypass> {
        match self.spare.pop() {
            Some(spare) => Ok(spare),
            None => ParkedRequest::new().map_err(|_| Bypass::NoMemory),
        }
    }

    /// Keeps what a request that is gone has left, unless somebody still looks at it, or enough is kept.
    #[inline]
    pub(super) fn recycle(&mut self, parked: Arc<ParkedRequest>) {
        if self.is_closed() || self.spare.len() == self.spare.capacity() {
            return;
        }
        if let Some(spare) = Arc::into_unique_or_drop(parked) {
            self.push_spare(spare);
        }
    }

    /// Keeps one that nobody looks at, unless enough is kept.
    #[inline]
    pub(super) fn push_spare(&mut self, spare: Pin<UniqueArc<ParkedRequest>>) {
        // What there is no room for comes back, and is dropped.
        let _ = self.spare.push_within_capacity(spare);
    }

    /// Takes the one that was parked first.
    pub(super) fn pop_front(&mut self) -> Option<ListArc<ParkedRequest>> {
        self.deferred.pop_front().or_else(|| self.armed.pop_front())
    }

    /// When the own timers of fresh requests are to be put off, if there are any.
    pub(super) fn deferral_at(&self) -> Option<Nanos> {
        self.armed
            .iter()
            .next()
            .map(|first| policy::synack_timer_deferral(first.parked_at()))
    }

    /// Puts the own timers of requests off that have waited for long enough to be worth it, of [`BUDGET`] of them at most.
    pub(super) fn defer_timers(&mut self, now: Nanos) {
        if self.deferral_at().is_none_or(|end| end > now) {
            return;
        }
        for _ in 0..BUDGET {
            let is_next = |first: ArcBorrow<'_, ParkedRequest>| {
                policy::is_deferred_with_batch(now, first.parked_at())
            };
            if !self.armed.iter().next().is_some_and(is_next) {
                return;
            }
            let Some(parked) = self.armed.pop_front() else {
                return;
            };
            // SAFETY: it was in the queue, and the lock is held.
            let request = unsafe { parked.request() };
            // Where it is not pending, its handler runs: it is late, will not send anything, and sets the timer to as late as it
            // ever does. Or the request is about to leave.
            request.defer_timer();
            parked.set_timer_deferred();
            self.deferred.push_back(parked);
        }
    }

    /// Marks a parked request as one whose time is up, or one that waits on.
    pub(super) fn set_expired(
        &mut self,
        parked: &ParkedRequest,
        expired: Option<(Expiry, OnTimeout)>,
    ) {
        self.expired -= u64::from(parked.flags().expired().is_some());
        self.expired += u64::from(expired.is_some());
        parked.set_expired(expired);
    }
}
