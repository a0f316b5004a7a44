// SPDX-License-Identifier: MIT OR Apache-2.0
//! The project's tasks, as `cargo xtask COMMAND`: kernels, guests, builds and tests.

#![forbid(unsafe_code)]

mod archive;
mod bench;
mod cache;
mod cmd;
mod demo;
mod exec;
mod guest;
mod host;
mod kernel;
mod ktap;
mod lab;
mod module;
mod profile;
mod program;
mod project;
mod report;
#[cfg(test)]
mod scratch;
mod soak;
mod sysroot;
mod table;
mod tidy;
mod ui;
mod verdict;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xshell::Shell;

/// The project's tasks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
enum Command {
    Setup(cmd::Setup),
    Kernel(cmd::KernelCmd),
    Build(cmd::Build),
    Vm(cmd::Vm),
    Demo(cmd::Demo),
    Bench(cmd::Bench),
    Profile(cmd::Profile),
    Soak(cmd::Soak),
    Test(cmd::Test),
    Fuzz(cmd::Fuzz),
    Packetdrill(cmd::Packetdrill),
    Tidy(cmd::Tidy),
    Ci(cmd::Ci),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs `command`.
fn run(command: &Command) -> Result<ExitCode> {
    project::check()?;
    let sh = Shell::new()?;
    match command {
        Command::Setup(setup) => setup.run(&sh)?,
        Command::Kernel(kernel) => kernel.run(&sh)?,
        Command::Build(build) => build.run(&sh)?,
        Command::Demo(demo) => return demo.run(&sh),
        Command::Bench(bench) => return bench.run(&sh),
        Command::Soak(soak) => return soak.run(&sh),
        Command::Test(test) => return test.run(&sh),
        Command::Fuzz(fuzz) => return fuzz.run(&sh),
        Command::Packetdrill(packetdrill) => return packetdrill.run(&sh),
        Command::Ci(ci) => return ci.run(&sh),
        Command::Tidy(tidy) => tidy.run(&sh)?,
        Command::Profile(profile) => profile.run(&sh)?,
        Command::Vm(vm) => return Ok(vm.run(&sh)),
    }
    Ok(ExitCode::SUCCESS)
}
