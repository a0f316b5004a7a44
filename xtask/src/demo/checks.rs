// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks what the demo claims.
//!
//! There are two kinds of checks: a *premise* says that a scenario was what its name says, a
//! *claim* is about accf. A demo whose premises fail proves nothing, so both kinds must hold.

use accf_demo::{HttpServer, Listener, Scenario};

use super::capture::{End, Segment};
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
            sent(|segment| !segment.flags.rst),
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
    use accf_demo::{Counters, UnixNanos};

    use super::*;
    use crate::demo::capture::Flags;
    use crate::demo::sample::{sample, Sample};
    use crate::verdict::failed;

    /// Returns the names of the checks that fail.
    fn failing(sample: &Sample) -> Vec<String> {
        let findings = sample.findings();
        let all = [premises(&findings), claims(&findings)].concat();
        failed(&all).map(|verdict| verdict.name.clone()).collect()
    }

    #[test]
    fn the_sample_passes_every_check() {
        assert_eq!(failing(&sample()), [""; 0]);
    }

    #[test]
    fn a_second_syn_ack_fails() {
        for scenario in [Scenario::Rfc793, Scenario::Silent] {
            let mut sample = sample();
            let connection = (scenario, Listener::Dataready);
            sample.send(connection, End::Server, Flags::SYN_ACK, 1060.0);
            let mut wanted = vec![format!("{}.dataready.syn_acks", scenario.key())];
            if scenario == Scenario::Silent {
                wanted.push("d.dataready.nothing_sent".to_owned());
            }
            assert_eq!(failing(&sample), wanted);
        }
    }

    const RESET: (Scenario, Listener) = (Scenario::Silent, Listener::DatareadyReset);
    const DROP: (Scenario, Listener) = (Scenario::Silent, Listener::DatareadyDrop);

    #[test]
    fn a_segment_from_the_server_at_the_deadline_fails() {
        for (listener, flags, wanted) in [
            (Listener::Dataready, Flags::ACK, "d.dataready.nothing_sent"),
            (
                Listener::DatareadyDrop,
                Flags::ACK,
                "d.dataready_drop.nothing_sent",
            ),
            (
                Listener::DatareadyReset,
                Flags::ACK,
                "d.dataready_reset.nothing_else",
            ),
            (
                Listener::DatareadyReset,
                Flags::RST,
                "d.dataready_reset.resets",
            ),
        ] {
            let mut sample = sample();
            sample.send((Scenario::Silent, listener), End::Server, flags, 5062.5);
            assert_eq!(failing(&sample), [wanted], "{listener} {flags}");
        }
        // An RST at the deadline, in addition to the one for the late request.
        let mut early = sample();
        early.send(DROP, End::Server, Flags::RST, 5061.0);
        assert_eq!(
            failing(&early),
            ["d.dataready_drop.told", "d.dataready_drop.nothing_sent"]
        );
        let mut twice = sample();
        twice.send(DROP, End::Server, Flags::RST, 10_200.0);
        assert_eq!(failing(&twice), ["d.dataready_drop.resets"]);
    }

    #[test]
    fn an_rst_with_another_number_or_at_another_time_fails() {
        let mut wrong = sample();
        wrong.forge(RESET, Flags::RST, |tcp| tcp.seq += 1);
        assert_eq!(failing(&wrong), ["d.dataready_reset.reset_seq"]);

        for ms in [-60, 60] {
            let mut shifted = sample();
            shifted.shift(RESET, Flags::RST, ms);
            shifted
                .exchange(RESET.0, RESET.1)
                .client
                .error
                .as_mut()
                .unwrap()
                .at
                .0 = shifted.arrival(RESET, Flags::RST).0 + 1_000_000;
            assert_eq!(failing(&shifted), ["d.dataready_reset.deadline"]);
        }

        let mut none = sample();
        none.drop_segment(RESET, Flags::RST);
        let wanted = [
            "d.dataready_reset.deadline",
            "d.dataready_reset.resets",
            "d.dataready_reset.reset_seq",
            "d.dataready_reset.told",
        ];
        assert_eq!(failing(&none), wanted);
        let mut none = sample();
        none.drop_segment(DROP, Flags::RST);
        assert_eq!(
            failing(&none),
            ["d.dataready_drop.resets", "d.dataready_drop.told"]
        );
    }

    #[test]
    fn a_client_without_econnreset_fails() {
        for (scenario, listener) in [RESET, DROP] {
            let id = format!("d.{}.told", listener.key());
            let mut silent = sample();
            silent.exchange(scenario, listener).client.error = None;
            assert_eq!(failing(&silent), [id.as_str()]);
            let mut other = sample();
            let error = &mut other.exchange(scenario, listener).client.error;
            error.as_mut().unwrap().name = "ETIMEDOUT".to_owned();
            assert_eq!(failing(&other), [id.as_str()]);
            let mut late = sample();
            let error = &mut late.exchange(scenario, listener).client.error;
            error.as_mut().unwrap().at.0 += 60_000_000;
            assert_eq!(failing(&late), [id.as_str()]);
        }
    }

    #[test]
    fn a_connection_that_is_accepted_after_all_fails() {
        let accepted = sample()
            .exchange(Scenario::Silent, Listener::Plain)
            .accepted
            .clone();
        for (scenario, listener) in [RESET, DROP] {
            let mut sample = sample();
            sample.exchange(scenario, listener).accepted = accepted.clone();
            assert_eq!(
                failing(&sample),
                [format!("d.{}.never_accepted", listener.key())]
            );
        }
    }

    #[test]
    fn wrong_counters_fail() {
        for listener in [
            Listener::Dataready,
            Listener::DatareadyReset,
            Listener::DatareadyDrop,
        ] {
            let wanted = [format!("d.{}.counter", listener.key())];
            let mut zero = sample();
            zero.exchange(Scenario::Silent, listener).counters = Some(Counters::default());
            assert_eq!(failing(&zero), wanted);
            let mut none = sample();
            none.exchange(Scenario::Silent, listener).counters = None;
            assert_eq!(failing(&none), wanted);
            let mut two = sample();
            let counters = &mut two.exchange(Scenario::Silent, listener).counters;
            let counters = counters.as_mut().unwrap();
            counters.timeout_accept *= 2;
            counters.timeout_reset *= 2;
            counters.timeout_drop *= 2;
            assert_eq!(failing(&two), wanted);
        }
    }

    #[test]
    fn a_connection_dropped_at_another_time_fails() {
        for off_ns in [-55_000_000, 55_000_000_i64] {
            let mut sample = sample();
            let let_go = sample.exchange(DROP.0, DROP.1).let_go.as_mut().unwrap();
            let_go.0 = let_go.0.strict_add_signed(off_ns);
            assert_eq!(failing(&sample), ["d.dataready_drop.deadline"]);
        }
        let mut never = sample();
        never.exchange(DROP.0, DROP.1).let_go = None;
        assert_eq!(failing(&never), ["d.dataready_drop.deadline"]);
    }

    #[test]
    fn a_late_request_without_an_answer_fails() {
        let mut sample = sample();
        sample
            .exchange(Scenario::Silent, Listener::Dataready)
            .client
            .first_byte = None;
        assert_eq!(failing(&sample), ["d.dataready.served"]);
    }

    #[test]
    fn accept_before_the_request_fails() {
        let mut sample = sample();
        let exchange = sample.exchange(Scenario::Rfc793, Listener::Dataready);
        exchange.accepted.as_mut().unwrap().at.0 -= 1_000_000_000;
        assert_eq!(failing(&sample), ["a.dataready.accept_after_data"]);
    }

    #[test]
    fn an_rtt_that_differs_from_the_paths_fails() {
        for rtt_us in [30_200, 50_400, 6_040_900] {
            let mut sample = sample();
            let exchange = sample.exchange(Scenario::Rfc793, Listener::Dataready);
            exchange.accepted.as_mut().unwrap().tcp_info.rtt_us = rtt_us;
            assert_eq!(failing(&sample), ["a.dataready.rtt"]);
        }
    }

    #[test]
    fn an_rto_that_differs_from_plain_fails() {
        for rto_us in [216_000, 266_000, 18_000_000] {
            let mut sample = sample();
            let exchange = sample.exchange(Scenario::Rfc793, Listener::Dataready);
            exchange.accepted.as_mut().unwrap().tcp_info.rto_us = rto_us;
            assert_eq!(failing(&sample), ["a.dataready.rto"]);
        }
    }

    #[test]
    fn a_late_or_failed_answer_fails() {
        for server in HttpServer::ALL {
            let id = format!("c.{}.dataready.first_byte", server.key());
            let mut late = sample();
            late.request(server, Listener::Dataready)
                .time_to_first_byte_ms = Some(500.1);
            assert_eq!(failing(&late), [id.as_str()]);
            let mut none = sample();
            none.request(server, Listener::Dataready)
                .time_to_first_byte_ms = None;
            assert_eq!(failing(&none), [id.as_str()]);
            let mut error = sample();
            error.request(server, Listener::Dataready).http_status = Some(500);
            assert_eq!(failing(&error), [id.as_str()]);
        }
    }

    #[test]
    fn a_deadline_missed_either_way_fails() {
        for off_ns in [-52_000_000, 50_000_000_i64] {
            let mut sample = sample();
            let exchange = sample.exchange(Scenario::Silent, Listener::Dataready);
            let at = &mut exchange.accepted.as_mut().unwrap().at;
            *at = UnixNanos(at.0.strict_add_signed(off_ns));
            assert_eq!(failing(&sample), ["d.dataready.deadline"]);
        }
    }

    #[test]
    fn a_missing_accept_fails() {
        let mut sample = sample();
        sample
            .exchange(Scenario::Silent, Listener::Dataready)
            .accepted = None;
        assert_eq!(failing(&sample), ["d.dataready.deadline"]);
        sample
            .exchange(Scenario::Rfc793, Listener::Dataready)
            .accepted = None;
        let wanted = [
            "a.dataready.accept_after_data",
            "a.dataready.rtt",
            "a.dataready.rto",
            "d.dataready.deadline",
        ];
        assert_eq!(failing(&sample), wanted);
    }

    #[test]
    fn a_scenario_that_differs_from_its_name_fails() {
        // Not stuck: the plain listener answered.
        let mut answered = sample();
        let request = answered.request(HttpServer::PythonHttpServer, Listener::Plain);
        request.time_to_first_byte_ms = Some(90.0);
        assert_eq!(failing(&answered), ["c.python_http_server.plain.stuck"]);

        // No piggyback: a bare ACK came before the data.
        let mut bare = sample();
        let connection = (Scenario::Piggyback, Listener::DeferAccept);
        bare.send(connection, End::Client, Flags::ACK, 40.2);
        assert_eq!(failing(&bare), ["b.defer_accept.third_segment"]);

        // No delay.
        let mut near = sample();
        near.guest.path.echo_rtt_us = vec![90; 9];
        assert!(failing(&near).contains(&"path.rtt".to_owned()));

        // The client was not silent for long enough, or not silent at all.
        let mut soon = sample();
        let (data, plain) = (Flags::DATA, Listener::Plain);
        soon.shift_from((Scenario::Silent, plain), End::Client, data, -2000);
        assert_eq!(failing(&soon), ["d.plain.silence"]);

        // The plain listener accepted late.
        let mut late = sample();
        late.exchange(Scenario::Silent, Listener::Plain)
            .accepted
            .as_mut()
            .unwrap()
            .at
            .0 += 60_000_000;
        assert_eq!(failing(&late), ["d.plain.at_once"]);
    }

    #[test]
    fn checks_of_the_rtt_need_a_measured_path() {
        let mut sample = sample();
        sample.guest.path.echo_rtt_us.clear();
        assert_eq!(failing(&sample), ["path.rtt", "a.dataready.rtt"]);
    }
}
