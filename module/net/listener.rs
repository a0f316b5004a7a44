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

use core::{
    num::NonZeroU8,
    ptr::{self, NonNull},
};

use kernel::{
    impl_has_hr_timer,
    list::{List, ListArc},
    prelude::*,
    sync::{
        atomic::{ordering::Relaxed, Atomic},
        barrier::{smp_mb, Read, Write},
        lock::{spinlock::SpinLockBackend, Guard},
        rcu, Arc, ArcBorrow, UniqueArc,
    },
    time::{
        hrtimer::{
            ArcHrTimerHandle, HasHrTimer, HrTimer, HrTimerCallback, HrTimerCallbackContext,
            HrTimerPointer, HrTimerRestart, RelativeSoftMode,
        },
        ClockSource, Delta, Monotonic,
    },
};

use crate::policy::{
    self, Admission, Bypass, Config, End, Expiry, Nanos, OnTimeout, Phase, Stats, Timeout,
    TimerAction,
};

use super::{
    bindings,
    context::{BhDisabled, BhGuard, BhSpinLock},
    expire,
    hooks::{self, pin_module},
    overlay::RequestOpsOverride,
    parked::{AckInfo, ParkedFlags, ParkedRequest},
    rcu::{DeferDrop, RcuHead, ReadSide},
    request::{ListenerTag, RequestRef, RequestSock},
    segment::TcpSegment,
};

/// So many requests meet their deadline in one run of the timer; the rest follow in the next, so that other softirqs get
/// their turn.
const BUDGET: usize = 64;

/// So many requests of a closed listener have their timers fire in one tick.
const CLOSED_PER_TICK: usize = 64;

/// So many [`ParkedRequest`] of requests that are gone are kept, 4 KiB.
const SPARE: usize = 64;

/// The pause between two runs when there is more to do.
const NEXT_RUN: Nanos = Nanos(10_000);

/// Now, on the clock of the listener's timer.
fn now() -> Nanos {
    // It is never negative.
    Nanos(Monotonic::ktime_get() as u64)
}

/// May requests be parked?
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not yet: there may be CPUs that make connections without asking us.
    Attached,
    /// Yes.
    Active,
    /// No more.
    Closed,
}

/// What the lock guards.
struct ParkQueue {
    /// The parked requests but for those in `fresh`, which were parked later.
    deferred: List<ParkedRequest>,
    /// Those whose own timers have not been put off, as they do not fire soon, and who came after such a one.
    armed: List<ParkedRequest>,
    stats: Stats,
    config: Config,
    /// So many of the parked requests keep their place in the SYN backlog, at most.
    backlog_share: u32,
    /// So many of them do not count against it.
    backlog_excluded: u64,
    /// So many of them are due, and in somebody's hands.
    expired: u64,
    /// When the timer fires, if it is set.
    timer_at: Option<Nanos>,
    /// That of the last request parked, as a rule that of the next one, too.
    ops_override: Option<&'static RequestOpsOverride>,
    state: State,
    /// Of requests that are not parked any more, for those to come: as a rule, as many come as go.
    spare: KVec<Pin<UniqueArc<ParkedRequest>>>,
    /// Stops the timer when dropped, which waits for the timer's handler: never under the lock.
    timer: Option<ArcHrTimerHandle<Listener>>,
}

impl ParkQueue {
    fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// How many wait: the parked ones that are not due.
    fn unexpired(&self) -> u64 {
        self.stats.parked - self.expired
    }

