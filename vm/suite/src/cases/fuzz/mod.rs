// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random input from user space and the network, judged by what `module/uapi/accf.h` and the README
//! say.

mod at_once;
mod dumps;
mod like_plain;
mod options;
mod segments;
