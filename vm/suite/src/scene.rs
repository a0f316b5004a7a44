// SPDX-License-Identifier: MIT OR Apache-2.0

//! Scenes that cases start from: a listener, its clients, and a capture between them.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use accf_kit::capture::{Capture, Direction, Packet, Trace};
use accf_kit::clock::Stamp;
use accf_kit::control::Stats;
use accf_kit::endpoint::{connect, connect_here, Accepted, Family, Listen, Listener};
use accf_kit::netns::Netns;
use accf_kit::raw::{RawClient, RawHost, Received};
use accf_kit::segment::Segment;
use accf_kit::tcp_info::{State, TcpInfo};
use accf_kit::wire::Wire;
use accf_kit::{sockets, ulp, wait};
use anyhow::{bail, ensure, Context as _, Result};
use nix::errno::Errno;

pub(crate) use accf_kit::netns::join_scoped;

use crate::case::{expect_eq, Context};
use crate::count::{counted, counts, read_counts};

/// The request of clients.
pub(crate) const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
/// The response of servers.
pub(crate) const RESPONSE: &[u8] = b"HTTP/1.0 200 OK\r\n\r\nhello\n";

/// The client's end of a connection.
pub(crate) trait Peer {
    /// Returns the port that the server sees.
    fn port(&self) -> u16;

    /// Sends the request; returns when.
    fn send_request(&mut self) -> Result<Stamp>;

    /// Reads the response.
    fn read_response(&mut self, context: &Context) -> Result<()>;
}

/// A listener, and a capture of the segments that reach it and leave it.
pub(crate) trait Scene: Sized {
    /// Returns the listener.
    fn listener(&self) -> &Listener;

    /// Returns the capture.
    fn capture(&self) -> &Capture;

    /// Returns the listener's namespace.
    fn server(&self) -> &Netns;

    /// Ends the capture and returns what it saw of the listener.
    fn stop(self) -> Result<Trace>;

    /// Returns the listener's port.
    fn port(&self) -> u16 {
        self.listener().port()
    }

    /// Waits for a connection that has to come.
    fn accept(&self, context: &Context) -> Result<Accepted> {
        accept(self.listener(), context)
    }

    /// Waits for a connection that has to come, and checks that it is the one from `client`.
    fn accept_from(&self, context: &Context, client: &impl Peer) -> Result<Accepted> {
        self.accept_from_port(context, client.port())
    }

    /// The same for a client of which only the port is known.
    fn accept_from_port(&self, context: &Context, port: u16) -> Result<Accepted> {
        accept_from_port(self.listener(), context, port)
    }

    /// Waits for the connection from `client`, and checks that it comes at its deadline after the
    /// bare ACK.
    fn accept_on_time(
        &self,
        context: &Context,
        client: &impl Peer,
        ack: Stamp,
        deadline: Duration,
    ) -> Result<Accepted> {
        let accepted = self.accept_from(context, client)?;
        context.on_time(ack, &accepted, deadline)?;
        Ok(accepted)
    }

    /// Checks that no connection comes for a while.
    fn accept_nothing(&self, time: Duration, why: &str) -> Result<()> {
        let accepted = self.listener().accept(time)?;
        ensure!(
            accepted.is_none(),
            "accept() returned a connection from {}, although {why}",
            accepted.map_or_else(String::new, |accepted| accepted.peer.to_string())
        );
        Ok(())
    }

    /// Waits until the listener has exactly `expected` requests.
    fn requests(&self, context: &Context, expected: usize) -> Result<()> {
        requests(self.server(), self.port(), context, expected)
    }

    /// Waits until the listener has counted exactly what `expected` says ([`counts`]).
    fn counts(&self, context: &Context, expected: Stats) -> Result<()> {
        counts(context, self.listener(), expected)
    }

    /// The same; returns what it has counted.
    fn read_counts(&self, context: &Context, expected: Stats) -> Result<Stats> {
        read_counts(context, self.listener(), expected)
    }

    /// Waits until the bare ACK of a client is on the server's wire.
    fn bare_ack(&self, context: &Context, client: &impl Peer) -> Result<Packet> {
        bare_ack(self.capture(), context, client.port())
    }

    /// Sends a request from a client that the server has not accepted yet; checks that it is
    /// accepted at once, and serves it.
    fn serve_parked(&self, context: &Context, client: &mut impl Peer) -> Result<Accepted> {
        let sent = client.send_request()?;
        let accepted = self.accept_from(context, client)?;
        context.at_once(sent, accepted.at, "from the request to accept()")?;
        serve(&accepted)?;
        client.read_response(context)?;
        Ok(accepted)
    }

