// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask test`: all tests, on the host and in guests of the kernels.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use accf_bench::{Bench, Recording};
use anyhow::{bail, Context, Result};
use fs_err as fs;
use xshell::{cmd, Shell};

use crate::bench::{self, Request, SHORT_RUN_SLACK};
use crate::guest::{race, Report};
use crate::kernel::Kind;
use crate::ktap::{self, Outcome, Results, Test as Case};
use crate::lab::{Lab, BOOTING_AND_LOADING};
use crate::ui::{self, Step};
use crate::{exec, program, project, soak, tidy};

use super::{any_seed, exit_code};

/// How long one boot with all its suites may take.
const GUEST_TIMEOUT: Duration = Duration::from_secs(3300);

/// The accesses that KCSAN must watch for a run to count. (It watches a thousand a second, or
/// more.)
const KCSAN_WATCHES: u64 = 100_000;

/// How long the soak lasts.
const SOAK: Duration = Duration::from_secs(180);

/// The number of times that the short benchmarks measure each figure.
const BENCH_ROUNDS: u32 = 2;

/// The script of a guest of one of our own kernels. First our KUnit suites run, those that appear
/// when their module is loaded; it is unloaded because the client suite unloads ours. Then the
/// client suite runs, and prints its results.
///
/// KCSAN watches one access of some thousands, each for some microseconds: values for real
/// processors. An emulated one does less in the same time, so it watches more accesses, each for
/// longer. At the end its counters are kept.
const OWN_SCRIPT: &str = r#"
if [ "$ACCF_KERNEL" = kcsan ]; then
    cd /sys/module/kcsan/parameters && echo 1000 >skip_watch &&
        echo 160 >udelay_task && echo 80 >udelay_interrupt || exit 1
    cd "$OLDPWD" || exit 1
    echo on >/sys/kernel/debug/kcsan || exit 1
fi
kunit=/sys/kernel/debug/kunit
ls "$kunit" >/tmp/suites
insmod "$ACCF_KUNIT_KO" || exit 1
ls "$kunit" | grep -vxFf /tmp/suites | while read -r suite; do
    cat "$kunit/$suite/results"
done >"$ACCF_OUT/kunit.ktap"
rmmod accf_kunit || exit 1
"$@"
status=$?
if [ "$ACCF_KERNEL" = kcsan ]; then
    cat /sys/kernel/debug/kcsan >"$ACCF_OUT/kcsan" || exit 1
fi
exit "$status"
"#;

/// The cases that only the stock kernel runs, as the dev kernel is slow: those of IPv4 clients of
/// an IPv6 listener that take the path of any IPv4 client. What differs for such clients is in
/// `attach`, `deadline`, `field.ack`, `field.options`, `hold`, `ktls`, `lifetime`, `plain` and
/// `release`.
const DEV_WITHOUT: &[&str] = &[
    "account.*.mapped",
    "backlog.*.mapped",
    "bypass.*.mapped",
    "control.*.mapped",
    "defer.*.mapped",
    "evict.*.mapped",
    "field.bpf.*.mapped",
    "field.burst.*.mapped",
    "field.close.*.mapped",
    "field.device.*.mapped",
    "field.pause.*.mapped",
    "field.plug.*.mapped",
    "field.probe.*.mapped",
    "field.same_port.*.mapped",
    "field.source.*.mapped",
    "field.tos.*.mapped",
    "field.transparent.*.mapped",
    "field.vanished.*.mapped",
    "field.vrf.*.mapped",
    "fuzz.*.mapped",
    "migrate.*.mapped",
    "mixture.*.mapped",
    "odd.*.mapped",
    "policy.*.mapped",
];

/// The cases that the kcsan kernel runs: several CPUs work on the same requests and listener.
const KCSAN_ONLY: &[&str] = &[
    "account.",
    "backlog.",
    "crowd.",
    "deadline.",
    "evict.",
    "fuzz.",
    "lifetime.",
    "migrate.",
    "mixture.",
];

