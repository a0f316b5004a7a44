// SPDX-License-Identifier: GPL-2.0-only

//! Safe types over the TCP of this kernel: the only `unsafe` of accf, and all that a new kernel version touches.
//!
//! [`ulp::Registration`] offers a filter to listeners by name. Behind it:
//!
//! * `hooks`: every function the kernel calls;
//! * `listener`: a filtered listener, its queue of parked requests, its timer and its accounts;
//! * `options`: what user space asks of it, and is told;
//! * `request`, `parked`, `overlay`: a connection request, what it keeps and the operations it wears while parked;
//! * `segment`: the segment that came in;
//! * `expire`, `wire`: what is done at the deadline, with a segment that is made anew;
//! * `namespace`: what is counted for each network namespace;
//! * `context`, `rcu`: proofs of context, and memory that readers may still look at.
//!
//! The kernel's functions named in these pages are those of Linux 7.3.

pub(crate) mod bh;
pub(crate) mod bindings;
pub(crate) mod callbacks;
pub(crate) mod clone;
pub(crate) mod diag;
pub(crate) mod inject;
pub(crate) mod listen_sock;
pub(crate) mod listener;
pub(crate) mod netns;
pub(crate) mod park_queue;
pub(crate) mod parked_request;
pub(crate) mod rcu;
pub(crate) mod registration;
pub(crate) mod reqsk;
pub(crate) mod reqsk_ops;
pub(crate) mod reuseport;
pub(crate) mod sockopt;
pub(crate) mod tcp_segment;
