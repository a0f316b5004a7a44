// SPDX-License-Identifier: GPL-2.0-only

//! Dropping what RCU readers may still look at.
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
/// Grace periods must wait for whoever has a value of the type.
pub(crate) unsafe trait ReadSide {}

// SAFETY: that is what it is.
unsafe impl ReadSide for kernel::sync::rcu::Guard {}

// SAFETY: anything that disables softirqs can also serve as an RCU read-side critical section (`rcu_read_lock_bh()` in
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
    /// A head that is not queued.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            head <- Opaque::uninit(),
        })
    }
}

// SAFETY: only `call_rcu()` and the callback touch the head, which take care of their own synchronisation.
unsafe impl Send for RcuHead {}
// SAFETY: as above.
unsafe impl Sync for RcuHead {}

/// A type that can be dropped after a grace period.
///
/// # Safety
///
/// `from_head()` must be the inverse of `head()`.
pub(crate) unsafe trait DeferDrop: Send + Sync + 'static {
    /// The head inside `self`.
    fn head(&self) -> &RcuHead;

    /// The `Self` that contains `head`.
    ///
    /// # Safety
    ///
    /// `head` must have come from [`Self::head`] of a value that is still alive.
    unsafe fn from_head(head: *const RcuHead) -> *const Self;

    /// Called before the drop, when no reader is left that could have found the value before it was unpublished. Softirq.
    fn retire(&self) {}
}

/// Drops `value` once all RCU read-side critical sections that began before have ended (`call_rcu()`). Any context.
///
/// [`kernel::sync::rcu::rcu_barrier`] waits for the drops that are under way, and must be called before the module's
/// text goes.
///
/// # Safety
///
/// Must be called at most once for one allocation: its head can be queued but once.
pub(crate) unsafe fn defer_drop<T: DeferDrop>(value: Arc<T>) {
    let head = value.head().head.get();
    // The reference is taken up again in `drop_after_grace_period()`.
    let _ = Arc::into_raw(value);
    // SAFETY: the head is valid memory, pinned in an allocation that the forgotten reference keeps alive until the
    // callback has run, and not queued by the contract of this function.
    unsafe { bindings::call_rcu(head, Some(drop_after_grace_period::<T>)) };
}

/// # Safety
///
/// For `call_rcu()` only, with the head that [`defer_drop`] queued.
unsafe extern "C" fn drop_after_grace_period<T: DeferDrop>(head: *mut bindings::callback_head) {
    // SAFETY: `RcuHead` is a transparent cell around the head that `defer_drop()` queued, inside a `T` that is alive
    // by the reference forgotten there.
    let value = unsafe { T::from_head(head.cast::<RcuHead>()) };
    // SAFETY: takes up the very reference that `defer_drop()` forgot, once.
    let value = unsafe { Arc::from_raw(value) };
    value.retire();
}
