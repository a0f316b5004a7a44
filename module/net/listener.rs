// SPDX-License-Identifier: GPL-2.0-only

//! A filtered listener: its parked requests in the order they were parked, and one high-resolution timer for the
//! deadline of the first.
//!
//! A request's own timer cannot give the deadline: the timer wheel is coarse (256 ms for 5 s at HZ=250). As all
//! requests of a listener have the same timeout, the first one parked is the first one due, and everything is O(1).
//!
//! # Who owns what
//!
//! The request owns its [`Parked`] (`req->dl_next`), the queue has a second reference. The queue holds no reference to
//! the request: when the kernel drops a request, the destructor of its overlay takes it out of the queue under the
//! lock. So a request that is in the queue is in memory for as long as the lock is held, though it may be dying; who
//! wants to use it longer takes a reference, which fails if it is.
//!
//! # The end
//!
//! [`Listener::close`] undresses every parked request; then nothing points here, except readers under RCU.

use core::ptr::{self, NonNull};

use kernel::{
    alloc::flags::{__GFP_NOWARN, GFP_ATOMIC},
    impl_has_hr_timer,
    list::{impl_list_arc_safe, impl_list_item, List, ListArc, ListLinks},
    prelude::*,
    sync::{
        atomic::{ordering::Relaxed, Atomic},
        rcu, Arc, ArcBorrow,
    },
    time::{
        hrtimer::{
            ArcHrTimerHandle, HasHrTimer, HrTimer, HrTimerCallback, HrTimerCallbackContext,
            HrTimerPointer, HrTimerRestart, RelativeSoftMode,
        },
        ClockSource, Delta, Monotonic,
    },
};

use crate::policy::{self, Action, Alarm, Nanos, Phase, Timeout};

use super::{
    bindings,
    context::{BhDisabled, BhSpinLock},
    overlay::Overlay,
    rcu::{DeferDrop, RcuHead},
    request::Request,
    segment::Segment,
    wire::Packet,
};

/// So many requests are handed over in one run of the timer; the rest follow in the next, so that other softirqs get
/// their turn.
const BUDGET: usize = 64;

/// The pause between two runs when there is more to do.
const NEXT_RUN: Nanos = Nanos(10_000);

/// Now, on the clock of the listener's timer.
fn now() -> Nanos {
    Nanos(u64::try_from(Monotonic::ktime_get()).unwrap_or(0))
}

/// What a request keeps while it is parked.
///
/// The atomics are written under the home's lock only, with no ordering of their own.
#[pin_data]
pub(crate) struct Parked {
    #[pin]
    links: ListLinks,
    /// The request that owns this. Alive while this is in the queue, under the lock.
    request: NonNull<bindings::request_sock>,
    parked_at: Nanos,
    /// The round-trip time that the first bare ACK showed, in microseconds.
    rtt_us: Option<u32>,
    /// TSval of the last bare ACK; means nothing without [`Self::HAS_TSVAL`].
    tsval: Atomic<u32>,
    /// Window of the last bare ACK, and the flags below.
    state: Atomic<u32>,
}

// SAFETY: `request` is only followed under the home's lock.
unsafe impl Send for Parked {}
// SAFETY: as above; the other fields are constant, atomic, or the list's.
unsafe impl Sync for Parked {}

impl_list_arc_safe! {
    impl ListArcSafe<0> for Parked { untracked; }
}
impl_list_item! {
    impl ListItem<0> for Parked { using ListLinks { self.links }; }
}

impl Parked {
    const WINDOW: u32 = 0xffff;
    const HAS_TSVAL: u32 = 1 << 16;
    const DUE: u32 = 1 << 17;

    fn new(
        request: &Request<'_>,
        segment: &Segment<'_>,
        parked_at: Nanos,
    ) -> Result<ListArc<Self>> {
        let request_ptr = NonNull::new(request.as_ptr()).ok_or(EINVAL)?;
        let rtt_us = segment.synack_rtt_us(request);
        let parked = ListArc::pin_init(
            try_pin_init!(Self {
                links <- ListLinks::new(),
                request: request_ptr,
                parked_at: parked_at,
                rtt_us: rtt_us,
                tsval: Atomic::new(0),
                state: Atomic::new(0),
            }? Error),
            GFP_ATOMIC | __GFP_NOWARN,
        )?;
        parked.remember(request, segment);
        Ok(parked)
    }

