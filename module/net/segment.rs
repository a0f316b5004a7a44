// SPDX-License-Identifier: GPL-2.0-only

//! The segment that `tcp_check_req()` shows us.

use core::{marker::PhantomData, slice};

use crate::policy;

use super::{
    bindings,
    request::RequestSock,
    wire::{self, Timestamps},
};

/// Length of a TCP header without options.
const HEADER_LEN: usize = 20;
/// Where it has what.
const DATA_OFFSET: usize = 12;
const FLAGS: usize = 13;
const WINDOW: usize = 14;
/// Flags.
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;

/// A TCP segment (`struct sk_buff`) in TCP's receive path.
///
/// # Invariants
///
/// `skb` is valid for `'a`, its transport header is a whole TCP header in linear memory, options included, and its
/// control block is TCP's (`tcp_v4_fill_cb()`, `tcp_v6_fill_cb()`).
#[derive(Clone, Copy)]
pub(crate) struct TcpSegment<'a> {
    skb: *const bindings::sk_buff,
    _skb: PhantomData<&'a bindings::sk_buff>,
}

impl<'a> TcpSegment<'a> {
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

    /// Where its TCP header begins.
    ///
    /// Bytes, and no `struct tcphdr`: behind an Ethernet header nothing is aligned (`NET_IP_ALIGN` is 0 on x86).
    fn start(&self) -> *const u8 {
        // SAFETY: the segment is valid, by the type invariants, with the offset of its transport header from where its buffer
        // begins; both are in the same allocation.
        unsafe {
            let offset = self
                .skb
                .byte_add(bindings::ACCF_SKB_TRANSPORT_HEADER as usize)
                .cast::<u16>()
                .read();
            (*self.skb).head.add(usize::from(offset))
        }
    }

    /// What every TCP header has (RFC 9293, section 3.1).
    fn header(&self) -> &[u8; HEADER_LEN] {
        // SAFETY: by the type invariants a whole header is there, and stays as long as the segment. Bytes need no alignment.
        unsafe { &*self.start().cast() }
    }

    /// The options of its header.
    fn options(&self) -> &[u8] {
        let len = usize::from(self.header()[DATA_OFFSET] >> 4) * 4;
        // SAFETY: by the type invariants all of the header is there, as many words of 32 bits as it says, and stays as long as the
        // segment.
        let header = unsafe { slice::from_raw_parts(self.start(), len) };
        header.get(HEADER_LEN..).unwrap_or(&[])
    }

    /// Does it open a connection?
    pub(crate) fn is_syn(&self) -> bool {
        self.header()[FLAGS] & SYN != 0
    }

    /// What the segment carries, as the reply to a SYN-ACK, where the client's SYN had the number `client_isn`.
    pub(crate) fn kind(&self, client_isn: u32) -> policy::SegmentKind {
        // SAFETY: the control block is TCP's, by the type invariants.
        let end_seq = unsafe {
            let control_block = (&raw const (*self.skb).cb).cast::<bindings::tcp_skb_cb>();
            (*control_block).end_seq
        };
        let start = client_isn.wrapping_add(1);

        if end_seq == start {
            policy::SegmentKind::BareAck
        } else if end_seq == start.wrapping_add(1) && self.header()[FLAGS] & FIN != 0 {
            policy::SegmentKind::Fin
        } else {
            policy::SegmentKind::Data
        }
    }

    /// The window in the header: not scaled.
    pub(crate) fn window(&self) -> u16 {
        let header = self.header();
        u16::from_be_bytes([header[WINDOW], header[WINDOW + 1]])
    }

    /// TSval and TSecr, if the segment carries timestamps and `request` agreed on using them.
    #[inline]
    pub(crate) fn timestamps(&self, request: &RequestSock<'_>) -> Option<Timestamps> {
        if request.uses_timestamps() {
            wire::timestamps(self.options())
        } else {
            None
        }
    }
}
