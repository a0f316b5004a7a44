// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random histories of listeners, as real segments: what happens, and when, is what the reference
//! model predicts.
//!
//! A run takes [`SECONDS`] for each family, or what `ACCF_MODEL_SECONDS` in the environment says.
//! The same `--seed` makes the same histories. One that does not go as predicted is shrunk before
//! it is shown.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use accf_kit::endpoint::Family;
use accf_kit::module;
use accf_kit::netns::Netns;
use accf_model::history::{histories, History};
use accf_model::script::{Pace, Script};
use anyhow::{anyhow, bail, ensure, Result};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::case::{case, families, Context, Kernel};
use crate::model_runner::{Done, ModelRunner, Outcome};

/// How many seconds new histories are played.
const SECONDS: u64 = 25;
/// How many moves a history has at most.
const MOVES: usize = 60;
/// How often a history is played again because the machine was late.
const ATTEMPTS: usize = 6;
/// How many smaller histories are tried at most to shrink one that does not go as predicted, and
/// for how long.
const SMALLER: usize = 80;
const SHRINKING: Duration = Duration::from_secs(90);

/// Returns how long a case may take.
fn limit() -> Duration {
    Duration::from_secs(seconds() + 120) + SHRINKING
}

fn seconds() -> u64 {
    std::env::var("ACCF_MODEL_SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(SECONDS)
}

/// Returns how fast this guest can play, and how many histories at once.
fn pace(kernel: Kernel) -> (Pace, usize) {
    match kernel {
        Kernel::Stock => (
            Pace {
                unit: 60,
                guard: 25,
                timers_late: 100,
            },
            24,
        ),
        Kernel::Dev => (
            Pace {
                unit: 150,
                guard: 60,
                timers_late: 150,
            },
            16,
        ),
    }
}

case!(
    Alone, "model.random_histories" =>
    families(&[Family::V4, Family::V6], random_histories).long_as(limit)
);
fn random_histories(context: &Context, family: Family) -> Result<()> {
    module::reload("")?;
    let ns = Netns::new()?;
    ns.run(|| {
        let (pace, at_once) = pace(context.kernel);
        let theatre = ModelRunner::new(context, &ns, family, pace)?;
        let mut seed = [0; 32];
        let mut rng = context.rng();
        seed.fill_with(|| rng.u8(..));
        let mut rehearsal = Rehearsal {
            theatre,
            pace,
            tally: Tally::default(),
            runner: TestRunner::new_with_rng(
                Config::default(),
                TestRng::from_seed(RngAlgorithm::ChaCha, &seed),
            ),
        };
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(seconds()) {
            rehearsal.play(at_once)?;
        }
        let Tally {
            histories,
            done:
                Done {
                    moves,
                    segments,
                    counts,
                },
            again,
            given_up,
        } = rehearsal.tally;
        context.note(format!(
            "{histories} histories of {moves} moves and {segments} segments went as predicted; \
             {again} times one was played again, and {given_up} were given up, as the machine was \
             late"
        ));
        context.note(format!("in all of them: {counts}"));
        ensure!(
            histories > 4 * given_up && counts.parked_total() > 0,
            "this machine is too slow to play anything"
        );
        Ok(())
    })?;
    drop(ns);
    module::unload(context.patience())
}

/// What was played.
#[derive(Default)]
struct Tally {
    histories: usize,
    done: Done,
    again: usize,
    given_up: usize,
}

impl Tally {
    fn add(&mut self, done: &Done) {
        self.histories += 1;
        self.done.moves += done.moves;
        self.done.segments += done.segments;
        let (sum, counts) = (&mut self.done.counts, done.counts);
        sum.parked += counts.parked;
        sum.half_open += counts.half_open;
        sum.half_open_young += counts.half_open_young;
        sum.released_data += counts.released_data;
        sum.released_fin += counts.released_fin;
        sum.timeout_accept += counts.timeout_accept;
        sum.timeout_reset += counts.timeout_reset;
        sum.timeout_drop += counts.timeout_drop;
        sum.evicted += counts.evicted;
        sum.aborted += counts.aborted;
        sum.fallback += counts.fallback;
        sum.bypass_accept_queue_full += counts.bypass_accept_queue_full;
        sum.released_paused += counts.released_paused;
        sum.bypass_paused += counts.bypass_paused;
        sum.closed_reset += counts.closed_reset;
        sum.closed_reset_unparked += counts.closed_reset_unparked;
        sum.released_late += counts.released_late;
        sum.overflow_dropped += counts.overflow_dropped;
    }
}

struct Rehearsal<'a> {
    theatre: ModelRunner<'a>,
    pace: Pace,
    tally: Tally,
    runner: TestRunner,
}

