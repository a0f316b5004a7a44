// SPDX-License-Identifier: MIT OR Apache-2.0

//! Packets that no stack would send: options that are cut short, lengths that are not true, wrong
//! checksums, fragments.

use std::net::IpAddr;

use anyhow::{bail, ensure, Context, Result};
use etherparse::checksum::Sum16BitWords;
use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{ip_number, Icmpv4Type, Icmpv6Type, PacketBuilder};

use crate::segment::Segment;

/// How long the options of a TCP header can be.
pub const MAX_OPTIONS: usize = 40;

/// Builds an ICMP error about a segment, as the router next to its destination sends it.
pub fn unreachable(segment: &Segment) -> Result<Vec<u8>> {
    let original = segment.build()?;
    let mut packet = Vec::new();
    match (segment.destination.ip(), segment.source.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let host = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host);
            let builder = PacketBuilder::ipv4(from.octets(), to.octets(), 64);
            builder.icmpv4(host).write(&mut packet, &original)?;
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let port = Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port);
            let builder = PacketBuilder::ipv6(from.octets(), to.octets(), 64);
            builder.icmpv6(port).write(&mut packet, &original)?;
        }
        (from, to) => bail!("no packet goes from {from} to {to}"),
    }
    Ok(packet)
}

/// A segment, and what is odd about the packet that carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forged {
    /// Its addresses, numbers, flags and data.
    pub segment: Segment,
    /// The bytes of the options, instead of the segment's; zeros fill them up to a multiple of
    /// four.
    pub options: Option<Vec<u8>>,
    /// The length of the header in words of four bytes, if it is not to be the true one; 0 to 15.
    pub data_offset: Option<u8>,
    /// The four bits behind the data offset: three reserved ones, and that of accurate ECN.
    pub reserved: u8,
    /// The congestion bits: CWR and ECE.
    pub congestion: (bool, bool),
    /// TOS, or traffic class.
    pub dsfield: u8,
    /// TTL, or hop limit.
    pub hop_limit: u8,
    /// The flow label of IPv6, 20 bits.
    pub flow_label: u32,
    /// What is added to the right checksum.
    pub checksum_off_by: u16,
    /// What the packet looks like.
    pub envelope: Envelope,
}

/// What is around a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Envelope {
    /// A header.
    Plain,
    /// A header with options of IPv4, at most 40 bytes; of IPv6, an extension header of a kind,
    /// with this in it.
    Extended(u8, Vec<u8>),
    /// Fragments of this many bytes, a multiple of eight, the last one first or last.
    Fragments {
        /// How many bytes each has.
        size: u16,
        /// Whether the last one is sent first.
        backwards: bool,
    },
    /// A header whose length is right, but the packet ends this many bytes sooner.
    Cut(u16),
    /// A header that claims this many bytes more than there are; or fewer.
    Claims(i16),
}

impl From<Segment> for Forged {
    /// Returns what the segment is without anything odd.
    fn from(segment: Segment) -> Self {
        Self {
            segment,
            options: None,
            data_offset: None,
            reserved: 0,
            congestion: (false, false),
            dsfield: 0,
            hop_limit: 64,
            flow_label: 0,
            checksum_off_by: 0,
            envelope: Envelope::Plain,
        }
    }
}

impl Forged {
    /// Sets AE, CWR and ECE, as a number of which ECE is the lowest bit.
    pub fn set_ace(&mut self, ace: u8) {
        self.reserved = self.reserved & !1 | ace >> 2 & 1;
        self.congestion = (ace & 2 != 0, ace & 1 != 0);
    }

    /// Returns the packets, from their IP headers on, in the order in which they are to be sent.
    pub fn packets(&self) -> Result<Vec<Vec<u8>>> {
        let tcp = self.tcp()?;
        let whole = |extra: &[u8], kind: u8| self.packet(&tcp, extra, kind, None, 0);
        Ok(match &self.envelope {
            Envelope::Plain => vec![whole(&[], 0)?],
            Envelope::Extended(kind, bytes) => vec![whole(bytes, *kind)?],
            Envelope::Claims(more) => vec![self.packet(&tcp, &[], 0, None, *more)?],
            Envelope::Cut(bytes) => {
                let mut packet = whole(&[], 0)?;
                let left = packet.len().saturating_sub((*bytes).into()).max(1);
                packet.truncate(left);
                vec![packet]
            }
            Envelope::Fragments { size, backwards } => {
                ensure!(
                    size % 8 == 0 && *size > 0,
                    "fragments of {size} bytes there are none"
                );
                let count = tcp.len().div_ceil((*size).into());
                let mut fragments: Vec<Vec<u8>> = tcp
                    .chunks((*size).into())
                    .enumerate()
                    .map(|(nth, part)| {
                        let offset = u16::try_from(nth)? * (size / 8);
                        self.packet(part, &[], 0, Some((offset, nth + 1 < count)), 0)
                    })
                    .collect::<Result<_>>()?;
                if *backwards {
                    fragments.reverse();
                }
                fragments
            }
        })
    }

