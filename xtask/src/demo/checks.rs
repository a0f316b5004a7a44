// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks what the demo claims.
//!
//! There are two kinds of checks: a *premise* says that a scenario was what its name says, a
//! *claim* is about accf. A demo whose premises fail proves nothing, so both kinds must hold.

use accf_demo::{HttpServer, Listener, Scenario};

use super::capture::{End, Flags, Segment};
use super::facts::{Facts, Findings};
use crate::verdict::{Bound, Claim, Unit, Verdict};

/// The claimed bounds.
pub(crate) mod bound {
    /// (a): difference of the accepted socket's RTT from the path's.
    pub(crate) const RTT_OFF_MS: f64 = 10.0;
    /// (a): difference of the accepted socket's RTO from the plain listener's, in percent.
    pub(crate) const RTO_OFF_PERCENT: f64 = 10.0;
    /// (c): time to first byte.
    pub(crate) const FIRST_BYTE_MS: f64 = 500.0;
    /// (d): difference of the expiry from the deadline.
    pub(crate) const DEADLINE_OFF_MS: f64 = 50.0;
    /// (d): the client's silence, at least.
    pub(crate) const LONG_SILENCE_MS: f64 = 10_000.0;
    /// Difference of the path's RTT from netem's setting.
    pub(crate) const PATH_OFF_MS: f64 = 10.0;
    /// (a): the client's silence, at least.
    pub(crate) const SILENCE_MS: f64 = 6000.0;
    /// A plain listener's `accept()` after the bare ACK, and the client's error after the RST: "at
    /// once".
    pub(crate) const AT_ONCE_MS: f64 = 50.0;
}

/// The bound of [`bound::AT_ONCE_MS`].
const AT_ONCE: Bound = Bound::Between(0.0, bound::AT_ONCE_MS);

/// The bound of [`bound::FIRST_BYTE_MS`].
const FIRST_BYTE: Bound = Bound::AtMost(bound::FIRST_BYTE_MS);

/// Checks that each scenario was what its name says.
pub(crate) fn premises(findings: &Findings) -> Vec<Verdict> {
    let delay = 2.0 * f64::from(findings.guest.path.one_way_delay_ms);
    let rtt = Bound::Between(delay, delay + bound::PATH_OFF_MS);
    let says = "the path has the round-trip time of netem's setting";
    let mut checks = vec![Claim::new("path.rtt", says).ms(findings.path_rtt_ms(), rtt)];
    for listener in Listener::PATIENT {
        let key = listener.key();
        let says = format!("(a) {listener}: the client sent its ACK, and its request after 6 s");
        let facts = findings.of(Scenario::Rfc793, listener);
        let silence = facts.and_then(Facts::silence_ms);
        checks.push(
            Claim::new(format!("a.{key}.silence"), says)
                .ms(silence, Bound::AtLeast(bound::SILENCE_MS)),
        );
        let says = format!("(b) {listener}: the third segment carries the request");
        let facts = findings.of(Scenario::Piggyback, listener);
        let len = facts.and_then(Facts::third_segment_len);
        checks.push(Claim::new(format!("b.{key}.third_segment"), says).number(
            len.map(|len| len as f64),
            Unit::Bytes,
            Bound::AtLeast(1.0),
        ));
    }
    for listener in Scenario::Silent.listeners().iter().copied() {
        let facts = findings.of(Scenario::Silent, listener);
        let claim = |says: &str| {
            let name = format!("d.{}.silence", listener.key());
            Claim::new(name, format!("(d) {}: {says}", listener.full_title()))
        };
        checks.push(if listener == Listener::DatareadyReset {
            let from_client = facts.and_then(|facts| {
                let sent = facts.segments.iter().filter(|s| s.from == End::Client);
                let sent: usize = sent.map(|segment| segment.payload_len).sum();
                facts.bare_ack().map(|_| sent as f64)
            });
            claim("the client sent its ACK and no data").number(
                from_client,
                Unit::Bytes,
                Bound::Exactly(0.0),
            )
        } else {
            let silence = facts.and_then(Facts::silence_ms);
            claim("the client sent its ACK, and its request after 10 s")
                .ms(silence, Bound::AtLeast(bound::LONG_SILENCE_MS))
        });
    }
    for scenario in [Scenario::Rfc793, Scenario::Silent] {
        let key = scenario.key();
        let says = format!("({key}) plain: accept() returns as soon as the bare ACK arrives");
        let plain = findings.of(scenario, Listener::Plain);
        let accept = plain.and_then(Facts::accept_after_bare_ack_ms);
        checks.push(Claim::new(format!("{key}.plain.at_once"), says).ms(accept, AT_ONCE));
    }
    for server in HttpServer::ALL {
        // Stuck: curl gave up at its limit, or was answered after the server had killed the worker.
        let plain = findings.served(server, Listener::Plain);
        let stuck_for = plain.map(|r| r.time_to_first_byte_ms.unwrap_or(r.total_ms));
        let limit = plain.map(|r| r.worker_timeout_ms.unwrap_or(u64::MAX).min(r.max_time_ms));
        let limit = limit.map(|limit| Bound::AtLeast(limit as f64));
        let says = format!("(c) plain, {}: stuck until a timeout", server.title());
        checks
            .push(Claim::new(format!("c.{}.plain.stuck", server.key()), says).ms(stuck_for, limit));
    }
    checks
}

