// SPDX-License-Identifier: GPL-2.0-only

//! TCP segments: reads the one that `tcp_check_req()` passes in, and builds a bare ACK.

use core::{
    marker::PhantomData,
    slice, //
};

use crate::policy;

use super::bindings::{
    self,
    accf_arrival,
    accf_endpoints, //
};

pub(crate) const AF_INET: i32 = bindings::ACCF_AF_INET as i32;
pub(crate) const AF_INET6: i32 = bindings::ACCF_AF_INET6 as i32;

/// Length of a TCP header without options.
const HEADER_LEN: usize = 20;
/// Offsets of fields in a TCP header.
const DATA_OFFSET: usize = 12;
const FLAGS: usize = 13;
const WINDOW: usize = 14;
/// Flags of a TCP header.
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
/// In the byte of the data offset.
const AE: u8 = 0x01;

/// A TCP segment (`struct sk_buff`) in TCP's receive path.
///
/// # Invariants
///
/// `skb` is valid for `'a`. Its transport header is a whole TCP header in linear memory, options
/// included. Its control block is TCP's (`tcp_v4_fill_cb()`, `tcp_v6_fill_cb()`).
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
        // INVARIANT: By the contract of this function.
        Self {
            skb,
            _skb: PhantomData,
        }
    }

    /// Returns the kernel's pointer.
    pub(crate) fn as_ptr(&self) -> *const bindings::sk_buff {
        self.skb
    }

    /// Returns a pointer to its TCP header.
    ///
    /// To bytes, not to a `struct tcphdr`: after an Ethernet header the TCP header is not aligned
    /// (`NET_IP_ALIGN` is 0 on x86).
    fn start(&self) -> *const u8 {
        // SAFETY: The segment is valid by the type invariants. So is the offset of its transport
        // header from the beginning of its buffer, which lies in the same allocation.
        unsafe {
            let offset = self
                .skb
                .byte_add(bindings::ACCF_SKB_TRANSPORT_HEADER as usize)
                .cast::<u16>()
                .read();
            (*self.skb).head.add(usize::from(offset))
        }
    }

    /// Returns the part that every TCP header has (RFC 9293, section 3.1).
    fn header(&self) -> &[u8; HEADER_LEN] {
        // SAFETY: By the type invariants a whole header is there, and stays as long as the segment.
        // Bytes need no alignment.
        unsafe { &*self.start().cast() }
    }

    /// Returns the options of its header.
    fn options(&self) -> &[u8] {
        let len = usize::from(self.header()[DATA_OFFSET] >> 4) * 4;
        // SAFETY: By the type invariants the whole header is there, with as many words of 32 bits
        // as its data offset says, and stays as long as the segment.
        let header = unsafe { slice::from_raw_parts(self.start(), len) };
        header.get(HEADER_LEN..).unwrap_or(&[])
    }

    /// Returns whether it opens a connection.
    pub(crate) fn is_syn(&self) -> bool {
        self.header()[FLAGS] & SYN != 0
    }

    /// Returns what the segment carries, as the reply to a SYN-ACK, where `client_isn` is the
    /// sequence number of the client's SYN.
    pub(crate) fn kind(&self, client_isn: u32) -> policy::SegmentKind {
        // SAFETY: The segment is valid and its control block is TCP's, by the type invariants.
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

    /// Returns the window in the header, not scaled.
    pub(crate) fn window(&self) -> u16 {
        let header = self.header();
        u16::from_be_bytes([header[WINDOW], header[WINDOW + 1]])
    }

    /// Returns its flags AE, CWR and ECE, of which ECE is bit 0 (`tcp_accecn_ace()`).
    pub(crate) fn ace(&self) -> u8 {
        let header = self.header();
        (header[DATA_OFFSET] & AE) << 2 | header[FLAGS] >> 6
    }

    /// Returns what IP says of it.
    pub(crate) fn arrival(&self) -> accf_arrival {
        // SAFETY: The segment is valid, with its headers, by the type invariants.
        unsafe { bindings::accf_skb_arrival(self.skb) }
    }

    /// Returns whether it acknowledges segments selectively. Of a client that has only been sent
    /// SYN-ACKs, this means that two of them have come.
    pub(crate) fn has_sack(&self) -> bool {
        has_sack(self.options())
    }

    /// Returns TSval and TSecr, if the segment carries timestamps and both ends use them.
    pub(crate) fn timestamps(&self, are_used: bool) -> Option<Timestamps> {
        if are_used {
            timestamps(self.options())
        } else {
            None
        }
    }
}

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = 20;
/// NOP, NOP, timestamps (RFC 7323, appendix A).
const TIMESTAMPS_LEN: usize = 12;
/// NOP, NOP, one block of SACK.
const SACK_LEN: usize = 12;
const CAPACITY: usize = IPV6_LEN + TCP_LEN + TIMESTAMPS_LEN + SACK_LEN;

