// SPDX-License-Identifier: GPL-2.0-only

//! A filtered listener: what `icsk_ulp_data` points to.
//!
//! * `park`: parks a request, and takes it out of the queue again;
//! * `timer`: one high-resolution timer for the deadline of the request that was parked first;
//! * `late`: makes connections beyond the backlog;
//! * `close`: the end of a listener.
//!
//! A request's own SYN-ACK timer cannot give the deadline: the timer wheel is coarse (256 ms for 5
//! s at HZ=250). All requests of a listener have the same timeout, so the one that was parked first
//! expires first. When too many are parked, the one is evicted that was parked first of the source
//! that has the most ([`ParkQueue::victim`]). Everything is O(1).
//!
//! The SYN-ACK timer must not send the SYN-ACK again while a request is parked, nor have TCP drop
//! the request: it is deferred for weeks. As that costs more than the rest of parking, it is done
//! by the listener's timer, and only for requests that stay parked for a while
//! ([`ParkQueue::defer_timers`]).
//!
//! # Accounts
//!
//! A request in the queue is counted in [`ParkQueue::stats`] and in its namespace, and is taken off
//! the listener's SYN backlog. `enqueue()` counts it, and `account_for()` counts it off, once.
//!
//! The publication protocol (W1 … W8, R1 … R6), the lock order and the barriers (B1 …) are in
//! `docs/design.md`.

mod close;
mod late;
mod park;
mod timer;

use core::{
    num::NonZeroU8,
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::{
        self,
        NonNull, //
    }, //
};

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        barrier::{
            smp_mb,
            Read,
            Write, //
        },
        Arc,
        ArcBorrow, //
    },
    time::hrtimer::{
        ArcHrTimerHandle,
        HrTimer, //
    }, //
};

use crate::policy::Timeout;

use super::{
    bh::{
        with_bh_off,
        BhDisabled,
        BhGuard,
        BhSpinLock, //
    },
    bindings::{
        self,
        inet_connection_sock_af_ops, //
    },
    clone,
    listen_sock::ListenSock,
    netns::Netns,
    park_queue::ParkQueue,
    rcu::{
        RcuWork,
        ReadSide, //
    },
    reqsk::RequestSock,
    reqsk_ops::{
        ListenerTag,
        RequestCallbacks, //
    },
    sockopt::{
        ConfigChange,
        Defaults,
        ListenerInfo, //
    }, //
};

use close::Untold;
use late::LateState;
use timer::now;

pub(crate) use late::Raised;
pub(crate) use park::OnSynAckTimer;

/// What the listener's lock guards: its queue, and the handle of its timer.
pub(crate) struct Locked {
    queue: ParkQueue,
    /// Cancels the timer when it is dropped, and waits for the timer's handler: never under the
    /// lock.
    timer: Option<ArcHrTimerHandle<Listener>>,
    /// Once the listener is closed: its requests whose clients are to be told of that.
    untold: Untold,
    /// Its backlog, and how much longer its accept queue is.
    late: LateState,
}

impl Deref for Locked {
    type Target = ParkQueue;

    fn deref(&self) -> &ParkQueue {
        &self.queue
    }
}

impl DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut ParkQueue {
        &mut self.queue
    }
}

/// A listener with a filter.
///
/// # Invariants
///
/// `sock` is in memory, and with it `netns`, whenever a method follows it. Before [`Self::close`]
/// has returned, the socket is not freed, as `release()` is part of that. Later, a caller has the
/// socket itself (`Self::of()`), or one of its requests, which holds a reference to it; or it is
/// the timer's handler, which finds the queue closed and follows neither.
#[pin_data]
pub(crate) struct Listener {
    #[pin]
    pub(crate) queue: BhSpinLock<Locked>,
    #[pin]
    timer: HrTimer<Self>,
    #[pin]
    retire_work: RcuWork,
    sock: NonNull<bindings::sock>,
    netns: Netns,
    defaults: Defaults,
    callbacks: &'static RequestCallbacks,
    /// See [`Self::restores_clones`].
    restores_clones: Atomic<bool>,
    /// Whether there may be a burst for which new clients have room. Written under the lock.
    has_burst: Atomic<bool>,
    /// Makes the tags of requests that are parked here.
    tag: ListenerTag,
    /// The number of CPUs when the filter was attached.
    cpus: u32,
    ops: inet_connection_sock_af_ops,
    original_ops: &'static inet_connection_sock_af_ops,
}