/// Checks everything that the demo claims of accf.
pub(crate) fn claims(findings: &Findings) -> Vec<Verdict> {
    let claim = |name: &str, says: &str| {
        Claim::new(
            format!("a.dataready.{name}"),
            format!("(a) dataready: {says}"),
        )
    };
    let facts = findings.of(Scenario::Rfc793, Listener::Dataready);
    let plain = findings.of(Scenario::Rfc793, Listener::Plain);
    let path = findings.path_rtt_ms();
    let rtt = path.map(|path| Bound::around(path, bound::RTT_OFF_MS));
    let rto = plain.and_then(Facts::rto_ms);
    let rto = rto.map(|rto| Bound::around(rto, rto * bound::RTO_OFF_PERCENT / 100.0));
    let mut checks = vec![
        claim("syn_acks", "one SYN-ACK, no retransmission").count(
            "segments",
            facts.map(Facts::syn_acks),
            1,
        ),
        claim(
            "accept_after_data",
            "accept() returns after the request arrived",
        )
        .ms(
            facts.and_then(Facts::accept_after_request_ms),
            Bound::AtLeast(0.0),
        ),
        claim(
            "rtt",
            "the accepted socket's RTT is within 10 ms of the path's",
        )
        .ms(facts.and_then(Facts::rtt_ms), rtt),
        claim(
            "rto",
            "the accepted socket's RTO is within 10 % of the plain listener's",
        )
        .ms(facts.and_then(Facts::rto_ms), rto),
    ];
    for server in HttpServer::ALL {
        let served = findings.served(server, Listener::Dataready);
        let served = served.filter(|request| request.http_status == Some(200));
        let first_byte = served.and_then(|request| request.time_to_first_byte_ms);
        let name = format!("c.{}.dataready.first_byte", server.key());
        let says = format!("(c) dataready, {}: answered within 500 ms", server.title());
        checks.push(Claim::new(name, says).ms(first_byte, FIRST_BYTE));
    }
    for listener in Scenario::Silent.listeners().iter().copied() {
        let facts = findings.of(Scenario::Silent, listener);
        if let (Some(facts), Some(on_timeout)) = (facts, listener.on_timeout()) {
            checks.extend(policy(facts, on_timeout));
        }
    }
    checks
}

