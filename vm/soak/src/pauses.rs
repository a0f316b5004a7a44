// SPDX-License-Identifier: MIT OR Apache-2.0
//! Listeners that pause and resume, also for probes and for clients that start again from the same
//! port.
//!
//! Each segment of a client is sent on one thread, and so is each change of a listener's state: it
//! is known of every client what has to become of it, and of every listener what it has to count.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use accf_kit::account::{self, describe, fields, stats};
use accf_kit::control::{pause, resume, settings, Config, OnClose, OnTimeout, Stats};
use accf_kit::endpoint::{reset_on_close, Accepted, Listen, Listener};
use accf_kit::fault::Whose;
use accf_kit::segment::Flags;
use accf_kit::tun_clients::TunClients;
use accf_kit::wait;
use anyhow::{ensure, Context as _, Result};

use crate::random::any_family;
use crate::round::{Round, Shortage};
use crate::scripted_clients::{ScriptedClients, REQUEST};

const PLACE: &str = "listeners that pause";

/// What the listeners do with silent clients, and with those that close without a byte.
const KINDS: [(OnTimeout, OnClose); 3] = [
    (OnTimeout::Accept, OnClose::Accept),
    (OnTimeout::Reset, OnClose::Reset),
    (OnTimeout::Drop, OnClose::Reset),
];

/// The bytes from a client's next one to a SYN that is inside of the window, at most.
const INSIDE: u32 = 50_000;

pub(crate) fn run(round: &Round<'_>) -> Result<()> {
    let mut rng = round.rng(PLACE);
    let family = any_family(&mut rng);
    let ns = round.namespace()?;
    // Half-open clients are forgotten after 7 s.
    ns.set_sysctl("net.ipv4.tcp_synack_retries", "2")?;
    let mut listeners = Vec::new();
    for (on_timeout, on_close) in KINDS {
        // No deadline: what ends a silent client's request is a pause.
        let config = Config {
            on_close,
            ..settings(0, 0, on_timeout)
        };
        let listen = Listen::filtered(family).backlog(1024).config(config);
        listeners.push((listen.open(&ns)?, on_close));
    }
    let (first, _) = listeners.first().context("no listener")?;
    let clients = ScriptedClients::new(&ns, family, first.port(), round.limit())?;
    let mut scene = Scene {
        round,
        rng,
        clients,
        first_known: 0,
        habits: BTreeMap::new(),
    };
    round.begin();
    let most = Duration::from_millis(200) * round.patience;
    while round.pause(&mut scene.rng, most) {
        let which = scene.rng.usize(..listeners.len());
        let (listener, on_close) = listeners.get(which).context("no such listener")?;
        let (on_timeout, _) = KINDS.get(which).context("no such kind")?;
        scene.play(listener, *on_close).with_context(|| {
            let seen = stats(listener).map_or_else(|error| error.to_string(), |it| describe(&it));
            format!("{family}, {on_timeout:?} and {on_close:?}, which has counted {seen}")
        })?;
        round.board.begun(PLACE, scene.clients.begun());
    }
    for (habit, count) in &scene.habits {
        round.board.clients(PLACE, habit, "accounted for", *count);
    }
    for (listener, _) in &listeners {
        pause(listener)?;
        round.comes_to_rest(listener, || {
            scene.clients.hear(Duration::from_millis(1))?;
            Ok(())
        })?;
    }
    Ok(())
}

/// What a server reads from a connection that it has accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reads {
    Request,
    End,
    Reset,
    /// Nothing is there yet, where something is short.
    Nothing,
}

/// What a client does that is parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    Send,
    Close,
    Reset,
    StartOver,
    Wait,
}

impl Act {
    fn random(rng: &mut fastrand::Rng) -> Self {
        match rng.u8(..10) {
            0 => Self::Send,
            1 | 2 => Self::Close,
            3 => Self::Reset,
            4 => Self::StartOver,
            _ => Self::Wait,
        }
    }
}

