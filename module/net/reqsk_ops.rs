// SPDX-License-Identifier: GPL-2.0-only

//! Saves, overrides and restores the operations of a request.
//!
//! A parked request has TCP's own operations, except for `send_synack`, `send_ack`, `send_reset`
//! and `destructor`. TCP's operations are not exported. They are taken from the first request seen
//! of each family, and there is one override of each family for the whole module, in its static
//! data: a clone of a request (`inet_reqsk_clone()`) may point there for longer than its listener
//! lives.
//!
//! Four fields tell that a request is parked. All are written under the lock of the parking
//! listener (the `Listener` of `req->rsk_listener`), or by the request's own destructor:
//!
//! | field | while parked | otherwise |
//! | --- | --- | --- |
//! | `rsk_ops` | the override | TCP's |
//! | `af_specific` | the override | TCP's |
//! | `dl_next` | its [`ParkedRequest`] | unused in SYN_RECV |
//! | `sk` | its tag: its own address XORed with the listener's [`ListenerTag`] | NULL in SYN_RECV |
//!
//! The tag tells a parked request from a clone of one. `inet_reqsk_clone()` copies all four fields,
//! and nothing tells the module. A clone is at another address, so its `sk` is not its tag. A clone
//! of that clone may be where the original was, but it is made for another listener, which has
//! another [`ListenerTag`] (unless the original's listener was shut down and listens again: see
//! `docs/design.md`). TCP reads `dl_next` and `sk` only of requests in an accept queue, and
//! `inet_csk_reqsk_queue_add()` writes both when a request enters one; and of Fast Open's requests,
//! which are never parked.
//!
//! Besides, a parked request is acked (`inet_rsk(req)->acked`). The bit is set before the request
//! is parked and stays set, until a closed listener hands the request over to another one. A
//! request that is not acked is not parked.

use core::ptr;

use kernel::{
    ffi::c_int,
    list::ListArc,
    sync::{
        atomic::{
            self,
            ordering::Relaxed, //
        },
        barrier::{
            smp_mb,
            Write, //
        },
        Arc,
        ArcBorrow,
        SetOnce, //
    }, //
};

use super::{
    bindings::{
        self,
        request_sock,
        request_sock_ops,
        sk_buff,
        sock,
        tcp_request_sock_ops, //
    },
    parked_request::ParkedRequest,
    reqsk::RequestSock,
    tcp_segment::{
        AF_INET,
        AF_INET6, //
    }, //
};

/// The type of `tcp_request_sock_ops.send_synack`.
pub(crate) type SendSynAck = unsafe extern "C" fn(
    *const sock,
    *mut bindings::dst_entry,
    *mut bindings::flowi,
    *mut request_sock,
    *mut bindings::tcp_fastopen_cookie,
    bindings::tcp_synack_type,
    *mut sk_buff,
) -> c_int;

/// The type of `request_sock_ops.send_reset`.
pub(crate) type SendReset =
    unsafe extern "C" fn(*const sock, *mut sk_buff, bindings::sk_rst_reason);

/// The functions that TCP calls of a parked request instead of its own.
///
/// Each finds the original in [`RequestOpsOverride::of`] its request.
pub(crate) struct RequestCallbacks {
    /// For `tcp_request_sock_ops.send_synack`.
    pub(crate) send_synack: SendSynAck,
    /// For `request_sock_ops.send_ack`.
    pub(crate) send_ack: unsafe extern "C" fn(*const sock, *mut sk_buff, *mut request_sock),
    /// For `request_sock_ops.send_reset`.
    pub(crate) send_reset: SendReset,
    /// For `request_sock_ops.destructor`.
    pub(crate) destructor: unsafe extern "C" fn(*mut request_sock),
}

/// The operations of one family's requests, TCP's and those of parked requests.
///
/// # Invariants
///
/// `original` and `original_tcp` point to constants that are there for as long as this: those of
/// the kernel's image, but in KUnit.
pub(crate) struct RequestOpsOverride {
    original: *const request_sock_ops,
    original_tcp: *const tcp_request_sock_ops,
    ops: request_sock_ops,
    tcp: tcp_request_sock_ops,
}

