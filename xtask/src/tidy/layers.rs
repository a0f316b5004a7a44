// SPDX-License-Identifier: MIT OR Apache-2.0
//! The layers of the module's kernel side: a file imports only from rows above its own.

use super::{File, Machine};

/// The directory of the layers.
const PLACE: &str = "module/net/";

/// The rows, the lowest layer first. Files in one row do not import each other; the files of a
/// directory, which is one entry, may.
const ROWS: &[&[&str]] = &[
    &["bindings"],
    &["bh"],
    &["rcu"],
    &["tcp_segment"],
    &["listen_sock"],
    &["reqsk"],
    &["netns"],
    &["reuseport"],
    &["sockopt"],
    &["diag"],
    &["registration"],
    &["parked_request"],
    &["reqsk_ops"],
    &["clone"],
    &["by_source"],
    &["park_queue"],
    &["inject"],
    &["listener"],
    &["callbacks"],
];

/// Returns the row of a module of `net`.
fn row(name: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&name))
}

/// A file of module/net/ has a row, and names only modules of rows above.
pub(super) fn layers(file: &File<'_>, _machine: &Machine) -> Vec<String> {
    let Some(path) = file
        .path
        .strip_prefix(PLACE)
        .and_then(|path| path.strip_suffix(".rs"))
    else {
        return Vec::new();
    };
    // A directory's mod.rs is the directory's module.
    let names = path.split('/').filter(|name| *name != "mod");
    let here: Vec<&str> = ["net"].into_iter().chain(names).collect();
    // The root only declares the modules.
    let own = here.get(1).map(|name| (*name, row(name)));
    if let Some((name, None)) = own {
        return vec![format!(
            "`{name}` has no row: add it to ROWS in xtask/src/tidy/layers.rs"
        )];
    }
    let mut complaints = Vec::new();
    for (line, path) in paths(file.text, &here) {
        let ["net", name, ..] = path.as_slice() else {
            continue;
        };
        let complaint = match (own, row(name)) {
            (Some((own, _)), _) if own == *name => continue,
            (Some((_, Some(own))), Some(other)) if other < own => continue,
            (_, None) => format!("`{name}`, which has no row in xtask/src/tidy/layers.rs"),
            (None, _) => format!("`{name}`, but mod.rs only declares modules"),
            (Some((own, _)), _) => format!("`{name}`, which is not in a row above `{own}`"),
        };
        complaints.push(format!("line {line}: uses {complaint}"));
    }
    complaints
}

/// Returns the absolute path of every path in `text` that begins with `crate`, `self` or `super`,
/// in the module `here`, with the number of its line.
fn paths<'a>(text: &'a str, here: &[&'a str]) -> Vec<(usize, Vec<&'a str>)> {
    let tokens: Vec<(usize, &str)> = (1..)
        .zip(text.lines())
        .flat_map(|(number, line)| {
            let code = line.split("//").next().unwrap_or_default();
            tokens(code).map(move |token| (number, token))
        })
        .collect();
    let mut found = Vec::new();
    let mut rest = tokens.as_slice();
    while let Some((_, token)) = rest.first() {
        if matches!(*token, "crate" | "self" | "super") {
            rest = tree(rest, here, &mut found);
        } else {
            rest = &rest[1..];
        }
    }
    found
}

/// Splits a line of code into names, `::`, and single characters.
fn tokens(code: &str) -> impl Iterator<Item = &str> {
    let mut rest = code.trim();
    std::iter::from_fn(move || {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let first = rest.chars().next()?;
        let length = if rest.starts_with("::") {
            2
        } else {
            let name = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
            name.max(first.len_utf8())
        };
        let (token, after) = rest.split_at(length);
        rest = after.trim_start();
        Some(token)
    })
}

/// Reads a path, or a tree of them, which follows `base`; adds each to `found` and returns the
/// tokens after it.
fn tree<'t, 'a>(
    mut tokens: &'t [(usize, &'a str)],
    base: &[&'a str],
    found: &mut Vec<(usize, Vec<&'a str>)>,
) -> &'t [(usize, &'a str)] {
    let mut path = base.to_vec();
    let mut line = 0;
    while let Some(((number, token), rest)) = tokens.split_first() {
        line = *number;
        match *token {
            "{" => {
                tokens = rest;
                while let Some(((_, token), rest)) = tokens.split_first() {
                    match *token {
                        "}" => return rest,
                        "," => tokens = rest,
                        _ => tokens = tree(tokens, &path, found),
                    }
                }
                return tokens;
            }
            "crate" => path.clear(),
            "self" => {}
            "super" => drop(path.pop()),
            name => path.push(name),
        }
        match rest.split_first() {
            Some(((_, "::"), rest)) => tokens = rest,
            // The name that it is given here is no path.
            Some(((_, "as"), rest)) => {
                tokens = rest.get(1..).unwrap_or_default();
                break;
            }
            _ => {
                tokens = rest;
                break;
            }
        }
    }
    found.push((line, path));
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::tests::complaints;

    #[test]
    fn a_file_may_use_the_rows_above() {
        for (path, text) in [
            (
                "reqsk.rs",
                "use super::{\n    bh::BhDisabled,\n    listen_sock::ListenSock, //\n};\n",
            ),
            (
                "reqsk.rs",
                "use crate::{net::bindings as c, policy::Action};\nuse kernel::net::listener;\n",
            ),
            (
                "reqsk.rs",
                "//! See [`super::listener`].\nfn f(self) -> super::rcu::Head {}\n",
            ),
            (
                "listener/mod.rs",
                "mod park;\nuse self::park::Park;\nuse super::inject::send;\n",
            ),
            (
                "listener/park.rs",
                "use super::{timer, Listener};\nuse super::super::inject;\n",
            ),
            (
                "callbacks/ulp.rs",
                "pub(in crate::net) fn f() { crate::net::listener::g() }\n",
            ),
            ("mod.rs", "pub(crate) mod bindings;\n"),
        ] {
            let path = format!("module/net/{path}");
            assert_eq!(complaints(layers, &path, text), [""; 0], "{text}");
        }
    }

    #[test]
    fn a_file_may_not_use_its_own_row_or_those_below() {
        for (path, text) in [
            ("bh.rs", "use super::rcu::RcuHead;\n"),
            (
                "reqsk.rs",
                "use super::{\n    bh,\n    listener::Listener, //\n};\n",
            ),
            (
                "reqsk.rs",
                "use crate::{\n    net::{\n        bh,\n        clone, //\n    },\n};\n",
            ),
            ("reqsk.rs", "fn f() { super::inject::send() }\n"),
            ("reqsk.rs", "use super::Listener;\n"),
            ("listener/park.rs", "use super::super::callbacks::ulp;\n"),
            ("listener/mod.rs", "use super::callbacks::ulp;\n"),
            ("mod.rs", "use self::listener::Listener;\n"),
            ("helpers.rs", "\n"),
        ] {
            let path = format!("module/net/{path}");
            assert_eq!(complaints(layers, &path, text).len(), 1, "{path}: {text}");
        }
        let text = "use super::{\n    bh,\n    inject, //\n};\n";
        assert_eq!(
            complaints(layers, "module/net/clone.rs", text),
            ["line 3: uses `inject`, which is not in a row above `clone`"]
        );
        assert!(complaints(layers, "module/policy/mod.rs", text).is_empty());
    }
}
