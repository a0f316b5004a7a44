// SPDX-License-Identifier: MIT OR Apache-2.0
//! Compares `accf::abi` with `module/uapi/accf.h`, by means of a C program that includes the
//! header.
//!
//! The test needs a C compiler and the kernel's user-space headers, which come with the C library
//! that Rust programs are linked with. Without them it fails and names them.

use std::fmt::Write as _;
use std::fs;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

use accf::abi;

/// Returns the size of a structure of `abi`, and a line `structure.field offset size` per field.
macro_rules! layout {
    ($structure:ident { $($field:ident),* $(,)? }) => {{
        let all = abi::$structure::default();
        let size = size_of::<abi::$structure>();
        let mut lines = vec![format!("{} size {size}", stringify!($structure))];
        $(lines.push(format!(
            "{}.{} {} {}",
            stringify!($structure),
            stringify!($field),
            offset_of!(abi::$structure, $field),
            size_of_val(&all.$field),
        ));)*
        lines
    }};
}

/// Returns a line `name value` for each constant of `abi`.
macro_rules! constants {
    ($($name:ident),* $(,)?) => {
        vec![$(format!("{} {}", stringify!($name), i128::try_from(abi::$name).unwrap())),*]
    };
}

/// Returns the layout and the constants of this crate.
fn ours() -> Vec<String> {
    let mut lines = layout!(accf_config {
        timeout_ms,
        max_parked,
        on_timeout,
        state,
        on_close,
        probe_ms
    });
    lines.extend(layout!(accf_source { address, parked }));
    lines.extend(layout!(accf_stats {
        parked,
        half_open,
        half_open_young,
        parked_total,
        released_data,
        released_fin,
        timeout_accept,
        timeout_reset,
        timeout_drop,
        evicted,
        aborted,
        fallback,
        synack_suppressed,
        bypass_syncookie,
        bypass_fastopen,
        bypass_abort_on_overflow,
        bypass_accept_queue_full,
        bypass_no_memory,
        bypass_namespace_limit,
        bypass_signed,
        bypass_other,
        wait_log2,
        released_paused,
        bypass_paused,
        closed_reset,
        closed_reset_unparked,
        evicted_greediest,
        sources,
        released_late,
        overflow_dropped,
        probes,
        died,
    }));
    lines.extend(constants!(
        SOL_ACCF,
        ACCF_CONFIG,
        ACCF_STATS,
        ACCF_ON_TIMEOUT_ACCEPT,
        ACCF_ON_TIMEOUT_RESET,
        ACCF_ON_TIMEOUT_DROP,
        ACCF_ON_CLOSE_ACCEPT,
        ACCF_ON_CLOSE_RESET,
        ACCF_STATE_PARKING,
        ACCF_STATE_PAUSED,
        ACCF_WAIT_BUCKETS,
        ACCF_SOURCES,
        ACCF_ULP_INFO_CONFIG,
        ACCF_ULP_INFO_STATS,
        INET_DIAG_ULP_INFO,
        INET_ULP_INFO_NAME,
    ));
    lines.sort();
    lines
}

/// The names that a header defines.
#[derive(Debug, Default)]
struct Names {
    /// Structures with their fields.
    structures: Vec<(String, Vec<String>)>,
    /// Macros and enumerators.
    constants: Vec<String>,
}

impl Names {
    /// Parses a header that has one declaration per line.
    fn of(header: &str) -> Self {
        let mut names = Self::default();
        let mut in_enum = false;
        for line in without_comments(header).lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match *words.as_slice() {
                ["struct", name, "{"] => names.structures.push((name.to_owned(), Vec::new())),
                ["enum", _, "{"] => in_enum = true,
                ["};"] => in_enum = false,
                ["#define", name, _] => names.constants.push(name.to_owned()),
                [name, "=", _] if in_enum => names.constants.push(name.to_owned()),
                [_, field] | ["struct", _, field] if field.ends_with(';') => {
                    let name = field.trim_end_matches(';').split('[').next().unwrap();
                    let (_, fields) = names
                        .structures
                        .last_mut()
                        .expect("a field outside of a structure");
                    fields.push(name.to_owned());
                }
                [] | ["#include" | "#ifndef" | "#endif", ..] | ["#define", _] => {}
                _ => panic!("cannot understand this line of the header: {line}"),
            }
        }
        names
    }

    /// Writes a C program that prints the lines of [`ours`].
    fn program(&self, header: &Path) -> String {
        let mut text = format!(
            "#include <stddef.h>\n#include <stdio.h>\n#include <linux/inet_diag.h>\n\
             #include \"{}\"\nint main(void)\n{{\n",
            header.display()
        );
        for (structure, fields) in &self.structures {
            writeln!(
                text,
                "\tprintf(\"{structure} size %zu\\n\", sizeof(struct {structure}));"
            )
            .unwrap();
            for field in fields {
                writeln!(
                    text,
                    "\tprintf(\"{structure}.{field} %zu %zu\\n\", \
                     offsetof(struct {structure}, {field}), \
                     sizeof(((struct {structure} *)0)->{field}));"
                )
                .unwrap();
            }
        }
        // Constants of the kernel's own headers that `abi` repeats.
        let kernels = ["INET_DIAG_ULP_INFO", "INET_ULP_INFO_NAME"];
        for name in self.constants.iter().map(String::as_str).chain(kernels) {
            writeln!(text, "\tprintf(\"{name} %lld\\n\", (long long){name});").unwrap();
        }
        text.push_str("\treturn 0;\n}\n");
        text
    }
}

/// Removes the comments from C text.
fn without_comments(text: &str) -> String {
    let mut rest = text;
    let mut code = String::new();
    while let Some((before, comment)) = rest.split_once("/*") {
        code.push_str(before);
        rest = comment.split_once("*/").map_or("", |(_, after)| after);
    }
    code.push_str(rest);
    code
}

/// Returns the layout and the constants of the header, as the C compiler sees them.
fn theirs(header: &Path) -> Vec<String> {
    let text = fs::read_to_string(header).expect("the header");
    let names = Names::of(&text);
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let source = dir.join("header.c");
    let program = dir.join("header");
    fs::write(&source, names.program(header)).expect("cannot write the C program");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let built = Command::new(&compiler)
        .arg("-o")
        .args([&program, &source])
        .output()
        .unwrap_or_else(|error| {
            panic!(
                "this test needs a C compiler and cannot run `{compiler}`: {error}. \
                 Install one (gcc), or name it in CC"
            )
        });
    assert!(
        built.status.success(),
        "`{compiler}` does not compile the header (are the kernel's user-space headers, \
         linux-libc-dev, installed?):\n{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let said = Command::new(&program)
        .output()
        .expect("cannot run the C program");
    let said = String::from_utf8(said.stdout).expect("the C program's output");
    let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn abi_matches_the_header() {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("../module/uapi/accf.h");
    let (ours, theirs) = (ours(), theirs(&header));
    let missing: Vec<_> = theirs.iter().filter(|line| !ours.contains(line)).collect();
    let wrong: Vec<_> = ours.iter().filter(|line| !theirs.contains(line)).collect();
    assert!(
        missing.is_empty() && wrong.is_empty(),
        "module/uapi/accf.h says {missing:#?}\naccf/src/abi.rs says {wrong:#?}"
    );
}
