// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host side of the benchmarks: from what the guest measured to bars, tables and plots.
//!
//! ```text
//! bench.json ─► figures ─► bars ─► results
//!                  └─────► plot ─► chart
//! ```

mod bars;
mod chart;
mod figures;
mod guest;
mod plot;
mod results;
#[cfg(test)]
pub(crate) mod sample;
mod scale;

use std::path::Path;

use accf_bench::{Bench, Recording, RECORDING_FILE, SCHEMA};
use anyhow::Result;

pub(crate) use self::bars::{judge, SHORT_RUN_SLACK};
pub(crate) use self::guest::{machine, Request};
pub(crate) use self::results::closing_line;
use self::results::{Before, Report};
use crate::report::{self, check_schema, write, write_both};
use crate::table::Screen;
use crate::verdict::Verdict;

/// The results of the benchmarks.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The text for the terminal.
    pub(crate) shown: String,
    /// The verdicts on all bars.
    pub(crate) bars: Vec<Verdict>,
    /// The text of docs/benchmarks.md.
    pub(crate) page: String,
    /// The plots, by their file names.
    pub(crate) plots: Vec<(String, String)>,
}

/// Another version of the module, and where its recording is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Earlier<'a> {
    /// The commit and its first line.
    pub(crate) revision: &'a str,
    /// The directory of the recording.
    pub(crate) recorded: &'a Path,
}

/// Reads the recording that a guest wrote to `recorded` at its end.
pub(crate) fn read(recorded: &Path) -> Result<Recording> {
    let recording: Recording = report::read(recorded, RECORDING_FILE)?;
    check_schema(RECORDING_FILE, recording.schema, SCHEMA)?;
    Ok(recording)
}

