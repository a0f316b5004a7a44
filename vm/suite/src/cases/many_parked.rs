// SPDX-License-Identifier: MIT OR Apache-2.0

//! Two hundred thousand parked connections of one listener, and active clients beside them.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use accf_kit::control::{settings, OnTimeout};
use accf_kit::counters::Counters;
use accf_kit::endpoint::{Family, Listen, Listener};
use accf_kit::netns::Netns;
use accf_kit::segment::{Flags, Segment};
use accf_kit::tun_clients::{TunClient, TunClients};
use accf_kit::{module, sockets, wait};
use anyhow::{bail, ensure, Context as _, Result};

use crate::case::{case, expect_eq, expect_in, families, Context, Kernel};
use crate::count::{counted, counts, read_counts};
use crate::scene::{REQUEST, RESPONSE};

/// Returns how many are parked.
fn parked_count(kernel: Kernel, family: Family) -> u32 {
    match (kernel, family) {
        (Kernel::Stock, Family::V4) => 200_000,
        (Kernel::Stock, _) => 50_000,
        (Kernel::Dev, _) => 2_000,
    }
}

/// How many active clients come, one after the other, at the listener when it is empty, and when it
/// is not.
const ACTIVE: u32 = 61;
/// How many of the parked clients send a request, and how many reset.
const SPEAKERS: usize = 100;

/// The size of the namespace's table of connections: it has a place for each of them.
const TABLE_SIZE: u32 = 1 << 18;

/// How often as long an active client may take beside the parked ones, and how much longer on top
/// of that: what is measured is a median, and this machine may do other things.
const TIMES_LONGER: u32 = 2;
const LONGER: Duration = Duration::from_millis(2);

/// The listener, and all clients.
struct Place<'a> {
    context: &'a Context,
    ns: Netns,
    listener: Listener,
    tun: TunClients,
    /// How many clients have come.
    came: u32,
}

impl Place<'_> {
    /// Connects a client that sends its request at once, after a bare ACK or with its ACK, and
    /// serves it.
    ///
    /// Returns how long it took, from its SYN to the last byte of the response.
    fn active(&mut self, is_parked: bool) -> Result<Duration> {
        let mut client = self.tun.client(self.came);
        self.came += 1;
        let start = Instant::now();
        self.tun.syn(&mut client)?;
        let syn_ack = self.hear(&client, |segment| segment.is_syn_ack())?;
        client.rcv_nxt = syn_ack;
        if is_parked {
            self.tun.push(&mut client, Flags::ACK, b"")?;
        }
        self.serve(&mut client)?;
        Ok(start.elapsed())
    }

    /// Sends a client's request; it must be the client that is accepted, and get the response. Then
    /// it is gone.
    fn serve(&mut self, client: &mut TunClient) -> Result<()> {
        self.tun.push(client, Flags::PSH_ACK, REQUEST)?;
        let (socket, peer) = match self.listener.socket().accept() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // Not before the system call that sent the request was over.
                wait::readable(&self.listener, self.context.patience())?;
                self.listener.socket().accept()
            }
            accepted => accepted,
        }
        .context("accept")?;
        let peer = peer.as_socket().and_then(TunClients::at);
        expect_eq!(peer, Some(client.nth), "the client that was accepted");
        socket.set_linger(Some(Duration::ZERO))?;
        let mut stream = TcpStream::from(socket);
        let mut request = vec![0; REQUEST.len()];
        stream
            .read_exact(&mut request)
            .context("read the request")?;
        expect_eq!(request, REQUEST, "the request");
        stream.write_all(RESPONSE).context("write the response")?;
        self.hear(client, |segment| segment.payload == RESPONSE)?;
        Ok(())
    }

    /// Waits for a segment for a client; a segment for any other one is an error.
    fn hear(&mut self, client: &TunClient, wanted: impl Fn(&Segment) -> bool) -> Result<u32> {
        let mut heard = None;
        while heard.is_none() {
            let any = self.tun.pump(self.context.patience(), |nth, segment| {
                // A client that was served is reset at the end.
                ensure!(
                    nth == client.nth || segment.is_rst(),
                    "client {nth} got {segment}, out of nothing"
                );
                if nth == client.nth && wanted(segment) {
                    heard = Some(segment.end_seq());
                }
                Ok(())
            })?;
            ensure!(any, "no answer to client {}", client.nth);
        }
        heard.context("no answer")
    }

    /// Returns how long active clients take.
    fn median(&mut self) -> Result<Duration> {
        let mut times = Vec::new();
        for nth in 0..ACTIVE {
            times.push(self.active(nth % 2 == 0)?);
        }
        times.sort_unstable();
        let middle = times.get(times.len() / 2).copied();
        middle.context("no client was measured")
    }
}

