// SPDX-License-Identifier: GPL-2.0-only

//! A filtered listener: its parked requests in the order they were parked, and one high-resolution timer for the
//! deadline of the first.
//!
//! A request's own timer cannot give the deadline: the timer wheel is coarse (256 ms for 5 s at HZ=250). As all
//! requests of a listener have the same timeout, the first one parked is the first one due, and everything is O(1). The
//! first one parked is also the one that makes room when too many are.
//!
//! Nor may that timer send the SYN-ACK again, or have the kernel drop the request: it is put off for weeks. As that costs
//! more than all else here, it is done only for requests that wait for a while, by the listener's timer (`State::fresh`).
//!
//! # Who owns what
//!
//! The queue owns the [`ParkedRequest`] of each request, which points to it (`req->dl_next`). The queue holds no reference to
//! the request: when the kernel drops a request, the destructor of its overlay takes it out of the queue under the
//! lock; if a request that is dying must leave before, it inherits its [`ParkedRequest`], for the destructor to find. So a request that is in the queue is in memory for as long as the lock is held, though it may be dying; who
//! wants to use it longer takes a reference, which fails if it is.
//!
//! What a request that is gone has left ([`ParkedRequest`]) is kept for one to come, where nobody else still looks at it.
//!
//! # Accounts
//!
//! What is in the queue has been counted, in [`Stats`], in its namespace, and off the listener's SYN backlog;
//! [`Listener::enqueue`] and [`Listener::leave`] are the only places, and who has entered leaves once.
//!
//! # The end
//!
//! [`Listener::close`] undresses every parked request; then nothing points here, except readers under RCU and the timer,
//! which is stopped after them.

mod close;
mod park;
mod timer;

use core::{
    num::NonZeroU8,
    ptr::{
        self,
        NonNull, //
    }, //
};

use kernel::{
    list::List,
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
    time::hrtimer::HrTimer, //
};

use crate::policy::{
    Config,
    Stats,
    Timeout, //
};

use super::{
    bh::{
        BhDisabled,
        BhGuard,
        BhSpinLock, //
    },
    bindings,
    listen_sock,
    park_queue::{
        ParkQueue,
        State,
        SPARE, //
    },
    rcu::{
        RcuHead,
        ReadSide, //
    },
    reqsk::RequestSock,
    reqsk_ops::ListenerTag,
    sockopt::{
        Defaults,
        ListenerInfo, //
    }, //
};
use timer::now;

/// A listener with a filter: what `icsk_ulp_data` points to.
#[pin_data]
pub(crate) struct Listener {
    #[pin]
    queue: BhSpinLock<ParkQueue>,
    #[pin]
    timer: HrTimer<Self>,
    #[pin]
    rcu: RcuHead,
    sock: NonNull<bindings::sock>,
    netns: NonNull<bindings::accf_net>,
    defaults: Defaults,
    /// See [`Self::restores_clones`].
    restores_clones: Atomic<bool>,
    /// Of the marks of those parked here.
    tag: ListenerTag,
    /// How many there were when the filter was attached.
    cpus: u32,
    ops: bindings::inet_connection_sock_af_ops,
    original_ops: &'static bindings::inet_connection_sock_af_ops,
}

// SAFETY:
// * `sock`, and `netns` of its namespace, are followed only while the listener is not closed, or by who has one of its
//   requests, which holds a reference to it: see the comments there;
// * the operations are constant.
unsafe impl Send for Listener {}
// SAFETY: as above; the state is behind its lock.
unsafe impl Sync for Listener {}

