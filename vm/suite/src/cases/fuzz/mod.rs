// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whatever user space and the network feed the module, at random, judged by what `module/uapi/accf.h` and the README say.

mod at_once;
mod dumps;
mod like_plain;
mod options;
mod segments;

use crate::case::Case;

pub(crate) fn cases() -> Vec<Case> {
    [
        options::cases(),
        at_once::cases(),
        dumps::cases(),
        segments::cases(),
        like_plain::cases(),
    ]
    .into_iter()
    .flatten()
    .map(Case::fuzz)
    .collect()
}
