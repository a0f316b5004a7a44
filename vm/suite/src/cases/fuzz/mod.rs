// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whatever user space and the network feed the module, at random, judged by what `module/uapi/accf.h` and the README say.

mod options;

use crate::case::Case;

pub(crate) fn cases() -> Vec<Case> {
    [options::cases()]
        .into_iter()
        .flatten()
        .map(Case::fuzz)
        .collect()
}
