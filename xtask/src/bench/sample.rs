// SPDX-License-Identifier: MIT OR Apache-2.0
//! A synthetic recording for tests, in which every bar holds.
//!
//! Tests change one figure and check which bars fail.

use accf_bench::{Bench, Listener, Measurement, Recording, Unit, SCHEMA};

use super::figures::Key;

/// Returns a recording with figures of all benchmarks.
pub(crate) fn sample() -> Recording {
    let mut recording = Recording {
        schema: SCHEMA,
        kernel: "7.3.4-sample".into(),
        hz: 250,
        rounds: 3,
        short: false,
        measurements: Vec::new(),
    };
    connection(&mut recording);
    holding(&mut recording);
    interference(&mut recording);
    pause(&mut recording);
    deadline(&mut recording);
    eviction(&mut recording);
    burst(&mut recording);
    close(&mut recording);
    probes(&mut recording);
    segments(&mut recording);
    others(&mut recording);
    recording
}

/// Returns three rounds that differ a little.
fn around(value: f64) -> [f64; 3] {
    [value * 1.0004, value, value * 0.9997]
}

/// Adds a figure.
fn add(recording: &mut Recording, key: Key<'_>, unit: Unit, samples: &[f64]) {
    recording.measurements.push(Measurement {
        bench: key.bench,
        metric: key.metric.to_owned(),
        unit,
        listener: key.listener,
        case: key.case.to_owned(),
        x: key.x,
        samples: samples.to_vec(),
        note: None,
    });
}

/// Adds a figure that could not be measured.
fn add_missing(recording: &mut Recording, key: Key<'_>, unit: Unit, note: &str) {
    add(recording, key, unit, &[]);
    if let Some(last) = recording.measurements.last_mut() {
        last.note = Some(note.to_owned());
    }
}

/// Changes the rounds of a figure.
pub(crate) fn change(recording: &mut Recording, key: Key<'_>, samples: &[f64]) {
    let mut all = recording.measurements.iter_mut();
    let found = all.find(|measurement| Key::of(measurement) == key);
    found.expect("there is such a figure").samples = samples.to_vec();
}

fn connection(recording: &mut Recording) {
    let cases = [
        ("epoll/pause", [102_345.0, 84_120.0, 84_500.0], [9, 7, 7]),
        ("epoll/same_trip", [83_900.0, 84_010.0, 84_120.0], [7; 3]),
        ("blocking/pause", [98_100.0, 80_400.0, 80_710.0], [5; 3]),
        ("blocking/same_trip", [80_000.0, 80_130.0, 80_200.0], [5; 3]),
    ];
    for (case, instructions, calls) in cases {
        let figures = instructions.into_iter().zip(calls);
        for (listener, (instructions, calls)) in Listener::ALL.into_iter().zip(figures) {
            let mut add = |metric, unit, samples: [f64; 3]| {
                let key = Key::new(Bench::Connection, metric).case(case);
                add(recording, key.at(listener), unit, &samples);
            };
            add("instructions", Unit::Instructions, around(instructions));
            add("system_calls", Unit::Count, [f64::from(calls); 3]);
            add("context_switches", Unit::Count, [4.0, 5.0, 4.0]);
            add("wakeups", Unit::Count, [2.0; 3]);
        }
    }
}

fn holding(recording: &mut Recording) {
    for x in [1e3, 1e4, 1e5, 1e6] {
        let growth = 1.0 + x / 5e7;
        let key = |metric| Key::new(Bench::Holding, metric).x(x);
        for (listener, bytes) in Listener::ALL.into_iter().zip([2756.0, 324.0, 387.0]) {
            let key = key("bytes").at(listener);
            if listener == Listener::DeferAccept && x > 1e5 {
                add_missing(recording, key, Unit::Bytes, "syncookies begin");
            } else {
                add(recording, key, Unit::Bytes, &[bytes; 3]);
            }
        }
        for (metric, case, cost) in [
            ("park", "", 4100.0),
            ("release", "", 21_300.0),
            ("timer", "accept", 24_800.0),
            ("timer", "reset", 12_400.0),
            ("timer", "drop", 3900.0),
        ] {
            let key = key(metric).case(case);
            add(recording, key, Unit::Instructions, &around(cost * growth));
        }
    }
}

fn eviction(recording: &mut Recording) {
    for x in [1e3, 1e4, 1e5] {
        for (case, cost) in [("reset", 13_200.0), ("drop", 8_800.0)] {
            let key = Key::new(Bench::Eviction, "evict").case(case).x(x);
            add(recording, key, Unit::Instructions, &around(cost));
        }
    }
}

