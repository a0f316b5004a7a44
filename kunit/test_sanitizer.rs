// SPDX-License-Identifier: GPL-2.0-only

//! That KCSAN sees what Rust code does: one data race, made on purpose, which `cargo xtask test` looks for in the log. A run without
//! its report proves nothing.

use core::ffi::c_void;

use kernel::prelude::*;

/// Counts, as nobody should who is not alone.
///
/// # Safety
///
/// `counter` must point to a `u64` that is only used by calls of this function, of which several may run at once: that is a data
/// race, which Rust does not define. It is compiled to a load and a store; what is stored does not matter to anybody.
#[inline(never)]
unsafe extern "C" fn race_on_purpose(counter: *mut c_void) {
    let counter = counter.cast::<u64>();
    // SAFETY: see the contract of this function, by which it is valid. Nothing makes it sound.
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

    /// KCSAN looks at one access of a thousand, for 160 µs. (From a second on, KUnit calls a test slow.)
    const MILLISECONDS: u32 = 800;

    #[test]
    fn two_threads_race_on_purpose() -> Result {
        let mut counter = 0_u64;
        // SAFETY: the threads have ended when this returns, and until then nobody else uses the counter.
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
