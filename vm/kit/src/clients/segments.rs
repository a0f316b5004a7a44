// SPDX-License-Identifier: MIT OR Apache-2.0

//! Clients that send each segment themselves, and so do what they are told to and nothing else: a
//! client stays half-open, or repeats its handshake.
//!
//! Their server looks once at each connection that it accepts, and resets it
//! ([`Server::resetting`]): that ends the client.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context as _, Result};
use nix::sched::{sched_setaffinity, CpuSet};
use nix::unistd::Pid;

use super::{
    Acted, Behaviour, Clients, Event, Fate, Limit, Mix, Pace, Policy, Target, Timing, Transport,
};
use crate::control::{set_config, OnTimeout};
use crate::endpoint::{Family, Listener};
use crate::exchange::ANONYMOUS;
use crate::netns::{join_scoped, Netns};
use crate::segment::{Flags, Segment};
use crate::server::{Served, Server};
use crate::tun_clients::{TunClient, TunClients};

/// Kinds of clients, and how many of a hundred are of each.
pub const MIX: &Mix = &[
    (Behaviour::DataInAck, 15),
    (Behaviour::DataLater, 25),
    (Behaviour::HandshakeTwice, 10),
    (Behaviour::FinLater, 12),
    (Behaviour::ResetLater, 12),
    (Behaviour::Silent, 19),
    (Behaviour::HalfOpen, 3),
    (Behaviour::ResetInsteadOfAck, 4),
];

/// Returns how long clients take at listeners with this deadline. `limit` is how long nothing may
/// happen to any client before that is an error.
pub fn timing(deadline: Duration, limit: Duration) -> Timing {
    Timing {
        pause: Duration::from_millis(1)..Duration::from_millis(250),
        // What is sent is not handled at once where the machine is busy.
        margin: deadline / 5,
        limit: Limit::Standstill(limit),
    }
}

/// The clients behind a TUN interface, and what each has sent last.
#[derive(Debug)]
pub struct Segments {
    tun: TunClients,
    /// All clients that there ever were.
    clients: Vec<(TunClient, Option<Segment>)>,
    rng: fastrand::Rng,
    /// How many processors the clients' SYNs and ACKs change between.
    processors: Option<usize>,
    garbage: u8,
    garbage_sent: u64,
}

impl Segments {
    /// Makes clients behind a TUN interface.
    pub fn new(tun: TunClients, rng: fastrand::Rng) -> Self {
        Self {
            tun,
            clients: Vec::new(),
            rng,
            processors: None,
            garbage: 0,
            garbage_sent: 0,
        }
    }

    /// Sends each client's SYN and its ACK on different processors. What is sent is handled there,
    /// and the request's timer is on the one that handled the SYN.
    pub fn changing_processors(mut self) -> Self {
        self.processors = Some(std::thread::available_parallelism().map_or(1, usize::from));
        self
    }

    /// Sends a segment that makes no sense beside `percent` of a hundred clients, from one of them
    /// or from a stranger.
    pub fn with_garbage(mut self, percent: u8) -> Self {
        self.garbage = percent;
        self
    }

    /// Returns how many segments made no sense.
    pub fn garbage_sent(&self) -> u64 {
        self.garbage_sent
    }

    /// Returns the clients' side of the TUN interface.
    pub fn tun(&mut self) -> &mut TunClients {
        &mut self.tun
    }

    /// Has this thread run on one processor, if clients change between processors.
    fn be_on_processor(&self, nth: u32) -> Result<()> {
        let Some(processors) = self.processors else {
            return Ok(());
        };
        let mut set = CpuSet::new();
        set.set(nth as usize % processors)?;
        sched_setaffinity(Pid::from_raw(0), &set).context("sched_setaffinity")
    }

    /// Sends a segment that makes no sense: in the name of a client that there is or was, or of one
    /// that never comes.
    ///
    /// Its numbers are far from any that mean something to the other side, so it changes nothing.
    fn send_garbage(&mut self, newest: u32, port: u16) -> Result<()> {
        const STRANGERS: u32 = 1 << 22;
        let nth = self.rng.u32(..=newest);
        let nth = if self.rng.bool() {
            nth
        } else {
            STRANGERS + nth
        };
        let known = self.clients.get(nth as usize);
        let port = known.map_or(port, |(client, _)| client.port);
        let client = self.tun.client_of(nth, port);
        let flags = Flags {
            // One more half-open request would be counted.
            syn: false,
            fin: self.rng.bool(),
            rst: self.rng.u8(..8) == 0,
            psh: self.rng.bool(),
            ack: self.rng.bool(),
            ..Flags::default()
        };
        let length = self.rng.usize(..64);
        let payload: Vec<u8> = (0..length).map(|_| self.rng.u8(..)).collect();
        let mut segment = self.tun.segment(&client, flags, &payload);
        // Half of all numbers are old, and half of these are not in any window.
        let distance = self.rng.u32(0x1000_0000..0x7000_0000);
        segment.seq = client.snd_nxt.wrapping_sub(distance);
        segment.ack = self.rng.u32(..);
        self.garbage_sent += 1;
        self.tun.send(&segment)
    }

    fn push(&mut self, id: u32, flags: Flags, payload: &[u8]) -> Result<()> {
        let client = self.clients.get_mut(id as usize);
        let (client, last) = client.context("no such client")?;
        let segment = self.tun.segment(client, flags, payload);
        self.tun.send(&segment)?;
        client.snd_nxt = segment.end_seq();
        *last = Some(segment);
        Ok(())
    }
}

