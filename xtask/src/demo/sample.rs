// SPDX-License-Identifier: MIT OR Apache-2.0
//! A synthetic demo for tests: two captures and a guest's report in which every check passes.
//!
//! Tests change one detail and check which checks fail.

use std::fs::File;
use std::time::Duration;

use accf_demo::{
    Accepted, ClientError, ClientView, Counters, Exchange, GuestReport, HttpServer, Listener, Path,
    Scenario, ServedRequest, TcpInfo, UnixNanos,
};
use etherparse::{IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, PacketBuilder, TcpHeader};
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, TsResolution};

use super::capture::{Capture, End, Flags, Frame, Tcp};
use super::facts::Findings;

/// The delay of the path, one way.
const DELAY_US: u64 = 20_000;
const SERVER_ISN: u32 = 9_000;
const CLIENT_ISN: u32 = 5_000;
const REQUEST: usize = 47;
const RESPONSE: usize = 89;

/// The flags of a segment with data.
pub(crate) const DATA: Flags = Flags::ACK.union(Flags::PSH);
pub(crate) const SYN_ACK: Flags = Flags::SYN.union(Flags::ACK);
const FIN_ACK: Flags = Flags::FIN.union(Flags::ACK);

/// The recordings of a demo.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) guest: GuestReport,
    pub(crate) client: Capture,
    pub(crate) server: Capture,
}

impl Sample {
    /// Returns the findings of the demo.
    pub(crate) fn findings(&self) -> Findings {
        Findings::new(self.guest.clone(), &self.client, &self.server).unwrap()
    }

    /// Writes the recordings into `directory`, as a guest does.
    pub(crate) fn record(&self, directory: &std::path::Path) {
        let captures = [
            (&self.guest.client_capture, &self.client),
            (&self.guest.server_capture, &self.server),
        ];
        for (name, capture) in captures {
            let header = PcapHeader {
                datalink: capture.link,
                ts_resolution: TsResolution::NanoSecond,
                ..PcapHeader::default()
            };
            let file = File::create(directory.join(name)).unwrap();
            let mut writer = PcapWriter::with_header(file, header).unwrap();
            for frame in &capture.frames {
                let at = Duration::from_nanos(frame.at.0);
                let packet = PcapPacket::new(at, frame.original_len, &frame.bytes);
                writer.write_packet(&packet).unwrap();
            }
        }
        let report = serde_json::to_string(&self.guest).unwrap();
        std::fs::write(directory.join(accf_demo::REPORT_FILE), report).unwrap();
    }

    /// Returns the report's entry of a connection.
    pub(crate) fn exchange(&mut self, (scenario, listener): Connection) -> &mut Exchange {
        let mut exchanges = self.guest.exchanges.iter_mut();
        exchanges
            .find(|e| e.scenario == scenario && e.listener == listener)
            .unwrap()
    }

    /// Returns the report's entry of a connection that was accepted.
    pub(crate) fn accepted(&mut self, connection: Connection) -> &mut Accepted {
        self.exchange(connection).accepted.as_mut().unwrap()
    }

    /// Returns the error that the client of a connection got.
    pub(crate) fn error(&mut self, connection: Connection) -> &mut ClientError {
        self.exchange(connection).client.error.as_mut().unwrap()
    }

    /// Returns the report's entry of a request.
    pub(crate) fn request(&mut self, server: HttpServer, listener: Listener) -> &mut ServedRequest {
        let mut requests = self.guest.requests.iter_mut();
        requests
            .find(|r| r.server == server && r.listener == listener)
            .unwrap()
    }

    /// Adds a segment to a connection, `ms` after its SYN.
    pub(crate) fn send(&mut self, connection: Connection, from: End, flags: Flags, ms: f64) {
        let exchange = self.exchange(connection).clone();
        let start = exchange.client.connect_called;
        let mut talk = Talk::new(exchange.client_port, exchange.server_port, start);
        talk.seq = (CLIENT_ISN + 1, SERVER_ISN + 1);
        talk.ip_id = 1000;
        let seq = SERVER_ISN + u32::from(!flags.contains(Flags::SYN));
        talk.segment(from, flags, Some(seq), 0, (ms * 1e3) as u64);
        self.client.frames.extend(talk.client);
        self.server.frames.extend(talk.server);
        self.sort();
    }

