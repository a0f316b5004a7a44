// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's functions and their addresses, from `/proc/kallsyms`.

use std::fmt;

use anyhow::{ensure, Context, Result};
use serde::Serialize;

/// A function of the kernel or of a module.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Function {
    /// The demangled name.
    #[serde(rename = "function")]
    pub(crate) name: String,
    /// The module, if the function is in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) module: Option<String>,
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.module {
            Some(module) => write!(f, " [{module}]"),
            None => Ok(()),
        }
    }
}

/// The beginning of a function, or of its unlikely part.
#[derive(Debug)]
struct Symbol {
    address: u64,
    function: Function,
    /// Whether the function is entered here.
    is_entry: bool,
}

/// All functions of a running kernel.
#[derive(Debug)]
pub(crate) struct Symbols {
    /// The symbols in the order of their addresses.
    symbols: Vec<Symbol>,
}

impl Symbols {
    /// Reads `/proc/kallsyms`, as root sees it.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut found = Vec::new();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(address), Some(kind), Some(name)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            if matches!(kind, "t" | "T" | "w" | "W") {
                let address = u64::from_str_radix(address, 16).with_context(|| line.to_owned())?;
                let module = words
                    .next()
                    .map(|module| module.trim_matches(['[', ']']).to_owned());
                found.push((address, name, module));
            }
        }
        ensure!(
            found.iter().any(|(address, _, _)| *address != 0),
            "the kernel's symbols have no addresses: they were not read by root"
        );
        // Of several names of one address, the shortest with the fewest underscores.
        found.sort_by_key(|(address, name, _)| {
            let underscores = name.len() - name.trim_start_matches('_').len();
            (*address, underscores, name.len())
        });
        found.dedup_by_key(|(address, _, _)| *address);
        let symbols = found.into_iter().map(|(address, name, module)| {
            // The compiler moves unlikely code to a separate `.cold` symbol.
            let whole = name.strip_suffix(".cold");
            Symbol {
                address,
                function: Function {
                    // Without the hash.
                    name: format!("{:#}", rustc_demangle::demangle(whole.unwrap_or(name))),
                    module,
                },
                is_entry: whole.is_none(),
            }
        });
        Ok(Self {
            symbols: symbols.collect(),
        })
    }

    /// Returns whether there is a function of this module.
    pub(crate) fn has_module(&self, module: &str) -> bool {
        let mut functions = self.symbols.iter().map(|symbol| &symbol.function);
        functions.any(|function| function.module.as_deref() == Some(module))
    }

    /// Returns the function of an instruction, and whether the instruction is its first.
    pub(crate) fn at(&self, address: u64) -> Option<(&Function, bool)> {
        let behind = self
            .symbols
            .partition_point(|symbol| symbol.address <= address);
        let symbol = self.symbols.get(behind.checked_sub(1)?)?;
        let is_entry = symbol.is_entry && symbol.address == address;
        Some((&symbol.function, is_entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel with a module.
    const KALLSYMS: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T memset
ffffffff81000000 T __memset
ffffffff81000000 T __pi_memset
ffffffff81000040 t tcp_check_req
ffffffff81000080 t tcp_check_req.cold
ffffffff81000090 D tcp_hashinfo
ffffffffc0000000 t _RNvNtNtCsd5nqjlr6OOH_9accf_main3net5hooks13syn_recv_sock\t[accf]
ffffffffc0000100 t accf_jiffies\t[accf]
";

    #[test]
    fn an_instruction_belongs_to_the_function_before_it() {
        let symbols = Symbols::parse(KALLSYMS).unwrap();
        let at = |address| {
            let (function, is_entry) = symbols.at(address)?;
            Some((function.to_string(), is_entry))
        };
        let found = |name: &str, is_entry| Some((name.to_owned(), is_entry));
        assert_eq!(at(0x1000), None);
        assert_eq!(at(0xffff_ffff_8100_0000), found("memset", true));
        assert_eq!(at(0xffff_ffff_8100_003f), found("memset", false));
        assert_eq!(at(0xffff_ffff_8100_0040), found("tcp_check_req", true));
        assert_eq!(at(0xffff_ffff_8100_0080), found("tcp_check_req", false));
        let rust = "accf_main::net::hooks::syn_recv_sock [accf]";
        assert_eq!(at(0xffff_ffff_c000_0000), found(rust, true));
        assert_eq!(at(u64::MAX), found("accf_jiffies [accf]", false));
    }

    #[test]
    fn modules_are_known() {
        let symbols = Symbols::parse(KALLSYMS).unwrap();
        assert!(symbols.has_module("accf"));
        assert!(!symbols.has_module("tun"));
    }

    #[test]
    fn symbols_without_addresses_are_refused() {
        let hidden = "0000000000000000 T memset\n0000000000000000 t tcp_check_req\n";
        let error = Symbols::parse(hidden).unwrap_err().to_string();
        assert!(error.contains("not read by root"), "{error}");
    }
}
