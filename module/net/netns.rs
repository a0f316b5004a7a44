// SPDX-License-Identifier: GPL-2.0-only

//! What is counted for each network namespace: its parked requests (`struct accf_net`).

use core::ptr::NonNull;

use kernel::{
    error::to_result,
    prelude::*,
    sync::atomic::{
        ordering::Relaxed,
        Atomic, //
    }, //
};

use super::{
    bindings,
    listen_sock::ListenSock, //
};

/// Whether a [`Namespaces`] exists.
static REGISTERED: Atomic<bool> = Atomic::new(false);

/// Gives every network namespace its counters until it is dropped. Listeners need them.
///
/// There is one for the module. Making and dropping it may sleep.
///
/// # Invariants
///
/// There is no other `Namespaces`, and the `pernet_operations` are registered.
pub(crate) struct Namespaces(());

impl Namespaces {
    /// Gives every network namespace its counters, also those that are made later.
    ///
    /// # Errors
    ///
    /// `EBUSY`: they have counters already. `ENOMEM`: there is no memory.
    pub(crate) fn register() -> Result<Self> {
        REGISTERED
            .cmpxchg(false, true, Relaxed)
            .map_err(|_| EBUSY)?;
        // SAFETY: The caller may sleep. The operations are not registered, as the flag was clear.
        to_result(unsafe { bindings::accf_netns_register() })
            .inspect_err(|_| REGISTERED.store(false, Relaxed))?;
        // INVARIANT: The operations were just registered, and the flag keeps others away.
        Ok(Self(()))
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // SAFETY: The operations are registered by the type invariants. The caller may sleep, and
        // no listener is left that could count.
        unsafe { bindings::accf_netns_unregister() };
        REGISTERED.store(false, Relaxed);
    }
}

/// The counters of one network namespace.
///
/// # Invariants
///
/// Points to the counters of a namespace, which are in memory for as long as the value is used: the
/// listener that owns it keeps the module, and with it the [`Namespaces`], and uses it only while
/// its socket, and with that the namespace, is in memory.
pub(crate) struct Netns(NonNull<bindings::accf_net>);

impl Netns {
    /// Returns the counters of the network namespace of `sock`.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the namespace has none.
    ///
    /// # Safety
    ///
    /// The value may be used only while `sock` is in memory.
    pub(crate) unsafe fn of(sock: ListenSock<'_>) -> Result<Self> {
        // SAFETY: The socket is in memory, and with it its namespace.
        let netns = NonNull::new(unsafe { bindings::accf_netns(sock.as_ptr()) }).ok_or(EINVAL)?;
        // INVARIANT: The namespace is that of the socket, which is in memory while the value is
        // used, by the contract of this function.
        Ok(Self(netns))
    }

    /// Counts one more parked request, where `limit` are allowed (0: any number).
    pub(crate) fn charge(&self, limit: u32) -> NetnsCharge<'_> {
        // SAFETY: The counters are in memory by the type invariants; the addition is atomic.
        let is_over_limit = unsafe { bindings::accf_netns_charge(self.0.as_ptr(), limit) };
        NetnsCharge {
            netns: self,
            is_over_limit,
        }
    }

    /// Counts off a request whose charge was kept ([`NetnsCharge::keep`]).
    pub(crate) fn uncharge(&self) {
        // SAFETY: The counters are in memory by the type invariants; the subtraction is atomic.
        unsafe { bindings::accf_netns_uncharge(self.0.as_ptr()) };
    }
}

/// The count of one request in its namespace, taken back when it is dropped.
pub(crate) struct NetnsCharge<'a> {
    netns: &'a Netns,
    is_over_limit: bool,
}

impl NetnsCharge<'_> {
    /// Returns whether the namespace has more parked requests than its limit allows.
    pub(crate) fn is_over_limit(&self) -> bool {
        self.is_over_limit
    }

    /// Leaves the request counted until [`Netns::uncharge`] is called for it.
    pub(crate) fn keep(self) {
        core::mem::forget(self);
    }
}

impl Drop for NetnsCharge<'_> {
    fn drop(&mut self) {
        self.netns.uncharge();
    }
}
