// SPDX-License-Identifier: MIT OR Apache-2.0
//! Probes: kernel sockets that connect and close without a byte, as health checks do, beside other
//! clients of the same listeners, which pause and resume all the time.

use std::time::{Duration, Instant};

use accf_kit::account::describe;
use accf_kit::clients::sockets::Sockets;
use accf_kit::clients::{Behaviour, Clients, Limit, Mix, Pace, Policy, Tally, Target, Timing};
use accf_kit::control::{pause, resume, set_config, Config, OnClose, OnTimeout, Stats};
use accf_kit::server::{Served, Server};
use anyhow::{ensure, Context as _, Result};

use crate::ecn::Ecn;
use crate::random::any_family;
use crate::round::Round;
use crate::socket_clients::{more, report};

const PLACE: &str = "probes of listeners that pause";

/// What the listeners do with probes.
const KINDS: [OnClose; 2] = [OnClose::Accept, OnClose::Reset];

const MIX: &Mix = &[
    (Behaviour::CloseLater, 50),
    (Behaviour::DataAtOnce, 15),
    (Behaviour::DataLater, 20),
    (Behaviour::Silent, 15),
];

pub(crate) fn run(round: &Round<'_>) -> Result<()> {
    let mut rng = round.rng(PLACE);
    let ns = round.namespace()?;
    let ecn = Ecn::at_random(round, &mut rng, &ns, &ns)?;
    let policy = Policy {
        on_timeout: OnTimeout::Accept,
        deadline: Some(round.deadline()),
        max_parked: 0,
    };
    let config = policy.config(u32::try_from(round.deadline().as_millis())?);
    let mut server = Server::new()?;
    let mut targets = Vec::new();
    for on_close in KINDS {
        let family = any_family(&mut rng);
        let listener = policy.open(family, &ns)?;
        set_config(&listener, &Config { on_close, ..config })?;
        targets.push(Target {
            lossy: !round.has_all(),
            ..policy.at(family.loopback(listener.port()))
        });
        server.add(listener)?;
    }
    let timing = Timing {
        pause: Duration::ZERO..Duration::from_millis(100),
        margin: Duration::ZERO,
        limit: Limit::Each(round.lifetime()),
    };
    let sockets = Sockets::new(0, rng.fork())?;
    let mut clients = Clients::new(sockets, targets, MIX, timing, rng.fork());
    let pace = Pace {
        at_once: 30,
        gap: round.gap() * 2,
    };
    let mut next = Instant::now();
    round.begin();
    clients.run_in(
        &ns,
        pace,
        |begun| more(round, PLACE, begun),
        || {
            server.step(Duration::from_millis(10))?;
            if Instant::now() >= next {
                let listener = server.listener(rng.usize(..KINDS.len()));
                let listener = listener.context("no such listener")?;
                if rng.bool() {
                    pause(listener)?;
                    round.board.event("parking paused under probes");
                } else {
                    resume(listener)?;
                }
                next = Instant::now() + Duration::from_millis(rng.u64(5..150)) * round.patience;
            }
            Ok(())
        },
    )?;
    ecn.report(round)?;
    report(round, PLACE, &clients, 0);
    for (index, on_close) in KINDS.into_iter().enumerate() {
        let seen = server.settle(index, round.limit())?;
        let served = server.served(index);
        let came = Came::of(clients.tally(), index);
        came.account(on_close, &seen, &served, round.has_all())
            .with_context(|| format!("{on_close:?}, {came:?}: {}; {served:?}", describe(&seen)))?;
        round.at_rest(&seen);
        drop(server.take(index)?);
    }
    Ok(())
}

/// How many clients came to a listener.
#[derive(Clone, Copy, Debug)]
struct Came {
    /// They connected and closed.
    probes: u64,
    /// They sent a request before their deadline.
    senders: u64,
    /// They sent a request after their deadline.
    silent: u64,
}

impl Came {
    fn of(tally: &Tally, index: usize) -> Self {
        use Behaviour::{CloseLater, DataAtOnce, DataLater, Silent};
        Self {
            probes: tally.count(index, &[CloseLater]),
            senders: tally.count(index, &[DataAtOnce, DataLater]),
            silent: tally.count(index, &[Silent]),
        }
    }

