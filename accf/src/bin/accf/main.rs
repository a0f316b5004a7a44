// SPDX-License-Identifier: MIT OR Apache-2.0
//! `accf`: shows the listeners that have an accept filter, and their statistics.

#![forbid(unsafe_code)]

mod json;
mod list;
#[cfg(test)]
mod sample;
mod stats;
mod target;
mod text;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use accf::{Error, Listener};
use anyhow::{anyhow, Context, Result};
use clap::{Args, Parser, Subcommand};
use comfy_table::ContentArrangement;

use target::Target;

/// The exit status for all other errors.
const FAILED: u8 = 1;
/// The exit status if `stats` finds no listener with a filter at its target. (2 is clap's.)
const NO_LISTENER: u8 = 3;
/// The exit status if the module is not loaded.
const NO_MODULE: u8 = 4;

/// The line below the list if the module is pinned.
const PINNED: &str =
    "The module cannot be unloaded until the next reboot, as a clone of a request may \
                      point into it. See docs/operating.md.";

/// The line below the list if requests of one listener of a port do not go to the others.
const NOT_MIGRATED: &str =
    "Several listeners share a port, and net.ipv4.tcp_migrate_req is 0: when one is closed, its \
                            parked clients are reset, not handed over. See docs/operating.md.";

/// The text below the options of `--help`.
const AFTER_HELP: &str = "\
Shows the listeners of all users in the caller's network namespace, without any
privilege. To see those of another namespace:

    ip netns exec NAME accf list
    nsenter --net --target PID accf list

This command does not attach filters or change settings. The process that has
the listening socket does: setsockopt() with TCP_ULP and ACCF_CONFIG, see accf.h.

Exit status:
  0  success
  1  the kernel does not list its listeners, or any other error
  2  wrong usage
  3  stats: no listener with a filter, or none at the given address
  4  the module is not loaded, so no listener has a filter";

/// Show the TCP listeners that have an accept filter.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = AFTER_HELP,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show one line for each listener that has a filter
    ///
    /// Columns:
    ///   timeout    how long a silent connection stays parked
    ///   then       what happens to it after that time
    ///   parked     connections that are parked now
    ///   at most    how many may be parked
    ///
    /// Columns that count connections since the filter was attached:
    ///   ever       parked
    ///   released   parked, then accepted as the client sent or closed
    ///   timed out  parked, then silent until the deadline
    ///   bypassed   not parked, although the filter applied
    #[command(verbatim_doc_comment)]
    List(Output),
    /// Show all counters, and how long clients took to send.
    Stats {
        #[command(flatten)]
        output: Output,
        /// Show only listeners on ADDRESS, ADDRESS:PORT or :PORT; [ADDRESS]:PORT with IPv6.
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
    /// Print JSON: all settings and counters of the listeners, named as in accf.h, and whether the
    /// module is pinned (cannot be unloaded until the next reboot).
    #[arg(long)]
    json: bool,
}

/// What the command prints on its standard output and standard error, and its exit status.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    output: String,
    /// Lines for the standard error.
    remarks: Vec<String>,
    status: u8,
}

/// The state of the module, and of what it depends on.
#[derive(Debug)]
struct Module {
    /// Whether it is loaded, or `None` where `/sys` does not show modules.
    loaded: Option<bool>,
    /// Whether it cannot be unloaded until the next reboot.
    pinned: Result<bool, Error>,
    /// `net.ipv4.tcp_migrate_req` of the network namespace, or `None` where it cannot be read.
    migrates: Option<bool>,
}

