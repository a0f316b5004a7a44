// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests: boot a kernel on the sysroot, run one command in it and judge the run.
//!
//! A guest leaves an explicit verdict. None, a panic, a hang or anything suspicious in the kernel's
//! log is a [`Failure`], whatever the command's own exit status.

mod early;
mod machine;
pub(crate) mod race;
pub(crate) mod splat;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use fs_err as fs;

use crate::kernel::{Kernel, Kind};
use crate::sysroot::Sysroot;
use crate::{project, ui};
use machine::{End, Machine};
use race::Race;

/// The guest's first process.
const INIT: &str = include_str!("../../../vm/guest-init");

/// The kernel module to load before the command runs.
#[derive(Debug, Clone)]
pub(crate) struct Module {
    /// The module's file, somewhere under the checkout.
    pub(crate) path: PathBuf,
    /// Its parameters, as `name=value`.
    pub(crate) parameters: Vec<String>,
}

/// The machine of a guest, and what it gets to see.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    /// The number of processors.
    pub(crate) cpus: u32,
    /// Memory as QEMU writes it: `1G`.
    pub(crate) memory: String,
    /// Further arguments for QEMU.
    pub(crate) qemu_arguments: Vec<String>,
    /// How long the guest may run, from power-on; from the last one, if it hung in early boot.
    pub(crate) timeout: Option<Duration>,
    /// The module to load.
    pub(crate) module: Option<Module>,
    /// Further host directories that the guest sees at the same path, writable.
    pub(crate) shares: Vec<PathBuf>,
    /// Further environment variables of the command.
    pub(crate) environment: Vec<(String, OsString)>,
    /// The directory `$ACCF_OUT` of the command; it must be under the checkout or a share.
    pub(crate) out: PathBuf,
    /// Look for leaked memory at the end, where the kernel can.
    pub(crate) kmemleak: bool,
    /// Copy what the command prints to our own output as it appears.
    pub(crate) echo: bool,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            cpus: 2,
            memory: "1G".to_owned(),
            qemu_arguments: Vec::new(),
            timeout: Some(Duration::from_secs(600)),
            module: None,
            shares: Vec::new(),
            environment: Vec::new(),
            out: project::target().join("vm"),
            kmemleak: false,
            echo: true,
        }
    }
}

/// Something that makes a guest's run worthless.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Failure {
    /// There is no verdict.
    #[error("the guest stopped without a verdict; the end of its console:\n{0}")]
    NoVerdict(String),
    /// The kernel panicked.
    #[error("the guest's kernel panicked:\n{0}")]
    Panic(String),
    /// The guest hung before its first process ran, as often as it was booted.
    #[error(
        "the guest hung before its first process ran, each of the {times} times that it was \
         booted; the end of its console:\n{0}",
        times = early::AGAIN + 1
    )]
    NeverBooted(String),
    /// The guest was still running at the deadline.
    #[error(
        "the guest hung: it was still running after {seconds} s (--timeout) and was ended; the \
         end of its console:\n{1}",
        seconds = .0.as_secs()
    )]
    Timeout(Duration, String),
    /// The kernel reported something wrong, or our module was not silent.
    #[error("the guest's kernel log has a splat: {0}")]
    Splat(String),
    /// The kernel reported a data race that names our module.
    #[error("a data race in the guest: {0}")]
    Race(String),
    /// The module could not be loaded.
    #[error("the guest could not load the module:\n{0}")]
    Insmod(String),
    /// The kernel found leaked memory.
    #[error("the guest's kernel found leaked memory:\n{0}")]
    Leak(String),
}

/// The report of a guest's run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// The command's exit status, if it came to an end.
    pub(crate) status: Option<i32>,
    /// Everything that makes the run a failure apart from the status.
    pub(crate) failures: Vec<Failure>,
    /// Descriptions of the boots in which the machine hung before its first process ran.
    pub(crate) boots_in_vain: Vec<String>,
    /// The data races that the kernel reported and that do not name our module.
    pub(crate) foreign_races: Vec<Race>,
    /// What the command printed.
    pub(crate) stdout: Vec<u8>,
    /// What the command printed as errors.
    pub(crate) stderr: Vec<u8>,
    /// The kernel's log; the console's text if the guest did not get to leave its log.
    pub(crate) dmesg: String,
    /// From power-on to the loaded module, if it came to that.
    pub(crate) boot_time: Option<Duration>,
    /// From power-on to the end.
    pub(crate) took: Duration,
    /// The directory with the guest's logs.
    pub(crate) run: PathBuf,
}

