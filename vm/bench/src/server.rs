// SPDX-License-Identifier: MIT OR Apache-2.0
//! The servers that are measured: the same program at each kind of listener, so that all
//! differences are the kernel's.
//!
//! Both read a request up to its empty line, write [`RESPONSE`] and close. The one with epoll does
//! what libuv, Go and most others do: it accepts until the queue is empty, and reads from each
//! connection at once, which is what `dataready` and `TCP_DEFER_ACCEPT` are for. It adds a
//! connection to the epoll set only if its request is not complete. (nginx accepts one connection
//! for each wake-up unless `multi_accept` is set, and reads at once if `deferred` is set.)

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{mpsc, Arc};
use std::thread::JoinHandle;

use accf_kit::endpoint::{Listen, Listener};
use accf_kit::netns::{self, Netns};
use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::{gettid, Pid};
use socket2::Socket;

use crate::rounds::RESPONSE;

/// The end of a request.
const END: &[u8] = b"\r\n\r\n";
/// The maximum length of a request.
const LONGEST: usize = 256;
/// The number of events that one `epoll_wait()` returns at most.
const EVENTS: usize = 64;
/// The listener's number in the epoll set; no descriptor has it.
const LISTENER: u64 = u64::MAX;

/// How a server waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// For all connections at once, with epoll.
    Epoll,
    /// For one connection, in `accept()` and then in `read()`.
    Blocking,
}

/// What a server has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Connections answered and closed.
    pub(crate) answered: u64,
    /// System calls, including the one it waits in.
    pub(crate) system_calls: u64,
    /// How often it slept and was woken up again (without the present sleep). The kernel calls
    /// these voluntary context switches.
    pub(crate) wakeups: u64,
    /// How often it lost the processor to another thread although it could run.
    pub(crate) preemptions: u64,
}

impl Usage {
    /// Returns the growth since an earlier usage of the same server.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            answered: self.answered - earlier.answered,
            system_calls: self.system_calls - earlier.system_calls,
            wakeups: self.wakeups - earlier.wakeups,
            preemptions: self.preemptions - earlier.preemptions,
        }
    }

    /// Returns how often another thread got the processor in its place.
    pub(crate) fn context_switches(&self) -> u64 {
        self.wakeups + self.preemptions
    }
}

/// A server with one listener, on a thread of its own.
#[derive(Debug)]
pub(crate) struct Server {
    listener: Arc<Listener>,
    counts: Arc<Counts>,
    thread: Pid,
    handle: JoinHandle<Result<()>>,
}

impl Server {
    /// Opens a listener in a namespace and serves it.
    pub(crate) fn start(ns: &Netns, kind: Kind, listen: &Listen) -> Result<Self> {
        Self::serve(ns, kind, Arc::new(listen.open(ns)?))
    }

    /// Serves a listener that is already open.
    pub(crate) fn serve(ns: &Netns, kind: Kind, listener: Arc<Listener>) -> Result<Self> {
        let counts = Arc::new(Counts::default());
        let (started, start) = mpsc::channel();
        let handle = {
            let (listener, counts) = (listener.clone(), counts.clone());
            ns.spawn(move || {
                started.send(gettid())?;
                drop(started);
                match kind {
                    Kind::Epoll => serve_with_epoll(&listener, &counts),
                    Kind::Blocking => serve_blocking(listener.socket(), &counts),
                }
            })
        };
        let Ok(thread) = start.recv() else {
            netns::join(handle)?;
            anyhow::bail!("a server ended before it began");
        };
        Ok(Self {
            listener,
            counts,
            thread,
            handle,
        })
    }

    /// Returns the port it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.listener.port()
    }

    /// Returns its listener.
    pub(crate) fn listener(&self) -> &Listener {
        &self.listener
    }

    /// Returns what it has done so far. The call costs the server nothing.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let path = format!("/proc/self/task/{}/status", self.thread);
        let status = fs::read_to_string(&path)
            .with_context(|| format!("{path}: has the server ended by itself?"))?;
        let field = |name: &str| -> Result<u64> {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            let value = value.with_context(|| format!("{path} has no {name}"))?;
            value.trim().parse().with_context(|| name.to_owned())
        };
        Ok(Usage {
            answered: self.counts.answered.load(Ordering::Relaxed),
            system_calls: self.counts.system_calls.load(Ordering::Relaxed),
            wakeups: field("voluntary_ctxt_switches:")?,
            preemptions: field("nonvoluntary_ctxt_switches:")?,
        })
    }

    /// Stops it, closes its listener, and returns what it had done before.
    ///
    /// A blocking server that waits for a client's request stops once that has arrived.
    pub(crate) fn stop(self) -> Result<Usage> {
        let usage = self.usage();
        // Its `accept()` fails from now on.
        self.listener.socket().shutdown(Shutdown::Both)?;
        netns::join(self.handle).context("a server")?;
        usage
    }
}

