// SPDX-License-Identifier: MIT OR Apache-2.0
//! Computes the numbers of the tables from the captures and the guest's report.

use accf_demo::{Accepted, Exchange, GuestReport, Listener, Scenario, ServedRequest, UnixNanos};
use anyhow::{ensure, Context, Result};

use super::capture::{connection, Capture, End, Flags, Segment};
use crate::report::check_schema;

/// What happened on one connection.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Facts {
    /// What the two ends recorded.
    pub(crate) exchange: Exchange,
    /// Its segments, in the order of sending; the first is the client's SYN.
    pub(crate) segments: Vec<Segment>,
}

impl Facts {
    /// Returns when the client's SYN was sent: time zero of everything shown.
    pub(crate) fn start(&self) -> UnixNanos {
        self.segments
            .first()
            .map_or(self.exchange.client.connect_called, Segment::sent)
    }

    /// Counts the SYN-ACKs of the server, with retransmissions.
    pub(crate) fn syn_acks(&self) -> usize {
        self.segments.iter().filter(|s| s.is_syn_ack()).count()
    }

    /// Returns the segments from `end`.
    fn from(&self, end: End) -> impl Iterator<Item = &Segment> {
        let all = self.segments.iter();
        all.filter(move |segment| segment.from == end)
    }

    /// Counts the segments from `end`.
    pub(crate) fn segments_from(&self, end: End) -> usize {
        self.from(end).count()
    }

    /// Returns the bytes of data in the third segment, if there is a third.
    pub(crate) fn third_segment_len(&self) -> Option<usize> {
        self.segments.get(2).map(|segment| segment.payload_len)
    }

    /// Returns the client's first ACK without data, which completes the handshake.
    pub(crate) fn bare_ack(&self) -> Option<&Segment> {
        let second = self.from(End::Client).nth(1);
        second.filter(|segment| segment.is_bare_ack())
    }

    /// Returns the client's first segment with data.
    pub(crate) fn request(&self) -> Option<&Segment> {
        self.from(End::Client).find(|s| s.payload_len > 0)
    }

    /// Returns the time from the bare ACK to the request, at the client's end.
    pub(crate) fn silence_ms(&self) -> Option<f64> {
        Some(self.request()?.sent().ms_since(self.bare_ack()?.sent()))
    }

    /// Returns what the server sent while the client was silent: after the bare ACK had arrived,
    /// and before the client sent its request, if it did.
    pub(crate) fn sent_into_silence(&self) -> Option<Vec<&Segment>> {
        let acked = self.bare_ack()?.at(End::Server)?;
        let until = self.request().map(Segment::sent);
        let in_silence = |segment: &&Segment| {
            let sent = segment.sent();
            sent >= acked && until.is_none_or(|until| sent < until)
        };
        Some(self.from(End::Server).filter(in_silence).collect())
    }

    /// Returns the RSTs of the server.
    pub(crate) fn resets(&self) -> impl Iterator<Item = &Segment> {
        self.from(End::Server)
            .filter(|s| s.flags.contains(Flags::RST))
    }

    /// Returns the sequence number of the server's first RST relative to its SYN-ACK; the client
    /// expects 1.
    pub(crate) fn reset_relative_seq(&self) -> Option<u32> {
        let syn_ack = self.segments.iter().find(|segment| segment.is_syn_ack())?;
        Some(self.resets().next()?.seq.wrapping_sub(syn_ack.seq))
    }

    /// Returns the time from the bare ACK's arrival at the server to the server's first RST.
    pub(crate) fn reset_after_bare_ack_ms(&self) -> Option<f64> {
        let acked = self.bare_ack()?.at(End::Server)?;
        Some(self.resets().next()?.sent().ms_since(acked))
    }

    /// Returns the time from the bare ACK's arrival at the server until the listener has no parked
    /// connection.
    pub(crate) fn let_go_after_bare_ack_ms(&self) -> Option<f64> {
        let acked = self.bare_ack()?.at(End::Server)?;
        Some(self.exchange.let_go?.ms_since(acked))
    }

    /// Returns the time from the arrival of the server's first RST at the client to the client's
    /// `ECONNRESET`.
    pub(crate) fn told_after_reset_ms(&self) -> Option<f64> {
        let error = self.exchange.client.error.as_ref()?;
        let at = (error.name == "ECONNRESET").then_some(error.at)?;
        Some(at.ms_since(self.resets().next()?.arrived()?))
    }

    /// Returns the time from the client's SYN to the client's error.
    pub(crate) fn error_after_syn_ms(&self) -> Option<f64> {
        let error = self.exchange.client.error.as_ref()?;
        Some(error.at.ms_since(self.start()))
    }

    fn accepted(&self) -> Option<&Accepted> {
        self.exchange.accepted.as_ref()
    }

    /// Returns the time from the client's SYN to the return of `accept()`.
    pub(crate) fn accept_after_syn_ms(&self) -> Option<f64> {
        Some(self.accepted()?.at.ms_since(self.start()))
    }