/// Run every test: on the host, in one guest of each kernel, a short run of the benchmarks, and
/// three minutes of soak.
///
/// With --filter, only cases of the client suite in a guest: nothing on the host, no benchmarks, no
/// soak. For example: cargo xtask test --filter backlog. --filter evict. --kernel dev
///
/// The last line is `N passed, N failed, N skipped`; logs are under target/accf/test/.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Test {
    /// Also in guests of the kernels `kcsan` (KUnit, and the cases where several CPUs work on the
    /// same requests or listener: no data race may name the module) and `rt` (everything, with
    /// PREEMPT_RT), which take half an hour each to build for the first time; and the soak on the
    /// dev kernel.
    #[arg(long)]
    all: bool,

    /// Only cases of the client suite with NAME in their name; may be repeated. Guests of `dev`,
    /// `kcsan` and `rt` run all KUnit suites before. `cargo run -p accf-suite -- run --list`
    /// prints the names.
    #[arg(long, value_name = "NAME", conflicts_with = "all")]
    filter: Vec<String>,

    /// Only in the guest of this kernel: the cases of --filter, or without it KUnit and the cases
    /// that `--all` runs there; may be repeated. With --filter alone it is `stock`.
    #[arg(long, value_enum, value_name = "KERNEL", conflicts_with = "all")]
    kernel: Vec<Kind>,
}

impl Test {
    /// Runs the command.
    pub(crate) fn run(&self, sh: &Shell) -> Result<ExitCode> {
        let tally = if self.filter.is_empty() && self.kernel.is_empty() {
            run_all(sh, self.all)?
        } else {
            self.run_selected(sh)?
        };
        ui::print_timings();
        println!("\n{}", tally.failures());
        println!("{}", tally.last_line());
        Ok(exit_code(tally.failed() == 0))
    }

    /// Runs the cases of the filters, or all, in a guest of each kernel asked for.
    fn run_selected(&self, sh: &Shell) -> Result<Tally> {
        let suite = program::build_suite(sh)?;
        let names = cmd!(sh, "{suite} run --list")
            .quiet()
            .read()
            .context("cannot list the cases of the client suite")?;
        check_filters(&self.filter, &names)?;
        let kernels: &[Kind] = match self.kernel.as_slice() {
            [] => &[Kind::Stock],
            kernels => kernels,
        };
        let mut tally = Tally::new()?;
        for &kind in kernels {
            tally.guest(kind, &Lab::new(kind)?, &suite, &self.filter)?;
        }
        Ok(tally)
    }
}

/// Checks that every filter is part of one of `names`, one a line: a filter that selects nothing
/// would count as passed.
fn check_filters(filters: &[String], names: &str) -> Result<()> {
    for filter in filters {
        if !names.lines().any(|name| name.contains(filter.as_str())) {
            bail!(
                "no case of the client suite has `{filter}` in its name; `cargo run -p accf-suite \
                 -- run --list` prints the names"
            );
        }
    }
    Ok(())
}

/// Runs everything, in guests of `all` kernels or of the two that must pass before a change is
/// merged. A failure does not keep the rest from running.
fn run_all(sh: &Shell, all: bool) -> Result<Tally> {
    let mut tally = Tally::new()?;
    tally.check("tidy", |_| tidy::run(sh));
    let cargo = |arguments: &str| {
        let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
        command.args(arguments.split(' '));
        command.current_dir(project::root());
        command
    };
    tally.logged("rustfmt", cargo("fmt --all -- --check"));
    let clippy = "clippy --workspace --all-targets -- -D warnings";
    tally.logged("clippy", cargo(clippy));
    let mut doc = cargo("doc --workspace --no-deps --document-private-items");
    doc.env("RUSTDOCFLAGS", "-D warnings");
    tally.logged("rustdoc", doc);
    tally.host_tests(cargo("test --workspace --no-fail-fast"));

    let suite = program::build_suite(sh);
    let suite = tally.taken("guest/accf-suite", suite);
    let more: &[Kind] = if all { &[Kind::Kcsan, Kind::Rt] } else { &[] };
    for &kind in [Kind::Stock, Kind::Dev].iter().chain(more) {
        let kernel = kind.name();
        let Some(lab) = tally.taken(&format!("build/{kernel}"), Lab::new(kind)) else {
            continue;
        };
        tally.pass(&format!("build/{kernel}"));
        if let Some(suite) = &suite {
            let ran = tally.guest(kind, &lab, suite, &[]);
            tally.taken(&format!("guest/{kernel}"), ran);
        }
        if kind == Kind::Stock {
            let ran = tally.benchmarks(sh, &lab);
            tally.taken("bench/guest", ran);
        }
        if kind == Kind::Stock || (all && kind == Kind::Dev) {
            let ran = tally.soak(sh, kind, &lab);
            tally.taken(&format!("{kernel}/soak"), ran);
        }
    }
    Ok(tally)
}

