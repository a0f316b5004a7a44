// SPDX-License-Identifier: MIT OR Apache-2.0
//! Adds up the executed instructions of each function.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::symbols::{Function, Symbols};

/// The first address of the kernel's half.
const KERNEL: u64 = 1 << 63;

/// The cost of a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Instructions of the function itself, without the functions that it calls.
    pub(crate) instructions: u64,
    /// How often the function was entered.
    pub(crate) calls: u64,
}

/// The instructions of one section.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// The instructions of programs.
    pub(crate) programs: u64,
    /// The cost of each function of the kernel.
    pub(crate) functions: BTreeMap<Function, Cost>,
}

impl Counts {
    /// Reads the plugin's counts: lines with an instruction's address and how often it was
    /// executed.
    pub(crate) fn parse(text: &str, symbols: &Symbols) -> Result<Self> {
        let mut counts = Self::default();
        for line in text.lines() {
            let (address, executed) = parse_line(line).with_context(|| format!("`{line}`"))?;
            if address < KERNEL {
                counts.programs += executed;
                continue;
            }
            let (function, is_entry) = symbols
                .at(address)
                .with_context(|| format!("no function is at {address:x}"))?;
            // Most instructions belong to a known function: no clone for these.
            if !counts.functions.contains_key(function) {
                counts.functions.insert(function.clone(), Cost::default());
            }
            if let Some(cost) = counts.functions.get_mut(function) {
                cost.instructions += executed;
                cost.calls += if is_entry { executed } else { 0 };
            }
        }
        Ok(counts)
    }

    /// Returns the instructions of the kernel and its modules.
    pub(crate) fn kernel(&self) -> u64 {
        self.functions.values().map(|cost| cost.instructions).sum()
    }

    /// Returns the instructions of one module.
    pub(crate) fn module(&self, module: &str) -> u64 {
        let functions = self.functions.iter();
        let of_module = functions.filter(|(it, _)| it.module.as_deref() == Some(module));
        of_module.map(|(_, cost)| cost.instructions).sum()
    }

    /// Returns the number of all instructions.
    pub(crate) fn total(&self) -> u64 {
        self.programs + self.kernel()
    }
}

/// Reads a line.
fn parse_line(line: &str) -> Result<(u64, u64)> {
    let (address, executed) = line.split_once(' ').context("no two words")?;
    Ok((u64::from_str_radix(address, 16)?, executed.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_added_up_by_function() {
        let symbols = Symbols::parse(
            "ffffffff81000000 T memset\n\
             ffffffff81000040 t tcp_check_req\n\
             ffffffff81000080 t tcp_check_req.cold\n\
             ffffffffc0000000 t accf_jiffies\t[accf]\n",
        )
        .unwrap();
        let text =
            "401000 5\n401004 7\nffffffff81000000 3\nffffffff81000004 1302\nffffffff81000040 2\n\
                    ffffffff81000080 1\nffffffffc0000000 4\nffffffffc0000008 4\n";
        let counts = Counts::parse(text, &symbols).unwrap();
        let cost = |name: &str| {
            let mut functions = counts.functions.iter();
            let (_, cost) = functions.find(|(it, _)| it.name == name)?;
            Some((cost.instructions, cost.calls))
        };
        assert_eq!(counts.programs, 12);
        assert_eq!(cost("memset"), Some((1305, 3)));
        assert_eq!(cost("tcp_check_req"), Some((3, 2)));
        assert_eq!(cost("accf_jiffies"), Some((8, 4)));
        assert_eq!(
            (counts.kernel(), counts.module("accf"), counts.total()),
            (1316, 8, 1328)
        );
    }

    #[test]
    fn malformed_counts_are_refused() {
        let symbols = Symbols::parse("ffffffff81000000 T memset\n").unwrap();
        for text in ["401000", "401000 x", "y 5", "ffffffff80000000 1"] {
            assert!(Counts::parse(text, &symbols).is_err(), "{text}");
        }
    }
}
