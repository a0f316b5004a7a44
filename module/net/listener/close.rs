// SPDX-License-Identifier: GPL-2.0-only

//! The end of a listener.

use core::mem;

use kernel::{
    list::{
        List,
        ListArc, //
    },
    sync::{
        atomic::ordering::Relaxed,
        rcu, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

use crate::{
    net::{
        bh::{
            with_bh_off,
            BhDisabled, //
        },
        clone::{
            pin_module,
            Moment, //
        },
        inject,
        parked_request::ParkedRequest,
        rcu::{
            DeferDrop,
            RcuWork, //
        },
        reqsk::{
            RequestRef,
            RequestSock, //
        }, //
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

/// How many requests of a closed listener that another listener takes have their SYN-ACK timers
/// fire in one jiffy. The timers all move to the CPU that closes the listener.
const TAKEN_PER_JIFFY: usize = 64;

/// How many clients of a closed listener are told in one go.
const TOLD_AT_ONCE: usize = 64;

/// The pause after each [`TOLD_AT_ONCE`] clients: 64,000 in a second, so that neither the network
/// nor other work on this CPU sees all at once.
const PAUSE: Delta = Delta::from_millis(1);

/// The requests of a closed listener whose clients are to be told of it, in the order in which they
/// were parked.
///
/// # Invariants
///
/// Each entry was taken out of the queue of a listener that was closed. It owns a reference to its
/// request, which has TCP's operations again.
pub(super) struct Untold(List<ParkedRequest>);

impl Untold {
    /// Makes an empty list.
    pub(super) fn new() -> Self {
        // INVARIANT: There is no entry.
        Self(List::new())
    }

    /// Appends an entry.
    ///
    /// # Safety
    ///
    /// `request` must be that of `parked`, and have got TCP's operations back since that was taken
    /// out of the queue of a listener that was closed.
    unsafe fn push(&mut self, parked: ListArc<ParkedRequest>, request: RequestRef) {
        let _ = request.into_raw();
        // INVARIANT: The entry owns the reference that was just given up. The rest is the contract
        // of this function.
        self.0.push_back(parked);
    }

    /// Takes out the first entry.
    fn pop(&mut self) -> Option<(RequestRef, ListArc<ParkedRequest>)> {
        let parked = self.0.pop_front()?;
        // SAFETY: The entry owned a reference to its request, by the type invariants, which
        // `push()` gave up. It has left the list.
        let request = unsafe { RequestRef::from_raw(parked.request_ptr()) };
        Some((request, parked))
    }
}

impl Drop for Untold {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

impl Listener {
    /// Has every parked request fall back to plain TCP, and parks no more (W5).
    ///
    /// Where TCP hands the requests of a listener that has stopped to another one of its group
    /// (`net.ipv4.tcp_migrate_req`), a request is then what it is on a plain listener that was
    /// closed: half open. Its SYN-ACK timer fires soon, and TCP hands it over. Elsewhere the
    /// client, which takes its connection for established, is told by an RST, as a plain listener
    /// tells the clients in its accept queue: later, in [`Self::retire`].
    ///
    /// The socket has stopped by now. The caller holds its lock. O(number of parked requests), as
    /// TCP itself takes for the requests in the accept queue; nothing is sent.
    ///
    /// # Safety
    ///
    /// The socket must hold its reference to the module until the call has returned.
    pub(crate) unsafe fn close(&self, bh: &BhDisabled<'_>) {
        let mut queue = self.queue.lock(bh);
        queue.close();
        self.restores_clones.store(false, Relaxed);
        let has_taker = self.listen_sock().has_taker();
        let mut taken = 0;
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
                if has_taker {
                    // SAFETY: The request was parked here and was just restored, the lock is held,
                    // and the queue is closed.
                    unsafe { request.clear_acked() };
                    request.expire_timer_in(1 + taken / TAKEN_PER_JIFFY);
                    taken += 1;
                    // `owned` is dropped under the lock. If it is the last reference, TCP's own
                    // destructor runs, as the operations were just restored.
                } else {
                    // TCP would drop the request without a word when the timer fires.
                    if flags.is_timer_armed() {
                        request.defer_timer();
                    }
                    // SAFETY: `owned` is a reference to the request of `parked`, which was just
                    // taken out of the queue and has got TCP's operations back.
                    unsafe { queue.untold.push(parked, owned) };
                }
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

    /// Tells the clients of `untold` that their connections are gone. May sleep.
    fn tell(untold: &mut Untold) {
        loop {
            for _ in 0..TOLD_AT_ONCE {
                let Some((request, parked)) = untold.pop() else {
                    return;
                };
                if request.as_request().listen_sock().has_left_group() {
                    kernel::pr_info_once!(
                        "parked clients of a closed SO_REUSEPORT listener are reset; \
                         net.ipv4.tcp_migrate_req=1 hands them to another listener of the port\n"
                    );
                }
                with_bh_off(|bh| tell_client(&request.as_request(), &parked, bh));
            }
            fsleep(PAUSE);
        }
    }
}

/// Drops `request`, whose listener was closed, and tells its client.
fn tell_client(request: &RequestSock<'_>, parked: &ParkedRequest, bh: &BhDisabled<'_>) {
    if !request.is_hashed() {
        // The client has sent something since. TCP has found the listener closed, and has answered
        // with a reset of its own; or it had looked before, and has made a connection and reset it.
        return;
    }
    request.drop_from_table();
    // It may have done so just now. (A second reset does no harm.)
    if !request.is_connected() {
        inject::reset(request, parked, bh, &rcu::read_lock());
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

    /// Cancels the timer, which has a reference to the listener, and waits for its handler; then
    /// tells the clients that wait for that (W8).
    ///
    /// [`Self::close`] can do neither: its caller holds the socket's lock, which the handler may
    /// want, as it calls TCP's receive path; and nothing that takes long should be done under it.
    /// Here no lock is held. If the handler runs, it finds the listener closed.
    fn retire(&self) {
        let (timer, mut untold) = with_bh_off(|bh| {
            let mut queue = self.queue.lock(bh);
            (
                queue.timer.take(),
                mem::replace(&mut queue.untold, Untold::new()),
            )
        });
        drop(timer);
        Self::tell(&mut untold);
    }
}
