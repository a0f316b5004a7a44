// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the demo claims, held against what it found.
//!
//! There are two kinds: a *premise* says that a scenario was what its name says, a *claim* is about accf. A demo whose
//! premises fail proves nothing, so both kinds count.

use std::fmt;

use accf_demo::{HttpServer, Listener, Scenario};
use serde::Serialize;

use super::capture::End;
use super::facts::{Facts, Findings};

/// The claimed bounds.
pub(crate) mod bound {
    /// (a): the RTT of the accepted socket, from the path's own.
    pub(crate) const RTT_OFF_MS: f64 = 10.0;
    /// (a): the RTO of the accepted socket, from the plain listener's, in percent.
    pub(crate) const RTO_OFF_PERCENT: f64 = 10.0;
    /// (c): time to first byte.
    pub(crate) const FIRST_BYTE_MS: f64 = 500.0;
    /// (d): `accept()` from the deadline.
    pub(crate) const DEADLINE_OFF_MS: f64 = 50.0;
    /// The path's RTT from what netem was told.
    pub(crate) const PATH_OFF_MS: f64 = 10.0;
    /// (a): the client's silence, at least.
    pub(crate) const SILENCE_MS: f64 = 6000.0;
    /// A plain listener's `accept()` after the bare ACK: "at once".
    pub(crate) const AT_ONCE_MS: f64 = 50.0;
}

/// What a number has to be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    /// This number.
    Exactly(f64),
    /// This number or less.
    AtMost(f64),
    /// This number or more.
    AtLeast(f64),
    /// One of the two numbers or between them.
    Between(f64, f64),
}

impl Bound {
    fn around(middle: f64, off: f64) -> Self {
        Self::Between(middle - off, middle + off)
    }

    /// Whether `value` is within.
    pub(crate) fn holds(self, value: f64) -> bool {
        match self {
            Self::Exactly(wanted) => value == wanted,
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
            Self::Between(least, most) => least <= value && value <= most,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = super::number;
        match *self {
            Self::Exactly(wanted) => write!(f, "= {}", n(wanted)),
            Self::AtMost(most) => write!(f, "≤ {}", n(most)),
            Self::AtLeast(least) => write!(f, "≥ {}", n(least)),
            Self::Between(least, most) => write!(f, "{} … {}", n(least), n(most)),
        }
    }
}

/// What a check is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The scenario was what its name says.
    Premise,
    /// accf does what it says.
    Claim,
}

/// One number and what it has to be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Check {
    /// A short stable name.
    pub(crate) id: String,
    pub(crate) kind: Kind,
    /// The sentence that is true if it passes.
    pub(crate) says: String,
    /// The number found; none if there was nothing to measure, which fails.
    pub(crate) value: Option<f64>,
    pub(crate) unit: &'static str,
    pub(crate) bound: Bound,
    pub(crate) pass: bool,
}

fn check(
    kind: Kind,
    id: impl Into<String>,
    says: impl Into<String>,
    value: Option<f64>,
    unit: &'static str,
    bound: Bound,
) -> Check {
    let pass = value.is_some_and(|value| bound.holds(value));
    Check {
        id: id.into(),
        kind,
        says: says.into(),
        value,
        unit,
        bound,
        pass,
    }
}

/// Holds everything the demo claims against `findings`.
pub(crate) fn all(findings: &Findings) -> Vec<Check> {
    let mut checks = premises(findings);
    checks.extend(claims(findings));
    checks
}

