// SPDX-License-Identifier: MIT OR Apache-2.0
//! The bars: the costs that accf claims, compared with what was measured.
//!
//! A bar of a benchmark that was not requested is not judged. A bar whose figures are missing
//! although its benchmark ran has failed.

use accf_bench::{Bench, Listener, Recording};

use super::figures::{case_title, title, Comparison, Figures, Key, Statistics};
use crate::table::{fixed, number};
use crate::verdict::{Bound, Claim, Figure, Unit, Verdict};

/// The claimed bounds.
pub(super) mod bound {
    /// Instructions of an epoll server whose clients pause, as a fraction of the plain listener's.
    pub(in crate::bench) const CHEAPER: f64 = 0.90;
    /// Instructions where a filter changes nothing, as a fraction of the other listener's.
    pub(in crate::bench) const AS_CHEAP: f64 = 1.01;
    /// Bytes of a parked connection.
    pub(in crate::bench) const BYTES: f64 = 400.0;
    /// A cost with the most connections, as a fraction of the cost with the fewest.
    pub(in crate::bench) const FLAT: f64 = 1.1;
    /// Latency while many clients are idle, as a fraction of the latency without idle clients.
    pub(in crate::bench) const UNDISTURBED: f64 = 1.05;
    /// Greatest difference of a time after the pause from the plain listener's, as a fraction of
    /// the latter.
    pub(in crate::bench) const LIKE_PLAIN: f64 = 0.10;
    /// How much the RTO of a listener that measures the client's pause as round-trip time grows
    /// from the shortest pause to the longest.
    pub(in crate::bench) const GROWS: f64 = 2.0;
    /// Clock ticks after the deadline.
    pub(in crate::bench) const LATE_JIFFIES: f64 = 2.0;
    /// Milliseconds before the deadline, for rounding.
    pub(in crate::bench) const EARLY_MS: f64 = 0.01;
    /// Instructions of a burst, as a fraction of the plain listener's, and of those where the
    /// accept queue has room for all.
    pub(in crate::bench) const IN_A_BURST: f64 = 1.05;
    /// The time to a burst's last response: as a fraction of that where the accept queue has room
    /// for all, and of the plain listener's where the server works.
    pub(in crate::bench) const LAST_ANSWER: f64 = 1.1;
    /// Milliseconds until all clients of a closed listener know.
    pub(in crate::bench) const TOLD_MS: f64 = 1000.0;
    /// SYN-ACKs of one connection.
    pub(in crate::bench) const SYN_ACKS: f64 = 1.0;
    /// Relative difference of instruction counts that are taken as equal.
    pub(in crate::bench) const EQUAL: f64 = 0.002;
    /// The same for a short run, which has fewer connections and therefore less exact means.
    pub(in crate::bench) const EQUAL_IN_SHORT: f64 = 0.01;
    /// A spread of the rounds raises the limit for equality up to this.
    pub(in crate::bench) const EXCUSED: f64 = 0.01;
}

/// By how much a short run may miss a bar, as a fraction of the bar.
pub(crate) const SHORT_RUN_SLACK: f64 = 0.05;

/// Counted segments.
const SEGMENTS: Unit = Unit::Count("segments");

/// Judges all bars of the benchmarks `asked` for by `recording`.
pub(crate) fn judge(recording: &Recording, asked: &[Bench]) -> Vec<Verdict> {
    let figures = Figures { recording };
    asked
        .iter()
        .flat_map(|bench| match bench {
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
        })
        .collect()
}

/// A measured value, its spread, and the text that shows it.
#[derive(Clone, Debug, PartialEq)]
struct Found {
    value: f64,
    spread: Option<f64>,
    words: String,
    /// A difference is claimed, and the spread is larger than the difference.
    unclear: bool,
}

impl Found {
    /// Returns a value without a spread.
    fn plain(value: f64, unit: Unit) -> Self {
        Self {
            value,
            spread: None,
            words: unit.write(value),
            unclear: false,
        }
    }

    /// Returns a ratio; its text may be that there is no difference.
    fn ratio(comparison: Comparison) -> Self {
        let words = comparison.words();
        Self {
            value: comparison.ratio,
            spread: Some(comparison.spread),
            words: if comparison.is_clear() {
                format!("{} ({words})", fixed(comparison.ratio, 3))
            } else {
                words
            },
            unclear: false,
        }
    }

