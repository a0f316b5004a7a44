// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a soak went, for programs (`report.json`) and for people (`report.md`, the terminal).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use accf_soak::{Clients, Proof, Record};
use anyhow::{Context, Result};
use serde::Serialize;

use crate::table::{markdown_table, number, numeric, table, words, Column, Screen};

/// How a soak went.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Soak {
    /// The kernel's name.
    pub(crate) kernel: String,
    /// Where all random numbers started.
    pub(crate) seed: u64,
    /// How long clients were to come.
    pub(crate) minutes: f64,
    /// What was to be proved, in the guest and outside.
    pub(crate) proofs: Vec<Proof>,
    /// What the guest left, if it came to its end.
    pub(crate) record: Option<Record>,
}

/// A table's columns and rows.
struct Cells {
    title: &'static str,
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Soak {
    /// Whether everything held.
    pub(crate) fn held(&self) -> bool {
        !self.proofs.is_empty() && self.proofs.iter().all(|proof| proof.held)
    }

    /// The line that everything ends with.
    pub(crate) fn verdict(&self) -> String {
        let minutes = number(self.minutes);
        let connections = self.record.as_ref().map_or(0, Record::connections);
        let what = format!(
            "{} connections in {minutes} min on the {} kernel, seed {}",
            number(connections as f64),
            self.kernel,
            self.seed
        );
        let failed: Vec<&str> = self
            .proofs
            .iter()
            .filter(|proof| !proof.held)
            .map(|proof| proof.name.as_str())
            .collect();
        if self.held() {
            format!("Everything held: {what}.")
        } else {
            format!("FAILED ({}): {what}.", failed.join(", "))
        }
    }

    /// Writes the report for programs and the one for people.
    pub(crate) fn write(&self, out: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self)? + "\n";
        for (name, text) in [("report.json", json), ("report.md", self.markdown())] {
            let path = out.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// The report in Markdown.
    fn markdown(&self) -> String {
        let mut text = String::from("# Soak\n");
        for cells in self.tables() {
            text += &format!("\n## {}\n\n", cells.title);
            // A cell is one line.
            let rows: Vec<Vec<String>> = cells
                .rows
                .into_iter()
                .map(|row| row.into_iter().map(|cell| one_line(&cell)).collect())
                .collect();
            text += &markdown_table(&cells.columns, &rows);
        }
        text += &format!("\n{}\n", self.verdict());
        text
    }

    /// The report for a terminal.
    pub(crate) fn terminal(&self, screen: Screen) -> String {
        let mut text = String::new();
        for cells in self.tables() {
            text += &format!("\n{}\n", cells.title);
            text += &table(screen, &cells.columns, cells.rows);
        }
        text
    }

    fn tables(&self) -> Vec<Cells> {
        let mut tables = Vec::new();
        if let Some(record) = &self.record {
            tables.push(clients(&record.clients));
            tables.push(counts("What else happened", "event", &record.events));
            tables.push(counts(
                "What the module counted, of listeners at rest",
                "counter",
                &record.counters,
            ));
            tables.push(slabs(record));
        }
        tables.push(Cells {
            title: "What was to be proved",
            columns: vec![words(""), words("proof"), words("found")],
            rows: self
                .proofs
                .iter()
                .map(|proof| {
                    let word = if proof.held { "holds" } else { "FAILS" };
                    vec![word.to_owned(), proof.says.clone(), proof.found.clone()]
                })
                .collect(),
        });
        tables
    }
}

fn one_line(text: &str) -> String {
    text.replace('\n', "<br>").replace('|', "\\|")
}

/// What clients did, and what became of them.
fn clients(all: &[Clients]) -> Cells {
    let rows = all
        .iter()
        .map(|clients| {
            let fates: BTreeSet<(u64, &str)> = clients
                .fates
                .iter()
                .map(|(fate, count)| (*count, fate.as_str()))
                .collect();
            let fates: Vec<String> = fates
                .into_iter()
                .rev()
                .map(|(count, fate)| format!("{} {fate}", number(count as f64)))
                .collect();
            vec![
                clients.place.clone(),
                clients.habit.clone(),
                number(clients.count() as f64),
                fates.join(", "),
            ]
        })
        .collect();
    Cells {
        title: "What clients did, and what became of them",
        columns: vec![
            words("where"),
            words("what a client does"),
            numeric("clients", "clients"),
            words("what became of them"),
        ],
        rows,
    }
}

fn counts(title: &'static str, of: &'static str, counts: &BTreeMap<String, u64>) -> Cells {
    Cells {
        title,
        columns: vec![words(of), numeric("count", "count")],
        rows: counts
            .iter()
            .map(|(name, count)| vec![name.clone(), number(*count as f64)])
            .collect(),
    }
}

fn slabs(record: &Record) -> Cells {
    Cells {
        title: "The kernel's caches, in bytes in use",
        columns: vec![
            words("cache"),
            numeric("before", "before"),
            numeric("after", "after"),
            numeric("growth allowed", "growth\nallowed"),
        ],
        rows: record
            .slabs
            .iter()
            .map(|slab| {
                let numbers = [slab.before, slab.after, slab.allowed];
                let mut row = vec![slab.cache.clone()];
                row.extend(numbers.map(|bytes| number(bytes as f64)));
                row
            })
            .collect(),
    }
}

/// A record of a soak in which everything held.
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
            habit: "thinks, speaks".to_owned(),
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
        proofs: vec![Proof {
            name: "fates".to_owned(),
            says: "all is as it has to be".to_owned(),
            held: true,
            found: "no complaint".to_owned(),
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soak(record: Option<Record>) -> Soak {
        Soak {
            kernel: "dev".to_owned(),
            seed: 7,
            minutes: 1.0,
            proofs: sample().proofs,
            record,
        }
    }

    #[test]
    fn the_report_has_every_number() {
        let soak = soak(Some(sample()));
        for text in [
            soak.markdown(),
            soak.terminal(Screen {
                colours: false,
                width: 120,
            }),
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
            soak.verdict(),
            "Everything held: 1,234 connections in 1 min on the dev kernel, seed 7."
        );
        soak.proofs[0].held = false;
        assert!(soak.verdict().starts_with("FAILED (fates): "));
        soak.proofs.clear();
        assert!(!soak.held());
    }

    #[test]
    fn a_guest_that_left_nothing_has_a_report_too() {
        let mut soak = soak(None);
        soak.proofs[0].found = "the guest hung\nat | once".to_owned();
        assert!(soak.markdown().contains("the guest hung<br>at \\| once"));
    }
}
