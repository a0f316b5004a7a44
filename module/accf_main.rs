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

use net::{
    netns::Namespaces,
    registration::Registration,
    sockopt::Defaults, //
};
use policy::{
    Config,
    Dataready,
    OnTimeout,
    Timeout, //
};

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
            description: "Milliseconds after which a silent connection meets on_timeout (0: never)",
        },
        on_timeout: u32 {
            default: 0,
            description: "What becomes of it then (0: accepted, 1: reset, 2: dropped)",
        },
        max_parked: u32 {
            default: 16384,
            description: "Connections a listener holds back at most; then the oldest makes room",
        },
        max_parked_netns: u32 {
            default: 262144,
            description: "Connections all listeners of a network namespace hold back at most (0: any number)",
        },
    },
}

/// The loaded module: its filters, each registered until it is unloaded.
#[pin_data]
struct Accf {
    #[pin]
    dataready: Registration,
    // Dropped last.
    namespaces: Namespaces,
}

impl kernel::InPlaceModule for Accf {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            let defaults = defaults()?;
            Ok(try_pin_init!(Self {
                namespaces: Namespaces::register()?,
                dataready <- Registration::new::<Dataready>(defaults, module),
            }))
        })
    }
}

/// What the parameters ask of every listener.
fn defaults() -> Result<Defaults> {
    let on_timeout = module_parameters::on_timeout.value();
    let max_parked = module_parameters::max_parked.value();

    let Some(on_timeout) = OnTimeout::from_number(on_timeout) else {
        pr_err!("on_timeout={on_timeout} is none of 0 (accept), 1 (reset), 2 (drop)\n");
        return Err(EINVAL);
    };
    if max_parked == 0 {
        pr_err!("max_parked=0: a filter must be able to hold at least one connection back\n");
        return Err(EINVAL);
    }
    Ok(Defaults {
        config: Config {
            timeout: Timeout::from_millis(module_parameters::timeout_ms.value()),
            max_parked,
            on_timeout,
        },
        namespace_limit: module_parameters::max_parked_netns.value(),
    })
}