    /// Returns a ratio that is claimed to be below 1.
    fn reduction(comparison: Comparison) -> Self {
        Self {
            unclear: !comparison.is_clear(),
            ..Self::ratio(comparison)
        }
    }

    /// Returns the distance of a ratio from 1; its text may be that there is no difference.
    fn difference(comparison: Comparison) -> Self {
        Self {
            value: comparison.difference(),
            spread: Some(comparison.spread),
            words: comparison.words(),
            unclear: false,
        }
    }

    /// Adds the place of the value to its text.
    fn at(self, place: impl std::fmt::Display) -> Self {
        Self {
            words: format!("{}, {place}", self.words),
            ..self
        }
    }
}

/// A value, or why there is none.
type Finding = Result<Found, String>;

/// Returns the greatest of several values; if one is missing, returns why.
fn worst(findings: impl IntoIterator<Item = Finding>) -> Finding {
    let findings: Result<Vec<Found>, String> = findings.into_iter().collect();
    let worst = findings?
        .into_iter()
        .reduce(|a, b| if b.value > a.value { b } else { a });
    worst.ok_or_else(|| "nothing was measured".into())
}

/// Returns the claim of a bar. Its name has these parts, without the empty ones.
fn claim(bench: Bench, name: &[&str], says: impl Into<String>) -> Claim {
    let parts = [&[bench.key()], name].concat();
    let parts = parts.iter().filter(|part| !part.is_empty());
    let parts: Vec<String> = parts.map(|part| part.replace('/', ".")).collect();
    Claim::new(parts.join("."), says)
}

/// Judges a bar.
fn bar(claim: Claim, unit: Unit, bound: impl Into<Option<Bound>>, found: Finding) -> Verdict {
    let found_value = found.as_ref().ok();
    let figure = Figure {
        value: found_value.map(|found| found.value),
        bound: bound.into(),
        unit,
        spread: found_value.and_then(|found| found.spread),
        unclear: found_value.is_some_and(|found| found.unclear),
    };
    let words = found.map_or_else(|why| why, |found| found.words);
    claim.figure(figure, words)
}

/// Judges the cost of one connection.
fn connection(figures: Figures<'_>) -> Vec<Verdict> {
    use Listener::{DeferAccept, Plain};
    let bars = [
        ("epoll/pause", Plain, bound::CHEAPER),
        ("epoll/pause", DeferAccept, bound::AS_CHEAP),
        ("epoll/same_trip", Plain, bound::AS_CHEAP),
        ("blocking/pause", DeferAccept, bound::AS_CHEAP),
        ("blocking/same_trip", Plain, bound::AS_CHEAP),
    ];
    let bars = bars.into_iter().map(|(case, other, limit)| {
        let this = Key::new(Bench::Connection, "instructions").case(case);
        let found = figures.compare(this, this.at(other)).map(match limit {
            limit if limit < 1.0 => Found::reduction,
            _ => Found::ratio,
        });
        let (what, than) = (case_title(case), title(other));
        let says = format!("{what}: instructions against {than}");
        let versus = format!("dataready_vs_{}", other.key());
        let claim = claim(Bench::Connection, &[case, &versus], says);
        bar(claim, Unit::Ratio, Bound::AtMost(limit), found)
    });
    bars.collect()
}