/// The results so far.
#[derive(Default)]
struct Tally {
    cases: Vec<Case>,
    /// Tests of the host, of which only the number is known.
    host_passed: usize,
    logs: PathBuf,
}

impl Tally {
    /// Returns no results, with an empty directory of logs.
    fn new() -> Result<Self> {
        let logs = project::target().join("test");
        project::empty(&logs)?;
        Ok(Self {
            logs,
            ..Self::default()
        })
    }

    /// Records one result.
    fn record(&mut self, name: &str, outcome: Outcome, detail: &str) {
        self.cases.push(Case {
            name: name.to_owned(),
            outcome,
            detail: detail.to_owned(),
        });
    }

    /// Records a test that passed.
    fn pass(&mut self, name: &str) {
        self.record(name, Outcome::Passed, "");
    }

    /// Records a test that failed.
    fn fail(&mut self, name: &str, detail: &str) {
        self.record(name, Outcome::Failed, detail);
    }

    /// Takes the value out of `result`, or records its error as the failure `name`.
    fn taken<T>(&mut self, name: &str, result: Result<T>) -> Option<T> {
        result
            .map_err(|error| self.fail(name, &format!("{error:#}")))
            .ok()
    }

    /// Runs a check and records its result.
    fn check(&mut self, name: &str, check: impl FnOnce(&Step) -> Result<()>) {
        let result = ui::step(name, check);
        if self.taken(name, result).is_some() {
            self.pass(name);
        }
    }

    /// Runs a command whose success is the test.
    fn logged(&mut self, name: &str, command: Command) {
        let log = self.logs.join(format!("{name}.log"));
        self.check(name, |step| exec::logged(command, &log, step));
    }

    /// Runs the host's tests.
    fn host_tests(&mut self, command: Command) {
        let log = self.logs.join("host.log");
        let result = ui::step("host tests", |step| exec::logged(command, &log, step));
        let text = fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let host = HostResults::parse(&text);
        self.host_passed += host.passed;
        for name in &host.failed {
            self.fail(&format!("host/{name}"), &format!("see {}", log.display()));
        }
        for _ in 0..host.ignored {
            self.record("host", Outcome::Skipped, "ignored");
        }
        match result {
            Err(error) if host.failed.is_empty() => self.fail("host", &format!("{error:#}")),
            Ok(()) if host.passed == 0 => self.fail("host", "no test ran"),
            _ => {}
        }
    }

    /// Boots a guest of `kind` and records the results of its suites. With `filters`, the client
    /// suite runs the cases that match one of them.
    fn guest(&mut self, kind: Kind, lab: &Lab, suite: &Path, filters: &[String]) -> Result<()> {
        let name = kind.name();
        let out = self.logs.join(name);
        fs::create_dir_all(&out)?;
        let mut guest = lab.guest(&[]);
        guest.timeout = Some(GUEST_TIMEOUT);
        guest.echo = !filters.is_empty();
        guest.kmemleak = matches!(kind, Kind::Dev | Kind::Rt);
        guest.out = out.clone();
        let mut command: Vec<&OsStr> = Vec::new();
        if kind.is_own() {
            command.extend(["sh", "-c", OWN_SCRIPT, "sh"].map(OsStr::new));
        }
        command.extend([suite.as_os_str(), OsStr::new("run")]);
        let whole: (&str, &[&str]) = match kind {
            Kind::Stock | Kind::Rt => ("", &[]),
            Kind::Dev => ("--without", DEV_WITHOUT),
            Kind::Kcsan => ("--filter", KCSAN_ONLY),
        };
        let (option, patterns) = match filters {
            [] => (whole.0, whole.1.to_vec()),
            filters => ("--filter", filters.iter().map(String::as_str).collect()),
        };
        for pattern in &patterns {
            command.extend([option, pattern].map(OsStr::new));
        }
        let report = ui::step(&format!("guest of the {name} kernel"), |_| {
            let report = lab.run(&guest, &command)?;
            if let Some(boot) = report.boot_time {
                ui::record(BOOTING_AND_LOADING, boot);
                ui::record("its suites", report.took.saturating_sub(boot));
            }
            Ok(report)
        })?;
        keep(&report, &out)?;
        eprint!("{}", race::summary(&report.foreign_races));
        self.judge(kind, &report, &out, filters.is_empty());
        Ok(())
    }

