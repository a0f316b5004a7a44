// SPDX-License-Identifier: MIT OR Apache-2.0
//! Network namespaces that come and go, with the requests that are parked in them.

use std::net::TcpStream;
use std::time::Duration;

use accf_kit::account::stats;
use accf_kit::endpoint::{connect_here, Listen, Listener};
use accf_kit::netns::Netns;
use accf_kit::segment::Flags;
use accf_kit::tun_clients::TunClients;
use anyhow::Result;

use crate::random::{any_family, any_settings};
use crate::round::Round;

const PLACE: &str = "namespaces that go with their clients";

/// How many clients each has.
const CLIENTS: u32 = 12;

/// What a namespace dies with; what is dropped first is up to chance.
enum Part {
    Listener(Listener),
    Streams(Vec<TcpStream>),
    TunClients(Box<TunClients>),
    Handle(Netns),
}

pub(crate) fn run(round: &Round<'_>) -> Result<()> {
    let mut rng = round.rng(PLACE);
    let mut begun = 0;
    round.begin();
    while !round.is_over() {
        let ns = Netns::new()?;
        let family = any_family(&mut rng);
        let listener = Listen::filtered(family)
            .config(any_settings(&mut rng))
            .open(&ns)?;
        let mut parts = Vec::new();
        let habit = if rng.bool() {
            let mut tun = TunClients::new(&ns, family, listener.port())?;
            // Some may not be answered, where memory is short.
            let clients = tun.try_open(0..CLIENTS, Duration::from_millis(300))?;
            for (client, speaks) in clients
                .into_iter()
                .zip(std::iter::repeat_with(|| rng.u8(..4)))
            {
                let mut client = client;
                match speaks {
                    0 => tun.push(&mut client, Flags::FIN_ACK, b"")?,
                    1 => tun.push(&mut client, Flags::RST, b"")?,
                    _ => {}
                }
            }
            // Half-open ones.
            for nth in CLIENTS..CLIENTS + 4 {
                tun.syn(&mut tun.client(nth))?;
            }
            parts.push(Part::TunClients(Box::new(tun)));
            "are parked or half-open, segment by segment"
        } else {
            let address = family.loopback(listener.port());
            let streams = ns.run(|| {
                // One that does not connect, where memory is short, is one less.
                let streams = (0..CLIENTS).filter_map(|_| connect_here(address).ok());
                Ok(streams.collect::<Vec<_>>())
            })?;
            parts.push(Part::Streams(streams));
            "are parked, on the loopback interface"
        };
        stats(&listener)?;
        begun += u64::from(CLIENTS);
        parts.push(Part::Listener(listener));
        parts.push(Part::Handle(ns));
        rng.shuffle(&mut parts);
        for part in parts {
            match part {
                Part::Listener(listener) => drop(listener),
                Part::Streams(streams) => drop(streams),
                Part::TunClients(tun) => drop(tun),
                Part::Handle(ns) => drop(ns),
            }
        }
        round
            .board
            .clients(PLACE, habit, "gone with all", u64::from(CLIENTS));
        round.board.begun(PLACE, begun);
        round.board.event("namespaces made");
        round.board.event("namespaces gone with parked connections");
        round.pause(&mut rng, Duration::from_millis(400) * round.patience);
    }
    Ok(())
}
