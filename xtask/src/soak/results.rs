// SPDX-License-Identifier: MIT OR Apache-2.0
//! The results of a soak as JSON, as Markdown, and for a terminal.

use std::collections::{BTreeMap, BTreeSet};

use accf_soak::{Clients, Record};
use serde::Serialize;

use crate::report::{Document, Section};
use crate::table::{number, numeric, words, Table};
use crate::verdict::{self, Verdict};

/// The results of a soak.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Soak {
    /// The kernel's name.
    pub(crate) kernel: String,
    /// The seed of all random numbers.
    pub(crate) seed: u64,
    /// For how many minutes clients were to connect.
    pub(crate) minutes: f64,
    /// The verdicts on all proofs, of the guest and of the host.
    pub(crate) proofs: Vec<Verdict>,
    /// The guest's record, if it got to the end.
    pub(crate) record: Option<Record>,
}

impl Soak {
    /// Returns the last line of the soak.
    pub(crate) fn closing_line(&self) -> String {
        let connections = self.record.as_ref().map_or(0, Record::connections);
        let what = format!(
            "{} connections in {} min on the {} kernel, seed {}.",
            number(connections as f64),
            number(self.minutes),
            self.kernel,
            self.seed
        );
        let held = format!("Everything held: {what}");
        verdict::closing_line(&self.proofs, &held, &what)
    }

    /// Returns the report.
    pub(crate) fn document(&self) -> Document {
        let sections = self.record.as_ref().map(|record| {
            vec![
                clients(&record.clients),
                counts("What else happened", "event", &record.events),
                counts(
                    "Counters of the module, from listeners at rest",
                    "counter",
                    &record.counters,
                ),
                slabs(record),
            ]
        });
        Document {
            title: "Soak".to_owned(),
            closing_line: self.closing_line(),
            verdicts: vec![verdict::section("Proofs", "proof", &self.proofs)],
            sections: sections.unwrap_or_default(),
            ..Document::default()
        }
    }
}

/// Returns the table of what clients did and how their connections ended.
fn clients(all: &[Clients]) -> Section {
    let rows = all.iter().map(|clients| {
        let fates = clients.fates.iter();
        let fates: BTreeSet<(u64, &str)> = fates.map(|(fate, n)| (*n, fate.as_str())).collect();
        let fates = fates.into_iter().rev();
        let fates = fates.map(|(count, fate)| format!("{} {fate}", number(count as f64)));
        vec![
            clients.place.clone(),
            clients.habit.clone(),
            number(clients.count() as f64),
            fates.collect::<Vec<_>>().join(", "),
        ]
    });
    let columns = [
        words("where"),
        words("what a client does"),
        numeric("clients", "clients"),
        words("how they ended"),
    ];
    let heading = "What clients did, and how they ended";
    Section::new(heading, Table::new(columns, rows))
}

/// Returns a table of counts.
fn counts(heading: &str, of: &'static str, counts: &BTreeMap<String, u64>) -> Section {
    let columns = [words(of), numeric("count", "count")];
    let counts = counts.iter();
    let rows = counts.map(|(name, count)| vec![name.clone(), number(*count as f64)]);
    Section::new(heading, Table::new(columns, rows))
}

/// Returns the table of the memory that the kernel's caches have in use.
fn slabs(record: &Record) -> Section {
    let columns = [
        words("cache"),
        numeric("before", "before"),
        numeric("after", "after"),
        numeric("growth allowed", "growth\nallowed"),
    ];
    let rows = record.slabs.iter().map(|slab| {
        let numbers = [slab.before, slab.after, slab.allowed];
        let numbers = numbers.map(|bytes| number(bytes as f64));
        [slab.cache.clone()].into_iter().chain(numbers).collect()
    });
    Section::new(
        "The kernel's caches, in bytes in use",
        Table::new(columns, rows),
    )
}

/// Returns a record of a soak in which everything held.
#[cfg(test)]
pub(crate) fn sample() -> Record {
    Record {
        schema: accf_soak::SCHEMA,
        kernel: "7.3.4".to_owned(),
        seed: 7,
        seconds: 60,
        took: 90,
        rounds: 2,
        clients: vec![Clients {
            place: "a cable".to_owned(),
            habit: "pauses, speaks".to_owned(),
            fates: BTreeMap::from([("answered".to_owned(), 1_200), ("reset".to_owned(), 34)]),
        }],
        events: BTreeMap::from([("module loaded".to_owned(), 2)]),
        counters: BTreeMap::from([("parked_total".to_owned(), 1_234)]),
        slabs: vec![accf_soak::Slab {
            cache: "TCP".to_owned(),
            before: 0,
            after: 2_432,
            allowed: 0,
        }],
        proofs: vec![accf_soak::Proof {
            name: "fates".to_owned(),
            says: "all is as it has to be".to_owned(),
            held: true,
            found: "no complaint".to_owned(),
        }],
    }
}

/// Returns the verdicts of that record.
#[cfg(test)]
pub(crate) fn sample_proofs() -> Vec<Verdict> {
    sample().proofs.into_iter().map(super::verdict).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Screen;

    fn soak(record: Option<Record>) -> Soak {
        Soak {
            kernel: "dev".to_owned(),
            seed: 7,
            minutes: 1.0,
            proofs: sample_proofs(),
            record,
        }
    }

    #[test]
    fn the_report_has_every_number() {
        let soak = soak(Some(sample()));
        for text in [
            soak.document().markdown(),
            soak.document().terminal(Screen::PLAIN),
        ] {
            for part in [
                "1,200 answered, 34 reset",
                "1,234",
                "module loaded",
                "2,432",
                "no complaint",
            ] {
                assert!(text.contains(part), "no {part} in:\n{text}");
            }
        }
    }

    #[test]
    fn the_last_line_says_how_it_went() {
        let mut soak = soak(Some(sample()));
        assert_eq!(
            soak.closing_line(),
            "Everything held: 1,234 connections in 1 min on the dev kernel, seed 7."
        );
        soak.proofs[0].pass = false;
        assert!(soak.closing_line().starts_with("FAILED (fates): "));
        soak.proofs.clear();
        assert!(!soak.closing_line().contains("held"));
    }

    #[test]
    fn a_soak_without_a_record_has_a_report() {
        let mut soak = soak(None);
        soak.proofs[0].found = "the guest hung\nat | once".to_owned();
        assert!(soak
            .document()
            .markdown()
            .contains("the guest hung<br>at \\| once"));
    }
}
