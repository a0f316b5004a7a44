// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest side of the soak: runs everything at once, and proves that nothing is left of it.
//!
//! It goes in rounds. In each, the module is loaded; clients of every kind meet listeners of every
//! kind, while settings change, listeners close, servers are killed, namespaces go, memory is
//! short, packets get lost, and a thread tries to unload the module; then no more clients come, all
//! connections end, and the module is unloaded. What is proved after each round and in the end is
//! in the [`Record`](accf_soak::Record) that is left in `$ACCF_OUT`.

#![forbid(unsafe_code)]

mod board;
mod bursts;
mod changing_listeners;
mod ecn;
mod impaired_wire;
mod namespaces;
mod pauses;
mod probes;
mod program;
mod proof;
mod random;
mod round;
mod run;
mod scripted_clients;
mod segment_clients;
mod server_group;
mod socket_clients;
mod sources;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs};

use accf_kit::module;
use accf_soak::{Record, RECORD_FILE, SCHEMA};
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::board::Board;
use crate::program::Program;
use crate::proof::Before;
use crate::round::Round;

/// Runs everything at once, in a guest, as root.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Soak, and leave a record in $ACCF_OUT.
    Run {
        /// How long clients come, all rounds together.
        #[arg(long)]
        seconds: u64,
        /// Where all random numbers start.
        #[arg(long)]
        seed: u64,
    },
    /// Be one of the server processes.
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        family: String,
        #[arg(long)]
        port: u16,
        #[arg(long)]
        seed: u64,
        #[arg(long)]
        patience: u64,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run { seconds, seed } => soak(seconds, seed),
        Command::Serve {
            family,
            port,
            seed,
            patience,
        } => server_group::serve(&family, port, seed, Duration::from_secs(patience)),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How many rounds a soak is made of, if it is short; a long one has more.
const ROUNDS: u64 = 6;
/// The longest round.
const LONGEST: u64 = 60;
/// The shortest one, in which everything happens at least once.
const SHORTEST: u64 = 10;

fn soak(seconds: u64, seed: u64) -> Result<ExitCode> {
    let out = env::var_os("ACCF_OUT").map(PathBuf::from).context(
        "ACCF_OUT is not set: it names the directory for the record, as `cargo xtask soak` does",
    )?;
    let patience = match env::var("ACCF_KERNEL").as_deref() {
        Ok("dev") => 4,
        _ => 1,
    };
    println!("seed {seed}");
    let start = Instant::now();
    let board = Board::default();
    let program = Program::load()?;
    if module::is_loaded()? {
        module::unload(Duration::from_secs(10))?;
    }
    let before = Before::look()?;
    let each = (seconds / ROUNDS).clamp(SHORTEST, LONGEST);
    let (mut rounds, mut left) = (0, seconds);
    while left > 0 && board.complaints().is_empty() {
        let round = Round::new(rounds, seed, &board, &program, patience, run::ACTORS.len());
        let time = each.min(left);
        if let Err(error) = run::run(round, Duration::from_secs(time)) {
            board.complain(format!("round {}: {error:#}", rounds + 1));
        }
        board.new_round();
        rounds += 1;
        left -= time;
    }
    println!("{}", board.line());
    let (proofs, slabs) = before.prove(&board, patience)?;
    let record = Record {
        schema: SCHEMA,
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned(),
        seed,
        seconds,
        took: start.elapsed().as_secs(),
        rounds,
        clients: board.all_clients(),
        events: board.all_events(),
        counters: board.all_counters(),
        slabs,
        proofs,
    };
    let file = out.join(RECORD_FILE);
    let text = serde_json::to_vec_pretty(&record)?;
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(if record.held() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