fn premises(findings: &Findings) -> Vec<Check> {
    use Kind::Premise;
    let mut checks = Vec::new();

    let told = 2.0 * f64::from(findings.guest.path.one_way_delay_ms);
    checks.push(check(
        Premise,
        "path.rtt",
        "the path has the round-trip time netem was told to give it",
        findings.path_rtt_ms(),
        "ms",
        Bound::Between(told, told + bound::PATH_OFF_MS),
    ));
    for listener in Listener::ALL {
        let facts = findings.of(Scenario::Rfc793, listener);
        checks.push(check(
            Premise,
            format!("a.{}.silence", listener.key()),
            format!("(a) {listener}: the client acknowledged, was silent for 6 s, then asked"),
            facts.and_then(Facts::silence_ms),
            "ms",
            Bound::AtLeast(bound::SILENCE_MS),
        ));
        let facts = findings.of(Scenario::Piggyback, listener);
        checks.push(check(
            Premise,
            format!("b.{}.third_segment", listener.key()),
            format!("(b) {listener}: the third segment carries the request"),
            facts
                .and_then(Facts::third_segment_len)
                .map(|len| len as f64),
            "bytes",
            Bound::AtLeast(1.0),
        ));
        let facts = findings.of(Scenario::Silent, listener);
        let from_client = facts.and_then(|facts| {
            let sent = facts
                .segments
                .iter()
                .filter(|segment| segment.from == End::Client);
            facts
                .bare_ack()
                .map(|_| sent.map(|segment| segment.payload_len).sum::<usize>() as f64)
        });
        checks.push(check(
            Premise,
            format!("d.{}.silence", listener.key()),
            format!("(d) {listener}: the client acknowledged and sent no data"),
            from_client,
            "bytes",
            Bound::Exactly(0.0),
        ));
    }
    for scenario in [Scenario::Rfc793, Scenario::Silent] {
        checks.push(check(
            Premise,
            format!("{}.plain.at_once", scenario.key()),
            format!(
                "({}) plain: accept() returns as soon as the bare ACK arrives",
                scenario.key()
            ),
            findings
                .of(scenario, Listener::Plain)
                .and_then(Facts::accept_after_bare_ack_ms),
            "ms",
            Bound::Between(0.0, bound::AT_ONCE_MS),
        ));
    }
    for server in HttpServer::ALL {
        // Stuck: it gave up after the limit it was given, or was answered once the server had killed the worker.
        let plain = findings.served(server, Listener::Plain);
        let stuck_for = plain.map(|r| r.time_to_first_byte_ms.unwrap_or(r.total_ms));
        let at_least = plain.map_or(f64::INFINITY, |r| {
            r.worker_timeout_ms
                .map_or(r.max_time_ms, |t| t.min(r.max_time_ms)) as f64
        });
        checks.push(check(
            Premise,
            format!("c.{}.plain.stuck", server.key()),
            format!(
                "(c) plain, {}: stuck until a timeout ends it",
                server.title()
            ),
            stuck_for,
            "ms",
            Bound::AtLeast(at_least),
        ));
    }
    checks
}

fn claims(findings: &Findings) -> Vec<Check> {
    use Kind::Claim;
    let of = |scenario| findings.of(scenario, Listener::Dataready);
    let mut checks = Vec::new();

    for scenario in [Scenario::Rfc793, Scenario::Silent] {
        checks.push(check(
            Claim,
            format!("{}.dataready.syn_acks", scenario.key()),
            format!(
                "({}) dataready: one SYN-ACK, no retransmission",
                scenario.key()
            ),
            of(scenario).map(|facts| facts.syn_acks() as f64),
            "segments",
            Bound::Exactly(1.0),
        ));
    }

    let rfc793 = of(Scenario::Rfc793);
    checks.push(check(
        Claim,
        "a.dataready.accept_after_data",
        "(a) dataready: accept() returns after the request arrived",
        rfc793.and_then(Facts::accept_after_request_ms),
        "ms",
        Bound::AtLeast(0.0),
    ));
    let path = findings.path_rtt_ms();
    checks.push(check(
        Claim,
        "a.dataready.rtt",
        "(a) dataready: the accepted socket's RTT is within 10 ms of the path's",
        rfc793.and_then(Facts::rtt_ms),
        "ms",
        Bound::around(path.unwrap_or(f64::NAN), bound::RTT_OFF_MS),
    ));
    let plain_rto = findings
        .of(Scenario::Rfc793, Listener::Plain)
        .and_then(Facts::rto_ms);
    let plain_rto = plain_rto.unwrap_or(f64::NAN);
    checks.push(check(
        Claim,
        "a.dataready.rto",
        "(a) dataready: the accepted socket's RTO is within 10 % of the plain listener's",
        rfc793.and_then(Facts::rto_ms),
        "ms",
        Bound::around(plain_rto, plain_rto * bound::RTO_OFF_PERCENT / 100.0),
    ));

    for server in HttpServer::ALL {
        let served = findings.served(server, Listener::Dataready);
        checks.push(check(
            Claim,
            format!("c.{}.dataready.first_byte", server.key()),
            format!("(c) dataready, {}: answered within 500 ms", server.title()),
            served
                .filter(|r| r.http_status == Some(200))
                .and_then(|r| r.time_to_first_byte_ms),
            "ms",
            Bound::AtMost(bound::FIRST_BYTE_MS),
        ));
    }

    let silent = of(Scenario::Silent);
    let deadline = silent.and_then(|facts| facts.exchange.deadline_ms);
    checks.push(check(
        Claim,
        "d.dataready.deadline",
        "(d) dataready: accept() returns at the deadline ± 50 ms",
        silent.and_then(Facts::accept_after_bare_ack_ms),
        "ms",
        Bound::around(
            deadline.map_or(f64::NAN, |ms| ms as f64),
            bound::DEADLINE_OFF_MS,
        ),
    ));
    checks
}

