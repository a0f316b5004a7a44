// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads the packet captures of both ends of the path, and combines them to the segments of one
//! connection.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use accf_demo::UnixNanos;
use anyhow::{bail, Context, Result};
use bitflags::bitflags;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use pcap_file::pcap::PcapReader;
use pcap_file::DataLink;

/// An end of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum End {
    /// The end that calls `connect()`.
    Client,
    /// The end that calls `accept()`.
    Server,
}

impl End {
    /// Returns the end at the far side of the path.
    fn far(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

bitflags! {
    /// The flags of a TCP segment that the demo looks at.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub(crate) struct Flags: u8 {
        const SYN = 1;
        const FIN = 2;
        const RST = 4;
        const PSH = 8;
        const ACK = 16;
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter_names().map(|(name, _)| name).collect();
        f.write_str(&names.join("-"))
    }
}

/// A TCP segment in one capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tcp {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    pub(crate) flags: Flags,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) payload_len: usize,
    /// The IPv4 identification, which distinguishes a retransmission from the original.
    pub(crate) ip_id: u16,
}

impl Tcp {
    /// Returns whether this is a segment of the connection of these two ports.
    pub(crate) fn is_between(&self, client_port: u16, server_port: u16) -> bool {
        let ports = (self.source_port, self.destination_port);
        ports == (client_port, server_port) || ports == (server_port, client_port)
    }
}

/// A captured frame.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame {
    pub(crate) at: UnixNanos,
    pub(crate) bytes: Vec<u8>,
    pub(crate) original_len: u32,
    /// The TCP segment, if the frame has one.
    pub(crate) tcp: Option<Tcp>,
}

/// All frames captured at one end, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Capture {
    pub(crate) link: DataLink,
    pub(crate) frames: Vec<Frame>,
}

impl Capture {
    /// Reads a pcap file, with micro- or nanoseconds.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let file = File::open(path).with_context(|| format!("no packet capture at {shown}"))?;
        let mut reader = PcapReader::new(BufReader::new(file))
            .with_context(|| format!("{shown} is not a pcap file"))?;
        let link = reader.header().datalink;
        let mut frames = Vec::new();
        while let Some(packet) = reader.next_packet() {
            let packet = packet.with_context(|| format!("{shown}: packet {}", frames.len() + 1))?;
            let at = UnixNanos(u64::try_from(packet.timestamp.as_nanos())?);
            let bytes = packet.data.into_owned();
            let tcp = dissect(link, &bytes)?;
            frames.push(Frame {
                at,
                bytes,
                original_len: packet.orig_len,
                tcp,
            });
        }
        Ok(Self { link, frames })
    }
}

/// Finds the TCP segment in a frame; `None` for everything else, such as ARP and ICMP.
fn dissect(link: DataLink, bytes: &[u8]) -> Result<Option<Tcp>> {
    let sliced = match link {
        DataLink::ETHERNET => SlicedPacket::from_ethernet(bytes),
        DataLink::RAW | DataLink::IPV4 | DataLink::IPV6 => SlicedPacket::from_ip(bytes),
        other => bail!("captures of link type {other:?} are not understood"),
    };
    let Ok(sliced) = sliced else { return Ok(None) };
    let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else {
        return Ok(None);
    };
    let ip_id = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => ip.header().identification(),
        _ => 0,
    };
    let set = [
        (Flags::SYN, tcp.syn()),
        (Flags::FIN, tcp.fin()),
        (Flags::RST, tcp.rst()),
        (Flags::PSH, tcp.psh()),
        (Flags::ACK, tcp.ack()),
    ];
    let flags = set.iter().filter(|(_, on)| *on).map(|(flag, _)| *flag);
    Ok(Some(Tcp {
        source_port: tcp.source_port(),
        destination_port: tcp.destination_port(),
        flags: flags.collect(),
        seq: tcp.sequence_number(),
        ack: tcp.acknowledgment_number(),
        payload_len: tcp.payload().len(),
        ip_id,
    }))
}

/// A segment of one connection, seen at one end or at both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Segment {
    pub(crate) from: End,
    pub(crate) flags: Flags,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) payload_len: usize,
    /// When the segment passed the client's end.
    pub(crate) at_client: Option<UnixNanos>,
    /// When the segment passed the server's end.
    pub(crate) at_server: Option<UnixNanos>,
    /// Whether an earlier segment from the same end had the same sequence number and length.
    pub(crate) retransmission: bool,
}

