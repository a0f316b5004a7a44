// SPDX-License-Identifier: GPL-2.0-only

//! Every function that the kernel calls, and nothing else is `extern "C"`.
//!
//! | function | is | called | context |
//! | --- | --- | --- | --- |
//! | [`init`] | `tcp_ulp_ops.init` | by `setsockopt(TCP_ULP)` | process, socket locked, may sleep |
//! | [`clone`] | `tcp_ulp_ops.clone` | when a child is made | softirq |
//! | [`release`] | `tcp_ulp_ops.release` | when the socket is destroyed | process, or softirq; may not sleep |
//! | [`syn_recv_sock`] | `icsk_af_ops->syn_recv_sock` | for each ACK of a request | softirq, RCU, listener not locked |
//! | [`send_synack`] | `af_specific->send_synack` | for parked requests | softirq, RCU |
//! | [`send_ack`] | `rsk_ops->send_ack` | for parked requests | softirq, RCU |
//! | [`destructor`] | `rsk_ops->destructor` | when a parked request dies | any |

use core::{
    ffi::c_int,
    ptr::{self, NonNull},
};

use kernel::{
    error::from_result,
    prelude::*,
    sync::{
        barrier::{smp_mb, Read, Write},
        rcu, Arc,
    },
};

use crate::policy::{self, Action, Filter, Phase, SynAck, Trigger};

use super::{
    bindings::{self, request_sock, sk_buff, sock},
    context::{BhDisabled, BhGuard},
    listener::Listener,
    overlay::Overlay,
    rcu::defer_drop,
    request::Request,
    segment::Segment,
    ulp::Registration,
};

/// `inet_csk(sk)`.
fn csk(sk: *mut sock) -> *mut bindings::inet_connection_sock {
    // A `struct sock` is the first member of `inet_sock`, and that of `inet_connection_sock`.
    sk.cast()
}

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
    let (state, is_mptcp_or_smc, original) = unsafe {
        (
            u32::from(bindings::accf_sk_state(raw)),
            bindings::accf_is_mptcp_or_smc(raw),
            &*(*csk(raw)).icsk_af_ops,
        )
    };
    let may_listen = matches!(state, bindings::ACCF_TCP_CLOSE | bindings::ACCF_TCP_LISTEN);
    if !may_listen || is_mptcp_or_smc {
        return Err(EOPNOTSUPP);
    }

    let mut ops = *original;
    ops.syn_recv_sock = Some(OURS);
    // SAFETY: the socket stays in memory until it has been destroyed; `release()`, which calls `close()`, is part of
    // that.
    let listener = unsafe {
        Listener::new(
            sk,
            policy::on_segment::<F>,
            registration.timeout(),
            ops,
            original,
        )
    }?;
    let ops = listener.ops();
    // SAFETY: the socket is locked. From the last write on, softirqs on other CPUs call `syn_recv_sock()` and must find
    // the data (pairs with the barrier there), and make children by copying the socket. Whoever copies our operations must
    // copy the ULP too, or `clone()` is not called; so it is set before, to what the kernel sets it to after we return,
    // and copies that began earlier are waited for.
    unsafe {
        bindings::accf_ulp_data_publish(raw, Arc::into_raw(listener).cast_mut().cast());
        ptr::write_volatile(&raw mut (*csk(raw)).icsk_ulp_ops, registration.as_ptr());
        if state == bindings::ACCF_TCP_LISTEN {
            rcu::synchronize_rcu();
        }
        smp_mb(Write);
        ptr::write_volatile(&raw mut (*csk(raw)).icsk_af_ops, ops);
    }
    Ok(())
}

/// Makes a child a plain socket: it inherits nothing.
///
/// # Safety
///
/// `child` must be a new copy of a listener that has, or had, our ULP, not visible to anybody else.
pub(crate) unsafe extern "C" fn clone(
    _req: *const request_sock,
    child: *mut sock,
    _priority: bindings::gfp_t,
) {
    let rcu = rcu::read_lock();
    // SAFETY: the copy has the data of its listener, which under RCU is still there.
    if let Some(listener) = unsafe { Listener::of(child, &rcu) } {
        // SAFETY: nobody else sees the child.
        unsafe { disown(child, &listener) };
    }
    // SAFETY: as above. The kernel took no module reference for the child, and must not put one.
    unsafe {
        (*csk(child)).icsk_ulp_ops = ptr::null();
        (*csk(child)).icsk_ulp_data = ptr::null_mut();
    }
}

