// SPDX-License-Identifier: GPL-2.0-only

//! The operations that a request wears while it is parked: the kernel's own, with our `send_synack`, `send_ack` and
//! `destructor`.
//!
//! The originals are not exported. They are taken from the first request seen of each family, and there is one copy
//! for the whole module, in its static data: a copy of a request that the kernel made behind our back
//! (`inet_reqsk_clone()`) may point there for longer than its listener lives.

use core::ptr;

use kernel::{
    list::ListArc,
    sync::{
        barrier::{
            smp_mb,
            Read,
            Write, //
        },
        SetOnce, //
    }, //
};

use super::{
    bindings,
    callbacks::reqsk as callbacks,
    parked_request::ParkedRequest,
    reqsk::RequestSock,
    tcp_segment::{
        AF_INET,
        AF_INET6, //
    }, //
};

/// One family's operations, original and ours.
///
/// # Invariants
///
/// The originals point to constants of the kernel's image.
pub(crate) struct RequestOpsOverride {
    original: *const bindings::request_sock_ops,
    original_tcp: *const bindings::tcp_request_sock_ops,
    ops: bindings::request_sock_ops,
    tcp: bindings::tcp_request_sock_ops,
}

// SAFETY: nothing in it changes once it is made, and its pointers are to constants.
unsafe impl Send for RequestOpsOverride {}
// SAFETY: as above.
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

    /// The overlay for requests of this family, if one was ever parked.
    pub(crate) fn of(request: &RequestSock<'_>) -> Option<&'static Self> {
        Self::slot(request.family())?.as_ref()
    }

    /// The overlay to park `request` under, made now if it is the first.
    ///
    /// `None` where the request has other operations than its family's first one had (MPTCP's, say), and where another
    /// CPU is making the overlay right now: it is left to the kernel then.
    ///
    /// # Safety
    ///
    /// The request has the operations that the kernel gave it.
    #[cold]
    pub(crate) unsafe fn for_request(request: &RequestSock<'_>) -> Option<&'static Self> {
        let slot = Self::slot(request.family())?;
        let ops_override = match slot.as_ref() {
            Some(ops_override) => Some(ops_override),
            // SAFETY: by the contract of this function.
            None => unsafe { Self::make(slot, request) },
        };
        ops_override.filter(|ops_override| ops_override.is_for(request))
    }

    /// Does `request` have the operations that these stand for?
    #[inline]
    pub(crate) fn is_for(&self, request: &RequestSock<'_>) -> bool {
        ptr::eq(request.ops(), self.original) && ptr::eq(request.tcp_ops(), self.original_tcp)
    }

    /// Makes the first.
    ///
    /// # Safety
    ///
    /// The request has the operations that the kernel gave it.
    #[cold]
    unsafe fn make(
        slot: &'static SetOnce<Self>,
        request: &RequestSock<'_>,
    ) -> Option<&'static Self> {
        // INVARIANT: by the contract of this function, and as no other kind of request gets here, these are `tcp_request_sock_ops`,
        // `tcp6_request_sock_ops`, `tcp_request_sock_ipv4_ops` and `tcp_request_sock_ipv6_ops`, constants all.
        slot.populate(Self::new(request.ops(), request.tcp_ops()));
        slot.as_ref()
    }

    fn new(
        original: *const bindings::request_sock_ops,
        original_tcp: *const bindings::tcp_request_sock_ops,
    ) -> Self {
        // SAFETY: a request's operations are valid and never change.
        let mut ops = unsafe { *original };
        // SAFETY: as above.
        let mut tcp = unsafe { *original_tcp };
        ops.send_ack = Some(callbacks::send_ack);
        ops.destructor = Some(callbacks::destructor);
        tcp.send_synack = Some(callbacks::send_synack);
        Self {
            original,
            original_tcp,
            ops,
            tcp,
        }
    }

    /// Ours, for `req->rsk_ops`.
    pub(crate) fn ops(&'static self) -> *const bindings::request_sock_ops {
        // Not from a reference to the field, as it has to lead back (`from_ops()`).
        // SAFETY: it is the field of `self`.
        unsafe { &raw const (*ptr::from_ref(self)).ops }
    }

    /// The overlay that these are part of.
    ///
    /// # Safety
    ///
    /// `ops` must have come from [`Self::ops`].
    pub(crate) unsafe fn from_ops(ops: *const bindings::request_sock_ops) -> &'static Self {
        // SAFETY: by the contract of this function, which is of the very overlay, and that is static.
        unsafe { &*kernel::container_of!(ops, Self, ops) }
    }

    /// Ours, for `tcp_rsk(req)->af_specific`.
    pub(crate) fn tcp_ops(&'static self) -> *const bindings::tcp_request_sock_ops {
        &self.tcp
    }

    /// The kernel's `rsk_ops`.
    pub(crate) fn original(&self) -> &'static bindings::request_sock_ops {
        // SAFETY: by the type invariants.
        unsafe { &*self.original }
    }

    /// The kernel's `af_specific`.
    pub(crate) fn original_tcp(&self) -> &'static bindings::tcp_request_sock_ops {
        // SAFETY: by the type invariants.
        unsafe { &*self.original_tcp }
    }
}

