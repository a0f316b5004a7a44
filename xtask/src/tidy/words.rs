// SPDX-License-Identifier: MIT OR Apache-2.0
//! Words that are out: a table of what not to write, and what to write instead.

use super::{is_text, File, Machine};

/// A word, or several in a row, and what takes its place.
struct Out {
    word: &'static str,
    instead: &'static str,
    /// The directories it is out in; everywhere, if there is none.
    only_in: &'static [&'static str],
}

/// Returns a word that is out everywhere.
const fn out(word: &'static str, instead: &'static str) -> Out {
    Out {
        word,
        instead,
        only_in: &[],
    }
}

/// The actors that take the place of persons.
const ACTOR: &str = "the actor: the reader, the timer handler, the other CPU, the caller";

/// All that is out.
const WORDS: [Out; 8] = [
    out("whoever", ACTOR),
    out("somebody", ACTOR),
    out("anybody", ACTOR),
    out("nobody", "what does not happen: no reader, no other CPU"),
    out("anew", "again"),
    out("as a rule", "usually"),
    out("so many", "N, or what limits the number"),
    Out {
        only_in: &["module/"],
        ..out("who", ACTOR)
    },
];

/// The table itself has the words, and a page that is generated has what it was generated from.
const EXEMPT: [&str; 2] = ["xtask/src/tidy/words.rs", "docs/benchmarks.md"];

/// What registers a case of the suite. The names of cases stay, as results are compared by them.
const CASE: &str = "case!(";

/// Comments, strings and names are plain: no word of the table, also not across lines.
pub(super) fn words(file: &File<'_>, _machine: &Machine) -> Vec<String> {
    if !is_text(file) || EXEMPT.contains(&file.path) {
        return Vec::new();
    }
    let words: Vec<(usize, String)> = (1..)
        .zip(file.text.lines())
        .filter(|(_, text)| !text.starts_with(CASE))
        .flat_map(|(line, text)| {
            text.split(|c: char| !c.is_alphanumeric())
                .filter(|word| !word.is_empty())
                .map(move |word| (line, word.to_lowercase()))
        })
        .collect();
    let mut complaints = Vec::new();
    for out in &WORDS {
        let applies =
            out.only_in.is_empty() || out.only_in.iter().any(|place| file.path.starts_with(place));
        let parts: Vec<&str> = out.word.split(' ').collect();
        for found in words.windows(parts.len()).filter(|_| applies) {
            if found.iter().map(|(_, word)| word).eq(&parts) {
                complaints.push(format!(
                    "line {}: not \"{}\", but {}",
                    found[0].0, out.word, out.instead
                ));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::tests::complaints;

    #[test]
    fn a_case_keeps_its_name() {
        let text = "case!(Default, \"a.nobody_parked\" => once(a));\n";
        assert_eq!(complaints(words, "vm/suite/src/a.rs", text).len(), 0);
        let text = text.replace("case!", "other!");
        assert_eq!(complaints(words, "vm/suite/src/a.rs", &text).len(), 1);
    }

    #[test]
    fn words_that_are_out_are_found_in_comments_strings_and_names() {
        for text in [
            "// Whoever comes\n",
            "\"nobody's\"\n",
            "fn what_nobody_knows() {}\n",
            "/// This is, as a\n/// rule, so.\n",
            "# made anew\n",
        ] {
            let found = complaints(words, "vm/kit/src/lib.rs", text);
            assert_eq!(found.len(), 1, "{text}");
        }
        let found = complaints(words, "a.md", "one\n\nso many\n");
        let wanted = "line 3: not \"so many\", but N, or what limits the number";
        assert_eq!(found, [wanted]);
    }

    #[test]
    fn other_words_pass() {
        let text = "// The rule, a new one: as many as a ruler. Who is root?\nfn body() {}\n";
        assert!(complaints(words, "vm/kit/src/lib.rs", text).is_empty());
        assert_eq!(complaints(words, "module/net/a.rs", text).len(), 1);
        assert!(complaints(words, "Cargo.lock", "anybody\n").is_empty());
        assert!(complaints(words, "docs/a.svg", "anybody\n").is_empty());
    }
}
