// SPDX-License-Identifier: GPL-2.0-only

//! Drops values that RCU readers may still use, once those readers are done.
//!
//! The kernel crate has RCU guards and work queues, but no `queue_rcu_work()`.

use kernel::{
    container_of,
    error::to_result,
    prelude::*,
    sync::{
        atomic::{
            ordering::Relaxed,
            Atomic, //
        },
        Arc, //
    },
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

/// The `struct rcu_work` inside a [`DeferDrop`] type.
#[pin_data]
#[repr(transparent)]
pub(crate) struct RcuWork {
    #[pin]
    work: Opaque<bindings::rcu_work>,
}

impl RcuWork {
    /// Creates work that is not queued.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            work <- Opaque::uninit(),
        })
    }
}

// SAFETY: Only `accf_retire()` and the function that it has called access the work, and RCU and the
// queue synchronise the two.
unsafe impl Send for RcuWork {}
// SAFETY: Only `accf_retire()` and the function that it has called access the work, and RCU and the
// queue synchronise the two.
unsafe impl Sync for RcuWork {}

/// Whether a [`RetireQueue`] exists.
static EXISTS: Atomic<bool> = Atomic::new(false);

/// The queue on which values are dropped, until it is dropped itself: that waits for all drops that
/// are under way.
///
/// There is one for the module. Making and dropping it may sleep.
///
/// # Invariants
///
/// There is no other `RetireQueue`, and the queue is allocated.
pub(crate) struct RetireQueue(());

impl RetireQueue {
    /// Makes the queue.
    ///
    /// # Errors
    ///
    /// `EBUSY`: there is one. `ENOMEM`: there is no memory.
    pub(crate) fn new() -> Result<Self> {
        EXISTS.cmpxchg(false, true, Relaxed).map_err(|_| EBUSY)?;
        // SAFETY: The caller may sleep. There is no queue, as the flag was clear.
        to_result(unsafe { bindings::accf_retire_queue_alloc() })
            .inspect_err(|_| EXISTS.store(false, Relaxed))?;
        // INVARIANT: The queue was just allocated, and the flag keeps others away.
        Ok(Self(()))
    }
}

impl Drop for RetireQueue {
    fn drop(&mut self) {
        // SAFETY: The queue is allocated by the type invariants. The caller may sleep, and nothing
        // is queued any more, by the contract of `defer_drop()`.
        unsafe { bindings::accf_retire_queue_destroy() };
        EXISTS.store(false, Relaxed);
    }
}

/// A type that can be dropped after a grace period.
///
/// # Safety
///
/// `from_work()` must be the inverse of `work()`.
pub(crate) unsafe trait DeferDrop: Send + Sync + 'static {
    /// Returns the work inside `self`.
    fn work(&self) -> &RcuWork;

    /// Returns the `Self` that contains `work`.
    ///
    /// # Safety
    ///
    /// `work` must have come from [`Self::work`] of a value that is still alive.
    unsafe fn from_work(work: *const RcuWork) -> *const Self;

    /// Runs before the drop, when no reader is left that found the value before it was unpublished.
    /// Process context; may sleep.
    fn retire(&self) {}
}

/// Drops `value` in process context, once all RCU read-side critical sections that began before
/// have ended (`queue_rcu_work()`). Any context.
///
/// # Safety
///
/// * `value` must not have been passed to this function before, through any of its references: its
///   work can be queued only once.
/// * There must be a [`RetireQueue`], which is dropped after the return of this function.
pub(crate) unsafe fn defer_drop<T: DeferDrop>(value: Arc<T>) {
    let work = value.work().work.get();
    // `drop_after_grace_period()` takes this reference back.
    let _ = Arc::into_raw(value);
    // SAFETY: The work is valid memory, pinned in an allocation that the leaked reference keeps
    // alive until the function has run. It is not queued, and the queue is there until then, by the
    // contract of this function.
    unsafe { bindings::accf_retire(work, Some(drop_after_grace_period::<T>)) };
}

/// Drops the `T` that contains `work`: the function that [`defer_drop`] has called.
///
/// # Safety
///
/// `work` must be in the work of a `T` that [`defer_drop`] has queued. This must be called once for
/// that, after a grace period, in process context.
unsafe extern "C" fn drop_after_grace_period<T: DeferDrop>(work: *mut bindings::work_struct) {
    // SAFETY: The work is the field of this name of a `struct rcu_work` that `defer_drop()` queued.
    let work = unsafe { container_of!(work, bindings::rcu_work, work) };
    // SAFETY: `RcuWork` is a transparent cell around that, inside a `T` that the reference leaked
    // there keeps alive.
    let value = unsafe { T::from_work(work.cast::<RcuWork>()) };
    // SAFETY: Takes back the reference that `defer_drop()` leaked, once, by the contract of this
    // function.
    let value = unsafe { Arc::from_raw(value) };
    value.retire();
}
