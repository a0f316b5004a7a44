// SPDX-License-Identifier: MIT OR Apache-2.0

//! The kernel's table of TCP sockets, half-open requests among them.

use anyhow::{Context, Result};

use crate::netns::Netns;
use crate::tcp_info::State;

/// One line of `/proc/net/tcp` or `/proc/net/tcp6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The local port.
    pub local_port: u16,
    /// The other side's port.
    pub remote_port: u16,
    /// The state; a request is [`State::SynRecv`].
    pub state: State,
}

/// Returns every TCP socket and request of a namespace.
pub fn all(ns: &Netns) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for file in ["tcp", "tcp6"] {
        let text = ns.proc_net(file)?;
        for line in text.lines().skip(1) {
            entries.push(parse(line).with_context(|| format!("/proc/net/{file}: `{line}`"))?);
        }
    }
    Ok(entries)
}

/// Returns how many sockets or requests of a local port are in a state.
pub fn count(ns: &Netns, local_port: u16, state: State) -> Result<usize> {
    Ok(all(ns)?
        .into_iter()
        .filter(|entry| entry.local_port == local_port && entry.state == state)
        .count())
}

/// Returns how many half-open requests a listener's port has: parked ones are among them.
pub fn requests(ns: &Netns, local_port: u16) -> Result<usize> {
    count(ns, local_port, State::SynRecv)
}

fn parse(line: &str) -> Option<Entry> {
    let mut fields = line.split_whitespace().skip(1);
    let port = |field: &str| u16::from_str_radix(field.rsplit(':').next()?, 16).ok();
    Some(Entry {
        local_port: port(fields.next()?)?,
        remote_port: port(fields.next()?)?,
        state: u8::from_str_radix(fields.next()?, 16).ok()?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_lines_are_read() {
        let v4 = "   0: 0100007F:1F90 0200007F:A1B2 03 00000000:00000000 01:00000064 00000000 \
                  0        0 0 1 0";
        assert_eq!(
            parse(v4),
            Some(Entry {
                local_port: 8080,
                remote_port: 0xa1b2,
                state: State::SynRecv
            })
        );
        let v6 = "   1: 00000000000000000000000000000000:0050 \
                  00000000000000000000000000000000:0000 0A 0:0";
        assert_eq!(
            parse(v6),
            Some(Entry {
                local_port: 80,
                remote_port: 0,
                state: State::Listen
            })
        );
        assert_eq!(parse("nonsense"), None);
    }
}