    /// Returns the segment with its header and checksum.
    fn tcp(&self) -> Result<Vec<u8>> {
        let mut plain = self.segment.clone();
        plain.payload = Vec::new();
        let header = plain.build()?;
        let ip_header = if self.segment.source.is_ipv4() {
            20
        } else {
            40
        };
        let mut tcp = header.get(ip_header..).unwrap_or_default().to_vec();
        if let Some(options) = &self.options {
            ensure!(
                options.len() <= MAX_OPTIONS,
                "{} bytes of options",
                options.len()
            );
            tcp.truncate(20);
            tcp.extend(options);
            tcp.resize(tcp.len().next_multiple_of(4), 0);
        }
        let words = u8::try_from(tcp.len() / 4)?;
        let (cwr, ece) = self.congestion;
        let [_, _, _, _, _, _, _, _, _, _, _, _, offset, flags, _, _, sum, sum_low, ..] =
            tcp.as_mut_slice()
        else {
            bail!("a TCP header of {} bytes", tcp.len());
        };
        *offset = self.data_offset.unwrap_or(words) << 4 | (self.reserved & 0xf);
        *flags |= u8::from(cwr) << 7 | u8::from(ece) << 6;
        (*sum, *sum_low) = (0, 0);
        tcp.extend(&self.segment.payload);
        let checksum = self.checksum(&tcp)?.wrapping_add(self.checksum_off_by);
        tcp.get_mut(16..18)
            .context("a TCP header without a checksum")?
            .copy_from_slice(&checksum.to_be_bytes());
        Ok(tcp)
    }

    fn checksum(&self, tcp: &[u8]) -> Result<u16> {
        let length = u32::try_from(tcp.len())?.to_be_bytes();
        let sum = Sum16BitWords::new();
        let sum = match (self.segment.source.ip(), self.segment.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => sum
                .add_slice(&source.octets())
                .add_slice(&destination.octets()),
            (IpAddr::V6(source), IpAddr::V6(destination)) => sum
                .add_slice(&source.octets())
                .add_slice(&destination.octets()),
            (source, destination) => bail!("no packet goes from {source} to {destination}"),
        };
        let sum = sum.add_slice(&length).add_2bytes([0, ip_number::TCP.0]);
        Ok(sum.add_slice(tcp).ones_complement().to_be())
    }

