// SPDX-License-Identifier: MIT OR Apache-2.0
//! The plots of all benchmarks.

use accf_bench::{Bench, Listener, Recording};

use super::bars::bound;
use super::chart::{Axis, Limit, Panel, Picture, Series};
use super::figures::{case_title, in_order, Figures, Key, Statistics};
use super::scale::{long, short, Scale};

/// Returns the file name of a benchmark's picture.
pub(crate) fn file(bench: Bench) -> String {
    format!("bench-{}.svg", bench.key())
}

/// Returns a picture of each benchmark that has figures.
pub(crate) fn all(recording: &Recording) -> Vec<(Bench, Picture)> {
    let figures = Figures { recording };
    let pictures = Bench::ALL.into_iter().map(|bench| {
        let picture = match bench {
            Bench::Connection => connection(figures),
            Bench::Holding => holding(figures),
            Bench::Interference => interference(figures),
            Bench::Pause => pause(figures),
            Bench::Deadline => deadline(figures),
            Bench::Eviction => eviction(figures),
            Bench::Burst => burst(figures),
            Bench::Close => close(figures),
            Bench::Probes => probes(figures),
            Bench::Segments => segments(figures),
            Bench::Others => others(figures),
        };
        (bench, picture)
    });
    let shows_something = |picture: &Picture| {
        let mut series = picture.panels.iter().flat_map(|panel| &panel.series);
        series.any(|series| !series.points.is_empty())
    };
    let shown = pictures.filter(|(_, picture)| shows_something(picture));
    shown.collect()
}

/// Returns the line of each listener that has such figures.
fn lines(figures: Figures<'_>, key: Key<'_>) -> Vec<Series> {
    let lines = Listener::ALL.into_iter().map(|listener| {
        let key = key.at(listener);
        let places = figures.places(key);
        let at = |x| (x, figures.statistics(key.x(x)).ok());
        series(listener, places.into_iter().map(at))
    });
    lines.filter(has_anything).collect()
}

