// SPDX-License-Identifier: MIT OR Apache-2.0
//! Clients that send the segments that a script tells them to, one client after another, on one
//! thread: what each has sent is known when the next one sends.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use accf_kit::netns::Netns;
use accf_kit::segment::{Flags, Segment};
use accf_kit::tun_clients::{TunClient, TunClients};
use accf_kit::{endpoint::Family, wait};
use anyhow::{bail, ensure, Context as _, Result};

/// What a client sends that has data.
pub(crate) const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

/// From one time to the next that a client sends again what was not answered.
const REPEAT: Duration = Duration::from_millis(500);

/// How soon after its SYN a client acknowledges, so that it is known what its ACK is to the server:
/// after a second the SYN-ACK is sent again.
const IN_TIME: Duration = Duration::from_millis(800);

/// A client, and what it has sent and heard.
#[derive(Debug)]
struct Client {
    tun: TunClient,
    begun: Instant,
    /// Whether it has acknowledged the SYN-ACK.
    acked: bool,
    /// Whether it has done so late ([`ScriptedClients::late`]).
    late: bool,
    /// The last segment that it has sent since.
    last: Option<Segment>,
    /// Whether it was reset.
    reset: bool,
    /// Whether it was asked whether it had started again (RFC 5961, section 4.2).
    challenged: bool,
}

/// The clients behind a TUN interface.
#[derive(Debug)]
pub(crate) struct ScriptedClients {
    tun: TunClients,
    clients: BTreeMap<u32, Client>,
    next: u32,
    limit: Duration,
    late: u64,
}

impl ScriptedClients {
    /// Plugs a TUN interface into a server's namespace. Each answer comes within `limit`.
    pub(crate) fn new(ns: &Netns, family: Family, port: u16, limit: Duration) -> Result<Self> {
        Ok(Self {
            tun: TunClients::new(ns, family, port)?,
            clients: BTreeMap::new(),
            next: 0,
            limit,
            late: 0,
        })
    }

    /// Returns how many clients there have been.
    pub(crate) fn begun(&self) -> u64 {
        self.next.into()
    }

    /// Returns how many clients have acknowledged so late that it is not known what their ACK was
    /// to the server.
    pub(crate) fn late(&self) -> u64 {
        self.late
    }

    /// Returns whether a client has acknowledged so late that the server may have forgotten it.
    pub(crate) fn is_late(&self, nth: u32) -> bool {
        self.clients.get(&nth).is_some_and(|client| client.late)
    }

    /// Forgets all clients.
    pub(crate) fn forget(&mut self) {
        self.clients.clear();
    }

    fn client(&mut self, nth: u32) -> Result<&mut Client> {
        self.clients.get_mut(&nth).context("no such client")
    }

    /// Has a new client send its SYN to a port, and wait for the SYN-ACK; returns its number.
    pub(crate) fn half_open(&mut self, port: u16) -> Result<u32> {
        let nth = self.next;
        self.next += 1;
        let client = Client {
            tun: self.tun.client_of(nth, port),
            begun: Instant::now(),
            acked: false,
            late: false,
            last: None,
            reset: false,
            challenged: false,
        };
        self.clients.insert(nth, client);
        self.syn(nth)?;
        Ok(nth)
    }

    /// Sends a client's SYN until it is answered.
    fn syn(&mut self, nth: u32) -> Result<()> {
        let begun = Instant::now();
        let isn = self.client(nth)?.tun.snd_nxt;
        while begun.elapsed() < self.limit {
            let mut tun = self.client(nth)?.tun;
            tun.snd_nxt = isn;
            self.tun.syn(&mut tun)?;
            self.client(nth)?.tun = tun;
            let again = Instant::now();
            while again.elapsed() < REPEAT {
                self.hear(REPEAT.saturating_sub(again.elapsed()))?;
                if self.client(nth)?.tun.rcv_nxt != 0 {
                    return Ok(());
                }
            }
        }
        bail!("the SYN of client {nth} was not answered")
    }

