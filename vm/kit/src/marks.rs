// SPDX-License-Identifier: MIT OR Apache-2.0
//! Marks: instructions that do nothing and that no compiler makes, for a profiler that watches the
//! processor from outside.
//!
//! Each is `nop dword ptr [rax + MARK]`, whose operand no processor looks at. The kit executes them
//! (`count.rs`); the plugin of QEMU that counts the instructions of each function (`vm/profile/`)
//! includes this file and looks for them.

/// A section begins: what is counted from here on belongs together.
pub(crate) const BEGIN: i32 = 0x0acc_0f01;

/// The section ends.
pub(crate) const END: i32 = 0x0acc_0f02;

/// From here on instructions are counted.
pub(crate) const RESUME: i32 = 0x0acc_0f03;

/// From here on they are not.
pub(crate) const PAUSE: i32 = 0x0acc_0f04;
