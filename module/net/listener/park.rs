// SPDX-License-Identifier: GPL-2.0-only

//! Parks a request, and takes it out of the queue again.

use core::ptr;

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
        clone::{
            pin_module,
            Moment, //
        },
        netns::NetnsCharge,
        park_queue::{
            ParkQueue,
            State, //
        },
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
        Phase, //
    }, //
};

use super::{
    must_pin,
    timer::now,
    Listener,
    Locked, //
};

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
            // SAFETY: The request is parked here, and the lock is held.
            unsafe { request.parked() }.set_last_ack(&request, &segment);
            return true;
        }
        let had_armed = queue.has_armed();
        // SAFETY: The queue is this listener's. The request was made for it and is not parked.
        let is_over_limit = match unsafe { self.enqueue(&mut queue, &request, ack) } {
            Ok(is_over_limit) => is_over_limit,
            Err(cause) => {
                queue.stats.bypass(cause);
                return false;
            }
        };
        // The timer is set soon enough if it is set for requests parked before: the new one is
        // later than all of them.
        let is_soon_enough =
            |at| had_armed || !queue.has_armed() || at <= policy::synack_timer_deferral(now);
        if !queue.timer_at.is_some_and(is_soon_enough) {
            self.schedule(&mut queue, now);
        }
        if is_over_limit {
            self.evict_oldest(&request, bh, queue);
        }
        true
    }

    /// Evicts the oldest request, as `newcomer`, which has just been parked, is one too many.
    ///
    /// Evicts synchronously instead of from the timer, so that the CPU that parks the new request
    /// pays for the eviction. If the oldest is to be accepted, TCP's receive handler is called
    /// again from within itself: once, as a rebuilt ACK is never parked.
    #[cold] // Together: saves 48 instructions of a parked connection (`bench holding`).
    fn evict_oldest(
        self: ArcBorrow<'_, Self>,
        newcomer: &RequestSock<'_>,
        bh: &BhDisabled<'_>,
        mut queue: Guard<'_, Locked, SpinLockBackend>,
    ) {
        let Some(expired) = self.take_expired(&mut queue, Expiry::Eviction) else {
            return;
        };
        if ptr::eq(expired.request.as_request().as_ptr(), newcomer.as_ptr()) {
            // All others were dying, and have left the queue meanwhile: there is room.
            queue.set_expired(&expired.parked, None);
            drop(queue);
        } else {
            drop(queue);
            self.expire(&expired, bh, &rcu::read_lock());
        }
    }

    /// Appends `request`, which was made for this listener and is not parked, to the queue.
    ///
    /// Returns whether the oldest must be evicted for it. What an earlier step has done is undone
    /// if a later one fails, except that the request stays acked.
    ///
    /// # Safety
    ///
    /// * `queue` must be this listener's.
    /// * `request` must be one that was made for this listener and is not parked.
    #[inline(always)] // Saves 120 instructions of a bare ACK (`cargo xtask bench connection`).
    unsafe fn enqueue(
        &self,
        queue: &mut ParkQueue,
        request: &RequestSock<'_>,
        ack: AckInfo,
    ) -> Result<bool, Bypass> {
        self.check_may_park(queue)?;
        // Pairs with `was_acked()` (B5, B6): either the CPU that makes the connection finds the
        // request acked and takes the lock, or this one finds it gone from the table.
        request.set_acked()?;
        // SAFETY: The request is not parked, by the contract of this function.
        let ops_override = unsafe { self.ops_override_for(queue, request) }?;
        let charge = self.netns.charge(self.defaults.namespace_limit);
        let is_over_limit = self.admit(queue, &charge)?;
        let spare = queue.take_spare()?;
        // Most clients send soon, and the SYN-ACK timers of their requests need not be touched.
        let is_timer_far = request.may_synack_timer_run();
        if !is_timer_far && !request.defer_timer() {
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
        // SAFETY: The listener is locked. The request was in the table, as `set_acked()` has
        // checked, and is not parked by the contract of this function. The entry is queued below.
        unsafe { request.override_ops(ops_override, self.tag, &parked) };
        queue.push_back(parked);
        queue.stats.park();
        queue.backlog_share = policy::backlog_share(self.listen_sock().backlog(), self.cpus);
        self.update_backlog(queue);
        Ok(is_over_limit)
    }

    /// Checks whether this listener parks requests at all.
    fn check_may_park(&self, queue: &ParkQueue) -> Result<(), Bypass> {
        // The socket may have lost the module's operations (see `Self::is_hooked()`). A CPU that
        // has made a connection without the module since has seen that, and takes the lock in
        // `fall_back()` before it goes on.
        if queue.state == State::Active && self.is_hooked(self.listen_sock()) {
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
        // SAFETY: The request is not parked, by the contract of this function: it has TCP's
        // operations, or it is a clone that has the override. The override of its family exists
        // then. `self.callbacks` are the module's only ones, by the contract of `Self::new()`.
        let ops_override = unsafe { RequestOpsOverride::for_request(request, self.callbacks) }
            .ok_or(Bypass::Other)?;
        queue.ops_override = Some(ops_override);
        Ok(ops_override)
    }

    /// Decides whether there is room for one more request. Returns whether the oldest must be
    /// evicted for it.
    fn admit(&self, queue: &ParkQueue, charge: &NetnsCharge<'_>) -> Result<bool, Bypass> {
        let is_accept_queue_full = || self.listen_sock().accept_queue_is_full();
        match policy::on_park(
            &queue.config,
            queue.unexpired(),
            charge.is_over_limit(),
            is_accept_queue_full,
        ) {
            Admission::Park => Ok(false),
            Admission::ParkAndEvict => Ok(true),
            Admission::Refuse(cause) => Err(cause),
        }
    }

    /// Takes the entry of a request out of the queue and settles its accounts, unless that was done
    /// before.
    ///
    /// If TCP is still to count the request off, this comes before that, otherwise right after.
    ///
    /// # Safety
    ///
    /// [`RequestSock::restore_ops`] has just returned `parked` for a request that was parked here,
    /// and the lock has been held since. `flags` are those of `parked`.
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
        // caller's now. The entry is in this queue or in no list.
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
    /// [`RequestSock::restore_ops`] has just returned `parked` for a request that was parked here,
    /// and the lock has been held since.
    pub(super) unsafe fn dequeue_unconnected(
        &self,
        queue: &mut ParkQueue,
        parked: *const ParkedRequest,
        end: End,
    ) -> Arc<ParkedRequest> {
        // SAFETY: There is a reference to the entry, by the contract of this function.
        let flags = unsafe { (*parked).flags() };
        // SAFETY: By the contract of this function.
        unsafe { self.dequeue(queue, parked, flags, end, Nanos(0)) }
    }

    /// Takes the entry of a dying request out of the queue, and leaves it to the request's
    /// destructor, which does not find it here any more.
    ///
    /// # Safety
    ///
    /// The lock has been held since `parked` was seen in the queue, and its request was seen to be
    /// dying ([`RequestSock::get`] has failed).
    #[cold] // Together: saves 48 instructions of a parked connection (`bench holding`).
    pub(super) unsafe fn dequeue_dying(&self, queue: &mut ParkQueue, parked: &ParkedRequest) {
        let flags = parked.flags();
        // SAFETY: The entry was seen in the queue, and the lock is held.
        if must_pin(&unsafe { parked.request() }, Moment::Leaves(parked)) {
            pin_module();
        }
        // SAFETY: The entry is in this queue.
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
        request: &RequestSock<'_>,
        segment: &TcpSegment<'_>,
    ) {
        let _queue = self.queue.lock(bh);
        if self.has_parked(request) {
            // SAFETY: The request is parked here, and the lock is held.
            unsafe { request.parked() }.set_last_ack(request, segment);
        }
    }

    /// Counts a connection that was made although the filter would have parked it.
    #[cold] // Together: saves 48 instructions of a parked connection (`bench holding`).
    pub(crate) fn count_bypass(&self, bh: &BhDisabled<'_>, cause: Bypass) {
        self.queue.lock(bh).stats.bypass(cause);
    }

    /// Keeps a parked request whose SYN-ACK timer fired. Returns `false` if the request is not
    /// parked here.
    ///
    /// # Safety
    ///
    /// The caller must have been called by the timer's handler (`reqsk_timer_handler()`).
    pub(crate) unsafe fn on_synack_timer(
        &self,
        bh: &BhDisabled<'_>,
        request: &RequestSock<'_>,
    ) -> bool {
        let mut queue = self.queue.lock(bh);
        if !self.has_parked(request) {
            return false;
        }
        queue.stats.synack_suppressed += 1;
        // SAFETY: The request is parked here, and the lock is held.
        let parked = unsafe { request.parked() };
        if parked.flags().is_young() {
            // The handler is about to count it off.
            parked.set_young(false);
            self.listen_sock().add_young(1);
        }
        // SAFETY: The lock is held; the handler is the caller by the contract of this function.
        unsafe { request.reset_timeouts() };
        true
    }

    /// Ends the parking of `request` if it is parked here, as `segment` has just made a connection
    /// of it. The connection gets the round-trip time that the bare ACK showed.
    ///
    /// # Safety
    ///
    /// The caller has taken the request out of the table (`own_req`), and the connection exists.
    #[inline(always)] // With what it calls: saves 280 instructions of a request, likewise.
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
        // SAFETY: The request is parked here, and the lock is held.
        let parked = unsafe { request.parked() };
        let waited = Nanos(now.0.saturating_sub(parked.parked_at().0));
        let flags = parked.flags();
        let end = End::of_accepted(segment, flags.expired());
        // SAFETY: The request is parked here, the lock is held, and the caller holds a reference.
        let parked = unsafe { self.dequeue(&mut queue, request.restore_ops(), flags, end, waited) };
        if let Some(round_trip) = parked.round_trip() {
            // SAFETY: The caller has taken the request out of the table, and the connection exists,
            // by the contract of this function.
            unsafe { request.set_round_trip(round_trip, waited, now) };
        }
        queue.recycle(parked);
    }

    /// Has TCP drop `request`, whose client has closed its side without a byte, if the configuration
    /// says so. Returns whether it is dropped, and the client to be told.
    #[cold] // Few clients close without a byte.
    pub(crate) fn drop_closed(&self, bh: &BhDisabled<'_>, request: &RequestSock<'_>) -> bool {
        let queue = self.queue.lock(bh);
        if queue.state != State::Active || policy::on_fin(&queue.config) != OnClose::Reset {
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
            // SAFETY: The request is parked here, and the lock is held.
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
            // SAFETY: The request is parked here, and the caller holds a reference to it.
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
        // SAFETY: The request is parked here and the caller holds a reference, by the contract of
        // this function. The lock is held, as `queue` shows.
        let parked =
            unsafe { self.dequeue_unconnected(queue, request.restore_ops(), End::Fallback) };
        if must_pin(request, Moment::Leaves(&parked)) {
            pin_module();
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
        let parked =
            unsafe { self.dequeue_unconnected(&mut queue, request.restore_ops(), End::Aborted) };
        queue.recycle(parked);
    }
}