/// What makes the marks of requests that are parked at one listener differ from those of another.
///
/// # Invariants
///
/// No mark that is made with it is NULL, or a pointer to anything that is aligned.
#[derive(Clone, Copy)]
pub(crate) struct ListenerTag(usize);

impl ListenerTag {
    /// That of requests which own what they kept.
    const ORPHANED: Self = Self(1);

    /// One that nobody else has, as far as chance allows.
    pub(crate) fn new() -> Self {
        // SAFETY: may be called in any context.
        let random = unsafe { bindings::get_random_u64() };
        // INVARIANT: a request is aligned to eight bytes; and it is not `ORPHANED`.
        Self(random as usize & !7 | 2)
    }
}

impl RequestSock<'_> {
    /// `req->sk`.
    fn sk(&self) -> *mut bindings::sock {
        // SAFETY: alive by the type invariants; the read is a `READ_ONCE()`.
        unsafe { ptr::read_volatile(&raw const (*self.as_ptr()).sk) }
    }

    /// The mark of a request that is parked at the listener with this key.
    fn tag_at(&self, tag: ListenerTag) -> *mut bindings::sock {
        ptr::without_provenance_mut(self.as_ptr().addr() ^ tag.0)
    }

    /// Is it parked at its home, which has this key? Tells for sure only under the lock of its home and in its destructor.
    #[inline]
    pub(crate) fn is_parked(&self, tag: ListenerTag) -> bool {
        ptr::eq(self.sk(), self.tag_at(tag))
    }

    /// Does it own what it kept while it was parked ([`Self::hand_over_to_destructor`])? For its destructor.
    pub(crate) fn is_orphaned(&self) -> bool {
        ptr::eq(self.sk(), self.tag_at(ListenerTag::ORPHANED))
    }

    /// Does it wear our operations? Then it is parked, or a copy of one that was: in any case its first listener has, or
    /// had, a filter of ours.
    pub(crate) fn has_ops_override(&self) -> bool {
        RequestOpsOverride::of(self)
            .is_some_and(|ops_override| ptr::eq(self.ops(), ops_override.ops()))
    }

    /// Is it a copy of a parked request, made for another listener and not yet in the table? `key` is its home's, if that has a
    /// filter.
    fn is_new_clone(&self, tag: Option<ListenerTag>) -> bool {
        let sk = self.sk();
        // Read `sk` before the operations: who finds that of a request in an accept queue finds the kernel's
        // operations too (pairs with the barrier in `write_original_ops()`).
        smp_mb(Read);
        !sk.is_null()
            && !tag.is_some_and(|tag| ptr::eq(sk, self.tag_at(tag)))
            && !self.is_hashed()
            && self.has_ops_override()
    }

    /// Makes it a parked request.
    ///
    /// # Safety
    ///
    /// The caller holds the lock of its home, whose key this is, and puts `parked` into one of its lists; the request is in the table of connections
    /// and not parked.
    pub(crate) unsafe fn override_ops(
        &self,
        ops_override: &'static RequestOpsOverride,
        tag: ListenerTag,
        parked: &ParkedRequest,
    ) {
        let req = self.as_ptr();
        // SAFETY: alive by the type invariants. `dl_next` and `sk` are unused in this state; the others are only ever
        // read, and either value will do. No other CPU writes, by the lock. The writes are `WRITE_ONCE()`s; that ours
        // come last makes sure that whoever calls our functions finds the rest.
        unsafe {
            ptr::write_volatile(
                &raw mut (*req).dl_next,
                ptr::from_ref(parked).cast_mut().cast(),
            );
            ptr::write_volatile(&raw mut (*req).sk, self.tag_at(tag));
            smp_mb(Write);
            ptr::write_volatile(&raw mut (*self.tcp()).af_specific, ops_override.tcp_ops());
            ptr::write_volatile(&raw mut (*req).rsk_ops, ops_override.ops());
        }
    }

    /// What the request keeps while parked.
    ///
    /// # Safety
    ///
    /// The request is parked; and the caller holds the lock of its home, or is its destructor. So it stays parked for
    /// as long as the reference is used.
    pub(crate) unsafe fn parked(&self) -> &ParkedRequest {
        // SAFETY: `dl_next` is what `override_ops()` or `hand_over_to_destructor()` put there, and by the contract stays there; the list has a reference
        // to it, or the request itself. The read is a `READ_ONCE()`: `hand_over_to_destructor()` may be writing the same.
        unsafe { &*ptr::read_volatile(&raw const (*self.as_ptr()).dl_next).cast::<ParkedRequest>() }
    }

    /// Makes a parked request the kernel's again, and returns what it kept. To that, a list of its home has a reference; or if it is in
    /// none any more ([`Self::hand_over_to_destructor`]), the request had it, and the caller has it now.
    ///
    /// # Safety
    ///
    /// The request is parked; and the caller holds the lock of its home and a reference to the request, or is its
    /// destructor.
    pub(crate) unsafe fn restore_ops(&self) -> *const ParkedRequest {
        // SAFETY: by the contract `dl_next` is what `override_ops()` or `hand_over_to_destructor()` put there. It is taken out below, before anybody else
        // may look.
        let parked = unsafe { (*self.as_ptr()).dl_next.cast::<ParkedRequest>() };
        // SAFETY: parked, it wears ours; nobody else changes that, by the contract.
        unsafe { self.write_original_ops() };
        parked
    }

    /// Gives the reference to `parked` to its request, which is dying, and whose destructor will ask for it.
    ///
    /// # Safety
    ///
    /// It was just taken out of a list of its home, whose lock is held, and its request is parked.
    pub(crate) unsafe fn hand_over_to_destructor(parked: ListArc<ParkedRequest>) {
        // SAFETY: it was in the list until now, and the lock is held.
        let request = unsafe { parked.request() };
        let (req, tag) = (request.as_ptr(), request.tag_at(ListenerTag::ORPHANED));
        // SAFETY: alive, as above. No other CPU writes, by the lock; the pointer is where it was before. Nobody has a reference any
        // more, so that no copy gets the mark.
        unsafe {
            ptr::write_volatile(&raw mut (*req).dl_next, parked.into_raw().cast_mut().cast());
            ptr::write_volatile(&raw mut (*req).sk, tag);
        }
    }

    /// Gives a request that wears our operations the kernel's.
    ///
    /// # Safety
    ///
    /// It wears ours, and nobody else changes that.
    unsafe fn write_original_ops(&self) {
        // SAFETY: by the contract of this function.
        let ops_override = unsafe { RequestOpsOverride::from_ops(self.ops()) };
        let req = self.as_ptr();
        // SAFETY: alive by the type invariants; no other CPU writes, by the contract of this function. The kernel's operations
        // go first: they do not look at the rest.
        unsafe {
            ptr::write_volatile(
                &raw mut (*self.tcp()).af_specific,
                ops_override.original_tcp(),
            );
            ptr::write_volatile(&raw mut (*req).rsk_ops, ops_override.original());
            smp_mb(Write);
            ptr::write_volatile(&raw mut (*req).sk, ptr::null_mut());
            ptr::write_volatile(&raw mut (*req).dl_next, ptr::null_mut());
        }
    }

    /// Makes a copy of a parked request (`inet_reqsk_clone()`) what it would have been without us.
    ///
    /// For `send_synack`: of all requests it is called for, only a copy that `reqsk_timer_handler()` has just made is one
    /// by the test. It is in no table yet, and its maker's alone.
    pub(crate) fn restore_ops_of_new_clone(&self, tag: Option<ListenerTag>) {
        if self.is_new_clone(tag) {
            // SAFETY: it wears ours, as just seen, and is its maker's alone, our caller's.
            unsafe { self.write_original_ops() };
        }
    }
}
