// SPDX-License-Identifier: MIT OR Apache-2.0
//! `accf`: shows the listeners that have an accept filter, and what the filters have counted.

#![forbid(unsafe_code)]

mod json;
mod list;
#[cfg(test)]
mod sample;
mod stats;
mod target;
mod text;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use accf::{Error, Listener};
use anyhow::{anyhow, Context, Result};
use clap::{Args, Parser, Subcommand};
use comfy_table::ContentArrangement;

use target::Target;

/// The exit status for everything that is not named below.
const FAILED: u8 = 1;
/// The exit status if no listener with a filter is where one was asked for. (2 is clap's.)
const NO_LISTENER: u8 = 3;
/// The exit status if the module is not loaded.
const NO_MODULE: u8 = 4;

/// What people may want to know besides.
const AFTER_HELP: &str = "\
Shown are the listeners of the caller's network namespace, whoever owns them. It
takes no privilege. For another namespace:

    ip netns exec NAME accf list
    nsenter --net --target PID accf list

A filter is attached and set up by a process that has the listening socket, not
from here: setsockopt() with TCP_ULP and ACCF_CONFIG, see accf.h.

Exit status:
  0  all is well
  1  the kernel does not tell
  2  wrong usage
  3  there is no listener with a filter where one was asked for
  4  there is none at all, as the module is not loaded";

/// Show the TCP listeners that have an accept filter.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show one line for each listener that has a filter.
    ///
    /// timeout, then: how long a silent client waits, and what becomes of it; parked, at most: how many
    /// wait now, and may; ever, released, timed out: how many waited since the filter was attached,
    /// were accepted as they sent or closed, stayed silent; bypassed: could not be held back.
    List(Output),
    /// Show all that the filters have counted, and how long clients took to send.
    Stats {
        #[command(flatten)]
        output: Output,
        /// Only listeners on ADDRESS, ADDRESS:PORT or :PORT; [ADDRESS]:PORT with IPv6.
        #[arg(
            value_name = "ADDRESS|:PORT",
            default_value_t,
            hide_default_value = true
        )]
        target: Target,
    },
}

#[derive(Debug, Args)]
struct Output {
    /// Print an array of listeners with all settings and counters, named as in accf.h.
    #[arg(long)]
    json: bool,
}

/// What is to be told: on the standard output, on the standard error, and as the exit status.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    output: String,
    remark: String,
    status: u8,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let told = answer(&cli.command, accf::listeners(), module_loaded()).and_then(|answer| {
        if !answer.remark.is_empty() {
            eprintln!("{}", answer.remark);
        }
        print(&answer.output)?;
        Ok(answer.status)
    });
    match told {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("accf: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

/// Writes to the standard output. It is no error if nobody wants to read it all.
fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to the standard output")
        }
        _ => Ok(()),
    }
}

/// Says whether the module is loaded; nothing where the kernel does not show its modules.
fn module_loaded() -> Option<bool> {
    let modules = Path::new("/sys/module");
    modules.is_dir().then(|| modules.join("accf").exists())
}

/// Returns the answer to a command.
fn answer(
    command: &Command,
    listeners: Result<Vec<Listener>, Error>,
    module_loaded: Option<bool>,
) -> Result<Answer> {
    let mut listeners = listeners.map_err(explain)?;
    // A listener may be there twice if others came or went meanwhile.
    listeners.sort_by_key(|listener| (listener.address, listener.cookie));
    listeners.dedup_by_key(|listener| listener.cookie);
    if listeners.is_empty() && module_loaded == Some(false) {
        return Ok(Answer {
            remark: "accf: the module is not loaded, so no listener has an accept filter; \
                     load it (insmod accf.ko), then restart the servers that ask for one"
                .to_owned(),
            status: NO_MODULE,
            ..Answer::default()
        });
    }
    let (output, target) = match command {
        Command::List(output) => (output, &Target::default()),
        Command::Stats { output, target } => (output, target),
    };
    let chosen: Vec<&Listener> = listeners
        .iter()
        .filter(|listener| target.matches(listener.address))
        .collect();
    let mut answer = Answer::default();
    if chosen.is_empty() {
        answer.remark = missing(target, &listeners);
        answer.status = match command {
            // None is what there is to list.
            Command::List(_) => 0,
            Command::Stats { .. } => NO_LISTENER,
        };
    }
    answer.output = match (output.json, command) {
        (true, _) => json::render(&chosen)?,
        (false, _) if chosen.is_empty() => String::new(),
        (false, Command::List(_)) => list::render(&chosen, ContentArrangement::Dynamic),
        (false, Command::Stats { .. }) => stats::render(&chosen),
    };
    Ok(answer)
}