impl Report {
    /// Returns the command's exit status, or an error if the run is worthless.
    pub(crate) fn verdict(&self) -> Result<i32> {
        if let (Some(status), []) = (self.status, self.failures.as_slice()) {
            return Ok(status);
        }
        let texts: Vec<String> = self.failures.iter().map(Failure::to_string).collect();
        bail!("{}\n(logs: {})", texts.join("\n"), self.run.display())
    }

    /// Removes the logs of a run, unless a boot hung.
    pub(crate) fn remove_logs(&self) -> Result<()> {
        if !self.boots_in_vain.is_empty() {
            return Ok(());
        }
        Ok(fs::remove_dir_all(&self.run)?)
    }
}

impl Guest {
    /// Boots `kernel` and runs `command` in the guest, from the current directory if the guest sees
    /// it.
    pub(crate) fn run<S: AsRef<OsStr>>(
        &self,
        sysroot: &Sysroot,
        kernel: &Kernel,
        command: &[S],
    ) -> Result<Report> {
        self.boot(sysroot, kernel, command, false)
    }

    /// Boots `kernel` and gives a shell on our terminal.
    pub(crate) fn shell(&self, sysroot: &Sysroot, kernel: &Kernel) -> Result<Report> {
        self.boot(sysroot, kernel, &["bash", "-i"], true)
    }

    /// Boots, waits and judges.
    fn boot<S: AsRef<OsStr>>(
        &self,
        sysroot: &Sysroot,
        kernel: &Kernel,
        command: &[S],
        terminal: bool,
    ) -> Result<Report> {
        let run = new_run_directory(kernel.kind)?;
        let shares = self.all_shares()?;
        fs::create_dir_all(&self.out)?;
        for name in ["stdout", "stderr"] {
            fs::write(run.join(name), "")?;
        }
        let files = run.join("guest");
        fs::create_dir(&files)?;
        for (name, content) in self.guest_files(kernel.kind, &run, &shares, command, terminal)? {
            fs::write(files.join(name), content)?;
        }
        let parts = machine::Parts {
            image: &kernel.image,
            kind: kernel.kind,
            files: &files,
            cpus: self.cpus,
            memory: &self.memory,
            arguments: &self.qemu_arguments,
            shares: &shares,
            terminal,
            run: &run,
        };
        let once = || {
            let mut machine = Machine::start(sysroot, &parts)?;
            let begin = Instant::now();
            // A user at a terminal sees what hangs.
            let end = machine.wait(self.timeout, !terminal, self.echo && !terminal)?;
            Ok((end, (begin, begin.elapsed())))
        };
        let in_vain = |number, end: &End| {
            let said = early::set_aside(&run, number, end)?;
            eprintln!("{said}; booting again");
            if matches!(end, End::HungEarly) {
                ui::record("a boot that hung", early::SILENCE);
            }
            Ok(said)
        };
        let (end, (begin, took), boots_in_vain) = early::insist(once, in_vain)?;
        let mut report = self.judge(run, end, begin, took)?;
        report.boots_in_vain = boots_in_vain;
        Ok(report)
    }

    /// Lists the directories that the guest sees writable: the checkout and the user's.
    fn all_shares(&self) -> Result<Vec<PathBuf>> {
        let mut shares = vec![project::root().to_owned()];
        for share in &self.shares {
            let path = fs::canonicalize(share)?;
            if !path.is_dir()
                || path == Path::new("/")
                || path.as_os_str().as_bytes().contains(&b'\n')
            {
                bail!("cannot share {}: not a directory below /", path.display());
            }
            if !shares.contains(&path) {
                shares.push(path);
            }
        }
        Ok(shares)
    }

