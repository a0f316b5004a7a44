// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host side of the soak: combines what the guest proved with what only the host sees, the
//! kernel's log and memory leaks.

mod results;

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use accf_soak::{Proof, Record, RECORD_FILE, SCHEMA};
use anyhow::{Context, Result};

use crate::guest::{Failure, Guest, Report};
use crate::kernel::Kind;
use crate::lab::Lab;
use crate::project;
use crate::report::{self as files, check_schema, write, write_both};
use crate::verdict::{Claim, Verdict};

#[cfg(test)]
pub(crate) use self::results::sample_proofs;
pub(crate) use self::results::Soak;

/// Time for a guest to boot, to come to rest and to be checked.
const AROUND: Duration = Duration::from_secs(900);

/// By what factor the rounds may take longer than requested: each waits for the end of all clients,
/// on a busy machine.
const SLOWER: u32 = 4;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    /// The kernel.
    pub(crate) kind: Kind,
    /// For how long clients connect.
    pub(crate) time: Duration,
    /// The seed of all random numbers.
    pub(crate) seed: u64,
}

impl Request {
    /// Runs the soak in a guest and judges it. The guest's files and the report go to `out`.
    ///
    /// Failures are part of the result; an error means that there is no result.
    pub(crate) fn run(&self, lab: &Lab, program: &Path, out: &Path, echo: bool) -> Result<Soak> {
        project::empty(out)?;
        let seconds = self.time.as_secs();
        let command: Vec<OsString> = vec![
            program.as_os_str().to_owned(),
            "run".into(),
            "--seconds".into(),
            seconds.to_string().into(),
            "--seed".into(),
            self.seed.to_string().into(),
        ];
        let report = lab.run(&self.guest(lab, out, echo)?, &command)?;
        for (name, text) in [
            ("dmesg", report.dmesg.as_bytes()),
            ("stdout", &report.stdout),
            ("stderr", &report.stderr),
        ] {
            write(out, name, text)?;
        }
        let soak = Soak {
            kernel: self.kind.name().to_owned(),
            seed: self.seed,
            minutes: seconds as f64 / 60.0,
            proofs: self.proofs(&report, out),
            record: read(out).ok(),
        };
        write_both(out, &soak, &soak.document())?;
        Ok(soak)
    }

    /// Returns a guest with many processors and little memory. Its program loads the module itself.
    fn guest(&self, lab: &Lab, out: &Path, echo: bool) -> Result<Guest> {
        let mut guest = lab.guest(&[]);
        let module = guest.module.take().context("no module was built")?;
        guest
            .environment
            .push(("ACCF_KO".to_owned(), module.path.into()));
        guest.cpus = 4;
        guest.memory = "1536M".to_owned();
        guest.timeout = Some(AROUND + self.time * SLOWER);
        guest.out = out.to_owned();
        guest.kmemleak = self.kind == Kind::Dev;
        guest.echo = echo;
        Ok(guest)
    }

    /// Returns what the guest proved and what the host sees.
    fn proofs(&self, report: &Report, out: &Path) -> Vec<Verdict> {
        let of = |is_so: fn(&Failure) -> bool| -> Vec<String> {
            let failures = report.failures.iter();
            failures
                .filter(|failure| is_so(failure))
                .map(Failure::to_string)
                .collect()
        };
        let mut ended = of(|failure| {
            !matches!(
                failure,
                Failure::Splat(_) | Failure::Panic(_) | Failure::Leak(_)
            )
        });
        let record = read(out);
        if let Err(error) = &record {
            let said = String::from_utf8_lossy(&report.stderr);
            ended.push(format!("{error:#}; it said: {}", said.trim()));
        }
        let held = record.as_ref().is_ok_and(Record::held);
        if report.status.is_some_and(|status| (status == 0) != held) {
            ended.push("the guest's exit status does not agree with its record".to_owned());
        }
        let proofs = record.map(|record| record.proofs).unwrap_or_default();
        let mut proofs: Vec<Verdict> = proofs.into_iter().map(verdict).collect();
        let mut prove = |name: &str, says: &str, complaints: Vec<String>, otherwise: &str| {
            proofs.push(Claim::new(name, says).complaints(&complaints, otherwise));
        };
        let mut how = "it did".to_owned();
        for boot in &report.boots_in_vain {
            how += &format!("; {boot}");
        }
        prove("end", "the guest got to its end", ended, &how);
        prove(
            "log",
            "the kernel's log has no warning, splat or panic",
            of(|failure| matches!(failure, Failure::Splat(_) | Failure::Panic(_))),
            &format!("{} lines read", report.dmesg.lines().count()),
        );
        if self.kind == Kind::Dev {
            let mut leaks = of(|failure| matches!(failure, Failure::Leak(_)));
            if !report.run.join("kmemleak").exists() {
                leaks.push("the guest did not scan for leaks".to_owned());
            }
            prove(
                "leaks",
                "the kernel finds no unreferenced memory",
                leaks,
                "two scans",
            );
        }
        proofs
    }
}

