// SPDX-License-Identifier: MIT OR Apache-2.0
//! How lines, proofs and imports are laid out.

use super::{is_text, File, Machine};

/// The columns that a line may have.
const COLUMNS: usize = 100;

/// The columns of a tab, at most.
const TAB: usize = 8;

/// Lines have 100 columns at most: but for a table in Markdown or in a comment, a console's output
/// quoted there, an address, and the page of benchmarks, which is generated.
pub(super) fn width(file: &File<'_>, _machine: &Machine) -> Vec<String> {
    if !is_text(file) || file.path == "docs/benchmarks.md" {
        return Vec::new();
    }
    let is_markdown = file.path.ends_with(".md");
    // Whether the code that is quoted may be long, where some is.
    let mut quoted = None;
    let mut complaints = Vec::new();
    for (number, line) in (1..).zip(file.text.lines()) {
        if is_markdown && line.trim_start().starts_with("```") {
            quoted = match quoted {
                Some(_) => None,
                None => Some(matches!(line.trim(), "```" | "```console")),
            };
        }
        let columns: usize = line.chars().map(|c| if c == '\t' { TAB } else { 1 }).sum();
        let is_table = line.starts_with("//! |")
            || line.starts_with("/// |")
            || (is_markdown && line.starts_with('|'));
        let is_address = line
            .split_whitespace()
            .any(|word| word.contains("://") && columns - word.chars().count() < COLUMNS / 2);
        if columns > COLUMNS && !is_table && quoted != Some(true) && !is_address {
            complaints.push(format!(
                "line {number}: {columns} columns, {COLUMNS} at most"
            ));
        }
    }
    complaints
}

/// A `SAFETY` comment gives its reason on the spot: in a sentence with a capital, or in a list.
pub(super) fn safety(file: &File<'_>, _machine: &Machine) -> Vec<String> {
    if !file.path.ends_with(".rs") {
        return Vec::new();
    }
    let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
    let mut complaints = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(reason) = line.strip_prefix(TAG) else {
            continue;
        };
        let items = lines[at + 1..]
            .iter()
            .map_while(|line| line.strip_prefix("//"))
            .filter_map(|text| {
                let text = text.trim_start();
                text.strip_prefix("- ").or_else(|| text.strip_prefix("* "))
            });
        let reasons: Vec<&str> = match reason.trim() {
            "" => items.collect(),
            reason => vec![reason],
        };
        if reasons.is_empty() {
            complaints.push(format!("line {}: no reason after SAFETY", at + 1));
        }
        let small = |reason: &&&str| reason.trim_start().starts_with(char::is_lowercase);
        for reason in reasons.iter().filter(small) {
            complaints.push(format!(
                "line {}: the reason of SAFETY begins with a capital: {reason}",
                at + 1
            ));
        }
    }
    complaints
}

/// What such a comment begins with.
const TAG: &str = "// SAFETY:";

/// Where imports are laid out as in the kernel (`Documentation/rust/coding-guidelines.rst`).
const KERNEL: [&str; 2] = ["module/", "kunit/"];

/// Imports of kernel code are vertical: one item a line, and `//` after the last.
pub(super) fn imports(file: &File<'_>, _machine: &Machine) -> Vec<String> {
    let is_kernels = KERNEL.iter().any(|place| file.path.starts_with(place));
    if !is_kernels || !file.path.ends_with(".rs") {
        return Vec::new();
    }
    let mut complaints = Vec::new();
    let mut is_import = false;
    let mut before = "";
    for (number, line) in (1..).zip(file.text.lines().map(str::trim)) {
        is_import |= begins_import(line);
        if is_import {
            let code = line.split("//").next().unwrap_or_default().trim_end();
            // A comma between two items, not after one.
            if code.trim_end_matches(',').contains(',') {
                complaints.push(format!(
                    "line {number}: several imports in one line: {line}"
                ));
            }
            if line.starts_with('}') && before.ends_with(',') && !before.ends_with("},") {
                complaints.push(format!(
                    "line {}: no `//` after the last import: {before}",
                    number - 1
                ));
            }
            is_import = !code.ends_with(';');
        }
        before = line;
    }
    complaints
}

