// SPDX-License-Identifier: MIT OR Apache-2.0
//! (being written)

use accf_bench::Measurement;
use anyhow::Result;

use crate::Plan;

/// Measures.
pub(crate) fn measure(_plan: Plan) -> Result<Vec<Measurement>> {
    Ok(Vec::new())
}
