// SPDX-License-Identifier: GPL-2.0-only

//! The counter of parked requests in each network namespace (`struct accf_net`).

use kernel::{
    error::to_result,
    prelude::*,
    sync::atomic::{
        ordering::Relaxed,
        Atomic, //
    }, //
};

use super::bindings;

/// Whether there is a [`Namespaces`].
static REGISTERED: Atomic<bool> = Atomic::new(false);

/// Keeps a counter in every network namespace until it is dropped; listeners need the counters.
///
/// There is one for the module. Making and dropping it may sleep.
///
/// # Invariants
///
/// There is only one value of the type, and `accf_net_ops` is registered while it lives.
pub(crate) struct Namespaces(());

impl Namespaces {
    /// Gives every network namespace its counter, including those that are made later.
    ///
    /// `EBUSY`: there is a [`Namespaces`] already.
    pub(crate) fn register() -> Result<Self> {
        REGISTERED
            .cmpxchg(false, true, Relaxed)
            .map_err(|_| EBUSY)?;
        // SAFETY: May sleep here. Not registered yet, as there was no `Namespaces`.
        to_result(unsafe { bindings::accf_netns_register() })
            .inspect_err(|_| REGISTERED.store(false, Relaxed))?;
        // INVARIANT: Just registered. While `REGISTERED` is set, no other call gets this far.
        Ok(Self(()))
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // SAFETY: Registered by the type invariants. May sleep here. No listener is left that could
        // count.
        unsafe { bindings::accf_netns_unregister() };
        REGISTERED.store(false, Relaxed);
    }
}