// SAFETY: `sock` and `netns` may be followed on any CPU, by the type invariants. The operations are
// constant, and the queue is behind its lock.
unsafe impl Send for Listener {}
// SAFETY: `sock` and `netns` may be followed on any CPU, by the type invariants. The operations are
// constant, and the queue is behind its lock.
unsafe impl Sync for Listener {}

impl Listener {
    /// Makes a listener that parks nothing before [`Self::activate`]. May sleep.
    ///
    /// `ops` are to become its `icsk_af_ops`, in place of `original_ops`. `callbacks` are for the
    /// requests that it parks.
    ///
    /// # Errors
    ///
    /// `ENOMEM`: there is no memory. `EINVAL`: the network namespace has no counters.
    ///
    /// # Safety
    ///
    /// * `sock` must stay in memory until [`Self::close`] has returned.
    /// * `ops` must be operations that may replace `original_ops` on this socket.
    /// * TCP may call each of `callbacks` in place of its own for a parked request. All listeners
    ///   of the module have the same.
    pub(crate) unsafe fn new(
        sock: NonNull<bindings::sock>,
        defaults: Defaults,
        callbacks: &'static RequestCallbacks,
        ops: inet_connection_sock_af_ops,
        original_ops: &'static inet_connection_sock_af_ops,
    ) -> Result<Arc<Self>> {
        // SAFETY: The socket is in memory by the contract of this function. The listener uses the
        // counters only while the socket is, by the type invariants.
        let netns = unsafe { Netns::of(ListenSock::from_raw(sock)) }?;
        let queue = ParkQueue::new(defaults.config)?;
        Arc::pin_init(
            // INVARIANT: By the contract of this function.
            try_pin_init!(Self {
                queue <- BhSpinLock::new(Locked {
                    queue,
                    timer: None,
                    untold: Untold::new(),
                    late: LateState::new(),
                }),
                timer <- HrTimer::new(),
                retire_work <- RcuWork::new(),
                sock: sock,
                netns: netns,
                defaults: defaults,
                callbacks: callbacks,
                restores_clones: Atomic::new(false),
                has_burst: Atomic::new(false),
                tag: ListenerTag::new(),
                // SAFETY: The function looks at a number that is always there.
                cpus: unsafe { bindings::accf_num_online_cpus() },
                ops: ops,
                original_ops: original_ops,
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Allows parking (W4), unless the listener was closed.
    ///
    /// # Safety
    ///
    /// Every CPU that makes a connection at the listener's socket must call the module for it: W1
    /// to W3 are done, and if the socket had listened before, a grace period has passed since W3.
    pub(crate) unsafe fn activate(&self, bh: &BhDisabled<'_>) {
        let mut queue = self.queue.lock(bh);
        // SAFETY: By the contract of this function. A socket that loses the module's operations
        // later is told by `is_hooked()` (`check_may_park()`) and by `clone()`.
        if unsafe { queue.activate() } {
            self.restores_clones.store(true, Relaxed);
        }
    }

    /// Returns the listening socket.
    fn listen_sock(&self) -> ListenSock<'_> {
        // SAFETY: The socket is in memory by the type invariants.
        unsafe { ListenSock::from_raw(self.sock) }
    }

    /// Returns the operations for `icsk->icsk_af_ops`.
    pub(crate) fn ops(&self) -> *const inet_connection_sock_af_ops {
        &self.ops
    }

    /// Returns TCP's `icsk->icsk_af_ops`.
    pub(crate) fn original_ops(&self) -> &'static inet_connection_sock_af_ops {
        self.original_ops
    }

    /// Returns the listener of `sock`, or `None` if it has no filter (any more).
    ///
    /// # Safety
    ///
    /// The `icsk_ulp_data` of `sock`, if any, must have been published by `attach()`.
    pub(crate) unsafe fn of<'a>(
        sock: ListenSock<'a>,
        rcu: &'a impl ReadSide,
    ) -> Option<ArcBorrow<'a, Self>> {
        let listener = NonNull::new(sock.ulp_data(rcu))?;
        // SAFETY: The pointer came from `Arc::into_raw()` by the contract of this function. That
        // reference is dropped a grace period after the pointer was unpublished (W8), which `rcu`
        // holds off.
        Some(unsafe { ArcBorrow::from_raw(listener.as_ptr().cast::<Self>()) })
    }

