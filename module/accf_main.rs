// SPDX-License-Identifier: GPL-2.0-only

//! accf: accept filters for TCP listeners.
//!
//! A listener with a filter gets a connection from `accept()` only once it is worth accepting; until then it is a
//! connection request that has been acknowledged and is parked. This page is the list of filters; what they decide is
//! in [`policy`], and how TCP is made to obey in [`net`].

use kernel::prelude::*;

mod net;
#[allow(unreachable_pub, reason = "the host crate exports these")]
mod policy;

use net::ulp;
use policy::{Dataready, Timeout};

module! {
    type: Accf,
    name: "accf",
    authors: ["The accf authors"],
    description: "Accept filters for TCP listeners",
    license: "GPL v2",
    alias: ["tcp-ulp-dataready"],
    params: {
        timeout_ms: u32 {
            default: 60000,
            description: "Milliseconds after which a silent connection is accepted all the same (0: never)",
        },
    },
}

/// The loaded module: its filters, each registered until it is unloaded.
#[pin_data]
struct Accf {
    #[pin]
    dataready: ulp::Registration,
}

impl kernel::InPlaceModule for Accf {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let timeout = Timeout::from_millis(module_parameters::timeout_ms.value());

        try_pin_init!(Self {
            dataready <- ulp::Registration::new::<Dataready>(timeout, module),
        })
    }
}
