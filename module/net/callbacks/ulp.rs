// SPDX-License-Identifier: GPL-2.0-only

//! `struct tcp_ulp_ops`: a filter is attached, a child is made, a listener is destroyed.

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    error::from_result,
    ffi::c_int,
    prelude::*,
    sync::{
        barrier::{
            smp_mb,
            Write, //
        },
        rcu,
        Arc, //
    }, //
};

use crate::{
    net::{
        bh::{
            with_bh_off,
            BhGuard, //
        },
        bindings::{
            self,
            request_sock,
            sk_buff,
            sock,
            tcp_ulp_ops, //
        },
        diag,
        listen_sock::ListenSock,
        listener::Listener,
        rcu::defer_drop,
        registration::Registration,
        reqsk::RequestSock,
        sockopt::Defaults, //
    },
    policy::Filter, //
};

use super::{
    af_ops,
    reqsk, //
};

/// Registers filter `F`, with `defaults` for every listener. May sleep.
///
/// # Errors
///
/// Those of [`Registration::new`].
pub(crate) fn register<F: Filter>(defaults: Defaults) -> impl PinInit<Registration, Error> {
    // SAFETY: The table holds this file's callbacks, which are written for TCP. `init::<F>` looks
    // for the registration under this name, and publishes an `Arc<Listener>`.
    unsafe { Registration::new(F::NAME, table::<F>(), defaults) }
}

/// Returns the callbacks of filter `F`, for [`Registration::new`].
fn table<F: Filter>() -> tcp_ulp_ops {
    tcp_ulp_ops {
        init: Some(init::<F>),
        release: Some(release),
        clone: Some(clone),
        get_info: Some(get_info),
        get_info_size: Some(get_info_size),
        ..Default::default()
    }
}

/// Attaches filter `F` to a socket that listens, or is about to (`tcp_ulp_ops.init`).
///
/// # Safety
///
/// * `sk` must be a TCP socket without a ULP, locked by the caller in process context.
/// * The caller must be TCP, and hold a reference to the module for the socket.
unsafe extern "C" fn init<F: Filter>(sk: *mut sock) -> c_int {
    from_result(|| {
        let sk = NonNull::new(sk).ok_or(EINVAL)?;
        // SAFETY: By the contract of this function.
        unsafe { attach::<F>(sk) }.map(|()| 0)
    })
}

