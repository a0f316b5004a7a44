// SPDX-License-Identifier: GPL-2.0-only

//! `struct tcp_ulp_ops`.

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
            sock, //
        },
        diag,
        listen_sock::{
            csk,
            has_accf_ulp, //
        },
        listener::Listener,
        rcu::defer_drop,
        registration::Registration,
        reqsk::{
            self,
            RequestSock, //
        }, //
    },
    policy::Filter, //
};

use super::af_ops::{
    conn_request,
    getsockopt,
    setsockopt,
    syn_recv_sock, //
};

/// Attaches filter `F` to a socket that listens, or is about to.
///
/// # Safety
///
/// `sk` must be a locked TCP socket without a ULP, in process context; this is the `init` of a registered [`Registration`].
pub(crate) unsafe extern "C" fn init<F: Filter>(sk: *mut sock) -> c_int {
    from_result(|| {
        // SAFETY: by the contract of this function.
        unsafe { attach::<F>(sk) }.map(|()| 0)
    })
}

/// # Safety
///
/// As for [`init`].
unsafe fn attach<F: Filter>(sk: *mut sock) -> Result {
    let sk = NonNull::new(sk).ok_or(EINVAL)?;
    // SAFETY: the kernel calls the `init` of this very registration.
    let registration = unsafe { Registration::by_name(F::NAME) }.ok_or(ENOENT)?;
    let raw = sk.as_ptr();

    // SAFETY: the socket is a TCP socket and locked. The kernel's operations, which `icsk_af_ops` points to where there
    // is no ULP, are constant.
    let (state, carries_more, original) = unsafe {
        (
            u32::from(bindings::accf_sk_state(raw)),
            bindings::accf_carries_more_than_tcp(raw),
            &*(*csk(raw)).icsk_af_ops,
        )
    };
    let may_listen = matches!(state, bindings::ACCF_TCP_CLOSE | bindings::ACCF_TCP_LISTEN);
    if !may_listen || carries_more {
        return Err(EOPNOTSUPP);
    }

    let mut ops = *original;
    ops.syn_recv_sock = Some(syn_recv_sock::<F>);
    ops.conn_request = Some(conn_request);
    ops.setsockopt = Some(setsockopt);
    ops.getsockopt = Some(getsockopt);
    let defaults = registration.defaults();
    // SAFETY: the socket stays in memory until it has been destroyed; `release()`, which calls `close()`, is part of
    // that.
    let listener = unsafe { Listener::new(sk, defaults, ops, original) }?;
    listener.as_arc_borrow().take_over_defer_accept();
    // Or before: there may be CPUs that have found it then, and a request of that time.
    // SAFETY: the socket is locked.
    let has_listened = unsafe { bindings::accf_has_listened(raw) };
    // SAFETY: the socket is locked. From the last write on, softirqs on other CPUs call `syn_recv_sock()` and must find
    // the data (`listener_of()`), and make children by copying the socket. Whoever copies our operations must copy the ULP too, or
    // `clone()` is not called; so it is set before, to what the kernel sets it to after we return, and copies that began earlier
    // are waited for. For who asks without being a reader under RCU there is a barrier (`listener_after_barrier()`).
    unsafe {
        bindings::accf_ulp_data_publish(raw, Arc::into_raw(listener.clone()).cast_mut().cast());
        ptr::write_volatile(&raw mut (*csk(raw)).icsk_ulp_ops, registration.as_ptr());
        if has_listened {
            rcu::synchronize_rcu();
        }
        smp_mb(Write);
        ptr::write_volatile(&raw mut (*csk(raw)).icsk_af_ops, listener.ops());
    }
    if has_listened {
        // Another CPU may still be in the kernel's own function, making a connection that nobody will complete: of a request that
        // must not be parked meanwhile.
        rcu::synchronize_rcu();
    }
    with_bh_off(|bh| listener.open(bh));
    Ok(())
}

/// Makes a child a plain socket: it inherits nothing.
///
/// # Safety
///
/// `child` must be a new copy of a listener that has, or had, our ULP, not visible to anybody else.
pub(crate) unsafe extern "C" fn clone(
    req: *const request_sock,
    child: *mut sock,
    _priority: bindings::gfp_t,
) {
    // SAFETY: the copy has the data of its listener, which keeps it for as long as our caller is a reader under RCU, or owns the
    // listener's lock, which who releases it has, too (`tcp_get_cookie_sock()`, called from `__release_sock()`).
    let listener = unsafe { (*csk(child)).icsk_ulp_data.cast::<Listener>().as_ref() };
    // SAFETY: nobody else sees the child.
    if listener.is_some_and(|listener| !unsafe { restore_child_af_ops(child, listener) }) {
        // The kernel makes this connection without asking us: its listener has lost our operations, as sockets do that
        // connect to an IPv4-mapped address, and has listened again since. Nobody would complete the request, which is still
        // in the table.
        // SAFETY: the kernel makes the child of this request, to which it holds a reference.
        unsafe { fall_back(req) };
    }
    // SAFETY: as above. The kernel took no module reference for the child, and must not put one.
    unsafe {
        (*csk(child)).icsk_ulp_ops = ptr::null();
        (*csk(child)).icsk_ulp_data = ptr::null_mut();
    }
}

