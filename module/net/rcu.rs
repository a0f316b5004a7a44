// SPDX-License-Identifier: GPL-2.0-only

//! Drops values that RCU readers may still use, once those readers are done.
//!
//! The kernel crate has RCU guards but no `call_rcu()`.

use kernel::{
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

use super::{
    bh::BhDisabled,
    bindings, //
};

/// Proof of an RCU read-side critical section, for as long as it lives.
///
/// # Safety
///
/// A grace period that begins while a value of the implementing type lives must not end before that
/// value is dropped.
pub(crate) unsafe trait ReadSide {}

// SAFETY: The guard calls `rcu_read_lock()` when it is made, and `rcu_read_unlock()` when it is
// dropped.
unsafe impl ReadSide for kernel::sync::rcu::Guard {}

// SAFETY: Disabled softirqs serve as an RCU read-side critical section too (`rcu_read_lock_bh()` in
// include/linux/rcupdate.h).
unsafe impl ReadSide for BhDisabled<'_> {}

/// The `struct rcu_head` inside a [`DeferDrop`] type.
#[pin_data]
#[repr(transparent)]
pub(crate) struct RcuHead {
    #[pin]
    head: Opaque<bindings::callback_head>,
}

impl RcuHead {
    /// Creates a head that is not queued.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            head <- Opaque::uninit(),
        })
    }
}

// SAFETY: Only `call_rcu()` and the callback access the head, and RCU synchronises the two.
unsafe impl Send for RcuHead {}
// SAFETY: Only `call_rcu()` and the callback access the head, and RCU synchronises the two.
unsafe impl Sync for RcuHead {}

/// A type that can be dropped after a grace period.
///
/// # Safety
///
/// `from_head()` must be the inverse of `head()`.
pub(crate) unsafe trait DeferDrop: Send + Sync + 'static {
    /// Returns the head inside `self`.
    fn head(&self) -> &RcuHead;

    /// Returns the `Self` that contains `head`.
    ///
    /// # Safety
    ///
    /// `head` must have come from [`Self::head`] of a value that is still alive.
    unsafe fn from_head(head: *const RcuHead) -> *const Self;

    /// Runs before the drop, when no reader is left that found the value before it was unpublished.
    /// Softirq.
    fn retire(&self) {}
}

/// Drops `value` once all RCU read-side critical sections that began before have ended
/// (`call_rcu()`). Any context.
///
/// [`kernel::sync::rcu::rcu_barrier`] waits for the drops that are under way, and must be called
/// before the module's text goes.
///
/// # Safety
///
/// `value` must not have been passed to this function before, through any of its references: its
/// head can be queued only once.
pub(crate) unsafe fn defer_drop<T: DeferDrop>(value: Arc<T>) {
    let head = value.head().head.get();
    // `drop_after_grace_period()` takes this reference back.
    let _ = Arc::into_raw(value);
    // SAFETY: The head is valid memory, pinned in an allocation that the leaked reference keeps
    // alive until the callback has run. It is not queued, by the contract of this function.
    unsafe { bindings::call_rcu(head, Some(drop_after_grace_period::<T>)) };
}

/// Drops the `T` that contains `head`: the callback that [`defer_drop`] gives to `call_rcu()`.
///
/// # Safety
///
/// `head` must be the head of a `T` that [`defer_drop`] has queued. This must be called once for
/// that, after a grace period.
unsafe extern "C" fn drop_after_grace_period<T: DeferDrop>(head: *mut bindings::callback_head) {
    // SAFETY: `RcuHead` is a transparent cell around the head that `defer_drop()` queued, inside a
    // `T` that the reference leaked there keeps alive.
    let value = unsafe { T::from_head(head.cast::<RcuHead>()) };
    // SAFETY: Takes back the reference that `defer_drop()` leaked, once, by the contract of this
    // function.
    let value = unsafe { Arc::from_raw(value) };
    value.retire();
}
