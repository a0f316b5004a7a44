// SPDX-License-Identifier: MIT OR Apache-2.0

//! TCP segments: read from the wire, and built for it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use anyhow::{bail, Context, Result};
use etherparse::{
    ip_number, Ipv4Header, Ipv6Header, LaxNetSlice, LaxSlicedPacket, TcpHeader, TcpOptionElement,
    TransportSlice,
};
use md5::{Digest, Md5};

/// The control bits of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Flags {
    pub syn: bool,
    pub ack: bool,
    pub fin: bool,
    pub rst: bool,
    pub psh: bool,
    pub urg: bool,
}

impl Flags {
    const NONE: Self = Self {
        syn: false,
        ack: false,
        fin: false,
        rst: false,
        psh: false,
        urg: false,
    };
    /// The first segment of a handshake.
    pub const SYN: Self = Self {
        syn: true,
        ..Self::NONE
    };
    /// The second.
    pub const SYN_ACK: Self = Self {
        ack: true,
        ..Self::SYN
    };
    /// An acknowledgement.
    pub const ACK: Self = Self {
        ack: true,
        ..Self::NONE
    };
    /// Data, as senders mark the last segment of a write.
    pub const PSH_ACK: Self = Self {
        psh: true,
        ..Self::ACK
    };
    /// The end of the stream.
    pub const FIN_ACK: Self = Self {
        fin: true,
        ..Self::ACK
    };
    /// A reset that acknowledges nothing.
    pub const RST: Self = Self {
        rst: true,
        ..Self::NONE
    };
    /// A reset with an acknowledgement.
    pub const RST_ACK: Self = Self {
        rst: true,
        ..Self::ACK
    };
}

impl fmt::Display for Flags {
    /// The letters of `tcpdump`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = [
            (self.syn, 'S'),
            (self.fin, 'F'),
            (self.rst, 'R'),
            (self.psh, 'P'),
            (self.urg, 'U'),
            (self.ack, '.'),
        ];
        letters
            .iter()
            .filter(|(set, _)| *set)
            .try_for_each(|(_, letter)| write!(f, "{letter}"))
    }
}

/// The timestamp option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timestamps {
    /// The sender's clock, in a unit of its own.
    pub value: u32,
    /// The last value received from the other side.
    pub echo: u32,
}

/// One TCP segment with its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The sender's address and port.
    pub source: SocketAddr,
    /// The receiver's address and port.
    pub destination: SocketAddr,
    /// The sequence number of the first byte, or of the SYN.
    pub seq: u32,
    /// The next sequence number expected from the other side.
    pub ack: u32,
    /// The control bits.
    pub flags: Flags,
    /// The window, as announced: not scaled.
    pub window: u16,
    /// The urgent pointer.
    pub urgent: u16,
    /// The maximum segment size option.
    pub mss: Option<u16>,
    /// The window scale option.
    pub window_scale: Option<u8>,
    /// Whether the "SACK permitted" option is there.
    pub sack_permitted: bool,
    /// The timestamp option.
    pub timestamps: Option<Timestamps>,
    /// The data.
    pub payload: Vec<u8>,
}

impl Segment {
    /// Makes a segment without options and data.
    pub fn new(source: SocketAddr, destination: SocketAddr, flags: Flags) -> Self {
        Self {
            source,
            destination,
            seq: 0,
            ack: 0,
            flags,
            window: u16::MAX,
            urgent: 0,
            mss: None,
            window_scale: None,
            sack_permitted: false,
            timestamps: None,
            payload: Vec::new(),
        }
    }

