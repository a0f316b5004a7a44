// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many idle clients a listener has at each measurement.

use crate::rounds::Plan;

/// The numbers of idle clients, all of them for `dataready` only.
const STEPS: [u32; 4] = [1_000, 10_000, 100_000, 1_000_000];
/// The maximum in a short run.
const MAX_IF_SHORT: u32 = 10_000;
/// More clients than these connect in the last round only, as that takes long; there each figure is
/// measured once for every round.
const MAX_IN_EACH_ROUND: u32 = 10_000;

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    /// The number of idle clients.
    pub(crate) clients: u32,
    /// How often each figure is measured.
    pub(crate) passes: u32,
}

/// Returns the steps of a round.
pub(crate) fn steps(plan: Plan, round: u32) -> Vec<Step> {
    let is_last = round + 1 == plan.rounds;
    let wanted = |clients: &u32| {
        (is_last || *clients <= MAX_IN_EACH_ROUND) && (!plan.short || *clients <= MAX_IF_SHORT)
    };
    let step = |clients| Step {
        clients,
        passes: if clients > MAX_IN_EACH_ROUND {
            plan.rounds
        } else {
            1
        },
    };
    STEPS.into_iter().filter(wanted).map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_clients_connect_once_and_each_figure_has_a_sample_for_every_round() {
        for short in [true, false] {
            let plan = Plan { rounds: 3, short };
            let all: Vec<Step> = (0..plan.rounds)
                .flat_map(|round| steps(plan, round))
                .collect();
            for clients in STEPS {
                let passes: Vec<u32> = all
                    .iter()
                    .filter(|step| step.clients == clients)
                    .map(|step| step.passes)
                    .collect();
                let expected: &[u32] = match clients {
                    ..=MAX_IN_EACH_ROUND => &[1, 1, 1],
                    _ if short => &[],
                    _ => &[3],
                };
                assert_eq!(passes, expected, "{clients} clients");
            }
        }
    }
}
