// SPDX-License-Identifier: GPL-2.0-only

//! Safe types over the TCP of this kernel: the module's only `unsafe`, and all that a new kernel
//! version touches.
//!
//! A file imports only from files above it:
//!
//! * `bindings`, `helpers.c`: bindgen's output, and shims for what bindgen cannot see;
//! * `bh`, `rcu`: proofs of context, the lock, and deferred drop;
//! * `tcp_segment`: parses headers and options, and builds the bare ACK;
//! * `listen_sock`, `reqsk`: accessors of a listening socket, and of a connection request;
//! * `netns`, `reuseport`: a namespace's counters, and a snapshot of a `SO_REUSEPORT` group;
//! * `sockopt`, `diag`: the structures of `uapi/accf.h`;
//! * `registration`: offers a filter to listeners by name;
//! * `parked_request`, `reqsk_ops`: what a request keeps while it is parked, and its operations;
//! * `clone`: decides whether the module must be pinned;
//! * `park_queue`, `inject`: the queue of parked requests, and the rebuilt ACK;
//! * `listener`: a filtered listener, its lock, its timer and its transitions;
//! * `callbacks`: the functions that the kernel calls.
//!
//! The kernel's functions that comments name are those of Linux 7.3. `docs/design.md` has the
//! publication protocol, the lock order, the barriers and the life of a request.

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
