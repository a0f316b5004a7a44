// SPDX-License-Identifier: MIT OR Apache-2.0

//! What most cases start from: a listener at one end of something, a client at the other, a capture in between.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use accf_kit::capture::{Capture, Packet, Trace};
use accf_kit::clock::Stamp;
use accf_kit::endpoint::{connect, connect_here, Accepted, Family, Listen, Listener};
use accf_kit::netns::Netns;
use accf_kit::raw::{RawClient, RawHost};
use accf_kit::segment::Segment;
use accf_kit::tcp_info::{State, TcpInfo};
use accf_kit::wire::Wire;
use accf_kit::{sockets, wait};
use anyhow::{anyhow, ensure, Context as _, Result};

use crate::case::{expect_eq, Context};

/// What clients say.
pub(crate) const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
/// What servers answer.
pub(crate) const RESPONSE: &[u8] = b"HTTP/1.0 200 OK\r\n\r\nhello\n";

/// A server and clients that are the kernel's own, on the two ends of a cable, with a capture at the server's.
pub(crate) struct Scene {
    pub(crate) wire: Wire,
    pub(crate) family: Family,
    pub(crate) listener: Listener,
    pub(crate) capture: Capture,
}

/// A client of a [`Scene`].
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) local: SocketAddr,
}

impl Scene {
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

    pub(crate) fn port(&self) -> u16 {
        self.listener.port()
    }

    /// Connects a client: its handshake is done on its side.
    pub(crate) fn connect(&self) -> Result<Client> {
        let stream = connect(
            &self.wire.client,
            self.wire.server_address(self.family, self.port()),
        )?;
        let local = stream.local_addr()?;
        Ok(Client { stream, local })
    }

    /// Connects several clients one after another.
    pub(crate) fn connect_many(&self, count: usize) -> Result<Vec<Client>> {
        let server = self.wire.server_address(self.family, self.port());
        self.wire.client.run(|| {
            (0..count)
                .map(|_| {
                    let stream = connect_here(server)?;
                    let local = stream.local_addr()?;
                    Ok(Client { stream, local })
                })
                .collect()
        })
    }

    /// Connects a client and waits until its bare ACK is on the server's wire.
    pub(crate) fn connect_and_ack(&self, context: &Context) -> Result<(Client, Packet)> {
        let client = self.connect()?;
        let ack = bare_ack(&self.capture, context, client.local.port())?;
        Ok((client, ack))
    }

    /// Waits for a connection that has to come.
    pub(crate) fn accept(&self, context: &Context) -> Result<Accepted> {
        accept(&self.listener, context)
    }

    /// Makes sure that no connection comes for a while.
    pub(crate) fn accept_nothing(&self, time: Duration, why: &str) -> Result<()> {
        accept_nothing(&self.listener, time, why)
    }

    /// Waits until the listener has `expected` requests, and no more and no less.
    pub(crate) fn requests(&self, context: &Context, expected: usize) -> Result<()> {
        requests(&self.wire.server, self.port(), context, expected)
    }

    /// Ends the capture and judges what it saw of the listener.
    pub(crate) fn judge(self, verdict: impl FnOnce(&Trace) -> Result<()>) -> Result<()> {
        verdict(&self.capture.stop()?.of_port(self.listener.port()))
    }
}

/// A server whose clients decide on every segment themselves, with a capture at the server's side.
pub(crate) struct RawScene {
    pub(crate) ns: Netns,
    pub(crate) family: Family,
    pub(crate) host: RawHost,
    pub(crate) listener: Listener,
    pub(crate) capture: Capture,
}

