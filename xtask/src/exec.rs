// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs long commands: their output goes to a log file, and a failure shows its end.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};
use fs_err::{self as fs, File};

use crate::ui::Step;

/// How many of a log's last lines a failure shows.
const TAIL: usize = 30;

/// Runs `command`, appends what it prints to `log` and shows its progress on `step`.
pub(crate) fn logged(mut command: Command, log: &Path, step: &Step) -> Result<()> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut file = append(log)?;
    let program = command.get_program().to_string_lossy().into_owned();
    // One pipe for both streams keeps their lines in order.
    let (reader, writer) = std::io::pipe().context("cannot create a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("cannot duplicate a pipe")?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    // The command holds the pipe's writing end: without this the reader never sees its end.
    drop(command);
    for line in BufReader::new(reader).split(b'\n') {
        let line = line.context("cannot read a command's output")?;
        file.write_all(&[&line, &b"\n"[..]].concat())?;
        step.note(&String::from_utf8_lossy(&line));
    }
    let status = child.wait().context("cannot wait for a command")?;
    if status.success() {
        return Ok(());
    }
    bail!("{}", failure(&program, &status.to_string(), log));
}

/// Opens a file that several programs may write: each adds at the end.
pub(crate) fn append(path: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// Describes a failed command by the end of its log.
fn failure(program: &str, status: &str, log: &Path) -> String {
    let text = fs::read(log)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
    let mut message = format!(
        "{program} failed ({status}); the end of {}:\n{tail}",
        log.display()
    );
    if tail.contains("No space left on device") {
        message.push_str(
            "\nThe disk is full: free some space (the cache is ~/.cache/accf, or \
             $XDG_CACHE_HOME/accf) and run the command again.",
        );
    }
    message
}

/// Makes `command` die with this process, whatever ends it.
pub(crate) fn dying_with_us(command: Command) -> Command {
    let mut wrapper = Command::new("setpriv");
    wrapper.args(["--pdeathsig", "KILL"]);
    wrap(wrapper, &command)
}

/// Returns the beginning of a command in mount and PID namespaces of its own, which ends with it.
pub(crate) fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child"]);
    command
}

/// Appends the program, arguments, environment and directory of `inner` to `wrapper`.
pub(crate) fn wrap(mut wrapper: Command, inner: &Command) -> Command {
    wrapper.arg(inner.get_program()).args(inner.get_args());
    for (key, value) in inner.get_envs() {
        match value {
            Some(value) => wrapper.env(key, value),
            None => wrapper.env_remove(key),
        };
    }
    if let Some(dir) = inner.get_current_dir() {
        wrapper.current_dir(dir);
    }
    wrapper
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use crate::ui;

    /// Returns the error of a script, and the path of its log.
    fn failed(name: &str, script: &str) -> (String, String) {
        let scratch = Scratch::new(name);
        let log = scratch.0.join("log");
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let error = ui::step("fails", |step| logged(command, &log, step)).unwrap_err();
        (error.to_string(), log.display().to_string())
    }

    #[test]
    fn a_failure_shows_both_streams_and_the_log() {
        let (text, log) = failed("exec-fails", "echo first; echo second >&2; exit 3");
        assert!(text.contains("first\nsecond"), "{text}");
        assert!(text.contains(&log), "{text}");
    }

    #[test]
    fn a_full_disk_is_named() {
        let (text, _) = failed("exec-full", "echo 'write: No space left on device'; exit 1");
        assert!(text.contains("The disk is full"));
    }
}
