// SPDX-License-Identifier: MIT OR Apache-2.0

//! Listeners and clients made with the kernel's own TCP.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::libc;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::clock::Stamp;
use crate::control::Config;
use crate::netns::Netns;
use crate::tcp_info::TcpInfo;
use crate::{control, sys, ulp, wait};

/// How long a read or write of a test's own connections may take before it is an error.
const IO_LIMIT: Duration = Duration::from_secs(20);

/// The families a listener and its clients can be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 clients of an IPv4 listener.
    V4,
    /// IPv6 clients of a listener for IPv6 only.
    V6,
    /// IPv4 clients of an IPv6 listener that takes both: `::ffff:192.0.2.1`.
    Mapped,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::V4, Self::V6, Self::Mapped];

    /// Returns whether the clients' packets are IPv4's.
    pub fn is_v4_on_the_wire(self) -> bool {
        self != Self::V6
    }

    /// Returns the one of two addresses that its clients' packets have.
    pub fn pick(self, v4: Ipv4Addr, v6: Ipv6Addr) -> IpAddr {
        if self.is_v4_on_the_wire() {
            v4.into()
        } else {
            v6.into()
        }
    }

    /// Returns the address of a listener on the same machine, for clients of this family.
    pub fn loopback(self, port: u16) -> SocketAddr {
        (self.pick(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST), port).into()
    }

    /// Returns an address as a socket of this family sees it: a mapped one, if the socket is an
    /// IPv6 one that takes both.
    pub fn as_seen(self, ip: IpAddr) -> IpAddr {
        match (self, ip) {
            (Self::Mapped, IpAddr::V4(ip)) => ip.to_ipv6_mapped().into(),
            _ => ip,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
            Self::Mapped => "mapped",
        })
    }
}

/// How a listener is to be opened.
#[derive(Clone, Debug)]
pub struct Listen {
    family: Family,
    port: u16,
    backlog: i32,
    reuse_port: bool,
    defer_accept: Option<i32>,
    filter: Option<&'static str>,
    filter_after_listen: bool,
    config: Option<Config>,
}

impl Listen {
    /// Makes a plain listener on any address and a free port, with a backlog of 128.
    pub fn plain(family: Family) -> Self {
        Self {
            family,
            port: 0,
            backlog: 128,
            reuse_port: false,
            defer_accept: None,
            filter: None,
            filter_after_listen: false,
            config: None,
        }
    }

    /// The same with `dataready` attached before it listens.
    pub fn filtered(family: Family) -> Self {
        Self {
            filter: Some(ulp::DATAREADY),
            ..Self::plain(family)
        }
    }

    /// The same with the kernel's own `TCP_DEFER_ACCEPT`, in seconds.
    pub fn deferred(family: Family, seconds: i32) -> Self {
        Self {
            defer_accept: Some(seconds),
            ..Self::plain(family)
        }
    }

    /// Attaches the filter once the socket listens, and not before.
    pub fn filter_after_listen(mut self) -> Self {
        self.filter_after_listen = true;
        self
    }

    /// Gives the filter settings as soon as it is attached.
    pub fn config(mut self, config: Config) -> Self {
        self.config = Some(config);
        self
    }

    /// Sets `TCP_DEFER_ACCEPT`, in seconds, before a filter is attached.
    pub fn defer_accept(mut self, seconds: i32) -> Self {
        self.defer_accept = Some(seconds);
        self
    }

    /// Asks for a certain port.
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Asks for a certain backlog.
    pub fn backlog(mut self, backlog: i32) -> Self {
        self.backlog = backlog;
        self
    }

    /// Lets other listeners have the same port.
    pub fn reuse_port(mut self) -> Self {
        self.reuse_port = true;
        self
    }

    /// Opens the listener in a namespace.
    pub fn open(&self, ns: &Netns) -> Result<Listener> {
        ns.run(|| self.open_here())
    }

    /// Opens the listener in the calling thread's namespace.
    pub fn open_here(&self) -> Result<Listener> {
        let socket = bound(self.family, self.port, self.reuse_port)?;
        let attach = |socket: &Socket| -> Result<()> {
            if let Some(name) = self.filter {
                ulp::attach(socket, name)
                    .with_context(|| format!("attach `{name}` to a {} listener", self.family))?;
            }
            if let Some(config) = &self.config {
                control::set_config(socket, config).context("ACCF_CONFIG")?;
            }
            Ok(())
        };
        if let Some(seconds) = self.defer_accept {
            set_defer_accept(&socket, seconds)?;
        }
        if !self.filter_after_listen {
            attach(&socket)?;
        }
        socket.listen(self.backlog).context("listen")?;
        if self.filter_after_listen {
            attach(&socket)?;
        }
        Listener::from_socket(socket)
    }
}