    /// The same for a connection that is not needed any longer.
    fn serve(&self, context: &Context, client: &mut impl Peer) -> Result<()> {
        self.serve_parked(context, client).map(drop)
    }

    /// Ends the capture and judges what it saw of the listener.
    fn judge(self, verdict: impl FnOnce(&Trace) -> Result<()>) -> Result<()> {
        verdict(&self.stop()?)
    }

    /// Ends the capture and checks how many SYN-ACKs it saw.
    fn judge_syn_acks(self, expected: usize) -> Result<()> {
        expect_eq!(self.stop()?.syn_acks(), expected, "SYN-ACKs");
        Ok(())
    }

    /// Ends the capture and checks how many resets the server sent.
    fn judge_resets_sent(self, expected: usize) -> Result<()> {
        expect_eq!(self.stop()?.sent().resets(), expected, "resets");
        Ok(())
    }

    /// Ends the capture and checks how many SYN-ACKs and resets it saw.
    fn judge_totals(self, syn_acks: usize, resets: usize) -> Result<()> {
        self.judge(|trace| totals(trace, syn_acks, resets))
    }
}

/// Checks how many SYN-ACKs and resets a capture saw.
pub(crate) fn totals(trace: &Trace, syn_acks: usize, resets: usize) -> Result<()> {
    expect_eq!(trace.syn_acks(), syn_acks, "SYN-ACKs");
    expect_eq!(trace.resets(), resets, "resets");
    Ok(())
}

/// Implements what a [`Scene`] is required to have, from fields; `$server` is the namespace.
macro_rules! scene {
    ($scene:ty, $($server:ident).+) => {
        impl Scene for $scene {
            fn listener(&self) -> &Listener {
                &self.listener
            }

            fn capture(&self) -> &Capture {
                &self.capture
            }

            fn server(&self) -> &Netns {
                &self.$($server).+
            }

            fn stop(self) -> Result<Trace> {
                Ok(self.capture.stop()?.of_port(self.listener.port()))
            }
        }
    };
}

/// A server and clients that use the kernel's TCP, on the two ends of a cable, with a capture at
/// the server's.
pub(crate) struct WireScene {
    pub(crate) wire: Wire,
    pub(crate) family: Family,
    pub(crate) listener: Listener,
    pub(crate) capture: Capture,
}

scene!(WireScene, wire.server);

/// A client that uses the kernel's TCP.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) local: SocketAddr,
}

impl WireScene {
    /// Opens a filtered listener on a new cable.
    pub(crate) fn filtered(context: &Context, family: Family) -> Result<Self> {
        Self::new(context, family, &Listen::filtered(family))
    }

    /// Opens a listener on a new cable.
    pub(crate) fn new(context: &Context, family: Family, listen: &Listen) -> Result<Self> {
        Self::on(context, Wire::new()?, family, listen)
    }

    /// Opens a listener on a cable.
    pub(crate) fn on(
        context: &Context,
        wire: Wire,
        family: Family,
        listen: &Listen,
    ) -> Result<Self> {
        let listener = listen.open(&wire.server)?;
        let capture = wire.watch_server()?;
        context.show_on_failure(&capture);
        Ok(Self {
            wire,
            family,
            listener,
            capture,
        })
    }

    /// Connects a client: its handshake is done on its side.
    pub(crate) fn connect(&self) -> Result<Client> {
        self.connect_to(&self.listener)
    }

    /// Connects a client to a listener of the same server.
    pub(crate) fn connect_to(&self, listener: &Listener) -> Result<Client> {
        let server = self.wire.server_address(self.family, listener.port());
        Client::new(connect(&self.wire.client, server)?)
    }

    /// Connects several clients one after another.
    pub(crate) fn connect_many(&self, count: usize) -> Result<Vec<Client>> {
        let server = self.wire.server_address(self.family, self.port());
        self.wire.client.run(|| {
            (0..count)
                .map(|_| Client::new(connect_here(server)?))
                .collect()
        })
    }

    /// Connects a client and waits until its bare ACK is on the server's wire.
    pub(crate) fn connect_and_ack(&self, context: &Context) -> Result<(Client, Packet)> {
        let client = self.connect()?;
        let ack = self.bare_ack(context, &client)?;
        Ok((client, ack))
    }

