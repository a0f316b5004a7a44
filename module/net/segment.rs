// SPDX-License-Identifier: GPL-2.0-only

//! The segment that `tcp_check_req()` shows us.

use core::{marker::PhantomData, ptr, slice};

use crate::policy;

use super::{
    bindings,
    request::Request,
    wire::{self, Timestamps},
};

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

    /// The options of its header.
    fn options(&self) -> &[u8] {
        let header = self.header();
        let len = usize::from(header.doff()) * 4;
        // SAFETY: by the type invariants the header is there with all its options, `doff` words in all, and stays as long as the
        // segment; a header of less than five words is none.
        unsafe { slice::from_raw_parts(ptr::from_ref(header).cast::<u8>(), len) }
            .get(size_of::<bindings::tcphdr>()..)
            .unwrap_or(&[])
    }

    /// TSval and TSecr, if the segment carries timestamps and `request` agreed on using them.
    pub(crate) fn timestamps(&self, request: &Request<'_>) -> Option<Timestamps> {
        if request.uses_timestamps() {
            wire::timestamps(self.options())
        } else {
            None
        }
    }
}