case!(
    Alone, "multitude.active_clients_beside_the_parked" =>
    families(&[Family::V4, Family::V6], beside).long(Duration::from_secs(400))
);
fn beside(context: &Context, family: Family) -> Result<()> {
    let count = parked_count(context.kernel, family);
    module::reload("")?;
    let ns = Netns::with_table(TABLE_SIZE)?;
    let config = settings(3_600_000, count + 10, OnTimeout::Accept);
    let listener = Listen::filtered(family)
        .config(config)
        .backlog(128)
        .open(&ns)?;
    let tun = TunClients::new(&ns, family, listener.port())?;
    let mut place = Place {
        context,
        ns,
        listener,
        tun,
        came: 0,
    };

    // Twice: the first time everything is done for the first time.
    place.median()?;
    let alone = place.median()?;
    let released = u64::from(2 * ACTIVE.div_ceil(2));
    counts(context, &place.listener, counted!(released_data: released))?;

    let first = place.came;
    let start = Instant::now();
    // A SYN-ACK may come twice, on a machine that is very late.
    let mut clients = place
        .tun
        .try_open(first..first + count, context.patience())?;
    expect_eq!(clients.len(), count as usize, "handshakes that were done");
    place.came += count;
    let took = start.elapsed();
    let seen = read_counts(
        context,
        &place.listener,
        counted!(parked: count.into(), released_data: released),
    )?;
    context.note(format!(
        "{count} parked in {:.1} s; half_open {}",
        took.as_secs_f64(),
        seen.half_open
    ));

    let before = Counters::read(&place.ns)?;
    let beside = place.median()?;
    context.note(format!(
        "an active client takes {:.0} µs at an empty listener, and {:.0} µs beside {count} \
         parked ones",
        alone.as_secs_f64() * 1e6,
        beside.as_secs_f64() * 1e6
    ));
    expect_in!(
        beside,
        Duration::ZERO..alone * TIMES_LONGER + LONGER,
        "time of an active client beside {count} parked ones, where it takes {alone:?} alone"
    );
    let released = released + u64::from(ACTIVE.div_ceil(2));

    // Any parked client is served as soon as it sends, and gone as soon as it resets.
    context.rng().shuffle(&mut clients);
    for client in clients.iter_mut().take(SPEAKERS) {
        place.serve(client)?;
    }
    for client in clients.iter_mut().skip(SPEAKERS).take(SPEAKERS) {
        place.tun.push(client, Flags::RST, b"")?;
    }
    let spoken = SPEAKERS as u64;
    let left = u64::from(count) - 2 * spoken;
    let expected = counted!(parked: left, released_data: released + spoken, aborted: spoken);
    counts(context, &place.listener, expected)?;
    expect_eq!(
        sockets::requests(&place.ns, place.listener.port())? as u64,
        left,
        "requests in SYN_RECV"
    );
    let after = Counters::read(&place.ns)?;
    for counter in [
        "TcpExtSyncookiesSent",
        "TcpExtListenDrops",
        "TcpExtListenOverflows",
        "TcpExtTCPSynRetrans",
        "TcpExtTCPTimeouts",
    ] {
        expect_eq!(after.growth(&before, counter)?, 0, "growth of {counter}");
    }

    // A client that has sent nothing is not accepted, and is sent nothing.
    if place.listener.accept_now()?.is_some() {
        bail!("a silent client was accepted");
    }
    place.tun.pump(Duration::from_millis(300), |nth, segment| {
        ensure!(
            segment.is_rst(),
            "client {nth} got {segment}, out of nothing"
        );
        Ok(())
    })?;

    // They go with the listener.
    let Place {
        ns, listener, tun, ..
    } = place;
    let port = listener.port();
    let start = Instant::now();
    drop(listener);
    context.note(format!("close() took {:?}", start.elapsed()));
    // Their timers do not fire all at once.
    let limit = context.patience() + Duration::from_millis(u64::from(count) / 4);
    let gone = wait::until(limit, || Ok(sockets::requests(&ns, port)? == 0))?;
    ensure!(gone, "requests are left of a listener that was closed");
    context.note(format!("all were gone after {:?}", start.elapsed()));
    drop(tun);
    drop(ns);
    module::unload(context.patience())
}
