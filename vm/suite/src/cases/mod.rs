// SPDX-License-Identifier: MIT OR Apache-2.0

//! The table of all cases.

mod account;
mod attach;
mod backlog;
mod bypass;
mod command;
mod concurrent_segments;
mod concurrent_sockets;
pub(crate) mod control;
mod deadline;
mod defer;
mod evict;
mod fault;
mod fuzz;
mod hold;
mod ktls;
pub(crate) mod lifetime;
mod many_parked;
mod migrate;
mod model;
mod odd;
mod plain;
mod policy;
mod release;

use std::time::Duration;

use accf_kit::module;

use crate::case::{Case, Skip, Stage};

/// Loaded as an administrator would who gives no parameters.
const DEFAULT: Stage = Stage::Loaded("");
/// Loaded with a deadline short enough to wait for.
const TWO_SECONDS: Stage = Stage::Loaded("timeout_ms=2000");
/// Loaded without a deadline.
const NEVER: Stage = Stage::Loaded("timeout_ms=0");

/// Loaded with room for four in each namespace.
const FEW_EACH: Stage = Stage::Loaded("max_parked_netns=4");

/// Every case, in the order of the results.
pub(crate) fn table() -> Vec<Case> {
    [
        plain::cases(Stage::Unloaded, "unloaded."),
        attach::cases_unloaded(),
        command::cases_unloaded(),
        attach::cases(),
        plain::cases(DEFAULT, ""),
        hold::cases(),
        release::cases(),
        odd::cases(),
        ktls::cases(),
        control::cases(),
        command::cases(),
        policy::cases(),
        defer::cases(),
        bypass::cases(),
        evict::cases(),
        account::cases(),
        deadline::cases_default(),
        nothing_left("default"),
        fuzz::cases(),
        nothing_left("fuzz"),
        deadline::cases(),
        nothing_left("two_seconds"),
        deadline::cases_never(),
        nothing_left("never"),
        evict::cases_few_each(),
        nothing_left("few_each"),
        lifetime::cases(),
        migrate::cases(),
        control::cases_alone(),
        bypass::cases_alone(),
        backlog::cases(),
        concurrent_segments::cases(),
        fault::cases(),
        model::cases(),
        many_parked::cases(),
        concurrent_sockets::cases(),
        migrate::cases_last(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Once the cases of a stage are over, nothing may be left of them that holds the module; of a stage left out, nothing is.
fn nothing_left(stage: &str) -> Vec<Case> {
    vec![Case::new(
        Stage::Alone,
        format!("lifetime.nothing_is_left_after_the_stage.{stage}"),
        |context| {
            if !module::is_loaded()? {
                return Err(
                    Skip("nobody has loaded the module since it went last".to_owned()).into(),
                );
            }
            module::unload(Duration::from_secs(10) * context.kernel.patience())
        },
    )]
}
