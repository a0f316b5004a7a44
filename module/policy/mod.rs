// SPDX-License-Identifier: GPL-2.0-only

//! What an accept filter decides.
//!
//! Pure: no kernel types, no clock (time is passed in), no `unsafe`, no allocation. `net/` shows it what arrived and
//! obeys the [`Action`], [`Alarm`] or [`SynAck`] that comes back. The same files are a crate on the host
//! (`accf-policy`), where properties of whole histories are tested.

mod deadline;
mod filter;
mod request;

pub use deadline::{on_alarm, Alarm, Nanos, Timeout};
pub use filter::{Dataready, Filter, Verdict};
pub use request::{on_segment, on_synack, Action, Phase, Segment, SynAck, Trigger};
