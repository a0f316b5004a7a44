// SPDX-License-Identifier: GPL-2.0-only

//! Contexts as types: a token for disabled bottom halves, and a spin lock that requires it.

use core::marker::PhantomData;

use kernel::{
    new_spinlock,
    prelude::*,
    sync::{
        lock::{
            spinlock::SpinLockBackend,
            Guard, //
        },
        SpinLock, //
    },
    types::NotThreadSafe, //
};

use super::bindings;

/// Proof that bottom halves are disabled on this CPU for as long as it lives: in softirq, or under
/// a [`BhGuard`].
///
/// On PREEMPT_RT, only the softirqs of this task are disabled, and other tasks may run in between.
/// So the token proves an RCU read-side critical section, and a context from which TCP's functions
/// may be called. Mutual exclusion is left to locks.
pub(crate) struct BhDisabled<'a>(PhantomData<&'a ()>, NotThreadSafe);

impl BhDisabled<'_> {
    /// Asserts that bottom halves are disabled.
    ///
    /// # Safety
    ///
    /// Bottom halves must be disabled on this CPU for the lifetime that the caller chooses.
    pub(crate) unsafe fn assume() -> Self {
        Self(PhantomData, NotThreadSafe)
    }
}

/// Disables bottom halves on this CPU until it is dropped. Process context and softirq; nests.
pub(crate) struct BhGuard(NotThreadSafe);

impl BhGuard {
    /// Disables bottom halves.
    pub(crate) fn new() -> Self {
        // SAFETY: May be called from process context and from softirq. `drop()` undoes it on the
        // same CPU: `NotThreadSafe` keeps the guard in its thread, and a task does not migrate
        // while its bottom halves are disabled.
        unsafe { bindings::accf_local_bh_disable() };
        Self(NotThreadSafe)
    }

    /// Returns the proof that bottom halves are disabled.
    pub(crate) fn token(&self) -> BhDisabled<'_> {
        // SAFETY: Bottom halves are disabled as long as `self` lives, which the token borrows.
        unsafe { BhDisabled::assume() }
    }
}

impl Drop for BhGuard {
    fn drop(&mut self) {
        // SAFETY: Pairs with the call in `new()`.
        unsafe { bindings::accf_local_bh_enable() };
    }
}

/// Runs `f` with bottom halves disabled. Process context and softirq.
///
/// Changes nothing where they are disabled already, which is cheaper than a [`BhGuard`]: the code
/// that disabled them does not enable them before `f` has returned.
pub(crate) fn with_bh_off<T>(f: impl FnOnce(&BhDisabled<'_>) -> T) -> T {
    // SAFETY: Only reads the softirq count of this CPU, or on PREEMPT_RT of this task.
    let are_off = unsafe { bindings::accf_bh_is_off() };
    let guard = (!are_off).then(BhGuard::new);
    // `f` is called in one place only, so that it can be inlined.
    // SAFETY: Bottom halves are disabled, either by the guard, or by our caller or the softirq that
    // we run in. They stay disabled until `f` has returned, as whatever `f` does to them nests.
    let result = f(&unsafe { BhDisabled::assume() });
    drop(guard);
    result
}

/// A spin lock that is only taken with bottom halves disabled: `spin_lock_bh()`, with the `_bh` as
/// a token.
#[pin_data]
pub(crate) struct BhSpinLock<T> {
    #[pin]
    inner: SpinLock<T>,
}

impl<T> BhSpinLock<T> {
    /// Creates a lock around `value`.
    pub(crate) fn new(value: T) -> impl PinInit<Self> {
        pin_init!(Self {
            inner <- new_spinlock!(value, "accf::listener"),
        })
    }

    /// Takes the lock.
    pub(crate) fn lock<'a>(&'a self, _bh: &'a BhDisabled<'_>) -> Guard<'a, T, SpinLockBackend> {
        self.inner.lock()
    }
}
