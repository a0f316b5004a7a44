// SPDX-License-Identifier: GPL-2.0-only

//! The host's root of accf's policy, so that it can be tested with `cargo test`.
//!
//! The module reaches the same files with `mod policy;`. Only attributes of a crate root belong here.

#![no_std]
#![forbid(unsafe_code)]

#[path = "mod.rs"]
mod policy;

pub use policy::*;
