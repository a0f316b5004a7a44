// SPDX-License-Identifier: GPL-2.0-only

//! Shows that KCSAN watches Rust code: one data race, made on purpose, whose report
//! `cargo xtask test` looks for in the log. A run without that report proves nothing.

use core::ffi::c_void;

use kernel::prelude::*;

/// Increments `counter` without synchronisation.
///
/// # Safety
///
/// `counter` must point to a valid `u64`, which only calls of this function use. Several of them
/// may run at once: that is a data race, whose behaviour Rust does not define. It compiles to a
/// load and a store, and the stored value does not matter.
#[inline(never)]
unsafe extern "C" fn race_on_purpose(counter: *mut c_void) {
    let counter = counter.cast::<u64>();
    // SAFETY: `counter` is valid by the contract of this function. The race is on purpose, and
    // nothing makes it sound.
    unsafe { *counter = (*counter).wrapping_add(1) };
}

#[kunit_tests(accf_sanitizer)]
mod tests {
    use core::ptr;
    use kernel::{
        error::to_result,
        prelude::*, //
    };

    use crate::net::bindings;

    /// How long the threads run. KCSAN watches one of a thousand accesses, for 160 µs. KUnit
    /// reports a test that takes more than a second as slow.
    const MILLISECONDS: u32 = 800;

    #[test]
    fn two_threads_race_on_purpose() -> Result {
        let mut counter = 0_u64;
        // SAFETY: The threads have ended when this returns, and until then no other code uses the
        // counter.
        to_result(unsafe {
            bindings::accf_kunit_in_two_threads(
                Some(super::race_on_purpose),
                ptr::from_mut(&mut counter).cast(),
                MILLISECONDS,
            )
        })?;
        assert!(counter > 0);
        Ok(())
    }
}
