// SPDX-License-Identifier: MIT OR Apache-2.0
//! Scenarios (a), (b) and (d): one connection to each listener, side by side.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use accf_demo::{
    Accepted, ClientError, ClientView, Counters, Exchange, Scenario, TcpInfo, UnixNanos,
};
use accf_kit::endpoint::{self, Family};
use accf_kit::wire::Wire;
use accf_kit::{control, netns, tcp_info, wait};
use anyhow::{anyhow, Context, Result};
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use crate::setup::{unix_nanos, Setup};

const SILENCE: Duration = Duration::from_secs(6);
/// Longer than any listener's deadline in (d) in practice.
const LONG_SILENCE: Duration = Duration::from_secs(10);
/// Longer than any scenario.
const LIMIT: Duration = Duration::from_secs(15);
/// The time between the connections of a scenario: each handshake is over when the next begins.
const STAGGER: Duration = Duration::from_millis(200);
/// The interval at which a listener's counters are read.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\
                          Connection: close\r\n\r\nhello\n";

/// Plays a client from connecting to closing, inside the client's namespace, and returns its port
/// and its view.
type Client = fn(SocketAddr) -> Result<(u16, ClientView)>;

/// Runs (a): a handshake as in RFC 793, silence, then a request.
pub(crate) fn rfc793(wire: &Wire, setups: &[Setup]) -> Result<Vec<Exchange>> {
    side_by_side(wire, Scenario::Rfc793, setups, |server| {
        let (stream, mut view) = connect(server, |_| Ok(()))?;
        thread::sleep(SILENCE);
        view.request_ready = Some(UnixNanos::now());
        request(stream, view)
    })
}

/// Runs (b): a client without quick ACKs that has its request ready when it connects.
pub(crate) fn piggyback(wire: &Wire, setups: &[Setup]) -> Result<Vec<Exchange>> {
    side_by_side(wire, Scenario::Piggyback, setups, |server| {
        // The kernel then delays the third segment, to send it with data. Whether it did is checked
        // in the captured packets.
        let (stream, mut view) = connect(server, |socket| socket.set_tcp_quickack(false))?;
        view.request_ready = Some(view.connect_called);
        request(stream, view)
    })
}

/// Runs (d): a handshake, then silence; if the client is still connected at the end, a request.
pub(crate) fn silent(wire: &Wire, setups: &[Setup]) -> Result<Vec<Exchange>> {
    side_by_side(wire, Scenario::Silent, setups, |server| {
        let (mut stream, mut view) = connect(server, |_| Ok(()))?;
        let port = stream.local_addr()?.port();
        if !wait::readable(&stream, LONG_SILENCE)? {
            view.request_ready = Some(UnixNanos::now());
            return request(stream, view);
        }
        // The server has nothing to send: this is the end of the connection, or an error.
        view.error = match stream.read(&mut [0]) {
            Ok(_) => Some(ClientError {
                at: UnixNanos::now(),
                name: "closed by the server".to_owned(),
            }),
            Err(error) => Some(client_error(&error)),
        };
        Ok((port, view))
    })
}

/// Runs all code once, so that no measurement is a first time.
pub(crate) fn warm_up(wire: &Wire, setups: &[Setup]) -> Result<()> {
    for _ in 0..2 {
        piggyback(wire, setups)?;
    }
    Ok(())
}

fn side_by_side(
    wire: &Wire,
    scenario: Scenario,
    setups: &[Setup],
    client: Client,
) -> Result<Vec<Exchange>> {
    let mut running = Vec::new();
    for setup in setups.iter().copied() {
        let listener = setup
            .open(&wire.server)
            .with_context(|| format!("({}) {}", scenario.key(), setup.describe()))?;
        let server_port = listener.port();
        let address = wire.server_address(Family::V4, server_port);
        let socket = listener.socket().try_clone()?;
        let watch = scenario == Scenario::Silent && setup.listener.on_timeout().is_some();
        let watcher = watch.then(|| thread::spawn(move || wait_for_release(&socket)));
        let filtered = setup.listener.on_timeout().is_some();
        let server = wire.server.spawn(move || serve(&listener, filtered));
        let client = wire.client.spawn(move || client(address));
        running.push((setup, server_port, server, client, watcher));
        thread::sleep(STAGGER);
    }
    let mut exchanges = Vec::new();
    for (setup, server_port, server, client, watcher) in running {
        let what = || format!("({}) {}", scenario.key(), setup.describe());
        let (client_port, view) = netns::join(client).with_context(what)?;
        // A server that never accepts the connection waits longer than any client.
        let (accepted, counters) = netns::join(server).with_context(what)?;
        let let_go = watcher.map(netns::join).transpose().with_context(what)?;
        exchanges.push(Exchange {
            scenario,
            listener: setup.listener,
            setting: setup.describe(),
            deadline_ms: setup.deadline_ms(),
            client_port,
            server_port,
            client: view,
            accepted,
            counters,
            let_go: let_go.flatten(),
            machine_late_us: 0,
            runs: 1,
        });
    }
    Ok(exchanges)
}