    /// Returns the files that tell the guest's scripts what to do.
    fn guest_files<S: AsRef<OsStr>>(
        &self,
        kind: Kind,
        run: &Path,
        shares: &[PathBuf],
        command: &[S],
        terminal: bool,
    ) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let here = std::env::current_dir().context("no current directory")?;
        let visible = shares.iter().any(|share| here.starts_with(share));
        let directory = if visible { &here } else { project::root() };
        let (rows, columns) = console::Term::stdout().size();
        let host_terminal = std::env::var("TERM").unwrap_or_else(|_| "vt100".to_owned());
        let mut settings = Vec::new();
        let mut set = |name: &str, value: &OsStr| {
            settings.extend_from_slice(name.as_bytes());
            settings.push(b'=');
            settings.extend(quoted(value));
            settings.push(b'\n');
        };
        set("RUN", run.as_os_str());
        set("DIRECTORY", directory.as_os_str());
        let module = self.module.as_ref().map(|module| module.path.as_os_str());
        set("MODULE", module.unwrap_or_default());
        set("KMEMLEAK", OsStr::new(if self.kmemleak { "1" } else { "" }));
        set(
            "TERMINAL",
            OsStr::new(if terminal { host_terminal.as_str() } else { "" }),
        );
        set("ROWS", OsStr::new(&rows.to_string()));
        set("COLUMNS", OsStr::new(&columns.to_string()));

        let mut environment = self.environment.clone();
        environment.push(("ACCF_KERNEL".to_owned(), kind.name().into()));
        environment.push(("ACCF_OUT".to_owned(), self.out.clone().into()));
        if let Some(module) = &self.module {
            environment.push(("ACCF_KO".to_owned(), module.path.clone().into()));
        }
        let environment = environment.iter().map(|(name, value)| {
            let mut assignment = OsString::from(format!("{name}="));
            assignment.push(value);
            assignment
        });
        let parameters = self.module.iter().flat_map(|module| &module.parameters);
        Ok(vec![
            ("init", INIT.into()),
            ("settings", settings),
            ("shares", ended_by(b'\n', shares)),
            ("command", ended_by(0, command)),
            ("environment", ended_by(0, environment)),
            ("parameters", ended_by(0, parameters)),
        ])
    }

    /// Reads the files that the guest left, and judges its run.
    fn judge(&self, run: PathBuf, end: End, begin: Instant, took: Duration) -> Result<Report> {
        let read = |name: &str| fs::read(run.join(name)).ok();
        let text = |name: &str| read(name).map(|b| String::from_utf8_lossy(&b).into_owned());
        // A guest with a terminal has no file of its own for the console.
        let console = text("console").or_else(|| text("virtme.log"));
        let console = console.unwrap_or_default().replace('\r', "");
        let verdict = text("verdict").unwrap_or_default();
        let dmesg = text("dmesg");
        let mut failures = Vec::new();
        let mut status = None;

        let log = dmesg.unwrap_or_else(|| console.clone());
        let (races, rest) = race::take(&log);
        let splats = splat::scan(&rest);
        match verdict
            .trim()
            .split_once(' ')
            .unwrap_or((verdict.trim(), ""))
        {
            ("status", number) => {
                status = Some(number.parse().context("the guest's verdict is no number")?);
            }
            ("insmod", _) => {
                let said = text("insmod").unwrap_or_default();
                failures.push(Failure::Insmod(format!("{said}{}", last_lines(&log, 15))));
            }
            ("directory", _) => bail!("the guest cannot enter the working directory"),
            _ => {
                let said = text("guest-init.log").unwrap_or_default();
                let console = format!("{console}{said}");
                failures.push(no_verdict(end, &console, &splats, self.timeout));
            }
        }
        // The failure of a panic has its splat.
        if !matches!(failures.first(), Some(Failure::Panic(_))) {
            failures.extend(splats.iter().map(|splat| Failure::Splat(splat.to_string())));
        }
        let (ours, foreign_races): (Vec<_>, Vec<_>) =
            races.into_iter().partition(|race| race.is_ours);
        failures.extend(ours.iter().map(|race| Failure::Race(race.to_string())));
        if let Some(leaks) = text("kmemleak").filter(|leaks| !leaks.trim().is_empty()) {
            failures.push(Failure::Leak(leaks));
        }
        let booted = fs::metadata(run.join("booted")).and_then(|data| data.modified());
        let boot_time = booted.ok().and_then(|booted| {
            let since_begin = begin.elapsed();
            let age = booted.elapsed().ok()?;
            since_begin.checked_sub(age)
        });
        Ok(Report {
            status,
            failures,
            foreign_races,
            stdout: read("stdout").unwrap_or_default(),
            stderr: read("stderr").unwrap_or_default(),
            dmesg: log,
            boot_time,
            took,
            run,
            ..Report::default()
        })
    }
}

