// SPDX-License-Identifier: GPL-2.0-only

//! The crate root of accf's policy on the host, where `cargo test` tests it.
//!
//! The kernel module includes the same files with `mod policy;`. Only attributes of a crate root
//! belong here.

#![no_std]
#![forbid(unsafe_code)]

#[path = "mod.rs"]
mod policy;

pub use policy::*;