    /// Remembers the client's last bare ACK.
    fn remember(&self, request: &Request<'_>, segment: &Segment<'_>) {
        let mut state = self.state.load(Relaxed) & !Self::WINDOW | u32::from(segment.window());
        if let Some(tsval) = segment.tsval(request) {
            self.tsval.store(tsval, Relaxed);
            state |= Self::HAS_TSVAL;
        }
        self.state.store(state, Relaxed);
    }

    /// The window of the last bare ACK: not scaled.
    pub(crate) fn window(&self) -> u16 {
        (self.state.load(Relaxed) & Self::WINDOW) as u16
    }

    fn tsval(&self) -> Option<u32> {
        (self.state.load(Relaxed) & Self::HAS_TSVAL != 0).then(|| self.tsval.load(Relaxed))
    }

    fn phase(&self) -> Phase {
        if self.state.load(Relaxed) & Self::DUE != 0 {
            Phase::Due
        } else {
            Phase::Parked
        }
    }

    fn set_due(&self, due: bool) {
        let state = self.state.load(Relaxed);
        let state = if due {
            state | Self::DUE
        } else {
            state & !Self::DUE
        };
        self.state.store(state, Relaxed);
    }
}

/// What the lock guards.
struct State {
    queue: List<Parked>,
    /// The timer is set, or its handler will look at the queue again before it ends.
    armed: bool,
    /// No request is parked any more.
    closed: bool,
    /// Stops the timer when dropped, which waits for the timer's handler: never under the lock.
    timer: Option<ArcHrTimerHandle<Listener>>,
}

/// A listener with a filter: what `icsk_ulp_data` points to.
#[pin_data]
pub(crate) struct Listener {
    #[pin]
    state: BhSpinLock<State>,
    #[pin]
    timer: HrTimer<Self>,
    #[pin]
    rcu: RcuHead,
    sock: NonNull<bindings::sock>,
    decide: fn(Phase, policy::Segment) -> Action,
    timeout: Timeout,
    ops: bindings::inet_connection_sock_af_ops,
    original_ops: &'static bindings::inet_connection_sock_af_ops,
}

// SAFETY:
// * `sock` is followed only while the listener is not closed: its socket is in memory until `close()` has returned;
// * the operations are constant.
unsafe impl Send for Listener {}
// SAFETY: as above; the state is behind its lock.
unsafe impl Sync for Listener {}

impl_has_hr_timer! {
    impl HasHrTimer<Self> for Listener {
        mode: RelativeSoftMode<Monotonic>, field: self.timer
    }
}

// SAFETY: `from_head()` subtracts the offset of the field that `head()` borrows.
unsafe impl DeferDrop for Listener {
    fn head(&self) -> &RcuHead {
        &self.rcu
    }

    unsafe fn from_head(head: *const RcuHead) -> *const Self {
        // SAFETY: `head` is the field of a live `Self`, by the contract.
        unsafe { kernel::container_of!(head.cast_mut(), Self, rcu) }
    }
}

