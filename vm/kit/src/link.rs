// SPDX-License-Identifier: MIT OR Apache-2.0

//! Interfaces and their addresses, told to the kernel directly.
//!
//! `ip` could do all of this, but to start a program costs an emulated machine more than everything else a test sets
//! up.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::{bail, Context, Result};
use netlink_packet_core::{
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL,
    NLM_F_REQUEST,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::netns::Netns;

/// The loopback interface is the first of every namespace.
const LOOPBACK: u32 = 1;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// One end of a cable to be laid.
pub(crate) struct End<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
}

/// A conversation with the kernel about the interfaces of one namespace.
pub(crate) struct Links {
    socket: Socket,
}

impl Links {
    /// Opens a conversation about a namespace.
    pub(crate) fn of(ns: &Netns) -> Result<Self> {
        ns.run(|| {
            let mut socket = Socket::new(NETLINK_ROUTE).context("netlink socket")?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(Self { socket })
        })
    }

    /// Lays a cable whose other end is in another namespace.
    pub(crate) fn add_veth(
        &self,
        near: &End<'_>,
        far: &End<'_>,
        far_ns: BorrowedFd<'_>,
    ) -> Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(far.name.to_owned()),
            LinkAttribute::Address(far.mac.to_vec()),
            LinkAttribute::NetNsFd(far_ns.as_raw_fd()),
        ];
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(near.name.to_owned()),
            LinkAttribute::Address(near.mac.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.tell(
            RouteNetlinkMessage::NewLink(link),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .with_context(|| format!("add a veth pair {} (CONFIG_VETH)", near.name))
    }

    /// Brings an interface up.
    pub(crate) fn up(&self, index: u32) -> Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.tell(RouteNetlinkMessage::SetLink(link), 0)
            .with_context(|| format!("bring interface {index} up"))
    }

    /// Makes room for that many packets that wait to leave.
    pub(crate) fn set_queue(&self, index: u32, packets: u32) -> Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![LinkAttribute::TxQueueLen(packets)];
        self.tell(RouteNetlinkMessage::SetLink(link), 0)
            .with_context(|| format!("give interface {index} a queue of {packets} packets"))
    }

    /// Brings the loopback interface up.
    pub(crate) fn loopback_up(&self) -> Result<()> {
        self.up(LOOPBACK)
    }

    /// Gives an interface an address of a network, to be used without asking whether somebody else has it.
    pub(crate) fn add_address(&self, index: u32, ip: IpAddr) -> Result<()> {
        let mut address = AddressMessage::default();
        address.header.index = index;
        (address.header.family, address.header.prefix_len) = match ip {
            IpAddr::V4(_) => (AddressFamily::Inet, 24),
            IpAddr::V6(_) => (AddressFamily::Inet6, 64),
        };
        address.attributes = vec![
            AddressAttribute::Local(ip),
            AddressAttribute::Address(ip),
            AddressAttribute::Flags(AddressFlags::Nodad),
        ];
        self.tell(
            RouteNetlinkMessage::NewAddress(address),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .with_context(|| format!("add the address {ip}"))
    }

    /// Tells an interface once and for all whose an address is.
    pub(crate) fn add_neighbour(&self, index: u32, ip: IpAddr, mac: Mac) -> Result<()> {
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.ifindex = index;
        neighbour.header.state = NeighbourState::Permanent;
        let (family, destination) = match ip {
            IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
            IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
        };
        neighbour.header.family = family;
        neighbour.attributes = vec![
            NeighbourAttribute::Destination(destination),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
        ];
        self.tell(RouteNetlinkMessage::NewNeighbour(neighbour), NLM_F_CREATE)
            .with_context(|| format!("add the neighbour {ip}"))
    }

    /// Sends a request and waits until the kernel has done it.
    fn tell(&self, request: RouteNetlinkMessage, flags: u16) -> Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let (answer, _) = self.socket.recv_from_full()?;
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)?.payload {
            NetlinkPayload::Error(error) => match error.code {
                None => Ok(()),
                Some(_) => Err(error.to_io().into()),
            },
            other => bail!("netlink answers {other:?}"),
        }
    }
}
