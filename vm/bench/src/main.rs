// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest side of the benchmarks: measures, and leaves a recording in `$ACCF_OUT`. It judges nothing.

fn main() -> anyhow::Result<()> {
    accf_kit::count::check()
}
