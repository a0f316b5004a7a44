// SPDX-License-Identifier: MIT OR Apache-2.0

//! A TCP client that sends each segment itself.
//!
//! It lives behind a TUN or TAP interface ([`Plug`]): the namespace's kernel sees a peer on the
//! other side, and nothing but this code answers for it. So a test can send what no kernel would:
//! data on the third segment, a SYN after the handshake, a keepalive probe at will, a wrong
//! acknowledgement number.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

use crate::bpf::{Xdp, XdpAction, XdpMode};
use crate::capture::Capture;
use crate::clock::Stamp;
use crate::endpoint::Family;
use crate::link::End;
use crate::netns::Netns;
use crate::plug::{Port, CLIENT_MAC, SERVER_MAC};
use crate::segment::{Flags, Segment, Timestamps};
use crate::wait::{self, Reader};

pub use crate::plug::{Plug, GSO_SIZE};

/// The interface's name.
pub const INTERFACE: &str = "raw0";

const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const SERVER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);

/// The far side of a TUN or TAP interface, where the clients live.
#[derive(Debug)]
pub struct RawHost {
    ns: Netns,
    shared: Arc<Shared>,
    _reader: Reader,
    _edge: Option<Edge>,
    next_port: AtomicU16,
}

/// What forwards the clients' frames to the server's interface.
#[derive(Debug)]
struct Edge {
    _programs: Vec<Xdp>,
    _ns: Netns,
}

#[derive(Debug)]
struct Shared {
    port: Port,
    /// The channel for the segments sent to each port here.
    clients: Mutex<HashMap<u16, Sender<Received>>>,
}

/// A segment that reached a client.
#[derive(Clone, Debug)]
pub struct Received {
    /// When it was read; a capture of [`INTERFACE`] knows it more exactly.
    pub at: Stamp,
    /// What it says.
    pub segment: Segment,
}

impl RawHost {
    /// Plugs a TUN interface into a server's namespace.
    pub fn new(ns: &Netns) -> Result<Self> {
        Self::plugged(ns, Plug::Tun)
    }

    /// Plugs an interface into a server's namespace.
    pub fn plugged(ns: &Netns, plug: Plug) -> Result<Self> {
        let port = Port::open(ns, INTERFACE, plug)?;
        Self::behind(ns, port, None)
    }

    /// Has XDP programs forward the clients' frames, from a TAP interface of another namespace, to
    /// the server's interface, and its frames to the clients.
    pub fn redirected(ns: &Netns, mode: XdpMode) -> Result<Self> {
        const OUTSIDE: &str = "clients0";
        const INSIDE: &str = "server0";
        let edge = Netns::new()?;
        let port = Port::open(&edge, OUTSIDE, Plug::Tap)?;
        let [near, far] = [(INSIDE, CLIENT_MAC), (INTERFACE, SERVER_MAC)].map(|end| End {
            name: end.0,
            mac: end.1,
        });
        let links = edge.links()?;
        links.add_veth(&near, &far, ns.as_fd())?;
        let [outside, inside] = [OUTSIDE, INSIDE].map(|name| edge.interface_index(name));
        let (outside, inside) = (outside?, inside?);
        links.up(outside)?;
        links.up(inside)?;
        let to = XdpAction::ToInterface;
        let programs = vec![
            // A veth interface takes frames from XDP only if it has a program, too.
            Xdp::attach(ns, INTERFACE, mode, XdpAction::Pass)?,
            Xdp::attach(&edge, INSIDE, mode, to(outside))?,
            Xdp::attach(&edge, OUTSIDE, mode, to(inside))?,
        ];
        let edge = Edge {
            _programs: programs,
            _ns: edge,
        };
        Self::behind(ns, port, Some(edge))
    }