    /// Connects a client that pauses, and checks that it is not accepted in that time.
    pub(crate) fn connect_and_pause(
        &self,
        context: &Context,
        time: Duration,
    ) -> Result<(Client, Packet)> {
        let parked = self.connect_and_ack(context)?;
        self.accept_nothing(time, "the client has not sent anything")?;
        Ok(parked)
    }
}

/// A server and clients that use the kernel's TCP, inside one machine.
pub(crate) struct LoopbackScene {
    pub(crate) ns: Netns,
    pub(crate) family: Family,
    pub(crate) listener: Listener,
    pub(crate) capture: Capture,
}

scene!(LoopbackScene, ns);

impl LoopbackScene {
    /// Opens a filtered listener in a new namespace.
    pub(crate) fn filtered(context: &Context, family: Family) -> Result<Self> {
        Self::new(context, family, &Listen::filtered(family))
    }

    /// Opens a listener in a new namespace.
    pub(crate) fn new(context: &Context, family: Family, listen: &Listen) -> Result<Self> {
        let ns = Netns::new()?;
        let listener = listen.open(&ns)?;
        let capture = Capture::start(&ns, "lo")?;
        context.show_on_failure(&capture);
        Ok(Self {
            ns,
            family,
            listener,
            capture,
        })
    }

    /// Connects a client: its handshake is done on its side.
    pub(crate) fn connect(&self) -> Result<Client> {
        let server = self.family.loopback(self.port());
        Client::new(self.ns.run(|| connect_here(server))?)
    }
}

/// A server whose clients are programs that make each segment, with a capture at the server's side.
pub(crate) struct RawScene {
    pub(crate) ns: Netns,
    pub(crate) family: Family,
    pub(crate) host: RawHost,
    pub(crate) listener: Listener,
    pub(crate) capture: Capture,
}

scene!(RawScene, ns);

impl RawScene {
    /// Opens a filtered listener in a new namespace.
    pub(crate) fn filtered(context: &Context, family: Family) -> Result<Self> {
        Self::new(context, family, &Listen::filtered(family))
    }

    /// Opens a listener in a new namespace.
    pub(crate) fn new(context: &Context, family: Family, listen: &Listen) -> Result<Self> {
        Self::with(context, family, listen, &RawHost::new)
    }

    /// The same, with clients that `host` connects to the namespace.
    pub(crate) fn with(
        context: &Context,
        family: Family,
        listen: &Listen,
        host: &dyn Fn(&Netns) -> Result<RawHost>,
    ) -> Result<Self> {
        let ns = Netns::new()?;
        let host = host(&ns)?;
        let listener = listen.open(&ns)?;
        let capture = host.watch()?;
        context.show_on_failure(&capture);
        Ok(Self {
            ns,
            family,
            host,
            listener,
            capture,
        })
    }

    /// Returns a client that has not sent anything yet.
    pub(crate) fn client(&self) -> RawClient {
        self.host.client(self.family, self.port())
    }

    /// Returns a client that has got its SYN-ACK and has not answered it.
    pub(crate) fn half_open(&self, context: &Context) -> Result<RawClient> {
        let mut client = self.client();
        client.half_open(context.patience())?;
        Ok(client)
    }

    /// Returns a client that has done its handshake with a bare ACK, and when the server's side saw
    /// that.
    pub(crate) fn parked(&self, context: &Context) -> Result<(RawClient, Packet)> {
        let mut client = self.client();
        client.open(context.patience())?;
        let ack = self.bare_ack(context, &client)?;
        Ok((client, ack))
    }

    /// Returns several clients that have done so, one after another.
    pub(crate) fn parked_many(&self, context: &Context, count: usize) -> Result<Vec<RawClient>> {
        (0..count).map(|_| Ok(self.parked(context)?.0)).collect()
    }

    /// Gives the listener a past: one client was served, one has reset, and one, which is returned,
    /// is parked.
    pub(crate) fn served_reset_and_parked(&self, context: &Context) -> Result<(RawClient, Stats)> {
        let (mut first, _) = self.parked(context)?;
        let (mut second, _) = self.parked(context)?;
        let (third, _) = self.parked(context)?;
        self.serve(context, &mut first)?;
        second.rst()?;
        let expected = counted!(parked: 1, released_data: 1, aborted: 1);
        Ok((third, self.read_counts(context, expected)?))
    }
}

