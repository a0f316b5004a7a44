// SPDX-License-Identifier: MIT OR Apache-2.0
//! Connections for a profiler to watch: those of the benchmark `connection` to an epoll server, and
//! nothing else.

use std::fs;
use std::path::Path;

use accf_bench::{Profile, Section, PROFILE_FILE, SCHEMA, SYMBOLS_FILE};
use accf_kit::count;
use accf_kit::netns::Netns;
use anyhow::{Context, Result};

use crate::client::{Clients, Manner};
use crate::connection::{case, one_round, start, Subject};
use crate::server::Kind;

/// The server.
const KIND: Kind = Kind::Epoll;

/// Makes connections to each listener, and writes the sections and the kernel's symbols, from which
/// the host interprets the profiler's counts.
pub(crate) fn record(connections: u32, kernel: String, out: &Path) -> Result<()> {
    let ns = Netns::new()?;
    let mut clients = Clients::new(&ns, 0)?;
    let subjects = start(&ns, KIND)?;
    clients.warm_up(&subjects.each_ref().map(|subject| &subject.server))?;
    let mut sections = Vec::new();
    for manner in Manner::ALL {
        for subject in &subjects {
            sections.push(section(&ns, &mut clients, manner, subject, connections)?);
        }
    }
    let profile = Profile {
        schema: SCHEMA,
        kernel,
        sections,
    };
    // The module was loaded before the first connection, so its functions' addresses are the same.
    let symbols = fs::read("/proc/kallsyms").context("/proc/kallsyms")?;
    let write = |name: &str, content: &[u8]| {
        let file = out.join(name);
        fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))
    };
    write(SYMBOLS_FILE, &symbols)?;
    write(PROFILE_FILE, &serde_json::to_vec_pretty(&profile)?)?;
    for subject in subjects {
        subject.server.stop()?;
    }
    Ok(())
}

/// Makes connections to one listener.
fn section(
    ns: &Netns,
    clients: &mut Clients,
    manner: Manner,
    subject: &Subject,
    connections: u32,
) -> Result<Section> {
    let costs = count::section(|| one_round(ns, clients, manner, &[subject], connections))?;
    Ok(Section {
        listener: subject.listener,
        case: case(KIND, manner).to_owned(),
        connections,
        instructions: costs.iter().map(|cost| cost.instructions).sum(),
    })
}
