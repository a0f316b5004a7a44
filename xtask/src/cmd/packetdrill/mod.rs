// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask packetdrill`: run the kernel's own packetdrill scripts, plain and with the filter.

mod script;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use fs_err as fs;
use serde::{Deserialize, Serialize};
use xshell::Shell;

use self::script::{Script, Variant, LATER_USECS};
use super::{exit_code, test::keep};
use crate::guest::Report;
use crate::kernel::Kind;
use crate::lab::Lab;
use crate::report::{show, write_both, Document, Section};
use crate::sysroot::Sysroot;
use crate::table::{words, Column, Kind as Cells, Screen, Table};
use crate::{program, project, ui};

/// The directory of the scripts in the kernel's source.
const SCRIPTS: &str = "tools/testing/selftests/net/packetdrill";

/// How late a segment or a system call may be, in microseconds.
///
/// The kernel's own tests allow 14 ms on slow machines. An emulated guest on a busy host is later;
/// 30 ms still tells a delayed ACK (40 ms) from an immediate one.
const TOLERANCE_USECS: u32 = 30_000;

/// How long the guest may take for each script and family, of which most take some seconds.
const LIMIT: Duration = Duration::from_secs(240);

/// How long the guest may take besides.
const BESIDES: Duration = Duration::from_secs(600);

/// Run the kernel's own packetdrill scripts for TCP servers in a guest, plain and with the filter.
///
/// The scripts are those of the packaged kernel's source (tools/testing/selftests/net/packetdrill)
/// that have a listener. Each runs for IPv4, IPv6 and IPv4-mapped clients: first plain, then with
/// the filter `dataready` on each listener. docs/testing.md says what the verdicts mean. report.md,
/// report.json, the rewritten scripts and the output of each run go to target/accf/packetdrill/.
/// Fails if a script passes plain and fails with the filter.
#[derive(Debug, clap::Args)]
pub(crate) struct Packetdrill {
    /// The program packetdrill, which you have built from its source; statically linked, unless
    /// the guest has the libraries that it needs.
    #[arg(long, value_name = "PATH")]
    packetdrill: PathBuf,

    /// Only scripts with NAME in SCRIPT.FAMILY, where FAMILY is v4, v6 or mapped; may be repeated.
    #[arg(long, value_name = "NAME")]
    filter: Vec<String>,

    /// The kernel to boot.
    #[arg(long, value_enum, default_value = "stock")]
    kernel: Kind,
}

impl Packetdrill {
    /// Runs the command.
    pub(crate) fn run(&self, sh: &Shell) -> Result<ExitCode> {
        ensure!(
            self.packetdrill.is_file(),
            "there is no program {}: build packetdrill from its source, see docs/testing.md",
            self.packetdrill.display()
        );
        let sysroot = Sysroot::ensure(None)?;
        let source = format!("{}/{SCRIPTS}", sysroot.source());
        let plan = Plan::make(&sysroot.path().join(&source[1..]), &self.filter)?;
        println!("{plan}");
        let out = project::target().join("packetdrill");
        project::empty(&out)?;
        let scripts = out.join("scripts");
        plan.write(&scripts)?;
        // The guest sees this directory, wherever the user's program is.
        let program = out.join("packetdrill");
        fs::copy(&self.packetdrill, &program)?;

        let lab = Lab::new(self.kernel)?;
        let suite = program::build(sh, "accf-suite")?;
        let mut guest = lab.guest(&[]);
        guest.timeout = Some(BESIDES + LIMIT * u32::try_from(plan.runs.len())?);
        guest.out = out.clone();
        guest.kmemleak = self.kernel == Kind::Dev;
        let path = |path: &Path| path.display().to_string();
        let command = [
            path(&suite),
            "packetdrill".to_owned(),
            format!("--packetdrill={}", path(&program)),
            format!("--helpers={source}"),
            format!("--scripts={}", path(&scripts)),
            format!("--out={}", path(&out)),
            format!("--tolerance-usecs={TOLERANCE_USECS}"),
            format!("--later-usecs={LATER_USECS}"),
        ];
        let name = format!("packetdrill on {}", self.kernel.name());
        let report = ui::step(&name, |_| lab.run(&guest, &command))?;
        keep(&report, &out)?;
        let results = Results::read(&out, &plan)?;
        let document = results.document(self.kernel.name());
        write_both(&out, &results, &document)?;
        show(
            &document.terminal(Screen::stdout()),
            "Report and logs",
            &out,
        );
        println!("{}", results.closing_line());
        check_guest(&report)?;
        Ok(exit_code(results.is_good()))
    }
}

