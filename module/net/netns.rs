// SPDX-License-Identifier: GPL-2.0-only

//! What is counted for each network namespace: its parked requests (`struct accf_net`).

use kernel::{
    error::to_result,
    prelude::*,
    sync::atomic::{
        ordering::Relaxed,
        Atomic, //
    }, //
};

use super::bindings;

/// Is there a [`Namespaces`]?
static REGISTERED: Atomic<bool> = Atomic::new(false);

/// Every network namespace has its counters until this is dropped; listeners need them.
///
/// There is one for the module. Making and dropping it may sleep.
///
/// # Invariants
///
/// There is no other, and the operations are registered.
pub(crate) struct Namespaces(());

impl Namespaces {
    /// Gives every network namespace its counters, also those that are made later.
    ///
    /// `EBUSY`: they have some.
    pub(crate) fn register() -> Result<Self> {
        REGISTERED
            .cmpxchg(false, true, Relaxed)
            .map_err(|_| EBUSY)?;
        // SAFETY: may sleep here; not registered, as there was no other.
        to_result(unsafe { bindings::accf_netns_register() })
            .inspect_err(|_| REGISTERED.store(false, Relaxed))?;
        // INVARIANT: just registered, and whoever comes finds the flag.
        Ok(Self(()))
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // SAFETY: registered by the type invariants. May sleep here; and no listener is left that could count.
        unsafe { bindings::accf_netns_unregister() };
        REGISTERED.store(false, Relaxed);
    }
}
