// SPDX-License-Identifier: MIT OR Apache-2.0
//! One file per command.

mod kernel;
mod setup;
mod vm;

pub(crate) use kernel::KernelCmd;
pub(crate) use setup::Setup;
pub(crate) use vm::Vm;