/// Returns whether the statement that begins with `line` is an import.
fn begins_import(line: &str) -> bool {
    let line = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(')').map_or("", |(_, rest)| rest),
        Some(rest) => rest,
        None => line,
    };
    line.trim_start().starts_with("use ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::tests::complaints;

    #[test]
    fn long_lines_are_found() {
        let found = |path, text: &str| complaints(width, path, text).join(" ");
        let long = format!("// {}\n", "a ".repeat(49));
        let wanted = "line 2: 101 columns, 100 at most";
        assert_eq!(found("a.rs", &format!("x\n{long}")), wanted);
        assert_eq!(found("vm/boot", &format!("#!/bin/sh\n{long}")), wanted);
        assert_eq!(found("a.rs", &"ä".repeat(100)), "");
        let wanted = "line 1: 101 columns, 100 at most";
        assert_eq!(found("a.c", &format!("\t{}", "a".repeat(93))), wanted);
        for path in ["a.svg", "a.json", "Cargo.lock", "LICENSES/MIT.txt"] {
            assert_eq!(found(path, &long), "", "{path}");
        }
    }

    #[test]
    fn what_cannot_be_broken_may_be_long() {
        let long = "a ".repeat(60);
        for text in [
            format!("| {long} |\n"),
            format!("```console\n$ {long}\n```\n"),
            format!("see https://example.org/{}\n", "a".repeat(100)),
        ] {
            assert!(complaints(width, "a.md", &text).is_empty(), "{text}");
            let found = complaints(width, "b.c", &text).len();
            assert_eq!(found, usize::from(!text.contains("://")));
        }
        for text in [
            format!("```rust\n{long}\n```\n"),
            format!("```console\n```\n{long}\n"),
            format!("{long} http://example.org/\n"),
        ] {
            assert_eq!(complaints(width, "a.md", &text).len(), 1, "{text}");
        }
    }

    #[test]
    fn a_proof_begins_with_a_capital() {
        for text in [
            "    // SAFETY: the caller holds it.\n",
            "// SAFETY:\n// - The pointer is valid.\n// - and ours.\n",
            "// SAFETY:\nunsafe {}\n",
        ] {
            assert_eq!(complaints(safety, "a.rs", text).len(), 1, "{text}");
        }
        for text in [
            "    // SAFETY: The caller holds it.\n    // and more\n",
            "// SAFETY: `sk` is valid.\n",
            "// SAFETY:\n// - The pointer is valid:\n//   see there.\n// * `sk` is ours.\n",
        ] {
            assert!(complaints(safety, "a.rs", text).is_empty(), "{text}");
        }
    }

    #[test]
    fn imports_of_kernel_code_are_vertical() {
        for text in [
            "use a::{b, c};\n",
            "    pub(crate) use a::{b, c};\n",
            "use a::{\n    b,\n    c,\n};\n",
            "use a::{\n    b, c, //\n};\n",
            "use a::{\n    b::{c, d},\n    e, //\n};\n",
        ] {
            let found = complaints(imports, "module/net/a.rs", text);
            assert_eq!(found.len(), 1, "{text}");
            assert!(complaints(imports, "vm/kit/src/lib.rs", text).is_empty());
        }
        for text in [
            "use a::b;\npub use a::{self};\n",
            "use a::{\n    b,\n    c, //\n};\nlet (d, e) = f;\n",
            "use a::{\n    b,\n    c::{\n        d,\n        e, //\n    },\n};\nf(a, b);\n",
        ] {
            assert!(complaints(imports, "kunit/a.rs", text).is_empty(), "{text}");
        }
    }
}
