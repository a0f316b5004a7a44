// SPDX-License-Identifier: GPL-2.0-only

//! `struct request_sock_ops` and `struct tcp_request_sock_ops` of a parked request.

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
        bh::{
            BhDisabled,
            BhGuard, //
        },
        bindings::{
            self,
            request_sock,
            sk_buff,
            sock, //
        },
        clone::{
            pin_module,
            Moment, //
        },
        inject,
        listener::{
            must_pin,
            Listener,
            OnSynAckTimer, //
        },
        reqsk::{
            RequestRef,
            RequestSock, //
        },
        reqsk_ops::{
            RequestCallbacks,
            RequestOpsOverride, //
        },
        tcp_segment::TcpSegment, //
    },
    policy::{
        self,
        SynAck,
        Trigger, //
    }, //
};

/// The callbacks of parked requests, for [`RequestOpsOverride`].
pub(crate) static CALLBACKS: RequestCallbacks = RequestCallbacks {
    send_synack,
    send_ack,
    send_reset,
    destructor,
};

/// Stands in for `tcp_v4_send_synack()` and `tcp_v6_send_synack()` of a parked request.
///
/// Returns 0 if a SYN-ACK was sent that counts as a retransmission.
///
/// # Safety
///
/// * `req` must be a request with a listener, to which the caller holds a reference, or a clone of
///   one that the caller is making.
/// * The caller must be TCP, which passes arguments that suit its own function.
unsafe extern "C" fn send_synack(
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
    // SAFETY: The request is alive and has a listener, by the contract of this function.
    let request = unsafe { RequestSock::from_raw(req_ptr) };
    let Some(ops_override) = RequestOpsOverride::of(&request) else {
        return EINVAL.to_errno();
    };

    let bh = BhGuard::new();
    let bh = bh.token();
    let listener = Listener::parking_listener(&request, &bh);
    if listener.is_none() {
        // R6: Reads the tag after the data; pairs with B2 in `release()`.
        smp_mb(Read);
    }
    // A clone for another listener, which the timer's handler has just made, is plain again.
    // SAFETY: TCP calls this function for a request that is not dying.
    unsafe { request.restore_ops_of_new_clone(listener.map(|listener| listener.tag())) };

    // `tcp_rtx_synack()` has two callers: the SYN-ACK timer's handler, during which the timer is
    // not pending, and `tcp_check_req()` for a SYN that came again. If that SYN comes during the
    // handler, it will come yet again.
    let trigger = if request.timer_is_pending() {
        Trigger::ClientSyn
    } else {
        Trigger::Timer
    };
    let listener = listener.filter(|listener| listener.has_parked(&request));
    if let (Some(listener), SynAck::Suppress) = (listener, policy::on_synack(trigger)) {
        // SAFETY: The timer's handler is the caller.
        match unsafe { listener.on_synack_timer(&bh, &request) } {
            OnSynAckTimer::NotParked => {}
            OnSynAckTimer::Waits => return EAGAIN.to_errno(),
            OnSynAckTimer::Probe(parked, interval) => {
                inject::probe(&request, &parked, &bh, &rcu::read_lock());
                // SAFETY: The timer's handler is the caller.
                unsafe { listener.wait_again(&bh, &request, interval) };
                return EAGAIN.to_errno();
            }
        }
    }
    let Some(original) = ops_override.original_tcp().send_synack else {
        return EINVAL.to_errno();
    };
    // SAFETY: The arguments are those that TCP has for its own function.
    let sent = unsafe { original(sk, dst, fl, req, foc, synack_type, syn_skb) };
    if listener.is_some() && sent == 0 {
        // The SYN-ACK was sent, but must not count as a retransmission, nor may TCP set the
        // request's timer again: the client has acknowledged the SYN-ACK before, and the request
        // stays parked.
        return EAGAIN.to_errno();
    }
    sent
}

/// Stands in for `tcp_v4_reqsk_send_ack()` and `tcp_v6_reqsk_send_ack()` of a parked request: the
/// answer to a keepalive probe, and to anything else outside of the window.
///
/// `tcp_check_req()` refuses segments that echo a later timestamp than that of the last SYN-ACK.
/// The timestamp of this answer is later, and the client echoes it with all that it sends
/// afterwards.
///
/// # Safety
///
/// * `req` must be a request with a listener, to which the caller holds a reference.
/// * The caller must be TCP, which passes arguments that suit its own function.
unsafe extern "C" fn send_ack(sk: *const sock, skb: *mut sk_buff, req: *mut request_sock) {
    let Some(req_ptr) = NonNull::new(req) else {
        return;
    };
    // SAFETY: The request is alive and has a listener, by the contract of this function.
    let request = unsafe { RequestSock::from_raw(req_ptr) };
    let original =
        RequestOpsOverride::of(&request).and_then(|ops_override| ops_override.original().send_ack);
    if let Some(original) = original {
        // SAFETY: The arguments are those that TCP has for its own function.
        unsafe { original(sk, skb, req) };
    }
    request.note_tsval_sent();
}

