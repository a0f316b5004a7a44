// SPDX-License-Identifier: MIT OR Apache-2.0

//! Runs the cases: stage by stage, each in a process of its own, under a watchdog.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use accf_kit::module;
use anyhow::{Context as _, Result};
use nix::sys::memfd::{memfd_create, MFdFlags};
use nix::sys::signal::{killpg, Signal};
use nix::unistd::Pid;

use crate::case::{Case, Context, Kernel, Skip, Stage};
use crate::ktap::{Verdict, Writer};

/// The prefix of a line that reports the progress of a case.
pub(crate) const PROGRESS: &str = "progress: ";

/// The exit status of a case's process that means "does not apply"; its last line says why.
const SKIPPED: u8 = 4;

/// Returns the cases whose name contains one of `filters`, or all if there is none, without those
/// that match one of `without`.
pub(crate) fn select(cases: Vec<Case>, filters: &[String], without: &[String]) -> Vec<Case> {
    cases
        .into_iter()
        .filter(|case| {
            filters.is_empty() || filters.iter().any(|filter| case.name.contains(filter))
        })
        .filter(|case| !without.iter().any(|pattern| matches(&case.name, pattern)))
        .collect()
}

/// Returns whether `name` contains the parts of `pattern`, which `*` separates, one after another.
fn matches(name: &str, pattern: &str) -> bool {
    let mut rest = Some(name);
    for part in pattern.split('*') {
        rest = rest.and_then(|rest| Some(rest.split_once(part)?.1));
    }
    rest.is_some()
}

/// Runs one case in this process, and ends it with the status the runner understands.
pub(crate) fn run_here(
    cases: Vec<Case>,
    name: &str,
    seed: u64,
    fuzz_time: Option<Duration>,
) -> Result<ExitCode> {
    let case = cases
        .into_iter()
        .find(|case| case.name == name)
        .with_context(|| format!("no case is called {name}"))?;
    let context = Context::new(name, seed).fuzz_for(fuzz_time);
    match (case.body)(&context) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(skip) => {
                println!("{skip}");
                Ok(ExitCode::from(SKIPPED))
            }
            None => {
                println!("{error:#}");
                println!("{}", context.on_the_wire());
                Ok(ExitCode::FAILURE)
            }
        },
    }
}

/// The result of a case.
struct Outcome {
    verdict: Verdict,
    diagnostics: String,
    took: Duration,
}

impl Outcome {
    fn failed(diagnostics: String) -> Self {
        Self {
            verdict: Verdict::Failed,
            diagnostics,
            took: Duration::ZERO,
        }
    }
}

/// What the processes of cases need.
struct RunOptions {
    program: Program,
    seed: u64,
    patience: u32,
    fuzz_time: Option<Duration>,
    pin: PinWatch,
}

impl RunOptions {
    /// How long a case may take.
    fn limit(&self, case: &Case) -> Duration {
        let fuzz_time = self.fuzz_time.filter(|_| case.stage == Stage::Fuzz);
        case.limit * self.patience + fuzz_time.unwrap_or_default()
    }
}

/// Notices that the module was pinned, and while which cases ran, or that it cannot be unloaded for
/// another reason. Only cases of [`Stage::Last`] may pin it: no later stage could load it with
/// other parameters.
#[derive(Default)]
struct PinWatch(Mutex<Seen>);

/// What a [`PinWatch`] has seen.
#[derive(Default)]
struct Seen {
    running: BTreeSet<String>,
    /// Why no further case can succeed.
    pinned: Option<String>,
}

impl PinWatch {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the module can no longer be unloaded.
    fn cannot_unload(&self, why: &str) {
        self.seen().pinned.get_or_insert_with(|| why.to_owned());
    }

    /// Notes that a case begins; the error says why it cannot.
    fn begin(&self, name: &str, stage: Stage) -> Result<(), String> {
        let mut seen = self.seen();
        match &seen.pinned {
            Some(why) if stage != Stage::Last => Err(why.clone()),
            _ => {
                seen.running.insert(name.to_owned());
                Ok(())
            }
        }
    }

    /// Notes that a case has ended; the error says that the module was pinned meanwhile.
    fn end(&self, name: &str, stage: Stage, is_pinned: bool) -> Result<(), String> {
        let mut seen = self.seen();
        if is_pinned && stage != Stage::Last && seen.pinned.is_none() {
            let cases: Vec<&str> = seen.running.iter().map(String::as_str).collect();
            seen.pinned = Some(format!(
                "the module was pinned, and cannot be unloaded any more, while one of these ran: \
                 {}\n",
                cases.join(", ")
            ));
        }
        seen.running.remove(name);
        match &seen.pinned {
            Some(why) if stage != Stage::Last => Err(why.clone()),
            _ => Ok(()),
        }
    }
}

