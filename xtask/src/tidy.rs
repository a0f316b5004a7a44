// SPDX-License-Identifier: MIT OR Apache-2.0
//! The rules that no compiler checks, each a function from a file to complaints.

mod layers;
mod style;
mod words;

use std::fs;
use std::path::Path;

use anyhow::{ensure, Context, Result};
use xshell::{cmd, Shell};

use crate::project;

/// A tracked file.
struct File<'a> {
    /// Its path from the checkout's root, with `/`.
    path: &'a str,
    /// What is in it.
    text: &'a str,
}

/// A rule: complaints about one file.
type Rule = fn(&File<'_>, &Machine) -> Vec<String>;

/// All rules about files.
const RULES: [Rule; 11] = [
    licence,
    module_doc,
    unsafe_places,
    archive_names,
    machine_paths,
    unfinished,
    style::width,
    style::safety,
    style::imports,
    words::words,
    layers::layers,
];

/// The names of this machine, which must not be in files or commits.
struct Machine {
    /// Paths that exist here only.
    paths: Vec<String>,
    /// Host names of package archives and registries.
    hosts: Vec<String>,
}

/// Checks the checkout's tracked files and commits.
pub(crate) fn run(sh: &Shell) -> Result<()> {
    let complaints = check(sh)?;
    let all = complaints.join("\n");
    ensure!(complaints.is_empty(), "the checkout is not tidy:\n{all}");
    Ok(())
}

/// Returns what is wrong with the checkout's tracked files and commits.
fn check(sh: &Shell) -> Result<Vec<String>> {
    let root = project::root();
    let _here = sh.push_dir(root);
    let machine = Machine::here();
    // What is about to be added counts, too.
    let names = cmd!(sh, "git ls-files -z --cached --others --exclude-standard")
        .quiet()
        .read()
        .context("cannot list the checkout's files")?;
    let mut complaints = Vec::new();
    for path in names.split('\0').filter(|path| !path.is_empty()) {
        let Ok(bytes) = fs::read(root.join(path)) else {
            // Tracked and just removed, or a dangling link.
            continue;
        };
        // Binary files have no text to judge.
        let Ok(text) = std::str::from_utf8(&bytes) else {
            continue;
        };
        let file = File { path, text };
        for rule in RULES {
            let found = rule(&file, &machine);
            complaints.extend(found.iter().map(|complaint| format!("{path}: {complaint}")));
        }
    }
    let log = cmd!(sh, "git log --format=%H%x09%at%x09%B%x00")
        .quiet()
        .ignore_stderr()
        .ignore_status()
        .read()
        .context("cannot read the commits")?;
    complaints.extend(
        log.split('\0')
            .flat_map(|commit| commit_rule(commit, &machine)),
    );
    Ok(complaints)
}

impl Machine {
    /// Returns the names of this machine.
    fn here() -> Self {
        let mut paths = vec![project::root().display().to_string()];
        if let Some(home) = std::env::home_dir() {
            paths.push(home.display().to_string());
        }
        // A checkout right below / has no telling parent.
        let parent = project::root()
            .parent()
            .filter(|dir| *dir != Path::new("/"));
        paths.extend(parent.map(|dir| dir.display().to_string()));
        Self {
            paths,
            hosts: archive_hosts(),
        }
    }
}

/// The licences of the parts under the kernel's; everything else has [`OURS`].
const LICENCES: [(&str, &str); 4] = [
    ("module/uapi/", "GPL-2.0-only WITH Linux-syscall-note"),
    ("module/", "GPL-2.0-only"),
    ("kunit/", "GPL-2.0-only"),
    ("patches/", "GPL-2.0-only"),
];

/// The licence of everything that is not the kernel's.
const OURS: &str = "MIT OR Apache-2.0";

/// Returns whether people read and write the file line by line: source, scripts and documents.
fn is_text(file: &File<'_>) -> bool {
    let is_source = [".rs", ".c", ".h", ".md", ".sh"]
        .iter()
        .any(|end| file.path.ends_with(end));
    is_source || file.text.starts_with("#!/")
}

/// Returns the licence that a file must have; none for files that cannot say.
fn wanted_licence(path: &str) -> Option<&'static str> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let cannot_say = path.starts_with("LICENSES/")
        || name == "Cargo.lock"
        || [".json", ".pcapng", ".proptest-regressions"]
            .iter()
            .any(|end| name.ends_with(end));
    if cannot_say {
        return None;
    }
    let special = LICENCES.iter().find(|(dir, _)| path.starts_with(dir));
    Some(special.map_or(OURS, |(_, licence)| licence))
}

