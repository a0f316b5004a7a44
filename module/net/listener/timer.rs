// SPDX-License-Identifier: GPL-2.0-only

//! The listener's timer: deadlines, and deferring SYN-ACK timers.

use core::ptr;

use kernel::{
    impl_has_hr_timer,
    sync::{
        rcu,
        Arc,
        ArcBorrow, //
    },
    time::{
        hrtimer::{
            HasHrTimer,
            HrTimerCallback,
            HrTimerCallbackContext,
            HrTimerPointer,
            HrTimerRestart,
            RelativeSoftMode, //
        },
        ClockSource,
        Delta,
        Monotonic, //
    }, //
};

use crate::{
    net::{
        bh::BhDisabled,
        inject,
        park_queue::{
            ParkQueue,
            BUDGET, //
        },
        parked_request::ParkedRequest,
        reqsk::{
            from_jiffies,
            RequestRef,
            RequestSock, //
        }, //
    },
    policy::{
        self,
        End,
        Expiry,
        Nanos,
        OnTimeout,
        Phase,
        Probing,
        TimerAction, //
    }, //
};

use super::{
    Listener,
    Locked, //
};

/// The pause between two runs of the timer's handler when there is more to do.
const NEXT_RUN: Nanos = Nanos(10_000);

/// Returns the time on the clock of the listener's timer.
pub(super) fn now() -> Nanos {
    // The clock is never negative.
    Nanos(Monotonic::ktime_get() as u64)
}

/// A request that is expired, for this CPU to act on without the lock.
pub(super) struct Expired {
    pub(super) request: RequestRef,
    pub(super) parked: Arc<ParkedRequest>,
    expiry: Expiry,
    on_timeout: OnTimeout,
}

impl_has_hr_timer! {
    impl HasHrTimer<Self> for Listener {
        mode: RelativeSoftMode<Monotonic>, field: self.timer
    }
}

impl HrTimerCallback for Listener {
    type Pointer<'a> = Arc<Self>;

    fn run(this: ArcBorrow<'_, Self>, _ctx: HrTimerCallbackContext<'_, Self>) -> HrTimerRestart {
        // SAFETY: The timer is of a soft mode, so its handler runs in softirq.
        let bh = unsafe { BhDisabled::assume() };
        this.on_timer(&bh, &rcu::read_lock());
        // If it is to fire again, it has been set.
        HrTimerRestart::NoRestart
    }
}

impl Listener {
    /// Returns what the timer has to do.
    fn timer_action(&self, queue: &Locked, now: Nanos) -> TimerAction {
        if queue.next_dead().is_some() {
            return TimerAction::Expire(Expiry::Died);
        }
        let oldest = queue.oldest().map(|oldest| oldest.parked_at());
        let sock = self.listen_sock();
        // TCP hands segments to a listener that takes over, the rebuilt ACK included.
        if oldest.is_some() && !sock.is_listening() && !sock.has_taker() {
            return TimerAction::Expire(Expiry::Stopped);
        }
        policy::timer_action(
            now,
            &queue.config,
            queue.unexpired(),
            oldest,
            self.accept_queue(queue).is_full(),
        )
    }

    /// Sets the timer to when there will be something to do.
    ///
    /// # Safety
    ///
    /// `queue` must be this listener's.
    pub(super) unsafe fn schedule(self: ArcBorrow<'_, Self>, queue: &mut Locked, now: Nanos) {
        if queue.is_closed() {
            return;
        }
        let action = self.timer_action(queue, now);
        let at = earlier(firing_time(queue, now, action), queue.deferral_at());
        // SAFETY: The queue is this listener's by the contract of this function.
        unsafe { self.set_timer(queue, now, at) };
    }