    /// Returns a packet with `part` of the segment, at an offset in words of eight bytes and with
    /// more to come if it is a fragment.
    fn packet(
        &self,
        part: &[u8],
        extra: &[u8],
        kind: u8,
        fragment: Option<(u16, bool)>,
        claims: i16,
    ) -> Result<Vec<u8>> {
        let mut packet = Vec::new();
        let (offset, more) = fragment.unwrap_or_default();
        // What belongs together has the client's port as its number.
        let id = self.segment.source.port();
        match (self.segment.source.ip(), self.segment.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut options = extra.to_vec();
                options.resize(options.len().next_multiple_of(4), 0);
                ensure!(
                    options.len() <= 40,
                    "{} bytes of IPv4 options",
                    options.len()
                );
                let header = 20 + options.len();
                let length = u16::try_from(header + part.len())?.saturating_add_signed(claims);
                packet.extend([0x40 | u8::try_from(header / 4)?, self.dsfield]);
                packet.extend(length.to_be_bytes());
                packet.extend(id.to_be_bytes());
                packet.extend((offset | u16::from(more) << 13).to_be_bytes());
                packet.extend([self.hop_limit, ip_number::TCP.0, 0, 0]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet.extend(options);
                let sum = Sum16BitWords::new().add_slice(&packet);
                let sum = sum.ones_complement().to_be().to_be_bytes();
                packet
                    .get_mut(10..12)
                    .context("an IPv4 header without a checksum")?
                    .copy_from_slice(&sum);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut next = Vec::new();
                let mut first = ip_number::TCP.0;
                if !extra.is_empty() {
                    let words = (extra.len() + 2).div_ceil(8);
                    next.extend([first, u8::try_from(words - 1)?]);
                    next.extend(extra);
                    next.resize(words * 8, 0);
                    first = kind;
                }
                if fragment.is_some() {
                    next.extend([first, 0]);
                    next.extend((offset << 3 | u16::from(more)).to_be_bytes());
                    next.extend(u32::from(id).to_be_bytes());
                    first = ip_number::IPV6_FRAGMENTATION_HEADER.0;
                }
                let length = u16::try_from(next.len() + part.len())?.saturating_add_signed(claims);
                let first_word = 6 << 28 | u32::from(self.dsfield) << 20 | self.flow_label;
                packet.extend(first_word.to_be_bytes());
                packet.extend(length.to_be_bytes());
                packet.extend([first, self.hop_limit]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet.extend(next);
            }
            (source, destination) => bail!("no packet goes from {source} to {destination}"),
        }
        packet.extend(part);
        Ok(packet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{Flags, Timestamps};

    fn segments() -> [Segment; 2] {
        [
            ("192.0.2.1:1000", "192.0.2.2:80"),
            ("[2001:db8::1]:1000", "[2001:db8::2]:80"),
        ]
        .map(|(source, destination)| Segment {
            seq: 7,
            ack: 8,
            mss: Some(1400),
            timestamps: Some(Timestamps { value: 1, echo: 2 }),
            payload: b"hello, world: fragments".to_vec(),
            ..Segment::new(
                source.parse().unwrap(),
                destination.parse().unwrap(),
                Flags::PSH_ACK,
            )
        })
    }

    #[test]
    fn what_is_not_odd_is_as_segments_are() {
        for segment in segments() {
            let packets = Forged::from(segment.clone()).packets().unwrap();
            let mut built = segment.build().unwrap();
            if segment.source.is_ipv4() {
                // The number of a packet that is no fragment, the bit that says so, and the
                // checksum of both.
                for index in [4, 5, 6, 10, 11] {
                    built[index] = packets[0][index];
                }
            }
            assert_eq!(packets, [built]);
        }
    }

    #[test]
    fn an_ipv4_header_has_its_checksum() {
        let [segment, _] = segments();
        let mut forged = Forged::from(segment);
        forged.envelope = Envelope::Extended(0, vec![1, 1, 1]);
        let packet = &forged.packets().unwrap()[0];
        assert_eq!(packet[0], 0x46);
        let sum = Sum16BitWords::new().add_slice(&packet[..24]);
        assert_eq!(sum.ones_complement(), 0);
    }

    #[test]
    fn options_are_what_one_says() {
        for segment in segments() {
            let mut forged = Forged::from(segment.clone());
            forged.options = Some(vec![2, 4, 5, 0x78, 8]);
            let packet = &forged.packets().unwrap()[0];
            let parsed = Segment::parse(packet).unwrap();
            assert_eq!((parsed.mss, parsed.timestamps), (Some(1400), None));
            assert_eq!(parsed.payload, segment.payload);
            forged.data_offset = Some(5);
            let packet = &forged.packets().unwrap()[0];
            let parsed = Segment::parse(packet).unwrap();
            assert_eq!(parsed.payload.len(), segment.payload.len() + 8);
        }
    }

    #[test]
    fn fragments_are_the_whole() {
        for segment in segments() {
            let whole = Forged::from(segment.clone());
            let header = if segment.source.is_ipv4() { 20 } else { 40 };
            let tcp = whole.packets().unwrap()[0][header..].to_vec();
            for backwards in [false, true] {
                let mut forged = whole.clone();
                forged.envelope = Envelope::Fragments {
                    size: 16,
                    backwards,
                };
                let mut fragments = forged.packets().unwrap();
                assert_eq!(fragments.len(), tcp.len().div_ceil(16));
                if backwards {
                    fragments.reverse();
                }
                let skip = if segment.source.is_ipv4() { 20 } else { 48 };
                let parts: Vec<u8> = fragments.iter().flat_map(|f| f[skip..].to_vec()).collect();
                assert_eq!(parts, tcp);
            }
        }
    }

    #[test]
    fn bits_of_ip_and_ecn_are_where_they_belong() {
        for segment in segments() {
            let mut forged = Forged::from(segment.clone());
            forged.dsfield = 0x29;
            forged.hop_limit = 7;
            forged.flow_label = 0xa_bcde;
            forged.set_ace(0b101);
            let packet = &forged.packets().unwrap()[0];
            let tcp = if segment.source.is_ipv4() {
                assert_eq!((packet[1], packet[8]), (0x29, 7));
                20
            } else {
                assert_eq!(packet[..4], [0x62, 0x9a, 0xbc, 0xde]);
                assert_eq!(packet[7], 7);
                40
            };
            assert_eq!((packet[tcp + 12] & 0xf, packet[tcp + 13] >> 6), (1, 1));
            assert!(Segment::parse(packet).is_some());
        }
    }

    #[test]
    fn lengths_may_be_lies() {
        for segment in segments() {
            let mut forged = Forged::from(segment.clone());
            let right = forged.packets().unwrap()[0].len();
            forged.envelope = Envelope::Cut(5);
            assert_eq!(forged.packets().unwrap()[0].len(), right - 5);
            forged.envelope = Envelope::Claims(-3);
            let packet = &forged.packets().unwrap()[0];
            assert_eq!(packet.len(), right);
            let parsed = Segment::parse(packet).unwrap();
            assert_eq!(parsed.payload.len(), segment.payload.len() - 3);
        }
    }
}