/// Returns the failure that explains why there is no verdict.
fn no_verdict(
    end: End,
    console: &str,
    splats: &[splat::Splat],
    timeout: Option<Duration>,
) -> Failure {
    let panic = console
        .lines()
        .any(|line| splat::message(line).contains("Kernel panic"));
    if panic {
        let log = splats.first().map(|splat| splat.excerpt.clone());
        return Failure::Panic(log.unwrap_or_else(|| last_lines(console, 40)));
    }
    match end {
        End::HungEarly => Failure::NeverBooted(last_lines(console, 40)),
        End::TimedOut => Failure::Timeout(timeout.unwrap_or_default(), last_lines(console, 40)),
        End::Stopped(note) | End::CrashedEarly(note) => {
            Failure::NoVerdict(format!("{}{note}", last_lines(console, 40)))
        }
    }
}

/// Returns the last `count` lines of `text`, each with its end.
fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..]
        .iter()
        .map(|line| format!("{line}\n"))
        .collect()
}

/// Joins `items`, each ended by `end`.
fn ended_by<S: AsRef<OsStr>>(end: u8, items: impl IntoIterator<Item = S>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for item in items {
        bytes.extend_from_slice(item.as_ref().as_bytes());
        bytes.push(end);
    }
    bytes
}

/// Quotes `text` for a shell.
fn quoted(text: &OsStr) -> Vec<u8> {
    let mut bytes = vec![b'\''];
    for byte in text.as_bytes() {
        match byte {
            b'\'' => bytes.extend_from_slice(br"'\''"),
            byte => bytes.push(*byte),
        }
    }
    bytes.push(b'\'');
    bytes
}

/// How many old run directories are kept.
const KEPT_RUNS: usize = 20;

/// Makes a directory for one run's files, and removes the oldest ones.
fn new_run_directory(kind: Kind) -> Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let base = project::target().join("run");
    fs::create_dir_all(&base)?;
    let mut old: Vec<_> = fs::read_dir(&base)?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .collect();
    old.sort();
    for (_, path) in old.iter().rev().skip(KEPT_RUNS) {
        // Best effort: another task may be using it.
        let _ = fs::remove_dir_all(path);
    }
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("{}-{}-{number}", kind.name(), std::process::id());
    let run = base.join(name);
    if run.exists() {
        // Process ids repeat.
        fs::remove_dir_all(&run)?;
    }
    fs::create_dir(&run)?;
    Ok(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_what_was_quoted() {
        for text in [
            "plain",
            "two words",
            "it's",
            "$HOME `id` \"x\" \\n",
            "",
            "*",
        ] {
            let mut script = b"printf %s ".to_vec();
            script.extend(quoted(OsStr::new(text)));
            let output = std::process::Command::new("sh")
                .arg("-c")
                .arg(OsStr::from_bytes(&script))
                .output()
                .unwrap();
            assert_eq!(output.stdout, text.as_bytes());
        }
    }

    #[test]
    fn a_panic_is_told_from_a_hang_and_a_stop() {
        let console = "[    1.0] fine\n[    2.0] Kernel panic - not syncing: sysrq\n";
        let splats = splat::scan(console);
        let stopped = || End::Stopped(String::new());
        let failure = no_verdict(stopped(), console, &splats, None);
        assert!(matches!(failure, Failure::Panic(log) if log.contains("sysrq")));
        let limit = Some(Duration::from_secs(3));
        let failure = no_verdict(End::TimedOut, "[    1.0] fine\n", &[], limit);
        assert!(failure.to_string().contains("still running after 3 s"));
        let failure = no_verdict(End::HungEarly, "[    1.0] fine\n", &[], limit);
        assert!(failure.to_string().contains("each of the 3 times"));
        let failure = no_verdict(stopped(), "[    1.0] fine\n", &[], None);
        assert!(matches!(failure, Failure::NoVerdict(log) if log.contains("fine")));
    }
}