/// Checks that the guest came to its end, with nothing wrong in its log.
fn check_guest(report: &Report) -> Result<()> {
    if report.verdict()? != 0 {
        let said = String::from_utf8_lossy(&report.stderr);
        bail!("the guest could not run the scripts: {}", said.trim());
    }
    Ok(())
}

/// A script for one family.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    name: String,
    family: &'static str,
}

/// What is to be run.
struct Plan {
    runs: Vec<Run>,
    /// The scripts, by their names.
    scripts: Vec<(String, String)>,
    /// How many scripts have no listener.
    without_listener: usize,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} scripts, {} with their families; {} scripts without a listener are not run",
            self.scripts.len(),
            self.runs.len(),
            self.without_listener
        )
    }
}

impl Plan {
    /// Reads the scripts of the directory `source`, and takes those that `filters` select.
    fn make(source: &Path, filters: &[String]) -> Result<Self> {
        let mut texts = Vec::new();
        for entry in fs::read_dir(source)? {
            let path = entry?.path();
            if path.extension().is_none_or(|ending| ending != "pkt") {
                continue;
            }
            let name = path.file_stem().and_then(|name| name.to_str());
            let name = name.context("the name of a script is not UTF-8")?;
            texts.push((name.to_owned(), fs::read_to_string(&path)?));
        }
        texts.sort();
        Self::of(texts, filters)
    }

    /// Takes those of the scripts that `filters` select.
    fn of(texts: Vec<(String, String)>, filters: &[String]) -> Result<Self> {
        let mut plan = Self {
            runs: Vec::new(),
            scripts: Vec::new(),
            without_listener: 0,
        };
        for (name, text) in texts {
            let script = Script::parse(&text);
            if !script.has_listener() {
                plan.without_listener += 1;
                continue;
            }
            let families: &[&str] = match script.ip_version() {
                None => &["v4", "v6", "mapped"],
                Some("ipv4") => &["v4"],
                Some("ipv6") => &["v6"],
                Some(other) => bail!("the script {name} is for an unknown IP version, {other}"),
            };
            let before = plan.runs.len();
            for &family in families {
                let whole = format!("{name}.{family}");
                if filters.is_empty() || filters.iter().any(|part| whole.contains(part.as_str())) {
                    let name = name.clone();
                    plan.runs.push(Run { name, family });
                }
            }
            if plan.runs.len() > before {
                plan.scripts.push((name, text));
            }
        }
        ensure!(
            !plan.runs.is_empty(),
            "no script with a listener has such a name"
        );
        Ok(plan)
    }

    /// Writes the plan, and each script in each form, into the directory `out`.
    fn write(&self, out: &Path) -> Result<()> {
        for (name, text) in &self.scripts {
            let script = Script::parse(text);
            let forms =
                Variant::ALL.map(|variant| (variant.directory(), script.with_filter(variant)));
            let plain = ("plain", Some(text.clone()));
            for (directory, text) in forms.into_iter().chain([plain]) {
                let directory = out.join(directory);
                fs::create_dir_all(&directory)?;
                if let Some(text) = text {
                    fs::write(directory.join(format!("{name}.pkt")), text)?;
                }
            }
        }
        let lines = self.runs.iter();
        let lines = lines.map(|run| format!("{} {}\n", run.name, run.family));
        Ok(fs::write(out.join("plan"), lines.collect::<String>())?)
    }
}

