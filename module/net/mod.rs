// SPDX-License-Identifier: GPL-2.0-only

//! Safe types over the TCP of this kernel: the module's only `unsafe`, and all that a new kernel
//! version touches.
//!
//! A file imports only from files above it in this list:
//!
//! * `bindings`, `helpers.c`: bindgen's output, and shims for what bindgen cannot see;
//! * `bh`: proofs of context, and the lock;
//! * `rcu`: proofs of an RCU reader, and deferred drop;
//! * `tcp_segment`: parses headers and options, and builds the bare ACK;
//! * `listen_sock`: accessors of a listening socket;
//! * `reqsk`: accessors of a connection request;
//! * `netns`: the counter of each network namespace;
//! * `reuseport`: a snapshot of a `SO_REUSEPORT` group;
//! * `sockopt`: the structures of `uapi/accf.h`, to and from user space;
//! * `diag`: the same, in a message of inet_diag;
//! * `registration`: offers a filter to listeners by name;
//! * `parked_request`: what a request keeps while it is parked;
//! * `reqsk_ops`: the operations of a request while it is parked;
//! * `clone`: decides whether the module must be pinned;
//! * `by_source`: parked requests that are counted by source;
//! * `park_queue`: the queue of parked requests;
//! * `inject`: the rebuilt ACK;
//! * `listener`: a filtered listener, its lock, its timer and its transitions;
//! * `callbacks`: the functions that the kernel calls.
//!
//! The kernel's functions that comments name are those of Linux 7.3. `docs/design.md` has the
//! publication protocol, the lock order, the barriers and the life of a request.
//!
//! These functions are `#[cold]`. `cargo xtask bench holding` counts 48 instructions less for a
//! parked connection if all of them are (19 to park, 29 to release); they were not counted one by
//! one. `parked_request`: `ParkedRequest::new()`. `reqsk_ops`: `RequestOpsOverride::for_request()`.
//! `listener`: `make_room()`, `dequeue_dying()`, `count_bypass()`. `callbacks`:
//! `Lookup::detached()`, `take_over_defer_accept()`, `call_current()`,
//! `phase_of_acked_or_exempt()`, `on_ack_without_request()`, `fall_back()`.

pub(crate) mod bh;
pub(crate) mod bindings;
pub(crate) mod by_source;
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
