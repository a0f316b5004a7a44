// SPDX-License-Identifier: GPL-2.0-only

//! The end of a listener.

use kernel::sync::atomic::ordering::Relaxed;

use crate::{
    net::{
        bh::{
            BhDisabled,
            BhGuard, //
        },
        clone::pin_module,
        park_queue::State,
        rcu::{
            DeferDrop,
            RcuHead, //
        },
        reqsk::RequestSock, //
    },
    policy::{
        End,
        Nanos, //
    }, //
};

use super::Listener;

/// So many requests of a closed listener have their timers fire in one tick.
const CLOSED_PER_TICK: usize = 64;

// SAFETY: both name the same field.
unsafe impl DeferDrop for Listener {
    fn head(&self) -> &RcuHead {
        &self.rcu
    }

    unsafe fn from_head(head: *const RcuHead) -> *const Self {
        // SAFETY: `head` is the field of a live `Self`, by the contract.
        unsafe { kernel::container_of!(head.cast_mut(), Self, rcu) }
    }

    /// Stops the timer, which has a reference to the listener, and waits for its handler.
    ///
    /// Not in [`Self::close`]: its caller holds the socket's lock, which the handler may want, as it calls all of TCP's
    /// receive path. Here nothing is held; and the handler, should it run, finds the listener closed.
    fn retire(&self) {
        let timer = {
            let bh = BhGuard::new();
            let timer = self.queue.lock(&bh.token()).timer.take();
            timer
        };
        drop(timer);
    }
}

impl Listener {
    /// Gives every parked request back to the kernel and parks no more.
    ///
    /// A request then is what it is on a plain listener that was closed: half open. Its timer fires soon, and the kernel
    /// drops it, or moves it to another listener of the group (`net.ipv4.tcp_migrate_req`).
    ///
    /// The socket has stopped by now. This is called with it locked: it takes as long as there are requests, about as long as the
    /// kernel takes for as many in the accept queue.
    pub(crate) fn close(&self, bh: &BhDisabled<'_>) {
        let mut queue = self.queue.lock(bh);
        queue.state = State::Closed;
        self.restores_clones.store(false, Relaxed);
        let mut closed = 0;
        let mut may_have_left_clones = false;
        while let Some(parked) = queue.pop_front() {
            // SAFETY: it was in the queue, and the lock is held.
            let request = unsafe { parked.request() };
            let flags = parked.flags();
            let end = if let Some(owned) = request.get() {
                let request = owned.as_request();
                // SAFETY: in the queue means parked; its home is locked, and we hold a reference to it. What it kept is `parked`.
                unsafe { request.restore_ops() };
                may_have_left_clones = may_have_left_clones || request.may_have_left_clone(&parked);
                // Their timers all move to this CPU, which should not have to do with all at once.
                request.expire_timer_in(1 + closed / CLOSED_PER_TICK);
                closed += 1;
                End::Fallback
            } else {
                // It looks whether there is a copy, too, but that may be too late: somebody holds the module only now.
                may_have_left_clones = may_have_left_clones || request.may_have_left_clone(&parked);
                // A dying request is left to its destructor, which is on its way, and looks after itself.
                // SAFETY: it was in the queue, and its home is locked.
                unsafe { RequestSock::hand_over_to_destructor(parked) };
                End::Aborted
            };
            self.account_for(&mut queue, flags, end, Nanos(0));
        }
        self.update_backlog(&mut queue);
        if may_have_left_clones {
            pin_module();
        }
    }
}