/// A copy of this program in memory: starting it does not depend on how the guest sees the host's
/// files.
struct Program {
    copy: OwnedFd,
}

impl Program {
    fn load() -> Result<Self> {
        let mut copy = File::from(memfd_create("accf-suite", MFdFlags::MFD_CLOEXEC)?);
        io::copy(&mut File::open("/proc/self/exe")?, &mut copy).context("copy this program")?;
        // A file that is open for writing cannot be executed.
        let copy = File::open(format!("/proc/self/fd/{}", copy.as_raw_fd()))?;
        Ok(Self { copy: copy.into() })
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.copy.as_raw_fd()
        ))
    }
}

/// Runs the cases and prints their results in their order; the exit status is a success if none
/// failed.
pub(crate) fn run(
    cases: Vec<Case>,
    jobs: Option<usize>,
    seed: u64,
    fuzz_time: Option<Duration>,
) -> Result<ExitCode> {
    let kernel = Kernel::of_this_guest();
    let options = RunOptions {
        program: Program::load()?,
        seed,
        patience: kernel.patience(),
        fuzz_time,
        pin: PinWatch::default(),
    };
    let jobs = jobs.unwrap_or(match kernel {
        Kernel::Stock => 6,
        Kernel::Dev => 4,
    });
    let loaded_before = module::is_loaded()?;
    let start = Instant::now();
    let mut writer = Writer::new(std::io::stdout().lock(), cases.len())?;
    writer.diagnostic(&format!(
        "accf-suite: {} cases on {kernel:?}, kernel {}, {jobs} at a time, --seed {seed}",
        cases.len(),
        release()
    ))?;
    let mut cases = VecDeque::from(cases);
    while let Some(stage) = cases.front().map(|case| case.stage) {
        let mut batch = Vec::new();
        while let Some(case) = cases.pop_front_if(|case| case.stage == stage) {
            batch.push(case);
        }
        let stage_start = Instant::now();
        let width = if stage.one_by_one() { 1 } else { jobs };
        match prepare(stage) {
            Ok(()) => run_batch(&batch, width, &options, &mut writer)?,
            Err(error) => {
                let text = format!("the stage \"{stage}\" could not be prepared: {error:#}");
                options.pin.cannot_unload(&text);
                for case in &batch {
                    report(&mut writer, case, &Outcome::failed(text.clone()))?;
                }
            }
        }
        writer.diagnostic(&format!(
            "stage \"{stage}\": {} cases in {:.1} s",
            batch.len(),
            stage_start.elapsed().as_secs_f64()
        ))?;
    }
    if loaded_before && !module::is_loaded()? {
        module::load("")?;
    }
    writer.diagnostic(&format!("took {:.1} s", start.elapsed().as_secs_f64()))?;
    let totals = writer.finish()?;
    Ok(if totals.failed == 0 && totals.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Brings the module into the state a stage needs.
fn prepare(stage: Stage) -> Result<()> {
    match stage {
        Stage::Unloaded if module::is_loaded()? => module::unload(Duration::from_secs(10)),
        _ => stage.parameters().map_or(Ok(()), module::reload),
    }
}

/// Runs a case that failed a second time, alone.
fn once_more(case: &Case, first: &Outcome, options: &RunOptions) -> Outcome {
    let mut again = run_watched(&case.name, case.stage, options.limit(case), options);
    again.diagnostics = format!(
        "failed at first ({:.1} s):\n{}\nonce more, by itself:\n{}",
        first.took.as_secs_f64(),
        first.diagnostics,
        again.diagnostics
    );
    again
}

/// Runs the cases of one stage, `width` at a time, and prints each result once all before it are
/// printed.
///
/// Cases run in parallel to save time, and on emulated processors they can delay each other. One
/// that failed runs again, alone; the second result counts, and both are reported. A case with
/// random input does not run again: its first failure counts.
fn run_batch<W: std::io::Write>(
    batch: &[Case],
    width: usize,
    options: &RunOptions,
    writer: &mut Writer<W>,
) -> Result<()> {
    let mut order: Vec<usize> = (0..batch.len()).collect();
    // Alone, cases run in the table's order, which matters.
    if width > 1 {
        order.sort_by_key(|index| batch.get(*index).is_some_and(|case| !case.early));
    }
    // Names and limits only: the body stays on this thread, and runs in another process.
    let queue: VecDeque<(usize, String, Duration)> = order
        .into_iter()
        .filter_map(|index| {
            let case = batch.get(index)?;
            Some((index, case.name.clone(), options.limit(case)))
        })
        .collect();
    if width == 1 {
        // A failed case runs again at once: later ones may leave something behind.
        for (index, name, limit) in queue {
            let Some(case) = batch.get(index) else {
                continue;
            };
            let first = run_watched(&name, case.stage, limit, options);
            let outcome = match first.verdict {
                Verdict::Failed if case.stage != Stage::Fuzz => once_more(case, &first, options),
                _ => first,
            };
            report(writer, case, &outcome)?;
        }
        return Ok(());
    }
    let Some(stage) = batch.first().map(|case| case.stage) else {
        return Ok(());
    };
    let queue = Mutex::new(queue);
    let mut outcomes: Vec<Option<Outcome>> = batch.iter().map(|_| None).collect();
    let mut failed: Vec<(usize, Outcome)> = Vec::new();
    let mut printed = 0;
    thread::scope(|scope| -> Result<()> {
        let (sender, receiver) = channel();
        for _ in 0..width.max(1) {
            let sender = sender.clone();
            scope.spawn(|| work(&queue, stage, options, sender));
        }
        drop(sender);
        for (index, outcome) in receiver {
            let is_fuzz = batch
                .get(index)
                .is_some_and(|case| case.stage == Stage::Fuzz);
            if matches!(outcome.verdict, Verdict::Failed) && !is_fuzz {
                failed.push((index, outcome));
            } else if let Some(slot) = outcomes.get_mut(index) {
                *slot = Some(outcome);
            }
            printed = report_ready(writer, batch, &outcomes, printed)?;
        }
        Ok(())
    })?;
    for (index, first) in failed {
        let (Some(case), Some(slot)) = (batch.get(index), outcomes.get_mut(index)) else {
            continue;
        };
        *slot = Some(once_more(case, &first, options));
        printed = report_ready(writer, batch, &outcomes, printed)?;
    }
    Ok(())
}

/// Prints the results that are complete, in the order of the cases, from the one after the first
/// `printed`; returns how many are printed now.
fn report_ready<W: std::io::Write>(
    writer: &mut Writer<W>,
    batch: &[Case],
    outcomes: &[Option<Outcome>],
    mut printed: usize,
) -> Result<usize> {
    while let (Some(case), Some(Some(outcome))) = (batch.get(printed), outcomes.get(printed)) {
        report(writer, case, outcome)?;
        printed += 1;
    }
    Ok(printed)
}

/// Takes cases from the queue until it is empty.
fn work(
    queue: &Mutex<VecDeque<(usize, String, Duration)>>,
    stage: Stage,
    options: &RunOptions,
    results: Sender<(usize, Outcome)>,
) {
    loop {
        let next = queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        let Some((index, name, limit)) = next else {
            return;
        };
        let outcome = run_watched(&name, stage, limit, options);
        if results.send((index, outcome)).is_err() {
            return;
        }
    }
}

fn report<W: std::io::Write>(writer: &mut Writer<W>, case: &Case, outcome: &Outcome) -> Result<()> {
    let took = outcome.took.as_secs_f64();
    writer.diagnostic(&format!("{} ({took:.1} s)", case.name))?;
    for line in outcome.diagnostics.lines() {
        writer.diagnostic(&format!("  {line}"))?;
    }
    writer.result(&case.name, &outcome.verdict)?;
    Ok(())
}

/// Runs one case as [`run_process`] does, unless the module is pinned where it must not be.
fn run_watched(name: &str, stage: Stage, limit: Duration, options: &RunOptions) -> Outcome {
    if let Err(why) = options.pin.begin(name, stage) {
        return Outcome::failed(why);
    }
    let mut outcome = run_process(name, limit, options)
        .unwrap_or_else(|error| Outcome::failed(format!("cannot run the case: {error:#}")));
    // Where it is not loaded, it has no parameters.
    let is_pinned = module::is_pinned().unwrap_or(false);
    if let Err(why) = options.pin.end(name, stage, is_pinned) {
        outcome.verdict = Verdict::Failed;
        outcome.diagnostics.push_str(&why);
    }
    outcome
}

/// Runs one case in a process of its own, and ends the process if it does not end by itself.
fn run_process(name: &str, limit: Duration, options: &RunOptions) -> Result<Outcome> {
    let start = Instant::now();
    let mut command = Command::new(options.program.path());
    command.args(["case", name, "--seed", &options.seed.to_string()]);
    if let Some(time) = options.fuzz_time {
        command.args(["--fuzz-seconds", &time.as_secs().to_string()]);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A process group, so that what the case starts ends with it.
        .process_group(0)
        .spawn()
        .context("start a case")?;
    let stdout = collect(child.stdout.take(), name);
    let stderr = collect(child.stderr.take(), name);
    let status = wait(&mut child, limit)?;
    let hung = if status.is_none() {
        let stacks = stacks(child.id());
        end(&mut child)?;
        Some(stacks)
    } else {
        // Nothing of the case may outlive it.
        let _ = killpg(group(&child)?, Signal::SIGKILL);
        None
    };
    let stdout = stdout.join().unwrap_or_default();
    let mut diagnostics = stdout.clone();
    diagnostics.push_str(&stderr.join().unwrap_or_default());
    let verdict = match (status, hung) {
        (Some(status), _) if status.success() => Verdict::Passed,
        (Some(status), _) if status.code() == Some(i32::from(SKIPPED)) => Verdict::Skipped(
            stdout
                .lines()
                .last()
                .unwrap_or("no reason given")
                .to_owned(),
        ),
        (Some(status), _) => {
            if status.code() != Some(1) {
                diagnostics.push_str(&format!("the case's process ended: {status}\n"));
            }
            Verdict::Failed
        }
        (None, stacks) => {
            diagnostics.push_str(&format!(
                "hung: ended after its limit of {:.0} s; where its threads were:\n{}",
                limit.as_secs_f64(),
                stacks.unwrap_or_default()
            ));
            Verdict::Failed
        }
    };
    Ok(Outcome {
        verdict,
        diagnostics,
        took: start.elapsed(),
    })
}

/// Reads a stream to its end on another thread; progress lines are passed on at once.
fn collect(stream: Option<impl Read + Send + 'static>, name: &str) -> thread::JoinHandle<String> {
    let name = name.to_owned();
    thread::spawn(move || {
        let Some(stream) = stream else {
            return String::new();
        };
        let mut text = String::new();
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(lines.read_until(b'\n', &mut line), Ok(length) if length > 0) {
            let said = String::from_utf8_lossy(&line);
            match said.strip_prefix(PROGRESS) {
                Some(progress) => eprint!("{name}: {progress}"),
                None => text.push_str(&said),
            }
            line.clear();
        }
        text
    })
}

/// Waits for a process to end; returns nothing if it did not within `limit`.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() >= limit {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn group(child: &Child) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

/// Kills a hung case with all it started.
fn end(child: &mut Child) -> Result<()> {
    killpg(group(child)?, Signal::SIGKILL).context("kill a hung case")?;
    wait(child, Duration::from_secs(10))?
        .map(drop)
        .context("a hung case does not even end when killed: it is stuck in the kernel")
}

/// Returns the kernel stacks of a process's threads, if the kernel shows them.
fn stacks(process: u32) -> String {
    let mut text = String::new();
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else {
        return text;
    };
    for task in tasks.filter_map(Result::ok) {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        text.push_str(&format!(
            "thread {}: {}\n{}\n",
            task.file_name().to_string_lossy(),
            read("wchan"),
            read("stack").trim_end()
        ));
    }
    text
}

fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map(|release| release.trim().to_owned())
        .unwrap_or_else(|_| "unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::{matches, PinWatch};
    use crate::case::Stage;

    #[test]
    fn a_pinned_module_fails_what_ran_and_what_comes_later() {
        let watch = PinWatch::default();
        assert_eq!(watch.begin("a.early", Stage::Default), Ok(()));
        assert_eq!(watch.end("a.early", Stage::Default, false), Ok(()));
        assert_eq!(watch.begin("a.first", Stage::Default), Ok(()));
        assert_eq!(watch.begin("a.second", Stage::Default), Ok(()));
        let why = watch.end("a.first", Stage::Default, true).unwrap_err();
        assert!(
            why.ends_with("while one of these ran: a.first, a.second\n"),
            "{why}"
        );
        assert_eq!(
            watch.end("a.second", Stage::Default, true),
            Err(why.clone())
        );
        assert_eq!(watch.begin("a.later", Stage::Alone), Err(why));
        assert_eq!(watch.begin("a.last", Stage::Last), Ok(()));
        assert_eq!(watch.end("a.last", Stage::Last, true), Ok(()));
    }

    #[test]
    fn a_module_that_cannot_be_unloaded_fails_what_comes_later() {
        let watch = PinWatch::default();
        watch.cannot_unload("in use");
        watch.cannot_unload("still in use");
        let why = Err("in use".to_owned());
        assert_eq!(watch.begin("a.later", Stage::Alone), why);
        assert_eq!(watch.begin("a.last", Stage::Last), Ok(()));
    }

    #[test]
    fn cases_at_the_very_end_may_pin_the_module() {
        let watch = PinWatch::default();
        for name in ["migrate.one", "migrate.two"] {
            assert_eq!(watch.begin(name, Stage::Last), Ok(()));
            assert_eq!(watch.end(name, Stage::Last, true), Ok(()));
        }
    }

    #[test]
    fn a_star_stands_for_anything() {
        assert!(matches("policy.reset.alone.mapped", "policy.*.mapped"));
        assert!(matches("policy.reset.alone.mapped", "mapped"));
        assert!(!matches("policy.reset.alone.v4", "policy.*.mapped"));
        assert!(!matches("hold.rtt.mapped", "policy.*.mapped"));
        assert!(!matches("mapped.policy.", "policy.*.mapped"));
    }
}