impl Module {
    /// Returns the state of the module in the running kernel.
    fn now() -> Self {
        let modules = Path::new("/sys/module");
        let migrates = fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req");
        Self {
            migrates: migrates.ok().map(|value| value.trim() != "0"),
            loaded: modules.is_dir().then(|| modules.join("accf").exists()),
            pinned: accf::module_pinned(),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = answer(&cli.command, accf::listeners(), Module::now()).and_then(|answer| {
        for remark in &answer.remarks {
            eprintln!("accf: {remark}");
        }
        print(&answer.output)?;
        Ok(answer.status)
    });
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("accf: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

/// Writes to the standard output. A closed pipe is no error: the reader has read enough.
fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to the standard output")
        }
        _ => Ok(()),
    }
}

/// Runs a command on what the kernel returned.
fn answer(
    command: &Command,
    listeners: Result<Vec<Listener>, Error>,
    module: Module,
) -> Result<Answer> {
    let mut listeners = listeners.map_err(explain)?;
    // The kernel may list a listener twice if others came or went at the same time.
    listeners.sort_by_key(|listener| (listener.address, listener.cookie));
    listeners.dedup_by_key(|listener| listener.cookie);
    if listeners.is_empty() && module.loaded == Some(false) {
        return Ok(Answer {
            remarks: vec![
                "the module is not loaded, so no listener has an accept filter; \
                 load it (insmod accf.ko), then restart the servers that attach one"
                    .to_owned(),
            ],
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
        answer.remarks.push(no_match(target, &listeners));
        answer.status = match command {
            // An empty list is correct.
            Command::List(_) => 0,
            Command::Stats { .. } => NO_LISTENER,
        };
    }
    // An unreadable parameter must not hide the listeners.
    let pinned = match module.pinned {
        Ok(pinned) => Some(pinned),
        Err(error) => {
            answer.remarks.push(format!("{:#}", anyhow!(error)));
            None
        }
    };
    answer.output = match (output.json, command) {
        (true, _) => json::render(&chosen, pinned)?,
        (false, Command::List(_)) => {
            let mut remarks = Vec::new();
            if pinned == Some(true) {
                remarks.push(PINNED);
            }
            if module.migrates == Some(false) && share_a_port(&chosen) {
                remarks.push(NOT_MIGRATED);
            }
            list(&chosen, &remarks)
        }
        (false, Command::Stats { .. }) => stats::render(&chosen),
    };
    Ok(answer)
}

/// Returns whether two of `listeners`, which are sorted, have the same address and port.
fn share_a_port(listeners: &[&Listener]) -> bool {
    listeners
        .windows(2)
        .any(|pair| (pair[0].address, pair[0].interface) == (pair[1].address, pair[1].interface))
}

/// Returns the table of listeners, and remarks below it.
fn list(listeners: &[&Listener], remarks: &[&str]) -> String {
    let mut text = String::new();
    if !listeners.is_empty() {
        text.push_str(&list::render(listeners, ContentArrangement::Dynamic));
    }
    for remark in remarks {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(remark);
        text.push('\n');
    }
    text
}

/// Returns the text that no listener is at `target`. It names the addresses of the others.
fn no_match(target: &Target, listeners: &[Listener]) -> String {
    if listeners.is_empty() {
        return "no listener in this network namespace has an accept filter".to_owned();
    }
    let mut others: Vec<String> = listeners.iter().map(text::address).collect();
    others.dedup();
    format!(
        "no listener on {target} has an accept filter; those on these addresses do: {}",
        others.join(", ")
    )
}

/// Adds advice that the library cannot give.
fn explain(error: Error) -> anyhow::Error {
    let errno = error.errno();
    let error = anyhow!(error);
    if errno == Some(nix::libc::EPERM) || errno == Some(nix::libc::EACCES) {
        return error.context(
            "no permission to list sockets (sock_diag): a sandbox, such as seccomp or SELinux, \
             forbids it; run accf outside the sandbox",
        );
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_definition_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    /// Parses a command line.
    fn command(line: &str) -> Command {
        Cli::try_parse_from(line.split_whitespace())
            .unwrap()
            .command
    }

    /// Returns the state of a module.
    fn module(loaded: Option<bool>, pinned: bool) -> Module {
        Module {
            loaded,
            pinned: Ok(pinned),
            migrates: Some(false),
        }
    }

    #[test]
    fn invalid_arguments_are_wrong_usage() {
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
    fn a_missing_module_is_reported() {
        for line in ["accf list", "accf stats", "accf list --json"] {
            let answer =
                answer(&command(line), Ok(Vec::new()), module(Some(false), false)).unwrap();
            assert_eq!(answer.status, NO_MODULE);
            assert!(answer.remarks.concat().contains("insmod"));
            assert_eq!(answer.output, "");
        }
    }

    #[test]
    fn an_empty_list_is_a_success() {
        for loaded in [Some(true), None] {
            let answer =
                answer(&command("accf list"), Ok(Vec::new()), module(loaded, false)).unwrap();
            assert_eq!((answer.status, answer.output.as_str()), (0, ""));
            assert!(!answer.remarks.is_empty());
        }
        let answer = answer(
            &command("accf list --json"),
            Ok(Vec::new()),
            module(None, false),
        )
        .unwrap();
        let value: serde_json::Value = serde_json::from_str(&answer.output).unwrap();
        assert_eq!(value["listeners"], serde_json::json!([]));
    }

    #[test]
    fn stats_without_listeners_has_its_own_status() {
        let answer = answer(
            &command("accf stats :80"),
            Ok(Vec::new()),
            module(Some(true), false),
        )
        .unwrap();
        assert_eq!(answer.status, NO_LISTENER);
    }

    #[test]
    fn other_listeners_are_named() {
        let listeners = || Ok(vec![sample::unused(), sample::busy()]);
        let answer = answer(
            &command("accf stats 127.0.0.1"),
            listeners(),
            module(Some(true), false),
        )
        .unwrap();
        assert_eq!((answer.status, answer.output.as_str()), (NO_LISTENER, ""));
        assert_eq!(
            answer.remarks,
            [
                "no listener on 127.0.0.1 has an accept filter; those on these addresses do: \
              192.0.2.1:443, [::]:8080"
            ]
        );
    }

    #[test]
    fn stats_shows_the_listeners_of_the_target() {
        let listeners = || Ok(vec![sample::unused(), sample::busy()]);
        let all = answer(
            &command("accf stats"),
            listeners(),
            module(Some(true), false),
        )
        .unwrap();
        let one = answer(
            &command("accf stats :8080"),
            listeners(),
            module(Some(true), false),
        )
        .unwrap();
        assert_eq!((all.status, one.status), (0, 0));
        assert!(all.output.contains("192.0.2.1:443") && all.output.contains("[::]:8080"));
        assert!(!one.output.contains("192.0.2.1:443") && one.output.contains("[::]:8080"));
        assert!(one.remarks.is_empty());
    }

    #[test]
    fn duplicate_listeners_are_shown_once() {
        let twice = Ok(vec![sample::busy(), sample::unused(), sample::busy()]);
        let answer = answer(&command("accf list"), twice, module(Some(true), false)).unwrap();
        assert_eq!(answer.output.matches("[::]:8080").count(), 1);
    }

    #[test]
    fn a_pinned_module_is_reported_below_the_list() {
        let line = format!("{PINNED}\n");
        let listeners = || Ok(vec![sample::unused(), sample::busy()]);
        let list = |listeners, pinned| {
            let answer = answer(&command("accf list"), listeners, module(Some(true), pinned));
            answer.unwrap().output
        };
        assert_eq!(list(Ok(Vec::new()), true), line);
        assert_eq!(list(Ok(Vec::new()), false), "");
        let without = list(listeners(), false);
        assert!(!without.contains("unloaded"), "{without}");
        assert_eq!(list(listeners(), true), format!("{without}\n{line}"));
    }

    #[test]
    fn json_reports_a_pinned_module() {
        for line in ["accf list --json", "accf stats --json"] {
            for pinned in [true, false] {
                let listeners = Ok(vec![sample::busy()]);
                let answer = answer(&command(line), listeners, module(Some(true), pinned)).unwrap();
                let value: serde_json::Value = serde_json::from_str(&answer.output).unwrap();
                assert_eq!(value["module"]["pinned"], pinned);
                assert_eq!(value["listeners"].as_array().unwrap().len(), 1);
            }
        }
    }

    #[test]
    fn listeners_of_one_port_get_a_remark_if_requests_do_not_migrate() {
        let list = |count, migrates| {
            let listeners = (0..count).map(|cookie| {
                let mut listener = sample::busy();
                listener.cookie = cookie;
                listener
            });
            let module = Module {
                migrates,
                ..module(Some(true), false)
            };
            let answer = answer(&command("accf list"), Ok(listeners.collect()), module);
            answer.unwrap().output.contains(NOT_MIGRATED)
        };
        assert!(list(2, Some(false)));
        assert!(!list(2, Some(true)));
        assert!(!list(2, None));
        assert!(!list(1, Some(false)));
    }

    #[test]
    fn listeners_are_shown_if_it_is_unknown_whether_the_module_is_pinned() {
        let unknown = || Module {
            loaded: Some(true),
            pinned: Err(Error::UnknownPinned {
                value: "maybe".to_owned(),
            }),
            migrates: None,
        };
        let listeners = || Ok(vec![sample::busy()]);
        let text = answer(&command("accf list"), listeners(), unknown()).unwrap();
        assert!(text.output.contains("[::]:8080") && !text.output.contains(PINNED));
        assert!(text.remarks.concat().contains("`maybe`"));
        assert_eq!(text.status, 0);
        let json = answer(&command("accf list --json"), listeners(), unknown()).unwrap();
        let value: serde_json::Value = serde_json::from_str(&json.output).unwrap();
        assert!(value["module"]["pinned"].is_null());
        assert_eq!(value["listeners"][0]["port"], 8080);
    }

    #[test]
    fn a_missing_permission_is_explained() {
        let error = Error::Os {
            doing: "read the kernel's list of TCP sockets",
            source: io::Error::from_raw_os_error(nix::libc::EACCES),
        };
        let error =
            answer(&command("accf list"), Err(error), module(Some(true), false)).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("no permission"), "{text}");
        assert!(text.contains("read the kernel's list"), "{text}");
    }
}
