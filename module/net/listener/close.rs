// SPDX-License-Identifier: GPL-2.0-only

//! The end of a listener.

use kernel::sync::atomic::ordering::Relaxed;

use crate::{
    net::{
        bh::{
            BhDisabled,
            BhGuard, //
        },
        clone::{
            pin_module,
            Moment, //
        },
        parked_request::ParkedRequest,
        rcu::{
            DeferDrop,
            RcuWork, //
        },
        reqsk::RequestSock, //
    },
    policy::{
        End,
        Nanos, //
    }, //
};

use super::{
    must_pin,
    Listener, //
};

/// How many requests of a closed listener have their SYN-ACK timers fire in one jiffy. The timers
/// all move to the CPU that closes the listener.
const CLOSED_PER_JIFFY: usize = 64;

impl Listener {
    /// Has every parked request fall back to plain TCP, and parks no more (W5).
    ///
    /// A request is then what it is on a plain listener that was closed: half open. Its SYN-ACK
    /// timer fires soon, and TCP drops the request, or hands it over to another listener of the
    /// group (`net.ipv4.tcp_migrate_req`).
    ///
    /// The socket has stopped by now. The caller holds its lock. O(number of parked requests), as
    /// TCP itself takes for the requests in the accept queue.
    ///
    /// # Safety
    ///
    /// The socket must hold its reference to the module until the call has returned.
    pub(crate) unsafe fn close(&self, bh: &BhDisabled<'_>) {
        let mut queue = self.queue.lock(bh);
        queue.close();
        self.restores_clones.store(false, Relaxed);
        let mut closed = 0;
        let mut is_pin_needed = false;
        let mut ask = |request: &RequestSock<'_>, parked: &ParkedRequest| {
            is_pin_needed = is_pin_needed || must_pin(request, Moment::Leaves(parked));
        };
        while let Some(parked) = queue.pop_front() {
            // SAFETY: The entry was in the queue, and the lock is held.
            let request = unsafe { parked.request() };
            let flags = parked.flags();
            let end = if let Some(owned) = request.get() {
                let request = owned.as_request();
                // SAFETY: A request in the queue is parked. The lock is held, and `owned` is a
                // reference to it. What it kept is `parked`.
                unsafe { request.restore_ops() };
                ask(&request, &parked);
                request.expire_timer_in(1 + closed / CLOSED_PER_JIFFY);
                closed += 1;
                // `owned` is dropped under the lock. If it is the last reference, TCP's own
                // destructor runs, as the operations were just restored.
                End::Fallback
            } else {
                // The request is dying. Its destructor is on its way and asks as well, but that may
                // be too late: something keeps the module only now.
                ask(&request, &parked);
                // SAFETY: The entry was just taken out of the queue with the lock held. The
                // request is dying, as taking a reference has failed, and parked.
                unsafe { RequestSock::hand_over_to_destructor(parked) };
                End::Aborted
            };
            self.account_for(&mut queue, flags, end, Nanos(0));
        }
        self.update_backlog(&mut queue);
        // Printing under the lock would keep other CPUs waiting.
        drop(queue);
        if is_pin_needed {
            // SAFETY: The socket holds a reference to the module, by the contract of this function.
            unsafe { pin_module() };
        }
    }
}

// SAFETY: Both functions name the same field.
unsafe impl DeferDrop for Listener {
    fn work(&self) -> &RcuWork {
        &self.retire_work
    }

    unsafe fn from_work(work: *const RcuWork) -> *const Self {
        // SAFETY: `work` is the field of a live `Self`, by the contract of this function.
        unsafe { kernel::container_of!(work.cast_mut(), Self, retire_work) }
    }

    /// Cancels the timer, which has a reference to the listener, and waits for its handler (W8).
    ///
    /// [`Self::close`] cannot do that: its caller holds the socket's lock, which the handler may
    /// want, as it calls TCP's receive path. Here no lock is held. If the handler runs, it finds
    /// the listener closed.
    fn retire(&self) {
        let bh = BhGuard::new();
        let timer = self.queue.lock(&bh.token()).timer.take();
        drop(bh);
        drop(timer);
    }
}
