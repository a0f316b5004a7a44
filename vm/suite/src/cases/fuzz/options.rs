// SPDX-License-Identifier: MIT OR Apache-2.0

//! `setsockopt()` and `getsockopt()` with every length, from valid and invalid memory, on sockets
//! in every state.
//!
//! The expected result of each call is computed here from `module/uapi/accf.h`, and for `TCP_ULP`
//! from the README's table.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use accf_kit::control::{accf_config, accf_stats, ACCF_CONFIG, ACCF_STATS, SOL_ACCF};
use accf_kit::endpoint::{bound, defer_accept, disconnect, Family};
use accf_kit::memory::{Memory, Place};
use accf_kit::netns::Netns;
use accf_kit::ulp::{self, DATAREADY};
use anyhow::{bail, ensure, Context as _, Result};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::setresuid;
use socket2::{Domain, Protocol, Socket, Type};

use crate::case::{case, expect_eq, once, Context};
use crate::fuzz::{self, bytes, special, Fed};

/// The size of `struct accf_config`.
const CONFIG: usize = 24;
/// Its size in programs that do not know the field `state`.
const CONFIG_WITHOUT_STATE: usize = 12;
/// The size of `struct accf_stats`.
const STATS: usize = 8 * (30 + 32) + 4 * 24;
/// The most bytes that `setsockopt()` takes.
const PAGE: usize = 4096;
/// The defaults of the module's parameters.
const DEFAULTS: Config = Config {
    timeout_ms: 60_000,
    max_parked: 16_384,
    on_timeout: 0,
    state: 0,
    on_close: 0,
    probe_ms: 0,
};

const _: () = assert!(size_of::<accf_config>() == CONFIG && size_of::<accf_stats>() == STATS);

/// The settings of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Config {
    timeout_ms: u32,
    max_parked: u32,
    on_timeout: u32,
    state: u32,
    on_close: u32,
    probe_ms: u32,
}

impl Config {
    fn bytes(self) -> Vec<u8> {
        [
            self.timeout_ms,
            self.max_parked,
            self.on_timeout,
            self.state,
            self.on_close,
            self.probe_ms,
        ]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
    Mptcp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Neither listening nor connected: new, bound, or shut down.
    Idle,
    Listening,
    Connected,
}

/// A socket, and its expected state.
struct Subject {
    socket: Socket,
    kind: Kind,
    family: Family,
    state: State,
    /// The filter's settings, if it has one.
    filter: Option<Config>,
    /// The value of `TCP_DEFER_ACCEPT` that the filter has not taken over yet, in seconds.
    deferred: Option<u32>,
    /// Whether this process may set any `max_parked`.
    privileged: bool,
    /// The other ends of its connections.
    _others: Vec<Socket>,
}

/// A call on a socket.
#[derive(Clone, Debug)]
enum Op {
    Set {
        level: i32,
        name: i32,
        place: Place,
        value: Vec<u8>,
        length: i32,
    },
    Get {
        level: i32,
        name: i32,
        place: Place,
        length: i32,
    },
    /// Whether the length can be read, too.
    GetBy {
        name: i32,
        place: Place,
        length: Place,
    },
    Listen(i32),
    ShutDown,
    Disconnect,
    Connect,
}

impl fmt::Display for Op {
    /// A long value without the zeros at its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Set {
            level,
            name,
            place,
            value,
            length,
        } = self
        else {
            return write!(f, "{self:?}");
        };
        let last = value.iter().rposition(|byte| *byte != 0);
        let some = value.get(..last.map_or(0, |last| last + 1));
        write!(
            f,
            "Set {length} bytes of level {level:#x}, option {name}, {place:?}: {some:?}, {} in all",
            value.len()
        )
    }
}

case!(Fuzz, "fuzz.options" => each_family, options(true));
case!(Fuzz, "fuzz.options_unprivileged.v4" => once(|context| options(context, Family::V4, false)));
fn options(context: &Context, family: Family, privileged: bool) -> Result<()> {
    const UNPRIVILEGED: u32 = 65_534;
    let ns = Netns::new()?;
    ns.enter()?;
    if !privileged {
        setresuid(
            UNPRIVILEGED.into(),
            UNPRIVILEGED.into(),
            UNPRIVILEGED.into(),
        )
        .context("become an unprivileged user")?;
    }
    let mut memory = Memory::new()?;
    let peer = bound(family, 0, false)?;
    peer.listen(64)?;
    let needed = ["set", "set and taken", "get", "attach", "defer"];
    fuzz::rounds(context, &needed, |rng, fed| {
        round(rng, fed, &mut memory, &peer, family, privileged)
    })
}

