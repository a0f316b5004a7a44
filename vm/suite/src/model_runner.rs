// SPDX-License-Identifier: MIT OR Apache-2.0

//! Runs the model's histories with real listeners and real segments, and compares the outcome.
//!
//! Many histories run at the same time, each with a listener of its own, by one thread: it sends
//! for all clients, and what the kernel answers is there when the system call that sent it returns.
//! What happens by itself has to be there once the model's guard is over, or as much later as this
//! machine was late just then.
//!
//! Where this machine is so slow that something may have happened by itself in the middle of a
//! move, the right outcome is unknown; so it is where the machine stood still just when something
//! was not as predicted. Such a history runs again.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use accf_kit::clock::Stamp;
use accf_kit::control::{self, settings, Config, OnClose, OnTimeout, State, Stats};
use accf_kit::endpoint::{Family, Listen, Listener};
use accf_kit::netns::Netns;
use accf_kit::segment::{Flags, Segment, Timestamps};
use accf_kit::tcp_info::TcpInfo;
use accf_kit::tun_clients::{TunClient, TunClients};
use accf_model::history::{History, CLIENTS};
use accf_model::script::{in_millis, Action, Cue, Director, Pace, TooLate};
use accf_model::server::{self, Counts, Millis, Seen, Sent};
use anyhow::{ensure, Context as _, Result};
use socket2::Socket;

use crate::case::Context;
use crate::count::{consistent, describe, processors};

/// What came of a history.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// All was to be seen that was predicted, and nothing else.
    AsPredicted(Done),
    /// Something else was to be seen; and all that was done before.
    Differs(String),
    /// The machine was so late that the right outcome is unknown.
    Late,
}

/// What was done in a history that went as predicted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    /// How many moves.
    pub(crate) moves: usize,
    /// How many segments were sent by clients and by the server before they were connected.
    pub(crate) segments: usize,
    /// What the listener counted in the end, or before it was closed.
    pub(crate) counts: Counts,
}

/// Runs histories, all of them behind one TUN interface.
pub(crate) struct ModelRunner<'a> {
    context: &'a Context,
    tun: TunClients,
    family: Family,
    pace: Pace,
    /// How many clients there have been.
    clients: u32,
}

impl<'a> ModelRunner<'a> {
    /// Makes a runner in the calling thread's namespace, which is `ns`.
    pub(crate) fn new(
        context: &'a Context,
        ns: &Netns,
        family: Family,
        pace: Pace,
    ) -> Result<Self> {
        Ok(Self {
            context,
            tun: TunClients::new(ns, family, 1)?,
            family,
            pace,
            clients: 0,
        })
    }

    /// Runs histories, all at once.
    pub(crate) fn run(&mut self, histories: &[History]) -> Result<Vec<Outcome>> {
        let mut runs = Vec::new();
        for history in histories {
            runs.push(Run::new(self, history)?);
        }
        let start = Instant::now();
        for (nth, run) in runs.iter_mut().enumerate() {
            // Not all at the same moment.
            run.start = start + Duration::from_millis(nth as u64 * 37 % 200);
            run.next_at = run.start;
        }
        loop {
            let running = runs.iter().enumerate();
            let running = running.filter(|(_, run)| run.outcome.is_none());
            let Some((at, nth)) = running.map(|(nth, run)| (run.next_at, nth)).min() else {
                break;
            };
            sleep(at.saturating_duration_since(Instant::now()));
            self.go_on(&mut runs, nth)?;
        }
        let outcomes = runs.iter_mut().map(|run| run.outcome.take());
        let outcomes = outcomes.map(|outcome| outcome.unwrap_or(Outcome::Late));
        let outcomes = outcomes.collect();
        // The remaining connections end with a reset; the test does not wait for it.
        drop(runs);
        while self.tun.take()?.is_some() {}
        Ok(outcomes)
    }