    /// Gives the server its addresses, for clients whose packets are written to `port`, and go
    /// through `edge`.
    fn behind(ns: &Netns, port: Port, edge: Option<Edge>) -> Result<Self> {
        let links = ns.links()?;
        let index = ns.interface_index(INTERFACE)?;
        links.add_address(index, SERVER_V4.into())?;
        links.add_address(index, SERVER_V6.into())?;
        links.up(index)?;
        if port.is_tap() {
            // Nothing here answers ARP or neighbour discovery.
            links.add_neighbour(index, CLIENT_V4.into(), CLIENT_MAC)?;
            links.add_neighbour(index, CLIENT_V6.into(), CLIENT_MAC)?;
        }
        let shared = Arc::new(Shared {
            port,
            clients: Mutex::new(HashMap::new()),
        });
        let mut buffer = vec![0; 1 << 17];
        let reader = Reader::start(shared.clone(), move |shared| shared.read(&mut buffer))?;
        let host = Self {
            ns: ns.clone(),
            shared,
            _reader: reader,
            _edge: edge,
            next_port: AtomicU16::new(20_000),
        };
        host.wait_until_it_answers()?;
        Ok(host)
    }

    /// Waits until the kernel refuses connections on both of its addresses: it is some time before
    /// they are in use.
    fn wait_until_it_answers(&self) -> Result<()> {
        for family in [Family::V4, Family::V6] {
            // Nothing listens on port 1 of a test's namespace.
            let mut client = self.client(family, 1);
            let answered = wait::until(Duration::from_secs(20), || {
                client.syn()?;
                let answer = client.receive_until(Duration::from_millis(20), Segment::is_rst)?;
                Ok(answer.is_some())
            })?;
            ensure!(
                answered,
                "nothing answers behind the clients' interface ({family})"
            );
        }
        Ok(())
    }

    /// Starts to watch the interface; [`Direction::In`](crate::capture::Direction::In) is from a
    /// client to the server.
    pub fn watch(&self) -> Result<Capture> {
        Capture::start(&self.ns, INTERFACE)
    }

    /// Returns the server's address for clients of a family.
    pub fn server_address(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(family.pick(SERVER_V4, SERVER_V6), port)
    }

    /// Puts a whole packet on the wire, from its IP header on: what is no client's segment.
    pub fn inject(&self, packet: &[u8]) -> Result<Stamp> {
        self.shared.port.write(packet)
    }

    /// Returns a client of a server's port that has not sent anything yet.
    pub fn client(&self, family: Family, server_port: u16) -> RawClient {
        let server = self.server_address(family, server_port);
        let ip = family.pick(CLIENT_V4, CLIENT_V6);
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        let (sender, inbox) = channel();
        self.shared.lock().insert(port, sender);
        // Every third client's numbers wrap within its first bytes.
        let isn = (u32::MAX - 3).wrapping_add(u32::from(port % 3) * 1_000_000_007);
        RawClient {
            shared: Arc::clone(&self.shared),
            inbox,
            local: SocketAddr::new(ip, port),
            server,
            snd_nxt: isn,
            rcv_nxt: 0,
            isn,
            window: u16::MAX,
            timestamps: None,
        }
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.port.as_fd()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<u16, Sender<Received>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, buffer: &mut [u8]) -> Result<()> {
        if let Some(packet) = self.port.read(buffer)? {
            self.dispatch(packet);
        }
        Ok(())
    }

    fn dispatch(&self, packet: &[u8]) {
        let at = Stamp::now();
        // What is not TCP (neighbour discovery, multicast reports) needs no answer.
        let Some(segment) = Segment::parse(packet) else {
            return;
        };
        let client = self.lock().get(&segment.destination.port()).cloned();
        if let Some(client) = client {
            // A client that was dropped hears nothing any more.
            let _ = client.send(Received { at, segment });
        }
    }
}

/// One connection of a client that sends exactly what it is told.
///
/// Nothing is answered by itself; `snd_nxt` and `rcv_nxt` follow what was sent and received in
/// order.
#[derive(Debug)]
pub struct RawClient {
    shared: Arc<Shared>,
    inbox: Receiver<Received>,
    /// The client's address and port.
    pub local: SocketAddr,
    /// The server's address and port.
    pub server: SocketAddr,
    /// The sequence number of the next byte to send.
    pub snd_nxt: u32,
    /// The sequence number of the next byte expected.
    pub rcv_nxt: u32,
    /// The sequence number of the SYN.
    pub isn: u32,
    /// The window to announce, not scaled.
    pub window: u16,
    timestamps: Option<Timestamps>,
}

impl RawClient {
    /// Uses the timestamp option, from the SYN on.
    pub fn with_timestamps(mut self) -> Self {
        self.timestamps = Some(Timestamps { value: 1, echo: 0 });
        self
    }

