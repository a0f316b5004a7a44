// SPDX-License-Identifier: MIT OR Apache-2.0

//! Dumps of `inet_diag` while listeners open and close: whole dumps, abandoned dumps, answers
//! without enough room, invalid requests; and the command `accf`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use accf_kit::control::{listeners_on, settings, Config, OnTimeout, Stats};
use accf_kit::endpoint::{connect_here, reset_on_close, Family, Listen, Listener};
use accf_kit::netns::Netns;
use accf_kit::ulp::DATAREADY;
use anyhow::{anyhow, bail, ensure, Context as _, Result};
use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::Socket;
use nix::libc;
use serde_json::Value;

use crate::case::{case, expect_eq, once, Context};
use crate::count::{consistent, counted, counts, describe};
use crate::fuzz::{self, bytes, Fed};
use crate::scene::join_scoped;

/// How many threads open and close listeners.
const CHURNERS: u64 = 2;
/// How many clients each permanent listener has.
const PARKED: u64 = 3;
/// What every run must see.
const REPORTED: &str = "filtered listeners reported";
/// How many requests a round sends.
const REQUESTS: usize = 60;

/// The size of `struct nlmsghdr`.
const HEADER: usize = 16;
/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
/// The size of `struct inet_diag_msg`.
const MESSAGE: usize = 72;
/// `TCP_LISTEN`.
const LISTEN: u8 = 10;
const INET_DIAG_ULP_INFO: u16 = 19;
const INET_ULP_INFO_NAME: u16 = 1;
const ACCF_ULP_INFO_CONFIG: u16 = 0x1AC1;
const ACCF_ULP_INFO_STATS: u16 = 0x1AC2;
/// The fields of `struct accf_stats`, by their positions.
const STATS_WORDS: usize = 30 + 32 + 4 * 3;
const RELEASED_PAUSED: usize = 21 + 32;
const CLOSED_RESET: usize = RELEASED_PAUSED + 2;
const DIED: usize = STATS_WORDS - 1;

/// A permanent listener, with what a dump must say of it.
struct Landmark {
    listener: Listener,
    config: Config,
    /// Its settings as the module reports them.
    numbers: Vec<u8>,
    _clients: Vec<TcpStream>,
}

