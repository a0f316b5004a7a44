// SPDX-License-Identifier: GPL-2.0-only

//! Rebuilds a client's last bare ACK, and hands it to TCP or answers it with an RST.

use core::ptr::NonNull;

use kernel::sync::rcu;

use super::{
    bh::BhDisabled,
    bindings::{
        self,
        sk_buff, //
    },
    parked_request::ParkedRequest,
    reqsk::RequestSock,
    reqsk_ops::RequestOpsOverride,
    tcp_segment::AckPacket, //
};

/// Has TCP make a connection of `request`, by handing it the client's last bare ACK.
///
/// Nothing goes over the wire. If there is no memory, nothing happens.
///
/// Softirq, or process context with bottom halves off. No lock may be held: TCP's receive path
/// takes its own, and calls `syn_recv_sock()` of the listener. An RST or data that another CPU
/// processes at this moment is as harmless as it is beside an ACK from the wire.
pub(crate) fn accept(
    request: &RequestSock<'_>,
    parked: &ParkedRequest,
    _bh: &BhDisabled<'_>,
    rcu: &rcu::Guard,
) {
    let Some(skb) = last_ack(request, parked, rcu) else {
        return;
    };
    // SAFETY: `skb` is owned by this function, and either call consumes it. The request is alive.
    // TCP's handler is called as the IP layer calls it: bottom halves are off and the caller is an
    // RCU reader, as the tokens prove.
    unsafe {
        if bindings::accf_skb_route(request.as_ptr(), skb.as_ptr()) {
            bindings::accf_tcp_rcv(request.as_ptr(), skb.as_ptr());
        } else {
            bindings::accf_skb_drop(skb.as_ptr());
        }
    }
}

/// Sends the client an RST in answer to its last bare ACK (`send_reset` of TCP's `rsk_ops`).
///
/// The RST has the sequence number that the client expects next. If there is no memory, nothing is
/// sent, as where TCP itself resets.
///
/// Softirq, or process context with bottom halves off. No lock may be held.
pub(crate) fn reset(
    request: &RequestSock<'_>,
    parked: &ParkedRequest,
    _bh: &BhDisabled<'_>,
    rcu: &rcu::Guard,
) {
    let Some(send_reset) =
        RequestOpsOverride::of(request).and_then(|ops_override| ops_override.original().send_reset)
    else {
        return;
    };
    let Some(skb) = last_ack(request, parked, rcu) else {
        return;
    };
    // SAFETY: `skb` is owned by this function, and dropped at the end. The request is alive, with
    // its listener. As the packet has no route and the listener is given, `send_reset` looks only
    // at the headers and at TCP's control block, which was just filled in. It is called as TCP
    // calls it: bottom halves are off and the caller is an RCU reader, as the tokens prove.
    unsafe {
        bindings::accf_skb_fill_cb(request.as_ptr(), skb.as_ptr());
        send_reset(
            request.listen_sock().as_ptr(),
            skb.as_ptr(),
            bindings::sk_rst_reason_SK_RST_REASON_NOT_SPECIFIED,
        );
        bindings::accf_skb_drop(skb.as_ptr());
    }
}

/// Sends the client a keepalive probe (RFC 1122, section 4.2.3.6).
///
/// It has the current timestamp, which the client may echo. If there is no memory, nothing is sent.
///
/// Softirq, or process context with bottom halves off. No lock may be held.
#[cold] // Most listeners do not probe.
pub(crate) fn probe(
    request: &RequestSock<'_>,
    parked: &ParkedRequest,
    _bh: &BhDisabled<'_>,
    rcu: &rcu::Guard,
) {
    let Some(send_ack) =
        RequestOpsOverride::of(request).and_then(|ops_override| ops_override.original().send_ack)
    else {
        return;
    };
    let Some(skb) = last_ack(request, parked, rcu) else {
        return;
    };
    request.note_tsval_sent();
    // SAFETY: `skb` is owned by this function, and dropped at the end. The request is alive, with
    // its listener. As the packet has no route and the listener is given, `send_ack` looks only at
    // the headers and at TCP's control block, which was just filled in. It is called as TCP calls
    // it: bottom halves are off and the caller is an RCU reader, as the tokens prove.
    unsafe {
        bindings::accf_skb_fill_cb(request.as_ptr(), skb.as_ptr());
        bindings::accf_send_probe(request.as_ptr(), skb.as_ptr(), Some(send_ack));
        bindings::accf_skb_drop(skb.as_ptr());
    }
}

/// Answers `skb`, a segment of `request` that TCP is processing, with an RST (`send_reset` of TCP's
/// `rsk_ops`), as `tcp_check_req()` does.
///
/// No lock may be held.
///
/// # Safety
///
/// TCP must have called `syn_recv_sock()` for the listener `sk`, with `skb` and `request`.
pub(crate) unsafe fn reset_segment(
    request: &RequestSock<'_>,
    sk: *const bindings::sock,
    skb: *mut sk_buff,
    _bh: &BhDisabled<'_>,
) {
    let send_reset = match request.ops_override() {
        // The override's own function would look for the request in the table.
        Some(ops_override) => ops_override.original().send_reset,
        // SAFETY: The operations of a request are valid and constant.
        None => unsafe { (*request.ops()).send_reset },
    };
    let Some(send_reset) = send_reset else {
        return;
    };
    // SAFETY: The caller of `syn_recv_sock()` is `tcp_check_req()`, by the contract of this
    // function, which calls `send_reset` with the same arguments. `_bh` proves that bottom halves
    // are off, and so that the caller is an RCU reader.
    unsafe { send_reset(sk, skb, bindings::sk_rst_reason_SK_RST_REASON_NOT_SPECIFIED) };
}

/// Returns the client's last bare ACK as the IP layer would hand it to TCP, without a route, or
/// `None` if there is no memory. The caller owns it.
fn last_ack(
    request: &RequestSock<'_>,
    parked: &ParkedRequest,
    _rcu: &rcu::Guard,
) -> Option<NonNull<sk_buff>> {
    let kept = parked.ack();
    let ack = request.bare_ack(&kept);
    let packet = AckPacket::new(&request.endpoints(), ack);
    let bytes = packet.as_bytes();
    // SAFETY: The request is alive, and with it its listener and its namespace. `bytes` are
    // `bytes.len()` bytes, of which there are fewer than 2^32. The caller is an RCU reader, as the
    // token proves.
    NonNull::new(unsafe {
        bindings::accf_skb_received(
            request.as_ptr(),
            bytes.as_ptr().cast(),
            bytes.len() as u32,
            packet.network_len() as u32,
            kept.arrival.iif as u32,
        )
    })
}
