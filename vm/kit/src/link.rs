// SPDX-License-Identifier: MIT OR Apache-2.0

//! Interfaces and their addresses, by netlink.
//!
//! `ip` could do all of this, but to start a program costs an emulated machine more than everything
//! else a test sets up.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use anyhow::{bail, Context, Result};
use netlink_packet_core::{
    DefaultNla, Emitable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NLM_F_ACK, NLM_F_CREATE,
    NLM_F_ECHO, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcStats2};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// The loopback interface is the first of every namespace.
const LOOPBACK: u32 = 1;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// One end of a cable to be laid.
pub(crate) struct End<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
}

/// What becomes of the packets that leave an interface: the queueing discipline `netem`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Netem {
    /// How long each is delayed.
    pub(crate) delay: Duration,
    /// How many of a hundred are dropped instead.
    pub(crate) loss: u8,
    /// How many of a hundred are sent twice.
    pub(crate) duplicate: u8,
    /// How many of a hundred are not delayed, and overtake others.
    pub(crate) reorder: u8,
}

/// The attribute with a queueing discipline's settings, and those of netem's with the delay in
/// nanoseconds, and with how many packets overtake others.
const TCA_OPTIONS: u16 = 2;
const TCA_NETEM_REORDER: u16 = 3;
const TCA_NETEM_LATENCY64: u16 = 10;

impl Netem {
    /// How many packets it delays at most.
    const LIMIT: u32 = 100_000;

    /// Returns the settings as the kernel reads them: a `struct tc_netem_qopt`, and attributes.
    fn options(self) -> Result<Vec<u8>> {
        let nanos = i64::try_from(self.delay.as_nanos())?;
        let [loss, duplicate, reorder] = [self.loss, self.duplicate, self.reorder].map(probability);
        // Each packet may overtake others, if any may.
        let gap = u32::from(self.reorder > 0);
        // Delay in ticks (the attribute overrides it), limit, loss, gap, duplicate, jitter.
        let words = [0, Self::LIMIT, loss, gap, duplicate, 0];
        let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut append = |name, value| {
            let attribute = DefaultNla::new(name, value);
            let mut buffer = vec![0; attribute.buffer_len()];
            attribute.emit(&mut buffer);
            bytes.append(&mut buffer);
        };
        append(TCA_NETEM_LATENCY64, nanos.to_ne_bytes().to_vec());
        if self.reorder > 0 {
            // A `struct tc_netem_reorder`: how many, and how much that depends on the one before.
            let words = [reorder, 0].map(u32::to_ne_bytes);
            append(TCA_NETEM_REORDER, words.concat());
        }
        Ok(bytes)
    }
}

/// Returns a percentage as the kernel writes it: of 2^32 - 1.
fn probability(percent: u8) -> u32 {
    u32::try_from(u64::from(u32::MAX) * u64::from(percent) / 100).unwrap_or(u32::MAX)
}

/// A netlink socket for the interfaces of one namespace.
pub(crate) struct Links {
    socket: Socket,
}

impl Links {
    /// Opens a netlink socket in the calling thread's namespace.
    pub(crate) fn open_here() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("netlink socket")?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
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

    /// Gives an interface a hardware address.
    pub(crate) fn set_mac(&self, index: u32, mac: Mac) -> Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![LinkAttribute::Address(mac.to_vec())];
        self.tell(RouteNetlinkMessage::SetLink(link), 0)
            .with_context(|| format!("give interface {index} a hardware address"))
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

    /// Gives an interface an address of a network, to be used without duplicate address detection.
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

    /// Adds a permanent neighbour: a peer's address and hardware address.
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

    /// Has netem treat the packets that leave an interface from now on; packets that it delays
    /// already stay as they are.
    pub(crate) fn set_netem(&self, index: u32, netem: Netem) -> Result<()> {
        let mut discipline = root_discipline(index)?;
        discipline.attributes = vec![
            TcAttribute::Kind("netem".to_owned()),
            TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, netem.options()?)),
        ];
        self.tell(
            RouteNetlinkMessage::NewQueueDiscipline(discipline),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .with_context(|| format!("give interface {index} {netem:?} (CONFIG_NET_SCH_NETEM)"))
    }

    /// Returns how many packets an interface's netem has dropped.
    pub(crate) fn lost(&self, index: u32) -> Result<u32> {
        let question = RouteNetlinkMessage::GetQueueDiscipline(root_discipline(index)?);
        // Without the flag the kernel notifies the listeners of the group, but not the sender.
        let answer = self.ask(question, NLM_F_ECHO)?;
        let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewQueueDiscipline(discipline)) =
            answer
        else {
            bail!("asked for a queueing discipline, netlink answers {answer:?}");
        };
        let statistics = discipline.attributes.iter().find_map(|it| match it {
            TcAttribute::Stats2(statistics) => Some(statistics),
            _ => None,
        });
        let drops = statistics.into_iter().flatten().find_map(|it| match it {
            TcStats2::Queue(queue) => Some(queue.drops),
            _ => None,
        });
        drops.context("a queueing discipline without statistics")
    }

    /// Sends a request and waits until the kernel has done it.
    fn tell(&self, request: RouteNetlinkMessage, flags: u16) -> Result<()> {
        match self.ask(request, NLM_F_ACK | flags)? {
            NetlinkPayload::Error(error) => match error.code {
                None => Ok(()),
                Some(_) => Err(error.to_io().into()),
            },
            other => bail!("netlink answers {other:?}"),
        }
    }

    /// Sends a request and waits for the answer.
    fn ask(
        &self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<NetlinkPayload<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let (answer, _) = self.socket.recv_from_full()?;
        Ok(NetlinkMessage::deserialize(&answer)?.payload)
    }
}

/// Names what treats all packets that leave an interface.
fn root_discipline(index: u32) -> Result<TcMessage> {
    let mut message = TcMessage::with_index(i32::try_from(index)?);
    message.header.parent = TcHandle::ROOT;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(options: &[u8]) -> Vec<u32> {
        options
            .chunks(4)
            .map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
            .collect()
    }

    #[test]
    fn netem_options_hold_loss_duplicates_and_reordering() {
        let netem = Netem {
            delay: Duration::ZERO,
            loss: 20,
            duplicate: 1,
            reorder: 50,
        };
        let words = words(&netem.options().unwrap());
        let (qopt, attributes) = words.split_at(6);
        assert_eq!(qopt, [0, 100_000, 858_993_459, 1, 42_949_672, 0]);
        let (_, reorder) = attributes.split_at(3);
        assert_eq!(reorder, [12 | 3 << 16, 2_147_483_647, 0]);
    }

    #[test]
    fn netem_options_are_the_kernels_structures() {
        let netem = Netem {
            delay: Duration::from_millis(20),
            loss: 100,
            duplicate: 0,
            reorder: 0,
        };
        let words = words(&netem.options().unwrap());
        let (qopt, attribute) = words.split_at(6);
        assert_eq!(qopt, [0, 100_000, u32::MAX, 0, 0, 0]);
        // Length and type in one word, then the nanoseconds.
        assert_eq!(attribute, [12 | 10 << 16, 20_000_000, 0]);
    }
}