fn burst(recording: &mut Recording) {
    for (listener, case, instructions, from_request, last_answer) in [
        (Listener::Plain, "backlog_128", 101_000.0, 31_000.0, 25.0),
        (Listener::Dataready, "backlog_128", 85_000.0, 52_000.0, 42.0),
        (Listener::Dataready, "room", 84_500.0, 51_500.0, 41.5),
        (Listener::Plain, "working", 121_000.0, 51_000.0, 1_610.0),
        (Listener::Dataready, "working", 105_000.0, 72_000.0, 1_640.0),
    ] {
        for (metric, unit, value) in [
            ("sent_again", Unit::Segments, 0.0),
            ("last_answer", Unit::Milliseconds, last_answer),
            ("instructions", Unit::Instructions, instructions),
            ("instructions_request", Unit::Instructions, from_request),
        ] {
            let key = Key::new(Bench::Burst, metric).case(case).at(listener);
            add(recording, key, unit, &around(value));
        }
    }
}

fn close(recording: &mut Recording) {
    for x in [1e3, 1e4] {
        for (listener, cost, told) in [
            (Listener::Plain, 21_000.0, x / 50.0),
            (Listener::Dataready, 900.0, 20.0 + x / 50.0),
        ] {
            let key = |metric| Key::new(Bench::Close, metric).at(listener).x(x);
            add(recording, key("close"), Unit::Instructions, &around(cost));
            add(recording, key("told"), Unit::Milliseconds, &around(told));
        }
    }
}

fn probes(recording: &mut Recording) {
    for x in [1e3, 1e4, 1e5] {
        for (metric, cost) in [("probe", 8_100.0), ("answer", 2_900.0)] {
            let key = Key::new(Bench::Probes, metric).x(x);
            add(recording, key, Unit::Instructions, &around(cost));
        }
    }
}

fn interference(recording: &mut Recording) {
    for x in [0.0, 128.0, 1e3, 1e4, 1e5] {
        let key = Key::new(Bench::Interference, "latency").x(x);
        let dataready = around(52_300.0 * (1.0 + x / 1e7));
        add(recording, key, Unit::Instructions, &dataready);
        for (listener, latency) in [
            (Listener::Plain, 51_900.0),
            (Listener::DeferAccept, 52_100.0),
        ] {
            let key = key.at(listener);
            if x > 128.0 {
                add_missing(recording, key, Unit::Instructions, "not served within 3 s");
            } else {
                add(recording, key, Unit::Instructions, &around(latency));
            }
        }
    }
}

fn pause(recording: &mut Recording) {
    for x in [0.1, 0.5, 1.0, 2.0, 5.0, 10.0] {
        let mistaken = [201.0 + 3000.0 * x, 1.0 + 1000.0 * x, 203.0 + 3000.0 * x];
        let figures = [
            (Listener::Plain, [201.0, 0.4, 203.0]),
            (Listener::DeferAccept, mistaken),
            (Listener::Dataready, [202.0, 0.4, 204.0]),
        ];
        for (listener, values) in figures {
            for (metric, value) in ["rto", "rtt", "repair"].into_iter().zip(values) {
                let key = Key::new(Bench::Pause, metric).x(x).at(listener);
                add(recording, key, Unit::Milliseconds, &around(value));
            }
        }
    }
}

fn deadline(recording: &mut Recording) {
    for (x, defer) in [
        (50.0, 970.0),
        (500.0, 520.0),
        (1e3, 21.0),
        (5e3, 2210.0),
        (1e4, 5310.0),
        (6e4, 3600.0),
    ] {
        let key = Key::new(Bench::Deadline, "late").x(x);
        add(recording, key, Unit::Milliseconds, &[0.05, 0.06, 0.05]);
        let key = key.at(Listener::DeferAccept);
        add(recording, key, Unit::Milliseconds, &around(defer));
    }
}

fn segments(recording: &mut Recording) {
    for (case, figures) in [
        ("silent", [[1, 1, 2], [2, 3, 3], [1, 1, 2]]),
        ("slow", [[1, 4, 5], [2, 5, 6], [1, 4, 5]]),
    ] {
        for (listener, counts) in Listener::ALL.into_iter().zip(figures) {
            let metrics = ["syn_acks", "from_server", "from_client"];
            for (metric, count) in metrics.into_iter().zip(counts) {
                let key = Key::new(Bench::Segments, metric).case(case).at(listener);
                add(recording, key, Unit::Segments, &[f64::from(count); 3]);
            }
        }
    }
}

fn others(recording: &mut Recording) {
    for (case, instructions) in [
        ("without_module", 84_000.0),
        ("with_module", 84_010.0),
        ("filter_elsewhere", 84_020.0),
    ] {
        let key = Key::new(Bench::Others, "instructions").case(case);
        let key = key.at(Listener::Plain);
        add(recording, key, Unit::Instructions, &around(instructions));
    }
}
