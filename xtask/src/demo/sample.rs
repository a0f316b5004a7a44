// SPDX-License-Identifier: MIT OR Apache-2.0
//! A made-up demo, for tests: two captures and a guest's report in which everything is as accf claims.
//!
//! Tests change one thing and see which check notices.

use std::fs::File;
use std::time::Duration;

use accf_demo::{
    Accepted, ClientView, Exchange, GuestReport, HttpServer, Listener, Path, Scenario,
    ServedRequest, TcpInfo, UnixNanos,
};
use etherparse::{IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, PacketBuilder};
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, TsResolution};

use super::capture::{Capture, End, Flags, Frame, Tcp};
use super::facts::Findings;

/// One way.
const DELAY_US: u64 = 20_000;
const SERVER_ISN: u32 = 9_000;
const CLIENT_ISN: u32 = 5_000;
const REQUEST: usize = 47;
const RESPONSE: usize = 89;

const SYN: Flags = Flags {
    syn: true,
    ack: false,
    fin: false,
    rst: false,
    psh: false,
};
const SYN_ACK: Flags = Flags {
    syn: true,
    ack: true,
    fin: false,
    rst: false,
    psh: false,
};
const ACK: Flags = Flags {
    syn: false,
    ack: true,
    fin: false,
    rst: false,
    psh: false,
};
const PSH: Flags = Flags {
    syn: false,
    ack: true,
    fin: false,
    rst: false,
    psh: true,
};
const FIN: Flags = Flags {
    syn: false,
    ack: true,
    fin: true,
    rst: false,
    psh: false,
};

/// What a demo is computed from.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) guest: GuestReport,
    pub(crate) client: Capture,
    pub(crate) server: Capture,
}

impl Sample {
    /// What the demo makes of it.
    pub(crate) fn findings(&self) -> Findings {
        Findings::new(self.guest.clone(), &self.client, &self.server).unwrap()
    }

    /// Leaves it in `directory` as the guest would.
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

    /// The report's entry of a connection.
    pub(crate) fn exchange(&mut self, scenario: Scenario, listener: Listener) -> &mut Exchange {
        let mut exchanges = self.guest.exchanges.iter_mut();
        exchanges
            .find(|e| e.scenario == scenario && e.listener == listener)
            .unwrap()
    }

    /// The report's entry of a request.
    pub(crate) fn request(&mut self, server: HttpServer, listener: Listener) -> &mut ServedRequest {
        let mut requests = self.guest.requests.iter_mut();
        requests
            .find(|r| r.server == server && r.listener == listener)
            .unwrap()
    }

    /// Lets a connection send one more segment, `ms` after its SYN left.
    pub(crate) fn send(
        &mut self,
        (scenario, listener): (Scenario, Listener),
        from: End,
        flags: Flags,
        ms: f64,
    ) {
        let exchange = self.exchange(scenario, listener).clone();
        let start = exchange.client.connect_called;
        let mut talk = Talk::new(exchange.client_port, exchange.server_port, start);
        talk.seq = (CLIENT_ISN + 1, SERVER_ISN + 1);
        talk.ip_id = 1000;
        let seq = if flags.syn { SERVER_ISN } else { 0 };
        talk.segment(from, flags, Some(seq), 0, (ms * 1e3) as u64);
        self.client.frames.extend(talk.client);
        self.server.frames.extend(talk.server);
        self.client.frames.sort_by_key(|frame| frame.at);
        self.server.frames.sort_by_key(|frame| frame.at);
    }
}

/// A connection that is being made up.
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
        let seq = seq.unwrap_or(own);
        let ack = if flags.ack { peer } else { 0 };
        let tcp = Tcp {
            source_port,
            destination_port,
            flags,
            seq,
            ack,
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
        let room = len as u32 + u32::from(flags.syn) + u32::from(flags.fin);
        let (to_client, to_server) = match from {
            End::Client => (near, far),
            End::Server => (far, near),
        };
        if !again {
            let own = if from == End::Client {
                &mut self.seq.0
            } else {
                &mut self.seq.1
            };
            *own += room;
        }
        self.client.push(to_client);
        self.server.push(to_server);
    }
}