    /// Makes the next move of a run, if it is time.
    fn go_on(&mut self, runs: &mut [Run], nth: usize) -> Result<()> {
        let run = &mut runs[nth];
        let cue = run.director.next(run.now());
        match cue {
            Ok(Cue::Wait(until)) => {
                run.next_at = run.start + Duration::from_millis(until);
                Ok(())
            }
            Ok(Cue::Over) => {
                run.outcome = Some(Outcome::AsPredicted(run.done));
                Ok(())
            }
            Ok(Cue::Act(action, before)) => self.perform(runs, nth, action, &before),
            Err(TooLate) => {
                run.outcome = Some(Outcome::Late);
                Ok(())
            }
        }
    }

    fn perform(
        &mut self,
        runs: &mut [Run],
        nth: usize,
        action: Action,
        before: &Seen,
    ) -> Result<()> {
        if !self.is_seen(runs, nth, before, action, Duration::ZERO)? {
            return Ok(());
        }
        let run = &mut runs[nth];
        let from = run.now();
        // The server's ACKs of what it hears now are its connection's.
        let connects = run.act(&self.tun, action)?;
        // The clock shows the last millisecond that has begun.
        let to = run.now() + 1;
        run.told.push(format!("{from:5} ms  {action}"));
        let Ok(after) = run.director.done(from, to) else {
            run.outcome = Some(Outcome::Late);
            return Ok(());
        };
        if let Some(client) = connects {
            run.connected[client] |= after.connected[client];
        }
        let takes = match action {
            Action::Close => CLOSE_TOLD_WITHIN,
            _ => Duration::ZERO,
        };
        if self.is_seen(runs, nth, &after, action, takes)? {
            let run = &mut runs[nth];
            run.done.moves += 1;
            run.next_at = Instant::now();
        }
        Ok(())
    }

    /// Waits until a run looks as predicted, which takes `takes` at most; if it does not, that is
    /// its outcome.
    fn is_seen(
        &mut self,
        runs: &mut [Run],
        nth: usize,
        expected: &Seen,
        action: Action,
        takes: Duration,
    ) -> Result<bool> {
        let guard = Duration::from_millis(self.pace.guard);
        let (begun, at) = (Instant::now(), Stamp::now());
        // What is not as it should be may have gone wrong since all was well.
        let (from, until) = (
            runs[nth].seen.before(guard * 2),
            Stamp::from_epoch(at.epoch() + guard),
        );
        loop {
            let waited = begun.elapsed();
            self.hear(runs)?;
            let run = &mut runs[nth];
            let Some(difference) = run.difference(expected)? else {
                run.seen = Stamp::now();
                run.connected.clone_from(&expected.connected);
                run.half_open.clone_from(&expected.half_open);
                if let Some(counts) = expected.counts {
                    run.done.counts = counts;
                }
                run.done.segments = run.sent + expected.sent.iter().map(Vec::len).sum::<usize>();
                return Ok(true);
            };
            let now = run.now();
            if run
                .director
                .next_by_itself()
                .is_some_and(|next| now >= next)
            {
                // It may be that which is to be seen.
                run.outcome = Some(Outcome::Late);
                return Ok(false);
            }
            let late = self.context.late(from, until);
            if waited > guard + late + takes {
                if late > guard {
                    // Its clock tick, too, by which the kernel decides whether to answer again.
                    run.outcome = Some(Outcome::Late);
                    return Ok(false);
                }
                run.outcome = Some(Outcome::Differs(format!(
                    "backlog {}; {}\n{}\nAt {now} ms ({action} comes next, or was the last), \
                     the machine being up to {late:?} late:\n{difference}",
                    run.backlog,
                    run.config,
                    run.told.join("\n"),
                )));
                return Ok(false);
            }
            sleep(Duration::from_millis(1));
        }
    }

    /// Takes all segments off the wire that are there.
    fn hear(&mut self, runs: &mut [Run]) -> Result<()> {
        let Some(oldest) = runs.first().map(|it| it.first) else {
            return Ok(());
        };
        while let Some((nth, segment)) = self.tun.take()? {
            let Some(place) = nth.checked_sub(oldest) else {
                continue;
            };
            if let Some(run) = runs.get_mut(place as usize / CLIENTS) {
                run.hear(place as usize % CLIENTS, &segment);
            }
        }
        Ok(())
    }
}