    /// Has a client send its bare ACK.
    pub(crate) fn ack(&mut self, nth: u32) -> Result<()> {
        self.push(nth, Flags::ACK, b"")?;
        let client = self.client(nth)?;
        client.acked = true;
        client.late = client.begun.elapsed() > IN_TIME;
        let is_late = client.late;
        self.late += u64::from(is_late);
        Ok(())
    }

    /// Has a new client connect to a port; returns its number.
    pub(crate) fn connect(&mut self, port: u16) -> Result<u32> {
        let nth = self.half_open(port)?;
        self.ack(nth)?;
        Ok(nth)
    }

    /// Has a client send a segment at its present numbers.
    pub(crate) fn push(&mut self, nth: u32, flags: Flags, payload: &[u8]) -> Result<()> {
        let client = self.clients.get_mut(&nth).context("no such client")?;
        let segment = self.tun.segment(&client.tun, flags, payload);
        self.tun.send(&segment)?;
        client.tun.snd_nxt = segment.end_seq();
        client.last = Some(segment);
        Ok(())
    }

    /// Sends a client's last segment again.
    pub(crate) fn repeat(&mut self, nth: u32) -> Result<()> {
        let client = self.clients.get(&nth).context("no such client")?;
        client
            .last
            .as_ref()
            .map_or(Ok(()), |last| self.tun.send(last))
    }

    /// Has a client vanish without a word and start again from its port, with a sequence number
    /// that is this far into the window: the server asks, the client says that it knows of nothing,
    /// and its second SYN is answered. Returns once it has sent its bare ACK.
    pub(crate) fn start_over(&mut self, nth: u32, offset: u32) -> Result<()> {
        let limit = self.limit;
        let client = self.client(nth)?;
        let old = client.tun;
        client.begun = Instant::now();
        client.challenged = false;
        let mut syn = old;
        syn.snd_nxt = old.snd_nxt.wrapping_add(offset);
        self.tun.syn(&mut syn)?;
        let asked = wait::until(limit, || {
            self.hear(Duration::from_millis(20))?;
            Ok(self.client(nth)?.challenged)
        })?;
        ensure!(
            asked,
            "no challenge ACK for a SYN {offset} bytes into the window"
        );
        self.push(nth, Flags::RST, b"")?;
        let client = self.client(nth)?;
        client.acked = false;
        client.tun.snd_nxt = old.snd_nxt.wrapping_add(offset);
        client.tun.rcv_nxt = 0;
        self.syn(nth)?;
        self.ack(nth)
    }

    /// Returns whether a client was reset.
    pub(crate) fn is_reset(&self, nth: u32) -> bool {
        self.clients.get(&nth).is_some_and(|client| client.reset)
    }

    /// Handles what comes within `limit`.
    pub(crate) fn hear(&mut self, limit: Duration) -> Result<()> {
        let mut again = Vec::new();
        let Self { tun, clients, .. } = self;
        tun.pump(limit, |nth, segment| {
            let Some(client) = clients.get_mut(&nth) else {
                return Ok(());
            };
            let edge = client.tun.rcv_nxt;
            if segment.is_rst() {
                client.reset |= edge != 0 && segment.seq == edge;
            } else if segment.is_syn_ack() {
                if edge == 0 {
                    client.tun.rcv_nxt = segment.end_seq();
                } else if client.acked {
                    again.push(nth);
                }
            } else if segment.has_data() || segment.is_fin() {
                bail!("the server sent more than it was to: {segment}");
            } else {
                client.challenged |= (segment.seq, segment.ack) == (edge, client.tun.snd_nxt);
            }
            Ok(())
        })?;
        for nth in again {
            let client = self.client(nth)?.tun;
            self.tun.send(&self.tun.segment(&client, Flags::ACK, b""))?;
        }
        Ok(())
    }
}
