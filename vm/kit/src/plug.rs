// SPDX-License-Identifier: MIT OR Apache-2.0

//! TUN and TAP interfaces, and what a packet has to look like to be written to them.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use anyhow::{ensure, Context, Result};
use etherparse::checksum::Sum16BitWords;
use etherparse::ip_number;
use nix::libc;

use crate::clock::Stamp;
use crate::link::Mac;
use crate::netns::Netns;
use crate::sys;

/// Where the clients are.
pub(crate) const CLIENT_MAC: Mac = [2, 0, 0, 0, 1, 1];
/// Where the server is.
pub(crate) const SERVER_MAC: Mac = [2, 0, 0, 0, 1, 2];

/// How the packets of clients get into the kernel, and what they look like there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plug {
    /// By a TUN interface: a packet is one piece, and has its checksums.
    Tun,
    /// The same with what a virtual machine leaves to its host (`IFF_VNET_HDR`): the checksum of a
    /// segment is not there yet, and more data than [`GSO_SIZE`] are a super-segment.
    TunOffloads,
    /// By a TAP interface: the same as an Ethernet frame.
    Tap,
    /// The same with what a virtual machine leaves to its host.
    TapOffloads,
    /// By a TAP interface whose frames come through NAPI and GRO, the data in pages of their own
    /// (`IFF_NAPI_FRAGS`).
    TapFrags,
}

/// How many bytes of a super-segment's data are meant to be one segment.
pub const GSO_SIZE: usize = 1000;

impl Plug {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Tun,
        Self::TunOffloads,
        Self::Tap,
        Self::TapOffloads,
        Self::TapFrags,
    ];

    fn is_tap(self) -> bool {
        matches!(self, Self::Tap | Self::TapOffloads | Self::TapFrags)
    }

    fn has_offloads(self) -> bool {
        matches!(self, Self::TunOffloads | Self::TapOffloads)
    }

    /// Returns the flags for `TUNSETIFF`.
    fn flags(self) -> i32 {
        let kind = if self.is_tap() {
            libc::IFF_TAP
        } else {
            libc::IFF_TUN
        };
        let extra = match self {
            Self::TunOffloads | Self::TapOffloads => libc::IFF_VNET_HDR,
            Self::TapFrags => libc::IFF_NAPI | libc::IFF_NAPI_FRAGS,
            Self::Tun | Self::Tap => 0,
        };
        kind | libc::IFF_NO_PI | extra
    }

    /// Returns how many bytes come before the IP header of what is read.
    fn prefix(self) -> usize {
        let offloads = if self.has_offloads() { VNET_HEADER } else { 0 };
        let frame = if self.is_tap() { ETHERNET } else { 0 };
        offloads + frame
    }

    /// Returns the pieces that a packet is written in.
    fn encode(self, packet: &[u8]) -> Result<Vec<Vec<u8>>> {
        /// Less than a page, so that a packet can have several.
        const PIECE: usize = 1500;
        let headers = TcpHeaders::of(packet);
        let mut frame = Vec::new();
        if self.is_tap() {
            frame.extend(SERVER_MAC);
            frame.extend(CLIENT_MAC);
            frame.extend(ether_type(packet).to_be_bytes());
        }
        let link = frame.len();
        frame.extend(packet);
        match (self, headers) {
            (Self::TapFrags, Some(headers)) => {
                let data = frame.split_off((link + headers.length).min(frame.len()));
                let pieces = data.chunks(PIECE).map(<[u8]>::to_vec);
                Ok(std::iter::once(frame).chain(pieces).collect())
            }
            (Self::TunOffloads | Self::TapOffloads, Some(headers)) => {
                headers.leave_checksum(frame.get_mut(link..).unwrap_or_default())?;
                Ok(vec![headers.vnet(link, packet)?, frame])
            }
            (Self::TunOffloads | Self::TapOffloads, None) => Ok(vec![vec![0; VNET_HEADER], frame]),
            _ => Ok(vec![frame]),
        }
    }
}

/// The length of a `struct virtio_net_hdr`, and of an Ethernet header.
const VNET_HEADER: usize = 10;
const ETHERNET: usize = 14;

fn ether_type(packet: &[u8]) -> u16 {
    match packet.first() {
        Some(first) if first >> 4 == 6 => libc::ETH_P_IPV6 as u16,
        _ => libc::ETH_P_IP as u16,
    }
}