/// How long it may take until all parked clients of a closed listener are reset: a grace period of
/// RCU, and a work item.
const CLOSE_TOLD_WITHIN: Duration = Duration::from_millis(500);

/// One client, as far as it knows.
#[derive(Clone, Debug)]
struct Client {
    nth: u32,
    isn: u32,
    /// What it expects next, since it had a SYN-ACK.
    rcv_nxt: Option<u32>,
    /// The timestamp option, if it uses that.
    timestamps: Option<Timestamps>,
    sent: Vec<Sent>,
}

/// One history, and how far it has got.
struct Run {
    director: Director,
    backlog: usize,
    config: server::Config,
    start: Instant,
    next_at: Instant,
    /// The number of its first client.
    first: u32,
    port: u16,
    listener: Option<Listener>,
    clients: Vec<Client>,
    /// Which clients are connected: the ACKs of connections are not counted.
    connected: Vec<bool>,
    half_open: Vec<bool>,
    accepted: Vec<usize>,
    sockets: Vec<Socket>,
    /// How many segments the clients have sent.
    sent: usize,
    /// Segments of the server with numbers that mean nothing.
    odd: Vec<String>,
    /// What was done, line by line.
    told: Vec<String>,
    done: Done,
    /// When all was as predicted, the last time.
    seen: Stamp,
    outcome: Option<Outcome>,
}

impl Run {
    fn new(runner: &mut ModelRunner<'_>, history: &History) -> Result<Self> {
        let config = in_millis(history.config, runner.pace);
        let listener = Listen::filtered(runner.family)
            .config(kit_config(config))
            .backlog(i32::try_from(history.backlog)?)
            .open_here()?;
        let first = runner.clients;
        runner.clients += CLIENTS as u32;
        let client = |nth: u32| Client {
            nth,
            isn: nth.wrapping_mul(2_654_435_761).wrapping_sub(2),
            rcv_nxt: None,
            // Every other one.
            timestamps: nth
                .is_multiple_of(2)
                .then_some(Timestamps { value: 1, echo: 0 }),
            sent: Vec::new(),
        };
        let now = Instant::now();
        Ok(Self {
            director: Director::new(history, runner.pace),
            backlog: history.backlog,
            config,
            start: now,
            next_at: now,
            first,
            port: listener.port(),
            listener: Some(listener),
            clients: (first..runner.clients).map(client).collect(),
            connected: vec![false; CLIENTS],
            half_open: vec![false; CLIENTS],
            accepted: Vec::new(),
            sockets: Vec::new(),
            sent: 0,
            odd: Vec::new(),
            told: Vec::new(),
            done: Done::default(),
            seen: Stamp::now(),
            outcome: None,
        })
    }

    /// Returns what time it is here.
    fn now(&self) -> Millis {
        let time = Instant::now().saturating_duration_since(self.start);
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    }

    /// Does something; returns the client that may be connected because of that.
    fn act(&mut self, tun: &TunClients, action: Action) -> Result<Option<usize>> {
        match action {
            Action::Send(client, segment) => {
                let segment = self.segment(tun, client, segment);
                tun.send(&segment)?;
                self.sent += 1;
                return Ok(Some(client));
            }
            Action::Configure(config) => {
                let listener = self.listener.as_ref().context("the listener is closed")?;
                control::set_config(listener, &kit_config(config)).context("ACCF_CONFIG")?;
            }
            Action::Accept => self.accept()?,
            Action::Close => self.listener = None,
            Action::Look => {}
        }
        Ok(None)
    }