/// Attaches filter `F` to `sk`: writes W1 to W4 of the publication protocol
/// (`docs/design.md`).
///
/// # Errors
///
/// `EOPNOTSUPP`: the socket is connected, or carries more than TCP. `ENOMEM`: there is no memory.
///
/// # Safety
///
/// * `sk` must be a TCP socket without a ULP, locked by the caller in process context.
/// * The caller must be the `init` of a registered [`Registration`].
unsafe fn attach<F: Filter>(sk: NonNull<sock>) -> Result {
    // SAFETY: TCP calls the `init` of this registration, whose module it holds.
    let registration = unsafe { Registration::by_name(F::NAME) }.ok_or(ENOENT)?;
    // SAFETY: The socket is a TCP socket, and in memory as the caller has locked it.
    let sock = unsafe { ListenSock::from_raw(sk) };
    // Requests of a closed listener are settled in its namespace (`retire()`).
    if sock.carries_more_than_tcp() || !sock.holds_netns() {
        return Err(EOPNOTSUPP);
    }
    // Comes first, because the rest may wait for grace periods, and a socket that another thread
    // accepts before this lacks the bit. Comes before the next error, because TCP has cleared it.
    // SAFETY: The socket is locked by the contract of this function, and carries TCP only.
    unsafe { sock.restore_zerocopy() };
    if !sock.may_listen() {
        return Err(EOPNOTSUPP);
    }

    // SAFETY: The operations of a TCP socket are constants of the kernel, unless it has a ULP or
    // carries more than TCP: SMC gives its sockets a copy, in memory of its own. The socket has no
    // ULP by the contract of this function, and `carries_more_than_tcp()` has returned `false`.
    let original: &'static bindings::inet_connection_sock_af_ops = unsafe { &*sock.af_ops() };
    let ops = af_ops::table::<F>(original);
    let defaults = registration.defaults();
    // SAFETY: The socket stays in memory until it has been destroyed, and `release()`, which calls
    // `close()`, is part of that.
    let listener = unsafe { Listener::new(sk, defaults, &reqsk::CALLBACKS, ops, original) }?;
    listener.as_arc_borrow().take_over_defer_accept();
    // A socket that listens, or listened before, may be known to other CPUs, and have requests.
    let has_listened = sock.has_listened();
    // SAFETY: The socket is locked. The listener is dropped a grace period after it was unpublished
    // (W8), and its operations with it.
    unsafe {
        // W1, W2. A CPU that makes a child copies the socket. If it copies the module's
        // `icsk_af_ops`, it must copy the ULP, too, or TCP does not call `clone()` (R3). TCP writes
        // the same ULP after `init()` has returned, which is too late.
        sock.publish_ulp_data(Arc::into_raw(listener.clone()).cast_mut().cast());
        sock.set_ulp_ops(registration.as_ptr());
        if has_listened {
            rcu::synchronize_rcu();
        }
        // B1 pairs with `Lookup::after_barrier()` (R2). An RCU reader that finds W3 needs no
        // barrier: it began after W1, by the grace period (R1).
        smp_mb(Write);
        // W3.
        sock.set_af_ops(listener.ops());
    }
    if has_listened {
        // Another CPU may still be in TCP's own `syn_recv_sock()`, and will not call `complete()`
        // for the connection it makes. Its request must not be parked meanwhile (R4).
        rcu::synchronize_rcu();
    }
    // W4.
    with_bh_off(|bh| {
        // SAFETY: W1 to W3 are done. Where another CPU could know the socket before, a grace period
        // has passed since; where none could, it finds all three.
        unsafe { listener.activate(bh) };
    });
    Ok(())
}

/// Makes a child a plain socket, which inherits nothing (`tcp_ulp_ops.clone`).
///
/// # Safety
///
/// * `child` must be a new copy of a listener that has, or had, the module's ULP, not visible to
///   any other CPU.
/// * `req` must be NULL, or the request that the child is made of, to which the caller holds a
///   reference.
unsafe extern "C" fn clone(req: *const request_sock, child: *mut sock, _priority: bindings::gfp_t) {
    let Some(child) = NonNull::new(child) else {
        return;
    };
    // SAFETY: The child is in memory for the call, and a TCP socket.
    let child = unsafe { ListenSock::from_raw(child) };
    // SAFETY: No other CPU sees the child. The data is that of its listener, which keeps it for as
    // long as the caller is an RCU reader, or owns the listener's lock, which the CPU that releases
    // the listener needs, too (`tcp_get_cookie_sock()`, called from `__release_sock()`).
    let listener = unsafe { child.ulp_data_exclusive().cast::<Listener>().as_ref() };
    // SAFETY: No other CPU sees the child, which is a copy of the listener.
    if listener.is_some_and(|listener| !unsafe { listener.restore_child_af_ops(child) }) {
        // TCP makes this connection without the module: the listener has lost the module's
        // operations (`Listener::is_hooked()`), and has listened again since. `complete()` will
        // not be called for the request, which is still in the table.
        // SAFETY: TCP makes the child of this request, to which it holds a reference.
        unsafe { fall_back(req) };
    }
    // SAFETY: No other CPU sees the child. TCP took no module reference for it, and must put none.
    unsafe {
        child.set_ulp_ops(ptr::null());
        child.clear_ulp_data();
    }
}

