// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask bench`: measures what a connection costs at each kind of listener, and judges the
//! bars.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use accf_bench::Bench as Name;
use anyhow::{bail, Context, Result};
use xshell::{cmd, Shell};

use crate::bench::{self, Earlier, Outcome, Request};
use crate::kernel::Kind;
use crate::lab::Lab;
use crate::table::Screen;
use crate::{program, project, report, ui, verdict};

/// The page in the checkout.
const DOCS_PAGE: &str = "docs/benchmarks.md";

/// The benchmarks that are compared with an earlier version of the module.
const COMPARED: [Name; 3] = [Name::Connection, Name::Holding, Name::Interference];

/// Measure what connections cost at plain, TCP_DEFER_ACCEPT and dataready listeners, side by side.
///
/// Boots the stock kernel on a machine that counts instructions, so the numbers do not depend on
/// the host. report.md, report.json and a plot of each benchmark go to target/accf/bench/. Fails if
/// a bar is missed.
#[derive(Debug, clap::Args)]
pub(crate) struct Bench {
    /// The benchmarks to run; without any, all.
    #[arg(value_name = "NAME", value_parser = named)]
    names: Vec<Name>,

    /// How often each figure is measured; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Fewer connections and shorter times: minutes instead of an hour.
    #[arg(long)]
    short: bool,

    /// Also measure the module of this commit, and show the changes.
    #[arg(long, value_name = "REV")]
    before: Option<String>,

    /// Also replace docs/benchmarks.md and its plots.
    #[arg(long, conflicts_with_all = ["short", "names"])]
    update_docs: bool,
}

/// Returns the benchmark of this name.
fn named(name: &str) -> Result<Name, String> {
    let found = Name::ALL.into_iter().find(|bench| bench.key() == name);
    found.ok_or_else(|| {
        let names = Name::ALL.map(Name::key);
        format!("there is no such benchmark; there are {}", names.join(", "))
    })
}

impl Bench {
    /// Runs the command.
    pub(crate) fn run(&self, sh: &Shell) -> Result<ExitCode> {
        let request = self.request();
        let earlier = match &self.before {
            Some(revision) => Some(Version::of(sh, revision)?),
            None => None,
        };
        let lab = Lab::new(Kind::Stock)?;
        let module = lab.module().context("no module was built")?;
        let program = program::build(sh, "accf-bench")?;
        let out = project::target().join("bench");
        project::empty(&out)?;

        let recorded_earlier = out.join("guest-before");
        if let Some(earlier) = &earlier {
            let wanted = request.benches.iter().copied();
            let request = Request {
                benches: wanted.filter(|name| COMPARED.contains(name)).collect(),
                ..request.clone()
            };
            if request.benches.is_empty() {
                let names = COMPARED.map(Name::key);
                bail!(
                    "--before compares {}; none of them was requested",
                    names.join(", ")
                );
            }
            let module = ui::step(&format!("the module of {}", earlier.hash), |_| {
                earlier.build(sh, &lab)
            })?;
            ui::step(&format!("the benchmarks of {}", earlier.hash), |_| {
                request.run(&lab, &program, &module, &recorded_earlier)
            })?;
        }
        let recorded = out.join("guest");
        ui::step("the benchmarks in a guest", |_| {
            request.run(&lab, &program, module, &recorded)
        })?;
        let earlier = earlier.as_ref().map(|earlier| Earlier {
            revision: &earlier.title,
            recorded: &recorded_earlier,
        });
        let outcome =
            bench::evaluate(&recorded, earlier, &request.benches, &out, Screen::stdout())?;
        report::show(&outcome.shown, "Report and plots", &out);
        if self.update_docs {
            update_docs(&outcome)?;
        }
        let closing_line = bench::closing_line(&outcome.bars);
        Ok(verdict::conclude(&outcome.bars, &closing_line))
    }

    /// Returns the benchmarks to run.
    fn request(&self) -> Request {
        let mut benches: Vec<Name> = Name::ALL.to_vec();
        if !self.names.is_empty() {
            benches.retain(|name| self.names.contains(name));
        }
        Request {
            benches,
            rounds: self.rounds,
            short: self.short,
        }
    }
}

/// A version of the module.
struct Version {
    /// The abbreviated commit.
    hash: String,
    /// The abbreviated commit and its first line.
    title: String,
}

impl Version {
    /// Returns the version of a commit.
    fn of(sh: &Shell, revision: &str) -> Result<Self> {
        let _here = sh.push_dir(project::root());
        let commit = format!("{revision}^{{commit}}");
        let title = cmd!(sh, "git log -1 --format=%h%x20%s {commit} --")
            .quiet()
            .ignore_stderr()
            .read()
            .with_context(|| format!("there is no commit {revision}"))?;
        let hash = title.split(' ').next().unwrap_or_default().to_owned();
        Ok(Self { hash, title })
    }

    /// Builds the module beside the checkout's own, and returns its path.
    fn build(&self, sh: &Shell, lab: &Lab) -> Result<PathBuf> {
        // Below the checkout, because compilers see nothing else.
        let output = project::target().join("before");
        project::empty(&output)?;
        let source = output.join("source");
        self.extract(sh, &source)?;
        lab.build_module(&source, &output)
    }

    /// Extracts the module's source into `source`.
    fn extract(&self, sh: &Shell, source: &Path) -> Result<()> {
        let _here = sh.push_dir(project::root());
        project::empty(source)?;
        let archive = source.with_extension("tar");
        let hash = &self.hash;
        cmd!(sh, "git archive --output {archive} {hash} module")
            .quiet()
            .run()
            .and_then(|()| {
                cmd!(sh, "tar --extract --file {archive} --directory {source}")
                    .quiet()
                    .run()
            })
            .with_context(|| format!("cannot extract the module of {hash}"))
    }
}

/// Replaces the committed page and its plots.
fn update_docs(outcome: &Outcome) -> Result<()> {
    project::replace(DOCS_PAGE, &outcome.page)?;
    for (name, svg) in &outcome.plots {
        project::replace(&format!("docs/{name}"), svg)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_an_unknown_name_lists_all_names() {
        assert_eq!(named("pause"), Ok(Name::Pause));
        let error = named("pauses").unwrap_err();
        for name in Name::ALL {
            assert!(error.contains(name.key()), "{error}");
        }
    }
}
