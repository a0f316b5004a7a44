// SPDX-License-Identifier: GPL-2.0-only

//! The segment that `tcp_check_req()` shows us.

use core::marker::PhantomData;

use crate::policy;

use super::{bindings, request::Request};

/// A TCP segment (`struct sk_buff`) in TCP's receive path.
///
/// # Invariants
///
/// `skb` is valid for `'a`, its transport header is a whole TCP header in linear memory, options included, and its
/// control block is TCP's (`tcp_v4_fill_cb()`, `tcp_v6_fill_cb()`).
pub(crate) struct Segment<'a> {
    skb: *const bindings::sk_buff,
    _skb: PhantomData<&'a bindings::sk_buff>,
}

impl<'a> Segment<'a> {
    /// Wraps the kernel's pointer.
    ///
    /// # Safety
    ///
    /// `skb` must meet the type's invariants.
    pub(crate) unsafe fn from_raw(skb: *const bindings::sk_buff) -> Self {
        // INVARIANT: by the contract of this function.
        Self {
            skb,
            _skb: PhantomData,
        }
    }

    fn header(&self) -> &bindings::tcphdr {
        // SAFETY: by the type invariants the header is there, and stays as long as the segment.
        unsafe { &*bindings::accf_tcp_hdr(self.skb) }
    }

    /// Does it open a connection?
    pub(crate) fn is_syn(&self) -> bool {
        self.header().syn() != 0
    }

    /// What the segment carries, as the reply to a SYN-ACK, where the client's SYN had the number `client_isn`.
    pub(crate) fn kind(&self, client_isn: u32) -> policy::Segment {
        // SAFETY: the control block is TCP's, by the type invariants.
        let end_seq = unsafe { bindings::accf_skb_end_seq(self.skb) };
        let start = client_isn.wrapping_add(1);

        if end_seq == start {
            policy::Segment::BareAck
        } else if end_seq == start.wrapping_add(1) && self.header().fin() != 0 {
            policy::Segment::Fin
        } else {
            policy::Segment::Data
        }
    }

    /// The window in the header: not scaled.
    pub(crate) fn window(&self) -> u16 {
        u16::from_be(self.header().window)
    }

    /// TSval, if the segment carries timestamps and `request` agreed on using them.
    pub(crate) fn tsval(&self, request: &Request<'_>) -> Option<u32> {
        if !request.uses_timestamps() {
            return None;
        }
        let mut tsval = 0;
        // SAFETY:
        // * the listener lives as long as the request, which holds a reference to it;
        // * the segment is valid, with all its options, by the type invariants;
        // * `tsval` is a live variable.
        let seen =
            unsafe { bindings::accf_skb_tsval(request.listener_sock(), self.skb, &mut tsval) };
        seen.then_some(tsval)
    }

    /// The round-trip time that the kernel would take from this reply to the SYN-ACK of `request`, if any.
    pub(crate) fn synack_rtt_us(&self, request: &Request<'_>) -> Option<u32> {
        let mut rtt_us = 0;
        // SAFETY: the request is alive; the segment is valid, with all its options, by the type invariants; `rtt_us` is a
        // live variable.
        let known =
            unsafe { bindings::accf_synack_rtt_us(request.as_ptr(), self.skb, &mut rtt_us) };
        known.then_some(rtt_us)
    }
}