/// Makes a request that may be parked the kernel's again.
///
/// # Safety
///
/// `req` must be alive, and not destroyed by the caller.
#[cold]
unsafe fn fall_back(req: *const request_sock) {
    let has_listener = |req: &NonNull<request_sock>| {
        // SAFETY: by the contract of this function. A cookie's request has no listener.
        let listener = unsafe { reqsk::listener_sock(req.as_ptr()) };
        !listener.is_null()
    };
    if let Some(req) = NonNull::new(req.cast_mut()).filter(has_listener) {
        // SAFETY: alive by the contract of this function, with a listener.
        let request = unsafe { RequestSock::from_raw(req) };
        with_bh_off(|bh| {
            if let Some(parking_listener) = Listener::parking_listener(&request, bh) {
                parking_listener.fall_back(bh, &request);
            }
        });
    }
}

/// Are the operations of `sk`, which is `listener`'s or a copy of it, still ours?
///
/// # Safety
///
/// `sk` must be alive.
pub(crate) unsafe fn has_accf_af_ops(sk: *mut sock, listener: &Listener) -> bool {
    // SAFETY: by the contract of this function. The read is a `READ_ONCE()`.
    let ops = unsafe { ptr::read_volatile(&raw const (*csk(sk)).icsk_af_ops) };
    ptr::eq(ops, listener.ops())
}

/// Gives `child` the kernel's operations if it has ours. Had it?
///
/// # Safety
///
/// `child` must be a socket that nobody else changes.
pub(super) unsafe fn restore_child_af_ops(child: *mut sock, listener: &Listener) -> bool {
    // SAFETY: by the contract of this function. A v4-mapped child has operations of its own, which stay.
    unsafe {
        let has_accf_af_ops = has_accf_af_ops(child, listener);
        if has_accf_af_ops {
            (*csk(child)).icsk_af_ops = listener.original_ops();
        }
        has_accf_af_ops
    }
}

/// Detaches from a listener that is destroyed.
///
/// # Safety
///
/// `sk` must be a socket that [`init`] attached to, in the course of its destruction (`tcp_cleanup_ulp()`).
pub(crate) unsafe extern "C" fn release(sk: *mut sock) {
    // Not off where a socket that has connected since dies of a segment from its backlog (`__release_sock()`).
    let bh = BhGuard::new();
    let raw = csk(sk);
    // SAFETY: `init()` put this reference there, and only we take it out.
    let listener = unsafe { Arc::from_raw((*raw).icsk_ulp_data.cast::<Listener>()) };

    // Only now may anybody no longer find the listener: who does not, takes it that no request is parked there.
    listener.close(&bh.token());

    // SAFETY: nobody else changes these; readers find either value (the barrier pairs with those in
    // `ops_without_listener()` and `destructor()`). A socket that has connected since may have got other operations, which stay.
    unsafe {
        if ptr::eq((*raw).icsk_af_ops, listener.ops()) {
            ptr::write_volatile(&raw mut (*raw).icsk_af_ops, listener.original_ops());
        }
        smp_mb(Write);
        bindings::accf_ulp_data_publish(sk, ptr::null_mut());
    }
    // SAFETY: this is the only place, and a socket is released once.
    unsafe { defer_drop(listener) };
}

/// Writes a listener's configuration and counters into an answer of inet_diag, inside `INET_DIAG_ULP_INFO`.
///
/// # Safety
///
/// For the kernel only: `sk` has our ULP, and `skb` is a netlink message with an open attribute.
pub(crate) unsafe extern "C" fn get_info(
    sk: *mut sock,
    skb: *mut sk_buff,
    _net_admin: bool,
) -> c_int {
    let bh = BhGuard::new();
    let bh = bh.token();
    // SAFETY: inet_diag holds the socket, and it has, or had, our ULP.
    let Some(listener) = (unsafe { Listener::of(sk, &bh) }) else {
        return 0;
    };
    // SAFETY: by the contract of this function.
    if !unsafe { bindings::accf_diag_has_room(skb, diag::info_size()) } {
        return 0;
    }
    let account = listener.account(&bh);
    // SAFETY: by the contract of this function.
    from_result(|| unsafe { diag::put_info(skb, &account) }.map(|()| 0))
}

/// How much [`get_info`] writes at most, in bytes.
///
/// # Safety
///
/// None: looks at nothing.
pub(crate) unsafe extern "C" fn get_info_size(_sk: *const sock, _net_admin: bool) -> usize {
    diag::info_size()
}

/// Does a listener keep the module until its accept queue is empty, and have we seen to it that no request that the kernel moves
/// there, to the queue or to the table, keeps wearing our operations?
///
/// So it is once it has our ULP, which it keeps until then, and makes all its connections by [`syn_recv_sock`], which undresses
/// requests before they are copied; what their timers copy sheds the operations in [`send_synack`], if one is sent
/// ([`Listener::restores_clones`]). What comes out of the accept queue of a plain listener that stops is minded there
/// ([`destructor`]).
///
/// # Safety
///
/// For `accf_reuseport_peers()` only: `sk` is a TCP socket that is alive while our caller is a reader under RCU.
pub(crate) unsafe extern "C" fn peer_restores_clones(sk: *const sock) -> bool {
    has_accf_ulp(sk)
        && with_bh_off(|bh| {
            // SAFETY: alive by the contract of this function; a socket with our ULP has the data of ours.
            let listener = unsafe { Listener::of(sk, bh) };
            listener.is_some_and(|listener| {
                // SAFETY: as above.
                listener.restores_clones() && unsafe { has_accf_af_ops(sk.cast_mut(), &listener) }
            })
        })
}
