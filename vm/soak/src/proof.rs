// SPDX-License-Identifier: MIT OR Apache-2.0
//! Proves in the end that nothing is left.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use accf_kit::module;
use accf_kit::netns::Netns;
use accf_kit::slab::Slabs;
use accf_soak::{Proof, Slab};
use anyhow::{Context, Result};

use crate::board::Board;

/// The caches of what each connection and each namespace is made of: not one object may be left.
const EXACTLY: [&str; 7] = [
    "request_sock_TCP",
    "request_sock_TCPv6",
    "TCP",
    "TCPv6",
    "tw_sock_TCP",
    "tw_sock_TCPv6",
    "net_namespace",
];

/// The caches that the module's own objects are in, which others use, too, and how many bytes of
/// others may have come.
///
/// The module's entry of a parked connection takes 64 bytes. As few as are allowed here cannot be a
/// leak of them: there were thousands.
const ROUGHLY: [(&str, i64); 2] = [("kmalloc-64", 64 * 256), ("kmalloc-4k", 4096 * 32)];

/// How long a socket may stay that no process has open, with its namespace.
///
/// If the other side's namespace goes while a FIN is on its way, the FIN is not acknowledged. The
/// kernel sends it again until 102.2 s have passed since it first did (`tcp_orphan_retries()`: 8
/// times, as if from 200 ms), but asks that only when it would send again, each time twice as long
/// after the last one: at most 204.4 s, and twice the first retransmission timeout.
const ORPHANED: Duration = Duration::from_secs(240);

/// What was there before.
pub(crate) struct Before {
    slabs: Slabs,
}

impl Before {
    /// Looks at what is there.
    pub(crate) fn look() -> Result<Self> {
        bury_namespaces()?;
        let slabs = Slabs::read_exactly(Duration::from_secs(2))?;
        Ok(Self { slabs })
    }

    /// Proves that no more than that is there, and that nothing else went wrong.
    pub(crate) fn prove(&self, board: &Board, patience: u32) -> Result<(Vec<Proof>, Vec<Slab>)> {
        let mut proofs = Vec::new();
        let complaints = board.complaints();
        proofs.push(Proof {
            name: "fates".to_owned(),
            says:
                "every client's fate agrees with what it did, every listener's counts add up and \
                   come to zero"
                    .to_owned(),
            held: complaints.is_empty(),
            found: if complaints.is_empty() {
                "no complaint".to_owned()
            } else {
                complaints.join("; ")
            },
        });
        proofs.push(module_goes()?);
        proofs.push(everything_happened(board));
        let slabs = self.slabs(ORPHANED.max(Duration::from_secs(30) * patience))?;
        let grown: Vec<String> = slabs
            .iter()
            .filter(|slab| slab.after - slab.before > slab.allowed)
            .map(|slab| {
                let growth = slab.after - slab.before;
                format!("{growth} bytes more in {}", slab.cache)
            })
            .collect();
        proofs.push(Proof {
            name: "slabs".to_owned(),
            says: "requests, sockets, namespaces and the module's objects are as few as before"
                .to_owned(),
            held: grown.is_empty(),
            found: if grown.is_empty() {
                format!("{} caches looked at", slabs.len())
            } else {
                format!("{}; of all namespaces, {}", grown.join(", "), sockets()?)
            },
        });
        Ok((proofs, slabs))
    }

    /// Returns the caches before and after; what is being freed has `limit` to go.
    fn slabs(&self, limit: Duration) -> Result<Vec<Slab>> {
        let start = Instant::now();
        loop {
            bury_namespaces()?;
            let after = Slabs::read_exactly(Duration::from_secs(3))?;
            let exactly = EXACTLY.into_iter().map(|cache| (cache, 0));
            let slabs: Vec<Slab> = exactly
                .chain(ROUGHLY)
                .filter_map(|(cache, allowed)| {
                    Some(Slab {
                        cache: cache.to_owned(),
                        before: self.slabs.bytes(cache)?,
                        after: after.bytes(cache)?,
                        allowed,
                    })
                })
                .collect();
            let is_fine = slabs
                .iter()
                .all(|slab| slab.after - slab.before <= slab.allowed);
            if is_fine || start.elapsed() > limit {
                return Ok(slabs);
            }
        }
    }
}