#[cfg(test)]
mod tests {
    use accf_demo::UnixNanos;

    use super::*;
    use crate::demo::capture::Flags;
    use crate::demo::sample::{sample, Sample};

    /// The names of the checks that fail.
    fn failing(sample: &Sample) -> Vec<String> {
        let checks = all(&sample.findings());
        checks
            .into_iter()
            .filter(|check| !check.pass)
            .map(|check| check.id)
            .collect()
    }

    #[test]
    fn what_is_as_claimed_passes() {
        assert_eq!(failing(&sample()), [""; 0]);
    }

    #[test]
    fn a_second_syn_ack_fails() {
        for scenario in [Scenario::Rfc793, Scenario::Silent] {
            let mut sample = sample();
            let again = Flags {
                syn: true,
                ack: true,
                ..Flags::default()
            };
            sample.send((scenario, Listener::Dataready), End::Server, again, 1060.0);
            assert_eq!(
                failing(&sample),
                [format!("{}.dataready.syn_acks", scenario.key())]
            );
        }
    }

    #[test]
    fn accept_before_the_request_fails() {
        let mut sample = sample();
        let exchange = sample.exchange(Scenario::Rfc793, Listener::Dataready);
        exchange.accepted.as_mut().unwrap().at.0 -= 1_000_000_000;
        assert_eq!(failing(&sample), ["a.dataready.accept_after_data"]);
    }

    #[test]
    fn an_rtt_that_is_not_the_paths_fails() {
        for rtt_us in [30_200, 50_400, 6_040_900] {
            let mut sample = sample();
            let exchange = sample.exchange(Scenario::Rfc793, Listener::Dataready);
            exchange.accepted.as_mut().unwrap().tcp_info.rtt_us = rtt_us;
            assert_eq!(failing(&sample), ["a.dataready.rtt"]);
        }
    }

    #[test]
    fn an_rto_that_is_not_plains_fails() {
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
    fn no_accept_at_all_fails() {
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
    fn a_scenario_that_is_not_what_it_says_fails() {
        // Not stuck: the plain listener answered.
        let mut answered = sample();
        let request = answered.request(HttpServer::PythonHttpServer, Listener::Plain);
        request.time_to_first_byte_ms = Some(90.0);
        assert_eq!(failing(&answered), ["c.python_http_server.plain.stuck"]);

        // No piggyback: an ACK of its own came before the data.
        let mut bare = sample();
        let connection = (Scenario::Piggyback, Listener::DeferAccept);
        let ack = Flags {
            ack: true,
            ..Flags::default()
        };
        bare.send(connection, End::Client, ack, 40.2);
        assert_eq!(failing(&bare), ["b.defer_accept.third_segment"]);

        // No delay.
        let mut near = sample();
        near.guest.path.echo_rtt_us = vec![90; 9];
        assert!(failing(&near).contains(&"path.rtt".to_owned()));

        // Plain is not plain.
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
    fn without_a_measured_path_nothing_is_near_it() {
        let mut sample = sample();
        sample.guest.path.echo_rtt_us.clear();
        assert_eq!(failing(&sample), ["path.rtt", "a.dataready.rtt"]);
    }
}
