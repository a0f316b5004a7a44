// SPDX-License-Identifier: MIT OR Apache-2.0

//! A listener stops, and the kernel leaves its connections to another one of its `SO_REUSEPORT` group
//! (`net.ipv4.tcp_migrate_req`): every one exactly once, and accounted for.

use std::net::Shutdown;
use std::thread::sleep;
use std::time::Duration;

use accf_kit::control::{self, settings, OnTimeout};
use accf_kit::endpoint::{Family, Listen, Listener};
use accf_kit::raw::{RawClient, RawHost};
use accf_kit::segment::Segment;
use accf_kit::{module, netns::Netns, wait};
use anyhow::{ensure, Context as _, Result};

use crate::case::{case, each_family, expect_eq, once, Context};
use crate::count::{counted, counts, describe, stats};
use crate::scene::{requests, serve, REQUEST};

/// Who takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heir {
    Filtered,
    Plain,
}

/// How the first listener stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Close,
    Shutdown,
}

const CLIENTS: usize = 12;

/// The module's reference count once it stays for good, whatever for and how often.
const KEPT: u64 = 1;

/// A listener with clients that are parked, and another one on the same port that has none.
struct Group {
    ns: Netns,
    host: RawHost,
    /// Until the test closes it.
    first: Option<Listener>,
    second: Listener,
    clients: Vec<RawClient>,
    /// How many references to the module others have left.
    pinned: u64,
}

impl Group {
    fn new(context: &Context, family: Family, heir: Heir, timeout_ms: u32) -> Result<Self> {
        // Not loaded anew, as it may be pinned.
        if !module::is_loaded()? {
            module::load("")?;
        }
        let pinned = module::refcount()?.unwrap_or(0);
        let ns = Netns::new()?;
        ns.set_sysctl("net.ipv4.tcp_migrate_req", "1")?;
        let host = RawHost::new(&ns)?;
        let listen = Listen::filtered(family).reuse_port().config(settings(
            timeout_ms,
            0,
            OnTimeout::Accept,
        ));
        let first = listen.open(&ns)?;
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let mut client = host.client(family, first.port());
            client.open(context.patience())?;
            clients.push(client);
        }
        counts(context, &first, counted!(parked: CLIENTS as u64))?;
        // Only now, so that all of them are the first one's.
        let second = match heir {
            Heir::Filtered => Listen::filtered(family).reuse_port(),
            Heir::Plain => Listen::plain(family).reuse_port(),
        };
        let second = second.port(first.port()).open(&ns)?;
        Ok(Self {
            ns,
            host,
            first: Some(first),
            second,
            clients,
            pinned,
        })
    }

    fn first(&self) -> Result<&Listener> {
        self.first.as_ref().context("the first listener is closed")
    }

    /// Closes everything, and checks that nothing is left but `expected` references to the module.
    /// Unloads it if there are none.
    ///
    /// Beside a plain listener, TCP clones requests to where no callback tells the module that they
    /// are over: the module stays pinned, as its code could be called after it is unloaded.
    fn end(self, context: &Context, expected: u64) -> Result<()> {
        let port = self.second.port();
        drop((self.first, self.second, self.clients));
        requests(&self.ns, port, context, 0)?;
        drop(self.host);
        drop(self.ns);
        let mut seen = 0;
        wait::until(context.patience(), || {
            seen = module::refcount()?.unwrap_or(0);
            Ok(seen == expected)
        })?;
        expect_eq!(seen, expected, "the module's reference count");
        if seen == 0 && module::is_loaded()? {
            module::unload(context.patience())?;
        }
        Ok(())
    }
}

/// The heir has nothing that it does not know of.
fn accounts_of(context: &Context, second: &Listener, heir: Heir) -> Result<()> {
    if heir == Heir::Plain {
        return Ok(());
    }
    let mut seen = stats(second)?;
    wait::until(context.patience(), || {
        seen = stats(second)?;
        Ok((seen.parked, seen.half_open, seen.half_open_young) == (0, 0, 0))
    })?;
    context.note(format!("the second listener: {}", describe(&seen)));
    expect_eq!(
        (seen.parked, seen.half_open, seen.half_open_young),
        (0, 0, 0),
        "parked, half-open and young requests of the second listener, of {}",
        describe(&seen)
    );
    Ok(())
}