/// What has to become of clients and counts in one play.
#[derive(Debug, Default)]
struct Expected {
    /// What has been counted when it is over: of each field the least, and how much more it may be.
    counts: BTreeMap<&'static str, (u64, u64)>,
    /// The connections of each client that are accepted, in that order.
    accepted: BTreeMap<u32, Vec<Reads>>,
}

impl Expected {
    fn count(&mut self, name: &'static str) {
        self.counts.entry(name).or_default().0 += 1;
    }

    /// Expects that a connection is counted as one or the other.
    fn count_one_of(&mut self, names: [&'static str; 2]) {
        for name in names {
            self.counts.entry(name).or_default().1 += 1;
        }
    }

    fn accept(&mut self, nth: u32, reads: Reads) {
        self.accepted.entry(nth).or_default().push(reads);
    }

    /// Compares the growth of a listener's counts.
    fn judge(&self, before: &Stats, after: &Stats) -> Result<()> {
        /// What is not a sum, and what is up to the kernel's timers.
        const FREE: [&str; 4] = [
            "parked",
            "half_open",
            "half_open_young",
            "synack_suppressed",
        ];
        account::consistent(after)?;
        ensure!(after.parked == 0, "{} are parked in the end", after.parked);
        for ((name, before), (_, after)) in fields(before).into_iter().zip(fields(after)) {
            let (least, more) = self.counts.get(name).copied().unwrap_or_default();
            let range = i128::from(least)..=i128::from(least + more);
            ensure!(
                FREE.contains(&name) || range.contains(&(after - before)),
                "{name}: expected {range:?} more, saw {}",
                after - before
            );
        }
        Ok(())
    }
}

/// Returns the first client whose connections were not accepted as expected.
fn first_difference(
    expected: &BTreeMap<u32, Vec<Reads>>,
    seen: &BTreeMap<u32, Vec<Reads>>,
) -> Option<String> {
    let nths = expected.keys().chain(seen.keys());
    let mut different = nths.filter(|nth| expected.get(nth) != seen.get(nth));
    different.next().map(|nth| {
        let [expected, seen] = [expected, seen].map(|all| all.get(nth));
        format!("client {nth}: expected {expected:?}, saw {seen:?}")
    })
}

/// What a round's plays share.
struct Scene<'a> {
    round: &'a Round<'a>,
    rng: fastrand::Rng,
    clients: ScriptedClients,
    /// The first client of which it is known whether it is accepted. Something was short when those
    /// before it connected, and what they have closed may be accepted later.
    first_known: u64,
    /// How many clients did what.
    habits: BTreeMap<&'static str, u64>,
}

