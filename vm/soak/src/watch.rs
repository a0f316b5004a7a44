// SPDX-License-Identifier: MIT OR Apache-2.0
//! Looks at all listeners all the time, by `inet_diag`.

use std::thread::sleep;
use std::time::Duration;

use accf_kit::account::consistent;
use accf_kit::control::listeners_on;
use anyhow::{Context as _, Result};

use crate::round::Round;

/// Reads the counts of all listeners, over and over: they must add up at any time.
pub(crate) fn watch(round: &Round<'_>, nth: u64) -> Result<()> {
    let mut rng = round.rng(&format!("watcher {nth}"));
    while !round.is_settled() {
        let namespaces = round.board.namespaces();
        if let Some(ns) = rng.choice(namespaces.iter()) {
            let dumped = ns.run(|| listeners_on(0).context("sock_diag"));
            match dumped {
                Ok(listeners) => {
                    round.board.event("dumps of all listeners");
                    for listener in listeners {
                        consistent(&listener.stats)
                            .with_context(|| format!("of {}", listener.address))?;
                    }
                }
                // An answer takes memory.
                Err(_) if !round.has_all() => round.board.event("dumps without memory"),
                Err(error) => return Err(error),
            }
        }
        drop(namespaces);
        sleep(Duration::from_millis(rng.u64(5..60)) * round.patience);
    }
    Ok(())
}