/// Every file names its licence, the right one, in its first lines.
fn licence(file: &File<'_>, _machine: &Machine) -> Vec<String> {
    let Some(wanted) = wanted_licence(file.path) else {
        return Vec::new();
    };
    // Written in two parts: this file has one such line.
    let tag = concat!("SPDX-License", "-Identifier:");
    let found = file.text.lines().take(5).find_map(|line| {
        let (_, rest) = line.split_once(tag)?;
        let rest = rest.trim();
        // The ends of comments of every kind.
        let rest = rest.trim_end_matches("*/").trim_end_matches("-->");
        Some(rest.trim_end_matches('"').trim())
    });
    match found {
        Some(found) if found == wanted => Vec::new(),
        Some(found) => vec![format!(
            "its licence is `{found}`, here it must be `{wanted}`"
        )],
        None => vec![format!("no `{tag} {wanted}` in the first five lines")],
    }
}

/// Every Rust file says what it is.
fn module_doc(file: &File<'_>, _machine: &Machine) -> Vec<String> {
    let begins = file.text.lines().any(|line| line.starts_with("//!"));
    if file.path.ends_with(".rs") && !begins {
        return vec!["no `//!` documentation".to_owned()];
    }
    Vec::new()
}

/// The lint that keeps `unsafe` out. In two parts, so that this file does not set it.
const UNSAFE_LINT: &str = concat!("unsafe", "_code");

/// Where that lint may be allowed: the host's calls of the C library, and code that the kernel's
/// build compiles.
const UNSAFE_PLACES: [&str; 4] = [
    "accf/src/sys.rs",
    "vm/kit/src/sys.rs",
    "module/net/",
    "kunit/",
];

/// `unsafe` stays in its layer: every package takes the workspace's lint that denies it, no other
/// file allows it again, and what only the kernel's build compiles does without the word.
fn unsafe_places(file: &File<'_>, _machine: &Machine) -> Vec<String> {
    if file.path.ends_with("Cargo.toml") {
        let wanted = match file.text.contains("\n[workspace.package]\n") {
            true => format!("\n{UNSAFE_LINT} = \"deny\"\n"),
            false => "\n[lints]\nworkspace = true\n".to_owned(),
        };
        let lacks = !file.text.contains(&wanted);
        return Vec::from_iter(lacks.then(|| format!("lacks the lint of `unsafe`: {wanted:?}")));
    }
    let allowed = UNSAFE_PLACES
        .iter()
        .any(|place| file.path.starts_with(place));
    if allowed || !file.path.ends_with(".rs") {
        return Vec::new();
    }
    let forbids = ["forbid", "deny"].map(|level| format!("{level}({UNSAFE_LINT})"));
    let is_kernels = file.path.starts_with("module/");
    by_line(file.text, |line| {
        let code = line.split("//").next().unwrap_or_default();
        let loosens = code.contains(UNSAFE_LINT) && !forbids.iter().any(|set| code.contains(set));
        let mut words = code.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        let has_word = words.any(|word| word == "unsafe");
        (loosens || (is_kernels && has_word)).then(|| "`unsafe` outside its layer".to_owned())
    })
}

/// Returns what the names of package archives and registries contain.
fn archive_hosts() -> Vec<String> {
    // In parts, so that this file does not contain them.
    let mut hosts: Vec<String> = [
        ["deb.", "debian.org"],
        ["security.", "debian.org"],
        ["ftp.", "debian.org"],
        ["snapshot.", "debian.org"],
        ["archive.", "ubuntu.com"],
        ["security.", "ubuntu.com"],
        ["index.", "crates.io"],
        ["static.", "crates.io"],
        ["files.", "pythonhosted.org"],
        ["registry.", "npmjs.org"],
    ]
    .iter()
    .map(|parts| parts.concat())
    .collect();
    // What this machine uses instead.
    if let Ok(archive) = crate::archive::Archive::find(None) {
        for address in [archive.main, archive.security] {
            let host = address
                .split("://")
                .nth(1)
                .and_then(|rest| rest.split('/').next());
            hosts.extend(host.map(str::to_owned));
        }
    }
    hosts
}

/// No file names a package archive: addresses come from the machine's own configuration.
fn archive_names(file: &File<'_>, machine: &Machine) -> Vec<String> {
    // Which registry a lock file's packages come from is not ours to say.
    if file.path.ends_with("Cargo.lock") {
        return Vec::new();
    }
    occurrences(file.text, &machine.hosts, "names the package archive")
}

/// No file has a path of the machine on which it was written.
fn machine_paths(file: &File<'_>, machine: &Machine) -> Vec<String> {
    by_line(file.text, |line| {
        let mut paths = machine.paths.iter();
        let path = paths.find(|path| mentions_path(line, path))?;
        Some(format!("contains the machine's own path {path}"))
    })
}

/// Returns whether `line` has `path` as a whole path or the beginning of one.
fn mentions_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + path.len()..].chars().next();
        let joins = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        // A short home's path may be the end of many other paths.
        let is_whole =
            !before.is_some_and(|c| joins(c) || c == '/' || c == '}') && !after.is_some_and(joins);
        // The home directory inside a guest or sysroot may be that very path.
        is_whole && !line[..at].ends_with("HOME=")
    })
}

