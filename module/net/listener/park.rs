// SPDX-License-Identifier: GPL-2.0-only

//! Parks a request, and takes it out of the queue again.

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    prelude::*,
    sync::{
        lock::{
            spinlock::SpinLockBackend,
            Guard, //
        },
        rcu,
        Arc,
        ArcBorrow, //
    }, //
};

use crate::{
    net::{
        bh::BhDisabled,
        bindings::{
            accf_arrival,
            sock, //
        },
        clone::{
            pin_module,
            Moment, //
        },
        netns::NetnsCharge,
        park_queue::ParkQueue,
        parked_request::{
            AckInfo,
            ParkedFlags,
            ParkedRequest, //
        },
        reqsk::RequestSock,
        reqsk_ops::RequestOpsOverride,
        tcp_segment::TcpSegment, //
    },
    policy::{
        self,
        Admission,
        Bypass,
        End,
        Expiry,
        Nanos,
        OnClose,
        Phase,
        Probing,
        Silence,
        COUNTED_BEFORE_EVICTION,
        COUNTED_WITH_NEWCOMER, //
    }, //
};

use super::{
    late::backlog_unless_raised,
    must_pin,
    timer::now,
    Listener,
    Locked, //
};

/// What a connection takes from the time in which its request was parked.
pub(crate) struct Completed {
    waited: Nanos,
    /// What IP said of the bare ACK, and its AE, CWR and ECE, if a later segment has made the
    /// connection.
    ack: Option<(accf_arrival, u8)>,
}

impl Completed {
    /// Makes `child` what it is on a plain listener.
    ///
    /// # Safety
    ///
    /// `child` must be the new child that `segment` has made of `request`, locked by the caller in
    /// softirq, and [`Listener::complete`] have returned this value for them.
    pub(crate) unsafe fn apply_to(
        &self,
        child: NonNull<sock>,
        request: &RequestSock<'_>,
        segment: &TcpSegment<'_>,
    ) {
        // SAFETY: By the contract of this function.
        unsafe { request.set_child_waited(child, self.waited) };
        if let Some((ack, ace)) = self.ack {
            // SAFETY: By the contract of this function.
            unsafe { request.set_child_ack(child, segment, ack, ace) };
        }
    }
}

/// What a SYN-ACK timer's handler has come to a listener for.
pub(crate) enum OnSynAckTimer {
    /// Nothing: the request is not parked there.
    NotParked,
    /// The request stays parked.
    Waits,
    /// The same, and the client is to be probed ([`Listener::wait_again`] comes after that). An
    /// answer may take this long.
    Probe(Arc<ParkedRequest>, Nanos),
}

impl Listener {
    /// Returns where `request` stands here: parked or expired. `None` if it is not parked here.
    pub(crate) fn phase_of(&self, bh: &BhDisabled<'_>, request: &RequestSock<'_>) -> Option<Phase> {
        let _queue = self.queue.lock(bh);
        if !self.has_parked(request) {
            return None;
        }
        // SAFETY: The request is parked here, and the lock is held.
        Some(unsafe { request.parked() }.flags().phase())
    }

