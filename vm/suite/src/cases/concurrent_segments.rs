// SPDX-License-Identifier: MIT OR Apache-2.0

//! A hundred thousand clients that send each segment themselves, of every kind, 800 at once:
//! whatever they do, the sums are exact.

use std::ops::Range;
use std::time::{Duration, Instant};

use accf_kit::account::{at_rest, settle};
use accf_kit::clients::segments::{self, Segments};
use accf_kit::clients::{Clients, Pace, Policy};
use accf_kit::control::{self, timeout, Stats};
use accf_kit::counters::Counters;
use accf_kit::endpoint::{Family, Listener};
use accf_kit::netns::Netns;
use accf_kit::tun_clients::TunClients;
use accf_kit::{module, sockets};
use anyhow::{ensure, Context as _, Result};

use crate::case::{case, each_family, expect_eq, Context, Kernel};
use crate::count::{describe, stats};

/// How many may be parked where there is little room.
const LITTLE_ROOM: u32 = 25;

/// How long after its SYN a client acknowledges that is to meet the request's timer: it is set to a
/// second, and fires at the end of a slot of up to eight jiffies.
const HESITATION: Range<Duration> = Duration::from_millis(990)..Duration::from_millis(1050);

/// How many clients are there at once.
const AT_ONCE: usize = 800;

/// How long a case may take.
const LIMIT: Duration = Duration::from_secs(600);

case!(
    Alone, "mixture.every_connection_is_accounted_for" =>
    each_family(|context, family| run(context, family, None)).long(LIMIT)
);
case!(
    Alone, "mixture.acknowledged_as_the_syn_ack_is_sent_again" =>
    each_family(|context, family| run(context, family, Some(HESITATION))).long(LIMIT)
);
fn run(context: &Context, family: Family, hesitation: Option<Range<Duration>>) -> Result<()> {
    let count: u64 = match (context.kernel, family) {
        (Kernel::Stock, _) if hesitation.is_some() => 2_000,
        (Kernel::Dev, _) if hesitation.is_some() => 200,
        (Kernel::Stock, Family::V4) => 100_000,
        (Kernel::Stock, _) => 30_000,
        (Kernel::Dev, Family::V4) => 10_000,
        (Kernel::Dev, _) => 2_000,
    };
    let deadline = match context.kernel {
        Kernel::Stock => Duration::from_millis(1500),
        Kernel::Dev => Duration::from_millis(4000),
    };
    context.note(format!("seed {}", context.seed));
    module::reload("")?;
    let ns = Netns::new()?;
    let is_hesitant = hesitation.is_some();
    // Half-open clients are forgotten after 3 s; or after 7 s, where others are so slow.
    let retries = if is_hesitant { "2" } else { "1" };
    ns.set_sysctl("net.ipv4.tcp_synack_retries", retries)?;
    let policies = Policy::all(deadline, LITTLE_ROOM, None);
    let (listeners, tun, targets) = segments::open(&policies, family, &ns)?;
    let mut rng = context.rng();
    let mut segments = Segments::new(tun, rng.fork());
    if is_hesitant {
        segments = segments.changing_processors();
    }
    let timing = segments::timing(deadline, context.patience() * 6);
    let mut clients = Clients::new(segments, targets, segments::MIX, timing, rng);
    if let Some(hesitation) = hesitation {
        clients = clients.hesitant(hesitation);
    }
    let before = Counters::read(&ns)?;
    let start = Instant::now();
    let pace = Pace {
        at_once: match context.kernel {
            _ if !is_hesitant => AT_ONCE,
            // Few enough to act in time.
            Kernel::Stock => 150,
            Kernel::Dev => 30,
        },
        gap: Duration::ZERO,
    };
    let served = clients.run_served(&listeners, pace, |begun| begun < count)?;
    let took = start.elapsed().as_secs_f64();
    context.note(format!(
        "{count} clients in {took:.1} s, {:.0} in a second",
        count as f64 / took
    ));
    let after = Counters::read(&ns)?;
    for counter in ["TcpExtSyncookiesSent", "TcpExtListenOverflows"] {
        expect_eq!(after.growth(&before, counter)?, 0, "growth of {counter}");
    }
    if is_hesitant {
        let again = after.growth(&before, "TcpExtTCPSynRetrans")?;
        context.note(format!("{again} SYN-ACKs were sent again"));
        ensure!(
            again > (count / 20) as i64,
            "{again} SYN-ACKs were sent again: {count} clients did not meet the timer"
        );
    }
    for (index, (policy, listener)) in policies.iter().zip(&listeners).enumerate() {
        let seen = settled(context, listener)?;
        let served = served.get(index).copied().unwrap_or_default();
        let counted = format!("{}; {served:?}", describe(&seen));
        context.note(format!("listener {index}: {counted}"));
        let account = || {
            clients.account(index, &seen, &served)?;
            // Clients are so numerous that where there is little room, some are evicted,
            // and some are not.
            if !is_hesitant && policy.max_parked > 0 {
                ensure!(seen.evicted > 0, "no client was evicted");
                ensure!(seen.released_data > 0, "no client was released by data");
            }
            Ok(())
        };
        account().with_context(|| {
            format!(
                "listener {index} ({policy:?}): {counted}; the kernel counted, for all \
                 listeners: {:?}",
                after.changes(&before)
            )
        })?;
    }
    // Exactly nothing is left: a client that comes now is counted as it is.
    let listener = listeners.first().context("no listener")?;
    control::set_config(listener, &timeout(60_000))?;
    half_open_exactly(context, &ns, clients.transport_mut().tun(), listener)?;
    drop(listeners);
    drop(clients);
    drop(ns);
    module::unload(context.patience())
}

/// Waits until no client is parked or half-open any more.
fn settled(context: &Context, listener: &Listener) -> Result<Stats> {
    settle(listener, context.patience() * 3, at_rest, || Ok(()))
}

/// Makes sure that after all that, as many SYNs as are sent are counted.
fn half_open_exactly(
    context: &Context,
    ns: &Netns,
    tun: &mut TunClients,
    listener: &Listener,
) -> Result<()> {
    const SYNS: u32 = 37;
    const FIRST: u32 = 200_000;
    for nth in FIRST..FIRST + SYNS {
        tun.syn(&mut tun.client(nth))?;
    }
    let mut answers = 0;
    while answers < SYNS {
        let any = tun.pump(context.patience(), |_, segment| {
            answers += u32::from(segment.is_syn_ack());
            Ok(())
        })?;
        ensure!(any, "{answers} of {SYNS} SYNs were answered");
    }
    let seen = stats(listener)?;
    expect_eq!(
        seen.half_open,
        i64::from(SYNS),
        "half-open requests in the end"
    );
    expect_eq!(
        sockets::requests(ns, listener.port())?,
        SYNS as usize,
        "requests in SYN_RECV"
    );
    settled(context, listener).map(drop)
}
