// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host side of the demo: from what the guest recorded to tables, pictures and a verdict.
//!
//! ```text
//! guest.json, client.pcap, server.pcap ─► capture ─► facts ─► checks ─► results
//!                                                      └────► timeline ─► svg, terminal
//! ```

mod capture;
mod checks;
mod facts;
mod pcapng;
mod results;
#[cfg(test)]
mod sample;
mod svg;
mod terminal;
mod timeline;

use std::path::Path;

use accf_demo::{GuestReport, Listener, Scenario};
use anyhow::Result;

use self::capture::Capture;
use self::facts::Findings;
use self::results::Report;
use crate::report::{read, write, write_both};
use crate::table::{number, Screen};
use crate::verdict::Verdict;

pub(crate) use self::results::closing_line;

/// The file name of the picture.
const PICTURE_FILE: &str = "ladder.svg";

/// The results of a demo.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The text for the terminal.
    pub(crate) shown: String,
    /// The verdicts on all checks.
    pub(crate) checks: Vec<Verdict>,
    /// The picture.
    pub(crate) picture: String,
}

/// Reads what the guest left in `recorded`, judges it, and writes the results into `out`.
pub(crate) fn evaluate(recorded: &Path, out: &Path, screen: Screen) -> Result<Outcome> {
    let guest: GuestReport = read(recorded, accf_demo::REPORT_FILE)?;
    let client = Capture::read(&recorded.join(&guest.client_capture))?;
    let server = Capture::read(&recorded.join(&guest.server_capture))?;
    let findings = Findings::new(guest, &client, &server)?;
    let (premises, claims) = (checks::premises(&findings), checks::claims(&findings));
    let report = Report::new(&findings, premises, claims);
    let document = report.document();

    let picture = svg::render(&findings);
    write(out, PICTURE_FILE, &picture)?;
    write_both(out, &report.numbers(), &document)?;
    for listener in Listener::ALL {
        let bytes = pcapng::of_listener(&findings, &server, listener)?;
        write(out, &format!("{}.pcapng", listener.key()), bytes)?;
    }

    let mut shown = String::from(
        "Each time is when a segment was sent, or when accept() returned, since the client's \
         SYN.\n\n",
    );
    for scenario in [Scenario::Rfc793, Scenario::Piggyback, Scenario::Silent] {
        shown += &terminal::ladders(&findings, scenario, screen);
    }
    shown += &document.terminal(screen);
    Ok(Outcome {
        shown,
        checks: report.checks,
        picture,
    })
}

/// Writes milliseconds.
fn ms(value: f64) -> String {
    format!("{} ms", number(value))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::demo::sample::sample;
    use crate::scratch::Scratch;
    use crate::verdict::failed;

    const SCREEN: Screen = Screen {
        colours: false,
        width: 100,
    };

    #[test]
    fn recordings_become_all_files_and_verdicts() {
        let (recorded, out) = (Scratch::new("demo-recorded"), Scratch::new("demo-out"));
        let mut sample = sample();
        sample.record(&recorded.0);
        let outcome = evaluate(&recorded.0, &out.0, SCREEN).unwrap();
        assert_eq!(failed(&outcome.checks).next(), None);
        for row in [
            "dataready, accept | 5,001 | nothing | connected; served | timeout_accept 1",
            "dataready, reset | never | RST, 5,001 | ECONNRESET, 5,082 | timeout_reset 1",
            "dataready, drop | never | nothing | connected; RST | timeout_drop 1",
        ] {
            let shown = |line: &str| row.split(" | ").all(|cell| line.contains(cell));
            let found = outcome.shown.lines().any(shown);
            assert!(found, "{row}\n{}", outcome.shown);
        }
        for line in outcome.shown.lines() {
            assert!(console::measure_text_width(line) <= SCREEN.width, "{line}");
        }
        let files = [
            "report.md",
            "report.json",
            "ladder.svg",
            "plain.pcapng",
            "defer_accept.pcapng",
            "dataready.pcapng",
            "dataready_reset.pcapng",
            "dataready_drop.pcapng",
        ];
        for file in files {
            let length = fs::metadata(out.0.join(file)).unwrap().len();
            assert!(length > 500, "{file}");
        }
        let json = out.json("report.json");
        assert_eq!(json["pass"], true);
        let numbers = &json["scenarios"]["a"]["listeners"]["dataready"];
        assert_eq!(numbers["syn_acks_sent"], 1);
        assert_eq!(numbers["rto_ms"], 241.0);
        let reset = &json["scenarios"]["d"]["listeners"]["dataready_reset"];
        assert_eq!(reset["on_timeout"], "reset");
        assert_eq!(reset["resets_sent"], 1);
        assert_eq!(reset["accept_after_syn_ms"], serde_json::Value::Null);
        assert_eq!(reset["client_error"], "ECONNRESET");
        assert_eq!(reset["listener_counters"]["timeout_reset"], 1);
        let gunicorn = &json["scenarios"]["c"]["listeners"]["plain"]["gunicorn"];
        assert_eq!(gunicorn["answered"], false);

        // A claim that does not hold.
        let connection = (Scenario::Rfc793, Listener::Dataready);
        sample.accepted(connection).at.0 -= 2_000_000_000;
        sample.record(&recorded.0);
        let outcome = evaluate(&recorded.0, &out.0, SCREEN).unwrap();
        assert_eq!(failed(&outcome.checks).count(), 1, "{:?}", outcome.checks);
        assert!(outcome.shown.contains("FAIL"));
        let json = out.json("report.json");
        assert_eq!(json["pass"], false);
        assert!(out.text("report.md").contains("**FAILS**"));
    }

    #[test]
    fn no_report_is_an_error() {
        let empty = Scratch::new("demo-empty");
        let says = || format!("{:#}", evaluate(&empty.0, &empty.0, SCREEN).unwrap_err());
        assert!(says().contains("did not get to the end"), "{}", says());
        fs::write(empty.0.join(accf_demo::REPORT_FILE), "{}").unwrap();
        assert!(says().contains("is not a recording"), "{}", says());
    }
}