    /// Returns the parking listener of `request`: the listener that it was made for. Returns `None`
    /// if that has no filter, or was closed.
    pub(crate) fn parking_listener<'a>(
        request: &RequestSock<'a>,
        rcu: &'a impl ReadSide,
    ) -> Option<ArcBorrow<'a, Self>> {
        let sock = request.listen_sock();
        if !sock.has_our_ulp(rcu) {
            return None;
        }
        // SAFETY: A socket keeps its ULP until it is destroyed, so the data was published by
        // `attach()`, or is NULL.
        unsafe { Self::of(sock, rcu) }
    }

    /// Returns whether `request` was made for this listener, whose lock alone guards it then.
    pub(crate) fn is_listener_of(&self, request: &RequestSock<'_>) -> bool {
        ptr::eq(request.listen_sock().as_ptr(), self.sock.as_ptr())
    }

    /// Returns whether `request` is parked here.
    ///
    /// The answer is only final under the lock and in the destructor of the request.
    pub(crate) fn has_parked(&self, request: &RequestSock<'_>) -> bool {
        self.is_listener_of(request) && request.is_parked(self.tag)
    }

    /// Returns what makes the tags of requests that are parked here.
    pub(crate) fn tag(&self) -> ListenerTag {
        self.tag
    }

    /// Returns whether `sock`, which is this listener's socket or a copy of it, has the module's
    /// `icsk_af_ops`.
    ///
    /// A listener may lose them: an IPv6 socket that connects to an IPv4-mapped address gets
    /// others, and may listen again.
    pub(crate) fn is_hooked(&self, sock: ListenSock<'_>) -> bool {
        ptr::eq(sock.af_ops(), self.ops())
    }

    /// Gives `child` TCP's `icsk_af_ops` back if it has the module's, and returns whether it had.
    ///
    /// A child of an IPv4-mapped client has operations of its own, which stay.
    ///
    /// # Safety
    ///
    /// `child` must be a socket that no other CPU changes, made by copying this listener's socket.
    pub(crate) unsafe fn restore_child_af_ops(&self, child: ListenSock<'_>) -> bool {
        let is_hooked = self.is_hooked(child);
        if is_hooked {
            // SAFETY: No other CPU changes the child, by the contract of this function. TCP's
            // operations are constant.
            unsafe { child.set_af_ops(self.original_ops()) };
        }
        is_hooked
    }

    /// Returns whether no request that the kernel moves here keeps the ops override.
    ///
    /// A clone that a SYN-ACK timer makes gets TCP's operations back when its SYN-ACK is sent
    /// (`send_synack()`). With `TCP_DEFER_ACCEPT`, none is sent until that is taken over.
    fn restores_clones(&self) -> bool {
        let is_deferring = self.listen_sock().has_defer_accept();
        // Reads in the other order than `take_defer_accept()` writes; pairs with B7.
        smp_mb(Read);
        !is_deferring && self.restores_clones.load(Relaxed)
    }

    /// Returns the `max_parked` of a listener that sets none.
    pub(crate) fn default_max_parked(&self) -> u32 {
        self.defaults.config.max_parked
    }

    /// Changes the configuration, at once and for requests that are parked already. `max_parked`
    /// of 0 is the module's default.
    ///
    /// If parking is paused, the listener's timer hands parked requests over to the server, as
    /// many in one run as it handles of expired ones.
    pub(crate) fn set_config(self: ArcBorrow<'_, Self>, bh: &BhDisabled<'_>, change: ConfigChange) {
        let mut config = change.config;
        if config.max_parked == 0 {
            config.max_parked = self.defaults.config.max_parked;
        }
        // What TCP_DEFER_ACCEPT was set to before does not count any more.
        self.take_defer_accept();
        let mut queue = self.queue.lock(bh);
        if change.keeps_parking {
            config.parking = queue.config.parking;
        }
        queue.config = config;
        // SAFETY: The queue is this listener's.
        unsafe { self.schedule(&mut queue, now()) };
    }

    /// Returns whether the application has set `TCP_DEFER_ACCEPT` since it was last taken over.
    pub(crate) fn has_defer_accept(&self) -> bool {
        self.listen_sock().has_defer_accept()
    }

    /// Clears `TCP_DEFER_ACCEPT`, and returns what it was, as a number of retransmissions.
    fn take_defer_accept(&self) -> u8 {
        if self.has_defer_accept() {
            // Clones may have come while it was set. (None has if the listener is not active yet:
            // that comes two grace periods later.)
            self.restores_clones.store(false, Relaxed);
            // B7: A CPU that finds the option cleared finds the store above.
            smp_mb(Write);
        }
        self.listen_sock().take_defer_accept()
    }

    /// Turns the value of `TCP_DEFER_ACCEPT` into the timeout. TCP would act on the option before
    /// the module sees the ACK.
    pub(crate) fn take_over_defer_accept(self: ArcBorrow<'_, Self>) {
        let Some(retransmits) = NonZeroU8::new(self.take_defer_accept()) else {
            return;
        };
        let bh = BhGuard::new();
        let bh = bh.token();
        let mut queue = self.queue.lock(&bh);
        queue.config.timeout = Timeout::from_retransmits(retransmits);
        // SAFETY: The queue is this listener's.
        unsafe { self.schedule(&mut queue, now()) };
    }

    /// Returns the counters and the configuration, all read at one moment.
    pub(crate) fn info(&self, bh: &BhDisabled<'_>) -> ListenerInfo {
        let queue = self.queue.lock(bh);
        ListenerInfo {
            stats: queue.stats,
            config: queue.config,
            half_open: self.listen_sock().half_open(),
            half_open_young: self.listen_sock().young(),
            sources: queue.greediest(),
        }
    }
}