    /// Runs the benchmarks with few connections and short times, and records which bars hold.
    fn benchmarks(&mut self, sh: &Shell, lab: &Lab) -> Result<()> {
        let program = program::build(sh, "accf-bench")?;
        let module = lab.module().context("no module was built")?;
        let request = Request {
            benches: Bench::ALL.to_vec(),
            rounds: BENCH_ROUNDS,
            short: true,
        };
        let recorded = self.logs.join("bench");
        ui::step("short benchmarks in a guest", |_| {
            request.run(lab, &program, module, &recorded)
        })?;
        self.bars(&bench::read(&recorded)?, &request.benches);
        Ok(())
    }

    /// Runs the soak, and records its proofs.
    fn soak(&mut self, sh: &Shell, kind: Kind, lab: &Lab) -> Result<()> {
        let program = program::build(sh, "accf-soak")?;
        let request = soak::Request {
            kind,
            time: SOAK,
            seed: any_seed()?,
        };
        let name = kind.name();
        let out = self.logs.join("soak").join(name);
        let soak = ui::step(&format!("soak in a guest of the {name} kernel"), |_| {
            request.run(lab, &program, &out, false)
        })?;
        println!("{}", soak.closing_line());
        self.proofs(&soak);
        Ok(())
    }

    /// Records the proofs of a soak.
    fn proofs(&mut self, soak: &soak::Soak) {
        for proof in &soak.proofs {
            let name = format!("{}/soak/{}", soak.kernel, proof.name);
            if proof.pass {
                self.pass(&name);
            } else {
                let detail = format!("{}\n{}\nseed {}", proof.says, proof.found, soak.seed);
                self.fail(&name, &detail);
            }
        }
    }

    /// Records which bars hold, or are missed by as little as a short run may.
    fn bars(&mut self, recording: &Recording, asked: &[Bench]) {
        for bar in bench::judge(recording, asked) {
            let name = format!("bench/{}", bar.name);
            if bar.holds(SHORT_RUN_SLACK) {
                self.pass(&name);
            } else {
                self.fail(&name, &bar.to_string());
            }
        }
    }

    /// Records the results of a guest's suites, and its failures. KCSAN must have watched enough
    /// accesses if the guest ran the `whole` of its suites.
    fn judge(&mut self, kind: Kind, report: &Report, out: &Path, whole: bool) {
        let name = kind.name();
        for failure in &report.failures {
            self.fail(&format!("{name}/guest"), &failure.to_string());
        }
        let before = self.failed();
        if kind.is_own() {
            let text = fs::read(out.join("kunit.ktap")).unwrap_or_default();
            self.ktap(&format!("{name}/kunit"), &String::from_utf8_lossy(&text));
        }
        if kind == Kind::Kcsan {
            let text = fs::read_to_string(out.join("kcsan")).unwrap_or_default();
            let watched = race::watched(&text).unwrap_or(0);
            let wanted = if whole { KCSAN_WATCHES } else { 1 };
            if watched < wanted {
                let says = format!("KCSAN watched {watched} accesses; it must watch {wanted}");
                self.fail("kcsan/guest", &says);
            }
            if !report.foreign_races.iter().any(|race| race.is_on_purpose) {
                self.fail(
                    "kcsan/guest",
                    "KCSAN did not report the deliberate data race of the module's Rust code \
                     (kunit/test_sanitizer.rs)",
                );
            }
        }
        let text = String::from_utf8_lossy(&report.stdout);
        self.ktap(&format!("{name}/suite"), &text);
        // A suite that fails without a failed test, or a script that could not go on.
        if self.failed() == before && report.status.is_some_and(|status| status != 0) {
            let said = String::from_utf8_lossy(&report.stderr);
            let status = report.status.unwrap_or_default();
            let says = format!("the command in the guest ended with status {status}:\n{said}");
            self.fail(&format!("{name}/guest"), &says);
        }
    }

