// SPDX-License-Identifier: MIT OR Apache-2.0
//! Just enough of Rust's syntax to tell code from comments and literals.

/// Returns the words of the code with their line numbers, without those in comments and literals.
pub(super) fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = Cursor {
        text,
        at: 0,
        line: 1,
    };
    std::iter::from_fn(move || rest.next_word())
}

/// A place in a text.
struct Cursor<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl<'a> Cursor<'a> {
    /// Returns the text from here on.
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    /// Passes over `length` bytes.
    fn skip(&mut self, length: usize) {
        let end = (self.at + length).min(self.text.len());
        let passed = &self.text.as_bytes()[self.at..end];
        self.line += passed.iter().filter(|byte| **byte == b'\n').count();
        self.at = end;
    }

    /// Passes over everything up to and including `end`.
    fn skip_past(&mut self, end: &str) {
        let length = self.rest().find(end).map(|at| at + end.len());
        self.skip(length.unwrap_or(self.rest().len()));
    }

    /// Returns the next word of code.
    fn next_word(&mut self) -> Option<(usize, &'a str)> {
        loop {
            let rest = self.rest();
            let first = rest.chars().next()?;
            if rest.starts_with("//") {
                self.skip_past("\n");
            } else if rest.starts_with("/*") {
                self.skip_block_comment();
            } else if let Some(hashes) = raw_string(rest) {
                self.skip_past("\"");
                self.skip_past(&format!("\"{}", "#".repeat(hashes)));
            } else if first == '"' {
                self.skip_string();
            } else if first == '\'' {
                self.skip_quote();
            } else if first == '_' || first.is_alphabetic() {
                let length = rest
                    .find(|c: char| !(c == '_' || c.is_alphanumeric()))
                    .unwrap_or(rest.len());
                let word = (self.line, &rest[..length]);
                self.skip(length);
                return Some(word);
            } else {
                self.skip(first.len_utf8());
            }
        }
    }

    /// Passes over a block comment and those in it.
    fn skip_block_comment(&mut self) {
        let mut depth = 0;
        loop {
            let rest = self.rest();
            if rest.starts_with("/*") {
                depth += 1;
                self.skip(2);
            } else if rest.starts_with("*/") {
                depth -= 1;
                self.skip(2);
            } else {
                match rest.chars().next() {
                    Some(c) => self.skip(c.len_utf8()),
                    None => return,
                }
            }
            if depth == 0 {
                return;
            }
        }
    }

    /// Passes over a string with escapes.
    fn skip_string(&mut self) {
        self.skip(1);
        while let Some(c) = self.rest().chars().next() {
            self.skip(c.len_utf8());
            match c {
                '"' => return,
                '\\' => self.skip(self.rest().chars().next().map_or(0, char::len_utf8)),
                _ => {}
            }
        }
    }

    /// Passes over a character, or over the quote of a lifetime.
    fn skip_quote(&mut self) {
        self.skip(1);
        let rest = self.rest();
        let mut chars = rest.chars();
        match (chars.next(), chars.next()) {
            (Some('\\'), Some(escaped)) => {
                self.skip(1 + escaped.len_utf8());
                self.skip_past("'");
            }
            (Some(c), Some('\'')) => self.skip(c.len_utf8() + 1),
            _ => {}
        }
    }
}

/// Returns the number of hashes if a raw string begins here.
fn raw_string(rest: &str) -> Option<usize> {
    let after = ["br", "cr", "r"]
        .iter()
        .find_map(|prefix| rest.strip_prefix(prefix))?;
    let hashes = after.bytes().take_while(|byte| *byte == b'#').count();
    after[hashes..].starts_with('"').then_some(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Collects the words.
    fn all(text: &str) -> Vec<&str> {
        words(text).map(|(_, word)| word).collect()
    }

    #[test]
    fn comments_and_literals_are_not_code() {
        assert_eq!(all("a // b\nc"), ["a", "c"]);
        assert_eq!(all("a /* b /* c */ d */ e"), ["a", "e"]);
        assert_eq!(all(r#"a "b \" c" d"#), ["a", "d"]);
        assert_eq!(all(r##"a r#"b " c"# d"##), ["a", "d"]);
        assert_eq!(all(r#"a b"c" d"#), ["a", "b", "d"]);
        assert_eq!(all("a '\"' b '\\'' c 'x' d"), ["a", "b", "c", "d"]);
        assert_eq!(
            all("fn f<'a>(x: &'a str)"),
            ["fn", "f", "a", "x", "a", "str"]
        );
    }

    #[test]
    fn lines_are_counted_everywhere() {
        let text = "/* 1\n2 */ \"3\n\" unsafe";
        assert_eq!(words(text).collect::<Vec<_>>(), [(3, "unsafe")]);
    }
}