/// Judges the cost of parked connections.
fn holding(figures: Figures<'_>) -> Vec<Verdict> {
    let bench = Bench::Holding;
    let bytes = Key::new(bench, "bytes");
    let most = figures.places(bytes).last().copied();
    let found = most
        .ok_or_else(|| "bytes of dataready were not measured".into())
        .and_then(|most| {
            let bytes = figures.statistics(bytes.x(most))?;
            let found = Found::plain(bytes.median, Unit::Bytes);
            Ok(found.at(format_args!("{} parked", number(most))))
        });
    let says = "bytes of a parked connection";
    let first = claim(bench, &["bytes.dataready"], says);
    let first = bar(first, Unit::Bytes, Bound::AtMost(bound::BYTES), found);
    let costs = [
        ("bytes", "", "bytes of a parked connection"),
        ("park", "", "instructions to park"),
        ("release", "", "instructions to release"),
        ("timer", "accept", "instructions to accept at a deadline"),
        ("timer", "reset", "instructions to reset at a deadline"),
        ("timer", "drop", "instructions to drop at a deadline"),
    ];
    let flat = costs.into_iter().map(|(metric, case, what)| {
        let key = Key::new(bench, metric).case(case);
        let found = last_against_first(figures, key, " parked");
        let once = || {
            Err(format!(
                "{what}: not measured at two numbers of connections"
            ))
        };
        let found = found.unwrap_or_else(once);
        let says = format!("{what}: the most parked against the fewest");
        let claim = claim(bench, &[metric, case, "flat"], says);
        bar(claim, Unit::Ratio, Bound::AtMost(bound::FLAT), found)
    });
    [first].into_iter().chain(flat).collect()
}

/// Judges the cost of evictions.
fn eviction(figures: Figures<'_>) -> Vec<Verdict> {
    let bench = Bench::Eviction;
    let cases = [
        ("reset", "instructions to park one and reset another"),
        ("drop", "instructions to park one and drop another"),
    ];
    let flat = cases.into_iter().map(|(case, what)| {
        let key = Key::new(bench, "evict").case(case);
        let once = || Err(format!("{what}: not measured at two numbers of sources"));
        let found = last_against_first(figures, key, " sources").unwrap_or_else(once);
        let says = format!("{what}: the most sources against the fewest");
        let claim = claim(bench, &["evict", case, "flat"], says);
        bar(claim, Unit::Ratio, Bound::AtMost(bound::FLAT), found)
    });
    flat.collect()
}

/// Judges a burst.
fn burst(figures: Figures<'_>) -> Vec<Verdict> {
    let bench = Bench::Burst;
    let key = |metric| Key::new(bench, metric).case("backlog_128");
    let found = figures.samples(key("sent_again"));
    let found = found.map(|samples| {
        let worst = samples.iter().copied().fold(0.0, f64::max);
        Found::plain(worst, SEGMENTS)
    });
    let claimed = claim(bench, &["sent_again"], "requests that are sent again");
    let mut bars = vec![bar(claimed, SEGMENTS, Bound::Exactly(0.0), found)];

    let mut ratio = |this: Key<'_>, than: Key<'_>, name: &str, says: &str, limit| {
        let found = figures.compare(this, than);
        let claimed = claim(bench, &[this.metric, name], says);
        let found = found.map(Found::ratio);
        bars.push(bar(claimed, Unit::Ratio, Bound::AtMost(limit), found));
    };
    ratio(
        key("instructions"),
        key("instructions").at(Listener::Plain),
        "dataready_vs_plain",
        "instructions of a connection against plain",
        bound::IN_A_BURST,
    );
    ratio(
        key("instructions_request"),
        key("instructions_request").case("room"),
        "vs_room",
        "instructions from its request on, against an accept queue with room for all",
        bound::IN_A_BURST,
    );
    ratio(
        key("last_answer"),
        key("last_answer").case("room"),
        "vs_room",
        "time to the last response, against an accept queue with room for all",
        bound::LAST_ANSWER,
    );
    let working = key("last_answer").case("working");
    ratio(
        working,
        working.at(Listener::Plain),
        "working.dataready_vs_plain",
        "time to the last response of a server that works, against plain",
        bound::LAST_ANSWER,
    );
    bars
}

