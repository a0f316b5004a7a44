// SPDX-License-Identifier: MIT OR Apache-2.0

//! The client suite: what servers and clients see of accf, tested from inside the guest.
//!
//! `accf-suite run` prints KTAP on its standard output and succeeds only if every case does. Each
//! case runs in its own process, so that one that hangs or dies leaves no socket open and does not
//! affect others.

#![forbid(unsafe_code)]

mod case;
mod cases;
mod count;
mod fuzz;
mod ktap;
mod model_runner;
mod packetdrill;
mod runner;
mod scene;
mod ways;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::case::Context;

/// Tests accf from the inside of a guest, as root.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the cases and print KTAP.
    Run {
        /// Only cases with this in their name; may be given more than once.
        #[arg(long, value_name = "SUBSTR")]
        filter: Vec<String>,
        /// Not the cases with this in their name, where `*` stands for anything; may be given more
        /// than once.
        #[arg(long, value_name = "PATTERN")]
        without: Vec<String>,
        /// Print the names of the cases instead of running them.
        #[arg(long)]
        list: bool,
        /// How many cases may run at the same time, where they may at all.
        #[arg(long, value_name = "N")]
        jobs: Option<usize>,
        /// What random numbers start from; a run prints its own.
        #[arg(long)]
        seed: Option<u64>,
        /// How long each of the cases `fuzz.…` feeds the kernel random input; 0: one round. A few
        /// seconds by default.
        #[arg(long, value_name = "N")]
        fuzz_seconds: Option<u64>,
    },
    /// Run one case in this process.
    #[command(hide = true)]
    Case {
        name: String,
        #[arg(long)]
        seed: u64,
        #[arg(long)]
        fuzz_seconds: Option<u64>,
    },
    /// Run packetdrill scripts, plain and with the filter.
    #[command(hide = true)]
    Packetdrill(packetdrill::Options),
    /// Print what `inet_diag` tells of a filtered listener's counts.
    #[command(hide = true)]
    Diag { port: u16 },
    /// Hold a filtered listener open until killed.
    #[command(hide = true)]
    Hold { family: String },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run {
            filter,
            without,
            list,
            jobs,
            seed,
            fuzz_seconds,
        } => {
            let cases = runner::select(cases::table(), &filter, &without);
            if list {
                for case in &cases {
                    println!("{}", case.name);
                }
                return Ok(ExitCode::SUCCESS);
            }
            let seed = seed.unwrap_or_else(|| fastrand::u64(..));
            runner::run(cases, jobs, seed, fuzz_seconds.map(Duration::from_secs))
        }
        Command::Case {
            name,
            seed,
            fuzz_seconds,
        } => {
            let fuzz_time = fuzz_seconds.map(Duration::from_secs);
            runner::run_here(cases::table(), &name, seed, fuzz_time)
        }
        Command::Packetdrill(options) => {
            packetdrill::run(&options)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Diag { port } => {
            cases::control::diag(port)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Hold { family } => {
            cases::lifetime::hold(&Context::new("hold", 0), &family)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