    /// The one that has waited longest.
    fn oldest(&self) -> Option<ArcBorrow<'_, ParkedRequest>> {
        // As many are due as CPUs are at it, at most (on PREEMPT_RT, as tasks are).
        Iterator::chain(self.deferred.iter(), self.armed.iter())
            .find(|parked| parked.flags().expired().is_none())
    }

    /// One for a request to come.
    #[inline(always)]
    fn take_spare(&mut self) -> Result<Pin<UniqueArc<ParkedRequest>>, Bypass> {
        match self.spare.pop() {
            Some(spare) => Ok(spare),
            None => ParkedRequest::new().map_err(|_| Bypass::NoMemory),
        }
    }

    /// Keeps what a request that is gone has left, unless somebody still looks at it, or enough is kept.
    #[inline]
    fn recycle(&mut self, parked: Arc<ParkedRequest>) {
        if self.is_closed() || self.spare.len() == self.spare.capacity() {
            return;
        }
        if let Some(spare) = Arc::into_unique_or_drop(parked) {
            self.push_spare(spare);
        }
    }

    /// Keeps one that nobody looks at, unless enough is kept.
    #[inline]
    fn push_spare(&mut self, spare: Pin<UniqueArc<ParkedRequest>>) {
        // What there is no room for comes back, and is dropped.
        let _ = self.spare.push_within_capacity(spare);
    }

    /// Takes the one that was parked first.
    fn pop_front(&mut self) -> Option<ListArc<ParkedRequest>> {
        self.deferred.pop_front().or_else(|| self.armed.pop_front())
    }

    /// When the own timers of fresh requests are to be put off, if there are any.
    fn deferral_at(&self) -> Option<Nanos> {
        self.armed
            .iter()
            .next()
            .map(|first| policy::synack_timer_deferral(first.parked_at()))
    }

    /// Puts the own timers of requests off that have waited for long enough to be worth it, of [`BUDGET`] of them at most.
    fn defer_timers(&mut self, now: Nanos) {
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
    fn set_expired(&mut self, parked: &ParkedRequest, expired: Option<(Expiry, OnTimeout)>) {
        self.expired -= u64::from(parked.flags().expired().is_some());
        self.expired += u64::from(expired.is_some());
        parked.set_expired(expired);
    }
}

/// A request whose time is up, for one to act on without the lock.
struct Expired {
    request: RequestRef,
    parked: Arc<ParkedRequest>,
    expiry: Expiry,
    on_timeout: OnTimeout,
}

/// What the module's parameters ask of every listener.
#[derive(Clone, Copy)]
pub(crate) struct Defaults {
    /// The terms of a listener that asks for nothing else.
    pub(crate) config: Config,
    /// How many requests may be parked in one network namespace; 0 for any number.
    pub(crate) namespace_limit: u32,
}

/// What [`Listener::account`] shows.
pub(crate) struct ListenerInfo {
    /// The counters.
    pub(crate) stats: Stats,
    /// The terms.
    pub(crate) config: Config,
    /// Requests that count against the SYN backlog.
    pub(crate) half_open: i32,
    /// The young ones of them.
    pub(crate) half_open_young: i32,
}

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