/// Judges the recording of the benchmarks `asked` for, and writes the results into `out`.
pub(crate) fn evaluate(
    recorded: &Path,
    earlier: Option<Earlier<'_>>,
    asked: &[Bench],
    out: &Path,
    screen: Screen,
) -> Result<Outcome> {
    let recording = read(recorded)?;
    let earlier = earlier.map(|it| Ok::<_, anyhow::Error>((it.revision, read(it.recorded)?)));
    let earlier = earlier.transpose()?;
    let before = earlier.as_ref();
    let before = before.map(|(revision, before)| Before::new(revision, before, &recording));
    let report = Report::new(&recording, asked, judge(&recording, asked), before);
    let document = report.document();

    write_both(out, &report.numbers(), &document)?;
    let mut plots = Vec::new();
    for (bench, picture) in plot::all(&recording) {
        let (name, svg) = (plot::file(bench), picture.render()?);
        write(out, &name, &svg)?;
        plots.push((name, svg));
    }
    Ok(Outcome {
        shown: document.terminal(screen),
        page: report.page(),
        bars: report.bars,
        plots,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::sample::sample;
    use super::*;
    use crate::scratch::Scratch;
    use crate::verdict::failed;

    /// Writes `recording` into a directory, as a guest does.
    fn record(directory: &Scratch, recording: &Recording) {
        let text = serde_json::to_string(recording).unwrap();
        fs::write(directory.0.join(RECORDING_FILE), text).unwrap();
    }

    #[test]
    fn a_recording_becomes_all_files_and_verdicts() {
        let (recorded, out) = (Scratch::new("bench-recorded"), Scratch::new("bench-out"));
        record(&recorded, &sample());
        let outcome = evaluate(&recorded.0, None, &Bench::ALL, &out.0, Screen::PLAIN).unwrap();
        assert_eq!(failed(&outcome.bars).next(), None);
        assert_eq!(outcome.plots.len(), Bench::ALL.len());
        for (name, svg) in &outcome.plots {
            assert_eq!(&out.text(name), svg);
            assert!(outcome.page.contains(&format!("({name})")), "{name}");
        }
        let report = out.text("report.md");
        assert!(report.contains("Every bar holds."), "{report}");
        for row in [
            "| holds | bytes of a parked connection | 387 bytes, 1,000,000 parked | ≤ 400 bytes | \
             `holding.bytes.dataready` |",
            "| epoll, client pauses | instructions | 102,345 (0.07 %) | 84,120 (0.07 %) | 84,500 \
             (0.07 %) | −17.4 % | +0.45 % |",
            "| RTO, ms | 0.1 | 201 | 501 | 202 | +0.50 % | −59.7 % |",
            "|  | 5 | 201 | 15,201 (15,196 … 15,207) | 202 | +0.50 % | 1/75 |",
            "* TCP_DEFER_ACCEPT, bytes of a parked connection at 1,000,000: syncookies begin",
            "* plain, TCP_DEFER_ACCEPT, instructions to the response at 1,000 to 100,000: not \
             served within 3 s",
        ] {
            assert!(report.contains(row), "{row}\n{report}");
        }
        let json = out.json("report.json");
        assert_eq!(json["pass"], true);
        let bars = json["bars"].as_array().unwrap();
        let mut bars = bars.iter();
        let bytes = bars.find(|bar| bar["name"] == "holding.bytes.dataready");
        let bytes = bytes.unwrap();
        assert_eq!(bytes["value"], 387.0);
        assert_eq!(bytes["bound"]["at_most"], 400.0);
        assert_eq!(bytes["pass"], true);
        let first = &json["measurements"][0];
        assert_eq!(first["median"], 102_345.0);
        assert_eq!(first["samples"].as_array().unwrap().len(), 3);
        for field in ["min", "max", "spread"] {
            assert!(first[field].is_number(), "{field}");
        }
    }

    #[test]
    fn the_same_recording_is_the_same_report() {
        let (recorded, out) = (Scratch::new("bench-same"), Scratch::new("bench-same-out"));
        record(&recorded, &sample());
        let report = || {
            let outcome = evaluate(&recorded.0, None, &Bench::ALL, &out.0, Screen::PLAIN).unwrap();
            let files = [out.text("report.md"), out.text("report.json")];
            (outcome.page, outcome.plots, files)
        };
        assert_eq!(report(), report());
    }

    #[test]
    fn a_missed_bar_is_missed_everywhere() {
        let recorded = Scratch::new("bench-missed");
        let out = Scratch::new("bench-missed-out");
        let mut recording = sample();
        let key = figures::Key::new(Bench::Holding, "bytes").x(1e6);
        sample::change(&mut recording, key, &[512.0]);
        record(&recorded, &recording);
        let asked = [Bench::Holding];
        let outcome = evaluate(&recorded.0, None, &asked, &out.0, Screen::PLAIN).unwrap();
        assert_eq!(failed(&outcome.bars).count(), 2, "{:?}", outcome.bars);
        assert!(outcome.shown.contains("FAIL"));
        assert!(out.text("report.md").contains("**FAILS**"));
        let json = out.json("report.json");
        assert_eq!(json["pass"], false);
    }

    #[test]
    fn changes_since_an_earlier_version_are_shown() {
        let (recorded, before) = (Scratch::new("bench-after"), Scratch::new("bench-before"));
        let out = Scratch::new("bench-compared");
        record(&recorded, &sample());
        let mut recording = sample();
        let key = figures::Key::new(Bench::Connection, "instructions").case("epoll/pause");
        sample::change(&mut recording, key, &[90_000.0]);
        record(&before, &recording);
        let earlier = Earlier {
            revision: "0123abc module: before",
            recorded: &before.0,
        };
        let outcome = evaluate(
            &recorded.0,
            Some(earlier),
            &Bench::ALL,
            &out.0,
            Screen::PLAIN,
        )
        .unwrap();
        let row =
            "| connection | instructions | epoll, client pauses |  | 90,000 | 84,500 | −6.1 % |";
        assert!(outcome.page.contains(row), "{}", outcome.page);
        assert!(outcome.page.contains("--before 0123abc\n"));
        assert!(outcome.shown.contains("0123abc module: before"));
        let json = out.json("report.json");
        assert_eq!(json["before"]["revision"], earlier.revision);
        assert_eq!(json["before"]["changes"][0]["after"]["median"], 84_500.0);
    }

    #[test]
    fn only_complete_recordings_of_this_version_are_read() {
        let recorded = Scratch::new("bench-versions");
        let says = |recorded: &Scratch| format!("{:#}", read(&recorded.0).unwrap_err());
        assert!(says(&recorded).contains("did not get to the end"));
        fs::write(recorded.0.join(RECORDING_FILE), "{}").unwrap();
        assert!(says(&recorded).contains("is not a recording"));
        let mut recording = sample();
        recording.schema = SCHEMA + 1;
        record(&recorded, &recording);
        assert!(says(&recorded).contains("build both again"));
    }
}
