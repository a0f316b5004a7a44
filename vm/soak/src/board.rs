// SPDX-License-Identifier: MIT OR Apache-2.0
//! Counts of what happens, kept by all threads of a round.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use accf_kit::account::fields;
use accf_kit::control::Stats;
use accf_kit::netns::Netns;
use accf_soak::Clients;

/// Counts of everything, and what went wrong.
#[derive(Debug, Default)]
pub(crate) struct Board {
    clients: Mutex<BTreeMap<(String, String), BTreeMap<String, u64>>>,
    begun: Mutex<BTreeMap<String, u64>>,
    events: Mutex<BTreeMap<String, u64>>,
    counters: Mutex<BTreeMap<String, u64>>,
    complaints: Mutex<Vec<String>>,
    namespaces: Mutex<Vec<Netns>>,
}

/// More complaints than these are only counted.
const MOST_COMPLAINTS: usize = 40;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    /// Counts something that happened.
    pub(crate) fn event(&self, what: &str) {
        self.events_of(what, 1);
    }

    /// Counts something that happened several times.
    pub(crate) fn events_of(&self, what: &str, count: u64) {
        *lock(&self.events).entry(what.to_owned()).or_default() += count;
    }

    /// Sets how many clients have begun at a place so far.
    pub(crate) fn begun(&self, place: &str, count: u64) {
        lock(&self.begun).insert(place.to_owned(), count);
    }

    /// Returns how many clients have begun in this round.
    pub(crate) fn now(&self) -> u64 {
        lock(&self.begun).values().sum()
    }

    /// Counts clients whose fate is known.
    pub(crate) fn clients(&self, place: &str, habit: &str, fate: &str, count: u64) {
        let key = (place.to_owned(), habit.to_owned());
        *lock(&self.clients)
            .entry(key)
            .or_default()
            .entry(fate.to_owned())
            .or_default() += count;
    }

    /// Adds what a listener has counted in all its life.
    pub(crate) fn counted(&self, stats: &Stats) {
        let mut counters = lock(&self.counters);
        for (name, count) in fields(stats) {
            if let Ok(count) = u64::try_from(count) {
                *counters.entry(name.to_owned()).or_default() += count;
            }
        }
    }

    /// Records that something is not as it has to be.
    pub(crate) fn complain(&self, what: impl fmt::Display) {
        let text = what.to_string();
        eprintln!("not as it should be: {text}");
        let mut complaints = lock(&self.complaints);
        if complaints.len() < MOST_COMPLAINTS {
            complaints.push(text);
        }
        drop(complaints);
        self.event("complaints");
    }

    /// Returns what is not as it has to be.
    pub(crate) fn complaints(&self) -> Vec<String> {
        lock(&self.complaints).clone()
    }

    /// Adds a namespace to look at until [`Self::forget_namespaces`].
    pub(crate) fn show_namespace(&self, ns: &Netns) {
        lock(&self.namespaces).push(ns.clone());
    }

    /// Returns the namespaces to be looked at.
    pub(crate) fn namespaces(&self) -> Vec<Netns> {
        lock(&self.namespaces).clone()
    }

    /// Lets go of all namespaces.
    pub(crate) fn forget_namespaces(&self) {
        lock(&self.namespaces).clear();
    }

    /// Returns what the clients did and what became of them.
    pub(crate) fn all_clients(&self) -> Vec<Clients> {
        lock(&self.clients)
            .iter()
            .map(|((place, habit), fates)| Clients {
                place: place.clone(),
                habit: habit.clone(),
                fates: fates.clone(),
            })
            .collect()
    }

    /// Returns what else happened.
    pub(crate) fn all_events(&self) -> BTreeMap<String, u64> {
        lock(&self.events).clone()
    }

    /// Returns what the module has counted.
    pub(crate) fn all_counters(&self) -> BTreeMap<String, u64> {
        lock(&self.counters).clone()
    }

    /// Describes the state in one line.
    pub(crate) fn line(&self) -> String {
        let begun = lock(&self.begun);
        let mut habits: BTreeMap<String, u64> = BTreeMap::new();
        for ((_, habit), fates) in lock(&self.clients).iter() {
            *habits.entry(habit.clone()).or_default() += fates.values().sum::<u64>();
        }
        let join = |counts: &BTreeMap<String, u64>| {
            let texts: Vec<String> = counts
                .iter()
                .filter(|(_, count)| **count > 0)
                .map(|(name, count)| format!("{name} {count}"))
                .collect();
            texts.join(", ")
        };
        let over: u64 = habits.values().sum();
        let now: u64 = begun.values().sum();
        format!(
            "{} connections, in this round: {}; those of earlier rounds: {}; {}",
            over + now,
            join(&begun),
            join(&habits),
            join(&lock(&self.events))
        )
    }

    /// Forgets what has begun in the last round: a new one begins.
    pub(crate) fn new_round(&self) {
        lock(&self.begun).clear();
    }
}