    /// Puts the frames into the order of their times.
    fn sort(&mut self) {
        for capture in [&mut self.client, &mut self.server] {
            capture.frames.sort_by_key(|frame| frame.at);
        }
    }
}

/// The scenario and the listener of a connection.
type Connection = (Scenario, Listener);

/// Changes of what a connection sent.
impl Sample {
    /// Returns all frames of a connection with these flags from one end, at both ends.
    fn segments(
        &mut self,
        connection: Connection,
        from: End,
        flags: Flags,
    ) -> impl Iterator<Item = &mut Frame> {
        let exchange = self.exchange(connection);
        let (client, server) = (exchange.client_port, exchange.server_port);
        let ports = match from {
            End::Client => (client, server),
            End::Server => (server, client),
        };
        let frames = self.client.frames.iter_mut();
        frames.chain(&mut self.server.frames).filter(move |frame| {
            frame.tcp.is_some_and(|tcp| {
                (tcp.source_port, tcp.destination_port) == ports && tcp.flags == flags
            })
        })
    }

    /// Changes a segment that the server sent.
    pub(crate) fn forge(
        &mut self,
        connection: Connection,
        flags: Flags,
        change: impl Fn(&mut Tcp),
    ) {
        for frame in self.segments(connection, End::Server, flags) {
            frame.tcp.as_mut().into_iter().for_each(&change);
        }
    }

    /// Shifts a segment of one end in time.
    pub(crate) fn shift(&mut self, connection: Connection, from: End, flags: Flags, ms: i64) {
        for frame in self.segments(connection, from, flags) {
            frame.at.0 = frame.at.0.strict_add_signed(ms * 1_000_000);
        }
        self.sort();
    }

    /// Returns when a segment from the server arrived at the client.
    pub(crate) fn arrival(&mut self, connection: Connection, flags: Flags) -> UnixNanos {
        let seen = self.segments(connection, End::Server, flags);
        seen.map(|frame| frame.at).max().unwrap()
    }

    /// Removes a segment of the server.
    pub(crate) fn drop_segment(&mut self, connection: Connection, flags: Flags) {
        for frame in self.segments(connection, End::Server, flags) {
            frame.tcp = None;
        }
    }
}

/// A connection under construction.
struct Talk {
    ports: (u16, u16),
    start: UnixNanos,
    seq: (u32, u32),
    ip_id: u16,
    client: Vec<Frame>,
    server: Vec<Frame>,
}

impl Talk {
    fn new(client_port: u16, server_port: u16, start: UnixNanos) -> Self {
        Self {
            ports: (client_port, server_port),
            start,
            seq: (CLIENT_ISN, SERVER_ISN),
            ip_id: 0,
            client: Vec::new(),
            server: Vec::new(),
        }
    }

    fn at(&self, us: u64) -> UnixNanos {
        UnixNanos(self.start.0 + us * 1000)
    }

    /// Sends a segment `us` after the start; `seq` overrides the sequence number.
    fn segment(&mut self, from: End, flags: Flags, seq: Option<u32>, len: usize, us: u64) {
        self.ip_id += 1;
        let (source_port, destination_port, own, peer) = match from {
            End::Client => (self.ports.0, self.ports.1, self.seq.0, self.seq.1),
            End::Server => (self.ports.1, self.ports.0, self.seq.1, self.seq.0),
        };
        let again = seq.is_some();
        let tcp = Tcp {
            source_port,
            destination_port,
            flags,
            seq: seq.unwrap_or(own),
            ack: if flags.contains(Flags::ACK) { peer } else { 0 },
            payload_len: len,
            ip_id: self.ip_id,
        };
        let bytes = frame(&tcp);
        let frame = |at| Frame {
            at,
            original_len: bytes.len() as u32,
            bytes: bytes.clone(),
            tcp: Some(tcp),
        };
        let (near, far) = (frame(self.at(us)), frame(self.at(us + DELAY_US)));
        let (to_client, to_server, own) = match from {
            End::Client => (near, far, &mut self.seq.0),
            End::Server => (far, near, &mut self.seq.1),
        };
        if !again {
            *own += len as u32 + (flags & (Flags::SYN | Flags::FIN)).bits().count_ones();
        }
        self.client.push(to_client);
        self.server.push(to_server);
    }
}