case!(Fuzz, "fuzz.dumps" => once(dumps));
fn dumps(context: &Context) -> Result<()> {
    let ns = Netns::new()?;
    ns.enter()?;
    let mut landmarks: Vec<Landmark> = Vec::new();
    for (family, nth) in Family::ALL.into_iter().zip(0..) {
        landmarks.push(Landmark::new(context, family, 100 + nth, nth)?);
        // A listener is identified by its port, which no listener of the other IP version may get.
        let ports: Vec<String> = landmarks
            .iter()
            .map(|landmark| landmark.listener.port().to_string())
            .collect();
        ns.set_sysctl("net.ipv4.ip_local_reserved_ports", &ports.join(","))?;
    }
    let over = AtomicBool::new(false);
    let lives = AtomicU64::new(0);
    thread::scope(|scope| {
        let churning: Vec<_> = (0..CHURNERS)
            .map(|nth| {
                let mut rng = context.rng_from(context.seed.wrapping_add(nth));
                let (ns, over, lives) = (&ns, &over, &lives);
                scope.spawn(move || -> Result<()> {
                    ns.enter()?;
                    while !over.load(Ordering::Relaxed) {
                        live(&mut rng).context("a listener that comes and goes")?;
                        lives.fetch_add(1, Ordering::Relaxed);
                        // These threads share the processor with the test.
                        thread::sleep(Duration::from_micros(rng.u64(..4000)));
                    }
                    Ok(())
                })
            })
            .collect();
        let mut open = Vec::new();
        let asked = fuzz::rounds(context, &[REPORTED], |rng, fed| {
            for _ in 0..REQUESTS {
                question(rng, fed, &mut open, &landmarks)?;
            }
            whole_dump(&landmarks).context("the library")?;
            fed.one("whole dumps");
            command(rng, &landmarks).context("the command")?;
            fed.one("commands");
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        for thread in churning {
            join_scoped(thread)?;
        }
        asked
    })?;
    let lives = lives.load(Ordering::Relaxed);
    context.note(format!("{lives} listeners came and went"));
    ensure!(lives > 0, "no listener came and went");
    for landmark in &landmarks {
        counts(context, &landmark.listener, counted!(parked: PARKED))?;
    }
    Ok(())
}

impl Landmark {
    fn new(context: &Context, family: Family, max_parked: u32, on_timeout: u32) -> Result<Self> {
        let word = match on_timeout {
            0 => OnTimeout::Accept,
            1 => OnTimeout::Reset,
            _ => OnTimeout::Drop,
        };
        let config = settings(0, max_parked, word);
        let listener = Listen::filtered(family).config(config).open_here()?;
        let clients = (0..PARKED)
            .map(|_| connect_here(family.loopback(listener.port())))
            .collect::<Result<_>>()?;
        counts(context, &listener, counted!(parked: PARKED))?;
        Ok(Self {
            listener,
            config,
            numbers: [0, max_parked, on_timeout, 0, 0, 0]
                .into_iter()
                .flat_map(u32::to_ne_bytes)
                .collect(),
            _clients: clients,
        })
    }

    /// Checks that a report describes this listener.
    fn is(&self, config: &Config, stats: &Stats) -> Result<()> {
        expect_eq!(*config, self.config, "the settings reported of a listener");
        expect_eq!(
            (stats.parked, stats.parked_total),
            (PARKED, PARKED),
            "parked now and in total, reported of a listener: {}",
            describe(stats)
        );
        Ok(())
    }
}

/// Opens and closes a listener, filtered or not, with a client or two.
fn live(rng: &mut fastrand::Rng) -> Result<()> {
    let family = rng.choice(Family::ALL).unwrap_or(Family::V4);
    let config = settings(rng.u32(..50), rng.u32(..3), OnTimeout::Accept);
    let listen = match rng.u8(..8) {
        0 => Listen::plain(family),
        1 => Listen::filtered(family).filter_after_listen(),
        2 => Listen::deferred(family, 3),
        _ => Listen::filtered(family).config(config),
    };
    let listener = listen.open_here()?;
    let mut clients = Vec::new();
    for _ in 0..rng.usize(..3) {
        let mut client = connect_here(family.loopback(listener.port()))?;
        reset_on_close(&client)?;
        if rng.bool() {
            client.write_all(b"?")?;
        }
        clients.push(client);
    }
    if rng.bool() {
        drop(listener.accept_now()?);
    }
    Ok(())
}

/// Checks that the library finds each permanent listener exactly once.
fn whole_dump(landmarks: &[Landmark]) -> Result<()> {
    let mut found: BTreeMap<u16, usize> = BTreeMap::new();
    for seen in listeners_on(0)? {
        consistent(&seen.stats)?;
        expect_eq!(seen.filter, DATAREADY, "the filter's name");
        if let Some(landmark) = with_port(landmarks, seen.address.port()) {
            landmark.is(&seen.config, &seen.stats)?;
            *found.entry(seen.address.port()).or_default() += 1;
        }
    }
    for landmark in landmarks {
        let port = landmark.listener.port();
        expect_eq!(
            found.get(&port).copied(),
            Some(1),
            "how often the listener on port {port} was found"
        );
        let alone = listeners_on(port)?;
        expect_eq!(alone.len(), 1, "listeners on port {port}");
    }
    Ok(())
}

fn with_port(landmarks: &[Landmark], port: u16) -> Option<&Landmark> {
    landmarks.iter().find(|l| l.listener.port() == port)
}

/// Checks that the command's output is valid, and correct for the permanent listeners.
fn command(rng: &mut fastrand::Rng, landmarks: &[Landmark]) -> Result<()> {
    let arguments: &[&str] = match rng.u8(..4) {
        0 => &["list"],
        1 => &["stats"],
        2 => &["list", "--json"],
        _ => &["stats", "--json"],
    };
    let output = Command::new("accf")
        .args(arguments)
        .output()
        .context("start accf, which guests have in their PATH")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && errors.is_empty(),
        "accf {arguments:?} ended with {}: {errors}",
        output.status
    );
    let text = String::from_utf8(output.stdout)?;
    if !arguments.contains(&"--json") {
        for landmark in landmarks {
            let port = format!(":{}", landmark.listener.port());
            ensure!(text.contains(&port), "no {port} in\n{text}");
        }
        return Ok(());
    }
    let all: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let all = all["listeners"]
        .as_array()
        .context("no array of listeners")?;
    for landmark in landmarks {
        let port = landmark.listener.port();
        let mut reported = all.iter().filter(|one| one["port"] == port);
        let one = reported
            .next()
            .with_context(|| format!("no {port} in\n{text}"))?;
        ensure!(reported.next().is_none(), "two on port {port} in\n{text}");
        let max_parked = landmark.config.max_parked.map_or(0, |max| max.get());
        expect_eq!(
            one["config"]["max_parked"],
            max_parked,
            "max_parked of {one}"
        );
        expect_eq!(one["config"]["timeout_ms"], 0, "timeout_ms of {one}");
        let word = landmark.config.on_timeout.to_string();
        expect_eq!(one["config"]["on_timeout"], word, "on_timeout of {one}");
        expect_eq!(one["stats"]["parked"], PARKED, "parked of {one}");
    }
    for one in all {
        let count = |name: &str| {
            one["stats"][name]
                .as_u64()
                .with_context(|| format!("no {name} in {one}"))
        };
        let mut sum = 0;
        for name in [
            "parked",
            "released_data",
            "released_fin",
            "timeout_accept",
            "timeout_reset",
            "timeout_drop",
            "evicted",
            "aborted",
            "fallback",
        ] {
            sum += count(name)?;
        }
        expect_eq!(sum, count("parked_total")?, "the sum of {one}");
    }
    Ok(())
}

/// Sends a request, and reads the answer, a part of it, or none.
fn question(
    rng: &mut fastrand::Rng,
    fed: &mut Fed,
    open: &mut Vec<Socket>,
    landmarks: &[Landmark],
) -> Result<()> {
    const AT_ONCE: usize = 6;
    if open.len() < AT_ONCE && rng.bool() {
        let socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.set_non_blocking(true)?;
        if rng.u8(..4) == 0 {
            socket.set_rx_buf_sz(rng.i32(..20_000))?;
        }
        if rng.u8(..4) == 0 {
            socket.set_netlink_get_strict_chk(true)?;
        }
        open.push(socket);
    }
    if open.is_empty() {
        return Ok(());
    }
    let which = rng.usize(..open.len());
    let Some(socket) = open.get(which) else {
        return Ok(());
    };
    if rng.u8(..4) > 0 {
        let request = request(rng, landmarks);
        fed.one("questions");
        // The socket may be in the middle of a dump, or have no room for an error.
        let _ = socket.send(&request, 0);
    }
    for _ in 0..rng.usize(..6) {
        let room = match rng.u8(..4) {
            0 => rng.usize(1..300),
            1 => rng.usize(1..6000),
            _ => 32 * 1024,
        };
        let mut answer = Vec::with_capacity(room);
        match socket.recv(&mut answer, libc::MSG_TRUNC) {
            Ok(length) if length == answer.len() => {
                fed.one("answers");
                let reported = read(&answer, landmarks)
                    .map_err(|error| anyhow!("{error:#}; the answer was {answer:?}"))?;
                fed.many(REPORTED, reported);
            }
            Ok(_) => fed.one("answers cut short"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // The answer was longer than its buffer.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => break,
            Err(error) => return Err(error).context("receive an answer"),
        }
    }
    if rng.u8(..3) == 0 {
        open.swap_remove(which);
        fed.one("dumps abandoned");
    }
    Ok(())
}

/// Returns a `struct inet_diag_req_v2`, often a valid one.
fn request(rng: &mut fastrand::Rng, landmarks: &[Landmark]) -> Vec<u8> {
    let port = match rng.u8(..3) {
        0 => 0,
        1 => rng.u16(..),
        _ => rng
            .choice(landmarks)
            .map_or(0, |landmark| landmark.listener.port()),
    };
    let family = match rng.u8(..32) {
        0 => rng.u8(..),
        n if n % 2 == 0 => libc::AF_INET as u8,
        _ => libc::AF_INET6 as u8,
    };
    let protocol = match rng.u8(..32) {
        0 => rng.u8(..),
        1 => libc::IPPROTO_UDP as u8,
        _ => libc::IPPROTO_TCP as u8,
    };
    let states = match rng.u8(..4) {
        0 => rng.u32(..),
        1 => u32::MAX,
        _ => 1 << LISTEN,
    };
    // The extensions: memory, `TCP_INFO`, the upper-layer protocol, and others.
    let extensions = if rng.bool() { 2 } else { rng.u8(..) };
    let mut body = vec![family, protocol, extensions, 0];
    body.extend(states.to_ne_bytes());
    body.extend(port.to_be_bytes());
    // No remote port, no addresses and no interface; any cookie.
    body.resize(48, 0);
    body.extend([0xff; 8]);
    if rng.u8(..8) == 0 {
        let at = rng.usize(8..body.len());
        if let Some(byte) = body.get_mut(at) {
            *byte = rng.u8(..);
        }
    }
    if rng.u8(..6) == 0 {
        // Attributes: a filter program, among others.
        for _ in 0..rng.usize(1..3) {
            let value = bytes(rng, 60);
            let length = match rng.u8(..4) {
                0 => rng.u16(..100),
                _ => value.len() as u16 + 4,
            };
            body.extend(length.to_ne_bytes());
            body.extend(rng.u16(..6).to_ne_bytes());
            body.extend(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
    }
    if rng.u8(..12) == 0 {
        body.truncate(rng.usize(..body.len()));
    }
    let dump = if rng.u8(..4) == 0 {
        0
    } else {
        libc::NLM_F_DUMP
    };
    let mut flags = (libc::NLM_F_REQUEST | dump) as u16;
    if rng.u8(..16) == 0 {
        flags = rng.u16(..);
    }
    // Not 21 (`SOCK_DESTROY`).
    let kind = match rng.u8(..24) {
        0 => 18,
        1 => rng.u16(..BY_FAMILY),
        _ => BY_FAMILY,
    };
    let length = match rng.u8(..24) {
        0 => rng.u32(..200),
        _ => (HEADER + body.len()) as u32,
    };
    let mut request = Vec::with_capacity(HEADER + body.len());
    request.extend(length.to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(flags.to_ne_bytes());
    request.extend(rng.u32(..).to_ne_bytes());
    request.extend(0_u32.to_ne_bytes());
    request.extend(body);
    request
}

/// Parses an answer; returns how many filtered listeners it describes.
fn read(mut answer: &[u8], landmarks: &[Landmark]) -> Result<u64> {
    let mut reported = 0;
    while let Some(header) = answer.first_chunk::<HEADER>() {
        let [a, b, c, d, e, f, ..] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let kind = u16::from_ne_bytes([e, f]);
        let message = answer
            .get(HEADER..length)
            .with_context(|| format!("a message of {length} bytes in {}", answer.len()))?;
        if kind == BY_FAMILY {
            reported += u64::from(socket(message, landmarks)?);
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(reported)
}

/// Parses the message for one socket; returns whether it has a filter, with complete data.
fn socket(message: &[u8], landmarks: &[Landmark]) -> Result<bool> {
    let (head, attributes) = message
        .split_at_checked(MESSAGE)
        .context("a message about a socket is cut short")?;
    let [_, _, _, _, port_high, port_low, ..] = *head else {
        bail!("a message about a socket is cut short");
    };
    let port = u16::from_be_bytes([port_high, port_low]);
    let mut reported = false;
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute.context("an attribute of a socket")?;
        if attribute.kind() != INET_DIAG_ULP_INFO {
            continue;
        }
        let mut nested = BTreeMap::new();
        for attribute in NlasIterator::new(attribute.value()) {
            let attribute = attribute.context("an attribute of a ULP")?;
            let again = nested.insert(attribute.kind(), attribute.value().to_vec());
            ensure!(again.is_none(), "an attribute comes twice");
        }
        let Some(name) = nested.remove(&INET_ULP_INFO_NAME) else {
            bail!("a ULP without a name");
        };
        if name.strip_suffix(b"\0") != Some(DATAREADY.as_bytes()) {
            continue;
        }
        // Both are left out if there is no room; a listener that is closing has neither.
        let (config, stats) = (
            nested.remove(&ACCF_ULP_INFO_CONFIG),
            nested.remove(&ACCF_ULP_INFO_STATS),
        );
        ensure!(nested.is_empty(), "unknown attributes: {nested:?}");
        let (config, stats) = match (config, stats) {
            (Some(config), Some(stats)) => (config, stats),
            (None, None) => continue,
            _ => bail!("only one of two attributes is there"),
        };
        expect_eq!(config.len(), 24, "bytes of settings");
        expect_eq!(stats.len(), 8 * STATS_WORDS, "bytes of counters");
        let words: Vec<u64> = stats
            .chunks_exact(8)
            .filter_map(|word| Some(u64::from_ne_bytes(word.try_into().ok()?)))
            .collect();
        let [parked, _, _, total, ends @ ..] = words.as_slice() else {
            bail!("no counters");
        };
        let later = |nth: usize| words.get(nth).copied().unwrap_or(0);
        let later = later(RELEASED_PAUSED) + later(CLOSED_RESET) + later(DIED);
        let sum = parked + ends.iter().take(8).sum::<u64>() + later;
        expect_eq!(sum, *total, "the sum of {words:?}");
        if let Some(landmark) = with_port(landmarks, port) {
            expect_eq!(config, landmark.numbers, "settings of port {port}");
            expect_eq!((*parked, *total), (PARKED, PARKED), "parked, now and ever");
        }
        reported = true;
    }
    Ok(reported)
}