    /// Sets the timer to `at`, or earlier if a request is parked ([`policy::next_look`]). May be
    /// called by its own handler.
    ///
    /// # Safety
    ///
    /// `queue` must be this listener's.
    unsafe fn set_timer(
        self: ArcBorrow<'_, Self>,
        queue: &mut Locked,
        now: Nanos,
        at: Option<Nanos>,
    ) {
        let is_watched = queue.unexpired() != 0;
        let at = is_watched.then(|| policy::next_look(now, at)).or(at);
        queue.timer_at = at;
        // If the timer is still set, it will find nothing to do. The next request that is parked
        // sets it again.
        let Some(at) = at else {
            return;
        };
        if queue.timer.is_none() {
            queue.timer = Some(Arc::from(self).start(delta(now, at)));
        } else {
            // SAFETY: `self` is a live listener. Its timer has a handle, as the queue is its own by
            // the contract of this function. The handle owns a reference to the listener, and
            // cancels the timer when it is dropped.
            unsafe { <Self as HasHrTimer<Self>>::start(&*self, delta(now, at)) };
        }
    }

    /// Marks the next request as expired, and takes a reference to it: the oldest one, or for an
    /// eviction the victim ([`ParkQueue::victim`]).
    ///
    /// # Safety
    ///
    /// `queue` must be this listener's.
    pub(super) unsafe fn take_expired(
        &self,
        queue: &mut ParkQueue,
        expiry: Expiry,
    ) -> Option<Expired> {
        if expiry == Expiry::Died {
            // SAFETY: The queue is this listener's by the contract of this function.
            return unsafe { self.take_dead(queue) };
        }
        loop {
            let next = match expiry {
                Expiry::Eviction => queue.victim(),
                _ => queue.oldest(),
            };
            let parked: Arc<ParkedRequest> = next?.into();
            let is_not_oldest = || {
                queue
                    .oldest()
                    .is_some_and(|oldest| !ptr::eq(&*oldest, &*parked))
            };
            let is_for_source = expiry == Expiry::Eviction && is_not_oldest();
            // SAFETY: The entry is in the queue, and the lock is held.
            if let Some(request) = unsafe { parked.request() }.get() {
                let on_timeout = expiry.outcome(&queue.config);
                // SAFETY: The entry is in the queue.
                unsafe { queue.set_expired(&parked, Some((expiry, on_timeout))) };
                queue.stats.evicted_greediest += u64::from(is_for_source);
                return Some(Expired {
                    request,
                    parked,
                    expiry,
                    on_timeout,
                });
            }
            // SAFETY: The queue is this listener's by the contract of this function. The entry is
            // in it, the lock is held, and the request is dying.
            unsafe { self.dequeue_dying(queue, &parked) };
        }
    }

    /// Takes a reference to a request whose client has died, if it is not dying itself.
    ///
    /// # Safety
    ///
    /// `queue` must be this listener's.
    #[cold] // Few clients die.
    unsafe fn take_dead(&self, queue: &mut ParkQueue) -> Option<Expired> {
        let parked: Arc<ParkedRequest> = queue.next_dead()?.into();
        // SAFETY: The entry is in the queue, and the lock is held.
        let Some(request) = unsafe { parked.request() }.get() else {
            // SAFETY: The queue is this listener's by the contract of this function. The entry is
            // in it, the lock is held, and the request is dying.
            unsafe { self.dequeue_dying(queue, &parked) };
            return None;
        };
        // SAFETY: The entry was just seen in that list.
        unsafe { queue.take_dead(&parked) };
        Some(Expired {
            request,
            parked,
            expiry: Expiry::Died,
            on_timeout: OnTimeout::Reset,
        })
    }

    /// Returns how the clients of this listener are probed, if they are.
    pub(super) fn probing(&self, queue: &ParkQueue) -> Option<Probing> {
        let keepalive = self.listen_sock().keepalive();
        let by_socket = Probing {
            idle: from_jiffies(keepalive.idle),
            interval: from_jiffies(keepalive.interval),
            probes: keepalive.probes,
        };
        Probing::of(&queue.config, by_socket, keepalive.is_on)
    }

    /// Does to an expired request what the listener's configuration says. No lock may be held.
    pub(super) fn expire(
        self: ArcBorrow<'_, Self>,
        expired: &Expired,
        bh: &BhDisabled<'_>,
        rcu: &rcu::Guard,
    ) {
        let end = End::of_expired(expired.expiry, expired.on_timeout);
        match expired.on_timeout {
            OnTimeout::Accept => self.accept(expired, bh, rcu),
            OnTimeout::Reset => self.discard(expired, end, true, bh, rcu),
            OnTimeout::Drop => self.discard(expired, end, false, bh, rcu),
        }
    }