/// Returns the bytes of a segment, from the IP header on.
fn frame(tcp: &Tcp) -> Vec<u8> {
    let (client, server) = ([192, 0, 2, 1], [192, 0, 2, 2]);
    let (source, destination) = match tcp.destination_port < 10_000 {
        true => (client, server),
        false => (server, client),
    };
    let ip = Ipv4Header {
        identification: tcp.ip_id,
        ..Ipv4Header::new(0, 64, IpNumber::TCP, source, destination).unwrap()
    };
    let ip = PacketBuilder::ip(IpHeaders::Ipv4(ip, Ipv4Extensions::default()));
    let step = ip.tcp_header(TcpHeader {
        acknowledgment_number: tcp.ack,
        syn: tcp.flags.contains(Flags::SYN),
        fin: tcp.flags.contains(Flags::FIN),
        rst: tcp.flags.contains(Flags::RST),
        psh: tcp.flags.contains(Flags::PSH),
        ack: tcp.flags.contains(Flags::ACK),
        ..TcpHeader::new(tcp.source_port, tcp.destination_port, tcp.seq, 64240)
    });
    let mut bytes = Vec::new();
    let payload = vec![b'x'; tcp.payload_len];
    step.write(&mut bytes, &payload).unwrap();
    bytes
}

fn info(rtt_us: u32, rto_us: u32) -> TcpInfo {
    TcpInfo {
        rtt_us,
        rttvar_us: rtt_us / 2,
        rto_us,
        total_retrans: 0,
    }
}

/// The time from a segment's arrival at the server to the return of `accept()` and `read()`.
const WAKE_US: u64 = 500;

fn setting(listener: Listener, seconds: u64) -> String {
    match (listener, listener.on_timeout()) {
        (Listener::Plain, _) => "plain".into(),
        (_, None) => format!("TCP_DEFER_ACCEPT = {seconds} s"),
        (_, Some(policy)) => format!(
            "dataready, timeout_ms = {}, on_timeout = {policy}",
            seconds * 1000
        ),
    }
}

/// Returns a demo in which every check passes.
pub(crate) fn sample() -> Sample {
    let mut exchanges = Vec::new();
    let (mut client, mut server) = (Vec::new(), Vec::new());
    let epoch = 1_750_000_000_000_000_000;
    for (scenario, client_port, server_port, after_s) in [
        (Scenario::Rfc793, 40_000, 8100, 0),
        (Scenario::Piggyback, 40_010, 8110, 10),
        (Scenario::Silent, 40_020, 8120, 20),
    ] {
        for (i, listener) in scenario.listeners().iter().copied().enumerate() {
            let (client_port, server_port) = (client_port + i as u16, server_port + i as u16);
            let start = UnixNanos(epoch + after_s * 1_000_000_000 + i as u64 * 1_000_000);
            let mut talk = Talk::new(client_port, server_port, start);
            let exchange = exchange(scenario, listener, &mut talk);
            client.append(&mut talk.client);
            server.append(&mut talk.server);
            exchanges.push(exchange);
        }
    }

    let mut requests = Vec::new();
    for (i, server) in HttpServer::ALL.into_iter().enumerate() {
        let listeners = Scenario::LoadBalancer.listeners().iter().copied();
        for (j, listener) in listeners.enumerate() {
            let stuck = listener == Listener::Plain;
            requests.push(ServedRequest {
                listener,
                setting: setting(listener, 60),
                server,
                server_port: 8200 + 10 * i as u16 + j as u16,
                idle_ports: (0..5).map(|k| 50_000 + k).collect(),
                curl_port: Some(50_005),
                max_time_ms: 20_000,
                worker_timeout_ms: (server == HttpServer::Gunicorn).then_some(4000),
                time_to_first_byte_ms: (!stuck).then_some(97.5),
                total_ms: if stuck { 20_001.0 } else { 98.0 },
                http_status: (!stuck).then_some(200),
                curl_exit: if stuck { 28 } else { 0 },
                workers_killed: u32::from(stuck && server == HttpServer::Gunicorn) * 4,
                machine_late_us: 900,
                runs: 1,
            });
        }
    }

    let [client, server] = [client, server].map(|frames| Capture {
        link: DataLink::RAW,
        frames,
    });
    let mut sample = Sample {
        guest: GuestReport {
            schema: accf_demo::SCHEMA,
            kernel_release: "7.3.4-synthetic".into(),
            path: Path {
                description: "a synthetic cable".into(),
                one_way_delay_ms: 20,
                echo_rtt_us: vec![40_400, 40_600, 40_500, 41_000, 40_300],
            },
            exchanges,
            requests,
            client_capture: "client.pcap".into(),
            server_capture: "server.pcap".into(),
            took_ms: 60_000,
        },
        client,
        server,
    };
    sample.sort();
    sample
}

