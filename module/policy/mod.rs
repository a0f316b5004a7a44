// SPDX-License-Identifier: GPL-2.0-only

//! What an accept filter decides.
//!
//! Pure: no kernel types, no clock (time is passed in), no `unsafe`, no allocation. `net/` shows it what arrived and
//! obeys the [`Action`], [`Admission`], [`Alarm`] or [`SynAck`] that comes back. The same files are a crate on the host
//! (`accf-policy`), where properties of whole histories are tested.

mod backlog;
mod deadline;
mod filter;
mod request;
mod stats;
mod terms;

pub use backlog::{discount, places};
pub use deadline::{
    is_own_timer_put_off_too, may_own_timer_run, on_alarm, own_timer_patience, Alarm, Expiry,
    Nanos, Timeout,
};
pub use filter::{Dataready, Filter, Verdict};
pub use request::{on_segment, on_synack, Action, Phase, Segment, SynAck, Trigger};
pub use stats::{Bypass, End, Stats, WAIT_BUCKETS};
pub use terms::{on_park, Admission, OnTimeout, Terms};
