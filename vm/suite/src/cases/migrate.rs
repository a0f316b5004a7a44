// SPDX-License-Identifier: MIT OR Apache-2.0

//! A listener stops, and TCP migrates its requests to another one of its `SO_REUSEPORT` group
//! (`net.ipv4.tcp_migrate_req`, or a BPF program): each is served once, and accounted for.

use std::net::Shutdown;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use accf_kit::account::{at_rest, settle};
use accf_kit::bpf::ChooseAndMigrate;
use accf_kit::control::{self, settings, OnTimeout};
use accf_kit::endpoint::{Family, Listen, Listener};
use accf_kit::raw::{RawClient, RawHost};
use accf_kit::segment::Segment;
use accf_kit::{module, netns::Netns, wait};
use anyhow::{ensure, Context as _, Result};
use serde_json::Value;

use super::command;
use crate::case::{case, expect_eq, needs_bpf, once, Context};
use crate::count::{counted, counts, describe, stats};
use crate::scene::{requests, serve, REQUEST};

/// The listener that requests migrate to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Filtered,
    Plain,
}

impl Target {
    fn listen(self, family: Family) -> Listen {
        match self {
            Self::Filtered => Listen::filtered(family).reuse_port(),
            Self::Plain => Listen::plain(family).reuse_port(),
        }
    }
}

/// How the first listener stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Close,
    Shutdown,
}

/// What has TCP migrate requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// `net.ipv4.tcp_migrate_req`.
    Setting,
    /// A program of the group (`BPF_SK_REUSEPORT_SELECT_OR_MIGRATE`).
    Program,
}

const CLIENTS: usize = 12;

/// The module's reference count once it is pinned, however often.
const PINNED: u64 = 1;

/// A listener with parked clients, and another one on the same port that has none.
struct Group {
    ns: Netns,
    host: RawHost,
    /// Until the test closes it.
    first: Option<Listener>,
    second: Listener,
    clients: Vec<RawClient>,
    program: Option<ChooseAndMigrate>,
    /// The references to the module from earlier cases.
    pinned: u64,
}

impl Group {
    fn new(context: &Context, family: Family, target: Target, timeout_ms: u32) -> Result<Self> {
        Self::with(context, family, target, timeout_ms, Cause::Setting)
    }