fn exchange(scenario: Scenario, listener: Listener, talk: &mut Talk) -> Exchange {
    use End::{Client, Server};
    let piggyback = scenario == Scenario::Piggyback;
    let silent = scenario == Scenario::Silent;
    talk.segment(Client, Flags::SYN, None, 0, 0);
    talk.segment(Server, SYN_ACK, None, 0, 20_100);
    if !piggyback {
        talk.segment(Client, Flags::ACK, None, 0, 40_200);
    }
    let acked = 60_200;
    let deadline = acked + 5_001_000;
    let mut request_at = Some(match scenario {
        Scenario::Piggyback => 40_300,
        Scenario::Silent => 10_041_000,
        _ => 6_041_000,
    });
    // The effect of the deadline, and when the server accepts.
    let mut reset_at = None;
    let accept_us = match (silent, listener) {
        (_, Listener::Plain) if !piggyback => Some(acked + WAKE_US),
        (true, Listener::DeferAccept) => {
            talk.segment(Server, SYN_ACK, Some(SERVER_ISN), 0, 7_040_000);
            talk.segment(Client, Flags::ACK, None, 0, 7_060_100);
            Some(7_080_100 + WAKE_US)
        }
        (true, Listener::Dataready) => Some(deadline),
        (true, Listener::DatareadyReset) => {
            reset_at = Some(deadline);
            request_at = None;
            None
        }
        (true, Listener::DatareadyDrop) => {
            reset_at = request_at.map(|request| request + DELAY_US + 100);
            None
        }
        _ => request_at.map(|request| request + DELAY_US + WAKE_US),
    };
    if let Some(request) = request_at {
        talk.segment(Client, DATA, None, REQUEST, request);
    }
    let served = request_at.filter(|_| accept_us.is_some());
    if let Some(request) = served {
        let arrived = request + DELAY_US;
        talk.segment(Server, Flags::ACK, None, 0, arrived + 100);
        talk.segment(Server, DATA, None, RESPONSE, arrived + 2 * WAKE_US);
        talk.segment(Server, FIN_ACK, None, 0, arrived + 3 * WAKE_US);
        let closed = arrived + 3 * WAKE_US;
        talk.segment(Client, FIN_ACK, None, 0, closed + DELAY_US);
    }
    if let Some(reset) = reset_at {
        talk.segment(Server, Flags::RST, None, 0, reset);
    }
    let tcp_info = match (listener, scenario) {
        (Listener::DeferAccept, Scenario::Rfc793) => info(6_040_900, 18_124_000),
        _ => info(40_700, 241_000),
    };
    let seconds = if silent { 5 } else { 60 };
    let count = |counted: bool| u64::from(counted);
    let counters = Counters {
        parked_total: count(!piggyback),
        released_data: count(scenario == Scenario::Rfc793),
        timeout_accept: count(silent && listener == Listener::Dataready),
        timeout_reset: count(listener == Listener::DatareadyReset),
        timeout_drop: count(listener == Listener::DatareadyDrop),
        ..Counters::default()
    };
    let filtered = listener.on_timeout().is_some();
    Exchange {
        scenario,
        listener,
        setting: setting(listener, seconds),
        deadline_ms: (listener != Listener::Plain).then_some(seconds * 1000),
        client_port: talk.ports.0,
        server_port: talk.ports.1,
        client: ClientView {
            connect_called: talk.at(0),
            connected: talk.at(40_300),
            request_ready: request_at.map(|us| talk.at(if piggyback { 0 } else { us })),
            first_byte: served.map(|us| talk.at(us + 2 * DELAY_US + 3 * WAKE_US)),
            error: reset_at.map(|us| ClientError {
                at: talk.at(us + DELAY_US + WAKE_US),
                name: "ECONNRESET".into(),
            }),
        },
        accepted: accept_us.map(|us| Accepted {
            at: talk.at(us),
            tcp_info,
            first_read: served.map(|us| talk.at(us + DELAY_US + WAKE_US + 100)),
        }),
        counters: filtered.then_some(counters),
        let_go: (silent && filtered).then(|| talk.at(deadline + 2_000)),
        machine_late_us: 700,
        runs: 1,
    }
}