// SAFETY: Nothing in it changes once it is made, and its pointers are to constants.
unsafe impl Send for RequestOpsOverride {}
// SAFETY: Nothing in it changes once it is made, and its pointers are to constants.
unsafe impl Sync for RequestOpsOverride {}

static IPV4: SetOnce<RequestOpsOverride> = SetOnce::new();
static IPV6: SetOnce<RequestOpsOverride> = SetOnce::new();

impl RequestOpsOverride {
    fn slot(family: i32) -> Option<&'static SetOnce<RequestOpsOverride>> {
        match family {
            AF_INET => Some(&IPV4),
            AF_INET6 => Some(&IPV6),
            _ => None,
        }
    }

    /// Returns the override for requests of this family, if one was ever parked.
    pub(crate) fn of(request: &RequestSock<'_>) -> Option<&'static Self> {
        Self::slot(request.family())?.as_ref()
    }

    /// Returns the override to park `request` under, made of `callbacks` if it is the first of its
    /// family.
    ///
    /// Returns `None` if the request has other operations than the first request of its family had
    /// (MPTCP's, for instance).
    ///
    /// # Safety
    ///
    /// * The caller must hold the lock of a listener.
    /// * The request must have the operations that TCP gave it, or the override of its family must
    ///   exist.
    /// * TCP may call each of `callbacks` in place of its own for a parked request. All callers
    ///   pass the same: those of the first are final.
    #[cold] // One of those that `net/mod.rs` names: together, they save 48 instructions.
    pub(crate) unsafe fn for_request(
        request: RequestSock<'_>,
        callbacks: &RequestCallbacks,
    ) -> Option<&'static Self> {
        let slot = Self::slot(request.family())?;
        // SAFETY: Bottom halves are off, as the caller holds the lock of a listener. If the slot is
        // empty, the request has TCP's operations, by the contract of this function. As requests of
        // no other kind get here, these are `tcp_request_sock_ops`, `tcp6_request_sock_ops`,
        // `tcp_request_sock_ipv4_ops` and `tcp_request_sock_ipv6_ops`, which are constants of the
        // kernel's image. The callbacks are as `in_slot()` wants them, by the same contract.
        unsafe { Self::in_slot(slot, &request, callbacks) }
            .filter(|ops_override| ops_override.is_for(&request))
    }

    /// Returns the override in `slot`, made of the operations of `request` and of `callbacks` if
    /// there is none yet.
    ///
    /// Returns `Some` always, thanks to the lock: a CPU that comes while another one makes the
    /// override waits for it. (`SetOnce::populate()` alone does not wait.)
    ///
    /// # Safety
    ///
    /// * Bottom halves must be off.
    /// * The operations of the request must be constants that are there for as long as the slot, or
    ///   the slot must have an override.
    /// * TCP may call each of `callbacks` in place of its own for a parked request.
    pub(crate) unsafe fn in_slot<'a>(
        slot: &'a SetOnce<Self>,
        request: &RequestSock<'_>,
        callbacks: &RequestCallbacks,
    ) -> Option<&'a Self> {
        if slot.as_ref().is_none() {
            // SAFETY: Bottom halves are off by the contract of this function.
            unsafe { bindings::accf_lock_overrides() };
            // Nothing is written if another CPU was faster.
            // SAFETY: The operations and the callbacks are as `new()` wants them, by the contract
            // of this function.
            slot.populate(unsafe { Self::new(request.ops(), request.tcp_ops(), callbacks) });
            // SAFETY: Pairs with the call above, on the same CPU or, on PREEMPT_RT, in the same
            // task.
            unsafe { bindings::accf_unlock_overrides() };
        }
        slot.as_ref()
    }

    /// Returns whether `request` has the operations that this stands for.
    pub(crate) fn is_for(&self, request: &RequestSock<'_>) -> bool {
        ptr::eq(request.ops(), self.original) && ptr::eq(request.tcp_ops(), self.original_tcp)
    }

    /// Makes the override of requests that have these operations.
    ///
    /// # Safety
    ///
    /// * `original` and `original_tcp` must point to constants of the kernel's image.
    /// * TCP may call each of `callbacks` in place of its own for a request that has, or had, these
    ///   operations.
    unsafe fn new(
        original: *const request_sock_ops,
        original_tcp: *const tcp_request_sock_ops,
        callbacks: &RequestCallbacks,
    ) -> Self {
        // SAFETY: Both point to constants by the contract of this function.
        let (mut ops, mut tcp) = unsafe { (*original, *original_tcp) };
        ops.send_ack = Some(callbacks.send_ack);
        ops.send_reset = Some(callbacks.send_reset);
        ops.destructor = Some(callbacks.destructor);
        tcp.send_synack = Some(callbacks.send_synack);
        // INVARIANT: Both point to constants by the contract of this function.
        Self {
            original,
            original_tcp,
            ops,
            tcp,
        }
    }

    /// Returns the pointer for `req->rsk_ops`.
    fn ops(&'static self) -> *const request_sock_ops {
        // Derived from `self` and not from a reference to the field, as `from_ops()` leads back.
        // SAFETY: The field is part of `self`.
        unsafe { &raw const (*ptr::from_ref(self)).ops }
    }

    /// Returns the override that `ops` are part of.
    ///
    /// # Safety
    ///
    /// `ops` must have come from [`Self::ops`].
    unsafe fn from_ops(ops: *const request_sock_ops) -> &'static Self {
        // SAFETY: By the contract of this function `ops` is the field of an override, which is
        // static.
        unsafe { &*kernel::container_of!(ops, Self, ops) }
    }

    /// Returns TCP's `rsk_ops`.
    pub(crate) fn original(&self) -> &'static request_sock_ops {
        // SAFETY: `original` points to a constant by the type invariants.
        unsafe { &*self.original }
    }

    /// Returns TCP's `af_specific`.
    pub(crate) fn original_tcp(&self) -> &'static tcp_request_sock_ops {
        // SAFETY: `original_tcp` points to a constant by the type invariants.
        unsafe { &*self.original_tcp }
    }
}

