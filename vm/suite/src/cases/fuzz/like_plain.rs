// SPDX-License-Identifier: MIT OR Apache-2.0

//! The same segments for a plain listener and a filtered one: both give the same answers.
//!
//! Before a request is parked and after it is released, the two must not differ at all, so any
//! segment is sent. While one has a parked request, the other has an established connection, and
//! their answers differ to the same SYN again, and where Linux's requests differ from its
//! connections (to a wrong acknowledgement number or timestamp; TS.Recent of a request, RFC 7323
//! section 4.3, is its SYN's timestamp, whatever the ACK says). So a parked request gets only
//! segments that both must answer alike: data in, before and behind its window, the end, resets,
//! probes, SYNs in the window, and segments that acknowledge nothing, each with a newer timestamp.

use std::time::{Duration, Instant};

use accf_kit::control::{self, settings, OnTimeout};
use accf_kit::endpoint::{Family, Listen, Listener};
use accf_kit::forge::Forged;
use accf_kit::netns::Netns;
use accf_kit::segment::{Flags, Segment, Timestamps};
use accf_kit::tun_clients::{self, TunClient, TunClients};
use accf_kit::wait;
use anyhow::{ensure, Context as _, Result};

use super::segments::{forge, odd, options};
use crate::case::{case, each_family, expect_eq, Context};
use crate::count::{describe, stats};
use crate::fuzz::{self, Fed};

/// How many clients of each listener a round has.
const PAIRS: usize = 8;
/// How many segments each of them sends at most.
const STEPS: usize = 10;
/// How long after a client's first SYN its SYN-ACK is retransmitted at the earliest: a second
/// (`TCP_TIMEOUT_INIT`), less some ticks. A pair takes that long only if the machine stalls.
const SYN_ACK_AGAIN: Duration = Duration::from_millis(900);
/// The client that asks a port without a listener.
const FENCE: u32 = 0;

/// One client of one of the listeners.
#[derive(Debug)]
struct Side {
    member: TunClient,
    /// The sequence number of the SYN-ACK; 0 if none has come.
    isn: u32,
    /// The timestamp to echo: the SYN-ACK's, or one of later answers to a parked request.
    tsval: u32,
    /// The timestamp that the SYN-ACK echoes: TS.Recent.
    ts_recent: Option<u32>,
}

/// A segment, in numbers that do not depend on the listener's choice.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    flags: Flags,
    seq: u32,
    ack: u32,
    length: usize,
    mss: Option<u16>,
    window_scale: Option<u8>,
    sack_permitted: bool,
    timestamps: bool,
}

/// The two listeners, and the sender.
struct Fuzzer<'a> {
    context: &'a Context,
    tun: TunClients,
    plain: Listener,
    filtered: Listener,
    next: u32,
    /// How many pairs took too long to compare.
    slow: u64,
}

case!(Fuzz, "fuzz.like_plain" => each_family(like_plain));
fn like_plain(context: &Context, family: Family) -> Result<()> {
    let ns = Netns::new()?;
    for (name, value) in [
        ("tcp_synack_retries", "1"),
        ("tcp_max_syn_backlog", "100000"),
        ("tcp_syncookies", "0"),
        // No rate limit for answers.
        ("tcp_invalid_ratelimit", "0"),
        ("tcp_challenge_ack_limit", "2147483647"),
        ("tcp_comp_sack_nr", "0"),
    ] {
        ns.set_sysctl(&format!("net.ipv4.{name}"), value)?;
    }
    let plain = Listen::plain(family).backlog(4096).open(&ns)?;
    let filtered = Listen::filtered(family)
        .backlog(4096)
        .config(HOLD)
        .open(&ns)?;
    let tun = TunClients::new(&ns, family, plain.port())?;
    // No ACK is delayed: a route with `quickack`, more specific than the interface's own.
    for network in ["198.18.0.0/25", "198.18.0.128/25", "2001:db8:2::/65"] {
        let route = ["route", "add", network, "dev", tun_clients::INTERFACE];
        ns.command("ip", &[&route[..], &["quickack", "1"]].concat())?;
    }
    let mut fuzzer = Fuzzer {
        context,
        tun,
        plain,
        filtered,
        next: FENCE + 1,
        slow: 0,
    };
    let needed = ["segments", "segments to the parked", "answers"];
    fuzz::rounds(context, &needed, |rng, fed| fuzzer.round(rng, fed))?;
    let seen = stats(&fuzzer.filtered)?;
    context.note(describe(&seen));
    // The bare ACK may have come while the SYN-ACK timer was running, which happens only with a
    // slow pair.
    let bypassed = seen.bypassed();
    ensure!(
        bypassed <= fuzzer.slow,
        "{bypassed} connections could not be parked, with {} slow pairs",
        fuzzer.slow
    );
    Ok(())
}

