// SPDX-License-Identifier: GPL-2.0-only

//! The functions that the kernel calls: one file for each vtable. Each function takes the kernel's
//! pointers in, wraps them, and hands the types on.
//!
//! | function | is | called | context |
//! | --- | --- | --- | --- |
//! | [`ulp::init`] | `tcp_ulp_ops.init` | by `setsockopt(TCP_ULP)` | process, socket locked, may sleep |
//! | [`ulp::clone`] | `tcp_ulp_ops.clone` | when a child is made | softirq; process if a cookie's ACK comes from the backlog |
//! | [`ulp::release`] | `tcp_ulp_ops.release` | when the socket is destroyed | process or softirq, may not sleep |
//! | [`ulp::get_info`], [`ulp::get_info_size`] | `tcp_ulp_ops.get_info` … | by inet_diag | process, bottom halves on or off, may not sleep |
//! | [`af_ops::setsockopt`], [`af_ops::getsockopt`] | `icsk_af_ops->setsockopt` … | for each level but `IPPROTO_TCP` | process, may sleep |
//! | [`af_ops::conn_request`] | `icsk_af_ops->conn_request` | for each SYN | bottom halves off, RCU |
//! | [`af_ops::syn_recv_sock`] | `icsk_af_ops->syn_recv_sock` | for each ACK of a request | softirq, RCU, listener not locked; a cookie's ACK from the backlog: process, listener owned, bottom halves on |
//! | [`reqsk::send_synack`] | `af_specific->send_synack` | for parked requests | softirq, RCU |
//! | [`reqsk::send_ack`] | `rsk_ops->send_ack` | for parked requests | softirq, RCU |
//! | [`reqsk::send_reset`] | `rsk_ops->send_reset` | for parked requests | softirq, RCU, no lock |
//! | [`reqsk::destructor`] | `rsk_ops->destructor` | when a parked request dies | process or softirq, may not sleep |
//!
//! `peer_restores_clones()` of the listener is called by `reuseport.c` alone.

pub(crate) mod af_ops;
pub(crate) mod reqsk;
pub(crate) mod ulp;