/// Plays the life of one socket.
fn round(
    rng: &mut fastrand::Rng,
    fed: &mut Fed,
    memory: &mut Memory,
    peer: &Socket,
    family: Family,
    privileged: bool,
) -> Result<()> {
    const LAST: usize = 12;
    let Some(mut subject) = Subject::born(rng, peer, family, privileged)? else {
        return Ok(());
    };
    fed.one("sockets");
    let mut log = VecDeque::from([format!(
        "{:?}, {:?}, filter {:?}",
        subject.kind, subject.state, subject.filter
    )]);
    for _ in 0..rng.usize(10..80) {
        let op = subject.choose(rng);
        if log.len() == LAST {
            log.pop_front();
        }
        log.push_back(op.to_string());
        let text = |log: &VecDeque<String>| Vec::from(log.clone()).join("\n  ");
        subject
            .apply(memory, fed, peer, &op)
            .and_then(|()| match op {
                // Without the check, which takes a deferred value over, that value stays.
                Op::Set { level, .. } if level == libc::IPPROTO_TCP && rng.bool() => Ok(()),
                _ => subject.is_as_expected(),
            })
            .with_context(|| format!("the last calls:\n  {}\n", text(&log)))?;
    }
    Ok(())
}

/// Returns the address of a peer for sockets of a family.
fn address_of(peer: &Socket, family: Family) -> Result<SocketAddr> {
    let port = peer.local_addr()?.as_socket().context("no address")?.port();
    let ip = family.as_seen(family.loopback(port).ip());
    Ok((ip, port).into())
}

/// Makes closing a socket a reset, which leaves nothing behind.
fn forget(socket: &Socket) -> Result<()> {
    Ok(socket.set_linger(Some(Duration::ZERO))?)
}

/// Returns the seconds of `TCP_DEFER_ACCEPT` as TCP rounds them up: the sum of intervals that
/// double, to two minutes at most.
fn rounded(seconds: u32) -> u32 {
    let (mut sum, mut interval, mut retries) = (1, 1, 1);
    while seconds > sum && retries < 255 {
        interval = (interval * 2).min(120);
        sum += interval;
        retries += 1;
    }
    sum
}