/// No mark says that something is left for later.
fn unfinished(file: &File<'_>, _machine: &Machine) -> Vec<String> {
    // In parts, so that this file does not contain them.
    let words = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"]].map(|parts| parts.concat());
    let macros = [["todo", "!"], ["unimplemented", "!"]].map(|parts| parts.concat());
    if file.path.starts_with("LICENSES/") {
        return Vec::new();
    }
    by_line(file.text, |line| {
        let mut parts = line.split(|c: char| !c.is_ascii_alphanumeric());
        let has_word = parts.any(|word| words.iter().any(|w| w == word));
        let has_macro = macros.iter().any(|name| line.contains(name.as_str()));
        (has_word || has_macro).then(|| format!("unfinished: {}", line.trim()))
    })
}

/// The columns that a commit's subject may have.
const SUBJECT: usize = 75;

/// The author's time of the commit that added this rule, in seconds since 1970: earlier commits may
/// have longer subjects. A commit keeps its time when it is rebased.
const LONG_SUBJECTS_UNTIL: u64 = 1_796_051_747;

/// Commits have short subjects and no sign-offs, and name neither archives nor paths of the
/// machine.
fn commit_rule(commit: &str, machine: &Machine) -> Vec<String> {
    let mut fields = commit.trim().splitn(3, '\t');
    let (Some(hash), Some(time), Some(message)) = (fields.next(), fields.next(), fields.next())
    else {
        return Vec::new();
    };
    let mut complaints = occurrences(message, &machine.hosts, "names the package archive");
    let sign_off = ["Signed-off", "-by:"].concat();
    if message
        .lines()
        .any(|line| line.trim_start().starts_with(&sign_off))
    {
        complaints.push("has a sign-off".to_owned());
    }
    let columns = message.lines().next().unwrap_or_default().chars().count();
    if columns > SUBJECT
        && time
            .parse()
            .is_ok_and(|time: u64| time > LONG_SUBJECTS_UNTIL)
    {
        complaints.push(format!("a subject of {columns} columns, {SUBJECT} at most"));
    }
    for path in &machine.paths {
        if message.lines().any(|line| mentions_path(line, path)) {
            complaints.push(format!("contains the machine's own path {path}"));
        }
    }
    let short = hash.get(..12).unwrap_or(hash);
    complaints
        .iter()
        .map(|complaint| format!("commit {short}: {complaint}"))
        .collect()
}

/// Complains of every line that has one of `patterns`.
fn occurrences(text: &str, patterns: &[String], what: &str) -> Vec<String> {
    by_line(text, |line| {
        let pattern = patterns.iter().find(|pattern| line.contains(*pattern))?;
        Some(format!("{what} {pattern}"))
    })
}

