// SPDX-License-Identifier: GPL-2.0-only

//! Contexts as types: bottom halves are off, and the spin lock that may only be taken then.

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

/// Proof that bottom halves are off on this CPU for as long as it lives: in softirq, or under a [`BhGuard`].
///
/// On PREEMPT_RT, it is the softirqs of this task that are; other tasks may get in between. So it proves an RCU reader, and a
/// context that TCP's functions may be called from, and excludes nobody: that is left to locks.
pub(crate) struct BhDisabled<'a>(PhantomData<&'a ()>, NotThreadSafe);

impl BhDisabled<'_> {
    /// States that bottom halves are off.
    ///
    /// # Safety
    ///
    /// Bottom halves must be off on this CPU for the lifetime that the caller chooses.
    pub(crate) unsafe fn assume() -> Self {
        Self(PhantomData, NotThreadSafe)
    }
}

/// Turns bottom halves off on this CPU until it is dropped. Process context and softirq; nests.
pub(crate) struct BhGuard(NotThreadSafe);

impl BhGuard {
    /// Turns bottom halves off.
    pub(crate) fn new() -> Self {
        // SAFETY: may be called from process context and from softirq; undone in `drop()` on the same CPU, as
        // `NotThreadSafe` keeps the guard in its thread and tasks do not migrate with bottom halves off.
        unsafe { bindings::accf_local_bh_disable() };
        Self(NotThreadSafe)
    }

    /// The proof.
    pub(crate) fn token(&self) -> BhDisabled<'_> {
        // SAFETY: they are off as long as `self` lives, which the token borrows.
        unsafe { BhDisabled::assume() }
    }
}

impl Drop for BhGuard {
    fn drop(&mut self) {
        // SAFETY: pairs with the call in `new()`.
        unsafe { bindings::accf_local_bh_enable() };
    }
}

/// Runs `f` with bottom halves off. Leaves them alone where they are off already, which is cheaper than a [`BhGuard`]: whoever
/// turned them off will not turn them on before `f` has returned. Process context and softirq.
#[inline]
pub(crate) fn with_bh_off<T>(f: impl FnOnce(&BhDisabled<'_>) -> T) -> T {
    // SAFETY: looks at nothing but this CPU's, or this task's, own count.
    let are_off = unsafe { bindings::accf_bh_is_off() };
    let guard = (!are_off).then(BhGuard::new);
    // One call, which can be inlined.
    // SAFETY: they are off. The guard has turned them off; or our caller, or the softirq that we are in, has, and only it can turn
    // them on again: what is done in `f` nests.
    let result = f(&unsafe { BhDisabled::assume() });
    drop(guard);
    result
}

/// A spin lock that is taken with bottom halves off, everywhere: `spin_lock_bh()`, with the `_bh` as a token.
#[pin_data]
pub(crate) struct BhSpinLock<T> {
    #[pin]
    inner: SpinLock<T>,
}

impl<T> BhSpinLock<T> {
    /// A new lock around `value`.
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
