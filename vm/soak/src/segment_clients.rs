// SPDX-License-Identifier: MIT OR Apache-2.0
//! Clients that send each segment themselves: among them half-open ones, and ones that repeat
//! theirs.

use accf_kit::account::{self, describe};
use accf_kit::clients::segments::{self, Segments};
use accf_kit::clients::{released_were_accepted, Behaviour, Clients, Pace, Policy};
use accf_kit::control::Stats;
use accf_kit::counters::Counters;
use accf_kit::server::Served;
use anyhow::{ensure, Context as _, Result};

use crate::random::any_family;
use crate::round::Round;

const PLACE: &str = "raw clients";

/// How many may be parked where there is little room.
const LITTLE_ROOM: u32 = 4;

pub(crate) fn run(round: &Round<'_>) -> Result<()> {
    let mut rng = round.rng(PLACE);
    let family = any_family(&mut rng);
    let ns = round.namespace()?;
    // Half-open clients are forgotten after 7 s; every other one acknowledges before, however busy
    // the machine is.
    ns.set_sysctl("net.ipv4.tcp_synack_retries", "2")?;
    let deadline = round.deadline();
    let policies = Policy::all(deadline, LITTLE_ROOM, None);
    let (listeners, tun, targets) = segments::open(&policies, family, &ns)?;
    let segments = Segments::new(tun, rng.fork()).with_garbage(20);
    let timing = segments::timing(deadline, round.limit());
    let mut clients = Clients::new(segments, targets, segments::MIX, timing, rng).tolerant();
    if !round.has_all() {
        clients = clients.repeating();
    }
    let before = Counters::read(&ns)?;
    round.begin();
    let pace = Pace {
        at_once: 80,
        gap: round.gap() / 2,
    };
    let served = clients.run_served(&listeners, pace, |begun| {
        round.board.begun(PLACE, begun);
        !round.is_over()
    })?;
    for (behaviour, count) in clients.tally().begun() {
        round
            .board
            .clients(PLACE, behaviour.text(), "accounted for", *count);
    }
    round.board.events_of(
        "segments that make no sense",
        clients.transport().garbage_sent(),
    );
    for (index, (policy, listener)) in policies.iter().zip(&listeners).enumerate() {
        let seen = account::settle(listener, round.limit(), account::at_rest, || Ok(()))?;
        round.at_rest(&seen);
        let served = served.get(index).copied().unwrap_or_default();
        let account = if round.has_all() {
            clients.account(index, &seen, &served)
        } else {
            roughly(&clients, index, policy, &seen, &served)
        };
        account.with_context(|| {
            format!(
                "{family} clients of {policy:?}: {}; {served:?}; the kernel counted, for all \
                 listeners: {:?}",
                describe(&seen),
                Counters::read(&ns).map(|now| now.changes(&before))
            )
        })?;
    }
    Ok(())
}

/// Compares what was counted with what the clients did, where some could not be parked.
fn roughly(
    clients: &Clients<Segments>,
    index: usize,
    policy: &Policy,
    seen: &Stats,
    served: &Served,
) -> Result<()> {
    let tally = clients.tally();
    let parked = tally.to_be_parked(index);
    let doubtful = tally.doubtful(index);
    // Where a request is not understood at first, its client acknowledges.
    let most = parked + tally.count(index, &[Behaviour::DataInAck]);
    ensure!(
        seen.parked_total <= most && parked <= seen.parked_total + seen.bypassed() + doubtful,
        "{} were parked and {} were not, of {parked} to {most} ({doubtful} in doubt)",
        seen.parked_total,
        seen.bypassed()
    );
    released_were_accepted(policy, seen, served).map(drop)
}