/// Connects a socket that `prepare` has set options of.
fn connect(
    server: SocketAddr,
    prepare: impl Fn(&Socket) -> io::Result<()>,
) -> Result<(TcpStream, ClientView)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(LIMIT))?;
    prepare(&socket)?;
    let connect_called = UnixNanos::now();
    socket
        .connect(&server.into())
        .with_context(|| format!("connect to {server}"))?;
    let view = ClientView {
        connect_called,
        connected: UnixNanos::now(),
        request_ready: None,
        first_byte: None,
        error: None,
    };
    Ok((socket.into(), view))
}

/// Sends the request and reads the response to its end.
fn request(mut stream: TcpStream, mut view: ClientView) -> Result<(u16, ClientView)> {
    let port = stream.local_addr()?.port();
    let mut talk = || -> io::Result<()> {
        stream.write_all(REQUEST)?;
        let mut buffer = [0; 4096];
        while stream.read(&mut buffer)? > 0 {
            view.first_byte.get_or_insert_with(UnixNanos::now);
        }
        Ok(())
    };
    // A server that resets or does not answer is a result, not a failure of the demo.
    view.error = talk().err().map(|error| client_error(&error));
    Ok((port, view))
}

/// Returns an error of a client, with the present time.
fn client_error(error: &io::Error) -> ClientError {
    let name = match error.raw_os_error() {
        Some(code) => format!("{:?}", Errno::from_raw(code)),
        None => error.to_string(),
    };
    ClientError {
        at: UnixNanos::now(),
        name,
    }
}

/// Waits until the listener has parked a connection, and has none parked any more; returns when.
fn wait_for_release(listener: &Socket) -> Result<Option<UnixNanos>> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        let stats = control::stats(listener).context("ACCF_STATS")?;
        if stats.parked_total > 0 && stats.parked == 0 {
            return Ok(Some(UnixNanos::now()));
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(None)
}

/// Reads the counters of a listener with a filter.
fn counters(listener: &Socket) -> Result<Counters> {
    let stats = control::stats(listener).context("ACCF_STATS")?;
    Ok(Counters {
        parked: stats.parked,
        parked_total: stats.parked_total,
        released_data: stats.released_data,
        released_fin: stats.released_fin,
        timeout_accept: stats.timeout_accept,
        timeout_reset: stats.timeout_reset,
        timeout_drop: stats.timeout_drop,
        aborted: stats.aborted,
        synack_suppressed: stats.synack_suppressed,
    })
}

/// Plays a server with one worker, and returns its view and its listener's counters.
fn serve(
    listener: &endpoint::Listener,
    filtered: bool,
) -> Result<(Option<Accepted>, Option<Counters>)> {
    let accepted = accept_and_answer(listener)?;
    let counters = filtered.then(|| counters(listener.socket())).transpose()?;
    Ok((accepted, counters))
}

/// Accepts one connection, reads its `TCP_INFO` and its request, and answers.
fn accept_and_answer(listener: &endpoint::Listener) -> Result<Option<Accepted>> {
    let Some(mut accepted) = listener.accept(LIMIT)? else {
        return Ok(None);
    };
    let info = tcp_info::TcpInfo::of(&accepted.stream).context("TCP_INFO")?;
    let mut buffer = [0; 4096];
    // The client may have closed or reset the connection: then there was nothing to read.
    let length = accepted.stream.read(&mut buffer).unwrap_or(0);
    let first_read = (length > 0).then(UnixNanos::now);
    if length > 0 {
        accepted.stream.write_all(RESPONSE).context("answer")?;
    }
    let us = |time: Duration| {
        u32::try_from(time.as_micros()).map_err(|_| anyhow!("TCP_INFO has {time:?}"))
    };
    Ok(Some(Accepted {
        at: unix_nanos(accepted.at),
        tcp_info: TcpInfo {
            rtt_us: us(info.rtt)?,
            rttvar_us: us(info.rtt_var)?,
            rto_us: us(info.rto)?,
            total_retrans: info.total_retrans,
        },
        first_read,
    }))
}
