// SPDX-License-Identifier: GPL-2.0-only

//! What is done to a request whose time is up: the client's last bare ACK, made anew, for TCP to act on.

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

/// Gives the client's last bare ACK to TCP, which makes the connection: nothing goes over the wire.
///
/// That a reset, or data, comes in on another CPU at this moment is as harmless as it is with an ACK from the wire.
pub(crate) fn accept(
    request: &RequestSock<'_>,
    parked: &ParkedRequest,
    _bh: &BhDisabled<'_>,
    _rcu: &rcu::Guard,
) {
    let skb = last_ack(request, parked);
    if skb.is_null() {
        return;
    }
    // SAFETY: the packet is ours, and the request alive. TCP's handler consumes the packet; it is called as from the
    // IP layer, with bottom halves off and under RCU, as the tokens prove, and with no lock held that it might take.
    unsafe {
        if bindings::accf_skb_route(request.as_ptr(), skb) {
            bindings::accf_tcp_rcv(request.as_ptr(), skb);
        } else {
            bindings::accf_skb_drop(skb);
        }
    }
}

/// Sends the client an RST in answer to its last bare ACK, from the sequence number that it expects next: the kernel's own
/// `send_reset` of requests. If there is no memory nothing is sent, as from there.
pub(crate) fn reset(
    request: &RequestSock<'_>,
    parked: &ParkedRequest,
    _bh: &BhDisabled<'_>,
    _rcu: &rcu::Guard,
) {
    let Some(send_reset) =
        RequestOpsOverride::of(request).and_then(|ops_override| ops_override.original().send_reset)
    else {
        return;
    };
    let skb = last_ack(request, parked);
    if skb.is_null() {
        return;
    }
    // SAFETY: the packet is ours, and the request alive, with its listener. `send_reset` looks at the headers and at TCP's
    // control block only, as the packet has no route and the listener is given; it is called as from TCP, with bottom
    // halves off and under RCU, as the tokens prove.
    unsafe {
        bindings::accf_skb_fill_cb(request.as_ptr(), skb);
        send_reset(
            request.listener_sock(),
            skb,
            bindings::sk_rst_reason_SK_RST_REASON_NOT_SPECIFIED,
        );
        bindings::accf_skb_drop(skb);
    }
}

/// The client's last bare ACK, as the IP layer would hand it to TCP, but for a route. NULL if there is no memory.
fn last_ack(request: &RequestSock<'_>, parked: &ParkedRequest) -> *mut sk_buff {
    let ack = request.bare_ack(parked.window(), parked.tsval());
    let packet = AckPacket::new(&request.endpoints(), ack);
    let bytes = packet.as_bytes();
    // SAFETY: the request is alive, and with it its listener and its namespace; the packet is `bytes.len()` bytes,
    // shorter than 2^32.
    unsafe {
        bindings::accf_skb_received(
            request.as_ptr(),
            bytes.as_ptr().cast(),
            bytes.len() as u32,
            packet.network_len() as u32,
        )
    }
}
