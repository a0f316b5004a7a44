// SPDX-License-Identifier: MIT OR Apache-2.0

//! Clients that are the kernel's own sockets. The thread that runs them must be in their namespace.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{bail, ensure, Context as _, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Acted, Behaviour, Clients, Event, Fate, Limit, Mix, Pace, Target, Timing, Transport};
use crate::endpoint::let_data_carry_the_ack;
use crate::exchange::{reply, request};
use crate::netns::{join_scoped, Netns};

/// Kinds of clients, and how many of a hundred are of each.
pub const MIX: &Mix = &[
    (Behaviour::DataInAck, 10),
    (Behaviour::DataAtOnce, 15),
    (Behaviour::DataLater, 25),
    (Behaviour::FinLater, 12),
    (Behaviour::CloseLater, 10),
    (Behaviour::ResetLater, 10),
    (Behaviour::Silent, 18),
];

#[derive(Debug)]
struct Connection {
    socket: Socket,
    connected: bool,
    request: Vec<u8>,
    sent: usize,
    heard: Vec<u8>,
}

/// The sockets of many clients.
#[derive(Debug)]
pub struct Sockets {
    epoll: Epoll,
    /// How many bytes a request has besides its client's name.
    most_bytes: u16,
    connections: HashMap<u32, Connection>,
    /// The name of the client with the number 0.
    first_name: u64,
    rng: fastrand::Rng,
}

impl Sockets {
    /// Makes sockets for clients whose names are those of no others. With each request go up to
    /// `most_bytes` random bytes; if that is more than none, then also the end of the stream, and
    /// the reply is read up to its end.
    pub fn new(most_bytes: u16, mut rng: fastrand::Rng) -> Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            most_bytes,
            connections: HashMap::new(),
            first_name: rng.u64(..) & !0xffff_ffff,
            rng,
        })
    }

    /// Makes clients of some listeners, each with a name. They pause for at most a quarter of the
    /// shortest deadline. `margin` is how much later than a client acts its server may notice, and
    /// `limit` how long a client may take, beyond its silence.
    pub fn clients(
        targets: Vec<Target>,
        margin: Duration,
        limit: Duration,
        mut rng: fastrand::Rng,
    ) -> Result<Clients<Self>> {
        let deadlines = targets.iter().filter_map(|it| it.policy.deadline);
        let pause = deadlines.min().unwrap_or_default() / 4;
        let timing = Timing {
            pause: Duration::ZERO..pause.max(Duration::from_millis(2)),
            margin,
            limit: Limit::Each(limit),
        };
        let sockets = Self::new(0, rng.fork())?;
        Ok(Clients::new(sockets, targets, MIX, timing, rng))
    }
}

impl Sockets {
    fn to_the_end(&self) -> bool {
        self.most_bytes > 0
    }
}

impl Clients<Sockets> {
    /// Runs the clients in a namespace on a thread of its own ([`Clients::run`]), while this thread
    /// does something else, over and over again.
    pub fn run_in(
        &mut self,
        ns: &Netns,
        pace: Pace,
        more: impl FnMut(u64) -> bool + Send,
        mut meanwhile: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let gone = AtomicBool::new(false);
        thread::scope(|scope| {
            let clients = scope.spawn(|| -> Result<()> {
                ns.enter()?;
                let result = self.run(pace, more);
                gone.store(true, Ordering::Relaxed);
                result
            });
            while !gone.load(Ordering::Relaxed) && !clients.is_finished() {
                meanwhile()?;
            }
            join_scoped(clients)
        })
    }
}