/// Where the headers of a whole TCP segment are in its packet.
#[derive(Clone, Copy, Debug)]
struct TcpHeaders {
    is_ipv4: bool,
    /// The length of the IP header.
    ip: usize,
    /// The length of both.
    length: usize,
}

impl TcpHeaders {
    /// Returns nothing for a packet that is no TCP segment, or only a part of one.
    fn of(packet: &[u8]) -> Option<Self> {
        /// All of the field but "don't fragment".
        const FRAGMENT: u16 = 0xbfff;
        let is_ipv4 = packet.first()? >> 4 == 4;
        let (ip, protocol) = if is_ipv4 {
            let fragment = u16::from_be_bytes(packet.get(6..8)?.try_into().ok()?);
            if fragment & FRAGMENT != 0 {
                return None;
            }
            (usize::from(packet.first()? & 0xf) * 4, *packet.get(9)?)
        } else {
            (40, *packet.get(6)?)
        };
        if protocol != ip_number::TCP.0 {
            return None;
        }
        let tcp = usize::from(packet.get(ip + 12)? >> 4) * 4;
        let length = ip + tcp;
        (tcp >= 20 && length <= packet.len()).then_some(Self {
            is_ipv4,
            ip,
            length,
        })
    }

    /// Leaves only the sum of the pseudo-header where the checksum is to be.
    fn leave_checksum(self, packet: &mut [u8]) -> Result<()> {
        let addresses = if self.is_ipv4 { 12..20 } else { 8..40 };
        let addresses = packet
            .get(addresses)
            .context("a packet without addresses")?;
        let length = u32::try_from(packet.len().saturating_sub(self.ip))?;
        let sum = Sum16BitWords::new()
            .add_slice(addresses)
            .add_2bytes([0, ip_number::TCP.0])
            .add_slice(&length.to_be_bytes());
        let sum = (!sum.ones_complement()).to_be();
        packet
            .get_mut(self.ip + 16..self.ip + 18)
            .context("a TCP header without a checksum")?
            .copy_from_slice(&sum.to_be_bytes());
        Ok(())
    }

    /// Returns the `struct virtio_net_hdr` of a packet behind a link header of this length.
    fn vnet(self, link: usize, packet: &[u8]) -> Result<Vec<u8>> {
        const NEEDS_CHECKSUM: u8 = 1;
        const CHECKSUM_OFFSET: u16 = 16;
        let gso_type = match (packet.len() - self.length > GSO_SIZE, self.is_ipv4) {
            (false, _) => 0,
            (true, true) => 1,
            (true, false) => 4,
        };
        let gso_size = if gso_type == 0 { 0 } else { GSO_SIZE };
        let mut header = vec![NEEDS_CHECKSUM, gso_type];
        for field in [link + self.length, gso_size, link + self.ip] {
            header.extend(u16::try_from(field)?.to_ne_bytes());
        }
        header.extend(CHECKSUM_OFFSET.to_ne_bytes());
        Ok(header)
    }
}

/// The clients' side of a TUN or TAP interface.
#[derive(Debug)]
pub(crate) struct Port {
    file: File,
    plug: Plug,
}

impl Port {
    /// Makes an interface in the calling thread's namespace; it is down.
    fn open_here(interface: &str, plug: Plug) -> Result<Self> {
        let file = open().context("/dev/net/tun (CONFIG_TUN)")?;
        sys::tun_attach(file.as_fd(), interface, plug.flags()).context("TUNSETIFF")?;
        if plug.has_offloads() {
            let takes = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
            sys::tun_offloads(file.as_fd(), takes).context("TUNSETOFFLOAD")?;
        }
        Ok(Self { file, plug })
    }

    /// Makes an interface in a namespace; it is down, and has no addresses.
    pub(crate) fn open(ns: &Netns, interface: &str, plug: Plug) -> Result<Self> {
        let port = ns.run(|| Self::open_here(interface, plug))?;
        if plug.is_tap() {
            let index = ns.interface_index(interface)?;
            ns.links()?.set_mac(index, SERVER_MAC)?;
        }
        Ok(port)
    }

    /// Returns whether the interface carries Ethernet frames.
    pub(crate) fn is_tap(&self) -> bool {
        self.plug.is_tap()
    }