/// Stands in for `tcp_v4_send_reset()` and `tcp_v6_send_reset()` of a parked request.
///
/// `tcp_check_req()` answers a SYN inside of the window by a reset, and drops the request. But the
/// client, if it is still there, takes its connection for established; and that answers such a SYN
/// by a challenge ACK (RFC 5961, section 4.2). A client that has started again resets the
/// connection then, and repeats its SYN, and a SYN of any other origin changes nothing. So TCP gets
/// to make the connection first, which takes the request out of the table. `tcp_check_req()`
/// notices, and has `tcp_v4_rcv()` or `tcp_v6_rcv()` look for the owner of the SYN again.
///
/// # Safety
///
/// * The caller must be `tcp_check_req()`, with a segment of a request in the table, or that was
///   there a moment ago, that has come to the listener `sk`.
/// * The caller must be an RCU reader that holds no lock.
unsafe extern "C" fn send_reset(
    sk: *const sock,
    skb: *mut sk_buff,
    reason: bindings::sk_rst_reason,
) {
    let rcu = rcu::read_lock();
    let bh = BhGuard::new();
    let bh = bh.token();
    // SAFETY: The listener and the segment are those of `tcp_check_req()`, which is called with
    // TCP's control block filled in, and holds a reference to the listener.
    let Some(found) = (unsafe { RequestRef::of_segment(sk, skb, &bh) }) else {
        // Another CPU was faster. TCP finds the request out of the table, and looks for the owner
        // of the segment again.
        return;
    };
    let request = found.as_request();
    // SAFETY: TCP has pulled the whole header in, and filled its control block in.
    if unsafe { TcpSegment::from_raw(skb) }.is_syn() {
        let listener = Listener::parking_listener(&request, &bh);
        if listener.is_some_and(|listener| listener.on_syn_in_window(&request, &bh, &rcu)) {
            return;
        }
    }
    let original = RequestOpsOverride::of(&request)
        .and_then(|ops_override| ops_override.original().send_reset);
    if let Some(original) = original {
        // SAFETY: The arguments are those that TCP has for its own function.
        unsafe { original(sk, skb, reason) };
    }
}

/// Stands in for the destructor of a parked request, or of a clone of one.
///
/// # Safety
///
/// `req` must be a request with a listener whose last reference is gone.
unsafe extern "C" fn destructor(req: *mut request_sock) {
    // Held until the end, so that the module stays (`Registration`) even if TCP's destructor has to
    // wait for a lock, as it may on PREEMPT_RT. RCU tasks does not wait for a task that does.
    let _rcu = rcu::read_lock();
    let Some(req_ptr) = NonNull::new(req) else {
        return;
    };
    // SAFETY: The request is being destroyed by the caller, and keeps its reference to the listener
    // until this function has returned.
    let request = unsafe { RequestSock::from_raw(req_ptr) };
    let original = RequestOpsOverride::of(&request)
        .and_then(|ops_override| ops_override.original().destructor);
    let bh = BhGuard::new();
    // SAFETY: This is the destructor of the request.
    unsafe { leave_queue(&bh.token(), &request) };
    if let Some(original) = original {
        // SAFETY: TCP calls this function in place of its own, for this request.
        unsafe { original(req) };
    }
}

/// Takes `request` out of its queue if it is parked, and pins the module if a clone of it may
/// exist.
///
/// # Safety
///
/// The caller must be the destructor of `request`.
unsafe fn leave_queue(bh: &BhDisabled<'_>, request: &RequestSock<'_>) {
    // Whether a dying request is parked does not change any more, with one exception: a CPU that
    // holds the lock and cannot take a reference hands the entry over to the request.
    let listener = Listener::parking_listener(request, bh);
    if listener.is_none() {
        // R6: Reads the tag after the data; pairs with B2 in `release()`.
        smp_mb(Read);
    }
    let is_parked_there = listener.is_some_and(|listener| listener.has_parked(request));
    if !is_parked_there && !request.is_orphaned() {
        if must_pin(request, Moment::CloneDestroyed) {
            // SAFETY: The caller is the destructor of the request.
            unsafe { pin_module() };
        }
        return;
    }
    // SAFETY: The request is parked or orphaned, and the caller is its destructor.
    if must_pin(request, Moment::Destroyed(unsafe { request.parked() })) {
        // SAFETY: The caller is the destructor of the request.
        unsafe { pin_module() };
    }
    match listener {
        // SAFETY: The caller is the request's destructor; the request was parked at this listener
        // when its last reference went.
        Some(listener) => unsafe { listener.on_destroyed(bh, request) },
        // The listener was closed after the request's last reference was gone, and has left the
        // entry to the request.
        // SAFETY: The request is orphaned, the caller is its destructor, and the entry is in no
        // list: its reference was the request's.
        None => drop(unsafe { Arc::from_raw(request.restore_ops()) }),
    }
}
