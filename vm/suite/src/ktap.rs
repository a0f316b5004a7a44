// SPDX-License-Identifier: MIT OR Apache-2.0

//! The Kernel Test Anything Protocol, version 1: how results are printed.

use std::io::{self, Write};

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The case passed.
    Passed,
    /// The case failed.
    Failed,
    /// The case does not apply to this kernel, and why.
    Skipped(String),
}

/// Counts of verdicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

/// A KTAP document being written.
pub(crate) struct Writer<W> {
    to: W,
    totals: Totals,
}

impl<W: Write> Writer<W> {
    /// Begins a document of `plan` results.
    pub(crate) fn new(mut to: W, plan: usize) -> io::Result<Self> {
        writeln!(to, "KTAP version 1")?;
        writeln!(to, "1..{plan}")?;
        to.flush()?;
        Ok(Self {
            to,
            totals: Totals::default(),
        })
    }

    /// Writes a diagnostic; each of its lines is marked as one.
    pub(crate) fn diagnostic(&mut self, text: &str) -> io::Result<()> {
        for line in text.lines() {
            writeln!(self.to, "# {}", line.trim_end())?;
        }
        self.to.flush()
    }

    /// Writes the next result.
    pub(crate) fn result(&mut self, name: &str, verdict: &Verdict) -> io::Result<()> {
        let number = self.totals.passed + self.totals.failed + self.totals.skipped + 1;
        match verdict {
            Verdict::Passed => {
                self.totals.passed += 1;
                writeln!(self.to, "ok {number} {name}")?;
            }
            Verdict::Failed => {
                self.totals.failed += 1;
                writeln!(self.to, "not ok {number} {name}")?;
            }
            Verdict::Skipped(reason) => {
                self.totals.skipped += 1;
                writeln!(self.to, "ok {number} {name} # SKIP {reason}")?;
            }
        }
        self.to.flush()
    }

    /// Ends the document.
    pub(crate) fn finish(mut self) -> io::Result<Totals> {
        let Totals {
            passed,
            failed,
            skipped,
        } = self.totals;
        self.diagnostic(&format!(
            "Totals: pass:{passed} fail:{failed} skip:{skipped}"
        ))?;
        Ok(self.totals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_of_every_kind_of_result() {
        let mut text = Vec::new();
        let mut writer = Writer::new(&mut text, 3).unwrap();
        writer.diagnostic("seed 7\n\nok 9 not a result").unwrap();
        writer.result("a", &Verdict::Passed).unwrap();
        writer.result("b", &Verdict::Failed).unwrap();
        writer
            .result("c", &Verdict::Skipped("no SMC".to_owned()))
            .unwrap();
        let totals = writer.finish().unwrap();
        assert_eq!((totals.passed, totals.failed, totals.skipped), (1, 1, 1));
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "KTAP version 1\n1..3\n# seed 7\n# \n# ok 9 not a result\n\
             ok 1 a\nnot ok 2 b\nok 3 c # SKIP no SMC\n\
             # Totals: pass:1 fail:1 skip:1\n"
        );
    }
}