/// Kinds of TCP options.
const END: u8 = 0;
const NOP: u8 = 1;
const SACK: u8 = 5;
const TIMESTAMPS: u8 = 8;
/// Lengths of options, including their kind and length: timestamps, and SACK with one block.
const TIMESTAMPS_OPTION_LEN: u8 = 10;
const SACK_OPTION_LEN: u8 = 10;

const TCP_FLAG_ACK: u8 = 0x10;
const IPPROTO_TCP: u8 = 6;

/// What distinguishes one bare ACK of a client from another. Numbers in host order.
#[derive(Clone, Copy)]
pub(crate) struct BareAck {
    /// SEG.SEQ: the client's initial sequence number plus one.
    pub(crate) seq: u32,
    /// SEG.ACK: the server's initial sequence number plus one.
    pub(crate) ack: u32,
    /// SEG.WND as it stands in the header: not scaled.
    pub(crate) window: u16,
    /// Its timestamps, if the connection uses them.
    pub(crate) timestamps: Option<Timestamps>,
    /// Whether it says that the SYN-ACK came twice (D-SACK, RFC 2883).
    pub(crate) has_dsack: bool,
    /// What IP says of it.
    pub(crate) arrival: accf_arrival,
    /// The flags AE, CWR and ECE, of which ECE is bit 0.
    pub(crate) ace: u8,
}

impl accf_arrival {
    /// Returns the flow label, in host order.
    fn flow_label(&self) -> u32 {
        (self.ip >> bindings::ACCF_FLOW_LABEL_SHIFT) as u32 & 0xf_ffff
    }

    /// Returns TTL, or hop limit.
    fn hop_limit(&self) -> u8 {
        (self.ip >> bindings::ACCF_HOP_LIMIT_SHIFT) as u8
    }

    /// Returns TOS, or traffic class.
    fn dsfield(&self) -> u8 {
        (self.ip >> bindings::ACCF_DSFIELD_SHIFT) as u8
    }
}

/// Returns the bytes of an IPv6 address, in network order.
fn in6_bytes(address: &bindings::in6_addr) -> [u8; 16] {
    // SAFETY: All three views of the union are 16 bytes without padding.
    unsafe { address.in6_u.u6_addr8 }
}

/// The timestamps of a segment (RFC 7323, section 3). Numbers in host order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timestamps {
    /// TSval.
    pub(crate) value: u32,
    /// TSecr.
    pub(crate) echo: u32,
}

/// Returns the timestamps among the options of a TCP header, as `tcp_parse_options()` finds them
/// where they are in use.
pub(crate) fn timestamps(mut options: &[u8]) -> Option<Timestamps> {
    let mut found = None;
    loop {
        options = match *options {
            [NOP, ref rest @ ..] => rest,
            [TIMESTAMPS, TIMESTAMPS_OPTION_LEN, a, b, c, d, e, f, g, h, ref rest @ ..] => {
                found = Some(Timestamps {
                    value: u32::from_be_bytes([a, b, c, d]),
                    echo: u32::from_be_bytes([e, f, g, h]),
                });
                rest
            }
            [END, ..] => return found,
            // The length includes the bytes of the kind and of the length itself.
            [_, len, ..] if len >= 2 => match options.get(usize::from(len)..) {
                Some(rest) => rest,
                None => return found,
            },
            _ => return found,
        };
    }
}