/// Returns a TCP socket of a family, bound to any address but not listening; port 0 is a free one.
pub fn bound(family: Family, port: u16, reuse_port: bool) -> Result<Socket> {
    let (domain, address): (_, SocketAddr) = match family {
        Family::V4 => (Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into()),
        Family::V6 | Family::Mapped => (Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into()),
    };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).context("socket")?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(family == Family::V6)?;
    }
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket
        .bind(&address.into())
        .with_context(|| format!("bind {address}"))?;
    Ok(socket)
}

/// When something happened: between two points in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Between {
    /// The earliest that it can have happened.
    pub from: Stamp,
    /// The latest that it can have happened.
    pub to: Stamp,
}

impl Between {
    /// Returns when something happened that was `age` old at some point between `before` and
    /// `after`.
    pub fn of_age(age: Duration, before: Stamp, after: Stamp) -> Self {
        Self {
            from: before.before(age),
            to: after.before(age),
        }
    }

    /// Returns the same for something that cannot have happened after `limit`.
    #[must_use]
    pub fn not_after(self, limit: Stamp) -> Self {
        Self {
            from: self.from.min(limit),
            to: self.to.min(limit),
        }
    }

    /// Returns how long the time is that is left open.
    fn length(self) -> Duration {
        self.to.since(self.from)
    }
}

impl From<Stamp> for Between {
    /// For what is known exactly.
    fn from(at: Stamp) -> Self {
        Self { from: at, to: at }
    }
}

/// Returns when the kernel made a socket that has not sent anything.
///
/// The kernel tells the age of the socket at a point in time between the call and the return. If
/// this thread does not run for a while in between, that may be far from either.
fn made(socket: &Socket) -> Result<Between> {
    const ATTEMPTS: usize = 5;
    let mut best: Option<Between> = None;
    for _ in 0..ATTEMPTS {
        let before = Stamp::now();
        let age = TcpInfo::of(socket).context("TCP_INFO")?.since_data_sent;
        let after = Stamp::now();
        let took = after.since(before);
        if best.is_none_or(|best| took < best.length()) {
            best = Some(Between::of_age(age, before, after));
        }
        if took < Duration::from_millis(2) {
            break;
        }
    }
    best.context("no attempt was made")
}

fn port_of(socket: &Socket) -> Result<u16> {
    socket
        .local_addr()?
        .as_socket()
        .map(|address| address.port())
        .context("a TCP socket without a port")
}

/// A listening socket that never blocks by itself.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    port: u16,
}

/// A connection that came out of `accept()`.
#[derive(Debug)]
pub struct Accepted {
    /// The connection, blocking, with a limit on each read and write.
    pub stream: TcpStream,
    /// The client.
    pub peer: SocketAddr,
    /// When the kernel made the socket and put it into the listener's queue, give or take a clock
    /// tick. Not after `at`.
    pub made: Between,
    /// When `accept()` returned.
    pub at: Stamp,
}

impl Listener {
    /// Takes over a socket that listens.
    pub fn from_socket(socket: Socket) -> Result<Self> {
        socket.set_nonblocking(true)?;
        let port = port_of(&socket)?;
        Ok(Self { socket, port })
    }

    /// The same listener for another thread.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone().context("clone a listener")?,
            port: self.port,
        })
    }

    /// Returns the port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the socket.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Waits for a connection; nothing, if none came within `limit`.
    pub fn accept(&self, limit: Duration) -> Result<Option<Accepted>> {
        // Another thread may take the connection that woke this one: then the wait goes on.
        let start = Stamp::now();
        loop {
            let left = limit.saturating_sub(Stamp::now().since(start));
            if !wait::readable(&self.socket, left)? {
                return Ok(None);
            }
            if let Some(accepted) = self.accept_now()? {
                return Ok(Some(accepted));
            }
        }
    }

    /// Takes a connection if there is one right now.
    pub fn accept_now(&self) -> Result<Option<Accepted>> {
        let (socket, peer) = match self.socket.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).context("accept"),
        };
        let at = Stamp::now();
        let made = made(&socket)?.not_after(at);
        socket.set_nonblocking(false)?;
        let stream = TcpStream::from(socket);
        limit_io(&stream)?;
        Ok(Some(Accepted {
            stream,
            peer: peer.as_socket().context("a peer without an address")?,
            made,
            at,
        }))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Connects from inside a namespace: when this returns, the handshake's third segment has been
