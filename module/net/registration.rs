// SPDX-License-Identifier: GPL-2.0-only

//! Filters as upper layer protocols (ULPs) of TCP: a listener asks for one by name, with
//! `setsockopt(fd, IPPROTO_TCP, TCP_ULP, …)`.

use core::{
    marker::PhantomPinned,
    ptr, //
};

use kernel::{
    error::to_result,
    prelude::*,
    sync::{
        atomic::{
            ordering::Acquire,
            ordering::Relaxed,
            ordering::Release,
            Atomic, //
        },
        rcu, //
    },
    types::Opaque, //
};

use super::{
    bindings,
    sockopt::Defaults, //
};

/// How many filters can be registered at once.
const MAX_FILTERS: usize = 8;

/// The registered filters: TCP does not tell the `init` of a ULP which ULP it belongs to.
static REGISTERED: [Atomic<usize>; MAX_FILTERS] = [const { Atomic::new(0) }; MAX_FILTERS];

/// A registered filter, which listeners can ask for until this is dropped.
///
/// Dropping may sleep. No listener has the filter by then, as each holds a reference to the module.
///
/// # Invariants
///
/// `ops` is registered with TCP, and the address of `self` is in [`REGISTERED`].
#[pin_data(PinnedDrop)]
pub(crate) struct Registration {
    #[pin]
    ops: Opaque<bindings::tcp_ulp_ops>,
    name: &'static str,
    defaults: Defaults,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: TCP's list of ULPs, which `ops` is in, has a lock of its own; the rest does not change.
unsafe impl Send for Registration {}
// SAFETY: TCP's list of ULPs, which `ops` is in, has a lock of its own; the rest does not change.
unsafe impl Sync for Registration {}

impl Registration {
    /// Registers the filter `name`, with `defaults` for every listener. May sleep.
    ///
    /// # Errors
    ///
    /// `EEXIST`: TCP has a ULP of this name. `ENAMETOOLONG`: the name does not fit. `ENOSPC`: too
    /// many filters.
    ///
    /// # Safety
    ///
    /// * `callbacks` must be functions that TCP may call as its own `struct tcp_ulp_ops` says.
    /// * `init` must find this registration by [`Self::by_name`] with `name`, and publish an
    ///   `Arc<Listener>` in `icsk_ulp_data`.
    pub(crate) unsafe fn new(
        name: &'static str,
        callbacks: bindings::tcp_ulp_ops,
        defaults: Defaults,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(&this in Self {
            // Before `ops`: once that is registered, `init()` reads these.
            name: name,
            defaults: defaults,
            ops <- Opaque::try_ffi_init(move |slot: *mut bindings::tcp_ulp_ops| {
                let mut ops = callbacks;
                // SAFETY: The function has no preconditions.
                ops.owner = unsafe { bindings::accf_this_module() };
                put_name(&mut ops.name, name)?;
                // SAFETY: The slot is valid for writes, and pinned.
                unsafe { slot.write(ops) };

                let registered = REGISTERED
                    .iter()
                    .find(|slot| slot.cmpxchg(0, this.as_ptr() as usize, Release).is_ok())
                    .ok_or(ENOSPC)?;
                // SAFETY: The operations stay valid until `drop()` has unregistered them.
                to_result(unsafe { bindings::tcp_register_ulp(slot) })
                    .inspect_err(|_| registered.store(0, Release))
            }),
            _pin: PhantomPinned,
        }? Error)
    }

    /// Returns the registered filter `name`.
    ///
    /// # Safety
    ///
    /// `name` must be that of the registration whose `init` TCP is calling, and the returned
    /// reference must not be used after that call: during it TCP holds a reference to the module,
    /// so that the registration is not dropped.
    pub(crate) unsafe fn by_name<'a>(name: &str) -> Option<&'a Self> {
        REGISTERED.iter().find_map(|slot| {
            // SAFETY: A registration is written before its address enters the table, and its
            // address leaves the table before it is freed.
            let registration = unsafe { (slot.load(Acquire) as *const Self).as_ref() }?;
            (registration.name == name).then_some(registration)
        })
    }

    /// Returns the operations, for `icsk->icsk_ulp_ops`.
    pub(crate) fn as_ptr(&self) -> *const bindings::tcp_ulp_ops {
        self.ops.get()
    }

    /// Returns what is asked of every listener with this filter.
    pub(crate) fn defaults(&self) -> Defaults {
        self.defaults
    }
}

#[pinned_drop]
impl PinnedDrop for Registration {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered by the type invariants. May sleep here.
        unsafe { bindings::tcp_unregister_ulp(self.ops.get()) };
        let address = ptr::from_ref(&*self) as usize;
        for slot in &REGISTERED {
            if slot.load(Relaxed) == address {
                slot.store(0, Release);
            }
        }
        // The destructor of a request that was dying when its listener closed may still run, and so
        // may `get_info()` for inet_diag, both in process context, where only RCU tasks sees them.
        // On PREEMPT_RT, RCU tasks takes a task that waits for a lock for one that has returned;
        // but both functions are RCU readers from shortly after their entry until shortly before
        // their return. So this waits for their entry, for the RCU readers, and for their return.
        // Listeners may still be about to be dropped: `RetireQueue` waits for that.
        // SAFETY: May sleep here.
        unsafe { bindings::accf_synchronize_rcu_tasks() };
        rcu::synchronize_rcu();
        // SAFETY: May sleep here.
        unsafe { bindings::accf_synchronize_rcu_tasks() };
    }
}

/// Writes `name` to `buffer`, which is zeroed, so that a NUL follows.
fn put_name(buffer: &mut [kernel::ffi::c_char], name: &str) -> Result {
    if name.len() >= buffer.len() {
        return Err(ENAMETOOLONG);
    }
    for (to, from) in buffer.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    Ok(())
}