/// Without a deadline.
const HOLD: control::Config = control::Config {
    timeout: None,
    max_parked: None,
    on_timeout: OnTimeout::Accept,
    state: control::State::Parking,
    on_close: control::OnClose::Accept,
    probe: None,
};

impl Fuzzer<'_> {
    fn round(&mut self, rng: &mut fastrand::Rng, fed: &mut Fed) -> Result<()> {
        for _ in 0..PAIRS {
            self.pair(rng, fed)?;
        }
        // All clients disconnect.
        control::set_config(&self.filtered, &settings(1, 0, OnTimeout::Drop))?;
        let gone = wait::until(self.context.patience(), || {
            Ok(stats(&self.filtered)?.parked == 0)
        })?;
        ensure!(gone, "a request is still parked");
        control::set_config(&self.filtered, &HOLD)?;
        for listener in [&self.plain, &self.filtered] {
            while let Some((connection, _)) = accept(listener)? {
                // Closing it sends a reset.
                connection.set_linger(Some(Duration::ZERO))?;
            }
        }
        while self.tun.pump(Duration::ZERO, |_, _| Ok(()))? {}
        Ok(())
    }

    /// Plays one client of each listener; both send the same.
    fn pair(&mut self, rng: &mut fastrand::Rng, fed: &mut Fed) -> Result<()> {
        let isn = rng.u32(..);
        let first = self.next;
        self.next += 2;
        let mut sides = [
            (first, self.plain.port()),
            (first + 1, self.filtered.port()),
        ]
        .map(|(nth, port)| Side {
            member: TunClient {
                snd_nxt: isn,
                ..self.tun.client_of(nth, port)
            },
            isn: 0,
            tsval: 0,
            ts_recent: None,
        });
        let timestamps = rng.bool();
        // The timestamp clock of the clients.
        let mut clock = rng.u32(1..1 << 30);
        let mut is_parked = false;
        let mut syns = Vec::new();
        let mut log: Vec<String> = Vec::new();
        let steps = rng.usize(2..=STEPS);
        let began = Instant::now();
        for step in 0..steps {
            clock = clock.wrapping_add(1);
            // The server's sequence numbers count from its SYN-ACK, its timestamps from the last
            // one seen.
            let mut base = self.tun.segment(&sides[0].member, Flags::ACK, b"");
            base.ack = 1;
            base.timestamps = timestamps.then_some(Timestamps {
                value: clock,
                echo: 0,
            });
            let mut forged = choose(rng, base, step, is_parked);
            if let Some(timestamps) = &mut forged.segment.timestamps {
                // All timestamps stay in a range in which their order is unambiguous.
                if !(-(1 << 29)..1 << 29)
                    .contains(&timestamps.value.wrapping_sub(clock).cast_signed())
                {
                    timestamps.value = clock;
                }
                // With a TS.Recent of 0 a request answers without timestamps (tcp_v4_send_ack()), a
                // connection with them.
                timestamps.value = timestamps.value.max(1);
            }
            if forged.segment.flags.syn {
                syns.push(forged.segment.seq);
            }
            fed.one("segments");
            if is_parked {
                fed.one("segments to the parked");
            }
            log.push(format!("{} {}", forged.segment, odd(&forged)));
            let before = stats(&self.filtered)?;
            let mut answers = [Vec::new(), Vec::new()];
            for side in &sides {
                let own = self.of(side, &forged);
                for packet in own.packets()? {
                    self.tun.inject(&packet)?;
                }
            }
            self.receive(&mut sides, &mut answers, is_parked)?;
            if began.elapsed() >= SYN_ACK_AGAIN {
                // An answer may be a retransmission.
                fed.one("pairs too slow to compare");
                self.slow += 1;
                break;
            }
            let log_text = || {
                format!(
                    "to {} segments from {isn}, with the server's numbers counted from its \
                     SYN-ACK (parked before the last: {is_parked}):\n  {}\n",
                    log.len(),
                    log.join("\n  ")
                )
            };
            let [plain, filtered] = &answers;
            fed.many("answers", plain.len() as u64);
            expect_eq!(filtered, plain, "the answers {}", log_text());
            let after = stats(&self.filtered)?;
            let was_parked = is_parked;
            is_parked = match after.parked_total - before.parked_total {
                0 => is_parked && after.parked == before.parked,
                1 => true,
                more => anyhow::bail!("{more} were parked at once {}", log_text()),
            };
            if is_parked && !was_parked {
                // The SYN's or the ACK's timestamp may be ahead, and none may be older from now on:
                // a request answers an old acknowledgement, a connection does not (tcp_check_req(),
                // tcp_disordered_ack_check()).
                let acked = forged.segment.timestamps.map(|acked| acked.value);
                for recent in [sides[0].ts_recent, acked].into_iter().flatten() {
                    if recent.wrapping_sub(clock).cast_signed() > 0 {
                        clock = recent;
                    }
                }
            }
            for side in &mut sides {
                let own = &forged.segment;
                // Segments in order were accepted.
                let in_order = own.seq == side.member.snd_nxt && !plain.is_empty() && own.flags.ack;
                if in_order && side.isn != 0 {
                    side.member.snd_nxt = own.end_seq();
                }
            }
        }
        for side in &sides {
            for isn in &syns {
                let mut rst = self.tun.segment(&side.member, Flags::RST, b"");
                rst.seq = isn.wrapping_add(1);
                self.tun.send(&rst)?;
            }
        }
        Ok(())
    }

    /// Returns the segment for one side: the same but for the numbers that its listener chose.
    fn of(&self, side: &Side, forged: &Forged) -> Forged {
        let member = &side.member;
        let addresses = self.tun.segment(member, Flags::ACK, b"");
        let mut own = forged.clone();
        own.segment.source = addresses.source;
        own.segment.destination = addresses.destination;
        own.segment.ack = own.segment.ack.wrapping_add(side.isn);
        if let Some(timestamps) = &mut own.segment.timestamps {
            timestamps.echo = timestamps.echo.wrapping_add(side.tsval);
        }
        own
    }

    /// Receives the answers of both listeners, up to the answer of a port without a listener.
    fn receive(
        &mut self,
        sides: &mut [Side; 2],
        answers: &mut [Vec<Answer>; 2],
        is_parked: bool,
    ) -> Result<()> {
        let mut fence = self.tun.client_of(FENCE, 1);
        self.tun.syn(&mut fence)?;
        let mut over = false;
        while !over {
            let any = self.tun.pump(self.context.patience(), |nth, segment| {
                over |= nth == FENCE;
                for (side, answers) in sides.iter_mut().zip(answers.iter_mut()) {
                    if side.member.nth == nth {
                        side.receive(segment, answers, is_parked);
                    }
                }
                Ok(())
            })?;
            ensure!(any, "the port without a listener does not answer");
        }
        Ok(())
    }
}

