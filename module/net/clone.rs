// SPDX-License-Identifier: GPL-2.0-only

//! Whether a clone of a request may outlive the listener that parked it, and then the module.

use kernel::sync::barrier::{
    smp_mb,
    Full, //
};

use super::{
    bindings,
    parked_request::ParkedRequest,
    reqsk::RequestSock,
    reuseport::reuseport_peers, //
};

impl RequestSock<'_> {
    /// Can there be a copy of it, or will there be, at a listener of its group that the module knows nothing of? A copy is made
    /// when the listener has stopped and another one has just made a connection of the request (`inet_csk_complete_hashdance()`).
    ///
    /// For the destructor of a parked request, which kept `parked`. A listener with a filter would have undressed it: if there is a
    /// connection, a plain one has made it. It is locked while its maker puts the request; where somebody else is the last to do so
    /// (netfilter may queue a segment with a reference for as long as user space likes), it may be gone, and the copy is not. If
    /// the listener listens again by then, it may be in another group.
    pub(crate) fn may_have_lost_clone(&self, parked: &ParkedRequest) -> bool {
        // Anew, after the look at its group: it may just have listened again, in another one.
        let has_moved_on = || self.listened_again(parked) && self.is_or_was_in_group();
        if has_moved_on() {
            return true;
        }
        // SAFETY: alive by the type invariants, with its listener.
        if !unsafe { bindings::accf_is_in_group(self.listener_sock()) } {
            return false;
        }
        if self.listener_changes(parked) & bindings::ACCF_HAS_STOPPED == 0 {
            // Who makes the connection may have seen it stopped before, and it was parked after it had listened again.
            return self.can_migrate() && self.is_connected();
        }
        let may_hold =
            || reuseport_peers(self.listener_sock()) & bindings::ACCF_MAY_HOLD_CLONES != 0;
        self.is_connected() || may_hold() || has_moved_on()
    }

    /// The same for one that has just been undressed, before which it may have been copied, or that is dying. Takes no lock and no
    /// reference: to look for a connection may be to drop the last reference to another one that is parked.
    pub(crate) fn may_have_left_clone(&self, parked: &ParkedRequest) -> bool {
        // Who makes a connection takes the request out of the table, and then copies it. With a barrier between the two steps
        // here, either the copy is without our operations, or it is gone from the table by now, and its listener has stopped. Its own
        // timer copies it, and then takes it out; it is not pending then. (Between that and its copying there is but
        // `refcount_inc_not_zero()`, of the other listener. On x86, and arm64, that is as good as a barrier.)
        smp_mb(Full);
        let is_gone = !self.is_hashed();
        let is_copied = is_gone || !self.timer_is_pending();
        if !is_copied {
            return false;
        }
        if self.listener_changes(parked) & bindings::ACCF_HAS_STOPPED == 0 {
            return false;
        }
        let around = reuseport_peers(self.listener_sock());
        let has = |flag| around & flag != 0;
        // If nobody is there who could have taken it, whoever has done so has left the group since; or the listener has.
        let has_nobody = has(bindings::ACCF_IN_GROUP)
            && !has(bindings::ACCF_RESTORES_CLONES)
            && !self.is_listener_active();
        let has_moved_on = || self.listened_again(parked) && self.is_or_was_in_group();
        has(bindings::ACCF_MAY_HOLD_CLONES) || (is_gone && has_nobody) || has_moved_on()
    }

    /// Has its listener stopped since it was parked, and listened again then: in the group where it was, or in another one?
    fn listened_again(&self, parked: &ParkedRequest) -> bool {
        self.listener_changes(parked) & bindings::ACCF_LISTENED_AGAIN != 0
    }

    /// Is its listener in a group, or may it have been in one?
    fn is_or_was_in_group(&self) -> bool {
        // SAFETY: alive by the type invariants, with its listener.
        unsafe {
            bindings::accf_is_in_group(self.listener_sock())
                || bindings::accf_has_left_group(self.listener_sock())
        }
    }

    /// What its listener has done (`ACCF_HAS_STOPPED` …) since it was parked.
    fn listener_changes(&self, parked: &ParkedRequest) -> u32 {
        // SAFETY: alive by the type invariants, with its listener.
        unsafe { bindings::accf_req_listener_since(self.as_ptr(), parked.write_seq()) }
    }
}

/// Keeps the module for good: something that we cannot find again may point into it.
///
/// While somebody else holds it: a listener with a filter, as a rule the one that is being closed; or, where the kernel copies a
/// copy, whoever kept it for the first one. Who calls when the module is going already comes too late.
pub(crate) fn pin_module() {
    // SAFETY: the module is alive while its code runs on behalf of a listener or a request.
    unsafe { bindings::accf_pin_module() };
}