    /// Returns the time from the bare ACK's arrival at the server to the return of `accept()`.
    pub(crate) fn accept_after_bare_ack_ms(&self) -> Option<f64> {
        let arrived = self.bare_ack()?.at(End::Server)?;
        Some(self.accepted()?.at.ms_since(arrived))
    }

    /// Returns the time from the request's arrival at the server to the return of `accept()`;
    /// negative if `accept()` returned first.
    pub(crate) fn accept_after_request_ms(&self) -> Option<f64> {
        let arrived = self.request()?.at(End::Server)?;
        Some(self.accepted()?.at.ms_since(arrived))
    }

    /// Returns how long the server's worker had the connection before there was anything to read.
    pub(crate) fn worker_idle_ms(&self) -> Option<f64> {
        let accepted = self.accepted()?;
        Some(accepted.first_read?.ms_since(accepted.at))
    }

    /// Returns the round-trip time of the accepted socket.
    pub(crate) fn rtt_ms(&self) -> Option<f64> {
        Some(f64::from(self.accepted()?.tcp_info.rtt_us) / 1e3)
    }

    /// Returns the retransmission timeout of the accepted socket.
    pub(crate) fn rto_ms(&self) -> Option<f64> {
        Some(f64::from(self.accepted()?.tcp_info.rto_us) / 1e3)
    }

    /// Returns the time from the client's request, or its attempt to connect, to the first byte of
    /// the response.
    pub(crate) fn time_to_first_byte_ms(&self) -> Option<f64> {
        let client = &self.exchange.client;
        Some(client.first_byte?.ms_since(client.request_ready?))
    }
}

/// What happened in the whole demo.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Findings {
    /// What the guest reported.
    pub(crate) guest: GuestReport,
    /// The guest's exchanges with their segments, in the same order.
    pub(crate) facts: Vec<Facts>,
}

impl Findings {
    /// Combines the guest's report and the captures; fails if anything is missing.
    pub(crate) fn new(guest: GuestReport, client: &Capture, server: &Capture) -> Result<Self> {
        check_schema(accf_demo::REPORT_FILE, guest.schema, accf_demo::SCHEMA)?;
        let mut facts = Vec::new();
        for exchange in &guest.exchanges {
            let (from, to) = (exchange.client_port, exchange.server_port);
            let segments = connection(client, server, from, to);
            let what = format!("({}) {}", exchange.scenario.key(), exchange.listener);
            let first = segments.first().with_context(|| {
                format!("{what}: the captures have no packet from port {from} to port {to}")
            })?;
            let is_syn = first.from == End::Client && first.flags.contains(Flags::SYN);
            ensure!(
                is_syn && first.at_client.is_some(),
                "{what}: the captures do not begin with the client's SYN, but with {} {:?}",
                first.flags,
                first.from
            );
            facts.push(Facts {
                exchange: exchange.clone(),
                segments,
            });
        }
        const NOTHING: &str = "the guest reported nothing of";
        let findings = Self { guest, facts };
        for scenario in [Scenario::Rfc793, Scenario::Piggyback, Scenario::Silent] {
            for listener in scenario.listeners().iter().copied() {
                let key = scenario.key();
                let facts = findings.of(scenario, listener);
                facts.with_context(|| format!("{NOTHING} ({key}) for {listener}"))?;
            }
        }
        for listener in Scenario::LoadBalancer.listeners().iter().copied() {
            for server in accf_demo::HttpServer::ALL {
                let (title, served) = (server.title(), findings.served(server, listener));
                served.with_context(|| format!("{NOTHING} (c) for {listener}, {title}"))?;
            }
        }
        Ok(findings)
    }

    /// Returns the connection of `scenario` to `listener`.
    pub(crate) fn of(&self, scenario: Scenario, listener: Listener) -> Option<&Facts> {
        let mut facts = self.facts.iter();
        facts.find(|f| f.exchange.scenario == scenario && f.exchange.listener == listener)
    }

    /// Returns the request of scenario (c) to `server` behind `listener`.
    pub(crate) fn served(
        &self,
        server: accf_demo::HttpServer,
        listener: Listener,
    ) -> Option<&ServedRequest> {
        let mut requests = self.guest.requests.iter();
        requests.find(|r| r.server == server && r.listener == listener)
    }

