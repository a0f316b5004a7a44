// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel's network counters, per namespace: what `nstat` shows.

use std::collections::BTreeMap;

use anyhow::{ensure, Context, Result};

use crate::netns::Netns;

/// A reading of every counter of `/proc/net/snmp` and `/proc/net/netstat`.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    values: BTreeMap<String, i64>,
}

impl Counters {
    /// Reads a namespace's counters.
    pub fn read(ns: &Netns) -> Result<Self> {
        let mut counters = Self::default();
        for file in ["snmp", "netstat"] {
            let text = ns.proc_net(file)?;
            counters
                .add(&text)
                .with_context(|| format!("/proc/net/{file} is not as expected"))?;
        }
        Ok(counters)
    }

    /// Adds the pairs of lines `Group: name name …` and `Group: value value …`.
    fn add(&mut self, text: &str) -> Result<()> {
        let mut lines = text.lines();
        while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
            let mut names = names.split_whitespace();
            let mut values = values.split_whitespace();
            let group = names.next().context("empty line")?;
            ensure!(values.next() == Some(group), "values of {group} missing");
            let group = group.trim_end_matches(':');
            for (name, value) in names.zip(values) {
                self.values.insert(
                    format!("{group}{name}"),
                    value.parse().context("not a number")?,
                );
            }
        }
        Ok(())
    }

    /// Returns one counter, by the name `nstat` gives it: group and name, as in `TcpExtListenDrops`
    /// or `TcpRetransSegs`.
    ///
    /// A counter this kernel does not have is an error: a test that reads it by a wrong name would
    /// always pass.
    pub fn get(&self, name: &str) -> Result<i64> {
        self.values
            .get(name)
            .copied()
            .with_context(|| format!("this kernel has no counter {name}"))
    }

    /// Returns how much a counter has grown since `earlier`.
    pub fn growth(&self, earlier: &Self, name: &str) -> Result<i64> {
        Ok(self.get(name)? - earlier.get(name)?)
    }

    /// Returns every counter that has changed since `earlier`, with its growth: for diagnostics.
    pub fn changes(&self, earlier: &Self) -> BTreeMap<String, i64> {
        self.values
            .iter()
            .filter_map(|(name, value)| {
                let growth = value - earlier.values.get(name).copied().unwrap_or(0);
                (growth != 0).then(|| (name.clone(), growth))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_lines_become_counters() {
        let mut before = Counters::default();
        before
            .add("TcpExt: A B\nTcpExt: 1 2\nTcp: A\nTcp: -1\n")
            .unwrap();
        assert_eq!(before.get("TcpExtA").unwrap(), 1);
        assert_eq!(before.get("TcpExtB").unwrap(), 2);
        assert_eq!(before.get("TcpA").unwrap(), -1);
        assert!(before.get("TcpExtC").is_err());
        let mut after = before.clone();
        after.add("TcpExt: A B\nTcpExt: 1 5\n").unwrap();
        assert_eq!(after.growth(&before, "TcpExtB").unwrap(), 3);
        assert_eq!(
            after.changes(&before).into_iter().collect::<Vec<_>>(),
            [("TcpExtB".to_owned(), 3)]
        );
    }

    #[test]
    fn lines_that_do_not_belong_together_are_refused() {
        assert!(Counters::default().add("Tcp: A\nIp: 1\n").is_err());
        assert!(Counters::default().add("Tcp: A\nTcp: x\n").is_err());
    }
}
