// SPDX-License-Identifier: GPL-2.0-only

//! The operations that a request wears while it is parked: the kernel's own, with our `send_synack`, `send_ack` and
//! `destructor`.
//!
//! The originals are not exported. They are taken from the first request seen of each family, and there is one copy
//! for the whole module, in its static data: a copy of a request that the kernel made behind our back
//! (`inet_reqsk_clone()`) may point there for longer than its listener lives.

use core::ptr;

use kernel::sync::SetOnce;

use super::{
    bindings, hooks,
    request::{RequestSock, AF_INET, AF_INET6},
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
        ops.send_ack = Some(hooks::send_ack);
        ops.destructor = Some(hooks::destructor);
        tcp.send_synack = Some(hooks::send_synack);
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
