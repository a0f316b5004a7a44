// SPDX-License-Identifier: MIT OR Apache-2.0

//! One address opens more connections than there is room for: it makes room for itself, and the
//! clients of all other addresses stay.
//!
//! Sources are hashed with a secret of the listener. Where two of them must not share a bucket, a
//! case begins again with another listener if they do.

use std::collections::VecDeque;
use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use accf_kit::control::{self, settings, OnTimeout, Stats};
use accf_kit::endpoint::{Family, Listen, Listener};
use accf_kit::netns::Netns;
use anyhow::{bail, ensure, Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::command;
use crate::case::{case, each_family, expect_eq, families, once, Context};
use crate::count::{counted, counts, read_counts};
use crate::scene::{accept, accept_from_port, reads_reset, serve, Client};

/// How many may be parked.
const ROOM: usize = 64;
/// How many clients the pool has.
const POOL: usize = 20;
/// How many connections the greedy address opens.
const GREEDY: usize = 400;
/// A deadline that no case waits for.
const FAR_MS: u32 = 600_000;
/// How many listeners are tried until sources do not share a bucket.
const ATTEMPTS: usize = 4;

/// A listener whose clients come from addresses of their own choice, inside one machine.
struct Town<'a> {
    context: &'a Context,
    ns: &'a Netns,
    family: Family,
    listener: Listener,
}

/// Makes a namespace in which clients may have any address of 127.0.0.0/8, or of some networks of
/// 2001:db8::/32.
fn namespace() -> Result<Netns> {
    let ns = Netns::new()?;
    ns.ip("route add local 2001:db8::/32 dev lo")?;
    ns.set_sysctl("net.ipv6.ip_nonlocal_bind", "1")?;
    Ok(ns)
}

/// Returns an address: of the network `network`, the host `host`. Each IPv4 address is a source of
/// its own.
fn address(family: Family, network: u8, host: u8) -> IpAddr {
    family.pick(
        Ipv4Addr::new(127, 1, network, host),
        Ipv6Addr::new(0x2001, 0xdb8, 0, network.into(), 0, 0, 0, host.into()),
    )
}

impl<'a> Town<'a> {
    fn new(
        context: &'a Context,
        ns: &'a Netns,
        family: Family,
        max_parked: u32,
        on_timeout: OnTimeout,
    ) -> Result<Self> {
        let config = settings(FAR_MS, max_parked, on_timeout);
        let listener = Listen::filtered(family).config(config).open(ns)?;
        Ok(Self {
            context,
            ns,
            family,
            listener,
        })
    }

    /// Connects clients from addresses, one after another.
    fn connect_all(&self, from: impl Iterator<Item = IpAddr> + Send) -> Result<VecDeque<Client>> {
        let server = self.family.loopback(self.listener.port());
        let connect = |from| {
            let socket = Socket::new(
                Domain::for_address(server),
                Type::STREAM,
                Some(Protocol::TCP),
            )?;
            socket
                .bind(&SocketAddr::new(from, 0).into())
                .with_context(|| format!("bind to {from}"))?;
            socket.connect_timeout(&server.into(), Duration::from_secs(20))?;
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            Client::new(stream)
        };
        self.ns.run(|| from.map(connect).collect())
    }

    /// Connects several clients from an address, one after another.
    fn connect_many(&self, from: IpAddr, count: usize) -> Result<VecDeque<Client>> {
        self.connect_all(iter::repeat_n(from, count))
    }

    /// Connects a client from an address.
    fn connect(&self, from: IpAddr) -> Result<Client> {
        let mut clients = self.connect_many(from, 1)?;
        clients.pop_front().context("no client")
    }

    /// Waits until the listener has counted what `expected` says. Returns all that it has counted.
    fn counts(&self, expected: Stats) -> Result<Stats> {
        read_counts(self.context, &self.listener, expected)
    }

    /// Has clients send their requests, and serves them: they were parked until now.
    fn serve(&self, clients: &mut VecDeque<Client>) -> Result<()> {
        for client in clients {
            client.request()?;
            let port = client.local.port();
            let accepted = accept_from_port(&self.listener, self.context, port)?;
            serve(&accepted)?;
            client.response()?;
        }
        Ok(())
    }

    /// Returns the sources that the listener tells of.
    fn sources(&self) -> Result<Vec<(IpAddr, u64)>> {
        let stats = control::stats(&self.listener)?;
        let sources = stats.sources.iter().flatten();
        Ok(sources
            .map(|source| (source.address, source.parked))
            .collect())
    }