/// Says that nothing is at `target`, and what there is instead.
fn missing(target: &Target, listeners: &[Listener]) -> String {
    if listeners.is_empty() {
        return "accf: no listener in this network namespace has an accept filter".to_owned();
    }
    let mut others: Vec<String> = listeners.iter().map(text::address).collect();
    others.dedup();
    format!(
        "accf: no listener on {target} has an accept filter; those on these addresses do: {}",
        others.join(", ")
    )
}

/// Adds what is to be done, where the library cannot know.
fn explain(error: Error) -> anyhow::Error {
    let errno = error.errno();
    let error = anyhow!(error);
    if errno == Some(nix::libc::EPERM) || errno == Some(nix::libc::EACCES) {
        return error.context(
            "no permission to ask the kernel (sock_diag): a sandbox, such as seccomp or SELinux, \
             forbids it; run accf outside of it",
        );
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    /// Parses a command line.
    fn command(line: &str) -> Command {
        Cli::try_parse_from(line.split_whitespace())
            .unwrap()
            .command
    }

    #[test]
    fn what_is_not_an_address_is_wrong_usage() {
        for line in [
            "accf stats nowhere",
            "accf stats :0",
            "accf list :80",
            "accf",
        ] {
            let error = Cli::try_parse_from(line.split_whitespace()).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn without_the_module_there_is_advice() {
        for line in ["accf list", "accf stats", "accf list --json"] {
            let answer = answer(&command(line), Ok(Vec::new()), Some(false)).unwrap();
            assert_eq!(answer.status, NO_MODULE);
            assert!(answer.remark.contains("insmod"));
            assert_eq!(answer.output, "");
        }
    }

    #[test]
    fn an_empty_list_is_a_list() {
        for loaded in [Some(true), None] {
            let answer = answer(&command("accf list"), Ok(Vec::new()), loaded).unwrap();
            assert_eq!((answer.status, answer.output.as_str()), (0, ""));
            assert!(!answer.remark.is_empty());
        }
        let answer = answer(&command("accf list --json"), Ok(Vec::new()), None).unwrap();
        assert_eq!(answer.output, "[]\n");
    }

    #[test]
    fn statistics_of_nothing_are_missing() {
        let answer = answer(&command("accf stats :80"), Ok(Vec::new()), Some(true)).unwrap();
        assert_eq!(answer.status, NO_LISTENER);
    }

    #[test]
    fn a_listener_elsewhere_is_named() {
        let listeners = || Ok(vec![sample::idle(), sample::busy()]);
        let answer = answer(&command("accf stats 127.0.0.1"), listeners(), Some(true)).unwrap();
        assert_eq!((answer.status, answer.output.as_str()), (NO_LISTENER, ""));
        assert_eq!(
            answer.remark,
            "accf: no listener on 127.0.0.1 has an accept filter; those on these addresses do: \
             192.0.2.1:443, [::]:8080"
        );
    }

    #[test]
    fn a_target_chooses() {
        let listeners = || Ok(vec![sample::idle(), sample::busy()]);
        let all = answer(&command("accf stats"), listeners(), Some(true)).unwrap();
        let one = answer(&command("accf stats :8080"), listeners(), Some(true)).unwrap();
        assert_eq!((all.status, one.status), (0, 0));
        assert!(all.output.contains("192.0.2.1:443") && all.output.contains("[::]:8080"));
        assert!(!one.output.contains("192.0.2.1:443") && one.output.contains("[::]:8080"));
        assert!(one.remark.is_empty());
    }

    #[test]
    fn a_listener_that_was_seen_twice_is_shown_once() {
        let twice = Ok(vec![sample::busy(), sample::idle(), sample::busy()]);
        let answer = answer(&command("accf list"), twice, Some(true)).unwrap();
        assert_eq!(answer.output.matches("[::]:8080").count(), 1);
    }

    #[test]
    fn a_missing_permission_is_explained() {
        let error = Error::Os {
            doing: "read the kernel's list of TCP sockets",
            source: io::Error::from_raw_os_error(nix::libc::EACCES),
        };
        let error = answer(&command("accf list"), Err(error), Some(true)).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("no permission"), "{text}");
        assert!(text.contains("read the kernel's list"), "{text}");
    }
}