/// The counters that a server keeps itself.
#[derive(Debug, Default)]
struct Counts {
    answered: AtomicU64,
    system_calls: AtomicU64,
}

impl Counts {
    /// Makes a system call, counts it, and returns its result; `None` if it would have blocked.
    fn call<T>(&self, mut call: impl FnMut() -> io::Result<T>) -> io::Result<Option<T>> {
        loop {
            // Only this thread writes it: a locked instruction is not needed.
            add_one(&self.system_calls);
            match call() {
                Ok(value) => return Ok(Some(value)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Accepts a connection; `None` if the queue is empty.
    fn accept(&self, listener: &Socket, flags: i32) -> io::Result<Option<Socket>> {
        let accepted = self.call(|| listener.accept4(flags | libc::SOCK_CLOEXEC))?;
        Ok(accepted.map(|(socket, _)| socket))
    }
}

/// Adds one to a counter that no other thread writes.
fn add_one(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// A connection, and the part of its request that has arrived.
#[derive(Debug)]
struct Connection {
    socket: Socket,
    request: [u8; LONGEST],
    length: usize,
}

/// The state of a connection after a read.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    /// More of its request must arrive.
    Incomplete,
    /// It was answered, or the client has closed it.
    Done,
}

impl Connection {
    fn new(socket: Socket) -> Self {
        Self {
            socket,
            request: [0; LONGEST],
            length: 0,
        }
    }

    /// Reads what has arrived, and answers once the request is complete.
    fn proceed(&mut self, counts: &Counts) -> io::Result<Progress> {
        loop {
            let room = self.request.get_mut(self.length..).unwrap_or_default();
            let Some(length) = counts.call(|| (&self.socket).read(room))? else {
                return Ok(Progress::Incomplete);
            };
            self.length += length;
            let request = self.request.get(..self.length).unwrap_or_default();
            if request.ends_with(END) {
                // A response this short always fits into the send buffer.
                counts.call(|| (&self.socket).write(RESPONSE))?;
                add_one(&counts.answered);
                return Ok(Progress::Done);
            }
            if length == 0 {
                return Ok(Progress::Done);
            }
        }
    }

    /// Closes it.
    fn close(self, counts: &Counts) {
        add_one(&counts.system_calls);
        drop(self.socket);
    }
}

/// Returns whether the error is that of a listener shut down by [`Server::stop`].
fn is_shut_down(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EINVAL as i32)
}

/// Serves all connections at once, until the listener is shut down.
fn serve_with_epoll(listener: &Listener, counts: &Counts) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut waiting = BTreeMap::new();
    let mut events = [EpollEvent::empty(); EVENTS];
    loop {
        let ready = counts.call(|| Ok(epoll.wait(&mut events, EpollTimeout::NONE)?))?;
        for event in events.iter().take(ready.unwrap_or(0)) {
            if event.data() == LISTENER {
                loop {
                    match counts.accept(listener.socket(), libc::SOCK_NONBLOCK) {
                        Ok(Some(socket)) => {
                            serve_new(Connection::new(socket), &epoll, &mut waiting, counts)?;
                        }
                        Ok(None) => break,
                        Err(error) if is_shut_down(&error) => return Ok(()),
                        Err(error) => return Err(error).context("accept"),
                    }
                }
            } else if let Some(mut connection) = waiting.remove(&event.data()) {
                match connection.proceed(counts) {
                    Ok(Progress::Incomplete) => {
                        waiting.insert(event.data(), connection);
                    }
                    // A reset connection is closed, too.
                    Ok(Progress::Done) | Err(_) => connection.close(counts),
                }
            }
        }
    }
}

/// Serves a new connection, and adds it to the epoll set if its request is not complete yet.
fn serve_new(
    mut connection: Connection,
    epoll: &Epoll,
    waiting: &mut BTreeMap<u64, Connection>,
    counts: &Counts,
) -> Result<()> {
    if !matches!(connection.proceed(counts), Ok(Progress::Incomplete)) {
        connection.close(counts);
        return Ok(());
    }
    let number = u64::try_from(connection.socket.as_raw_fd())?;
    let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
    counts.call(|| Ok(epoll.add(&connection.socket, event)?))?;
    waiting.insert(number, connection);
    Ok(())
}

/// Serves one connection after another, until the listener is shut down.
fn serve_blocking(listener: &Socket, counts: &Counts) -> Result<()> {
    listener.set_nonblocking(false)?;
    loop {
        let socket = match counts.accept(listener, 0) {
            Ok(socket) => socket.context("a blocking accept() did not block")?,
            Err(error) if is_shut_down(&error) => return Ok(()),
            Err(error) => return Err(error).context("accept"),
        };
        let mut connection = Connection::new(socket);
        if let Ok(progress) = connection.proceed(counts) {
            ensure!(
                progress == Progress::Done,
                "a blocking read() did not block"
            );
        }
        connection.close(counts);
    }
}
