// SPDX-License-Identifier: GPL-2.0-only

//! The listening socket.

use core::ptr;

use super::{
    bindings::{
        self,
        sock, //
    },
    callbacks::ulp::release, //
};

/// `inet_csk(sk)`.
pub(crate) fn csk(sk: *mut sock) -> *mut bindings::inet_connection_sock {
    // A `struct sock` is the first member of `inet_sock`, and that of `inet_connection_sock`.
    sk.cast()
}

/// Is the ULP of a socket one of ours?
pub(crate) fn has_accf_ulp(sk: *const sock) -> bool {
    // SAFETY: callers show a socket that is alive. A ULP's operations live as long as its module, to which a socket with the
    // ULP has a reference; that this one loses it just now, RCU or RCU tasks would have to be over first
    // (`tcp_unregister_ulp()`).
    let ops = unsafe { ptr::read_volatile(&raw const (*csk(sk.cast_mut())).icsk_ulp_ops) };
    // SAFETY: as above.
    let hook = unsafe { ops.as_ref() }.and_then(|ops| ops.release);
    hook.is_some_and(|hook| ptr::fn_addr_eq(hook, release as unsafe extern "C" fn(*mut sock)))
}