/// sent.
pub fn connect(ns: &Netns, server: SocketAddr) -> Result<TcpStream> {
    ns.run(|| connect_here(server))
}

/// Connects from the calling thread's namespace.
pub fn connect_here(server: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&server, IO_LIMIT)
        .with_context(|| format!("connect to {server}"))?;
    stream.set_nodelay(true)?;
    limit_io(&stream)?;
    Ok(stream)
}

/// Turns SO_KEEPALIVE on at a listener: after `time` of silence its clients are probed, again after
/// as long, and given up after this many probes without an answer.
pub fn probe_clients(listener: &Listener, time: Duration, probes: u32) -> Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(time)
        .with_interval(time)
        .with_retries(probes);
    socket2::SockRef::from(listener.socket())
        .set_tcp_keepalive(&keepalive)
        .context("SO_KEEPALIVE")
}

/// Makes the next close of a connection send a reset, and drop what is not sent.
pub fn reset_on_close(stream: &TcpStream) -> Result<()> {
    socket2::SockRef::from(stream)
        .set_linger(Some(Duration::ZERO))
        .context("SO_LINGER")
}

/// Makes a socket that is about to connect send no bare ACK: the first data is the handshake's
/// third segment.
pub fn let_data_carry_the_ack(socket: impl AsFd) -> Result<()> {
    // On a client's socket, Linux takes a deferred accept as "data will follow at once, wait with
    // the ACK".
    set_defer_accept(socket, 1)
}

/// Sets the kernel's own `TCP_DEFER_ACCEPT`, in seconds.
pub fn set_defer_accept(socket: impl AsFd, seconds: i32) -> Result<()> {
    set_tcp_option(socket, libc::TCP_DEFER_ACCEPT, seconds).context("TCP_DEFER_ACCEPT")
}

/// Returns the kernel's own `TCP_DEFER_ACCEPT`, in seconds as the kernel has rounded them.
pub fn defer_accept(socket: impl AsFd) -> Result<i32> {
    tcp_option(socket, libc::TCP_DEFER_ACCEPT).context("TCP_DEFER_ACCEPT")
}

/// Sets one of TCP's options that are numbers.
pub fn set_tcp_option(socket: impl AsFd, name: i32, value: i32) -> io::Result<()> {
    let value = value.to_ne_bytes();
    sys::set_option(socket.as_fd(), libc::IPPROTO_TCP, name, &value)
}

/// Returns one of TCP's options that are numbers.
pub fn tcp_option(socket: impl AsFd, name: i32) -> io::Result<i32> {
    let mut value = [0; 4];
    sys::get_option(socket.as_fd(), libc::IPPROTO_TCP, name, &mut value)?;
    Ok(i32::from_ne_bytes(value))
}

/// Makes an idle connection ask every second whether the other side is still there.
pub fn keep_alive(stream: &TcpStream) -> Result<()> {
    let second = Duration::from_secs(1);
    socket2::SockRef::from(stream)
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(second).with_interval(second))
        .context("SO_KEEPALIVE")
}

/// Takes a socket's connection apart, so that it may listen or connect again: `connect()` to
/// `AF_UNSPEC`.
pub fn disconnect(socket: impl AsFd) -> io::Result<()> {
    sys::disconnect(socket.as_fd())
}

fn limit_io(stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(IO_LIMIT))?;
    stream.set_write_timeout(Some(IO_LIMIT))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_an_age_happened_between_two_points_in_time() {
        let ms = |ms| Stamp::from_epoch(Duration::from_millis(ms));
        let made = Between::of_age(Duration::from_millis(4), ms(100), ms(112));
        assert_eq!(
            made,
            Between {
                from: ms(96),
                to: ms(108)
            }
        );
        assert_eq!(made.length(), Duration::from_millis(12));
        // It was accepted before its age was asked for.
        assert_eq!(made.not_after(ms(99)).to, ms(99));
        assert_eq!(made.not_after(ms(99)).from, ms(96));
        assert_eq!(made.not_after(ms(90)), Between::from(ms(90)));
    }
}
