// SPDX-License-Identifier: GPL-2.0-only

//! The other members of a listener's `SO_REUSEPORT` group.

use super::{
    bindings::{
        self,
        sock, //
    },
    callbacks::ulp::peer_restores_clones, //
};

/// Who else is in the group of `listener` (`ACCF_IN_GROUP` …), now that a request of it has left the table. Any context.
pub(crate) fn reuseport_peers(listener: *const sock) -> u32 {
    // SAFETY: callers have a request of the listener, or are closing it.
    unsafe { bindings::accf_reuseport_peers(listener, Some(peer_restores_clones)) }
}