impl Listener {
    /// A listener that parks nothing before [`Self::open`]; `ops` are to be its `icsk_af_ops`, in place of `original_ops`.
    ///
    /// # Safety
    ///
    /// `sock` must stay in memory until [`Self::close`] has returned.
    pub(crate) unsafe fn new(
        sock: NonNull<bindings::sock>,
        defaults: Defaults,
        ops: bindings::inet_connection_sock_af_ops,
        original_ops: &'static bindings::inet_connection_sock_af_ops,
    ) -> Result<Arc<Self>> {
        let spare = KVec::with_capacity(SPARE, GFP_KERNEL)?;
        // SAFETY: the socket is in memory by the contract of this function, and with it its namespace.
        let netns = NonNull::new(unsafe { bindings::accf_netns(sock.as_ptr()) }).ok_or(EINVAL)?;
        Arc::pin_init(
            try_pin_init!(Self {
                queue <- BhSpinLock::new(ParkQueue {
                    deferred: List::new(),
                    armed: List::new(),
                    stats: Stats::default(),
                    config: defaults.config,
                    backlog_share: 0,
                    backlog_excluded: 0,
                    expired: 0,
                    timer_at: None,
                    ops_override: None,
                    state: State::Attached,
                    spare,
                    timer: None,
                }),
                timer <- HrTimer::new(),
                rcu <- RcuHead::new(),
                sock: sock,
                netns: netns,
                defaults: defaults,
                restores_clones: Atomic::new(false),
                tag: ListenerTag::new(),
                // SAFETY: looks at a number that is always there.
                cpus: unsafe { bindings::accf_num_online_cpus() },
                ops: ops,
                original_ops: original_ops,
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Lets it park requests, as from now on the socket's operations are ours for whoever looks at them.
    pub(crate) fn open(&self, bh: &BhDisabled<'_>) {
        self.queue.lock(bh).state = State::Active;
        self.restores_clones.store(true, Relaxed);
    }

    /// Does it see to it that no request that the kernel moves here keeps wearing our operations?
    ///
    /// A copy that a request's timer makes sheds them when its SYN-ACK is sent (`hooks::send_synack()`). With `TCP_DEFER_ACCEPT`,
    /// until that is taken over, none is sent.
    pub(crate) fn restores_clones(&self) -> bool {
        let is_deferring = self.has_defer_accept();
        // Pairs with the barrier in `take_defer_accept()`.
        smp_mb(Read);
        !is_deferring && self.restores_clones.load(Relaxed)
    }

    /// Ours, for `icsk->icsk_af_ops`.
    pub(crate) fn ops(&self) -> *const bindings::inet_connection_sock_af_ops {
        &self.ops
    }

    /// The kernel's `icsk->icsk_af_ops`.
    pub(crate) fn original_ops(&self) -> &'static bindings::inet_connection_sock_af_ops {
        self.original_ops
    }

    /// The listener of `sock`, unless it has none (any more).
    ///
    /// # Safety
    ///
    /// The `icsk_ulp_data` of `sock`, if any, was published by `hooks::init()`. The socket is alive while the guard
    /// is held.
    pub(crate) unsafe fn of<'a>(
        sock: *const bindings::sock,
        _rcu: &'a impl ReadSide,
    ) -> Option<ArcBorrow<'a, Self>> {
        // `rcu_dereference()`, which a kernel that checks such things is to see.
        let data = if cfg!(CONFIG_PROVE_RCU) {
            // SAFETY: the socket is alive, and we are in a read-side critical section.
            unsafe { bindings::accf_ulp_data_rcu(sock) }
        } else {
            let csk = sock.cast::<bindings::inet_connection_sock>();
            // SAFETY: the socket is alive. What is read through the pointer depends on it.
            unsafe { ptr::read_volatile(&raw const (*csk).icsk_ulp_data) }
        };
        let listener = NonNull::new(data)?;
        // SAFETY: it came from `Arc::into_raw()`, and that reference is dropped a grace period after it was
        // unpublished (`hooks::release()`).
        Some(unsafe { ArcBorrow::from_raw(listener.as_ptr().cast::<Self>()) })
    }

    /// The home of a request, if it has one that was not closed meanwhile.
    pub(crate) fn parking_listener<'a>(
        request: &RequestSock<'_>,
        rcu: &'a impl ReadSide,
    ) -> Option<ArcBorrow<'a, Self>> {
        // Its listener may be a plain one, or have another ULP.
        if !listen_sock::has_accf_ulp(request.listener_sock()) {
            return None;
        }
        // SAFETY: a socket keeps its ULP until it is destroyed, so the data is that of ours, or none (any more). The request holds
        // a reference to the socket.
        unsafe { Self::of(request.listener_sock(), rcu) }
    }

    /// Is this the listener that `request` was made for? Only its lock guards the request.
    pub(crate) fn is_listener_of(&self, request: &RequestSock<'_>) -> bool {
        ptr::eq(request.listener_sock(), self.sock.as_ptr())
    }

    /// Is `request` parked here? Tells for sure only under the lock, and in its destructor.
    pub(crate) fn has_parked(&self, request: &RequestSock<'_>) -> bool {
        self.is_listener_of(request) && request.is_parked(self.tag)
    }

    /// Of the marks of those parked here.
    pub(crate) fn tag(&self) -> ListenerTag {
        self.tag
    }

    /// How many requests a listener parks that asks for nothing else.
    pub(crate) fn default_max_parked(&self) -> u32 {
        self.defaults.config.max_parked
    }

    /// Changes the terms, at once and for the parked ones too. `max_parked` of 0 is the module's default.
    pub(crate) fn set_config(self: ArcBorrow<'_, Self>, bh: &BhDisabled<'_>, mut config: Config) {
        if config.max_parked == 0 {
            config.max_parked = self.defaults.config.max_parked;
        }
        // What was asked of it before does not count any more.
        self.take_defer_accept();
        let mut queue = self.queue.lock(bh);
        queue.config = config;
        self.schedule(&mut queue, now());
    }

    /// Has the application asked for `TCP_DEFER_ACCEPT` since it was taken over?
    #[inline]
    pub(crate) fn has_defer_accept(&self) -> bool {
        let csk = self.sock.as_ptr().cast::<bindings::inet_connection_sock>();
        // SAFETY: the socket is in memory: the caller was called for it. The read is a `READ_ONCE()`.
        unsafe { ptr::read_volatile(&raw const (*csk).icsk_accept_queue.rskq_defer_accept) != 0 }
    }

    /// Takes what the application asked of `TCP_DEFER_ACCEPT` from the kernel.
    fn take_defer_accept(&self) -> u8 {
        if self.has_defer_accept() {
            // Copies may have come meanwhile. (Not if it is not open yet: that comes two grace periods later.)
            self.restores_clones.store(false, Relaxed);
            // Before it is gone: who does not find it finds this.
            smp_mb(Write);
        }
        // SAFETY: the socket is in memory: the caller was called for it.
        unsafe { bindings::accf_take_defer_accept(self.sock.as_ptr()) }
    }

    /// Makes what the application asked of `TCP_DEFER_ACCEPT` the timeout: the kernel would act on it before we see the ACK.
    pub(crate) fn take_over_defer_accept(self: ArcBorrow<'_, Self>) {
        let Some(retransmits) = NonZeroU8::new(self.take_defer_accept()) else {
            return;
        };
        let bh = BhGuard::new();
        let bh = bh.token();
        let mut queue = self.queue.lock(&bh);
        queue.config.timeout = Timeout::from_retransmits(retransmits);
        self.schedule(&mut queue, now());
    }

    /// A consistent picture of the counters.
    pub(crate) fn account(&self, bh: &BhDisabled<'_>) -> ListenerInfo {
        let queue = self.queue.lock(bh);
        let sock = self.sock.as_ptr();
        ListenerInfo {
            stats: queue.stats,
            config: queue.config,
            // SAFETY: the socket is in memory: the caller was asked by somebody who holds it.
            half_open: unsafe { bindings::accf_qlen(sock) },
            // SAFETY: as above.
            half_open_young: unsafe { bindings::accf_young(sock) },
        }
    }

    /// Is a connection that is made now refused (`sk_acceptq_is_full()`)?
    fn accept_queue_is_full(&self) -> bool {
        // SAFETY: the socket is in memory: the caller is the timer's handler, for which `close()` waits, or changes the
        // listener's terms, or has one of its requests.
        unsafe { bindings::accf_sk_acceptq_is_full(self.sock.as_ptr()) }
    }

    /// Does the socket listen, or has it stopped?
    fn is_listening(&self) -> bool {
        // SAFETY: as in `accept_queue_is_full()`.
        let state = unsafe { bindings::accf_sk_state(self.sock.as_ptr()) };
        u32::from(state) == bindings::ACCF_TCP_LISTEN
    }
}
