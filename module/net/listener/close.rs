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

/// How many requests of a closed listener are handled in one go.
const AT_ONCE: usize = 64;

/// The pause after each [`AT_ONCE`] requests: 64,000 in a second, so that neither the network nor
/// other work on this CPU sees all at once.
const PAUSE: Delta = Delta::from_millis(1);

/// How long to wait until SYN-ACK timers that were to fire at once have done so, and how often, if
/// softirqs are late. What has not happened by then is left to TCP.
const TIMERS_FIRED: Delta = Delta::from_millis(50);
const LOOKS: usize = 20;

/// The requests of a closed listener that are neither handed over nor reset yet, in the order of
/// [`ParkQueue::pop_front`](crate::net::park_queue::ParkQueue::pop_front).
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

    /// Returns whether there is no entry.
    fn is_empty(&self) -> bool {
        self.0.is_empty()
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
    /// A request is then what it is on a plain listener that was closed: half open. But its client
    /// takes the connection for established. So what becomes of it is decided in
    /// [`Self::retire`]; until then its SYN-ACK timer does not fire.
    ///
    /// The socket has stopped by now. The caller holds its lock. O(number of parked requests), as
    /// TCP itself takes for the requests in the accept queue; nothing is sent, and only timers of
    /// requests that came in the last 300 ms are touched, or of those whose clients are probed.
    ///
    /// # Safety
    ///
    /// The socket must hold its reference to the module until the call has returned.
    pub(crate) unsafe fn close(&self, bh: &BhDisabled<'_>) {
        let mut queue = self.queue.lock(bh);
        queue.close();
        self.restores_clones.store(false, Relaxed);
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
                // TCP would drop the request without a word.
                if flags.is_timer_armed() || queue.probing.is_some() {
                    request.defer_timer(None);
                }
                // SAFETY: `owned` is a reference to the request of `parked`, which was just taken
                // out of the queue and has got TCP's operations back.
                unsafe { queue.untold.push(parked, owned) };
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

/// Has TCP hand each request of `untold` to another listener of the group if it would, and tells
/// the clients of all others. May sleep.
///
/// The other listener may be closed, too, before TCP comes to that, or a clone fail for want of
/// memory. Then TCP drops the request without a word, so there is a second look.
fn settle(untold: &mut Untold) {
    let mut handed_over = Untold::new();
    for_each_paced(untold, |request, parked| {
        if request.as_request().listen_sock().has_taker() {
            // SAFETY: The request got TCP's operations back from a listener that was closed, as
            // all in `Untold`.
            unsafe { request.as_request().clear_acked() };
            request.as_request().expire_timer_in(1);
            // SAFETY: Both come from `Untold`.
            unsafe { handed_over.push(parked, request) };
        } else {
            tell_client(&request.as_request(), &parked);
        }
    });
    for _ in 0..LOOKS {
        if handed_over.is_empty() {
            return;
        }
        fsleep(TIMERS_FIRED);
        let mut late = Untold::new();
        for_each_paced(&mut handed_over, |request, parked| {
            let waits = {
                let request = request.as_request();
                request.is_hashed() && request.listen_sock().has_taker()
            };
            if waits {
                // SAFETY: Both come from `Untold`.
                unsafe { late.push(parked, request) };
            } else if !request.as_request().has_successor() {
                tell_client(&request.as_request(), &parked);
            }
        });
        handed_over = late;
    }
}

/// Takes out all entries of `list`, with a pause after each [`AT_ONCE`]. May sleep.
fn for_each_paced(list: &mut Untold, mut f: impl FnMut(RequestRef, ListArc<ParkedRequest>)) {
    loop {
        for _ in 0..AT_ONCE {
            let Some((request, parked)) = list.pop() else {
                return;
            };
            f(request, parked);
        }
        fsleep(PAUSE);
    }
}

/// Drops `request`, whose listener was closed, and tells its client, unless the table knows another
/// socket with its addresses.
///
/// If the request is gone from the table, the client may have been told before: it has sent
/// something, and TCP has found the listener closed. Or it was not: the timer was faster. A second
/// reset does no harm.
fn tell_client(request: &RequestSock<'_>, parked: &ParkedRequest) {
    if request.listen_sock().has_left_group() {
        kernel::pr_info_once!(
            "parked clients of a closed SO_REUSEPORT listener are reset; \
             net.ipv4.tcp_migrate_req=1 hands them to another listener of the port, if there is \
             one\n"
        );
    }
    if request.is_hashed() {
        request.drop_from_table();
    }
    // A connection that was made of it just now, or a new request of the same client.
    if !request.has_successor() {
        with_bh_off(|bh| inject::reset(request, parked, bh, &rcu::read_lock()));
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
        settle(&mut untold);
    }
}
