// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the guest side of the soak reports to the host side.
//!
//! The guest (`main.rs`) runs everything at once for a while, and proves at the end that nothing is
//! left of it. The host (`xtask/src/soak/`) adds what only it knows: what the kernel's log says,
//! and whether memory has leaked.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The file in `$ACCF_OUT` that holds the [`Record`]; written last, so its presence means
/// "complete".
pub const RECORD_FILE: &str = "soak.json";

/// The version of these types; the host refuses a record of another version.
pub const SCHEMA: u32 = 1;

/// What happened in a soak, and what was proved of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// `uname -r`.
    pub kernel: String,
    /// What all random numbers started from.
    pub seed: u64,
    /// How long it was to take, in seconds.
    pub seconds: u64,
    /// How long it took.
    pub took: u64,
    /// How often everything was started and torn down.
    pub rounds: u32,
    /// What the clients did, and what became of them.
    pub clients: Vec<Clients>,
    /// What else happened, and how often.
    pub events: BTreeMap<String, u64>,
    /// What the module has counted, of all listeners whose counts were read when they were at rest.
    pub counters: BTreeMap<String, u64>,
    /// The kernel's caches of small objects, before and after.
    pub slabs: Vec<Slab>,
    /// What was to be proved.
    pub proofs: Vec<Proof>,
}

/// Clients that did the same in the same surroundings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clients {
    /// Their surroundings, in words.
    pub place: String,
    /// What they did, in words.
    pub habit: String,
    /// What became of them, in words, and of how many.
    pub fates: BTreeMap<String, u64>,
}

impl Clients {
    /// Returns how many they were.
    pub fn count(&self) -> u64 {
        self.fates.values().sum()
    }
}

/// How many bytes of a cache are in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slab {
    /// The cache's name.
    pub cache: String,
    /// Before the soak.
    pub before: i64,
    /// After it.
    pub after: i64,
    /// By how much it may have grown.
    pub allowed: i64,
}

/// Something that had to hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// What it is called: one word.
    pub name: String,
    /// What it is, as a sentence.
    pub says: String,
    /// Whether it held.
    pub held: bool,
    /// What was found, in words.
    pub found: String,
}

impl Record {
    /// Returns how many clients there were.
    pub fn connections(&self) -> u64 {
        self.clients.iter().map(Clients::count).sum()
    }

    /// Returns whether everything held that the guest knows of.
    pub fn held(&self) -> bool {
        !self.proofs.is_empty() && self.proofs.iter().all(|proof| proof.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            schema: SCHEMA,
            kernel: "7.3".to_owned(),
            seed: 1,
            seconds: 60,
            took: 61,
            rounds: 2,
            clients: vec![Clients {
                place: "a cable".to_owned(),
                habit: "speaks".to_owned(),
                fates: BTreeMap::from([("answered".to_owned(), 2), ("reset".to_owned(), 1)]),
            }],
            events: BTreeMap::new(),
            counters: BTreeMap::new(),
            slabs: Vec::new(),
            proofs: Vec::new(),
        }
    }

    #[test]
    fn clients_are_counted_once() {
        assert_eq!(record().connections(), 3);
    }

    #[test]
    fn nothing_proved_is_nothing_held() {
        let mut record = record();
        assert!(!record.held());
        let proof = |held| Proof {
            name: "so".to_owned(),
            says: "it is so".to_owned(),
            held,
            found: String::new(),
        };
        record.proofs.push(proof(true));
        assert!(record.held());
        record.proofs.push(proof(false));
        assert!(!record.held());
    }
}