impl Peer for RawClient {
    fn port(&self) -> u16 {
        self.local.port()
    }

    fn send_request(&mut self) -> Result<Stamp> {
        self.data(REQUEST)
    }

    fn read_response(&mut self, context: &Context) -> Result<()> {
        let answer = self
            .receive_until(context.patience(), Segment::has_data)?
            .context("the server's response did not reach the client")?;
        expect_eq!(answer.segment.payload, RESPONSE, "the response");
        expect_eq!(
            answer.segment.ack,
            self.snd_nxt,
            "what the response acknowledges"
        );
        Ok(())
    }
}

/// Sends a request from a client that is accepted already, and serves it.
pub(crate) fn serve_raw(client: &mut RawClient, accepted: &Accepted) -> Result<()> {
    client.data(REQUEST)?;
    serve(accepted)
}

/// Waits for the server's reset of a client; `or_else` is the error if none comes.
pub(crate) fn expect_reset(
    context: &Context,
    client: &mut RawClient,
    or_else: &'static str,
) -> Result<Received> {
    client
        .receive_until(context.patience(), Segment::is_rst)?
        .context(or_else)
}

/// Connects again from the port of a client whose connection is over.
pub(crate) fn connect_again(context: &Context, client: &mut RawClient) -> Result<()> {
    client.isn = client.isn.wrapping_add(100_000);
    client.snd_nxt = client.isn;
    client.open(context.patience()).map(drop)
}

/// Checks that a client is sent nothing for a while.
pub(crate) fn receives_nothing(client: &mut RawClient, time: Duration, what: &str) -> Result<()> {
    let received = client.receive(time)?;
    expect_eq!(
        received.map(|received| received.segment.to_string()),
        None,
        "{what}"
    );
    Ok(())
}

/// Returns when the bare ACK of each client was seen, by the client's port.
pub(crate) fn bare_acks(trace: &Trace) -> HashMap<u16, Stamp> {
    let mut acks = HashMap::new();
    for packet in &trace.packets {
        if packet.segment.is_bare_ack() && packet.direction == Direction::In {
            acks.entry(packet.segment.source.port())
                .or_insert(packet.at);
        }
    }
    acks
}

/// Waits until the bare ACK of a client is on the server's wire.
pub(crate) fn bare_ack(capture: &Capture, context: &Context, client_port: u16) -> Result<Packet> {
    capture
        .wait_for(context.patience(), |packet| {
            packet.segment.is_bare_ack() && packet.segment.source.port() == client_port
        })?
        .context("the client's bare ACK did not reach the server")
}

/// Waits in `accept()` while `connect` runs.
pub(crate) fn accept_while<T>(
    listener: &Listener,
    context: &Context,
    connect: impl FnOnce() -> Result<T>,
) -> Result<(Accepted, T)> {
    thread::scope(|scope| {
        let server = scope.spawn(|| accept(listener, context));
        let client = connect();
        let accepted = join_scoped(server);
        Ok((accepted?, client?))
    })
}

/// Waits for a connection that has to come.
pub(crate) fn accept(listener: &Listener, context: &Context) -> Result<Accepted> {
    listener
        .accept(context.patience())?
        .context("no connection to accept")
}

/// Waits for a connection that has to come, and checks the client's port.
pub(crate) fn accept_from_port(
    listener: &Listener,
    context: &Context,
    port: u16,
) -> Result<Accepted> {
    let accepted = accept(listener, context)?;
    expect_eq!(accepted.peer.port(), port, "the client that was accepted");
    Ok(accepted)
}

/// Waits until `count` connections wait for `accept()`.
pub(crate) fn accept_queue_holds(listener: &Listener, context: &Context, count: u32) -> Result<()> {
    let mut queued = 0;
    wait::until(context.patience(), || {
        queued = TcpInfo::of(listener)?.unacked;
        Ok(queued == count)
    })?;
    expect_eq!(queued, count, "connections that wait for accept()");
    Ok(())
}

/// Waits until a port has exactly `expected` requests.
pub(crate) fn requests(ns: &Netns, port: u16, context: &Context, expected: usize) -> Result<()> {
    let mut seen = 0;
    wait::until(context.patience(), || {
        seen = sockets::requests(ns, port)?;
        Ok(seen == expected)
    })?;
    expect_eq!(seen, expected, "requests of port {port} in SYN_RECV");
    Ok(())
}

