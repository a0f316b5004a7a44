// SPDX-License-Identifier: MIT OR Apache-2.0

//! Thousands of clients that send each segment themselves, behind one TUN interface and on one
//! thread.
//!
//! A [`RawClient`](crate::raw::RawClient) has a channel of its own, and a thread that waits at it.
//! Here a client is three numbers: one thread sends for all of them, and is told which segment came
//! for which client. They live behind a TUN interface of their own, on two hundred addresses.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use crate::count;
use crate::endpoint::Family;
use crate::netns::Netns;
use crate::plug::plug_tun;
use crate::segment::{Flags, Segment};

/// The interface's name.
pub const INTERFACE: &str = "clients0";

const SERVER_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
/// How many addresses the clients have: enough to be many, and fewer than the kernel remembers
/// neighbours.
const ADDRESSES: u32 = 200;
/// Clients whose numbers are a multiple of this apart have the same address.
pub const SAME_ADDRESS: u32 = ADDRESSES;
/// The last part of the first address.
const FIRST_ADDRESS: u32 = 11;
const FIRST_PORT: u32 = 1024;
/// The number of the first client with an IPv4 address of its own, of `SPREAD_NETWORK`; there are
/// 13,107,200 of them.
pub const FIRST_SPREAD: u32 = 1 << 24;
/// The first part of their addresses.
const SPREAD_NETWORK: u8 = 10;
/// How many segments of the server may wait to be read: more than it sends at once.
const QUEUE: u32 = 20_000;
/// How many handshakes of [`TunClients::open`] are under way at once: fewer than any backlog a test
/// asks for.
const WINDOW: usize = 32;

/// The far side of a TUN interface, with all of its clients.
#[derive(Debug)]
pub struct TunClients {
    tun: File,
    family: Family,
    server: SocketAddr,
    buffer: Vec<u8>,
    spent: Cell<u64>,
}

/// One client: its number, and where it is in its two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunClient {
    /// Its number.
    pub nth: u32,
    /// The server's port.
    pub port: u16,
    /// The sequence number of the next byte to send.
    pub snd_nxt: u32,
    /// The sequence number of the next byte expected; 0 before the SYN-ACK.
    pub rcv_nxt: u32,
}

impl TunClients {
    /// Plugs a TUN interface into a server's namespace, for clients of one of its ports.
    pub fn new(ns: &Netns, family: Family, server_port: u16) -> Result<Self> {
        let ip = family.pick(SERVER_V4, SERVER_V6);
        let mut clients = Self {
            tun: plug_tun(ns, INTERFACE, QUEUE, SERVER_V4, SERVER_V6)?,
            family,
            server: SocketAddr::new(ip, 1),
            buffer: vec![0; 1 << 16],
            spent: Cell::new(0),
        };
        clients.wait_until_it_answers()?;
        clients.server = SocketAddr::new(ip, server_port);
        Ok(clients)
    }

    /// Waits until the kernel refuses connections: it is some time before an address is in use.
    fn wait_until_it_answers(&mut self) -> Result<()> {
        let limit = Instant::now() + Duration::from_secs(20);
        while Instant::now() < limit {
            self.syn(&mut self.client(0))?;
            let mut answered = false;
            self.pump(Duration::from_millis(20), |_, segment| {
                answered |= segment.is_rst();
                Ok(())
            })?;
            if answered {
                return Ok(());
            }
        }
        bail!(
            "nothing answers behind the TUN interface {INTERFACE} ({})",
            self.family
        )
    }

    /// Has the server answer clients with addresses of their own, from [`FIRST_SPREAD`] on: IPv4
    /// only.
    pub fn spread(&self, ns: &Netns) -> Result<()> {
        ns.ip(&format!(
            "route add {SPREAD_NETWORK}.0.0.0/8 dev {INTERFACE}"
        ))
    }

    /// Returns a client of the server's port that has not sent anything yet.
    pub fn client(&self, nth: u32) -> TunClient {
        self.client_of(nth, self.server.port())
    }

    /// Returns a client of another port of the server.
    pub fn client_of(&self, nth: u32, port: u16) -> TunClient {
        TunClient {
            nth,
            port,
            snd_nxt: nth.wrapping_mul(2_654_435_761),
            rcv_nxt: 0,
        }
    }