impl Subject {
    fn born(
        rng: &mut fastrand::Rng,
        peer: &Socket,
        family: Family,
        privileged: bool,
    ) -> Result<Option<Self>> {
        let domain = if family == Family::V4 {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        let new = |kind: Kind| match kind {
            Kind::Tcp => Socket::new(domain, Type::STREAM, Some(Protocol::TCP)),
            Kind::Udp => Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)),
            Kind::Mptcp => Socket::new(domain, Type::STREAM, Some(Protocol::from(262))),
        };
        let subject = |socket: Socket, kind: Kind, state: State, others: Vec<Socket>| Self {
            socket,
            kind,
            family,
            state,
            filter: None,
            deferred: None,
            privileged,
            _others: others,
        };
        Ok(Some(match rng.u8(..16) {
            0..=2 => subject(new(Kind::Tcp)?, Kind::Tcp, State::Idle, Vec::new()),
            3..=6 => subject(bound(family, 0, false)?, Kind::Tcp, State::Idle, Vec::new()),
            7..=10 => {
                let socket = bound(family, 0, false)?;
                socket.listen(8)?;
                subject(socket, Kind::Tcp, State::Listening, Vec::new())
            }
            11 => subject(new(Kind::Udp)?, Kind::Udp, State::Idle, Vec::new()),
            12 => match new(Kind::Mptcp) {
                Ok(socket) => subject(socket, Kind::Mptcp, State::Idle, Vec::new()),
                // This kernel has no MPTCP.
                Err(_) => return Ok(None),
            },
            13 => {
                let socket = new(Kind::Tcp)?;
                socket.connect(&address_of(peer, family)?.into())?;
                forget(&socket)?;
                let (other, _) = peer.accept()?;
                subject(socket, Kind::Tcp, State::Connected, vec![other])
            }
            // A filtered listener's child, whose client has sent something.
            _ => {
                let listener = bound(family, 0, false)?;
                ulp::attach(&listener, DATAREADY)?;
                listener.listen(8)?;
                let mut client = TcpStream::connect(address_of(&listener, family)?)?;
                client.write_all(b"?")?;
                let (socket, _) = listener.accept()?;
                forget(&socket)?;
                subject(
                    socket,
                    Kind::Tcp,
                    State::Connected,
                    vec![client.into(), listener],
                )
            }
        }))
    }

    /// Returns the next call.
    fn choose(&self, rng: &mut fastrand::Rng) -> Op {
        let whole = Place::BeforeEnd(Memory::ROOM);
        let may_attach =
            self.filter.is_none() && self.kind == Kind::Tcp && self.state != State::Connected;
        if may_attach && rng.u8(..4) == 0 {
            return Op::Set {
                level: libc::IPPROTO_TCP,
                name: libc::TCP_ULP,
                place: whole,
                value: DATAREADY.as_bytes().to_vec(),
                length: 9,
            };
        }
        match rng.u8(..100) {
            // A valid call.
            0..=12 => Op::Set {
                level: SOL_ACCF,
                name: ACCF_CONFIG,
                place: whole,
                value: self.value(rng),
                length: if rng.u8(..4) == 0 {
                    CONFIG_WITHOUT_STATE as i32
                } else {
                    CONFIG as i32
                },
            },
            13..=39 => Op::Set {
                level: level(rng),
                name: name(rng),
                place: place(rng),
                value: self.value(rng),
                length: length(rng, CONFIG),
            },
            40..=64 => {
                let name = name(rng);
                let size = if name == ACCF_STATS { STATS } else { CONFIG };
                Op::Get {
                    level: level(rng),
                    name,
                    place: place(rng),
                    length: length(rng, size),
                }
            }
            65..=69 => Op::GetBy {
                name: name(rng),
                place: place(rng),
                length: place(rng),
            },
            70..=79 => {
                let mut value = self.ulp_name(rng);
                let length = if rng.u8(..4) == 0 {
                    length(rng, value.len())
                } else {
                    i32::try_from(value.len()).unwrap_or(0)
                };
                // A name ends at a zero byte.
                if rng.bool() {
                    value.push(0);
                }
                Op::Set {
                    level: libc::IPPROTO_TCP,
                    name: libc::TCP_ULP,
                    place: place(rng),
                    value,
                    length,
                }
            }
            80..=89 => Op::Set {
                level: libc::IPPROTO_TCP,
                name: libc::TCP_DEFER_ACCEPT,
                place: place(rng),
                value: if rng.bool() {
                    special(rng).to_ne_bytes().to_vec()
                } else {
                    rng.u32(..40).to_ne_bytes().to_vec()
                },
                length: if rng.bool() { 4 } else { length(rng, 4) },
            },
            90..=94 => Op::Listen(i32::from(rng.i8(..))),
            95..=96 => Op::ShutDown,
            97 => Op::Disconnect,
            _ => Op::Connect,
        }
    }

    /// Returns a value for a configuration, often a valid one.
    fn value(&self, rng: &mut fastrand::Rng) -> Vec<u8> {
        let config = Config {
            timeout_ms: special(rng),
            max_parked: special(rng),
            on_timeout: if rng.u8(..4) == 0 {
                special(rng)
            } else {
                rng.u32(..3)
            },
            state: if rng.u8(..6) == 0 {
                special(rng)
            } else {
                rng.u32(..2)
            },
            on_close: if rng.u8(..6) == 0 {
                special(rng)
            } else {
                rng.u32(..2)
            },
            probe_ms: if rng.u8(..2) == 0 { special(rng) } else { 0 },
        };
        let mut value = config.bytes();
        match rng.u8(..6) {
            // With other bytes behind it.
            0 => value.extend(bytes(rng, 100)),
            1 => {
                value.resize(rng.usize(CONFIG..2 * PAGE), 0);
                if rng.u8(..4) == 0 {
                    if let Some(last) = value.last_mut() {
                        *last = 1;
                    }
                }
            }
            2 => return bytes(rng, 200),
            // With zeros behind it.
            _ => value.resize(800, 0),
        }
        value
    }

    fn ulp_name(&self, rng: &mut fastrand::Rng) -> Vec<u8> {
        // With privileges, an unknown name makes the kernel start modprobe.
        let seldom = if self.privileged { 250 } else { 2 };
        if rng.u8(..seldom) == 0 {
            return match rng.u8(..4) {
                0 => b"datareadyX".to_vec(),
                1 => b"datareadydatareadydataready".to_vec(),
                2 => bytes(rng, 40),
                _ => b"dataread".to_vec(),
            };
        }
        // They would attach to a connection, which is out of scope.
        if rng.u8(..seldom) == 0 && self.state != State::Connected {
            return rng
                .choice([&b"tls"[..], b"mptcp"])
                .unwrap_or_default()
                .to_vec();
        }
        DATAREADY.as_bytes().to_vec()
    }

    fn apply(&mut self, memory: &mut Memory, fed: &mut Fed, peer: &Socket, op: &Op) -> Result<()> {
        match op {
            Op::Set {
                level,
                name,
                place,
                value,
                length,
            } => {
                let seen = memory.set(&self.socket, *level, *name, *place, value, *length);
                let given = content(*place, value, *length);
                match (*level, *name) {
                    (libc::IPPROTO_TCP, libc::TCP_ULP) => {
                        fed.one("attach");
                        self.attached(&given, *length, seen)
                    }
                    (libc::IPPROTO_TCP, _) => {
                        fed.one("defer");
                        self.set_deferred(&given, *length, seen)
                    }
                    _ => {
                        fed.one("set");
                        if seen.is_none() {
                            fed.one("set and taken");
                        }
                        self.set(*level, *name, &given, *length, seen)
                    }
                }
            }
            Op::Get {
                level,
                name,
                place,
                length,
            } => {
                fed.one("get");
                self.get(memory, *level, *name, *place, *length)
            }
            Op::GetBy {
                name,
                place,
                length,
            } => {
                fed.one("get");
                self.get_by(memory, *name, *place, *length)
            }
            Op::Listen(backlog) if self.kind == Kind::Tcp => {
                fed.one("other calls");
                let listened = self.socket.listen(*backlog);
                if self.state == State::Connected {
                    ensure!(listened.is_err(), "a connected socket listens");
                } else {
                    listened.context("listen")?;
                    self.state = State::Listening;
                }
                Ok(())
            }
            Op::ShutDown if self.state == State::Listening => {
                fed.one("other calls");
                self.socket.shutdown(Shutdown::Both).context("shutdown")?;
                self.state = State::Idle;
                Ok(())
            }
            Op::Disconnect if self.kind == Kind::Tcp => {
                fed.one("other calls");
                // Disconnecting may or may not clear a deferred value.
                self.settle_deferred()?;
                disconnect(&self.socket).context("disconnect")?;
                self.state = State::Idle;
                Ok(())
            }
            Op::Connect if self.kind == Kind::Tcp && self.state == State::Idle => {
                // With an IPv4 address TCP replaces the socket's operations, and ours with them.
                if self.family == Family::Mapped {
                    return Ok(());
                }
                fed.one("other calls");
                self.settle_deferred()?;
                self.socket
                    .connect(&address_of(peer, self.family)?.into())
                    .context("connect")?;
                forget(&self.socket)?;
                let (other, _) = peer.accept()?;
                self._others.push(other);
                self.state = State::Connected;
                Ok(())
            }
            Op::Listen(_) | Op::ShutDown | Op::Disconnect | Op::Connect => Ok(()),
        }
    }

    /// Takes a deferred value over, or clears it if there is no filter.
    fn settle_deferred(&mut self) -> Result<()> {
        if self.filter.is_some() {
            return self.is_as_expected();
        }
        accf_kit::endpoint::set_defer_accept(&self.socket, 0)?;
        self.deferred = None;
        Ok(())
    }

    /// Compares the socket with its expected state.
    fn is_as_expected(&mut self) -> Result<()> {
        if self.kind != Kind::Tcp {
            return Ok(());
        }
        let name = ulp::attached(&self.socket)?;
        let expected = self.filter.map(|_| DATAREADY.to_owned());
        expect_eq!(name, expected, "the name of the filter");
        let Some(config) = self.taken_over() else {
            return Ok(());
        };
        let mut value = [0; CONFIG];
        let length = accf_kit::control::get_bytes(&self.socket, SOL_ACCF, ACCF_CONFIG, &mut value)
            .context("read the configuration")?;
        expect_eq!(length, CONFIG, "length of the configuration");
        expect_eq!(
            value.to_vec(),
            config.bytes(),
            "the configuration, {config:?}"
        );
        expect_eq!(defer_accept(&self.socket)?, 0, "TCP_DEFER_ACCEPT");
        Ok(())
    }

    /// Returns the filter's settings, after taking over a deferred value.
    fn taken_over(&mut self) -> Option<Config> {
        let config = self.filter.as_mut()?;
        if let Some(seconds) = self.deferred.take() {
            config.timeout_ms = rounded(seconds) * 1000;
        }
        Some(*config)
    }

    /// Returns the error of `getsockopt()` for a socket without a filter.
    fn unknown_level(&self) -> Vec<Errno> {
        match (self.kind, self.family) {
            (Kind::Mptcp, _) | (_, Family::V4) => vec![Errno::EOPNOTSUPP],
            (_, Family::V6) => vec![Errno::ENOPROTOOPT],
            // The child of an IPv6 listener may be an IPv4 socket.
            (_, Family::Mapped) => vec![Errno::ENOPROTOOPT, Errno::EOPNOTSUPP],
        }
    }

    /// Checks `setsockopt()` of our level, or of one next to it. `given` are the bytes that can be
    /// read.
    fn set(
        &mut self,
        level: i32,
        name: i32,
        given: &[u8],
        length: i32,
        seen: Option<Errno>,
    ) -> Result<()> {
        let Ok(length) = usize::try_from(length) else {
            return one_of(seen, &[Errno::EINVAL]);
        };
        if self.filter.is_none() || level != SOL_ACCF || name != ACCF_CONFIG {
            return one_of(seen, &[Errno::ENOPROTOOPT]);
        }
        // Each of these is a reason to refuse the call; any of them may be reported.
        let mut reasons = Vec::new();
        if length < 4 {
            reasons.push(Errno::EINVAL);
        }
        if length > PAGE {
            reasons.push(Errno::E2BIG);
        }
        if given.len() < length {
            reasons.push(Errno::EFAULT);
        }
        if given.iter().skip(CONFIG).any(|byte| *byte != 0) {
            reasons.push(Errno::E2BIG);
        }
        let word = |nth: usize| {
            let mut word = [0; 4];
            let from = given.iter().skip(nth * 4);
            word.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            u32::from_ne_bytes(word)
        };
        let asked = Config {
            timeout_ms: word(0),
            max_parked: word(1),
            on_timeout: word(2),
            state: word(3),
            on_close: word(4),
            probe_ms: word(5),
        };
        let whole = given.len() >= length.min(CONFIG);
        if whole && (asked.on_timeout > 2 || asked.state > 1 || asked.on_close > 1) {
            reasons.push(Errno::EINVAL);
        }
        if whole && asked.max_parked > DEFAULTS.max_parked && !self.privileged {
            reasons.push(Errno::EPERM);
        }
        if !reasons.is_empty() {
            return one_of(seen, &reasons);
        }
        expect_eq!(seen, None, "the errno of setting {asked:?}");
        let max_parked = match asked.max_parked {
            0 => DEFAULTS.max_parked,
            max_parked => max_parked,
        };
        let state = match self.filter {
            // A program that does not know the field does not end a pause.
            Some(before) if length <= CONFIG_WITHOUT_STATE => before.state,
            _ => asked.state,
        };
        self.filter = Some(Config {
            max_parked,
            state,
            ..asked
        });
        // The last value counts.
        self.deferred = None;
        Ok(())
    }

    /// Checks `getsockopt()` of our level, or of one next to it.
    fn get(
        &mut self,
        memory: &mut Memory,
        level: i32,
        name: i32,
        place: Place,
        length: i32,
    ) -> Result<()> {
        let got = memory.get(&self.socket, level, name, place, length);
        ensure!(!got.before, "something was written before the value");
        let refused = |reasons: &[Errno]| -> Result<()> {
            one_of(got.errno, reasons)?;
            expect_eq!(got.length, length, "the length left by a refusal");
            expect_eq!(got.bytes.len(), 0, "bytes written by a refusal");
            Ok(())
        };
        if self.filter.is_none() || level != SOL_ACCF {
            return refused(&self.unknown_level());
        }
        if name != ACCF_CONFIG && name != ACCF_STATS {
            return refused(&[Errno::ENOPROTOOPT]);
        }
        let config = self.taken_over();
        let Ok(room) = usize::try_from(length) else {
            return refused(&[Errno::EINVAL]);
        };
        let whole = match (name, config) {
            (ACCF_CONFIG, Some(config)) => config.bytes(),
            // No client has ever connected to it.
            _ => vec![0; STATS],
        };
        let expected = whole.get(..room).unwrap_or(&whole);
        if Memory::writable(place) < expected.len() {
            ensure!(
                got.bytes.len() <= expected.len(),
                "{} bytes were written",
                got.bytes.len()
            );
            return one_of(got.errno, &[Errno::EFAULT]);
        }
        expect_eq!(got.errno, None, "the errno");
        expect_eq!(
            usize::try_from(got.length),
            Ok(expected.len()),
            "the length returned"
        );
        ensure!(
            got.bytes.len() <= expected.len(),
            "bytes were written behind the first {}",
            expected.len()
        );
        // A written byte that equals the pattern looks unwritten.
        let unchanged = expected.get(got.bytes.len()..).unwrap_or_default();
        ensure!(
            expected.starts_with(&got.bytes) && unchanged.iter().all(|byte| *byte == 0xa5),
            "expected {expected:?}, saw {:?}",
            got.bytes
        );
        Ok(())
    }

    fn get_by(
        &mut self,
        memory: &mut Memory,
        name: i32,
        place: Place,
        length: Place,
    ) -> Result<()> {
        let seen = memory.get_by(&self.socket, SOL_ACCF, name, place, length);
        ensure!(memory.is_untouched(), "something was written");
        if self.filter.is_none() {
            return one_of(seen, &self.unknown_level());
        }
        if name != ACCF_CONFIG && name != ACCF_STATS {
            return one_of(seen, &[Errno::ENOPROTOOPT]);
        }
        self.taken_over();
        // Unwritten memory is a negative number; read-only memory is 0, and cannot be written.
        let reason = if Memory::writable(length) >= 4 {
            Errno::EINVAL
        } else {
            Errno::EFAULT
        };
        one_of(seen, &[reason])
    }

    /// `TCP_ULP`.
    fn attached(&mut self, given: &[u8], length: i32, seen: Option<Errno>) -> Result<()> {
        // A name has 16 bytes, with the zero at its end.
        const LONGEST: usize = 15;
        let Ok(length) = usize::try_from(length) else {
            return one_of(seen, &[Errno::EINVAL]);
        };
        match self.kind {
            Kind::Tcp => {}
            Kind::Udp => return one_of(seen, &[Errno::ENOPROTOOPT]),
            // MPTCP itself may not know it.
            Kind::Mptcp => return one_of(seen, &[Errno::EOPNOTSUPP, Errno::ENOPROTOOPT]),
        }
        if length == 0 {
            return one_of(seen, &[Errno::EINVAL]);
        }
        let most = given.get(..length.min(LONGEST)).unwrap_or(given);
        let name = most.split(|byte| *byte == 0).next().unwrap_or_default();
        if name.len() == most.len() && most.len() < length.min(LONGEST) {
            return one_of(seen, &[Errno::EFAULT]);
        }
        match name {
            name if name == DATAREADY.as_bytes() => {
                if self.filter.is_some() {
                    return one_of(seen, &[Errno::EEXIST]);
                }
                if self.state == State::Connected {
                    return one_of(seen, &[Errno::EOPNOTSUPP]);
                }
                expect_eq!(seen, None, "the errno of attaching");
                self.filter = Some(DEFAULTS);
                // The deferred value is taken over at once: setting the option again does not undo
                // that.
                self.taken_over();
                Ok(())
            }
            // If the kernel has them.
            b"tls" | b"mptcp" => {
                let theirs = match self.filter {
                    Some(_) => [Errno::EEXIST, Errno::ENOENT],
                    None => [Errno::ENOTCONN, Errno::ENOENT],
                };
                one_of(seen, &[&theirs[..], &[Errno::EOPNOTSUPP]].concat())
            }
            _ => one_of(seen, &[Errno::ENOENT]),
        }
    }

    /// `TCP_DEFER_ACCEPT`.
    fn set_deferred(&mut self, given: &[u8], length: i32, seen: Option<Errno>) -> Result<()> {
        let Ok(length) = usize::try_from(length) else {
            return one_of(seen, &[Errno::EINVAL]);
        };
        match self.kind {
            Kind::Tcp => {}
            Kind::Udp => return one_of(seen, &[Errno::ENOPROTOOPT]),
            // Not checked: up to TCP.
            Kind::Mptcp => return Ok(()),
        }
        if length < 4 {
            return one_of(seen, &[Errno::EINVAL]);
        }
        let Some(number) = given.first_chunk().copied().map(i32::from_ne_bytes) else {
            return one_of(seen, &[Errno::EFAULT]);
        };
        expect_eq!(seen, None, "the errno of TCP_DEFER_ACCEPT");
        self.deferred = u32::try_from(number).ok().filter(|seconds| *seconds > 0);
        Ok(())
    }
}