// The first of the last ones: it expects that no case before it has pinned the module.
case!(Last, "migrate.listens_again_then_reset.beside_plain.v4" => once(listens_again_then_reset));
/// The same beside a plain listener, but that the first one listens again before its clients give up. Somebody may have had a reference to
/// such a request while it was not listening, and a copy may be left at the plain one: the module stays.
fn listens_again_then_reset(context: &Context) -> Result<()> {
    let mut group = Group::new(context, Family::V4, Heir::Plain, 60_000)?;
    expect_eq!(group.pinned, 0, "references that others have left");
    group.first()?.socket().shutdown(Shutdown::Both)?;
    group.first()?.socket().listen(64)?;
    for client in &mut group.clients {
        client.rst()?;
    }
    counts(
        context,
        group.first()?,
        counted!(parked_total: CLIENTS as u64, aborted: CLIENTS as u64),
    )?;
    group.end(context, KEPT)
}

case!(
    Alone, "migrate.closed_then_data.to_filtered" =>
    each_family(|context, family| then_data(context, family, Heir::Filtered, End::Close))
);
case!(
    Alone, "migrate.closed_then_data.to_plain" =>
    each_family(|context, family| then_data(context, family, Heir::Plain, End::Close))
);
case!(
    Alone, "migrate.shut_down_then_data.to_filtered" =>
    each_family(|context, family| then_data(context, family, Heir::Filtered, End::Shutdown))
);
case!(
    Last, "migrate.shut_down_then_data.to_plain" =>
    each_family(|context, family| then_data(context, family, Heir::Plain, End::Shutdown))
);
/// Every client speaks once the first listener is gone; the other one serves it, once.
fn then_data(context: &Context, family: Family, heir: Heir, end: End) -> Result<()> {
    let mut group = Group::new(context, family, heir, 60_000)?;
    // Open, so that its counts can be read, or closed.
    match end {
        End::Close => drop(group.first.take()),
        End::Shutdown => group.first()?.socket().shutdown(Shutdown::Both)?,
    }
    // The timers of those that a closed listener left move them, one tick later.
    sleep(Duration::from_millis(300));
    for client in &mut group.clients {
        client.data(REQUEST)?;
    }
    // Where nothing but the kernel's copies of requests is left, which wait in the accept queue of the other listener, the
    // module must know of them, or have nothing to do with them: whether it is refused to go, or goes, they come out.
    if (heir, end) == (Heir::Plain, End::Shutdown) {
        let seen = group.first.take().map(stats).transpose()?;
        if let Some(seen) = seen {
            context.note(format!("the first listener: {}", describe(&seen)));
            expect_eq!(seen.parked, 0, "parked on the first listener");
        }
        sleep(Duration::from_millis(300));
        let gone = module::try_unload();
        context.note(format!("unloading while they wait: {gone:?}"));
    }
    let mut served = Vec::new();
    while let Some(accepted) = group.second.accept(Duration::from_millis(700))? {
        serve(&accepted)?;
        served.push(accepted.peer.port());
    }
    let mut answered = Vec::new();
    for client in &mut group.clients {
        let answer = client.receive_until(Duration::from_millis(200), |segment| {
            segment.is_rst() || segment.has_data()
        })?;
        if answer.is_some_and(|answer| answer.segment.has_data()) {
            answered.push(client.local.port());
        }
    }
    served.sort_unstable();
    answered.sort_unstable();
    expect_eq!(served, answered, "clients served, and clients answered");
    expect_eq!(served.len(), CLIENTS, "clients served");
    accounts_of(context, &group.second, heir)?;
    if let Some(first) = &group.first {
        let seen = stats(first)?;
        context.note(format!("the first listener: {}", describe(&seen)));
        expect_eq!(seen.parked, 0, "parked on the first listener");
        expect_eq!(
            seen.parked_total,
            CLIENTS as u64,
            "connections that were parked there"
        );
    }
    let left = match (heir, end) {
        (Heir::Plain, End::Shutdown) => KEPT,
        _ => group.pinned,
    };
    group.end(context, left)
}