    fn accept(&mut self) -> Result<()> {
        let listener = self.listener.as_ref().context("the listener is closed")?;
        let (socket, peer) = match listener.socket().accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error).context("accept"),
        };
        // Its end leaves nothing behind.
        socket.set_linger(Some(Duration::ZERO))?;
        let peer: SocketAddr = peer.as_socket().context("a peer without an address")?;
        let nth = TunClients::at(peer).and_then(|nth| nth.checked_sub(self.first));
        let client = nth.map(|nth| nth as usize).filter(|nth| *nth < CLIENTS);
        self.accepted
            .push(client.with_context(|| format!("accepted {peer}, which is no client"))?);
        self.sockets.push(socket);
        Ok(())
    }

    /// Returns what a client sends.
    fn segment(&mut self, tun: &TunClients, client: usize, segment: server::Segment) -> Segment {
        use server::Segment as Kind;
        const FAR: u32 = 1_000_000;
        let port = self.port;
        let client = &mut self.clients[client];
        let next = client.isn.wrapping_add(1);
        let tun_client = TunClient {
            nth: client.nth,
            port,
            snd_nxt: next,
            rcv_nxt: client.rcv_nxt.unwrap_or(0),
        };
        let make = |flags, payload: &[u8]| tun.segment(&tun_client, flags, payload);
        let at = |mut segment: Segment, seq: u32| {
            segment.seq = seq;
            segment
        };
        let mut made = match segment {
            Kind::Syn => {
                client.timestamps.iter_mut().for_each(|it| it.echo = 0);
                let mut syn = at(make(Flags::SYN, b""), client.isn);
                syn.mss = Some(1460);
                syn.sack_permitted = true;
                syn.window_scale = Some(7);
                syn
            }
            Kind::Ack => make(Flags::ACK, b""),
            Kind::Data => make(Flags::PSH_ACK, b"hello"),
            Kind::Fin => make(Flags::FIN_ACK, b""),
            Kind::DataFin => make(Flags::FIN_ACK, b"hello"),
            Kind::Rst => make(Flags::RST, b""),
            Kind::InexactRst => at(make(Flags::RST, b""), next.wrapping_add(100)),
            Kind::Probe => at(make(Flags::ACK, b""), client.isn),
            Kind::ProbeWithByte => at(make(Flags::ACK, b"\0"), client.isn),
            Kind::OldData => at(make(Flags::PSH_ACK, b"old"), next.wrapping_sub(FAR)),
            Kind::WrongAck => {
                let mut wrong = make(Flags::ACK, b"");
                wrong.ack = wrong.ack.wrapping_add(1000);
                wrong
            }
            Kind::SynInWindow => at(make(Flags::SYN, b""), next.wrapping_add(100)),
            Kind::StraySyn => at(make(Flags::SYN, b""), next.wrapping_sub(FAR)),
            Kind::NoAck => {
                let flags = Flags {
                    psh: true,
                    ..Flags::default()
                };
                make(flags, b"hello")
            }
        };
        if let Some(timestamps) = client.timestamps.as_mut().filter(|_| !made.is_rst()) {
            made.timestamps = Some(*timestamps);
            timestamps.value += 1;
        }
        made
    }

    /// A segment of the server has come.
    fn hear(&mut self, nth: usize, segment: &Segment) {
        let is_connected = self.connected[nth];
        let client = &mut self.clients[nth];
        let next = client.isn.wrapping_add(1);
        let is_new = segment.ack == next;
        let sent = if segment.source.port() != self.port || segment.has_data() {
            None
        } else if segment.is_rst() {
            let is_exact = Some(segment.seq) == client.rcv_nxt;
            Some(if is_exact {
                Sent::Reset
            } else {
                Sent::StrayReset
            })
        } else if segment.is_syn_ack() && is_new {
            client.rcv_nxt = Some(segment.end_seq());
            Some(Sent::SynAck)
        } else if segment.is_bare_ack() && is_connected {
            return;
        } else if segment.is_bare_ack() && is_new && Some(segment.seq) == client.rcv_nxt {
            Some(Sent::Ack)
        } else {
            None
        };
        // A half-open client that echoes the timestamp of another segment than the SYN-ACK is not
        // heard any more: this kernel's tcp_check_req() drops its segments, with or without a
        // filter. A parked client's are not dropped.
        let is_newer = sent != Some(Sent::Ack) || !self.half_open[nth];
        if let (Some(own), Some(theirs)) = (&mut client.timestamps, segment.timestamps) {
            if is_newer {
                own.echo = theirs.value;
            }
        }
        match sent {
            Some(sent) => client.sent.push(sent),
            None => self.odd.push(segment.to_string()),
        }
    }

    /// Returns how it differs from what is predicted.
    fn difference(&self, expected: &Seen) -> Result<Option<String>> {
        let mut told = Vec::new();
        ensure!(
            expected.counts.is_some() == self.listener.is_some(),
            "the script does not know whether it is closed"
        );
        if let (Some(counts), Some(listener)) = (&expected.counts, &self.listener) {
            let seen = control::stats(listener).context("ACCF_STATS")?;
            if let Some(difference) = self.miscounted(counts, &seen) {
                told.push(difference);
            }
            let queued = TcpInfo::of(listener)?.unacked as usize;
            if queued != expected.queued {
                told.push(format!(
                    "{queued} connections in the accept queue, not {}",
                    expected.queued
                ));
            }
        }
        if self.accepted != expected.accepted {
            told.push(format!(
                "clients {:?} were accepted, not {:?}",
                self.accepted, expected.accepted
            ));
        }
        for (nth, (client, sent)) in self.clients.iter().zip(&expected.sent).enumerate() {
            if client.sent != *sent {
                told.push(format!(
                    "client {nth} was sent {:?}, not {sent:?}",
                    client.sent
                ));
            }
        }
        for segment in &self.odd {
            told.push(format!("the server sent {segment}, which means nothing"));
        }
        Ok((!told.is_empty()).then(|| told.join("; ")))
    }

    fn miscounted(&self, expected: &Counts, seen: &Stats) -> Option<String> {
        let mut as_expected = Stats::default();
        as_expected.parked = expected.parked;
        as_expected.parked_total = expected.parked_total();
        as_expected.released_data = expected.released_data;
        as_expected.released_fin = expected.released_fin;
        as_expected.timeout_accept = expected.timeout_accept;
        as_expected.timeout_reset = expected.timeout_reset;
        as_expected.timeout_drop = expected.timeout_drop;
        as_expected.evicted = expected.evicted;
        as_expected.aborted = expected.aborted;
        as_expected.fallback = expected.fallback;
        as_expected.bypass_accept_queue_full = expected.bypass_accept_queue_full;
        as_expected.released_paused = expected.released_paused;
        as_expected.bypass_paused = expected.bypass_paused;
        as_expected.closed_reset = expected.closed_reset;
        as_expected.closed_reset_unparked = expected.closed_reset_unparked;
        as_expected.released_late = expected.released_late;
        as_expected.overflow_dropped = expected.overflow_dropped;
        // All clients have one address, of which the oldest is evicted.
        as_expected.sources = seen.sources;
        as_expected.half_open_young = expected.half_open_young as i64;
        // A few parked ones are still half open for the kernel.
        let spare = processors()
            .min(self.backlog as i64 / 8)
            .min(expected.parked as i64);
        let half_open = expected.half_open as i64;
        as_expected.half_open = seen.half_open.clamp(half_open, half_open + spare);
        // What TCP's own timers do is not predicted. That the histogram adds up is looked at below.
        as_expected.synack_suppressed = seen.synack_suppressed;
        as_expected.wait_log2 = seen.wait_log2;
        if as_expected != *seen {
            return Some(format!(
                "counted: {}; not: {}",
                describe(seen),
                describe(&as_expected)
            ));
        }
        consistent(seen).err().map(|error| format!("{error:#}"))
    }
}

fn kit_config(config: server::Config) -> Config {
    let timeout = config.timeout.unwrap_or(0);
    let kit = settings(
        u32::try_from(timeout).unwrap_or(u32::MAX),
        config.max_parked,
        match config.on_timeout {
            server::OnTimeout::Accept => OnTimeout::Accept,
            server::OnTimeout::Reset => OnTimeout::Reset,
            server::OnTimeout::Drop => OnTimeout::Drop,
        },
    );
    let state = match config.paused {
        true => State::Paused,
        false => State::Parking,
    };
    let on_close = match config.resets_on_close {
        true => OnClose::Reset,
        false => OnClose::Accept,
    };
    Config {
        state,
        on_close,
        ..kit
    }
}