/// Checks a silent client's connection to a listener with the policy `on_timeout`.
fn policy(facts: &Facts, on_timeout: &str) -> Vec<Verdict> {
    let listener = facts.exchange.listener;
    let claim = |name: &str, says: &str| {
        let name = format!("d.{}.{name}", listener.key());
        Claim::new(name, format!("(d) {}: {says}", listener.full_title()))
    };
    let deadline = facts.exchange.deadline_ms;
    let deadline = deadline.map(|ms| Bound::around(ms as f64, bound::DEADLINE_OFF_MS));
    let into_silence = facts.sent_into_silence();
    let sent = |counts: fn(&Segment) -> bool| {
        let sent = into_silence.as_ref();
        sent.map(|sent| sent.iter().filter(|segment| counts(segment)).count())
    };

    let syn_acks = claim("syn_acks", "one SYN-ACK, no retransmission");
    let mut checks = vec![syn_acks.count("segments", facts.syn_acks(), 1)];
    checks.extend(match on_timeout {
        "accept" => vec![
            claim("deadline", "accept() returns at the deadline ± 50 ms")
                .ms(facts.accept_after_bare_ack_ms(), deadline),
            claim(
                "served",
                "the client is still connected, and its late request answered within 500 ms",
            )
            .ms(facts.time_to_first_byte_ms(), FIRST_BYTE),
        ],
        "reset" => vec![
            claim("deadline", "an RST leaves at the deadline ± 50 ms")
                .ms(facts.reset_after_bare_ack_ms(), deadline),
            claim("resets", "one RST").count("segments", facts.resets().count(), 1),
            claim(
                "reset_seq",
                "the RST has the sequence number that the client expects next",
            )
            .count(
                "after SYN-ACK",
                facts.reset_relative_seq().map(|seq| seq as usize),
                1,
            ),
            claim("told", "the client gets ECONNRESET when the RST arrives")
                .ms(facts.told_after_reset_ms(), AT_ONCE),
        ],
        _ => {
            let answers = facts.request().map(|request| {
                let answers = facts.resets().filter(|rst| rst.sent() > request.sent());
                answers.count()
            });
            vec![
                claim(
                    "deadline",
                    "the listener has dropped the connection at the deadline ± 50 ms",
                )
                .ms(facts.let_go_after_bare_ack_ms(), deadline),
                claim("resets", "one RST, in answer to the client's late request")
                    .count("segments", answers, 1),
                claim("told", "the client gets ECONNRESET when that RST arrives")
                    .ms(facts.told_after_reset_ms(), AT_ONCE),
            ]
        }
    });
    checks.push(match on_timeout {
        "reset" => claim("nothing_else", "the server sends nothing but the RST").count(
            "segments",
            sent(|segment| !segment.flags.contains(Flags::RST)),
            0,
        ),
        _ => claim(
            "nothing_sent",
            "the server sends nothing at the deadline, nor before the client does",
        )
        .count("segments", sent(|_| true), 0),
    });
    if on_timeout != "accept" {
        let accepts = usize::from(facts.exchange.accepted.is_some());
        let never = claim("never_accepted", "the server never accepts");
        checks.push(never.count("connections", accepts, 0));
    }
    let counted = facts.exchange.counters.map(|counters| match on_timeout {
        "accept" => counters.timeout_accept,
        "reset" => counters.timeout_reset,
        _ => counters.timeout_drop,
    });
    let says = format!("the listener counts timeout_{on_timeout} = 1");
    let counted = counted.map(|count| count as usize);
    checks.push(claim("counter", &says).count("connections", counted, 1));
    checks
}

#[cfg(test)]
mod tests {
    use accf_demo::Counters;

    use super::*;
    use crate::demo::sample::{sample, Sample, DATA, SYN_ACK};
    use crate::verdict::failed;

    const TALKS: (Scenario, Listener) = (Scenario::Rfc793, Listener::Dataready);
    const SILENT: (Scenario, Listener) = (Scenario::Silent, Listener::Dataready);
    const RESET: (Scenario, Listener) = (Scenario::Silent, Listener::DatareadyReset);
    const DROP: (Scenario, Listener) = (Scenario::Silent, Listener::DatareadyDrop);

    /// Returns the names of the checks that fail after a change of the sample.
    fn failing(change: impl FnOnce(&mut Sample)) -> Vec<String> {
        let mut sample = sample();
        change(&mut sample);
        let findings = sample.findings();
        let all = [premises(&findings), claims(&findings)].concat();
        failed(&all).map(|verdict| verdict.name.clone()).collect()
    }

    #[test]
    fn the_sample_passes_every_check() {
        assert_eq!(failing(|_| {}), [""; 0]);
    }

    #[test]
    fn a_second_syn_ack_fails() {
        let again =
            |connection| failing(|it| it.send(connection, End::Server, SYN_ACK, 1060.0)).join(" ");
        assert_eq!(again(TALKS), "a.dataready.syn_acks");
        let wanted = "d.dataready.syn_acks d.dataready.nothing_sent";
        assert_eq!(again(SILENT), wanted);
    }