    /// Has TCP make a connection of `request`, as a SYN inside of its window has come. No lock may
    /// be held. Returns whether the request was parked here.
    #[cold] // Few clients send a second SYN.
    pub(crate) fn on_syn_in_window(
        self: ArcBorrow<'_, Self>,
        request: &RequestSock<'_>,
        bh: &BhDisabled<'_>,
        rcu: &rcu::Guard,
    ) -> bool {
        // The caller has a reference, so there is another one.
        let Some(request) = request.get() else {
            return false;
        };
        let mut queue = self.queue.lock(bh);
        if !self.has_parked(&request.as_request()) {
            return false;
        }
        // SAFETY: The request is parked here, and the lock is held.
        let parked = unsafe { request.as_request().parked_arc() };
        let flags = parked.flags();
        if flags.expired().is_none() {
            // TCP would refuse the connection, and drops the request either way (`send_reset()`).
            // One that is counted by source would first be put back into its list, which may be a
            // long one. If the listener has stopped, another one may take the request.
            let is_full = self.accept_queue(&queue).is_full();
            if flags.is_counted() && self.listen_sock().is_listening() && is_full {
                return true;
            }
            let accept = (Expiry::SynInWindow, OnTimeout::Accept);
            // SAFETY: As the request is parked here, its entry is in the queue.
            unsafe { queue.set_expired(&parked, Some(accept)) };
        } else if flags.phase() == Phase::Parked {
            // Another CPU is about to reset or drop the request, but TCP will be faster. Its own
            // reset is as good.
            return queue.config.on_timeout != OnTimeout::Reset;
        }
        drop(queue);
        // If another CPU is about to have the request accepted, the first of the two makes the
        // connection.
        let expired = Expired {
            request,
            parked,
            expiry: Expiry::SynInWindow,
            on_timeout: OnTimeout::Accept,
        };
        self.accept(&expired, bh, rcu);
        true
    }

    /// Has TCP make a connection of an expired request.
    fn accept(self: ArcBorrow<'_, Self>, expired: &Expired, bh: &BhDisabled<'_>, rcu: &rcu::Guard) {
        let request = expired.request.as_request();
        if !self.listen_sock().is_listening() && !request.can_migrate() {
            // `close()` has begun, or `shutdown()` was called: the server accepts nothing any more.
            self.discard(expired, End::Aborted, true, bh, rcu);
            return;
        }
        inject::accept(&request, &expired.parked, bh, rcu);
        // If TCP_DEFER_ACCEPT was set and no SYN has come since, TCP has dropped the rebuilt ACK.
        let was_deferred = self.has_defer_accept();
        if was_deferred {
            self.take_over_defer_accept();
        }

        // Usually the connection was made, and the request is not parked any more. Or another CPU
        // has just made it, or has seen a reset, and the request is out of the table.
        let mut queue = self.queue.lock(bh);
        if !self.has_parked(&request) || !request.is_hashed() {
            return;
        }
        // SAFETY: The request is parked here, and the lock is held.
        let parked = unsafe { request.parked() };
        // SAFETY: As the request is parked here, its entry is in the queue, and the lock is held.
        let may_wait = || !unsafe { parked.set_refused() };
        if was_deferred || self.accept_queue(&queue).is_full() || may_wait() {
            // The request waits for its new deadline, or for room. Or there was no room until a
            // moment ago.
            // SAFETY: As the request is parked here, its entry is in the queue.
            unsafe { queue.set_expired(parked, None) };
            // SAFETY: The queue is this listener's.
            unsafe { self.schedule(&mut queue, now()) };
        } else {
            // TCP has refused twice, for a reason that waiting does not mend (no route, a socket
            // filter, no memory). It may ask the client for another ACK, as on a plain listener.
            // SAFETY: The queue is this listener's, the request is parked here, and `expired` has a
            // reference to it.
            unsafe { self.fall_back_parked(&mut queue, &request) };
        }
    }