    /// Parks `request`, whose bare ACK `segment` is. If another CPU has just parked it, takes note
    /// of the segment.
    ///
    /// Returns `false` if the request could not be parked; the cause is counted. Nothing else has
    /// changed then, except that the request may be acked, as a request is that was parked and fell
    /// back.
    ///
    /// # Safety
    ///
    /// The caller must hold a reference to `request`: the destructor looks whether the request is
    /// parked without taking the lock.
    // With `on_bare_ack()`, and with `AckInfo::new()`, `ops_override_for()`, `admit()` and
    // `policy::on_park()`: saves 29 instructions of a bare ACK and its request (`cargo xtask
    // profile`).
    #[inline(always)]
    pub(crate) unsafe fn park(
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
            // SAFETY: The request is parked here, and the lock is held; so its entry is in the
            // queue.
            unsafe { request.parked().set_last_ack(request, segment) };
            return true;
        }
        let had_armed = queue.has_armed();
        // SAFETY: The queue is this listener's. The request was made for it and is not parked, and
        // is not dying, as the caller holds a reference by the contract of this function.
        let admission = match unsafe { self.enqueue(&mut queue, &request, ack) } {
            Ok(admission) => admission,
            Err(cause) => {
                queue.stats.bypass(cause);
                return false;
            }
        };
        // The deadline of this request is later than those of all others in the queue. So the timer
        // fires soon enough if it is set at all, except for the SYN-ACK timer of this request, if
        // that is the first one to be deferred.
        let is_soon_enough =
            |at| had_armed || !queue.has_armed() || at <= policy::synack_timer_deferral(now);
        if !queue.timer_at.is_some_and(is_soon_enough) {
            // SAFETY: The queue is this listener's.
            unsafe { self.schedule(&mut queue, now) };
        }
        if admission != Admission::Park {
            // SAFETY: The queue is this listener's.
            unsafe { self.make_room(request, bh, queue, admission) };
        }
        true
    }

    /// Counts requests by source, as the listener is more than half full; and if `admission` says
    /// so, evicts the oldest request of the source that has the most, as `newcomer`, which has just
    /// been parked, is one too many.
    ///
    /// If `max_parked` was lowered, and many are not counted yet, it is the timer that counts them
    /// and evicts, at once: until then all stay that were parked, and those that come meanwhile. If
    /// not all are counted at the namespace's limit, the oldest one is evicted.
    ///
    /// Evicts synchronously instead of from the timer, so that the CPU that parks the new request
    /// pays for the eviction. If the evicted one is to be accepted, TCP's receive handler is called
    /// again from within itself: once, as a rebuilt ACK is never parked.
    ///
    /// # Safety
    ///
    /// `queue` must be this listener's.
    #[cold] // One of those that `net/mod.rs` names: together, they save 48 instructions.
    unsafe fn make_room(
        self: ArcBorrow<'_, Self>,
        newcomer: RequestSock<'_>,
        bh: &BhDisabled<'_>,
        mut queue: Guard<'_, Locked, SpinLockBackend>,
        admission: Admission,
    ) {
        queue.probing = self.probing(&queue);
        if admission != Admission::ParkAndEvict {
            queue.count_sources(COUNTED_WITH_NEWCOMER);
            return;
        }
        let is_own_limit = queue.unexpired() > u64::from(queue.config.max_parked);
        if !queue.count_sources(COUNTED_BEFORE_EVICTION) && is_own_limit {
            // SAFETY: The queue is this listener's by the contract of this function.
            unsafe { self.schedule(&mut queue, now()) };
            return;
        }
        let evicted_greediest = queue.stats.evicted_greediest;
        // SAFETY: The queue is this listener's by the contract of this function.
        let Some(expired) = (unsafe { self.take_expired(&mut queue, Expiry::Eviction) }) else {
            return;
        };
        if ptr::eq(expired.request.as_request().as_ptr(), newcomer.as_ptr()) {
            // All others were dying, and have left the queue meanwhile: there is room. Or another
            // CPU has read the clock later and was faster: then the timer evicts one, if this
            // listener is full. If only the namespace is, it has one more until the next one comes.
            queue.stats.evicted_greediest = evicted_greediest;
            // SAFETY: The entry was in the queue, and the lock has been held since.
            unsafe { queue.set_expired(&expired.parked, None) };
            // SAFETY: The queue is this listener's by the contract of this function.
            unsafe { self.schedule(&mut queue, now()) };
            drop(queue);
        } else {
            drop(queue);
            self.expire(&expired, bh, &rcu::read_lock());
        }
    }

    /// Appends `request`, which was made for this listener and is not parked, to the queue.
    ///
    /// Returns what else is to be done for that. What an earlier step has done is undone if a later
    /// one fails, except that the request stays acked.
    ///
    /// # Safety
    ///
    /// * `queue` must be this listener's.
    /// * `request` must have been made for this listener. It must not be parked, nor be dying.
    #[inline(always)] // Saves 120 instructions of a bare ACK (`cargo xtask bench connection`).
    unsafe fn enqueue(
        &self,
        queue: &mut Locked,
        request: &RequestSock<'_>,
        ack: AckInfo,
    ) -> Result<Admission, Bypass> {
        self.check_may_park(queue)?;
        // Pairs with `was_acked()` (B5, B6): either the CPU that makes the connection finds the
        // request acked and takes the lock, or this one finds it gone from the table.
        // SAFETY: The request was made for this listener, by the contract of this function. The
        // caller has locked the queue, and the request is parked below, or the call fails.
        unsafe { request.set_acked() }?;
        // SAFETY: The request is not parked, by the contract of this function.
        let ops_override = unsafe { self.ops_override_for(queue, request) }?;
        let charge = self.netns.charge(self.defaults.namespace_limit);
        let admission = self.admit(queue, &charge)?;
        let spare = queue.take_spare()?;
        // Most clients send soon, and the SYN-ACK timers of their requests need not be touched.
        let is_timer_far = request.may_synack_timer_run();
        if !is_timer_far && !self.defer_timer(queue, *request) {
            queue.recycle(spare.into());
            return Err(Bypass::Other);
        }

        // Nothing fails from here on.
        charge.keep();
        // A request that comes after one with an armed timer must stay behind it.
        let is_timer_armed = is_timer_far || queue.has_armed();
        // An armed timer is far enough away that no other CPU counts a timeout meanwhile.
        let is_young = is_timer_far || request.timeouts() == 0;
        let parked = ParkedRequest::fill(spare, ack.begin(is_timer_armed, is_young));
        if is_young {
            self.listen_sock().add_young(-1);
        }
        // SAFETY: The listener is locked. The request was in the table after it was acked, under
        // this lock (B5, B6), and is not parked by the contract of this function. The entry is
        // queued below.
        unsafe { request.override_ops(ops_override, self.tag, &parked) };
        // SAFETY: The queue is this listener's, and locked; the request was just parked here.
        unsafe { queue.push_back(parked) };
        queue.stats.park();
        if let Some(backlog) = backlog_unless_raised(self.listen_sock()) {
            queue.backlog_share = policy::backlog_share(backlog, self.cpus);
        }
        self.update_backlog(queue);
        Ok(admission)
    }

    /// Defers the SYN-ACK timer of a request that is about to be parked: until its client is
    /// probed, if it is. Returns whether the timer was pending.
    #[cold] // Most timers are far from firing.
    fn defer_timer(&self, queue: &mut ParkQueue, request: RequestSock<'_>) -> bool {
        queue.probing = self.probing(queue);
        request.defer_timer(queue.probing.map(|probing| probing.idle))
    }

    /// Checks whether this listener parks requests at all.
    fn check_may_park(&self, queue: &ParkQueue) -> Result<(), Bypass> {
        // The socket may have lost the module's operations (see `Self::is_hooked()`). A CPU that
        // has made a connection without the module since has seen that, and takes the lock in
        // `fall_back()` before it goes on.
        if queue.is_active() && self.is_hooked(self.listen_sock()) {
            Ok(())
        } else {
            Err(Bypass::Other)
        }
    }

    /// Returns the ops override for `request`.
    ///
    /// # Safety
    ///
    /// `request` must not be parked.
    #[inline(always)] // See `park()`.
    unsafe fn ops_override_for(
        &self,
        queue: &mut ParkQueue,
        request: &RequestSock<'_>,
    ) -> Result<&'static RequestOpsOverride, Bypass> {
        if let Some(ops_override) = queue.ops_override {
            if ops_override.is_for(request) {
                return Ok(ops_override);
            }
        }
        // SAFETY: The lock is held, as `queue` shows. The request is not parked, by the contract of
        // this function: it has TCP's operations, or it is a clone that has the override. The
        // override of its family exists then. `self.callbacks` are the module's only ones, by the
        // contract of `Self::new()`.
        let ops_override = unsafe { RequestOpsOverride::for_request(*request, self.callbacks) }
            .ok_or(Bypass::Other)?;
        queue.ops_override = Some(ops_override);
        Ok(ops_override)
    }

    /// Decides whether there is room for one more request, and returns what is to be done for it.
    #[inline(always)] // See `park()`.
    fn admit(&self, queue: &Locked, charge: &NetnsCharge<'_>) -> Result<Admission, Bypass> {
        policy::on_park(
            &queue.config,
            queue.unexpired(),
            charge.is_over_limit(),
            || self.accept_queue(queue).is_full(),
        )
    }

    /// Takes the entry of a request out of the queue and settles its accounts, unless that was done
    /// before.
    ///
    /// TCP counts the request off the SYN backlog as well: after this call if the request becomes a
    /// connection or falls back, and before it if TCP has dropped the request.
    ///
    /// # Safety
    ///
    /// * `queue` must be this listener's.
    /// * [`RequestSock::restore_ops`] has just returned `parked` for a request that was parked here
    ///   or orphaned, and the lock has been held since.
    /// * `flags` must be those of `parked`.
    #[inline(always)] // See `complete()`.
    unsafe fn dequeue(
        &self,
        queue: &mut ParkQueue,
        parked: *const ParkedRequest,
        flags: ParkedFlags,
        end: End,
        waited: Nanos,
    ) -> Arc<ParkedRequest> {
        // SAFETY: There is a reference to the entry: the queue's, or the request's, which is the
        // caller's now. The request was parked at the listener whose queue this is, so the entry is
        // in this queue, or it was orphaned, and the entry is in no list. `flags` are the entry's.
        match unsafe { queue.remove(&*parked, flags) } {
            Some(parked) => {
                self.account_for(queue, flags, end, waited);
                self.update_backlog(queue);
                parked.into_arc()
            }
            // SAFETY: The entry is in no list, so the reference was the request's
            // (`hand_over_to_destructor()`), and is the caller's now.
            None => unsafe { Arc::from_raw(parked) },
        }
    }

    /// Dequeues a request that does not become a connection now.
    ///
    /// # Safety
    ///
    /// * `queue` must be this listener's.
    /// * [`RequestSock::restore_ops`] has just returned `parked` for a request that was parked here
    ///   or orphaned, and the lock has been held since.
    pub(super) unsafe fn dequeue_unconnected(
        &self,
        queue: &mut ParkQueue,
        parked: *const ParkedRequest,
        end: End,
    ) -> Arc<ParkedRequest> {
        // SAFETY: There is a reference to the entry, by the contract of this function.
        let flags = unsafe { (*parked).flags() };
        // SAFETY: By the contract of this function. The flags were just read from `parked`.
        unsafe { self.dequeue(queue, parked, flags, end, Nanos(0)) }
    }

    /// Takes the entry of a dying request out of the queue, and leaves it to the request's
    /// destructor, which does not find it here any more.
    ///
    /// # Safety
    ///
    /// * `queue` must be this listener's.
    /// * The lock has been held since `parked` was seen in `queue`, and its request was seen to be
    ///   dying ([`RequestSock::get`] has failed).
    #[cold] // One of those that `net/mod.rs` names: together, they save 48 instructions.
    pub(super) unsafe fn dequeue_dying(&self, queue: &mut ParkQueue, parked: &ParkedRequest) {
        let flags = parked.flags();
        // SAFETY: The entry was seen in the queue, and the lock is held.
        if must_pin(&unsafe { parked.request() }, Moment::Leaves(parked)) {
            // SAFETY: A request is parked here. So the listener was not closed, as that would need
            // the lock, and its socket holds a reference to the module.
            unsafe { pin_module() };
        }
        // SAFETY: The entry is in this queue, and these are its flags.
        if let Some(parked) = unsafe { queue.remove(parked, flags) } {
            // SAFETY: The entry was just taken out of the queue, with the lock held; the request
            // is dying by the contract of this function, and parked, as it was in the queue.
            unsafe { RequestSock::hand_over_to_destructor(parked) };
            self.account_for(queue, flags, End::Aborted, Nanos(0));
            self.update_backlog(queue);
        }
    }

    /// Settles the accounts of a request with these flags that has just left the queue, except for
    /// the SYN backlog ([`Self::update_backlog`]).
    #[inline(always)] // See `complete()`.
    pub(super) fn account_for(
        &self,
        queue: &mut ParkQueue,
        flags: ParkedFlags,
        end: End,
        waited: Nanos,
    ) {
        self.netns.uncharge();
        if flags.is_young() {
            self.listen_sock().add_young(1);
        }
        queue.forget_expired(flags);
        queue.stats.end(end, waited);
    }

    /// Takes as many parked requests off the listener's SYN backlog as the policy says.
    #[inline(always)] // See `complete()`.
    pub(super) fn update_backlog(&self, queue: &mut ParkQueue) {
        let backlog_excluded = policy::backlog_excluded(queue.stats.parked, queue.backlog_share);
        if backlog_excluded != queue.backlog_excluded {
            // The difference of two numbers of requests that are in memory.
            let more = queue.backlog_excluded.wrapping_sub(backlog_excluded) as i32;
            queue.backlog_excluded = backlog_excluded;
            self.listen_sock().add_half_open(more);
        }
    }

    /// Takes note of another bare ACK of a parked request.
    pub(crate) fn update_last_ack(
        &self,
        bh: &BhDisabled<'_>,
        request: RequestSock<'_>,
        segment: TcpSegment<'_>,
    ) {
        let queue = self.queue.lock(bh);
        if self.has_parked(&request) {
            // SAFETY: The request is parked here, and the lock is held.
            let parked = unsafe { request.parked() };
            // SAFETY: As the request is parked here, its entry is in the queue. The lock is held.
            unsafe {
                parked.set_last_ack(request, segment);
                parked.set_silences(0);
            }
            // The client is there. If the timer is not pending, its handler runs, and does not
            // know of this ACK: the next probe is early.
            if let (Some(probing), false) = (queue.probing, parked.flags().is_timer_armed()) {
                request.defer_timer(Some(probing.idle));
            }
        }
    }

    /// Counts a connection that was made although the filter would have parked it.
    #[cold] // One of those that `net/mod.rs` names: together, they save 48 instructions.
    pub(crate) fn count_bypass(&self, bh: &BhDisabled<'_>, cause: Bypass) {
        self.queue.lock(bh).stats.bypass(cause);
    }

    /// Keeps a parked request whose SYN-ACK timer fired. If its client is probed, that was the
    /// time for it.
    ///
    /// # Safety
    ///
    /// The caller must have been called by the timer's handler (`reqsk_timer_handler()`).
    pub(crate) unsafe fn on_synack_timer(
        self: ArcBorrow<'_, Self>,
        bh: &BhDisabled<'_>,
        request: &RequestSock<'_>,
    ) -> OnSynAckTimer {
        let mut queue = self.queue.lock(bh);
        if !self.has_parked(request) {
            return OnSynAckTimer::NotParked;
        }
        // SAFETY: The request is parked here, and the lock is held.
        let parked = unsafe { request.parked_arc() };
        let flags = parked.flags();
        if !flags.is_timer_armed() && flags.expired().is_none() {
            if let Some(probing) = self.probing(&queue) {
                // SAFETY: The queue is this listener's, where the request is parked, not expired,
                // and its timer deferred. The handler is the caller.
                return unsafe { self.on_silence(&mut queue, request, parked, probing) };
            }
        }
        queue.stats.synack_suppressed += 1;
        if flags.is_young() {
            // The handler is about to count it off.
            // SAFETY: As the request is parked here, its entry is in the queue. The lock is held.
            unsafe { parked.set_young(false) };
            self.listen_sock().add_young(1);
        }
        // SAFETY: The lock is held; the handler is the caller by the contract of this function.
        unsafe { request.reset_timeouts() };
        OnSynAckTimer::Waits
    }

    /// Handles that nothing was heard of a client in time.
    ///
    /// # Safety
    ///
    /// * `queue` must be this listener's, where `request` is parked with `parked`; it must not be
    ///   expired, and its SYN-ACK timer be deferred.
    /// * The caller must have been called by that timer's handler.
    #[cold] // Most listeners do not probe.
    unsafe fn on_silence(
        self: ArcBorrow<'_, Self>,
        queue: &mut Locked,
        request: &RequestSock<'_>,
        parked: Arc<ParkedRequest>,
        probing: Probing,
    ) -> OnSynAckTimer {
        let silences = parked.silences().saturating_add(1);
        // SAFETY: As the request is parked here, its entry is in the queue. The lock is held.
        unsafe { parked.set_silences(silences) };
        match probing.on_silence(silences) {
            Silence::Probe => {
                queue.stats.probes += 1;
                OnSynAckTimer::Probe(parked, probing.interval)
            }
            Silence::Gone => {
                // SAFETY: The entry is in this queue, not expired, and its timer deferred, by the
                // contract of this function.
                unsafe { queue.bury(&parked) };
                // Dropping the request waits for the handler, which is the caller.
                // SAFETY: The queue is this listener's by the contract of this function.
                unsafe { self.schedule(queue, now()) };
                // SAFETY: The lock is held, the request is parked here with `parked`, and the
                // handler is the caller.
                unsafe { self.set_interval(request, &parked, probing.interval) };
                OnSynAckTimer::Waits
            }
        }
    }

    /// Has the SYN-ACK timer of a request whose client was probed fire again after `interval`, if
    /// the request is still parked.
    ///
    /// # Safety
    ///
    /// The caller must have been called by that timer's handler, and return to it.
    #[cold] // Most listeners do not probe.
    pub(crate) unsafe fn wait_again(
        &self,
        bh: &BhDisabled<'_>,
        request: &RequestSock<'_>,
        interval: Nanos,
    ) {
        let _queue = self.queue.lock(bh);
        if self.has_parked(request) {
            // SAFETY: The request is parked here, and the lock is held.
            let parked = unsafe { request.parked() };
            // SAFETY: The lock is held, the request is parked here with `parked`, and the handler
            // is the caller by the contract of this function.
            unsafe { self.set_interval(request, parked, interval) };
        }
    }

    /// Does what [`Self::wait_again`] says.
    ///
    /// # Safety
    ///
    /// The caller must hold the lock, under which `request` is parked here with `parked`, and must
    /// have been called by the handler of its SYN-ACK timer.
    unsafe fn set_interval(
        &self,
        request: &RequestSock<'_>,
        parked: &ParkedRequest,
        interval: Nanos,
    ) {
        // SAFETY: The lock is held; the handler is the caller by the contract of this function.
        let is_counted = !unsafe { request.wait_again(interval) };
        if is_counted && parked.flags().is_young() {
            // The handler is about to count it off.
            // SAFETY: As the request is parked here, its entry is in the queue. The lock is held.
            unsafe { parked.set_young(false) };
            self.listen_sock().add_young(1);
        }
    }

    /// Ends the parking of `request` if it is parked here, as `segment` has just made a connection
    /// of it. The connection gets the round-trip time that the bare ACK showed; what else it is to
    /// get is returned.
    ///
    /// # Safety
    ///
    /// The caller has taken the request out of the table (`own_req`), and the connection exists.
    // With `dequeue()`, `account_for()` and `update_backlog()`, which it calls: saves 280
    // instructions of a request (`cargo xtask bench connection`).
    #[inline(always)]
    pub(crate) unsafe fn complete(
        &self,
        bh: &BhDisabled<'_>,
        request: RequestSock<'_>,
        segment: policy::SegmentKind,
    ) -> Option<Completed> {
        let mut queue = self.queue.lock(bh);
        if !self.has_parked(&request) {
            return None;
        }
        let now = now();
        // SAFETY: The request is parked here, and the lock is held.
        let parked = unsafe { request.parked() };
        let waited = Nanos(now.0.saturating_sub(parked.parked_at().0));
        let flags = parked.flags();
        let end = End::of_accepted(segment, flags.expired());
        // SAFETY: The queue is this listener's. The request is parked here, the lock is held, and
        // the caller holds a reference. `flags` were read from the entry under the lock.
        let parked = unsafe { self.dequeue(&mut queue, request.restore_ops(), flags, end, waited) };
        if let Some(round_trip) = parked.round_trip() {
            // SAFETY: The caller has taken the request out of the table, and the connection exists,
            // by the contract of this function.
            unsafe { request.set_round_trip(round_trip, waited, now) };
        }
        // The ACK that `inject` rebuilds says the same.
        let is_rebuilt = segment == policy::SegmentKind::BareAck && flags.expired().is_some();
        let ack = (!is_rebuilt).then(|| (parked.arrival(), flags.ace()));
        queue.recycle(parked);
        Some(Completed { waited, ack })
    }

    /// Has TCP drop `request`, whose client has closed its side without a byte, if the
    /// configuration says so. Returns whether it is dropped, and the client to be told.
    ///
    /// # Safety
    ///
    /// The caller must hold a reference to `request`, and no lock.
    #[cold] // Few clients close without a byte.
    pub(crate) unsafe fn drop_closed(
        &self,
        bh: &BhDisabled<'_>,
        request: &RequestSock<'_>,
    ) -> bool {
        let queue = self.queue.lock(bh);
        if !queue.is_active() || policy::on_fin(&queue.config) != OnClose::Reset {
            return false;
        }
        let was_parked = self.has_parked(request);
        drop(queue);
        // Another CPU may have made the connection, and then TCP hands it the segment.
        if !request.is_hashed() {
            return false;
        }
        request.drop_from_table();
        // It may have done so just now.
        if request.is_connected() {
            return false;
        }
        let mut queue = self.queue.lock(bh);
        if self.has_parked(request) {
            // SAFETY: The queue is this listener's, and locked. The request is parked here, and the
            // caller holds a reference to it by the contract of this function.
            let parked = unsafe {
                self.dequeue_unconnected(&mut queue, request.restore_ops(), End::ClosedReset)
            };
            queue.recycle(parked);
        } else if !was_parked {
            queue.stats.closed_reset_unparked += 1;
        }
        true
    }

    /// Has `request` fall back to plain TCP if it is parked here: TCP makes a connection of it, or
    /// soon decides what becomes of it.
    ///
    /// # Safety
    ///
    /// The caller must hold a reference to `request`.
    pub(crate) unsafe fn fall_back(&self, bh: &BhDisabled<'_>, request: &RequestSock<'_>) {
        let mut queue = self.queue.lock(bh);
        if self.has_parked(request) {
            // SAFETY: The queue is this listener's. The request is parked here, and the caller
            // holds a reference to it.
            unsafe { self.fall_back_parked(&mut queue, request) };
        }
    }

    /// Has `request`, which is parked here, fall back to plain TCP.
    ///
    /// # Safety
    ///
    /// `queue` must be this listener's, `request` parked here, and the caller must hold a reference
    /// to it.
    pub(super) unsafe fn fall_back_parked(&self, queue: &mut ParkQueue, request: &RequestSock<'_>) {
        // SAFETY: The queue is this listener's, the request is parked here and the caller holds a
        // reference, by the contract of this function. The lock is held, as `queue` shows.
        let parked =
            unsafe { self.dequeue_unconnected(queue, request.restore_ops(), End::Fallback) };
        if must_pin(request, Moment::Leaves(&parked)) {
            // SAFETY: A request was parked here until now. So the listener was not closed, as that
            // would need the lock, and its socket holds a reference to the module.
            unsafe { pin_module() };
        }
        queue.recycle(parked);
        request.expire_timer_in(1);
    }

    /// Dequeues a parked request that TCP has dropped.
    ///
    /// # Safety
    ///
    /// The caller is the destructor of `request`, which is parked here, or was when its last
    /// reference went.
    pub(crate) unsafe fn on_destroyed(&self, bh: &BhDisabled<'_>, request: &RequestSock<'_>) {
        let mut queue = self.queue.lock(bh);
        // SAFETY: The request is parked here or orphaned, the lock is held, and the caller is its
        // destructor.
        let parked = unsafe { request.restore_ops() };
        // SAFETY: There is a reference to the entry: the queue's, or the request's.
        let end = match unsafe { (*parked).silences() } {
            0 => End::Aborted,
            // It may have answered to a probe by an RST.
            _ => End::Died,
        };
        // SAFETY: The queue is this listener's. The request is parked here or orphaned, the lock is
        // held, and the caller is its destructor.
        let parked = unsafe { self.dequeue_unconnected(&mut queue, parked, end) };
        queue.recycle(parked);
    }
}