impl Scene<'_> {
    /// Has clients connect before, in and after a pause of a listener, and compares what becomes of
    /// them with what has to.
    fn play(&mut self, listener: &Listener, on_close: OnClose) -> Result<()> {
        let port = listener.port();
        let before = stats(listener)?;
        let late = self.clients.late();
        let mut expected = Expected::default();

        let mut waiting = Vec::new();
        for _ in 0..self.rng.usize(3..12) {
            waiting.push(self.clients.connect(port)?);
            expected.count("parked_total");
        }
        self.act(&mut waiting, on_close, &mut expected)?;
        let half_open = self.half_open(port, 2)?;

        // Some are accepted in pauses that are over at once, and the others in the last one.
        for _ in 0..self.rng.usize(..3) {
            pause(listener)?;
            resume(listener)?;
        }
        pause(listener)?;
        let mut accepted = self.act_as_the_pause_begins(&waiting, &mut expected)?;
        for nth in half_open {
            self.clients.ack(nth)?;
            expected.count("bypass_paused");
            accepted.push(nth);
            self.habit("gets its SYN-ACK before a pause, acknowledges in it");
        }
        for _ in 0..self.rng.usize(1..6) {
            accepted.push(self.clients.connect(port)?);
            expected.count("bypass_paused");
            self.habit("connects in a pause");
        }
        for nth in self.half_open(port, 1)? {
            self.clients.push(nth, Flags::FIN_ACK, b"")?;
            expected.accept(nth, Reads::End);
            self.habit("closes instead of its ACK, in a pause");
        }
        let half_open = self.half_open(port, 3)?;
        let mut parked = u64::MAX;
        wait::until(self.round.limit(), || {
            self.clients.hear(Duration::from_millis(1))?;
            parked = stats(listener)?.parked;
            Ok(parked == 0)
        })?;
        ensure!(parked == 0, "{parked} are parked although there is a pause");
        resume(listener)?;

        self.act_after_the_pause(&half_open, on_close, &mut expected)?;
        for nth in accepted {
            self.clients.push(nth, Flags::PSH_ACK, REQUEST)?;
            expected.accept(nth, Reads::Request);
        }
        let is_exact = self.round.has_all() && self.clients.late() == late;
        self.accept_all(listener, &expected, is_exact)?;
        if is_exact {
            expected.judge(&before, &stats(listener)?)?;
            self.round.board.event("pauses that were counted exactly");
        } else {
            self.first_known = self.clients.begun();
            self.round.board.event("pauses where something was short");
        }
        self.clients.forget();
        Ok(())
    }

    fn habit(&mut self, text: &'static str) {
        *self.habits.entry(text).or_default() += 1;
    }

    /// Returns new clients that have a SYN-ACK, as many as `most` at most.
    fn half_open(&mut self, port: u16, most: usize) -> Result<Vec<u32>> {
        let count = self.rng.usize(..=most);
        (0..count).map(|_| self.clients.half_open(port)).collect()
    }

    /// Has clients that are parked do something, and leaves in `parked` those that still are.
    fn act(
        &mut self,
        parked: &mut Vec<u32>,
        on_close: OnClose,
        expected: &mut Expected,
    ) -> Result<()> {
        for nth in std::mem::take(parked) {
            match Act::random(&mut self.rng) {
                Act::Send => self.send(nth, expected)?,
                Act::Close => self.close(nth, on_close, expected)?,
                Act::Reset => {
                    self.clients.push(nth, Flags::RST, b"")?;
                    expected.count("aborted");
                    self.habit("is parked, resets");
                }
                // What is short may be what the first connection or the answer takes.
                Act::StartOver if self.round.has_all() => {
                    let offset = self.rng.u32(..INSIDE);
                    self.clients.start_over(nth, offset)?;
                    expected.count("fallback");
                    expected.accept(nth, Reads::Reset);
                    expected.count("parked_total");
                    parked.push(nth);
                    self.habit("is parked, starts again from its port");
                    self.round.board.event("SYNs into the window");
                }
                Act::StartOver | Act::Wait => {
                    parked.push(nth);
                    self.habit("is parked when a pause begins");
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, nth: u32, expected: &mut Expected) -> Result<()> {
        self.clients.push(nth, Flags::PSH_ACK, REQUEST)?;
        expected.count("released_data");
        expected.accept(nth, Reads::Request);
        self.habit("is parked, sends");
        Ok(())
    }

    fn close(&mut self, nth: u32, on_close: OnClose, expected: &mut Expected) -> Result<()> {
        self.clients.push(nth, Flags::FIN_ACK, b"")?;
        if on_close == OnClose::Reset {
            expected.count("closed_reset");
        } else {
            expected.count("released_fin");
            expected.accept(nth, Reads::End);
        }
        self.habit("is parked, closes");
        Ok(())
    }

    /// Has some of the parked clients send or close just as a pause begins; returns the others.
    fn act_as_the_pause_begins(
        &mut self,
        parked: &[u32],
        expected: &mut Expected,
    ) -> Result<Vec<u32>> {
        let mut others = Vec::new();
        for &nth in parked {
            match self.rng.u8(..4) {
                0 => {
                    self.clients.push(nth, Flags::PSH_ACK, REQUEST)?;
                    expected.count_one_of(["released_data", "released_paused"]);
                    expected.accept(nth, Reads::Request);
                }
                1 => {
                    self.clients.push(nth, Flags::FIN_ACK, b"")?;
                    expected.count_one_of(["released_fin", "released_paused"]);
                    expected.accept(nth, Reads::End);
                }
                _ => {
                    expected.count("released_paused");
                    others.push(nth);
                }
            }
        }
        Ok(others)
    }

    /// Has clients acknowledge after a pause that have got their SYN-ACK in it, and then send or
    /// close; or close instead.
    fn act_after_the_pause(
        &mut self,
        half_open: &[u32],
        on_close: OnClose,
        expected: &mut Expected,
    ) -> Result<()> {
        for &nth in half_open {
            let kind = self.rng.u8(..3);
            if kind > 0 {
                self.clients.ack(nth)?;
                expected.count("parked_total");
            }
            match kind {
                0 => {
                    self.clients.push(nth, Flags::FIN_ACK, b"")?;
                    if on_close == OnClose::Reset {
                        expected.count("closed_reset_unparked");
                    } else {
                        expected.accept(nth, Reads::End);
                    }
                    self.habit("closes instead of its ACK");
                }
                1 => self.send(nth, expected)?,
                _ => self.close(nth, on_close, expected)?,
            }
        }
        Ok(())
    }

    /// Accepts what has to be accepted. Where something is short or late, those that close may be
    /// accepted or not, and those that send may be reset instead if they were late themselves, or
    /// if what is short is the network's memory.
    fn accept_all(
        &mut self,
        listener: &Listener,
        expected: &Expected,
        is_exact: bool,
    ) -> Result<()> {
        /// From one time to the next that a client sends again what was not heard.
        const REPEAT: Duration = Duration::from_secs(1);
        let all = expected.accepted.values().map(Vec::len).sum::<usize>();
        let may_be_reset = matches!(self.round.shortage, Shortage::Of(Whose::Network, _));
        let mut accepted: BTreeMap<u32, Vec<Accepted>> = BTreeMap::new();
        let mut count = 0;
        let mut repeated = Instant::now();
        let mut missing = Vec::new();
        wait::until(self.round.limit(), || {
            self.clients.hear(Duration::from_millis(1))?;
            while let Some(one) = listener.accept_now()? {
                let nth = TunClients::at(one.peer).context("an address of no client")?;
                if u64::from(nth) < self.first_known {
                    reset_on_close(&one.stream)?;
                    continue;
                }
                accepted.entry(nth).or_default().push(one);
                count += 1;
            }
            if is_exact {
                return Ok(count >= all);
            }
            missing = senders(expected)
                .filter(|nth| !accepted.contains_key(nth))
                .filter(|nth| {
                    let may_be_reset = may_be_reset || self.clients.is_late(*nth);
                    !(may_be_reset && self.clients.is_reset(*nth))
                })
                .collect();
            if repeated.elapsed() > REPEAT {
                repeated = Instant::now();
                missing
                    .iter()
                    .try_for_each(|nth| self.clients.repeat(*nth))?;
            }
            Ok(missing.is_empty())
        })?;
        ensure!(missing.is_empty(), "not accepted: clients {missing:?}");
        let mut seen = BTreeMap::new();
        for (nth, connections) in accepted {
            let reads = connections.into_iter().map(|one| read(one, is_exact));
            seen.insert(nth, reads.collect::<Result<Vec<_>>>()?);
        }
        if is_exact {
            let difference = first_difference(&expected.accepted, &seen);
            ensure!(difference.is_none(), "{}", difference.unwrap_or_default());
        }
        Ok(())
    }
}

/// Returns the clients that have sent a request in the end, and are accepted whatever is short.
fn senders(expected: &Expected) -> impl Iterator<Item = u32> + '_ {
    let all = expected.accepted.iter();
    all.filter(|(_, reads)| reads.last() == Some(&Reads::Request))
        .map(|(nth, _)| *nth)
}

/// Reads what a client has sent, if that `is_there`, and resets the connection.
fn read(mut accepted: Accepted, is_there: bool) -> Result<Reads> {
    let mut buffer = [0; 256];
    accepted.stream.set_nonblocking(!is_there)?;
    let reads = match accepted.stream.read(&mut buffer) {
        Ok(0) => Reads::End,
        Ok(length) => {
            ensure!(
                buffer.get(..length) == Some(REQUEST),
                "{length} bytes that no client sent"
            );
            Reads::Request
        }
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Reads::Reset,
        Err(error) if error.kind() == ErrorKind::WouldBlock && !is_there => Reads::Nothing,
        Err(error) => return Err(error).context("read from a connection that was accepted"),
    };
    reset_on_close(&accepted.stream)?;
    Ok(reads)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten clients were parked; one has sent, one has closed just as a pause began, and eight were
    /// accepted in it. Two more came in it.
    fn expected() -> Expected {
        let mut expected = Expected::default();
        for _ in 0..10 {
            expected.count("parked_total");
        }
        expected.count("released_data");
        expected.count_one_of(["released_fin", "released_paused"]);
        for _ in 0..8 {
            expected.count("released_paused");
        }
        for nth in 0..2 {
            expected.count("bypass_paused");
            expected.accept(nth, Reads::Request);
        }
        expected
    }

    fn counted(change: impl FnOnce(&mut Stats)) -> Stats {
        let mut stats = Stats::default();
        stats.parked_total = 10;
        stats.released_data = 1;
        stats.released_fin = 1;
        stats.released_paused = 8;
        stats.bypass_paused = 2;
        stats.wait_log2[3] = 2;
        change(&mut stats);
        stats
    }

    #[test]
    fn each_client_of_a_pause_is_counted_once() {
        let judge = |change: fn(&mut Stats)| {
            let verdict = expected().judge(&Stats::default(), &counted(change));
            verdict.is_ok()
        };
        assert!(judge(|_| {}));
        // The one that closed may have been accepted before.
        assert!(judge(|stats| {
            stats.released_fin = 0;
            stats.released_paused = 9;
            stats.wait_log2[3] = 1;
        }));
        assert!(judge(|stats| stats.synack_suppressed = 1));
        // A pause has lost one that was parked.
        assert!(!judge(|stats| stats.released_paused = 7));
        assert!(!judge(|stats| {
            stats.released_paused = 7;
            stats.parked_total = 9;
        }));
        assert!(!judge(|stats| {
            stats.released_paused = 7;
            stats.aborted = 1;
        }));
        assert!(!judge(|stats| {
            stats.released_paused = 7;
            stats.parked = 1;
        }));
        // One that came in it was parked, lost, or counted for another reason.
        assert!(!judge(|stats| {
            stats.bypass_paused = 1;
            stats.parked_total = 11;
            stats.released_paused = 9;
        }));
        assert!(!judge(|stats| stats.bypass_paused = 1));
        assert!(!judge(|stats| {
            stats.bypass_paused = 1;
            stats.bypass_other = 1;
        }));
    }

    #[test]
    fn counts_of_an_earlier_pause_do_not_count() {
        let (before, after) = (counted(|_| {}), {
            counted(|stats| {
                stats.parked_total *= 2;
                stats.released_data *= 2;
                stats.released_fin *= 2;
                stats.released_paused *= 2;
                stats.bypass_paused *= 2;
                stats.wait_log2[3] *= 2;
            })
        });
        expected().judge(&before, &after).unwrap();
        assert!(expected().judge(&after, &after).is_err());
    }

    #[test]
    fn a_client_that_is_not_accepted_or_twice_is_a_difference() {
        let expected = expected().accepted;
        assert_eq!(first_difference(&expected, &expected), None);
        let mut seen = expected.clone();
        seen.remove(&1);
        assert!(first_difference(&expected, &seen)
            .unwrap()
            .starts_with("client 1: "));
        seen.insert(1, vec![Reads::Request, Reads::Request]);
        assert!(first_difference(&expected, &seen).is_some());
        seen.insert(1, vec![Reads::End]);
        assert!(first_difference(&expected, &seen).is_some());
        seen.insert(1, vec![Reads::Request]);
        seen.insert(7, vec![Reads::End]);
        assert!(first_difference(&expected, &seen)
            .unwrap()
            .starts_with("client 7: "));
    }
}