/// Makes the tags of requests parked at one listener differ from those of another.
///
/// # Invariants
///
/// No tag that is made with it is NULL, or a pointer to anything that is aligned.
#[derive(Clone, Copy)]
pub(crate) struct ListenerTag(usize);

impl ListenerTag {
    /// The tag of orphaned requests, which own their [`ParkedRequest`].
    // INVARIANT: A request is aligned to eight bytes, so bit 0 makes the tag odd.
    const ORPHANED: Self = Self(1);

    /// Makes a random tag. Any context.
    pub(crate) fn new() -> Self {
        // SAFETY: May be called in any context.
        let random = unsafe { bindings::get_random_u64() };
        // INVARIANT: A request is aligned to eight bytes, so bit 1 makes the tag unaligned. Bit 0
        // is clear, unlike that of `ORPHANED`.
        Self(random as usize & !7 | 2)
    }

    /// Returns whether `sk`, read from a request, is a tag, and neither NULL nor a socket.
    fn is_tag(sk: *mut sock) -> bool {
        // A request is aligned to eight bytes, so the lowest bits are those of `ORPHANED` or of
        // `new()`. So is a socket.
        sk.addr() & 7 != 0
    }
}

impl RequestSock<'_> {
    /// Returns `req->sk`.
    fn sk(&self) -> *mut sock {
        // SAFETY: The request is alive by the type invariants; the read is a `READ_ONCE()`.
        unsafe { ptr::read_volatile(&raw const (*self.as_ptr()).sk) }
    }

    /// Returns the tag of this request at the listener with `tag`.
    fn tag_at(&self, tag: ListenerTag) -> *mut sock {
        ptr::without_provenance_mut(self.as_ptr().addr() ^ tag.0)
    }

    /// Returns whether the request is parked at its listener, which has `tag`.
    ///
    /// The answer is only final under the listener's lock and in the request's destructor.
    pub(crate) fn is_parked(&self, tag: ListenerTag) -> bool {
        ptr::eq(self.sk(), self.tag_at(tag))
    }

    /// Returns whether the request owns its [`ParkedRequest`] ([`Self::hand_over_to_destructor`]).
    ///
    /// The answer is only final in the request's destructor.
    pub(crate) fn is_orphaned(&self) -> bool {
        ptr::eq(self.sk(), self.tag_at(ListenerTag::ORPHANED))
    }

    /// Returns the ops override if the request has it.
    ///
    /// Such a request is parked or orphaned, or it is a clone of one that was.
    pub(crate) fn ops_override(&self) -> Option<&'static RequestOpsOverride> {
        RequestOpsOverride::of(self).filter(|ops_override| ptr::eq(self.ops(), ops_override.ops()))
    }

    /// Returns whether the request has the ops override.
    pub(crate) fn has_ops_override(&self) -> bool {
        self.ops_override().is_some()
    }

    /// Marks the request as parked, with the operations of `ops_override`.
    ///
    /// # Safety
    ///
    /// * The caller holds the lock of the request's listener, which has `tag`.
    /// * The request was in the table of connections after it was acked, both under this lock
    ///   ([`Self::set_acked`] has returned `Ok`), and is not parked.
    /// * `parked` goes into a list of that listener before the lock is dropped.
    pub(crate) unsafe fn override_ops(
        &self,
        ops_override: &'static RequestOpsOverride,
        tag: ListenerTag,
        parked: &ParkedRequest,
    ) {
        let req = self.as_ptr();
        let parked = ptr::from_ref(parked).cast_mut();
        // SAFETY: The request is alive by the type invariants. TCP does not use `dl_next` and `sk`
        // in this state, and only reads the other two, where either value will do. No other CPU
        // writes, as the listener is locked by the contract of this function. Each write is a
        // `WRITE_ONCE()`.
        unsafe {
            ptr::write_volatile(&raw mut (*req).dl_next, parked.cast());
            ptr::write_volatile(&raw mut (*req).sk, self.tag_at(tag));
            // B3: A callback, which is reached through the override, finds the rest.
            smp_mb(Write);
            ptr::write_volatile(&raw mut (*self.tcp()).af_specific, &ops_override.tcp);
            ptr::write_volatile(&raw mut (*req).rsk_ops, ops_override.ops());
        }
    }

    /// Returns what the request keeps while it is parked.
    ///
    /// # Safety
    ///
    /// The request must be parked or orphaned, and stay so for as long as the reference is used:
    /// the caller holds the lock of its listener, or is its destructor.
    pub(crate) unsafe fn parked(&self) -> &ParkedRequest {
        // SAFETY: `dl_next` is what `override_ops()` or `hand_over_to_destructor()` wrote, and
        // stays so by the contract of this function. The list, or the request itself, has a
        // reference to it. The read is a `READ_ONCE()`, as `hand_over_to_destructor()` may be
        // writing the same value.
        unsafe { &*ptr::read_volatile(&raw const (*self.as_ptr()).dl_next).cast::<ParkedRequest>() }
    }

    /// The same, for as long as the caller needs it.
    ///
    /// # Safety
    ///
    /// The request must be parked, and the caller hold the lock of its listener.
    pub(crate) unsafe fn parked_arc(&self) -> Arc<ParkedRequest> {
        // SAFETY: The request is parked, and the lock is held.
        let parked = unsafe { self.parked() };
        // SAFETY: The entry is the value of an `Arc`, of which the queue has a reference while the
        // lock is held and the request is parked.
        unsafe { ArcBorrow::from_raw(parked) }.into()
    }

    /// Gives a parked request TCP's operations back, and returns what it kept.
    ///
    /// A list of its listener has a reference to what is returned. If it is in no list
    /// ([`Self::hand_over_to_destructor`]), the reference was the request's, and is the caller's
    /// now.
    ///
    /// # Safety
    ///
    /// The request must be parked or orphaned. The caller must hold the lock of its listener and a
    /// reference to the request, or be its destructor.
    pub(crate) unsafe fn restore_ops(&self) -> *const ParkedRequest {
        // SAFETY: `dl_next` is what `override_ops()` or `hand_over_to_destructor()` wrote, as the
        // request is parked or orphaned by the contract of this function.
        let parked = unsafe { (*self.as_ptr()).dl_next.cast::<ParkedRequest>() };
        // SAFETY: A parked request has the ops override, and an orphaned one has kept it. No other
        // CPU changes that, by the lock or as the caller is the destructor.
        unsafe { self.write_original_ops() };
        parked
    }

    /// Gives the reference to `parked` to its request, which is dying. The request's destructor
    /// will drop it.
    ///
    /// # Safety
    ///
    /// `parked` was just taken out of a list of its parking listener, whose lock has been held
    /// since; the request is parked, and its last reference is gone.
    pub(crate) unsafe fn hand_over_to_destructor(parked: ListArc<ParkedRequest>) {
        // SAFETY: The entry was in the list until now, and the lock is held.
        let request = unsafe { parked.request() };
        let (req, tag) = (request.as_ptr(), request.tag_at(ListenerTag::ORPHANED));
        // SAFETY: The request is in memory, as its destructor has to take the lock that the caller
        // holds. No other CPU writes, by that lock. `dl_next` keeps its value. As the last
        // reference is gone, no clone can be made that would get the tag, too.
        unsafe {
            ptr::write_volatile(&raw mut (*req).dl_next, parked.into_raw().cast_mut().cast());
            ptr::write_volatile(&raw mut (*req).sk, tag);
        }
    }

    /// Replaces the ops override by TCP's operations.
    ///
    /// # Safety
    ///
    /// The request must have the ops override, and no other CPU may change that.
    unsafe fn write_original_ops(&self) {
        // SAFETY: The request has the ops override by the contract of this function.
        let ops_override = unsafe { RequestOpsOverride::from_ops(self.ops()) };
        let req = self.as_ptr();
        // SAFETY: The request is alive by the type invariants; no other CPU writes, by the
        // contract of this function. TCP's operations do not look at `sk` and `dl_next`.
        unsafe {
            self.write_ops(ops_override);
            ptr::write_volatile(&raw mut (*req).sk, ptr::null_mut());
            ptr::write_volatile(&raw mut (*req).dl_next, ptr::null_mut());
        }
    }

    /// Writes the pointers to TCP's operations, which `ops_override` stands in for.
    ///
    /// # Safety
    ///
    /// The request must have `ops_override`, and no other CPU may give it an override again.
    unsafe fn write_ops(&self, ops_override: &RequestOpsOverride) {
        // SAFETY: The request is alive by the type invariants. Any other CPU that writes writes the
        // same, by the contract of this function.
        unsafe {
            ptr::write_volatile(
                &raw mut (*self.tcp()).af_specific,
                ops_override.original_tcp(),
            );
            ptr::write_volatile(&raw mut (*self.as_ptr()).rsk_ops, ops_override.original());
        }
    }

    /// Gives TCP's operations back to a clone that `reqsk_timer_handler()` has just made.
    ///
    /// Such a clone is in no table yet, and belongs to the handler alone. Its `sk` is the tag of
    /// the request that it was cloned from. `tag` is that of the clone's own listener, if that has
    /// a filter.
    ///
    /// A clone that was made earlier, and not restored then, passes the same test once another CPU
    /// has made a connection of it and taken it out of the table. That CPU may be putting it into
    /// an accept queue, so that `sk` and `dl_next` are TCP's now (B4).
    ///
    /// # Safety
    ///
    /// The caller must be `send_synack`, called for this request, which is not dying.
    pub(crate) unsafe fn restore_ops_of_new_clone(&self, tag: Option<ListenerTag>) {
        let sk = self.sk();
        let is_own_tag = tag.is_some_and(|tag| ptr::eq(sk, self.tag_at(tag)));
        if !ListenerTag::is_tag(sk) || is_own_tag || self.is_hashed() {
            return;
        }
        let Some(ops_override) = self.ops_override() else {
            return;
        };
        // SAFETY: The request is alive by the type invariants. It is a clone that is not parked, so
        // either value of the operations will do, on every CPU, and no CPU gives it the override
        // again: it is in no table, and `enqueue()` parks only what is. `sk` is only replaced if no
        // other CPU has written it, which TCP does at once. `dl_next` stays: TCP writes it before
        // reading it.
        unsafe {
            self.write_ops(ops_override);
            // B4: Pairs with the write of `sk` in `inet_csk_reqsk_queue_add()`.
            let _ = atomic::cmpxchg(&raw mut (*self.as_ptr()).sk, sk, ptr::null_mut(), Relaxed);
        }
    }
}