    /// Connects a client from the greedy address, when the listener is full: what becomes of the
    /// oldest one of `greedy`, which is the first, and is taken out.
    fn evict_own(
        &self,
        from: IpAddr,
        on_timeout: OnTimeout,
        greedy: &mut VecDeque<Client>,
    ) -> Result<()> {
        greedy.push_back(self.connect(from)?);
        let mut oldest = greedy.pop_front().context("no client is there")?;
        match on_timeout {
            OnTimeout::Accept => {
                let accepted = accept(&self.listener, self.context)?;
                expect_eq!(
                    accepted.peer.port(),
                    oldest.local.port(),
                    "the client that was handed over"
                );
            }
            OnTimeout::Reset => reads_reset(&mut oldest.stream)?,
            _ => {}
        }
        Ok(())
    }
}

/// Returns the network of an address, as the listener tells of it.
fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// Runs `attempt` with new listeners until it does not say that sources shared a bucket.
fn apart(mut attempt: impl FnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..ATTEMPTS {
        if attempt()? {
            return Ok(());
        }
    }
    bail!("the sources shared a bucket at {ATTEMPTS} listeners")
}

case!(Default, "field.source.pool.accept" => each_family, pool_first(OnTimeout::Accept));
case!(Default, "field.source.pool.reset" => each_family, pool_first(OnTimeout::Reset));
case!(Default, "field.source.pool.drop" => each_family, pool_first(OnTimeout::Drop));
/// Checks that clients of a pool stay parked, and are served when they ask, although another
/// address opens many more connections than there is room for: that address makes room for itself,
/// its oldest connection first.
fn pool_first(context: &Context, family: Family, on_timeout: OnTimeout) -> Result<()> {
    let ns = namespace()?;
    apart(|| pool_then_greedy(context, &ns, family, on_timeout))
}

fn pool_then_greedy(
    context: &Context,
    ns: &Netns,
    family: Family,
    on_timeout: OnTimeout,
) -> Result<bool> {
    let town = Town::new(context, ns, family, ROOM as u32, on_timeout)?;
    let (pool_at, greedy_at) = (address(family, 1, 1), address(family, 2, 1));
    let mut pool = town.connect_many(pool_at, POOL)?;
    town.counts(counted!(parked: POOL as u64))?;
    let room = ROOM - POOL;
    let mut greedy = town.connect_many(greedy_at, room)?;
    town.counts(counted!(parked: ROOM as u64))?;
    let shares = [(greedy_at, room), (pool_at, POOL)];
    let shares = shares.map(|(at, count)| (network_of(at), count as u64));
    if town.sources()?.len() == 1 {
        return Ok(false);
    }
    for _ in room..GREEDY {
        town.evict_own(greedy_at, on_timeout, &mut greedy)?;
    }
    let evicted = (GREEDY - room) as u64;
    let seen = town.counts(counted!(parked: ROOM as u64, evicted: evicted))?;
    // The pool is older.
    expect_eq!(seen.evicted_greediest, evicted, "evicted for their source");
    expect_eq!(town.sources()?, shares, "sources");
    let text = command::accf(ns, &["stats"])?;
    let text = String::from_utf8_lossy(&text.stdout);
    for (at, _) in shares {
        ensure!(
            text.contains(&at.to_string()),
            "`accf stats` does not name {at}:\n{text}"
        );
    }
    town.serve(&mut pool)?;
    if let Some(accepted) = town.listener.accept_now()? {
        bail!("{} was handed over", accepted.peer);
    }
    town.counts(counted!(parked: room as u64, evicted: evicted, released_data: POOL as u64))?;
    Ok(true)
}

case!(Default, "field.source.pool_comes_later" => each_family(pool_later));
/// Checks that clients of a pool find room at a listener that another address has filled, and keep
/// it.
fn pool_later(context: &Context, family: Family) -> Result<()> {
    let ns = namespace()?;
    apart(|| greedy_then_pool(context, &ns, family))
}

