// SPDX-License-Identifier: GPL-2.0-only

//! The decisions of an accept filter.
//!
//! Pure: no kernel types, no clock (time is passed in), no `unsafe`, no allocation. `net/` passes
//! in what arrived, and carries out the [`Action`], [`Admission`], [`OnClose`], [`TimerAction`] or
//! [`SynAck`] that comes back. The same files are a crate on the host (`accf-policy`), where
//! properties of whole histories are tested.

mod backlog;
mod config;
mod deadline;
mod filter;
mod late;
mod liveness;
mod request;
mod room;
mod sources;
mod stats;

pub use backlog::{
    backlog_excluded,
    backlog_share, //
};
pub use config::{
    on_fin,
    on_park,
    Admission,
    Config,
    OnClose,
    OnTimeout,
    Parking, //
};
pub use deadline::{
    is_deferred_with_batch,
    may_synack_timer_run,
    next_look,
    synack_timer_deferral,
    timer_action,
    Expiry,
    Nanos,
    Timeout,
    TimerAction, //
};
pub use filter::{
    Dataready,
    Filter,
    Verdict, //
};
pub use late::{
    AcceptQueue,
    Burst,
    Joining, //
};
pub use liveness::{
    timeouts_while_probed,
    Probing,
    Silence, //
};
pub use request::{
    on_segment,
    on_synack,
    Action,
    Phase,
    SegmentKind,
    SynAck,
    Trigger, //
};
pub use room::RoomWatch;
pub use sources::{
    counts_sources,
    Bucket,
    Sources,
    BUCKETS,
    COUNTED_BEFORE_EVICTION,
    COUNTED_WITH_NEWCOMER, //
};
pub use stats::{
    Bypass,
    End,
    Stats,
    WAIT_BUCKETS, //
};
