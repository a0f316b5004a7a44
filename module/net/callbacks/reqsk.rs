// SPDX-License-Identifier: GPL-2.0-only

//! `struct request_sock_ops` and `struct tcp_request_sock_ops`.

use core::ptr::NonNull;

use kernel::{
    ffi::c_int,
    prelude::*,
    sync::{
        barrier::{
            smp_mb,
            Read, //
        },
        rcu,
        Arc, //
    }, //
};

use crate::{
    net::{
        bh::BhGuard,
        bindings::{
            self,
            request_sock,
            sk_buff,
            sock, //
        },
        clone::pin_module,
        listener::Listener,
        reqsk::RequestSock,
        reqsk_ops::RequestOpsOverride, //
    },
    policy::{
        self,
        SynAck,
        Trigger, //
    }, //
};

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
    let request = unsafe { RequestSock::from_raw(req_ptr) };
    let Some(ops_override) = RequestOpsOverride::of(&request) else {
        return EINVAL.to_errno();
    };

    let bh = BhGuard::new();
    let bh = bh.token();
    let parking_listener = Listener::parking_listener(&request, &bh);
    // A copy for another listener, which the timer's handler has just made, is not our business.
    request.restore_ops_of_new_clone(parking_listener.map(|listener| listener.tag()));

    // `tcp_rtx_synack()` has two callers: the timer's handler, during which the timer is not pending, and
    // `tcp_check_req()` for a SYN that came again. Should that happen during the handler, it will come yet again.
    let trigger = if request.timer_is_pending() {
        Trigger::ClientSyn
    } else {
        Trigger::Timer
    };
    let parking_listener = parking_listener.filter(|listener| listener.has_parked(&request));
    if let (Some(parking_listener), SynAck::Suppress) =
        (parking_listener, policy::on_synack(trigger))
    {
        // SAFETY: the timer's handler is calling.
        if unsafe { parking_listener.on_synack_timer(&bh, &request) } {
            return EAGAIN.to_errno();
        }
    }
    let Some(original) = ops_override.original_tcp().send_synack else {
        return EINVAL.to_errno();
    };
    // SAFETY: the arguments are passed on.
    let sent = unsafe { original(sk, dst, fl, req, foc, synack_type, syn_skb) };
    if parking_listener.is_some() && sent == 0 {
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
    let request = unsafe { RequestSock::from_raw(req_ptr) };
    if let Some(original) =
        RequestOpsOverride::of(&request).and_then(|ops_override| ops_override.original().send_ack)
    {
        // SAFETY: the arguments are passed on.
        unsafe { original(sk, skb, req) };
    }
    request.note_tsval_sent();
}

/// Stands for the destructor of a parked request, or of a copy of one.
///
/// # Safety
///
/// For the kernel only: the last reference to `req` is gone.
pub(crate) unsafe extern "C" fn destructor(req: *mut request_sock) {
    // Until the end, so that the module stays (`ulp.rs`) even if the kernel's destructor has to wait for a lock, which it may on
    // PREEMPT_RT: RCU tasks does not wait for whoever does.
    let _rcu = rcu::read_lock();
    let Some(req_ptr) = NonNull::new(req) else {
        return;
    };
    // SAFETY: the request is being destroyed by our caller, and keeps its reference to the listener until we return.
    let request = unsafe { RequestSock::from_raw(req_ptr) };
    let original = RequestOpsOverride::of(&request)
        .and_then(|ops_override| ops_override.original().destructor);

    // A dying request is parked or not: nobody else can change that but the lock's holder, and it takes no reference.
    let bh = BhGuard::new();
    let bh = bh.token();
    // A connection was made of it by another listener of its group, without our knowing? If that one is plain, a copy of the
    // request sits in its accept queue, and this is the destructor of the copy too.
    let pin_for_clone = || {
        // SAFETY: it is parked, and we are its destructor.
        let parked = unsafe { request.parked() };
        if request.may_have_lost_clone(parked) {
            pin_module();
        }
    };
    // It is such a copy itself. Where its listener stops, the kernel may just have copied it once more, for anybody
    // (`inet_csk_listen_stop()`).
    let pin_for_clone_of_clone = || {
        if !request.is_listener_active() {
            pin_module();
        }
    };
    match Listener::parking_listener(&request, &bh) {
        Some(parking_listener)
            if parking_listener.has_parked(&request) || request.is_orphaned() =>
        {
            pin_for_clone();
            // SAFETY: we are its destructor.
            unsafe { parking_listener.on_destroyed(&bh, &request) };
        }
        Some(_) => pin_for_clone_of_clone(),
        None => {
            // Read the mark after the data: pairs with the barrier in `release()`.
            smp_mb(Read);
            if request.is_orphaned() {
                pin_for_clone();
                // The listener was closed after the last reference to this was gone, and has left it to us, with what it kept
                // (`RequestSock::hand_over_to_destructor()`).
                // SAFETY: we are its destructor, and the listener that had it in a list is gone.
                drop(unsafe { Arc::from_raw(request.restore_ops()) });
            } else {
                pin_for_clone_of_clone();
            }
        }
    }
    if let Some(original) = original {
        // SAFETY: passed on.
        unsafe { original(req) };
    }
}