/// Returns the columns of each listener that has figures of these cases, at the places 0, 1, 2 …
fn columns<'a>(
    cases: &[&'a str],
    figure: impl Fn(&'a str, Listener) -> Option<Option<Statistics>>,
) -> Vec<Series> {
    let series = Listener::ALL.into_iter().map(|listener| {
        let cases = cases.iter().enumerate();
        let figures =
            cases.filter_map(|(place, case)| Some((place as f64, figure(case, listener)?)));
        series(listener, figures)
    });
    series.filter(has_anything).collect()
}

/// Returns the figures of a listener by their places; `None` could not be measured.
fn series(listener: Listener, figures: impl Iterator<Item = (f64, Option<Statistics>)>) -> Series {
    let (mut points, mut missing) = (Vec::new(), Vec::new());
    for (x, statistics) in figures {
        match statistics {
            Some(statistics) => points.push((x, statistics)),
            None => missing.push(x),
        }
    }
    Series {
        listener,
        points,
        missing,
    }
}

/// Returns whether a listener was measured, or could not be.
fn has_anything(series: &Series) -> bool {
    !(series.points.is_empty() && series.missing.is_empty())
}

/// Returns the figure of this name if it was requested; the inner `None` could not be measured.
fn asked(figures: Figures<'_>, key: Key<'_>) -> Option<Option<Statistics>> {
    let measurement = figures.find(key)?;
    Some(Statistics::of(&measurement.samples))
}

/// Returns the values of all lines.
fn values(series: &[Series]) -> Vec<f64> {
    let points = series.iter().flat_map(|series| &series.points);
    points.flat_map(|(_, y)| [y.min, y.max]).collect()
}

/// Returns a panel with a line for each listener.
fn line_panel(title: &str, x: Axis, y: Axis, series: Vec<Series>, limits: Vec<Limit>) -> Panel {
    Panel {
        title: title.into(),
        x,
        y,
        series,
        as_columns: false,
        limits,
    }
}

/// Returns a panel with a group of columns for each case.
fn column_panel(title: &str, cases: &[&str], y: Axis, series: Vec<Series>) -> Panel {
    Panel {
        title: title.into(),
        x: Axis::of_things("", names(cases)),
        y,
        series,
        as_columns: true,
        limits: Vec::new(),
    }
}

/// Returns the panels that have figures.
fn with_series(panels: impl Iterator<Item = Panel>) -> Vec<Panel> {
    panels.filter(|panel| !panel.series.is_empty()).collect()
}

/// Returns the titles of cases, each in two short lines.
fn names(cases: &[&str]) -> Vec<String> {
    let halves = |title: &str| {
        // Splits at a comma, or else at the blank nearest to the middle.
        let middle = title.len() / 2;
        let blanks = title.match_indices(' ').map(|(at, _)| at);
        let at = title.find(", ").map(|at| at + 1);
        let at = at.or_else(|| blanks.min_by_key(|at| at.abs_diff(middle)))?;
        let (first, second) = title.split_at(at);
        (title.len() > 16).then(|| format!("{first}\n{}", second.trim_start()))
    };
    let titles = cases.iter().map(|case| case_title(case));
    titles
        .map(|title| halves(title).unwrap_or_else(|| title.to_owned()))
        .collect()
}

/// The title of a panel.
const INSTRUCTIONS: &str = "Instructions per connection";

/// Plots the cost of one connection.
fn connection(figures: Figures<'_>) -> Picture {
    const CASES: [&str; 4] = [
        "epoll/pause",
        "epoll/same_trip",
        "blocking/pause",
        "blocking/same_trip",
    ];
    let key = |case| Key::new(Bench::Connection, "instructions").case(case);
    let limits = (0..).zip(CASES).filter_map(|(place, case)| {
        let of = |listener, part| {
            let other = figures.statistics(key(case).at(listener)).ok()?;
            Some(other.median * part)
        };
        let limit = match case {
            "epoll/pause" => {
                let plain = of(Listener::Plain, bound::CHEAPER)?;
                plain.min(of(Listener::DeferAccept, bound::AS_CHEAP)?)
            }
            "blocking/pause" => of(Listener::DeferAccept, bound::AS_CHEAP)?,
            _ => of(Listener::Plain, bound::AS_CHEAP)?,
        };
        Some(Limit::Column(f64::from(place), Listener::Dataready, limit))
    });
    let figure = |case, listener| asked(figures, key(case).at(listener));
    let series = columns(&CASES, figure);
    let y = Axis::new("instructions", Scale::Linear, long);
    Picture {
        title: "The cost of one connection, from the SYN to the last ACK".into(),
        note: "Instructions of the kernel and of the server. The same server and the same client \
               at each listener."
            .into(),
        limit: Some("dataready must not be above"),
        panels: vec![Panel {
            limits: limits.collect(),
            ..column_panel(INSTRUCTIONS, &CASES, y, series)
        }],
        ..Picture::default()
    }
}

/// Plots the cost of parked connections.
fn holding(figures: Figures<'_>) -> Picture {
    let panels = [
        ("bytes", "", "Memory of one"),
        ("park", "", "Its bare ACK: to park it"),
        ("release", "", "Its request: to release it"),
        ("timer", "accept", "To accept one at its deadline"),
        ("timer", "reset", "To reset one at its deadline"),
        ("timer", "drop", "To drop one at its deadline"),
    ];
    let panels = panels.into_iter().map(|(metric, case, title)| {
        let key = Key::new(Bench::Holding, metric).case(case);
        let (limit, unit) = if metric == "bytes" {
            (Some(bound::BYTES), "bytes")
        } else {
            let fewest = figures.places(key).first().copied();
            let cost = fewest.and_then(|fewest| figures.statistics(key.x(fewest)).ok());
            (cost.map(|cost| cost.median * bound::FLAT), "instructions")
        };
        let x = Axis::new("idle connections", Scale::Log, short);
        let y = Axis::new(unit, Scale::Linear, short);
        let limits = limit.map(Limit::Level).into_iter().collect();
        line_panel(title, x, y, lines(figures, key), limits)
    });
    Picture {
        title: "The cost of a parked connection, by the number of parked connections".into(),
        note: "Each cost is that of one connection; a flat line does not depend on their number. \
               At a plain listener they are sockets."
            .into(),
        limit: Some("dataready must not be above"),
        columns: 3,
        panels: with_series(panels),
        ..Picture::default()
    }
}

/// Returns a panel of instructions that must not grow with the number of `things`.
fn flat_panel(figures: Figures<'_>, key: Key<'_>, title: &str, things: &str) -> Panel {
    let fewest = figures.places(key).first().copied();
    let cost = fewest.and_then(|fewest| figures.statistics(key.x(fewest)).ok());
    let limit = cost.map(|cost| Limit::Level(cost.median * bound::FLAT));
    let x = Axis::new(things, Scale::Log, short);
    let y = Axis::new("instructions", Scale::Linear, short);
    let limits = limit.into_iter().collect();
    line_panel(title, x, y, lines(figures, key), limits)
}

/// Plots the cost of an eviction.
fn eviction(figures: Figures<'_>) -> Picture {
    let panels = [
        ("reset", "To park one and reset another"),
        ("drop", "To park one and drop another"),
    ];
    let panels = panels.into_iter().map(|(case, title)| {
        let key = Key::new(Bench::Eviction, "evict").case(case);
        flat_panel(figures, key, title, "sources")
    });
    Picture {
        title: "The cost of an eviction, by the number of sources".into(),
        note: "One source opens more connections than there is room for.".into(),
        limit: Some("dataready must not be above"),
        columns: 2,
        panels: with_series(panels),
        ..Picture::default()
    }
}

/// Plots a burst.
fn burst(figures: Figures<'_>) -> Picture {
    const PROMPT: [&str; 2] = ["backlog_128", "room"];
    const ALL: [&str; 3] = ["backlog_128", "room", "working"];
    let panels: [(&str, &[&str], &str, &str); 4] = [
        (
            "sent_again",
            &ALL,
            "Requests that are sent again",
            "segments",
        ),
        ("last_answer", &PROMPT, "Until the last response", "ms"),
        (
            "last_answer",
            &["working"],
            "… of a server that works",
            "ms",
        ),
        (
            "instructions",
            &ALL,
            "A connection, from its SYN on",
            "instructions",
        ),
    ];
    let panels = panels.into_iter().map(|(metric, cases, title, unit)| {
        let key = |case| Key::new(Bench::Burst, metric).case(case);
        let series = columns(cases, |case, listener| {
            asked(figures, key(case).at(listener))
        });
        let scale = match unit {
            "segments" => Scale::Whole,
            _ => Scale::Linear,
        };
        column_panel(title, cases, Axis::new(unit, scale, long), series)
    });
    Picture {
        title: "Many clients that connected ahead of need send their requests at once".into(),
        note: "The server of the plain listener has accepted them by then.".into(),
        columns: 2,
        panels: with_series(panels),
        ..Picture::default()
    }
}

/// Plots the end of a listener.
fn close(figures: Figures<'_>) -> Picture {
    let panels = [
        (
            "close",
            "instructions of close(), for each client",
            "instructions",
        ),
        ("told", "Until the last client is told", "ms"),
    ];
    let panels = panels.into_iter().map(|(metric, title, unit)| {
        let series = lines(figures, Key::new(Bench::Close, metric));
        let x = Axis::new("clients", Scale::Log, short);
        let y = Axis::new(unit, Scale::Linear, short);
        line_panel(title, x, y, series, Vec::new())
    });
    Picture {
        title: "The end of a listener, by the number of its clients".into(),
        note: "They are in the accept queue of the plain listener, and parked at the other.".into(),
        columns: 2,
        panels: with_series(panels),
        ..Picture::default()
    }
}

/// Plots the cost of probes.
fn probes(figures: Figures<'_>) -> Picture {
    let panels = [("probe", "To probe a client"), ("answer", "For its answer")];
    let panels = panels.into_iter().map(|(metric, title)| {
        let key = Key::new(Bench::Probes, metric);
        flat_panel(figures, key, title, "other parked connections")
    });
    Picture {
        title: "The cost of a probe, by the number of other parked connections".into(),
        note: "1,000 clients are probed, the others are not. From the timer on.".into(),
        limit: Some("dataready must not be above"),
        columns: 2,
        panels: with_series(panels),
        ..Picture::default()
    }
}

/// Plots the latency of active clients while others are idle.
fn interference(figures: Figures<'_>) -> Picture {
    let key = Key::new(Bench::Interference, "latency");
    let series = lines(figures, key);
    let listeners = Listener::ALL.into_iter();
    let places = in_order(listeners.flat_map(|it| figures.places(key.at(it))));
    let (title, of) = ("Latency of an active client", "instructions");
    let x = Axis::new("idle connections", Scale::Steps(places), short);
    let y = Axis::new(of, Scale::for_values(values(&series)), short);
    let empty = figures.statistics(key.x(0.0)).ok();
    let limit = empty.map(|empty| Limit::Level(empty.median * bound::UNDISTURBED));
    Picture {
        title: "The latency of an active client while others are idle".into(),
        note: "Instructions of the kernel and of the server from its SYN to its response. Backlog \
               128."
            .into(),
        limit: Some("dataready must not be above"),
        panels: vec![line_panel(title, x, y, series, limit.into_iter().collect())],
        ..Picture::default()
    }
}

/// Plots the effect of the client's pause on its connection.
fn pause(figures: Figures<'_>) -> Picture {
    let panels = [
        ("rto", "", "RTO of the accepted socket"),
        ("repair", "", "Until a lost response is repaired"),
        ("repair", "rto_only", "… without tail loss probes"),
    ];
    let panels = panels.into_iter().map(|(metric, case, title)| {
        let key = Key::new(Bench::Pause, metric).case(case);
        let plain = key.at(Listener::Plain);
        let allowed = figures.places(plain).into_iter().filter_map(|place| {
            let plain = figures.statistics(plain.x(place)).ok()?.median;
            let (low, high) = (1.0 - bound::LIKE_PLAIN, 1.0 + bound::LIKE_PLAIN);
            Some((place, plain * low, plain * high))
        });
        let limits = vec![Limit::Between(allowed.collect())];
        let x = Axis::new("the client's pause, s", Scale::Log, short);
        let y = Axis::new("ms", Scale::Log, long);
        line_panel(title, x, y, lines(figures, key), limits)
    });
    let panels = with_series(panels);
    Picture {
        title: "After the client's pause: the server's estimate of the network".into(),
        note:
            "A listener that takes the client's pause for the round-trip time waits as long again \
               before it repairs a loss."
                .into(),
        limit: Some("dataready must be between"),
        columns: panels.len(),
        same_heights: true,
        panels,
    }
}

/// Plots how late deadlines are met.
fn deadline(figures: Figures<'_>) -> Picture {
    const EVEN_MS: f64 = 1.0;
    let late = bound::LATE_JIFFIES * 1000.0 / f64::from(figures.recording.hz);
    let panels = [
        ("", "Until accept() returns"),
        ("reset", "Until the client is reset"),
    ];
    let panels = panels.into_iter().map(|(case, title)| {
        let key = Key::new(Bench::Deadline, "late").case(case);
        let places = figures.places(key).into_iter();
        let allowed = places.map(|place| (place, -bound::EARLY_MS, late));
        let limits = vec![Limit::Between(allowed.collect())];
        let x = Axis::new("deadline, s", Scale::Log, |ms| short(ms / 1e3));
        let y = Axis::new("late by, ms", Scale::Symmetric(EVEN_MS), long);
        line_panel(title, x, y, lines(figures, key), limits)
    });
    let panels = with_series(panels);
    Picture {
        title: "How late a silent client's deadline is met".into(),
        note: "The worst client of each round. Negative times are before the deadline.".into(),
        limit: Some("dataready must be between"),
        columns: panels.len(),
        same_heights: true,
        panels,
    }
}

/// Plots the number of segments.
fn segments(figures: Figures<'_>) -> Picture {
    const CASES: [&str; 2] = ["silent", "slow"];
    let asked = |metric, case, listener| {
        let key = Key::new(Bench::Segments, metric).case(case);
        asked(figures, key.at(listener))
    };
    let panel = |title: &str, y: &str, series| {
        column_panel(title, &CASES, Axis::new(y, Scale::Whole, long), series)
    };
    let syn_acks = columns(&CASES, |case, listener| asked("syn_acks", case, listener));
    let total = columns(&CASES, |case, listener| {
        let server = asked("from_server", case, listener)?;
        let client = asked("from_client", case, listener)?;
        Some(server.zip(client).map(|(server, client)| Statistics {
            median: server.median + client.median,
            min: server.min + client.min,
            max: server.max + client.max,
            spread: server.spread.max(client.spread),
        }))
    });
    Picture {
        title: "Segments on the wire for a client that does not send at once".into(),
        note: "A silent client never sends; a slow one sends its request after a pause.".into(),
        columns: 2,
        panels: vec![
            panel("SYN-ACKs per connection", "SYN-ACKs", syn_acks),
            panel("All segments per connection, both ways", "segments", total),
        ],
        ..Picture::default()
    }
}

/// Plots the cost of the module for listeners without the filter.
fn others(figures: Figures<'_>) -> Picture {
    const CASES: [&str; 3] = ["without_module", "with_module", "filter_elsewhere"];
    let key = Key::new(Bench::Others, "instructions");
    let y = Axis::new("instructions", Scale::Linear, long);
    let figure = |case, listener| asked(figures, key.case(case).at(listener));
    let series = columns(&CASES, figure);
    Picture {
        title: "The cost of a connection at a plain listener".into(),
        note: "An epoll server whose clients pause; its listener does not have the filter.".into(),
        panels: vec![column_panel(INSTRUCTIONS, &CASES, y, series)],
        ..Picture::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::sample::{change, sample};

    /// Draws the picture of a benchmark.
    fn drawn(recording: &Recording, bench: Bench) -> String {
        let mut pictures = all(recording).into_iter();
        let (_, picture) = pictures.find(|(name, _)| *name == bench).unwrap();
        picture.render().unwrap()
    }

    #[test]
    fn every_plot_says_what_it_shows() {
        let cases: [(Bench, &[&str]); 11] = [
            (
                Bench::Connection,
                &[
                    "request with the ACK",
                    "84,500",
                    "dataready must not be above",
                ],
            ),
            (
                Bench::Holding,
                &[
                    "idle connections",
                    "1M",
                    "Its bare ACK: to park it",
                    "To drop one at its deadline",
                    "bytes",
                    "not measured",
                ],
            ),
            (
                Bench::Interference,
                &["idle connections", "100k", "not measured"],
            ),
            (
                Bench::Pause,
                &[
                    "the client&apos;s pause, s",
                    "ms",
                    "RTO of the accepted socket",
                    "30,201",
                    "dataready must be between",
                ],
            ),
            (Bench::Deadline, &["deadline, s", "10", "ms", "0.05"]),
            (
                Bench::Eviction,
                &["sources", "100k", "To park one and drop another"],
            ),
            (
                Bench::Burst,
                &[
                    "Requests that are sent again",
                    "backlog 128",
                    "backlog for all",
                    "85,000",
                ],
            ),
            (Bench::Close, &["clients", "10k", "instructions of close()"]),
            (
                Bench::Probes,
                &["other parked connections", "100k", "For its answer"],
            ),
            (
                Bench::Segments,
                &["SYN-ACKs", "silent client", "slow client"],
            ),
            (Bench::Others, &["without", "the module", "84,020"]),
        ];
        let recording = sample();
        for (bench, labels) in cases {
            let svg = drawn(&recording, bench);
            for label in labels.iter().copied().chain(["<title>", "dataready"]) {
                // This picture has plain listeners only.
                let label = match (bench, label) {
                    (Bench::Others, "dataready") => "plain",
                    (_, label) => label,
                };
                assert!(svg.contains(label), "{bench:?} lacks {label}");
            }
            assert!(svg.starts_with("<!-- SPDX"), "{bench:?}");
            assert!(svg.trim_end().ends_with("</svg>"), "{bench:?}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{bench:?}");
        }
    }

    #[test]
    fn odd_figures_can_be_plotted() {
        for odd in [&[0.0, 0.0][..], &[-5.0], &[1e12], &[1.0, 1e9]] {
            let mut recording = sample();
            for measurement in sample().measurements {
                change(&mut recording, Key::of(&measurement), odd);
            }
            for bench in Bench::ALL {
                let svg = drawn(&recording, bench);
                assert!(!svg.contains("NaN"), "{bench:?} {odd:?}");
            }
        }
        let mut recording = sample();
        for measurement in &mut recording.measurements {
            measurement.samples.clear();
        }
        assert!(all(&recording).is_empty());
        recording.measurements.clear();
        assert!(all(&recording).is_empty());
    }
}