impl Transport for Sockets {
    fn connect(&mut self, id: u32, target: &Target, behaviour: Behaviour) -> Result<Option<Fate>> {
        let socket = Socket::new(
            Domain::for_address(target.address),
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )
        .context("a client's socket")?;
        socket.set_tcp_nodelay(true)?;
        if behaviour == Behaviour::DataInAck {
            let_data_carry_the_ack(&socket)?;
        }
        match socket.connect(&target.address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
            Err(error) => return fate_of(&error).map(Some),
        }
        let flags = EpollFlags::EPOLLIN
            | EpollFlags::EPOLLOUT
            | EpollFlags::EPOLLRDHUP
            | EpollFlags::EPOLLET;
        self.epoll
            .add(&socket, EpollEvent::new(flags, u64::from(id)))?;
        let name = self.first_name | u64::from(id);
        let request = match behaviour {
            Behaviour::FinLater => Vec::new(),
            _ => {
                let length = self.rng.u16(..=self.most_bytes);
                request(name, length, &mut self.rng)
            }
        };
        let connection = Connection {
            socket,
            connected: false,
            request,
            sent: 0,
            heard: Vec::new(),
        };
        self.connections.insert(id, connection);
        Ok(None)
    }

    fn act(&mut self, id: u32, behaviour: Behaviour) -> Result<Acted> {
        let to_the_end = self.to_the_end();
        let connection = self.connections.get_mut(&id).context("no such client")?;
        let acted = match behaviour {
            Behaviour::CloseLater => Ok(Acted::Over(Fate::Left)),
            // Its close is a reset.
            Behaviour::ResetLater => connection
                .socket
                .set_linger(Some(Duration::ZERO))
                .map(|()| Acted::Over(Fate::Left)),
            Behaviour::FinLater => connection
                .socket
                .shutdown(Shutdown::Write)
                .map(|()| Acted::Waits),
            Behaviour::HandshakeTwice | Behaviour::HalfOpen | Behaviour::ResetInsteadOfAck => {
                bail!("{behaviour:?} takes a client without the kernel's TCP")
            }
            Behaviour::DataInPieces => connection.send(4, to_the_end),
            Behaviour::DataInAck
            | Behaviour::DataAtOnce
            | Behaviour::DataLater
            | Behaviour::Silent => connection.send(1, to_the_end),
        };
        match acted {
            Ok(acted) => Ok(acted),
            // It was reset, or ended, before: not connected any more.
            Err(error) if error.raw_os_error() == Some(Errno::ENOTCONN as i32) => {
                Ok(Acted::Over(Fate::Reset))
            }
            Err(error) => fate_of(&error).map(Acted::Over),
        }
    }

    fn wait(&mut self, limit: Duration, events: &mut Vec<(u32, Event)>) -> Result<()> {
        let mut ready = [EpollEvent::empty(); 64];
        // One more millisecond, so that a rest below one is slept and not spun.
        let timeout = EpollTimeout::try_from(limit + Duration::from_micros(999))?;
        let count = match self.epoll.wait(&mut ready, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error).context("epoll"),
        };
        let to_the_end = self.to_the_end();
        for event in ready.iter().take(count) {
            let id = u32::try_from(event.data())?;
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            if !connection.connected {
                if let Some(error) = connection.socket.take_error()? {
                    events.push((id, Event::Over(fate_of(&error)?)));
                    continue;
                }
                match connection.socket.peer_addr() {
                    Ok(_) => {}
                    // Not yet.
                    Err(error) if error.raw_os_error() == Some(Errno::ENOTCONN as i32) => continue,
                    Err(error) => return Err(error).context("a client's peer"),
                }
                connection.connected = true;
                events.push((id, Event::Connected));
            }
            let fate = connection.receive(to_the_end);
            if let Some(fate) = fate.with_context(|| format!("client {id}"))? {
                events.push((id, Event::Over(fate)));
            }
        }
        Ok(())
    }

    fn close(&mut self, id: u32, fate: Fate) {
        if let Some(connection) = self.connections.remove(&id) {
            // Some clients reset at the end, and some do it the long way.
            if !self.to_the_end() && fate == Fate::Answered && self.rng.bool() {
                let _ = connection.socket.set_linger(Some(Duration::ZERO));
            }
        }
    }
}