    /// Reads a packet that begins with its IP header; nothing, if it carries no TCP.
    ///
    /// A packet cut short by the capture is read as far as it goes.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let sliced = LaxSlicedPacket::from_ip(packet).ok()?;
        let (source, destination): (IpAddr, IpAddr) = match sliced.net.as_ref()? {
            LaxNetSlice::Ipv4(ip) => (
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
            ),
            LaxNetSlice::Ipv6(ip) => (
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
            ),
            LaxNetSlice::Arp(_) => return None,
        };
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
            return None;
        };
        let mut segment = Self {
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            window: tcp.window_size(),
            urgent: tcp.urgent_pointer(),
            payload: tcp.payload().to_vec(),
            ..Self::new(
                SocketAddr::new(source, tcp.source_port()),
                SocketAddr::new(destination, tcp.destination_port()),
                Flags {
                    syn: tcp.syn(),
                    ack: tcp.ack(),
                    fin: tcp.fin(),
                    rst: tcp.rst(),
                    psh: tcp.psh(),
                    urg: tcp.urg(),
                },
            )
        };
        // An option that cannot be read ends the list: what was read before it holds.
        for option in tcp.options_iterator().map_while(Result::ok) {
            match option {
                TcpOptionElement::MaximumSegmentSize(size) => segment.mss = Some(size),
                TcpOptionElement::WindowScale(shift) => segment.window_scale = Some(shift),
                TcpOptionElement::SelectiveAcknowledgementPermitted => {
                    segment.sack_permitted = true;
                }
                TcpOptionElement::Timestamp(value, echo) => {
                    segment.timestamps = Some(Timestamps { value, echo });
                }
                TcpOptionElement::SelectiveAcknowledgement(..) | TcpOptionElement::Noop => {}
            }
        }
        Some(segment)
    }

    /// Builds the packet, from the IP header on, with all its checksums.
    pub fn build(&self) -> Result<Vec<u8>> {
        self.build_signed(None)
    }

    /// The same, signed with a key by TCP-MD5 (RFC 2385), if there is one.
    pub fn build_signed(&self, key: Option<&[u8]>) -> Result<Vec<u8>> {
        let mut tcp = TcpHeader::new(
            self.source.port(),
            self.destination.port(),
            self.seq,
            self.window,
        );
        tcp.acknowledgment_number = self.ack;
        tcp.syn = self.flags.syn;
        tcp.ack = self.flags.ack;
        tcp.fin = self.flags.fin;
        tcp.rst = self.flags.rst;
        tcp.psh = self.flags.psh;
        tcp.urg = self.flags.urg;
        tcp.urgent_pointer = self.urgent;
        tcp.set_options(&self.options())?;
        if let Some(key) = key {
            self.sign(&mut tcp, key)?;
        }
        let mut packet = Vec::new();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let length = u16::try_from(tcp.header_len() + self.payload.len())?;
                let mut ip = Ipv4Header::new(
                    length,
                    64,
                    ip_number::TCP,
                    source.octets(),
                    destination.octets(),
                )?;
                ip.header_checksum = ip.calc_header_checksum();
                tcp.checksum = tcp.calc_checksum_ipv4(&ip, &self.payload)?;
                ip.write(&mut packet)?;
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut ip = Ipv6Header {
                    next_header: ip_number::TCP,
                    hop_limit: 64,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                ip.set_payload_length(tcp.header_len() + self.payload.len())?;
                tcp.checksum = tcp.calc_checksum_ipv6(&ip, &self.payload)?;
                ip.write(&mut packet)?;
            }
            (source, destination) => bail!("no packet goes from {source} to {destination}"),
        }
        tcp.write(&mut packet).context("TCP header")?;
        packet.extend_from_slice(&self.payload);
        Ok(packet)
    }

    /// Puts the signature before the other options: behind them is the end of the list.
    fn sign(&self, tcp: &mut TcpHeader, key: &[u8]) -> Result<()> {
        const OPTION: [u8; 4] = [1, 1, 19, 18];
        const BARE_HEADER: usize = 20;
        let others = tcp.options.as_slice().to_vec();
        let with = |signature: &[u8]| [&OPTION, signature, &others].concat();
        tcp.set_options_raw(&with(&[0; 16]))?;
        let length = tcp.header_len() + self.payload.len();
        let mut md5 = Md5::new();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                md5.update(source.octets());
                md5.update(destination.octets());
                md5.update([0, ip_number::TCP.0]);
                md5.update(u16::try_from(length)?.to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                md5.update(source.octets());
                md5.update(destination.octets());
                md5.update(u32::try_from(length)?.to_be_bytes());
                md5.update(u32::from(ip_number::TCP.0).to_be_bytes());
            }
            (source, destination) => bail!("no packet goes from {source} to {destination}"),
        }
        // The checksum is not there yet, as it should be.
        md5.update(tcp.to_bytes().get(..BARE_HEADER).unwrap_or_default());
        md5.update(&self.payload);
        md5.update(key);
        tcp.set_options_raw(&with(&md5.finalize()))?;
        Ok(())
    }

    fn options(&self) -> Vec<TcpOptionElement> {
        let mut options = Vec::new();
        options.extend(self.mss.map(TcpOptionElement::MaximumSegmentSize));
        if self.sack_permitted {
            options.push(TcpOptionElement::SelectiveAcknowledgementPermitted);
        }
        options.extend(
            self.timestamps
                .map(|Timestamps { value, echo }| TcpOptionElement::Timestamp(value, echo)),
        );
        options.extend(self.window_scale.map(TcpOptionElement::WindowScale));
        options
    }

    /// Returns the sequence number after this segment: what its acknowledgement says.
    pub fn end_seq(&self) -> u32 {
        let mut length = self.payload.len() as u32;
        length += u32::from(self.flags.syn) + u32::from(self.flags.fin);
        self.seq.wrapping_add(length)
    }

    /// Returns whether this is a client's first segment.
    pub fn is_syn(&self) -> bool {
        self.flags.syn && !self.flags.ack
    }

    /// Returns whether this is a server's answer to a SYN.
    pub fn is_syn_ack(&self) -> bool {
        self.flags.syn && self.flags.ack
    }

    /// Returns whether this is an acknowledgement and nothing else.
    pub fn is_bare_ack(&self) -> bool {
        self.flags == Flags::ACK && self.payload.is_empty()
    }

    /// Returns whether this is a reset.
    pub fn is_rst(&self) -> bool {
        self.flags.rst
    }

    /// Returns whether this ends the stream.
    pub fn is_fin(&self) -> bool {
        self.flags.fin
    }

    /// Returns whether this carries data.
    pub fn has_data(&self) -> bool {
        !self.payload.is_empty()
    }

    /// Returns whether one of the two ports is `port`.
    pub fn touches(&self, port: u16) -> bool {
        self.source.port() == port || self.destination.port() == port
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} > {} [{}] seq {} ack {} len {}",
            self.source,
            self.destination,
            self.flags,
            self.seq,
            self.ack,
            self.payload.len()
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn full(source: &str, destination: &str) -> Segment {
        Segment {
            seq: 0xffff_fffe,
            ack: 7,
            window: 1234,
            urgent: 3,
            mss: Some(1400),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps: Some(Timestamps { value: 1, echo: 2 }),
            payload: b"hello".to_vec(),
            ..Segment::new(
                source.parse().unwrap(),
                destination.parse().unwrap(),
                Flags {
                    syn: true,
                    urg: true,
                    ..Flags::PSH_ACK
                },
            )
        }
    }

    #[test]
    fn what_is_built_is_read_back() {
        for segment in [
            full("192.0.2.1:1000", "192.0.2.2:80"),
            full("[2001:db8::1]:1000", "[2001:db8::2]:80"),
            Segment::new(
                "1.2.3.4:5".parse().unwrap(),
                "5.6.7.8:9".parse().unwrap(),
                Flags::RST,
            ),
        ] {
            assert_eq!(Segment::parse(&segment.build().unwrap()), Some(segment));
        }
    }

    /// Returns the one's complement sum of words: zero, for a correct packet.
    pub(crate) fn folded(words: &[u8]) -> u16 {
        let mut sum: u32 = words
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn checksums_are_right() {
        let packet = full("192.0.2.1:1000", "192.0.2.2:80").build().unwrap();
        assert_eq!(folded(&packet[..20]), 0);
        let tcp = &packet[20..];
        let mut pseudo = packet[12..20].to_vec();
        pseudo.extend([0, 6, 0, tcp.len() as u8]);
        pseudo.extend(tcp);
        assert_eq!(folded(&pseudo), 0);

        let packet = full("[2001:db8::1]:1000", "[2001:db8::2]:80")
            .build()
            .unwrap();
        let tcp = &packet[40..];
        let mut pseudo = packet[8..40].to_vec();
        pseudo.extend([0, 0, 0, tcp.len() as u8, 0, 0, 0, 6]);
        pseudo.extend(tcp);
        assert_eq!(folded(&pseudo), 0);
    }

    #[test]
    fn the_end_of_a_segment_counts_syn_and_fin_and_wraps() {
        let mut segment = full("192.0.2.1:1000", "192.0.2.2:80");
        assert_eq!(segment.end_seq(), 4);
        segment.flags.fin = true;
        assert_eq!(segment.end_seq(), 5);
    }

    #[test]
    fn kinds_of_segments() {
        let of = |flags| {
            Segment::new(
                "1.2.3.4:5".parse().unwrap(),
                "5.6.7.8:9".parse().unwrap(),
                flags,
            )
        };
        assert!(of(Flags::SYN).is_syn() && !of(Flags::SYN).is_syn_ack());
        assert!(of(Flags::SYN_ACK).is_syn_ack() && !of(Flags::SYN_ACK).is_syn());
        assert!(of(Flags::ACK).is_bare_ack());
        assert!(!of(Flags::FIN_ACK).is_bare_ack());
        let mut data = of(Flags::ACK);
        data.payload = vec![1];
        assert!(!data.is_bare_ack());
        assert!(data.touches(5) && data.touches(9) && !data.touches(6));
        assert_eq!(Flags::SYN_ACK.to_string(), "S.");
    }

    proptest::proptest! {
        /// Whatever bytes come, reading them ends, and what was read can be built and read again.
        #[test]
        fn any_bytes_may_come(
            v6 in proptest::bool::ANY,
            cut in 0_usize..120,
            changes in proptest::collection::vec((0_usize..100, proptest::num::u8::ANY), 0..8),
        ) {
            let segment = if v6 {
                full("[2001:db8::1]:1000", "[2001:db8::2]:80")
            } else {
                full("192.0.2.1:1000", "192.0.2.2:80")
            };
            let mut packet = segment.build().unwrap();
            for (at, byte) in changes {
                if let Some(to) = packet.get_mut(at) {
                    *to = byte;
                }
            }
            packet.truncate(packet.len().saturating_sub(cut));
            if let Some(read) = Segment::parse(&packet) {
                let again = Segment::parse(&read.build().unwrap());
                proptest::prop_assert_eq!(again, Some(read));
            }
        }
    }

    #[test]
    fn other_traffic_is_not_tcp() {
        assert_eq!(Segment::parse(&[]), None);
        assert_eq!(Segment::parse(&[0x45; 10]), None);
        let mut packet = full("192.0.2.1:1000", "192.0.2.2:80").build().unwrap();
        packet[9] = 17;
        assert_eq!(Segment::parse(&packet), None);
    }
}