impl RawScene {
    pub(crate) fn new(context: &Context, family: Family, listen: &Listen) -> Result<Self> {
        let ns = Netns::new()?;
        let host = RawHost::new(&ns)?;
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

    pub(crate) fn port(&self) -> u16 {
        self.listener.port()
    }

    /// A client that has not sent anything yet.
    pub(crate) fn client(&self) -> RawClient {
        self.host.client(self.family, self.port())
    }

    /// A client that has done its handshake with a bare ACK, and when the server's side saw that.
    pub(crate) fn parked(&self, context: &Context) -> Result<(RawClient, Packet)> {
        let mut client = self.client();
        client.open(context.patience())?;
        let ack = bare_ack(&self.capture, context, client.local.port())?;
        Ok((client, ack))
    }

    /// Waits for a connection that has to come.
    pub(crate) fn accept(&self, context: &Context) -> Result<Accepted> {
        accept(&self.listener, context)
    }

    /// Makes sure that no connection comes for a while.
    pub(crate) fn accept_nothing(&self, time: Duration, why: &str) -> Result<()> {
        accept_nothing(&self.listener, time, why)
    }

    /// Waits until the listener has `expected` requests, and no more and no less.
    pub(crate) fn requests(&self, context: &Context, expected: usize) -> Result<()> {
        requests(&self.ns, self.port(), context, expected)
    }

    /// Sends a request from a client whose connection the server has not accepted yet, and has it served.
    pub(crate) fn serve(&self, context: &Context, client: &mut RawClient) -> Result<()> {
        let sent = client.data(REQUEST)?;
        let accepted = self.accept(context)?;
        expect_eq!(
            accepted.peer.port(),
            client.local.port(),
            "the client that was accepted"
        );
        context.at_once(sent, accepted.at, "from the request to accept()")?;
        serve(&accepted)?;
        let answer = client
            .receive_until(context.patience(), Segment::has_data)?
            .context("the server's response did not reach the client")?;
        expect_eq!(answer.segment.payload, RESPONSE, "the response");
        expect_eq!(
            answer.segment.ack,
            client.snd_nxt,
            "what the response acknowledges"
        );
        Ok(())
    }

    /// Ends the capture and judges what it saw of the listener.
    pub(crate) fn judge(self, verdict: impl FnOnce(&Trace) -> Result<()>) -> Result<()> {
        verdict(&self.capture.stop()?.of_port(self.listener.port()))
    }
}

/// Waits until the bare ACK of a client is on the server's wire.
pub(crate) fn bare_ack(capture: &Capture, context: &Context, client_port: u16) -> Result<Packet> {
    capture
        .wait_for(context.patience(), |packet| {
            packet.segment.is_bare_ack() && packet.segment.source.port() == client_port
        })?
        .context("the client's bare ACK did not reach the server")
}

/// Waits in `accept()` already while something is done to get a connection there.
pub(crate) fn accept_while<T>(
    listener: &Listener,
    context: &Context,
    connect: impl FnOnce() -> Result<T>,
) -> Result<(Accepted, T)> {
    thread::scope(|scope| {
        let server = scope.spawn(|| accept(listener, context));
        let client = connect();
        let accepted = server.join().map_err(|_| anyhow!("the server panicked"))?;
        Ok((accepted?, client?))
    })
}

fn accept(listener: &Listener, context: &Context) -> Result<Accepted> {
    listener
        .accept(context.patience())?
        .context("no connection to accept")
}

fn accept_nothing(listener: &Listener, time: Duration, why: &str) -> Result<()> {
    let accepted = listener.accept(time)?;
    ensure!(
        accepted.is_none(),
        "accept() returned a connection from {}, although {why}",
        accepted.map_or_else(String::new, |accepted| accepted.peer.to_string())
    );
    Ok(())
}

/// Waits until a port has `expected` requests, and no more and no less.
pub(crate) fn requests(ns: &Netns, port: u16, context: &Context, expected: usize) -> Result<()> {
    let mut seen = 0;
    wait::until(context.patience(), || {
        seen = sockets::requests(ns, port)?;
        Ok(seen == expected)
    })?;
    expect_eq!(seen, expected, "requests of port {port} in SYN_RECV");
    Ok(())
}

/// Reads a request from an accepted connection and answers it.
pub(crate) fn serve(accepted: &Accepted) -> Result<()> {
    let mut stream = &accepted.stream;
    let mut request = vec![0; REQUEST.len()];
    stream
        .read_exact(&mut request)
        .context("read the request")?;
    expect_eq!(request, REQUEST, "the request");
    stream.write_all(RESPONSE).context("write the response")
}

impl Client {
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

/// Exchanges a request and a response on a connection that works, and closes it from both ends.
pub(crate) fn exchange_and_close(mut client: Client, accepted: Accepted) -> Result<()> {
    client.request()?;
    serve(&accepted)?;
    client.response()?;
    close(client, accepted)
}

/// Closes a connection from both ends and sees each end hear of it.
pub(crate) fn close(mut client: Client, mut accepted: Accepted) -> Result<()> {
    client.stream.shutdown(Shutdown::Write)?;
    expect_eq!(
        rest(&mut accepted.stream)?.len(),
        0,
        "bytes the server reads before the end of the stream"
    );
    drop(accepted);
    expect_eq!(
        rest(&mut client.stream)?.len(),
        0,
        "bytes the client reads before the end of the stream"
    );
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

/// Makes sure that both ends of a connection are what they are after any handshake.
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
