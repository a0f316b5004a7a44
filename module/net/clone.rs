// SPDX-License-Identifier: GPL-2.0-only

//! Decides whether a clone of a request may outlive every listener that keeps the module.
//!
//! When a listener stops, the kernel may hand its requests over to another listener of its
//! `SO_REUSEPORT` group: `inet_reqsk_clone()` copies a request, with its operations and with the
//! pointers in `dl_next` and `sk`. Nothing tells the module of the clone. A clone that carries the
//! ops override points into the module's code and data.
//!
//! A peer that *restores clones* is harmless: a listener with the filter that keeps the module
//! until its accept queue is empty, and that gives the original operations back to each request
//! before it is cloned into the queue, and to each clone whose SYN-ACK is sent
//! (`Listener::restores_clones()`). Any other peer may hold a clone for as long as it likes. Where
//! such a clone may exist, the module is pinned: it stays in memory until the next reboot, and says
//! so.
//!
//! The question is asked at three moments. The first row that fits counts:
//!
//! | moment | listener since parking | request and group | pin |
//! | --- | --- | --- | --- |
//! | a parked request leaves its listener | listens, not stopped | any | no |
//! | | any | still in the table, SYN-ACK timer pending: not cloned | no |
//! | | stopped | a peer may hold clones | yes |
//! | | stopped, does not listen | gone from the table; in a group; no peer restores clones | yes |
//! | | listened again | is or was in a group | yes |
//! | | stopped | otherwise | no |
//! | a parked request is destroyed | listened again | is or was in a group | yes |
//! | | any | in no group | no |
//! | | not stopped | its connection exists and it could migrate now | yes |
//! | | stopped | its connection exists, or a peer may hold clones | yes |
//! | | any | otherwise | no |
//! | a clone is destroyed | listens | any | no |
//! | | stopped | any: the kernel may just have cloned it again | yes |
//!
//! The rule errs on the side of pinning. A simpler one, "a filtered listener that stops where
//! requests migrate pins the module", would pin at every reload of a group whose members all have
//! the filter, which is the everyday case.

use kernel::sync::barrier::{
    smp_mb,
    Full, //
};

use super::{
    bindings,
    parked_request::ParkedRequest,
    reqsk::RequestSock,
    reuseport::{
        GroupView,
        RestoresClones, //
    }, //
};