    /// Returns the server's address and port for clients.
    pub fn server_address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.server.ip(), port)
    }

    /// Returns a client's address and port.
    pub fn address(&self, nth: u32) -> SocketAddr {
        let host = FIRST_ADDRESS + nth % ADDRESSES;
        if let Some(nth) = nth.checked_sub(FIRST_SPREAD) {
            let [_, _, b, c] = (nth / ADDRESSES).to_be_bytes();
            let d = u8::try_from(FIRST_ADDRESS + nth % ADDRESSES).unwrap_or(u8::MAX);
            return (Ipv4Addr::new(SPREAD_NETWORK, b, c, d), FIRST_PORT as u16).into();
        }
        let ip: IpAddr = if self.family.is_v4_on_the_wire() {
            let [a, b, c, _] = SERVER_V4.octets();
            Ipv4Addr::new(a, b, c, u8::try_from(host).unwrap_or(u8::MAX)).into()
        } else {
            let network = SERVER_V6.to_bits() & !0xffff;
            Ipv6Addr::from_bits(network | u128::from(host)).into()
        };
        // 64,000 ports are enough for 12,800,000 clients; more would begin again.
        let port = FIRST_PORT + nth / ADDRESSES % (65_536 - FIRST_PORT);
        SocketAddr::new(ip, u16::try_from(port).unwrap_or(u16::MAX))
    }

    /// Returns the number of the client at an address.
    pub fn at(address: SocketAddr) -> Option<u32> {
        let host = match address.ip().to_canonical() {
            IpAddr::V4(ip) => u32::from(ip.octets()[3]),
            IpAddr::V6(ip) => u32::from(ip.segments()[7]),
        };
        let host = host.checked_sub(FIRST_ADDRESS)?;
        if let IpAddr::V4(ip) = address.ip() {
            let [first, b, c, _] = ip.octets();
            if first == SPREAD_NETWORK {
                let nth = u32::from_be_bytes([0, 0, b, c]) * ADDRESSES + host;
                return (host < ADDRESSES).then_some(FIRST_SPREAD + nth);
            }
        }
        let port = u32::from(address.port()).checked_sub(FIRST_PORT)?;
        (host < ADDRESSES).then_some(port * ADDRESSES + host)
    }

    /// Returns a segment of a client at its present numbers, to be changed and sent with
    /// [`TunClients::send`].
    pub fn segment(&self, client: &TunClient, flags: Flags, payload: &[u8]) -> Segment {
        Segment {
            seq: client.snd_nxt,
            ack: if flags.ack { client.rcv_nxt } else { 0 },
            payload: payload.to_vec(),
            ..Segment::new(
                self.address(client.nth),
                self.server_address(client.port),
                flags,
            )
        }
    }

    /// Sends a segment just as it is.
    pub fn send(&self, segment: &Segment) -> Result<()> {
        self.inject(&segment.build()?)
    }

    /// Puts a whole packet on the wire, from its IP header on.
    pub fn inject(&self, packet: &[u8]) -> Result<()> {
        loop {
            let (written, spent) = count::during(|| (&self.tun).write(packet));
            self.spent.set(self.spent.get() + spent);
            match written {
                Ok(length) => {
                    ensure!(length == packet.len(), "a TUN interface took half a packet");
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::POLLOUT, Duration::from_millis(100))?;
                }
                Err(error) => return Err(error).context("write to a TUN interface"),
            }
        }
    }

    /// Returns the instructions spent so far on what the clients sent: in the kernel, from where a
    /// network card would hand it a packet, and by the threads that it woke meanwhile, answers
    /// included. Taking those off the wire is the clients' own business. On a machine that counts
    /// them ([`count`]).
    pub fn spent(&self) -> u64 {
        self.spent.get()
    }

    /// Sends a segment at a client's present numbers and moves `snd_nxt` behind it.
    pub fn push(&self, client: &mut TunClient, flags: Flags, payload: &[u8]) -> Result<()> {
        let segment = self.segment(client, flags, payload);
        self.send(&segment)?;
        client.snd_nxt = segment.end_seq();
        Ok(())
    }

    /// Sends a client's SYN.
    pub fn syn(&self, client: &mut TunClient) -> Result<()> {
        let mut segment = self.segment(client, Flags::SYN, b"");
        segment.mss = Some(1460);
        segment.sack_permitted = true;
        segment.window_scale = Some(7);
        self.send(&segment)?;
        client.snd_nxt = segment.end_seq();
        Ok(())
    }

    /// Calls `heard` with each segment that has come, or that comes within `limit` if none has;
    /// returns whether any did.
    pub fn pump(
        &mut self,
        limit: Duration,
        mut heard: impl FnMut(u32, &Segment) -> Result<()>,
    ) -> Result<bool> {
        // A budget: a caller that is flooded must still get to do something else.
        const AT_ONCE: usize = 256;
        let mut any = false;
        for _ in 0..AT_ONCE {
            if let Some((nth, segment)) = self.take()? {
                any = true;
                heard(nth, &segment)?;
            } else if any || !self.wait(PollFlags::POLLIN, limit)? {
                return Ok(any);
            }
        }
        Ok(any)
    }

    /// Takes the next segment that has come, with its client; nothing, if none is there now.
    pub fn take(&mut self) -> Result<Option<(u32, Segment)>> {
        loop {
            let length = match (&self.tun).read(&mut self.buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error).context("read from a TUN interface"),
            };
            let packet = self.buffer.get(..length).unwrap_or_default();
            // What is not TCP (neighbour discovery, multicast reports) needs no answer.
            let Some(segment) = Segment::parse(packet) else {
                continue;
            };
            if let Some(nth) = Self::at(segment.destination) {
                return Ok(Some((nth, segment)));
            }
        }
    }

    /// Has clients do their handshakes, a few at a time, each with a bare ACK; each SYN-ACK must
    /// come within `limit`.
    ///
    /// Another segment than the one SYN-ACK is an error.
    pub fn open(&mut self, clients: Range<u32>, limit: Duration) -> Result<Vec<TunClient>> {
        let count = clients.len();
        let mut opened = Vec::with_capacity(count);
        self.handshakes(clients, limit, true, &mut opened)?;
        ensure!(
            opened.len() == count,
            "{} of {count} handshakes were answered",
            opened.len()
        );
        Ok(opened)
    }

    /// Does the same with a server that need not answer every client, and may send more; returns
    /// the clients that were answered.
    ///
    /// Once nothing came for `limit`, the clients that wait give up.
    pub fn try_open(&mut self, clients: Range<u32>, limit: Duration) -> Result<Vec<TunClient>> {
        let mut opened = Vec::with_capacity(clients.len());
        self.handshakes(clients, limit, false, &mut opened)?;
        Ok(opened)
    }

    fn handshakes(
        &mut self,
        clients: Range<u32>,
        limit: Duration,
        strict: bool,
        opened: &mut Vec<TunClient>,
    ) -> Result<()> {
        let first = clients.start;
        let mut all: Vec<TunClient> = clients.map(|nth| self.client(nth)).collect();
        let (mut sent, mut under_way) = (0, 0);
        loop {
            while under_way < WINDOW {
                let Some(client) = all.get_mut(sent) else {
                    break;
                };
                self.syn(client)?;
                sent += 1;
                under_way += 1;
            }
            if under_way == 0 {
                return Ok(());
            }
            let mut ready = Vec::new();
            let any = self.pump(limit, |nth, segment| {
                let index = nth.wrapping_sub(first) as usize;
                let Some(client) = all.get_mut(index) else {
                    return Ok(());
                };
                let is_answer = segment.is_syn_ack() && segment.ack == client.snd_nxt;
                if is_answer && client.rcv_nxt == 0 {
                    client.rcv_nxt = segment.end_seq();
                    ready.push(index);
                } else {
                    ensure!(!strict, "not the one answer to a SYN: {segment}");
                }
                Ok(())
            })?;
            if !any {
                ensure!(!strict, "{under_way} SYNs, or more, were not answered");
                under_way = 0;
            }
            for index in ready {
                let Some(client) = all.get_mut(index) else {
                    continue;
                };
                under_way = under_way.saturating_sub(1);
                self.push(client, Flags::ACK, b"")?;
                opened.push(*client);
            }
        }
    }

    fn wait(&self, flags: PollFlags, limit: Duration) -> Result<bool> {
        let timeout = PollTimeout::try_from(limit + Duration::from_micros(999))?;
        let mut fds = [PollFd::new(self.tun.as_fd(), flags)];
        match poll(&mut fds, timeout) {
            Ok(count) => Ok(count > 0),
            Err(Errno::EINTR) => Ok(true),
            Err(error) => Err(error).context("poll a TUN interface"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(family: Family) -> TunClients {
        TunClients {
            tun: File::open("/dev/null").unwrap(),
            family,
            server: "198.18.0.1:80".parse().unwrap(),
            buffer: Vec::new(),
            spent: Cell::new(0),
        }
    }

    #[test]
    fn addresses_and_numbers_belong_together() {
        for family in Family::ALL {
            let clients = clients(family);
            for nth in (0..2_000).chain([99_999, 1_000_000]) {
                assert_eq!(TunClients::at(clients.address(nth)), Some(nth), "{family}");
            }
            assert_eq!(clients.address(0).is_ipv4(), family.is_v4_on_the_wire());
        }
        assert_eq!(TunClients::at("198.18.0.1:2000".parse().unwrap()), None);
        assert_eq!(TunClients::at("198.18.0.211:2000".parse().unwrap()), None);
        assert_eq!(TunClients::at("198.18.0.11:80".parse().unwrap()), None);
        assert_eq!(
            TunClients::at("[::ffff:198.18.0.11]:1024".parse().unwrap()),
            Some(0)
        );
    }
}
