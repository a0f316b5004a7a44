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

mod bindings;
mod context;
mod hooks;
mod listener;
mod overlay;
mod rcu;
mod request;
mod segment;
pub(crate) mod ulp;
mod wire;