/// The bytes of a segment, from the IP header on.
fn frame(tcp: &Tcp) -> Vec<u8> {
    let (client, server) = ([192, 0, 2, 1], [192, 0, 2, 2]);
    let to_server = tcp.destination_port < 10_000;
    let (source, destination) = if to_server {
        (client, server)
    } else {
        (server, client)
    };
    let ip = Ipv4Header {
        identification: tcp.ip_id,
        ..Ipv4Header::new(0, 64, IpNumber::TCP, source, destination).unwrap()
    };
    let ip = PacketBuilder::ip(IpHeaders::Ipv4(ip, Ipv4Extensions::default()));
    let mut step = ip.tcp(tcp.source_port, tcp.destination_port, tcp.seq, 64240);
    if tcp.flags.syn {
        step = step.syn();
    }
    if tcp.flags.ack {
        step = step.ack(tcp.ack);
    }
    if tcp.flags.fin {
        step = step.fin();
    }
    if tcp.flags.psh {
        step = step.psh();
    }
    let mut bytes = Vec::new();
    step.write(&mut bytes, &vec![b'x'; tcp.payload_len])
        .unwrap();
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

/// How long it takes from the server's kernel to its `accept()` and `read()`.
const WAKE_US: u64 = 500;

fn setting(listener: Listener, seconds: u64) -> String {
    match listener {
        Listener::Plain => "plain".into(),
        Listener::DeferAccept => format!("TCP_DEFER_ACCEPT = {seconds} s"),
        Listener::Dataready => format!("dataready, timeout_ms = {}", seconds * 1000),
    }
}

/// A demo in which everything is as claimed.
pub(crate) fn sample() -> Sample {
    let mut exchanges = Vec::new();
    let (mut client, mut server) = (Vec::new(), Vec::new());
    let epoch = 1_750_000_000_000_000_000;
    for (i, listener) in Listener::ALL.into_iter().enumerate() {
        let i16 = i as u16;
        for (scenario, client_port, server_port, after_s) in [
            (Scenario::Rfc793, 40_000 + i16, 8100 + i16, 0),
            (Scenario::Piggyback, 40_010 + i16, 8110 + i16, 10),
            (Scenario::Silent, 40_020 + i16, 8120 + i16, 20),
        ] {
            let start = UnixNanos(epoch + after_s * 1_000_000_000 + i as u64 * 1_000_000);
            let mut talk = Talk::new(client_port, server_port, start);
            let exchange = exchange(scenario, listener, &mut talk);
            client.append(&mut talk.client);
            server.append(&mut talk.server);
            exchanges.push(exchange);
        }
    }
    client.sort_by_key(|frame: &Frame| frame.at);
    server.sort_by_key(|frame: &Frame| frame.at);

    let mut requests = Vec::new();
    for (i, server) in HttpServer::ALL.into_iter().enumerate() {
        for (j, listener) in Listener::ALL.into_iter().enumerate() {
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

    Sample {
        guest: GuestReport {
            schema: accf_demo::SCHEMA,
            kernel_release: "7.3.4-made-up".into(),
            path: Path {
                description: "a made-up cable".into(),
                one_way_delay_ms: 20,
                echo_rtt_us: vec![40_400, 40_600, 40_500, 41_000, 40_300],
            },
            exchanges,
            requests,
            client_capture: "client.pcap".into(),
            server_capture: "server.pcap".into(),
            took_ms: 60_000,
        },
        client: Capture {
            link: DataLink::RAW,
            frames: client,
        },
        server: Capture {
            link: DataLink::RAW,
            frames: server,
        },
    }
}

fn exchange(scenario: Scenario, listener: Listener, talk: &mut Talk) -> Exchange {
    use End::{Client, Server};
    let piggyback = scenario == Scenario::Piggyback;
    talk.segment(Client, SYN, None, 0, 0);
    talk.segment(Server, SYN_ACK, None, 0, 20_100);
    if !piggyback {
        talk.segment(Client, ACK, None, 0, 40_200);
    }
    let acked = 60_200;
    let mut request_at = None;
    let accept_us;
    match (scenario, listener) {
        (Scenario::Silent, Listener::Plain) => accept_us = acked + WAKE_US,
        (Scenario::Silent, Listener::DeferAccept) => {
            talk.segment(Server, SYN_ACK, Some(SERVER_ISN), 0, 7_040_000);
            talk.segment(Client, ACK, None, 0, 7_060_100);
            accept_us = 7_080_100 + WAKE_US;
        }
        (Scenario::Silent, Listener::Dataready) => accept_us = acked + 5_001_000,
        _ => {
            let request = if piggyback { 40_300 } else { 6_041_000 };
            request_at = Some(request);
            talk.segment(Client, PSH, None, REQUEST, request);
            let arrived = request + DELAY_US;
            accept_us = match listener {
                Listener::Plain if !piggyback => acked + WAKE_US,
                _ => arrived + WAKE_US,
            };
            talk.segment(Server, ACK, None, 0, arrived + 100);
            talk.segment(Server, PSH, None, RESPONSE, arrived + 2 * WAKE_US);
            talk.segment(Server, FIN, None, 0, arrived + 3 * WAKE_US);
            talk.segment(Client, FIN, None, 0, arrived + 3 * WAKE_US + DELAY_US);
        }
    }
    if request_at.is_none() {
        talk.segment(Client, FIN, None, 0, 9_000_000);
    }
    let late_sample = listener == Listener::DeferAccept && scenario == Scenario::Rfc793;
    let tcp_info = if late_sample {
        info(6_040_900, 18_124_000)
    } else {
        info(40_700, 241_000)
    };
    let seconds = if scenario == Scenario::Silent { 5 } else { 60 };
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
            first_byte: request_at.map(|us| talk.at(us + 2 * DELAY_US + 3 * WAKE_US)),
            error: None,
        },
        accepted: Some(Accepted {
            at: talk.at(accept_us),
            tcp_info,
            first_read: request_at.map(|us| talk.at(us + DELAY_US + WAKE_US + 100)),
        }),
        machine_late_us: 700,
        runs: 1,
    }
}
