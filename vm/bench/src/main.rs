// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest side of the benchmarks: measures, and leaves a recording in `$ACCF_OUT`. It judges
//! nothing.

#![forbid(unsafe_code)]

mod burst;
mod client;
mod close;
mod connection;
mod deadline;
mod eviction;
mod holding;
mod idle_clients;
mod interference;
mod kernel;
mod others;
mod pause;
mod probes;
mod profile;
mod rounds;
mod segments;
mod server;
mod steps;
mod with_idle;

use std::path::PathBuf;
use std::{env, fs};

use accf_bench::{Bench, Measurement, Recording, RECORDING_FILE, SCHEMA};
use accf_kit::{count, module};
use anyhow::{Context, Result};
use clap::Parser;

use crate::rounds::Plan;

/// Measures what connections cost, on a machine that counts instructions.
#[derive(Debug, Parser)]
struct Arguments {
    /// Fewer connections and shorter times.
    #[arg(long)]
    short: bool,

    /// How often each figure is measured.
    #[arg(long, default_value_t = 3)]
    rounds: u32,

    /// Measure nothing: make this many connections to each listener while a profiler watches.
    #[arg(long, value_name = "CONNECTIONS", conflicts_with_all = ["short", "rounds", "benches"])]
    profile: Option<u32>,

    /// The benchmarks to run; all of them if there are none.
    benches: Vec<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let out = env::var_os("ACCF_OUT").map(PathBuf::from).context(
        "ACCF_OUT is not set: it names the directory for the results, as `cargo xtask bench` does",
    )?;
    count::check()?;
    let load_module = || match module::is_loaded()? {
        true => Ok(()),
        false => module::load(others::PARAMETERS),
    };
    if let Some(connections) = arguments.profile {
        load_module()?;
        return profile::record(connections, kernel::release()?, &out);
    }
    let plan = Plan {
        rounds: arguments.rounds,
        short: arguments.short,
    };
    let wanted = chosen(&arguments.benches)?;
    let mut measurements = Vec::new();
    // First: it is the only one that also measures without the module.
    if wanted.contains(&Bench::Others) {
        say(Bench::Others);
        measurements.extend(others::measure(plan)?);
    }
    load_module()?;
    // Last: these two share their idle clients, and leave many objects in the kernel's caches.
    let (with_idle, wanted): (Vec<Bench>, Vec<Bench>) = wanted
        .into_iter()
        .partition(|bench| with_idle::BENCHES.contains(bench));
    for bench in wanted {
        let measure: fn(Plan) -> Result<Vec<Measurement>> = match bench {
            Bench::Others | Bench::Holding | Bench::Interference => continue,
            Bench::Connection => connection::measure,
            Bench::Pause => pause::measure,
            Bench::Deadline => deadline::measure,
            Bench::Eviction => eviction::measure,
            Bench::Burst => burst::measure,
            Bench::Close => close::measure,
            Bench::Probes => probes::measure,
            Bench::Segments => segments::measure,
        };
        say(bench);
        measurements.extend(measure(plan).with_context(|| format!("benchmark {}", bench.key()))?);
    }
    with_idle.iter().copied().for_each(say);
    measurements.extend(with_idle::measure(plan, &with_idle)?);
    let recording = Recording {
        schema: SCHEMA,
        kernel: kernel::release()?,
        hz: kernel::hz()?,
        rounds: plan.rounds,
        short: plan.short,
        measurements,
    };
    let file = out.join(RECORDING_FILE);
    let text = serde_json::to_vec_pretty(&recording)?;
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Prints which benchmark begins.
fn say(bench: Bench) {
    println!("{}", bench.key());
}

/// Returns the benchmarks of these names.
fn chosen(names: &[String]) -> Result<Vec<Bench>> {
    if names.is_empty() {
        return Ok(Bench::ALL.to_vec());
    }
    let find = |name: &String| {
        let bench = Bench::ALL.into_iter().find(|bench| bench.key() == name);
        bench.with_context(|| format!("there is no benchmark {name}"))
    };
    names.iter().map(find).collect()
}