    /// Returns a segment of this connection at its present numbers, to be changed and sent with
    /// [`RawClient::send`].
    pub fn segment(&self, flags: Flags, payload: &[u8]) -> Segment {
        Segment {
            seq: self.snd_nxt,
            ack: if flags.ack { self.rcv_nxt } else { 0 },
            window: self.window,
            timestamps: self.timestamps,
            payload: payload.to_vec(),
            ..Segment::new(self.local, self.server, flags)
        }
    }

    /// Sends a segment just as it is; returns when.
    pub fn send(&mut self, segment: &Segment) -> Result<Stamp> {
        let at = self.shared.port.write(&segment.build()?)?;
        if let Some(timestamps) = &mut self.timestamps {
            timestamps.value = timestamps.value.wrapping_add(1);
        }
        Ok(at)
    }

    /// Sends a segment at the present numbers and moves `snd_nxt` behind it; returns when.
    pub fn push(&mut self, flags: Flags, payload: &[u8]) -> Result<Stamp> {
        let segment = self.segment(flags, payload);
        let at = self.send(&segment)?;
        self.snd_nxt = segment.end_seq();
        Ok(at)
    }

    /// Sends the SYN; sent again, it is the retransmission of the first.
    pub fn syn(&mut self) -> Result<Stamp> {
        let mut segment = self.segment(Flags::SYN, b"");
        segment.seq = self.isn;
        segment.mss = Some(1460);
        segment.sack_permitted = true;
        segment.window_scale = Some(7);
        let at = self.send(&segment)?;
        self.snd_nxt = segment.end_seq();
        Ok(at)
    }

    /// Sends data; returns when.
    pub fn data(&mut self, payload: &[u8]) -> Result<Stamp> {
        self.push(Flags::PSH_ACK, payload)
    }

    /// Sends an acknowledgement and nothing else; returns when.
    pub fn ack(&mut self) -> Result<Stamp> {
        self.push(Flags::ACK, b"")
    }

    /// Ends the stream; returns when.
    pub fn fin(&mut self) -> Result<Stamp> {
        self.push(Flags::FIN_ACK, b"")
    }

    /// Resets the connection; returns when.
    pub fn rst(&mut self) -> Result<Stamp> {
        self.push(Flags::RST, b"")
    }

    /// Sends a SYN and waits for its SYN-ACK, without the third segment.
    pub fn half_open(&mut self, limit: Duration) -> Result<Received> {
        self.syn()?;
        let answer = self
            .receive_until(limit, Segment::is_syn_ack)?
            .context("no SYN-ACK came")?;
        ensure!(
            answer.segment.ack == self.isn.wrapping_add(1),
            "the SYN-ACK acknowledges {}, not {}",
            answer.segment.ack,
            self.isn.wrapping_add(1)
        );
        Ok(answer)
    }

    /// Does the whole handshake, with a bare third segment; returns when that was sent.
    pub fn open(&mut self, limit: Duration) -> Result<Stamp> {
        self.half_open(limit)?;
        self.ack()
    }

    /// Waits for the next segment; nothing, if none came within `limit`.
    pub fn receive(&mut self, limit: Duration) -> Result<Option<Received>> {
        match self.inbox.recv_timeout(limit) {
            Ok(received) => {
                self.note(&received.segment);
                Ok(Some(received))
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                anyhow::bail!("the reader of the clients' interface has ended")
            }
        }
    }

    /// Waits for a segment that satisfies `wanted`, and lets others pass; nothing, if none came
    /// within `limit`.
    pub fn receive_until(
        &mut self,
        limit: Duration,
        mut wanted: impl FnMut(&Segment) -> bool,
    ) -> Result<Option<Received>> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)? {
                Some(received) if wanted(&received.segment) => return Ok(Some(received)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Follows what the server sent, as far as it is in order.
    fn note(&mut self, segment: &Segment) {
        if segment.is_syn_ack() || (segment.seq == self.rcv_nxt && !segment.is_rst()) {
            self.rcv_nxt = segment.end_seq();
        }
        if segment.is_syn_ack() && segment.timestamps.is_none() {
            self.timestamps = None;
        }
        if let (Some(own), Some(theirs)) = (&mut self.timestamps, segment.timestamps) {
            own.echo = theirs.value;
        }
    }
}

impl Drop for RawClient {
    fn drop(&mut self) {
        self.shared.lock().remove(&self.local.port());
    }
}