    /// Records the results of a KTAP text.
    fn ktap(&mut self, name: &str, text: &str) {
        let Results { tests, errors } = ktap::parse(text);
        if tests.is_empty() {
            self.fail(name, "no test ran");
        }
        for test in tests {
            self.record(&format!("{name}/{}", test.name), test.outcome, &test.detail);
        }
        for error in errors {
            self.fail(name, &error);
        }
    }

    /// Counts the results of one outcome.
    fn count(&self, outcome: Outcome) -> usize {
        let cases = self.cases.iter();
        cases.filter(|case| case.outcome == outcome).count()
    }

    /// Counts the failures.
    fn failed(&self) -> usize {
        self.count(Outcome::Failed)
    }

    /// Describes the failures and the skipped tests.
    fn failures(&self) -> Results {
        let cases = self.cases.iter();
        Results {
            tests: cases
                .filter(|case| case.outcome != Outcome::Passed)
                .cloned()
                .collect(),
            errors: Vec::new(),
        }
    }

    /// Returns the last line of the output.
    fn last_line(&self) -> String {
        let passed = self.count(Outcome::Passed) + self.host_passed;
        let mut line = format!("{passed} passed, {} failed", self.failed());
        let skipped = self.count(Outcome::Skipped);
        if skipped > 0 {
            line.push_str(&format!(", {skipped} skipped"));
        }
        line
    }
}

/// Keeps a guest's logs with those of the tests.
pub(crate) fn keep(report: &Report, out: &Path) -> Result<()> {
    fs::write(out.join("suite.ktap"), &report.stdout)?;
    fs::write(out.join("stderr"), &report.stderr)?;
    Ok(fs::write(out.join("dmesg"), &report.dmesg)?)
}

/// The results of `cargo test`.
#[derive(Debug, Default, PartialEq, Eq)]
struct HostResults {
    passed: usize,
    ignored: usize,
    failed: Vec<String>,
}

impl HostResults {
    /// Reads the output of all test programs.
    fn parse(text: &str) -> Self {
        let mut results = Self::default();
        for line in text.lines() {
            if let Some(counts) = line.strip_prefix("test result: ") {
                results.passed += number_before(counts, " passed");
                results.ignored += number_before(counts, " ignored");
            } else if let Some(name) = line
                .strip_prefix("test ")
                .and_then(|rest| rest.strip_suffix(" ... FAILED"))
            {
                results.failed.push(name.to_owned());
            }
        }
        results
    }
}

