// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a listener with the filter `dataready` does, told a second time: from README.md, `accf.h` and the RFCs, and not
//! from the module.
//!
//! | part | is |
//! | --- | --- |
//! | [`server`] | the reference: one listener with its clients, as a state machine with a clock that it is told |
//! | [`history`] | what may happen to it, as proptest makes it up and shrinks it |
//! | [`script`] | a history with a time for each of its moves, and what is to be seen before and after each |
//!
//! Two users play scripts: `tests/policy.rs` has the module's policy decide, on the host; the suite has a real listener
//! answer real segments, in the guest.
//!
//! No check here allows for chance. Where the outcome of a move would depend on a few milliseconds, the script puts the
//! move somewhere else.

#![forbid(unsafe_code)]

pub mod history;
pub mod script;
pub mod server;