impl Listener {
    /// State for the listener `sock`, whose operations are `original_ops`, with `ops` to take their place. Process
    /// context; may sleep.
    ///
    /// # Safety
    ///
    /// `sock` must stay in memory until [`Self::close`] has returned.
    pub(crate) unsafe fn new(
        sock: NonNull<bindings::sock>,
        decide: fn(Phase, policy::Segment) -> Action,
        timeout: Timeout,
        ops: bindings::inet_connection_sock_af_ops,
        original_ops: &'static bindings::inet_connection_sock_af_ops,
    ) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                state <- BhSpinLock::new(State {
                    queue: List::new(),
                    armed: false,
                    closed: false,
                    timer: None,
                }),
                timer <- HrTimer::new(),
                rcu <- RcuHead::new(),
                sock: sock,
                decide: decide,
                timeout: timeout,
                ops: ops,
                original_ops: original_ops,
            }? Error),
            GFP_KERNEL,
        )
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
        _rcu: &'a rcu::Guard,
    ) -> Option<ArcBorrow<'a, Self>> {
        // SAFETY: the socket is alive, and we are in a read-side critical section.
        let listener = NonNull::new(unsafe { bindings::accf_ulp_data_rcu(sock) })?;
        // SAFETY: it came from `Arc::into_raw()`, and that reference is dropped a grace period after it was
        // unpublished (`hooks::release()`).
        Some(unsafe { ArcBorrow::from_raw(listener.as_ptr().cast::<Self>()) })
    }

    /// The home of a request that wears our operations, unless it was closed meanwhile.
    ///
    /// # Safety
    ///
    /// `request` wears our operations, or has done so in this read-side critical section.
    pub(crate) unsafe fn home_of<'a>(
        request: &Request<'_>,
        rcu: &'a rcu::Guard,
    ) -> Option<ArcBorrow<'a, Self>> {
        // SAFETY: only requests of a listener with our data ever wear our operations, and a listener's ULP stays until the
        // socket is destroyed. The request holds a reference to the socket.
        unsafe { Self::of(request.listener_sock(), rcu) }
    }

    /// Is this the listener that `request` was made for? Only its lock guards the request.
    fn is_home_of(&self, request: &Request<'_>) -> bool {
        ptr::eq(request.listener_sock(), self.sock.as_ptr())
    }

    /// Is `request` parked here? Under the lock.
    fn has_parked(&self, request: &Request<'_>) -> bool {
        self.is_home_of(request) && request.is_parked()
    }

    /// Where `request` stands here: parked, due, or neither.
    pub(crate) fn phase_of(&self, bh: &BhDisabled<'_>, request: &Request<'_>) -> Option<Phase> {
        let _state = self.state.lock(bh);
        if !self.has_parked(request) {
            return None;
        }
        // SAFETY: it is parked, and this, its home, is locked.
        Some(unsafe { request.parked() }.phase())
    }

    /// What to do with a segment for a request that stands at `phase`.
    pub(crate) fn decide(&self, phase: Phase, segment: policy::Segment) -> Action {
        (self.decide)(phase, segment)
    }

    /// Parks `request`, whose bare ACK `segment` is; if another CPU was faster, remembers the segment.
    ///
    /// `false`: it could not be parked (no memory, its timer is just firing, the listener is closing, it is no longer
    /// in the table), and nothing has changed.
    pub(crate) fn park(
        self: ArcBorrow<'_, Self>,
        bh: &BhDisabled<'_>,
        request: &Request<'_>,
        segment: &Segment<'_>,
    ) -> bool {
        let now = now();
        let Ok(parked) = Parked::new(request, segment, now) else {
            return false;
        };

        let mut state = self.state.lock(bh);
        if self.has_parked(request) {
            // SAFETY: it is parked, and this, its home, is locked.
            unsafe { request.parked() }.remember(request, segment);
            return true;
        }
        // Under the lock: a CPU that makes the connection takes the request out of the table first, and then asks
        // here, under the lock, whether it is parked.
        if state.closed || !self.is_home_of(request) || !request.is_hashed() {
            return false;
        }
        // SAFETY: it is not parked, and no copy: it is in the table.
        let Some(overlay) = (unsafe { Overlay::for_parking(request) }) else {
            return false;
        };
        if !request.put_timer_off() {
            return false;
        }
        // SAFETY: its home is locked; it is in the table and not parked, as just checked.
        unsafe { request.dress(overlay, parked.clone_arc()) };
        state.queue.push_back(parked);

        if let (false, Some(deadline)) = (state.armed, self.timeout.deadline(now)) {
            state.armed = true;
            if state.timer.is_none() {
                state.timer = Some(Arc::from(self).start(delta(now, deadline)));
            } else {
                self.set_timer(now, deadline);
            }
        }
        true
    }

    /// Remembers another bare ACK of a parked request.
    pub(crate) fn hold(&self, bh: &BhDisabled<'_>, request: &Request<'_>, segment: &Segment<'_>) {
        let _state = self.state.lock(bh);
        if self.has_parked(request) {
            // SAFETY: it is parked, and this, its home, is locked.
            unsafe { request.parked() }.remember(request, segment);
        }
    }

    /// Keeps a parked request whose own timer fired, for weeks after all. `false` if it is not parked here.
    ///
    /// # Safety
    ///
    /// The caller is called by the timer's handler.
    pub(crate) unsafe fn outlive_timer(&self, bh: &BhDisabled<'_>, request: &Request<'_>) -> bool {
        let _state = self.state.lock(bh);
        let is_here = self.has_parked(request);
        if is_here {
            // SAFETY: its home is locked; the rest by the contract of this function.
            unsafe { request.forget_timeouts() };
        }
        is_here
    }

    /// Ends the parking of a request of which a connection was just made, if it is parked here: it is the kernel's again.
    /// The connection gets the round-trip time that the bare ACK showed.
    ///
    /// # Safety
    ///
    /// The caller has taken the request out of the table (`own_req`), and the connection exists.
    pub(crate) unsafe fn settle(&self, bh: &BhDisabled<'_>, request: &Request<'_>) {
        let mut state = self.state.lock(bh);
        if !self.has_parked(request) {
            return;
        }
        // SAFETY: it is parked, this, its home, is locked, and the caller holds a reference to it.
        let parked = unsafe { Self::unpark(&mut state, request) };
        if let Some(rtt_us) = parked.rtt_us {
            // SAFETY: by the contract of this function.
            unsafe { request.set_synack_rtt_us(rtt_us) };
        }
    }

    /// Forgets a parked request that the kernel dropped.
    ///
    /// # Safety
    ///
    /// The caller is the destructor of `request`, which is parked here.
    pub(crate) unsafe fn forget(&self, bh: &BhDisabled<'_>, request: &Request<'_>) {
        let mut state = self.state.lock(bh);
        // SAFETY: by the contract of this function; this, its home, is locked.
        drop(unsafe { Self::unpark(&mut state, request) });
    }

    /// # Safety
    ///
    /// `request` is parked; `state` is that of its home; and the caller holds a reference to the request, or is its
    /// destructor.
    unsafe fn unpark(state: &mut State, request: &Request<'_>) -> Arc<Parked> {
        // SAFETY: by the contract of this function.
        let parked = unsafe { request.undress() };
        // SAFETY: it was never in any list but this. Where the queue has let go of it already, nothing happens.
        drop(unsafe { state.queue.remove(&parked) });
        parked
    }

    /// Gives every parked request back to the kernel and parks no more. Waits for the timer's handler, which must
    /// not be the caller.
    ///
    /// A request then is what it is on a plain listener that was closed: half open. Its timer fires at the next tick,
    /// and the kernel drops it, or moves it to another listener of the group (`net.ipv4.tcp_migrate_req`).
    pub(crate) fn close(&self, bh: &BhDisabled<'_>) {
        let timer = {
            let mut state = self.state.lock(bh);
            state.closed = true;
            while let Some(parked) = state.queue.pop_front() {
                // SAFETY: it was in the queue, and the lock is held: it is in memory, with its listener.
                let request = unsafe { Request::from_raw(parked.request) };
                // A dying request is left to its destructor, which is on its way, and looks after itself.
                if let Some(owned) = request.get() {
                    let request = owned.as_request();
                    // SAFETY: in the queue means parked; its home is locked, and we hold a reference to it.
                    drop(unsafe { request.undress() });
                    request.hurry_timer();
                }
            }
            state.timer.take()
        };
        drop(timer);
    }

    /// Sets the timer. Also from its own handler.
    fn set_timer(&self, now: Nanos, at: Nanos) {
        // SAFETY: `self` is a live listener, and was started by its handle, which stops it.
        unsafe { <Self as HasHrTimer<Self>>::start(self, delta(now, at)) };
    }

    /// Is a connection that is made now refused (`sk_acceptq_is_full()`)?
    fn accept_queue_is_full(&self) -> bool {
        // SAFETY: the socket is in memory until `close()` has returned, which waits for the timer's handler, the only
        // caller.
        unsafe { bindings::accf_sk_acceptq_is_full(self.sock.as_ptr()) }
    }

    /// The timer's handler: hands over what is due.
    fn on_alarm(&self, bh: &BhDisabled<'_>, rcu: &rcu::Guard) {
        for _ in 0..BUDGET {
            let mut state = self.state.lock(bh);
            if state.closed {
                return;
            }
            let oldest: Option<Arc<Parked>> = state
                .queue
                .cursor_front()
                .peek_next()
                .map(|oldest| oldest.arc().into());
            let now = now();
            match policy::on_alarm(
                now,
                oldest.as_ref().map(|oldest| oldest.parked_at),
                self.timeout,
                self.accept_queue_is_full(),
            ) {
                Alarm::Idle => {
                    state.armed = false;
                    return;
                }
                Alarm::At(at) => {
                    self.set_timer(now, at);
                    return;
                }
                Alarm::Due => {}
            }
            let Some(parked) = oldest else {
                return;
            };
            // SAFETY: it is in the queue, and the lock is held: it is in memory, with its listener.
            let request = unsafe { Request::from_raw(parked.request) };
            let Some(owned) = request.get() else {
                // It is dying; its destructor no longer finds it here.
                // SAFETY: it was never in any list but this.
                drop(unsafe { state.queue.remove(&parked) });
                continue;
            };
            parked.set_due(true);
            drop(state);

            accept(&owned.as_request(), &parked, bh, rcu);

            // The connection was made, as a rule, and the request is not parked any more.
            let mut state = self.state.lock(bh);
            let request = owned.as_request();
            if self.has_parked(&request) {
                if self.accept_queue_is_full() {
                    parked.set_due(false);
                } else {
                    // Refused for a reason that waiting does not mend (no route, a socket filter, no memory): the
                    // kernel may ask the client for another ACK, as on a plain listener.
                    // SAFETY: it is parked, this, its home, is locked, and we hold a reference to it.
                    drop(unsafe { Self::unpark(&mut state, &request) });
                    request.hurry_timer();
                }
            }
            // Not under the lock: dropping what may be the last reference calls the destructor.
            drop(state);
            drop(owned);
        }
        let now = now();
        self.set_timer(now, now.after(NEXT_RUN));
    }
}