    #[test]
    fn a_segment_from_the_server_at_the_deadline_fails() {
        let sent = |connection, flags, ms| {
            failing(|it| it.send(connection, End::Server, flags, ms)).join(" ")
        };
        for (connection, flags, wanted) in [
            (SILENT, Flags::ACK, "d.dataready.nothing_sent"),
            (DROP, Flags::ACK, "d.dataready_drop.nothing_sent"),
            (RESET, Flags::ACK, "d.dataready_reset.nothing_else"),
            (RESET, Flags::RST, "d.dataready_reset.resets"),
        ] {
            let found = sent(connection, flags, 5062.5);
            assert_eq!(found, wanted, "{connection:?} {flags}");
        }
        // An RST at the deadline, in addition to the one for the late request.
        let wanted = "d.dataready_drop.told d.dataready_drop.nothing_sent";
        assert_eq!(sent(DROP, Flags::RST, 5061.0), wanted);
        let twice = sent(DROP, Flags::RST, 10_200.0);
        assert_eq!(twice, "d.dataready_drop.resets");
    }

    #[test]
    fn an_rst_with_another_number_or_at_another_time_fails() {
        let wrong = failing(|it| it.forge(RESET, Flags::RST, |tcp| tcp.seq += 1));
        assert_eq!(wrong, ["d.dataready_reset.reset_seq"]);

        for ms in [-60, 60] {
            let shifted = failing(|it| {
                it.shift(RESET, End::Server, Flags::RST, ms);
                it.error(RESET).at.0 = it.arrival(RESET, Flags::RST).0 + 1_000_000;
            });
            assert_eq!(shifted, ["d.dataready_reset.deadline"]);
        }

        let none = failing(|it| it.drop_segment(RESET, Flags::RST));
        let wanted = ["deadline", "resets", "reset_seq", "told"];
        assert_eq!(none, wanted.map(|name| format!("d.dataready_reset.{name}")));
        let none = failing(|it| it.drop_segment(DROP, Flags::RST));
        assert_eq!(none, ["d.dataready_drop.resets", "d.dataready_drop.told"]);
    }

    #[test]
    fn a_client_without_econnreset_fails() {
        for connection in [RESET, DROP] {
            let wanted = [format!("d.{}.told", connection.1.key())];
            let silent = failing(|it| it.exchange(connection).client.error = None);
            assert_eq!(silent, wanted);
            let other = failing(|it| it.error(connection).name = "ETIMEDOUT".to_owned());
            assert_eq!(other, wanted);
            let late = failing(|it| it.error(connection).at.0 += 60_000_000);
            assert_eq!(late, wanted);
        }
    }

    #[test]
    fn a_connection_that_is_accepted_after_all_fails() {
        for connection in [RESET, DROP] {
            let found = failing(|it| {
                let accepted = it.accepted((Scenario::Silent, Listener::Plain)).clone();
                it.exchange(connection).accepted = Some(accepted);
            });
            let wanted = format!("d.{}.never_accepted", connection.1.key());
            assert_eq!(found, [wanted]);
        }
    }

    #[test]
    fn wrong_counters_fail() {
        for connection in [SILENT, RESET, DROP] {
            let wanted = [format!("d.{}.counter", connection.1.key())];
            for counters in [None, Some(Counters::default())] {
                let found = failing(|it| it.exchange(connection).counters = counters);
                assert_eq!(found, wanted);
            }
            let two = failing(|it| {
                let counters = it.exchange(connection).counters.as_mut().unwrap();
                counters.timeout_accept *= 2;
                counters.timeout_reset *= 2;
                counters.timeout_drop *= 2;
            });
            assert_eq!(two, wanted);
        }
    }

    #[test]
    fn a_connection_dropped_at_another_time_fails() {
        for off_ns in [-55_000_000, 55_000_000_i64] {
            let found = failing(|it| {
                let let_go = it.exchange(DROP).let_go.as_mut().unwrap();
                let_go.0 = let_go.0.strict_add_signed(off_ns);
            });
            assert_eq!(found, ["d.dataready_drop.deadline"]);
        }
        let never = failing(|it| it.exchange(DROP).let_go = None);
        assert_eq!(never, ["d.dataready_drop.deadline"]);
    }