    fn with(
        context: &Context,
        family: Family,
        target: Target,
        timeout_ms: u32,
        cause: Cause,
    ) -> Result<Self> {
        // Not reloaded, as it may be pinned.
        if !module::is_loaded()? {
            module::load("")?;
        }
        let pinned = module::refcount()?.unwrap_or(0);
        let ns = Netns::new()?;
        if cause == Cause::Setting {
            ns.set_sysctl("net.ipv4.tcp_migrate_req", "1")?;
        }
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
        // Opened after the clients have connected, so that all of them are the first listener's.
        let second = target.listen(family).port(first.port()).open(&ns)?;
        let program = match cause {
            Cause::Setting => None,
            Cause::Program => Some(ChooseAndMigrate::attach(&second)?),
        };
        Ok(Self {
            ns,
            host,
            first: Some(first),
            second,
            clients,
            program,
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
        drop((self.first, self.second, self.clients, self.program));
        requests(&self.ns, port, context, 0)?;
        drop(self.host);
        drop(self.ns);
        let mut seen = 0;
        wait::until(context.patience(), || {
            seen = module::refcount()?.unwrap_or(0);
            Ok(seen == expected)
        })?;
        expect_eq!(seen, expected, "the module's reference count");
        if module::is_loaded()? {
            shows_pinned(expected == PINNED)?;
        }
        if seen == 0 && module::is_loaded()? {
            module::unload(context.patience())?;
        }
        Ok(())
    }
}

/// What the module says in the kernel log when it is pinned.
const PIN_MESSAGE: &str =
    "accf: a request may have been cloned out of reach: unloading needs a reboot";

/// Checks that the kernel log, the module's parameter and the command `accf` tell whether the
/// module is pinned: the log once, however often it was pinned.
fn shows_pinned(is_pinned: bool) -> Result<()> {
    expect_eq!(module::is_pinned()?, is_pinned, "the parameter `pinned`");
    let log = Command::new("dmesg").output().context("start dmesg")?;
    let log = String::from_utf8_lossy(&log.stdout);
    let messages = log.lines().filter(|line| line.contains(PIN_MESSAGE));
    expect_eq!(
        messages.count(),
        usize::from(is_pinned),
        "messages in the kernel log"
    );
    let ns = Netns::new()?;
    let list = command::accf(&ns, &["list"])?;
    let list = String::from_utf8_lossy(&list.stdout);
    expect_eq!(
        list.contains("cannot be unloaded until the next reboot"),
        is_pinned,
        "whether `accf list` says so in\n{list}"
    );
    let json = command::accf(&ns, &["list", "--json"])?;
    let json: Value = serde_json::from_slice(&json.stdout)?;
    expect_eq!(json["module"]["pinned"], is_pinned, "`pinned` in {json}");
    Ok(())
}

/// Checks that the second listener has no request left that it counts.
fn accounts_of(context: &Context, second: &Listener, target: Target) -> Result<()> {
    if target == Target::Plain {
        return Ok(());
    }
    let seen =
        settle(second, context.patience(), at_rest, || Ok(())).context("the second listener")?;
    context.note(format!("the second listener: {}", describe(&seen)));
    Ok(())
}

// First in its stage: it needs a module that no case has pinned.
case!(Last, "migrate.listens_again_then_reset.beside_plain.v4" => once(listens_again_then_reset));
/// Checks that the module is pinned if the first listener, beside a plain one, listens again before
/// its clients reset. While it did not listen, TCP could take a reference to such a request, and
/// leave a clone at the plain listener.
fn listens_again_then_reset(context: &Context) -> Result<()> {
    let mut group = Group::new(context, Family::V4, Target::Plain, 60_000)?;
    expect_eq!(group.pinned, 0, "references that earlier cases have left");
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
    group.end(context, PINNED)
}

case!(
    Alone, "migrate.closed_then_data.to_filtered" =>
    each_family, then_data(Target::Filtered, End::Close, Cause::Setting)
);
case!(
    Alone, "migrate.closed_then_data.to_plain" =>
    each_family, then_data(Target::Plain, End::Close, Cause::Setting)
);
case!(
    Alone, "migrate.shut_down_then_data.to_filtered" =>
    each_family, then_data(Target::Filtered, End::Shutdown, Cause::Setting)
);
case!(
    Last, "migrate.shut_down_then_data.to_plain" =>
    each_family, then_data(Target::Plain, End::Shutdown, Cause::Setting)
);
case!(
    Alone, "migrate.closed_then_data.by_program" =>
    each_family, then_data(Target::Filtered, End::Close, Cause::Program)
);
case!(
    Alone, "migrate.shut_down_then_data.by_program" =>
    each_family, then_data(Target::Filtered, End::Shutdown, Cause::Program)
);
/// Checks that every client that sends data after the first listener stopped is served once, by the
/// other one.
fn then_data(
    context: &Context,
    family: Family,
    target: Target,
    end: End,
    cause: Cause,
) -> Result<()> {
    if cause == Cause::Program {
        needs_bpf(context)?;
    }
    let mut group = Group::with(context, family, target, 60_000, cause)?;
    // Stays open, so that its counts can be read, or is closed.
    match end {
        End::Close => drop(group.first.take()),
        End::Shutdown => group.first()?.socket().shutdown(Shutdown::Both)?,
    }
    // The timers of requests that a closed listener left migrate them, one tick later.
    sleep(Duration::from_millis(300));
    for client in &mut group.clients {
        client.data(REQUEST)?;
    }
    // Only TCP's clones of requests are left, in the accept queue of the other listener. They must
    // be served whether the module can be unloaded meanwhile or not.
    if (target, end) == (Target::Plain, End::Shutdown) {
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
    accounts_of(context, &group.second, target)?;
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
    let left = match (target, end) {
        (Target::Plain, End::Shutdown) => PINNED,
        _ => group.pinned,
    };
    group.end(context, left)
}

case!(
    Alone, "migrate.shut_down_then_deadline.to_filtered" =>
    each_family, then_deadline(Target::Filtered)
);
case!(
    Last, "migrate.shut_down_then_deadline.to_plain" =>
    each_family, then_deadline(Target::Plain)
);
/// Checks that at the deadline each silent connection is either accepted by the other listener,
/// once, or gone.
fn then_deadline(context: &Context, family: Family, target: Target) -> Result<()> {
    let mut group = Group::new(context, family, target, 2500)?;
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
    // Each accepted client is served.
    for connection in accepted {
        let client = group
            .clients
            .iter_mut()
            .find(|client| client.local.port() == connection.peer.port())
            .context("a connection of an unknown client")?;
        client.data(REQUEST)?;
        serve(&connection)?;
        client
            .receive_until(context.patience(), Segment::has_data)?
            .context("no response")?;
    }
    ensure!(!ports.is_empty(), "no client was accepted");
    accounts_of(context, &group.second, target)?;
    let left = match target {
        Target::Plain => PINNED,
        Target::Filtered => group.pinned,
    };
    group.end(context, left)
}

case!(Alone, "migrate.shut_down_then_reset.to_filtered" => each_family, then_reset(&[]));
case!(
    Alone, "migrate.shut_down_then_reset.beside_closed" =>
    each_family, then_reset(&[Target::Plain, Target::Filtered])
);
/// Checks that the module can be unloaded if every client resets once the first listener is shut
/// down: TCP may clone the requests, but a filtered or closed listener keeps no clone.
fn then_reset(context: &Context, family: Family, closed: &[Target]) -> Result<()> {
    let mut group = Group::new(context, family, Target::Filtered, 60_000)?;
    for target in closed {
        let third = target.listen(family).port(group.second.port());
        drop(third.open(&group.ns)?);
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
    // TCP subtracts them from the other listener's counts, to which they were never added.
    let target = control::stats(&group.second)?;
    context.note(format!("the second listener: {}", describe(&target)));
    expect_eq!(target.parked, 0, "parked on the second listener");
    expect_eq!(
        (
            seen.half_open + target.half_open,
            seen.half_open_young + target.half_open_young
        ),
        (0, 0),
        "half-open and young requests of both listeners"
    );
    let pinned = group.pinned;
    group.end(context, pinned)
}