/// Returns the errno of a system call that failed.
pub(crate) fn errno<T>(result: io::Result<T>) -> Result<Option<Errno>> {
    match result {
        Ok(_) => Ok(None),
        Err(error) => match error.raw_os_error() {
            Some(number) => Ok(Some(Errno::from_raw(number))),
            None => bail!("not an errno: {error}"),
        },
    }
}

/// Reads a request from an accepted connection and answers it.
pub(crate) fn serve(accepted: &Accepted) -> Result<()> {
    serve_request(accepted, REQUEST)
}

/// The same for another request than [`REQUEST`].
pub(crate) fn serve_request(accepted: &Accepted, expected: &[u8]) -> Result<()> {
    let mut stream = &accepted.stream;
    let mut request = vec![0; expected.len()];
    stream
        .read_exact(&mut request)
        .context("read the request")?;
    ensure!(
        request == expected,
        "the request: expected {}, saw {}",
        expected.escape_ascii(),
        request.escape_ascii()
    );
    stream.write_all(RESPONSE).context("write the response")
}

impl Client {
    /// Returns the client that a stream belongs to.
    pub(crate) fn new(stream: TcpStream) -> Result<Self> {
        let local = stream.local_addr()?;
        Ok(Self { stream, local })
    }

    /// Sends the request; returns when.
    pub(crate) fn request(&mut self) -> Result<Stamp> {
        let at = Stamp::now();
        self.stream
            .write_all(REQUEST)
            .context("write the request")?;
        Ok(at)
    }

    /// Reads the response.
    pub(crate) fn response(&mut self) -> Result<()> {
        let mut response = vec![0; RESPONSE.len()];
        self.stream
            .read_exact(&mut response)
            .context("read the response")?;
        expect_eq!(response, RESPONSE, "the response");
        Ok(())
    }
}

impl Peer for Client {
    fn port(&self) -> u16 {
        self.local.port()
    }

    fn send_request(&mut self) -> Result<Stamp> {
        self.request()
    }

    fn read_response(&mut self, _: &Context) -> Result<()> {
        self.response()
    }
}

/// Exchanges a request and a response on a connection that works, and closes it from both ends.
pub(crate) fn exchange_and_close(mut client: Client, accepted: Accepted) -> Result<()> {
    client.request()?;
    serve(&accepted)?;
    client.response()?;
    close(client, accepted)
}

/// Closes a connection from both ends, and checks that each end reads the end of the stream.
pub(crate) fn close(mut client: Client, mut accepted: Accepted) -> Result<()> {
    client.stream.shutdown(Shutdown::Write)?;
    reads_end(&mut accepted.stream, "bytes for the server before the end")?;
    drop(accepted);
    reads_end(&mut client.stream, "bytes for the client before the end")?;
    Ok(())
}

/// Reads a stream to its end.
pub(crate) fn rest(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream
        .read_to_end(&mut bytes)
        .context("read to the end of the stream")?;
    Ok(bytes)
}

/// Checks that there is nothing more to read from a stream.
pub(crate) fn reads_end(stream: &mut TcpStream, what: &str) -> Result<()> {
    expect_eq!(rest(stream)?.len(), 0, "{what}");
    Ok(())
}

/// Checks which filter, or other upper-layer protocol, a socket has.
pub(crate) fn expect_filter(socket: impl AsFd, expected: Option<&str>, what: &str) -> Result<()> {
    expect_eq!(ulp::attached(socket)?.as_deref(), expected, "{what}");
    Ok(())
}

/// Checks that a stream ends with a reset.
pub(crate) fn reads_reset(stream: &mut TcpStream) -> Result<()> {
    let error = rest(stream)
        .err()
        .map(|error| error.downcast_ref::<io::Error>().map(io::Error::kind));
    expect_eq!(
        error,
        Some(Some(io::ErrorKind::ConnectionReset)),
        "what the client reads"
    );
    Ok(())
}

/// Checks that both ends of a connection are established without retransmissions.
pub(crate) fn established(client: &Client, accepted: &Accepted) -> Result<()> {
    let server = TcpInfo::of(&accepted.stream)?;
    expect_eq!(
        server.state,
        State::Established,
        "the accepted socket's state"
    );
    expect_eq!(
        server.total_retrans,
        0,
        "the accepted socket's retransmissions"
    );
    let client = TcpInfo::of(&client.stream)?;
    expect_eq!(client.state, State::Established, "the client's state");
    expect_eq!(client.total_retrans, 0, "the client's retransmissions");
    Ok(())
}
