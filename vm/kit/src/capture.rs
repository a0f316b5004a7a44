// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is on the wire, with the kernel's own timestamps.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    bind, recvmsg, setsockopt, sockopt, ControlMessageOwned, LinkAddr, MsgFlags, RecvMsg,
};
use socket2::{Domain, Socket, Type};

use crate::clock::Stamp;
use crate::netns::Netns;
use crate::segment::Segment;
use crate::sys;
use crate::wait::{self, Reader};

/// Which way a packet crossed the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the wire into this machine.
    In,
    /// From this machine onto the wire.
    Out,
}

/// A captured TCP segment.
#[derive(Clone, Debug)]
pub struct Packet {
    /// When the interface saw it.
    pub at: Stamp,
    /// Which way it went.
    pub direction: Direction,
    /// What it says.
    pub segment: Segment,
    /// The whole packet, from the IP header on.
    pub bytes: Vec<u8>,
}

/// A running capture of one interface; dropping it ends it.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    reader: Reader,
}

#[derive(Debug)]
struct Shared {
    socket: OwnedFd,
    /// On the loopback interface every packet is seen twice: on its way out, and on its way in. One
    /// is enough.
    loopback: bool,
    packets: Mutex<Vec<Packet>>,
}

impl Capture {
    /// Starts to capture every TCP segment of an interface in a namespace, in both directions.
    ///
    /// Packets are seen after the queueing discipline of their interface: with a netem delay, when
    /// they really leave.
    pub fn start(ns: &Netns, interface: &str) -> Result<Self> {
        let shared = Arc::new(ns.run(|| Shared::open(interface))?);
        let reader = Reader::start(shared.clone(), Shared::drain)?;
        Ok(Self { shared, reader })
    }

    /// Returns everything captured until this moment.
    pub fn so_far(&self) -> Result<Trace> {
        self.shared.so_far()
    }