/// Judges the end of a listener.
fn close(figures: Figures<'_>) -> Vec<Verdict> {
    let bench = Bench::Close;
    let key = Key::new(bench, "close");
    let found = worst(figures.places(key).into_iter().map(|place| {
        let this = key.x(place);
        let comparison = figures.compare(this, this.at(Listener::Plain))?;
        Ok(Found::ratio(comparison).at(format_args!("{} clients", number(place))))
    }));
    let says =
        "instructions of close() for each parked client, against one in plain's accept queue";
    let claimed = claim(bench, &["close.dataready_vs_plain"], says);
    let versus = bar(claimed, Unit::Ratio, Bound::AtMost(1.0), found);

    let found = last_against_first(figures, key, " clients")
        .unwrap_or_else(|| Err("close() was not measured at two numbers of clients".into()));
    let says = "instructions of close() for each parked client: the most against the fewest";
    let claimed = claim(bench, &["close.flat"], says);
    let flat = bar(claimed, Unit::Ratio, Bound::AtMost(bound::FLAT), found);

    let key = Key::new(bench, "told");
    let found = worst(figures.places(key).into_iter().map(|place| {
        let samples = figures.samples(key.x(place))?;
        let last = samples.iter().copied().fold(0.0, f64::max);
        let found = Found::plain(last, Unit::Milliseconds);
        Ok(found.at(format_args!("{} clients", number(place))))
    }));
    let claimed = claim(
        bench,
        &["told"],
        "until the last client is told, at the worst",
    );
    let limit = Bound::AtMost(bound::TOLD_MS);
    vec![versus, flat, bar(claimed, Unit::Milliseconds, limit, found)]
}

/// Judges the cost of probes.
fn probes(figures: Figures<'_>) -> Vec<Verdict> {
    let bench = Bench::Probes;
    let costs = [
        ("probe", "instructions to probe a client"),
        ("answer", "instructions for its answer"),
    ];
    let flat = costs.into_iter().map(|(metric, what)| {
        let once = || {
            Err(format!(
                "{what}: not measured at two numbers of connections"
            ))
        };
        let key = Key::new(bench, metric);
        let found = last_against_first(figures, key, " parked").unwrap_or_else(once);
        let says = format!("{what}: the most parked against the fewest");
        let claim = claim(bench, &[metric, "flat"], says);
        bar(claim, Unit::Ratio, Bound::AtMost(bound::FLAT), found)
    });
    flat.collect()
}

/// Compares a figure at its last place with the figure at its first; `None` if there are not two
/// places.
fn last_against_first(figures: Figures<'_>, key: Key<'_>, unit: &str) -> Option<Finding> {
    let [first, .., last] = figures.places(key)[..] else {
        return None;
    };
    let comparison = figures.compare(key.x(last), key.x(first));
    Some(comparison.map(|comparison| {
        let places = format!("{}{unit} against {}{unit}", number(last), number(first));
        Found::ratio(comparison).at(places)
    }))
}

/// Judges the latency of active clients while others are idle.
fn interference(figures: Figures<'_>) -> Vec<Verdict> {
    let key = Key::new(Bench::Interference, "latency");
    let others = figures.places(key).into_iter().filter(|place| *place > 0.0);
    let found = worst(others.map(|place| {
        let comparison = figures.compare(key.x(place), key.x(0.0))?;
        Ok(Found::ratio(comparison).at(format_args!("{} idle", number(place))))
    }));
    let says = "latency with idle clients against latency without, at the worst";
    let claim = claim(Bench::Interference, &["latency.dataready"], says);
    let limit = Bound::AtMost(bound::UNDISTURBED);
    vec![bar(claim, Unit::Ratio, limit, found)]
}

/// Judges the effect of the client's pause on its connection.
fn pause(figures: Figures<'_>) -> Vec<Verdict> {
    let bench = Bench::Pause;
    let mut bars = Vec::new();
    for (metric, what) in [
        ("rto", "RTO of the accepted socket"),
        ("repair", "repair of a lost first response"),
    ] {
        for case in figures.cases(Key::new(bench, metric)) {
            let key = Key::new(bench, metric).case(case);
            let what = with_case(what, case);
            let places = figures.places(key);
            let found = worst(places.iter().map(|place| {
                let this = key.x(*place);
                let comparison = figures.compare(this, this.at(Listener::Plain))?;
                let found = Found::difference(comparison);
                Ok(found.at(format_args!("after {} s", number(*place))))
            }));
            let says = format!("{what}: difference from plain, at the worst pause");
            let like_plain = claim(bench, &[metric, case, "dataready_vs_plain"], says);
            let limit = Bound::AtMost(bound::LIKE_PLAIN);
            bars.push(bar(like_plain, Unit::Difference, limit, found));

            let found = flatness(figures, key, &places);
            let says = format!("{what}: the greatest of all pauses against the least");
            let flat = claim(bench, &[metric, case, "flat"], says);
            bars.push(bar(flat, Unit::Ratio, Bound::AtMost(bound::FLAT), found));
        }
    }
    let key = Key::new(bench, "rto").at(Listener::DeferAccept);
    let found = last_against_first(figures, key, " s")
        .unwrap_or_else(|| Err("rto of TCP_DEFER_ACCEPT was not measured at two pauses".into()));
    // A benchmark whose clients do not pause would find every listener exact.
    let says = "control: TCP_DEFER_ACCEPT's RTO after the longest pause against that after the \
                shortest";
    let grows = claim(bench, &["rto.defer_accept_grows"], says);
    bars.push(bar(grows, Unit::Ratio, Bound::AtLeast(bound::GROWS), found));
    bars
}

