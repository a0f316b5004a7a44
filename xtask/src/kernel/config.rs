// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads kernel configurations.

use std::collections::HashMap;

/// Returns the program that compiled the kernel of this configuration.
pub(crate) fn compiler(config: &str) -> Option<&str> {
    let text = config
        .lines()
        .find_map(|line| line.strip_prefix("CONFIG_CC_VERSION_TEXT=\""))?;
    text.split_whitespace().next()
}

/// Returns the option and value of a line; an unset option has the value `n`.
fn option(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if let Some(unset) = line.strip_prefix("# ") {
        return Some((unset.strip_suffix(" is not set")?, "n"));
    }
    line.split_once('=')
        .filter(|(name, _)| name.starts_with("CONFIG_"))
}

/// Lists what `fragments` ask for and `config` does not have. A later fragment overrides the
/// options of an earlier one.
pub(crate) fn not_taken<'a>(
    fragments: impl IntoIterator<Item = &'a str>,
    config: &str,
) -> Vec<String> {
    let have: HashMap<_, _> = config.lines().filter_map(option).collect();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for (name, want) in fragments
        .into_iter()
        .flat_map(str::lines)
        .filter_map(option)
    {
        match wanted.iter_mut().find(|(earlier, _)| *earlier == name) {
            Some(earlier) => earlier.1 = want,
            None => wanted.push((name, want)),
        }
    }
    wanted
        .into_iter()
        .filter_map(|(name, want)| {
            // An option that does not exist is not set.
            let got = have.get(name).copied().unwrap_or("n");
            (got != want).then(|| format!("{name}: want {want}, have {got}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_is_named() {
        let config =
            "CONFIG_CC_VERSION_TEXT=\"x86_64-linux-gnu-gcc-14 (Debian 14.2.0-19) 14.2.0\"\n";
        assert_eq!(compiler(config), Some("x86_64-linux-gnu-gcc-14"));
        assert_eq!(compiler("CONFIG_64BIT=y\n"), None);
    }

    #[test]
    fn every_line_must_take_effect() {
        let config = "CONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_E=64\n";
        let fine =
            "# a comment\nCONFIG_A=y\n# CONFIG_C is not set\n# CONFIG_D is not set\nCONFIG_E=64\n";
        assert_eq!(not_taken([fine], config), Vec::<String>::new());
        let bad = "CONFIG_B=y\n# CONFIG_A is not set\nCONFIG_D=y\nCONFIG_E=65\n";
        assert_eq!(
            not_taken([bad], config),
            [
                "CONFIG_B: want y, have m",
                "CONFIG_A: want n, have y",
                "CONFIG_D: want y, have n",
                "CONFIG_E: want 65, have 64"
            ]
        );
    }

    #[test]
    fn a_later_fragment_overrides_an_earlier_one() {
        let config = "# CONFIG_A is not set\nCONFIG_B=y\n";
        let first = "CONFIG_A=y\nCONFIG_B=y\n";
        let second = "# CONFIG_A is not set\n";
        assert_eq!(not_taken([first, second], config), Vec::<String>::new());
        assert_eq!(
            not_taken([second, first], config),
            ["CONFIG_A: want y, have n"]
        );
    }
}
