// SPDX-License-Identifier: MIT OR Apache-2.0

//! A server with many listeners and connections on one thread.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context as _, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::Socket;

use crate::account;
use crate::control::Stats;
use crate::endpoint::Listener;
use crate::exchange::{is_whole, reply, ANONYMOUS};

/// What a server saw at one of its listeners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Connections that were accepted.
    pub accepted: u64,
    /// Connections that had sent a request, and were answered if the server answers.
    pub with_data: u64,
    /// Connections that had ended without a byte.
    pub at_end: u64,
    /// Connections that had sent nothing yet when the server, which resets them, looked.
    pub silent: u64,
    /// Connections that were reset before they were answered or looked at.
    pub broken: u64,
}

impl Served {
    /// Adds what another thread of the same server saw.
    pub fn add(&mut self, other: &Self) {
        self.accepted += other.accepted;
        self.with_data += other.with_data;
        self.at_end += other.at_end;
        self.silent += other.silent;
        self.broken += other.broken;
    }
}

#[derive(Debug)]
struct Guest {
    socket: Socket,
    listener: usize,
    heard: Vec<u8>,
    answered: bool,
    since: Instant,
}

/// Listeners and their connections on one thread.
#[derive(Debug)]
pub struct Server {
    epoll: Epoll,
    /// Whether it looks at each connection once, and resets it.
    resets: bool,
    listeners: Vec<Option<Listener>>,
    served: Vec<Served>,
    guests: HashMap<u64, Guest>,
    next: u64,
    swept: Instant,
}

/// Where the numbers of connections begin; those of listeners are smaller.
const FIRST_GUEST: u64 = 1 << 32;

