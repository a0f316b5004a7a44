// SPDX-License-Identifier: GPL-2.0-only

//! The ops override: the first two requests of a family, on two CPUs at once.

use core::{
    ffi::c_void,
    hint, //
};

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            ordering::{
                Full,
                Relaxed, //
            },
            Atomic, //
        },
        SetOnce, //
    }, //
};

use crate::{
    fabricate::TestRequest,
    net::{
        bh::BhGuard,
        callbacks::reqsk::CALLBACKS,
        reqsk_ops::RequestOpsOverride, //
    }, //
};

/// Places for an override, each of which two threads want to fill at the same time.
struct Race<'a> {
    request: &'a TestRequest,
    slots: KVVec<SetOnce<RequestOpsOverride>>,
    /// How many times a thread has come: twice for each slot.
    came: Atomic<usize>,
    /// How many times both threads have come to a slot.
    met: Atomic<usize>,
    /// How many times a thread has got no override.
    missed: Atomic<usize>,
}

impl Race<'_> {
    /// Asks for the override in the next slot, together with the other thread.
    fn run(&self) {
        /// How long to wait for the other thread, which may have ended.
        const TURNS: usize = 100_000;
        let nth = self.came.fetch_add(1, Full);
        let Some(slot) = self.slots.get(nth / 2) else {
            return;
        };
        let _bh = BhGuard::new();
        for _ in 0..TURNS {
            if self.came.load(Relaxed) > nth | 1 {
                self.met.fetch_add(1, Relaxed);
                break;
            }
            hint::spin_loop();
        }
        // SAFETY: Bottom halves are off. The request has the fabricated operations, which are
        // constants of this module. Nothing parks it under this override.
        let got = unsafe { RequestOpsOverride::in_slot(slot, &self.request.request(), &CALLBACKS) };
        if got.is_none() {
            self.missed.fetch_add(1, Relaxed);
        }
    }
}

/// Runs a [`Race`] once, as one of its two threads.
///
/// # Safety
///
/// `race` must point to a [`Race`].
unsafe extern "C" fn run(race: *mut c_void) {
    // SAFETY: By the contract of this function. The threads share the race: all that they change in
    // it is atomic, or has a lock.
    unsafe { &*race.cast::<Race<'_>>() }.run();
}

#[kunit_tests(accf_reqsk_ops)]
mod tests {
    use core::ptr;

    use kernel::{
        error::to_result,
        prelude::*,
        sync::{
            atomic::{
                ordering::Relaxed,
                Atomic, //
            },
            SetOnce, //
        }, //
    };

    use super::Race;
    use crate::{
        fabricate::{
            TestListener,
            TestRequest, //
        },
        net::bindings, //
    };

    /// How many times the threads race at most.
    const SLOTS: usize = 4000;
    const MILLISECONDS: u32 = 500;

    #[test]
    fn a_cpu_waits_for_the_one_that_makes_the_override() -> Result {
        let listener = TestListener::plain()?;
        let request = TestRequest::new(&listener, 0)?;
        let mut slots = KVVec::with_capacity(SLOTS, GFP_KERNEL)?;
        for _ in 0..SLOTS {
            slots.push(SetOnce::new(), GFP_KERNEL)?;
        }
        let mut race = Race {
            request: &request,
            slots,
            came: Atomic::new(0),
            met: Atomic::new(0),
            missed: Atomic::new(0),
        };
        // SAFETY: The threads have ended when this returns, and until then no other code uses the
        // race.
        to_result(unsafe {
            bindings::accf_kunit_in_two_threads(
                Some(super::run),
                ptr::from_mut(&mut race).cast(),
                MILLISECONDS,
            )
        })?;
        let filled = race.slots.iter().filter(|slot| slot.as_ref().is_some());
        assert!(filled.count() > 0);
        // SAFETY: The function looks at a number that is always there.
        if unsafe { bindings::accf_num_online_cpus() } > 1 {
            assert!(race.met.load(Relaxed) > 0);
        }
        assert!(race.missed.load(Relaxed) == 0);
        Ok(())
    }
}
