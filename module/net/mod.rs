// SPDX-License-Identifier: GPL-2.0-only

//! Safe types over the TCP of this kernel: the only `unsafe` of accf, and all that a new kernel version touches.
//!
//! [`ulp::Registration`] offers a filter to listeners by name. Behind it:
//!
//! * `hooks`: every function the kernel calls;
//! * `listener`: a filtered listener, its queue of parked requests and its timer;
//! * `request`, `overlay`: a connection request, and the operations it wears while parked;
//! * `segment`, `wire`: the segment that came in, and the one that is rebuilt at the deadline;
//! * `context`, `rcu`: proofs of context, and memory that readers may still look at.
//!
//! The kernel's functions named in these pages are those of Linux 7.3.

pub(crate) mod bindings;
pub(crate) mod context;
pub(crate) mod hooks;
pub(crate) mod listener;
pub(crate) mod overlay;
pub(crate) mod rcu;
pub(crate) mod request;
pub(crate) mod segment;
pub(crate) mod ulp;
pub(crate) mod wire;