/// The verdict on a script that passes plain and fails with the filter.
const FAILED: &str = "FAILED";

/// The verdict on a script that fails plain.
const SKIPPED: &str = "skipped";

/// The verdict on a script that the guest did not get to.
const NONE: &str = "NO VERDICT";

/// What was found out about a script and a family.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Finding {
    name: String,
    family: String,
    verdict: String,
    messages: Vec<String>,
    runs: u32,
}

/// All findings, and how many scripts were not run.
#[derive(Debug, Serialize)]
struct Results {
    findings: Vec<Finding>,
    without_listener: usize,
}

impl Results {
    /// Reads what the guest left in `out`.
    fn read(out: &Path, plan: &Plan) -> Result<Self> {
        // A guest that did not get so far leaves no file.
        let text = fs::read_to_string(out.join("results.jsonl")).unwrap_or_default();
        Self::parse(&text, plan)
    }

    /// Reads one finding a line. What is planned and missing has no verdict.
    fn parse(text: &str, plan: &Plan) -> Result<Self> {
        // The last line of a guest that stopped may be cut off.
        let lines = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        let found = lines
            .map(serde_json::from_str)
            .collect::<Result<Vec<Finding>, _>>()?;
        let findings = plan.runs.iter().map(|run| {
            let is_it =
                |finding: &&Finding| finding.name == run.name && finding.family == run.family;
            found
                .iter()
                .find(is_it)
                .cloned()
                .unwrap_or_else(|| Finding {
                    name: run.name.clone(),
                    family: run.family.to_owned(),
                    verdict: NONE.to_owned(),
                    messages: Vec::new(),
                    runs: 0,
                })
        });
        Ok(Self {
            findings: findings.collect(),
            without_listener: plan.without_listener,
        })
    }

    /// Returns how many findings have a verdict that begins so.
    fn count(&self, verdict: &str) -> usize {
        let findings = self.findings.iter();
        findings.filter(|f| f.verdict.starts_with(verdict)).count()
    }

    /// Returns whether scripts passed, and none failed or has no verdict.
    fn is_good(&self) -> bool {
        self.count("passed") > 0 && self.count(FAILED) == 0 && self.count(NONE) == 0
    }

    /// Returns the last line that the command prints.
    fn closing_line(&self) -> String {
        let later = self.count("passed (accept after data)");
        let deadline = self.count("passed (deadline)");
        let mut line = format!(
            "{} passed ({later} with accept after data, {deadline} with a deadline), {} failed, {} \
             skipped",
            self.count("passed"),
            self.count(FAILED),
            self.count(SKIPPED),
        );
        let missing = self.count(NONE);
        if missing > 0 {
            line += &format!(", {missing} without a verdict");
        }
        if self.count("passed") == 0 {
            line += ": no script passes plain, so nothing was tested";
        }
        line
    }