/// Returns whether `sk` is a filtered listener that keeps the module until its accept queue is
/// empty, and leaves no ops override on a request that the kernel moves there.
///
/// A listener does so once it has the module's ULP, which it keeps until then, and calls
/// `syn_recv_sock()` for all its connections, which restores requests before they are cloned. What
/// comes out of the accept queue of a plain listener that stops is dealt with there
/// (`destructor()`).
///
/// # Safety
///
/// `sk` must be a TCP socket that is in memory for the call, and the caller an RCU reader: see
/// [`RestoresClones`](super::reuseport::RestoresClones).
unsafe extern "C" fn peer_restores_clones(sk: *const bindings::sock) -> bool {
    let Some(sk) = NonNull::new(sk.cast_mut()) else {
        return false;
    };
    // SAFETY: The socket is a TCP socket in memory, by the contract of this function.
    let sock = unsafe { ListenSock::from_raw(sk) };
    with_bh_off(|bh| {
        if !sock.has_our_ulp(bh) {
            return false;
        }
        // SAFETY: The data of a socket with the module's ULP was published by `attach()`.
        let listener = unsafe { Listener::of(sock, bh) };
        listener.is_some_and(|listener| listener.restores_clones() && listener.is_hooked(sock))
    })
}

/// Returns whether the module must be pinned for `request` at this moment ([`clone::must_pin`]).
pub(crate) fn must_pin(request: &RequestSock<'_>, moment: clone::Moment<'_>) -> bool {
    // SAFETY: The predicate is called as `RestoresClones` says, which is all that it needs.
    unsafe { clone::must_pin(request, moment, peer_restores_clones) }
}