fn greedy_then_pool(context: &Context, ns: &Netns, family: Family) -> Result<bool> {
    let town = Town::new(context, ns, family, ROOM as u32, OnTimeout::Reset)?;
    let (pool_at, greedy_at) = (address(family, 1, 1), address(family, 2, 1));
    let mut greedy = town.connect_many(greedy_at, ROOM)?;
    town.counts(counted!(parked: ROOM as u64))?;
    let mut pool = VecDeque::new();
    for nth in 1..=POOL {
        pool.push_back(town.connect(pool_at)?);
        let mut oldest = greedy.pop_front().context("no client is there")?;
        reads_reset(&mut oldest.stream)?;
        town.counts(counted!(parked: ROOM as u64, evicted: nth as u64))?;
    }
    if town.sources()?.len() == 1 {
        return Ok(false);
    }
    for _ in 0..ROOM {
        town.evict_own(greedy_at, OnTimeout::Reset, &mut greedy)?;
    }
    town.serve(&mut pool)?;
    let evicted = (POOL + ROOM) as u64;
    let left = (ROOM - POOL) as u64;
    town.counts(counted!(parked: left, evicted: evicted, released_data: POOL as u64))?;
    Ok(true)
}

case!(Default, "field.source.one_network" => families(&[Family::V6], one_network));
/// Checks that all addresses of an IPv6 /64 are one source.
fn one_network(context: &Context, family: Family) -> Result<()> {
    let ns = namespace()?;
    apart(|| {
        let town = Town::new(context, &ns, family, ROOM as u32, OnTimeout::Reset)?;
        let mut pool = town.connect_many(address(family, 1, 1), POOL)?;
        town.counts(counted!(parked: POOL as u64))?;
        let hosts = 0..(ROOM - POOL) as u8;
        let mut greedy = town.connect_all(hosts.map(|host| address(family, 2, host)))?;
        town.counts(counted!(parked: ROOM as u64))?;
        if town.sources()?.len() == 1 {
            return Ok(false);
        }
        for host in 0..=u8::MAX {
            let from = address(family, 2, host);
            town.evict_own(from, OnTimeout::Reset, &mut greedy)?;
        }
        let network = network_of(address(family, 2, 0));
        expect_eq!(
            town.sources()?.first(),
            Some(&(network, (ROOM - POOL) as u64)),
            "the source that has the most"
        );
        town.serve(&mut pool)?;
        Ok(true)
    })
}

case!(Default, "field.source.max_parked_lowered" => each_family(lowered));
/// Checks the same where no connection is counted by source before `max_parked` is lowered.
fn lowered(context: &Context, family: Family) -> Result<()> {
    const MANY: usize = 300;
    let ns = namespace()?;
    apart(|| {
        let town = Town::new(context, &ns, family, 1000, OnTimeout::Reset)?;
        let mut pool = town.connect_many(address(family, 1, 1), POOL)?;
        town.counts(counted!(parked: POOL as u64))?;
        let _greedy = town.connect_many(address(family, 2, 1), MANY)?;
        town.counts(counted!(parked: (POOL + MANY) as u64))?;
        expect_eq!(town.sources()?, [], "sources before any is counted");
        let config = settings(FAR_MS, ROOM as u32, OnTimeout::Reset);
        control::set_config(&town.listener, &config)?;
        let evicted = (POOL + MANY - ROOM) as u64;
        town.counts(counted!(parked: ROOM as u64, evicted: evicted))?;
        if town.sources()?.len() == 1 {
            return Ok(false);
        }
        town.serve(&mut pool)?;
        Ok(true)
    })
}

case!(Default, "field.source.max_parked_just_above" => each_family(just_above));
/// Checks that a pool stays where few are counted, the pool among them, when the bound is reached:
/// `max_parked` was lowered to just above what is parked.
fn just_above(context: &Context, family: Family) -> Result<()> {
    /// More than are counted before an eviction, together with the pool.
    const OTHERS: usize = 100;
    const MANY: usize = 60;
    const ALL: usize = POOL + OTHERS + MANY;
    let ns = namespace()?;
    apart(|| {
        let town = Town::new(context, &ns, family, 1000, OnTimeout::Reset)?;
        let greedy_at = address(family, 2, 1);
        let mut pool = town.connect_many(address(family, 1, 1), POOL)?;
        let networks = 3..3 + OTHERS as u8;
        let _others = town.connect_all(networks.map(|network| address(family, network, 1)))?;
        let _greedy = town.connect_many(greedy_at, MANY)?;
        town.counts(counted!(parked: ALL as u64))?;
        expect_eq!(town.sources()?, [], "sources before any is counted");
        let config = settings(FAR_MS, ALL as u32, OnTimeout::Reset);
        control::set_config(&town.listener, &config)?;
        let _newcomers = town.connect_many(greedy_at, POOL)?;
        town.counts(counted!(parked: ALL as u64, evicted: POOL as u64))?;
        // The pool shares the bucket of the greedy address, or was evicted.
        let most = town.sources()?.first().map(|(_, parked)| *parked);
        if most >= Some((POOL + MANY) as u64) {
            return Ok(false);
        }
        town.serve(&mut pool)?;
        Ok(true)
    })
}