impl Side {
    fn receive(&mut self, segment: &Segment, answers: &mut Vec<Answer>, is_parked: bool) {
        if segment.is_syn_ack() {
            self.isn = segment.seq;
            self.member.snd_nxt = segment.ack;
            self.ts_recent = segment.timestamps.map(|timestamps| timestamps.echo);
        }
        // TCP forgets that it has sent other timestamps than its SYN-ACK's, and refuses segments
        // that echo them; accf does not.
        if let Some(timestamps) = segment.timestamps {
            if segment.is_syn_ack() || is_parked {
                self.tsval = timestamps.value;
            }
        }
        let relative = |seq: u32| match seq {
            // A reset for a segment that acknowledges nothing.
            0 => 0,
            seq => seq.wrapping_sub(self.isn),
        };
        answers.push(Answer {
            flags: segment.flags,
            seq: relative(segment.seq),
            ack: segment.ack,
            length: segment.payload.len(),
            mss: segment.mss,
            window_scale: segment.window_scale,
            sack_permitted: segment.sack_permitted,
            timestamps: segment.timestamps.is_some(),
        });
    }
}

/// Returns the next segment of both sides.
fn choose(rng: &mut fastrand::Rng, base: Segment, step: usize, is_parked: bool) -> Forged {
    if step == 0 && rng.u8(..8) > 0 {
        let mut syn = base;
        syn.flags = Flags::SYN;
        syn.ack = 0;
        if let Some(timestamps) = &mut syn.timestamps {
            timestamps.echo = 0;
        }
        if rng.bool() {
            syn.mss = Some(rng.u16(500..1460));
            syn.sack_permitted = rng.bool();
            syn.window_scale = rng.bool().then(|| rng.u8(..20));
            return syn.into();
        }
        let mut forged = Forged::from(syn);
        if rng.bool() {
            forged.options = Some(options(rng));
        }
        return forged;
    }
    if is_parked {
        return for_the_parked(rng, base).into();
    }
    match rng.u8(..8) {
        0..=3 => base.into(),
        4 => Segment {
            payload: b"hello".to_vec(),
            ..base
        }
        .into(),
        _ => {
            let mut forged = forge(rng, base);
            // Whether a timestamp lies between those of two SYN-ACKs depends on timing.
            if let Some(timestamps) = &mut forged.segment.timestamps {
                if (-60_000..60_000).contains(&timestamps.echo.cast_signed()) {
                    timestamps.echo = 0;
                }
            }
            forged
        }
    }
}