/// Describes how many TCP sockets there are, and how many of them no process has open, in all
/// namespaces, also in those that no thread can enter any more.
fn sockets() -> Result<String> {
    let text = fs::read_to_string("/proc/net/sockstat").context("/proc/net/sockstat")?;
    read_sockets(&text).with_context(|| format!("/proc/net/sockstat: `{}`", text.trim()))
}

fn read_sockets(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("TCP: "))?;
    let fields: Vec<&str> = line.split_whitespace().collect();
    let of = |name: &str| -> Option<u64> {
        let at = fields.iter().position(|field| *field == name)?;
        fields.get(at + 1)?.parse().ok()
    };
    let (all, orphans) = (of("alloc")?, of("orphan")?);
    Some(format!(
        "{all} TCP sockets, {orphans} of which no process has open"
    ))
}

/// Has the kernel free the namespaces that are gone, but for the last one: it does when the next
/// one goes.
fn bury_namespaces() -> Result<()> {
    for _ in 0..2 {
        drop(Netns::new()?);
        // It goes in its own time.
        sleep(Duration::from_secs(1));
    }
    Ok(())
}

/// Proves that nothing holds the module, and that it can be unloaded.
fn module_goes() -> Result<Proof> {
    let says = "nothing holds the module, and it can be unloaded".to_owned();
    if !module::is_loaded()? {
        module::load("")?;
    }
    let count = module::refcount()?;
    let gone = module::try_unload();
    Ok(Proof {
        name: "module".to_owned(),
        says,
        held: count == Some(0) && gone.is_ok(),
        found: format!(
            "reference count {}, {}",
            count.map_or_else(|| "unknown".to_owned(), |count| count.to_string()),
            match gone {
                Ok(()) => "unloaded".to_owned(),
                Err(error) => format!("not unloaded: {error}"),
            }
        ),
    })
}

/// What a soak is made of, by how it is counted: without one of them it would prove nothing.
const EVENTS: [&str; 22] = [
    "module loaded",
    "module unloaded",
    "unloading refused, as it has to be",
    "namespaces gone with parked connections",
    "listeners closed under load",
    "listeners opened under load",
    "filters attached to live listeners",
    "settings changed under load",
    "parking paused under load",
    "server processes killed",
    "tcp_migrate_req set",
    "dumps of all listeners",
    "segments that make no sense",
    "namespaces whose clients ask for Accurate ECN",
    "segments capable of ECN",
    "pauses that were counted exactly",
    "parking paused under probes",
    "SYNs into the window",
    "requests in bursts",
    "clients that vanished",
    "clients served beside a greedy source",
    "listeners at rest with nothing left, and sums that are right",
];

/// The counts of the module that cannot be zero if all kinds of clients met all kinds of listeners.
const COUNTERS: [&str; 16] = [
    "parked_total",
    "released_data",
    "released_fin",
    "timeout_accept",
    "timeout_reset",
    "timeout_drop",
    "evicted",
    "aborted",
    "released_paused",
    "bypass_paused",
    "closed_reset",
    "closed_reset_unparked",
    "fallback",
    "released_late",
    "probes",
    "died",
];

/// Proves that everything that was to happen has happened.
fn everything_happened(board: &Board) -> Proof {
    let (events, counters) = (board.all_events(), board.all_counters());
    let of = |counts: &std::collections::BTreeMap<String, u64>, name: &str| {
        counts.get(name).copied().unwrap_or(0)
    };
    let mut missing: Vec<&str> = EVENTS
        .into_iter()
        .filter(|name| of(&events, name) == 0)
        .collect();
    missing.extend(COUNTERS.into_iter().filter(|name| of(&counters, name) == 0));
    Proof {
        name: "events".to_owned(),
        says: "everything that was to happen has happened".to_owned(),
        held: missing.is_empty(),
        found: if missing.is_empty() {
            format!(
                "{} kinds of events, {} counters",
                EVENTS.len(),
                COUNTERS.len()
            )
        } else {
            format!("never: {}", missing.join(", "))
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orphaned_sockets_are_described() {
        let text =
            "sockets: used 5\nTCP: inuse 1 orphan 3 tw 7 alloc 4 mem 0\nUDP: inuse 0 mem 0\n";
        assert_eq!(
            read_sockets(text).unwrap(),
            "4 TCP sockets, 3 of which no process has open"
        );
        assert_eq!(read_sockets("UDP: inuse 0 mem 0\n"), None);
    }
}