impl Connection {
    /// Sends the next one of `pieces` pieces of the request.
    fn send(&mut self, pieces: usize, to_the_end: bool) -> io::Result<Acted> {
        const BETWEEN_PIECES: Duration = Duration::from_millis(3);
        let length = self.request.len().div_ceil(pieces);
        let rest = self.request.get(self.sent..).unwrap_or_default();
        let piece = rest.get(..length).unwrap_or(rest);
        (&self.socket).write_all(piece)?;
        self.sent += piece.len();
        if self.sent < self.request.len() {
            return Ok(Acted::Again(BETWEEN_PIECES));
        }
        if to_the_end {
            self.socket.shutdown(Shutdown::Write)?;
        }
        Ok(Acted::Waits)
    }

    /// Takes what there is to be read; returns the client's fate, if it has met it.
    fn receive(&mut self, to_the_end: bool) -> Result<Option<Fate>> {
        let mut buffer = [0; 4096];
        loop {
            let is_over = match (&self.socket).read(&mut buffer) {
                Ok(0) if to_the_end && !self.request.is_empty() => true,
                Ok(0) => return Ok(Some(Fate::Ended)),
                Ok(length) => {
                    self.heard.extend(buffer.iter().take(length));
                    let is_whole = self.heard.len() >= self.request.len();
                    // There may be more to come.
                    is_whole && (!to_the_end || self.heard.len() > self.request.len())
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => false,
                Err(error) => return fate_of(&error).map(Some),
            };
            if is_over {
                ensure!(
                    self.heard == reply(&self.request),
                    "after {} of {} bytes it reads {} bytes, or others",
                    self.sent,
                    self.request.len(),
                    self.heard.len()
                );
                return Ok(Some(Fate::Answered));
            }
        }
    }
}

fn fate_of(error: &io::Error) -> Result<Fate> {
    Ok(match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNRESET | Errno::EPIPE) => Fate::Reset,
        Some(Errno::ECONNREFUSED) => Fate::Refused,
        Some(Errno::ETIMEDOUT) => Fate::TimedOut,
        _ => bail!("a client's connection failed: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::Policy;
    use crate::control::OnTimeout;
    use crate::endpoint::{Family, Listen};
    use crate::server::{Served, Server};

    /// A plain listener accepts every client at once: as with a filter that accepts at the
    /// deadline.
    #[test]
    fn a_plain_listener_serves_every_client() {
        for most_bytes in [0, 4000] {
            let mut server = Server::new().unwrap();
            let listener = Listen::plain(Family::V4).open_here().unwrap();
            let policy = Policy {
                on_timeout: OnTimeout::Accept,
                deadline: Some(Duration::from_millis(200)),
                max_parked: 0,
            };
            let target = policy.at(Family::V4.loopback(listener.port()));
            server.add(listener).unwrap();
            let timing = Timing {
                pause: Duration::ZERO..Duration::from_millis(50),
                margin: Duration::ZERO,
                limit: Limit::Each(Duration::from_secs(20)),
            };
            let rng = fastrand::Rng::with_seed(1);
            let sockets = Sockets::new(most_bytes, rng.clone()).unwrap();
            let mut clients = Clients::new(sockets, vec![target], MIX, timing, rng);
            for (behaviour, _) in MIX {
                clients.begin_as(0, *behaviour).unwrap();
            }
            clients.begin_as(0, Behaviour::DataInPieces).unwrap();
            while clients.running() > 0 || server.guests() > 0 {
                server.step(Duration::from_millis(1)).unwrap();
                clients.step(Duration::from_millis(1)).unwrap();
            }
            assert_eq!(clients.complaints(0), Vec::<String>::new());
            assert_eq!(clients.tally().fates().values().sum::<u64>(), 8);
            let expected = Served {
                accepted: 8,
                with_data: 5,
                at_end: 2,
                silent: 0,
                broken: 1,
            };
            assert_eq!(server.served(0), expected);
        }
    }
}