impl HrTimerCallback for Listener {
    type Pointer<'a> = Arc<Self>;

    fn run(this: ArcBorrow<'_, Self>, _ctx: HrTimerCallbackContext<'_, Self>) -> HrTimerRestart {
        // SAFETY: the timer is of a soft mode: its handler runs in softirq.
        let bh = unsafe { BhDisabled::assume() };
        this.on_alarm(&bh, &rcu::read_lock());
        // Where it is to fire again, it has been set.
        HrTimerRestart::NoRestart
    }
}

/// From `now` until `at`, for the timer.
fn delta(now: Nanos, at: Nanos) -> Delta {
    Delta::from_nanos(i64::try_from(at.0.saturating_sub(now.0)).unwrap_or(i64::MAX))
}

/// Rebuilds the client's last bare ACK and gives it to TCP, which makes the connection: nothing goes over the wire.
///
/// That a reset, or data, comes in on another CPU at this moment is as harmless as it is with an ACK from the wire.
fn accept(request: &Request<'_>, parked: &Parked, _bh: &BhDisabled<'_>, _rcu: &rcu::Guard) {
    let ack = request.bare_ack(parked.window(), parked.tsval());
    let packet = Packet::new(&request.endpoints(), ack);
    let bytes = packet.as_bytes();

    // SAFETY: the request is alive, and with it its listener and its namespace; the packet is `bytes.len()` bytes,
    // shorter than 2^32.
    let skb = unsafe {
        bindings::accf_skb_received(
            request.as_ptr(),
            bytes.as_ptr().cast(),
            bytes.len() as u32,
            packet.network_len() as u32,
        )
    };
    if skb.is_null() {
        return;
    }
    // SAFETY: the packet is ours, and the request alive. TCP's handler consumes the packet; it is called as from the
    // IP layer, with bottom halves off and under RCU, as the tokens prove, and with no lock held that it might take.
    unsafe {
        if bindings::accf_skb_route(request.as_ptr(), skb) {
            bindings::accf_tcp_rcv(request.as_ptr(), skb);
        } else {
            bindings::accf_skb_drop(skb);
        }
    }
}