/// Fails unless a call failed with one of `reasons`.
fn one_of(seen: Option<Errno>, reasons: &[Errno]) -> Result<()> {
    if seen.is_some_and(|seen| reasons.contains(&seen)) {
        return Ok(());
    }
    bail!("the errno: expected one of {reasons:?}, saw {seen:?}")
}

/// Returns the bytes of a value that the kernel can read, at most as many as the length says.
fn content(place: Place, value: &[u8], length: i32) -> Vec<u8> {
    let length = usize::try_from(length).unwrap_or(0);
    let readable = Memory::readable(place).min(length);
    let (filled, rest) = match place {
        Place::BeforeEnd(_) => (value, 0xa5),
        _ => (&[][..], 0),
    };
    let mut content = filled.get(..readable).unwrap_or(filled).to_vec();
    content.resize(readable, rest);
    content
}

fn level(rng: &mut fastrand::Rng) -> i32 {
    match rng.u8(..32) {
        0 => SOL_ACCF + 1,
        1 => SOL_ACCF | 1 << 16,
        _ => SOL_ACCF,
    }
}

fn name(rng: &mut fastrand::Rng) -> i32 {
    match rng.u8(..16) {
        0..=9 => ACCF_CONFIG,
        10..=13 => ACCF_STATS,
        14 => special(rng).cast_signed(),
        _ => rng.i32(-2..10),
    }
}

/// Returns mostly valid memory, often with its end close by.
fn place(rng: &mut fastrand::Rng) -> Place {
    match rng.u8(..24) {
        0 => Place::Null,
        1 => Place::Nowhere,
        2 => Place::Guard,
        3 => Place::ReadOnly,
        4..=7 => Place::BeforeEnd(rng.usize(..40)),
        8 => Place::BeforeEnd(rng.usize(..STATS + 20)),
        _ => Place::BeforeEnd(Memory::ROOM),
    }
}

/// Returns a length, mostly close to a size.
fn length(rng: &mut fastrand::Rng, size: usize) -> i32 {
    let size = i32::try_from(size).unwrap_or(0);
    match rng.u8(..16) {
        0..=5 => size,
        6..=9 => rng.i32(0..size + 9),
        10..=11 => rng.i32(0..700),
        12 => rng.i32(4090..4100),
        13 => rng.i32(0..Memory::ROOM.try_into().unwrap_or(i32::MAX)),
        14 => special(rng).cast_signed(),
        _ => -rng.i32(0..100),
    }
}
