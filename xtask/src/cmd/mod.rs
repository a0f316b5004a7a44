// SPDX-License-Identifier: MIT OR Apache-2.0
//! One file per command.

mod bench;
mod build;
mod ci;
mod demo;
mod fuzz;
mod kernel;
mod packetdrill;
mod profile;
mod setup;
mod soak;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

pub(crate) use bench::Bench;
pub(crate) use build::Build;
pub(crate) use ci::Ci;
pub(crate) use demo::Demo;
pub(crate) use fuzz::Fuzz;
pub(crate) use kernel::KernelCmd;
pub(crate) use packetdrill::Packetdrill;
pub(crate) use profile::Profile;
pub(crate) use setup::Setup;
pub(crate) use soak::{any_seed, Soak};
pub(crate) use test::Test;
pub(crate) use tidy::Tidy;
pub(crate) use vm::Vm;

/// Returns the exit status of a command that succeeded, or did not.
fn exit_code(success: bool) -> ExitCode {
    ExitCode::from(u8::from(!success))
}
