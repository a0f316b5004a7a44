// SPDX-License-Identifier: MIT OR Apache-2.0

//! Many clients of every kind on one thread.

pub mod segments;
pub mod sockets;
