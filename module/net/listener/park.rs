// SPDX-License-Identifier: GPL-2.0-only

//! Parking a request, and the ways out of the queue.

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
        bindings,
        callbacks::ulp::has_accf_af_ops,
        clone::pin_module,
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
        Phase, //
    }, //
};

use super::{
    timer::now,
    Listener, //
};

impl Listener {
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
        if !unsafe { has_accf_af_ops(sock, self) } {
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
    pub(super) unsafe fn dequeue_unconnected(
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
    pub(super) unsafe fn dequeue_dying(&self, queue: &mut ParkQueue, parked: &ParkedRequest) {
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
    pub(super) fn account_for(
        &self,
        queue: &mut ParkQueue,
        flags: ParkedFlags,
        end: End,
        waited: Nanos,
    ) {
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
    pub(super) fn update_backlog(&self, queue: &mut ParkQueue) {
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
    pub(super) fn fall_back_parked(&self, queue: &mut ParkQueue, request: &RequestSock<'_>) {
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
}
