// SPDX-License-Identifier: GPL-2.0-only

//! The client's bare ACK, built again from what its request remembers.

use super::bindings::accf_endpoints;

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = 20;
/// NOP, NOP, timestamps (RFC 7323, appendix A).
const TIMESTAMPS_LEN: usize = 12;
const CAPACITY: usize = IPV6_LEN + TCP_LEN + TIMESTAMPS_LEN;

/// Kinds of options.
const END: u8 = 0;
const NOP: u8 = 1;
const TIMESTAMPS: u8 = 8;
/// Length of the option, with its kind and this length.
const TIMESTAMPS_OPTION_LEN: u8 = 10;

const TCP_FLAG_ACK: u8 = 0x10;
const IPPROTO_TCP: u8 = 6;
/// Any; it is only what a TCP of ours would see as the hop limit of its peer's packet.
const HOP_LIMIT: u8 = 64;

/// What distinguishes one bare ACK of a client from another. Numbers in host order.
#[derive(Clone, Copy)]
pub(crate) struct BareAck {
    /// SEG.SEQ: the client's initial sequence number plus one.
    pub(crate) seq: u32,
    /// SEG.ACK: ours plus one.
    pub(crate) ack: u32,
    /// SEG.WND as it stands in the header: not scaled.
    pub(crate) window: u16,
    /// Where the connection uses them.
    pub(crate) timestamps: Option<Timestamps>,
}

/// The timestamps of a segment (RFC 7323, section 3). Numbers in host order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timestamps {
    /// TSval.
    pub(crate) value: u32,
    /// TSecr.
    pub(crate) echo: u32,
}

/// The timestamps among the options of a TCP header, as `tcp_parse_options()` finds them where they are in use.
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
            // The length counts the two bytes before it.
            [_, len, ..] if len >= 2 => match options.get(usize::from(len)..) {
                Some(rest) => rest,
                None => return found,
            },
            _ => return found,
        };
    }
}

/// A packet that never goes over a wire.
pub(crate) struct Packet {
    bytes: [u8; CAPACITY],
    len: usize,
    network_len: usize,
}

impl Packet {
    /// An IP packet with `ack` from client to server.
    ///
    /// Its checksums are zero: whoever receives it must be told that they have been looked at.
    pub(crate) fn new(ends: &accf_endpoints, ack: BareAck) -> Self {
        let mut packet = Self {
            bytes: [0; CAPACITY],
            len: 0,
            network_len: 0,
        };
        let options = if ack.timestamps.is_some() {
            TIMESTAMPS_LEN
        } else {
            0
        };
        let segment_len = (TCP_LEN + options) as u16;

        if i32::from(ends.family) == super::request::AF_INET {
            packet.put(&[0x45, 0]);
            packet.put(&(IPV4_LEN as u16 + segment_len).to_be_bytes());
            packet.put(&[0, 0, 0x40, 0, HOP_LIMIT, IPPROTO_TCP, 0, 0]);
            packet.put(&ends.client_v4.to_ne_bytes());
            packet.put(&ends.server_v4.to_ne_bytes());
        } else {
            packet.put(&[0x60, 0, 0, 0]);
            packet.put(&segment_len.to_be_bytes());
            packet.put(&[IPPROTO_TCP, HOP_LIMIT]);
            packet.put(&super::request::in6_bytes(&ends.client_v6));
            packet.put(&super::request::in6_bytes(&ends.server_v6));
        }
        packet.network_len = packet.len;

        packet.put(&ends.client_port.to_ne_bytes());
        packet.put(&ends.server_port.to_ne_bytes());
        packet.put(&ack.seq.to_be_bytes());
        packet.put(&ack.ack.to_be_bytes());
        packet.put(&[(segment_len as u8 / 4) << 4, TCP_FLAG_ACK]);
        packet.put(&ack.window.to_be_bytes());
        packet.put(&[0, 0, 0, 0]);
        if let Some(timestamps) = ack.timestamps {
            packet.put(&[NOP, NOP, TIMESTAMPS, TIMESTAMPS_OPTION_LEN]);
            packet.put(&timestamps.value.to_be_bytes());
            packet.put(&timestamps.echo.to_be_bytes());
        }
        packet
    }

    /// The whole packet, from its IP header.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    /// Length of the IP header in bytes.
    pub(crate) fn network_len(&self) -> usize {
        self.network_len
    }

    /// Appends `bytes`. The capacity is that of the longest packet, so that nothing is ever left out.
    fn put(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        if let Some(space) = self.bytes.get_mut(self.len..end) {
            space.copy_from_slice(bytes);
            self.len = end;
        }
    }
}
