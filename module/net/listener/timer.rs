// SPDX-License-Identifier: GPL-2.0-only

//! The listener's timer.

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
        reqsk::RequestRef, //
    },
    policy::{
        self,
        End,
        Expiry,
        Nanos,
        OnTimeout,
        TimerAction, //
    }, //
};

use super::Listener;

/// The pause between two runs when there is more to do.
const NEXT_RUN: Nanos = Nanos(10_000);

/// Now, on the clock of the listener's timer.
pub(super) fn now() -> Nanos {
    // It is never negative.
    Nanos(Monotonic::ktime_get() as u64)
}

/// A request whose time is up, for one to act on without the lock.
pub(super) struct Expired {
    pub(super) request: RequestRef,
    pub(super) parked: Arc<ParkedRequest>,
    pub(super) expiry: Expiry,
    pub(super) on_timeout: OnTimeout,
}

impl_has_hr_timer! {
    impl HasHrTimer<Self> for Listener {
        mode: RelativeSoftMode<Monotonic>, field: self.timer
    }
}

impl Listener {
    /// What the timer has to do.
    fn timer_action(&self, queue: &ParkQueue, now: Nanos) -> TimerAction {
        policy::timer_action(
            now,
            &queue.config,
            queue.unexpired(),
            queue.oldest().map(|oldest| oldest.parked_at()),
            self.accept_queue_is_full(),
        )
    }

    /// Sets the timer to when there will be something to do.
    pub(super) fn schedule(self: ArcBorrow<'_, Self>, queue: &mut ParkQueue, now: Nanos) {
        if queue.is_closed() {
            return;
        }
        let at = match self.timer_action(queue, now) {
            TimerAction::Idle => None,
            TimerAction::At(at) => Some(at),
            TimerAction::Expire(_) => Some(now),
        };
        self.set_timer(queue, now, earlier(at, queue.deferral_at()));
    }

    /// Sets the timer. Under the lock; also from its own handler.
    fn set_timer(self: ArcBorrow<'_, Self>, queue: &mut ParkQueue, now: Nanos, at: Option<Nanos>) {
        queue.timer_at = at;
        // Should it be set, for what it was then, it will find nothing to do; whoever is parked next sets it anew.
        let Some(at) = at else {
            return;
        };
        if queue.timer.is_none() {
            queue.timer = Some(Arc::from(self).start(delta(now, at)));
        } else {
            // SAFETY: `self` is a live listener, and was started by its handle, which stops it.
            unsafe { <Self as HasHrTimer<Self>>::start(&*self, delta(now, at)) };
        }
    }

    /// Marks the request that has waited longest as one whose time is up, and takes a reference to it.
    pub(super) fn take_expired(&self, queue: &mut ParkQueue, expiry: Expiry) -> Option<Expired> {
        loop {
            let parked: Arc<ParkedRequest> = queue.oldest()?.into();
            // SAFETY: it is in the queue, and the lock is held.
            if let Some(request) = unsafe { parked.request() }.get() {
                let on_timeout = queue.config.on_timeout;
                queue.set_expired(&parked, Some((expiry, on_timeout)));
                return Some(Expired {
                    request,
                    parked,
                    expiry,
                    on_timeout,
                });
            }
            // It is dying; its destructor no longer finds it here.
            // SAFETY: it is in the queue, and the lock is held.
            unsafe { self.dequeue_dying(queue, &parked) };
        }
    }

    /// Does to a request whose time is up what the listener wants done.
    pub(super) fn expire(
        self: ArcBorrow<'_, Self>,
        expired: &Expired,
        bh: &BhDisabled<'_>,
        rcu: &rcu::Guard,
    ) {
        match expired.on_timeout {
            OnTimeout::Accept => self.accept(expired, bh, rcu),
            OnTimeout::Reset | OnTimeout::Drop => self.discard(expired, bh, rcu),
        }
    }