impl Segment {
    /// Returns when the segment passed `end`.
    pub(crate) fn at(&self, end: End) -> Option<UnixNanos> {
        match end {
            End::Client => self.at_client,
            End::Server => self.at_server,
        }
    }

    /// Returns when the segment was sent; for a segment that only the far end saw, when it arrived.
    pub(crate) fn sent(&self) -> UnixNanos {
        let seen = self.at(self.from).or_else(|| self.arrived());
        seen.unwrap_or(UnixNanos(0))
    }

    /// Returns when the segment arrived, if it did.
    pub(crate) fn arrived(&self) -> Option<UnixNanos> {
        self.at(self.from.far())
    }

    /// Returns the kind of the segment in one word.
    pub(crate) fn name(&self) -> &'static str {
        match self.flags {
            flags if flags.contains(Flags::SYN | Flags::ACK) => "SYN-ACK",
            flags if flags.contains(Flags::SYN) => "SYN",
            flags if flags.contains(Flags::RST) => "RST",
            flags if flags.contains(Flags::FIN) => "FIN",
            _ if self.payload_len > 0 => "data",
            _ => "ACK",
        }
    }

    /// Returns whether this is a SYN-ACK, original or retransmitted.
    pub(crate) fn is_syn_ack(&self) -> bool {
        self.from == End::Server && self.flags.contains(Flags::SYN | Flags::ACK)
    }

    /// Returns whether this is an ACK without data and without other flags.
    pub(crate) fn is_bare_ack(&self) -> bool {
        self.flags.difference(Flags::PSH) == Flags::ACK && self.payload_len == 0
    }
}

/// Puts the two captures of one connection together, in the order of sending.
pub(crate) fn connection(
    client: &Capture,
    server: &Capture,
    client_port: u16,
    server_port: u16,
) -> Vec<Segment> {
    let of_connection = |capture: &Capture| -> Vec<(UnixNanos, Tcp)> {
        let ours = |tcp: &Tcp| tcp.is_between(client_port, server_port);
        let frames = capture.frames.iter();
        let segments = frames.filter_map(|frame| Some((frame.at, frame.tcp.filter(ours)?)));
        segments.collect()
    };
    // The path keeps the order: the k-th occurrence of a segment at one end is the k-th at the
    // other.
    let mut at_client: HashMap<Tcp, Vec<UnixNanos>> = HashMap::new();
    for (at, tcp) in of_connection(client).into_iter().rev() {
        at_client.entry(tcp).or_default().push(at);
    }
    let mut seen = Vec::new();
    for (at, tcp) in of_connection(server) {
        let other = at_client.get_mut(&tcp).and_then(Vec::pop);
        seen.push((tcp, other, Some(at)));
    }
    for (tcp, left) in at_client {
        seen.extend(left.into_iter().map(|at| (tcp, Some(at), None)));
    }

    let mut segments: Vec<Segment> = seen
        .into_iter()
        .map(|(tcp, at_client, at_server)| Segment {
            from: match tcp.source_port == client_port {
                true => End::Client,
                false => End::Server,
            },
            flags: tcp.flags,
            seq: tcp.seq,
            ack: tcp.ack,
            payload_len: tcp.payload_len,
            at_client,
            at_server,
            retransmission: false,
        })
        .collect();
    segments.sort_by_key(Segment::sent);
    for i in 0..segments.len() {
        let (earlier, this) = (&segments[..i], &segments[i]);
        let ends = |s: &Segment| s.flags & (Flags::SYN | Flags::FIN);
        let takes_room = !ends(this).is_empty() || this.payload_len > 0;
        let place = |s: &Segment| (s.from, s.seq, s.payload_len, ends(s));
        segments[i].retransmission =
            takes_room && earlier.iter().any(|other| place(other) == place(this));
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::sample::{sample, SYN_ACK};
    use crate::scratch::Scratch;

    #[test]
    fn a_file_reads_back_as_it_was_written() {
        let sample = sample();
        let directory = Scratch::new("demo-capture");
        sample.record(&directory.0);
        let path = directory.0.join(&sample.guest.server_capture);
        let read = Capture::read(&path);
        std::fs::write(&path, b"nonsense").unwrap();
        let nonsense = Capture::read(&path);
        // Not assert_eq: it would print every packet.
        assert!(read.unwrap() == sample.server);
        assert!(format!("{:#}", nonsense.unwrap_err()).contains("not a pcap file"));
    }

    #[test]
    fn flags_have_names() {
        assert_eq!(SYN_ACK.to_string(), "SYN-ACK");
        assert_eq!(Flags::default().to_string(), "");
    }
}