/// Has a request that may be parked fall back to plain TCP.
///
/// # Safety
///
/// `req` must be NULL, or a request to which the caller holds a reference.
#[cold] // One of those that `net/mod.rs` names: together, they save 48 instructions.
unsafe fn fall_back(req: *const request_sock) {
    // SAFETY: The request is alive by the contract of this function. A request that was made from a
    // cookie has no listener, and is not parked.
    if let Some(request) = unsafe { RequestSock::with_listener(req) } {
        with_bh_off(|bh| {
            if let Some(listener) = Listener::parking_listener(&request, bh) {
                // SAFETY: The caller holds a reference to the request, by the contract of this
                // function.
                unsafe { listener.fall_back(bh, &request) };
            }
        });
    }
}

/// Detaches from a listener that is destroyed: writes W5 to W8 (`tcp_ulp_ops.release`).
///
/// # Safety
///
/// `sk` must be a socket that [`init`] attached to, which is being destroyed
/// (`tcp_cleanup_ulp()`).
unsafe extern "C" fn release(sk: *mut sock) {
    let Some(sk) = NonNull::new(sk) else {
        return;
    };
    // Bottom halves are on where a socket that has connected since dies of a segment from its
    // backlog (`__release_sock()`).
    let bh = BhGuard::new();
    // SAFETY: The socket is in memory for the call, and a TCP socket.
    let sock = unsafe { ListenSock::from_raw(sk) };
    // SAFETY: The socket is being destroyed. `attach()` published this reference, and only this
    // function takes it back.
    let listener = unsafe { Arc::from_raw(sock.ulp_data_exclusive().cast::<Listener>()) };

    // W5. Un-parks every request before the listener is unpublished: a reader that no longer finds
    // the listener assumes that none is parked.
    // SAFETY: TCP puts the socket's reference to the module after the return of this function.
    unsafe { listener.close(&bh.token()) };

    // SAFETY: The socket is being destroyed, so no other CPU writes these. A socket that has
    // connected since may have got other operations, which stay.
    unsafe {
        // W6.
        if listener.is_hooked(sock) {
            sock.set_af_ops(listener.original_ops());
        }
        // B2 pairs with `Lookup::detached()` (R5) and `leave_queue()` (R6).
        smp_mb(Write);
        // W7.
        sock.publish_ulp_data(ptr::null_mut());
    }
    // W8.
    // SAFETY: This is the only place that defers the drop of a listener, and a socket is released
    // once. The socket holds a reference to the module, which keeps its `RetireQueue` until all are
    // gone.
    unsafe { defer_drop(listener) };
}

/// Writes a listener's configuration and counters into an answer of inet_diag, inside
/// `INET_DIAG_ULP_INFO` (`tcp_ulp_ops.get_info`).
///
/// # Safety
///
/// * `sk` must be a socket that has, or had, the module's ULP, held by the caller.
/// * `skb` must be a netlink message with an open attribute, which the caller may add to.
unsafe extern "C" fn get_info(sk: *mut sock, skb: *mut sk_buff, _net_admin: bool) -> c_int {
    let Some(sk) = NonNull::new(sk) else {
        return 0;
    };
    let bh = BhGuard::new();
    let bh = bh.token();
    // SAFETY: The socket is held by inet_diag. Its data was published by `attach()`.
    let Some(listener) = (unsafe { Listener::of(ListenSock::from_raw(sk), &bh) }) else {
        return 0;
    };
    // SAFETY: `skb` is a netlink message by the contract of this function.
    if !unsafe { bindings::accf_diag_has_room(skb, diag::info_size()) } {
        return 0;
    }
    let info = listener.info(&bh);
    // SAFETY: `skb` may be added to by the contract of this function.
    from_result(|| unsafe { diag::put_info(skb, &info) }.map(|()| 0))
}

/// Returns how much [`get_info`] writes at most, in bytes (`tcp_ulp_ops.get_info_size`).
///
/// # Safety
///
/// None: the function looks at nothing.
unsafe extern "C" fn get_info_size(_sk: *const sock, _net_admin: bool) -> usize {
    diag::info_size()
}