    /// Has TCP drop an expired request, which comes to this `end`, and resets its client if
    /// `resets`.
    fn discard(
        &self,
        expired: &Expired,
        end: End,
        resets: bool,
        bh: &BhDisabled<'_>,
        rcu: &rcu::Guard,
    ) {
        let request = expired.request.as_request();
        if !request.is_hashed() {
            // The client was faster: it sent data or a reset, and another CPU acts on that.
            return;
        }
        request.drop_from_table();
        // The client may have been faster just now.
        if request.is_connected() {
            return;
        }
        let mut queue = self.queue.lock(bh);
        if self.has_parked(&request) {
            // SAFETY: The queue is this listener's. The request is parked here, the lock is held,
            // and `expired` has a reference.
            drop(unsafe { self.dequeue_unconnected(&mut queue, request.restore_ops(), end) });
        } else if !queue.is_closed() {
            return;
        }
        // If the listener was closed just now, `close()` has accounted for the request, and finds
        // it gone from the table when it wants to tell the client (`tell_client()`).
        drop(queue);

        if resets {
            inject::reset(&request, &expired.parked, bh, rcu);
        }
    }

    /// Handles the timer: acts on expired requests, and defers SYN-ACK timers.
    fn on_timer(self: ArcBorrow<'_, Self>, bh: &BhDisabled<'_>, rcu: &rcu::Guard) {
        for _ in 0..BUDGET {
            let mut queue = self.queue.lock(bh);
            if queue.is_closed() {
                return;
            }
            let now = now();
            if queue.deferral_at().is_some_and(|at| at <= now) {
                queue.probing = self.probing(&queue);
                queue.defer_timers(now);
            }
            let action = self.timer_action(&queue, now);
            // `max_parked` was lowered, perhaps, and requests are not counted by source yet. The
            // next run counts more.
            if action == TimerAction::Expire(Expiry::Eviction) && !queue.count_sources(BUDGET) {
                break;
            }
            if let TimerAction::Expire(expiry) = action {
                // SAFETY: The queue is this listener's.
                let expired = unsafe { self.take_expired(&mut queue, expiry) };
                if expiry != Expiry::Died {
                    queue.room_watch.on_handed_over();
                }
                // Dropping the last reference to a request calls its destructor, which takes the
                // lock.
                drop(queue);
                if let Some(expired) = expired {
                    self.expire(&expired, bh, rcu);
                }
                continue;
            }
            if action == TimerAction::WaitForRoom {
                let accept_queue = self.accept_queue(&queue);
                let capacity = accept_queue.capacity();
                queue.room_watch.on_full(now, accept_queue.queued, capacity);
            }
            let next = firing_time(&mut queue, now, action);
            // There may be more timers than could be deferred in one go.
            let deferral_at = queue.deferral_at().map(|at| at.max(now.after(NEXT_RUN)));
            // SAFETY: The queue is this listener's.
            unsafe { self.set_timer(&mut queue, now, earlier(next, deferral_at)) };
            return;
        }
        let mut queue = self.queue.lock(bh);
        if !queue.is_closed() {
            let now = now();
            // SAFETY: The queue is this listener's.
            unsafe { self.set_timer(&mut queue, now, Some(now.after(NEXT_RUN))) };
        }
    }
}

/// Returns when the timer of a listener is to fire for `action`.
fn firing_time(queue: &mut ParkQueue, now: Nanos, action: TimerAction) -> Option<Nanos> {
    let at = match action {
        TimerAction::Expire(_) => return Some(now),
        TimerAction::WaitForRoom => return Some(queue.room_watch.next(now)),
        TimerAction::At(at) => Some(at),
        TimerAction::Idle => None,
    };
    queue.room_watch.stop();
    at
}

/// Returns the earlier of two points, either of which may be missing.
fn earlier(one: Option<Nanos>, other: Option<Nanos>) -> Option<Nanos> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        _ => one.or(other),
    }
}

/// Returns the time from `now` until `at`, for the timer.
fn delta(now: Nanos, at: Nanos) -> Delta {
    Delta::from_nanos(i64::try_from(at.0.saturating_sub(now.0)).unwrap_or(i64::MAX))
}