    #[test]
    fn a_late_request_without_an_answer_fails() {
        let found = failing(|it| it.exchange(SILENT).client.first_byte = None);
        assert_eq!(found, ["d.dataready.served"]);
    }

    #[test]
    fn accept_before_the_request_fails() {
        let found = failing(|it| it.accepted(TALKS).at.0 -= 1_000_000_000);
        assert_eq!(found, ["a.dataready.accept_after_data"]);
    }

    #[test]
    fn an_rtt_that_differs_from_the_paths_fails() {
        for rtt_us in [30_200, 50_400, 6_040_900] {
            let found = failing(|it| it.accepted(TALKS).tcp_info.rtt_us = rtt_us);
            assert_eq!(found, ["a.dataready.rtt"]);
        }
    }

    #[test]
    fn an_rto_that_differs_from_plain_fails() {
        for rto_us in [216_000, 266_000, 18_000_000] {
            let found = failing(|it| it.accepted(TALKS).tcp_info.rto_us = rto_us);
            assert_eq!(found, ["a.dataready.rto"]);
        }
    }

    #[test]
    fn a_late_or_failed_answer_fails() {
        for server in HttpServer::ALL {
            let wanted = [format!("c.{}.dataready.first_byte", server.key())];
            for took in [Some(500.1), None] {
                let change = |it: &mut Sample| {
                    it.request(server, Listener::Dataready)
                        .time_to_first_byte_ms = took;
                };
                assert_eq!(failing(change), wanted);
            }
            let error =
                failing(|it| it.request(server, Listener::Dataready).http_status = Some(500));
            assert_eq!(error, wanted);
        }
    }

    #[test]
    fn a_deadline_missed_either_way_fails() {
        for off_ns in [-52_000_000, 50_000_000_i64] {
            let found = failing(|it| {
                let at = &mut it.accepted(SILENT).at;
                at.0 = at.0.strict_add_signed(off_ns);
            });
            assert_eq!(found, ["d.dataready.deadline"]);
        }
    }

    #[test]
    fn a_missing_accept_fails() {
        let silent = failing(|it| it.exchange(SILENT).accepted = None);
        assert_eq!(silent, ["d.dataready.deadline"]);
        let talks = failing(|it| it.exchange(TALKS).accepted = None);
        let wanted = ["accept_after_data", "rtt", "rto"];
        assert_eq!(talks, wanted.map(|name| format!("a.dataready.{name}")));
    }

    #[test]
    fn a_scenario_that_differs_from_its_name_fails() {
        // Not stuck: the plain listener answered.
        let answered = failing(|it| {
            let request = it.request(HttpServer::PythonHttpServer, Listener::Plain);
            request.time_to_first_byte_ms = Some(90.0);
        });
        assert_eq!(answered, ["c.python_http_server.plain.stuck"]);

        // No piggyback: a bare ACK came before the data.
        let connection = (Scenario::Piggyback, Listener::DeferAccept);
        let bare = failing(|it| it.send(connection, End::Client, Flags::ACK, 40.2));
        assert_eq!(bare, ["b.defer_accept.third_segment"]);

        // No delay.
        let near = failing(|it| it.guest.path.echo_rtt_us = vec![90; 9]);
        assert!(near.contains(&"path.rtt".to_owned()));

        // The client was not silent for long enough, or not silent at all.
        let plain = (Scenario::Silent, Listener::Plain);
        let soon = failing(|it| it.shift(plain, End::Client, DATA, -2000));
        assert_eq!(soon, ["d.plain.silence"]);

        // The plain listener accepted late.
        let late = failing(|it| it.accepted(plain).at.0 += 60_000_000);
        assert_eq!(late, ["d.plain.at_once"]);
    }

    #[test]
    fn checks_of_the_rtt_need_a_measured_path() {
        let found = failing(|it| it.guest.path.echo_rtt_us.clear());
        assert_eq!(found, ["path.rtt", "a.dataready.rtt"]);
    }
}
