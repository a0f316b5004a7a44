// SPDX-License-Identifier: MIT OR Apache-2.0

//! The table of all cases.
//!
//! A new case needs nothing here: `case!` above its function registers it. A new file needs its
//! `mod`.

mod account;
mod attach;
mod backlog;
mod bypass;
pub(crate) mod command;
mod concurrent_segments;
mod concurrent_sockets;
pub(crate) mod control;
mod deadline;
mod defer;
mod evict;
mod fault;
mod field_ack;
mod field_bpf;
mod field_burst;
mod field_close;
mod field_defer_off;
mod field_destroy;
mod field_device;
mod field_ipvs;
mod field_options;
mod field_pace;
mod field_pause;
mod field_plug;
mod field_probe;
mod field_same_port;
mod field_source;
mod field_tos;
mod field_transparent;
mod field_vanished;
mod field_vrf;
mod field_zerocopy;
mod fuzz;
mod hold;
mod ktls;
pub(crate) mod lifetime;
mod many_parked;
mod migrate;
mod model;
mod odd;
mod plain;
mod policy;
mod release;

use std::time::Duration;

use accf_kit::module;
use anyhow::Result;

use crate::case::{Case, Context, Entry, Skip, Stage};

/// The stages whose cases share a loaded module, and how the case is called that unloads it.
const SHARED: [(Stage, &str); 5] = [
    (Stage::Default, "default"),
    (Stage::Fuzz, "fuzz"),
    (Stage::TwoSeconds, "two_seconds"),
    (Stage::NoDeadline, "never"),
    (Stage::FourPerNetns, "few_each"),
];

/// Returns every case, in the order of the results.
pub(crate) fn table() -> Vec<Case> {
    let mut table: Vec<Case> = Entry::all().into_iter().flat_map(Entry::cases).collect();
    for (stage, name) in SHARED {
        let last = table.iter().rposition(|case| case.stage == stage);
        table.insert(last.map_or(0, |last| last + 1), nothing_left(name));
    }
    table
}

/// Returns the case that checks, after the cases of a stage, that nothing is left of them that
/// holds the module.
fn nothing_left(stage: &str) -> Case {
    Case {
        name: format!("lifetime.nothing_is_left_after_the_stage.{stage}"),
        stage: Stage::Alone,
        limit: Duration::from_secs(60),
        early: false,
        body: Box::new(unload),
    }
}

/// Unloads the module after the cases of a stage. If that stage was filtered out, it is not loaded.
fn unload(context: &Context) -> Result<()> {
    if !module::is_loaded()? {
        return Err(
            Skip("the module was not loaded again since it was unloaded".to_owned()).into(),
        );
    }
    module::unload(Duration::from_secs(10) * context.kernel.patience())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;

    #[test]
    fn no_two_cases_have_one_name() {
        let mut names = BTreeSet::new();
        for case in table() {
            assert!(names.insert(case.name.clone()), "twice: {}", case.name);
        }
    }

    /// Returns the paths of the Rust sources in a directory and below it.
    fn sources(directory: &Path) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files.extend(sources(&path));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
        files
    }

    #[test]
    fn every_file_registers_a_case() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cases");
        let entries = Entry::all();
        for path in sources(&directory) {
            if path.ends_with("mod.rs") {
                continue;
            }
            let name = path.strip_prefix(&directory).unwrap();
            let registers = |entry: &&Entry| Path::new(entry.file).ends_with(name);
            assert!(
                entries.iter().any(registers),
                "{} registers no case",
                name.display()
            );
        }
    }

    #[test]
    fn a_module_is_unloaded_after_each_stage_that_shares_it() {
        let table = table();
        for pair in table.windows(2) {
            let [case, next] = pair else { unreachable!() };
            if case.stage != next.stage && case.stage.parameters().is_some() {
                assert!(
                    next.name.starts_with("lifetime.nothing_is_left_after"),
                    "{} comes after {}",
                    next.name,
                    case.name
                );
            }
        }
    }
}
