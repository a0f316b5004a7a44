// SPDX-License-Identifier: GPL-2.0-only

//! The bindings that bindgen generates from `bindings.h`, with layout assertions.
//!
//! To Rust, these types differ from those of `kernel::bindings`, where the request-socket types are
//! opaque.

#![allow(
    clippy::all,
    clippy::as_underscore,
    clippy::cast_lossless,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]
#![cfg_attr(not(CONFIG_RUSTC_HAS_UNNECESSARY_TRANSMUTES), allow(unknown_lints))]
#![allow(unnecessary_transmutes)]

use kernel::ffi;
use pin_init::{
    MaybeZeroable,
    Zeroable, //
};

// The types that rust/bindgen_parameters blocks.
type __kernel_size_t = usize;
type __kernel_ssize_t = isize;
type __kernel_ptrdiff_t = isize;

// SAFETY: `__BindgenBitfieldUnit<Storage>` is a newtype around `Storage`, which is `Zeroable`;
// bindgen does not derive this itself.
unsafe impl<Storage> Zeroable for __BindgenBitfieldUnit<Storage> where Storage: Zeroable {}

include!(concat!(env!("ACCF_NET_OBJ"), "/bindings_generated.rs"));