/// Returns the complaints of a rule about single lines.
fn by_line(text: &str, rule: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let lines = (1..).zip(text.lines());
    let complaints = lines.filter_map(|(n, line)| Some(format!("line {n}: {}", rule(line)?)));
    complaints.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with names of its own.
    fn machine() -> Machine {
        Machine {
            paths: vec!["/somewhere/accf".to_owned(), "/home/me".to_owned()],
            hosts: vec!["packages.example.org".to_owned()],
        }
    }

    /// Applies a rule to a file.
    fn apply(rule: Rule, path: &str, text: &str) -> usize {
        complaints(rule, path, text).len()
    }

    /// Returns what a rule says of a file.
    pub(super) fn complaints(rule: Rule, path: &str, text: &str) -> Vec<String> {
        rule(&File { path, text }, &machine())
    }

    /// A licence line.
    fn tagged(licence: &str) -> String {
        format!("// {} {licence}\n", concat!("SPDX-License", "-Identifier:"))
    }

    #[test]
    fn this_checkout_is_tidy() {
        project::check().unwrap();
        run(&Shell::new().unwrap()).unwrap();
    }

    #[test]
    fn the_licence_depends_on_the_place() {
        let kernel = tagged("GPL-2.0-only");
        let ours = tagged("MIT OR Apache-2.0");
        let uapi = tagged("GPL-2.0-only WITH Linux-syscall-note");
        assert_eq!(apply(licence, "module/net/mod.rs", &kernel), 0);
        assert_eq!(apply(licence, "module/net/mod.rs", &ours), 1);
        assert_eq!(apply(licence, "module/uapi/accf.h", &uapi), 0);
        assert_eq!(apply(licence, "module/uapi/accf.h", &kernel), 1);
        assert_eq!(apply(licence, "xtask/src/main.rs", &ours), 0);
        assert_eq!(apply(licence, "xtask/src/main.rs", &kernel), 1);
        assert_eq!(apply(licence, "README.md", "# accf\n"), 1);
        assert_eq!(apply(licence, "Cargo.lock", "version = 4\n"), 0);
        let html = format!("<!-- {} -->", tagged("MIT OR Apache-2.0").trim());
        assert_eq!(apply(licence, "README.md", &html), 0);
    }

    #[test]
    fn rust_files_say_what_they_are() {
        assert_eq!(apply(module_doc, "a.rs", "//! Says it.\n"), 0);
        assert_eq!(apply(module_doc, "a.rs", "fn main() {}\n"), 1);
        assert_eq!(apply(module_doc, "a.sh", "true\n"), 0);
    }

    #[test]
    fn unsafe_stays_in_its_layer() {
        let text = "fn f() { unsafe { g() } }\n";
        assert_eq!(apply(unsafe_places, "module/accf_main.rs", text), 1);
        assert_eq!(apply(unsafe_places, "module/net/ulp.rs", text), 0);
        let talk = format!("#![forbid({UNSAFE_LINT})]\n// unsafe is not here\n");
        assert_eq!(apply(unsafe_places, "module/policy/lib.rs", &talk), 0);
        for level in ["allow", "expect"] {
            let text = format!("#[{level}(dead_code, {UNSAFE_LINT})]\nfn f() {{}}\n");
            assert_eq!(apply(unsafe_places, "vm/kit/src/lib.rs", &text), 1);
            assert_eq!(apply(unsafe_places, "accf/tests/a.rs", &text), 1);
            assert_eq!(apply(unsafe_places, "vm/kit/src/sys.rs", &text), 0);
        }
    }

    #[test]
    fn every_package_takes_the_lint_of_unsafe() {
        let package = "[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n";
        assert_eq!(apply(unsafe_places, "a/Cargo.toml", package), 0);
        let without = package.replace("true", "false");
        assert_eq!(apply(unsafe_places, "a/Cargo.toml", &without), 1);
        let workspace = "\n[workspace.package]\n\n[workspace.lints.rust]\n";
        let denies = format!("{workspace}{UNSAFE_LINT} = \"deny\"\n");
        assert_eq!(apply(unsafe_places, "Cargo.toml", &denies), 0);
        assert_eq!(apply(unsafe_places, "Cargo.toml", workspace), 1);
    }

    #[test]
    fn archives_are_not_named() {
        let text = "URIs: http://packages.example.org/debian\n";
        assert_eq!(apply(archive_names, "a.md", text), 1);
        assert_eq!(apply(archive_names, "a.md", "http://www.example.org/\n"), 0);
        let real = format!("http://{}{}/debian", "deb.", "debian.org");
        assert!(archive_hosts().iter().any(|host| real.contains(host)));
    }

    #[test]
    fn paths_of_the_machine_stay_there() {
        let count = |text| apply(machine_paths, "a.md", text);
        assert_eq!(count("see /somewhere/accf/README.md\n"), 1);
        assert_eq!(count("in /home/me\n"), 1);
        assert_eq!(count("in /home/meg, /srv/home/me or $S/home/me\n"), 0);
    }

    #[test]
    fn nothing_is_left_for_later() {
        let later = format!("// {}: later\n", ["TO", "DO"].concat());
        assert_eq!(apply(unfinished, "a.rs", &later), 1);
        let hole = format!("fn f() {{ {}() }}\n", ["todo", "!"].concat());
        assert_eq!(apply(unfinished, "a.rs", &hole), 1);
        assert_eq!(apply(unfinished, "a.rs", "let todo_list = 1;\n"), 0);
    }

    #[test]
    fn commits_have_no_sign_off() {
        let sign_off = ["Signed-off", "-by: A <a@example.org>"].concat();
        let count = |message: &str| {
            let commit = format!("0123456789abcdef\t{}\t{message}", LONG_SUBJECTS_UNTIL + 1);
            commit_rule(&commit, &machine()).len()
        };
        assert_eq!(count(&format!("area: do it\n\n{sign_off}\n")), 1);
        assert_eq!(count("area: do it\n\nWhy.\n"), 0);
        assert_eq!(count("area: do it\n\nSee /home/me/notes.\n"), 1);
        assert_eq!(commit_rule("", &machine()).len(), 0);
    }

    #[test]
    fn subjects_are_short() {
        let count = |time: u64, length: usize| {
            let commit = format!("0123\t{time}\t{}\n\nWhy.\n", "ä".repeat(length));
            commit_rule(&commit, &machine()).len()
        };
        assert_eq!(count(LONG_SUBJECTS_UNTIL + 1, SUBJECT), 0);
        assert_eq!(count(LONG_SUBJECTS_UNTIL + 1, SUBJECT + 1), 1);
        assert_eq!(count(LONG_SUBJECTS_UNTIL, SUBJECT + 1), 0);
    }
}
