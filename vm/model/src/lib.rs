// SPDX-License-Identifier: MIT OR Apache-2.0

//! A second implementation of what a listener with the filter `dataready` does: from README.md,
//! `accf.h` and the RFCs, and not from the module.
//!
//! | part | is |
//! | --- | --- |
//! | [`server`] | the reference: one listener and its clients, a state machine without a clock |
//! | [`history`] | random moves, which proptest generates and shrinks |
//! | [`script`] | a history with a time for each move, and the expected state before and after it |
//!
//! Scripts are run twice: `tests/policy.rs` runs them with the module's policy, on the host; the
//! suite runs them with a real listener and real segments, in the guest.
//!
//! No check here tolerates deviations. Where the outcome of a move would depend on a few
//! milliseconds, the script does the move at another time.

#![forbid(unsafe_code)]

pub mod history;
pub mod script;
pub mod server;