/// Returns the verdict on a proof of the guest.
fn verdict(proof: Proof) -> Verdict {
    Verdict {
        name: proof.name,
        says: proof.says,
        pass: proof.held,
        found: proof.found,
        figure: None,
    }
}

/// Reads the record that a guest wrote to `out` at its end.
fn read(out: &Path) -> Result<Record> {
    let record: Record = files::read(out, RECORD_FILE)?;
    check_schema(RECORD_FILE, record.schema, SCHEMA)?;
    Ok(record)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::scratch::Scratch;
    use crate::verdict;

    const REQUEST: Request = Request {
        kind: Kind::Dev,
        time: Duration::from_secs(60),
        seed: 1,
    };

    fn report(status: Option<i32>, failures: Vec<Failure>, run: &Path) -> Report {
        Report {
            status,
            failures,
            stderr: b"what it said".to_vec(),
            run: run.to_owned(),
            ..Report::default()
        }
    }

    /// Writes a guest's record whose only proof held, or did not.
    fn left(out: &Path, held: bool) {
        let mut record = results::sample();
        for proof in &mut record.proofs {
            proof.held = held;
        }
        let text = serde_json::to_string(&record).unwrap();
        fs::write(out.join(RECORD_FILE), text).unwrap();
    }

    fn failed(proofs: &[Verdict]) -> Vec<&str> {
        verdict::failed(proofs)
            .map(|proof| proof.name.as_str())
            .collect()
    }

    #[test]
    fn every_failure_is_a_failed_proof() {
        let out = Scratch::new("soak-proofs");
        let proofs = |status, failures| {
            let proofs = REQUEST.proofs(&report(status, failures, &out.0), &out.0);
            failed(&proofs).join(" ")
        };
        assert_eq!(proofs(Some(0), vec![]), "end leaks");
        fs::write(out.0.join("kmemleak"), "").unwrap();
        left(&out.0, true);
        assert_eq!(proofs(Some(0), vec![]), "");
        assert_eq!(proofs(Some(1), vec![]), "end");
        let splat = Failure::Splat("WARNING: x".to_owned());
        assert_eq!(proofs(Some(0), vec![splat]), "log");
        let leak = Failure::Leak("unreferenced object".to_owned());
        assert_eq!(proofs(Some(0), vec![leak]), "leaks");
        let hung = Failure::Timeout(Duration::ZERO, String::new());
        assert_eq!(proofs(None, vec![hung]), "end");
        left(&out.0, false);
        assert_eq!(proofs(Some(1), vec![]), "fates");
    }

    #[test]
    fn repeated_boots_are_reported() {
        let out = Scratch::new("soak-boots");
        fs::write(out.0.join("kmemleak"), "").unwrap();
        left(&out.0, true);
        let mut report = report(Some(0), vec![], &out.0);
        report.boots_in_vain.push("boot 1 hung".to_owned());
        let proofs = REQUEST.proofs(&report, &out.0);
        let mut found = proofs.iter().map(|proof| &proof.found);
        assert!(found.any(|found| found.contains("boot 1 hung")));
        assert!(failed(&proofs).is_empty());
    }
}
