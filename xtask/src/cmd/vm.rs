// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask vm`: run a command, or a shell, in a guest.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use xshell::Shell;

use crate::guest::{race, Guest};
use crate::kernel::Kind;
use crate::lab::Lab;
use crate::program;

/// The exit status of failures around the command, as in container tools.
const TROUBLE: u8 = 125;

/// How long a command may take unless the user says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

/// Boot a guest, load the module and run COMMAND as root, or a shell.
///
/// The checkout is visible at its own path, writable. The command `accf` is there, and so are the
/// programs accf-suite, accf-bench, accf-soak and accf-demo if COMMAND names them; a shell has all.
/// The exit status is COMMAND's own, or 125 if the run is worthless: no verdict, a panic, a hang
/// past the timeout, a splat in the kernel's log.
#[derive(Debug, clap::Args)]
pub(crate) struct Vm {
    /// The kernel to boot.
    #[arg(long, value_enum, default_value = "stock")]
    kernel: Kind,

    /// The number of processors.
    #[arg(long, default_value_t = 2)]
    cpus: u32,

    /// The memory's size.
    #[arg(long, default_value = "1G")]
    memory: String,

    /// Further arguments for QEMU, separated by spaces; may be repeated. `-accel` replaces
    /// emulation.
    #[arg(long, value_name = "ARGUMENTS", allow_hyphen_values = true)]
    qemu_opts: Vec<String>,

    /// Seconds after which the guest counts as hung, from power-on; 600 for a command, none for a
    /// shell.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,

    /// Do not load the module.
    #[arg(long)]
    no_module: bool,

    /// A parameter of the module, as NAME=VALUE; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", conflicts_with = "no_module")]
    module_params: Vec<String>,

    /// Another host directory to show at the same path, writable; may be repeated.
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,

    /// The command and its arguments; without it, a shell.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Vm {
    /// Runs the command.
    pub(crate) fn run(&self, sh: &Shell) -> ExitCode {
        match self.status(sh) {
            // A guest's exit status has eight bits.
            Ok(status) => ExitCode::from(u8::try_from(status).unwrap_or(TROUBLE)),
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::from(TROUBLE)
            }
        }
    }

    /// Boots the guest and returns the command's exit status.
    fn status(&self, sh: &Shell) -> Result<i32> {
        let shell = self.command.is_empty();
        if shell && !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
            bail!("a shell takes a terminal; or give a command: cargo xtask vm -- COMMAND");
        }
        program::build_named(sh, &self.command)?;
        let lab = if self.no_module {
            Lab::without_module(self.kernel)?
        } else {
            Lab::new(self.kernel)?
        };
        let default_timeout = (!shell).then_some(DEFAULT_TIMEOUT);
        let guest = Guest {
            cpus: self.cpus,
            memory: self.memory.clone(),
            qemu_arguments: self
                .qemu_opts
                .iter()
                .flat_map(|text| text.split_whitespace().map(str::to_owned))
                .collect(),
            timeout: self.timeout.map(Duration::from_secs).or(default_timeout),
            shares: self.share.clone(),
            ..lab.guest(&self.module_params)
        };
        let report = if shell {
            lab.shell(&guest)?
        } else {
            lab.run(&guest, &self.command)?
        };
        eprint!("{}", race::summary(&report.foreign_races));
        let status = report.verdict().with_context(|| match report.status {
            Some(status) => {
                format!("the command ended with status {status}, but the run does not count")
            }
            None => "the command did not come to an end".to_owned(),
        })?;
        report.remove_logs()?;
        Ok(status)
    }
}