case!(
    Alone, "migrate.shut_down_then_deadline.to_filtered" =>
    each_family(|context, family| then_deadline(context, family, Heir::Filtered))
);
case!(
    Last, "migrate.shut_down_then_deadline.to_plain" =>
    each_family(|context, family| then_deadline(context, family, Heir::Plain))
);
/// Nobody speaks: at the deadline each connection is accepted by the other one, or it is gone; never twice, never both.
fn then_deadline(context: &Context, family: Family, heir: Heir) -> Result<()> {
    let mut group = Group::new(context, family, heir, 2500)?;
    group.first()?.socket().shutdown(Shutdown::Both)?;
    let mut accepted = Vec::new();
    while let Some(connection) = group.second.accept(Duration::from_millis(3500))? {
        accepted.push(connection);
    }
    let seen = stats(group.first()?)?;
    context.note(format!(
        "{} accepted; the first listener: {}",
        accepted.len(),
        describe(&seen)
    ));
    expect_eq!(seen.parked, 0, "parked on the first listener");
    let mut ports: Vec<u16> = accepted
        .iter()
        .map(|connection| connection.peer.port())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    expect_eq!(ports.len(), accepted.len(), "different clients accepted");
    // Whoever was accepted is served.
    for connection in accepted {
        let client = group
            .clients
            .iter_mut()
            .find(|client| client.local.port() == connection.peer.port())
            .context("nobody's connection")?;
        client.data(REQUEST)?;
        serve(&connection)?;
        client
            .receive_until(context.patience(), Segment::has_data)?
            .context("no response")?;
    }
    ensure!(!ports.is_empty(), "nobody was accepted");
    accounts_of(context, &group.second, heir)?;
    let left = match heir {
        Heir::Plain => KEPT,
        Heir::Filtered => group.pinned,
    };
    group.end(context, left)
}

case!(
    Alone, "migrate.shut_down_then_reset.to_filtered" =>
    each_family(|context, family| then_reset(context, family, &[]))
);
case!(
    Alone, "migrate.shut_down_then_reset.beside_closed" =>
    each_family(|context, family| then_reset(context, family, &[Heir::Plain, Heir::Filtered]))
);
/// Every client gives up once the first listener is shut down. Whoever took their requests could have made copies; but among
/// those that have a filter, or are closed, there is nobody who would keep one: the module can go.
fn then_reset(context: &Context, family: Family, closed: &[Heir]) -> Result<()> {
    let mut group = Group::new(context, family, Heir::Filtered, 60_000)?;
    for heir in closed {
        let third = match heir {
            Heir::Filtered => Listen::filtered(family),
            Heir::Plain => Listen::plain(family),
        };
        drop(
            third
                .reuse_port()
                .port(group.second.port())
                .open(&group.ns)?,
        );
    }
    group.first()?.socket().shutdown(Shutdown::Both)?;
    for client in &mut group.clients {
        client.rst()?;
    }
    let mut seen = stats(group.first()?)?;
    wait::until(context.patience(), || {
        seen = stats(group.first()?)?;
        Ok(seen.parked == 0)
    })?;
    context.note(format!("the first listener: {}", describe(&seen)));
    expect_eq!(seen.parked, 0, "parked on the first listener");
    expect_eq!(seen.aborted, CLIENTS as u64, "connections given up");
    // The kernel counts them off the other one, where they never were.
    let heir = control::stats(&group.second)?;
    context.note(format!("the second listener: {}", describe(&heir)));
    expect_eq!(heir.parked, 0, "parked on the second listener");
    expect_eq!(
        (
            seen.half_open + heir.half_open,
            seen.half_open_young + heir.half_open_young
        ),
        (0, 0),
        "half-open and young requests of both listeners"
    );
    let pinned = group.pinned;
    group.end(context, pinned)
}