case!(FourPerNetns, "field.source.namespace_limit" => each_family(namespace_limit));
/// Checks the same at the limit of a namespace.
fn namespace_limit(context: &Context, family: Family) -> Result<()> {
    let ns = namespace()?;
    apart(|| {
        let town = Town::new(context, &ns, family, 0, OnTimeout::Accept)?;
        let greedy_at = address(family, 2, 1);
        let mut pool = town.connect_many(address(family, 1, 1), 1)?;
        counts(context, &town.listener, counted!(parked: 1))?;
        let mut greedy = town.connect_many(greedy_at, 3)?;
        counts(context, &town.listener, counted!(parked: 4))?;
        for nth in 0..20 {
            greedy.push_back(town.connect(greedy_at)?);
            let accepted = accept(&town.listener, context)?;
            let oldest = greedy.pop_front().context("no client is there")?;
            if accepted.peer.port() == pool[0].local.port() && nth == 0 {
                // They share a bucket. Nothing may be left of this listener for the next one.
                return Ok(false);
            }
            expect_eq!(
                accepted.peer.port(),
                oldest.local.port(),
                "the client that was handed over"
            );
        }
        town.serve(&mut pool)?;
        counts(
            context,
            &town.listener,
            counted!(parked: 3, evicted: 20, released_data: 1),
        )?;
        Ok(true)
    })
}

case!(Default, "field.source.many" => once(many).long(Duration::from_secs(120)));
/// Checks that of a thousand addresses that have one connection each, only a few go, those that
/// share the bucket of a greedy one.
fn many(context: &Context) -> Result<()> {
    const SOURCES: usize = 1000;
    const ROOM: usize = SOURCES / 2;
    const KEPT: usize = ROOM - 20;
    /// With 256 buckets, two are expected.
    const UNLUCKY: usize = 14;
    let family = Family::V4;
    let ns = namespace()?;
    let town = Town::new(context, &ns, family, ROOM as u32, OnTimeout::Reset)?;
    let from = |nth| IpAddr::from(Ipv4Addr::from_bits(0x7f02_0000 + nth));
    let mut all = (0..SOURCES as u32).map(from);
    let mut others = town.connect_all(all.by_ref().take(KEPT))?;
    loop {
        let mut newcomers: VecDeque<IpAddr> = all.by_ref().take(KEPT / 8).collect();
        // The oldest are served, and make room.
        let mut oldest = others.drain(..newcomers.len()).collect();
        town.serve(&mut oldest)?;
        if newcomers.is_empty() {
            break;
        }
        others.append(&mut town.connect_all(newcomers.drain(..))?);
    }
    let served = (SOURCES - KEPT) as u64;
    town.counts(counted!(parked: KEPT as u64, released_data: served))?;
    let greedy_at = address(family, 2, 1);
    let mut greedy = VecDeque::new();
    for _ in 0..GREEDY / (ROOM - KEPT) {
        greedy.append(&mut town.connect_many(greedy_at, ROOM - KEPT)?);
        // Those that are reset by now keep no descriptor.
        while greedy.len() > 2 * (ROOM - KEPT) {
            greedy.pop_front();
        }
    }
    let evicted = (GREEDY + KEPT - ROOM) as u64;
    town.counts(counted!(parked: ROOM as u64, released_data: served, evicted: evicted))?;
    let mut reset = 0;
    for client in &mut others {
        client.stream.set_nonblocking(true)?;
        let mut byte = [0];
        let read = std::io::Read::read(&mut client.stream, &mut byte);
        let is_silent = read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        reset += usize::from(!is_silent);
    }
    context.note(format!("{reset} of {KEPT} other clients were reset"));
    ensure!(
        reset <= UNLUCKY,
        "{reset} of {KEPT} other clients were reset"
    );
    let first = town.sources()?.first().copied();
    expect_eq!(
        first.map(|(at, _)| at),
        Some(greedy_at),
        "the greedy source"
    );
    Ok(())
}
