// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reports: what a guest recorded, read and checked; and the results, for a terminal and as files.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{ensure, Context, Result};
use fs_err as fs;
use serde::de::DeserializeOwned;
use serde::Serialize;

use crate::table::{prose, Screen, Table};
use crate::ui;

/// The first line of every Markdown and SVG file.
pub(crate) const LICENCE: &str = "<!-- SPDX-License-Identifier: MIT OR Apache-2.0 -->\n";

/// Reads the file `name` that a guest left in `recorded` at its end.
pub(crate) fn read<T: DeserializeOwned>(recorded: &Path, name: &str) -> Result<T> {
    let path = recorded.join(name);
    let shown = path.display();
    let text = fs::read_to_string(&path)
        .with_context(|| format!("the guest left no {shown}: it did not get to the end"))?;
    serde_json::from_str(&text).with_context(|| format!("{shown} is not a recording of this kind"))
}

/// Checks that a recording has the version that this program reads.
pub(crate) fn check_schema(name: &str, found: u32, wanted: u32) -> Result<()> {
    ensure!(
        found == wanted,
        "the guest's {name} has version {found}, but this xtask reads version {wanted}: \
         build both again"
    );
    Ok(())
}

/// Writes the file `name` into `out`.
pub(crate) fn write(out: &Path, name: &str, content: impl AsRef<[u8]>) -> Result<()> {
    fs::create_dir_all(out)?;
    Ok(fs::write(out.join(name), content)?)
}

/// Writes the numbers to `report.json` and the document to `report.md`.
pub(crate) fn write_both(out: &Path, numbers: &impl Serialize, document: &Document) -> Result<()> {
    let json = serde_json::to_string_pretty(numbers)? + "\n";
    write(out, "report.json", json)?;
    write(out, "report.md", document.markdown())
}

/// Prints a report for a terminal, the timings, and where the files are.
pub(crate) fn show(text: &str, files: &str, out: &Path) {
    print!("\n{text}");
    ui::print_timings();
    println!("\n{files}: {}", out.display());
}

/// A table with its heading and remarks.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    /// The heading.
    pub(crate) heading: String,
    /// The text before the table, in Markdown only.
    pub(crate) intro: String,
    /// The table.
    pub(crate) table: Table,
    /// Remarks below the table.
    pub(crate) notes: Vec<String>,
}

impl Section {
    /// Returns a section without an introduction and remarks.
    pub(crate) fn new(heading: impl Into<String>, table: Table) -> Self {
        Self {
            heading: heading.into(),
            intro: String::new(),
            table,
            notes: Vec::new(),
        }
    }

    /// Writes the section for a terminal.
    fn terminal(self, screen: Screen) -> String {
        let heading = screen.paint(&self.heading, |s| s.bold());
        let mut out = format!("{heading}\n{}", self.table.terminal(screen));
        for note in &self.notes {
            out += &prose(note, screen);
        }
        out + "\n"
    }

    /// Writes the section in Markdown.
    fn markdown(&self) -> String {
        let mut out = format!("\n## {}\n\n", self.heading);
        if !self.intro.is_empty() {
            out += &format!("{}\n\n", self.intro);
        }
        out += &self.table.markdown();
        if !self.notes.is_empty() {
            out += "\n";
        }
        for note in &self.notes {
            out += &format!("* {note}\n");
        }
        out
    }
}

/// A report.
#[derive(Clone, Debug, Default)]
pub(crate) struct Document {
    /// The title, in Markdown only.
    pub(crate) title: String,
    /// The result, in Markdown only: the commands print it as the last line.
    pub(crate) closing_line: String,
    /// How the numbers were obtained.
    pub(crate) summary: String,
    /// The text after the summary, in Markdown only.
    pub(crate) intro: String,
    /// The verdicts: in Markdown the first sections, on a terminal the last.
    pub(crate) verdicts: Vec<Section>,
    /// The numbers.
    pub(crate) sections: Vec<Section>,
    /// The files beside the report and what they hold, in Markdown only.
    pub(crate) files: &'static [(&'static str, &'static str)],
}

impl Document {
    /// Writes the report for a terminal.
    pub(crate) fn terminal(self, screen: Screen) -> String {
        let show = |section: Section| section.terminal(screen);
        let sections = self.sections.into_iter().map(show);
        let mut out: String = sections.collect();
        if !self.summary.is_empty() {
            out += &format!("{}\n", prose(&self.summary, screen));
        }
        out.extend(self.verdicts.into_iter().map(show));
        out.truncate(out.trim_end().len());
        out + "\n"
    }

    /// Writes the report in Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut out = format!("{LICENCE}# {}\n", self.title);
        for paragraph in [&self.closing_line, &self.summary, &self.intro] {
            if !paragraph.is_empty() {
                out += &format!("\n{paragraph}\n");
            }
        }
        out.extend(self.verdicts.iter().map(Section::markdown));
        out.extend(self.sections.iter().map(Section::markdown));
        if !self.files.is_empty() {
            out += "\n## Files\n\n";
        }
        for (names, hold) in self.files {
            // Writing to a String cannot fail.
            let _ = writeln!(out, "* {names}: {hold}.");
        }
        out
    }
}