    /// Has the kernel make a connection.
    fn accept(self: ArcBorrow<'_, Self>, expired: &Expired, bh: &BhDisabled<'_>, rcu: &rcu::Guard) {
        let request = expired.request.as_request();
        if !self.is_listening() && !request.can_migrate() {
            // Nobody will accept it, and the client would get a reset for an ACK that it has not sent: `close()` has begun, or
            // `shutdown()` was called. The kernel drops it, as on a plain listener. (Should that begin only now, it is the reset.)
            self.fall_back(bh, &request);
            return;
        }
        inject::accept(&request, &expired.parked, bh, rcu);

        // The connection was made, as a rule, and the request is not parked any more; or it has just been made, or reset, on
        // another CPU, and is out of the table.
        let mut queue = self.queue.lock(bh);
        if !self.has_parked(&request) || !request.is_hashed() {
            return;
        }
        if self.accept_queue_is_full() || !expired.parked.refuse() {
            // Or it was full until a moment ago.
            queue.set_expired(&expired.parked, None);
            self.schedule(&mut queue, now());
        } else {
            // Refused twice, for a reason that waiting does not mend (no route, a socket filter, no memory): the kernel may
            // ask the client for another ACK, as on a plain listener.
            self.fall_back_parked(&mut queue, &request);
        }
    }

    /// Has the kernel drop the request, and tells the client if it is to know.
    fn discard(&self, expired: &Expired, bh: &BhDisabled<'_>, rcu: &rcu::Guard) {
        let request = expired.request.as_request();
        if !request.is_hashed() {
            // The client was faster: it sent data, and another CPU will complete it, or a reset.
            return;
        }
        request.drop_from_table();
        // As above: just now.
        if request.is_connected() {
            return;
        }
        let mut queue = self.queue.lock(bh);
        if !self.has_parked(&request) {
            return;
        }
        let end = End::of_expired(expired.expiry, expired.on_timeout);
        // SAFETY: it is parked, this, its home, is locked, and we hold a reference to it.
        drop(unsafe { self.dequeue_unconnected(&mut queue, request.restore_ops(), end) });
        drop(queue);

        if expired.on_timeout == OnTimeout::Reset {
            inject::reset(&request, &expired.parked, bh, rcu);
        }
    }

    /// The timer's handler: deals with what is due.
    fn on_timer(self: ArcBorrow<'_, Self>, bh: &BhDisabled<'_>, rcu: &rcu::Guard) {
        for _ in 0..BUDGET {
            let mut queue = self.queue.lock(bh);
            if queue.is_closed() {
                return;
            }
            let now = now();
            queue.defer_timers(now);
            let next = match self.timer_action(&queue, now) {
                TimerAction::Expire(expiry) => Err(expiry),
                TimerAction::At(at) => Ok(Some(at)),
                TimerAction::Idle => Ok(None),
            };
            let expiry = match next {
                Err(expiry) => expiry,
                Ok(at) => {
                    // There may be more than could be put off in one go.
                    let next_run = now.after(NEXT_RUN);
                    let deferral_at = queue.deferral_at().map(|end| end.max(next_run));
                    self.set_timer(&mut queue, now, earlier(at, deferral_at));
                    return;
                }
            };
            let expired = self.take_expired(&mut queue, expiry);
            // Not under the lock: dropping what may be the last reference to a request calls the destructor.
            drop(queue);
            if let Some(expired) = expired {
                self.expire(&expired, bh, rcu);
            }
        }
        let mut queue = self.queue.lock(bh);
        if !queue.is_closed() {
            let now = now();
            self.set_timer(&mut queue, now, Some(now.after(NEXT_RUN)));
        }
    }
}

impl HrTimerCallback for Listener {
    type Pointer<'a> = Arc<Self>;

    fn run(this: ArcBorrow<'_, Self>, _ctx: HrTimerCallbackContext<'_, Self>) -> HrTimerRestart {
        // SAFETY: the timer is of a soft mode: its handler runs in softirq.
        let bh = unsafe { BhDisabled::assume() };
        this.on_timer(&bh, &rcu::read_lock());
        // Where it is to fire again, it has been set.
        HrTimerRestart::NoRestart
    }
}

/// The earlier of two points, either of which may be missing.
fn earlier(one: Option<Nanos>, other: Option<Nanos>) -> Option<Nanos> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        _ => one.or(other),
    }
}

/// From `now` until `at`, for the timer.
fn delta(now: Nanos, at: Nanos) -> Delta {
    Delta::from_nanos(i64::try_from(at.0.saturating_sub(now.0)).unwrap_or(i64::MAX))
}