impl Server {
    /// Makes a server without a listener that answers each request.
    pub fn new() -> Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            resets: false,
            listeners: Vec::new(),
            served: Vec::new(),
            guests: HashMap::new(),
            next: FIRST_GUEST,
            swept: Instant::now(),
        })
    }

    /// Makes a server that looks once at each connection as it accepts it, and resets it. Its
    /// clients have no names.
    pub fn resetting() -> Result<Self> {
        let server = Self::new()?;
        Ok(Self {
            resets: true,
            ..server
        })
    }

    /// Takes over a listener, and returns its number.
    pub fn add(&mut self, listener: Listener) -> Result<usize> {
        let index = self.listeners.len();
        self.watch(index, &listener)?;
        self.listeners.push(Some(listener));
        self.served.push(Served::default());
        Ok(index)
    }

    /// Gives the number of a listener that was taken out to another one.
    pub fn put_back(&mut self, index: usize, listener: Listener) -> Result<()> {
        self.watch(index, &listener)?;
        let slot = self.listeners.get_mut(index).context("no such listener")?;
        ensure!(slot.is_none(), "there is a listener {index}");
        *slot = Some(listener);
        Ok(())
    }

    fn watch(&self, index: usize, listener: &Listener) -> Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, index as u64);
        self.epoll
            .add(listener.as_fd(), event)
            .context("watch a listener")
    }

    /// Takes a listener out; its connections stay.
    pub fn take(&mut self, index: usize) -> Result<Option<Listener>> {
        let listener = self.listeners.get_mut(index).and_then(Option::take);
        if let Some(listener) = &listener {
            self.epoll
                .delete(listener.as_fd())
                .context("a listener that is not watched")?;
        }
        Ok(listener)
    }

    /// Returns a listener, if it is there.
    pub fn listener(&self, index: usize) -> Option<&Listener> {
        self.listeners.get(index)?.as_ref()
    }

    /// Returns what it saw at a listener.
    pub fn served(&self, index: usize) -> Served {
        self.served.get(index).copied().unwrap_or_default()
    }

    /// Serves until it is over, and then until nothing comes any more and no connection is left.
    pub fn run(&mut self, over: &AtomicBool) -> Result<()> {
        loop {
            let last = over.load(Ordering::Relaxed);
            let any = self.step(Duration::from_millis(50))?;
            if last && !any && self.guests.is_empty() {
                return Ok(());
            }
        }
    }

    /// Serves until a listener is at rest, and returns its counts.
    pub fn settle(&mut self, index: usize, limit: Duration) -> Result<Stats> {
        self.settle_as(index, limit, account::at_rest)
    }

    /// The same where `is_at_rest` tells what that is.
    pub fn settle_as(
        &mut self,
        index: usize,
        limit: Duration,
        is_at_rest: fn(&Stats) -> Result<()>,
    ) -> Result<Stats> {
        let listener = self.listener(index).context("no such listener")?;
        let copy = listener.socket().try_clone()?;
        let seen = account::settle(copy, limit, is_at_rest, || self.serve_all())?;
        // The last connections to be accepted are in the queue by now.
        self.serve_all()?;
        Ok(seen)
    }

    /// Serves until there is nothing to do.
    fn serve_all(&mut self) -> Result<()> {
        while self.step(Duration::from_millis(10))? {}
        Ok(())
    }

    /// Returns how many connections it has.
    pub fn guests(&self) -> usize {
        self.guests.len()
    }

    /// Serves for a while at most; returns whether there was anything to do.
    pub fn step(&mut self, limit: Duration) -> Result<bool> {
        /// How long a connection stays whose client is never heard of again.
        const IDLE: Duration = Duration::from_secs(60);
        let mut events = [EpollEvent::empty(); 64];
        let timeout = EpollTimeout::try_from(limit)?;
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error).context("epoll"),
        };
        for event in events.iter().take(count) {
            let number = event.data();
            if number < FIRST_GUEST {
                self.accept(usize::try_from(number)?)?;
            } else {
                self.serve(number)?;
            }
        }
        if self.swept.elapsed() > Duration::from_secs(5) {
            self.swept = Instant::now();
            self.guests.retain(|_, guest| guest.since.elapsed() < IDLE);
        }
        Ok(count > 0)
    }

    fn accept(&mut self, index: usize) -> Result<()> {
        /// A budget: other listeners get their turn.
        const AT_ONCE: usize = 32;
        for _ in 0..AT_ONCE {
            let Some(listener) = self.listener(index) else {
                return Ok(());
            };
            let socket = match listener.socket().accept() {
                Ok((socket, _)) => socket,
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EAGAIN) => return Ok(()),
                    // It has just been shut down, or the connection has.
                    Some(Errno::EINVAL | Errno::ECONNABORTED) => return Ok(()),
                    _ => return Err(error).context("accept"),
                },
            };
            socket.set_nonblocking(true)?;
            let served = self.served.get_mut(index).context("no such listener")?;
            served.accepted += 1;
            if self.resets {
                look_and_reset(&socket, served)?;
                continue;
            }
            let name = self.next;
            self.next += 1;
            self.epoll
                .add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, name))?;
            self.guests.insert(
                name,
                Guest {
                    socket,
                    listener: index,
                    heard: Vec::new(),
                    answered: false,
                    since: Instant::now(),
                },
            );
        }
        Ok(())
    }

    fn serve(&mut self, number: u64) -> Result<()> {
        let Some(guest) = self.guests.get_mut(&number) else {
            return Ok(());
        };
        let Some(served) = self.served.get_mut(guest.listener) else {
            bail!("a connection of no listener");
        };
        let mut buffer = [0; 4096];
        loop {
            match (&guest.socket).read(&mut buffer) {
                Ok(0) => {
                    served.at_end += u64::from(!guest.answered);
                    break;
                }
                Ok(length) => {
                    guest.heard.extend(buffer.iter().take(length));
                    if !is_whole(&guest.heard)? {
                        continue;
                    }
                    guest.answered = true;
                    if (&guest.socket).write_all(&reply(&guest.heard)).is_err() {
                        served.broken += 1;
                        break;
                    }
                    served.with_data += 1;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    served.broken += u64::from(!guest.answered);
                    break;
                }
            }
        }
        self.guests.remove(&number);
        Ok(())
    }
}

/// Looks whether a connection that was just accepted has sent something. Its close is a reset,
/// which ends the client, and leaves nothing behind.
fn look_and_reset(mut socket: &Socket, served: &mut Served) -> Result<()> {
    let mut buffer = [0; 256];
    let seen = match socket.read(&mut buffer) {
        Ok(0) => &mut served.at_end,
        Ok(length) => {
            ensure!(
                buffer.get(..length) == Some(ANONYMOUS),
                "{length} bytes that no client sent"
            );
            &mut served.with_data
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => &mut served.silent,
        Err(_) => &mut served.broken,
    };
    *seen += 1;
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(())
}