/// Returns the greatest of a line's medians as a fraction of the least.
fn flatness(figures: Figures<'_>, key: Key<'_>, places: &[f64]) -> Finding {
    let all = places.iter().map(|place| figures.statistics(key.x(*place)));
    let mut all = all.collect::<Result<Vec<Statistics>, String>>()?;
    all.sort_by(|a, b| a.median.total_cmp(&b.median));
    let comparison = match all.as_slice() {
        [least, .., greatest] => Comparison::new(greatest, least),
        _ => return Err(format!("{} was not measured at two pauses", key.metric)),
    };
    let comparison = comparison.ok_or("a comparison with 0 has no result")?;
    Ok(Found::ratio(comparison))
}

/// Judges how exact deadlines are. Every round must be within the bar, not only the median.
fn deadline(figures: Figures<'_>) -> Vec<Verdict> {
    let bench = Bench::Deadline;
    let hz = f64::from(figures.recording.hz);
    let late = bound::LATE_JIFFIES * 1000.0 / hz;
    let ticks = number(bound::LATE_JIFFIES);
    let mut bars = Vec::new();
    for case in figures.cases(Key::new(bench, "late")) {
        let key = Key::new(bench, "late").case(case);
        let places = figures.places(key);
        let at_worst = |off: fn(f64) -> f64| {
            worst(places.iter().map(|place| {
                let samples = figures.samples(key.x(*place))?;
                let off = samples.iter().map(|late| off(*late)).fold(0.0, f64::max);
                let found = Found::plain(off, Unit::Milliseconds);
                Ok(found.at(format_args!("deadline {} ms", number(*place))))
            }))
        };
        let what = with_case("a deadline", case);
        let mut add = |name: &str, says: &str, limit: f64, found: Finding| {
            let says = format!("{what}: {says}, at the worst");
            let claim = claim(bench, &["dataready", case, name], says);
            bars.push(bar(claim, Unit::Milliseconds, Bound::AtMost(limit), found));
        };
        let says = format!("at most {ticks} clock ticks late");
        add("late", &says, late, at_worst(|late| late));
        let early = at_worst(|late| -late);
        add("early", "not early", bound::EARLY_MS, early);
    }
    bars
}

/// Appends the title of a case, if there is one.
fn with_case(what: &str, case: &str) -> String {
    match case {
        "" => what.to_owned(),
        case => format!("{what}, {}", case_title(case)),
    }
}

/// Judges the number of segments. Every round must be within the bar, not only the median.
fn segments(figures: Figures<'_>) -> Vec<Verdict> {
    let bench = Bench::Segments;
    let mut bars = Vec::new();
    for case in ["silent", "slow"] {
        let key = |metric| Key::new(bench, metric).case(case);
        let found = figures.samples(key("syn_acks")).map(|samples| {
            let off = |count: &f64| (count - bound::SYN_ACKS).abs();
            let worst = samples.iter().copied();
            let worst = worst.max_by(|a, b| off(a).total_cmp(&off(b)));
            Found::plain(worst.unwrap_or(f64::NAN), SEGMENTS)
        });
        let says = format!("{}: SYN-ACKs", case_title(case));
        let once = Bound::Exactly(bound::SYN_ACKS);
        let claimed = claim(bench, &[case, "syn_acks"], says);
        bars.push(bar(claimed, SEGMENTS, once, found));

        let total = |listener| {
            let sum = |metric| figures.statistics(key(metric).at(listener));
            let (server, client) = (sum("from_server")?, sum("from_client")?);
            Ok::<_, String>((server.min + client.min, server.max + client.max))
        };
        let least = total(Listener::Plain).map(|(least, _)| Bound::AtMost(least));
        let most = total(Listener::Dataready).map(|(_, most)| Found::plain(most, SEGMENTS));
        let found = least.clone().and(most);
        let says = format!("{}: all segments, against plain", case_title(case));
        let claim = claim(bench, &[case, "total_vs_plain"], says);
        bars.push(bar(claim, SEGMENTS, least.ok(), found));
    }
    bars
}