/// Returns a segment that a parked request and an established connection answer alike.
fn for_the_parked(rng: &mut fastrand::Rng, mut segment: Segment) -> Segment {
    let length = rng.usize(1..100);
    let payload: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(length).collect();
    segment.flags.psh = rng.bool();
    segment.flags.urg = rng.u8(..8) == 0;
    segment.urgent = rng.u16(..200);
    match rng.u8(..13) {
        0 => segment.payload = payload,
        1 => segment.flags.fin = true,
        2 => {
            segment.payload = payload;
            segment.flags.fin = true;
        }
        // With a gap before it.
        3 => {
            segment.payload = payload;
            segment.seq = segment.seq.wrapping_add(rng.u32(1..1000));
        }
        // Old data, or a probe.
        4 => {
            segment.payload = payload;
            segment.seq = segment.seq.wrapping_sub(rng.u32(200..5000));
        }
        5 => segment.seq = segment.seq.wrapping_sub(1),
        6 => {
            segment.seq = segment.seq.wrapping_sub(1);
            segment.payload = vec![0];
        }
        // Far beyond the window.
        7 => {
            segment.seq = segment.seq.wrapping_add(1 << 30);
            segment.payload = payload;
        }
        // Acknowledges nothing.
        8 => {
            segment.flags.ack = false;
            segment.ack = 0;
            segment.payload = payload;
        }
        // A connection accepts a reset with an old timestamp, a request does not (RFC 7323 section
        // 5.2).
        9 => {
            segment.flags = Flags::RST;
            segment.timestamps = None;
        }
        10 => {
            segment.flags = Flags::RST;
            segment.timestamps = None;
            segment.seq = segment.seq.wrapping_add(rng.u32(1..1000));
        }
        // Has the connection of a parked request made.
        11 => {
            segment.flags.syn = true;
            segment.flags.ack = rng.bool();
            segment.seq = segment.seq.wrapping_add(rng.u32(1..1000));
        }
        _ => {
            let any = rng.u16(..);
            segment.window = rng.choice([0, 1, any]).unwrap_or_default();
        }
    }
    segment
}

/// Accepts a connection if there is one.
fn accept(listener: &Listener) -> Result<Option<(socket2::Socket, socket2::SockAddr)>> {
    match listener.socket().accept() {
        Ok(accepted) => Ok(Some(accepted)),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error).context("accept"),
    }
}