    /// Writes a packet, from its IP header on; returns when.
    pub(crate) fn write(&self, packet: &[u8]) -> Result<Stamp> {
        let pieces = self.plug.encode(packet)?;
        let slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let at = Stamp::now();
        // A write to the interface is taken as a whole or not at all.
        let length = (&self.file)
            .write_vectored(&slices)
            .context("write to a TUN or TAP interface")?;
        let whole: usize = pieces.iter().map(Vec::len).sum();
        ensure!(length == whole, "a TUN or TAP interface took half a packet");
        Ok(at)
    }

    /// Reads a packet into `buffer`, and returns it from its IP header on; nothing, if there is
    /// none.
    pub(crate) fn read<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
        match (&self.file).read(buffer) {
            Ok(length) => Ok(buffer.get(self.plug.prefix()..length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("read from a TUN or TAP interface"),
        }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Plugs a TUN interface into a server's namespace, with the server's addresses and a queue of this
/// length for what the server sends.
pub(crate) fn plug_tun(
    ns: &Netns,
    interface: &str,
    queue: u32,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
) -> Result<File> {
    let port = ns.run(|| Port::open_here(interface, Plug::Tun))?;
    let links = ns.links()?;
    let index = ns.interface_index(interface)?;
    links.set_queue(index, queue)?;
    links.add_address(index, v4.into())?;
    links.add_address(index, v6.into())?;
    links.up(index)?;
    Ok(port.file)
}

fn open() -> io::Result<File> {
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
    };
    open().or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            return Err(error);
        }
        // Without udev the node does not exist before the module is loaded.
        Command::new("modprobe").arg("tun").status()?;
        open()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{tests::folded, Flags, Segment};

    fn packet(from: &str, to: &str, length: usize) -> Vec<u8> {
        let segment = Segment {
            payload: vec![7; length],
            ..Segment::new(from.parse().unwrap(), to.parse().unwrap(), Flags::PSH_ACK)
        };
        segment.build().unwrap()
    }

    fn v4(length: usize) -> Vec<u8> {
        packet("192.0.2.1:1", "192.0.2.2:2", length)
    }

    fn v6(length: usize) -> Vec<u8> {
        packet("[2001:db8::1]:1", "[2001:db8::2]:2", length)
    }

    #[test]
    fn all_but_offloads_leave_a_packet_as_it_is() {
        for packet in [v4(4000), v6(4000), v4(0), vec![0x45], Vec::new()] {
            assert_eq!(Plug::Tun.encode(&packet).unwrap().concat(), packet);
            for plug in [Plug::Tap, Plug::TapFrags] {
                let frame = plug.encode(&packet).unwrap().concat();
                assert_eq!(frame[plug.prefix()..], packet);
            }
        }
        let pieces = Plug::TapFrags.encode(&v4(4000)).unwrap();
        let lengths: Vec<_> = pieces.iter().map(Vec::len).collect();
        assert_eq!(lengths, [14 + 40, 1500, 1500, 1000]);
    }

    #[test]
    fn a_super_segment_says_where_its_checksum_is_to_be() {
        for (packet, ip, gso_type) in [(v4(3000), 20, 1), (v6(3000), 40, 4)] {
            let [header, frame] = &Plug::TapOffloads.encode(&packet).unwrap()[..] else {
                panic!("not two pieces");
            };
            let fields: Vec<_> = header[2..]
                .chunks(2)
                .map(|field| u16::from_ne_bytes(field.try_into().unwrap()))
                .collect();
            assert_eq!(header[..2], [1, gso_type]);
            assert_eq!(fields, [14 + ip + 20, 1000, 14 + ip, 16]);
            // Completed, the checksum is that of the packet.
            let tcp = 14 + usize::from(ip);
            let checksum = folded(&frame[tcp..]);
            assert_eq!(checksum.to_be_bytes(), packet[tcp + 2..tcp + 4]);
        }
    }

    #[test]
    fn what_is_no_segment_has_no_offloads() {
        let mut fragment = v4(100);
        fragment[6] |= 0x20;
        let mut cut = v4(100);
        cut.truncate(30);
        for packet in [fragment, cut, vec![0x60; 3], Vec::new()] {
            let pieces = Plug::TunOffloads.encode(&packet).unwrap();
            assert_eq!(pieces, [vec![0; VNET_HEADER], packet]);
        }
        // "Don't fragment" is no fragment.
        let mut whole = v4(0);
        whole[6] |= 0x40;
        let pieces = Plug::TunOffloads.encode(&whole).unwrap();
        assert_eq!(pieces[0][..2], [1, 0]);
    }
}