/// Judges the cost of the module for listeners without the filter.
fn others(figures: Figures<'_>) -> Vec<Verdict> {
    let bench = Bench::Others;
    let key = Key::new(bench, "instructions").at(Listener::Plain);
    let equal = if figures.recording.short {
        bound::EQUAL_IN_SHORT
    } else {
        bound::EQUAL
    };
    let bars = ["with_module", "filter_elsewhere"].into_iter().map(|case| {
        let comparison = figures.compare(key.case(case), key.case("without_module"));
        let spread = comparison.as_ref().map_or(0.0, |it| it.spread);
        let name = format!("{case}_vs_without_module");
        let says = format!("{}: difference from without it", case_title(case));
        let limit = Bound::AtMost(equal.max(spread.min(bound::EXCUSED)));
        let found = comparison.map(Found::difference);
        bar(claim(bench, &[&name], says), Unit::Difference, limit, found)
    });
    bars.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::sample::{change, sample};

    /// Returns the bar of this name.
    fn find<'a>(bars: &'a [Verdict], name: &str) -> &'a Verdict {
        let found = bars.iter().find(|bar| bar.name == name);
        found.unwrap_or_else(|| panic!("no bar {name}"))
    }

    /// Returns the number that was judged.
    fn value(bar: &Verdict) -> Option<f64> {
        bar.figure.as_ref().and_then(|figure| figure.value)
    }

    /// Returns the names of the bars that `recording` misses with this slack.
    fn missed(recording: &Recording, slack: f64) -> Vec<String> {
        let bars = judge(recording, &Bench::ALL).into_iter();
        let missed = bars.filter(|bar| !bar.holds(slack));
        missed.map(|bar| bar.name).collect()
    }

    #[test]
    fn the_sample_clears_every_bar() {
        let bars = judge(&sample(), &Bench::ALL);
        let missed: Vec<&Verdict> = bars.iter().filter(|bar| !bar.pass).collect();
        assert!(missed.is_empty(), "{missed:#?}");
        let mut names: Vec<&str> = bars.iter().map(|bar| bar.name.as_str()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "names are unique");
        assert_eq!(count, 38);
    }

    #[test]
    fn each_bar_depends_on_its_figures() {
        let connection = |case| Key::new(Bench::Connection, "instructions").case(case);
        let holding = |metric| Key::new(Bench::Holding, metric);
        let latency = Key::new(Bench::Interference, "latency");
        let rto = Key::new(Bench::Pause, "rto");
        let late = Key::new(Bench::Deadline, "late");
        let segments = |metric, case| Key::new(Bench::Segments, metric).case(case);
        let burst = |metric| Key::new(Bench::Burst, metric).case("backlog_128");
        let end = |metric| Key::new(Bench::Close, metric);
        let others = |case| {
            let key = Key::new(Bench::Others, "instructions").case(case);
            key.at(Listener::Plain)
        };
        let like_plain = ["rto.dataready_vs_plain", "rto.flat"];
        let with_module = "with_module_vs_without_module";
        let elsewhere = "filter_elsewhere_vs_without_module";
        // The bars that fail, by their names within the benchmark.
        let cases: &[(Key<'_>, &[f64], &[&str])] = &[
            (
                connection("epoll/pause"),
                &[92_200.0],
                &[
                    "epoll.pause.dataready_vs_plain",
                    "epoll.pause.dataready_vs_defer_accept",
                ],
            ),
            (
                connection("epoll/same_trip"),
                &[84_800.0],
                &["epoll.same_trip.dataready_vs_plain"],
            ),
            (
                connection("blocking/pause"),
                &[81_300.0],
                &["blocking.pause.dataready_vs_defer_accept"],
            ),
            (
                connection("blocking/same_trip"),
                &[80_900.0],
                &["blocking.same_trip.dataready_vs_plain"],
            ),
            (holding("bytes").x(1e6), &[400.1], &["bytes.dataready"]),
            (holding("bytes").x(1e3), &[340.0], &["bytes.flat"]),
            (holding("park").x(1e6), &[4520.0], &["park.flat"]),
            (holding("release").x(1e6), &[23_500.0], &["release.flat"]),
            (
                holding("timer").case("reset").x(1e6),
                &[13_700.0],
                &["timer.reset.flat"],
            ),
            (
                Key::new(Bench::Eviction, "evict").case("drop").x(1e5),
                &[9_900.0],
                &["evict.drop.flat"],
            ),
            (burst("sent_again"), &[0.0, 0.0, 1.0], &["sent_again"]),
            (
                burst("instructions"),
                &[107_000.0],
                &["instructions.dataready_vs_plain"],
            ),
            (
                burst("instructions_request"),
                &[55_000.0],
                &["instructions_request.vs_room"],
            ),
            (burst("last_answer"), &[46.0], &["last_answer.vs_room"]),
            (
                burst("last_answer").case("working"),
                &[1_800.0],
                &["last_answer.working.dataready_vs_plain"],
            ),
            (
                end("close").x(1e4),
                &[21_100.0],
                &["close.dataready_vs_plain", "close.flat"],
            ),
            (end("close").x(1e4), &[1_000.0], &["close.flat"]),
            (end("told").x(1e4), &[300.0, 1_001.0], &["told"]),
            (
                Key::new(Bench::Probes, "probe").x(1e5),
                &[9_000.0],
                &["probe.flat"],
            ),
            (
                Key::new(Bench::Probes, "answer").x(1e5),
                &[3_200.0],
                &["answer.flat"],
            ),
            // Not the largest number.
            (holding("park").x(1e5), &[9000.0], &[]),
            (latency.x(1e3), &[55_000.0], &["latency.dataready"]),
            (rto.x(5.0), &[223.0], &like_plain),
            (rto.x(0.1), &[180.0], &like_plain),
            (
                rto.x(10.0).at(Listener::DeferAccept),
                &[600.0],
                &["rto.defer_accept_grows"],
            ),
            (late.x(6e4), &[0.1, 8.0], &[]),
            (late.x(6e4), &[0.1, 0.2, 8.1], &["dataready.late"]),
            (late.x(50.0), &[0.1, -0.02], &["dataready.early"]),
            (
                segments("syn_acks", "silent"),
                &[1.0, 2.0, 1.0],
                &["silent.syn_acks"],
            ),
            (
                segments("syn_acks", "slow"),
                &[1.0, 0.0, 1.0],
                &["slow.syn_acks"],
            ),
            (
                segments("from_client", "slow"),
                &[5.0, 6.0],
                &["slow.total_vs_plain"],
            ),
            (others("with_module"), &[84_500.0], &[with_module]),
            // Fewer instructions are not equal, either.
            (others("filter_elsewhere"), &[83_500.0], &[elsewhere]),
            // Beyond what a spread excuses.
            (
                others("filter_elsewhere"),
                &[80_000.0, 85_300.0, 86_000.0],
                &[elsewhere],
            ),
            (
                others("filter_elsewhere"),
                &[84_000.0, 84_600.0, 84_700.0],
                &[],
            ),
        ];
        for (key, samples, names) in cases {
            let mut recording = sample();
            change(&mut recording, *key, samples);
            let bench = key.bench.key();
            let names = names.iter().map(|name| format!("{bench}.{name}"));
            let names: Vec<String> = names.collect();
            assert_eq!(missed(&recording, 0.0), names, "{key:?} {samples:?}");
        }
    }

    #[test]
    fn a_claimed_difference_must_exceed_the_spread() {
        let mut recording = sample();
        let key = Key::new(Bench::Connection, "instructions").case("epoll/pause");
        change(&mut recording, key, &[70_000.0, 84_500.0, 99_000.0]);
        let bars = judge(&recording, &[Bench::Connection]);
        let bar = find(&bars, "connection.epoll.pause.dataready_vs_plain");
        assert!(value(bar).is_some_and(|value| value < bound::CHEAPER));
        assert!(!bar.pass && !bar.holds(SHORT_RUN_SLACK));
        assert_eq!(bar.found, "no difference beyond the spread of 34.3 %");
        // A bar that claims equality holds.
        let bar = find(&bars, "connection.epoll.pause.dataready_vs_defer_accept");
        assert!(bar.pass, "{bar:?}");
        assert_eq!(bar.found, "no difference beyond the spread of 34.3 %");
    }

    #[test]
    fn a_short_run_may_miss_by_a_little_but_not_in_counts() {
        let mut recording = sample();
        let key = Key::new(Bench::Connection, "instructions").case("epoll/same_trip");
        change(&mut recording, key, &[88_000.0]);
        let name = "connection.epoll.same_trip.dataready_vs_plain";
        assert_eq!(missed(&recording, 0.0), [name]);
        assert_eq!(missed(&recording, SHORT_RUN_SLACK), [""; 0]);
        change(&mut recording, key, &[89_500.0]);
        assert_eq!(missed(&recording, SHORT_RUN_SLACK), [name]);

        let mut recording = sample();
        let key = Key::new(Bench::Segments, "from_server").case("slow");
        change(&mut recording, key, &[5.0]);
        let name = "segments.slow.total_vs_plain";
        assert_eq!(missed(&recording, SHORT_RUN_SLACK), [name]);
    }

    #[test]
    fn a_short_run_is_less_exact() {
        let mut recording = sample();
        let key = Key::new(Bench::Others, "instructions").case("with_module");
        change(&mut recording, key.at(Listener::Plain), &[84_800.0]);
        let name = "others.with_module_vs_without_module";
        assert_eq!(missed(&recording, 0.0), [name]);
        recording.short = true;
        assert_eq!(missed(&recording, 0.0), [""; 0]);
        change(&mut recording, key.at(Listener::Plain), &[84_900.0]);
        assert_eq!(missed(&recording, SHORT_RUN_SLACK), [name]);
    }

    #[test]
    fn missing_figures_fail_if_their_benchmark_was_requested() {
        let mut recording = sample();
        let key = Key::new(Bench::Interference, "latency").x(1e4);
        change(&mut recording, key, &[]);
        let mut all = recording.measurements.iter_mut();
        let missing = all.find(|measurement| Key::of(measurement) == key);
        missing.unwrap().note = Some("not served".into());
        let bars = judge(&recording, &Bench::ALL);
        let bar = find(&bars, "interference.latency.dataready");
        assert_eq!((value(bar), bar.pass), (None, false));
        assert!(!bar.holds(SHORT_RUN_SLACK));
        let found = "latency of dataready, at 10,000 could not be measured: not served";
        assert_eq!(bar.found, found);

        // A benchmark without any figures.
        let all = judge(&sample(), &Bench::ALL).len();
        recording.measurements.clear();
        assert_eq!(missed(&recording, SHORT_RUN_SLACK).len(), all);
        assert_eq!(judge(&recording, &[]), []);
        let bars = judge(&sample(), &[Bench::Deadline]);
        assert!(bars.iter().all(|bar| bar.name.starts_with("deadline.")));
    }

    #[test]
    fn bars_are_written_in_words() {
        let bars = judge(&sample(), &Bench::ALL);
        for (name, words) in [
            (
                "connection.epoll.pause.dataready_vs_plain",
                "epoll, client pauses: instructions against plain: found 0.826 (−17.4 %), must \
                 be ≤ 0.90",
            ),
            (
                "holding.bytes.dataready",
                "bytes of a parked connection: found 387 bytes, 1,000,000 parked, must be ≤ 400 \
                 bytes",
            ),
            (
                "deadline.dataready.early",
                "a deadline: not early, at the worst: found 0.00 ms, deadline 50 ms, must be ≤ \
                 0.01 ms",
            ),
            (
                "segments.slow.total_vs_plain",
                "slow client: all segments, against plain: found 9 segments, must be ≤ 9 segments",
            ),
        ] {
            assert_eq!(find(&bars, name).to_string(), words);
        }
    }
}