    /// Returns the path's round-trip time, the shortest of the echoes: a pause of the machine makes
    /// echoes longer, and nothing makes them shorter.
    pub(crate) fn path_rtt_ms(&self) -> Option<f64> {
        let shortest = self.guest.path.echo_rtt_us.iter().min()?;
        Some(*shortest as f64 / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use accf_demo::HttpServer;

    use super::*;
    use crate::demo::capture::Tcp;
    use crate::demo::sample::{sample, DATA};

    #[test]
    fn the_numbers_are_those_of_the_sample() {
        let findings = sample().findings();
        let plain = findings.of(Scenario::Rfc793, Listener::Plain).unwrap();
        assert_eq!(plain.accept_after_syn_ms(), Some(60.7));
        assert_eq!(plain.accept_after_bare_ack_ms(), Some(0.5));
        assert_eq!(plain.accept_after_request_ms(), Some(-6000.3));
        assert_eq!(plain.worker_idle_ms(), Some(6000.9));
        assert_eq!(plain.silence_ms(), Some(6000.8));
        assert_eq!(plain.time_to_first_byte_ms(), Some(41.5));
        assert_eq!(plain.segments_from(End::Client), 4);
        assert_eq!(plain.segments_from(End::Server), 4);
        assert_eq!(plain.syn_acks(), 1);
        assert_eq!(findings.path_rtt_ms(), Some(40.3));

        let piggyback = findings.of(Scenario::Piggyback, Listener::Plain).unwrap();
        assert_eq!(piggyback.third_segment_len(), Some(47));
        assert!(piggyback.bare_ack().is_none());
        assert!(piggyback.silence_ms().is_none());

        let deferred = findings.of(Scenario::Silent, Listener::DeferAccept);
        let deferred = deferred.unwrap();
        assert_eq!(deferred.syn_acks(), 2);
        let again: Vec<bool> = deferred.segments.iter().map(|s| s.retransmission).collect();
        assert_eq!(again.iter().filter(|again| **again).count(), 1);
        assert!(again[3]);
        let silence = deferred.sent_into_silence().unwrap();
        assert_eq!(silence.len(), 1);
        assert!(silence[0].is_syn_ack());
        assert_eq!(deferred.resets().count(), 0);
        assert_eq!(deferred.let_go_after_bare_ack_ms(), None);
    }

    #[test]
    fn the_effects_of_the_policies_are_found() {
        let findings = sample().findings();
        let of = |listener| findings.of(Scenario::Silent, listener).unwrap();
        let accept = of(Listener::Dataready);
        assert_eq!(accept.sent_into_silence(), Some(Vec::new()));
        assert_eq!(accept.let_go_after_bare_ack_ms(), Some(5003.0));
        assert_eq!(accept.time_to_first_byte_ms(), Some(41.5));
        assert_eq!(accept.error_after_syn_ms(), None);

        let reset = of(Listener::DatareadyReset);
        assert_eq!(reset.accept_after_syn_ms(), None);
        assert_eq!(reset.reset_after_bare_ack_ms(), Some(5001.0));
        assert_eq!(reset.reset_relative_seq(), Some(1));
        assert_eq!(reset.told_after_reset_ms(), Some(0.5));
        assert_eq!(reset.sent_into_silence().unwrap().len(), 1);
        assert_eq!(reset.request(), None);

        let drop = of(Listener::DatareadyDrop);
        assert_eq!(drop.sent_into_silence(), Some(Vec::new()));
        assert_eq!(drop.resets().count(), 1);
        assert_eq!(drop.reset_relative_seq(), Some(1));
        assert_eq!(drop.silence_ms(), Some(10_000.8));
        assert_eq!(drop.error_after_syn_ms(), Some(10_081.6));
    }

    #[test]
    fn a_report_with_something_missing_is_refused() {
        let mut no_exchange = sample();
        no_exchange.guest.exchanges.pop();
        let mut no_request = sample();
        let requests = &mut no_request.guest.requests;
        requests.retain(|r| r.server != HttpServer::Gunicorn);
        let mut no_packets = sample();
        no_packets.client.frames.clear();
        no_packets.server.frames.clear();
        let mut no_syn = sample();
        for frames in [&mut no_syn.client.frames, &mut no_syn.server.frames] {
            frames.retain(|frame| frame.tcp.is_some_and(|tcp| !tcp.flags.contains(Flags::SYN)));
        }
        let mut other = sample();
        other.guest.schema += 1;
        for (broken, complaint) in [
            (no_exchange, "reported nothing of (d)"),
            (no_request, "reported nothing of (c)"),
            (no_packets, "no packet from port"),
            (no_syn, "do not begin with the client's SYN"),
            (other, "build both again"),
        ] {
            let error = Findings::new(broken.guest, &broken.client, &broken.server).unwrap_err();
            assert!(format!("{error:#}").contains(complaint), "{error:#}");
        }
    }

    #[test]
    fn a_lost_segment_has_no_arrival() {
        let mut sample = sample();
        let request = |tcp: Tcp| tcp.source_port == 40_000 && tcp.flags == DATA;
        let frames = &mut sample.server.frames;
        frames.retain(|frame| !frame.tcp.is_some_and(request));
        let findings = sample.findings();
        let facts = findings.of(Scenario::Rfc793, Listener::Plain).unwrap();
        let segments = facts.segments.iter();
        let lost: Vec<_> = segments.filter(|s| s.arrived().is_none()).collect();
        assert_eq!(lost.len(), 1);
        assert_eq!(lost[0].payload_len, 47);
    }
}
