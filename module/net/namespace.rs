// SPDX-License-Identifier: GPL-2.0-only

//! What is counted for each network namespace: its parked requests (`struct accf_net`).

use kernel::{error::to_result, prelude::*};

use super::bindings;

/// Every network namespace has its counters until this is dropped; listeners need them.
///
/// There is one for the module. Making and dropping it may sleep.
pub(crate) struct Namespaces(());

impl Namespaces {
    /// Gives every network namespace its counters, also those that are made later.
    ///
    /// # Safety
    ///
    /// There is no other.
    pub(crate) unsafe fn register() -> Result<Self> {
        // SAFETY: may sleep here, and by the contract is not registered.
        to_result(unsafe { bindings::accf_netns_register() })?;
        Ok(Self(()))
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // SAFETY: registered when this was made. May sleep here; and no listener is left that could count.
        unsafe { bindings::accf_netns_unregister() };
    }
}
