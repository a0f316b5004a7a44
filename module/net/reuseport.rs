// SPDX-License-Identifier: GPL-2.0-only

//! A snapshot of a listener's `SO_REUSEPORT` group.

use super::{
    bindings::{
        self,
        sock, //
    },
    listen_sock::ListenSock, //
};

/// Tells whether a member of a group keeps the module until no clone of a request is left there.
///
/// `accf_reuseport_peers()` in `reuseport.c` calls it as an RCU reader, with a TCP socket that is
/// in memory for the call.
pub(crate) type RestoresClones = unsafe extern "C" fn(sk: *const sock) -> bool;

/// What the group of a listener tells of clones of its requests, read at one moment.
#[derive(Clone, Copy)]
pub(crate) struct GroupView(u32);

impl GroupView {
    /// Reads the group of `listener`. `restores_clones` judges each other member. Any context.
    ///
    /// # Safety
    ///
    /// `restores_clones` must need no more of its caller than [`RestoresClones`] says.
    pub(crate) unsafe fn of(listener: ListenSock<'_>, restores_clones: RestoresClones) -> Self {
        // SAFETY: The socket is in memory by the type invariants of `ListenSock`. The predicate is
        // called as its type says: `accf_reuseport_peers()` is an RCU reader then, and members of
        // the group are TCP sockets that are in memory for RCU readers.
        Self(unsafe { bindings::accf_reuseport_peers(listener.as_ptr(), Some(restores_clones)) })
    }

    /// Returns whether the listener is in a group.
    pub(crate) fn is_group(self) -> bool {
        self.0 & bindings::ACCF_IN_GROUP != 0
    }

    /// Returns whether a peer listens that restores the operations of clones it is given.
    pub(crate) fn has_restoring_peer(self) -> bool {
        self.0 & bindings::ACCF_RESTORES_CLONES != 0
    }

    /// Returns whether a peer may hold a clone, and does not keep the module until it is gone.
    pub(crate) fn may_hold_clones(self) -> bool {
        self.0 & bindings::ACCF_MAY_HOLD_CLONES != 0
    }
}