/// Returns the number right before `word`, or none, which is zero.
fn number_before(text: &str, word: &str) -> usize {
    text.split_once(word)
        .and_then(|(before, _)| before.rsplit(' ').next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::race::Race;
    use crate::guest::Failure;
    use crate::scratch::Scratch;

    /// A text with a test that passed.
    const GOOD: &str = "KTAP version 1\n1..1\nok 1 a\n";

    /// Returns the results of a guest whose logs are in `out`.
    fn judged(kind: Kind, report: &Report, out: &str) -> Tally {
        let mut tally = Tally::default();
        tally.judge(kind, report, Path::new(out), true);
        tally
    }

    /// A guest's report.
    fn report(status: i32, stdout: &str) -> Report {
        Report {
            status: Some(status),
            stdout: stdout.as_bytes().to_vec(),
            stderr: b"what it said".to_vec(),
            ..Report::default()
        }
    }

    /// A data race of other code than ours, or the deliberate one.
    fn race(is_on_purpose: bool) -> Race {
        Race {
            is_on_purpose,
            ..Race::default()
        }
    }

    #[test]
    fn results_of_host_tests_are_added_up() {
        let text = "running 2 tests\ntest a::b ... ok\ntest a::c ... FAILED\n\n\
             test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n\
             test result: ok. 12 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out\n";
        let expected = HostResults {
            passed: 13,
            ignored: 2,
            failed: vec!["a::c".to_owned()],
        };
        assert_eq!(HostResults::parse(text), expected);
    }

    #[test]
    fn a_good_guest_passes() {
        let good = "KTAP version 1\n1..2\nok 1 a\nok 2 b # SKIP not here\n";
        let tally = judged(Kind::Stock, &report(0, good), "");
        assert_eq!(tally.last_line(), "1 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn a_silent_guest_fails() {
        assert!(judged(Kind::Stock, &report(0, ""), "").failed() > 0);
    }

    #[test]
    fn missed_bars_fail() {
        let mut recording = bench::sample::sample();
        let mut first = Tally::default();
        first.bars(&recording, &Bench::ALL);
        assert_eq!(first.failed(), 0, "{}", first.failures());
        assert!(first.cases.len() > Bench::ALL.len());
        recording.measurements.clear();
        let mut second = Tally::default();
        second.bars(&recording, &Bench::ALL);
        assert!(second.failed() >= first.cases.len());
    }

    #[test]
    fn failed_proofs_of_a_soak_fail() {
        let mut soak = soak::Soak {
            kernel: "dev".to_owned(),
            seed: 1,
            minutes: 3.0,
            proofs: soak::sample_proofs(),
            record: None,
        };
        let mut tally = Tally::default();
        tally.proofs(&soak);
        assert_eq!(tally.last_line(), "1 passed, 0 failed");
        soak.proofs[0].pass = false;
        tally.proofs(&soak);
        assert_eq!(tally.last_line(), "1 passed, 1 failed");
        assert!(tally.failures().to_string().contains("seed 1"));
    }

    #[test]
    fn no_kunit_results_are_a_failure() {
        assert!(judged(Kind::Dev, &report(0, GOOD), "/nonexistent").failed() > 0);
    }

    #[test]
    fn a_kcsan_that_watches_nothing_fails() {
        let out = Scratch::new("kcsan-looks");
        let write = |name: &str, text: &str| fs::write(out.0.join(name), text).unwrap();
        write("kunit.ktap", GOOD);
        let looked = "enabled: 1\nsetup_watchpoints: 3000000\n";
        let both = vec![race(false), race(true)];
        for (text, races, failed) in [
            (looked, both.clone(), 0),
            (looked, vec![race(false)], 1),
            (looked, vec![], 1),
            ("enabled: 0\nsetup_watchpoints: 3\n", both.clone(), 1),
            ("", both, 1),
        ] {
            write("kcsan", text);
            let mut tally = Tally::default();
            let mut report = report(0, GOOD);
            report.foreign_races = races;
            tally.judge(Kind::Kcsan, &report, &out.0, true);
            assert_eq!(tally.failed(), failed, "{text}");
        }
    }

    #[test]
    fn a_status_without_a_failed_test_fails() {
        let tally = judged(Kind::Stock, &report(1, GOOD), "");
        assert_eq!(tally.last_line(), "1 passed, 1 failed");
        assert!(tally.failures().to_string().contains("what it said"));
    }

    #[test]
    fn a_failed_guest_fails_even_if_the_suite_passed() {
        let mut report = report(0, GOOD);
        report
            .failures
            .push(Failure::Splat("WARNING: x".to_owned()));
        let tally = judged(Kind::Stock, &report, "");
        assert_eq!(tally.last_line(), "1 passed, 1 failed");
    }

    #[test]
    fn a_filter_that_selects_nothing_is_an_error() {
        let names = "hold.idle\nhold.idle.mapped\nevict.oldest\n";
        let filters = |filters: &[&str]| {
            let filters: Vec<String> = filters.iter().map(|filter| filter.to_string()).collect();
            check_filters(&filters, names)
        };
        filters(&["hold.", "oldest"]).unwrap();
        let error = filters(&["hold.", "nonesuch"]).unwrap_err().to_string();
        assert!(error.contains("`nonesuch`"), "{error}");
        filters(&["hold.idle\nhold"]).unwrap_err();
    }

    #[test]
    fn a_filtered_run_needs_few_accesses() {
        let out = Scratch::new("kcsan-filtered");
        fs::write(out.0.join("kunit.ktap"), GOOD).unwrap();
        let mut report = report(0, GOOD);
        report.foreign_races = vec![race(true)];
        for (watched, failed) in [(3, 0), (0, 1)] {
            let text = format!("setup_watchpoints: {watched}\n");
            fs::write(out.0.join("kcsan"), text).unwrap();
            let mut tally = Tally::default();
            tally.judge(Kind::Kcsan, &report, &out.0, false);
            assert_eq!(tally.failed(), failed, "{watched}");
        }
    }
}