    /// Makes sure that the server has accepted every connection but the probes that the filter has
    /// answered. Where something was short (`!has_all`), clients may not have come.
    fn account(
        self,
        on_close: OnClose,
        seen: &Stats,
        served: &Served,
        has_all: bool,
    ) -> Result<()> {
        let answered = seen.closed_reset + seen.closed_reset_unparked;
        ensure!(
            answered == 0 || on_close == OnClose::Reset,
            "{answered} probes were reset"
        );
        let released = seen.released_data
            + seen.released_fin
            + seen.timeout_accept
            + seen.evicted
            + seen.released_paused;
        ensure!(
            served.accepted >= released,
            "{} were accepted, of {released} that were released",
            served.accepted
        );
        if !has_all {
            return Ok(());
        }
        let others = self.senders + self.silent;
        let expectations = [
            ("answered clients", served.with_data, others),
            ("probes", served.at_end + answered, self.probes),
            ("broken connections", served.broken, 0),
            ("clients", served.accepted + answered, others + self.probes),
            (
                "connections that TCP ended, or that fell back",
                seen.aborted + seen.fallback,
                0,
            ),
        ];
        for (what, seen, expected) in expectations {
            ensure!(seen == expected, "{what}: expected {expected}, saw {seen}");
        }
        // What others send may be handled before their ACK is, on another processor.
        let expected = self.silent..=others + self.probes;
        let decided = seen.parked_total + seen.bypassed();
        ensure!(
            expected.contains(&decided),
            "clients that were parked, or that could not be: expected {expected:?}, saw {decided}"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAME: Came = Came {
        probes: 10,
        senders: 3,
        silent: 2,
    };

    /// What a listener that resets probes has counted of them, and its server has seen: two probes
    /// came in a pause, one when it began.
    fn sound() -> (Stats, Served) {
        let mut seen = Stats::default();
        seen.parked_total = 11;
        seen.released_data = 2;
        seen.timeout_accept = 1;
        seen.released_paused = 2;
        seen.closed_reset = 6;
        seen.closed_reset_unparked = 1;
        seen.bypass_paused = 3;
        let served = Served {
            accepted: 8,
            with_data: 5,
            at_end: 3,
            silent: 0,
            broken: 0,
        };
        (seen, served)
    }

    #[test]
    fn every_client_is_accepted_or_answered() {
        let account = |change: fn(&mut Stats, &mut Served)| {
            let (mut seen, mut served) = sound();
            change(&mut seen, &mut served);
            CAME.account(OnClose::Reset, &seen, &served, true).is_ok()
        };
        assert!(account(|_, _| {}));
        // A probe was accepted in a pause, and not reset.
        assert!(account(|seen, served| {
            seen.closed_reset = 5;
            seen.released_paused = 3;
            served.accepted = 9;
            served.at_end = 4;
        }));
        // A pause has lost one: a probe, or another client.
        assert!(!account(|_, served| {
            served.accepted = 7;
            served.at_end = 2;
        }));
        assert!(!account(|_, served| {
            served.accepted = 7;
            served.with_data = 4;
        }));
        // A probe was accepted and reset, or counted twice.
        assert!(!account(|_, served| {
            served.accepted = 9;
            served.at_end = 4;
        }));
        assert!(!account(|seen, _| seen.closed_reset_unparked = 2));
        // A connection broke, or fell back, or was ended by TCP.
        assert!(!account(|_, served| served.broken = 1));
        assert!(!account(|seen, _| seen.fallback = 1));
        assert!(!account(|seen, _| seen.aborted = 1));
        // Some were not counted, or twice.
        assert!(!account(|seen, _| {
            seen.parked_total = 1;
            seen.bypass_paused = 0;
        }));
        assert!(!account(|seen, _| seen.bypass_paused = 5));
    }

    #[test]
    fn probes_are_reset_only_where_they_are_to_be() {
        let (seen, served) = sound();
        assert!(CAME
            .account(OnClose::Accept, &seen, &served, false)
            .is_err());
    }

    #[test]
    fn what_was_released_was_accepted_also_where_something_is_short() {
        let (mut seen, served) = sound();
        CAME.account(OnClose::Reset, &seen, &served, false).unwrap();
        seen.released_paused += 4;
        assert!(CAME.account(OnClose::Reset, &seen, &served, false).is_err());
    }
}
