// SPDX-License-Identifier: GPL-2.0-only

//! Filters as upper layer protocols of TCP: a listener asks for one by name, `setsockopt(fd, IPPROTO_TCP, TCP_ULP, …)`.

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
    types::Opaque,
    ThisModule, //
};

use crate::policy::Filter;

use super::{
    bindings,
    callbacks::ulp,
    sockopt::Defaults, //
};

/// So many filters can be registered at once.
const MAX_FILTERS: usize = 8;

/// The registered filters: `init` of a ULP is not told which one it is of.
static REGISTERED: [Atomic<usize>; MAX_FILTERS] = [const { Atomic::new(0) }; MAX_FILTERS];

/// A filter that listeners can ask for until this is dropped.
///
/// Dropping may sleep. By then no listener has the filter: each holds a reference to the module.
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

// SAFETY: TCP's list of ULPs has a lock of its own, and the rest does not change.
unsafe impl Send for Registration {}
// SAFETY: as above.
unsafe impl Sync for Registration {}

impl Registration {
    /// Registers `F`, with `defaults` for every listener.
    ///
    /// `EEXIST`: TCP has a ULP of this name. `ENAMETOOLONG`: the name does not fit. `ENOSPC`: too many filters.
    pub(crate) fn new<F: Filter>(
        defaults: Defaults,
        module: &'static ThisModule,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(&this in Self {
            // In this order: from the registration on, `init()` looks at these.
            name: F::NAME,
            defaults: defaults,
            ops <- Opaque::try_ffi_init(move |slot: *mut bindings::tcp_ulp_ops| {
                let mut ops = bindings::tcp_ulp_ops {
                    init: Some(ulp::init::<F>),
                    release: Some(ulp::release),
                    clone: Some(ulp::clone),
                    get_info: Some(ulp::get_info),
                    get_info_size: Some(ulp::get_info_size),
                    owner: module.as_ptr().cast(),
                    ..Default::default()
                };
                put_name(&mut ops.name, F::NAME)?;
                // SAFETY: the slot is valid for writes, and stays where it is.
                unsafe { slot.write(ops) };

                let registered = REGISTERED
                    .iter()
                    .find(|slot| slot.cmpxchg(0, this.as_ptr() as usize, Release).is_ok())
                    .ok_or(ENOSPC)?;
                // SAFETY: the operations are valid until they are unregistered in `drop()`.
                to_result(unsafe { bindings::tcp_register_ulp(slot) })
                    .inspect_err(|_| registered.store(0, Release))
            }),
            _pin: PhantomPinned,
        }? Error)
    }

    /// The registered filter `name`.
    ///
    /// # Safety
    ///
    /// For as long as the reference is used, the registration is not dropped: it is the one whose `init` the kernel is
    /// calling, which holds a reference to the module.
    pub(crate) unsafe fn by_name<'a>(name: &str) -> Option<&'a Self> {
        REGISTERED.iter().find_map(|slot| {
            // SAFETY: a registration in the table is alive, and was written before it entered.
            let registration = unsafe { (slot.load(Acquire) as *const Self).as_ref() }?;
            (registration.name == name).then_some(registration)
        })
    }

    /// For `icsk->icsk_ulp_ops`.
    pub(crate) fn as_ptr(&self) -> *const bindings::tcp_ulp_ops {
        self.ops.get()
    }

    /// What its listeners are asked to do.
    pub(crate) fn defaults(&self) -> Defaults {
        self.defaults
    }
}

#[pinned_drop]
impl PinnedDrop for Registration {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: registered by the type invariants. Waits for readers of the list (`synchronize_rcu()`).
        unsafe { bindings::tcp_unregister_ulp(self.ops.get()) };
        let address = ptr::from_ref(&*self) as usize;
        for slot in &REGISTERED {
            if slot.load(Relaxed) == address {
                slot.store(0, Release);
            }
        }
        // A request that was dying when its listener closed may only now be in our destructor, and inet_diag in our
        // `get_info`, and that in process context, where nothing but RCU tasks sees them; and listeners may wait for their
        // drop. On PREEMPT_RT, RCU tasks takes a task that waits for a lock for one that has left; but whoever does is an RCU reader,
        // from shortly after it has come until shortly before it leaves.
        // SAFETY: may sleep here.
        unsafe { bindings::accf_synchronize_rcu_tasks() };
        rcu::synchronize_rcu();
        // SAFETY: as above.
        unsafe { bindings::accf_synchronize_rcu_tasks() };
        rcu::rcu_barrier();
    }
}

/// Writes `name` and a NUL.
fn put_name(place: &mut [kernel::ffi::c_char], name: &str) -> Result {
    if name.len() >= place.len() {
        return Err(ENAMETOOLONG);
    }
    for (to, from) in place.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    Ok(())
}