/// The moment at which the question is asked of a request.
pub(crate) enum Moment<'a> {
    /// The original operations were just restored, or the request is dying and leaves its queue.
    /// The caller holds the lock of the parking listener; neither lock nor reference is taken, as
    /// looking up a connection may drop the last reference to another parked request.
    Leaves(&'a ParkedRequest),
    /// Its destructor runs, and it was parked until then.
    Destroyed(&'a ParkedRequest),
    /// Its destructor runs, and it is a clone that still has the ops override.
    CloneDestroyed,
}

/// Returns whether a clone of `request` may outlive every listener that keeps the module, by the
/// table at the top of this file. `restores_clones` judges the peers.
///
/// Any context. No lock of a listener may be held for [`Moment::Destroyed`]: looking a connection
/// up may call a destructor.
///
/// # Safety
///
/// `restores_clones` must need no more of its caller than [`RestoresClones`] says.
pub(crate) unsafe fn must_pin(
    request: &RequestSock<'_>,
    moment: Moment<'_>,
    restores_clones: RestoresClones,
) -> bool {
    match moment {
        // SAFETY: By the contract of this function.
        Moment::Leaves(parked) => unsafe { may_be_cloned(request, parked, restores_clones) },
        Moment::Destroyed(parked) => {
            // SAFETY: By the contract of this function.
            unsafe { may_have_been_cloned(request, parked, restores_clones) }
        }
        Moment::CloneDestroyed => !request.listen_sock().is_listening(),
    }
}

/// Answers for [`Moment::Leaves`].
///
/// # Safety
///
/// As for [`must_pin`]: `restores_clones` needs no more than [`RestoresClones`] says.
unsafe fn may_be_cloned(
    request: &RequestSock<'_>,
    parked: &ParkedRequest,
    restores_clones: RestoresClones,
) -> bool {
    // The CPU that makes a connection takes the request out of the table, and then clones it. This
    // CPU has restored the operations, and then looks into the table. B8 orders the two: either the
    // clone has the original operations, or the request is seen to be gone.
    //
    // The SYN-ACK timer's handler clones the request, and then takes it out of the table; the timer
    // is not pending while it runs. (Between the start of the handler and the clone there is only
    // `refcount_inc_not_zero()` of the other listener. On x86 and arm64 that is as good as a
    // barrier.)
    smp_mb(Full);
    let is_gone = !request.is_hashed();
    let may_have_clone = is_gone || !request.timer_is_pending();
    if !may_have_clone || !ListenerChanges::since(request, parked).has_stopped() {
        return false;
    }
    // SAFETY: By the contract of this function.
    let group = unsafe { GroupView::of(request.listen_sock(), restores_clones) };
    // Where no peer is left that could have taken the clone, either the peer that took it or the
    // listener has left the group since.
    let has_no_taker =
        group.is_group() && !group.has_restoring_peer() && !request.listen_sock().is_listening();
    group.may_hold_clones() || (is_gone && has_no_taker) || may_have_changed_group(request, parked)
}

/// Answers for [`Moment::Destroyed`].
///
/// If the connection exists, a plain listener has made it: one with the filter would have restored
/// the operations first.
///
/// The connection still exists when the CPU that has made it puts the last reference to the
/// request, as that CPU holds its lock. Another CPU may put the last reference later: netfilter may
/// queue a segment, and with it a reference, for as long as user space likes. The connection may be
/// gone then, while the clone is not. So the peers are asked as well.
///
/// # Safety
///
/// As for [`must_pin`]: `restores_clones` needs no more than [`RestoresClones`] says.
unsafe fn may_have_been_cloned(
    request: &RequestSock<'_>,
    parked: &ParkedRequest,
    restores_clones: RestoresClones,
) -> bool {
    if may_have_changed_group(request, parked) {
        return true;
    }
    if !request.listen_sock().is_in_group() {
        return false;
    }
    if !ListenerChanges::since(request, parked).has_stopped() {
        // The CPU that makes the connection may have seen the listener stopped before it listened
        // again and parked this request.
        return request.can_migrate() && request.is_connected();
    }
    // SAFETY: By the contract of this function.
    let may_hold = || unsafe { GroupView::of(request.listen_sock(), restores_clones) };
    request.is_connected()
        || may_hold().may_hold_clones()
        // Ask again after the look at the group: the listener may just have listened again, in
        // another group.
        || may_have_changed_group(request, parked)
}

/// Returns whether the listener has stopped and listened again since `request` was parked, and is
/// or was in a group: a peer of another group than today's may hold a clone.
fn may_have_changed_group(request: &RequestSock<'_>, parked: &ParkedRequest) -> bool {
    let listener = request.listen_sock();
    ListenerChanges::since(request, parked).has_listened_again()
        && (listener.is_in_group() || listener.has_left_group())
}

/// What the listener of a request has done since the request was parked.
struct ListenerChanges(u32);

impl ListenerChanges {
    /// Looks at the listener of `request`, which kept `parked`.
    fn since(request: &RequestSock<'_>, parked: &ParkedRequest) -> Self {
        // SAFETY: The request is alive by its type invariants, and with it its listener.
        Self(unsafe { bindings::accf_req_listener_since(request.as_ptr(), parked.write_seq()) })
    }

    /// Returns whether the listener has stopped, whether or not it listens again.
    fn has_stopped(&self) -> bool {
        self.0 & bindings::ACCF_HAS_STOPPED != 0
    }

    /// Returns whether the listener has stopped and listened again.
    fn has_listened_again(&self) -> bool {
        self.0 & bindings::ACCF_LISTENED_AGAIN != 0
    }
}

/// Keeps the module in memory until the next reboot, and says so once in the kernel log. Any
/// context; takes printk's locks.
///
/// That takes effect if something holds a reference to the module now: usually the socket of the
/// parking listener; where a clone is cloned again, a peer, or the pin for the first clone. Where
/// the module is already being unloaded, the call comes too late, and does nothing but say so.
///
/// # Safety
///
/// The module must stay in memory until the call has returned: something holds a reference to it,
/// or the caller is the destructor of a request, for which unloading waits (`Registration`).
pub(crate) unsafe fn pin_module() {
    // SAFETY: The module stays in memory for the call, by the contract of this function.
    unsafe { bindings::accf_pin_module() };
}