    /// Returns the report.
    fn document(&self, kernel: &str) -> Document {
        let rows = self.findings.iter().map(|finding| {
            let last = match finding.verdict.as_str() {
                // All that it said; for the others, why the form before did not do.
                FAILED => finding.messages.join("\n"),
                _ => finding.messages.last().cloned().unwrap_or_default(),
            };
            vec![
                finding.name.clone(),
                finding.family.clone(),
                finding.verdict.clone(),
                last,
            ]
        });
        let columns = [
            Column::new("script", Cells::Code),
            words("family"),
            words("verdict"),
            words("what packetdrill said"),
        ];
        Document {
            title: "The kernel's packetdrill scripts with and without the filter".to_owned(),
            closing_line: self.closing_line(),
            summary: format!(
                "Kernel {kernel}. {} scripts without a listener were not run. Times may be off by \
                 {} ms.",
                self.without_listener,
                TOLERANCE_USECS / 1000
            ),
            sections: vec![Section::new("Scripts", Table::new(columns, rows))],
            files: &[
                ("`scripts/`", "the scripts in each form"),
                ("`logs/`", "the output of each run"),
                ("`dmesg`", "the guest's kernel log"),
            ],
            ..Document::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: &str = "0 socket(..., SOCK_STREAM, 0) = 3\n+0 listen(3, 1) = 0\n\
                          +0 accept(3, ..., ...) = 4\n";

    /// A plan of a server, one for IPv6 only, and a client.
    fn plan(filters: &[&str]) -> Result<Plan> {
        let texts = [
            ("a_server", SERVER.to_owned()),
            ("b_server", format!("--ip_version=ipv6\n{SERVER}")),
            ("c_client", "0 connect(3, ..., ...) = 0\n".to_owned()),
        ];
        let texts = texts.map(|(name, text)| (name.to_owned(), text));
        let filters: Vec<String> = filters.iter().map(|&part| part.to_owned()).collect();
        Plan::of(texts.into(), &filters)
    }

    /// Returns what a plan runs.
    fn runs(plan: &Plan) -> String {
        let runs = plan.runs.iter();
        let runs = runs.map(|run| format!("{}.{}", run.name, run.family));
        runs.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn servers_run_for_their_families() {
        let all = plan(&[]).unwrap();
        assert_eq!(
            runs(&all),
            "a_server.v4 a_server.v6 a_server.mapped b_server.v6"
        );
        assert_eq!(all.without_listener, 1);
        assert_eq!(
            runs(&plan(&["b_", "a_server.v4"]).unwrap()),
            "a_server.v4 b_server.v6"
        );
        assert!(plan(&["c_client"]).is_err());
    }

    #[test]
    fn every_form_is_written() {
        let scratch = crate::scratch::Scratch::new("packetdrill");
        plan(&["a_server.v4"]).unwrap().write(&scratch.0).unwrap();
        assert_eq!(scratch.text("plan"), "a_server v4\n");
        assert_eq!(scratch.text("plain/a_server.pkt"), SERVER);
        for form in ["dataready", "deadline"] {
            let text = scratch.text(&format!("{form}/a_server.pkt"));
            assert!(text.contains("\"dataready\""), "{text}");
        }
        // The client sends nothing that accept() could wait for.
        assert!(!scratch.0.join("after-data/a_server.pkt").exists());
        assert!(!scratch.0.join("plain/b_server.pkt").exists());
    }

    /// The results of the plan's first scripts.
    fn results(verdicts: &[&str]) -> Results {
        let plan = plan(&[]).unwrap();
        let lines = plan.runs.iter().zip(verdicts).map(|(run, verdict)| {
            format!(
                "{{\"name\":\"{}\",\"family\":\"{}\",\"verdict\":\"{verdict}\",\
                 \"messages\":[\"first\",\"last\"],\"runs\":2}}\n",
                run.name, run.family
            )
        });
        Results::parse(&lines.collect::<String>(), &plan).unwrap()
    }

    #[test]
    fn results_are_good_if_scripts_passed_and_none_failed() {
        let good = results(&["passed", "skipped", "passed (deadline)", "passed"]);
        assert!(good.is_good());
        let wanted = "3 passed (0 with accept after data, 1 with a deadline), 0 failed, 1 skipped";
        assert_eq!(good.closing_line(), wanted);
        assert!(!results(&["passed", "FAILED", "passed", "passed"]).is_good());
        assert!(!results(&["skipped"; 4]).is_good());
        let missing = results(&["passed", "passed", "passed"]);
        assert!(!missing.is_good());
        assert!(missing.closing_line().ends_with("1 without a verdict"));
    }

    #[test]
    fn the_report_has_all_messages_of_a_failure() {
        let text = results(&["passed", "FAILED", "skipped", "passed"]).document("stock");
        let text = text.terminal(Screen::PLAIN);
        assert_eq!(text.matches("first").count(), 1, "{text}");
        assert_eq!(text.matches("last").count(), 4, "{text}");
    }
}