impl Rehearsal<'_> {
    /// Generates some histories and plays them all at once.
    fn play(&mut self, at_once: usize) -> Result<()> {
        let strategy = histories(MOVES);
        let mut trees = Vec::new();
        for _ in 0..at_once {
            let tree = strategy.new_tree(&mut self.runner);
            trees.push(tree.map_err(|reason| anyhow!("no history: {reason}"))?);
        }
        let histories: Vec<History> = trees.iter().map(ValueTree::current).collect();
        let outcomes = self.outcomes(&histories)?;
        for (outcome, mut tree) in outcomes.into_iter().zip(trees) {
            match outcome {
                Outcome::AsPredicted(done) => self.tally.add(&done),
                Outcome::Late => self.tally.given_up += 1,
                Outcome::Differs(difference) => return self.explain(&mut tree, difference),
            }
        }
        Ok(())
    }

    /// Plays histories until the machine is fast enough, or gives some up.
    fn outcomes(&mut self, histories: &[History]) -> Result<Vec<Outcome>> {
        let mut outcomes = vec![Outcome::Late; histories.len()];
        let mut open: Vec<usize> = (0..histories.len()).collect();
        for _ in 0..ATTEMPTS {
            let batch = open.iter().filter_map(|&it| histories.get(it));
            let batch: Vec<History> = batch.cloned().collect();
            let mut again = Vec::new();
            for (outcome, index) in self.theatre.run(&batch)?.into_iter().zip(open) {
                if let Outcome::Late = outcome {
                    again.push(index);
                }
                if let Some(slot) = outcomes.get_mut(index) {
                    *slot = outcome;
                }
            }
            open = again;
            if open.is_empty() {
                break;
            }
            self.tally.again += open.len();
        }
        Ok(outcomes)
    }

    /// Searches for a smaller history that does not go as predicted either, and fails with it.
    fn explain(
        &mut self,
        tree: &mut impl ValueTree<Value = History>,
        difference: String,
    ) -> Result<()> {
        let start = Instant::now();
        let mut known: HashMap<String, bool> = HashMap::new();
        let mut smallest = difference.clone();
        let (mut tried, mut more) = (0, tree.simplify());
        while more && tried < SMALLER && start.elapsed() < SHRINKING {
            let history = tree.current();
            // Different shrinking steps can lead to the same history.
            let script = Script::of(&history, self.pace, 1).map(|script| script.to_string());
            let script = script.unwrap_or_default();
            let differs = match known.get(&script) {
                Some(differs) => *differs,
                None => {
                    tried += 1;
                    match self.outcomes(&[history])?.into_iter().next() {
                        Some(Outcome::Differs(difference)) => {
                            smallest = difference;
                            true
                        }
                        _ => false,
                    }
                }
            };
            known.insert(script, differs);
            more = if differs {
                tree.simplify()
            } else {
                tree.complicate()
            };
        }
        let mut told = format!(
            "after {} histories that went as predicted, one did not. The smallest of {tried} like \
             it:\n{smallest}",
            self.tally.histories
        );
        if smallest != difference {
            told.push_str(&format!("\nIt was found as:\n{difference}"));
        }
        bail!(told)
    }
}