/// Opens a listener with each policy, and plugs in a TUN interface for clients of them.
pub fn open(
    policies: &[Policy],
    family: Family,
    ns: &Netns,
) -> Result<(Vec<Listener>, TunClients, Vec<Target>)> {
    let listeners: Vec<Listener> = policies
        .iter()
        .map(|policy| policy.open(family, ns))
        .collect::<Result<_>>()?;
    let ports = listeners.iter().map(Listener::port);
    let first = ports.clone().next().context("no listener")?;
    let tun = TunClients::new(ns, family, first)?;
    let addresses = ports.map(|port| tun.server_address(port));
    let targets = policies.iter().zip(addresses);
    let targets = targets
        .map(|(policy, address)| policy.at(address))
        .collect();
    Ok((listeners, tun, targets))
}

impl Clients<Segments> {
    /// Runs the clients ([`Clients::run`]) while a server resets what it accepts from these
    /// listeners, one for each target; returns what it saw.
    pub fn run_served(
        &mut self,
        listeners: &[Listener],
        pace: Pace,
        more: impl FnMut(u64) -> bool,
    ) -> Result<Vec<Served>> {
        let mut server = Server::resetting()?;
        for listener in listeners {
            server.add(listener.try_clone()?)?;
        }
        let policies: Vec<Policy> = self.targets.iter().map(|target| target.policy).collect();
        // Clients that found room where there is no deadline are the last ones.
        let drain = || {
            let all = policies.iter().zip(listeners);
            all.filter(|(policy, _)| policy.deadline.is_none())
                .try_for_each(|(policy, listener)| set_config(listener, &policy.config(1)))
                .context("ACCF_CONFIG")
        };
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let thread = scope.spawn(|| server.run(&over));
            let result = self.run_and_drain(pace, more, drain);
            over.store(true, Ordering::Relaxed);
            result.and(join_scoped(thread))
        })?;
        Ok((0..listeners.len())
            .map(|index| server.served(index))
            .collect())
    }
}

impl Transport for Segments {
    fn connect(&mut self, id: u32, target: &Target, _: Behaviour) -> Result<Option<Fate>> {
        ensure!(id as usize == self.clients.len(), "a client out of order");
        let port = target.address.port();
        let mut client = self.tun.client_of(id, port);
        self.be_on_processor(id)?;
        self.tun.syn(&mut client)?;
        self.clients.push((client, None));
        if self.rng.u8(..100) < self.garbage {
            self.send_garbage(id, port)?;
        }
        Ok(None)
    }

    fn acknowledge(&mut self, id: u32, behaviour: Behaviour) -> Result<Option<Instant>> {
        self.be_on_processor(id.wrapping_add(1))?;
        let at = Instant::now();
        if !behaviour.is_parked() && behaviour != Behaviour::DataAtOnce {
            return Ok(Some(at));
        }
        self.push(id, Flags::ACK, b"")?;
        if behaviour == Behaviour::HandshakeTwice {
            self.push(id, Flags::ACK, b"")?;
            let client = self.clients.get(id as usize);
            let (client, _) = client.context("no such client")?;
            let mut syn = self.tun.segment(client, Flags::SYN, b"");
            syn.seq = client.snd_nxt.wrapping_sub(1);
            self.tun.send(&syn)?;
        }
        Ok(Some(at))
    }

    fn act(&mut self, id: u32, behaviour: Behaviour) -> Result<Acted> {
        let (flags, payload, acted) = match behaviour {
            Behaviour::HalfOpen => return Ok(Acted::Over(Fate::Left)),
            Behaviour::ResetLater | Behaviour::ResetInsteadOfAck => {
                (Flags::RST, &b""[..], Acted::Over(Fate::Left))
            }
            Behaviour::FinLater => (Flags::FIN_ACK, &b""[..], Acted::Waits),
            Behaviour::DataInAck
            | Behaviour::DataAtOnce
            | Behaviour::DataLater
            | Behaviour::HandshakeTwice
            | Behaviour::Silent => (Flags::PSH_ACK, ANONYMOUS, Acted::Waits),
            Behaviour::DataInPieces | Behaviour::CloseLater => {
                bail!("{behaviour:?} takes a client with the kernel's TCP")
            }
        };
        self.push(id, flags, payload)?;
        Ok(acted)
    }

    fn repeat(&mut self, id: u32) -> Result<()> {
        let client = self.clients.get(id as usize);
        match client.context("no such client")? {
            (_, Some(last)) => self.tun.send(last),
            (client, None) if client.rcv_nxt == 0 => {
                let mut again = self.tun.client_of(id, client.port);
                self.tun.syn(&mut again)
            }
            (_, None) => Ok(()),
        }
    }

    /// Returns whether clients are dropped: such a client hears nothing of it. Every other one is
    /// reset, at the latest by its server.
    fn must_send_after_deadline(&self, policy: &Policy) -> bool {
        policy.on_timeout == OnTimeout::Drop
    }

    fn wait(&mut self, limit: Duration, events: &mut Vec<(u32, Event)>) -> Result<()> {
        let clients = &mut self.clients;
        self.tun.pump(limit, |nth, segment| {
            let Some((client, _)) = clients.get_mut(nth as usize) else {
                return Ok(());
            };
            if segment.is_rst() {
                // A reset that refuses what made no sense has another number.
                if client.rcv_nxt != 0 && segment.seq == client.rcv_nxt {
                    events.push((nth, Event::Over(Fate::Reset)));
                }
            } else if segment.is_syn_ack() {
                if client.rcv_nxt == 0 {
                    client.rcv_nxt = segment.end_seq();
                    events.push((nth, Event::Connected));
                }
            } else if segment.has_data() {
                bail!("the server sent data: {segment}");
            }
            Ok(())
        })?;
        Ok(())
    }

    fn close(&mut self, id: u32, _: Fate) {
        if let Some((_, last)) = self.clients.get_mut(id as usize) {
            *last = None;
        }
    }
}