impl_has_hr_timer! {
    impl HasHrTimer<Self> for Listener {
        mode: RelativeSoftMode<Monotonic>, field: self.timer
    }
}

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
        if !hooks::has_accf_ulp(request.listener_sock()) {
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

    /// Where `request` stands here: parked, due, or neither.
    pub(crate) fn phase_of(&self, bh: &BhDisabled<'_>, request: &RequestSock<'_>) -> Option<Phase> {
        let _queue = self.queue.lock(bh);
        if !self.has_parked(request) {
            return None;
        }
        // SAFETY: it is parked, and this, its home, is locked.
        Some(unsafe { request.parked() }.flags().phase())
    }

    /// Parks `request`, whose bare ACK `segment` is; if another CPU was faster, remembers the segment.
    ///
    /// `false`: it could not be parked, which has been counted. Nothing else has changed but that it may be acked, as it would
    /// be had it been parked and given back.
    #[inline(always)]
    pub(crate) fn park(
        self: ArcBorrow<'_, Self>,
        bh: &BhDisabled<'_>,
        request: RequestSock<'_>,
        segment: TcpSegment<'_>,
    ) -> bool {
        let now = now();
        let ack = AckInfo::new(&request, &segment, now);

        let mut queue = self.queue.lock(bh);
        if !self.is_listener_of(&request) {
            queue.stats.bypass(Bypass::Other);
            return false;
        }
        if request.is_parked(self.tag) {
            // SAFETY: it is parked, and this, its home, is locked.
            unsafe { request.parked() }.set_last_ack(&request, &segment);
            return true;
        }
        let had_armed = !queue.armed.is_empty();
        let is_over_limit = match self.enqueue(&mut queue, &request, ack) {
            Ok(is_over_limit) => is_over_limit,
            Err(cause) => {
                queue.stats.bypass(cause);
                return false;
            }
        };
        // What is later than those that were parked before is later than all of them.
        let is_soon_enough =
            |at| had_armed || queue.armed.is_empty() || at <= policy::synack_timer_deferral(now);
        if !queue.timer_at.is_some_and(is_soon_enough) {
            self.schedule(&mut queue, now);
        }
        if is_over_limit {
            self.evict_oldest(&request, bh, queue);
        }
        true
    }

    /// Has the oldest make room for `newcomer`, which has just been parked.
    ///
    /// Here and now, and not from the timer, so that who comes pays for who goes, on every CPU. If it is accepted, TCP's
    /// handler is called again from within itself: once, as an ACK of ours is never parked.
    #[inline(never)]
    fn evict_oldest(
        self: ArcBorrow<'_, Self>,
        newcomer: &RequestSock<'_>,
        bh: &BhDisabled<'_>,
        mut queue: Guard<'_, ParkQueue, SpinLockBackend>,
    ) {
        let Some(expired) = self.take_expired(&mut queue, Expiry::Eviction) else {
            return;
        };
        if ptr::eq(expired.request.as_request().as_ptr(), newcomer.as_ptr()) {
            // All others were dying, and have left meanwhile: there is room.
            queue.set_expired(&expired.parked, None);
            drop(queue);
        } else {
            drop(queue);
            self.expire(&expired, bh, &rcu::read_lock());
        }
    }

    /// Makes `request`, which is not parked and was made for this listener, a parked one, at the end of the queue. Returns whether
    /// the oldest has to make room for it.
    #[inline(always)]
    fn enqueue(
        &self,
        queue: &mut ParkQueue,
        request: &RequestSock<'_>,
        ack: AckInfo,
    ) -> Result<bool, Bypass> {
        if queue.state != State::Active {
            return Err(Bypass::Other);
        }
        let sock = self.sock.as_ptr();
        // The socket may have lost our operations (`hooks::clone()`). Who makes connections without us since then has seen
        // that, and looks here, under the lock, before it goes on.
        // SAFETY: the listener is alive, as one of its requests is.
        if !unsafe { hooks::has_accf_af_ops(sock, self) } {
            return Err(Bypass::Other);
        }
        // A CPU that makes the connection takes the request out of the table first, and then asks whether it is acked. With a
        // barrier between the two steps, there and here, one of both sees what the other one did: the other one finds it
        // acked, and waits for the lock before it goes on, or we find it gone.
        //
        // Once more, too, whether the listener has a key (`hooks::exemption()`): then the kernel writes the byte that has the mark,
        // and may have written it back. Whoever does so from now on has read it with the mark.
        request.set_acked()?;
        let ops_override = match queue.ops_override {
            Some(ops_override) if ops_override.is_for(request) => ops_override,
            _ => {
                // SAFETY: it is not parked, and no copy: it is in the table.
                let ops_override =
                    unsafe { RequestOpsOverride::for_request(request) }.ok_or(Bypass::Other)?;
                queue.ops_override = Some(ops_override);
                ops_override
            }
        };

        // SAFETY: as above, and with it its namespace.
        let namespace_full = unsafe {
            bindings::accf_netns_charge(self.netns.as_ptr(), self.defaults.namespace_limit)
        };
        // SAFETY: as above.
        let uncharge = || unsafe { bindings::accf_netns_uncharge(self.netns.as_ptr()) };
        let is_over_limit =
            match policy::on_park(&queue.config, queue.unexpired(), namespace_full, || {
                self.accept_queue_is_full()
            }) {
                Admission::Park => false,
                Admission::ParkAndEvict => true,
                Admission::Refuse(cause) => {
                    uncharge();
                    return Err(cause);
                }
            };
        let spare = queue.take_spare().inspect_err(|_| uncharge())?;
        // Most clients send soon, and their requests' own timers need not be touched.
        let timer_may_run = request.may_synack_timer_run();
        // The last thing that may fail, and the first that changes more than the mark.
        if !timer_may_run && !request.defer_timer() {
            uncharge();
            queue.push_spare(spare);
            return Err(Bypass::Other);
        }
        // Who comes after a fresh one must stay behind it.
        let is_timer_armed = timer_may_run || !queue.armed.is_empty();
        // Its own timer is far enough away for nobody else to count its timeouts meanwhile.
        let is_young = timer_may_run || request.timeouts() == 0;
        let parked = ParkedRequest::fill(spare, ack.begin(is_timer_armed, is_young));
        if is_young {
            // SAFETY: as above.
            unsafe { bindings::accf_young_add(sock, -1) };
        }
        // SAFETY: its home is locked; it was in the table, as just checked, and is not parked.
        unsafe { request.override_ops(ops_override, self.tag, &parked) };
        if is_timer_armed {
            queue.armed.push_back(parked);
        } else {
            queue.deferred.push_back(parked);
        }
        queue.stats.park();
        // SAFETY: as above; that is where it is. The read is a `READ_ONCE()`.
        let backlog = unsafe {
            let backlog = sock.byte_add(bindings::ACCF_SK_MAX_ACK_BACKLOG as usize);
            ptr::read_volatile(backlog.cast::<u32>())
        };
        queue.backlog_share = policy::backlog_share(backlog, self.cpus);
        self.update_backlog(queue);
        Ok(is_over_limit)
    }

    /// Takes what a request kept out of the queue and settles its accounts, unless that was done before.
    ///
    /// When the kernel is still to count its request off, this comes before that; else, right after.
    ///
    /// # Safety
    ///
    /// [`RequestSock::restore_ops`] has just returned `parked`, of a request that was parked here, and the lock has been held since.
    #[inline(always)]
    unsafe fn dequeue(
        &self,
        queue: &mut ParkQueue,
        parked: *const ParkedRequest,
        flags: ParkedFlags,
        end: End,
        waited: Nanos,
    ) -> Arc<ParkedRequest> {
        let list = if flags.is_timer_armed() {
            &mut queue.armed
        } else {
            &mut queue.deferred
        };
        // SAFETY: it is in no list but this, if in any; and there is a reference to it in any case.
        match unsafe { list.remove(&*parked) } {
            Some(parked) => {
                self.account_for(queue, flags, end, waited);
                self.update_backlog(queue);
                parked.into_arc()
            }
            // SAFETY: it is in no list, so its reference was the request's (`RequestSock::hand_over_to_destructor()`), and is ours now.
            None => unsafe { Arc::from_raw(parked) },
        }
    }

    /// The same for one that does not become a connection now.
    ///
    /// # Safety
    ///
    /// As for [`Self::leave`].
    #[inline(never)]
    unsafe fn dequeue_unconnected(
        &self,
        queue: &mut ParkQueue,
        parked: *const ParkedRequest,
        end: End,
    ) -> Arc<ParkedRequest> {
        // SAFETY: by the contract of this function, there is a reference to it.
        let flags = unsafe { (*parked).flags() };
        // SAFETY: by the contract of this function.
        unsafe { self.dequeue(queue, parked, flags, end, Nanos(0)) }
    }

    /// Takes what a request keeps that is dying out of the queue, and settles its accounts.
    ///
    /// # Safety
    ///
    /// The lock has been held since `parked` was seen in the queue.
    #[cold]
    unsafe fn dequeue_dying(&self, queue: &mut ParkQueue, parked: &ParkedRequest) {
        let flags = parked.flags();
        let list = if flags.is_timer_armed() {
            &mut queue.armed
        } else {
            &mut queue.deferred
        };
        // As in `close()`, which does not find it any more.
        // SAFETY: it was in the queue, and the lock is held.
        if unsafe { parked.request() }.may_have_left_clone(parked) {
            pin_module();
        }
        // SAFETY: it is in no list but this.
        if let Some(parked) = unsafe { list.remove(parked) } {
            // SAFETY: as just seen; and what is in the queue is parked.
            unsafe { RequestSock::hand_over_to_destructor(parked) };
            self.account_for(queue, flags, End::Aborted, Nanos(0));
            self.update_backlog(queue);
        }
    }

    /// Settles the accounts of one that stood so and has just left the queue, but for the SYN backlog.
    #[inline(always)]
    fn account_for(&self, queue: &mut ParkQueue, flags: ParkedFlags, end: End, waited: Nanos) {
        let young = i32::from(flags.is_young());
        // SAFETY: the listener is alive, and with it its namespace: the caller is closing it or has one of its requests.
        unsafe { bindings::accf_uncharge(self.netns.as_ptr(), self.sock.as_ptr(), young) };
        if flags.expired().is_some() {
            queue.expired -= 1;
        }
        queue.stats.end(end, waited);
    }

    /// Takes as many of the parked requests off the listener's SYN backlog as should be.
    #[inline(always)]
    fn update_backlog(&self, queue: &mut ParkQueue) {
        let backlog_excluded = policy::backlog_excluded(queue.stats.parked, queue.backlog_share);
        if backlog_excluded != queue.backlog_excluded {
            // The difference of two numbers of requests that are in memory.
            let more = queue.backlog_excluded.wrapping_sub(backlog_excluded) as i32;
            queue.backlog_excluded = backlog_excluded;
            // SAFETY: the listener is alive: the caller is closing it or has one of its requests.
            unsafe { bindings::accf_qlen_add(self.sock.as_ptr(), more) };
        }
    }

    /// Remembers another bare ACK of a parked request.
    pub(crate) fn update_last_ack(
        &self,
        bh: &BhDisabled<'_>,
        request: &RequestSock<'_>,
        segment: &TcpSegment<'_>,
    ) {
        let _queue = self.queue.lock(bh);
        if self.has_parked(request) {
            // SAFETY: it is parked, and this, its home, is locked.
            unsafe { request.parked() }.set_last_ack(request, segment);
        }
    }

    /// Counts a connection that was made although the filter would have held it back.
    #[inline(never)]
    pub(crate) fn bypassed(&self, bh: &BhDisabled<'_>, cause: Bypass) {
        self.queue.lock(bh).stats.bypass(cause);
    }

    /// Keeps a parked request whose own timer fired, after weeks. `false` if it is not parked here.
    ///
    /// # Safety
    ///
    /// The caller is called by the timer's handler.
    pub(crate) unsafe fn on_synack_timer(
        &self,
        bh: &BhDisabled<'_>,
        request: &RequestSock<'_>,
    ) -> bool {
        let mut queue = self.queue.lock(bh);
        let is_here = self.has_parked(request);
        if is_here {
            queue.stats.synack_suppressed += 1;
            // SAFETY: it is parked, and this, its home, is locked.
            let parked = unsafe { request.parked() };
            if parked.flags().is_young() {
                // The handler is about to count it off.
                parked.set_young(false);
                // SAFETY: the listener is alive, as one of its requests is.
                unsafe { bindings::accf_young_add(self.sock.as_ptr(), 1) };
            }
            // SAFETY: its home is locked; the rest by the contract of this function.
            unsafe { request.reset_timeouts() };
        }
        is_here
    }

    /// Ends the parking of a request of which `segment` has just made a connection, if it is parked here: it is the
    /// kernel's again. The connection gets the round-trip time that the bare ACK showed.
    ///
    /// # Safety
    ///
    /// The caller has taken the request out of the table (`own_req`), and the connection exists.
    #[inline(always)]
    pub(crate) unsafe fn complete(
        &self,
        bh: &BhDisabled<'_>,
        request: RequestSock<'_>,
        segment: policy::SegmentKind,
    ) {
        let mut queue = self.queue.lock(bh);
        if !self.has_parked(&request) {
            return;
        }
        let now = now();
        // SAFETY: it is parked, and this, its home, is locked.
        let parked = unsafe { request.parked() };
        let waited = Nanos(now.0.saturating_sub(parked.parked_at().0));
        let flags = parked.flags();
        let end = End::of_accepted(segment, flags.expired());
        // SAFETY: as above, and the caller holds a reference to the request.
        let parked = unsafe { self.dequeue(&mut queue, request.restore_ops(), flags, end, waited) };
        if let Some(round_trip) = parked.round_trip() {
            // SAFETY: by the contract of this function.
            unsafe { request.set_round_trip(round_trip, waited, now) };
        }
        queue.recycle(parked);
    }

    /// Makes a request the kernel's again, if it is parked here: it makes a connection of it, or decides soon what becomes of it.
    pub(crate) fn fall_back(&self, bh: &BhDisabled<'_>, request: &RequestSock<'_>) {
        let mut queue = self.queue.lock(bh);
        if self.has_parked(request) {
            self.fall_back_parked(&mut queue, request);
        }
    }

    /// The same for one that is parked here, to which the caller holds a reference.
    fn fall_back_parked(&self, queue: &mut ParkQueue, request: &RequestSock<'_>) {
        // SAFETY: it is parked, this, its home, is locked, and the caller holds a reference to it.
        let parked =
            unsafe { self.dequeue_unconnected(queue, request.restore_ops(), End::Fallback) };
        if request.may_have_left_clone(&parked) {
            pin_module();
        }
        queue.recycle(parked);
        request.expire_timer_in(1);
    }

    /// Forgets a parked request that the kernel dropped.
    ///
    /// # Safety
    ///
    /// The caller is the destructor of `request`, which is parked here, or was when it had nobody's reference any more.
    pub(crate) unsafe fn on_destroyed(&self, bh: &BhDisabled<'_>, request: &RequestSock<'_>) {
        let mut queue = self.queue.lock(bh);
        // SAFETY: it is parked, this, its home, is locked, and the caller is its destructor.
        let parked =
            unsafe { self.dequeue_unconnected(&mut queue, request.restore_ops(), End::Aborted) };
        queue.recycle(parked);
    }

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
    fn schedule(self: ArcBorrow<'_, Self>, queue: &mut ParkQueue, now: Nanos) {
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
    fn take_expired(&self, queue: &mut ParkQueue, expiry: Expiry) -> Option<Expired> {
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
    fn expire(self: ArcBorrow<'_, Self>, expired: &Expired, bh: &BhDisabled<'_>, rcu: &rcu::Guard) {
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
        expire::accept(&request, &expired.parked, bh, rcu);

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
            expire::reset(&request, &expired.parked, bh, rcu);
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