    /// Returns a view of what is captured, during the capture and after.
    pub fn viewer(&self) -> Viewer {
        Viewer {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Waits until a captured packet satisfies `wanted`, and returns the first that does.
    pub fn wait_for(
        &self,
        limit: Duration,
        mut wanted: impl FnMut(&Packet) -> bool,
    ) -> Result<Option<Packet>> {
        let mut found = None;
        wait::until(limit, || {
            self.shared.drain()?;
            found = self.shared.lock().iter().find(|p| wanted(p)).cloned();
            Ok(found.is_some())
        })?;
        Ok(found)
    }

    /// Ends the capture. Packets the kernel had no room for are an error: a count would be wrong.
    pub fn stop(mut self) -> Result<Trace> {
        self.reader.stop()?;
        self.shared.drain()?;
        let lost = self.shared.lost()?;
        ensure!(lost == 0, "the capture lost {lost} packets");
        self.shared.so_far()
    }
}

/// A view of a capture that another thread runs.
#[derive(Clone, Debug)]
pub struct Viewer {
    shared: Arc<Shared>,
}

impl Viewer {
    /// Returns everything captured until this moment.
    pub fn so_far(&self) -> Result<Trace> {
        self.shared.so_far()
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Shared {
    fn so_far(&self) -> Result<Trace> {
        self.drain()?;
        Ok(Trace {
            packets: self.lock().clone(),
        })
    }

    fn open(interface: &str) -> Result<Self> {
        // A protocol of 0: nothing arrives before the socket is bound to its interface.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM.nonblocking(), None)
            .context("packet socket (CONFIG_PACKET)")?;
        let index = nix::net::if_::if_nametoindex(interface)
            .with_context(|| format!("no interface {interface}"))?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("SO_TIMESTAMPNS")?;
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).context("SO_RCVBUFFORCE")?;
        wait_until_stamped()?;
        bind(socket.as_raw_fd(), &sys::packet_address(index)?).context("bind a packet socket")?;
        Ok(Self {
            socket: socket.into(),
            loopback: interface == "lo",
            packets: Mutex::new(Vec::new()),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Packet>> {
        self.packets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes everything out of the socket that is in it now.
    fn drain(&self) -> Result<()> {
        // Large enough for what segmentation offload makes.
        let mut buffer = vec![0u8; 1 << 17];
        let mut packets = self.lock();
        while let Some(packet) = self.receive(&mut buffer)? {
            packets.extend(packet);
        }
        Ok(())
    }

    /// Receives one packet: `None` when there is none, `Some(None)` when it is not to be kept.
    fn receive(&self, buffer: &mut [u8]) -> Result<Option<Option<Packet>>> {
        let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
        let mut iov = [IoSliceMut::new(buffer)];
        let message = match recvmsg::<LinkAddr>(
            self.socket.as_raw_fd(),
            &mut iov,
            Some(&mut control),
            MsgFlags::MSG_DONTWAIT,
        ) {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return Ok(None),
            // The interface is gone or down: what it carried before that stays.
            Err(Errno::ENETDOWN) => return Ok(None),
            Err(error) => return Err(error).context("receive from a packet socket"),
        };
        let direction = match message.address.map(|address| address.pkttype()) {
            Some(libc::PACKET_OUTGOING) => Direction::Out,
            _ => Direction::In,
        };
        let at = stamp(&message)?;
        let length = message.bytes;
        let bytes = buffer.get(..length).unwrap_or_default();
        if self.loopback && direction == Direction::Out {
            return Ok(Some(None));
        }
        Ok(Some(Segment::parse(bytes).map(|segment| Packet {
            at,
            direction,
            segment,
            bytes: bytes.to_vec(),
        })))
    }

    /// Returns how many packets the kernel dropped because the socket's buffer was full.
    fn lost(&self) -> Result<u32> {
        // struct tpacket_stats: packets, drops.
        let mut stats = [0u8; 8];
        sys::get_option(
            self.socket.as_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            &mut stats,
        )
        .context("PACKET_STATISTICS")?;
        let [_, _, _, _, drops @ ..] = stats;
        Ok(u32::from_ne_bytes(drops))
    }
}

/// Waits until packets are stamped as they arrive.
///
/// The kernel begins to do so some time after the first socket asked for it; until then, a packet
/// gets the time at which it is read.
fn wait_until_stamped() -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(3);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("UDP socket")?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("SO_TIMESTAMPNS")?;
    socket.connect(socket.local_addr()?)?;
    let mut buffer = [0; 1];
    let stamped = wait::until(Duration::from_secs(10), || {
        socket.send(b"?").context("send to oneself")?;
        let sent = Stamp::now();
        std::thread::sleep(PAUSE);
        let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
        let mut iov = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<()>(
            socket.as_raw_fd(),
            &mut iov,
            Some(&mut control),
            MsgFlags::empty(),
        )?;
        Ok(stamp(&message)? <= sent)
    })?;
    ensure!(stamped, "the kernel does not stamp packets as they arrive");
    Ok(())
}

/// Returns the kernel's timestamp of a packet.
fn stamp<S>(message: &RecvMsg<'_, '_, S>) -> Result<Stamp> {
    message
        .cmsgs()?
        .find_map(|cmsg| match cmsg {
            ControlMessageOwned::ScmTimestampns(time) => {
                Some(Stamp::from_epoch(Duration::from(time)))
            }
            _ => None,
        })
        .context("a packet without a timestamp")
}

/// A finished capture, or a part of one, in the order of its packets.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// The packets.
    pub packets: Vec<Packet>,
}

impl Trace {
    /// Returns the packets that satisfy `wanted`.
    pub fn filter(&self, mut wanted: impl FnMut(&Packet) -> bool) -> Self {
        Self {
            packets: self.packets.iter().filter(|p| wanted(p)).cloned().collect(),
        }
    }

    /// Returns how many packets satisfy `wanted`.
    pub fn count(&self, mut wanted: impl FnMut(&Segment) -> bool) -> usize {
        self.packets.iter().filter(|p| wanted(&p.segment)).count()
    }

    /// Returns the first packet that satisfies `wanted`.
    pub fn first(&self, mut wanted: impl FnMut(&Segment) -> bool) -> Option<&Packet> {
        self.packets.iter().find(|p| wanted(&p.segment))
    }

    /// Returns the last packet that satisfies `wanted`.
    pub fn last(&self, mut wanted: impl FnMut(&Segment) -> bool) -> Option<&Packet> {
        self.packets.iter().rfind(|p| wanted(&p.segment))
    }

    /// Returns what this machine sent.
    pub fn sent(&self) -> Self {
        self.filter(|p| p.direction == Direction::Out)
    }

    /// Returns what was sent to or from a server's port.
    pub fn of_port(&self, port: u16) -> Self {
        self.filter(|p| p.segment.touches(port))
    }

    /// Returns what was sent to or from an address and port.
    pub fn of_peer(&self, peer: SocketAddr) -> Self {
        self.filter(|p| p.segment.source == peer || p.segment.destination == peer)
    }

    /// Returns what was sent to a server's port.
    pub fn to_port(&self, port: u16) -> Self {
        self.filter(|p| p.segment.destination.port() == port)
    }

    /// Returns what was sent from a server's port.
    pub fn from_port(&self, port: u16) -> Self {
        self.filter(|p| p.segment.source.port() == port)
    }

    /// Returns what was captured after `from` and not after `to`.
    pub fn between(&self, from: Stamp, to: Stamp) -> Self {
        self.filter(|p| p.at > from && p.at <= to)
    }

    /// Returns how many SYN-ACKs there are.
    pub fn syn_acks(&self) -> usize {
        self.count(Segment::is_syn_ack)
    }

    /// Returns how many SYN-ACKs each client was sent.
    pub fn syn_acks_by_client(&self) -> HashMap<SocketAddr, usize> {
        let mut counts = HashMap::new();
        for packet in &self.packets {
            if packet.segment.is_syn_ack() {
                *counts.entry(packet.segment.destination).or_default() += 1;
            }
        }
        counts
    }

    /// Returns how many resets there are.
    pub fn resets(&self) -> usize {
        self.count(Segment::is_rst)
    }

    /// Returns the packets as lines, with the time since the first one: for diagnostics.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let Some(first) = self.packets.first() else {
            return "no packets".to_owned();
        };
        for packet in &self.packets {
            let arrow = match packet.direction {
                Direction::In => "in ",
                Direction::Out => "out",
            };
            let _ = writeln!(
                text,
                "{:>11.3} ms {arrow} {}",
                packet.at.ms_after(first.at),
                packet.segment
            );
        }
        text
    }
}