/// Returns whether the options of a TCP header contain one of SACK, with a block or more.
pub(crate) fn has_sack(mut options: &[u8]) -> bool {
    loop {
        options = match *options {
            [NOP, ref rest @ ..] => rest,
            [END, ..] => return false,
            [kind, len, ..] if len >= 2 => match options.get(usize::from(len)..) {
                Some(_) if kind == SACK && len >= SACK_OPTION_LEN => return true,
                Some(rest) => rest,
                None => return false,
            },
            _ => return false,
        };
    }
}

/// An IP packet with a bare ACK, which never goes over a wire.
pub(crate) struct AckPacket {
    bytes: [u8; CAPACITY],
    len: usize,
    network_len: usize,
}

impl AckPacket {
    /// Builds an IP packet with `ack` from client to server.
    ///
    /// Its checksums are zero: its `struct sk_buff` must say that they have been verified.
    pub(crate) fn new(ends: &accf_endpoints, ack: BareAck) -> Self {
        let mut packet = Self {
            bytes: [0; CAPACITY],
            len: 0,
            network_len: 0,
        };
        let mut options = 0;
        if ack.timestamps.is_some() {
            options += TIMESTAMPS_LEN;
        }
        if ack.has_dsack {
            options += SACK_LEN;
        }
        let segment_len = (TCP_LEN + options) as u16;
        let BareAck { arrival, ace, .. } = ack;
        let (hop_limit, dsfield) = (arrival.hop_limit(), arrival.dsfield());

        if i32::from(ends.family) == AF_INET {
            packet.put(&[0x45, dsfield]);
            packet.put(&(IPV4_LEN as u16 + segment_len).to_be_bytes());
            packet.put(&[0, 0, 0x40, 0, hop_limit, IPPROTO_TCP, 0, 0]);
            packet.put(&ends.client_v4.to_ne_bytes());
            packet.put(&ends.server_v4.to_ne_bytes());
        } else {
            let version = 6 << 28;
            let first = version | u32::from(dsfield) << 20 | arrival.flow_label();
            packet.put(&first.to_be_bytes());
            packet.put(&segment_len.to_be_bytes());
            packet.put(&[IPPROTO_TCP, hop_limit]);
            packet.put(&in6_bytes(&ends.client_v6));
            packet.put(&in6_bytes(&ends.server_v6));
        }
        packet.network_len = packet.len;

        packet.put(&ends.client_port.to_ne_bytes());
        packet.put(&ends.server_port.to_ne_bytes());
        packet.put(&ack.seq.to_be_bytes());
        packet.put(&ack.ack.to_be_bytes());
        // Before the flags stands AE, and its other two bits are their first.
        packet.put(&[
            (segment_len as u8 / 4) << 4 | ace >> 2,
            ace << 6 | TCP_FLAG_ACK,
        ]);
        packet.put(&ack.window.to_be_bytes());
        packet.put(&[0, 0, 0, 0]);
        if let Some(timestamps) = ack.timestamps {
            packet.put(&[NOP, NOP, TIMESTAMPS, TIMESTAMPS_OPTION_LEN]);
            packet.put(&timestamps.value.to_be_bytes());
            packet.put(&timestamps.echo.to_be_bytes());
        }
        if ack.has_dsack {
            packet.put(&[NOP, NOP, SACK, SACK_OPTION_LEN]);
            packet.put(&ack.ack.wrapping_sub(1).to_be_bytes());
            packet.put(&ack.ack.to_be_bytes());
        }
        packet
    }

    /// Returns the whole packet, which begins with its IP header.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    /// Returns the length of the IP header in bytes.
    pub(crate) fn network_len(&self) -> usize {
        self.network_len
    }

    /// Appends `bytes`. The capacity is that of the longest packet, so nothing is ever left out.
    fn put(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        if let Some(space) = self.bytes.get_mut(self.len..end) {
            space.copy_from_slice(bytes);
            self.len = end;
        }
    }
}