/// Gives `child` the kernel's operations if it has ours.
///
/// # Safety
///
/// `child` must be a socket that nobody else changes.
unsafe fn disown(child: *mut sock, listener: &Listener) {
    // SAFETY: by the contract of this function. A v4-mapped child has operations of its own, which stay.
    unsafe {
        if ptr::eq((*csk(child)).icsk_af_ops, listener.ops()) {
            (*csk(child)).icsk_af_ops = listener.original_ops();
        }
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

    // SAFETY: nobody else changes these; readers find either value (the barrier pairs with that in
    // `syn_recv_sock()`). A socket that has connected since may have got other operations, which stay.
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

/// The type of `icsk_af_ops->syn_recv_sock`.
pub(crate) type SynRecvSock = unsafe extern "C" fn(
    *const sock,
    *mut sk_buff,
    *mut request_sock,
    *mut bindings::dst_entry,
    *mut request_sock,
    *mut bool,
    Option<unsafe extern "C" fn(*mut sock, *const sock)>,
) -> *mut sock;

/// Ours, to tell it from the kernel's.
pub(crate) const OURS: SynRecvSock = syn_recv_sock;

/// Stands for `tcp_v4_syn_recv_sock()` and `tcp_v6_syn_recv_sock()` of a filtered listener.
///
/// NULL makes `tcp_check_req()` mark the request acked and drop the segment, unless `tcp_abort_on_overflow` is set.
///
/// # Safety
///
/// For the kernel only; the arguments are those of its own functions.
pub(crate) unsafe extern "C" fn syn_recv_sock(
    sk: *const sock,
    skb: *mut sk_buff,
    req: *mut request_sock,
    dst: *mut bindings::dst_entry,
    req_unhash: *mut request_sock,
    own_req: *mut bool,
    opt_child_init: Option<unsafe extern "C" fn(*mut sock, *const sock)>,
) -> *mut sock {
    // SAFETY: segments come in by softirq, or with bottom halves off as in softirq.
    let bh = unsafe { BhDisabled::assume() };
    let rcu = rcu::read_lock();

    // The kernel has read our `icsk_af_ops`; read the data after that. Pairs with the barriers in `attach()`,
    // `release()`.
    smp_mb(Read);
    // SAFETY: the listener is alive, and our operations are only on sockets with our data.
    let Some(listener) = (unsafe { Listener::of(sk, &rcu) }) else {
        // It was destroyed while the kernel called us, and has the kernel's operations back. Read them after the data:
        // pairs with the barrier in `release()`.
        smp_mb(Read);
        // SAFETY: the listener is alive; its operations are valid under RCU.
        let ops = unsafe { &*ptr::read_volatile(&raw const (*csk(sk.cast_mut())).icsk_af_ops) };
        return match ops.syn_recv_sock.filter(|&f| !ptr::fn_addr_eq(f, OURS)) {
            // SAFETY: the arguments are passed on.
            Some(original) => unsafe {
                original(sk, skb, req, dst, req_unhash, own_req, opt_child_init)
            },
            None => {
                // SAFETY: whoever makes no child must put the route, which may be NULL.
                unsafe { bindings::dst_release(dst) };
                ptr::null_mut()
            }
        };
    };
    let original = || {
        let Some(original) = listener.original_ops().syn_recv_sock else {
            return ptr::null_mut();
        };
        // SAFETY: the arguments are passed on.
        let child = unsafe { original(sk, skb, req, dst, req_unhash, own_req, opt_child_init) };
        if !child.is_null() {
            // A child that was copied while the filter was being attached.
            // SAFETY: a new child is locked.
            unsafe { disown(child, &listener) };
        }
        child
    };

    // Fast Open and syncookies: no request is in the table, and one made from a cookie has no listener.
    let Some(request) = NonNull::new(req_unhash) else {
        return original();
    };
    // SAFETY: the kernel holds a reference to the request that it looked up, which has a listener.
    let request = unsafe { Request::from_raw(request) };
    // SAFETY: the kernel has checked the segment for this request.
    let segment = unsafe { Segment::from_raw(skb) };

    // Its home: this listener, unless that has stopped and this one of its group is to take over.
    let home = if ptr::eq(sk, request.listener_sock()) {
        Some(listener)
    } else if request.wears_overlay() {
        // SAFETY: it wears our operations.
        unsafe { Listener::home_of(&request, &rcu) }
    } else {
        None
    };
    // SAFETY: the listener is alive.
    let phase = if unsafe { is_exempt(sk) } {
        Phase::Exempt
    } else if let Some(phase) = home.and_then(|home| home.phase_of(&bh, &request)) {
        phase
    } else if is_exempt_request(&request) || home.is_none() {
        Phase::Exempt
    } else {
        Phase::Fresh
    };

    let swallowed = match listener.decide(phase, segment.kind(&request)) {
        Action::Admit => false,
        Action::Park => listener.park(&bh, &request, &segment),
        Action::Hold => {
            if let Some(home) = home {
                home.hold(&bh, &request, &segment);
            }
            true
        }
    };
    if swallowed {
        // SAFETY: whoever makes no child must put the route, which may be NULL.
        unsafe { bindings::dst_release(dst) };
        return ptr::null_mut();
    }

    let child = original();
    // SAFETY: the kernel's own function wrote it if it made a child.
    if !child.is_null() && unsafe { *own_req } {
        // Even if it was not parked before: another CPU may have done so meanwhile.
        if let Some(home) = home {
            // SAFETY: we own the request, and have made the connection.
            unsafe { home.settle(&bh, &request) };
        }
    }
    child
}

/// Must the kernel deal with all requests of the listener `sk` alone?
///
/// With `tcp_abort_on_overflow`, NULL would mean a reset. Who is asked again at the deadline cannot sign.
///
/// # Safety
///
/// `sk` must be a listener that is alive.
unsafe fn is_exempt(sk: *const sock) -> bool {
    // SAFETY: by the contract of this function.
    unsafe { bindings::accf_abort_on_overflow(sk) || bindings::accf_is_signed(sk) }
}

/// Must the kernel deal with a request that is not parked alone?
///
/// One that was acked before was parked, and given back because it could not be made a connection; or it could not even
/// be parked. It gets no second chance to be late.
fn is_exempt_request(request: &Request<'_>) -> bool {
    request.is_acked() || request.is_fast_open() || request.is_mptcp()
}

/// Stands for `tcp_v4_send_synack()` and `tcp_v6_send_synack()` of a parked request.
///
/// Anything but 0 means that nothing was sent.
///
/// # Safety
///
/// For the kernel only; the arguments are those of its own functions.
pub(crate) unsafe extern "C" fn send_synack(
    sk: *const sock,
    dst: *mut bindings::dst_entry,
    fl: *mut bindings::flowi,
    req: *mut request_sock,
    foc: *mut bindings::tcp_fastopen_cookie,
    synack_type: bindings::tcp_synack_type,
    syn_skb: *mut sk_buff,
) -> c_int {
    let Some(req_ptr) = NonNull::new(req) else {
        return EINVAL.to_errno();
    };
    // SAFETY: the kernel holds a reference to the request, or is making it from a copy; it has a listener.
    let request = unsafe { Request::from_raw(req_ptr) };
    let Some(overlay) = Overlay::of(&request) else {
        return EINVAL.to_errno();
    };

    // A copy for another listener, which the timer's handler has just made, is not our business.
    request.shed_if_new_copy();

    // `tcp_rtx_synack()` has two callers: the timer's handler, during which the timer is not pending, and
    // `tcp_check_req()` for a SYN that came again. Should that happen during the handler, it will come yet again.
    let trigger = if request.timer_is_pending() {
        Trigger::ClientSyn
    } else {
        Trigger::Timer
    };
    let is_parked = request.is_parked();
    if is_parked && policy::on_synack(trigger) == SynAck::Suppress {
        let bh = BhGuard::new();
        let rcu = rcu::read_lock();
        // SAFETY: it wears our operations.
        if let Some(home) = unsafe { Listener::home_of(&request, &rcu) } {
            // SAFETY: the timer's handler is calling.
            if unsafe { home.outlive_timer(&bh.token(), &request) } {
                return EAGAIN.to_errno();
            }
        }
    }
    let Some(original) = overlay.original_tcp().send_synack else {
        return EINVAL.to_errno();
    };
    // SAFETY: the arguments are passed on.
    let sent = unsafe { original(sk, dst, fl, req, foc, synack_type, syn_skb) };
    if is_parked && sent == 0 {
        // It went out, but must not count as a retransmission, nor may the kernel set the request's timer anew: the client
        // has acknowledged the SYN-ACK before, and the request stays parked.
        return EAGAIN.to_errno();
    }
    sent
}

/// Stands for `tcp_v4_reqsk_send_ack()` and `tcp_v6_reqsk_send_ack()` of a parked request: the answer to a keepalive probe,
/// and to whatever else lies outside of the window.
///
/// `tcp_check_req()` refuses segments that echo a later timestamp than that of our last SYN-ACK. That of this answer is
/// later, and the client echoes it with everything that it sends afterwards.
///
/// # Safety
///
/// For the kernel only; the arguments are those of its own functions.
pub(crate) unsafe extern "C" fn send_ack(
    sk: *const sock,
    skb: *mut sk_buff,
    req: *mut request_sock,
) {
    let Some(req_ptr) = NonNull::new(req) else {
        return;
    };
    // SAFETY: the kernel holds a reference to the request, which has a listener.
    let request = unsafe { Request::from_raw(req_ptr) };
    if let Some(original) = Overlay::of(&request).and_then(|overlay| overlay.original().send_ack) {
        // SAFETY: the arguments are passed on.
        unsafe { original(sk, skb, req) };
    }
    request.tsval_sent();
}

/// Stands for the destructor of a parked request, or of a copy of one.
///
/// # Safety
///
/// For the kernel only: the last reference to `req` is gone.
pub(crate) unsafe extern "C" fn destructor(req: *mut request_sock) {
    let Some(req_ptr) = NonNull::new(req) else {
        return;
    };
    // SAFETY: the request is being destroyed by our caller, and keeps its reference to the listener until we return.
    let request = unsafe { Request::from_raw(req_ptr) };
    let original = Overlay::of(&request).and_then(|overlay| overlay.original().destructor);

    // A dying request is parked or not: nobody else can change that but the lock's holder, and it takes no reference.
    if request.is_parked() {
        let bh = BhGuard::new();
        let rcu = rcu::read_lock();
        // A connection was made of it by another listener of its group, without our knowing? If that one is plain, a copy
        // of the request sits in its accept queue, and this is the destructor of the copy too.
        // SAFETY: the request is alive, with its listener and its namespace, while we run.
        if unsafe { bindings::accf_req_may_have_copy(request.as_ptr()) } {
            pin_module();
        }
        // SAFETY: it is parked.
        match unsafe { Listener::home_of(&request, &rcu) } {
            // SAFETY: we are its destructor.
            Some(home) => unsafe { home.forget(&bh.token(), &request) },
            // The listener was closed after the last reference to this was gone, and has left it to us.
            // SAFETY: it is parked, and we are its destructor.
            None => drop(unsafe { request.undress() }),
        }
    }
    if let Some(original) = original {
        // SAFETY: passed on.
        unsafe { original(req) };
    }
}

/// Keeps the module for good: something that we cannot find again may point into it.
fn pin_module() {
    // SAFETY: the module is alive while its code runs on behalf of a listener or a request.
    unsafe { bindings::accf_pin_module() };
}
